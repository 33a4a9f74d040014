"""The contract of the OpenAI surface where no other file has it: service, chat, validation, completions, streams. A
test's name has the number of its check (tests/e2e/README.md)."""

import http.client
import json
import re
import signal
from pathlib import Path
from urllib.parse import urlparse

import pytest

from cluster import SLOW, wait_for
from conftest import MODEL_NAME
from test_http import CHAT, call, error_of, events_of, post, raw, stream_of

GREEDY = {"temperature": 0, "ignore_eos": True, "max_tokens": 12}
NO_THOUGHT = {"chat_template_kwargs": {"enable_thinking": False}}


def answer_of(cluster, path, **body):
    """The body of an answer that must be one; of a stream, its events."""
    if body.get("stream"):
        return stream_of(cluster, GREEDY | body, path)
    status, headers, data = post(cluster, GREEDY | body, path)
    assert status == 200 and headers["content-type"] == "application/json", data
    return json.loads(data)


def chat(cluster, content="What is 12 + 30?", messages=None, **args):
    messages = messages or [{"role": "user", "content": content}]
    return answer_of(cluster, "/v1/chat/completions", messages=messages, **args)


def complete(cluster, prompt="17 + 4 =", **args):
    return answer_of(cluster, "/v1/completions", prompt=prompt, **args)


def refused(cluster, path="/v1/chat/completions", **body):
    """The param that a 400 names, with and without a stream."""
    params = set()
    for stream in ({}, {"stream": True}):
        status, headers, data = post(cluster, body | stream, path)
        assert status == 400 and headers["content-type"] == "application/json", data
        params.add(error_of(data)["param"])
    assert len(params) == 1
    return params.pop()


def test_every_check_has_its_line_and_every_line_its_test():
    folder = Path(__file__).parent
    lines = re.findall(r"^\| (\d+) \|.*\| (.*) \|$", (folder / "README.md").read_text(), re.M)
    tests = set(re.findall(r"^def (test_\w+)", "".join(file.read_text() for file in folder.glob("test_*.py")), re.M))
    assert [int(number) for number, _ in lines] == list(range(1, 74))
    named = {name for _, text in lines for name in re.findall(r"`(test_\w+)`", text)}
    assert named <= tests, named - tests


# ---- A. service

def test_check_2_3_ping_and_version(cluster):
    for method, path in (("GET", "/ping"), ("POST", "/ping"), ("HEAD", "/ping"), ("GET", "/health"),
                         ("HEAD", "/health")):
        status, _, data = call(cluster, method, path)
        assert status == 200 and data == b"", (method, path)
    status, _, data = call(cluster, "GET", "/version")
    assert status == 200 and isinstance(json.loads(data)["version"], str)


def test_check_4_5_models_and_one_of_them(cluster):
    status, _, data = call(cluster, "GET", "/v1/models")
    listed = json.loads(data)
    one = listed["data"][0]
    assert status == 200 and listed["object"] == "list" and one["id"] == MODEL_NAME and one["object"] == "model"
    assert isinstance(one["created"], int) and one["owned_by"] and one["max_model_len"] > 0
    assert json.loads(call(cluster, "GET", "/v1/models")[2]) == listed
    assert json.loads(call(cluster, "GET", f"/v1/models/{MODEL_NAME}")[2]) == one
    assert json.loads(call(cluster, "GET", "/v1/models/nano%2Dr1")[2]) == one
    status, _, data = call(cluster, "GET", "/v1/models/none")
    assert status == 404 and error_of(data)["param"] == "model"


# ---- B. chat

def test_check_11_a_whole_answer_has_every_key(cluster):
    answer = chat(cluster, max_tokens=3)
    assert {"id", "object", "created", "model", "choices", "service_tier", "system_fingerprint", "usage",
            "prompt_logprobs", "prompt_token_ids", "kv_transfer_params"} <= set(answer)
    choice = answer["choices"][0]
    assert {"index", "message", "logprobs", "finish_reason", "stop_reason", "token_ids"} <= set(choice)
    assert {"role", "content", "refusal", "annotations", "audio", "function_call", "reasoning",
            "reasoning_content"} <= set(choice["message"]) and "tool_calls" not in choice["message"]
    usage = answer["usage"]
    assert answer["object"] == "chat.completion" and choice["finish_reason"] == "length" and choice["index"] == 0
    assert answer["id"].startswith("chatcmpl-") and isinstance(answer["created"], int) and answer["model"] == MODEL_NAME
    assert choice["message"]["role"] == "assistant" and choice["logprobs"] is None
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 3


def test_check_12_the_newer_limit_wins(cluster):
    answer = chat(cluster, max_tokens=5, max_completion_tokens=2)
    assert answer["usage"]["completion_tokens"] == 2 and answer["choices"][0]["finish_reason"] == "length"


def test_check_16_a_stop_string_across_tokens(cluster):
    whole = complete(cluster, max_tokens=30)["choices"][0]["text"]
    stop = whole[6:11]
    cut = complete(cluster, max_tokens=30, stop=[stop, "not there"])["choices"][0]
    assert cut["text"] == whole[:whole.index(stop)] and cut["stop_reason"] == stop and cut["finish_reason"] == "stop"
    whole = chat(cluster, max_tokens=30, **NO_THOUGHT)["choices"][0]["message"]["content"]
    stop = whole[6:11]
    cut = chat(cluster, max_tokens=30, stop=stop, **NO_THOUGHT)["choices"][0]
    assert cut["message"]["content"] == whole[:whole.index(stop)] and cut["stop_reason"] == stop


def test_check_17_what_ends_an_answer_and_what_does_not(cluster):
    whole = complete(cluster, max_tokens=50, return_token_ids=True)["choices"][0]
    ids = whole["token_ids"]
    assert len(ids) == 50 and whole["finish_reason"] == "length" and whole["stop_reason"] is None
    stopped = complete(cluster, max_tokens=50, stop_token_ids=[ids[3]])["choices"][0]
    assert stopped["finish_reason"] == "stop" and stopped["stop_reason"] == ids[3]
    later = complete(cluster, max_tokens=50, stop_token_ids=[ids[3]], min_tokens=20)
    assert later["usage"]["completion_tokens"] >= 20
    eos, forced = 1, {"logit_bias": {"1": 100}, "ignore_eos": False, "return_token_ids": True}
    for min_tokens in (0, 5):
        ended = complete(cluster, min_tokens=min_tokens, **forced)
        choice = ended["choices"][0]
        assert choice["finish_reason"] == "stop" and eos not in choice["token_ids"][:min_tokens]
        assert ended["usage"]["completion_tokens"] == min_tokens + 1


def test_check_20_histories_as_clients_send_them(cluster):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(cluster, content=parts)["usage"] == chat(cluster, content="a\nb")["usage"]
    call_of = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}
    chat(cluster, max_tokens=1, messages=[
        {"role": "system", "content": "s"}, {"role": "developer", "content": "d"},
        {"role": "user", "content": "u", "name": "me", "unknown": 1},
        {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": [call_of]},
        {"role": "tool", "tool_call_id": "c", "content": parts}, {"role": "assistant", "content": ""},
        {"role": "user", "content": "go on"}])


@pytest.mark.parametrize("field, value", [
    ("response_format", {"type": "json_object"}), ("response_format", {"type": "json_schema", "json_schema": {}}),
    ("structured_outputs", {"choice": ["a"]}), ("guided_json", {}), ("guided_regex", "a"), ("guided_choice", ["a"]),
    ("guided_grammar", "a"), ("use_beam_search", True), ("chat_template", "x"), ("logprob_token_ids", [1]),
    ("thinking_token_budget", 5), ("repetition_detection", {}), ("return_prompt_text", True)])
def test_check_21_what_is_not_there_yet_is_refused_by_name(cluster, field, value):
    assert refused(cluster, **CHAT | {field: value}) == field


def test_check_23_thought_and_answer_are_apart(cluster):
    message = chat(cluster, max_tokens=200, ignore_eos=False)["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] and message["content"]
    assert "think>" not in message["reasoning"] + message["content"]
    silent = chat(cluster, max_tokens=200, ignore_eos=False, include_reasoning=False)
    assert silent["choices"][0]["message"]["reasoning"] is None
    assert silent["choices"][0]["message"]["content"] == message["content"]
    assert silent["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    bare = chat(cluster, **NO_THOUGHT)
    assert bare["choices"][0]["message"]["reasoning"] is None and bare["choices"][0]["message"]["content"]
    assert bare["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


# ---- C. validation

def test_check_37_what_is_ignored_and_what_is_not(cluster):
    chat(cluster, max_tokens=1, metadata={}, store=True, user="u", service_tier="auto", prediction={}, modalities=["text"],
         verbosity="low", safety_identifier="x", prompt_cache_key="x", web_search_options={}, audio={}, unknown=[1],
         functions=[], function_call="auto", vllm_xargs={"a": 1}, kv_transfer_params={"remote_host": "10.0.0.1"})
    nulls = ["model", "max_completion_tokens", "temperature", "top_p", "n", "stream", "stream_options", "stop", "seed",
             "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "response_format",
             "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort", "top_k", "min_p", "repetition_penalty",
             "stop_token_ids", "ignore_eos", "min_tokens", "truncate_prompt_tokens", "truncation_side",
             "prompt_logprobs", "allowed_token_ids", "bad_words", "echo", "continue_final_message", "documents",
             "chat_template", "chat_template_kwargs", "structured_outputs", "priority", "request_id",
             "return_token_ids", "cache_salt", "stream_interval", "thinking_token_budget",
             "include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens",
             "add_special_tokens", "add_generation_prompt", "include_reasoning", "return_tokens_as_token_ids",
             "return_prompt_text", "logprob_token_ids", "use_beam_search", "length_penalty", "repetition_detection",
             "session_id", "kv_transfer_params", "vllm_xargs", "guided_json", "guided_regex", "guided_choice",
             "guided_grammar", "guided_decoding_backend", "guided_whitespace_pattern", "prompt_embeds", "metadata",
             "store", "user", "service_tier", "suffix", "best_of"]
    chat(cluster, **dict.fromkeys(nulls) | {"max_tokens": 1})
    complete(cluster, **dict.fromkeys(nulls) | {"max_tokens": 1})
    assert complete(cluster, **dict.fromkeys(nulls + ["max_tokens"]))["usage"]["completion_tokens"] <= 16
    for part in ({"type": "image_url", "image_url": {"url": "x"}}, {"type": "foo"}):
        assert refused(cluster, messages=[{"role": "user", "content": [part]}])


def test_check_37_the_last_message_goes_on(cluster):
    history = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "1, 2, 3,"}]
    assert refused(cluster, messages=history, continue_final_message=True) == "continue_final_message"
    flags = {"continue_final_message": True, "add_generation_prompt": False}
    answer = chat(cluster, messages=history, return_token_ids=True, **flags)
    _, _, data = post(cluster, {"tokens": answer["prompt_token_ids"]}, "/detokenize")
    assert json.loads(data)["prompt"].endswith("1, 2, 3,")
    echoed = chat(cluster, messages=history, echo=True, **flags)["choices"][0]["message"]["content"]
    assert echoed == "1, 2, 3," + answer["choices"][0]["message"]["content"]


# ---- D. completions

def test_check_38_text_gets_16_tokens(cluster):
    status, _, data = post(cluster, {"prompt": "17 + 4 =", "ignore_eos": True}, "/v1/completions")
    answer = json.loads(data)
    assert status == 200 and answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
    assert answer["usage"]["completion_tokens"] == 16


def test_check_39_a_prompt_in_all_its_forms(cluster):
    text = complete(cluster, return_token_ids=True)["choices"][0]
    ids = text["prompt_token_ids"]
    for same in (ids, ["17 + 4 ="], [ids]):
        assert complete(cluster, prompt=same)["choices"][0]["text"] == text["text"]
    for bad in ("", [], None, [1, "a"], [-1], [2048], ["x"] * 1025):
        assert refused(cluster, "/v1/completions", prompt=bad) == "prompt"


def test_check_42_43_fields_of_completions(cluster):
    for n_top in (0, 5):
        logprobs = complete(cluster, max_tokens=3, logprobs=n_top)["choices"][0]["logprobs"]
        assert len(logprobs["tokens"]) == 3 and all(max(n_top, 1) <= len(top) <= n_top + 1 for top in logprobs["top_logprobs"])
    named = complete(cluster, max_tokens=2, logprobs=0, return_tokens_as_token_ids=True, return_token_ids=True)["choices"][0]
    assert named["logprobs"]["tokens"] == [f"token_id:{id}" for id in named["token_ids"]]
    assert refused(cluster, "/v1/completions", prompt="x", logprobs=True) == "logprobs"
    assert refused(cluster, "/v1/completions", prompt="x", suffix="x") == "suffix"
    for fine in ({"suffix": None}, {"suffix": ""}, {"best_of": None}):
        complete(cluster, max_tokens=1, **fine)


# ---- E. streams

def test_check_48_usage_only_when_asked_for(cluster):
    whole = chat(cluster)["usage"]
    assert all("usage" not in event and event["choices"] for event in chat(cluster, stream=True))
    events = chat(cluster, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert events[-1]["choices"] == [] and all(event["choices"] for event in events[:-1])
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts) and counts[-1] == whole["completion_tokens"]
    events = chat(cluster, stream=True, stream_options={"continuous_usage_stats": True})
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts) and all(event["choices"] for event in events), "no chunk of its own"


def test_check_50_characters_of_several_tokens_come_whole(cluster):
    """The two bytes of an e with acute are two tokens; an odd number of them ends within a character."""
    args = {"allowed_token_ids": [130, 105], "temperature": 2.0, "seed": 3, "max_tokens": 31}
    whole = complete(cluster, **args)["choices"][0]["text"]
    assert "".join(event["choices"][0]["text"] for event in complete(cluster, stream=True, **args)) == whole


def test_check_53_thoughts_stream_before_answers(cluster):
    events = chat(cluster, stream=True, max_tokens=200, ignore_eos=False)
    deltas = [event["choices"][0]["delta"] for event in events]
    kinds = ["reasoning" if "reasoning" in delta else "content" for delta in deltas[1:-1]]
    assert kinds == sorted(kinds, reverse=True) and {"reasoning", "content"} == set(kinds)
    assert all(delta["reasoning"] == delta["reasoning_content"] for delta in deltas if "reasoning" in delta)
    assert "think>" not in json.dumps(deltas)


def test_check_55_a_stream_is_never_compressed(cluster):
    _, headers, _ = post(cluster, CHAT | {"stream": True}, headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in headers


def test_check_55_events_leave_whole(cluster):
    """Each chunk of the transfer coding is a write of the gateway's."""
    body = json.dumps(CHAT | {"stream": True, "max_tokens": 40, "ignore_eos": True})
    answer = raw(cluster, f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}"
                          f"\r\n\r\n{body}".encode())
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head.lower()
    chunks = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        chunks.append(rest[:int(size, 16)])
        assert rest[int(size, 16):][:2] == b"\r\n"
        rest = rest[int(size, 16) + 2:]
    assert chunks.pop() == b"" and all(chunk.endswith(b"\n\n") for chunk in chunks)
    assert chunks[-1].endswith(b"data: [DONE]\n\n") and len(events_of(b"".join(chunks))) > 20


def test_check_55_nothing_is_sent_before_the_first_token(cluster):
    cluster.signal("prefill-0", signal.SIGSTOP)
    connection = http.client.HTTPConnection(urlparse(cluster.url()).netloc)
    connection.sock = cluster.connect(60)
    connection.request("POST", "/v1/chat/completions", json.dumps(CHAT | {"stream": True}))
    wait_for(lambda: cluster.metrics().value("baton_requests_running") == 1, why="the request is admitted")
    connection.sock.settimeout(0.05)
    with pytest.raises(TimeoutError):
        connection.sock.recv(1)
    connection.sock.settimeout(60 * SLOW)
    cluster.signal("prefill-0", signal.SIGCONT)
    assert connection.getresponse().status == 200
    connection.close()


def test_check_56_a_silent_stream_gets_comments(beside, cluster):
    one = beside("--sse-keep-alive-ms", 1)
    connection = http.client.HTTPConnection(urlparse(one.url()).netloc, timeout=60 * SLOW)
    body = {"prompt": "17 + 4 =", "max_tokens": 4000, "ignore_eos": True, "stream": True, "stream_interval": 4000}
    connection.request("POST", "/v1/completions", json.dumps(body))
    answer, data = connection.getresponse(), b""
    while b": keep-alive\n\n" not in data:
        piece = answer.read1()
        assert piece, data
        data += piece
    connection.close()


def test_ids_of_prompt_and_output_come_with_a_stream(cluster):
    whole = chat(cluster, return_token_ids=True)
    events = chat(cluster, return_token_ids=True, stream=True)
    assert events[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert not any("prompt_token_ids" in event for event in events[1:])
    ids = [id for event in events for id in event["choices"][0].get("token_ids", [])]
    assert ids == whole["choices"][0]["token_ids"]
    first = complete(cluster, return_token_ids=True, stream=True)[0]["choices"][0]
    assert first["prompt_token_ids"] and first["text"] == ""


def test_stream_interval_is_tokens_per_event(cluster):
    args = {"max_tokens": 20, "return_token_ids": True} | NO_THOUGHT
    whole = chat(cluster, **args)["choices"][0]
    events = chat(cluster, stream=True, stream_interval=6, **args)
    ids = [event["choices"][0]["token_ids"] for event in events if "token_ids" in event["choices"][0]]
    assert sum(ids, []) == whole["token_ids"] and all(len(some) >= 6 for some in ids[1:-1])
    assert len(ids[0]) < 6  # the first leaves at once, with what has come by then
    content = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert content == whole["message"]["content"]
