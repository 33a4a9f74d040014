#!/usr/bin/env python3
"""How much of the KV transfer compute did not hide, as a share of the time to first token, in a running cluster. CSV.

    bench/kv_overlap.py http://127.0.0.1:8080 --prompt 2048 --requests 20

One client, one request after another, so that nothing queues: what is left is the pair of workers itself. Prompts as in
serve.py. Both figures are the gateway's own, from its /metrics before and after: ttft is
baton_time_to_first_token_seconds; exposed is the stage "transfer" of baton_ttft_stage_seconds, from the end of prefill's
last step to COMMITTED: pushes that are still under way, the COMMIT, decode's check of the checksum and its answer. The
client waits for none of it: its first token has left before. Three warm-up requests are not counted.
"""
import argparse
import asyncio
import json
import random
import re
import sys
import urllib.request
from urllib.parse import urlsplit

from serve import client

WARM_UP = 3


def histogram(url, name, label=""):
    """Sum and count, all series with that label together."""
    with urllib.request.urlopen(url + "/metrics") as answer:
        text = answer.read().decode()
    found = {}
    for kind in ("sum", "count"):
        rows = re.findall(rf"^{name}_{kind}(\{{[^}}]*\}})? (\S+)$", text, re.M)
        found[kind] = sum(float(value) for labels, value in rows if label in labels)
    return found["sum"], found["count"]


def both(url):
    return (histogram(url, "baton_time_to_first_token_seconds"),
            histogram(url, "baton_ttft_stage_seconds", 'stage="transfer"'))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--prompt", type=lambda text: [int(n) for n in text.split(",")], default=[2048])
    parser.add_argument("--output", type=int, default=32, help="tokens in an answer; one alone is never handed over")
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ids", type=lambda text: [int(n) for n in text.split(",")], default=[10, 2000],
                        help="FIRST,END of the token ids in prompts")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with urllib.request.urlopen(args.url + "/v1/models") as answer:
        args.model = json.load(answer)["data"][0]["id"]
    rng = random.Random(args.seed)
    lengths = args.prompt
    print("model,prompt,handoffs,ttft_ms,exposed_ms,exposed_share")
    for args.prompt in lengths:
        asyncio.run(client(urlsplit(args.url), args, rng, WARM_UP, []))
        for _ in range(args.rounds):
            before = both(args.url)
            asyncio.run(client(urlsplit(args.url), args, rng, args.requests, []))
            (ttft, n), (exposed, n_exposed) = (
                tuple(now - then for now, then in zip(a, b)) for a, b in zip(both(args.url), before))
            if n_exposed < n / 2:  # an answer may be over before its hand-off is heard of
                sys.exit(f"kv_overlap.py: {n:.0f} first tokens, {n_exposed:.0f} hand-offs")
            ttft_ms, exposed_ms = 1e3 * ttft / n, 1e3 * exposed / n_exposed
            print(args.model, args.prompt, int(n_exposed), f"{ttft_ms:.2f}", f"{exposed_ms:.2f}",
                  f"{exposed_ms / ttft_ms:.4f}", sep=",", flush=True)


if __name__ == "__main__":
    main()
