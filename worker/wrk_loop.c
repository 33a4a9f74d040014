/* Queue -> scheduler -> actions -> step. Between the layers of a step the queue is looked at too: a finished layer is
 * on its way to decode while the next one is computed, a RESERVE or a COMMIT is answered within a layer's time, and
 * leases are renewed.
 * Does not choose, order or time anything. */
#include "worker/wrk_loop.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/core/log.h"

typedef struct {
    const wrk_loop_options *options;
    wrk_node *node;
    wrk_sched *sched;
    uint32_t *tokens;   /* [max_logits] drawn in a step */
    bt_series **series; /* [n_metrics] */
    bt_series *step_seconds, *step_rows;
    bool is_asked;   /* drain was begun for a signal or a replaced name */
    bool is_drained; /* WRK_DRAINED */
} wrk_engine;

/* For poll(). */
static int timeout_ms(int64_t deadline_ns, int64_t now_ns) {
    enum { MAX_SLEEP_MS = 60000 };
    if (deadline_ns == INT64_MAX) return -1;
    if (deadline_ns <= now_ns) return 0;
    int64_t ms = (deadline_ns - now_ns) / BT_NS_PER_MS + 1;
    return ms < MAX_SLEEP_MS ? (int)ms : MAX_SLEEP_MS;
}

/* ---- actions ---- */

static void connect_to(wrk_node *node, const wrk_action *action) {
    char address[KVT_MAX_ADDRESS];
    wire_str to = action->candidate.kv_address;
    snprintf(address, sizeof(address), "%.*s", (int)to.n_bytes, to.bytes);
    kvt_peer peer = kvt_connect(node->fabric, address, action->peer);
    wrk_peers_put_kv(&node->peers, action->peer, peer);
}

/* "info req=... worker=..." once, when a message to a gateway ends a request; and when a hand-off is refused, which
 * ends nothing, for the reason. */
static void note_message(const wrk_node *node, const wire_message *message) {
    const char *name = node->options.name;
    switch (message->type) {
    case WIRE_FINISHED:
        bt_log(BT_LOG_INFO, "worker", "request finished",
               "req=" WIRE_REQ_FORMAT " worker=%s attempt=%u reason=%u output=%u",
               WIRE_REQ_ARGS(message->finished.request), name, message->finished.request.attempt,
               message->finished.reason, message->finished.n_output);
        break;
    case WIRE_HANDED_OFF:
        bt_log(BT_LOG_INFO, "worker", "request handed off",
               "req=" WIRE_REQ_FORMAT " worker=%s attempt=%u to=%.*s bytes=%llu transfer_us=%u exposed_us=%u",
               WIRE_REQ_ARGS(message->handed_off.request), name, message->handed_off.request.attempt,
               (int)message->handed_off.decode.n_bytes, message->handed_off.decode.bytes,
               (unsigned long long)message->handed_off.transfer_bytes, message->handed_off.transfer_us,
               message->handed_off.exposed_us);
        bt_series_observe(bt_metrics_series(node->metrics, BT_METRIC_TRANSFER_SECONDS, ""),
                          message->handed_off.transfer_us * 1e-6);
        bt_series_observe(bt_metrics_series(node->metrics, BT_METRIC_TRANSFER_EXPOSED, ""),
                          message->handed_off.exposed_us * 1e-6);
        break;
    case WIRE_FAILED:
        bt_log(message->failed.status == BT_BAD_REQUEST ? BT_LOG_INFO : BT_LOG_WARN, "worker", "request failed",
               "req=" WIRE_REQ_FORMAT " worker=%s attempt=%u status=%s text=\"%.*s\"",
               WIRE_REQ_ARGS(message->failed.request), name, message->failed.request.attempt,
               bt_status_name((bt_status)message->failed.status), (int)message->failed.text.n_bytes,
               message->failed.text.bytes);
        break;
    case WIRE_COMMIT_FAILED:
        bt_log(BT_LOG_WARN, "worker", "hand-off refused",
               "req=" WIRE_REQ_FORMAT " worker=%s attempt=%u lease=%llu status=%s text=\"%.*s\"",
               WIRE_REQ_ARGS(message->commit_failed.request), name, message->commit_failed.request.attempt,
               (unsigned long long)message->commit_failed.lease,
               bt_status_name((bt_status)message->commit_failed.status), (int)message->commit_failed.text.n_bytes,
               message->commit_failed.text.bytes);
        break;
    default:
        break;
    }
}

static void send_gateway(wrk_node *node, const wrk_action *action) {
    note_message(node, &action->message);
    wrk_vllm_message(&node->vllm, &action->message);
    link_conn *link = wrk_peers_link(&node->peers, action->peer);
    if (link != NULL) link_send(link, &action->message); /* a lost link says so itself */
}

static void actions_run(wrk_engine *engine) {
    wrk_node *node = engine->node;
    for (wrk_action action; wrk_sched_next(engine->sched, &action);) {
        kvt_peer peer = wrk_peers_kv(&node->peers, action.peer); /* 0, an unknown one: what is sent is dropped */
        switch (action.kind) {
        case WRK_SEND_GATEWAY:
            send_gateway(node, &action);
            break;
        case WRK_BROADCAST:
            wrk_peers_broadcast(&node->peers, &action.message);
            break;
        case WRK_SEND_PEER: /* a COMMIT's count and checksum are the fabric's */
            note_message(node, &action.message);
            kvt_send(node->fabric, peer, &action.message);
            break;
        case WRK_CONNECT:
            connect_to(node, &action);
            break;
        case WRK_PUSH:
            kvt_push(node->fabric, peer, &action.push, action.push_id);
            break;
        case WRK_LEASE_OPEN: /* in order before the RESERVED that follows: both go through the fabric's queue */
            kvt_lease_open(node->fabric, peer, &action.lease_open);
            break;
        case WRK_LEASE_CLOSE:
            kvt_lease_close(node->fabric, action.lease_close.lease, action.lease_close.n_pushes);
            break;
        case WRK_DRAINED:
            engine->is_drained = true;
            if (node->ep != NULL) wrk_group_leave(wrk_ep_group(node->ep), bt_now_ns());
            break;
        }
    }
}

/* ---- events ---- */

static void on_link(wrk_engine *engine, const link_event *event, int64_t now_ns) {
    wrk_sched *sched = engine->sched;
    uint64_t gateway;
    switch (wrk_peers_on_link(&engine->node->peers, event, &gateway)) {
    case WRK_UP:
        sched->gateway_up(sched, gateway, now_ns);
        break;
    case WRK_MESSAGE:
        sched->gateway_message(sched, gateway, &event->message, now_ns);
        break;
    case WRK_GONE:
        sched->gateway_gone(sched, gateway, now_ns);
        break;
    case WRK_IGNORE:
        break;
    }
}

static void note_bandwidth(const wrk_node *node, const kvt_event *event) {
    char labels[WIRE_MAX_NAME + 96];
    snprintf(labels, sizeof(labels), "peer=\"%s\",transport=\"%s\"", event->name, event->transport);
    bt_series_set(bt_metrics_series(node->metrics, BT_METRIC_ENDPOINT_BANDWIDTH, labels), event->bytes_per_second);
}

static void on_kv(wrk_engine *engine, const kvt_event *event, int64_t now_ns) {
    wrk_sched *sched = engine->sched;
    wrk_node *node = engine->node;
    uint64_t peer;
    if (event->kind == KVT_PUSHED) sched->push_done(sched, event->tag, event->n_bytes, now_ns);
    if (event->kind == KVT_LEASE_CLOSED)
        sched->lease_closed(sched, event->lease, event->landed.n_pushes, event->landed.checksum, now_ns);
    switch (wrk_peers_on_kv(&node->peers, node->fabric, event, &peer)) {
    case WRK_UP:
        if (event->tag != 0) note_bandwidth(node, event); /* measured by who connected */
        sched->peer_up(sched, peer, now_ns);
        break;
    case WRK_MESSAGE:
        sched->peer_message(sched, peer, &event->message, now_ns);
        break;
    case WRK_GONE:
        sched->peer_gone(sched, peer, now_ns);
        break;
    case WRK_IGNORE:
        break;
    }
}

static void drain(wrk_engine *engine, int64_t now_ns) {
    if (engine->is_asked) return;
    engine->is_asked = true;
    wrk_sched_drain(engine->sched, engine->node->options.config->drain_grace_ms, now_ns);
    actions_run(engine);
}

static void on_registry(wrk_engine *engine, const wrk_event *event, int64_t now_ns) {
    if (event->is_replaced)
        drain(engine, now_ns);
    else
        wrk_group_on_worker(wrk_ep_group(engine->node->ep), event->change, &event->worker);
}

/* Everything that arrived so far. */
static void queue_run(wrk_engine *engine) {
    for (bt_queue_node *node = bt_queue_take(engine->node->queue), *next; node != NULL; node = next) {
        next = node->next;
        int64_t now_ns = bt_now_ns();
        switch (((wrk_event *)(void *)node)->source) {
        case WRK_FROM_LINKS:
            on_link(engine, (link_event *)(void *)node, now_ns);
            break;
        case WRK_FROM_KV:
            on_kv(engine, (kvt_event *)(void *)node, now_ns);
            break;
        default:
            on_registry(engine, (wrk_event *)(void *)node, now_ns);
        }
        actions_run(engine);
        wrk_event_free(node);
    }
}

static void tick_if_due(wrk_engine *engine) {
    int64_t now_ns = bt_now_ns();
    if (wrk_sched_deadline_ns(engine->sched) > now_ns) return;
    wrk_sched_tick(engine->sched, now_ns);
    actions_run(engine);
}

/* ---- figures ---- */

static void figures_export(wrk_engine *engine) {
    wrk_node *node = engine->node;
    const wrk_loop_options *options = engine->options;
    wire_load load;
    engine->sched->load(engine->sched, &load);
    wrk_node_export(node, &load, kv_pool_n_cached(engine->sched->options.pool));
    if (load.is_draining) wrk_node_announce_drain(node);
    for (uint32_t i = 0; i < options->n_metrics; i++) {
        const char *counters = engine->sched->counters;
        uint64_t count = *(const uint64_t *)(const void *)(counters + options->metrics[i].offset);
        bt_series_set(engine->series[i], (double)count);
    }
    if (options->export_more != NULL) options->export_more(node, engine->sched);
}

/* ---- the group of ranks, where there is one ---- */

static void group_look(wrk_engine *engine) {
    wrk_ep *ep = engine->node->ep;
    if (ep == NULL) return;
    wrk_group *group = wrk_ep_group(ep);
    if (engine->sched->is_draining) wrk_group_drain(group);
    wrk_ep_look(ep);
    wrk_sched_set_complete(engine->sched, wrk_group_is_complete(group), bt_now_ns());
    actions_run(engine);
}

static void group_lose(wrk_engine *engine) {
    wrk_sched_lose_group(engine->sched, bt_now_ns());
    actions_run(engine); /* first: closing takes its time */
    figures_export(engine);
    wrk_ep_lose(engine->node->ep);
}

/* Drained, and the other ranks do without us: they see that we leave, and take nothing new. */
static bool is_over(const wrk_engine *engine) {
    const wrk_node *node = engine->node;
    return engine->is_drained && (node->ep == NULL || !wrk_group_is_needed(wrk_ep_group(node->ep), bt_now_ns()));
}

/* ---- steps ---- */

static void on_layer(void *context, uint32_t layer) {
    wrk_engine *engine = context;
    wrk_sched *sched = engine->sched;
    if (sched->layer_done != NULL) sched->layer_done(sched, layer, bt_now_ns());
    actions_run(engine);
    queue_run(engine);
    tick_if_due(engine); /* a long step must not let leases expire */
    link_hub_turn(engine->node->links);
}

/* false: there was none. */
static bool step_run(wrk_engine *engine) {
    wrk_node *node = engine->node;
    wrk_sched *sched = engine->sched;
    int64_t begin_ns = bt_now_ns();
    if (node->ep != NULL && !wrk_group_is_formed(wrk_ep_group(node->ep))) return false;
    wrk_step step = {0};
    bool has_step = sched->step_begin(sched, begin_ns, &step);
    actions_run(engine);
    bool is_called = !has_step && node->ep != NULL && wrk_ep_is_called(node->ep); /* a step without rows of ours */
    if (!has_step && !is_called) return false;
    float *logits = krn_model_sim(node->model) == NULL ? node->logits : NULL; /* wrk_node asks for those it needs */
    bt_status status = krn_forward(node->model, node->kv, step.sequences, step.n_sequences, logits, on_layer, engine);
    if (status != BT_OK) { /* only a group of ranks can fail */
        group_lose(engine);
        return true;
    }
    if (node->ep != NULL) wrk_group_stepped(wrk_ep_group(node->ep), bt_now_ns());
    if (!has_step) return true;
    for (uint32_t i = 0; i < step.n_samples; i++) {
        const wrk_sample *sample = &step.samples[i];
        if (sample->is_given) {
            wrk_node_score(node, i, sample->given, sample->draw.sampling->n_prompt_logprobs - 1);
        } else {
            engine->tokens[i] = wrk_node_draw(node, i, &sample->draw);
        }
    }
    int64_t end_ns = bt_now_ns();
    sched->step_done(sched, engine->tokens, node->logprobs, end_ns);
    actions_run(engine);
    bt_series_observe(engine->step_seconds, (double)(end_ns - begin_ns) / BT_NS_PER_S);
    bt_series_observe(engine->step_rows, step.n_rows);
    return true;
}

/* ---- the loop ---- */

/* Until something comes or is due. */
static void sleep_now(const wrk_engine *engine) {
    const wrk_node *node = engine->node;
    int64_t deadline_ns = wrk_sched_deadline_ns(engine->sched);
    struct pollfd fds[2] = {{.fd = bt_queue_fd(node->queue), .events = POLLIN}};
    if (node->ep != NULL) {
        int64_t ep_ns = wrk_ep_deadline_ns(node->ep);
        fds[1] = (struct pollfd){.fd = wrk_ep_wait_fd(node->ep), .events = POLLIN};
        if (ep_ns < deadline_ns) deadline_ns = ep_ns;
    }
    poll(fds, node->ep != NULL ? 2 : 1, timeout_ms(deadline_ns, bt_now_ns())); /* EINTR: a look too many */
}

void wrk_loop_run(const wrk_loop_options *options) {
    wrk_node *node = options->node;
    wrk_sched *sched = options->sched;
    wrk_engine engine = {.options = options, .node = node, .sched = sched};
    engine.tokens = bt_calloc(node->options.max_logits, sizeof(*engine.tokens));
    engine.series = bt_calloc(options->n_metrics, sizeof(*engine.series));
    for (uint32_t i = 0; i < options->n_metrics; i++) {
        engine.series[i] = bt_metrics_series(node->metrics, options->metrics[i].id, options->metrics[i].labels);
    }
    engine.step_seconds = bt_metrics_series(node->metrics, BT_METRIC_STEP_SECONDS, "");
    engine.step_rows = bt_metrics_series(node->metrics, BT_METRIC_STEP_ROWS, "");
    wrk_sched_set_complete(sched, node->ep == NULL, bt_now_ns());
    figures_export(&engine);
    while (!is_over(&engine)) {
        queue_run(&engine);
        if (wrk_signals_is_asked()) drain(&engine, bt_now_ns());
        group_look(&engine);
        tick_if_due(&engine);
        bool has_stepped = step_run(&engine);
        figures_export(&engine);
        bool is_talking = link_hub_turn(node->links); /* what was said leaves */
        if (!has_stepped && !is_talking && !is_over(&engine)) sleep_now(&engine);
    }
    free(engine.series);
    free(engine.tokens);
}
