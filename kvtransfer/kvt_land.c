/* Everything incoming. A control frame becomes an event; a push becomes a landing: checked against its lease, copied
 * (eager), received by UCX (rendezvous) or read from the sender (pulled) into the KV memory, hashed, counted. Peers
 * that send what no honest peer sends are closed; pushes that come too late for their lease are only refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucp/api/ucp.h>

#include "common/core/clock.h"
#include "common/core/log.h"
#include "kvtransfer/kvt_impl.h"

enum { MAX_FRAME_BYTES = WIRE_HEADER_BYTES + WIRE_MAX_PAYLOAD_BYTES };

/* A rendezvous that UCX carries out. */
typedef struct kvt_landing {
    struct kvt_landing *prev, *next; /* in the connection's list */
    kvt_fabric *fabric;
    kvt_conn *conn;   /* NULL: abandoned */
    kvt_lease *lease; /* a push's; NULL: a frame or a probe */
    wire_push push;
    uint64_t probe_nonce;
    uint8_t *bytes; /* where it lands; owned if it is a frame */
    size_t n_bytes;
    bool is_frame;
} kvt_landing;

static void refuse_frame(kvt_conn *conn, const char *text) {
    atomic_fetch_add_explicit(&conn->fabric->frames_refused, 1, memory_order_relaxed);
    kvt_conn_lose(conn, BT_BAD_REQUEST, "%s", text);
}

/* ---- leases ---- */

static void lease_remove_if_closed(kvt_fabric *fabric, kvt_lease *lease) {
    if (!kvt_lease_is_closed(lease)) return;
    kvt_event *event = kvt_event_new(fabric, KVT_LEASE_CLOSED, lease->peer);
    event->lease = lease->id;
    event->landed = lease->landed;
    kvt_lease_table_remove(&fabric->leases, lease);
    kvt_event_post(fabric, event);
}

void kvt_land_lease_open(kvt_fabric *fabric, const kvt_command *command) {
    kvt_lease_args args = {
        .lease = command->lease,
        .blocks = command->blocks,
        .first_block = command->first_block,
        .n_blocks = command->n_blocks,
        .n_tokens = command->n_tokens,
    };
    kvt_lease *lease = kvt_lease_table_add(&fabric->leases, command->peer, &args, fabric->config.layout.n_layers);
    BT_ASSERT(lease != NULL); /* "never used twice": our owner's own number */
}

void kvt_land_lease_close(kvt_fabric *fabric, uint64_t id, uint32_t n_pushes) {
    kvt_lease *lease = kvt_lease_table_find(&fabric->leases, id);
    if (lease == NULL) return;
    kvt_lease_close_begin(lease, n_pushes);
    if (kvt_conn_find(fabric, lease->peer) == NULL) lease->has_refused = true; /* nothing more will come */
    lease_remove_if_closed(fabric, lease);
}

void kvt_land_lease_close_all(kvt_fabric *fabric) {
    for (uint32_t i = 0; i < fabric->leases.n_chains; i++) {
        for (kvt_lease *lease = fabric->leases.chains[i], *next; lease != NULL; lease = next) {
            next = lease->next;
            kvt_lease_close_begin(lease, 0);
            lease_remove_if_closed(fabric, lease);
        }
    }
}

/* ---- control frames ---- */

/* Takes the frame. */
static void message_post(kvt_conn *conn, uint8_t *frame, size_t n_bytes) {
    kvt_event *event = kvt_event_new(conn->fabric, KVT_MESSAGE, conn->id);
    event->frame = frame;
    bt_error err = {0};
    if (wire_decode(frame, n_bytes, &event->arena, &event->message, &err) != BT_OK) {
        kvt_event_free(event);
        atomic_fetch_add_explicit(&conn->fabric->frames_refused, 1, memory_order_relaxed);
        if (!kvt_hello_refuse(conn, err.text)) kvt_conn_lose(conn, BT_BAD_REQUEST, "%s", err.text);
        return;
    }
    wire_type type = event->message.type;
    if (conn->state == KVT_DRAINING && type != WIRE_PULLED) { /* who waits for pushes to end hears nothing else */
        kvt_event_free(event);
        return;
    }
    bool is_for_owner = conn->state == KVT_IS_UP && type >= WIRE_RESERVE && type <= WIRE_RENEW && type != WIRE_PUSH;
    if (is_for_owner) {
        event->incarnation = conn->incarnation;
        kvt_event_post(conn->fabric, event);
        return;
    }
    if (!kvt_hello_take(conn, &event->message) && !kvt_pull_take(conn, &event->message)) {
        char text[96];
        snprintf(text, sizeof(text), "a %s message out of place", wire_type_name(type));
        refuse_frame(conn, text);
    }
    kvt_event_free(event);
}

/* ---- data ---- */

static void push_land(kvt_landing *land, uint64_t hash, bool is_landed) {
    if (is_landed) atomic_fetch_add_explicit(&land->fabric->bytes_landed, land->n_bytes, memory_order_relaxed);
    kvt_lease_land_end(land->lease, land->n_bytes, hash, is_landed);
    lease_remove_if_closed(land->fabric, land->lease);
}

/* All of it lies at `from`: lands here and now. */
static void push_copy(kvt_landing *land, const void *from) {
    push_land(land, kvt_push_copy(land->push.layer, land->push.block, land->bytes, from, land->n_bytes), true);
}

/* UCX has put it there, or has not. */
static void push_received(kvt_landing *land, bool is_landed) {
    uint64_t hash = 0;
    if (is_landed) hash = kvt_push_hash(land->push.layer, land->push.block, land->bytes, land->n_bytes);
    push_land(land, hash, is_landed);
}

static void landing_end(kvt_landing *land, bool is_landed) {
    if (land->lease != NULL)
        push_received(land, is_landed);
    else if (land->is_frame && is_landed && !land->conn->is_lost)
        message_post(land->conn, land->bytes, land->n_bytes);
    else if (land->is_frame)
        free(land->bytes);
    else if (is_landed && !land->conn->is_lost)
        kvt_hello_send_probed(land->conn, land->probe_nonce);
}

static void flight_begin(kvt_landing *land) {
    kvt_conn *conn = land->conn;
    if (conn->n_sends + conn->n_landings == 0) conn->moved_ns = bt_now_ns();
    conn->n_landings++;
    land->next = conn->landing;
    if (land->next != NULL) land->next->prev = land;
    conn->landing = land;
}

/* UCX writes no more; the struct itself is needed until it lets go of it. */
static void flight_end(kvt_landing *land, bool is_landed) {
    kvt_conn *conn = land->conn;
    if (land->prev != NULL)
        land->prev->next = land->next;
    else
        conn->landing = land->next;
    if (land->next != NULL) land->next->prev = land->prev;
    conn->moved_ns = bt_now_ns();
    conn->n_landings--;
    landing_end(land, is_landed);
    land->conn = NULL;
}

static void on_received(void *request, ucs_status_t status, size_t n_bytes, void *context) {
    kvt_landing *land = context;
    ucp_request_free(request);
    if (land->conn != NULL) flight_end(land, status == UCS_OK && n_bytes == land->n_bytes);
    free(land);
}

void kvt_land_abandon(kvt_conn *conn) {
    while (conn->landing != NULL) flight_end(conn->landing, false); /* not freed: on_received() may come yet */
}

/* Copies (eager) or lets UCX receive (rendezvous) into land->bytes, then landing_end(). */
static void landing_begin(const kvt_landing *wanted, void *data, const ucp_am_recv_param_t *param) {
    if (!(param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV)) {
        kvt_landing land = *wanted;
        if (land.is_frame) memcpy(land.bytes, data, land.n_bytes); /* a probe is thrown away */
        if (land.lease != NULL)
            push_copy(&land, data);
        else
            landing_end(&land, true);
        return;
    }
    kvt_landing *land = bt_calloc(1, sizeof(*land));
    *land = *wanted;
    ucp_request_param_t receive = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL,
        .cb.recv_am = on_received,
        .user_data = land,
    };
    if (land->lease != NULL && land->fabric->ucx.memory != NULL) {
        receive.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMH;
        receive.memh = land->fabric->ucx.memory;
    }
    flight_begin(land);
    void *request = ucp_am_recv_data_nbx(land->fabric->ucx.worker, data, land->bytes, land->n_bytes, &receive);
    if (UCS_PTR_IS_PTR(request)) return;
    flight_end(land, request == NULL);
    free(land);
}

static kvt_conn *sender(kvt_fabric *fabric, const ucp_am_recv_param_t *param) {
    kvt_conn *conn = NULL;
    if (param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP) conn = kvt_conn_find_ep(fabric, param->reply_ep);
    if (conn != NULL)
        conn->moved_ns = bt_now_ns();
    else
        atomic_fetch_add_explicit(&fabric->frames_refused, 1, memory_order_relaxed); /* or going down */
    return conn;
}

static ucs_status_t on_frame(void *context, const void *header, size_t n_header_bytes, void *data, size_t n_bytes,
                             const ucp_am_recv_param_t *param) {
    (void)header;
    kvt_fabric *fabric = context;
    kvt_conn *conn = sender(fabric, param);
    if (conn == NULL) return UCS_OK;
    if (n_header_bytes != 0 || n_bytes < WIRE_HEADER_BYTES || n_bytes > MAX_FRAME_BYTES) {
        refuse_frame(conn, "a control frame of an impossible size");
        return UCS_OK;
    }
    kvt_landing land = {.fabric = fabric, .conn = conn, .is_frame = true, .n_bytes = n_bytes};
    land.bytes = bt_calloc(1, n_bytes);
    landing_begin(&land, data, param);
    return UCS_OK;
}

/* false: it may not land. */
static bool push_begin(kvt_conn *conn, const wire_push *push, size_t n_bytes, kvt_landing *out) {
    kvt_fabric *fabric = conn->fabric;
    const kv_layout *layout = &fabric->config.layout;
    kvt_lease *lease = kvt_lease_table_find(&fabric->leases, push->lease);
    uint32_t block = 0;
    bt_status status = BT_BAD_REQUEST;
    if (lease != NULL) status = kvt_lease_land_begin(lease, conn->id, push, n_bytes, kv_token_bytes(layout), &block);
    if (status != BT_OK) { /* late for a lease that ended is a normal day */
        atomic_fetch_add_explicit(&fabric->pushes_refused, 1, memory_order_relaxed);
        if (lease != NULL) lease_remove_if_closed(fabric, lease);
        return false;
    }
    *out = (kvt_landing){.fabric = fabric, .conn = conn, .lease = lease, .push = *push, .n_bytes = n_bytes};
    out->bytes = fabric->config.memory.base + kv_offset_bytes(layout, push->layer, block, 0);
    return true;
}

void kvt_land_pull(kvt_conn *conn, const wire_push *push, const uint8_t *bytes) {
    size_t n_bytes = push->n_rows * kv_token_bytes(&conn->fabric->config.layout);
    kvt_landing land;
    if (!push_begin(conn, push, n_bytes, &land)) return;
    atomic_fetch_add_explicit(&conn->fabric->bytes_pulled, n_bytes, memory_order_relaxed);
    push_copy(&land, bytes);
}

/* Consecutive blocks; all but the last are full. Several come only with all their bytes. */
static bool pushes_begin(kvt_conn *conn, const wire_push *push, uint8_t *data, size_t n_bytes,
                         const ucp_am_recv_param_t *param) {
    size_t block_bytes = kvt_block_bytes(conn->fabric);
    bool is_rendezvous = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
    if (n_bytes == 0 || n_bytes > (is_rendezvous ? 1 : KVT_PUSH_BLOCKS) * block_bytes) return false;
    wire_push one = *push;
    for (size_t left_bytes = n_bytes; left_bytes > 0; one.block++) {
        bool is_last = left_bytes <= block_bytes;
        size_t one_bytes = is_last ? left_bytes : block_bytes;
        one.n_rows = is_last ? push->n_rows : KV_BLOCK_TOKENS;
        kvt_landing land;
        if (push_begin(conn, &one, one_bytes, &land)) landing_begin(&land, data, param);
        data += one_bytes;
        left_bytes -= one_bytes;
    }
    return true;
}

static ucs_status_t on_data(void *context, const void *header, size_t n_header_bytes, void *data, size_t n_bytes,
                            const ucp_am_recv_param_t *param) {
    kvt_fabric *fabric = context;
    kvt_conn *conn = sender(fabric, param);
    if (conn == NULL || conn->state == KVT_DRAINING) return UCS_OK;
    bt_arena arena = {0}; /* neither message has arrays: nothing is allocated */
    wire_message message;
    bt_error err = {0};
    if (wire_decode(header, n_header_bytes, &arena, &message, &err) != BT_OK) {
        bt_arena_fini(&arena);
        refuse_frame(conn, err.text);
        return UCS_OK;
    }
    bt_arena_fini(&arena);
    if (message.type == WIRE_PUSH && conn->state == KVT_IS_UP) {
        if (!pushes_begin(conn, &message.push, data, n_bytes, param)) refuse_frame(conn, "a push of too many bytes");
    } else if (message.type == WIRE_PROBE && conn->state == KVT_IS_UP && n_bytes <= kvt_block_bytes(fabric)) {
        kvt_landing land = {.fabric = fabric, .conn = conn, .probe_nonce = message.probe.nonce, .n_bytes = n_bytes};
        land.bytes = fabric->probe;
        landing_begin(&land, data, param);
    } else {
        refuse_frame(conn, "bulk data out of place");
    }
    return UCS_OK;
}

bt_status kvt_land_open(kvt_fabric *fabric, bt_error *err) {
    ucp_am_recv_callback_t handlers[] = {[KVT_AM_FRAME] = on_frame, [KVT_AM_DATA] = on_data};
    for (unsigned id = KVT_AM_FRAME; id <= KVT_AM_DATA; id++) {
        bt_status status = kvt_ucx_handle(&fabric->ucx, id, (void (*)(void))handlers[id], fabric, err);
        if (status != BT_OK) return status;
    }
    return BT_OK;
}
