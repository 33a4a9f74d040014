#include "bench/batch.h"

#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"

bt_status bench_batch_open(const krn_model_options *options, bench_batch *b, bt_error *err) {
    bt_status status = krn_model_open(options, &b->model, err);
    if (status != BT_OK) return status;
    const mdl_config *c = krn_model_config(b->model);
    b->max_rows = options->max_rows;
    b->max_sequences = options->max_logits;
    b->blocks_each = kv_blocks_for(options->max_positions);
    b->kv.layout = krn_model_kv_layout(b->model, b->blocks_each * b->max_sequences);
    b->kv.base = bt_calloc_aligned(kv_pool_bytes(&b->kv.layout), 64);
    b->logits = bt_calloc((size_t)b->max_sequences * c->vocab_size, sizeof(float));
    b->sequences = bt_calloc(b->max_sequences, sizeof(*b->sequences));
    b->blocks = bt_calloc(b->kv.layout.n_blocks, sizeof(*b->blocks));
    for (uint32_t i = 0; i < b->kv.layout.n_blocks; i++) b->blocks[i] = i;
    if (krn_model_expert_load(b->model) != NULL)
        b->load = bt_calloc((size_t)c->num_hidden_layers * c->n_routed_experts, sizeof(*b->load));
    b->n_ids = options->max_positions;
    b->ids = bt_calloc(b->n_ids, sizeof(*b->ids));
    for (uint32_t i = 0, x = 12345; i < b->n_ids; i++, x = x * 1664525 + 1013904223)
        b->ids[i] = (x >> 8) % c->vocab_size;
    return BT_OK;
}

void bench_batch_close(bench_batch *b) {
    krn_model_close(b->model);
    free(b->kv.base);
    free(b->load);
    free(b->logits);
    free(b->sequences);
    free(b->blocks);
    free(b->ids);
}

/* What a step has visited, from the model's own counters. */
static void count_visits(bench_batch *b) {
    const mdl_config *c = krn_model_config(b->model);
    const _Atomic uint64_t *load = krn_model_expert_load(b->model);
    for (size_t i = 0; load != NULL && i < (size_t)c->num_hidden_layers * c->n_routed_experts; i++) {
        b->n_visits += load[i] != b->load[i];
        b->load[i] = load[i];
    }
    b->n_steps++;
}

double bench_batch_count(bench_batch *b, bool is_counting) {
    const mdl_config *c = krn_model_config(b->model);
    double expert = (double)krn_model_expert_bytes(b->model), others = (double)krn_model_active_bytes(b->model);
    for (uint32_t i = 0; i < c->num_hidden_layers; i++) {
        if (mdl_layer_is_moe(c, i)) others -= expert * c->num_experts_per_tok;
    }
    double cached = (double)kv_token_bytes(&b->kv.layout) * c->num_hidden_layers;
    double n_bytes = others * (double)b->n_steps + expert * (double)b->n_visits + cached * (double)b->n_cached;
    count_visits(b);
    b->n_visits = b->n_steps = b->n_cached = 0;
    b->is_counting = is_counting;
    return n_bytes;
}

static bt_status forward(bench_batch *b, const krn_sequence *sequences, uint32_t n_sequences) {
    bt_status status = krn_forward(b->model, b->kv, sequences, n_sequences, b->logits, NULL, NULL);
    if (!b->is_counting) return status;
    count_visits(b);
    for (uint32_t i = 0; i < n_sequences; i++) b->n_cached += sequences[i].position + sequences[i].n_rows;
    return status;
}

bt_status bench_batch_prefill(bench_batch *b, uint32_t n) {
    bt_status status = BT_OK;
    for (uint32_t at = 0, rows; at < n && status == BT_OK; at += rows) {
        rows = n - at < b->max_rows ? n - at : b->max_rows;
        krn_sequence s = {.token_ids = b->ids + at, .blocks = b->blocks, .n_rows = rows, .position = at};
        s.form = KRN_EXPANDED;
        s.n_logits = at + rows == n;
        status = forward(b, &s, 1);
    }
    return status;
}

void bench_batch_copy(bench_batch *b) {
    size_t bytes = b->blocks_each * kv_block_bytes(&b->kv.layout);
    for (uint32_t layer = 0; layer < b->kv.layout.n_layers; layer++) {
        uint8_t *first = (uint8_t *)b->kv.base + kv_offset_bytes(&b->kv.layout, layer, 0, 0);
        for (uint32_t s = 1; s < b->max_sequences; s++) memcpy(first + s * bytes, first, bytes);
    }
}

bt_status bench_batch_decode(bench_batch *b, uint32_t depth, uint32_t n_sequences, uint32_t n_steps) {
    bt_status status = BT_OK;
    for (uint32_t step = 0; step < n_steps && status == BT_OK; step++) {
        for (uint32_t s = 0; s < n_sequences; s++) {
            const uint32_t *id = &b->ids[(depth + step + s * 7) % b->n_ids];
            b->sequences[s] =
                (krn_sequence){.token_ids = id, .blocks = b->blocks + (size_t)s * b->blocks_each, .n_rows = 1};
            b->sequences[s].position = depth + step;
            b->sequences[s].form = KRN_ABSORBED;
            b->sequences[s].n_logits = 1;
        }
        status = forward(b, b->sequences, n_sequences);
    }
    return status;
}
