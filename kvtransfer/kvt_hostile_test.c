/* What peers do that no honest peer does, and who must not come in at all: it costs them their lease or their
 * connection, and nobody else anything. Every test is a sentence. */
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "kvtransfer/kvt_test.h"

/* ---- children: prefill's part ---- */

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

/* PULLs of what is not there, out of turn. */
static void child_hostile_pull(side *side, kvt_peer peer, const char *what) {
    kvt_event_free(side_expect(side, KVT_UP, 0));
    uint64_t lease = prefill_reserve(side, peer);
    uint64_t end = side->memory.n_bytes, offsets[] = {0, end - kv_block_bytes(&test_layout) + 1, UINT64_MAX - 4096};
    wire_message pull = {.type = WIRE_PULL, .pull = {.lease = lease, .n_rows = 64, .offsets = offsets}};
    if (strcmp(what, "pull-outside") == 0) pull.pull.n_offsets = 2; /* the first is good */
    if (strcmp(what, "pull-wrapping") == 0) pull.pull.offsets = &offsets[2], pull.pull.n_offsets = 1;
    if (strcmp(what, "pull-unoffered") == 0) pull.pull.n_offsets = 1; /* this side's way is eager */
    if (strcmp(what, "pulled-unasked") == 0) pull = (wire_message){.type = WIRE_PULLED, .pulled = {.n = 1}};
    if (strcmp(what, "offer-twice") == 0)
        pull = (wire_message){.type = WIRE_PULL_OFFER, .pull_offer = {.pid = (uint32_t)getpid()}};
    raw_message(side, peer, &pull);
    kvt_event_free(side_expect(side, KVT_DOWN, 0));
}

/* Offers of what cannot be mapped: the answer never comes, and pushes land as ever. */
static void child_unreadable(side *side, kvt_peer peer, const char *role) {
    (void)role;
    kvt_event_free(side_expect(side, KVT_UP, 0));
    int pipe_fds[2], unsealed = memfd_create("test", 0), file = open(self_path, O_RDONLY);
    CHECK(pipe(pipe_fds) == 0 && ftruncate(unsealed, (off_t)side->memory.n_bytes) == 0 && file >= 0, "files");
    const struct {
        int fd;
        uint64_t token;
    } offers[] = {{9999, 0}, {pipe_fds[0], 0}, {file, 0}, {unsealed, 0}, {side->memory.fd, side->memory.token + 1}};
    wire_message offer = {.type = WIRE_PULL_OFFER, .pull_offer.pid = (uint32_t)getpid()};
    for (size_t i = 0; i < sizeof(offers) / sizeof(offers[0]); i++) {
        offer.pull_offer.fd = (uint32_t)offers[i].fd;
        offer.pull_offer.token = offers[i].token;
        raw_message(side, peer, &offer);
    }
    offer.pull_offer.pid = UINT32_MAX;
    raw_message(side, peer, &offer);
    uint64_t lease = prefill_reserve(side, peer);
    push_layer(side, peer, lease, 0, 0, N_TOKENS);
    prefill_commit(side, peer, lease);
    kvt_event_free(side_expect(side, KVT_MESSAGE, WIRE_COMMITTED));
}

/* Pushes that do not fit their lease, then whatever `frame` says. */
static void child_hostile(side *side, kvt_peer peer, const char *what) {
    kvt_event_free(side_expect(side, KVT_UP, 0));
    uint64_t lease = prefill_reserve(side, peer);
    if (strcmp(what, "lease") == 0) push_layer(side, peer, lease + 12345, 0, 0, N_TOKENS);
    if (strcmp(what, "rows") == 0) push_layer(side, peer, lease, 0, 10, N_TOKENS - 1);
    if (strcmp(what, "block") == 0) push_layer(side, peer, lease, 0, n_prompt_blocks(), N_TOKENS + KV_BLOCK_TOKENS);
    if (strcmp(what, "rest") == 0) push_layer(side, peer, lease, 0, 9, N_TOKENS + KV_BLOCK_TOKENS); /* one is good */
    if (strcmp(what, "twice") == 0) push_layer(side, peer, lease, 0, 10, N_TOKENS);
    if (strcmp(what, "twice") == 0) push_layer(side, peer, lease, 0, 10, N_TOKENS);
    if (strcmp(what, "garbage") == 0) raw_frame(side, peer, "\1\2\3\4\5\6\7\10\11\12", 10);
    if (strcmp(what, "short") == 0) raw_frame(side, peer, "B", 1);
    static const uint8_t reserve_header[8] = {0x20, 0, 0, 0, 'B', 'T', WIRE_VERSION, WIRE_RESERVE};
    if (strcmp(what, "truncated") == 0) raw_frame(side, peer, reserve_header, sizeof(reserve_header));
    if (strcmp(what, "version") == 0) raw_frame(side, peer, "\0\0\0\0BT\xff\x0d", 8);
    if (strcmp(what, "drain") == 0) raw_message(side, peer, &(wire_message){.type = WIRE_DRAIN}); /* not here */
    wire_message push = {.type = WIRE_PUSH, .push = {.lease = lease, .n_rows = 1}};
    if (strcmp(what, "misplaced") == 0) kvt_send(side->fabric, peer, &push);
    bool is_push = strchr("lrbt", what[0]) != NULL && strcmp(what, "truncated") != 0;
    if (is_push) prefill_commit(side, peer, lease); /* the connection stays */
    kvt_event_free(is_push ? side_expect(side, KVT_MESSAGE, WIRE_COMMIT_FAILED) : side_expect(side, KVT_DOWN, 0));
}

/* A message with more bytes than any push may have. */
static void child_too_large(side *side, kvt_peer peer, const char *role) {
    (void)role;
    kvt_event_free(side_expect(side, KVT_UP, 0));
    uint64_t lease = prefill_reserve(side, peer);
    side->fabric->config.layout.width *= KVT_PUSH_BLOCKS + 1; /* the fabric's thread waits for us */
    push_layer(side, peer, lease, 0, 0, KV_BLOCK_TOKENS);
    kvt_event_free(side_expect(side, KVT_DOWN, 0));
}

/* Of another cluster, with another model: refused, and told why. */
static void child_stranger(side *side, kvt_peer peer, const char *role) {
    (void)peer;
    kvt_event *down = side_expect(side, KVT_DOWN, 0);
    CHECK(down->status == BT_BAD_REQUEST, "%s: %s", role, down->text);
    CHECK(strstr(down->text, strchr(role, '-') + 1) != NULL, "%s: %s", role, down->text);
    kvt_event_free(down);
}

/* ---- decode's part ---- */

/* Each child in turn reserves, gets a lease, and does what its role says; `then` sees to what must come of it. */
static void with_each(const char *const *roles, uint32_t n,
                      void (*then)(side *side, kvt_peer peer, uint64_t lease, const char *role)) {
    side side;
    side_open(&side, true, (kvt_config){0});
    for (uint32_t i = 0; i < n; i++) {
        pid_t child = child_start(&side, roles[i]);
        kvt_event *event = side_expect(&side, KVT_MESSAGE, WIRE_RESERVE);
        kvt_peer peer = event->peer;
        kvt_event_free(event);
        lease_open(&side, peer, i + 1, N_TOKENS);
        then(&side, peer, i + 1, roles[i]);
        child_wait(child, roles[i]);
    }
    side_close(&side);
}

/* KVT_LEASE_CLOSED, and what has landed. */
static kvt_landed lease_close(side *side, uint64_t lease, uint32_t n_pushes) {
    kvt_lease_close(side->fabric, lease, n_pushes);
    kvt_event *event = side_expect(side, KVT_LEASE_CLOSED, 0);
    CHECK(event->lease == lease, "lease %llu", (unsigned long long)event->lease);
    kvt_landed landed = event->landed;
    kvt_event_free(event);
    return landed;
}

static kvt_stats stats_of(const side *side) {
    kvt_stats stats;
    kvt_fabric_stats(side->fabric, &stats);
    return stats;
}

static void lease_must_fail(side *side, kvt_peer peer, uint64_t lease, const char *role) {
    kvt_event *event = side_expect(side, KVT_MESSAGE, WIRE_COMMIT);
    bool is_short = strcmp(role, "lease") == 0; /* what it counts was pushed elsewhere: nothing will come */
    uint32_t n_pushes = is_short ? 0 : event->message.commit.n_pushes + 1;
    kvt_event_free(event);
    kvt_landed landed = lease_close(side, lease, n_pushes);
    uint32_t n_good = strcmp(role, "twice") == 0 || strcmp(role, "rest") == 0;
    CHECK(landed.n_pushes == n_good, "%s: %u landed", role, landed.n_pushes);
    CHECK(stats_of(side).pushes_refused >= lease, "%s: none was refused", role);
    wire_message failed = {.type = WIRE_COMMIT_FAILED, .commit_failed = {.lease = lease, .status = BT_BAD_REQUEST}};
    kvt_send(side->fabric, peer, &failed);
    event = side_expect(side, KVT_DOWN, 0);
    CHECK(event->status != BT_BAD_REQUEST, "%s: %s", role, event->text);
    kvt_event_free(event);
}

static void peer_must_go(side *side, kvt_peer peer, uint64_t lease, const char *role) {
    kvt_event *event = side_expect(side, KVT_DOWN, 0);
    CHECK(event->peer == peer && event->status == BT_BAD_REQUEST, "%s: %s", role, event->text);
    kvt_event_free(event);
    kvt_landed landed = lease_close(side, lease, 1);
    CHECK(landed.n_pushes == (strcmp(role, "pull-outside") == 0), "%s: %u landed", role, landed.n_pushes);
}

static void all_must_land(side *side, kvt_peer peer, uint64_t lease, const char *role) {
    kvt_event *event = side_expect(side, KVT_MESSAGE, WIRE_COMMIT);
    uint64_t checksum = event->message.commit.checksum;
    kvt_landed landed = lease_close(side, lease, event->message.commit.n_pushes);
    kvt_event_free(event);
    CHECK(landed.n_pushes == n_prompt_blocks() && landed.checksum == checksum, "%s: %u landed", role, landed.n_pushes);
    CHECK(stats_of(side).bytes_pulled == 0, "%s: nothing was pulled", role);
    wire_message committed = {.type = WIRE_COMMITTED, .committed = {.lease = lease}};
    kvt_send(side->fabric, peer, &committed);
}

static void hostile_pushes_fail_their_lease_only(void) {
    static const char *const roles[] = {"lease", "rows", "block", "rest", "twice"};
    with_each(roles, 5, lease_must_fail);
}

static void hostile_frames_close_their_peer_only(void) {
    static const char *const roles[] = {"garbage", "short", "truncated", "version", "drain", "misplaced", "too-large"};
    with_each(roles, 7, peer_must_go);
}

static void hostile_pulls_close_their_peer_only(void) {
    static const char *const roles[] = {"pull-outside", "pull-wrapping", "pull-unoffered", "pulled-unasked",
                                        "offer-twice"};
    with_each(roles, 5, peer_must_go);
}

static void who_cannot_be_read_pushes(void) {
    static const char *const roles[] = {"unreadable"};
    with_each(roles, 1, all_must_land);
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

static void tests(void) {
    in_every_way(hostile_pushes_fail_their_lease_only);
    transports = "posix,tcp,self";
    way = KVT_WAY_PULL;
    hostile_pulls_close_their_peer_only();
    who_cannot_be_read_pushes();
    way = KVT_WAY_BEST;
    hostile_frames_close_their_peer_only();
    strangers_are_refused_by_name();
    bad_addresses_end_in_down();
}

int main(int argc, char **argv) {
    static const test_role roles[] = {
        {.name = "other-model", .play = child_stranger, .config.model_hash = 5},
        {.name = "other-cluster", .play = child_stranger, .config.cluster_key = 6},
        {.name = "other-layers", .play = child_stranger, .config.layout = {KV_BFLOAT16, N_LAYERS - 1, N_BLOCKS, WIDTH}},
        {.name = "other-dtype", .play = child_stranger, .config.layout = {KV_FLOAT32, N_LAYERS, N_BLOCKS / 2, WIDTH}},
        {.name = "other-width", .play = child_stranger, .config.layout = {KV_BFLOAT16, N_LAYERS, N_BLOCKS, WIDTH / 2}},
        {.name = "unreadable", .play = child_unreadable, .is_eager = true},
        {.name = "too-large", .play = child_too_large, .is_eager = true},
        {.name = "pull-unoffered", .play = child_hostile_pull, .is_eager = true},
        {.name = "pull*", .play = child_hostile_pull},
        {.name = "offer*", .play = child_hostile_pull},
        {.name = "*", .play = child_hostile},
    };
    return test_main(argc, argv, roles, sizeof(roles) / sizeof(roles[0]), tests);
}
