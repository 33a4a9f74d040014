#!/usr/bin/env python3
"""A cluster of simulated workers under many requests: is the load even, and do all books agree? Needs a build.

    bench/scale.py --requests 20000 --gateways 2 --prefill 4 --decode 4
    bench/scale.py --strategy prefix-cache

Starts the cluster with deploy/local/up (workers with --backend sim, so no GPU and little CPU is needed), streams
completions through all gateways at once, stops it. Prompts are token ids: one of --groups common beginnings of --shared
tokens, then some of their own; every tenth prompt was asked before, and must be answered alike. Each request names the
strategy and one of a few users, whose requests and tokens the gateways count in Redis (--limits-file). Prints what it
found, and "wrong: ..." for each thing that does not add up: exit status 1 then. It must hold that

  - every stream is whole: status 200, a finish_reason, usage, [DONE]; nothing was refused, replayed or cancelled;
  - gateways, workers and client count the same requests, prompt tokens, output tokens and cached tokens;
  - what prefill workers' prefix caches found is what the gateways say, to each client and in their own figures;
  - Redis counted each user's and the model's requests and tokens as the clients did;
  - workers of a role have even loads: the busiest at most --even times the idlest. Where beginnings stay with the
    worker that knows them (prefill under prefix-cache; decode under every strategy, while that worker is calm) it is
    these that are dealt out, once, so there must be many more of them than workers for the loads to be even;
  - with prefix-cache, whichever gateway is asked, nearly all that one cache for all could find is found (--found): a
    beginning is computed once, and again only for who asks while it is computed or while its worker is saturated;
  - Redis names the workers that were started, every gateway sees them, and neither knows others;
  - at the end no worker holds a request, a block or a lease.

Figures of time are the gateways' own, for orientation: the client shares the machine with the cluster, and it is the
client, written in Python, that limits the requests per second.
"""
import argparse
import asyncio
import collections
import json
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
from cluster import Cluster  # what the tests know a cluster by

SIM = "--backend sim --sim-output-tokens 16 --log-level warn "
PREFILL_US = 500, 5  # of a step, and of each row: 2 ms for a prompt of 300 tokens
DECODE_US = 2000, 50  # 5 ms with 64 sequences
ROLES = "prefill", "decode"
MAX_TOKENS = 24  # of an answer: some end by themselves, some are cut
BLOCK = 64  # tokens
USERS = "ann", "bob", "eve"
LIMITS = "user * 1000000000 1000000000000\nmodel nano-r1 1000000000 1000000000000\n"  # counted, never reached

Answer = collections.namedtuple("Answer", "prefill cached_header prompt output cached reason text user")


def cluster_args(n_gateways=2, n_prefill=4, n_decode=4):
    """For Cluster()."""
    return {"n_gateways": n_gateways, "n_prefill": n_prefill, "n_decode": n_decode, "decode_ep": 1,
            "prefill": SIM + "--sim-step-us %d --sim-prefill-us-per-token %d" % PREFILL_US,
            "decode": SIM + "--max-num-seqs 64 --sim-step-us %d --sim-row-us %d" % DECODE_US,
            "gateway": "--log-level warn"}


def counting_args(folder, *counts):
    """As cluster_args(); the gateways count in Redis what users use."""
    limits, args = Path(folder) / "limits", cluster_args(*counts)
    limits.write_text(LIMITS)
    return args | {"gateway": f"{args['gateway']} --limits-file {limits}"}


# ---- the load


def make_prompts(rng, n_requests, n_groups, n_shared):
    def ids(n):
        return [rng.randrange(10, 2000) for _ in range(n)]

    groups, prompts = [ids(n_shared) for _ in range(n_groups)], []
    for i in range(n_requests):
        again = i > 100 and i % 10 == 0
        prompts.append(rng.choice(prompts) if again else rng.choice(groups) + ids(rng.randrange(8, 100)))
    return prompts


def findable_tokens(prompts):
    """What one cache, large enough, would find if the prompts came one after another."""
    known, n_found = set(), 0
    for prompt in prompts:
        names = [hash(tuple(prompt[:end])) for end in range(BLOCK, len(prompt) + 1, BLOCK)]
        usable = names[: (len(prompt) - 1) // BLOCK]  # the last token is always computed
        n_found += BLOCK * next((i for i, name in enumerate(usable) if name not in known), len(usable))
        known.update(names)
    return n_found


async def read_stream(reader):
    """(headers, events); leaves the connection at the next answer's beginning."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
    assert " 200 " in head[0], f"{head[0]}: {await reader.read(int(headers.get('content-length', 0)))}"
    events, size = b"", -1
    while size != 0:
        size = int(await reader.readuntil(b"\r\n"), 16)
        events += (await reader.readexactly(size + 2))[:-2]
    return headers, events.decode().split("\n\n")


async def ask(reader, writer, prompt, user, strategy):
    payload = json.dumps({"model": "nano-r1", "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0,
                          "stream": True, "stream_options": {"include_usage": True}}).encode()
    writer.write(f"POST /v1/completions HTTP/1.1\r\nHost: scale\r\nContent-Type: application/json\r\nuser: {user}\r\n"
                 f"routing-strategy: {strategy}\r\nContent-Length: {len(payload)}\r\n\r\n".encode() + payload)
    headers, events = await read_stream(reader)
    assert events[-2:] == ["data: [DONE]", ""], f"the stream ends with {events[-2:]}"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2] if event.startswith("data: ")]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    usage = chunks[-1]["usage"]
    return Answer(headers["x-baton-prefill"], int(headers["x-baton-cached-tokens"]), usage["prompt_tokens"],
                  usage["completion_tokens"], usage["prompt_tokens_details"]["cached_tokens"],
                  choices[-1]["finish_reason"], "".join(choice["text"] for choice in choices), user)


async def drive(urls, prompts, concurrency, strategy):
    """(answers by prompt number, None where there was none; complaints). Every client keeps its connection."""
    answers, todo, complaints = [None] * len(prompts), iter(range(len(prompts))), []

    async def client(url):
        target = urlsplit(url)
        reader = writer = None
        for i in todo:
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection(target.hostname, target.port)
                answers[i] = await ask(reader, writer, prompts[i], USERS[i % len(USERS)], strategy)
            except Exception as error:  # whatever it is, the answer was not whole
                complaints.append(f"request {i}: {type(error).__name__} {error}")
                if writer is not None:
                    writer.close()
                writer = None
        if writer is not None:
            writer.close()

    await asyncio.gather(*(client(urls[i % len(urls)]) for i in range(concurrency)))
    return answers, complaints


# ---- the books


class Books:
    """What all processes of a cluster counted; since the other books, if there are any."""

    def __init__(self, cluster, since=None):
        self.scrapes = {name: cluster.metrics(name) for name in cluster.gateways + cluster.workers}
        self.since = since

    def each(self, role, metric, **labels):
        then = self.since.each(role, metric, **labels) if self.since else {}
        return {name: m.value(metric, **labels) - then.get(name, 0) for name, m in self.scrapes.items()
                if name.startswith(role)}

    def sum(self, role, metric, **labels):
        return sum(self.each(role, metric, **labels).values())

    def pace(self, role, step_us, row_us):
        """How much longer steps were than they were told to be: what the machine, if it is too small, adds."""
        told_us = step_us * self.sum(role, "baton_steps_total") + row_us * self.sum(role, "baton_step_rows_sum")
        return 1e6 * self.sum(role, "baton_step_seconds_sum") / max(told_us, 1)


class Ledger:
    """The counters of limits in Redis, added up over minutes, each of which is forgotten two minutes later. They only
    grow, so the last look at a minute is the truth."""

    def __init__(self, cluster):
        self.cluster, self.minutes = cluster, {}
        self.look()
        self.begin = self.sum()

    def look(self):
        for key in self.cluster.redis("--scan", "--pattern", "baton:1:usage:*"):
            fields = self.cluster.redis("hgetall", key)
            self.minutes[key] = collections.Counter(dict(zip(fields[::2], map(int, fields[1::2]))))

    def sum(self):
        return sum(self.minutes.values(), collections.Counter())

    def used(self):
        self.look()
        return self.sum() - self.begin

    async def keep_looking(self):
        while True:
            await asyncio.sleep(20)
            await asyncio.to_thread(self.look)


class Findings:
    def __init__(self):
        self.facts, self.wrong = [], []

    def agree(self, what, **counts):
        """Everybody should have counted the same."""
        self.facts.append(f"{what}: {next(iter(counts.values())):.0f} ({', '.join(counts)})")
        if len(set(counts.values())) > 1:
            self.wrong.append(f"{what}: " + ", ".join(f"{who} {n:.0f}" for who, n in counts.items()))

    def even(self, what, loads, limit):
        ratio = max(loads.values()) / max(min(loads.values()), 1)
        self.facts.append(f"{what}: {' '.join(f'{n:.0f}' for n in loads.values())}; busiest / idlest {ratio:.3f}")
        if ratio > limit:
            self.wrong.append(f"{what} are uneven, {ratio:.3f} is above {limit}: {loads}")


def audit_requests(found, books, n_asked, answers):
    gateways = {reason: books.sum("gateway", "baton_requests_total", outcome=reason) for reason in ("stop", "length")}
    found.agree("requests", asked=n_asked, answered=len(answers), gateways_good_ends=sum(gateways.values()),
                gateways_all_ends=books.sum("gateway", "baton_requests_total"),
                prefill_first_tokens=books.sum("prefill", "baton_sampled_tokens_total"))
    for reason, n in gateways.items():
        workers = sum(books.sum(role, "vllm:request_success_total", finished_reason=reason) for role in ROLES)
        found.agree(f"requests that ended with {reason}", client=sum(a.reason == reason for a in answers), gateways=n,
                    workers=workers)
    for role, metric in (("gateway", "baton_replays_total"), ("", "baton_cancels_total"),
                         ("", "baton_kv_transfer_failures_total"), ("decode", "baton_kv_lease_expiries_total"),
                         ("decode", "baton_preemptions_total")):
        found.agree(metric, seen=books.sum(role, metric), wanted=0)


def audit_tokens(found, books, prompts, answers):
    hits = books.sum("prefill", "baton_prefix_cache_hits_total")
    n_prompt, n_cached = sum(a.prompt for a in answers), sum(a.cached for a in answers)
    found.agree("prompt tokens", client=n_prompt, asked=sum(map(len, prompts)),
                gateways=books.sum("gateway", "baton_prompt_tokens_total"),
                prefill_looked_up=books.sum("prefill", "baton_prefix_cache_queries_total"),
                prefill_computed_or_found=books.sum("prefill", "baton_prefill_tokens_total") + hits)
    found.agree(f"cached tokens, {100 * n_cached / max(n_prompt, 1):.1f} % of them", client=n_cached,
                headers=sum(a.cached_header for a in answers), prefill=hits,
                gateways=books.sum("gateway", "vllm:prefix_cache_hits_total"))
    found.agree("output tokens", client=sum(a.output for a in answers),
                gateways=books.sum("gateway", "baton_output_tokens_total"),
                workers=books.sum("", "baton_sampled_tokens_total"))
    found.agree("KV bytes", sent=books.sum("prefill", "baton_kv_transfer_bytes_total"),
                received=books.sum("decode", "baton_kv_transfer_bytes_total"))


def audit_redis(found, ledger, answers):
    """Gateways tell Redis within 50 ms, or when it has answered what they told it before."""
    want = collections.Counter()
    for answer in answers:
        for payer in (f"user {answer.user}", "model nano-r1"):
            want[f"requests {payer}"] += 1
            want[f"tokens {payer}"] += answer.prompt + answer.output
    deadline = time.monotonic() + 5
    while ledger.used() != want and time.monotonic() < deadline:
        time.sleep(0.02)
    used = ledger.used()
    for field in sorted(want.keys() | used.keys()):
        found.agree(field, client=want[field], redis=used[field])


def audit_loads(found, books, answers, limit):
    requests = books.each("prefill", "baton_sampled_tokens_total")
    hits = books.each("prefill", "baton_prefix_cache_hits_total")
    for name, n in requests.items():
        own = [a for a in answers if a.prefill == name]
        found.agree(f"requests of {name}", worker=n, headers=len(own),
                    gateways=books.sum("gateway", "baton_selected_total", worker=name))
        found.agree(f"cached tokens of {name}", worker=hits[name], clients=sum(a.cached for a in own))
    found.even("requests of prefill workers", requests, limit)
    found.even("tokens of decode workers", books.each("decode", "baton_sampled_tokens_total"), limit)


def audit_affinity(found, prompts, answers, strategy, wanted):
    share = sum(a.cached for a in answers) / max(findable_tokens(prompts), 1)
    found.facts.append(f"cached tokens, of those that one cache for all could find: {100 * share:.1f} %")
    if strategy == "prefix-cache" and share < wanted:
        found.wrong.append(f"only {share:.3f} of what could be found was, not {wanted}")


def audit_answers(found, prompts, answers):
    texts = {}
    for prompt, answer in zip(prompts, answers):
        if answer is not None and texts.setdefault(tuple(prompt), answer.text) != answer.text:
            found.wrong.append(f"a prompt of {len(prompt)} tokens is answered in two ways")
    found.facts.append(f"prompts that were asked before: {len(answers) - len(texts)}, and answered alike")


def audit_cluster(found, cluster):
    """The workers that Redis names, by batonctl, are those that were started and that every gateway sees."""
    lines = cluster.ctl("status").splitlines()
    named = sorted(line.split()[0].removeprefix("worker=") for line in lines)
    if named != sorted(cluster.workers):
        found.wrong.append(f"Redis names {named}")
    for gateway in cluster.gateways:
        found.agree(f"workers of {gateway}", started=len(cluster.workers), redis=len(named),
                    sees=cluster.linked("prefill", gateway) + cluster.linked("decode", gateway))
    found.wrong += [f"{name} still holds {held}" for name, held in cluster.holders().items()]


async def drive_and_look(ledger, *load):
    looking = asyncio.create_task(ledger.keep_looking())
    result = await drive(*load)
    looking.cancel()
    return result


def measure(cluster, n_requests, strategy, n_groups=40, n_shared=256, concurrency=64, even=1.25, near=0.95, seed=1):
    """Drives an idle cluster (of counting_args(); the seed is new to it) and audits it. Returns the findings."""
    found, prompts = Findings(), make_prompts(random.Random(seed), n_requests, n_groups, n_shared)
    before, ledger = Books(cluster), Ledger(cluster)
    urls = [cluster.url(name) for name in cluster.gateways]
    begin = time.perf_counter()
    answers, failed = asyncio.run(drive_and_look(ledger, urls, prompts, concurrency, strategy))
    seconds = time.perf_counter() - begin
    cluster.wait_idle()
    whole, books = [answer for answer in answers if answer is not None], Books(cluster, before)
    found.wrong += failed[:5]
    audit_requests(found, books, len(prompts), whole)
    audit_tokens(found, books, prompts, whole)
    audit_redis(found, ledger, whole)
    audit_loads(found, books, whole, even)
    audit_affinity(found, prompts, whole, strategy, near)
    audit_answers(found, prompts, answers)
    audit_cluster(found, cluster)
    found.facts.append(f"steps took {books.pace('prefill', *PREFILL_US):.2f} (prefill) and "
                       f"{books.pace('decode', *DECODE_US):.2f} (decode) times what they were told to")
    ttft = [books.sum("gateway", f"baton_time_to_first_token_seconds_{what}") for what in ("sum", "count")]
    found.facts.append(f"{seconds:.1f} s, {n_requests / seconds:.0f} requests/s, {concurrency} at once; "
                       f"first token after {1e3 * ttft[0] / max(ttft[1], 1):.1f} ms in the mean")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value, text in (("requests", 20000, "in all"), ("gateways", 2, ""), ("prefill", 4, "workers"),
                              ("decode", 4, "workers"), ("concurrency", 64, "clients"),
                              ("groups", 400, "common beginnings"), ("shared", 256, "tokens of one"),
                              ("seed", 1, "of the prompts")):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} [{value}]".strip())
    parser.add_argument("--strategy", default="least-request", help="what every request asks for [least-request]")
    parser.add_argument("--even", type=float, default=1.25, help="busiest worker / idlest one, at most [1.25]")
    parser.add_argument("--found", type=float, default=0.95, help="share of what one cache would find, at least [0.95]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="baton-scale-") as run:
        cluster = Cluster(run, **counting_args(run, args.gateways, args.prefill, args.decode))
        try:
            found = measure(cluster, args.requests, args.strategy, args.groups, args.shared, args.concurrency, args.even,
                            args.found, args.seed)
        finally:
            cluster.down()
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
    print(f"commit {commit.strip()}; {args.gateways} gateways, {args.prefill} prefill and {args.decode} decode "
          f"workers, {args.strategy}, {args.groups} beginnings; {os.cpu_count()} processors")
    print("\n".join(found.facts))
    print("\n".join(f"wrong: {what}" for what in found.wrong) or "all books agree")
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
