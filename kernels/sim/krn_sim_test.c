/* What is particular to the simulated model: tokens follow from the cache, end where they should and can be read. That
 * batch, chunks, caches and preemptions change nothing is tests/exact's to say. */
#include "kernels/sim/sim.h"

#include <string.h>

#include "common/core/clock.h"
#include "common/core/log.h"
#include "common/core/test.h"
#include "common/text/tokenizer.h"
#include "kernels/test_engine.h"

enum { N_BLOCKS = 16, N_PROMPT = 200, MAX_ROWS = 256, MAX_OUTPUT = 300 };

static const char *const dir = "deploy/models/nano-r1";

typedef struct {
    test_engine engine;
    uint32_t ids[N_BLOCKS * KV_BLOCK_TOKENS], blocks[N_BLOCKS], n;
} text;

static void text_open(text *t, uint32_t number, krn_sim_options sim) {
    bt_error err = {0};
    const krn_model_options options = {
        .dir = dir, .backend = "sim", .max_rows = MAX_ROWS, .max_positions = 1000, .max_logits = 8, .sim = sim};
    *t = (text){.n = N_PROMPT};
    bt_status status = krn_model_open(&options, &t->engine.model, &err);
    CHECK(status == BT_OK, "%s", err.text);
    if (status != BT_OK) exit(1);
    t->engine.vocab = krn_model_config(t->engine.model)->vocab_size;
    t->engine.kv.layout = krn_model_kv_layout(t->engine.model, N_BLOCKS);
    t->engine.kv.base = bt_calloc_aligned(kv_pool_bytes(&t->engine.kv.layout), 64);
    t->engine.logits = bt_calloc((size_t)8 * t->engine.vocab, sizeof(float));
    for (uint32_t i = 0; i < N_PROMPT; i++) t->ids[i] = (number * 7919 + i * 31) % t->engine.vocab;
    for (uint32_t i = 0; i < N_BLOCKS; i++) t->blocks[i] = i * 5 % N_BLOCKS;
}

/* Rows first..n of the text; the likeliest token behind them. */
static uint32_t rows(text *t, uint32_t first, krn_form form) {
    const krn_sequence sequence = {t->ids + first, t->blocks, t->n - first, first, form, 1};
    test_engine_step(&t->engine, &sequence, 1);
    return test_argmax(t->engine.logits, t->engine.vocab);
}

/* Greedy tokens behind the prompt, up to n or end-of-sequence, which counts. Returns how many. */
static uint32_t generate(text *t, uint32_t n, bool ignore_eos) {
    uint32_t eos = krn_model_config(t->engine.model)->eos_token_ids[0];
    t->n = N_PROMPT;
    uint32_t token = rows(t, 0, KRN_EXPANDED);
    for (uint32_t i = 1;; i++) {
        t->ids[t->n++] = token;
        if (i == n || (token == eos && !ignore_eos)) return i;
        token = rows(t, t->n - 1, KRN_ABSORBED);
    }
}

static void test_text_is_printable(void) {
    text t;
    tok_tokenizer *tokenizer = NULL;
    bt_error err = {0};
    CHECK(tok_open(dir, &tokenizer, &err) == BT_OK, "%s", err.text);
    text_open(&t, 1, (krn_sim_options){0});
    CHECK(generate(&t, MAX_OUTPUT, false) == MAX_OUTPUT, "without an end there is no end");
    uint32_t n_bytes = 0, n_different = 0;
    for (uint32_t i = N_PROMPT; i < t.n; i++) {
        const uint8_t *bytes;
        size_t n;
        tok_token_bytes(tokenizer, t.ids[i], &bytes, &n);
        for (size_t k = 0; k < n; k++) CHECK(bytes[k] >= ' ' && bytes[k] <= '~', "token %u is not printable", t.ids[i]);
        n_bytes += (uint32_t)n;
        n_different += t.ids[i] != t.ids[i - 1];
    }
    CHECK(n_bytes >= MAX_OUTPUT && n_different > MAX_OUTPUT / 2, "%u bytes of text", n_bytes);
    test_engine_close(&t.engine);
    tok_close(tokenizer);
}

static void test_output_ends(void) {
    enum { MEAN = 20, N_TEXTS = 200 };
    uint32_t n_all = 0, shortest = UINT32_MAX, longest = 0;
    for (uint32_t i = 0; i < N_TEXTS; i++) {
        text t;
        text_open(&t, i, (krn_sim_options){.output_tokens = MEAN});
        uint32_t n = generate(&t, MAX_OUTPUT, false);
        CHECK(n < 2 * MEAN, "text %u has %u tokens", i, n);
        n_all += n;
        shortest = n < shortest ? n : shortest;
        longest = n > longest ? n : longest;
        if (i == 0) { /* whoever goes on gets more text, and another end */
            CHECK(generate(&t, MAX_OUTPUT, true) == MAX_OUTPUT, "an end is ignored");
            uint32_t eos = krn_model_config(t.engine.model)->eos_token_ids[0], n_ends = 0;
            for (uint32_t k = N_PROMPT; k < t.n; k++) n_ends += t.ids[k] == eos;
            CHECK(n_ends > 3 && n_ends < MAX_OUTPUT / 4, "%u ends", n_ends);
        }
        test_engine_close(&t.engine);
    }
    CHECK(n_all > N_TEXTS * MEAN * 8 / 10 && n_all < N_TEXTS * MEAN * 12 / 10, "%u tokens in all", n_all);
    CHECK(shortest <= 3 && longest >= 2 * MEAN - 4, "from %u to %u tokens", shortest, longest);
}

/* Any block of any layer that is not what it was changes the text that follows; so does a row of the other form. */
static void test_text_follows_from_the_cache(void) {
    text t;
    text_open(&t, 2, (krn_sim_options){0});
    const kv_layout *layout = &t.engine.kv.layout;
    size_t block_bytes = kv_block_bytes(layout), pool_bytes = kv_pool_bytes(layout);
    uint32_t expected[MAX_OUTPUT];
    generate(&t, MAX_OUTPUT, false);
    memcpy(expected, t.ids + N_PROMPT, sizeof(expected));
    uint8_t *prompt = bt_calloc(pool_bytes, 1), *base = t.engine.kv.base;
    t.n = N_PROMPT;
    rows(&t, 0, KRN_EXPANDED);
    memcpy(prompt, base, pool_bytes);
    for (uint32_t layer = 0; layer < layout->n_layers; layer++) {
        for (uint32_t block = 0; block < kv_blocks_for(N_PROMPT); block++) {
            memcpy(base, prompt, pool_bytes);
            memset(base + kv_offset_bytes(layout, layer, t.blocks[block], 0), 0, block_bytes);
            t.n = N_PROMPT;
            bool is_same = true;
            for (uint32_t i = 0; i + 1 < MAX_OUTPUT && is_same; i++) {
                t.ids[t.n++] = expected[i];
                is_same = rows(&t, t.n - 1, KRN_ABSORBED) == expected[i + 1];
            }
            CHECK(!is_same, "layer %u of block %u is lost and nobody notices", layer, block);
        }
    }
    memcpy(base, prompt, pool_bytes);
    t.ids[N_PROMPT] = expected[0];
    t.n = N_PROMPT + 1;
    uint32_t as_prompt = rows(&t, N_PROMPT, KRN_EXPANDED);
    CHECK(as_prompt != rows(&t, N_PROMPT, KRN_ABSORBED), "the form of a row matters");
    free(prompt);
    test_engine_close(&t.engine);
}

/* A chat's template ends with <think>: its answers have a short reasoning, then content; other texts have none. */
static void test_thinking_ends(void) {
    text t;
    tok_tokenizer *tokenizer = NULL;
    bt_error err = {0};
    uint32_t think = 0, think_end = 0;
    CHECK(tok_open(dir, &tokenizer, &err) == BT_OK, "%s", err.text);
    CHECK(tok_find(tokenizer, "<think>", &think) && tok_find(tokenizer, "</think>", &think_end), "no thoughts");
    text_open(&t, 0, (krn_sim_options){0});
    for (uint32_t i = 0; i < 20; i++) {
        bool is_thinking = i % 2 == 0;
        uint32_t n_ends = 0;
        for (uint32_t k = 0; k < N_PROMPT; k++) t.ids[k] = 300 + (i * 17 + k * 31) % 1000;
        if (is_thinking) t.ids[N_PROMPT - 2] = think;
        generate(&t, 100, false);
        for (uint32_t k = N_PROMPT; k < t.n; k++) n_ends += t.ids[k] == think_end;
        CHECK(n_ends == is_thinking, "text %u stops thinking %u times", i, n_ends);
    }
    test_engine_close(&t.engine);
    tok_close(tokenizer);
}

/* Drawing from a row's few tokens is drawing from the row. */
static void test_few_are_as_good_as_all(void) {
    enum { N_TEXTS = 400 };
    text t;
    text_open(&t, 4, (krn_sim_options){.output_tokens = 3});
    const krn_sim *sim = krn_model_sim(t.engine.model);
    krn_drawer *drawer = krn_drawer_open(t.engine.vocab);
    const uint32_t eos = krn_model_config(t.engine.model)->eos_token_ids[0];
    uint32_t n_ends = 0, n_different = 0, last = 0, *all = bt_calloc(t.engine.vocab, sizeof(uint32_t));
    for (uint32_t i = 0; i < t.engine.vocab; i++) all[i] = i;
    for (uint32_t i = 0; i < N_TEXTS; i++) {
        const wire_constraint none = {0}, biased = {.logit_bias = &(wire_bias){5, 100}, .n_logit_bias = 1};
        const wire_sampling sampling = {.temperature = (float)(i % 3), .top_p = i % 2 ? 0.8f : 1, .seed = i};
        krn_draw_args args = {.sampling = &sampling,
                              .constraint = &none,
                              .n_prompt = N_PROMPT,
                              .n_tokens = N_PROMPT + i,
                              .banned = &eos,
                              .n_banned = i % 5 == 0};
        uint32_t token = UINT32_MAX;
        t.ids[0] = i;
        rows(&t, 0, KRN_EXPANDED);
        CHECK(krn_sim_draw(sim, 0, &args, &token), "a plain request is drawn from the few");
        uint32_t expected = krn_draw(drawer, t.engine.logits, &args, NULL, NULL);
        CHECK(token == expected, "text %u: %u of the few, %u of all", i, token, expected);
        CHECK(token != eos || args.n_banned == 0, "text %u ends where it must not", i);
        n_ends += token == eos;
        n_different += token != last;
        last = token;
        args.constraint = &biased;
        CHECK(!krn_sim_draw(sim, 0, &args, &token), "a bias needs all of the row");
        krn_sim_logits(sim, 0, t.engine.logits);
        CHECK(krn_draw(drawer, t.engine.logits, &args, NULL, NULL) == 5, "and decides");
        args.constraint = &none;
        args.banned = all;
        args.n_banned = t.engine.vocab;
        CHECK(!krn_sim_draw(sim, 0, &args, &token), "so does whoever bans the few");
    }
    CHECK(n_ends > N_TEXTS / 10 && n_ends < N_TEXTS / 3 && n_different > N_TEXTS / 2, "%u ends", n_ends);
    krn_drawer_close(drawer);
    free(all);
    test_engine_close(&t.engine);
}

static void note_layer(void *context, uint32_t layer) {
    uint32_t *n_done = context;
    CHECK(layer == *n_done, "layer %u after %u", layer, *n_done);
    ++*n_done;
}

/* A sleep cannot be shorter than asked for; how much longer it is, is the machine's affair. */
static void test_a_step_takes_its_time(void) {
    text t;
    text_open(&t, 3, (krn_sim_options){.step_us = 300, .prefill_us_per_token = 10, .row_us = 500});
    const krn_sequence sequences[] = {{t.ids, t.blocks, 20, 0, KRN_EXPANDED, 0},
                                      {t.ids, t.blocks + 1, 2, 0, KRN_ABSORBED, 1}};
    uint32_t n_layers = 0;
    int64_t begin_ns = bt_now_ns();
    krn_forward(t.engine.model, t.engine.kv, sequences, 2, t.engine.logits, note_layer, &n_layers);
    int64_t ns = bt_now_ns() - begin_ns;
    CHECK(ns >= (300 + 20 * 10 + 2 * 500) * BT_NS_PER_US, "a step of 1.5 ms took %lld ns", (long long)ns);
    CHECK(n_layers == KRN_SIM_LAYERS, "%u layers were done", n_layers);
    test_engine_close(&t.engine);
}

static void test_what_it_says_of_itself(void) {
    text a, b;
    text_open(&a, 0, (krn_sim_options){.step_us = 7, .output_tokens = 9});
    text_open(&b, 0, (krn_sim_options){.output_tokens = 9});
    const krn_model *model = a.engine.model;
    CHECK(krn_model_hash(model) == krn_model_hash(b.engine.model), "time changes no token");
    test_engine_close(&b.engine);
    text_open(&b, 0, (krn_sim_options){.output_tokens = 8});
    CHECK(krn_model_hash(model) != krn_model_hash(b.engine.model), "the length of outputs does");
    test_engine_close(&b.engine);
    const mdl_config *c = krn_model_config(model);
    uint64_t block_bytes = (uint64_t)KV_BLOCK_TOKENS * mdl_kv_width(c) * 2 * c->num_hidden_layers;
    CHECK(krn_model_kv_blocks(model, 100 * block_bytes) == 100, "as many blocks as the real model");
    CHECK(krn_model_weight_bytes(model) == 0 && krn_model_expert_load(model) == NULL, "no weights, no experts");
    test_engine_close(&a.engine);
}

static void test_refusals(void) {
    static const struct {
        const char *dir;
        krn_sim_options sim;
        uint32_t n_ranks;
        const char *sentence;
    } refused[] = {
        {"deploy/models/nano-r1", {.step_us = 20000000}, 0, "simulated time is above"},
        {"deploy/models/nano-r1", {.row_us = 20000000}, 0, "simulated time is above"},
        {"deploy/models/nano-r1", {.prefill_us_per_token = 20000000}, 0, "simulated time is above"},
        {"deploy/models/nano-r1", {.output_tokens = 1 << 25}, 0, "simulated output is"},
        {"deploy/models/nano-r1", {0}, 2, "cannot be one of 2 ranks"},
        {"deploy/models", {0}, 0, "config.json"},
    };
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        const krn_model_options options = {.dir = refused[i].dir,
                                           .backend = "sim",
                                           .max_rows = 1,
                                           .max_positions = 8,
                                           .max_logits = 1,
                                           .n_ranks = refused[i].n_ranks,
                                           .sim = refused[i].sim};
        krn_model *model = NULL;
        bt_error err = {0};
        CHECK(krn_model_open(&options, &model, &err) == BT_BAD_REQUEST && strstr(err.text, refused[i].sentence) != NULL,
              "row %zu: \"%s\"", i, err.text);
        krn_model_close(model);
    }
}

int main(void) {
    bt_log_set_level(BT_LOG_WARN); /* hundreds of models are opened */
    test_text_is_printable();
    test_output_ends();
    test_text_follows_from_the_cache();
    test_thinking_ends();
    test_few_are_as_good_as_all();
    test_a_step_takes_its_time();
    test_what_it_says_of_itself();
    test_refusals();
    TEST_END();
}
