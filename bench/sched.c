/* baton-bench sched: what decode's scheduler costs per step, without anything to compute.
 *
 * Timed: step_begin(), step_done() with a token for every sequence, and walking the actions that come of it, TOKENS to
 * the gateway included (not their encoding). Not timed: the hand-offs before. Sequences grow into new blocks as they do
 * in reality. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "decode/dec_sched.h"

#define FLAGS(F)                                                                                                       \
    F(str, sequences, "1,32,256", "sequences that decode together")                                                    \
    F(u32, positions, "2048", "tokens of a prompt")                                                                    \
    F(u32, steps, "2000", "steps in one repetition")                                                                   \
    F(u32, repeat, "9", "repetitions; the median counts")
CFG_OWN(FLAGS)

enum { GATEWAY = 1, PREFILL = 2, VOCAB = 129280, MAX_SEQUENCES = 1024, MAX_POSITIONS = 32768, MAX_REPEAT = 1000 };

typedef struct {
    const cfg_own *config;
    kv_pool *pool;
    wrk_sched *sched;
    uint32_t n_sequences;
    uint64_t lease;    /* of the last RESERVED */
    uint64_t n_tokens; /* in TOKENS so far */
} bench;

static void walk(bench *b) {
    for (wrk_action action; wrk_sched_next(b->sched, &action);) {
        if (action.kind == WRK_SEND_PEER && action.message.type == WIRE_RESERVED)
            b->lease = action.message.reserved.lease;
        if (action.kind == WRK_SEND_GATEWAY && action.message.type == WIRE_TOKENS)
            b->n_tokens += action.message.tokens.n_tokens;
    }
}

static void hear(bench *b, const wire_message *message, int64_t now_ns) {
    b->sched->peer_message(b->sched, PREFILL, message, now_ns);
    walk(b);
}

/* From RESERVE to the batch. */
static void admit(bench *b, uint32_t serial, const uint32_t *tokens, uint32_t max_tokens, int64_t now_ns) {
    uint32_t n = b->config->positions, n_pushes = kv_blocks_for(n);
    wire_request request = {GATEWAY, serial, 0};
    wire_message message = {.type = WIRE_RESERVE,
                            .reserve = {.request = request, .n_tokens = n, .max_tokens = max_tokens}};
    hear(b, &message, now_ns);
    uint64_t lease = b->lease;
    message = (wire_message){.type = WIRE_COMMIT,
                             .commit = {.request = request,
                                        .lease = lease,
                                        .n_pushes = n_pushes,
                                        .sampling = {.top_p = 1, .ignore_eos = 1},
                                        .max_tokens = max_tokens,
                                        .n_prompt = n,
                                        .tokens = tokens,
                                        .n_tokens = n + 1}};
    hear(b, &message, now_ns);
    b->sched->lease_closed(b->sched, lease, n_pushes, 0, now_ns);
    walk(b);
}

static void open_bench(bench *b) {
    uint32_t max_tokens = b->config->steps + 2, n = b->n_sequences;
    b->pool = kv_pool_open(n * (kv_blocks_for((uint64_t)b->config->positions + max_tokens) + 1) + 64);
    const wrk_sched_options shared = {
        .pool = b->pool, .vocab_size = VOCAB, .max_model_len = 2 * MAX_POSITIONS, .n_layers = 1};
    const dec_sched_options options = {.max_num_seqs = n, .max_batched_tokens = n, .max_leases = n};
    bt_error err = {0};
    BT_ASSERT(dec_sched_open(&shared, &options, &b->sched, &err) == BT_OK);
    int64_t now_ns = bt_now_ns();
    b->sched->gateway_up(b->sched, GATEWAY, now_ns);
    walk(b);
    b->sched->peer_up(b->sched, PREFILL, now_ns);
    walk(b);
    uint32_t *tokens = bt_calloc((size_t)b->config->positions + 1, sizeof(*tokens));
    for (uint32_t i = 0; i < n; i++) admit(b, i + 1, tokens, max_tokens, now_ns);
    free(tokens);
}

static void close_bench(bench *b) {
    b->sched->close(b->sched);
    kv_pool_close(b->pool);
}

/* Microseconds per step. */
static double repetition_us(bench *b, const uint32_t *tokens) {
    open_bench(b);
    int64_t begin_ns = bt_now_ns();
    for (uint32_t i = 0; i < b->config->steps; i++) {
        wrk_step step;
        int64_t now_ns = bt_now_ns();
        bool has_step = b->sched->step_begin(b->sched, now_ns, &step);
        BT_ASSERT(has_step && step.n_samples == b->n_sequences);
        walk(b);
        b->sched->step_done(b->sched, tokens, NULL, now_ns);
        walk(b);
    }
    double us = (double)(bt_now_ns() - begin_ns) * 1e-3 / b->config->steps;
    close_bench(b);
    return us;
}

static void measure(const cfg_own *config, uint32_t n_sequences) {
    static uint32_t tokens[MAX_SEQUENCES];
    static double us[MAX_REPEAT];
    bench b = {.config = config, .n_sequences = n_sequences};
    for (uint32_t i = 0; i < config->repeat; i++) us[i] = repetition_us(&b, tokens);
    BT_ASSERT(b.n_tokens == (uint64_t)config->repeat * config->steps * n_sequences);
    double median = bench_median(us, config->repeat);
    printf("%s,sched,%u,%u,%u,%.2f,%.2f,%.2f\n", BATON_COMMIT, n_sequences, config->positions, config->repeat, median,
           us[0], us[config->repeat - 1]);
    fflush(stdout);
}

static bt_status run(const void *own, bt_error *err) {
    const cfg_own *config = own;
    bool is_sane = config->positions > 0 && config->positions <= MAX_POSITIONS && config->steps > 0 &&
                   config->steps <= MAX_POSITIONS - 2 && config->repeat > 0 && config->repeat <= MAX_REPEAT;
    if (!is_sane) return bt_fail(err, BT_BAD_REQUEST, "--positions, --steps or --repeat is out of range");
    bench_list sequences = {0};
    bt_status status = bench_list_parse("sequences", config->sequences, MAX_SEQUENCES, &sequences, err);
    if (status != BT_OK) return status;
    printf("commit,test,sequences,positions,repetitions,us_per_step,us_min,us_max\n");
    for (uint32_t i = 0; i < sequences.n; i++) {
        if (sequences.values[i] > 0) measure(config, sequences.values[i]);
    }
    return BT_OK;
}

BENCH_VERB(sched, "Measures decode's scheduler and prints CSV.", run);
