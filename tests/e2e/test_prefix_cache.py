"""Prompts that begin alike: computed once, transferred once, answered as if they were new."""

import pytest

from conftest import ask, client_of, text_of

STORY = "A ship sails from Lisbon with 17 sailors, 23 barrels of water and a cat. " * 8
BLOCK = 64


@pytest.fixture(scope="module")
def one_decode(start_cluster):
    return start_cluster(n_decode=1)


def complete(client, prompt, **args):
    return client.completions.create(model="nano-r1", prompt=prompt, temperature=0, max_tokens=8,
                                     extra_body={"return_token_ids": True} | args)


def cached(answer):
    return answer.usage.prompt_tokens_details.cached_tokens


def test_the_same_chat_again_is_answered_the_same_from_the_cache(cluster, client):
    first = ask(client, STORY + "How many sailors?", max_tokens=60)
    raw = client.chat.completions.with_raw_response.create(
        model="nano-r1", temperature=0, max_tokens=60,
        messages=[{"role": "user", "content": STORY + "How many sailors?"}])
    again = raw.parse()
    assert cached(first) == 0 and cached(again) == (again.usage.prompt_tokens - 1) // BLOCK * BLOCK > 0
    assert text_of(again) == text_of(first)
    assert raw.headers["x-baton-cached-tokens"] == str(cached(again))


def test_the_next_turn_transfers_and_computes_only_what_is_new(one_decode):
    client, prompt = client_of(one_decode), [300 + i % 700 for i in range(400)]

    def ask_and_count(prompt):
        before = [one_decode.metrics(name) for name in ("prefill-0", "decode-0")]
        answer = complete(client, prompt)
        one_decode.wait_idle()
        after = [one_decode.metrics(name) for name in ("prefill-0", "decode-0")]
        grown = lambda i, name: after[i].value(name) - before[i].value(name)
        return (answer, grown(1, "baton_kv_transfer_bytes_total"), grown(0, "baton_prefill_tokens_total"),
                grown(0, "baton_prefix_cache_hits_total"), grown(1, "baton_prefix_cache_hits_total"))

    first, first_bytes, first_rows, *first_hits = ask_and_count(prompt[:300])
    second, second_bytes, second_rows, *second_hits = ask_and_count(prompt)
    held = 300 // BLOCK * BLOCK
    assert (first_rows, first_hits) == (300, [0, 0])
    assert (second_rows, second_hits) == (400 - held, [held, held])
    assert cached(first) == 0 and cached(second) == held
    assert second_bytes == first_bytes / 300 * (400 - held) > 0
    metrics = one_decode.metrics("decode-0")
    assert metrics.value("baton_kv_blocks", state="used") == 0 < metrics.value("baton_kv_blocks", state="cached")
    assert complete(client, prompt, cache_salt="cold").choices[0].token_ids == second.choices[0].token_ids


def test_another_cache_salt_finds_nothing(cluster, client):
    prompt = [500 + i % 300 for i in range(200)]
    assert [cached(complete(client, prompt, cache_salt=salt)) for salt in ("one", "two", "one")] == [0, 0, 192]
    assert cached(complete(client, prompt)) == 0


def test_without_the_cache_nothing_is_kept(start_cluster):
    off = "--no-enable-prefix-caching"
    one = start_cluster(n_decode=1, prefill=off, decode=off)
    client, prompt = client_of(one), [500 + i % 300 for i in range(200)]
    first, again = complete(client, prompt), complete(client, prompt)
    assert cached(first) == cached(again) == 0 and first.choices[0].token_ids == again.choices[0].token_ids
    assert all(one.metrics(name).value("baton_kv_blocks", state="cached") == 0 for name in one.workers)
