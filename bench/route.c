/* baton-bench route: what it costs the gateway to choose the workers of a request.
 *
 * Timed, in processor time: gw_router_choose() and the booking of what it chose; each decision for itself. Not timed:
 * naming the prompt's blocks, which is hashing the prompt, and BLOCKS and STATUS, of which the table is full before. A
 * quarter of the workers decode. Each block is held by one worker of each role, but for a beginning that all prompts
 * share and all workers hold. Before the clock starts as many blocks have left as there are, in groups of conversations
 * whose pieces are computed by turns, so that the index is as scattered as one in use. Each decision is about another
 * conversation at random, so its names are in no cache. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "bench/bench.h"
#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/kv/kv_layout.h"
#include "gateway/core/gw_router.h"

#define FLAGS(F)                                                                                                       \
    F(u32, workers, "256", "in the table, 4 to 256; a quarter of them decode")                                         \
    F(u32, blocks, "1000000", "different ones that workers hold")                                                      \
    F(str, tokens, "1024,8192,65536", "of prompts")                                                                    \
    F(u32, decisions, "20000", "per strategy and length")
CFG_OWN(FLAGS)

enum {
    N_SHARED = 8,
    N_GROUP = 16,
    N_PIECE = 32,
    MAX_TOKENS = 1 << 17,
    MAX_BLOCKS = 16000000,
    MAX_DECISIONS = 10000000
};

typedef struct {
    uint32_t generation; /* its blocks are others than the last one's */
    uint64_t prefill, decode;
} chat;

typedef struct {
    const cfg_own *config;
    gw_router *router;
    uint32_t n_chain; /* blocks of a conversation */
    uint32_t n_chats;
    chat *chats;            /* [n_chats] */
    wire_block_name *names; /* [n_chain] scratch */
    uint64_t random;
} bench;

static void name_chat(bench *b, uint32_t number) {
    for (uint32_t i = 0; i < b->n_chain; i++) {
        uint64_t seed =
            i < N_SHARED ? i : (uint64_t)b->chats[number].generation << 52 | (uint64_t)(number + 1) << 20 | i;
        b->names[i].low = gw_random_next(&seed);
        b->names[i].high = gw_random_next(&seed);
    }
}

static void tell(bench *b, uint64_t worker, uint32_t first, uint32_t n) {
    for (uint32_t end = first + n; first < end; first += n) {
        n = end - first < WIRE_MAX_BLOCK_NAMES ? end - first : WIRE_MAX_BLOCK_NAMES;
        bool has_room = gw_router_blocks(b->router, worker, &(wire_blocks){.come = &b->names[first], .n_come = n});
        BT_ASSERT(has_room);
    }
}

static uint32_t n_prefills(const bench *b) { return b->config->workers - b->config->workers / 4; }

static void fill_workers(bench *b) {
    name_chat(b, 0);
    for (uint32_t i = 0; i < b->config->workers; i++) {
        gw_worker known = {.role = i < n_prefills(b) ? WIRE_ROLE_PREFILL : WIRE_ROLE_DECODE, .incarnation = i + 1};
        snprintf(known.name, sizeof(known.name), "worker-%u", i);
        gw_router_up(b->router, &known);
        wire_load load = {.running = (uint32_t)(gw_random_next(&b->random) % 8),
                          .waiting_tokens = (uint32_t)(gw_random_next(&b->random) % 20000),
                          .kv_blocks_total = MAX_BLOCKS,
                          .prefill_tokens_per_s = 8000 + (uint32_t)(gw_random_next(&b->random) % 4000)};
        gw_router_status(b->router, known.incarnation, &load);
        tell(b, known.incarnation, 0, N_SHARED);
    }
}

/* Evicted, the end before the beginning. */
static void leave(bench *b, uint32_t number) {
    name_chat(b, number);
    for (uint32_t i = b->n_chain; i-- > N_SHARED;) {
        wire_blocks gone = {.gone = &b->names[i], .n_gone = 1};
        gw_router_blocks(b->router, b->chats[number].prefill, &gone);
        gw_router_blocks(b->router, b->chats[number].decode, &gone);
    }
    b->chats[number].generation++;
}

/* Computed by turns, a piece of each at a time, and then decoded. */
static void come(bench *b, const uint32_t *numbers, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        chat *new = &b->chats[numbers[i]];
        new->prefill = 1 + gw_random_next(&b->random) % n_prefills(b);
        new->decode = 1 + n_prefills(b) + gw_random_next(&b->random) % (b->config->workers / 4);
    }
    for (uint32_t first = N_SHARED; first < b->n_chain; first += N_PIECE) {
        for (uint32_t i = 0; i < n; i++) {
            name_chat(b, numbers[i]);
            tell(b, b->chats[numbers[i]].prefill, first, first + N_PIECE < b->n_chain ? N_PIECE : b->n_chain - first);
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        name_chat(b, numbers[i]);
        tell(b, b->chats[numbers[i]].decode, N_SHARED, b->n_chain - N_SHARED);
    }
}

static void fill(bench *b) {
    fill_workers(b);
    for (uint32_t first = 0; first < b->n_chats; first += N_GROUP) {
        uint32_t group[N_GROUP], n = 0;
        for (; n < N_GROUP && first + n < b->n_chats; n++) group[n] = first + n;
        come(b, group, n);
    }
    for (uint32_t first = 0; first < b->n_chats; first += N_GROUP) {
        uint32_t group[N_GROUP], n = 0, stride = b->n_chats / N_GROUP + 1, at = first / N_GROUP;
        for (; n < N_GROUP && at < b->n_chats; at += stride) group[n++] = at;
        for (uint32_t i = 0; i < n; i++) leave(b, group[i]);
        come(b, group, n);
    }
}

/* Of this thread: what the machine does for others does not count, what it does to the caches does. */
static int64_t cpu_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (int64_t)now.tv_sec * BT_NS_PER_S + now.tv_nsec;
}

/* Microseconds of one decision. */
static double decide_us(bench *b, const gw_strategy *strategy, uint32_t n_tokens) {
    name_chat(b, (uint32_t)(gw_random_next(&b->random) % b->n_chats));
    gw_route_query query = {.strategy = strategy,
                            .n_tokens = n_tokens,
                            .may_be_local = true,
                            .names = b->names,
                            .n_names = (n_tokens - 1) / KV_BLOCK_TOKENS};
    gw_route route;
    gw_booking prefill, decode;
    int64_t begin_ns = cpu_ns();
    bt_status status = gw_router_choose(b->router, &query, &route, NULL);
    BT_ASSERT(status == BT_OK && !route.is_local);
    gw_router_book(b->router, &prefill, route.prefill, kv_blocks_for(route.n_missing), route.n_missing);
    gw_router_book(b->router, &decode, route.decodes[0], kv_blocks_for(n_tokens), 0);
    double us = (double)(cpu_ns() - begin_ns) * 1e-3;
    gw_router_unbook(b->router, &prefill);
    gw_router_unbook(b->router, &decode);
    return us;
}

static void measure(bench *b, const char *name, uint32_t n_tokens, double *us) {
    gw_strategy strategy;
    bt_status status = gw_strategy_parse(name, &strategy, NULL);
    BT_ASSERT(status == BT_OK);
    uint32_t n = b->config->decisions;
    for (uint32_t i = 0; i < n; i++) us[i] = decide_us(b, &strategy, n_tokens);
    double median = bench_median(us, n);
    printf("%s,route,%s,%u,%u,%u,%u,%.2f,%.2f,%.2f\n", BATON_COMMIT, name, b->config->workers,
           b->n_chats * (b->n_chain - N_SHARED) + N_SHARED, n_tokens, n, median, us[n - 1 - n / 100], us[n - 1]);
    fflush(stdout);
}

static bt_status run(const void *own, bt_error *err) {
    static const char *const names[] = {"prefix-cache",     "least-request",  "power-of-two", "slo",
                                        "session-affinity", "least-kv-cache", "random"};
    const cfg_own *config = own;
    bench_list tokens = {0};
    bt_status status = bench_list_parse("tokens", config->tokens, MAX_TOKENS, &tokens, err);
    if (status != BT_OK) return status;
    bench b = {.config = config, .n_chain = tokens.max / KV_BLOCK_TOKENS, .random = 1};
    bool is_sane = config->workers >= 4 && config->workers <= GW_INDEX_MAX_WORKERS && b.n_chain > N_SHARED &&
                   config->blocks >= b.n_chain && config->blocks <= MAX_BLOCKS && config->decisions > 0 &&
                   config->decisions <= MAX_DECISIONS;
    if (!is_sane) return bt_fail(err, BT_BAD_REQUEST, "--workers, --blocks, --tokens or --decisions is out of range");
    b.n_chats = config->blocks / (b.n_chain - N_SHARED);
    b.chats = bt_calloc(b.n_chats, sizeof(*b.chats));
    b.names = bt_calloc(b.n_chain, sizeof(*b.names));
    b.router = gw_router_open(&(gw_router_options){.seed = 1});
    fill(&b);
    double *us = bt_calloc(config->decisions, sizeof(*us));
    printf("commit,test,strategy,workers,blocks,tokens,decisions,us_p50,us_p99,us_max\n");
    for (uint32_t i = 0; i < tokens.n; i++)
        for (size_t k = 0; k < sizeof(names) / sizeof(names[0]) && tokens.values[i] > 0; k++)
            measure(&b, names[k], tokens.values[i], us);
    free(us);
    free(b.names);
    free(b.chats);
    gw_router_close(b.router);
    return BT_OK;
}

BENCH_VERB(route, "Measures the gateway's choice of workers and prints CSV.", run);
