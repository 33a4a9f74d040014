/* The loop: queue -> scheduler -> actions -> step. Between the layers of a step the queue is looked at too, so a
 * RESERVE or a COMMIT is answered within a layer's time. Does not choose, order or time anything. */
#include "decode/dec_engine.h"

#include <stdlib.h>

#include "common/core/clock.h"
#include "common/core/log.h"

struct dec_engine {
    wrk_node *node; /* borrowed */
    dec_sched *sched;
    kv_pool *pool;
    uint32_t *tokens; /* [max_num_seqs] drawn in a step */
    uint32_t drain_grace_ms;
    bool is_asked;   /* drain was begun for a signal or a replaced name */
    bool is_drained; /* DEC_DRAINED */
    bt_series *step_seconds, *step_rows, *leases;
    wrk_counter n_steps, n_prefix_queries, n_prefix_hits, n_sampled, n_landed_bytes, n_pushes_refused;
    wrk_counter n_commit_failed, n_prefill_lost, n_lease_expired, n_preempted;
    wrk_counter n_canceled_leased, n_canceled_waiting, n_canceled_running;
};

/* ---- actions ---- */

static void lease_open(dec_engine *engine, const dec_action *action) {
    const dec_lease_open *lease = &action->lease_open;
    kvt_lease_args args = {
        .lease = lease->lease,
        .blocks = lease->blocks,
        .first_block = lease->first_block,
        .n_blocks = lease->n_blocks,
        .n_tokens = lease->n_tokens,
    };
    kvt_lease_open(engine->node->fabric, wrk_peers_kv(&engine->node->peers, action->peer), &args);
}

static void send_gateway(dec_engine *engine, const dec_action *action) {
    wrk_log_message(engine->node, &action->message);
    link_conn *link = wrk_peers_link(&engine->node->peers, action->peer);
    if (link != NULL) link_send(link, &action->message); /* a lost link says so itself */
}

static void actions_run(dec_engine *engine) {
    wrk_node *node = engine->node;
    for (dec_action action; dec_sched_next(engine->sched, &action);) {
        switch (action.kind) {
        case DEC_SEND_GATEWAY:
            send_gateway(engine, &action);
            break;
        case DEC_BROADCAST:
            wrk_peers_broadcast(&node->peers, &action.message);
            break;
        case DEC_SEND_PREFILL: /* an unknown peer's is dropped */
            kvt_send(node->fabric, wrk_peers_kv(&node->peers, action.peer), &action.message);
            break;
        case DEC_LEASE_OPEN: /* in order before the RESERVED that follows: both go through the fabric's queue */
            lease_open(engine, &action);
            break;
        case DEC_LEASE_CLOSE:
            kvt_lease_close(node->fabric, action.lease_close.lease, action.lease_close.n_pushes);
            break;
        case DEC_DRAINED:
            engine->is_drained = true;
            break;
        }
    }
}

/* ---- events ---- */

static void on_link(dec_engine *engine, const link_event *event, int64_t now_ns) {
    uint64_t gateway;
    switch (wrk_peers_on_link(&engine->node->peers, event, &gateway)) {
    case WRK_UP:
        dec_sched_gateway_up(engine->sched, gateway, now_ns);
        break;
    case WRK_MESSAGE:
        dec_sched_gateway_message(engine->sched, gateway, &event->message, now_ns);
        break;
    case WRK_GONE:
        dec_sched_gateway_gone(engine->sched, gateway, now_ns);
        break;
    case WRK_IGNORE:
        break;
    }
}

/* A prefill worker that connects anew has lost its old connection, and with it its leases. */
static void on_prefill_up(dec_engine *engine, const kvt_event *event, int64_t now_ns) {
    wrk_node *node = engine->node;
    kvt_peer old = wrk_peers_kv(&node->peers, event->incarnation);
    if (old != 0) {
        kvt_disconnect(node->fabric, old);
        dec_sched_prefill_gone(engine->sched, event->incarnation, now_ns);
        actions_run(engine);
    }
    wrk_peers_put_kv(&node->peers, event->incarnation, event->peer);
}

static void on_kv(dec_engine *engine, const kvt_event *event, int64_t now_ns) {
    wrk_peers *peers = &engine->node->peers;
    uint64_t prefill = event->incarnation;
    switch (event->kind) {
    case KVT_UP:
        on_prefill_up(engine, event, now_ns);
        break;
    case KVT_DOWN:
        if (wrk_peers_remove_kv(peers, event->peer, &prefill)) dec_sched_prefill_gone(engine->sched, prefill, now_ns);
        break;
    case KVT_MESSAGE:
        if (wrk_peers_kv(peers, prefill) == event->peer)
            dec_sched_prefill_message(engine->sched, prefill, &event->message, now_ns);
        break;
    case KVT_LEASE_CLOSED:
        dec_sched_lease_closed(engine->sched, event->lease, event->landed.n_pushes, event->landed.checksum, now_ns);
        break;
    case KVT_PUSHED: /* decode pushes nothing */
        break;
    }
}

static void drain(dec_engine *engine, int64_t now_ns) {
    if (engine->is_asked) return;
    engine->is_asked = true;
    dec_sched_drain(engine->sched, engine->drain_grace_ms, now_ns);
    actions_run(engine);
}

/* Everything that arrived so far. */
static void queue_run(dec_engine *engine) {
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
        default: /* our name was taken over */
            drain(engine, now_ns);
        }
        actions_run(engine);
        wrk_event_free(node);
    }
}

/* ---- steps ---- */

static void on_layer(void *context, uint32_t layer) {
    (void)layer;
    queue_run(context);
}

static bool step_run(dec_engine *engine) {
    wrk_node *node = engine->node;
    int64_t begin_ns = bt_now_ns();
    dec_step step;
    bool has_step = dec_sched_step_begin(engine->sched, begin_ns, &step);
    actions_run(engine);
    if (!has_step) return false;
    bt_status status =
        krn_forward(node->model, node->kv, step.sequences, step.n_sequences, node->logits, on_layer, engine);
    BT_ASSERT(status == BT_OK); /* only a group of ranks can fail, and this worker is alone */
    uint32_t n_rows = step.n_sequences;
    for (uint32_t i = 0; i < n_rows; i++) engine->tokens[i] = wrk_node_draw(node, i, &step.samples[i].draw);
    int64_t end_ns = bt_now_ns();
    dec_sched_step_done(engine->sched, engine->tokens, node->logprobs, end_ns);
    actions_run(engine);
    bt_series_observe(engine->step_seconds, (double)(end_ns - begin_ns) / BT_NS_PER_S);
    bt_series_observe(engine->step_rows, n_rows);
    return true;
}

static void metrics_export(dec_engine *engine) {
    wrk_node *node = engine->node;
    const dec_counters *counters = dec_sched_counters(engine->sched);
    wire_load load;
    dec_sched_load(engine->sched, &load);
    wrk_load_export(node, &load, kv_pool_n_cached(engine->pool));
    if (load.is_draining) wrk_node_announce_drain(node);
    bt_series_set(engine->leases, dec_sched_n_leases(engine->sched));
    kvt_stats stats;
    kvt_fabric_stats(node->fabric, &stats);
    wrk_counter_export(node, &engine->n_landed_bytes, BT_METRIC_TRANSFER_BYTES, "", stats.bytes_landed);
    wrk_counter_export(node, &engine->n_pushes_refused, BT_METRIC_TRANSFER_FAILURES, "reason=\"push_refused\"",
                       stats.pushes_refused);
#define EXPORT(field, id, labels) wrk_counter_export(node, &engine->field, BT_METRIC_##id, labels, counters->field)
    EXPORT(n_steps, STEPS, "");
    EXPORT(n_prefix_queries, PREFIX_QUERIES, "");
    EXPORT(n_prefix_hits, PREFIX_HITS, "");
    EXPORT(n_sampled, WORKER_OUTPUT_TOKENS, "");
    EXPORT(n_commit_failed, TRANSFER_FAILURES, "reason=\"commit_failed\"");
    EXPORT(n_prefill_lost, TRANSFER_FAILURES, "reason=\"prefill_lost\"");
    EXPORT(n_lease_expired, LEASE_EXPIRIES, "");
    EXPORT(n_preempted, PREEMPTIONS, "");
    EXPORT(n_canceled_leased, CANCELS, "phase=\"leased\"");
    EXPORT(n_canceled_waiting, CANCELS, "phase=\"waiting\"");
    EXPORT(n_canceled_running, CANCELS, "phase=\"running\"");
#undef EXPORT
}

void dec_engine_run(dec_engine *engine) {
    while (!engine->is_drained) {
        queue_run(engine);
        int64_t now_ns = bt_now_ns();
        if (wrk_signals_is_asked()) drain(engine, now_ns);
        if (dec_sched_deadline_ns(engine->sched) <= now_ns) {
            dec_sched_tick(engine->sched, now_ns);
            actions_run(engine);
        }
        bool has_stepped = step_run(engine);
        metrics_export(engine);
        if (has_stepped || engine->is_drained) continue;
        bt_queue_wait(engine->node->queue, wrk_timeout_ms(dec_sched_deadline_ns(engine->sched), bt_now_ns()));
    }
}

/* ---- open and close ---- */

bt_status dec_engine_open(wrk_node *node, const dec_config *config, dec_engine **out, bt_error *err) {
    const mdl_config *model = krn_model_config(node->model);
    dec_engine *engine = bt_calloc(1, sizeof(*engine));
    engine->node = node;
    engine->drain_grace_ms = config->drain_grace_ms;
    engine->tokens = bt_calloc(config->max_num_seqs + 1u, sizeof(*engine->tokens));
    engine->pool = kv_pool_open(node->kv.layout.n_blocks);
    dec_sched_options options = {
        .pool = engine->pool,
        .vocab_size = model->vocab_size,
        .max_model_len = node->max_model_len,
        .n_layers = node->kv.layout.n_layers,
        .max_num_seqs = config->max_num_seqs,
        .eos_ids = model->eos_token_ids,
        .n_eos_ids = model->n_eos_token_ids,
        .has_prefix_cache = config->enable_prefix_caching,
    };
    bt_status status = dec_sched_open(&options, &engine->sched, err);
    if (status != BT_OK) {
        dec_engine_close(engine);
        return status;
    }
    engine->step_seconds = bt_metrics_series(node->metrics, BT_METRIC_STEP_SECONDS, "");
    engine->step_rows = bt_metrics_series(node->metrics, BT_METRIC_STEP_ROWS, "");
    engine->leases = bt_metrics_series(node->metrics, BT_METRIC_LEASES, "");
    metrics_export(engine);
    *out = engine;
    return BT_OK;
}

void dec_engine_close(dec_engine *engine) {
    if (engine == NULL) return;
    dec_sched_close(engine->sched);
    kv_pool_close(engine->pool);
    free(engine->tokens);
    free(engine);
}
