"""Processes are killed, stopped and restarted in the middle of requests: an answer, or a clear error; never a hang."""

import http.client
import json
import signal
import threading
from urllib.parse import urlparse

import openai
import pytest

from cluster import SLOW, wait_for
from conftest import ask, client_of, lend, text_of, text_of_stream
from test_http import error_of

LONG = {"model": "nano-r1", "prompt": [100, 101, 102], "max_tokens": 500, "temperature": 0,
        "extra_body": {"ignore_eos": True, "return_token_ids": True}}


class Background:
    """A request in a thread: .result() is its answer, or raises what the client raised."""

    def __init__(self, call):
        self.answer = self.error = None
        self.thread = threading.Thread(target=self.run, args=(call,), daemon=True)
        self.thread.start()

    def run(self, call):
        try:
            self.answer = call()
        except Exception as error:  # noqa: BLE001 - handed to the test
            self.error = error

    def result(self, seconds=40):
        self.thread.join(seconds * SLOW)
        assert not self.thread.is_alive(), f"the request hangs for {seconds * SLOW} s"
        if self.error:
            raise self.error
        return self.answer


class RawStream:
    """A streamed answer as it comes. Made when its status line is there, which is 200."""

    def __init__(self, one, body):
        url = urlparse(one.url())
        self.connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60 * SLOW)
        self.connection.request("POST", "/v1/completions", json.dumps({"model": "nano-r1", "stream": True} | body))
        self.answer, self.data = self.connection.getresponse(), b""
        assert self.answer.status == 200, self.answer.read()

    def read_until(self, text):
        while text not in self.data:
            piece = self.answer.read1()
            assert piece, self.data
            self.data += piece

    def end(self):
        """What its events say, to the end; what is no event is a comment."""
        self.data += self.answer.read()
        self.connection.close()
        events = [line for line in self.data.decode().split("\n\n") if line and line != ": keep-alive"]
        assert all(event.startswith("data: ") for event in events)
        return [event[len("data: "):] for event in events]


def check_ends_with_error(events):
    """The error is the last that a stream says."""
    assert events[-1] == "[DONE]"
    choices = [choice for event in events[:-2] for choice in json.loads(event)["choices"]]
    assert all(choice["finish_reason"] is None for choice in choices)
    return error_of(events[-2])


def check_no_worker(error):
    """A 503 that says that there is no worker and when to come back."""
    headers = error.response.headers
    assert error.status_code == 503 and headers["content-type"] == "application/json"
    assert headers["retry-after"] == "10" and headers["x-error-no-model-backends"] == "true"
    assert headers["x-baton-reason"] == "no_worker"
    assert error_of(error.response.content)["type"] == "Service Unavailable"


def worker_of(pair, role):
    """The worker of that role that computes the only request."""
    names = [name for name in pair.workers if name.startswith(role)]
    return wait_for(lambda: next((name for name in names if pair.used(name)[0]), None), 10, f"a {role} worker works")


def test_killing_the_decode_worker_of_a_request_changes_nothing_but_time(pair):
    client = client_of(pair)
    expected = client.completions.create(**LONG).choices[0].token_ids
    running = Background(lambda: client.completions.create(**LONG))
    pair.kill(worker_of(pair, "decode"))
    assert running.result().choices[0].token_ids == expected


def test_killing_the_prefill_worker_of_a_request_changes_nothing_but_time(pair):
    client = client_of(pair)
    long_prompt = {**LONG, "prompt": [100 + i % 997 for i in range(2500)], "max_tokens": 16}
    running = Background(lambda: client.completions.create(**long_prompt))
    pair.kill(worker_of(pair, "prefill"))
    answer = running.result().choices[0].token_ids
    assert answer == client.completions.create(**long_prompt).choices[0].token_ids


def transfer(pair, client):
    """A request whose KV cache travels now: (sender, receiver, what was asked, Background). The sender stands still."""
    def holder(role, what):
        return next((name for name in pair.workers if name.startswith(role) and pair.used(name)[what]), None)

    for i in range(20):
        asked = {**LONG, "prompt": [100 + j % 997 for j in range(2500)], "max_tokens": 16}
        asked["extra_body"] = {**LONG["extra_body"], "cache_salt": f"transfer {i}"}
        running = Background(lambda: client.completions.create(**asked))
        wait_for(lambda: holder("prefill", 0) and holder("decode", 3) or not running.thread.is_alive(), 10, "a transfer")
        sender = holder("prefill", 0)
        if sender:
            pair.signal(sender, signal.SIGSTOP)
            receiver = holder("decode", 3)
            if receiver:
                return sender, receiver, asked, running
            pair.signal(sender, signal.SIGCONT)
        running.result()  # it was faster than we looked
    raise AssertionError("no transfer seen")


def test_check_72_a_transfer_that_is_cut_is_counted_and_changes_nothing_but_time(pair):
    client = client_of(pair)
    sender, receiver, asked, running = transfer(pair, client)
    pair.kill(receiver)
    pair.signal(sender, signal.SIGCONT)
    answer = running.result().choices[0].token_ids
    for name in ("baton_kv_transfer_failures_total", "vllm:nixl_num_failed_transfers_total"):
        assert pair.metrics(sender).value(name, reason="decode_lost") == 1, name
    assert answer == client.completions.create(**asked).choices[0].token_ids


@pytest.fixture(scope="module")
def shared_talker(beside):
    return beside("--sse-keep-alive-ms", 200)


@pytest.fixture
def talker(shared_talker):
    """Comments into streams that are silent, and so answers 200 before there is a token."""
    yield from lend(shared_talker)


def test_check_57_killing_the_only_prefill_worker_fails_what_has_no_token_and_heals(cluster, client, talker):
    cluster.signal("prefill-0", signal.SIGSTOP)
    whole = Background(lambda: client.completions.create(**LONG))
    stream = Background(lambda: client.completions.create(**LONG, stream=True))
    wait_for(lambda: cluster.metrics().value("baton_requests_running") == 2, 10, "both run")
    committed = RawStream(talker, {"prompt": LONG["prompt"]})
    cluster.kill("prefill-0")
    for running in (whole, stream):
        with pytest.raises(openai.APIStatusError) as caught:
            running.result()
        check_no_worker(caught.value)
    events = committed.end()
    assert len(events) == 2 and check_ends_with_error(events)["code"] == 503
    cluster.restart("prefill-0")
    wait_for(lambda: cluster.get("/health")[0] == 200, 10, "healthy again")
    assert text_of(ask(client, "What is 3 + 4?", max_tokens=5))


def test_check_57_a_stream_whose_decode_worker_dies_ends_with_an_error(beside, cluster):
    one = beside("--migration-limit", 0)
    stream = client_of(one).completions.create(**{**LONG, "max_tokens": 8000}, stream=True)
    assert next(stream).choices
    cluster.kill(worker_of(cluster, "decode"))
    finished = []
    with pytest.raises(openai.APIError) as caught:
        for chunk in stream:
            finished += [choice.finish_reason for choice in chunk.choices]
    assert type(caught.value) is openai.APIError and caught.value.body["code"] == 503
    assert caught.value.body.keys() == {"message", "type", "param", "code"} and not any(finished)


def test_check_56_comments_bridge_a_slow_prefill_and_change_no_text(cluster, client, talker):
    asked = [{"role": "user", "content": "Solve 17 * 23. Show the final answer only."}]
    expected = text_of(ask(client, asked[0]["content"]))
    cluster.signal("prefill-0", signal.SIGSTOP)
    args = {"model": "nano-r1", "temperature": 0, "max_tokens": 400, "extra_body": {"cache_salt": "slow prefill"}}
    streamed = Background(lambda: text_of_stream(client_of(talker).chat.completions.create(
        messages=asked, stream=True, **args)))
    raw = RawStream(talker, {"prompt": LONG["prompt"], "max_tokens": 4, "cache_salt": "slow prefill"})
    raw.read_until(b": keep-alive\n\n" * 2)
    assert not raw.data.replace(b": keep-alive\n\n", b""), "only comments while there is no token"
    cluster.signal("prefill-0", signal.SIGCONT)
    assert raw.end()[-1] == "[DONE]"
    assert streamed.result()[:2] == expected


def test_health_is_503_while_a_role_is_missing_and_requests_say_so(pair):
    client = client_of(pair)
    assert pair.get("/health")[0] == 200
    pair.kill("decode-0")
    wait_for(lambda: pair.linked("decode") == 1, 5, "one decode worker left")
    assert pair.get("/health")[0] == 200
    pair.kill("decode-1")
    wait_for(lambda: pair.get("/health")[0] == 503, 5, "unhealthy")
    assert pair.get("/ping")[0] == 503
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError) as caught:
            ask(client, "hi", max_tokens=3, stream=stream)
        check_no_worker(caught.value)
    pair.restart("decode-0")
    wait_for(lambda: pair.get("/health")[0] == 200, 10, "healthy with one")
    ask(client, "hi", max_tokens=3)


def test_a_decode_worker_that_hangs_is_left_behind(pair):
    client = client_of(pair)
    running = Background(lambda: client.completions.create(**LONG))
    pair.signal(worker_of(pair, "decode"), signal.SIGSTOP)
    assert len(running.result().choices[0].token_ids) == LONG["max_tokens"]


def test_redis_may_die_and_come_back_empty(cluster, client):
    running = Background(lambda: client.completions.create(**LONG))
    wait_for(lambda: any(cluster.used(name)[0] for name in ("decode-0", "decode-1")), 10, "decode works")
    cluster.kill("redis")
    assert len(running.result().choices[0].token_ids) == LONG["max_tokens"]
    assert text_of(ask(client, "What is 3 + 4?", max_tokens=5))
    wait_for(lambda: cluster.metrics().value("baton_redis_up") == 0, 5, "the gateway knows")
    cluster.restart("redis")
    for name in ["gateway-0"] + cluster.workers:
        wait_for(lambda: cluster.metrics(name).value("baton_redis_up") == 1, 10, f"{name} found Redis again")
    assert cluster.linked("decode") == 2 and cluster.linked("prefill") == 1
    assert text_of(ask(client, "What is 3 + 4?", max_tokens=5))


def test_a_redis_that_hangs_stops_nobody(cluster, client):
    cluster.signal("redis", signal.SIGSTOP)
    wait_for(lambda: cluster.metrics().value("baton_redis_up") == 0, 10, "the gateway knows")
    assert text_of(ask(client, "What is 3 + 4?", max_tokens=5))
    cluster.signal("redis", signal.SIGCONT)
    wait_for(lambda: cluster.metrics().value("baton_redis_up") == 1, 10, "the gateway found Redis again")


def test_a_killed_gateway_leaves_nothing_on_the_workers(pair):
    client = client_of(pair)
    running = Background(lambda: client.completions.create(**LONG))
    worker_of(pair, "decode")
    pair.kill("gateway-0")
    with pytest.raises(openai.APIConnectionError):
        running.result()
    pair.wait_idle(pair.workers)
    pair.restart("gateway-0")
    pair.wait_all_linked()
    assert text_of(ask(client, "What is 3 + 4?", max_tokens=5))
