#!/usr/bin/env python3
"""Ten thousand streams that wait and a thousand that run, on one gateway loop. Needs a build.

    bench/streams.py --idle 10000 --active 1000

Starts a cluster of simulated workers with deploy/local/up, and beside it workers whose decode steps take --pause
seconds: streams that land there (by external-filter) get a token that seldom, and are the idle ones. When all of these
have begun, the active ones start, each to --tokens tokens at --step-ms a step. It must hold that

  - every stream begins, and every active one is whole: status 200, all its tokens, [DONE];
  - the gateway's resident memory stays below --mib;
  - no active stream starves: the longest silence within any of them is at most --silence times the median of them all.

Client, gateway and workers share the machine; the client, in Python, has the larger part of the work.
"""
import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from cluster import BUILD, MODEL, Cluster, wait_for  # noqa: E402

SIM = "--backend sim --sim-output-tokens 0 --log-level warn --kv-cache-memory-bytes 16G "
PER_DECODE = 2500  # idle sequences of a worker; 4096 is its limit, and loads are not quite even


class Stream(asyncio.Protocol):
    """One request; notes when events came."""

    def __init__(self, zone, n_tokens):
        payload = (b'{"model":"nano-r1","prompt":[100,101,102],"max_tokens":%d,"ignore_eos":true,"stream":true}'
                   % n_tokens)
        self.request = (b"POST /v1/completions HTTP/1.1\r\nHost: streams\r\nContent-Type: application/json\r\n"
                        b"external-filter: zone=%s\r\nContent-Length: %d\r\n\r\n" % (zone, len(payload)) + payload)
        self.head = self.tail = b""
        self.n_events, self.silence_s, self.last_s = 0, 0.0, None
        self.begun, self.done = asyncio.Event(), asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data):
        now = time.monotonic()
        if not self.head:
            self.head = data[:15]
            self.begun.set()
        elif self.last_s is not None:
            self.silence_s = max(self.silence_s, now - self.last_s)
        self.last_s = now
        self.n_events += data.count(b"data: ")
        self.tail = (self.tail + data)[-64:]
        if b"[DONE]" in self.tail:
            self.done.set()

    def connection_lost(self, error):
        self.begun.set()
        self.done.set()

    def is_whole(self):
        return b" 200" in self.head and b"[DONE]" in self.tail


def rss_mib(pid):
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def decode_flags(n_streams, step_us):
    return ["--max-num-seqs", n_streams, "--max-num-batched-tokens", n_streams, "--sim-step-us", step_us]


def start_slow_workers(cluster, run, n_streams, pause_s, started):
    """Appends the processes to `started`."""
    redis = "unix:" + (Path(run) / "redis.socket").read_text().strip()
    each = min(n_streams, PER_DECODE)
    places = 2 * each if each < 2048 else 4096
    decode = "decode", decode_flags(places, pause_s * 1000000)
    workers = [("prefill", ["--max-requests", 4096])] * 2 + [decode] * -(-n_streams // each)
    for i, (role, flags) in enumerate(workers):
        command = [BUILD / "bin" / f"baton-{role}", "--model", MODEL, "--redis", redis, "--name", f"{role}-idle-{i}",
                   "--labels", "zone=idle", *SIM.split(), *flags]
        started.append(subprocess.Popen([str(part) for part in command]))
    n_all = 2 + len(workers)
    wait_for(lambda: cluster.linked("prefill") + cluster.linked("decode") == n_all, 20, "all workers are there")


async def open_streams(url, n, zone, n_tokens, at_once=512):
    """Begins n streams, `at_once` of them at a time."""
    target, streams, gate = urlsplit(url), [], asyncio.Semaphore(at_once)

    async def one():
        async with gate:
            _, stream = await asyncio.get_running_loop().create_connection(
                lambda: Stream(zone, n_tokens), target.hostname, target.port)
            streams.append(stream)
            await stream.begun.wait()

    await asyncio.gather(*(one() for _ in range(n)))
    return streams


async def measure(cluster, args):
    facts, wrong, pid, url = [], [], cluster.pid("gateway-0"), cluster.url("gateway-0")
    empty = rss_mib(pid)
    idle = await open_streams(url, args.idle, b"idle", 1000)
    waiting = rss_mib(pid)
    facts.append(f"idle streams: {args.idle}; resident {empty:.0f} -> {waiting:.0f} MiB, "
                 f"{1024 * (waiting - empty) / max(args.idle, 1):.1f} KiB each")
    began, cpu = time.monotonic(), cpu_s(pid)
    active = await open_streams(url, args.active, b"active", args.tokens, at_once=args.active)
    await asyncio.wait_for(asyncio.gather(*(stream.done.wait() for stream in active)), args.seconds)
    took, cpu, peak = time.monotonic() - began, cpu_s(pid) - cpu, rss_mib(pid)
    silences = sorted(stream.silence_s for stream in active)
    median = statistics.median(silences)
    n_tokens = args.active * args.tokens
    facts.append(f"active streams: {args.active} of {args.tokens} tokens in {took:.1f} s, "
                 f"{n_tokens / took:.0f} tokens/s, "
                 f"{1e6 * cpu / n_tokens:.1f} us of the gateway's CPU per token, resident {peak:.0f} MiB")
    facts.append(f"longest silence of an active stream: median {1e3 * median:.0f} ms, "
                 f"worst {1e3 * silences[-1]:.0f} ms")
    n_broken = sum(not stream.is_whole() for stream in active)
    n_lost = sum(b" 200" not in stream.head or stream.transport.is_closing() for stream in idle)
    if n_broken or n_lost:
        wrong.append(f"{n_broken} active streams are not whole, {n_lost} idle ones did not begin or are gone: "
                     + str({stream.head for stream in idle}))
    if peak > args.mib:
        wrong.append(f"{peak:.0f} MiB are above {args.mib}")
    if silences[-1] > args.silence * median:
        wrong.append("an active stream starved")
    for stream in idle + active:
        stream.transport.abort()
    return facts, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value, text in (("idle", 10000, "streams, at least 1"), ("active", 1000, "streams"),
                              ("tokens", 100, "of an active one"), ("step-ms", 100, "of an active one"),
                              ("pause", 5, "seconds between an idle one's tokens"),
                              ("mib", 1024, "of the gateway, at most"), ("silence", 5, "times the median, at most"),
                              ("seconds", 300, "for the active ones, at most")):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} [{value}]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="baton-streams-") as run:
        cluster, slow = None, []
        try:
            cluster = Cluster(run, n_decode=1, prefill=SIM + "--labels zone=active",
                              decode=SIM + "--labels zone=active " +
                              " ".join(map(str, decode_flags(args.active, args.step_ms * 1000))),
                              gateway=f"--log-level warn --max-concurrent-requests {args.idle + args.active}")
            start_slow_workers(cluster, run, args.idle, args.pause, slow)
            facts, wrong = asyncio.run(measure(cluster, args))
        finally:
            for process in slow:
                process.kill()
                process.wait()
            if cluster is not None:
                cluster.down()
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
    print(f"commit {commit.strip()}; {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print("\n".join(facts))
    print("\n".join(f"wrong: {what}" for what in wrong) or "none starved")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
