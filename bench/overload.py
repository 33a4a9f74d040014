#!/usr/bin/env python3
"""More requests than a cluster of simulated workers can take: are those that are admitted in time? Needs a build.

    bench/overload.py --times 3 --limit-ms 1000

Starts the cluster with deploy/local/up twice, without and with --max-ttft-ms, and sends requests at fixed mean rates
(Poisson; nobody waits for an answer before asking again): half the capacity, --times the capacity, half of it again.
The capacity follows from what the workers are told to take for a token. Time is measured by the client, from before it
connects to the head of the answer, which comes with the first token; the client's own work is inside. Prints CSV: one
row for each phase.

  admitted_per_s   of capacity_per_s: is the cluster kept busy?
  in_time          share of the admitted whose first token came within the limit
"""
import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from cluster import Cluster  # noqa: E402

N_PREFILL, N_TOKENS, TOKEN_US = 2, 400, 100
CAPACITY = N_PREFILL * 1e6 / (N_TOKENS * TOKEN_US)  # requests per second
SIM = "--backend sim --sim-output-tokens 0 --log-level warn "


def cluster_args(limit_ms):
    return {"n_gateways": 2, "n_prefill": N_PREFILL, "n_decode": 2, "decode_ep": 1,
            "prefill": SIM + f"--sim-prefill-us-per-token {TOKEN_US} --max-num-batched-tokens {N_TOKENS}",
            "decode": SIM + "--sim-step-us 2000 --max-num-seqs 256",
            "gateway": f"--log-level warn --max-concurrent-requests 65536 --max-ttft-ms {limit_ms}"}


async def ask(url, prompt):
    """(status, seconds to the head of the answer); None: no answer."""
    target, began = urlsplit(url), time.monotonic()
    payload = f'{{"model":"nano-r1","prompt":{prompt},"max_tokens":4,"stream":true}}'.encode()
    try:
        reader, writer = await asyncio.open_connection(target.hostname, target.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: overload\r\nContent-Type: application/json\r\n"
                     b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(payload) + payload)
        head = await reader.readuntil(b"\r\n\r\n")
        took = time.monotonic() - began
        await reader.read()
        writer.close()
        return int(head.split()[1]), took
    except (OSError, asyncio.IncompleteReadError):
        return None


async def drive(urls, rate, seconds, rng):
    asked, until = [], time.monotonic() + seconds
    due = time.monotonic()
    while due < until:
        await asyncio.sleep(max(0, due - time.monotonic()))
        prompt = [rng.randrange(10, 2000) for _ in range(N_TOKENS)]
        asked.append(asyncio.create_task(ask(urls[len(asked) % len(urls)], prompt)))
        due += rng.expovariate(rate)
    return await asyncio.gather(*asked)


def report(limit_ms, target_ms, times, seconds, answers):
    took = sorted(answer[1] for answer in answers if answer and answer[0] == 200)
    n_shed = sum(1 for answer in answers if answer and answer[0] == 503)
    in_time = sum(1 for t in took if t <= target_ms / 1000) / max(1, len(took))
    p50, p99 = (took[int(len(took) * q)] * 1000 if took else 0 for q in (0.5, 0.99))
    print(f"{limit_ms},{times},{CAPACITY:.0f},{len(answers)},{len(took)},{n_shed},{len(answers) - len(took) - n_shed},"
          f"{len(took) / seconds:.1f},{p50:.0f},{p99:.0f},{in_time:.4f}", flush=True)


def run(limit_ms, args):
    rng = random.Random(1)
    with tempfile.TemporaryDirectory(prefix="baton-overload-") as folder:
        cluster = Cluster(folder, **cluster_args(limit_ms))
        urls = [cluster.url(name) for name in cluster.gateways]
        try:
            for times, seconds in ((0.5, args.seconds / 2), (args.times, args.seconds), (0.5, args.seconds / 2)):
                answers = asyncio.run(drive(urls, times * CAPACITY, seconds, rng))
                report(limit_ms, args.limit_ms, times, seconds, answers)
        finally:
            cluster.down()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=float, default=3, help="of the capacity [3]")
    parser.add_argument("--limit-ms", type=int, default=1000, help="for the first token [1000]")
    parser.add_argument("--seconds", type=float, default=20, help="of the crowd; half of it before and after [20]")
    args = parser.parse_args()
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
    print(f"# commit {commit.strip()}; 2 gateways, {N_PREFILL} prefill and 2 decode workers, prompts of {N_TOKENS} "
          f"tokens; {os.cpu_count()} processors; target {args.limit_ms} ms")
    print("max_ttft_ms,times_capacity,capacity_per_s,asked,admitted,shed,failed,admitted_per_s,"
          "ttft_p50_ms,ttft_p99_ms,in_time")
    for limit_ms in (0, args.limit_ms):
        run(limit_ms, args)


if __name__ == "__main__":
    sys.exit(main())
