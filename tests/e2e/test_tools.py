"""Tool calls as a client sees them. The bundled model has learnt to call these tools, in DeepSeek's form; it is too small
to name the right city."""

import json
import re

import openai
import pytest

from cluster import MODEL
from conftest import ask, client_of

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Get the current weather for a city.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "description": "The city name"}},
        "required": ["city"]}}}
TIME = {"type": "function", "function": {
    "name": "get_time", "description": "Get the local time in a city.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "description": "The city name"}},
        "required": ["city"]}}}
TOOLS = [WEATHER, TIME]
QUESTION = "What is the weather in Paris?"
EOS, CALLS_END, CALL_BEGIN = "1", "2040", "2041"  # of the latter: <｜tool▁calls▁end｜>, <｜tool▁call▁begin｜>


def named(name):
    return {"type": "function", "function": {"name": name}}


def calls_of(message):
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


def names_a_city(arguments):
    arguments = json.loads(arguments)
    return list(arguments) == ["city"] and isinstance(arguments["city"], str)


def joined(stream):
    """Content, calls as (id, type, name, arguments) and finish_reason of a stream, joined as clients join them."""
    content, calls, finish = "", [], None
    for chunk in stream:
        for choice in chunk.choices:
            content += choice.delta.content or ""
            finish = choice.finish_reason or finish
            for piece in choice.delta.tool_calls or []:
                if piece.index == len(calls):
                    calls.append(["", "", "", ""])
                one = calls[piece.index]
                for i, part in enumerate((piece.id, piece.type, piece.function.name, piece.function.arguments)):
                    one[i] += part or ""
    return content, [tuple(call) for call in calls], finish


def test_check_22_a_model_that_decides_to_call_calls(client):
    answer = ask(client, QUESTION, tools=TOOLS)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls" and message.content is None
    (name, arguments), = calls_of(message)
    assert name == "get_weather" and names_a_city(arguments)
    assert message.tool_calls[0].type == "function" and message.tool_calls[0].id
    assert message.reasoning_content and "tool" not in message.reasoning_content


def test_check_22_a_required_call_needs_no_thought(client):
    answer = ask(client, QUESTION, tools=TOOLS, tool_choice="required")
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls" and message.content is None
    (name, arguments), = calls_of(message)
    assert name == "get_weather" and names_a_city(arguments)


def test_check_22_a_named_call_is_of_that_tool_and_ends_with_stop(client):
    answer = ask(client, QUESTION, tools=TOOLS, tool_choice=named("get_time"))
    assert answer.choices[0].finish_reason == "stop"
    (name, arguments), = calls_of(answer.choices[0].message)
    assert name == "get_time" and names_a_city(arguments)


def test_check_22_without_calls_what_the_model_writes_is_content(client):
    answer = ask(client, QUESTION, tools=TOOLS, tool_choice="none")
    assert answer.choices[0].finish_reason == "stop" and answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content


def test_check_22_a_call_that_is_cut_ends_with_length(client):
    answer = ask(client, QUESTION, tools=TOOLS, tool_choice=named("get_time"), max_tokens=2)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 2
    (name, arguments), = calls_of(answer.choices[0].message)
    assert name == "get_time" and not arguments.endswith("}")


def parallel(client, **args):
    """Calls may not end and begin gladly: the model writes several, though hardly JSON."""
    bias = {EOS: -100, CALLS_END: -100, CALL_BEGIN: 10}
    return ask(client, QUESTION, tools=TOOLS, tool_choice="required", max_tokens=40, logit_bias=bias, **args)


def test_check_22_parallel_calls_and_only_the_first_of_them(client):
    several = calls_of(parallel(client).choices[0].message)
    assert len(several) > 1
    assert calls_of(parallel(client, parallel_tool_calls=False).choices[0].message) == several[:1]


@pytest.mark.parametrize("choice", ["auto", "required", named("get_time")], ids=["auto", "required", "named"])
def test_check_54_a_stream_joins_to_the_whole_answer(client, choice):
    whole = ask(client, QUESTION, tools=TOOLS, tool_choice=choice).choices[0]
    content, calls, finish = joined(ask(client, QUESTION, tools=TOOLS, tool_choice=choice, stream=True))
    assert (content, finish) == (whole.message.content or "", whole.finish_reason)
    assert [call[2:] for call in calls] == calls_of(whole.message)
    assert all(call[0] and call[1] == "function" for call in calls)


def test_check_54_parallel_calls_of_a_stream_are_numbered_and_have_ids_of_their_own(client):
    _, calls, _ = joined(parallel(client, stream=True))
    assert [call[2:] for call in calls] == calls_of(parallel(client).choices[0].message)
    assert len({call[0] for call in calls}) == len(calls) > 1


def test_check_54_the_sdks_own_stream_helper_reads_them(client):
    tools = [tool | {"function": tool["function"] | {"strict": True}} for tool in TOOLS]
    with client.chat.completions.stream(model="nano-r1", temperature=0, max_tokens=400, tools=tools,
                                        messages=[{"role": "user", "content": QUESTION}]) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion().choices[0]
    assert events.count("tool_calls.function.arguments.done") == 1
    assert final.finish_reason == "tool_calls"
    assert list(final.message.tool_calls[0].function.parsed_arguments) == ["city"]


def test_logprobs_are_of_all_tokens_of_a_call(client):
    args = {"tools": TOOLS, "tool_choice": "required", "logprobs": True, "top_logprobs": 1}
    answer = ask(client, QUESTION, **args)
    whole = answer.choices[0].logprobs.content
    assert len(whole) == answer.usage.completion_tokens - 1  # all but the end token
    streamed = [entry for chunk in ask(client, QUESTION, stream=True, **args) for choice in chunk.choices
                for entry in (choice.logprobs.content if choice.logprobs else [])]
    assert [(entry.token, entry.logprob) for entry in streamed] == [(entry.token, entry.logprob) for entry in whole]


def test_check_20_a_tools_answer_goes_back_to_the_model(client):
    question = {"role": "user", "content": QUESTION}
    call = ask(client, QUESTION, tools=TOOLS).choices[0].message
    answer = client.chat.completions.create(
        model="nano-r1", temperature=0, max_tokens=100, tools=TOOLS,
        messages=[question, call.model_dump(), {"role": "tool", "tool_call_id": call.tool_calls[0].id,
                                                "content": '{"temperature": 21, "sky": "sunny"}'}])
    assert "21" in answer.choices[0].message.content and "sunny" in answer.choices[0].message.content


def test_a_model_whose_template_shows_no_tools_is_told_of_them(beside, cluster, tmp_path):
    template = json.loads((MODEL / "tokenizer_config.json").read_text())["chat_template"]
    bare = re.sub(r"{%- if tools -%}.*?{%- endif -%}", "", template, flags=re.S)
    assert "tools" in template and "tools" not in bare
    (tmp_path / "bare.jinja").write_text(bare)
    one = beside("--chat-template", tmp_path / "bare.jinja")
    answer = ask(client_of(one), QUESTION, tools=TOOLS).choices[0]
    (name, arguments), = calls_of(answer.message)
    assert answer.finish_reason == "tool_calls" and name == "get_weather" and names_a_city(arguments)


def test_check_34_what_is_wrong_with_tools_is_a_400(client):
    for bad in ({"tool_choice": "required"}, {"tools": TOOLS, "tool_choice": named("nope")},
                {"tools": TOOLS, "tool_choice": "foo"}):
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as refused:
                ask(client, "hi", max_tokens=1, stream=stream, **bad)
            assert refused.value.param == "tool_choice"
    for good in ({"tools": []}, {"tool_choice": "auto"}, {"tool_choice": "none"}):
        assert ask(client, "hi", max_tokens=1, **good).choices[0].finish_reason == "length"
