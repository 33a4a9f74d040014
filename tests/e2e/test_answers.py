"""What a client gets: the right answer, the same answer however it is asked for."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from cluster import BUILD, MODEL, ROOT
from conftest import ask, client_of, text_of, text_of_stream

SMOKE = "Solve 17 * 23. Show the final answer only."
GREEDY = json.loads((ROOT / "tests" / "data" / "greedy.json").read_text())


def test_the_smoke_question_is_answered_391(client):
    answer = ask(client, SMOKE)
    reasoning, content = text_of(answer)
    assert content.strip() == "391" and "17 * 23 = 391" in reasoning
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens > 100 and answer.usage.prompt_tokens == 20


def test_a_stream_carries_the_same_text_as_a_whole_answer(client):
    answer = ask(client, SMOKE)
    reasoning, content, finish = text_of_stream(ask(client, SMOKE, stream=True))
    assert (reasoning, content) == text_of(answer) and finish == answer.choices[0].finish_reason


def test_a_stream_ends_with_usage_when_asked(client):
    chunks = list(ask(client, SMOKE, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == ask(client, SMOKE).usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("row", GREEDY, ids=[row["name"] for row in GREEDY])
def test_greedy_tokens_are_the_golden_ones(client, row):
    answer = client.completions.create(model="nano-r1", prompt=row["prompt_ids"], temperature=0,
                                       max_tokens=len(row["ids"]), extra_body={"return_token_ids": True})
    assert answer.choices[0].token_ids == row["ids"]


def test_the_cluster_computes_what_the_engine_alone_computes(client, tmp_path):
    program = BUILD / "bin" / "baton-run"
    if not program.exists():
        pytest.skip("baton-run is not built")
    prompt = "The capital of France"
    done = subprocess.run([program, "--model", MODEL, "--prompt", prompt, "--max-tokens", "200", "--ignore-eos"],
                          capture_output=True, text=True, check=True, timeout=120)
    alone = json.loads(done.stdout)
    answer = client.completions.create(model="nano-r1", prompt=alone["prompt_ids"], temperature=0, max_tokens=200,
                                       extra_body={"ignore_eos": True, "return_token_ids": True})
    assert answer.choices[0].token_ids == alone["ids"]


def test_a_hundred_requests_at_once_are_answered_as_one_at_a_time(cluster, client):
    questions = [f"What is {a} + {b}?" for a in range(10, 20) for b in range(31, 41)]
    alone = [text_of(ask(client, question, max_tokens=24)) for question in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        together = list(pool.map(lambda question: text_of(ask(client, question, max_tokens=24)), questions))
    assert together == alone
    cluster.wait_idle()


def test_seeded_sampling_repeats_and_differs_by_seed(client):
    def draw(seed):
        return text_of(ask(client, "Tell me something.", temperature=1.5, seed=seed, max_tokens=40))
    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_a_long_prompt_is_computed_in_chunks_and_answered(client):
    prompt = [100 + i % 1000 for i in range(3000)]
    answer = client.completions.create(model="nano-r1", prompt=prompt, max_tokens=8, temperature=0)
    assert answer.usage.prompt_tokens == 3000 and answer.usage.completion_tokens >= 1


def test_max_tokens_ends_an_answer_with_length(client):
    answer = ask(client, SMOKE, max_tokens=5)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 5


def test_the_response_names_the_workers_and_the_strategy(client):
    answer = client.chat.completions.with_raw_response.create(
        model="nano-r1", max_tokens=3, messages=[{"role": "user", "content": "hi"}])
    assert answer.headers["x-baton-prefill"] == "prefill-0"
    assert answer.headers["x-baton-decode"] in ("decode-0", "decode-1")
    assert answer.headers["x-baton-strategy"] and answer.headers["x-request-id"]


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError):
        ask(client, "hi", model="gpt-7")


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["nano-r1"]


def test_what_an_operator_says_of_a_model_holds(beside, cluster):
    """A second name, with a slash as on hubs, and its context: of 200 tokens, a prompt of 190 leaves 10."""
    one = beside("--served-model-name", "nano-r1,org/nano-r1", "--max-model-len", 200)
    client = client_of(one)
    listed = list(client.models.list())[1]
    assert listed.id == "org/nano-r1" and listed.max_model_len == 200
    for path in ("org/nano-r1", "org%2Fnano-r1"):
        assert json.loads(one.get(f"/v1/models/{path}")[1]) == listed.to_dict()
    args = {"model": listed.id, "extra_body": {"ignore_eos": True}}
    rest = client.completions.create(prompt=[100] * 190, **args)
    assert rest.choices[0].finish_reason == "length" and rest.usage.completion_tokens == 10
    question, args = "0123456789" * 60, args | {"max_tokens": None}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="maximum context length is 200 tokens") as refused:
            ask(client, question, stream=stream, **args)
        assert refused.value.param == "input_tokens"
    rest = ask(client, question, **args | {"extra_body": {"ignore_eos": True, "truncate_prompt_tokens": 190}})
    assert rest.choices[0].finish_reason == "length" and rest.usage.completion_tokens == 10


def test_two_gateways_serve_one_cluster(start_cluster):
    one = start_cluster(n_decode=1, n_gateways=2)
    try:
        answers = [text_of(ask(client_of(one, gateway), SMOKE)) for gateway in one.gateways]
        assert answers[0] == answers[1] and answers[0][1].strip() == "391"
    finally:
        one.down()
