/* The loop: queue -> scheduler -> actions -> step. Between the layers of a step the queue is looked at too, so a
 * finished layer is on its way to decode while the next one is computed (pre_sched.h). Does not choose, order or time
 * anything. */
#include "prefill/pre_engine.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/core/clock.h"
#include "common/core/log.h"

struct pre_engine {
    wrk_node *node; /* borrowed */
    pre_sched *sched;
    kv_pool *pool;
    uint32_t *tokens; /* [max_num_seqs] drawn in a step */
    uint32_t drain_grace_ms;
    bool is_asked;   /* drain was begun for a signal or a replaced name */
    bool is_drained; /* PRE_DRAINED */
    bt_series *step_seconds, *step_rows, *transfer_seconds, *transfer_exposed;
    wrk_counter n_steps, n_prompt_tokens, n_prefix_queries, n_prefix_hits, n_sampled, n_push_bytes;
    wrk_counter n_refused, n_commit_failed, n_decode_lost, n_timeouts;
    wrk_counter n_canceled_queued, n_canceled_computing, n_canceled_computed, n_canceled_committing;
};

/* ---- actions ---- */

static void connect_to(pre_engine *engine, const pre_action *action) {
    char address[KVT_MAX_ADDRESS];
    wire_str to = action->candidate.kv_address;
    snprintf(address, sizeof(address), "%.*s", (int)to.n_bytes, to.bytes);
    kvt_peer peer = kvt_connect(engine->node->fabric, address, action->peer);
    wrk_peers_put_kv(&engine->node->peers, action->peer, peer);
}

static void push(pre_engine *engine, const pre_action *action) {
    const pre_push *push = &action->push;
    kvt_push_args args = {
        .lease = push->lease,
        .layer = push->layer,
        .first_block = push->first_block,
        .blocks = push->blocks,
        .n_blocks = push->n_blocks,
        .n_rows_last = push->n_last_rows,
    };
    kvt_push(engine->node->fabric, wrk_peers_kv(&engine->node->peers, action->peer), &args, push->id);
}

static void send_gateway(pre_engine *engine, const pre_action *action) {
    wrk_log_message(engine->node, &action->message);
    if (action->message.type == WIRE_HANDED_OFF) {
        bt_series_observe(engine->transfer_seconds, action->message.handed_off.transfer_us * 1e-6);
        bt_series_observe(engine->transfer_exposed, action->message.handed_off.exposed_us * 1e-6);
    }
    link_conn *link = wrk_peers_link(&engine->node->peers, action->peer);
    if (link != NULL) link_send(link, &action->message); /* a lost link says so itself */
}

static void actions_run(pre_engine *engine) {
    wrk_node *node = engine->node;
    for (pre_action action; pre_sched_next(engine->sched, &action);) {
        switch (action.kind) {
        case PRE_SEND_GATEWAY:
            send_gateway(engine, &action);
            break;
        case PRE_BROADCAST:
            wrk_peers_broadcast(&node->peers, &action.message);
            break;
        case PRE_CONNECT:
            connect_to(engine, &action);
            break;
        case PRE_SEND_DECODE: /* an unknown peer's is dropped; a COMMIT's count and checksum are the fabric's */
            kvt_send(node->fabric, wrk_peers_kv(&node->peers, action.peer), &action.message);
            break;
        case PRE_PUSH:
            push(engine, &action);
            break;
        case PRE_DRAINED:
            engine->is_drained = true;
            break;
        }
    }
}

/* ---- events ---- */

static void on_link(pre_engine *engine, const link_event *event, int64_t now_ns) {
    uint64_t gateway;
    switch (wrk_peers_on_link(&engine->node->peers, event, &gateway)) {
    case WRK_UP:
        pre_sched_gateway_up(engine->sched, gateway, now_ns);
        break;
    case WRK_MESSAGE:
        pre_sched_gateway_message(engine->sched, gateway, &event->message, now_ns);
        break;
    case WRK_GONE:
        pre_sched_gateway_gone(engine->sched, gateway, now_ns);
        break;
    case WRK_IGNORE:
        break;
    }
}

static void on_decode_up(pre_engine *engine, const kvt_event *event, int64_t now_ns) {
    wrk_node *node = engine->node;
    uint64_t wanted = event->tag;
    if (wrk_peers_kv(&node->peers, wanted) != event->peer) return;
    if (event->incarnation == wanted) {
        char labels[WIRE_MAX_NAME + 96];
        snprintf(labels, sizeof(labels), "peer=\"%s\",transport=\"%s\"", event->name, event->transport);
        bt_series_set(bt_metrics_series(node->metrics, BT_METRIC_ENDPOINT_BANDWIDTH, labels), event->bytes_per_second);
        pre_sched_decode_up(engine->sched, wanted, now_ns);
        return;
    }
    bt_log(BT_LOG_WARN, "pre", "another incarnation answers", "worker=%s decode=%s", node->options.name, event->name);
    wrk_peers_remove_kv(&node->peers, event->peer, &wanted);
    kvt_disconnect(node->fabric, event->peer);
    pre_sched_decode_gone(engine->sched, wanted, now_ns);
}

static void on_kv(pre_engine *engine, const kvt_event *event, int64_t now_ns) {
    wrk_peers *peers = &engine->node->peers;
    uint64_t decode = event->incarnation;
    switch (event->kind) {
    case KVT_UP:
        on_decode_up(engine, event, now_ns);
        break;
    case KVT_DOWN:
        if (wrk_peers_remove_kv(peers, event->peer, &decode)) pre_sched_decode_gone(engine->sched, decode, now_ns);
        break;
    case KVT_MESSAGE:
        if (wrk_peers_kv(peers, decode) == event->peer)
            pre_sched_decode_message(engine->sched, decode, &event->message, now_ns);
        break;
    case KVT_PUSHED:
        pre_sched_push_done(engine->sched, event->tag, event->n_bytes, now_ns);
        break;
    case KVT_LEASE_CLOSED: /* prefill opens none */
        break;
    }
}

static void drain(pre_engine *engine, int64_t now_ns) {
    if (engine->is_asked) return;
    engine->is_asked = true;
    pre_sched_drain(engine->sched, engine->drain_grace_ms, now_ns);
    actions_run(engine);
}

/* Everything that arrived so far. */
static void queue_run(pre_engine *engine) {
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
    pre_engine *engine = context;
    pre_sched_layer_done(engine->sched, layer, bt_now_ns());
    actions_run(engine);
    queue_run(engine);
}

static bool step_run(pre_engine *engine) {
    wrk_node *node = engine->node;
    int64_t begin_ns = bt_now_ns();
    pre_step step;
    bool has_step = pre_sched_step_begin(engine->sched, begin_ns, &step);
    actions_run(engine);
    if (!has_step) return false;
    bt_status status =
        krn_forward(node->model, node->kv, step.sequences, step.n_sequences, node->logits, on_layer, engine);
    BT_ASSERT(status == BT_OK); /* only a group of ranks can fail, and this worker is alone */
    for (uint32_t i = 0; i < step.n_samples; i++) {
        const pre_sample *sample = &step.samples[i];
        if (sample->is_given) {
            wrk_node_score(node, i, sample->given, sample->draw.sampling->n_logprobs - 1);
        } else {
            engine->tokens[i] = wrk_node_draw(node, i, &sample->draw);
        }
    }
    uint32_t n_rows = step.n_rows;
    int64_t end_ns = bt_now_ns();
    pre_sched_step_done(engine->sched, engine->tokens, node->logprobs, end_ns);
    actions_run(engine);
    bt_series_observe(engine->step_seconds, (double)(end_ns - begin_ns) / BT_NS_PER_S);
    bt_series_observe(engine->step_rows, n_rows);
    return true;
}

static void metrics_export(pre_engine *engine) {
    wrk_node *node = engine->node;
    const pre_counters *counters = pre_sched_counters(engine->sched);
    wire_load load;
    pre_sched_load(engine->sched, &load);
    wrk_load_export(node, &load, kv_pool_n_cached(engine->pool));
    if (load.is_draining) wrk_node_announce_drain(node);
#define EXPORT(field, id, labels) wrk_counter_export(node, &engine->field, BT_METRIC_##id, labels, counters->field)
    EXPORT(n_steps, STEPS, "");
    EXPORT(n_prompt_tokens, WORKER_PROMPT_TOKENS, "");
    EXPORT(n_prefix_queries, PREFIX_QUERIES, "");
    EXPORT(n_prefix_hits, PREFIX_HITS, "");
    EXPORT(n_sampled, WORKER_OUTPUT_TOKENS, "");
    EXPORT(n_push_bytes, TRANSFER_BYTES, "");
    EXPORT(n_commit_failed, TRANSFER_FAILURES, "reason=\"commit_failed\"");
    EXPORT(n_decode_lost, TRANSFER_FAILURES, "reason=\"decode_lost\"");
    EXPORT(n_timeouts, TRANSFER_FAILURES, "reason=\"timeout\"");
    EXPORT(n_canceled_queued, CANCELS, "phase=\"queued\"");
    EXPORT(n_canceled_computing, CANCELS, "phase=\"computing\"");
    EXPORT(n_canceled_computed, CANCELS, "phase=\"computed\"");
    EXPORT(n_canceled_committing, CANCELS, "phase=\"committing\"");
#undef EXPORT
}

void pre_engine_run(pre_engine *engine) {
    while (!engine->is_drained) {
        queue_run(engine);
        int64_t now_ns = bt_now_ns();
        if (wrk_signals_is_asked()) drain(engine, now_ns);
        if (pre_sched_deadline_ns(engine->sched) <= now_ns) {
            pre_sched_tick(engine->sched, now_ns);
            actions_run(engine);
        }
        bool has_stepped = step_run(engine);
        metrics_export(engine);
        if (has_stepped || engine->is_drained) continue;
        bt_queue_wait(engine->node->queue, wrk_timeout_ms(pre_sched_deadline_ns(engine->sched), bt_now_ns()));
    }
}

/* ---- open and close ---- */

bt_status pre_engine_open(wrk_node *node, const pre_config *config, pre_engine **out, bt_error *err) {
    const mdl_config *model = krn_model_config(node->model);
    pre_engine *engine = bt_calloc(1, sizeof(*engine));
    engine->node = node;
    engine->drain_grace_ms = config->drain_grace_ms;
    engine->tokens = bt_calloc(config->max_num_seqs + 1u, sizeof(*engine->tokens));
    engine->pool = kv_pool_open(node->kv.layout.n_blocks);
    pre_sched_options options = {
        .pool = engine->pool,
        .vocab_size = model->vocab_size,
        .max_model_len = node->max_model_len,
        .n_layers = node->kv.layout.n_layers,
        .max_requests = config->max_requests,
        .max_batched_tokens = config->max_num_batched_tokens,
        .max_batched_seqs = config->max_num_seqs,
        .eos_ids = model->eos_token_ids,
        .n_eos_ids = model->n_eos_token_ids,
        .has_prefix_cache = config->enable_prefix_caching,
        .model_hash = krn_model_hash(node->model),
    };
    bt_status status = pre_sched_open(&options, &engine->sched, err);
    if (status != BT_OK) {
        pre_engine_close(engine);
        return status;
    }
    engine->step_seconds = bt_metrics_series(node->metrics, BT_METRIC_STEP_SECONDS, "");
    engine->step_rows = bt_metrics_series(node->metrics, BT_METRIC_STEP_ROWS, "");
    engine->transfer_seconds = bt_metrics_series(node->metrics, BT_METRIC_TRANSFER_SECONDS, "");
    engine->transfer_exposed = bt_metrics_series(node->metrics, BT_METRIC_TRANSFER_EXPOSED, "");
    metrics_export(engine);
    *out = engine;
    return BT_OK;
}

void pre_engine_close(pre_engine *engine) {
    if (engine == NULL) return;
    pre_sched_close(engine->sched);
    kv_pool_close(engine->pool);
    free(engine->tokens);
    free(engine);
}
