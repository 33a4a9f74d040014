/* Two processes: this one and children that it starts from its own binary, over shared memory and over TCP, in every
 * kvt_way. The side that receives is "decode", the side that pushes is "prefill". Every test is a sentence. */
#include <netinet/in.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/core/clock.h"
#include "common/core/log.h"
#include "common/core/test.h"
#include "kvtransfer/kvt_impl.h"

enum { N_LAYERS = 5, N_BLOCKS = 96, WIDTH = 120, N_TOKENS = 10 * KV_BLOCK_TOKENS + 37, WAIT_MS = 10000 };
static const kv_layout test_layout = {KV_BFLOAT16, N_LAYERS, N_BLOCKS, WIDTH};
static const char *self_path, *transports;
static kvt_way way;

typedef struct {
    kvt_fabric *fabric;
    bt_queue *queue;
    bt_queue_node *nodes;
    uint8_t *pool;
} side;

static void side_open(side *side, bool is_listening, kvt_config config) {
    bt_error err = {0};
    memset(side, 0, sizeof(*side));
    CHECK(bt_queue_open(&side->queue, &err) == BT_OK, "%s", err.text);
    side->pool = bt_calloc_aligned(kv_pool_bytes(&test_layout), 4096);
    config.kv_base = side->pool;
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

static kvt_event *side_next(side *side, int timeout_ms) {
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
static kvt_event *side_expect(side *side, kvt_event_kind kind, wire_type type) {
    for (;;) {
        kvt_event *event = side_next(side, WAIT_MS);
        CHECK(event != NULL, "no event %d %s within %d ms", kind, wire_type_name(type), WAIT_MS);
        if (event == NULL) exit(1);
        if (event->kind == kind && (kind != KVT_MESSAGE || event->message.type == type)) return event;
        kvt_event_free(event);
    }
}

static void side_close(side *side) {
    kvt_fabric_close(side->fabric);
    for (kvt_event *event; (event = side_next(side, 0)) != NULL;) kvt_event_free(event);
    bt_queue_close(side->queue);
    free(side->pool);
}

static void pool_fill(side *side, unsigned seed) {
    uint64_t state = seed;
    for (size_t i = 0; i < kv_pool_bytes(&test_layout); i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        side->pool[i] = (uint8_t)(state >> 56);
    }
}

static uint32_t n_prompt_blocks(void) { return kv_blocks_for(N_TOKENS); }

/* Where block i of a request lies: scattered, and differently on both sides. */
static uint32_t prefill_block(uint32_t i) { return (i * 7 + 3) % N_BLOCKS; }
static uint32_t decode_block(uint32_t i) { return (i * 11 + 5) % N_BLOCKS; }

static void push_layer(side *side, kvt_peer peer, uint64_t lease, uint32_t layer, uint32_t first, uint32_t n_tokens) {
    uint32_t blocks[N_BLOCKS], n = kv_blocks_for(n_tokens) - first;
    for (uint32_t i = 0; i < n; i++) blocks[i] = prefill_block(first + i);
    uint32_t n_rows_last = (n_tokens - 1) % KV_BLOCK_TOKENS + 1;
    kvt_push_args args = {lease, layer, first, blocks, n, n_rows_last};
    kvt_push(side->fabric, peer, &args, layer);
}

static void lease_open(side *side, kvt_peer peer, uint64_t lease, uint32_t n_tokens) {
    uint32_t blocks[N_BLOCKS], n = kv_blocks_for(n_tokens);
    for (uint32_t i = 0; i < n; i++) blocks[i] = decode_block(i);
    kvt_lease_args args = {lease, blocks, 0, n, n_tokens};
    kvt_lease_open(side->fabric, peer, &args);
    wire_message reserved = {.type = WIRE_RESERVED, .reserved = {.lease = lease, .ttl_ms = 5000}};
    kvt_send(side->fabric, peer, &reserved);
}

/* ---- children: prefill's part, started with --child ROLE PORT ---- */

static kvt_peer child_connect(side *side, const char *port, kvt_config config) {
    char address[64];
    snprintf(address, sizeof(address), "127.0.0.1:%s", port);
    side_open(side, false, config);
    pool_fill(side, 1);
    return kvt_connect(side->fabric, address, 77);
}

static uint64_t child_reserve(side *side, kvt_peer peer) {
    wire_message reserve = {.type = WIRE_RESERVE, .reserve = {.n_tokens = N_TOKENS}};
    kvt_send(side->fabric, peer, &reserve);
    kvt_event *event = side_expect(side, KVT_MESSAGE, WIRE_RESERVED);
    uint64_t lease = event->message.reserved.lease;
    kvt_event_free(event);
    return lease;
}

static void child_commit(side *side, kvt_peer peer, uint64_t lease) {
    static uint32_t tokens[300000]; /* a frame above a megabyte */
    wire_message commit = {.type = WIRE_COMMIT,
                           .commit = {.lease = lease, .tokens = tokens, .n_tokens = 300000, .n_prompt = 299999}};
    kvt_send(side->fabric, peer, &commit);
}

static void child_push(side *side, kvt_peer peer) {
    kvt_event *up = side_expect(side, KVT_UP, 0);
    CHECK(up->tag == 77 && up->peer == peer && up->incarnation == 22 && strcmp(up->name, "decode-0") == 0, "UP");
    CHECK(up->bytes_per_second > 1e6, "bandwidth is %f", up->bytes_per_second);
    bool is_tcp = strncmp(transports, "tcp", 3) == 0;
    CHECK(strncmp(up->transport, is_tcp ? "tcp/" : "posix/", is_tcp ? 4 : 6) == 0, "transport is %s", up->transport);
    kvt_event_free(up);
    uint64_t lease = child_reserve(side, peer);
    for (uint32_t layer = 0; layer < N_LAYERS; layer++) push_layer(side, peer, lease, layer, 0, N_TOKENS);
    child_commit(side, peer, lease);
    for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
        kvt_event *event = side_expect(side, KVT_PUSHED, 0);
        CHECK(event->status == BT_OK && event->lease == lease, "status %s", bt_status_name(event->status));
        CHECK(event->n_bytes == N_TOKENS * kv_token_bytes(&test_layout), "%llu bytes",
              (unsigned long long)event->n_bytes);
        kvt_event_free(event);
    }
    kvt_event_free(side_expect(side, KVT_MESSAGE, WIRE_COMMITTED));
    kvt_disconnect(side->fabric, peer);
    kvt_event *down = side_expect(side, KVT_DOWN, 0);
    CHECK(down->status == BT_CANCELED && down->tag == 77, "down: %s", down->text);
    kvt_event_free(down);
}

/* Pushes the same layers again and again under new leases until it is killed or told to stop by a lost peer. */
static void child_flood(side *side, kvt_peer peer) {
    kvt_event_free(side_expect(side, KVT_UP, 0));
    for (;;) {
        wire_message reserve = {.type = WIRE_RESERVE, .reserve = {.n_tokens = N_TOKENS}};
        kvt_send(side->fabric, peer, &reserve);
        kvt_event *event = side_next(side, WAIT_MS);
        if (event == NULL || event->kind == KVT_DOWN) return kvt_event_free(event);
        if (event->kind == KVT_MESSAGE) {
            uint64_t lease = event->message.reserved.lease;
            for (uint32_t layer = 0; layer < N_LAYERS; layer++) push_layer(side, peer, lease, layer, 0, N_TOKENS);
        }
        kvt_event_free(event);
    }
}

static void raw_frame(side *side, kvt_peer peer, const void *bytes, size_t n_bytes) {
    kvt_command *command = bt_calloc(1, sizeof(*command));
    command->kind = KVT_CMD_SEND;
    command->type = WIRE_RENEW;
    command->peer = peer;
    command->frame = bt_calloc(1, n_bytes);
    command->n_bytes = n_bytes;
    memcpy(command->frame, bytes, n_bytes);
    bt_queue_push(side->fabric->commands, &command->node);
}

static void raw_message(side *side, kvt_peer peer, const wire_message *message) {
    bt_buf frame = {0};
    wire_encode(message, &frame);
    raw_frame(side, peer, frame.bytes, frame.n_bytes);
    bt_buf_fini(&frame);
}

/* PULLs of what cannot be read, of too much, out of turn. */
static void child_hostile_pull(side *side, kvt_peer peer, const char *what) {
    kvt_event_free(side_expect(side, KVT_UP, 0));
    uint64_t lease = child_reserve(side, peer), addresses[] = {(uintptr_t)side->pool, 4096, UINT64_MAX - 4096};
    wire_message pull = {.type = WIRE_PULL, .pull = {.lease = lease, .n_rows = 64, .addresses = addresses}};
    if (strcmp(what, "pull-unmapped") == 0) pull.pull.n_addresses = 2; /* the first is good */
    if (strcmp(what, "pull-wrapping") == 0) pull.pull.addresses = &addresses[2], pull.pull.n_addresses = 1;
    if (strcmp(what, "pull-unoffered") == 0) pull.pull.n_addresses = 1; /* this side's way is eager */
    if (strcmp(what, "pulled-unasked") == 0) pull = (wire_message){.type = WIRE_PULLED, .pulled = {.n = 1}};
    if (strcmp(what, "offer-twice") == 0)
        pull = (wire_message){.type = WIRE_PULL_OFFER, .pull_offer = {.pid = (uint32_t)getpid()}};
    raw_message(side, peer, &pull);
    kvt_event_free(side_expect(side, KVT_DOWN, 0));
}

/* An offer whose token is not there: the answer never comes, and pushes land as ever. */
static void child_unreadable(side *side, kvt_peer peer) {
    kvt_event_free(side_expect(side, KVT_UP, 0));
    wire_message offer = {.type = WIRE_PULL_OFFER, .pull_offer = {.pid = (uint32_t)getpid(), .address = 4096}};
    raw_message(side, peer, &offer);
    offer.pull_offer = (wire_pull_offer){(uint32_t)getpid(), (uintptr_t)side->pool, 1}; /* another value lies there */
    raw_message(side, peer, &offer);
    uint64_t lease = child_reserve(side, peer);
    push_layer(side, peer, lease, 0, 0, N_TOKENS);
    child_commit(side, peer, lease);
    kvt_event_free(side_expect(side, KVT_MESSAGE, WIRE_COMMITTED));
}

/* Pushes that do not fit their lease, then whatever `frame` says. */
static void child_hostile(side *side, kvt_peer peer, const char *what) {
    kvt_event_free(side_expect(side, KVT_UP, 0));
    uint64_t lease = child_reserve(side, peer);
    if (strcmp(what, "lease") == 0) push_layer(side, peer, lease + 12345, 0, 0, N_TOKENS);
    if (strcmp(what, "rows") == 0) push_layer(side, peer, lease, 0, 10, N_TOKENS - 1);
    if (strcmp(what, "block") == 0) push_layer(side, peer, lease, 0, n_prompt_blocks(), N_TOKENS + KV_BLOCK_TOKENS);
    if (strcmp(what, "twice") == 0) push_layer(side, peer, lease, 0, 10, N_TOKENS);
    if (strcmp(what, "twice") == 0) push_layer(side, peer, lease, 0, 10, N_TOKENS);
    if (strcmp(what, "garbage") == 0) raw_frame(side, peer, "\1\2\3\4\5\6\7\10\11\12", 10);
    if (strcmp(what, "short") == 0) raw_frame(side, peer, "B", 1);
    if (strcmp(what, "truncated") == 0) raw_frame(side, peer, "\x20\0\0\0BT\1\x22", 8);
    if (strcmp(what, "version") == 0) raw_frame(side, peer, "\0\0\0\0BT\xff\x0d", 8);
    if (strcmp(what, "drain") == 0) raw_frame(side, peer, "\0\0\0\0BT\1\x0d", 8); /* known, but not here */
    wire_message push = {.type = WIRE_PUSH, .push = {.lease = lease, .n_rows = 1}};
    if (strcmp(what, "misplaced") == 0) kvt_send(side->fabric, peer, &push);
    bool is_push = strchr("lrbt", what[0]) != NULL && strcmp(what, "truncated") != 0;
    if (is_push) child_commit(side, peer, lease); /* the connection stays */
    kvt_event_free(is_push ? side_expect(side, KVT_MESSAGE, WIRE_COMMIT_FAILED) : side_expect(side, KVT_DOWN, 0));
}

static int child_main(char **argv) {
    const char *role = argv[2], *port = argv[3];
    transports = argv[4];
    way = (kvt_way)atoi(argv[5]);
    side side = {0};
    kvt_config config = {0};
    if (strcmp(role, "other-model") == 0) config.model_hash = 5;
    if (strcmp(role, "other-cluster") == 0) config.cluster_key = 6;
    if (strcmp(role, "other-layers") == 0) config.layout = (kv_layout){KV_BFLOAT16, N_LAYERS - 1, N_BLOCKS, WIDTH};
    if (strcmp(role, "other-dtype") == 0) config.layout = (kv_layout){KV_FLOAT32, N_LAYERS, N_BLOCKS / 2, WIDTH};
    if (strcmp(role, "other-width") == 0) config.layout = (kv_layout){KV_BFLOAT16, N_LAYERS, N_BLOCKS, WIDTH / 2};
    if (strcmp(role, "unreadable") == 0 || strcmp(role, "pull-unoffered") == 0) way = KVT_WAY_EAGER;
    kvt_peer peer = child_connect(&side, port, config);
    if (strcmp(role, "push") == 0) {
        child_push(&side, peer);
    } else if (strcmp(role, "flood") == 0) {
        child_flood(&side, peer);
    } else if (strncmp(role, "other-", 6) == 0) {
        const char *words[] = {"model", "cluster", "layers", "dtype", "width"};
        kvt_event *down = side_expect(&side, KVT_DOWN, 0);
        CHECK(down->status == BT_BAD_REQUEST, "%s: %s", role, down->text);
        for (int i = 0; i < 5; i++) {
            if (strcmp(role + 6, words[i]) == 0)
                CHECK(strstr(down->text, words[i]) != NULL, "%s: %s", role, down->text);
        }
        kvt_event_free(down);
    } else if (strcmp(role, "unreadable") == 0) {
        child_unreadable(&side, peer);
    } else if (strncmp(role, "pull", 4) == 0 || strncmp(role, "offer", 5) == 0) {
        child_hostile_pull(&side, peer, role);
    } else {
        child_hostile(&side, peer, role);
    }
    side_close(&side);
    TEST_END();
}

static pid_t child_start(const side *side, const char *role) {
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

static void child_wait(pid_t child, const char *role) {
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child %s over %s: status %x", role, transports, status);
}

/* ---- decode's part ---- */

static void landed_bytes_are_the_pushed_bytes(void) {
    side side, reference = {0};
    side_open(&side, true, (kvt_config){0});
    reference.pool = bt_calloc_aligned(kv_pool_bytes(&test_layout), 4096);
    pool_fill(&reference, 1);
    pid_t child = child_start(&side, "push");
    kvt_event *event = side_expect(&side, KVT_UP, 0);
    CHECK(event->incarnation == 11 && event->tag == 0, "UP of the child");
    kvt_event_free(event);
    event = side_expect(&side, KVT_MESSAGE, WIRE_RESERVE);
    CHECK(event->incarnation == 11, "messages name their sender");
    kvt_peer peer = event->peer;
    lease_open(&side, peer, 99, event->message.reserve.n_tokens);
    kvt_event_free(event);
    event = side_expect(&side, KVT_MESSAGE, WIRE_COMMIT);
    CHECK(event->message.commit.n_pushes == N_LAYERS * n_prompt_blocks(), "%u pushes", event->message.commit.n_pushes);
    CHECK(event->message.commit.n_tokens == 300000, "the whole frame came");
    uint64_t checksum = event->message.commit.checksum;
    kvt_lease_close(side.fabric, 99, event->message.commit.n_pushes);
    kvt_event_free(event);
    event = side_expect(&side, KVT_LEASE_CLOSED, 0);
    CHECK(event->lease == 99 && event->landed.n_pushes == N_LAYERS * n_prompt_blocks(), "all landed");
    CHECK(event->landed.checksum == checksum, "checksums differ");
    CHECK(event->landed.n_bytes == (uint64_t)N_LAYERS * N_TOKENS * kv_token_bytes(&test_layout), "bytes landed");
    kvt_stats stats;
    kvt_fabric_stats(side.fabric, &stats);
    CHECK(stats.bytes_pulled == (way == KVT_WAY_PULL ? event->landed.n_bytes : 0), "%llu bytes pulled",
          (unsigned long long)stats.bytes_pulled);
    kvt_event_free(event);
    for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
        for (uint32_t i = 0; i < n_prompt_blocks(); i++) {
            uint32_t n_rows = i + 1 == n_prompt_blocks() ? (N_TOKENS - 1) % KV_BLOCK_TOKENS + 1 : KV_BLOCK_TOKENS;
            const uint8_t *got = side.pool + kv_offset_bytes(&test_layout, layer, decode_block(i), 0);
            const uint8_t *want = reference.pool + kv_offset_bytes(&test_layout, layer, prefill_block(i), 0);
            size_t n_bytes = n_rows * kv_token_bytes(&test_layout);
            CHECK(memcmp(got, want, n_bytes) == 0, "layer %u block %u", layer, i);
            for (size_t b = n_bytes; b < kv_block_bytes(&test_layout); b++) {
                if (got[b] != 0) CHECK(false, "a byte behind the rows of layer %u block %u", layer, i);
            }
        }
    }
    wire_message committed = {.type = WIRE_COMMITTED, .committed = {.lease = 99}};
    kvt_send(side.fabric, peer, &committed);
    child_wait(child, "push");
    kvt_event_free(side_expect(&side, KVT_DOWN, 0));
    free(reference.pool);
    side_close(&side);
}

/* Until nothing lands there any more: only then may its blocks be reused (rule 2). */
static void lease_close_and_wait(side *side, uint64_t lease) {
    kvt_lease_close(side->fabric, lease, 0);
    for (bool is_closed = false; !is_closed;) {
        kvt_event *event = side_expect(side, KVT_LEASE_CLOSED, 0);
        is_closed = event->lease == lease;
        kvt_event_free(event);
    }
}

/* Serves leases until n have been opened and a push of the last has landed; returns the last one. */
static uint64_t serve_flood(side *side, uint64_t n_leases, kvt_peer *peer) {
    uint64_t lease = 0;
    while (lease < n_leases) {
        kvt_event *event = side_expect(side, KVT_MESSAGE, WIRE_RESERVE);
        *peer = event->peer;
        if (lease > 0) lease_close_and_wait(side, lease); /* the next one gets the same blocks */
        lease_open(side, event->peer, ++lease, N_TOKENS);
        kvt_event_free(event);
    }
    kvt_stats stats;
    int64_t deadline_ns = bt_now_ns() + (int64_t)WAIT_MS * BT_NS_PER_MS;
    do kvt_fabric_stats(side->fabric, &stats);
    while (stats.bytes_landed == 0 && bt_now_ns() < deadline_ns);
    CHECK(stats.bytes_landed > 0, "nothing lands");
    return lease;
}

static void lease_close_and_paint(side *side, uint64_t lease) {
    lease_close_and_wait(side, lease);
    memset(side->pool, 0xEE, kv_pool_bytes(&test_layout));
}

static bool is_painted(const side *side) {
    for (size_t i = 0; i < kv_pool_bytes(&test_layout); i++) {
        if (side->pool[i] != 0xEE) return false;
    }
    return true;
}

static void nothing_lands_after_a_lease_is_closed(void) {
    side side;
    kvt_peer peer = 0;
    side_open(&side, true, (kvt_config){0});
    pid_t child = child_start(&side, "flood");
    uint64_t lease = serve_flood(&side, 20, &peer);
    lease_close_and_paint(&side, lease);
    kvt_disconnect(side.fabric, peer);
    kvt_event_free(side_expect(&side, KVT_DOWN, 0));
    CHECK(is_painted(&side), "a byte landed after KVT_LEASE_CLOSED over %s", transports);
    child_wait(child, "flood");
    side_close(&side);
}

static void a_killed_prefill_is_noticed_and_lands_nothing_more(void) {
    side side;
    kvt_peer peer = 0;
    side_open(&side, true, (kvt_config){0});
    pid_t child = child_start(&side, "flood");
    uint64_t lease = serve_flood(&side, 10, &peer);
    int64_t begin_ns = bt_now_ns();
    kill(child, SIGKILL);
    kvt_event *down = side_expect(&side, KVT_DOWN, 0);
    int64_t ms = (bt_now_ns() - begin_ns) / BT_NS_PER_MS;
    CHECK(ms < 2000, "noticed after %lld ms over %s", (long long)ms, transports);
    CHECK(down->status == BT_PEER_LOST && down->peer == peer, "%s", down->text);
    kvt_event_free(down);
    lease_close_and_paint(&side, lease);
    waitpid(child, NULL, 0);
    CHECK(is_painted(&side), "a byte landed after KVT_LEASE_CLOSED");
    side_close(&side);
}

/* A child that opens one lease and lets everything land. No fabric may be open here: UCX does not survive a fork. */
static pid_t decode_child_start(uint32_t *port) {
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
    if (read(ports[0], port, sizeof(*port)) != sizeof(*port)) exit(1);
    close(ports[0]);
    close(ports[1]);
    return child;
}

/* The other way round: we push, the child that received is killed. */
static void a_killed_decode_ends_every_push(void) {
    uint32_t number;
    pid_t child = decode_child_start(&number);
    char port[16];
    snprintf(port, sizeof(port), "%u", number);
    side side;
    kvt_peer peer = child_connect(&side, port, (kvt_config){0});
    kvt_event_free(side_expect(&side, KVT_UP, 0));
    uint64_t lease = child_reserve(&side, peer);
    for (uint32_t i = 0; i < 400; i++) push_layer(&side, peer, lease, i % N_LAYERS, 0, N_TOKENS);
    kvt_event_free(side_expect(&side, KVT_PUSHED, 0));
    int64_t begin_ns = bt_now_ns();
    kill(child, SIGKILL);
    uint32_t n_pushed = 1;
    for (bool is_down = false; !is_down;) {
        kvt_event *event = side_next(&side, WAIT_MS);
        if (event == NULL) break;
        n_pushed += event->kind == KVT_PUSHED;
        is_down = event->kind == KVT_DOWN;
        kvt_event_free(event);
    }
    int64_t ms = (bt_now_ns() - begin_ns) / BT_NS_PER_MS;
    CHECK(ms < 2000, "noticed after %lld ms over %s", (long long)ms, transports);
    CHECK(n_pushed == 400, "%u of 400 pushes ended before KVT_DOWN", n_pushed);
    push_layer(&side, peer, lease, 0, 0, N_TOKENS);
    kvt_event *late = side_expect(&side, KVT_PUSHED, 0);
    CHECK(late->status == BT_PEER_LOST, "a push to a lost peer: %s", bt_status_name(late->status));
    kvt_event_free(late);
    waitpid(child, NULL, 0);
    side_close(&side);
}

static void a_stopped_decode_is_given_up(void) {
    uint32_t port;
    pid_t child = decode_child_start(&port);
    char number[16];
    snprintf(number, sizeof(number), "%u", port);
    side side;
    kvt_peer peer = child_connect(&side, number, (kvt_config){.stall_ms = 500});
    kvt_event_free(side_expect(&side, KVT_UP, 0));
    uint64_t lease = child_reserve(&side, peer);
    kill(child, SIGSTOP);
    for (uint32_t i = 0; i < 400; i++) push_layer(&side, peer, lease, i % N_LAYERS, 0, N_TOKENS);
    uint32_t n_pushed = 0;
    kvt_event *event = NULL;
    while ((event = side_next(&side, WAIT_MS)) != NULL && event->kind != KVT_DOWN) {
        n_pushed += event->kind == KVT_PUSHED;
        kvt_event_free(event);
    }
    CHECK(event != NULL && event->status == BT_TIMEOUT, "%s", event != NULL ? event->text : "no KVT_DOWN");
    CHECK(n_pushed == 400, "%u of 400 pushes ended before KVT_DOWN", n_pushed);
    kvt_event_free(event);
    side_close(&side);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

static int decode_child_main(char **argv) {
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

static void hostile_pushes_fail_their_lease_only(void) {
    static const char *const roles[] = {"lease", "rows", "block", "twice"};
    side side;
    side_open(&side, true, (kvt_config){0});
    for (uint32_t i = 0; i < sizeof(roles) / sizeof(roles[0]); i++) {
        pid_t child = child_start(&side, roles[i]);
        kvt_event *event = side_expect(&side, KVT_MESSAGE, WIRE_RESERVE);
        kvt_peer peer = event->peer;
        kvt_event_free(event);
        lease_open(&side, peer, i + 1, N_TOKENS);
        event = side_expect(&side, KVT_MESSAGE, WIRE_COMMIT);
        bool is_short = strcmp(roles[i], "lease") == 0; /* what it counts was pushed elsewhere: nothing will come */
        kvt_lease_close(side.fabric, i + 1, is_short ? 0 : event->message.commit.n_pushes + 1);
        kvt_event_free(event);
        event = side_expect(&side, KVT_LEASE_CLOSED, 0);
        uint32_t n_good = strcmp(roles[i], "twice") == 0 ? 1 : 0;
        CHECK(event->landed.n_pushes == n_good, "%s: %u landed", roles[i], event->landed.n_pushes);
        kvt_event_free(event);
        wire_message failed = {.type = WIRE_COMMIT_FAILED, .commit_failed = {.lease = i + 1, .status = BT_BAD_REQUEST}};
        kvt_send(side.fabric, peer, &failed);
        child_wait(child, roles[i]);
        event = side_expect(&side, KVT_DOWN, 0);
        CHECK(event->status != BT_BAD_REQUEST, "%s: %s", roles[i], event->text);
        kvt_event_free(event);
    }
    kvt_stats stats;
    kvt_fabric_stats(side.fabric, &stats);
    CHECK(stats.pushes_refused >= 4, "%llu refused", (unsigned long long)stats.pushes_refused);
    side_close(&side);
}

static void hostile_frames_close_their_peer_only(void) {
    static const char *const roles[] = {"garbage", "short", "truncated", "version", "drain", "misplaced"};
    side side;
    side_open(&side, true, (kvt_config){0});
    for (uint32_t i = 0; i < sizeof(roles) / sizeof(roles[0]); i++) {
        pid_t child = child_start(&side, roles[i]);
        kvt_event *event = side_expect(&side, KVT_MESSAGE, WIRE_RESERVE);
        lease_open(&side, event->peer, i + 1, N_TOKENS);
        kvt_event_free(event);
        event = side_expect(&side, KVT_DOWN, 0);
        CHECK(event->status == BT_BAD_REQUEST, "%s: %s", roles[i], event->text);
        kvt_event_free(event);
        child_wait(child, roles[i]);
    }
    side_close(&side);
}

static void hostile_pulls_close_their_peer_only(void) {
    static const char *const roles[] = {"pull-unmapped", "pull-wrapping", "pull-unoffered", "pulled-unasked",
                                        "offer-twice"};
    side side;
    side_open(&side, true, (kvt_config){0});
    for (uint32_t i = 0; i < sizeof(roles) / sizeof(roles[0]); i++) {
        pid_t child = child_start(&side, roles[i]);
        kvt_event *event = side_expect(&side, KVT_MESSAGE, WIRE_RESERVE);
        lease_open(&side, event->peer, i + 1, N_TOKENS);
        kvt_event_free(event);
        event = side_expect(&side, KVT_DOWN, 0);
        CHECK(event->status == BT_BAD_REQUEST, "%s: %s", roles[i], event->text);
        kvt_event_free(event);
        kvt_lease_close(side.fabric, i + 1, 1);
        event = side_expect(&side, KVT_LEASE_CLOSED, 0);
        bool has_good = strcmp(roles[i], "pull-unmapped") == 0;
        CHECK(event->landed.n_pushes == has_good, "%s: %u landed", roles[i], event->landed.n_pushes);
        kvt_event_free(event);
        child_wait(child, roles[i]);
    }
    side_close(&side);
}

static void who_cannot_be_read_pushes(void) {
    side side;
    side_open(&side, true, (kvt_config){0});
    pid_t child = child_start(&side, "unreadable");
    kvt_event *event = side_expect(&side, KVT_MESSAGE, WIRE_RESERVE);
    kvt_peer peer = event->peer;
    kvt_event_free(event);
    lease_open(&side, peer, 1, N_TOKENS);
    event = side_expect(&side, KVT_MESSAGE, WIRE_COMMIT);
    uint64_t checksum = event->message.commit.checksum;
    kvt_lease_close(side.fabric, 1, event->message.commit.n_pushes);
    kvt_event_free(event);
    event = side_expect(&side, KVT_LEASE_CLOSED, 0);
    CHECK(event->landed.n_pushes == n_prompt_blocks() && event->landed.checksum == checksum, "all landed");
    kvt_event_free(event);
    kvt_stats stats;
    kvt_fabric_stats(side.fabric, &stats);
    CHECK(stats.bytes_pulled == 0, "nothing was pulled");
    wire_message committed = {.type = WIRE_COMMITTED, .committed = {.lease = 1}};
    kvt_send(side.fabric, peer, &committed);
    child_wait(child, "unreadable");
    side_close(&side);
}

static void strangers_are_refused_by_name(void) {
    static const char *const roles[] = {"other-model", "other-cluster", "other-layers", "other-dtype", "other-width"};
    side side;
    side_open(&side, true, (kvt_config){0});
    for (uint32_t i = 0; i < sizeof(roles) / sizeof(roles[0]); i++) child_wait(child_start(&side, roles[i]), roles[i]);
    CHECK(side_next(&side, 0) == NULL, "the owner never heard of them");
    side_close(&side);
}

static void bad_addresses_end_in_down(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0); /* accepts and says nothing */
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n_bytes = sizeof(addr);
    CHECK(bind(listener, (struct sockaddr *)&addr, n_bytes) == 0 && listen(listener, 8) == 0, "a silent listener");
    getsockname(listener, (struct sockaddr *)&addr, &n_bytes);
    char silent[64];
    snprintf(silent, sizeof(silent), "127.0.0.1:%u", ntohs(addr.sin_port));
    const struct {
        const char *address;
        bt_status status;
    } rows[] = {
        {"127.0.0.1:1", BT_PEER_LOST}, {"nonsense", BT_BAD_REQUEST}, {"127.0.0.1:", BT_BAD_REQUEST},
        {":80", BT_BAD_REQUEST},       {silent, BT_TIMEOUT},
    };
    side side;
    side_open(&side, false, (kvt_config){.connect_timeout_ms = 300});
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        kvt_peer peer = kvt_connect(side.fabric, rows[i].address, i);
        kvt_event *down = side_expect(&side, KVT_DOWN, 0);
        CHECK(down->peer == peer && down->tag == i && down->status == rows[i].status, "%s: %s, %s", rows[i].address,
              bt_status_name(down->status), down->text);
        kvt_event_free(down);
    }
    close(listener);
    side_close(&side);
}

int main(int argc, char **argv) {
    self_path = argv[0];
    bt_log_set_level(BT_LOG_ERROR);
    if (argc == 6 && strcmp(argv[1], "--child") == 0) return child_main(argv);
    if (argc == 5 && strcmp(argv[1], "--decode") == 0) return decode_child_main(argv);
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
        landed_bytes_are_the_pushed_bytes();
        nothing_lands_after_a_lease_is_closed();
        a_killed_prefill_is_noticed_and_lands_nothing_more();
        a_killed_decode_ends_every_push();
        a_stopped_decode_is_given_up();
        hostile_pushes_fail_their_lease_only();
    }
    transports = "posix,tcp,self";
    way = KVT_WAY_PULL;
    hostile_pulls_close_their_peer_only();
    who_cannot_be_read_pushes();
    way = KVT_WAY_BEST;
    hostile_frames_close_their_peer_only();
    strangers_are_refused_by_name();
    bad_addresses_end_in_down();
    TEST_END();
}
