/* Messages over a connection: out of its own buffers, into its slots. Checks that what comes fits what was agreed;
 * whether it is what the engine waits for is ep_group.c's to check. */
#include <stdlib.h>
#include <string.h>
#include <ucp/api/ucp.h>

#include "kvtransfer/ep_impl.h"

enum { SMALL_BYTES = 1024 }; /* never worth a rendezvous */

/* ---- out ---- */

static void on_sent(void *request, ucs_status_t status, void *context) {
    ep_op *op = context;
    ucp_request_free(request);
    op->is_busy = false;
    op->conn->n_pending--;
    if (status != UCS_OK) ep_conn_lose(op->conn, BT_PEER_LOST, "sending failed: %s", ucs_status_string(status));
}

void ep_link_send(ep_conn *conn, ep_op_kind kind, const wire_message *message, const void *data, size_t n_bytes) {
    if (conn->ep == NULL || conn->is_lost) return;
    ep_op *op = &conn->ops[kind];
    BT_ASSERT(!op->is_busy);
    bt_buf *scratch = &conn->net->scratch;
    bt_buf_clear(scratch);
    wire_encode(message, scratch);
    BT_ASSERT(scratch->n_bytes <= EP_CAP_FRAME_BYTES);
    memcpy(op->frame, scratch->bytes, scratch->n_bytes);
    bool has_data = kind == EP_OP_ROWS || kind == EP_OP_RESULTS;
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS,
        .cb.send = on_sent,
        .user_data = op,
        .flags = UCP_AM_SEND_FLAG_REPLY, /* so that the receiver knows whose it is */
    };
    if (!has_data || n_bytes <= SMALL_BYTES)
        param.flags |= UCP_AM_SEND_FLAG_EAGER;
    else if (conn->net->is_rendezvous)
        param.flags |= UCP_AM_SEND_FLAG_RNDV;
    else if (conn->is_eager)
        param.flags |= UCP_AM_SEND_FLAG_EAGER;
    void *request = has_data ? ucp_am_send_nbx(conn->ep, EP_AM_DATA, op->frame, scratch->n_bytes, data, n_bytes, &param)
                             : ucp_am_send_nbx(conn->ep, EP_AM_FRAME, NULL, 0, op->frame, scratch->n_bytes, &param);
    if (UCS_PTR_IS_PTR(request)) {
        op->is_busy = true;
        conn->n_pending++;
    } else if (request != NULL) {
        ep_conn_lose(conn, BT_PEER_LOST, "sending failed: %s", ucs_status_string(UCS_PTR_STATUS(request)));
    }
}

/* ---- in ---- */

void ep_link_buffers(ep_conn *conn, const ep_limits *limits) {
    size_t rows_bytes = ep_rows_bytes(limits, limits->max_rows, limits->max_pairs);
    size_t results_bytes = ep_results_bytes(limits, limits->max_pairs);
    conn->rows.bytes = bt_calloc_aligned(rows_bytes, 64);
    conn->rows_out = bt_calloc_aligned(rows_bytes, 64);
    conn->results.bytes = bt_calloc_aligned(results_bytes, 64);
    conn->results_out = bt_calloc_aligned(results_bytes, 64);
}

static void on_received(void *request, ucs_status_t status, size_t n_bytes, void *context) {
    ep_slot *slot = context;
    ucp_request_free(request);
    slot->conn->n_pending--;
    if (status == UCS_OK && n_bytes == slot->n_bytes)
        slot->state = EP_FULL;
    else
        ep_conn_lose(slot->conn, BT_PEER_LOST, "receiving failed: %s", ucs_status_string(status));
}

static void slot_fill(ep_slot *slot, void *data, const ucp_am_recv_param_t *am) {
    if (!(am->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV)) {
        memcpy(slot->bytes, data, slot->n_bytes);
        slot->state = EP_FULL;
        return;
    }
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL,
        .cb.recv_am = on_received,
        .user_data = slot,
    };
    slot->state = EP_RECEIVING;
    slot->conn->n_pending++;
    void *request = ucp_am_recv_data_nbx(slot->conn->net->ucx.worker, data, slot->bytes, slot->n_bytes, &param);
    if (UCS_PTR_IS_PTR(request)) return;
    slot->conn->n_pending--;
    ep_conn_lose(slot->conn, BT_PEER_LOST, "receiving failed: %s", ucs_status_string(UCS_PTR_STATUS(request)));
}

/* NULL: not ours to receive; the connection is lost then if it is the peer's fault. */
static ep_slot *slot_for(ep_conn *conn, const wire_message *message, size_t n_bytes) {
    ep_group *group = conn->net->group;
    const ep_limits *limits = &group->limits;
    bool is_rows = message->type == WIRE_EP_ROWS;
    wire_ep_rows head = message->ep_rows;
    if (!is_rows) {
        const wire_ep_results *results = &message->ep_results;
        head = (wire_ep_rows){results->epoch, results->step, results->layer, 0, results->n_pairs};
    }
    if (head.epoch != group->exchange.epoch) {
        group->n_dropped++;
        return NULL;
    }
    ep_slot *slot = is_rows ? &conn->rows : &conn->results;
    bool has_size =
        head.layer < limits->n_layers && head.n_rows <= limits->max_rows && head.n_pairs <= limits->max_pairs;
    size_t wanted_bytes = 0;
    if (has_size)
        wanted_bytes =
            is_rows ? ep_rows_bytes(limits, head.n_rows, head.n_pairs) : ep_results_bytes(limits, head.n_pairs);
    if (!has_size || n_bytes != wanted_bytes || slot->state != EP_EMPTY || head.step != conn->step_begun) {
        ep_conn_lose(conn, BT_BAD_REQUEST, "%s message that does not fit: step %llu, layer %u, %u rows, %u pairs",
                     is_rows ? "an ep_rows" : "an ep_results", (unsigned long long)head.step, head.layer, head.n_rows,
                     head.n_pairs);
        return NULL;
    }
    slot->step = head.step;
    slot->layer = head.layer;
    slot->n_rows = head.n_rows;
    slot->n_pairs = head.n_pairs;
    slot->n_bytes = n_bytes;
    return slot;
}

static ep_conn *sender(ep_net *net, const ucp_am_recv_param_t *param) {
    if (!(param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP)) return NULL;
    for (ep_conn *conn = net->conns; conn != NULL; conn = conn->next) {
        if (conn->ep == param->reply_ep) return conn->is_lost || conn->state == EP_CLOSING ? NULL : conn;
    }
    return NULL;
}

/* None of our messages has arrays, so the arena stays empty. */
static bool decode(ep_conn *conn, const void *bytes, size_t n_bytes, wire_message *out) {
    bt_arena arena = {0};
    bt_error err = {0};
    bt_status status = BT_BAD_REQUEST;
    if (n_bytes > EP_CAP_FRAME_BYTES)
        bt_fail(&err, BT_BAD_REQUEST, "a frame of %zu bytes", n_bytes);
    else
        status = wire_decode(bytes, n_bytes, &arena, out, &err);
    if (status == BT_OK && out->type < WIRE_EP_HELLO)
        status = bt_fail(&err, BT_BAD_REQUEST, "a %s message out of place", wire_type_name(out->type));
    bt_arena_fini(&arena);
    if (status != BT_OK) ep_conn_lose(conn, BT_BAD_REQUEST, "%s", err.text);
    return status == BT_OK;
}

static ucs_status_t on_frame(void *context, const void *header, size_t n_header_bytes, void *data, size_t n_bytes,
                             const ucp_am_recv_param_t *param) {
    (void)header;
    ep_conn *conn = sender(context, param);
    wire_message message;
    if (conn == NULL) return UCS_OK;
    if (n_header_bytes != 0 || (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV))
        ep_conn_lose(conn, BT_BAD_REQUEST, "a frame that is not one");
    else if (decode(conn, data, n_bytes, &message))
        ep_conn_take_frame(conn, &message);
    return UCS_OK;
}

static ucs_status_t on_data(void *context, const void *header, size_t n_header_bytes, void *data, size_t n_bytes,
                            const ucp_am_recv_param_t *param) {
    ep_conn *conn = sender(context, param);
    wire_message message;
    if (conn == NULL || !decode(conn, header, n_header_bytes, &message)) return UCS_OK;
    const ep_group *group = conn->net->group;
    bool is_ours = conn->state == EP_IS_UP && group != NULL && conn->epoch == group->exchange.epoch;
    if (!is_ours || (message.type != WIRE_EP_ROWS && message.type != WIRE_EP_RESULTS)) {
        ep_conn_lose(conn, BT_BAD_REQUEST, "bulk data out of place");
        return UCS_OK;
    }
    ep_slot *slot = slot_for(conn, &message, n_bytes);
    if (slot != NULL) slot_fill(slot, data, param);
    return UCS_OK;
}

bt_status ep_link_open(ep_net *net, bt_error *err) {
    ucp_am_recv_callback_t handlers[] = {[EP_AM_FRAME] = on_frame, [EP_AM_DATA] = on_data};
    for (unsigned id = EP_AM_FRAME; id <= EP_AM_DATA; id++) {
        bt_status status = kvt_ucx_handle(&net->ucx, id, (void (*)(void))handlers[id], net, err);
        if (status != BT_OK) return status;
    }
    return BT_OK;
}
