/* For tests: a model with a KV pool, and sequences that are fed by hand. */
#ifndef BATON_KERNELS_TEST_ENGINE_H
#define BATON_KERNELS_TEST_ENGINE_H

#include <stdlib.h>

#include "common/core/alloc.h"
#include "kernels/forward.h"

typedef struct {
    krn_model *model;
    krn_kv kv;
    float *logits; /* [max_logits][vocab] */
    uint32_t vocab;
    bool is_slow; /* set by a test that wants to spare it */
} test_engine;

/* Rank `rank` of n_ranks, or alone with n_ranks 0. */
static inline bt_status test_engine_open_rank(const char *dir, const char *backend, uint32_t max_rows,
                                              uint32_t n_blocks, uint32_t rank, uint32_t n_ranks, const char *placement,
                                              test_engine *out, bt_error *err) {
    mdl_config config;
    bt_status status = mdl_config_load(dir, &config, err);
    if (status != BT_OK) return status;
    uint32_t max_positions = n_blocks * KV_BLOCK_TOKENS;
    krn_model_options options = {
        .dir = dir,
        .backend = backend,
        .n_threads = n_ranks > 0 ? 1 : 0, /* ranks have a thread each */
        .max_rows = max_rows,
        .max_positions =
            max_positions < config.max_position_embeddings ? max_positions : config.max_position_embeddings,
        .max_logits = max_rows,
        .rank = rank,
        .n_ranks = n_ranks,
        .placement = placement,
    };
    status = krn_model_open(&options, &out->model, err);
    if (status != BT_OK) return status;
    out->vocab = config.vocab_size;
    out->kv.layout = krn_model_kv_layout(out->model, n_blocks);
    out->kv.base = bt_calloc_aligned(kv_pool_bytes(&out->kv.layout), 64);
    out->logits = bt_calloc((size_t)max_rows * config.vocab_size, sizeof(float));
    return BT_OK;
}

static inline bt_status test_engine_open(const char *dir, const char *backend, uint32_t max_rows, uint32_t n_blocks,
                                         test_engine *out, bt_error *err) {
    return test_engine_open_rank(dir, backend, max_rows, n_blocks, 0, 0, NULL, out, err);
}

static inline void test_engine_close(test_engine *engine) {
    krn_model_close(engine->model);
    free(engine->kv.base);
    free(engine->logits);
}

/* Alone a step cannot fail. */
static inline void test_engine_step(test_engine *engine, const krn_sequence *sequences, uint32_t n_sequences) {
    bt_status status = krn_forward(engine->model, engine->kv, sequences, n_sequences, engine->logits, NULL, NULL);
    BT_ASSERT(status == BT_OK);
}

static inline uint32_t test_argmax(const float *values, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++) {
        if (values[i] > values[best]) best = i;
    }
    return best;
}

#endif
