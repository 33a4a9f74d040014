/* baton-bench workers: both pools of a cluster in one process that answers at once (instant.h), so that it is the
 * gateway that a load generator measures. Measures nothing itself. Each worker announces itself in Redis and has a link
 * listener of its own, as real ones do; all of them run on one thread.
 *
 * Steps are run until nobody has one, and what was said then leaves in one write per link: the tokens of an answer come
 * together. SIGTERM ends it as it ends any worker. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "bench/instant.h"
#include "common/control/link.h"
#include "common/core/alloc.h"
#include "common/core/log.h"
#include "common/model/config.h"
#include "common/registry/registry.h"
#include "common/text/tokenizer.h"
#include "worker/wrk_node.h"

#define FLAGS(F)                                                                                                       \
    F(str, model, "", "the checkpoint's folder; weights are not read")                                                 \
    F(str, served_model_name, "instant", "the name that clients ask for")                                              \
    F(str, redis, "127.0.0.1:6379", "where workers announce themselves: host:port or unix:/path")                      \
    F(str, host, "127.0.0.1", "address to listen on, for gateways")                                                    \
    F(str, cluster_secret, "", "as the gateways'")                                                                     \
    F(u32, prefill, "1", "prefill workers")                                                                            \
    F(u32, decode, "1", "decode workers")                                                                              \
    F(u32, kv_blocks, "16384", "KV blocks of each worker: how much its prefix cache knows")                            \
    F(u32, handoff_us, "500", "between an answer's first token and its others")                                        \
    F(u32, output_tokens, "0", "until end-of-sequence; 0: it never comes, and max_tokens ends an answer")              \
    F(str, text, "The quick brown fox jumps over the lazy dog. ", "what every answer says, over and over")             \
    F(str, log_level, "warn", "debug, info, warn or error")
CFG_OWN(FLAGS)

enum { MAX_WORKERS = 1024, LINGER_MS = 1000, STEPS_PER_TURN = 256 };

typedef struct {
    link_hub *links;
    wrk_peers gateways;
    reg_announcer *announcer;
} ends; /* of one worker: its connections */

typedef struct {
    const cfg_own *config;
    mdl_config model;
    tok_ids text;
    instant_pool pool;
    ends *ends; /* [pool.n_workers] */
    bt_queue *queue;
} bench;

/* ---- links ------------------------------------------------------------------------------------------------------ */

static void send(void *context, uint32_t worker, uint64_t gateway, const wire_message *message) {
    const wrk_peers *gateways = &((bench *)context)->ends[worker].gateways;
    link_conn *link = wrk_peers_link(gateways, gateway);
    if (gateway == 0)
        wrk_peers_broadcast(gateways, message);
    else if (link != NULL)
        link_send(link, message); /* a lost link says so itself */
}

static void on_link(bench *b, const link_event *event) {
    uint64_t gateway;
    switch (wrk_peers_on_link(&b->ends[event->source].gateways, event, &gateway)) {
    case WRK_UP:
        instant_gateway_up(&b->pool, event->source, gateway);
        break;
    case WRK_MESSAGE:
        instant_gateway_message(&b->pool, event->source, gateway, &event->message);
        break;
    case WRK_GONE:
        instant_gateway_gone(&b->pool, event->source, gateway);
        break;
    case WRK_IGNORE:
        break;
    }
}

/* ---- the loop --------------------------------------------------------------------------------------------------- */

static void queue_run(bench *b) {
    for (bt_queue_node *node = bt_queue_take(b->queue), *next; node != NULL; node = next) {
        next = node->next;
        link_event *event = (link_event *)(void *)node;
        on_link(b, event);
        link_event_free(event);
    }
}

/* Until something comes or is due: a hand-off is shorter than poll()'s milliseconds. */
static void sleep_now(const bench *b) {
    int64_t deadline_ns = instant_pool_deadline_ns(&b->pool), left_ns = deadline_ns - bt_now_ns();
    struct timespec left = {.tv_sec = left_ns / BT_NS_PER_S, .tv_nsec = left_ns % BT_NS_PER_S};
    struct pollfd fd = {.fd = bt_queue_fd(b->queue), .events = POLLIN};
    if (left_ns > 0) ppoll(&fd, 1, deadline_ns == INT64_MAX ? NULL : &left, NULL); /* EINTR: a look too many */
}

static void run_loop(bench *b) {
    for (bool is_asked = false; !instant_pool_is_drained(&b->pool);) {
        queue_run(b);
        if (wrk_signals_is_asked() && !is_asked) instant_drain(&b->pool);
        is_asked = wrk_signals_is_asked();
        bool is_busy = true;
        for (uint32_t i = 0; is_busy && i < STEPS_PER_TURN; i++) is_busy = instant_pool_step(&b->pool);
        for (uint32_t i = 0; i < b->pool.n_workers; i++) is_busy |= link_hub_turn(b->ends[i].links);
        if (!is_busy && !instant_pool_is_drained(&b->pool)) sleep_now(b);
    }
}

/* ---- open and close --------------------------------------------------------------------------------------------- */

static bt_status pool_open(bench *b, bt_error *err) {
    const cfg_own *config = b->config;
    uint64_t positions = (uint64_t)config->kv_blocks * KV_BLOCK_TOKENS;
    tok_tokenizer *tokenizer = NULL;
    bt_status status = mdl_config_load(config->model, &b->model, err);
    if (status == BT_OK) status = tok_open(config->model, &tokenizer, err);
    if (status == BT_OK) status = tok_encode(tokenizer, config->text, strlen(config->text), TOK_PLAIN, &b->text, err);
    tok_close(tokenizer);
    if (status != BT_OK) return status;
    if (b->text.n_ids == 0) return bt_fail(err, BT_BAD_REQUEST, "--text is empty");
    if (config->output_tokens > 0 && b->model.n_eos_token_ids == 0)
        return bt_fail(err, BT_BAD_REQUEST, "--output-tokens: the model has no end-of-sequence");
    const instant_options options = {
        .text = b->text.ids,
        .n_text = (uint32_t)b->text.n_ids,
        .output_tokens = config->output_tokens,
        .eos_id = b->model.eos_token_ids[0],
        .vocab_size = b->model.vocab_size,
        .max_model_len =
            positions < b->model.max_position_embeddings ? (uint32_t)positions : b->model.max_position_embeddings,
        .n_blocks = config->kv_blocks,
        .handoff_ns = (int64_t)config->handoff_us * BT_NS_PER_US,
        .send = send,
        .context = b,
    };
    return instant_pool_init(&b->pool, &options, config->prefill, config->decode, err);
}

static bt_status links_open(bench *b, uint32_t i, reg_worker *announcement, bt_error *err) {
    const cfg_own *config = b->config;
    const link_config links = {
        .name = announcement->name,
        .incarnation = announcement->incarnation,
        .role = announcement->role,
        .cluster_key = link_cluster_key(config->cluster_secret),
        .queue = b->queue,
        .source = i,
    };
    uint32_t port = 0;
    bt_status status = link_hub_open(&links, &b->ends[i].links, err);
    if (status == BT_OK) status = link_hub_listen(b->ends[i].links, config->host, 0, &port, err);
    if (status != BT_OK) return status;
    const char *format = strchr(config->host, ':') != NULL ? "[%s]:%u" : "%s:%u";
    snprintf(announcement->control_address, REG_CAP_ADDRESS, format, config->host, port);
    /* Decode workers must have one; nobody but our own prefill workers will ask for it, and they do not dial. */
    if (announcement->role == WIRE_ROLE_DECODE)
        memcpy(announcement->kv_address, announcement->control_address, REG_CAP_ADDRESS);
    return BT_OK;
}

static bt_status worker_open(bench *b, uint32_t i, bt_error *err) {
    const cfg_own *config = b->config;
    const instant_worker *worker = &b->pool.workers[i];
    bool is_prefill = worker->role == WIRE_ROLE_PREFILL;
    reg_worker announcement = {
        .role = worker->role,
        .incarnation = worker->incarnation,
        .model_hash = INSTANT_MODEL_HASH,
        .max_model_len = b->pool.options.max_model_len,
        .capacity = INSTANT_MAX_SEQS,
    };
    snprintf(announcement.name, REG_CAP_NAME, is_prefill ? "prefill-%u" : "decode-%u",
             is_prefill ? i : i - config->prefill);
    snprintf(announcement.served_model, REG_CAP_MODEL, "%s", config->served_model_name);
    const reg_announcer_config announcer = {.redis = config->redis};
    bt_status status = links_open(b, i, &announcement, err);
    if (status != BT_OK) return status;
    return reg_announcer_open(&announcer, &announcement, &b->ends[i].announcer, err);
}

static bt_status flags_check(const cfg_own *config, bt_error *err) {
    if (config->model[0] == 0) return bt_fail(err, BT_BAD_REQUEST, "--model is missing: the checkpoint's folder");
    if (config->prefill > MAX_WORKERS || config->decode > MAX_WORKERS || config->prefill + config->decode == 0)
        return bt_fail(err, BT_BAD_REQUEST, "--prefill and --decode are up to %d workers, together at least 1",
                       MAX_WORKERS);
    if (config->kv_blocks < 2 || config->kv_blocks > WIRE_MAX_TOKENS)
        return bt_fail(err, BT_BAD_REQUEST, "--kv-blocks is %u, expected 2 to %d", config->kv_blocks, WIRE_MAX_TOKENS);
    bt_log_level level;
    bt_status status = bt_log_parse_level(config->log_level, &level, err);
    if (status == BT_OK) bt_log_set_level(level);
    return status;
}

static void bench_close(bench *b) {
    for (uint32_t i = 0; i < b->pool.n_workers; i++) reg_announcer_close(b->ends[i].announcer);
    for (uint32_t i = 0; i < b->pool.n_workers; i++) link_hub_close(b->ends[i].links, LINGER_MS);
    for (bt_queue_node *node = bt_queue_take(b->queue), *next; node != NULL; node = next) {
        next = node->next;
        link_event_free((link_event *)(void *)node);
    }
    for (uint32_t i = 0; i < b->pool.n_workers; i++) wrk_peers_fini(&b->ends[i].gateways);
    instant_pool_fini(&b->pool);
    free(b->ends);
    tok_ids_fini(&b->text);
    /* The queue stays: a signal handler may still wake it. The process ends here. */
}

static bt_status run(const void *own, bt_error *err) {
    bench b = {.config = own};
    bt_status status = flags_check(own, err);
    if (status == BT_OK) status = bt_queue_open(&b.queue, err);
    if (status != BT_OK) return status;
    wrk_signals_open(b.queue);
    status = pool_open(&b, err);
    b.ends = bt_calloc(b.pool.n_workers, sizeof(*b.ends));
    for (uint32_t i = 0; i < b.pool.n_workers && status == BT_OK; i++) status = worker_open(&b, i, err);
    if (status == BT_OK) run_loop(&b);
    bench_close(&b);
    return status;
}

BENCH_VERB(workers, "plays the workers of a cluster, which answer at once, until SIGTERM.", run);
