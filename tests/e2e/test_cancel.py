"""A client that leaves costs nothing: in every phase its request ends there, and all blocks are free again."""

import json
import socket
import time
from urllib.parse import urlparse

import pytest

from cluster import wait_for


def raw_post(cluster, body, path="/v1/completions"):
    """A request sent on a socket of its own, which the caller closes when it likes."""
    url = urlparse(cluster.url())
    connection = socket.create_connection((url.hostname, url.port), timeout=20)
    payload = json.dumps(body).encode()
    connection.sendall(f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
                       f"Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
    return connection


def request(n_prompt, max_tokens, stream):
    return {"model": "nano-r1", "prompt": [100 + i % 997 for i in range(n_prompt)], "max_tokens": max_tokens,
            "temperature": 0, "ignore_eos": True, "stream": stream}


@pytest.fixture(autouse=True)
def nothing_runs_to_its_end(cluster):
    """That blocks are free in the end proves nothing of a request that was computed for nobody."""
    def n_whole():
        return cluster.metrics().value("baton_requests_total", outcome="length")

    before = n_whole()
    yield
    assert n_whole() == before


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_leaving_while_prefill_computes_frees_everything(cluster, stream):
    connection = raw_post(cluster, request(4000, 100, stream))
    wait_for(lambda: sum(cluster.used("prefill-0")) > 0, 10, "prefill works")
    connection.close()
    cluster.wait_idle()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_leaving_while_decode_computes_frees_everything(cluster, stream):
    connection = raw_post(cluster, request(10, 8000, stream))
    wait_for(lambda: any(cluster.used(name)[0] for name in ("decode-0", "decode-1")), 10, "decode works")
    connection.close()
    cluster.wait_idle()


def test_leaving_while_queued_behind_others_frees_everything(cluster):
    connections = [raw_post(cluster, request(2000, 6000, True)) for _ in range(40)]
    wait_for(lambda: sum(cluster.used("prefill-0")) > 0, 10, "prefill works")
    for connection in connections:
        connection.close()
    cluster.wait_idle()


def test_leaving_at_any_moment_frees_everything(cluster):
    for milliseconds in range(0, 120, 4):
        connection = raw_post(cluster, request(700, 6000, milliseconds % 8 == 0))
        time.sleep(milliseconds / 1000)  # the moment is the test's input
        connection.close()
    cluster.wait_idle()


def test_closing_a_stream_of_the_client_stops_the_work(cluster, client):
    stream = client.completions.create(model="nano-r1", prompt=[100, 101, 102], max_tokens=8000, stream=True,
                                       extra_body={"ignore_eos": True})
    for _, _chunk in zip(range(5), stream):
        pass
    stream.close()
    cluster.wait_idle()
