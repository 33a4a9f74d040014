"""The workers that gateways are measured with: `baton-bench workers`."""

import contextlib
import json
import socket
import subprocess
from types import SimpleNamespace

import pytest

from cluster import BUILD, MODEL, SLOW, Beside, wait_for
from conftest import MODEL_NAME, ask, client_of, text_of, text_of_stream

SAYS = "One fine day. "
FIRST = {"temperature": 0, "max_tokens": 24}


def start(*command):
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)


def stop(process):
    assert process.poll() is None
    process.terminate()
    assert process.wait(20 * SLOW) == 0


def start_workers(run, n_prefill, n_decode):
    """Redis and the workers, which are one process, when it knows them all."""
    path = run / "redis.sock"
    (run / "redis.socket").write_text(str(path))
    redis = start("redis-server", "--port", 0, "--unixsocket", path, "--save", "", "--appendonly", "no")
    workers = start(BUILD / "bin" / "baton-bench", "workers", "--model", MODEL, "--served-model-name", MODEL_NAME,
                    "--redis", f"unix:{path}", "--prefill", n_prefill, "--decode", n_decode, "--text", SAYS)
    count = ["redis-cli", "-s", str(path), "scard", "baton:1:workers"]
    wait_for(lambda: subprocess.run(count, capture_output=True, text=True).stdout.strip() == str(n_prefill + n_decode), 20)
    return redis, workers


@pytest.fixture(scope="module")
def instant(tmp_path_factory):
    run = tmp_path_factory.mktemp("instant")
    redis, workers = start_workers(run, 2, 2)
    names = ["prefill-0", "prefill-1", "decode-0", "decode-1"]
    gateway = Beside(SimpleNamespace(run=run, workers=names, names=names), run)
    yield gateway
    gateway.close()
    stop(workers)
    stop(redis)


def test_instant_workers_that_nobody_uses_stop(tmp_path):
    redis, workers = start_workers(tmp_path, 1, 0)
    stop(workers)
    stop(redis)


def test_instant_workers_say_their_text_over_and_over(instant):
    client = client_of(instant)
    args = {"model": MODEL_NAME, "prompt": "any", **FIRST}
    whole = client.completions.create(**args)
    assert whole.usage.completion_tokens == 24 and (SAYS * 24).startswith(whole.choices[0].text)
    stream = client.completions.create(**args, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
    reasoning, content = text_of(ask(client, "any", **FIRST))
    assert reasoning + content == whole.choices[0].text
    assert text_of_stream(ask(client, "any", stream=True, **FIRST)) == (reasoning, content, "length")


def test_instant_workers_know_prompts_and_outlive_garbage(instant):
    client = client_of(instant)
    prompt = {"model": MODEL_NAME, "prompt": [100] * 200, "max_tokens": 3}
    usages = [client.completions.create(**prompt).usage for _ in range(5)]  # two prefill workers, so a third one knows
    assert max(usage.prompt_tokens_details.cached_tokens for usage in usages) == 192
    for name in ("prefill-0", "decode-1"):
        host, port = json.loads(instant.redis("get", f"baton:1:worker:{name}")[0])["control_address"].split(":")
        with socket.create_connection((host, int(port)), timeout=10 * SLOW) as link:
            link.sendall(b"GET / HTTP/1.1\r\n\r\n" * 99)
            with contextlib.suppress(ConnectionError):
                while link.recv(4096):
                    pass
    assert client.completions.create(**prompt).usage.completion_tokens == 3
