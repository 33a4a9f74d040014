"""A decode worker that has far too little KV memory: sequences give way and are computed again, and nobody notices."""

from concurrent.futures import ThreadPoolExecutor

from conftest import client_of

N_BLOCKS, N_REQUESTS, N_PROMPTS = 20, 32, 8
BLOCK_BYTES = 6 * 64 * (512 + 64) * 2  # nano-r1: layers, tokens, latent and rotated key, bfloat16


def complete(client, i, salt):
    prompt = [100 + (i * 131 + k * (i + 3)) % 1800 for k in range(60 + i * 5)]
    answer = client.completions.create(model="nano-r1", prompt=prompt, temperature=0, max_tokens=160,
                                       extra_body={"ignore_eos": True, "return_token_ids": True, "cache_salt": salt})
    assert answer.choices[0].finish_reason == "length"
    return answer.choices[0].token_ids


def test_more_requests_than_blocks_all_end_with_the_same_tokens_as_alone(start_cluster):
    one = start_cluster(n_decode=1, decode=f"--kv-cache-memory-bytes {N_BLOCKS * BLOCK_BYTES}")
    client = client_of(one)
    assert one.metrics("decode-0").value("baton_kv_blocks", state="total") == N_BLOCKS
    alone = [complete(client, i, "alone") for i in range(N_PROMPTS)]
    assert one.metrics("decode-0").value("baton_preemptions_total") == 0
    with ThreadPoolExecutor(N_REQUESTS) as pool: # no salt twice: nobody shares blocks
        together = list(pool.map(lambda i: complete(client, i % N_PROMPTS, f"{i}"), range(N_REQUESTS)))
    assert together == alone * (N_REQUESTS // N_PROMPTS)
    one.wait_idle()
    metrics = one.metrics("decode-0")
    assert metrics.value("baton_preemptions_total") > 0 < metrics.value("baton_recomputed_tokens_total")
    assert one.metrics().value("baton_requests_total", outcome="length") == N_PROMPTS + N_REQUESTS
