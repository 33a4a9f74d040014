/* Pushes between two processes: what lands, and when nothing lands any more. Every test is a sentence. */
#include "kvtransfer/kvt_test.h"

/* ---- children: prefill's part ---- */

static void child_push(side *side, kvt_peer peer, const char *role) {
    (void)role;
    kvt_event *up = side_expect(side, KVT_UP, 0);
    CHECK(up->tag == 77 && up->peer == peer && up->incarnation == 22 && strcmp(up->name, "decode-0") == 0, "UP");
    CHECK(up->bytes_per_second > 1e6, "bandwidth is %f", up->bytes_per_second);
    bool is_tcp = strncmp(transports, "tcp", 3) == 0;
    CHECK(strncmp(up->transport, is_tcp ? "tcp/" : "posix/", is_tcp ? 4 : 6) == 0, "transport is %s", up->transport);
    kvt_event_free(up);
    uint64_t lease = prefill_reserve(side, peer);
    for (uint32_t layer = 0; layer < N_LAYERS; layer++) push_layer(side, peer, lease, layer, 0, N_TOKENS);
    prefill_commit(side, peer, lease);
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
static void child_flood(side *side, kvt_peer peer, const char *role) {
    (void)role;
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
    CHECK(event->message.commit.n_tokens == N_COMMIT_TOKENS, "the whole frame came");
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

/* The other way round: we push, the child that received is killed. */
static void a_killed_decode_ends_every_push(void) {
    char port[16];
    pid_t child = decode_child_start(port);
    side side;
    kvt_peer peer = prefill_connect(&side, port, (kvt_config){0});
    kvt_event_free(side_expect(&side, KVT_UP, 0));
    uint64_t lease = prefill_reserve(&side, peer);
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
    char port[16];
    pid_t child = decode_child_start(port);
    side side;
    kvt_peer peer = prefill_connect(&side, port, (kvt_config){.stall_ms = 500});
    kvt_event_free(side_expect(&side, KVT_UP, 0));
    uint64_t lease = prefill_reserve(&side, peer);
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

static void tests(void) {
    in_every_way(landed_bytes_are_the_pushed_bytes);
    in_every_way(nothing_lands_after_a_lease_is_closed);
    in_every_way(a_killed_prefill_is_noticed_and_lands_nothing_more);
    in_every_way(a_killed_decode_ends_every_push);
    in_every_way(a_stopped_decode_is_given_up);
}

int main(int argc, char **argv) {
    static const test_role roles[] = {{.name = "push", .play = child_push}, {.name = "flood", .play = child_flood}};
    return test_main(argc, argv, roles, sizeof(roles) / sizeof(roles[0]), tests);
}
