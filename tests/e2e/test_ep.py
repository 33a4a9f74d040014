"""Groups of ranks that share the experts: the same tokens on any number of them, whole or not at all, and again after a
loss."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from cluster import SLOW, wait_for
from conftest import ask, client_of, text_of
from test_failures import LONG, Background, worker_of

PROMPTS = [[100 + (i * 37 + j * 11) % 997 for j in range(length)] for i, length in enumerate((1, 63, 64, 200, 700))]
SAMPLINGS = [{"temperature": 0}, {"temperature": 1.2, "top_p": 0.95, "seed": 5}]


def streams(one):
    """Tokens and logprobs of prompts of several lengths, greedy and seeded, all at once."""
    client = client_of(one)

    def run(job):
        prompt, sampling = job
        choice = client.completions.create(model="nano-r1", prompt=prompt, max_tokens=30, logprobs=3, **sampling,
                                           extra_body={"ignore_eos": True, "return_token_ids": True}).choices[0]
        return choice.token_ids, choice.logprobs.token_logprobs, choice.logprobs.top_logprobs

    jobs = [(prompt, sampling) for prompt in PROMPTS for sampling in SAMPLINGS]
    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


def test_streams_are_equal_on_any_number_of_ranks_and_each_reads_its_own_experts(start_cluster):
    expected = alone_bytes = None
    experts_bytes = set()
    for n_prefill, n_ranks in ((1, 1), (2, 3), (1, 4)):  # `cluster` has 2, and its tokens are the golden ones
        one = start_cluster(n_prefill=n_prefill, n_decode=n_ranks, prefill_ep=n_prefill)
        got = streams(one)
        assert all(one.metrics(f"decode-{i}").value("baton_ep_group_formed") == (n_ranks > 1) for i in range(n_ranks))
        read_bytes = [one.metrics(f"decode-{i}").value("baton_weight_bytes") for i in range(n_ranks)]
        one.down()
        expected, alone_bytes = expected or got, alone_bytes or read_bytes[0]
        assert got == expected, f"{n_prefill} prefill, {n_ranks} decode ranks"
        if n_ranks > 1:  # all have what is shared, and each expert one of them
            experts_bytes.add((n_ranks * alone_bytes - sum(read_bytes)) / (n_ranks - 1))
            assert max(read_bytes) < alone_bytes
    assert len(experts_bytes) == 1, experts_bytes


def test_a_placement_planned_from_measured_loads_is_used_and_changes_no_token(start_cluster, tmp_path):
    n_experts, n_layers, n_slots = 16, 5, 24
    placement = tmp_path / "placement.json"
    placement.write_text(json.dumps({"n_ranks": 2, "phy2log": [list(range(n_experts))] * n_layers}))
    one = start_cluster(decode=f"--placement {placement}")
    ranks = ["decode-0", "decode-1"]
    plan = ("plan", "--slots", n_slots, "--output", placement, "--placement", placement)
    assert "no row" in one.ctl(*plan, code=1)
    expected = streams(one)
    one.wait_idle()
    even_bytes = [one.metrics(name).value("baton_weight_bytes") for name in ranks]
    status = one.ctl("status").splitlines()
    assert [line.split()[0] for line in status] == [f"worker={name}" for name in ranks + ["prefill-0"]]
    assert f"http={one.url('decode-1').removeprefix('http://')} group=decode-0 rank=1 ranks=2" in status[1]
    pages = [json.loads(one.get("/experts", name)[1]) for name in ranks]
    assert [page["rank"] for page in pages] == [0, 1] and all(len(page["rows"]) == n_layers for page in pages)
    total = sum(sum(rows) for page in pages for rows in page["rows"])
    printed = one.ctl(*plan)
    assert f"load: {total} times" in printed

    lists = json.loads(placement.read_text())["phy2log"]
    assert [len(slots) for slots in lists] == [n_slots] * n_layers
    with ThreadPoolExecutor(2) as pool:  # the group forms of both
        list(pool.map(one.restart, ranks))
    one.wait_all_linked()
    held = [sum(len(set(slots[r * n_slots // 2:(r + 1) * n_slots // 2])) for slots in lists) for r in (0, 1)]
    more_bytes = [one.metrics(name).value("baton_weight_bytes") - even for name, even in zip(ranks, even_bytes)]
    more_experts = [n - n_experts * n_layers // 2 for n in held]
    assert sum(more_experts) > 0 and more_bytes[0] * more_experts[1] == more_bytes[1] * more_experts[0]
    assert sum(more_bytes) > 0, "replicas are read"
    assert streams(one) == expected
    one.down()


def test_an_incomplete_group_takes_nothing_and_says_so(cluster, client):
    epoch = cluster.metrics("decode-0").value("baton_ep_group_epoch")
    cluster.kill("decode-1")
    wait_for(lambda: cluster.get("/health")[0] == 503, 5, "unhealthy")
    incomplete = (503, "the expert-parallel group is incomplete\n")
    wait_for(lambda: cluster.get("/health", "decode-0") == incomplete, 15, "decode-0 knows, too")
    wait_for(lambda: cluster.metrics().value("baton_workers_incomplete", role="decode") == 1, 5, "one rank waits")
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, "hi", max_tokens=3)
    assert caught.value.status_code == 503 and "retry-after" in caught.value.response.headers
    cluster.restart("decode-1")
    wait_for(lambda: cluster.get("/health")[0] == 200, 10, "whole again")
    assert cluster.metrics("decode-0").value("baton_ep_group_epoch") > epoch
    assert text_of(ask(client, "What is 3 + 4?", max_tokens=5))


@pytest.mark.parametrize("which", ["the one that decodes", "the one that helps"])
def test_a_request_outlives_a_rank_that_comes_back(cluster, client, which):
    expected = client.completions.create(**LONG).choices[0].token_ids
    running = Background(lambda: client.completions.create(**LONG))
    name = worker_of(cluster, "decode")
    if which == "the one that helps":
        name = "decode-1" if name == "decode-0" else "decode-0"
    cluster.kill(name)
    cluster.restart(name)
    assert running.result().choices[0].token_ids == expected


def test_a_rank_that_hangs_is_lost_and_comes_back_by_itself(start_cluster):
    one = start_cluster(decode=f"--ep-timeout-ms {1000 * SLOW}")
    client = client_of(one)
    expected = client.completions.create(**LONG).choices[0].token_ids
    running = Background(lambda: client.completions.create(**LONG))
    name = worker_of(one, "decode")
    other = "decode-1" if name == "decode-0" else "decode-0"
    one.signal(other, signal.SIGSTOP)
    wait_for(lambda: one.metrics(name).value("baton_ep_group_losses_total") > 0, 15, f"{name} lost {other}")
    one.signal(other, signal.SIGCONT)
    assert running.result().choices[0].token_ids == expected
    one.wait_all_linked()
    one.down()


def test_a_rank_told_to_stop_helps_until_the_others_are_done(cluster, client):
    replays = cluster.metrics().value("baton_replays_total")
    running = Background(lambda: client.completions.create(**LONG))
    name = worker_of(cluster, "decode")
    other = "decode-1" if name == "decode-0" else "decode-0"
    cluster.signal(other, signal.SIGTERM)
    wait_for(lambda: cluster.get("/health")[0] == 503, 5, "a group that breaks up takes nothing new")
    assert len(running.result().choices[0].token_ids) == LONG["max_tokens"]
    wait_for(lambda: not cluster.is_alive(other), 10, f"{other} exits when nobody needs it")
    assert cluster.metrics().value("baton_replays_total") == replays


def test_a_request_moves_to_another_group(start_cluster):
    one = start_cluster(n_decode=4, decode_ep=2)
    client = client_of(one)
    expected = client.completions.create(**LONG).choices[0].token_ids
    running = Background(lambda: client.completions.create(**LONG))
    name = worker_of(one, "decode")
    one.kill(name)
    assert running.result().choices[0].token_ids == expected
    wait_for(lambda: one.linked("decode") == 2, 5, "one group left")
    assert one.get("/health")[0] == 200
    one.restart(name)
    one.wait_all_linked()
    one.down()
