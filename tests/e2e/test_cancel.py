"""A client that leaves costs nothing: in every phase its request ends there, and all blocks are free again."""

import json
import socket
import time
from urllib.parse import urlparse

import pytest

from cluster import SLOW, wait_for


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


def in_prefill(cluster):
    return sum(cluster.used("prefill-0")) > 0


def in_transfer(cluster):
    return any(cluster.used(name)[3] for name in ("decode-0", "decode-1"))


def in_decode(cluster):
    return any(cluster.used(name)[0] for name in ("decode-0", "decode-1"))


def n_left(one):
    """Requests that ended because their client was gone, under both names."""
    metrics = one.metrics()
    n = metrics.value("baton_requests_total", outcome="abort")
    assert metrics.value("vllm:request_success_total", finished_reason="abort") == n
    return n


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("phase, n_prompt", [(in_prefill, 4000), (in_transfer, 4000), (in_decode, 10)],
                         ids=["prefill", "transfer", "decode"])
def test_check_58_leaving_frees_everything_within_a_second(cluster, phase, n_prompt, stream):
    before, seconds = n_left(cluster), []
    for i in range(1, 6):  # machines have their moments: once in five is enough
        connection = raw_post(cluster, request(n_prompt, 8000, stream) | {"cache_salt": f"{phase} {stream} {i}"})
        wait_for(lambda: phase(cluster), 10, phase.__name__)
        connection.close()
        left_at = time.monotonic()
        wait_for(lambda: n_left(cluster) == before + i, 10, "it is counted")
        cluster.wait_idle()
        seconds.append(time.monotonic() - left_at)
        if seconds[-1] < SLOW:
            return
    raise AssertionError(f"too late each time: {seconds}")


def test_leaving_while_queued_behind_others_frees_everything(cluster):
    before = n_left(cluster)
    connections = [raw_post(cluster, request(2000, 6000, True)) for _ in range(40)]
    wait_for(lambda: cluster.metrics().value("baton_requests_running") == 40, 10, "all have arrived")
    for connection in connections:
        connection.close()
    wait_for(lambda: n_left(cluster) == before + 40, 10, "all are counted")
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
