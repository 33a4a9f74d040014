#!/usr/bin/env python3
"""Load a running cluster over HTTP and print time to first token, time per output token and throughput as CSV.

    bench/serve.py http://127.0.0.1:8080 --concurrency 1,8,16 --prompt 20 --output 64

A closed loop: each of --concurrency clients streams one completion after another. Prompts are random token ids, no two
alike, so no prefix cache helps; the end of text is ignored, so every answer has --output tokens. Inside the timed window:
everything from the first byte sent (connecting included) to the last event; ttft ends with the first event that has
text, tpot is (last - first) / (tokens - 1). The first round of each level is a warm-up and not counted.
One row per level: percentiles over all its requests, the median of its rounds' throughputs. Needs only Python.
"""
import argparse
import asyncio
import json
import platform
import random
import statistics
import sys
import time
import urllib.request
from urllib.parse import urlsplit


async def stream_one(target, body):
    """Seconds to the first and to the last event with text."""
    payload = json.dumps(body).encode()
    begin = time.perf_counter()
    reader, writer = await asyncio.open_connection(target.hostname, target.port or 80)
    head = (f"POST /v1/completions HTTP/1.1\r\nHost: {target.netloc}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n")
    writer.write(head.encode() + payload)
    first = last = None
    try:
        status = await reader.readline()
        if b" 200 " not in status:
            sys.exit(f"serve.py: {status.decode().strip()}: {(await reader.read(2000)).decode(errors='replace')}")
        async for line in reader:  # chunk sizes and headers are lines of their own and no events
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[len(b"data: "):])
            if "error" in event:
                sys.exit(f"serve.py: the stream broke: {event['error']['message']}")
            last = time.perf_counter() - begin
            first = first or last
    finally:
        writer.close()
    return first, last


async def client(args, rng, n_requests, out):
    for _ in range(n_requests):
        prompt = [rng.randrange(*args.ids) for _ in range(args.prompt)]
        body = {"model": args.model, "prompt": prompt, "max_tokens": args.output, "temperature": 0,
                "ignore_eos": True, "stream": True}
        out.append(await stream_one(args.target, body))


async def level(args, rng, concurrency):
    ttfts, tpots, rates = [], [], []
    for a_round in range(args.rounds + 1):
        times, begin = [], time.perf_counter()
        await asyncio.gather(*(client(args, rng, args.requests, times) for _ in range(concurrency)))
        seconds = time.perf_counter() - begin
        if a_round == 0:
            continue
        rates.append(len(times) * args.output / seconds)
        ttfts += [first for first, _ in times]
        tpots += [(last - first) / max(args.output - 1, 1) for first, last in times]
    return ttfts, tpots, rates


def percentile(values, percent):
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def numbers(text):
    return [int(n) for n in text.split(",")]


def load_parser(doc):
    """The flags of a load; --prompt is the program's own."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--output", type=int, default=64, help="tokens in an answer")
    parser.add_argument("--requests", type=int, default=8, help="per client and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ids", type=numbers, default=[10, 2000], help="FIRST,END of the token ids in prompts")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def load_arguments(parser):
    """Parsed, with the cluster's first model as .model and its address as .target."""
    args = parser.parse_args()
    args.target = urlsplit(args.url)
    with urllib.request.urlopen(args.url + "/v1/models") as answer:
        args.model = json.load(answer)["data"][0]["id"]
    return args


def main():
    parser = load_parser(__doc__)
    parser.add_argument("--concurrency", type=numbers, default=[1, 8, 16])
    parser.add_argument("--prompt", type=int, default=20, help="tokens in a prompt")
    args = load_arguments(parser)
    rng = random.Random(args.seed)
    print("model,cpu,concurrency,prompt,output,requests,ttft_p50_ms,ttft_p95_ms,tpot_p50_ms,tpot_p95_ms,tokens_per_s")
    for concurrency in args.concurrency:
        ttfts, tpots, rates = asyncio.run(level(args, rng, concurrency))
        figures = [1e3 * percentile(values, p) for values in (ttfts, tpots) for p in (50, 95)]
        print(args.model, platform.processor() or platform.machine(), concurrency, args.prompt, args.output, len(ttfts),
              *(f"{figure:.2f}" for figure in figures), f"{statistics.median(rates):.0f}", sep=",", flush=True)


if __name__ == "__main__":
    main()
