/* baton-bench ep: decode by an expert-parallel group of ranks with one thread each, against one rank with as many
 * threads. In one process: rows and results pass through memory (exchange_local.h), everything else is as between
 * processes.
 *
 * Timed: krn_forward() on all ranks, steps in lock step. The two take turns, so that a machine that changes changes for
 * both: `share` is the median of the group's rate over the other's in the same turn. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/batch.h"
#include "bench/bench.h"
#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/core/config.h"
#include "kernels/exchange_local.h"

#define CFG(type, name, default_text, help) cfg_##type name;
typedef struct {
#include "bench/ep.def"
} ep_config;
#undef CFG
#define CFG(type, name, default_text, help) CFG_ENTRY(ep_config, type, name, default_text, help)
static const cfg_flag flags[] = {
#include "bench/ep.def"
};
#undef CFG

enum { MAX_RANKS = 32, MAX_REPEAT = 1000, MAX_BATCH = 1024, MAX_TOKENS = 1 << 20, TIMEOUT_MS = 60000 };

typedef struct {
    const ep_config *config;
    bench_batch batch;
    ep_exchange *exchange;
    uint32_t n_sequences;
    bt_status status;
    pthread_t thread;
} rank;

typedef struct {
    ep_config config;
    bench_batch alone;
    rank ranks[MAX_RANKS]; /* [config.ranks] */
} bench;

static krn_model_options options_of(const ep_config *c, uint32_t n_sequences) {
    krn_model_options options = {.dir = c->model, .backend = c->backend};
    options.max_rows = c->depth > n_sequences ? c->depth : n_sequences;
    options.max_positions = c->depth + c->steps;
    options.max_logits = n_sequences;
    return options;
}

static void *fill(void *context) {
    rank *r = context;
    r->status = bench_batch_prefill(&r->batch, r->config->depth);
    bench_batch_copy(&r->batch);
    return NULL;
}

static void *decode(void *context) {
    rank *r = context;
    r->status = bench_batch_decode(&r->batch, r->config->depth, r->n_sequences, r->config->steps);
    return NULL;
}

/* Returns the seconds that all ranks took. */
static double ranks_run(bench *b, void *(*work)(void *)) {
    int64_t begin_ns = bt_now_ns();
    for (uint32_t i = 0; i < b->config.ranks; i++) {
        BT_ASSERT(pthread_create(&b->ranks[i].thread, NULL, work, &b->ranks[i]) == 0);
    }
    for (uint32_t i = 0; i < b->config.ranks; i++) {
        pthread_join(b->ranks[i].thread, NULL);
        BT_ASSERT(b->ranks[i].status == BT_OK);
    }
    return (double)(bt_now_ns() - begin_ns) / BT_NS_PER_S;
}

static bt_status open_bench(bench *b, bt_error *err) {
    const ep_config *c = &b->config;
    ep_exchange *exchanges[MAX_RANKS] = {0};
    krn_model_options options = options_of(c, c->batch);
    options.n_threads = c->ranks;
    bt_status status = bench_batch_open(&options, &b->alone, err);
    for (uint32_t i = 0; i < c->ranks && status == BT_OK; i++) {
        rank *r = &b->ranks[i];
        r->config = c;
        r->n_sequences = c->batch / c->ranks;
        options = options_of(c, r->n_sequences);
        options.n_threads = 1;
        options.rank = i;
        options.n_ranks = c->ranks;
        status = bench_batch_open(&options, &r->batch, err);
    }
    if (status != BT_OK) return status;
    const ep_limits limits = krn_model_ep_limits(b->ranks[0].batch.model);
    status = ep_local_open(&limits, c->ranks, 1, TIMEOUT_MS, exchanges, err);
    for (uint32_t i = 0; i < c->ranks && status == BT_OK; i++) {
        b->ranks[i].exchange = exchanges[i];
        krn_model_set_exchange(b->ranks[i].batch.model, exchanges[i]);
    }
    return status;
}

static void close_bench(bench *b) {
    for (uint32_t i = 0; i < b->config.ranks && i < MAX_RANKS; i++) {
        rank *r = &b->ranks[i];
        if (r->exchange != NULL) krn_model_set_exchange(r->batch.model, NULL);
        ep_exchange_close(r->exchange);
        bench_batch_close(&r->batch);
    }
    bench_batch_close(&b->alone);
}

static void measure(bench *b) {
    static double alone[MAX_REPEAT], group[MAX_REPEAT], share[MAX_REPEAT];
    const ep_config *c = &b->config;
    BT_ASSERT(bench_batch_prefill(&b->alone, c->depth) == BT_OK);
    bench_batch_copy(&b->alone);
    ranks_run(b, fill);
    for (uint32_t i = 0; i <= c->repeat; i++) { /* the first one warms up */
        uint32_t at = i > 0 ? i - 1 : 0;
        int64_t begin_ns = bt_now_ns();
        BT_ASSERT(bench_batch_decode(&b->alone, c->depth, c->batch, c->steps) == BT_OK);
        double tokens = (double)c->batch * c->steps;
        alone[at] = tokens * BT_NS_PER_S / (double)(bt_now_ns() - begin_ns);
        group[at] = tokens / ranks_run(b, decode);
        share[at] = group[at] / alone[at];
    }
    const krn_backend *backend = krn_model_backend(b->alone.model);
    printf("commit,isa,test,ranks,batch,depth,repetitions,alone_tokens_s,group_tokens_s,share,share_min,share_max\n");
    double middle = bench_median(share, c->repeat);
    printf("%s,%s,ep,%u,%u,%u,%u,%.1f,%.1f,%.2f,%.2f,%.2f\n", BATON_COMMIT, backend->isa, c->ranks, c->batch, c->depth,
           c->repeat, bench_median(alone, c->repeat), bench_median(group, c->repeat), middle, share[0],
           share[c->repeat - 1]);
}

static bt_status check(const ep_config *c, bt_error *err) {
    if (c->model[0] == 0)
        return bt_fail(err, BT_BAD_REQUEST, "--model is missing, expected the folder of a checkpoint");
    bool is_sane = c->ranks >= 1 && c->ranks <= MAX_RANKS && c->batch >= c->ranks && c->batch % c->ranks == 0 &&
                   c->batch <= MAX_BATCH && c->depth >= 1 && c->depth <= MAX_TOKENS && c->steps >= 1 &&
                   c->steps <= MAX_TOKENS && c->repeat >= 1 && c->repeat <= MAX_REPEAT;
    if (is_sane) return BT_OK;
    return bt_fail(err, BT_BAD_REQUEST,
                   "expected --ranks up to %d, --batch a multiple of it up to %d, and the others at least 1", MAX_RANKS,
                   MAX_BATCH);
}

int bench_ep(int argc, char **argv) {
    static bench b;
    bt_error err = {0};
    bt_status status = cfg_parse("baton-bench ep", "Measures decode by an expert-parallel group and prints CSV.", flags,
                                 sizeof(flags) / sizeof(flags[0]), argc, argv, &b.config, &err);
    if (status == BT_CANCELED) return 0;
    if (status == BT_OK) status = check(&b.config, &err);
    if (status == BT_OK) {
        status = open_bench(&b, &err);
        if (status == BT_OK) measure(&b);
        close_bench(&b);
    }
    if (status != BT_OK) fprintf(stderr, "baton-bench ep: %s\n", err.text);
    return status == BT_OK ? 0 : 2;
}
