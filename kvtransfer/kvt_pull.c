/* Between two processes of one machine KV bytes need not travel: the sender says where they lie (PULL), the receiver
 * reads them from the sender's memory into the leased blocks (process_vm_readv: one copy, by the kernel, where active
 * messages make three), and says so (PULLED). What a PULL may do is what a PUSH may do; kvt_land.c and the lease see
 * no difference. A landing of this kind begins and ends within one call.
 *
 * Only over shared memory: who is told to use TCP uses TCP. And only when it works: PULL_OFFER names a random token in
 * the sender's memory. Finding it there proves that the number is the peer's process, although both may count processes
 * in namespaces of their own, and that the system lets us read it (same user, no ptrace restriction). Else there is no
 * answer, and pushes travel.
 *
 * A receiver that was given up (it hung, and its sender's memory is in use again, rule 3) may still read when it wakes:
 * what it lands then is of no use, since its connection is gone and no COMMIT promised a checksum of these bytes. */
#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/core/log.h"
#include "kvtransfer/kvt_impl.h"

static bool is_shared_memory(const char *transport) {
    return strncmp(transport, "posix/", 6) == 0 || strncmp(transport, "sysv/", 5) == 0;
}

void kvt_pull_offer(kvt_conn *conn) {
    kvt_way way = conn->fabric->config.way;
    if ((way != KVT_WAY_BEST && way != KVT_WAY_PULL) || !is_shared_memory(conn->transport)) return;
    const uint64_t *token = &conn->fabric->pull_token;
    wire_message offer = {.type = WIRE_PULL_OFFER,
                          .pull_offer = {.pid = (uint32_t)getpid(), .address = (uintptr_t)token, .token = *token}};
    conn->has_offered = true;
    kvt_send_frame(conn, &offer);
}

/* 0, or the errno. */
static int memory_read(int pid, uint64_t address, void *out, size_t n_bytes) {
    struct iovec here = {out, n_bytes}, there = {(void *)(uintptr_t)address, n_bytes};
    ssize_t n = process_vm_readv(pid, &here, 1, &there, 1, 0);
    if (n < 0) return errno;
    return (size_t)n == n_bytes ? 0 : EFAULT; /* a part: the rest is not mapped */
}

bt_status kvt_pull_read(kvt_conn *conn, uint64_t address, void *out, size_t n_bytes) {
    int failed = memory_read(conn->pull_pid, address, out, n_bytes);
    if (failed == 0) return BT_OK;
    bt_status status = failed == EFAULT ? BT_BAD_REQUEST : BT_PEER_LOST;
    kvt_conn_lose(conn, status, "cannot read what %s wants to be pulled: %s", conn->name, strerror(failed));
    return status;
}

static void answer(kvt_conn *conn, uint32_t n) {
    kvt_send_frame(conn, &(wire_message){.type = WIRE_PULLED, .pulled = {.n = n}});
}

static bool take_offer(kvt_conn *conn, const wire_pull_offer *offer) {
    if (conn->pull_pid != 0 || offer->pid == 0 || offer->pid > INT32_MAX) return false;
    uint64_t token = 0;
    int failed = memory_read((int)offer->pid, offer->address, &token, sizeof(token));
    bool is_peer = failed == 0 && token == offer->token;
    bt_log(BT_LOG_INFO, "kvt", is_peer ? "pushes are pulled" : "pushes cannot be pulled", "worker=%s text=\"%s\"",
           conn->name,
           failed != 0 ? strerror(failed)
           : is_peer   ? "same machine"
                       : "another process");
    if (!is_peer) return true;
    conn->pull_pid = (int)offer->pid;
    answer(conn, 0);
    return true;
}

static bool take_pull(kvt_conn *conn, const wire_pull *pull) {
    if (conn->pull_pid == 0) return false;
    for (uint32_t i = 0; i < pull->n_addresses && !conn->is_lost; i++) {
        bool is_last = i + 1 == pull->n_addresses;
        wire_push push = {.lease = pull->lease,
                          .layer = pull->layer,
                          .block = pull->first_block + i,
                          .n_rows = is_last ? pull->n_rows : KV_BLOCK_TOKENS};
        kvt_land_pull(conn, &push, pull->addresses[i]);
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
