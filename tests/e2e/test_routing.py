"""Routing as a client sees it: strategies and sessions by header, who got the request, and what caches were good for."""

import base64

import openai
import pytest

from cluster import wait_for
from conftest import client_of

STRATEGIES = ["prefix-cache", "pd", "least-request", "least-latency", "least-kv-cache", "least-gpu-cache", "throughput",
              "power-of-two", "session-affinity", "slo", "random", "least-request:2,prefix-cache:1"]
BLOCK = 64


def complete(client, prompt, headers=None, **body):
    """The headers of a short answer."""
    raw = client.completions.with_raw_response.create(
        model="nano-r1", prompt=prompt, temperature=0, max_tokens=2, extra_headers=headers, extra_body=body)
    raw.parse()
    return raw.headers


def prompt_of(seed, n_tokens):
    return [300 + (seed * 7919 + i * 31) % 1700 for i in range(n_tokens)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_is_echoed_with_aibrix_headers(pair, strategy):
    headers = complete(client_of(pair), "hi", {"routing-strategy": strategy})
    assert headers["routing-strategy"] == strategy == headers["x-baton-strategy"]
    assert headers["prefill-target-pod"] == headers["x-baton-prefill"] in ("prefill-0", "prefill-1")
    assert headers["target-pod"] == headers["x-baton-decode"] in ("decode-0", "decode-1")
    host, port = headers["target-pod-ip"].rsplit(":", 1)
    assert headers["prefill-target-pod-ip"] == host == "127.0.0.1" and int(port) > 0
    assert headers["request-id"] == headers["x-request-id"]


def test_the_default_strategy_is_prefix_cache(cluster):
    assert complete(client_of(cluster), "hi")["routing-strategy"] == "prefix-cache"


@pytest.mark.parametrize("strategy", ["pd:1,random:1", "slo:1,random:1", "random:1000001", "random:-1", "vtc-basic", "a,b"])
def test_what_is_no_strategy_is_refused_before_anything_is_computed(cluster, strategy):
    before = cluster.metrics("prefill-0").value("baton_prefill_tokens_total")
    with pytest.raises(openai.BadRequestError, match=f"incorrect routing strategy {strategy}") as failure:
        complete(client_of(cluster), "hi", {"routing-strategy": strategy})
    headers = failure.value.response.headers
    assert headers["x-error-routing"] == "true" and headers["x-error-invalid-routing-strategy"] == strategy
    assert cluster.metrics("prefill-0").value("baton_prefill_tokens_total") == before


def test_a_filter_chooses_workers_by_their_labels(pair):
    client = client_of(pair)
    for selector in ("zone=a", "zone in (a, b),!spot", "zone!=b", "gpu!=h100"):
        assert complete(client, "hi", {"external-filter": selector})["target-pod"]
    for selector in ("zone=b", "gpu=none"):  # nobody has the first, no decode worker the second
        with pytest.raises(openai.InternalServerError, match="filter") as failure:
            complete(client, "hi", {"external-filter": selector})
        headers = failure.value.response.headers
        assert failure.value.status_code == 503 and headers["retry-after"] and headers["x-error-routing"] == "true"
    with pytest.raises(openai.BadRequestError, match='external-filter: the selector "zone >> a"') as failure:
        complete(client, "hi", {"external-filter": "zone >> a"})
    assert failure.value.param == "external-filter"


def test_a_session_stays_where_its_id_or_its_key_says(pair):
    client, by_session = client_of(pair), {"routing-strategy": "session-affinity"}
    first = complete(client, "hi", by_session)
    home, session = first["x-baton-prefill"], first["x-session-id"]
    assert base64.b64decode(session).decode() == home
    for _ in range(6):
        again = complete(client, "hi", by_session | {"x-session-id": session})
        assert again["x-baton-prefill"] == home and again["x-session-id"] == session
    other = base64.b64encode({"prefill-0": b"prefill-1", "prefill-1": b"prefill-0"}[home]).decode()
    assert complete(client, "hi", by_session | {"x-session-id": other})["x-baton-prefill"] != home
    assert complete(client, "hi", by_session | {"x-session-id": "no such id"})["x-session-id"]
    homes = set()
    for i in range(8):
        key = f"conversation {i}"
        headers = [complete(client, "hi", by_session | {"x-aibrix-session-key": key}),
                   complete(client, "hi", by_session, session_id=key)]
        assert headers[0]["x-baton-prefill"] == headers[1]["x-baton-prefill"]
        homes.add(headers[0]["x-baton-prefill"])
    assert homes == {"prefill-0", "prefill-1"}
    assert "x-session-id" not in complete(client, "hi")


def test_routers_own_fields_are_not_taken_from_clients(pair):
    headers = complete(client_of(pair), "hi",
                       {"target-pod": "decode-9", "x-prefiller-host-port": "203.0.113.1:1", "target-pod-ip": "203.0.113.1:1"},
                       kv_transfer_params={"remote_host": "203.0.113.1", "remote_port": 1, "do_remote_prefill": True})
    assert headers["target-pod"] in ("decode-0", "decode-1") and headers["target-pod-ip"].startswith("127.0.0.1:")


def test_a_prompt_goes_where_its_beginning_is_and_hits_are_what_workers_count(pair):
    client = client_of(pair)
    prefills = ("prefill-0", "prefill-1")
    count = lambda: sum(pair.metrics(name).value("baton_prefix_cache_hits_total") for name in prefills)
    held = lambda: sum(pair.metrics(name).value("baton_kv_blocks", state="cached") for name in prefills)
    known = lambda: pair.metrics().value("baton_known_blocks", role="prefill")
    before, n_cached, homes = count(), 0, {}
    for turn in range(2):
        pair.wait_idle()
        wait_for(lambda: known() == held(), 10, lambda: f"the gateway knows what caches hold: {known()} of {held()}")
        for chat in range(6):
            headers = complete(client, prompt_of(chat, 200 + 70 * turn), cache_salt="turns")
            cached = int(headers["x-baton-cached-tokens"])
            if turn > 0:
                assert headers["x-baton-prefill"] == homes[chat], "the worker that knows the beginning"
                assert cached == (200 + 70 * (turn - 1)) // BLOCK * BLOCK
            homes[chat] = headers["x-baton-prefill"]
            n_cached += cached
    assert count() - before == n_cached > 0
    assert complete(client, prompt_of(0, 200), cache_salt="other")["x-baton-cached-tokens"] == "0"
