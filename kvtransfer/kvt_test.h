/* For the fabric's tests: two processes, the test and children that it starts from its own binary. The side that
 * receives is "decode", the side that pushes is "prefill"; a child is one of them. */
#ifndef BATON_KVTRANSFER_KVT_TEST_H
#define BATON_KVTRANSFER_KVT_TEST_H

#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/core/clock.h"
#include "common/core/log.h"
#include "common/core/test.h"
#include "kvtransfer/kvt_impl.h"

enum { N_LAYERS = 5, N_BLOCKS = 96, WIDTH = 120, N_TOKENS = 10 * KV_BLOCK_TOKENS + 37, WAIT_MS = 10000 };
enum { N_COMMIT_TOKENS = 300000 }; /* a frame above a megabyte */
static const kv_layout test_layout = {KV_BFLOAT16, N_LAYERS, N_BLOCKS, WIDTH};
static const char *self_path, *transports;
static kvt_way way;

typedef struct {
    kvt_fabric *fabric;
    bt_queue *queue;
    bt_queue_node *nodes;
    kvt_memory memory;
    uint8_t *pool; /* memory.base */
} side;

static inline void side_open(side *side, bool is_listening, kvt_config config) {
    bt_error err = {0};
    memset(side, 0, sizeof(*side));
    CHECK(bt_queue_open(&side->queue, &err) == BT_OK, "%s", err.text);
    CHECK(kvt_memory_open(kv_pool_bytes(&test_layout), &side->memory, &err) == BT_OK, "%s", err.text);
    side->pool = side->memory.base;
    config.memory = side->memory;
    config.queue = side->queue;
    config.transports = transports;
    config.way = way;
    if (is_listening) config.host = "127.0.0.1";
    if (config.layout.n_layers == 0) config.layout = test_layout;
    if (config.name == NULL) config.name = is_listening ? "decode-0" : "prefill-0";
    if (config.incarnation == 0) config.incarnation = is_listening ? 22 : 11;
    bt_status status = kvt_fabric_open(&config, &side->fabric, &err);
    CHECK(status == BT_OK, "%s", err.text);
    if (status != BT_OK) exit(1);
}

static inline kvt_event *side_next(side *side, int timeout_ms) {
    if (side->nodes == NULL) {
        int64_t deadline_ns = bt_now_ns() + (int64_t)timeout_ms * BT_NS_PER_MS;
        while ((side->nodes = bt_queue_take(side->queue)) == NULL) {
            int64_t left_ns = deadline_ns - bt_now_ns();
            if (left_ns <= 0) return NULL;
            bt_queue_wait(side->queue, (int)(left_ns / BT_NS_PER_MS) + 1);
        }
    }
    kvt_event *event = BT_QUEUE_ENTRY(side->nodes, kvt_event, node);
    side->nodes = side->nodes->next;
    return event;
}

/* The next event of that kind (and type); others are dropped. */
static inline kvt_event *side_expect(side *side, kvt_event_kind kind, wire_type type) {
    for (;;) {
        kvt_event *event = side_next(side, WAIT_MS);
        CHECK(event != NULL, "no event %d %s within %d ms", kind, wire_type_name(type), WAIT_MS);
        if (event == NULL) exit(1);
        if (event->kind == kind && (kind != KVT_MESSAGE || event->message.type == type)) return event;
        kvt_event_free(event);
    }
}

static inline void side_close(side *side) {
    kvt_fabric_close(side->fabric);
    for (kvt_event *event; (event = side_next(side, 0)) != NULL;) kvt_event_free(event);
    bt_queue_close(side->queue);
    kvt_memory_close(&side->memory);
}

static inline void pool_fill(side *side, unsigned seed) {
    uint64_t state = seed;
    for (size_t i = 0; i < kv_pool_bytes(&test_layout); i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        side->pool[i] = (uint8_t)(state >> 56);
    }
}

static inline uint32_t n_prompt_blocks(void) { return kv_blocks_for(N_TOKENS); }

/* Where block i of a request lies: scattered, and differently on both sides. */
static inline uint32_t prefill_block(uint32_t i) { return (i * 7 + 3) % N_BLOCKS; }
static inline uint32_t decode_block(uint32_t i) { return (i * 11 + 5) % N_BLOCKS; }

static inline void push_layer(side *side, kvt_peer peer, uint64_t lease, uint32_t layer, uint32_t first,
                              uint32_t n_tokens) {
    uint32_t blocks[N_BLOCKS], n = kv_blocks_for(n_tokens) - first;
    for (uint32_t i = 0; i < n; i++) blocks[i] = prefill_block(first + i);
    uint32_t n_rows_last = (n_tokens - 1) % KV_BLOCK_TOKENS + 1;
    kvt_push_args args = {lease, layer, first, blocks, n, n_rows_last};
    kvt_push(side->fabric, peer, &args, layer);
}

static inline void lease_open(side *side, kvt_peer peer, uint64_t lease, uint32_t n_tokens) {
    uint32_t blocks[N_BLOCKS], n = kv_blocks_for(n_tokens);
    for (uint32_t i = 0; i < n; i++) blocks[i] = decode_block(i);
    kvt_lease_args args = {lease, blocks, 0, n, n_tokens};
    kvt_lease_open(side->fabric, peer, &args);
    wire_message reserved = {.type = WIRE_RESERVED, .reserved = {.lease = lease, .ttl_ms = 5000}};
    kvt_send(side->fabric, peer, &reserved);
}

/* ---- prefill's part ---- */

static inline kvt_peer prefill_connect(side *side, const char *port, kvt_config config) {
    char address[64];
    snprintf(address, sizeof(address), "127.0.0.1:%s", port);
    side_open(side, false, config);
    pool_fill(side, 1);
    return kvt_connect(side->fabric, address, 77);
}

static inline uint64_t prefill_reserve(side *side, kvt_peer peer) {
    wire_message reserve = {.type = WIRE_RESERVE, .reserve = {.n_tokens = N_TOKENS}};
    kvt_send(side->fabric, peer, &reserve);
    kvt_event *event = side_expect(side, KVT_MESSAGE, WIRE_RESERVED);
    uint64_t lease = event->message.reserved.lease;
    kvt_event_free(event);
    return lease;
}

static inline void prefill_commit(side *side, kvt_peer peer, uint64_t lease) {
    static uint32_t tokens[N_COMMIT_TOKENS];
    wire_message commit = {
        .type = WIRE_COMMIT,
        .commit = {.lease = lease, .tokens = tokens, .n_tokens = N_COMMIT_TOKENS, .n_prompt = N_COMMIT_TOKENS - 1}};
    kvt_send(side->fabric, peer, &commit);
}

/* ---- children: --child ROLE PORT TRANSPORTS WAY, --decode FD TRANSPORTS WAY ---- */

/* A child that connects as prefill and plays a role. */
typedef struct {
    const char *name; /* with a '*' at its end: all that begin so */
    void (*play)(side *side, kvt_peer peer, const char *role);
    kvt_config config;
    bool is_eager; /* whatever the way is */
} test_role;

static inline pid_t child_start(const side *side, const char *role) {
    char port[16];
    snprintf(port, sizeof(port), "%u", kvt_fabric_port(side->fabric));
    pid_t child = fork();
    if (child == 0) {
        char number[16];
        snprintf(number, sizeof(number), "%d", (int)way);
        execl(self_path, self_path, "--child", role, port, transports, number, NULL);
        _exit(127);
    }
    return child;
}

static inline void child_wait(pid_t child, const char *role) {
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child %s over %s: status %x", role, transports, status);
}

/* A child that opens one lease and lets everything land until it is killed. No fabric may be open here: UCX does not
 * survive a fork. */
static inline pid_t decode_child_start(char port[16]) {
    int ports[2];
    if (pipe(ports) != 0) exit(1);
    pid_t child = fork();
    if (child == 0) {
        char fd[16], number[16];
        snprintf(fd, sizeof(fd), "%d", ports[1]);
        snprintf(number, sizeof(number), "%d", (int)way);
        execl(self_path, self_path, "--decode", fd, transports, number, NULL);
        _exit(127);
    }
    uint32_t number;
    if (read(ports[0], &number, sizeof(number)) != sizeof(number)) exit(1);
    snprintf(port, 16, "%u", number);
    close(ports[0]);
    close(ports[1]);
    return child;
}

static inline int decode_child_main(char **argv) {
    transports = argv[3];
    way = (kvt_way)atoi(argv[4]);
    side side;
    side_open(&side, true, (kvt_config){0});
    uint32_t port = kvt_fabric_port(side.fabric);
    if (write(atoi(argv[2]), &port, sizeof(port)) != sizeof(port)) return 1;
    kvt_event *event = side_expect(&side, KVT_MESSAGE, WIRE_RESERVE);
    lease_open(&side, event->peer, 1, N_TOKENS);
    for (;;) pause();
}

static inline bool is_role(const test_role *role, const char *name) {
    size_t n = strcspn(role->name, "*");
    return strncmp(role->name, name, n) == 0 && (role->name[n] == '*' || name[n] == 0);
}

static inline int child_main(char **argv, const test_role *roles, uint32_t n_roles) {
    const char *name = argv[2];
    transports = argv[4];
    way = (kvt_way)atoi(argv[5]);
    uint32_t i = 0;
    while (i < n_roles && !is_role(&roles[i], name)) i++;
    BT_ASSERT(i < n_roles);
    if (roles[i].is_eager) way = KVT_WAY_EAGER;
    side side = {0};
    kvt_peer peer = prefill_connect(&side, argv[3], roles[i].config);
    roles[i].play(&side, peer, name);
    side_close(&side);
    TEST_END();
}

/* On every transport, in every way that it has. */
static inline void in_every_way(void (*test)(void)) {
    static const struct {
        const char *transports;
        kvt_way way;
    } ways[] = {
        {"posix,tcp,self", KVT_WAY_PULL}, {"posix,tcp,self", KVT_WAY_EAGER}, {"posix,tcp,self", KVT_WAY_RENDEZVOUS},
        {"tcp,self", KVT_WAY_EAGER},      {"tcp,self", KVT_WAY_RENDEZVOUS},
    };
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        transports = ways[i].transports;
        way = ways[i].way;
        test();
    }
}

/* Runs the tests, or the child that this process was started as. */
static inline int test_main(int argc, char **argv, const test_role *roles, uint32_t n_roles, void (*tests)(void)) {
    self_path = argv[0];
    bt_log_set_level(BT_LOG_ERROR);
    if (argc == 6 && strcmp(argv[1], "--child") == 0) return child_main(argv, roles, n_roles);
    if (argc == 5 && strcmp(argv[1], "--decode") == 0) return decode_child_main(argv);
    tests();
    TEST_END();
}

#endif
