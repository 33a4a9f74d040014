"""The HTTP edge from outside, on raw sockets: what is refused and how, what clients may do to a connection, and that
none of it hurts anybody else. The contract's numbers: status, the four keys of the error, param, headers."""

import http.client
import json
import socket
import time
from urllib.parse import urlparse

import pytest

from cluster import SLOW, wait_for
from conftest import MODEL_NAME

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


def call(cluster, method, path, body=None, headers=None):
    """(status, headers, body bytes) of one request on a connection of its own."""
    url = urlparse(cluster.url())
    connection = http.client.HTTPConnection(url.hostname, url.port)
    connection.sock = cluster.connect(60)
    if isinstance(body, (dict, list)):
        body = json.dumps(body)
    headers = {"Content-Type": "application/json"} | (headers or {})
    connection.request(method, path, body, {k: v for k, v in headers.items() if v is not None})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, {k.lower(): v for k, v in answer.getheaders()}, data


def post(cluster, body, path="/v1/chat/completions", headers=None):
    return call(cluster, "POST", path, body, headers)


def raw(cluster, *pieces, seconds=20):
    """Sends bytes, reads until the server closes or a whole answer with a length is there."""
    connection = cluster.connect(seconds)
    out = b""
    try:
        for piece in pieces:
            connection.sendall(piece)
        while True:
            data = connection.recv(65536)
            out += data
            head, _, body = out.partition(b"\r\n\r\n")
            length = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
            if not data or (length and len(body) >= int(length[0])):
                return out
    finally:
        connection.close()


def error_of(data):
    error = json.loads(data)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"] and isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    return error


def assert_serves(cluster):
    status, _, data = post(cluster, CHAT)
    assert status == 200, data


# ---- what is refused

BAD_BODIES = {
    "empty": b"", "list": b"[]", "string": b'"x"', "cut": b'{"a":', "deep": b"[" * 10000 + b"]" * 10000,
    "deep in an object": b'{"messages":' + b"[" * 10000 + b"]" * 10000 + b"}",
    "not UTF-8": b'{"messages":[{"role":"user","content":"\xff"}]}', "NUL byte": b'{"messages":\0[]}',
    "NaN": b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}',
    "Infinity": b'{"messages":[{"role":"user","content":"x"}],"temperature":-Infinity}',
    "comment": b'{"messages":[] /* x */}', "many values": b"[" + b"0," * 2200000 + b"0]",
}


@pytest.mark.parametrize("name", BAD_BODIES)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_body_that_is_no_request_is_a_400(cluster, name, path):
    status, headers, data = post(cluster, BAD_BODIES[name], path)
    assert status == 400 and headers["content-type"] == "application/json"
    assert error_of(data)["code"] == 400
    assert_serves(cluster)


@pytest.mark.parametrize("content", ["a\0b", "\ud800", "\udc00x", "\U0001f600", "\u2028\u2029\u0085", " " * 5000])
def test_strange_text_is_served(cluster, content):
    body = json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 2})
    assert post(cluster, body)[0] == 200


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("field, value, param", [
    ("messages", None, "messages"), ("messages", "x", "messages"), ("messages", [], "messages"),
    ("messages", [{}], "messages"), ("temperature", -1, "temperature"), ("temperature", "hot", "temperature"),
    ("top_p", 1.1, "top_p"), ("top_k", -2, "top_k"), ("min_p", 2, "min_p"), ("max_tokens", 0, "max_tokens"),
    ("max_tokens", 5.5, "max_tokens"), ("n", 0, "n"), ("n", 129, "n"), ("seed", 2**63, "seed"), ("stop", [""], "stop"),
    ("logit_bias", {"abc": 1}, "logit_bias"), ("top_logprobs", 2, "top_logprobs"), ("tool_choice", "foo", "tool_choice"),
    ("response_format", {"type": "xml"}, "response_format"), ("min_tokens", 3, "min_tokens"),
])
def test_a_wrong_field_is_named(cluster, stream, field, value, param):
    status, headers, data = post(cluster, CHAT | {"stream": stream, field: value})
    assert status == 400 and headers["content-type"] == "application/json"
    assert error_of(data)["param"] == param


def test_too_long_a_prompt_says_how_long_it_may_be(cluster):
    limit = json.loads(call(cluster, "GET", "/v1/models")[2])["data"][0]["max_model_len"]
    for prompt, max_tokens in ([5] * (limit + 1), 1), ([5] * (limit - 10), 20):
        for is_stream in (False, True):
            body = {"prompt": prompt, "max_tokens": max_tokens, "stream": is_stream}
            status, headers, data = post(cluster, body, "/v1/completions")
            error = error_of(data)
            assert status == 400 and headers["content-type"] == "application/json" and error["param"] == "input_tokens"
            assert f"maximum context length is {limit} tokens" in error["message"]


def test_paths_and_methods_and_models_that_do_not_exist(cluster):
    for method, path, want in (("POST", "/nope", 404), ("GET", "/v1/models/none", 404), ("GET", "/v1/embeddings", 404)):
        status, _, data = call(cluster, method, path)
        assert status == want and error_of(data)
    status, headers, data = call(cluster, "GET", "/v1/chat/completions")
    assert status == 405 and headers["allow"] == "POST" and error_of(data)
    status, headers, data = post(cluster, CHAT | {"model": "nope"})
    assert status == 404 and error_of(data)["param"] == "model" and headers["x-error-no-model-backends"] == "nope"
    for model in (None, "", MODEL_NAME):
        assert post(cluster, CHAT | {"model": model})[0] == 200


def test_an_unknown_strategy_is_a_400_with_aibrix_headers(cluster):
    for is_stream in (False, True):
        status, headers, data = post(cluster, CHAT | {"stream": is_stream}, headers={"routing-strategy": "bogus"})
        assert status == 400 and "incorrect routing strategy bogus" in error_of(data)["message"]
        assert headers["x-error-routing"] == "true" and "x-error-invalid-routing-strategy" in headers
    status, headers, _ = post(cluster, CHAT, headers={"routing-strategy": "random"})
    assert status == 200 and headers["routing-strategy"] == "random" == headers["x-baton-strategy"]


def test_content_types(cluster):
    for kind, want in ((None, 200), ("application/json; charset=utf-8", 200), ("application/vnd.api+json", 200),
                       ("text/plain", 400), ("application/x-www-form-urlencoded", 400)):
        assert post(cluster, CHAT, headers={"Content-Type": kind})[0] == want, kind
    assert post(cluster, CHAT, headers={"Content-Encoding": "gzip"})[0] == 415


# ---- the frame around it

def test_a_body_over_the_limit_is_a_413_and_nothing_is_kept(cluster):
    def memory():
        status = open(f"/proc/{cluster.pid('gateway-0')}/status").read()
        return int(status.split("VmRSS:")[1].split()[0])

    before = memory()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n"
    chunks = [b"%x\r\n" % 65536 + b"x" * 65536 + b"\r\n"] * 700
    for pieces in ([head], [head] + [b"x" * 1000000] * 100,
                   [b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"] + chunks):
        answer = raw(cluster, *pieces)
        assert answer.startswith(b"HTTP/1.1 413 "), answer[:100]
        assert error_of(answer.partition(b"\r\n\r\n")[2])["code"] == 413
    assert memory() - before < 100 << 10 or SLOW > 1
    assert_serves(cluster)


@pytest.mark.parametrize("lines", [b"X-Long: " + b"a" * 70000, b"X-Long: " + b"a" * 2000000,
                                   b"\r\n".join(b"X-%d: a" % i for i in range(200))], ids=["70 kB", "2 MB", "200 lines"])
def test_headers_over_the_limit_are_a_431(cluster, lines):
    answer = raw(cluster, b"GET /health HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ") and error_of(answer.partition(b"\r\n\r\n")[2])["code"] == 431
    assert_serves(cluster)


@pytest.mark.parametrize("line", [b"GARBAGE\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\n\n", b"GET / HTTP/9.9\r\n\r\n",
                                  b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
def test_what_is_not_http_is_a_400(cluster, line):
    answer = raw(cluster, line)
    assert answer.startswith(b"HTTP/1.1 400 ") and error_of(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("head", [
    b"Content-Length: -5", b"Content-Length: 99999999999999999999999", b"Content-Length: x",
    b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
])
def test_broken_framing_is_a_400(cluster, head):
    answer = raw(cluster, b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert error_of(answer.partition(b"\r\n\r\n")[2])
    assert_serves(cluster)


def test_a_content_length_that_is_too_short_is_a_400(cluster):
    body = json.dumps(CHAT).encode()
    answer = raw(cluster, b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n" + body)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert_serves(cluster)


def test_chunked_bodies_expect_and_pipelines_work(cluster):
    body = json.dumps(CHAT).encode()
    post_line = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    assert raw(cluster, post_line + chunked).startswith(b"HTTP/1.1 200 ")
    expect = raw(cluster, post_line + b"Expect: 100-continue\r\nConnection: close\r\n"
                 b"Content-Length: %d\r\n\r\n" % len(body), body)
    assert expect.startswith(b"HTTP/1.1 100 ") and b"HTTP/1.1 200 " in expect
    body = json.dumps(CHAT | {"metadata": {"x": "y" * (2 << 20)}}).encode()
    connection = cluster.connect()
    connection.sendall(post_line + b"Expect: 100-continue\r\nConnection: close\r\n"
                       b"Content-Length: %d\r\n\r\n" % len(body))
    with connection.makefile("rb") as answers:  # as curl sends it: the body once it is asked for
        assert answers.readline().startswith(b"HTTP/1.1 100 ") and answers.readline() == b"\r\n"
        connection.sendall(body)
        assert answers.readline().startswith(b"HTTP/1.1 200 ")
    connection.close()
    connection = cluster.connect()
    connection.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
                       b"GET /load HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    with connection.makefile("rb") as answers:
        assert answers.read().count(b"HTTP/1.1 200 ") == 2


def test_request_ids_are_echoed_if_they_are_sane(cluster):
    status, headers, data = post(cluster, CHAT, headers={"X-Request-Id": "abc-1"})
    assert status == 200 and headers["x-request-id"] == headers["request-id"] == "abc-1"
    assert json.loads(data)["id"] == "chatcmpl-abc-1"
    seen = set()
    for bad in ("x" * 300, 'a"b', "a b", None):
        _, headers, _ = post(cluster, CHAT, headers={"X-Request-Id": bad})
        assert headers["x-request-id"] != bad
        seen.add(headers["x-request-id"])
    assert len(seen) == 4


def test_browsers_get_their_preflight(cluster):
    status, headers, _ = call(cluster, "OPTIONS", "/v1/chat/completions", headers={
        "Origin": "http://x", "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-stainless-os, authorization"})
    assert status == 200 and headers["access-control-allow-origin"] == "*"
    assert "x-stainless-os" in headers["access-control-allow-headers"]
    status, headers, _ = post(cluster, b"{", headers={"Origin": "http://x"})
    assert status == 400 and headers["access-control-allow-origin"] == "*"


# ---- streams

def events_of(data):
    """The events of a stream without an error, which has what every such stream has."""
    assert b"\r" not in data
    events = data.split(b"\n\n")
    assert events.pop() == b"" and events[-1] == b"data: [DONE]"
    assert all(event.startswith((b"data: ", b":")) and b"\n" not in event for event in events)
    events = [json.loads(event[6:]) for event in events[:-1] if event.startswith(b"data: ")]
    (id, created, model, kind), = {(e["id"], e["created"], e["model"], e["object"]) for e in events}
    assert isinstance(created, int) and model == MODEL_NAME
    assert id.startswith({"chat.completion.chunk": "chatcmpl-", "text_completion": "cmpl-"}[kind])
    choices = [choice for event in events for choice in event["choices"]]
    assert all("finish_reason" in choice and "logprobs" in choice for choice in choices)
    ended = [choice["index"] for choice in choices if choice["finish_reason"]]
    assert sorted(ended) == sorted({choice["index"] for choice in choices}), "each choice ends once"
    return events


def stream_of(cluster, body, path="/v1/chat/completions"):
    """The events of the answer to `body`, as a stream."""
    status, headers, data = post(cluster, body | {"stream": True}, path)
    assert status == 200 and headers["content-type"].startswith("text/event-stream"), data
    return events_of(data)


def test_the_events_of_a_stream_have_the_shape_that_clients_need(cluster):
    body = CHAT | {"stream": True, "max_tokens": 20, "temperature": 0, "stream_options": {"include_usage": True}}
    status, headers, data = post(cluster, body)
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    assert headers["x-baton-prefill"] == "prefill-0" and headers["x-baton-decode"].startswith("decode-")
    events = events_of(data)
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == 20
    assert events[-2]["choices"][0]["delta"] == {} and events[-2]["choices"][0]["finish_reason"] == "length"
    for event in events[:-2]:
        choice = event["choices"][0]
        assert choice["finish_reason"] is None and choice["logprobs"] is None and "usage" not in event
        assert ("role" in choice["delta"]) == (event is events[0])
    whole = json.loads(post(cluster, {k: v for k, v in body.items() if not k.startswith("stream")})[2])
    joined = "".join(e["choices"][0]["delta"].get("reasoning", "") for e in events[:-1])
    assert joined == whole["choices"][0]["message"]["reasoning"]
    assert events[-1]["usage"] == whole["usage"]


def test_several_prompts_are_several_choices(cluster):
    body = {"prompt": ["17 +", "The sum", "4"], "max_tokens": 5, "temperature": 0, "ignore_eos": True}
    whole = json.loads(post(cluster, body, "/v1/completions")[2])
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert whole["usage"]["completion_tokens"] == 15
    texts, ends = ["", "", ""], [0, 0, 0]
    for event in stream_of(cluster, body, "/v1/completions"):
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
            ends[choice["index"]] += choice["finish_reason"] is not None
    assert texts == [choice["text"] for choice in whole["choices"]] and ends == [1, 1, 1]


def test_echo_gives_the_prompt_back(cluster):
    body = {"prompt": "17 + 4", "max_tokens": 0, "echo": True}
    choice = json.loads(post(cluster, body, "/v1/completions")[2])["choices"][0]
    assert choice["text"] == "17 + 4" and choice["finish_reason"] == "length"
    assert stream_of(cluster, body, "/v1/completions")[0]["choices"][0]["text"] == "17 + 4"
    body |= {"max_tokens": 3, "temperature": 0, "ignore_eos": True}
    longer = json.loads(post(cluster, body, "/v1/completions")[2])
    alone = json.loads(post(cluster, body | {"echo": False}, "/v1/completions")[2])["choices"][0]["text"]
    assert longer["choices"][0]["text"] == "17 + 4" + alone and longer["usage"]["completion_tokens"] == 3
    assert "".join(e["choices"][0]["text"] for e in stream_of(cluster, body, "/v1/completions")) == "17 + 4" + alone


def test_a_stop_string_never_shows(cluster):
    body = {"prompt": "17 + 4 =", "max_tokens": 30, "temperature": 0, "ignore_eos": True}
    text = json.loads(post(cluster, body, "/v1/completions")[2])["choices"][0]["text"]
    stop = text[len(text) // 2:][:3]
    cut = json.loads(post(cluster, body | {"stop": stop}, "/v1/completions")[2])["choices"][0]
    assert cut["text"] == text[:text.index(stop)] and cut["finish_reason"] == "stop" and cut["stop_reason"] == stop
    streamed = stream_of(cluster, body | {"stop": [stop]}, "/v1/completions")
    assert "".join(e["choices"][0]["text"] for e in streamed) == cut["text"]
    kept = json.loads(post(cluster, body | {"stop": stop, "include_stop_str_in_output": True}, "/v1/completions")[2])
    assert kept["choices"][0]["text"] == cut["text"] + stop


def test_metrics_add_up_under_both_sets_of_names(cluster):
    if cluster.shares_port:
        pytest.skip("each gateway counts for itself")
    names = {"baton_requests_total": {"outcome": "length"}, "vllm:request_success_total": {"finished_reason": "length"},
             "vllm:prompt_tokens_total": {}, "vllm:generation_tokens_total": {}, "baton_output_tokens_total": {},
             "vllm:time_to_first_token_seconds_count": {}, "vllm:e2e_request_latency_seconds_count": {}}
    times = [f"vllm:{part}_seconds_sum" for part in ("e2e_request_latency", "request_queue_time",
                                                     "request_prefill_time", "request_decode_time")]
    before = cluster.metrics()
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
        assert before.has(name)
    usages = [json.loads(post(cluster, CHAT | {"max_tokens": n, "ignore_eos": True})[2])["usage"] for n in (1, 2, 7)]
    after = cluster.metrics()
    grown = {name: after.value(name, **labels) - before.value(name, **labels) for name, labels in names.items()}
    prompt, output = (sum(u[k] for u in usages) for k in ("prompt_tokens", "completion_tokens"))
    assert output == 10 and list(grown.values()) == [3, 3, prompt, output, output, 3, 3], grown
    whole, *parts = (after.value(name) - before.value(name) for name in times)
    assert whole > 0 and sum(parts) == pytest.approx(whole, rel=0.01)


# ---- connections

def test_clients_that_vanish_by_the_hundred_leave_nothing(cluster):
    payload = json.dumps(CHAT | {"max_tokens": 4000, "ignore_eos": True, "stream": True}).encode()
    request = (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
               b"Content-Length: %d\r\n\r\n" % len(payload)) + payload
    connections = []
    for i in range(120):
        connection = cluster.connect()
        connection.sendall(request[:len(request) - (i % 3 == 0) * 7])  # every third never finishes its request
        connections.append(connection)
    time.sleep(0.2)  # the moment is the test's input
    for i, connection in enumerate(connections):
        if i % 2:  # half of them reset instead of closing
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
    cluster.wait_idle()
    assert_serves(cluster)


def test_a_client_that_reads_slowly_does_not_delay_others(cluster):
    payload = json.dumps({"prompt": [100, 101], "max_tokens": 4000, "ignore_eos": True, "stream": True}).encode()
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    url = urlparse(cluster.url())
    slow.connect((url.hostname, url.port))
    slow = cluster.tls.wrap_socket(slow, server_hostname=url.hostname) if cluster.tls else slow
    slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(payload) + payload)
    wait_for(lambda: cluster.metrics().value("baton_requests_running") >= 1, 10, "the slow one runs")
    began = time.monotonic()
    assert_serves(cluster)
    assert time.monotonic() - began < 5 * SLOW
    slow.close()
    cluster.wait_idle()


def test_keys_are_asked_for_when_there_are_any(start_cluster):
    one = start_cluster(n_decode=1, gateway="--api-key sesame,second --http-read-ms 1000 --max-concurrent-requests 2")
    for key, want in ((None, 401), ("Bearer wrong", 401), ("Basic sesame", 401), ("Bearer sesam", 401),
                      ("bearer sesame", 200), ("Bearer second", 200)):
        status, headers, data = post(one, CHAT, headers={"Authorization": key})
        assert status == want, key
        if want == 401:
            assert error_of(data)["param"] == "api_key" and headers["www-authenticate"] == "Bearer"
    assert one.get("/health")[0] == 200 and one.get("/metrics")[0] == 200 and one.get("/version")[0] == 200

    # a request that never arrives whole is told so and dropped
    answer = raw(one, b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{\"a\"")
    assert answer.startswith(b"HTTP/1.1 408 ")

    # more at once than allowed is a 503 that says when to come back
    payload = json.dumps({"prompt": [100], "max_tokens": 4000, "ignore_eos": True}).encode()
    busy = []
    for _ in range(2):
        busy.append(one.connect())
        busy[-1].sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sesame\r\n"
                         b"Content-Length: %d\r\n\r\n" % len(payload) + payload)
    wait_for(lambda: one.metrics().value("baton_requests_running") == 2, 10, "both run")
    status, headers, data = post(one, CHAT, headers={"Authorization": "Bearer sesame"})
    assert status == 503 and int(headers["retry-after"]) >= 1 and error_of(data)["code"] == 503
    for connection in busy:
        connection.close()
    wait_for(lambda: post(one, CHAT, headers={"Authorization": "Bearer sesame"})[0] == 200, 5, "room again")
