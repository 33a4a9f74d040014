/* baton-bench ep: decode by an expert-parallel group, one process of one thread per rank, rows and results between them
 * over UCX, against one process with as many threads.
 *
 * Timed: krn_forward() on all ranks, steps in lock step, from the word to begin until the last rank has said that it is
 * done. The two take turns, so that a machine that changes changes for both: `share` is the median of the group's rate
 * over the other's in the same turn. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/batch.h"
#include "bench/bench.h"
#include "common/core/clock.h"
#include "common/core/log.h"
#include "kvtransfer/ep_ucx.h"

#define FLAGS(F)                                                                                                       \
    F(str, model, "", "folder of the checkpoint")                                                                      \
    F(str, backend, "cpu", "cpu or ref")                                                                               \
    F(u32, ranks, "2", "of the group; a process with one compute thread each")                                         \
    F(str, transports, "", "UCX_TLS between them; empty: all that the machine has")                                    \
    F(u32, batch, "16", "sequences that decode together, shared out evenly over the ranks")                            \
    F(u32, depth, "64", "tokens in the cache before decoding starts")                                                  \
    F(u32, steps, "32", "decode steps in one repetition")                                                              \
    F(u32, repeat, "7", "repetitions of each, in turn; medians count")
CFG_OWN(FLAGS)

enum { MAX_RANKS = 32, MAX_REPEAT = 1000, MAX_BATCH = 1024, MAX_TOKENS = 1 << 20 };

static krn_model_options options_of(const cfg_own *c, uint32_t n_sequences) {
    krn_model_options options = {.dir = c->model, .backend = c->backend};
    options.max_rows = c->depth > n_sequences ? c->depth : n_sequences;
    options.max_positions = c->depth + c->steps;
    options.max_logits = n_sequences;
    return options;
}

/* ---- a rank: a process that does what its parent says ----------------------------------------------------------- */

/* Between parent and child: whole values, in an agreed order. */
static bool say(int fd, const void *value, size_t n_bytes) { return write(fd, value, n_bytes) == (ssize_t)n_bytes; }
static bool hear(int fd, void *value, size_t n_bytes) {
    return recv(fd, value, n_bytes, MSG_WAITALL) == (ssize_t)n_bytes;
}

/* Tells its port, hears everybody's. */
static bt_status join_group(const cfg_own *c, uint32_t rank, int parent, const ep_limits *limits, ep_net **net,
                            ep_exchange **out, bt_error *err) {
    char text[MAX_RANKS][32];
    const char *addresses[MAX_RANKS];
    uint32_t ports[MAX_RANKS];
    const ep_net_config config = {.host = "127.0.0.1", .transports = c->transports};
    bt_status status = ep_net_open(&config, net, err);
    if (status != BT_OK) return status;
    uint32_t port = ep_net_port(*net);
    if (!say(parent, &port, sizeof(port)) || !hear(parent, ports, c->ranks * sizeof(ports[0])))
        return bt_fail(err, BT_PEER_LOST, "the other ranks did not start");
    for (uint32_t i = 0; i < c->ranks; i++) {
        snprintf(text[i], sizeof(text[i]), "127.0.0.1:%u", ports[i]);
        addresses[i] = text[i];
    }
    const ep_group_config group = {.epoch = 1,
                                   .rank = rank,
                                   .n_ranks = c->ranks,
                                   .addresses = addresses,
                                   .limits = *limits,
                                   .form_timeout_ms = 60000,
                                   .step_timeout_ms = 60000};
    status = ep_group_open(*net, &group, out, err);
    return status == BT_OK ? ep_group_await(*out, err) : status;
}

/* Decodes once for each byte that comes, and answers with one. */
static bt_status serve(const cfg_own *c, int parent, bench_batch *b, uint32_t n_sequences) {
    char word = 0;
    bt_status status = bench_batch_prefill(b, c->depth);
    bench_batch_copy(b);
    while (status == BT_OK && say(parent, &word, 1) && hear(parent, &word, 1)) {
        status = bench_batch_decode(b, c->depth, n_sequences, c->steps);
    }
    return status;
}

static int rank_run(const cfg_own *c, uint32_t rank, int parent) {
    bench_batch batch = {0};
    ep_net *net = NULL;
    ep_exchange *exchange = NULL;
    bt_error err = {0};
    krn_model_options options = options_of(c, c->batch / c->ranks);
    options.n_threads = 1;
    options.rank = rank;
    options.n_ranks = c->ranks;
    bt_status status = bench_batch_open(&options, &batch, &err);
    if (status == BT_OK) {
        const ep_limits limits = krn_model_ep_limits(batch.model);
        status = join_group(c, rank, parent, &limits, &net, &exchange, &err);
    }
    if (status == BT_OK) {
        krn_model_set_exchange(batch.model, exchange);
        if (serve(c, parent, &batch, options.max_logits) != BT_OK)
            status = bt_fail(&err, BT_PEER_LOST, "rank %u: the group has failed", rank);
        krn_model_set_exchange(batch.model, NULL);
    }
    if (status != BT_OK) fprintf(stderr, "baton-bench ep: %s\n", err.text);
    ep_exchange_close(exchange);
    ep_net_close(net);
    bench_batch_close(&batch);
    return status == BT_OK ? 0 : 1;
}

/* ---- the parent ------------------------------------------------------------------------------------------------- */

typedef struct {
    cfg_own config;
    bench_batch alone;
    int ranks[MAX_RANKS]; /* [config.ranks] sockets */
} bench;

/* Before anything starts a thread: neither UCX nor threads survive a fork. */
static void start_ranks(bench *b) {
    for (uint32_t i = 0; i < b->config.ranks; i++) {
        int pair[2];
        BT_ASSERT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
        pid_t child = fork();
        BT_ASSERT(child >= 0);
        if (child == 0) {
            for (uint32_t k = 0; k < i; k++) close(b->ranks[k]);
            close(pair[0]);
            exit(rank_run(&b->config, i, pair[1]));
        }
        close(pair[1]);
        b->ranks[i] = pair[0];
    }
}

static bool form_group(bench *b) {
    uint32_t ports[MAX_RANKS];
    for (uint32_t i = 0; i < b->config.ranks; i++)
        if (!hear(b->ranks[i], &ports[i], sizeof(ports[i]))) return false;
    for (uint32_t i = 0; i < b->config.ranks; i++)
        if (!say(b->ranks[i], ports, b->config.ranks * sizeof(ports[0]))) return false;
    return true;
}

static bool all_are_ready(bench *b) {
    char word;
    for (uint32_t i = 0; i < b->config.ranks; i++)
        if (!hear(b->ranks[i], &word, 1)) return false;
    return true;
}

static bool group_decode(bench *b, double *seconds) {
    int64_t begin_ns = bt_now_ns();
    for (uint32_t i = 0; i < b->config.ranks; i++)
        if (!say(b->ranks[i], "", 1)) return false;
    if (!all_are_ready(b)) return false;
    *seconds = (double)(bt_now_ns() - begin_ns) / BT_NS_PER_S;
    return true;
}

static bool measure(bench *b) {
    static double alone[MAX_REPEAT], group[MAX_REPEAT], share[MAX_REPEAT];
    const cfg_own *c = &b->config;
    BT_ASSERT(bench_batch_prefill(&b->alone, c->depth) == BT_OK);
    bench_batch_copy(&b->alone);
    for (uint32_t i = 0; i <= c->repeat; i++) { /* the first one warms up */
        uint32_t at = i > 0 ? i - 1 : 0;
        double tokens = (double)c->batch * c->steps, seconds;
        int64_t begin_ns = bt_now_ns();
        BT_ASSERT(bench_batch_decode(&b->alone, c->depth, c->batch, c->steps) == BT_OK);
        alone[at] = tokens * BT_NS_PER_S / (double)(bt_now_ns() - begin_ns);
        if (!group_decode(b, &seconds)) return false;
        group[at] = tokens / seconds;
        share[at] = group[at] / alone[at];
    }
    const krn_backend *backend = krn_model_backend(b->alone.model);
    printf("commit,isa,test,transports,ranks,batch,depth,repetitions,alone_tokens_s,group_tokens_s,share,share_min,"
           "share_max\n");
    double middle = bench_median(share, c->repeat);
    printf("%s,%s,ep,\"%s\",%u,%u,%u,%u,%.1f,%.1f,%.2f,%.2f,%.2f\n", BATON_COMMIT, backend->isa,
           c->transports[0] != 0 ? c->transports : "all", c->ranks, c->batch, c->depth, c->repeat,
           bench_median(alone, c->repeat), bench_median(group, c->repeat), middle, share[0], share[c->repeat - 1]);
    return true;
}

static bt_status check(const cfg_own *c, bt_error *err) {
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

static bt_status run(const void *own, bt_error *err) {
    bench b = {.config = *(const cfg_own *)own};
    bt_status status = check(&b.config, err);
    if (status != BT_OK) return status;
    bt_log_set_level(BT_LOG_ERROR);
    krn_model_options options = options_of(&b.config, b.config.batch);
    options.n_threads = b.config.ranks;
    start_ranks(&b);
    status = bench_batch_open(&options, &b.alone, err);
    if (status == BT_OK && !(form_group(&b) && all_are_ready(&b) && measure(&b)))
        status = bt_fail(err, BT_PEER_LOST, "a rank has ended");
    bench_batch_close(&b.alone);
    for (uint32_t i = 0; i < b.config.ranks; i++) close(b.ranks[i]); /* they end */
    while (wait(NULL) > 0) {
    }
    return status;
}

BENCH_VERB(ep, "Measures decode by an expert-parallel group and prints CSV.", run);
