"""Simulated workers, more than the machine would bear of real ones."""

import sys

import pytest

from cluster import ROOT
from conftest import ask, client_of, text_of
from test_failures import LONG, Background, worker_of

sys.path.insert(0, str(ROOT / "bench"))
import scale  # noqa: E402


@pytest.fixture(scope="module")
def simulated(start_cluster, tmp_path_factory):
    return start_cluster(**scale.counting_args(tmp_path_factory.mktemp("limits")))


@pytest.mark.parametrize("strategy", ["least-request", "prefix-cache"])
def test_many_requests_leave_books_that_agree(simulated, strategy):
    """How even to a hair, and how often a beginning is asked for while it is computed, depends on the machine."""
    found = scale.measure(simulated, 500, strategy, seed=len(strategy), even=2, near=0.9)
    assert not found.wrong, "\n".join(found.wrong + found.facts)


def test_a_simulated_answer_outlives_its_worker(simulated):
    client = client_of(simulated)
    long = {**LONG, "max_tokens": 200, "temperature": 1, "seed": 7}
    running = Background(lambda: client.completions.create(**long))
    simulated.kill(worker_of(simulated, "decode"))
    answer = running.result().choices[0].token_ids
    again = client.completions.create(**long, logprobs=2).choices[0]  # drawn from the whole vocabulary
    assert len(answer) == 200 and answer == again.token_ids


def test_a_simulated_chat_thinks_and_then_answers(simulated):
    client = client_of(simulated)
    answers = [text_of(ask(client, question, extra_body={"ignore_eos": True}, max_tokens=100)) for question in "ABCD"]
    assert any(reasoning for reasoning, _ in answers)  # a fourth of all thoughts ends at once
    assert all(reasoning.isprintable() and content.isprintable() and content for reasoning, content in answers)
