#!/usr/bin/env python3
"""More requests than a cluster of simulated workers can take, of two priorities: are those that are admitted in time,
and the urgent ones not refused? Needs a build.

    bench/overload.py --times 3 --limit-ms 1000 --urgent 0.2

Starts the cluster with deploy/local/up anew for each row of `gateways` and sends requests at fixed mean rates
(Poisson; nobody waits for an answer before asking again): half the capacity, --times the capacity, half of it again.
The capacity follows from what the workers are told to take for a token. Time is measured by the client, from before it
connects to the head of the answer, which comes with the first token; the client's own work is inside. Prints CSV: one
row for each phase and priority.

  gateways         their flags: as they come; with --max-ttft-ms; and with that and so short queues at the workers that
                   the waiting is done in the gateways
  shed_*           503, by reason: predicted to be late (before it waits), pushed out of a full queue or refused by it,
                   too long in it
  admitted_per_s   of capacity_per_s, both priorities together: is the cluster kept busy?
  in_time          share of the admitted whose first token came within the limit
  attained         share of the asked for which that is so
"""
import argparse
import asyncio
import os
import random
import re
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
URGENT, OTHERS = 0, 1  # priorities: lower goes first
REASONS = ("predicted_ttft", "queue_full", "queue_timeout")


def gateways(limit_ms):
    return {"plain": "", "limit": f"--max-ttft-ms {limit_ms}",
            "limit+queue": f"--max-ttft-ms {limit_ms} --max-worker-queue-ms {limit_ms // 4}"}


def cluster_args(flags):
    return {"n_gateways": 2, "n_prefill": N_PREFILL, "n_decode": 2, "decode_ep": 1,
            "prefill": SIM + f"--sim-prefill-us-per-token {TOKEN_US} --max-num-batched-tokens {N_TOKENS}",
            "decode": SIM + "--sim-step-us 2000 --max-num-seqs 256",
            "gateway": f"--log-level warn --max-concurrent-requests 65536 {flags}"}


async def ask(url, prompt, priority):
    """(priority, status, seconds to the head of the answer, why there is none); status 0: no answer."""
    target, began = urlsplit(url), time.monotonic()
    payload = f'{{"model":"nano-r1","prompt":{prompt},"max_tokens":4,"stream":true,"priority":{priority}}}'.encode()
    try:
        reader, writer = await asyncio.open_connection(target.hostname, target.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: overload\r\nContent-Type: application/json\r\n"
                     b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(payload) + payload)
        head = await reader.readuntil(b"\r\n\r\n")
        took = time.monotonic() - began
        await reader.read()
        writer.close()
        why = re.search(rb"x-baton-reason: (\w+)", head)
        return priority, int(head.split()[1]), took, why[1].decode() if why else ""
    except (OSError, asyncio.IncompleteReadError):
        return priority, 0, 0, ""


async def drive(urls, rate, seconds, urgent, rng):
    asked, until = [], time.monotonic() + seconds
    due = time.monotonic()
    while due < until:
        await asyncio.sleep(max(0, due - time.monotonic()))
        prompt = [rng.randrange(10, 2000) for _ in range(N_TOKENS)]
        priority = URGENT if rng.random() < urgent else OTHERS
        asked.append(asyncio.create_task(ask(urls[len(asked) % len(urls)], prompt, priority)))
        due += rng.expovariate(rate)
    return await asyncio.gather(*asked)


def report(name, times, seconds, target_ms, answers):
    per_s = sum(status == 200 for _, status, _, _ in answers) / seconds
    for priority in (URGENT, OTHERS):
        mine = [answer for answer in answers if answer[0] == priority]
        took = sorted(seconds for _, status, seconds, _ in mine if status == 200)
        shed = [sum(why == reason for _, status, _, why in mine if status == 503) for reason in REASONS]
        in_time = sum(t <= target_ms / 1000 for t in took)
        p50, p99 = (took[int(len(took) * q)] * 1000 if took else 0 for q in (0.5, 0.99))
        print(f"{name},{times},{CAPACITY:.0f},{per_s:.1f},{priority},{len(mine)},{len(took)},"
              f"{','.join(map(str, shed))},{len(mine) - len(took) - sum(shed)},{p50:.0f},{p99:.0f},"
              f"{in_time / max(1, len(took)):.4f},{in_time / max(1, len(mine)):.4f}", flush=True)


def run(name, flags, args):
    rng = random.Random(1)
    with tempfile.TemporaryDirectory(prefix="baton-overload-") as folder:
        cluster = Cluster(folder, **cluster_args(flags))
        urls = [cluster.url(name) for name in cluster.gateways]
        try:
            for times, seconds in ((0.5, args.seconds / 2), (args.times, args.seconds), (0.5, args.seconds / 2)):
                answers = asyncio.run(drive(urls, times * CAPACITY, seconds, args.urgent, rng))
                report(name, times, seconds, args.limit_ms, answers)
        finally:
            cluster.down()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=float, default=3, help="of the capacity [3]")
    parser.add_argument("--limit-ms", type=int, default=1000, help="for the first token [1000]")
    parser.add_argument("--urgent", type=float, default=0.2, help="share of the requests that go first [0.2]")
    parser.add_argument("--seconds", type=float, default=20, help="of the crowd; half of it before and after [20]")
    args = parser.parse_args()
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
    print(f"# commit {commit.strip()}; 2 gateways, {N_PREFILL} prefill and 2 decode workers, prompts of {N_TOKENS} "
          f"tokens; {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} at the beginning; target "
          f"{args.limit_ms} ms")
    print("gateways,times_capacity,capacity_per_s,admitted_per_s,priority,asked,admitted,shed_predicted,shed_full,"
          "shed_timeout,failed,ttft_p50_ms,ttft_p99_ms,in_time,attained")
    for name, flags in gateways(args.limit_ms).items():
        run(name, flags, args)


if __name__ == "__main__":
    sys.exit(main())
