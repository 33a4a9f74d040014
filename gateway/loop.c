/* Glue: turns the ticks, the links' queue and the registry into events of gw_core, and its actions into messages and
 * answers. Decides nothing itself. */
#include "gateway/loop.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/control/link.h"
#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/core/log.h"
#include "gateway/routes.h"
#include "gateway/serve.h"

#define LINGER_MS 500 /* for the links' last messages (cancels) at the end */

/* splitmix64: seeds of requests and ids; not for secrets. */
uint64_t gw_loop_random(gw_loop *loop) {
    uint64_t z = (loop->random += 0x9E3779B97F4A7C15U);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31);
}

bool gw_loop_is_ready(const gw_loop *loop) {
    const gw_router *router = gw_core_router(loop->core);
    return gw_router_n_usable(router, WIRE_ROLE_PREFILL) > 0 && gw_router_n_usable(router, WIRE_ROLE_DECODE) > 0;
}

uint32_t gw_loop_max_model_len(const gw_loop *loop) {
    uint32_t of_workers = gw_members_max_model_len(loop->members), of_model = loop->server->model->max_model_len;
    return of_workers < of_model ? of_workers : of_model;
}

/* ---- events ---------------------------------------------------------------------------------------------------------
 */

void gw_loop_pump(gw_loop *loop) {
    if (loop->is_pumping) return;
    loop->is_pumping = true;
    gw_action action;
    while (gw_core_next(loop->core, &action)) {
        if (action.kind == GW_SEND) {
            gw_members_send(loop->members, action.peer, &action.message);
        } else {
            gw_serve_on_action(loop, &action);
        }
    }
    loop->is_pumping = false;
    gw_serve_reap(loop);
    uint32_t n_queued = gw_core_n_queued(loop->core);
    if (n_queued != loop->n_queued_told) gw_telemetry_queued(loop->server->telemetry, loop->n_queued_told, n_queued);
    loop->n_queued_told = n_queued;
}

static void settle(void *loop) { gw_loop_pump(loop); }

/* One of our names, or the same list of names. */
static bool serves(void *context, const char *served_model) {
    const gw_server *server = ((gw_loop *)context)->server;
    return served_model[0] != 0 && (gw_model_find(server->model, served_model) != NULL ||
                                    strcmp(served_model, server->config.served_model_name) == 0);
}

/* What came on the links is handled, what was said on them leaves. */
static bool on_turn(void *context) {
    gw_loop *loop = context;
    bool is_talking = link_hub_turn(loop->hub);
    bt_queue_node *node = bt_queue_take(loop->events);
    bool has_events = node != NULL; /* which may have been answered */
    while (node != NULL) {
        link_event *event = BT_QUEUE_ENTRY(node, link_event, node);
        node = node->next;
        gw_members_on_link(loop->members, event, bt_now_ns());
        gw_loop_pump(loop); /* before the event goes: actions may point into its message */
        link_event_free(event);
    }
    return is_talking || has_events;
}

static bool allow_origin(void *context, const char *origin, size_t n_bytes, char out[GW_HTTP_CAP_ORIGIN]) {
    return gw_access_origin(((gw_loop *)context)->access, origin, n_bytes, out);
}

static void on_answered(void *context, int status) {
    gw_loop *loop = context;
    gw_telemetry_answered(loop->server->telemetry, status);
}

/* The first loop speaks for all about what all see alike. */
static void on_second(gw_loop *loop, int64_t now_ns) {
    gw_serve_tick(loop, now_ns);
    gw_access_tick(loop->access, loop->server->n_reloads);
    gw_limiter_reload(loop->limiter);
    const gw_counters *counters = gw_core_counters(loop->core);
    gw_telemetry_replays(loop->server->telemetry, &loop->told, counters);
    loop->told = *counters;
    if (loop->index != 0) return;
    gw_telemetry_second(loop->server->telemetry, gw_core_router(loop->core), reg_watcher_is_up(loop->watcher));
}

static void on_drain_tick(gw_loop *loop, int64_t now_ns) {
    gw_server *server = loop->server;
    if (!loop->is_draining) {
        loop->is_draining = true;
        loop->drain_ns = now_ns;
        gw_http_drain(loop->http);
        bt_log(BT_LOG_INFO, "gateway", "draining", "loop=%u requests=%u", loop->index, loop->n_answers);
    }
    bool is_late = now_ns - loop->drain_ns > (int64_t)server->config.drain_ms * BT_NS_PER_MS;
    bool is_busy = loop->n_answers > 0 || gw_http_n_exchanges(loop->http) > 0;
    if (!is_busy && !loop->is_done) {
        loop->is_done = true;
        server->n_done_loops++;
    }
    /* all together: the port is shared, and a closed listener would reset the connections that wait in it */
    if (server->n_done_loops < server->config.threads && !is_late && !server->is_hurried) return;
    gw_serve_fail_all(loop);
    gw_loop_pump(loop);
    gw_http_stop(loop->http);
}

static void on_tick(void *context) {
    gw_loop *loop = context;
    int64_t now_ns = bt_now_ns();
    reg_watcher_tick(loop->watcher);
    gw_limiter_tick(loop->limiter);
    gw_loop_pump(loop); /* also what clients that left have cancelled */
    gw_core_tick(loop->core, now_ns);
    gw_loop_pump(loop);
    if (now_ns - loop->last_second_ns >= BT_NS_PER_S) {
        loop->last_second_ns = now_ns;
        on_second(loop, now_ns);
    }
    if (loop->server->is_draining) on_drain_tick(loop, now_ns);
}

/* ---- open and close -------------------------------------------------------------------------------------------------
 */

static bt_status open_http(gw_loop *loop, uint32_t port, bt_error *err) {
    const gw_config *flags = &loop->server->config;
    gw_http_config config = {.host = flags->host,
                             .port = port,
                             .is_first = loop->index == 0 && !flags->reuse_port,
                             .tls = loop->access->tls,
                             .body_limit_bytes = flags->http_body_limit,
                             .header_limit_bytes = flags->http_header_limit,
                             .idle_ms = flags->http_idle_ms,
                             .read_ms = flags->http_read_ms,
                             .write_ms = flags->http_write_ms,
                             .cap_pending_bytes = flags->http_pending_limit,
                             .has_http2 = flags->http2,
                             .context = loop,
                             .on_request = gw_routes_on_request,
                             .allow_origin = allow_origin,
                             .on_answered = on_answered,
                             .on_turn = on_turn,
                             .on_tick = on_tick};
    return gw_http_open(&config, &loop->http, err);
}

static bt_status open_core(gw_loop *loop, bt_error *err) {
    const gw_server *server = loop->server;
    gw_core_options options = {.incarnation = loop->incarnation,
                               .seed = gw_loop_random(loop),
                               .saturation_ms = server->config.prefix_saturation_ms,
                               .slo_ttft_ms = server->config.slo_ttft_ms,
                               .max_worker_queue_ms = server->config.max_worker_queue_ms,
                               .max_queued = server->config.max_num_queued_reqs,
                               .max_requests = server->config.max_concurrent_requests,
                               .vocab_size = server->model->config.vocab_size,
                               .max_model_len = server->model->max_model_len,
                               .migration_limit = server->config.migration_limit,
                               .eos_ids = server->model->config.eos_token_ids,
                               .n_eos_ids = server->model->config.n_eos_token_ids};
    return gw_core_open(&options, &loop->core, err);
}

static bt_status open_links(gw_loop *loop, bt_error *err) {
    char name[64];
    snprintf(name, sizeof name, "gateway-%08x-%u", (unsigned)(loop->incarnation >> 32), loop->index);
    link_config config = {.name = name,
                          .incarnation = loop->incarnation,
                          .role = WIRE_ROLE_GATEWAY,
                          .cluster_key = loop->server->cluster_key,
                          .queue = loop->events};
    bt_status status = link_hub_open(&config, &loop->hub, err);
    if (status != BT_OK) return status;
    gw_members_config members = {
        .core = loop->core, .hub = loop->hub, .serves = serves, .settle = settle, .context = loop};
    loop->members = gw_members_open(&members);
    return gw_http_wake_on(loop->http, bt_queue_fd(loop->events), err);
}

static bt_status open_watcher(gw_loop *loop, bt_error *err) {
    reg_watcher_config config = {
        .redis = loop->server->config.redis, .on_worker = gw_members_on_registry, .context = loop->members};
    reg_loop hooks = gw_http_reg_loop(loop->http);
    return reg_watcher_open(&config, &hooks, &loop->watcher, err);
}

static bt_status open_limiter(gw_loop *loop, bt_error *err) {
    gw_limiter_config config = {.path = loop->server->config.limits_file,
                                .redis = loop->server->config.redis,
                                .is_first = loop->index == 0,
                                .seed = gw_loop_random(loop)};
    if (config.path[0] == 0) return BT_OK;
    reg_loop hooks = gw_http_reg_loop(loop->http);
    return gw_limiter_open(&config, &hooks, &loop->limiter, err);
}

bt_status gw_loop_open(gw_server *server, uint32_t index, uint32_t port, gw_loop **out, bt_error *err) {
    gw_loop *loop = bt_calloc(1, sizeof *loop);
    loop->server = server;
    loop->index = index;
    loop->incarnation = link_random_u64();
    loop->random = link_random_u64();
    if (server->config.token_cache_mb > 0)
        loop->tok_cache = tok_cache_open((size_t)server->config.token_cache_mb << 20, link_random_u64());
    bt_status status = gw_access_open(&server->config, index == 0, &loop->access, err);
    if (status == BT_OK) status = open_http(loop, port, err);
    if (status == BT_OK) status = open_core(loop, err);
    if (status == BT_OK) status = bt_queue_open(&loop->events, err);
    if (status == BT_OK) status = open_links(loop, err);
    if (status == BT_OK) status = open_watcher(loop, err);
    if (status == BT_OK) status = open_limiter(loop, err);
    if (status != BT_OK) {
        gw_loop_close(loop);
        return status;
    }
    *out = loop;
    return BT_OK;
}

void gw_loop_run(gw_loop *loop) { gw_http_run(loop->http); }

void gw_loop_close(gw_loop *loop) {
    if (loop == NULL) return;
    gw_limiter_close(loop->limiter);
    tok_cache_close(loop->tok_cache);
    reg_watcher_close(loop->watcher);
    gw_members_close(loop->members);
    link_hub_close(loop->hub, LINGER_MS);
    for (bt_queue_node *node = loop->events == NULL ? NULL : bt_queue_take(loop->events), *next; node != NULL;
         node = next) {
        next = node->next;
        link_event_free(BT_QUEUE_ENTRY(node, link_event, node));
    }
    if (loop->events != NULL) bt_queue_close(loop->events);
    gw_core_close(loop->core);
    gw_http_close(loop->http);
    gw_access_close(loop->access);
    gw_admission_fini(&loop->admission);
    free(loop);
}
