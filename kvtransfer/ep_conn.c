/* A connection between two ranks: made, greeted, closed, released. Owns the endpoint and decides when it may be
 * forgotten: never while UCX may still call back about it. What is sent over it is ep_link.c's. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucp/api/ucp.h>

#include "common/core/clock.h"
#include "kvtransfer/ep_impl.h"
#include "kvtransfer/kvt_impl.h"

static int64_t in_ms(int64_t ms) { return bt_now_ns() + ms * BT_NS_PER_MS; }

void ep_conn_lose(ep_conn *conn, bt_status status, const char *format, ...) {
    if (conn->is_lost || conn->state == EP_CLOSING) return;
    conn->is_lost = true;
    conn->why.status = status;
    va_list args;
    va_start(args, format);
    vsnprintf(conn->why.text, sizeof(conn->why.text), format, args);
    va_end(args);
    ep_group *group = conn->net->group;
    if (group == NULL || conn->epoch != group->exchange.epoch) return;
    if (conn->state == EP_IS_UP && !conn->has_left)
        ep_group_fail(group, "rank %u is lost: %s", conn->rank, conn->why.text);
    if (conn->state == EP_DIALING && status == BT_BAD_REQUEST) { /* else it is tried again */
        group->has_failed = true;
        group->why = conn->why;
    }
}

static void on_error(void *context, ucp_ep_h ep, ucs_status_t status) {
    (void)ep;
    ep_conn_lose(context, BT_PEER_LOST, "the connection to %s broke: %s", ((ep_conn *)context)->address,
                 ucs_status_string(status));
}

static ep_conn *conn_new(ep_net *net, ep_conn_state state) {
    ep_conn *conn = bt_calloc(1, sizeof(*conn));
    conn->net = net;
    conn->state = state;
    conn->deadline_ns = INT64_MAX;
    for (int kind = 0; kind < EP_N_OPS; kind++) {
        conn->ops[kind].conn = conn;
        conn->ops[kind].frame = bt_calloc(1, EP_CAP_FRAME_BYTES);
    }
    conn->rows.conn = conn->results.conn = conn;
    conn->next = net->conns;
    net->conns = conn;
    net->n_conns++;
    return conn;
}

void ep_conn_free(ep_conn *conn) {
    for (int kind = 0; kind < EP_N_OPS; kind++) free(conn->ops[kind].frame);
    free(conn->rows.bytes);
    free(conn->results.bytes);
    free(conn->rows_out);
    free(conn->results_out);
    free(conn);
}

/* ---- greeting ---- */

void ep_conn_dial(ep_group *group, const char *address, uint32_t rank) {
    ep_conn *conn = conn_new(group->net, EP_DIALING);
    conn->epoch = group->exchange.epoch;
    conn->rank = rank;
    snprintf(conn->address, sizeof(conn->address), "%s", address);
    bt_error err = {0};
    bt_status status = kvt_ucx_connect(&group->net->ucx, address, (void (*)(void))on_error, conn, &conn->ep, &err);
    if (status != BT_OK) {
        ep_conn_lose(conn, status, "rank %u: %s", rank, err.text);
        return;
    }
    wire_message hello = {.type = WIRE_EP_HELLO};
    ep_group_hello(group, &hello.ep_hello);
    ep_link_send(conn, EP_OP_GREETING, &hello, NULL, 0);
}

void ep_conn_accept(ep_net *net, struct ucp_conn_request *request) {
    ep_conn *conn = conn_new(net, EP_GREETING);
    conn->deadline_ns = in_ms(EP_GREET_MS);
    kvt_ucx_client(request, conn->address, sizeof(conn->address));
    bt_error err = {0};
    bt_status status = kvt_ucx_accept(&net->ucx, request, (void (*)(void))on_error, conn, &conn->ep, &err);
    if (status != BT_OK) ep_conn_lose(conn, status, "%s", err.text);
}

static void transport_choose(ep_conn *conn) {
    char transport[64];
    kvt_ucx_transport(conn->ep, transport, sizeof(transport));
    conn->is_eager = kvt_ucx_is_eager(transport);
}

static void welcome_send(ep_conn *conn, const char *refusal) {
    wire_message welcome = {.type = WIRE_EP_WELCOME, .ep_welcome = {.refusal = wire_str_from(refusal)}};
    ep_link_send(conn, EP_OP_GREETING, &welcome, NULL, 0);
}

/* It is told at the next look. That must not be overtaken by our close: the peer closes, or the deadline does. */
static void refuse(ep_conn *conn, const char *refusal) {
    conn->state = EP_REFUSED;
    conn->epoch = 0; /* none of ours */
    conn->deadline_ns = in_ms(EP_LINGER_MS);
    snprintf(conn->why.text, sizeof(conn->why.text), "%s", refusal);
}

void ep_conn_welcome(ep_conn *conn, const char *refusal) {
    if (refusal[0] != 0) {
        refuse(conn, refusal);
        return;
    }
    conn->state = EP_IS_UP;
    transport_choose(conn);
    welcome_send(conn, "");
}

static void take_hello(ep_conn *conn, const wire_ep_hello *hello) {
    const ep_net *net = conn->net;
    char refusal[WIRE_MAX_TEXT];
    kvt_hello_mismatch(&hello->compat, &net->compat, refusal, sizeof(refusal));
    bool is_forming = net->group != NULL && !net->group->has_failed && hello->epoch == net->group->exchange.epoch;
    if (refusal[0] == 0 && hello->epoch <= net->last_epoch && !is_forming)
        snprintf(refusal, sizeof(refusal), "epoch %llu is over", (unsigned long long)hello->epoch);
    if (refusal[0] == 0 && hello->rank >= EP_MAX_RANKS)
        snprintf(refusal, sizeof(refusal), "there is no rank %u", hello->rank);
    if (refusal[0] != 0) {
        refuse(conn, refusal);
        return;
    }
    conn->state = EP_WAITING; /* ep_group_open() takes it from here, now or when it forms that epoch */
    conn->deadline_ns = INT64_MAX;
    conn->epoch = hello->epoch;
    conn->rank = hello->rank;
    conn->hello = *hello;
}

static void take_welcome(ep_conn *conn, const wire_ep_welcome *welcome) {
    if (welcome->refusal.n_bytes > 0) {
        ep_conn_lose(conn, BT_BAD_REQUEST, "refused by rank %u at %s: %.*s", conn->rank, conn->address,
                     (int)welcome->refusal.n_bytes, welcome->refusal.bytes);
        return;
    }
    ep_group *group = conn->net->group;
    ep_link_buffers(conn, &group->limits); /* rows may come next; not before: who is not there is dialed many times */
    conn->state = EP_IS_UP;
    transport_choose(conn);
    group->peers[conn->rank] = conn;
}

/* ---- frames ---- */

static void take_begin(ep_conn *conn, const wire_ep_begin *begin) {
    ep_group *group = conn->net->group;
    /* A rank begins a step after it took our results of the one before. */
    if (begin->step != conn->step_begun + 1 || begin->step > group->step + 1)
        ep_conn_lose(conn, BT_BAD_REQUEST, "it begins step %llu at our step %llu", (unsigned long long)begin->step,
                     (unsigned long long)group->step);
    else
        conn->step_begun = begin->step;
}

static void take_leave(ep_conn *conn, const wire_ep_leave *leave) {
    conn->has_left = true;
    if (leave->has_failed)
        ep_group_fail(conn->net->group, "rank %u gave up: %.*s", conn->rank, (int)leave->text.n_bytes,
                      leave->text.bytes);
}

void ep_conn_take_frame(ep_conn *conn, const wire_message *message) {
    ep_group *group = conn->net->group;
    bool is_ours = group != NULL && conn->epoch == group->exchange.epoch;
    if (message->type == WIRE_EP_HELLO && conn->state == EP_GREETING) {
        take_hello(conn, &message->ep_hello);
    } else if (message->type == WIRE_EP_WELCOME && conn->state == EP_DIALING && is_ours) {
        take_welcome(conn, &message->ep_welcome);
    } else if (message->type == WIRE_EP_BEGIN && conn->state == EP_IS_UP && is_ours) {
        if (message->ep_begin.epoch != group->exchange.epoch)
            group->n_dropped++;
        else
            take_begin(conn, &message->ep_begin);
    } else if (message->type == WIRE_EP_LEAVE && conn->state == EP_IS_UP && is_ours) {
        if (message->ep_leave.epoch != group->exchange.epoch)
            group->n_dropped++;
        else
            take_leave(conn, &message->ep_leave);
    } else {
        ep_conn_lose(conn, BT_BAD_REQUEST, "a %s message out of place", wire_type_name(message->type));
    }
}

/* ---- the end ---- */

static void on_flushed(void *context) {
    ep_conn *conn = context;
    conn->is_flushing = false;
    conn->n_pending--;
}

static void on_closed(void *context) {
    ep_conn *conn = context;
    conn->is_closed = true;
    conn->n_pending--;
}

void ep_conn_flush(ep_conn *conn) {
    if (conn->ep == NULL || conn->is_lost || conn->state == EP_CLOSING) return;
    conn->is_flushing = kvt_ucx_flush(conn->ep, on_flushed, conn);
    conn->n_pending += conn->is_flushing;
}

void ep_conn_close(ep_conn *conn) {
    if (conn->state == EP_CLOSING) return;
    conn->state = EP_CLOSING;
    conn->deadline_ns = in_ms(EP_ABANDON_MS);
    conn->is_closed = true;
    if (conn->ep == NULL) return;
    conn->is_closed = !kvt_ucx_close_ep(conn->ep, on_closed, conn);
    conn->n_pending += !conn->is_closed;
}

static void conn_release(ep_conn *conn) {
    ep_net *net = conn->net;
    ep_conn **at = &net->conns;
    while (*at != conn) at = &(*at)->next;
    *at = conn->next;
    net->n_conns--;
    if (net->group != NULL && net->group->peers[conn->rank] == conn) net->group->peers[conn->rank] = NULL;
    if (conn->n_pending == 0) {
        ep_conn_free(conn);
        return;
    }
    conn->next = net->abandoned; /* UCX 1.13 forgets some requests; should it remember one, its memory is there */
    net->abandoned = conn;
}

/* A rank that left is gone, but what it sent still counts: its slots stay until the group ends. */
static bool is_kept(const ep_conn *conn) {
    const ep_group *group = conn->net->group;
    return conn->state == EP_IS_UP && conn->has_left && group != NULL && !group->has_failed;
}

void ep_conn_look(ep_net *net, int64_t now_ns) {
    for (ep_conn *conn = net->conns, *next; conn != NULL; conn = next) {
        next = conn->next;
        bool is_late = now_ns >= conn->deadline_ns;
        if (conn->state == EP_REFUSED && !conn->is_told) {
            conn->is_told = true;
            welcome_send(conn, conn->why.text);
        }
        if (conn->state == EP_CLOSING) {
            if ((conn->is_closed && conn->n_pending == 0) || is_late) conn_release(conn);
        } else if ((conn->is_lost || is_late) && !is_kept(conn)) {
            ep_conn_close(conn);
        }
    }
}
