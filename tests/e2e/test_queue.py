"""The gateway's queue: who waits for a worker with room, in which order, and who is told to come back later."""

import re
import threading

import openai
import pytest

from cluster import wait_for
from conftest import client_of, lend
from test_cancel import raw_post

PROMPT = list(range(100, 400))

@pytest.fixture(scope="module")
def shared_narrow(beside):
    """A prefill worker with one of our prompts has room for no other, and two may wait."""
    return beside("--max-worker-queue-ms", 1, "--max-num-queued-reqs", 2)


@pytest.fixture
def narrow(shared_narrow):
    yield from lend(shared_narrow)


class Asking(threading.Thread):
    """A request in a thread; `error` is None, or what came instead of an answer."""

    def __init__(self, one, name, max_retries=0, headers=None, **body):
        super().__init__()
        self.client = client_of(one).with_options(max_retries=max_retries)
        self.body, self.headers, self.error = {"cache_salt": name} | body, {"x-request-id": name} | (headers or {}), None
        self.start()

    def run(self):
        try:
            self.client.completions.create(model="nano-r1", prompt=PROMPT, max_tokens=1, temperature=0,
                                           extra_headers=self.headers, extra_body=self.body)
        except openai.APIError as error:
            self.error = error

    def end(self):
        self.join(60)
        return self.error


def wait_in_queue(one, n):
    wait_for(lambda: one.metrics().value("baton_requests_queued") == n, 10, f"{n} wait")


def fill(one):
    """Nothing else is computed until the connection is closed that this returns: of a prompt that takes long."""
    connection = raw_post(one, {"model": "nano-r1", "prompt": [100 + i % 997 for i in range(38000)], "max_tokens": 1,
                                "cache_salt": "fill"})
    wait_for(lambda: sum(one.used("prefill-0")) > 0, 10, "prefill works")
    return connection


def why(error):
    """The reason of a 503 that says when to come back; else what it is instead."""
    headers = error.response.headers if isinstance(error, openai.APIStatusError) else {}
    reason, seconds = headers.get("x-baton-reason"), int(headers.get("retry-after", 0))
    is_polite = seconds == 1 or (reason == "predicted_ttft" and seconds > 1)  # as long as the crowd is expected to last
    is_polite = is_polite and headers["x-llm-d-request-dropped-reason"].startswith("rejected-")
    return reason if is_polite else repr(error)


def test_a_full_queue_refuses_and_those_in_it_go_by_priority(narrow):
    refused = lambda: narrow.metrics().value("baton_refused_total", reason="queue_full")
    before, log_before = refused(), len(narrow.log("gateway-0"))
    computing = fill(narrow)
    dropped = Asking(narrow, "dropped", priority=1)
    wait_in_queue(narrow, 1)
    second = Asking(narrow, "second")
    wait_in_queue(narrow, 2)
    late = Asking(narrow, "late", priority=1).end()
    assert why(late) == "queue_full" and late.type == "Service Unavailable", "who would go last is refused"
    urgent = Asking(narrow, "urgent", headers={"x-vllm-priority": "-5"})
    assert why(dropped.end()) == "queue_full", "or pushed out by one of higher priority"
    assert refused() - before == 2
    patient = Asking(narrow, "patient", max_retries=5, priority=1)
    wait_for(lambda: refused() - before > 2, 10, "it is refused, too")
    computing.close()
    assert [one.end() for one in (second, urgent, patient)] == [None] * 3
    ended = re.findall(r"request ended .* id=(\w+) .* outcome=length", narrow.log("gateway-0")[log_before:])
    assert [name for name in ended if name != "patient"] == ["urgent", "second"]


def test_who_leaves_the_queue_or_waits_too_long_is_gone_from_it(narrow):
    assert Asking(narrow, "wrong", headers={"x-vllm-priority": "high"}).end().param == "priority"
    computing = fill(narrow)
    assert why(Asking(narrow, "hasty", headers={"x-baton-ttft-ms": "300"}).end()) in ("queue_timeout", "predicted_ttft")
    leaver = raw_post(narrow, {"model": "nano-r1", "prompt": PROMPT, "max_tokens": 1})
    wait_in_queue(narrow, 1)
    leaver.close()
    wait_in_queue(narrow, 0)
    computing.close()
