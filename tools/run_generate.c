/* One sequence through the model: the prompt in chunks, in expanded form, then token by token in absorbed form, as the
 * workers do it. Owns model and cache for as long as that takes. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "kernels/forward.h"
#include "kernels/plan.h"
#include "kernels/sampler.h"
#include "tools/baton_run.h"
#include "tools/run_group.h"

typedef struct {
    krn_model *model;
    run_group *group; /* with --ep: the other ranks */
    krn_sampler *sampler;
    krn_kv kv;
    uint32_t *blocks;
    float *logits;          /* [vocab] */
    uint32_t max_positions; /* prompt and what may follow */
} engine;

void run_result_fini(run_result *result) { tok_ids_fini(&result->ids); }

static bt_status check_prompt(const mdl_config *model, const tok_ids *prompt, bt_error *err) {
    if (prompt->n_ids == 0) return bt_fail(err, BT_BAD_REQUEST, "the prompt has no tokens");
    if (prompt->n_ids > model->max_position_embeddings) {
        return bt_fail(err, BT_BAD_REQUEST, "the prompt has %zu tokens, the model's max_position_embeddings is %u",
                       prompt->n_ids, model->max_position_embeddings);
    }
    for (size_t i = 0; i < prompt->n_ids; i++) {
        if (prompt->ids[i] < model->vocab_size) continue;
        return bt_fail(err, BT_BAD_REQUEST, "token id %u at %zu of the prompt is not below vocab_size, %u",
                       prompt->ids[i], i, model->vocab_size);
    }
    return BT_OK;
}

/* Rows of a step: scratch is not sized for more than the prompt. */
static uint32_t chunk_tokens(const run_config *config, const tok_ids *prompt) {
    return prompt->n_ids < config->max_num_batched_tokens ? (uint32_t)prompt->n_ids : config->max_num_batched_tokens;
}

static bt_status engine_open(const run_config *config, const tok_ids *prompt, engine *out, bt_error *err) {
    mdl_config model;
    bt_status status = mdl_config_load(config->model, &model, err);
    if (status == BT_OK) status = check_prompt(&model, prompt, err);
    if (status != BT_OK) return status;
    uint64_t wanted = (uint64_t)prompt->n_ids + config->max_tokens;
    out->max_positions = wanted < model.max_position_embeddings ? (uint32_t)wanted : model.max_position_embeddings;
    krn_model_options options = {
        .dir = config->model,
        .backend = config->backend,
        .n_threads = config->threads,
        .max_rows = chunk_tokens(config, prompt),
        .max_positions = out->max_positions,
        .max_logits = 1,
        .n_ranks = config->ep,
        .placement = config->placement,
    };
    if (config->ep > 1 && config->threads == 0) options.n_threads = 1; /* ranks have a thread each */
    status = krn_model_open(&options, &out->model, err);
    if (status == BT_OK && config->ep > 1) status = run_group_open(&options, out->model, &out->group, err);
    if (status != BT_OK) return status;
    uint32_t n_blocks = kv_blocks_for(out->max_positions);
    out->kv.layout = krn_model_kv_layout(out->model, n_blocks);
    out->kv.base = bt_calloc_aligned(kv_pool_bytes(&out->kv.layout), 64);
    out->blocks = bt_calloc(n_blocks, sizeof(uint32_t));
    for (uint32_t i = 0; i < n_blocks; i++) out->blocks[i] = i;
    out->logits = bt_calloc(model.vocab_size, sizeof(float));
    out->sampler = krn_sampler_open(model.vocab_size);
    return BT_OK;
}

static void engine_close(engine *e) {
    krn_sampler_close(e->sampler);
    run_group_close(e->group);
    krn_model_close(e->model);
    free(e->kv.base);
    free(e->blocks);
    free(e->logits);
}

static bt_status prefill(engine *e, const tok_ids *prompt, uint32_t chunk_tokens) {
    uint32_t n_prompt = (uint32_t)prompt->n_ids;
    for (uint32_t position = 0, n; position < n_prompt; position += n) {
        n = n_prompt - position < chunk_tokens ? n_prompt - position : chunk_tokens;
        const krn_sequence rows = {
            .token_ids = prompt->ids + position,
            .blocks = e->blocks,
            .n_rows = n,
            .position = position,
            .form = KRN_EXPANDED,
            .n_logits = position + n == n_prompt,
        };
        bt_status status = krn_forward(e->model, e->kv, &rows, 1, e->logits, NULL, NULL);
        if (status != BT_OK) return status;
    }
    return BT_OK;
}

static bool is_eos(const mdl_config *model, uint32_t id) {
    for (uint32_t i = 0; i < model->n_eos_token_ids; i++) {
        if (model->eos_token_ids[i] == id) return true;
    }
    return false;
}

static bt_status decode(engine *e, const run_config *config, uint32_t n_prompt, tok_ids *out) {
    const mdl_config *model = krn_model_config(e->model);
    const wire_sampling sampling = {
        .temperature = (float)config->temperature,
        .top_p = (float)config->top_p,
        .min_p = (float)config->min_p,
        .top_k = config->top_k,
        .seed = config->seed,
    };
    for (uint32_t position = n_prompt; position < e->max_positions; position++) {
        uint32_t id = krn_sample(e->sampler, e->logits, &sampling, position);
        tok_ids_put(out, id);
        if (position + 1 == e->max_positions || (!config->ignore_eos && is_eos(model, id))) return BT_OK;
        const krn_sequence row = {&id, e->blocks, 1, position, KRN_ABSORBED, 1};
        bt_status status = krn_forward(e->model, e->kv, &row, 1, e->logits, NULL, NULL);
        if (status != BT_OK) return status;
    }
    return BT_OK;
}

static bt_status write_logits(const char *path, const float *logits, uint32_t n, bt_error *err) {
    _Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the file is little-endian");
    FILE *file = fopen(path, "wb");
    bool is_written = file != NULL && fwrite(logits, sizeof(float), n, file) == n;
    bool is_closed = file != NULL && fclose(file) == 0;
    if (is_written && is_closed) return BT_OK;
    return bt_fail(err, BT_INTERNAL, "%s: cannot be written: %s", path, strerror(errno));
}

bt_status run_generate(const run_config *config, const tok_ids *prompt, run_result *out, bt_error *err) {
    engine e = {0};
    bt_status status = engine_open(config, prompt, &e, err);
    if (status != BT_OK) goto done;
    int64_t start_ns = bt_now_ns();
    status = prefill(&e, prompt, chunk_tokens(config, prompt));
    if (status != BT_OK) goto lost;
    int64_t prefilled_ns = bt_now_ns();
    if (config->logits_out[0] != 0) {
        status = write_logits(config->logits_out, e.logits, krn_model_config(e.model)->vocab_size, err);
        if (status != BT_OK) goto done;
    }
    int64_t decode_ns = bt_now_ns();
    status = decode(&e, config, (uint32_t)prompt->n_ids, &out->ids);
    if (status != BT_OK) goto lost;
    out->prefill_ms = (double)(prefilled_ns - start_ns) / BT_NS_PER_MS;
    out->decode_ms = (double)(bt_now_ns() - decode_ns) / BT_NS_PER_MS;
    if (config->placement_out[0] != 0) {
        krn_expert_load load = {0};
        krn_expert_load_take(e.model, &load);
        status = krn_plan_write(config->placement_out, &load, config->ep, config->placement_slots, err);
        krn_expert_load_fini(&load);
    }
    goto done;
lost:
    status = bt_fail(err, status, "a rank of the group is gone");
done:
    engine_close(&e);
    return status;
}
