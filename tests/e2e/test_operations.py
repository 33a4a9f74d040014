"""What an operator does: scripts, drains, balance, metrics."""

import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster import BUILD_TYPE, ROOT, lives, wait_for
from conftest import ask, client_of, text_of
from test_failures import LONG, Background, RawStream, check_ends_with_error, worker_of
from test_http import CHAT, error_of, post


def test_status_names_every_process(cluster):
    lines = cluster.script("status").splitlines()
    assert [line.split()[0] for line in lines] == ["gateway-0", "prefill-0", "decode-0", "decode-1", "redis"]
    assert all(line.split()[1] == "ready" for line in lines)


def test_a_second_up_in_the_same_folder_says_that_one_runs(cluster):
    assert "runs in" in cluster.script("up", "--no-build", code=1)


def test_up_says_why_when_a_process_dies(tmp_path):
    done = subprocess.run([ROOT / "deploy/local/up", "--no-build", "--build-type", BUILD_TYPE, "--run", tmp_path,
                           "--port", "0", "--decode-args", "--no-such-flag 1"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "decode-0 died" in done.stderr and "no-such-flag" in done.stderr
    done = subprocess.run([ROOT / "deploy/local/down", "--run", tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "nothing runs" in done.stdout


def test_down_leaves_no_process(start_cluster):
    one = start_cluster(n_decode=1)
    pids = {name: one.pid(name) for name in one.names}
    one.script("down")
    assert [name for name, pid in pids.items() if lives(pid)] == []
    assert "nothing runs" in one.script("down")


def test_a_worker_told_to_stop_finishes_what_it_has(pair):
    client = client_of(pair)
    running = Background(lambda: client.completions.create(**LONG))
    name = worker_of(pair, "decode")
    pair.signal(name, signal.SIGTERM)
    assert len(running.result().choices[0].token_ids) == LONG["max_tokens"]
    wait_for(lambda: not pair.is_alive(name), 10, f"{name} exits when it is done")


def test_a_drained_worker_gets_nothing_new(pair):
    client = client_of(pair)
    pair.signal("decode-0", signal.SIGTERM)
    wait_for(lambda: pair.linked("decode") == 1, 5, "the gateway knows")
    for _ in range(4):
        answer = client.chat.completions.with_raw_response.create(
            model="nano-r1", max_tokens=3, messages=[{"role": "user", "content": "hi"}])
        assert answer.headers["x-baton-decode"] == "decode-1"


def test_a_gateway_told_to_stop_finishes_what_it_has(pair):
    client = client_of(pair)
    running = Background(lambda: client.completions.create(**LONG))
    worker_of(pair, "decode")
    pair.signal("gateway-0", signal.SIGTERM)
    assert len(running.result().choices[0].token_ids) == LONG["max_tokens"]
    wait_for(lambda: not pair.is_alive("gateway-0"), 10, "the gateway exits when it is done")


@pytest.fixture
def stand_still(cluster):
    """Nothing is decoded from its call until the second one, or the test's end."""
    def tell(number):
        for name in ("decode-0", "decode-1"):
            cluster.signal(name, number)

    yield lambda: (tell(signal.SIGSTOP), lambda: tell(signal.SIGCONT))[1]
    tell(signal.SIGCONT)


def drain_in_a_stream(one, cluster, stand_still):
    """(a stream that runs, what lets workers go on) of a gateway that has been told to stop meanwhile."""
    stream = RawStream(one, {"prompt": LONG["prompt"], "max_tokens": 500, "ignore_eos": True})
    stream.read_until(b"data: ")
    go_on = stand_still()
    one.signal("gateway-0", signal.SIGTERM)
    wait_for(lambda: " draining " in one.log("gateway-0"), 10, "it drains")
    return stream, go_on


def test_check_68_a_gateway_that_drains_refuses_and_ends_its_streams(beside, cluster, stand_still):
    one = beside()
    stream, go_on = drain_in_a_stream(one, cluster, stand_still)
    status, headers, data = post(one, CHAT)
    assert status == 503 and headers["connection"] == "close" and headers["x-baton-reason"] == "draining"
    assert error_of(data)["type"] == "Service Unavailable" and int(headers["retry-after"]) >= 1
    go_on()
    events = stream.end()
    assert events[-1] == "[DONE]" and json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
    wait_for(lambda: not one.is_alive("gateway-0"), 10, "the gateway exits when it is done")


def test_check_68_a_gateway_waits_no_longer_than_its_grace(beside, cluster, stand_still):
    one = beside("--drain-ms", 100)
    stream, _ = drain_in_a_stream(one, cluster, stand_still)
    assert "shutting down" in check_ends_with_error(stream.end())["message"]
    wait_for(lambda: not one.is_alive("gateway-0"), 10, "the gateway exits, though no worker answers")


def test_least_request_spreads_over_all_workers(pair):
    client = client_of(pair)
    seen = {"x-baton-prefill": [], "x-baton-decode": []}

    def one(_):
        answer = client.completions.with_raw_response.create(
            model="nano-r1", prompt=[100, 101, 102], max_tokens=200, temperature=0,
            extra_body={"ignore_eos": True}, extra_headers={"routing-strategy": "least-request"})
        for header, names in seen.items():
            names.append(answer.headers[header])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(32)))
    for header, names in seen.items():
        counts = [names.count(name) for name in sorted(set(names))]
        assert len(counts) == 2 and min(counts) >= 8, f"{header}: {counts}"


def test_metrics_count_what_was_served(cluster, client):
    before = cluster.metrics()
    answer = ask(client, "Solve 17 * 23. Show the final answer only.")
    after = cluster.metrics()

    def grew(name, **labels):
        return after.value(name, **labels) - before.value(name, **labels)

    assert grew("baton_requests_total") == 1 and grew("baton_requests_total", outcome="stop") == 1
    assert grew("baton_output_tokens_total") == answer.usage.completion_tokens
    assert grew("baton_prompt_tokens_total") == answer.usage.prompt_tokens
    assert grew("baton_time_to_first_token_seconds_count") == 1
    assert grew("baton_request_seconds_count") == 1
    assert cluster.metrics("prefill-0").value("baton_kv_transfer_bytes_total") > 0
    assert cluster.metrics("prefill-0").value("baton_steps_total") > 0


def test_workers_answer_health(cluster):
    assert all(cluster.get("/health", name)[0] == 200 for name in cluster.workers)


def test_an_idle_cluster_burns_no_processor_time(cluster):
    def ticks(name):
        with open(f"/proc/{cluster.pid(name)}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = {name: ticks(name) for name in cluster.names}
    time.sleep(2)  # the measured time
    for name in cluster.names:
        share = (ticks(name) - before[name]) / os.sysconf("SC_CLK_TCK") / 2
        assert share < 0.1, f"{name} uses {share:.0%} of a processor"
