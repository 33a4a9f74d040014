#!/usr/bin/env python3
"""How much of the KV transfer compute did not hide, as a share of the time to first token, in a running cluster. CSV.

    bench/kv_overlap.py http://127.0.0.1:8080 --prompt 2048 --requests 20

One client, one request after another, so that nothing queues: what is left is the pair of workers itself. Prompts as in
serve.py. Both figures are the gateway's own, from its /metrics before and after: ttft is
baton_time_to_first_token_seconds; exposed is the stage "transfer" of baton_ttft_stage_seconds, from the end of prefill's
last step to COMMITTED: pushes that are still under way, the COMMIT, decode's check of the checksum and its answer. The
client waits for none of it: its first token has left before. Three warm-up requests are not counted.
"""
import asyncio
import random
import re
import sys
import urllib.request

from serve import client, load_arguments, load_parser, numbers

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
    parser = load_parser(__doc__)
    parser.add_argument("--prompt", type=numbers, default=[2048], help="tokens in a prompt")
    parser.set_defaults(output=32, requests=20, rounds=3)  # an answer of one token is never handed over
    args = load_arguments(parser)
    rng = random.Random(args.seed)
    lengths = args.prompt
    print("model,prompt,handoffs,ttft_ms,exposed_ms,exposed_share")
    for args.prompt in lengths:
        asyncio.run(client(args, rng, WARM_UP, []))
        for _ in range(args.rounds):
            before = both(args.url)
            asyncio.run(client(args, rng, args.requests, []))
            (ttft, n), (exposed, n_exposed) = (
                tuple(now - then for now, then in zip(a, b)) for a, b in zip(both(args.url), before))
            if n_exposed < n / 2:  # an answer may be over before its hand-off is heard of
                sys.exit(f"kv_overlap.py: {n:.0f} first tokens, {n_exposed:.0f} hand-offs")
            ttft_ms, exposed_ms = 1e3 * ttft / n, 1e3 * exposed / n_exposed
            print(args.model, args.prompt, int(n_exposed), f"{ttft_ms:.2f}", f"{exposed_ms:.2f}",
                  f"{exposed_ms / ttft_ms:.4f}", sep=",", flush=True)


if __name__ == "__main__":
    main()
