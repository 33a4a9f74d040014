"""Processes are killed, stopped and restarted in the middle of requests: an answer, or a clear error; never a hang."""

import signal
import threading

import openai
import pytest

from cluster import SLOW, wait_for
from conftest import ask, client_of, text_of

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


def test_killing_the_only_prefill_worker_gives_an_error_or_an_answer_and_heals(cluster, client):
    unknown = {"prompt": [100 + i % 997 for i in range(4000)], "extra_body": {"cache_salt": "nobody has asked this"}}
    running = Background(lambda: client.completions.create(**{**LONG, **unknown, "max_tokens": 4}))
    wait_for(lambda: sum(cluster.used("prefill-0")) > 0, 10, "prefill works")
    cluster.kill("prefill-0")
    try:
        running.result()
    except openai.APIStatusError as error:
        assert error.status_code in (500, 502, 503), error
    cluster.restart("prefill-0")
    wait_for(lambda: cluster.get("/health")[0] == 200, 10, "healthy again")
    assert text_of(ask(client, "What is 3 + 4?", max_tokens=5))


def test_health_is_503_while_a_role_is_missing_and_requests_say_so(pair):
    client = client_of(pair)
    assert pair.get("/health")[0] == 200
    pair.kill("decode-0")
    wait_for(lambda: pair.linked("decode") == 1, 5, "one decode worker left")
    assert pair.get("/health")[0] == 200
    pair.kill("decode-1")
    wait_for(lambda: pair.get("/health")[0] == 503, 5, "unhealthy")
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, "hi", max_tokens=3)
    assert caught.value.status_code == 503 and "retry-after" in caught.value.response.headers
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
