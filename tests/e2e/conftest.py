"""Fixtures: `cluster` (1 prefill, 1 decode group of 2 ranks, 1 gateway) and `pair` (2 + 2 workers, each alone) are
started once and shared; after each test they are healed and must be idle. `client` is the openai client of `cluster`; start_cluster(...) starts one more.
`beside(...)` starts a gateway more for `cluster`; `tls` and `two` are `cluster` through one that speaks HTTPS and through
two that share a port. In the modules of EVERY_WAY_IN, `cluster` is each of the three in turn."""

import re
import subprocess

import openai
import pytest

from cluster import BUILD, SLOW, Beside, Cluster

MODEL_NAME = "nano-r1"
EVERY_WAY_IN = ("test_contract", "test_http")  # what they promise holds for all
SANITIZER = re.compile(r"ERROR: \w+Sanitizer|WARNING: ThreadSanitizer|runtime error:|assertion failed")


def pytest_collection_modifyitems(items):
    for program in ("baton-gateway", "baton-prefill", "baton-decode", "batonctl"):
        if not (BUILD / "bin" / program).exists():
            pytest.exit(f"{BUILD}/bin/{program} is not built", returncode=2)


def pytest_generate_tests(metafunc):
    if metafunc.module.__name__ in EVERY_WAY_IN and "cluster" in metafunc.fixturenames:
        metafunc.parametrize("cluster", ["plain", "tls", "two"], indirect=True)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.failed:  # show what the cluster said
        for fixture in ("cluster", "pair"):
            one = item.funcargs.get(fixture)
            for name in one.names if one else ():
                report.sections.append((f"end of {name}.log", "".join(one.log(name).splitlines(True)[-12:])))


@pytest.fixture(scope="session")
def start_cluster(tmp_path_factory):
    started = []

    def start(**args):
        one = Cluster(tmp_path_factory.mktemp("run"), **args)
        started.append(one)
        return one

    yield start
    for one in started:
        one.down()
    refuse_complaints(started)


def refuse_complaints(started):
    complaints = [f"{name}: {line}" for one in started for name in one.names for line in one.log(name).splitlines()
                  if SANITIZER.search(line)]
    assert not complaints, "\n".join(complaints[:20])


@pytest.fixture(scope="session")
def shared_cluster(start_cluster):
    """At debug level: what is looked for in its logs is not there for want of words."""
    return start_cluster(**{role: "--log-level debug" for role in ("prefill", "decode", "gateway")})


@pytest.fixture(scope="session")
def shared_pair(start_cluster):
    return start_cluster(n_prefill=2, n_decode=2, decode_ep=1, gateway="--enable-tokenizer-info-endpoint",
                         prefill="--labels zone=a,gpu=none", decode="--labels zone=a")


def lend(one):
    yield one
    one.heal()
    one.wait_idle()


@pytest.fixture(scope="session")
def beside(shared_cluster, tmp_path_factory):
    started = []

    def start(*flags, **args):
        one = Beside(shared_cluster, tmp_path_factory.mktemp("beside"), *flags, **args)
        started.append(one)
        return one

    yield start
    for one in started:  # all at once, for each takes its time
        one.terminate()
    for one in started:
        one.close()
    refuse_complaints(started)


def make_certificate(folder):
    """(certificate, key), fresh, for 127.0.0.1."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days",
                    "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out",
                    certificate], check=True, capture_output=True)
    return certificate, key


@pytest.fixture(scope="session")
def shared_tls(beside, tmp_path_factory):
    certificate, key = make_certificate(tmp_path_factory.mktemp("tls"))
    return beside("--ssl-certfile", certificate, "--ssl-keyfile", key, certificate=certificate)


@pytest.fixture(scope="session")
def shared_two(beside):
    return beside(n_gateways=2)


@pytest.fixture
def cluster(shared_cluster, request):
    way_in = getattr(request, "param", "plain")
    yield from lend(shared_cluster if way_in == "plain" else request.getfixturevalue(f"shared_{way_in}"))


@pytest.fixture
def tls(shared_tls):
    yield from lend(shared_tls)


@pytest.fixture
def two(shared_two):
    yield from lend(shared_two)


@pytest.fixture
def pair(shared_pair):
    yield from lend(shared_pair)


def client_of(one, gateway="gateway-0", **args):
    return openai.OpenAI(base_url=one.url(gateway) + "/v1", api_key="none", timeout=60 * SLOW, max_retries=0, **args)


@pytest.fixture
def client(cluster):
    return client_of(cluster)


def ask(client, question, **args):
    """One user message, greedy; the answer, whole."""
    args = {"model": MODEL_NAME, "temperature": 0, "max_tokens": 400} | args
    return client.chat.completions.create(messages=[{"role": "user", "content": question}], **args)


def text_of(answer):
    """(reasoning, content) of an answer."""
    message = answer.choices[0].message
    return getattr(message, "reasoning_content", None) or "", message.content or ""


def text_of_stream(stream):
    """(reasoning, content, finish_reason) of a stream."""
    reasoning, content, finish = "", "", None
    for chunk in stream:
        for choice in chunk.choices:
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            content += choice.delta.content or ""
            finish = choice.finish_reason or finish
    return reasoning, content, finish
