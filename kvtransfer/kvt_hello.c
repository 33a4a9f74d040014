/* The greeting: who is there, may KV flow between us, and how fast. Says each mismatch by its name. The side that
 * connects also measures: KVT_PROBE_PIECES block-sized pieces, after one that warms the path up. */
#include <stdio.h>
#include <string.h>

#include "common/core/clock.h"
#include "common/core/log.h"
#include "kvtransfer/kvt_impl.h"

static wire_compat our_compat(const kvt_fabric *fabric) {
    const kvt_config *config = &fabric->config;
    return (wire_compat){
        .model_hash = config->model_hash,
        .cluster_key = config->cluster_key,
        .first_layer = config->first_layer,
        .n_layers = config->layout.n_layers,
        .width = config->layout.width,
        .block_tokens = KV_BLOCK_TOKENS,
        .kv_dtype = (uint8_t)config->layout.dtype,
    };
}

void kvt_hello_send(kvt_conn *conn) {
    wire_message message = {.type = WIRE_KV_HELLO,
                            .kv_hello = {.name = wire_str_from(conn->fabric->name),
                                         .incarnation = conn->fabric->config.incarnation,
                                         .compat = our_compat(conn->fabric)}};
    kvt_send_frame(conn, &message);
}

static void welcome_send(kvt_conn *conn, const char *refusal) {
    wire_message message = {.type = WIRE_KV_WELCOME,
                            .kv_welcome = {.name = wire_str_from(conn->fabric->name),
                                           .incarnation = conn->fabric->config.incarnation,
                                           .refusal = wire_str_from(refusal)}};
    kvt_send_frame(conn, &message);
}

void kvt_hello_mismatch(const wire_compat *theirs, const wire_compat *ours, char *out, size_t cap_bytes) {
    out[0] = 0;
    if (theirs->cluster_key != ours->cluster_key)
        snprintf(out, cap_bytes, "another cluster: --cluster-secret differs");
    else if (theirs->model_hash != ours->model_hash)
        snprintf(out, cap_bytes, "another model: its hash is %016llx there, %016llx here",
                 (unsigned long long)theirs->model_hash, (unsigned long long)ours->model_hash);
    else if (theirs->kv_dtype != ours->kv_dtype)
        snprintf(out, cap_bytes, "another --kv-cache-dtype: number %u there, %u here", theirs->kv_dtype,
                 ours->kv_dtype);
    else if (theirs->block_tokens != ours->block_tokens)
        snprintf(out, cap_bytes, "another --block-size: %u there, %u here", theirs->block_tokens, ours->block_tokens);
    else if (theirs->first_layer != ours->first_layer || theirs->n_layers != ours->n_layers)
        snprintf(out, cap_bytes, "other layers: %u from %u there, %u from %u here", theirs->n_layers,
                 theirs->first_layer, ours->n_layers, ours->first_layer);
    else if (theirs->width != ours->width)
        snprintf(out, cap_bytes, "another KV width: %u there, %u here", theirs->width, ours->width);
}

static void name_set(kvt_conn *conn, wire_str name, uint64_t incarnation) {
    snprintf(conn->name, sizeof(conn->name), "%.*s", (int)name.n_bytes, name.bytes);
    for (char *at = conn->name; *at != 0; at++) {
        if (*at <= ' ' || *at == '"' || *at == '\\' || *at == 0x7f) *at = '?'; /* it goes into logs and labels */
    }
    conn->incarnation = incarnation;
}

static void warn_if_slow(const kvt_conn *conn) {
    if (strncmp(conn->transport, "tcp/", 4) == 0 && kvt_ucx_has_rdma_device())
        bt_log(BT_LOG_WARN, "kvt",
               "KV goes over TCP although this machine has RDMA devices: check UCX_TLS and the peer's devices",
               "worker=%s transport=%s", conn->name, conn->transport);
}

static void up(kvt_conn *conn) {
    conn->state = KVT_IS_UP;
    conn->was_up = true;
    conn->deadline_ns = INT64_MAX;
    kvt_ucx_transport(conn->ep, conn->transport, sizeof(conn->transport));
    bt_log(BT_LOG_INFO, "kvt", "peer up", "worker=%s address=%s transport=%s bandwidth_mb_s=%.0f", conn->name,
           conn->address, conn->transport, conn->bytes_per_second / 1e6);
    warn_if_slow(conn);
    kvt_event *event = kvt_event_new(conn->fabric, KVT_UP, conn->id);
    event->tag = conn->tag;
    event->incarnation = conn->incarnation;
    event->bytes_per_second = conn->bytes_per_second;
    memcpy(event->name, conn->name, sizeof(event->name));
    memcpy(event->transport, conn->transport, sizeof(event->transport));
    kvt_event_post(conn->fabric, event);
    if (!conn->is_accepted) kvt_pull_offer(conn); /* who connects is who pushes */
}

static void transport_choose(kvt_conn *conn) {
    kvt_ucx_transport(conn->ep, conn->transport, sizeof(conn->transport));
    conn->is_eager = kvt_ucx_is_eager(conn->transport);
}

static void take_hello(kvt_conn *conn, const wire_kv_hello *hello) {
    name_set(conn, hello->name, hello->incarnation);
    wire_compat ours = our_compat(conn->fabric);
    char refusal[WIRE_MAX_TEXT];
    kvt_hello_mismatch(&hello->compat, &ours, refusal, sizeof(refusal));
    welcome_send(conn, refusal);
    transport_choose(conn);
    if (refusal[0] == 0) {
        up(conn);
        return;
    }
    conn->peer_closes = true;
    kvt_conn_drain(conn, BT_BAD_REQUEST, refusal);
}

static void take_welcome(kvt_conn *conn, const wire_kv_welcome *welcome) {
    name_set(conn, welcome->name, welcome->incarnation);
    if (welcome->refusal.n_bytes > 0) {
        kvt_conn_lose(conn, BT_BAD_REQUEST, "refused by %s: %.*s", conn->address, (int)welcome->refusal.n_bytes,
                      welcome->refusal.bytes);
        return;
    }
    transport_choose(conn);
    conn->state = KVT_PROBING;
    conn->n_probes_sent = 1;
    kvt_send_probe(conn, 0);
}

static void take_probed(kvt_conn *conn) {
    conn->n_probed++;
    if (conn->n_probed == 1) {
        transport_choose(conn); /* final only after an exchange */
        conn->probe_begin_ns = bt_now_ns();
        for (; conn->n_probes_sent <= KVT_PROBE_PIECES && !conn->is_lost; conn->n_probes_sent++)
            kvt_send_probe(conn, conn->n_probes_sent);
    } else if (conn->n_probed == KVT_PROBE_PIECES + 1) {
        double seconds = (double)(bt_now_ns() - conn->probe_begin_ns + 1) / BT_NS_PER_S;
        conn->bytes_per_second = (double)kvt_block_bytes(conn->fabric) * KVT_PROBE_PIECES / seconds;
        up(conn);
    }
}

bool kvt_hello_take(kvt_conn *conn, const wire_message *message) {
    switch (message->type) {
    case WIRE_KV_HELLO:
        if (!conn->is_accepted || conn->state != KVT_GREETING) return false;
        take_hello(conn, &message->kv_hello);
        return true;
    case WIRE_KV_WELCOME:
        if (conn->is_accepted || conn->state != KVT_GREETING) return false;
        take_welcome(conn, &message->kv_welcome);
        return true;
    case WIRE_PROBED:
        if (conn->state != KVT_PROBING || conn->n_probed >= conn->n_probes_sent) return false;
        take_probed(conn);
        return true;
    default:
        return false;
    }
}

bool kvt_hello_refuse(kvt_conn *conn, const char *text) {
    if (!conn->is_accepted || conn->state != KVT_GREETING) return false;
    welcome_send(conn, text);
    conn->peer_closes = true;
    kvt_conn_drain(conn, BT_BAD_REQUEST, text);
    return true;
}

void kvt_hello_send_probed(kvt_conn *conn, uint64_t nonce) {
    wire_message message = {.type = WIRE_PROBED, .probed = {.nonce = nonce}};
    kvt_send_frame(conn, &message);
}
