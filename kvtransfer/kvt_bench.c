/* Measures KV pushes between two processes and prints CSV. Run by bench/kv_push.sh beside ucx_perftest.
 *
 *   kvt_bench --transports tcp,self --block-bytes 73728 --pushes 20000 [--batch 16]
 *
 * Inside the timed window: from the first kvt_push() to the KVT_LEASE_CLOSED of the last lease, at the receiver's word,
 * so sending, landing in the pool, hashing on both sides and all messages (RESERVED, COMMIT) count. Outside:
 * connecting. The pool of each side is walked round, 64 MiB by default: no push finds its bytes in a cache. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/core/clock.h"
#include "common/core/config.h"
#include "common/core/log.h"
#include "kvtransfer/kvt.h"

#define FLAGS                                                                                                          \
    CFG(str, transports, "", "UCX_TLS of both sides; empty: all that the machine has")                                 \
    CFG(u32, width, "576", "elements of 2 bytes per token and layer")                                                  \
    CFG(u32, pushes, "20000", "pushes of 64 tokens each")                                                              \
    CFG(u32, batch, "16", "blocks per kvt_push(), and per lease times 8")                                              \
    CFG(u64, pool_bytes, "64M", "KV memory of each side that is walked round; small: it stays in the caches")

#define CFG(type, name, default_text, help) cfg_##type name;
typedef struct {
    FLAGS
} bench_config;
#undef CFG
#define CFG(type, name, default_text, help) CFG_ENTRY(bench_config, type, name, default_text, help)
static const cfg_flag flags[] = {FLAGS};
#undef CFG

enum { BATCHES_PER_LEASE = 8 };

typedef struct {
    bench_config config;
    kvt_config kvt;
    kvt_fabric *fabric;
    bt_queue *queue;
} side;

static uint32_t lease_blocks(const bench_config *config) { return config->batch * BATCHES_PER_LEASE; }

static void side_open(side *side, bool is_listening) {
    bt_error err = {0};
    uint64_t block_bytes = (uint64_t)side->config.width * KV_BLOCK_TOKENS * 2;
    uint32_t n_leases = (uint32_t)(side->config.pool_bytes / (block_bytes * lease_blocks(&side->config))) + 2;
    side->kvt = (kvt_config){
        .name = is_listening ? "receiver" : "sender",
        .incarnation = 1,
        .layout = {KV_BFLOAT16, 1, lease_blocks(&side->config) * n_leases, side->config.width},
        .host = is_listening ? "127.0.0.1" : NULL,
        .transports = side->config.transports,
    };
    side->kvt.kv_base = bt_calloc_aligned(kv_pool_bytes(&side->kvt.layout), 4096);
    memset(side->kvt.kv_base, 1, kv_pool_bytes(&side->kvt.layout));
    if (bt_queue_open(&side->queue, &err) == BT_OK) {
        side->kvt.queue = side->queue;
        if (kvt_fabric_open(&side->kvt, &side->fabric, &err) == BT_OK) return;
    }
    bt_log_error("bench", "no fabric", &err);
    exit(1);
}

static kvt_event *next_event(side *side) {
    static bt_queue_node *nodes;
    while (nodes == NULL) {
        bt_queue_wait(side->queue, -1);
        nodes = bt_queue_take(side->queue);
    }
    kvt_event *event = BT_QUEUE_ENTRY(nodes, kvt_event, node);
    nodes = nodes->next;
    return event;
}

/* Answers each RESERVE with a lease over the next part of its pool. */
static int receive(side *side) {
    uint64_t lease = 0, checksum = 0;
    uint32_t n_blocks = lease_blocks(&side->config), n_tokens = n_blocks * KV_BLOCK_TOKENS;
    uint32_t *blocks = bt_calloc(n_blocks, sizeof(*blocks));
    wire_message message;
    for (;;) {
        kvt_event *event = next_event(side);
        if (event->kind == KVT_DOWN) _exit(0);
        if (event->kind == KVT_MESSAGE && event->message.type == WIRE_RESERVE) {
            lease++;
            for (uint32_t i = 0; i < n_blocks; i++)
                blocks[i] = (uint32_t)((lease * n_blocks + i) % side->kvt.layout.n_blocks);
            kvt_lease_args args = {lease, blocks, 0, n_blocks, n_tokens};
            kvt_lease_open(side->fabric, event->peer, &args);
            message = (wire_message){.type = WIRE_RESERVED, .reserved = {.lease = lease, .ttl_ms = 1000}};
            kvt_send(side->fabric, event->peer, &message);
        } else if (event->kind == KVT_MESSAGE && event->message.type == WIRE_COMMIT) {
            checksum = event->message.commit.checksum;
            kvt_lease_close(side->fabric, event->message.commit.lease, event->message.commit.n_pushes);
        } else if (event->kind == KVT_LEASE_CLOSED) {
            if (event->landed.checksum != checksum) bt_log(BT_LOG_ERROR, "bench", "checksum differs", " ");
            message = (wire_message){.type = WIRE_COMMITTED, .committed = {.lease = event->lease}};
            kvt_send(side->fabric, event->peer, &message);
        }
        kvt_event_free(event);
    }
}

static void reserve(side *side, kvt_peer peer) {
    wire_message message = {.type = WIRE_RESERVE,
                            .reserve = {.n_tokens = lease_blocks(&side->config) * KV_BLOCK_TOKENS}};
    kvt_send(side->fabric, peer, &message);
}

static void push_lease(side *side, kvt_peer peer, uint64_t lease) {
    uint32_t n_blocks = side->config.batch, *blocks = bt_calloc(n_blocks, sizeof(*blocks));
    for (uint32_t b = 0; b < BATCHES_PER_LEASE; b++) {
        for (uint32_t i = 0; i < n_blocks; i++)
            blocks[i] =
                (uint32_t)((lease * lease_blocks(&side->config) + b * n_blocks + i) % side->kvt.layout.n_blocks);
        kvt_push_args args = {lease, 0, b * n_blocks, blocks, n_blocks, KV_BLOCK_TOKENS};
        kvt_push(side->fabric, peer, &args, lease);
    }
    wire_message message = {.type = WIRE_COMMIT, .commit = {.lease = lease}};
    kvt_send(side->fabric, peer, &message);
    free(blocks);
}

/* Two leases at a time: one fills while the other one is being settled. */
static int drive(side *side, const char *address) {
    kvt_peer peer = kvt_connect(side->fabric, address, 0);
    uint32_t n_leases = side->config.pushes / lease_blocks(&side->config) + 1, n_reserved = 0, n_committed = 0;
    int64_t begin_ns = 0;
    char transport[64] = "";
    double probe = 0;
    while (n_committed < n_leases) {
        kvt_event *event = next_event(side);
        if (event->kind == KVT_DOWN) return fprintf(stderr, "%s\n", event->text), 1;
        if (event->kind == KVT_UP) {
            memcpy(transport, event->transport, sizeof(transport));
            probe = event->bytes_per_second;
            begin_ns = bt_now_ns();
            for (; n_reserved < 2 && n_reserved < n_leases; n_reserved++) reserve(side, peer);
        } else if (event->kind == KVT_MESSAGE && event->message.type == WIRE_RESERVED) {
            push_lease(side, peer, event->message.reserved.lease);
        } else if (event->kind == KVT_MESSAGE && event->message.type == WIRE_COMMITTED) {
            n_committed++;
            if (n_reserved < n_leases) {
                reserve(side, peer);
                n_reserved++;
            }
        }
        kvt_event_free(event);
    }
    double seconds = (double)(bt_now_ns() - begin_ns) / BT_NS_PER_S;
    kvt_stats stats;
    kvt_fabric_stats(side->fabric, &stats);
    printf("kvt_push,%s,%u,%.0f,%.0f\n", transport, side->config.width * KV_BLOCK_TOKENS * 2,
           (double)stats.bytes_sent / seconds / 1e6, probe / 1e6);
    return 0;
}

int main(int argc, char **argv) {
    side side = {0};
    bt_error err = {0};
    bt_status status = cfg_parse("kvt_bench", "KV pushes between two processes, as CSV", flags,
                                 sizeof(flags) / sizeof(flags[0]), argc, argv, &side.config, &err);
    if (status == BT_CANCELED) return 0;
    if (status != BT_OK) return bt_log_error("bench", "bad flags", &err), 2;
    bt_log_set_level(BT_LOG_ERROR);
    int ports[2];
    if (pipe(ports) != 0) return 1;
    pid_t receiver = fork(); /* before UCX: it does not survive a fork */
    if (receiver == 0) {
        side_open(&side, true);
        uint32_t port = kvt_fabric_port(side.fabric);
        if (write(ports[1], &port, sizeof(port)) != sizeof(port)) return 1;
        return receive(&side);
    }
    uint32_t port = 0;
    char address[64];
    if (read(ports[0], &port, sizeof(port)) != sizeof(port)) return 1;
    snprintf(address, sizeof(address), "127.0.0.1:%u", port);
    side_open(&side, false);
    int rc = drive(&side, address);
    fflush(stdout);
    kill(receiver, SIGKILL);
    waitpid(receiver, NULL, 0);
    _exit(rc);
}
