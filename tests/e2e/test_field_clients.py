"""What clients in the field send, as their code sends it, and of the answers what their code reads; no more is judged
here. Written from the code of these, which tests do not install:

  Open WebUI 0.12.4   open_webui/routers/openai.py (headers, bodies), utils/middleware.py (how streams are read),
                      utils/misc.py (tool calls sent back), routers/tasks.py (titles, tags, ...), utils/payload.py
  openai-node 5, 6    src/client.ts (headers, retries), src/core/streaming.ts, src/lib/ChatCompletionStream.ts
  langchain-openai    1.7.3, over openai-python 3.54.0: bodies as they were on the wire
"""

import base64
import json

import pytest

from conftest import MODEL_NAME
from test_http import call, post
from test_tools import QUESTION, TIME, WEATHER

ASKED = {"role": "user", "content": "What is 12 + 30?"}
IMAGE = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(64)).decode()


def lines_of(data):
    """A stream, line by line, without blank ones."""
    return [line for line in data.decode().split("\n") if line.strip()]


def merge_calls(calls, deltas):
    """As Open WebUI and openai-node: found by index; id, type and name replace, arguments add up."""
    for delta in deltas:
        one = calls.setdefault(delta["index"], {"id": None, "type": None, "name": "", "arguments": ""})
        function = delta.get("function") or {}
        for key, value in (("id", delta.get("id")), ("type", delta.get("type")), ("name", function.get("name"))):
            one[key] = value or one[key]
        one["arguments"] += function.get("arguments") or ""


# ---- Open WebUI

WEBUI = {"Accept": "*/*", "Accept-Encoding": "gzip, deflate, br, zstd", "User-Agent": "Python/3.11 aiohttp/3.13.2",
         "Authorization": "Bearer sk-none", "X-OpenWebUI-User-Name": "J%C3%B8rgen %C3%85", "X-OpenWebUI-User-Id":
         "6f0c1b1e-6a3f-4b67-8f0a-6f2d1f0f2a11", "X-OpenWebUI-User-Email": "j@example.org",
         "X-OpenWebUI-User-Role": "admin", "X-OpenWebUI-Auth-Type": "jwt", "X-OpenWebUI-Chat-Id":
         "c7f9a8f2-1f43-4a49-8f43-0c2ff2a4b2d0"}
# Whatever a user set in the chat's controls goes along, Ollama's parameters too.
CONTROLS = {"temperature": 0.0, "top_p": 0.9, "top_k": 40, "min_p": 0.0, "max_tokens": 200, "seed": 42,
            "frequency_penalty": 0.0, "presence_penalty": 0.0, "stop": ["</answer>"], "logit_bias": {"17": 0.5},
            "reasoning_effort": "medium", "mirostat": 0, "mirostat_eta": 0.1, "mirostat_tau": 5.0, "repeat_last_n": 64,
            "tfs_z": 1, "repeat_penalty": 1.1, "use_mmap": True, "use_mlock": False, "num_keep": 24, "num_ctx": 2048,
            "num_batch": 512, "num_thread": 2, "num_gpu": 0, "think": True, "format": "", "keep_alive": "5m"}
# A tool's specification may be marked as a function itself.
NATIVE_TOOLS = [{"type": "function", "function": {"type": "function"} | tool["function"]} for tool in (WEATHER, TIME)]


def webui_post(cluster, body):
    """A body as its aiohttp gives it back: its json() takes nothing but application/json."""
    status, headers, data = post(cluster, {"model": MODEL_NAME} | body, headers=WEBUI)
    assert status >= 400 or "text/event-stream" not in headers["content-type"]
    assert headers["content-type"].split(";")[0] == "application/json"
    return status, headers, json.loads(data)


class WebuiReader:
    """What it makes of a stream."""

    def __init__(self, data):
        self.reasoning, self.content, self.calls, self.usage, self.finish, self.errors = "", "", {}, {}, None, []
        self.after_message = False
        lines = lines_of(data)
        assert lines[-1] == "data: [DONE]"
        for line in lines[:-1]:
            if line.startswith("data:"):
                self.take(json.loads(line[5:].strip()))
            else:
                assert line.startswith(":"), "other lines are taken for errors, if they are JSON"

    def take(self, chunk):
        assert not {"event", "selected_model_id", "type", "timings"} & set(chunk), "these mean something else to it"
        self.usage = chunk.get("usage") or self.usage
        if not chunk.get("choices"):
            self.errors += [chunk["error"]] if chunk.get("error") else []
            return
        choice = chunk["choices"][0]
        self.finish = choice.get("finish_reason") or self.finish
        delta = choice.get("delta", {})
        assert not delta.get("annotations") and not delta.get("images")
        merge_calls(self.calls, delta.get("tool_calls") or [])
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or delta.get("thinking")
        assert not (reasoning and self.content), "it would be shown above what it follows"
        self.reasoning += reasoning or ""
        self.content += delta.get("content") or ""


def webui_chat(cluster, body):
    body = {"stream": True, "model": MODEL_NAME, "stream_options": {"include_usage": True}} | CONTROLS | body
    status, headers, data = post(cluster, body, headers=WEBUI)
    assert status == 200 and "text/event-stream" in headers["content-type"], data
    return WebuiReader(data)


def test_open_webui_lists_models_with_and_without_its_users_headers(cluster):
    for headers in (WEBUI, {"Authorization": "Bearer ", "Content-Type": None}):
        status, answered, data = call(cluster, "GET", "/v1/models", headers=headers)
        assert status == 200 and answered["content-type"] == "application/json"
        models = json.loads(data)["data"]
        assert [model["id"] for model in models] == [MODEL_NAME]
        assert all(isinstance(model.get("name", ""), str) and not model.get("pipeline") for model in models)


def test_open_webui_streams_a_chat_with_every_control_set(cluster):
    messages = [{"role": "system", "content": "Be brief."}, ASKED]
    read = webui_chat(cluster, {"messages": messages})
    assert read.finish == "stop" and not read.errors and not read.calls
    usage = {"prompt_tokens": int, "completion_tokens": int, "total_tokens": int, "prompt_tokens_details": dict}
    assert all(isinstance(read.usage[key], kind) for key, kind in usage.items())
    status, _, whole = webui_post(cluster, {"messages": messages, "stream": False} | CONTROLS)
    message = whole["choices"][0]["message"]
    assert status == 200 and (read.reasoning, read.content) == (message["reasoning_content"], message["content"])


def test_open_webui_calls_tools_natively_and_sends_their_results_back(cluster):
    history = [{"role": "user", "content": QUESTION}]
    first = webui_chat(cluster, {"messages": history, "tools": NATIVE_TOOLS})
    assert first.finish == "tool_calls" and list(first.calls) == [0]
    made = first.calls[0]
    assert made["id"] and made["name"] == "get_weather" and list(json.loads(made["arguments"])) == ["city"]
    back = [{"role": "assistant", "content": "", "usage": first.usage, "tool_calls": [
                {"id": made["id"], "type": "function", "function": {"name": made["name"], "arguments": made["arguments"]}}]},
            {"role": "tool", "tool_call_id": made["id"], "content": '{"temperature": 21, "sky": "sunny"}'}]
    second = webui_chat(cluster, {"messages": history + back, "tools": NATIVE_TOOLS})
    assert second.finish == "stop" and "21" in second.content and not second.errors


@pytest.mark.parametrize("task", ["title", "emoji"])
def test_open_webui_reads_something_from_its_background_tasks(cluster, task):
    """Titles, tags, follow-ups, queries, autocompletion: one user message, no stream, no parameters; emoji: 4 tokens."""
    limit = {"title": {}, "emoji": {"max_tokens": 4}}[task]
    content = '### Task:\nGenerate a concise title.\n### Output:\nJSON format: { "title": "..." }\n### Chat History:\n' \
              "<chat_history>\nUSER: What is 12 + 30?\nASSISTANT: 42\n</chat_history>"
    status, _, answer = webui_post(cluster, {"messages": [{"role": "user", "content": content}], "stream": False} | limit)
    assert status == 200 and len(answer["choices"]) == 1
    message = answer["choices"][0]["message"]
    assert isinstance(message.get("content") or message.get("reasoning_content", ""), str)


def test_open_webui_continues_an_answer(cluster):
    """By a last message of the assistant; for a server that it takes for llama.cpp also by name, with the thoughts."""
    begun = [ASKED, {"role": "assistant", "content": "12 + 30 is"}]
    assert webui_chat(cluster, {"messages": begun}).finish == "stop"
    begun[1]["reasoning_content"] = "An addition."
    flags = {"continue_final_message": True, "add_generation_prompt": False}
    read = webui_chat(cluster, {"messages": begun} | flags)
    assert read.finish == "stop" and not read.reasoning


@pytest.mark.parametrize("stream", [True, False])
def test_open_webui_shows_why_it_was_refused(cluster, stream):
    picture = {"role": "user", "content": [{"type": "text", "text": "What is this?"},
                                           {"type": "image_url", "image_url": {"url": IMAGE}}]}
    for body, want in (({"messages": [picture]}, 400), ({"messages": [ASKED], "model": "gone"}, 404),
                       ({"messages": [ASKED], "temperature": 9}, 400)):
        status, _, answer = webui_post(cluster, body | {"stream": stream})
        assert status == want and isinstance(answer["error"], dict) and "detail" not in answer["error"]
        assert answer["error"]["message"]


def test_open_webui_is_told_that_a_path_is_not_served(cluster):
    for path in ("/v1/embeddings", "/v1/audio/speech", "/v1/responses", "/v1/images/generations"):
        status, headers, data = post(cluster, {"model": MODEL_NAME, "input": "hi"}, path, WEBUI)
        assert status == 404 and headers["content-type"] == "application/json" and path in json.loads(data)["error"]["message"]


# ---- openai-node

NODE = {"Accept": "application/json", "User-Agent": "OpenAI/JS 6.9.1", "X-Stainless-Retry-Count": "0",
        "X-Stainless-Timeout": "600", "X-Stainless-Lang": "js", "X-Stainless-Package-Version": "6.9.1",
        "X-Stainless-OS": "Linux", "X-Stainless-Arch": "x64", "X-Stainless-Runtime": "node",
        "X-Stainless-Runtime-Version": "v20.20.2", "X-Stainless-Helper-Method": "stream", "Authorization": "Bearer none",
        "OpenAI-Organization": "org-none", "Accept-Language": "*", "Sec-Fetch-Mode": "cors",
        "Accept-Encoding": "gzip, deflate"}


def node_events(data):
    """Its decoder: an event ends with an empty line; `event` must not be there; data may have one blank in front."""
    events = []
    for block in data.decode().split("\n\n")[:-1]:
        fields = [line.partition(":")[::2] for line in block.split("\n") if not line.startswith(":")]
        assert all(name == "data" for name, _ in fields)
        if fields:
            events.append("\n".join(value.removeprefix(" ") for _, value in fields))
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert not any(chunk.get("error") for chunk in chunks)
    return chunks


def node_stream(cluster, body):
    """Choices as its helper puts them together; it throws where this asserts."""
    status, headers, data = post(cluster, {"model": MODEL_NAME, "temperature": 0, "stream": True} | body, headers=NODE)
    assert status == 200 and headers["x-request-id"], data
    whole = {}
    for chunk in node_events(data):
        assert chunk["id"] and chunk["model"] and chunk["created"] and chunk["object"] == "chat.completion.chunk"
        for choice in chunk["choices"]:
            one = whole.setdefault(choice["index"], {"role": None, "content": "", "finish": None, "calls": {}})
            delta = choice["delta"]
            one["role"] = delta.get("role") or one["role"]
            one["content"] += delta.get("content") or ""
            one["finish"] = choice["finish_reason"] or one["finish"]
            merge_calls(one["calls"], delta.get("tool_calls") or [])
    assert list(whole) == list(range(len(whole))), "an index that is skipped is a hole in its array"
    assert all(one["finish"] and one["role"] == "assistant" for one in whole.values())
    return list(whole.values())


def test_openai_node_streams_choices_and_tool_calls(cluster):
    several = node_stream(cluster, {"messages": [ASKED], "n": 3, "temperature": 1, "seed": 3, "max_completion_tokens": 40})
    assert len(several) == 3
    one, = node_stream(cluster, {"messages": [{"role": "user", "content": QUESTION}], "tools": [WEATHER, TIME],
                                 "tool_choice": "auto", "parallel_tool_calls": True,
                                 "stream_options": {"include_usage": True}})
    (made,) = one["calls"].values()
    assert one["finish"] == "tool_calls" and made["type"] == "function" and made["id"] and json.loads(made["arguments"])


def test_openai_node_knows_what_to_ask_again(cluster):
    """It asks again after 408, 409, 429 and 5xx, unless x-should-retry says otherwise; and shows these four."""
    for path, body, want in (("/v1/chat/completions", {"messages": []}, 400), ("/v1/models/gone", None, 404),
                             ("/v1/responses", {"model": MODEL_NAME, "input": "hi"}, 404)):
        status, headers, data = call(cluster, "POST" if body else "GET", path, body, NODE)
        error = json.loads(data)["error"]
        assert status == want and headers.get("x-should-retry") != "true" and headers["x-request-id"]
        assert {"code", "param", "type", "message"} <= set(error)


# ---- LangChain

def langchain(cluster, body, path="/v1/chat/completions"):
    status, _, data = post(cluster, {"model": MODEL_NAME, "temperature": 0.0} | body, path)
    return status, json.loads(data)


def test_langchain_asks_for_one_of_its_tools_and_gets_it(cluster):
    """tool_choice "any" of one tool: it makes a schema's name a tool, and throws when another one is called."""
    _, answer = langchain(cluster, {"stream": False, "messages": [{"content": QUESTION, "role": "user"}], "tools": [WEATHER],
                                    "parallel_tool_calls": False, "tool_choice": "required"})
    choice = answer["choices"][0]
    made, = choice["message"]["tool_calls"]
    assert made["function"]["name"] == "get_weather" and choice["finish_reason"] == "tool_calls"
    back = [{"content": QUESTION, "role": "user"}, {"content": None, "role": "assistant", "tool_calls": [made]},
            {"content": "sunny", "role": "tool", "tool_call_id": made["id"]}]
    assert langchain(cluster, {"stream": False, "messages": back, "tools": [WEATHER]})[0] == 200


def test_langchain_completes_texts_with_every_parameter_spelt_out(cluster):
    """It sends nulls, and a list also for one prompt; it reads these counts and nothing else."""
    status, answer = langchain(cluster, {
        "prompt": ["17 + 4 ="], "frequency_penalty": 0, "logprobs": None, "max_tokens": 8, "n": 1, "presence_penalty": 0,
        "seed": None, "top_p": 1}, "/v1/completions")
    assert status == 200 and len(answer["choices"]) == 1 and isinstance(answer["choices"][0]["text"], str)
    assert {"prompt_tokens", "completion_tokens", "total_tokens"} <= set(answer["usage"])


def test_langchain_is_told_that_structured_output_is_not_there(cluster):
    """Its json_mode and json_schema; its function_calling works."""
    schema = {"schema": {"type": "object", "properties": {}}, "name": "W", "strict": True}
    for kind in ({"type": "json_object"}, {"type": "json_schema", "json_schema": schema}):
        status, answer = langchain(cluster, {"messages": [ASKED], "response_format": kind})
        assert status == 400 and kind["type"] in answer["error"]["message"]
