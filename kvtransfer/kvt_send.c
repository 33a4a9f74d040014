/* Everything outgoing: frames at once, pushes and COMMITs through a queue per peer of which a few are with
 * UCX, so that one peer's long prompt neither floods UCX nor delays another's. Counts and hashes what is pushed, per
 * lease. Does not know what messages mean but for COMMIT, which it completes, and ABORT, which takes back. */
#include <stdlib.h>
#include <string.h>
#include <ucp/api/ucp.h>

#include "common/core/clock.h"
#include "kvtransfer/kvt_impl.h"

enum { CAP_HEADER_BYTES = 64 }; /* a PUSH or PROBE frame */

/* One active message with UCX. */
typedef struct kvt_send_op {
    struct kvt_send_op *prev, *next; /* in the connection's list */
    kvt_conn *conn;                  /* NULL: abandoned */
    kvt_command *push;               /* the push that it is a part of; NULL: a frame or a probe */
    bool is_bulk;                    /* a push or a probe */
    uint64_t n_bytes;
    ucp_dt_iov_t blocks[KVT_PUSH_BLOCKS]; /* of a push */
    uint8_t *frame;                       /* owned; NULL: none */
    uint8_t header[CAP_HEADER_BYTES];
} kvt_send_op;

static bt_status status_of(ucs_status_t status) {
    if (status == UCS_OK) return BT_OK;
    return status == UCS_ERR_NO_MEMORY ? BT_INTERNAL : BT_PEER_LOST;
}

/* Takes the push: all of its parts are complete, or never left. */
static void push_end(kvt_fabric *fabric, kvt_command *push) {
    kvt_event *event = kvt_event_new(fabric, KVT_PUSHED, push->peer);
    event->tag = push->tag;
    event->lease = push->lease;
    event->status = push->status;
    event->n_bytes = push->n_sent_bytes;
    kvt_event_post(fabric, event);
    free(push);
}

void kvt_send_refuse(kvt_fabric *fabric, kvt_command *push, bt_status status) {
    push->status = status;
    push_end(fabric, push);
}

static void push_end_if_over(kvt_fabric *fabric, kvt_command *push) {
    if (push->n_in_flight == 0 && push->next_block == push->n_blocks) push_end(fabric, push);
}

static void op_free(kvt_send_op *op) {
    free(op->frame);
    free(op);
}

/* Something is with UCX or the peer: `is_bulk` counts against the window. */
static void flight_begin(kvt_conn *conn, bool is_bulk) {
    if (conn->n_sends + conn->n_landings == 0) conn->moved_ns = bt_now_ns();
    conn->n_sends++;
    conn->n_pushing += is_bulk;
}

/* It is not any more; push: what it was a part of, NULL: of none. */
static void flight_end(kvt_conn *conn, bool is_bulk, kvt_command *push, uint64_t n_bytes, bt_status status) {
    conn->moved_ns = bt_now_ns();
    conn->n_sends--;
    conn->n_pushing -= is_bulk;
    if (push == NULL) return;
    push->n_in_flight--;
    if (status == BT_OK) {
        push->n_sent_bytes += n_bytes;
        atomic_fetch_add_explicit(&conn->fabric->bytes_sent, n_bytes, memory_order_relaxed);
    } else if (push->status == BT_OK) {
        push->status = status;
    }
    push_end_if_over(conn->fabric, push);
}

/* Its bytes are not needed any more; the op itself is, until UCX lets go of it. */
static void op_end(kvt_send_op *op, bt_status status) {
    kvt_conn *conn = op->conn;
    op->conn = NULL;
    if (op->prev != NULL)
        op->prev->next = op->next;
    else
        conn->ops = op->next;
    if (op->next != NULL) op->next->prev = op->prev;
    flight_end(conn, op->is_bulk, op->push, op->n_bytes, status);
}

static void on_sent(void *request, ucs_status_t status, void *context) {
    kvt_send_op *op = context;
    ucp_request_free(request);
    if (op->conn != NULL) op_end(op, status_of(status));
    op_free(op);
}

void kvt_send_abandon(kvt_conn *conn) {
    while (conn->ops != NULL) op_end(conn->ops, BT_PEER_LOST); /* not freed: on_sent() may come yet */
}

/* Takes the op. n_blocks > 1: data is op->blocks; else data [n_bytes]. What is sent stays valid until op_end(). */
static void op_begin(kvt_send_op *op, unsigned id, size_t n_header_bytes, const void *data, size_t n_bytes,
                     uint32_t n_blocks, uint32_t flags) {
    kvt_conn *conn = op->conn;
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS,
        .cb.send = on_sent,
        .user_data = op,
        .flags = flags | UCP_AM_SEND_FLAG_REPLY, /* so that the receiver knows whose it is */
    };
    if (n_blocks > 1) {
        param.op_attr_mask |= UCP_OP_ATTR_FIELD_DATATYPE;
        param.datatype = UCP_DATATYPE_IOV;
    } else if (op->push != NULL && conn->fabric->ucx.memory != NULL) {
        param.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMH;
        param.memh = conn->fabric->ucx.memory;
    }
    op->next = conn->ops;
    if (op->next != NULL) op->next->prev = op;
    conn->ops = op;
    flight_begin(conn, op->is_bulk);
    const void *header = n_header_bytes > 0 ? op->header : NULL;
    size_t count = n_blocks > 1 ? n_blocks : n_bytes;
    void *request = ucp_am_send_nbx(conn->ep, id, header, n_header_bytes, data, count, &param);
    if (UCS_PTR_IS_PTR(request)) return;
    ucs_status_t status = UCS_PTR_STATUS(request);
    if (status != UCS_OK) kvt_conn_lose(conn, BT_PEER_LOST, "sending failed: %s", ucs_status_string(status));
    op_end(op, status_of(status));
    op_free(op);
}

static kvt_send_op *op_new(kvt_conn *conn) {
    kvt_send_op *op = bt_calloc(1, sizeof(*op));
    op->conn = conn;
    return op;
}

/* Takes the frame. */
static void frame_send(kvt_conn *conn, uint8_t *frame, size_t n_bytes) {
    if (conn->ep == NULL || conn->is_lost) {
        free(frame);
        return;
    }
    kvt_send_op *op = op_new(conn);
    op->frame = frame;
    op_begin(op, KVT_AM_FRAME, 0, frame, n_bytes, 1, UCP_AM_SEND_FLAG_EAGER);
}

void kvt_send_frame(kvt_conn *conn, const wire_message *message) {
    bt_buf frame = {0};
    wire_encode(message, &frame);
    frame_send(conn, frame.bytes, frame.n_bytes);
}

/* A frame as the header of what lies in the first n_blocks of op->blocks. */
static void bulk_send(kvt_conn *conn, kvt_send_op *op, const wire_message *header, uint32_t n_blocks) {
    bt_buf *scratch = &conn->fabric->scratch;
    bt_buf_clear(scratch);
    wire_encode(header, scratch);
    BT_ASSERT(scratch->n_bytes <= sizeof(op->header));
    memcpy(op->header, scratch->bytes, scratch->n_bytes);
    op->is_bulk = true;
    for (uint32_t i = 0; i < n_blocks; i++) op->n_bytes += op->blocks[i].length;
    uint32_t flags = conn->is_eager ? UCP_AM_SEND_FLAG_EAGER : 0;
    if (conn->fabric->config.way == KVT_WAY_EAGER) flags = UCP_AM_SEND_FLAG_EAGER;
    if (conn->fabric->config.way == KVT_WAY_RENDEZVOUS) flags = UCP_AM_SEND_FLAG_RNDV;
    const void *data = n_blocks > 1 ? op->blocks : op->blocks[0].buffer;
    op_begin(op, KVT_AM_DATA, scratch->n_bytes, data, op->n_bytes, n_blocks, flags);
}

void kvt_send_probe(kvt_conn *conn, uint64_t nonce) {
    wire_message header = {.type = WIRE_PROBE, .probe = {.nonce = nonce}};
    kvt_send_op *op = op_new(conn);
    op->blocks[0] = (ucp_dt_iov_t){conn->fabric->probe, kvt_block_bytes(conn->fabric)};
    bulk_send(conn, op, &header, 1);
}

/* ---- what was pushed under a lease ---- */

static kvt_sum **sum_find(kvt_conn *conn, uint64_t lease) {
    kvt_sum **at = &conn->sums;
    while (*at != NULL && (*at)->lease != lease) at = &(*at)->next;
    return at;
}

static void sum_add(kvt_conn *conn, uint64_t lease, uint64_t hash) {
    kvt_sum **at = sum_find(conn, lease), *sum = *at;
    if (sum == NULL) {
        sum = bt_calloc(1, sizeof(*sum));
        sum->lease = lease;
    } else {
        *at = sum->next;
    }
    sum->next = conn->sums; /* in front: the next push is probably of the same lease */
    conn->sums = sum;
    sum->n_pushes++;
    sum->checksum += hash;
}

static kvt_sum sum_take(kvt_conn *conn, uint64_t lease) {
    kvt_sum **at = sum_find(conn, lease), *sum = *at;
    if (sum == NULL) return (kvt_sum){0};
    kvt_sum taken = *sum;
    *at = sum->next;
    free(sum);
    return taken;
}

/* ---- the queue of a peer ---- */

/* The next block of the push and its bytes, counted and hashed for COMMIT. */
static const uint8_t *push_take_block(kvt_conn *conn, kvt_command *push, wire_push *out, size_t *n_bytes) {
    const kv_layout *layout = &conn->fabric->config.layout;
    uint32_t i = push->next_block++;
    uint32_t n_rows = i + 1 == push->n_blocks ? push->n_rows_last : KV_BLOCK_TOKENS;
    *n_bytes = n_rows * kv_token_bytes(layout);
    const uint8_t *bytes = conn->fabric->config.memory.base + kv_offset_bytes(layout, push->layer, push->blocks[i], 0);
    *out = (wire_push){.lease = push->lease, .layer = push->layer, .block = push->first_block + i, .n_rows = n_rows};
    sum_add(conn, push->lease, kvt_push_hash(out->layer, out->block, bytes, *n_bytes));
    return bytes;
}

/* Blocks in one message. */
static uint32_t blocks_at_once(const kvt_conn *conn) {
    if (conn->is_pulled) return KVT_PULL_BLOCKS;
    bool is_tcp = strncmp(conn->transport, "tcp/", 4) == 0;
    return is_tcp && conn->fabric->config.way != KVT_WAY_RENDEZVOUS ? KVT_PUSH_BLOCKS : 1;
}

static void push_send(kvt_conn *conn, kvt_command *push) {
    wire_message header = {.type = WIRE_PUSH};
    kvt_send_op *op = op_new(conn);
    uint32_t n = 0, first_block = push->first_block + push->next_block;
    for (uint32_t most = blocks_at_once(conn); n < most && push->next_block < push->n_blocks; n++) {
        size_t n_bytes;
        const uint8_t *bytes = push_take_block(conn, push, &header.push, &n_bytes);
        op->blocks[n] = (ucp_dt_iov_t){(void *)(uintptr_t)bytes, n_bytes};
    }
    header.push.block = first_block; /* and n_rows is the last one's */
    op->push = push;
    push->n_in_flight++;
    bulk_send(conn, op, &header, n);
}

/* As push_send(), but the bytes stay where they are until kvt_send_pulled(). */
static void push_announce(kvt_conn *conn, kvt_command *push) {
    uint64_t offsets[KVT_PULL_BLOCKS], n_all_bytes = 0;
    wire_message message = {
        .type = WIRE_PULL,
        .pull = {.lease = push->lease, .layer = push->layer, .first_block = push->first_block + push->next_block},
    };
    while (message.pull.n_offsets < KVT_PULL_BLOCKS && push->next_block < push->n_blocks) {
        wire_push block;
        size_t n_bytes;
        const uint8_t *bytes = push_take_block(conn, push, &block, &n_bytes);
        offsets[message.pull.n_offsets++] = (uint64_t)(bytes - conn->fabric->config.memory.base);
        message.pull.n_rows = block.n_rows;
        n_all_bytes += n_bytes;
    }
    message.pull.offsets = offsets;
    uint32_t last = (conn->first_announced + conn->n_announced++) % KVT_PULL_WINDOW;
    conn->announced[last] = (kvt_announced){push, n_all_bytes};
    push->n_in_flight++;
    flight_begin(conn, true);
    kvt_send_frame(conn, &message);
}

static void announced_end(kvt_conn *conn, bt_status status) {
    kvt_announced first = conn->announced[conn->first_announced];
    conn->first_announced = (conn->first_announced + 1) % KVT_PULL_WINDOW;
    conn->n_announced--;
    flight_end(conn, true, first.push, first.n_bytes, status);
}

bool kvt_send_pulled(kvt_conn *conn, uint32_t n) {
    if (n > conn->n_announced) return false;
    for (; n > 0; n--) announced_end(conn, BT_OK);
    return true;
}

/* Takes the COMMIT: it says what was pushed before it. The tokens are copied once more, once per request. */
static void commit_send(kvt_conn *conn, kvt_command *command) {
    bt_arena arena = {0};
    wire_message message;
    bt_status status = wire_decode(command->frame, command->n_bytes, &arena, &message, NULL);
    BT_ASSERT(status == BT_OK); /* encoded by kvt_send() */
    kvt_sum sum = sum_take(conn, message.commit.lease);
    message.commit.n_pushes = sum.n_pushes;
    message.commit.checksum = sum.checksum;
    kvt_send_frame(conn, &message);
    bt_arena_fini(&arena);
    free(command->frame);
    free(command);
}

static kvt_command *job_pop(kvt_conn *conn) {
    bt_queue_node *node = conn->jobs;
    conn->jobs = node->next;
    if (conn->jobs == NULL) conn->jobs_tail = &conn->jobs;
    return BT_QUEUE_ENTRY(node, kvt_command, node);
}

/* The jobs of one lease (0: of all) end here: COMMITs are dropped, pushes complete when what UCX has of them is. */
static void jobs_drop(kvt_conn *conn, uint64_t lease, bt_status status) {
    bt_queue_node *node = conn->jobs;
    conn->jobs = NULL;
    conn->jobs_tail = &conn->jobs;
    for (bt_queue_node *next; node != NULL; node = next) {
        next = node->next;
        kvt_command *job = BT_QUEUE_ENTRY(node, kvt_command, node);
        if (lease != 0 && job->lease != lease) {
            node->next = NULL;
            *conn->jobs_tail = node;
            conn->jobs_tail = &node->next;
        } else if (job->kind == KVT_CMD_PUSH) {
            if (job->status == BT_OK) job->status = status;
            job->next_block = job->n_blocks;
            push_end_if_over(conn->fabric, job);
        } else {
            free(job->frame);
            free(job);
        }
    }
}

void kvt_send_drop(kvt_conn *conn, bt_status status) {
    jobs_drop(conn, 0, status);
    while (conn->n_announced > 0) announced_end(conn, status);
}

void kvt_send_command(kvt_conn *conn, kvt_command *command) {
    if (command->kind == KVT_CMD_SEND && command->type != WIRE_COMMIT) {
        if (command->type == WIRE_ABORT && command->lease != 0) {
            jobs_drop(conn, command->lease, BT_CANCELED);
            sum_take(conn, command->lease);
        }
        frame_send(conn, command->frame, command->n_bytes);
        free(command);
        return;
    }
    command->node.next = NULL;
    *conn->jobs_tail = &command->node;
    conn->jobs_tail = &command->node.next;
}

static bool conn_pump(kvt_conn *conn) {
    bool has_sent = false;
    uint32_t window = conn->is_pulled ? KVT_PULL_WINDOW : conn->is_eager ? KVT_EAGER_WINDOW : KVT_WINDOW;
    while (conn->jobs != NULL && conn->n_pushing < window && !conn->is_lost) {
        kvt_command *job = BT_QUEUE_ENTRY(conn->jobs, kvt_command, node);
        has_sent = true;
        if (job->kind == KVT_CMD_SEND) {
            commit_send(conn, job_pop(conn));
            continue;
        }
        bool is_last = job->n_blocks - job->next_block <= blocks_at_once(conn);
        if (is_last) job_pop(conn); /* first: its last part may complete at once */
        if (conn->is_pulled)
            push_announce(conn, job);
        else
            push_send(conn, job);
    }
    return has_sent;
}

bool kvt_send_pump(kvt_fabric *fabric) {
    bool has_sent = false;
    for (kvt_conn *conn = fabric->conns; conn != NULL; conn = conn->next) {
        if (conn->ep != NULL && conn->state != KVT_CLOSING) has_sent |= conn_pump(conn);
    }
    return has_sent;
}
