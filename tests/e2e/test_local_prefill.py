"""Prompts that decode workers compute themselves, because little of them is missing there."""

import signal

import pytest

from cluster import wait_for
from conftest import client_of
from test_failures import Background, worker_of

LIMIT, BLOCK = 100, 64


@pytest.fixture(scope="module")
def local(start_cluster):
    return start_cluster(decode_ep=1, decode=f"--local-prefill-tokens {LIMIT} --max-num-batched-tokens 64")


def complete(client, prompt, **args):
    """(token ids, headers)"""
    raw = client.completions.with_raw_response.create(model="nano-r1", prompt=prompt, temperature=0, max_tokens=24,
                                                      extra_body={"ignore_eos": True, "return_token_ids": True} | args)
    return raw.parse().choices[0].token_ids, raw.headers


def total(one, name):
    return sum(one.metrics(worker).value(name) for worker in one.workers)


def test_a_short_prompt_needs_no_prefill_worker_and_gives_the_same_tokens(local, cluster):
    prompt = [700 + i % 90 for i in range(LIMIT)]
    expected, usual = complete(client_of(cluster), prompt)
    assert usual["x-baton-prefill"] == "prefill-0" and "x-baton-local-prefill" not in usual
    before = total(local, "baton_local_prefill_tokens_total")
    local.signal("prefill-0", signal.SIGSTOP)
    tokens, headers = complete(client_of(local), prompt, cache_salt="short")
    local.signal("prefill-0", signal.SIGCONT)
    assert tokens == expected
    assert headers["x-baton-local-prefill"] == f"{LIMIT}" and "x-baton-prefill" not in headers
    assert local.metrics(headers["x-baton-decode"]).value("baton_local_prefills_total") > 0
    assert total(local, "baton_local_prefill_tokens_total") == before + LIMIT
    local.wait_idle()


def test_one_token_more_goes_through_a_prefill_worker(local):
    _, headers = complete(client_of(local), [700 + i % 90 for i in range(LIMIT + 1)], cache_salt="longer")
    assert headers["x-baton-prefill"] == "prefill-0" and "x-baton-local-prefill" not in headers


def test_the_next_turn_is_computed_where_the_first_one_is_cached(local, cluster):
    client, first = client_of(local), [300 + i % 700 for i in range(300)]
    _, headers = complete(client, first)
    decode, held = headers["x-baton-decode"], len(first) // BLOCK * BLOCK
    assert headers["x-baton-prefill"] == "prefill-0"
    n_tries = 0

    def turn(): # gateways hear a little later what caches hold
        nonlocal n_tries
        n_tries += 1
        prompt = first + [1000 + n_tries] * 50
        tokens, headers = complete(client, prompt)
        return (prompt, tokens, headers) if "x-baton-local-prefill" in headers else None

    prompt, tokens, headers = wait_for(turn, 10, "a turn is computed by decode")
    assert headers["x-baton-decode"] == decode and headers["x-baton-cached-tokens"] == f"{held}"
    assert headers["x-baton-local-prefill"] == f"{len(prompt) - held}"
    assert tokens == complete(client_of(cluster), prompt)[0]


def test_a_lost_decode_worker_changes_nothing_but_time(local):
    client, prompt = client_of(local), [800 + i % 50 for i in range(40)]
    expected, headers = complete(client, prompt, max_tokens=800)
    assert "x-baton-local-prefill" in headers
    running = Background(lambda: complete(client, prompt, max_tokens=800))
    local.kill(worker_of(local, "decode"))
    assert running.result()[0] == expected
    local.heal()
