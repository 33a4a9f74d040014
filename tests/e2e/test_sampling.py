"""What a client may ask of the choice of tokens, and what it is told about it: seeds, penalties, lists of tokens,
logprobs, several choices."""

import json
import math

import openai
import pytest

from cluster import ROOT
from conftest import MODEL_NAME, ask, client_of

GREEDY = json.loads((ROOT / "tests" / "data" / "greedy.json").read_text())[0]
PROMPT = GREEDY["prompt_ids"]
QUESTION = "Solve 12 + 30."


def complete(client, extra=None, **args):
    """Token ids and answer of a completion, greedy."""
    args = {"model": MODEL_NAME, "prompt": PROMPT, "temperature": 0, "max_tokens": 12} | args
    answer = client.completions.create(extra_body={"return_token_ids": True} | (extra or {}), **args)
    return answer.choices[0].token_ids, answer


def test_a_seed_decides_the_tokens(client):
    drawn = [complete(client, temperature=2.0, seed=seed, max_tokens=24)[0] for seed in (7, 7, 8, 9)]
    assert drawn[0] == drawn[1] and (drawn[0] != drawn[2] or drawn[0] != drawn[3])


def test_a_bias_forces_and_forbids(client):
    first = complete(client)[0][0]
    assert set(complete(client, logit_bias={"77": 100})[0]) == {77}
    assert set(complete(client, logit_bias={"77": 250})[0]) == {77}, "clamped, not refused"
    assert first not in complete(client, logit_bias={str(first): -100})[0]


def test_only_allowed_tokens_are_drawn(client):
    assert set(complete(client, {"allowed_token_ids": [300, 301]}, temperature=2.0, max_tokens=40)[0]) == {300, 301}


def test_penalties_keep_tokens_from_coming_back(client):
    ids = list(range(300, 340))
    high = {str(i): 100 for i in ids}  # all positive, so that the repetition penalty divides them
    args = {"logit_bias": high, "max_tokens": 20}
    assert len(set(complete(client, {"allowed_token_ids": ids}, **args)[0])) < 20
    drawn = complete(client, {"allowed_token_ids": ids, "repetition_penalty": 1000}, **args)[0]
    assert len(set(drawn)) == 20 and not set(drawn) & set(PROMPT), "no token of the prompt, none twice"
    two = {"allowed_token_ids": [300, 301]}
    spread = complete(client, two, max_tokens=40, frequency_penalty=2)[0]
    assert min(spread.count(300), spread.count(301)) >= 10, "each occurrence counts"
    assert complete(client, two, max_tokens=2, presence_penalty=2)[0][0] == spread[0], "only what was drawn"


def test_chat_logprobs_name_every_token(client):
    answer = ask(client, QUESTION, logprobs=True, top_logprobs=3, max_tokens=60,
                 extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    choice = answer.choices[0]
    entries = choice.logprobs.content
    assert choice.logprobs.refusal is None and "refusal" in choice.logprobs.model_fields_set
    assert len(entries) == answer.usage.completion_tokens - (choice.finish_reason == "stop")
    for entry in entries:
        tops = [top.logprob for top in entry.top_logprobs]
        assert len(tops) == 3 and tops == sorted(tops, reverse=True) and sum(map(math.exp, tops)) < 1.0001
        assert entry.top_logprobs[0].token == entry.token and tops[0] == entry.logprob, "greedy"
        assert bytes(entry.bytes).decode(errors="replace") == entry.token


def test_the_bytes_of_logprobs_are_the_text(client):
    _, answer = complete(client, max_tokens=40, logprobs=0)
    assert "".join(answer.choices[0].logprobs.tokens) == answer.choices[0].text
    for is_thinking in (False, True):
        choice = ask(client, QUESTION, logprobs=True, max_tokens=30, extra_body={
            "ignore_eos": True, "skip_special_tokens": False,
            "chat_template_kwargs": {"enable_thinking": is_thinking}}).choices[0]
        text = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content).decode()
        assert text == (choice.message.reasoning_content if is_thinking else choice.message.content)


@pytest.mark.parametrize("stop", [None, ["4"]], ids=["length", "stop string"])
def test_streamed_logprobs_are_the_whole_ones_with_their_text(client, stop):
    args = {"logprobs": True, "top_logprobs": 2, "max_tokens": 80, "stop": stop}
    whole = ask(client, QUESTION, **args)
    entries, text, shown = [], "", b""
    for chunk in ask(client, QUESTION, stream=True, **args):
        choice = chunk.choices[0]
        text += (getattr(choice.delta, "reasoning_content", None) or "") + (choice.delta.content or "")
        if choice.logprobs:
            entries += choice.logprobs.content
            shown += b"".join(bytes(entry.bytes) for entry in choice.logprobs.content)
        if not stop and choice.delta.content is None and choice.finish_reason is None:
            assert len(shown.decode()) >= len(text), "no text ahead of its tokens"
    assert entries == whole.choices[0].logprobs.content


def test_completion_logprobs_are_parallel_arrays(client):
    ids, answer = complete(client, logprobs=5, max_tokens=20)
    logprobs, text = answer.choices[0].logprobs, answer.choices[0].text
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(ids)
    for token, logprob, top, offset in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs,
                                           logprobs.text_offset):
        assert max(top.values()) == logprob == top[token] and 1 <= len(top) <= 6
        assert text[offset:].startswith(token) or offset == len(text)
    streamed = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for chunk in client.completions.create(model=MODEL_NAME, prompt=PROMPT, temperature=0, max_tokens=20, logprobs=5,
                                           stream=True):
        for name in streamed if chunk.choices[0].logprobs else ():
            streamed[name] += getattr(chunk.choices[0].logprobs, name)
    assert streamed == {name: getattr(logprobs, name) for name in streamed}


def test_an_evaluation_reads_the_prompts_logprobs(client):
    """lm-eval's call: the context is PROMPT, its continuation what the model says greedily, so every token is the best."""
    said, answer = complete(client, logprobs=1, max_tokens=24)
    context = len(PROMPT)
    for max_tokens in (1, 0):
        args = {"model": MODEL_NAME, "prompt": [PROMPT + said], "max_tokens": max_tokens, "logprobs": 1, "echo": True,
                "temperature": 0, "seed": 1234, "extra_body": {"cache_salt": f"evaluation-{max_tokens}"}}
        cold, warm = (client.completions.create(**args) for _ in range(2))
        scored = cold.choices[0]
        assert scored == warm.choices[0] and cold.usage.prompt_tokens_details.cached_tokens == 0
        got = scored.logprobs
        lists = (got.tokens, got.token_logprobs, got.top_logprobs, got.text_offset)
        assert {len(one) for one in lists} == {context + len(said) + max_tokens}
        assert got.token_logprobs[0] is None and got.top_logprobs[0] is None
        for i in range(context, context + len(said)):
            assert max(got.top_logprobs[i].values()) == got.token_logprobs[i]
            assert abs(got.token_logprobs[i] - answer.choices[0].logprobs.token_logprobs[i - context]) < 0.05
        assert [scored.text[at:at + len(token)] for at, token in list(zip(got.text_offset, got.tokens))[1:]
                if "\ufffd" not in token] == [token for token in got.tokens[1:] if "\ufffd" not in token]


def test_logprobs_are_those_before_bias_and_temperature(client):
    plain = complete(client, logprobs=1, max_tokens=1)[1].choices[0].logprobs
    biased = complete(client, logprobs=1, max_tokens=1, logit_bias={"77": 100}, temperature=0.5, seed=1)[1]
    logprobs = biased.choices[0].logprobs
    assert logprobs.token_logprobs[0] < plain.token_logprobs[0]
    assert logprobs.top_logprobs[0][plain.tokens[0]] == plain.token_logprobs[0] and len(logprobs.top_logprobs[0]) == 2


def check_prompt_logprobs(ids, got, k):
    """`got` tells of each token of the prompt `ids` but the first: the token, then the k likeliest."""
    assert len(got) == len(ids) and got[0] is None
    for token, entries in zip(ids[1:], got[1:]):
        ranks = [entry["rank"] for entry in entries.values()]
        assert next(iter(entries)) == str(token), "the token itself comes first"
        assert len(entries) == k + (ranks[0] > k) and sorted(ranks)[:k] == list(range(1, k + 1))
        logprobs = [entry["logprob"] for entry in sorted(entries.values(), key=lambda entry: entry["rank"])]
        assert logprobs == sorted(logprobs, reverse=True) and sum(map(math.exp, logprobs)) < 1.0001
        assert all(isinstance(entry["decoded_token"], str) for entry in entries.values())


def test_prompt_logprobs_tell_of_every_token_of_a_prompt(client):
    """Beside an echo, which has its own number of alternatives; where the text was said greedily, ranks are 1."""
    ids = PROMPT + complete(client, max_tokens=30)[0]
    choice = complete(client, {"prompt_logprobs": 3}, prompt=ids, max_tokens=1, logprobs=1, echo=True)[1].choices[0]
    check_prompt_logprobs(ids, choice.prompt_logprobs, 3)
    own = [entries[str(token)] for token, entries in zip(ids[1:], choice.prompt_logprobs[1:])]
    assert [entry["logprob"] for entry in own] == choice.logprobs.token_logprobs[1:-1]
    assert [entry["decoded_token"] for entry in own] == choice.logprobs.tokens[1:-1]
    assert {entry["rank"] for entry in own[len(PROMPT) - 1:]} == {1}
    assert all(len(top) <= 2 for top in choice.logprobs.top_logprobs[1:])
    alone = complete(client, {"prompt_logprobs": 0}, prompt=ids, max_tokens=0)[1].choices[0]
    check_prompt_logprobs(ids, alone.prompt_logprobs, 0)
    assert [entries[str(token)] for token, entries in zip(ids[1:], alone.prompt_logprobs[1:])] == own, "a warm cache"
    assert alone.text == "" and alone.logprobs is None


def test_prompt_logprobs_of_a_chat_stand_beside_its_choices(client):
    args = {"max_tokens": 4, "temperature": 2.0, "seed": 1, "n": 2}
    answer = ask(client, QUESTION, extra_body={"prompt_logprobs": 2, "return_token_ids": True}, **args)
    check_prompt_logprobs(answer.prompt_token_ids, answer.prompt_logprobs, 2)
    assert len(answer.choices) == 2 and ask(client, QUESTION, **args).prompt_logprobs is None
    streamed = ask(client, QUESTION, stream=True, extra_body={"prompt_logprobs": 0}, max_tokens=2)
    assert not any("prompt_logprobs" in chunk.model_dump() for chunk in streamed)


def test_choices_of_a_prompt_share_its_logprobs(client):
    choices = complete(client, {"prompt_logprobs": 1}, prompt=[PROMPT, PROMPT[:5], [7]], n=2, temperature=1.0,
                       max_tokens=2)[1].choices
    for choice in choices:
        check_prompt_logprobs((PROMPT, PROMPT[:5], [7])[choice.index // 2], choice.prompt_logprobs, 1)
    assert choices[0].prompt_logprobs == choices[1].prompt_logprobs


def test_the_operator_says_how_many_logprobs_there_may_be(client, start_cluster):
    for field, value in (("logprobs", 21), ("logprobs", -1), ("prompt_logprobs", 21), ("prompt_logprobs", -1)):
        with pytest.raises(openai.BadRequestError, match="max-logprobs") as refused:
            complete(client, {field: value})
        assert refused.value.param == field
    one = start_cluster(n_decode=1, gateway="--max-logprobs 128")
    answer = ask(client_of(one), QUESTION, logprobs=True, top_logprobs=128, extra_body={"prompt_logprobs": 128,
                                                                                      "return_token_ids": True})
    assert {len(entry.top_logprobs) for entry in answer.choices[0].logprobs.content} == {128}
    check_prompt_logprobs(answer.prompt_token_ids, answer.prompt_logprobs, 128)
    with pytest.raises(openai.BadRequestError, match="129"):
        ask(client_of(one), QUESTION, logprobs=True, top_logprobs=129)


def test_bad_words_are_not_said(client):
    ids, answer = complete(client, logprobs=0, max_tokens=24)
    first, second = answer.choices[0].logprobs.tokens[:2]
    assert ids[0] not in complete(client, {"bad_words": [first]}, max_tokens=24)[0]
    assert complete(client, {"prompt_logprobs": 0, "add_special_tokens": False}, prompt=first + second,
                    max_tokens=0)[1].choices[0].prompt_token_ids == ids[:2], "what it needs to be a case of two tokens"
    said, answer = complete(client, {"bad_words": [first + second]}, max_tokens=24)
    assert said[0] == ids[0], "prefill may say the first token"
    assert said[1] != ids[1], "but decode not the second one behind it"
    assert first + second not in answer.choices[0].text
    assert complete(client, {"bad_words": ["never said", " nor this"]}, max_tokens=24)[0] == ids
    for words in ([""], [" \n"], "x", [5], ["x"] * 129, ["zq" * 500]):
        with pytest.raises(openai.BadRequestError) as refused:
            complete(client, {"bad_words": words})
        assert refused.value.param == "bad_words"


def test_n_gives_numbered_choices_of_their_own(client):
    one = complete(client, temperature=2.0, seed=7, max_tokens=16)[1]
    answer = complete(client, temperature=2.0, seed=7, max_tokens=16, n=3)[1]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.choices[0].text == one.choices[0].text, "the first has the seed itself"
    assert len({choice.text for choice in answer.choices}) > 1
    assert answer.usage.prompt_tokens == len(PROMPT)
    assert answer.usage.completion_tokens == sum(len(choice.token_ids) for choice in answer.choices)
    with pytest.raises(openai.BadRequestError, match="greedy"):
        complete(client, n=2)


def test_two_prompts_with_two_choices_are_four(client):
    args = {"model": MODEL_NAME, "prompt": [PROMPT, PROMPT[:5]], "temperature": 2.0, "seed": 3, "max_tokens": 8, "n": 2}
    whole = client.completions.create(extra_body={"return_token_ids": True}, **args)
    assert whole.usage.prompt_tokens == len(PROMPT) + 5, "each prompt counts once"
    assert whole.usage.completion_tokens == sum(len(choice.token_ids) for choice in whole.choices)
    texts, finishes = [""] * 4, [0] * 4
    for chunk in client.completions.create(stream=True, **args):
        texts[chunk.choices[0].index] += chunk.choices[0].text
        finishes[chunk.choices[0].index] += chunk.choices[0].finish_reason is not None
    assert finishes == [1] * 4 and texts == [choice.text for choice in whole.choices]


def test_streamed_choices_first_appear_in_order(client):
    seen, roles = [], []
    args = {"temperature": 2.0, "seed": 5, "max_tokens": 10}
    whole = ask(client, QUESTION, n=3, extra_body={"return_token_ids": True}, **args)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert whole.usage.prompt_tokens == ask(client, QUESTION, **args).usage.prompt_tokens
    assert whole.usage.completion_tokens == sum(len(choice.token_ids) for choice in whole.choices)
    for chunk in ask(client, QUESTION, n=3, stream=True, **args):
        choice = chunk.choices[0]
        seen += [choice.index] if choice.index not in seen else []
        roles += [choice.index] if choice.delta.role else []
    assert seen == [0, 1, 2] and roles == [0, 1, 2]


def test_logprobs_survive_a_lost_worker(pair):
    """What was told before the replay is not told again, and the rest continues as if nothing had happened."""
    client = client_of(pair)
    args = {"logprobs": True, "top_logprobs": 1, "max_tokens": 160, "stream": True,
            "presence_penalty": 0.5, "extra_body": {"ignore_eos": True, "bad_words": ["12", "2", "30 "]}}
    expected = [entry for chunk in ask(client, QUESTION, **args) for choice in chunk.choices if choice.logprobs
                for entry in choice.logprobs.content]
    stream = client.chat.completions.with_raw_response.create(
        model=MODEL_NAME, temperature=0, messages=[{"role": "user", "content": QUESTION}], **args)
    decode, got = stream.headers["x-baton-decode"], []
    for chunk in stream.parse():
        for choice in chunk.choices:
            got += choice.logprobs.content if choice.logprobs else []
        if len(got) >= 20 and pair.is_alive(decode):
            pair.kill(decode)
    assert got == expected and len(got) == 160
