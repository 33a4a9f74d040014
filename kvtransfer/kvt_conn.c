/* The life of a connection: made, greeted, up, drained, closed, released. Owns the endpoint and decides when it may be
 * forgotten: never while UCX may still call back about it (kvt.h rule 4). What is said in a greeting is kvt_hello.c's.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucp/api/ucp.h>

#include "common/core/clock.h"
#include "common/core/log.h"
#include "kvtransfer/kvt_impl.h"

static bool is_alive(const kvt_conn *conn) { return conn->state < KVT_DRAINING && !conn->is_lost; }

kvt_conn *kvt_conn_find(kvt_fabric *fabric, kvt_peer peer) {
    for (kvt_conn *conn = fabric->conns; conn != NULL; conn = conn->next) {
        if (conn->id == peer) return is_alive(conn) ? conn : NULL;
    }
    return NULL;
}

kvt_conn *kvt_conn_find_ep(kvt_fabric *fabric, const struct ucp_ep *ep) {
    for (kvt_conn *conn = fabric->conns; conn != NULL; conn = conn->next) {
        if (conn->ep == ep) return conn->state < KVT_CLOSING && !conn->is_lost ? conn : NULL;
    }
    return NULL;
}

void kvt_conn_lose(kvt_conn *conn, bt_status status, const char *format, ...) {
    if (conn->is_lost) return;
    conn->is_lost = true;
    if (conn->why.status != BT_OK) return; /* it was going down already, for that reason */
    conn->why.status = status;
    va_list args;
    va_start(args, format);
    vsnprintf(conn->why.text, sizeof(conn->why.text), format, args);
    va_end(args);
}

void kvt_conn_drain(kvt_conn *conn, bt_status status, const char *why) {
    if (!is_alive(conn)) return;
    bt_fail(&conn->why, status, "%s", why);
    conn->state = KVT_DRAINING;
    conn->deadline_ns = bt_now_ns() + (int64_t)KVT_LINGER_MS * BT_NS_PER_MS;
}

static void on_error(void *context, ucp_ep_h ep, ucs_status_t status) {
    (void)ep;
    kvt_conn *conn = context;
    if (conn->state == KVT_GREETING && !conn->is_accepted)
        kvt_conn_lose(conn, BT_PEER_LOST, "no connection to %s: %s", conn->address, ucs_status_string(status));
    else
        kvt_conn_lose(conn, BT_PEER_LOST, "the connection broke: %s", ucs_status_string(status));
}

static kvt_conn *conn_new(kvt_fabric *fabric, kvt_peer id) {
    kvt_conn *conn = bt_calloc(1, sizeof(*conn));
    conn->fabric = fabric;
    conn->id = id;
    conn->jobs_tail = &conn->jobs;
    conn->deadline_ns = bt_now_ns() + (int64_t)fabric->config.connect_timeout_ms * BT_NS_PER_MS;
    snprintf(conn->transport, sizeof(conn->transport), "unknown");
    conn->next = fabric->conns;
    fabric->conns = conn;
    fabric->n_conns++;
    return conn;
}

void kvt_conn_connect(kvt_fabric *fabric, const kvt_command *command) {
    kvt_conn *conn = conn_new(fabric, command->peer);
    conn->tag = command->tag;
    snprintf(conn->address, sizeof(conn->address), "%.*s", (int)sizeof(conn->address) - 1, command->address);
    if (fabric->n_conns > fabric->config.cap_peers) {
        kvt_conn_lose(conn, BT_NO_CAPACITY, "there are %u connections already", fabric->config.cap_peers);
        return;
    }
    bt_error err = {0};
    bt_status status = kvt_ucx_connect(&fabric->ucx, command->address, (void (*)(void))on_error, conn, &conn->ep, &err);
    if (status == BT_OK)
        kvt_hello_send(conn);
    else
        kvt_conn_lose(conn, status, "%s", err.text);
}

void kvt_conn_accept(kvt_fabric *fabric, struct ucp_conn_request *request) {
    if (fabric->n_conns >= fabric->config.cap_peers || fabric->is_stopping) {
        bt_log(BT_LOG_WARN, "kvt", "connection refused", "connections=%u", fabric->n_conns);
        ucp_listener_reject(fabric->ucx.listener, request);
        return;
    }
    kvt_conn *conn = conn_new(fabric, atomic_fetch_add(&fabric->last_peer, 1) + 1);
    conn->is_accepted = true;
    kvt_ucx_client(request, conn->address, sizeof(conn->address));
    bt_error err = {0};
    bt_status status = kvt_ucx_accept(&fabric->ucx, request, (void (*)(void))on_error, conn, &conn->ep, &err);
    if (status != BT_OK) kvt_conn_lose(conn, status, "%s", err.text);
}

static void on_flushed(void *context) {
    kvt_conn *conn = context;
    conn->is_flushed = true;
    conn->is_flushing = false;
}

static void on_closed(void *context) {
    kvt_conn *conn = context;
    conn->is_closed = true;
}

static void flush_begin(kvt_conn *conn) {
    conn->is_flushing = kvt_ucx_flush(conn->ep, on_flushed, conn);
    conn->is_flushed = !conn->is_flushing; /* it may have failed: the close that follows says the rest */
}

static void close_begin(kvt_conn *conn) {
    conn->state = KVT_CLOSING;
    conn->deadline_ns = INT64_MAX;
    kvt_send_drop(conn, conn->why.status == BT_CANCELED ? BT_CANCELED : BT_PEER_LOST);
    conn->is_closed = conn->ep == NULL || !kvt_ucx_close_ep(conn->ep, on_closed, conn);
}

/* Its leases cannot get what they wait for. */
static void spoil_leases(kvt_fabric *fabric, kvt_peer peer) {
    for (uint32_t i = 0; i < fabric->leases.n_chains; i++) {
        for (kvt_lease *lease = fabric->leases.chains[i], *next; lease != NULL; lease = next) {
            next = lease->next;
            if (lease->peer != peer) continue;
            lease->has_refused = true;
            if (lease->is_closing) kvt_land_lease_close(fabric, lease->id, 0);
        }
    }
}

static void conn_release(kvt_conn *conn) {
    kvt_fabric *fabric = conn->fabric;
    bt_log_level level = conn->why.status == BT_CANCELED ? BT_LOG_INFO : BT_LOG_WARN;
    bt_log(level, "kvt", "peer gone", "worker=%s address=%s status=%s text=\"%s\"", conn->name, conn->address,
           bt_status_name(conn->why.status), conn->why.text);
    spoil_leases(fabric, conn->id);
    if (conn->was_up || !conn->is_accepted) {
        kvt_event *event = kvt_event_new(fabric, KVT_DOWN, conn->id);
        event->tag = conn->tag;
        event->status = conn->why.status;
        event->incarnation = conn->incarnation;
        memcpy(event->name, conn->name, sizeof(event->name));
        snprintf(event->text, sizeof(event->text), "%.*s", WIRE_MAX_TEXT, conn->why.text);
        kvt_event_post(fabric, event);
    }
    kvt_memory_close(&conn->theirs);
    for (kvt_sum *sum = conn->sums, *next; sum != NULL; sum = next) {
        next = sum->next;
        free(sum);
    }
    kvt_conn **at = &fabric->conns;
    while (*at != conn) at = &(*at)->next;
    *at = conn->next;
    fabric->n_conns--;
    if (!conn->is_flushing) free(conn); /* else abandoned with it: on_flushed() may come yet */
}

/* When the peer counts as hung, if nothing moves until then. INT64_MAX: nothing is in flight. */
static int64_t stall_deadline_ns(const kvt_conn *conn) {
    if (conn->state >= KVT_DRAINING || conn->n_sends + conn->n_landings == 0) return INT64_MAX;
    return conn->moved_ns + (int64_t)conn->fabric->config.stall_ms * BT_NS_PER_MS;
}

static bool closing_look(kvt_conn *conn, int64_t now_ns) {
    if (!conn->is_closed) return false;
    bool has_rest = conn->n_sends > 0 || conn->n_landings > 0 || conn->is_flushing;
    if (has_rest && conn->deadline_ns == INT64_MAX) conn->deadline_ns = now_ns + (int64_t)KVT_ABANDON_MS * BT_NS_PER_MS;
    if (has_rest && now_ns < conn->deadline_ns) return false;
    if (has_rest) {
        bt_log(BT_LOG_WARN, "kvt", "requests abandoned", "worker=%s sends=%u landings=%u", conn->name, conn->n_sends,
               conn->n_landings);
        kvt_send_abandon(conn);
        kvt_land_abandon(conn);
    }
    conn_release(conn);
    return true;
}

static bool conn_look(kvt_conn *conn, int64_t now_ns) {
    if (conn->state == KVT_CLOSING) return closing_look(conn, now_ns);
    const kvt_config *config = &conn->fabric->config;
    bool is_late = now_ns >= conn->deadline_ns;
    if (is_late && conn->state != KVT_DRAINING)
        kvt_conn_lose(conn, BT_TIMEOUT, "%s did not greet us within %u ms", conn->address, config->connect_timeout_ms);
    if (now_ns >= stall_deadline_ns(conn))
        kvt_conn_lose(conn, BT_TIMEOUT, "%s hangs: nothing moved for %u ms", conn->address, config->stall_ms);
    if (conn->is_lost || is_late) {
        close_begin(conn);
        return true;
    }
    if (conn->state != KVT_DRAINING || conn->jobs != NULL || conn->n_sends > 0 || conn->peer_closes) return false;
    if (!conn->is_flushed && !conn->is_flushing) flush_begin(conn);
    if (conn->is_flushed) close_begin(conn);
    return conn->is_flushed;
}

bool kvt_conn_look(kvt_fabric *fabric, int64_t now_ns) {
    bool has_moved = false;
    for (kvt_conn *conn = fabric->conns, *next; conn != NULL; conn = next) {
        next = conn->next;
        has_moved |= conn_look(conn, now_ns);
    }
    return has_moved;
}

int64_t kvt_conn_next_deadline(const kvt_fabric *fabric) {
    int64_t deadline_ns = INT64_MAX;
    for (const kvt_conn *conn = fabric->conns; conn != NULL; conn = conn->next) {
        if (conn->deadline_ns < deadline_ns) deadline_ns = conn->deadline_ns;
        int64_t stall_ns = stall_deadline_ns(conn);
        if (stall_ns < deadline_ns) deadline_ns = stall_ns;
    }
    return deadline_ns;
}
