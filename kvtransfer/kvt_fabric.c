/* The fabric and its thread: takes commands, lets UCX progress, hands pushes on, sleeps. Owns the queue of commands;
 * what they do is in kvt_conn.c, kvt_send.c and kvt_land.c.
 *
 * The thread sleeps in poll() on UCX's event fd, the queue and the next deadline. While transfers are in flight it
 * looks for SPIN_NS more before it does: arming and waking costs 50 us, more than most pushes take. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucp/api/ucp.h>
#include <unistd.h>

#include "common/core/clock.h"
#include "common/core/log.h"
#include "kvtransfer/kvt_impl.h"

enum {
    SPIN_NS = 50 * BT_NS_PER_US,
    MAX_PROGRESS = 64, /* calls in a row: a flood of arrivals must not keep commands waiting */
};

/* ---- the fabric's thread ---- */

static void on_send(kvt_fabric *fabric, kvt_command *command) {
    kvt_conn *conn = kvt_conn_find(fabric, command->peer);
    if (conn != NULL && conn->state == KVT_IS_UP) {
        kvt_send_command(conn, command);
    } else if (command->kind == KVT_CMD_PUSH) {
        kvt_send_refuse(fabric, command, BT_PEER_LOST);
    } else {
        free(command->frame);
        free(command);
    }
}

static void on_stop(kvt_fabric *fabric) {
    fabric->is_stopping = true;
    fabric->stop_ns = bt_now_ns() + (int64_t)KVT_LINGER_MS * BT_NS_PER_MS;
    kvt_land_lease_close_all(fabric);
    for (kvt_conn *conn = fabric->conns; conn != NULL; conn = conn->next)
        kvt_conn_drain(conn, BT_CANCELED, "this worker stops");
}

/* Takes the command. */
static void command_run(kvt_fabric *fabric, kvt_command *command) {
    kvt_conn *conn = NULL;
    switch (command->kind) {
    case KVT_CMD_CONNECT:
        kvt_conn_connect(fabric, command);
        break;
    case KVT_CMD_ACCEPT:
        kvt_conn_accept(fabric, command->request);
        break;
    case KVT_CMD_DISCONNECT:
        conn = kvt_conn_find(fabric, command->peer);
        if (conn != NULL) kvt_conn_drain(conn, BT_CANCELED, "closed by this side");
        break;
    case KVT_CMD_SEND:
    case KVT_CMD_PUSH:
        on_send(fabric, command);
        return;
    case KVT_CMD_LEASE_OPEN:
        kvt_land_lease_open(fabric, command);
        break;
    case KVT_CMD_LEASE_CLOSE:
        kvt_land_lease_close(fabric, command->lease, command->n_pushes);
        break;
    case KVT_CMD_STOP:
        on_stop(fabric);
        break;
    }
    free(command);
}

static bool commands_run(kvt_fabric *fabric) {
    bt_queue_node *node = bt_queue_take(fabric->commands);
    bool has_run = node != NULL;
    while (node != NULL) {
        bt_queue_node *next = node->next;
        command_run(fabric, BT_QUEUE_ENTRY(node, kvt_command, node));
        node = next;
    }
    return has_run;
}

/* Something of ours is on its way, or a peer's may be. */
static bool is_busy(const kvt_fabric *fabric) {
    if (fabric->leases.n_leases > 0) return true;
    for (const kvt_conn *conn = fabric->conns; conn != NULL; conn = conn->next) {
        if (conn->n_sends > 0 || conn->n_landings > 0) return true;
    }
    return false;
}

static void fabric_sleep(kvt_fabric *fabric) {
    ucs_status_t armed = ucp_worker_arm(fabric->ucx.worker);
    if (armed == UCS_ERR_BUSY) return; /* something happened meanwhile */
    int64_t deadline_ns = kvt_conn_next_deadline(fabric), now_ns = bt_now_ns();
    int timeout_ms = -1;
    if (armed != UCS_OK)
        timeout_ms = 1; /* cannot sleep on it: look often */
    else if (deadline_ns <= now_ns)
        timeout_ms = 0;
    else if (deadline_ns != INT64_MAX)
        timeout_ms = (int)((deadline_ns - now_ns) / BT_NS_PER_MS + 1);
    struct pollfd fds[] = {{.fd = fabric->ucx.worker_fd, .events = POLLIN},
                           {.fd = bt_queue_fd(fabric->commands), .events = POLLIN}};
    poll(fds, 2, timeout_ms); /* EINTR: an early look does no harm */
}

static void *fabric_thread(void *context) {
    kvt_fabric *fabric = context;
    int64_t last_move_ns = bt_now_ns();
    while (!(fabric->is_stopping && fabric->n_conns == 0)) {
        bool has_moved = commands_run(fabric);
        for (int i = 0; i < MAX_PROGRESS && ucp_worker_progress(fabric->ucx.worker) != 0; i++) has_moved = true;
        has_moved |= kvt_send_pump(fabric);
        int64_t now_ns = bt_now_ns();
        has_moved |= kvt_conn_look(fabric, now_ns);
        if (has_moved)
            last_move_ns = now_ns;
        else if (now_ns - last_move_ns > SPIN_NS || !is_busy(fabric))
            fabric_sleep(fabric);
    }
    return NULL;
}

/* ---- any thread ---- */

/* Room for n_bytes behind the command, or none. */
static kvt_command *command_new(kvt_command_kind kind, kvt_peer peer, size_t n_bytes, void **room) {
    kvt_command *command = bt_calloc(1, sizeof(*command) + n_bytes);
    command->kind = kind;
    command->peer = peer;
    if (room != NULL) *room = command + 1;
    return command;
}

static void command_post(kvt_fabric *fabric, kvt_command *command) { bt_queue_push(fabric->commands, &command->node); }

kvt_peer kvt_connect(kvt_fabric *fabric, const char *address, uint64_t tag) {
    void *room;
    size_t n_bytes = strlen(address) + 1;
    kvt_command *command = command_new(KVT_CMD_CONNECT, atomic_fetch_add(&fabric->last_peer, 1) + 1, n_bytes, &room);
    command->address = room;
    command->n_bytes = n_bytes;
    command->tag = tag;
    memcpy(room, address, n_bytes);
    kvt_peer peer = command->peer; /* the command is the thread's as soon as it is posted */
    command_post(fabric, command);
    return peer;
}

void kvt_disconnect(kvt_fabric *fabric, kvt_peer peer) {
    command_post(fabric, command_new(KVT_CMD_DISCONNECT, peer, 0, NULL));
}

void kvt_send(kvt_fabric *fabric, kvt_peer peer, const wire_message *message) {
    kvt_command *command = command_new(KVT_CMD_SEND, peer, 0, NULL);
    bt_buf frame = {0};
    wire_encode(message, &frame);
    command->type = message->type;
    if (message->type == WIRE_COMMIT) command->lease = message->commit.lease;
    if (message->type == WIRE_ABORT) command->lease = message->abort.lease;
    command->frame = frame.bytes;
    command->n_bytes = frame.n_bytes;
    command_post(fabric, command);
}

void kvt_push(kvt_fabric *fabric, kvt_peer peer, const kvt_push_args *args, uint64_t tag) {
    const kv_layout *layout = &fabric->config.layout;
    BT_ASSERT(args->layer < layout->n_layers && args->n_blocks > 0);
    BT_ASSERT(args->n_rows_last >= 1 && args->n_rows_last <= KV_BLOCK_TOKENS);
    for (uint32_t i = 0; i < args->n_blocks; i++) BT_ASSERT(args->blocks[i] < layout->n_blocks);
    void *room;
    kvt_command *command = command_new(KVT_CMD_PUSH, peer, args->n_blocks * sizeof(uint32_t), &room);
    command->blocks = room;
    memcpy(room, args->blocks, args->n_blocks * sizeof(uint32_t));
    command->tag = tag;
    command->lease = args->lease;
    command->layer = args->layer;
    command->first_block = args->first_block;
    command->n_blocks = args->n_blocks;
    command->n_rows_last = args->n_rows_last;
    command_post(fabric, command);
}

void kvt_lease_open(kvt_fabric *fabric, kvt_peer peer, const kvt_lease_args *args) {
    for (uint32_t i = 0; i < args->n_blocks; i++) BT_ASSERT(args->blocks[i] < fabric->config.layout.n_blocks);
    BT_ASSERT(args->n_tokens <= (uint64_t)args->n_blocks * KV_BLOCK_TOKENS);
    void *room;
    kvt_command *command = command_new(KVT_CMD_LEASE_OPEN, peer, args->n_blocks * sizeof(uint32_t), &room);
    command->blocks = room;
    if (args->n_blocks > 0) memcpy(room, args->blocks, args->n_blocks * sizeof(uint32_t));
    command->lease = args->lease;
    command->first_block = args->first_block;
    command->n_blocks = args->n_blocks;
    command->n_tokens = args->n_tokens;
    command_post(fabric, command);
}

void kvt_lease_close(kvt_fabric *fabric, uint64_t lease, uint32_t n_pushes) {
    kvt_command *command = command_new(KVT_CMD_LEASE_CLOSE, 0, 0, NULL);
    command->lease = lease;
    command->n_pushes = n_pushes;
    command_post(fabric, command);
}

uint32_t kvt_fabric_port(const kvt_fabric *fabric) { return fabric->ucx.listen_port; }

void kvt_fabric_stats(const kvt_fabric *fabric, kvt_stats *out) {
    *out = (kvt_stats){
        .bytes_sent = atomic_load_explicit(&fabric->bytes_sent, memory_order_relaxed),
        .bytes_pulled = atomic_load_explicit(&fabric->bytes_pulled, memory_order_relaxed),
        .bytes_landed = atomic_load_explicit(&fabric->bytes_landed, memory_order_relaxed),
        .pushes_refused = atomic_load_explicit(&fabric->pushes_refused, memory_order_relaxed),
        .frames_refused = atomic_load_explicit(&fabric->frames_refused, memory_order_relaxed),
    };
}

/* ---- open and close ---- */

static void config_take(kvt_fabric *fabric, const kvt_config *config) {
    fabric->config = *config;
    snprintf(fabric->name, sizeof(fabric->name), "%s", config->name);
    fabric->config.name = fabric->name;
    fabric->config.host = config->host != NULL ? bt_strdup(config->host) : NULL;
    fabric->config.transports = config->transports != NULL ? bt_strdup(config->transports) : NULL;
    if (config->connect_timeout_ms == 0) fabric->config.connect_timeout_ms = KVT_DEFAULT_TIMEOUT_MS;
    if (config->stall_ms == 0) fabric->config.stall_ms = KVT_DEFAULT_STALL_MS;
    if (config->cap_peers == 0) fabric->config.cap_peers = KVT_DEFAULT_CAP_PEERS;
}

static void on_connection(struct ucp_conn_request *request, void *context) {
    kvt_fabric *fabric = context;
    kvt_command *command = command_new(KVT_CMD_ACCEPT, 0, 0, NULL);
    command->request = request;
    command_post(fabric, command);
}

bt_status kvt_fabric_open(const kvt_config *config, kvt_fabric **out, bt_error *err) {
    kvt_fabric *fabric = bt_calloc(1, sizeof(*fabric));
    config_take(fabric, config);
    kvt_lease_table_init(&fabric->leases);
    BT_ASSERT(config->memory.n_bytes >= kv_pool_bytes(&config->layout));
    fabric->probe = bt_calloc_aligned(kvt_block_bytes(fabric), 64);
    bt_status status = bt_queue_open(&fabric->commands, err);
    if (status == BT_OK)
        status = kvt_ucx_open(&fabric->ucx, config->transports, KVT_PUSH_BLOCKS * kvt_block_bytes(fabric), err);
    if (status == BT_OK)
        status = kvt_ucx_register(&fabric->ucx, config->memory.base, kv_pool_bytes(&config->layout), err);
    if (status == BT_OK) status = kvt_land_open(fabric, err);
    if (status == BT_OK && config->host != NULL && config->host[0] != 0)
        status = kvt_ucx_listen(&fabric->ucx, config->host, config->port, on_connection, fabric, err);
    if (status != BT_OK) goto fail;
    if (pthread_create(&fabric->thread, NULL, fabric_thread, fabric) != 0) {
        status = bt_fail(err, BT_INTERNAL, "cannot start the KV thread");
        goto fail;
    }
    fabric->has_thread = true;
    *out = fabric;
    return BT_OK;
fail:
    kvt_fabric_close(fabric);
    return status;
}

/* What was asked for too late: pushes still get their answer. */
static void commands_drop(kvt_fabric *fabric) {
    for (bt_queue_node *node = bt_queue_take(fabric->commands), *next; node != NULL; node = next) {
        next = node->next;
        kvt_command *command = BT_QUEUE_ENTRY(node, kvt_command, node);
        if (command->kind == KVT_CMD_ACCEPT) ucp_listener_reject(fabric->ucx.listener, command->request);
        if (command->kind == KVT_CMD_PUSH) {
            kvt_send_refuse(fabric, command, BT_CANCELED);
            continue;
        }
        if (command->kind == KVT_CMD_SEND) free(command->frame);
        free(command);
    }
}

void kvt_fabric_close(kvt_fabric *fabric) {
    if (fabric == NULL) return;
    if (fabric->has_thread) {
        command_post(fabric, command_new(KVT_CMD_STOP, 0, 0, NULL));
        pthread_join(fabric->thread, NULL);
    }
    if (fabric->commands != NULL) commands_drop(fabric);
    kvt_ucx_close(&fabric->ucx);
    bt_queue_close(fabric->commands);
    kvt_lease_table_fini(&fabric->leases);
    bt_buf_fini(&fabric->scratch);
    free(fabric->probe);
    free((void *)(uintptr_t)fabric->config.host);
    free((void *)(uintptr_t)fabric->config.transports);
    free(fabric);
}
