/* Measures KV pushes between two processes and prints CSV. Run by bench/kv_push.sh beside ucx_perftest.
 *
 *   kvt_bench --transports tcp,self --way eager --pushes 20000
 *
 * Inside the timed window: from the first kvt_push() to COMMITTED, which the receiver says when all has landed and the
 * checksum is right: sending, landing in the pool, hashing on both sides, COMMIT. Outside: connecting, RESERVE. One
 * lease takes all pushes; its blocks walk round --walk-bytes of the pool on both sides.
 * Before that, alone, by one core over the same walk: memcpy, and kvt_push_copy(), which is the least that a receiver
 * must do. */
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
#include "kvtransfer/kvt_hash.h"

#define FLAGS(F)                                                                                                       \
    F(str, transports, "", "UCX_TLS of both sides; empty: all that the machine has")                                   \
    F(str, way, "best", "of the pushes: best, pull, eager or rendezvous")                                              \
    F(u32, width, "576", "elements of 2 bytes per token and layer")                                                    \
    F(u32, pushes, "20000", "pushes of 64 tokens each")                                                                \
    F(u32, batch, "16", "blocks per kvt_push()")                                                                       \
    F(u64, walk_bytes, "64M", "KV memory of each side that is walked round; small: it stays in the caches")
CFG_OWN(FLAGS)

enum { MIN_POOL_BYTES = 8 << 20 }; /* on huge pages, as the pools of workers are */

typedef struct {
    cfg_own config;
    kvt_config kvt;
    kvt_fabric *fabric;
    bt_queue *queue;
} side;

/* The block of the i-th push: round the walk and round again. */
static uint32_t walk_block(const side *side, uint32_t i) {
    return i % (uint32_t)(side->config.walk_bytes / kv_block_bytes(&side->kvt.layout) + 1);
}

static size_t block_at(const side *side, uint32_t i) {
    return kv_offset_bytes(&side->kvt.layout, 0, walk_block(side, i), 0);
}

static uint32_t *walk(const side *side) { /* [pushes], owned by the caller */
    uint32_t *blocks = bt_calloc(side->config.pushes, sizeof(*blocks));
    for (uint32_t i = 0; i < side->config.pushes; i++) blocks[i] = walk_block(side, i);
    return blocks;
}

static double all_bytes(const side *side) {
    return (double)side->config.pushes * (double)kv_block_bytes(&side->kvt.layout);
}

static kvt_way way_of(const char *name) {
    static const char *const names[] = {"best", "pull", "eager", "rendezvous"}; /* as in kvt_way */
    for (uint32_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(name, names[i]) == 0) return (kvt_way)i;
    }
    fprintf(stderr, "--way is \"%s\", expected best, pull, eager or rendezvous\n", name);
    exit(2);
}

static void side_open(side *side, bool is_listening) {
    bt_error err = {0};
    uint64_t block_bytes = (uint64_t)side->config.width * KV_BLOCK_TOKENS * 2;
    uint64_t pool_bytes = side->config.walk_bytes + MIN_POOL_BYTES;
    side->kvt = (kvt_config){
        .name = is_listening ? "receiver" : "sender",
        .incarnation = 1,
        .layout = {KV_BFLOAT16, 1, (uint32_t)(pool_bytes / block_bytes), side->config.width},
        .host = is_listening ? "127.0.0.1" : NULL,
        .transports = side->config.transports,
        .way = way_of(side->config.way),
    };
    if (kvt_memory_open(kv_pool_bytes(&side->kvt.layout), &side->kvt.memory, &err) == BT_OK &&
        bt_queue_open(&side->queue, &err) == BT_OK) {
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

/* Answers RESERVE with a lease that walks round its pool. */
static int receive(side *side) {
    uint32_t n_blocks = side->config.pushes, *blocks = walk(side);
    uint64_t checksum = 0;
    wire_message message;
    for (;;) {
        kvt_event *event = next_event(side);
        if (event->kind == KVT_DOWN) _exit(0);
        if (event->kind == KVT_MESSAGE && event->message.type == WIRE_RESERVE) {
            kvt_lease_args args = {1, blocks, 0, n_blocks, n_blocks * KV_BLOCK_TOKENS};
            kvt_lease_open(side->fabric, event->peer, &args);
            message = (wire_message){.type = WIRE_RESERVED, .reserved = {.lease = 1, .ttl_ms = 1000}};
            kvt_send(side->fabric, event->peer, &message);
        } else if (event->kind == KVT_MESSAGE && event->message.type == WIRE_COMMIT) {
            checksum = event->message.commit.checksum;
            kvt_lease_close(side->fabric, 1, event->message.commit.n_pushes);
        } else if (event->kind == KVT_LEASE_CLOSED) {
            if (event->landed.checksum != checksum) bt_log(BT_LOG_ERROR, "bench", "checksum differs", " ");
            message = (wire_message){.type = WIRE_COMMITTED, .committed = {.lease = 1}};
            kvt_send(side->fabric, event->peer, &message);
        }
        kvt_event_free(event);
    }
}

static void push_all(side *side, kvt_peer peer) {
    uint32_t *blocks = walk(side);
    for (uint32_t i = 0; i < side->config.pushes; i += side->config.batch) {
        uint32_t n_left = side->config.pushes - i, n = n_left < side->config.batch ? n_left : side->config.batch;
        kvt_push_args args = {1, 0, i, blocks + i, n, KV_BLOCK_TOKENS};
        kvt_push(side->fabric, peer, &args, 0);
    }
    kvt_send(side->fabric, peer, &(wire_message){.type = WIRE_COMMIT, .commit = {.lease = 1}});
    free(blocks);
}

/* One core's bytes per second over the walk, the better of two rounds: copied, and hashed if asked for. */
static double copy_rate(const side *side, uint8_t *to, bool is_hashed) {
    const uint8_t *from = side->kvt.memory.base;
    size_t n_bytes = kv_block_bytes(&side->kvt.layout);
    uint64_t sum = 1;
    double best = 0;
    for (int a_round = 0; a_round < 2; a_round++) {
        int64_t begin_ns = bt_now_ns();
        for (uint32_t i = 0; i < side->config.pushes; i++) {
            size_t at = block_at(side, i);
            if (is_hashed)
                sum += kvt_push_copy(0, i, to + at, from + at, n_bytes);
            else
                memcpy(to + at, from + at, n_bytes);
        }
        double rate = all_bytes(side) * BT_NS_PER_S / (double)(bt_now_ns() - begin_ns);
        if (rate > best && sum != 0) best = rate;
    }
    return best;
}

static int drive(side *side, const char *address) {
    uint8_t *copy = bt_calloc_aligned(kv_pool_bytes(&side->kvt.layout), 4096);
    double copy_bytes_s = copy_rate(side, copy, false), land_bytes_s = copy_rate(side, copy, true);
    free(copy);
    kvt_peer peer = kvt_connect(side->fabric, address, 0);
    int64_t begin_ns = 0;
    char transport[64] = "";
    double probe = 0;
    for (bool is_over = false; !is_over;) {
        kvt_event *event = next_event(side);
        if (event->kind == KVT_DOWN) return fprintf(stderr, "%s\n", event->text), 1;
        if (event->kind == KVT_UP) {
            memcpy(transport, event->transport, sizeof(transport));
            probe = event->bytes_per_second;
            kvt_send(side->fabric, peer, &(wire_message){.type = WIRE_RESERVE, .reserve = {.n_tokens = 1}});
        } else if (event->kind == KVT_MESSAGE && event->message.type == WIRE_RESERVED) {
            begin_ns = bt_now_ns();
            push_all(side, peer);
        }
        is_over = event->kind == KVT_MESSAGE && event->message.type == WIRE_COMMITTED;
        kvt_event_free(event);
    }
    double seconds = (double)(bt_now_ns() - begin_ns) / BT_NS_PER_S;
    printf("kvt_push,%s,%zu,%.0f,%.0f,%.0f,%.0f\n", transport, kv_block_bytes(&side->kvt.layout),
           all_bytes(side) / seconds / 1e6, probe / 1e6, copy_bytes_s / 1e6, land_bytes_s / 1e6);
    return 0;
}

int main(int argc, char **argv) {
    side side = {0};
    bt_error err = {0};
    bt_status status = cfg_parse("kvt_bench", "KV pushes between two processes, as CSV", cfg_own_flags,
                                 sizeof(cfg_own_flags) / sizeof(cfg_own_flags[0]), argc, argv, &side.config, &err);
    if (status == BT_CANCELED) return 0;
    if (status != BT_OK) return bt_log_error("bench", "bad flags", &err), 2;
    bt_log_set_level(BT_LOG_ERROR);
    int ports[2];
    if (pipe(ports) != 0) return 1;
    pid_t receiver = fork(); /* before UCX: it does not survive a fork */
    if (receiver == 0) {
        close(ports[0]);
        side_open(&side, true);
        uint32_t port = kvt_fabric_port(side.fabric);
        if (write(ports[1], &port, sizeof(port)) != sizeof(port)) return 1;
        return receive(&side);
    }
    close(ports[1]); /* so that a receiver that fails ends the read */
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
