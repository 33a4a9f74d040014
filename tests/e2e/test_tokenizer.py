"""The tokenizer over HTTP: /tokenize, /detokenize, /tokenizer_info."""

import json

from conftest import ask
from test_http import call, error_of, post

MESSAGES = [{"role": "user", "content": "Hi, caf\u00e9 \U0001f600!"}]


def tokenize(cluster, **body):
    status, _, data = post(cluster, body, "/tokenize")
    assert status == 200, data
    answer = json.loads(data)
    assert set(answer) == {"count", "max_model_len", "tokens", "token_strs"}
    assert answer["count"] == len(answer["tokens"]) and answer["max_model_len"] > 0
    return answer


def detokenize(cluster, tokens):
    status, _, data = post(cluster, {"tokens": tokens}, "/detokenize")
    assert status == 200, data
    return json.loads(data)["prompt"]


def test_check_45_text_to_tokens_and_back(cluster, client):
    text = MESSAGES[0]["content"]
    tokens = tokenize(cluster, prompt=text)["tokens"]
    bare = tokenize(cluster, prompt=text, add_special_tokens=False)["tokens"]
    assert tokens[0] == 0 and tokens[1:] == bare and detokenize(cluster, bare) == text
    assert detokenize(cluster, tokens) == "<｜begin▁of▁sentence｜>" + text
    assert detokenize(cluster, []) == "" and tokenize(cluster, prompt="", add_special_tokens=False)["count"] == 0
    answer = client.completions.create(model="nano-r1", prompt=text, max_tokens=1)
    assert answer.usage.prompt_tokens == len(tokens)


def test_check_45_a_chat_has_as_many_tokens_as_its_usage_says(cluster, client):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    for extra in ({}, {"tools": [tool]}, {"chat_template_kwargs": {"thinking": False}}):
        count = tokenize(cluster, messages=MESSAGES, **extra)["count"]
        body = extra if "tools" in extra else {"extra_body": extra}
        assert ask(client, MESSAGES[0]["content"], max_tokens=1, **body).usage.prompt_tokens == count
    longer = tokenize(cluster, messages=MESSAGES)
    shorter = tokenize(cluster, messages=MESSAGES, add_generation_prompt=False)
    assert longer["tokens"][:shorter["count"]] == shorter["tokens"]


def test_check_45_tokens_have_the_names_that_the_tokenizers_file_gives_them(cluster):
    answer = tokenize(cluster, prompt="a a\u00e9\n<think>", return_token_strs=True)
    assert answer["token_strs"] == ["<｜begin▁of▁sentence｜>", "a", "\u0120a", "\u00c3", "\u00a9", "\u010a", "<think>"]
    assert tokenize(cluster, prompt="a")["token_strs"] is None


def test_check_45_what_cannot_be_tokenised_is_a_400(cluster):
    for path, body, param in (
            ("/tokenize", {}, "prompt"), ("/tokenize", {"prompt": [1]}, "prompt"), ("/tokenize", {"messages": []}, "messages"),
            ("/tokenize", {"messages": MESSAGES, "continue_final_message": True, "add_generation_prompt": True},
             "continue_final_message"),
            ("/tokenize", {"prompt": "a", "add_special_tokens": "x"}, "add_special_tokens"),
            ("/detokenize", {}, "tokens"), ("/detokenize", {"tokens": [-1]}, "tokens"),
            ("/detokenize", {"tokens": [2048]}, "tokens"), ("/detokenize", {"tokens": "x"}, "tokens")):
        status, _, data = post(cluster, body, path)
        assert status == 400 and error_of(data)["param"] == param, (path, body, data)
    status, _, data = post(cluster, {"prompt": "a", "model": "nope"}, "/tokenize")
    assert status == 404 and error_of(data)["param"] == "model"


def test_check_46_the_tokenizers_settings_are_told_if_the_operator_says_so(cluster, pair):
    status, _, data = call(cluster, "GET", "/tokenizer_info")
    assert status == 404 and error_of(data)["code"] == 404
    status, _, data = call(pair, "GET", "/tokenizer_info")
    info = json.loads(data)
    assert status == 200 and info["eos_token"] == info["pad_token"] == "<｜end▁of▁sentence｜>"
    assert info["bos_token"] == "<｜begin▁of▁sentence｜>" and info["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "add_generation_prompt" in info["chat_template"]
