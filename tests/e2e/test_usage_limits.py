"""Limits per minute, which two gateways count together; and who would wait too long."""

import sys
import threading
import time

import openai
import pytest

from cluster import ROOT, wait_for
from conftest import client_of, lend

sys.path.insert(0, str(ROOT / "bench"))
import scale  # noqa: E402

# Each of these is one test's user.
LIMITS = """user rpm-10 10 -
user tpm-9 - 9
user rpm-1 1 -
user refused 1 -
"""


@pytest.fixture(scope="module")
def two_gateways(start_cluster, tmp_path_factory):
    limits = tmp_path_factory.mktemp("limits") / "limits"
    limits.write_text(LIMITS)
    args = scale.cluster_args(n_gateways=2, n_prefill=1, n_decode=1)
    return start_cluster(**args | {"gateway": f"{args['gateway']} --limits-file {limits}"})


@pytest.fixture
def simulated(two_gateways):
    yield from lend(two_gateways)


def in_one_minute(story):
    """Tells it again if a minute ended meanwhile: with it counts begin anew."""
    minute = time.time() // 60
    try:
        story()
    except AssertionError:
        if time.time() // 60 == minute:
            raise
        story()


def ask_as(client, user):
    """None, or the error: it was let in, or refused."""
    try:
        client.completions.create(model="nano-r1", prompt=list(range(10, 20)), max_tokens=1,
                                  extra_headers={"user": user} if user else None)
    except openai.RateLimitError as error:
        return error


def n_admitted(client, user, at_most):
    """How many are let in before one is refused."""
    for n in range(at_most + 1):
        if ask_as(client, user):
            return n
    pytest.fail(f"{at_most + 1} of {user} were let in")


def test_a_refusal_says_why_and_when_to_come_back(simulated):
    client = client_of(simulated)

    def story():
        ask_as(client, "rpm-1")
        error = ask_as(client, "rpm-1")
        assert error.status_code == 429 and error.type == "RateLimitError" and "exceeded RPM: 1" in error.message
        headers = error.response.headers
        assert headers["x-error-rpm-exceeded"] == "true" and headers["x-baton-reason"] == "requests_per_minute"
        assert 1 <= int(headers["retry-after"]) <= 60
        assert simulated.metrics().value("baton_refused_total", reason="requests_per_minute") >= 1
        for user in ("somebody-else", None):
            assert not ask_as(client, user) and not ask_as(client, user)

    in_one_minute(story)


def test_what_is_refused_is_not_counted(simulated):
    client = client_of(simulated)
    for _ in range(3):
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="nano-r1", prompt="Hi", max_tokens=10**7, extra_headers={"user": "refused"})
    assert ask_as(client, "refused") is None


def test_requests_count_at_every_gateway_also_one_that_starts(simulated):
    def story():
        assert n_admitted(client_of(simulated), "rpm-10", 10) <= 10
        assert n_admitted(client_of(simulated, "gateway-1"), "rpm-10", 10) < 10, "it heard of the other's"
        simulated.kill("gateway-1")
        simulated.heal()
        assert n_admitted(client_of(simulated, "gateway-1"), "rpm-10", 10) < 10, "it read what was used"

    in_one_minute(story)


def test_tokens_count_at_every_gateway(simulated):
    clients = [client_of(simulated, gateway) for gateway in simulated.gateways]

    def story():
        ask_as(clients[0], "tpm-9")  # 10 of the prompt
        for client in clients:
            error = wait_for(lambda: ask_as(client, "tpm-9"), 10, "each gateway refuses")
            assert error.response.headers["x-error-tpm-exceeded"] == "true"

    in_one_minute(story)


def test_who_would_wait_too_long_is_told_at_once_and_nobody_is_when_nobody_waits(simulated):
    client = client_of(simulated)
    crowd = threading.Event()

    def ask(n_tokens, **headers):
        try:
            client.completions.create(model="nano-r1", prompt=[7] * n_tokens, max_tokens=1, extra_headers=headers)
        except openai.InternalServerError as error:
            return error

    def keep_asking():
        while not crowd.is_set():
            assert not ask(4000)

    threads = [threading.Thread(target=keep_asking) for _ in range(3)]
    for thread in threads:
        thread.start()
    error = wait_for(lambda: ask(10, **{"x-baton-ttft-ms": "1"}), 10, "one meets the crowd")
    assert error.status_code == 503 and error.response.headers["x-baton-reason"] == "predicted_ttft"
    assert 1 <= int(error.response.headers["retry-after"]) <= 60
    assert not ask(10, **{"x-baton-ttft-ms": "60000"})
    crowd.set()
    for thread in threads:
        thread.join()
    assert not ask(10, **{"x-baton-ttft-ms": "1"})
    assert simulated.metrics().value("baton_refused_total", reason="predicted_ttft") >= 1
