/* Between two processes of one machine KV bytes need not travel: the receiver maps the sender's KV memory to read
 * (kvt_memory.h), the sender says where in it they lie (PULL), the receiver copies them into the leased blocks (one
 * copy, where active messages make three), and says so (PULLED). What a PULL may do is what a PUSH may do; kvt_land.c
 * and the lease see no difference. A landing of this kind begins and ends within one call.
 *
 * Only over shared memory: who is told to use TCP uses TCP. And only when it works: PULL_OFFER names a file of the
 * sender's process and the token in it. Finding it there proves that the number is the peer's process, although both
 * may count processes in namespaces of their own, and that the system lets us read it. Else there is no answer, and
 * pushes travel.
 *
 * A receiver that was given up (it hung, and its sender's memory is in use again, rule 3) may still read when it wakes:
 * what it lands then is of no use, since its connection is gone and no COMMIT promised a checksum of these bytes. */
#include <string.h>
#include <unistd.h>

#include "common/core/log.h"
#include "kvtransfer/kvt_impl.h"

static bool is_shared_memory(const char *transport) {
    return strncmp(transport, "posix/", 6) == 0 || strncmp(transport, "sysv/", 5) == 0;
}

void kvt_pull_offer(kvt_conn *conn) {
    kvt_way way = conn->fabric->config.way;
    if ((way != KVT_WAY_BEST && way != KVT_WAY_PULL) || !is_shared_memory(conn->transport)) return;
    const kvt_memory *ours = &conn->fabric->config.memory;
    wire_message offer = {.type = WIRE_PULL_OFFER,
                          .pull_offer = {.pid = (uint32_t)getpid(), .fd = (uint32_t)ours->fd, .token = ours->token}};
    conn->has_offered = true;
    kvt_send_frame(conn, &offer);
}

static void answer(kvt_conn *conn, uint32_t n) {
    kvt_send_frame(conn, &(wire_message){.type = WIRE_PULLED, .pulled = {.n = n}});
}

static bool take_offer(kvt_conn *conn, const wire_pull_offer *offer) {
    if (conn->theirs.base != NULL) return false;
    bt_error err = {0};
    if (kvt_memory_map(offer->pid, offer->fd, offer->token, &conn->theirs, &err) != BT_OK) {
        bt_log(BT_LOG_INFO, "kvt", "pushes cannot be pulled", "worker=%s text=\"%s\"", conn->name, err.text);
        return true;
    }
    bt_log(BT_LOG_INFO, "kvt", "pushes are pulled", "worker=%s kv_bytes=%zu", conn->name, conn->theirs.n_bytes);
    answer(conn, 0);
    return true;
}

static bool take_pull(kvt_conn *conn, const wire_pull *pull) {
    const kvt_memory *theirs = &conn->theirs;
    size_t block_bytes = kvt_block_bytes(conn->fabric); /* of a last block with fewer rows too: it is a whole block */
    for (uint32_t i = 0; i < pull->n_offsets; i++) {
        if (theirs->n_bytes < block_bytes || pull->offsets[i] > theirs->n_bytes - block_bytes) return false;
        bool is_last = i + 1 == pull->n_offsets;
        wire_push push = {.lease = pull->lease,
                          .layer = pull->layer,
                          .block = pull->first_block + i,
                          .n_rows = is_last ? pull->n_rows : KV_BLOCK_TOKENS};
        kvt_land_pull(conn, &push, theirs->base + pull->offsets[i]);
    }
    answer(conn, 1);
    return true;
}

bool kvt_pull_take(kvt_conn *conn, const wire_message *message) {
    if (message->type == WIRE_PULLED && conn->has_offered) {
        conn->is_pulled = true;
        return kvt_send_pulled(conn, message->pulled.n);
    }
    if (conn->state != KVT_IS_UP) return false;
    if (message->type == WIRE_PULL_OFFER) return take_offer(conn, &message->pull_offer);
    return message->type == WIRE_PULL && take_pull(conn, &message->pull);
}
