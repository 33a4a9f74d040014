/* Two hubs over loopback, a raw socket that misbehaves, and a second process that is killed or stopped: links deliver
 * everything in order, end once, and never wait for a peer. */
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/control/link.h"
#include "common/core/clock.h"
#include "common/core/log.h"
#include "common/core/test.h"

/* One end: a hub, its queue and the events taken from it. */
typedef struct {
    link_hub *hub;
    bt_queue *queue;
    bt_queue_node *taken;
} end;

static link_config end_config(const char *name, wire_role role) {
    return (link_config){.name = name,
                         .incarnation = link_random_u64(),
                         .role = role,
                         .cluster_key = link_cluster_key("secret"),
                         .ping_ms = 100,
                         .dead_ms = 1000,
                         .source = 7};
}

static end end_open(link_config config) {
    end self = {0};
    BT_ASSERT(bt_queue_open(&self.queue, NULL) == BT_OK);
    config.queue = self.queue;
    BT_ASSERT(link_hub_open(&config, &self.hub, NULL) == BT_OK);
    return self;
}

static uint32_t end_listen(end *self) {
    uint32_t port = 0;
    bt_error err = {0};
    CHECK(link_hub_listen(self->hub, "127.0.0.1", 0, &port, &err) == BT_OK, "%s", err.text);
    return port;
}

static link_dialer *end_dial(end *self, uint32_t port) {
    char address[32];
    link_dialer *dialer = NULL;
    snprintf(address, sizeof(address), "127.0.0.1:%u", port);
    BT_ASSERT(link_hub_dial(self->hub, address, 42, &dialer, NULL) == BT_OK);
    return dialer;
}

/* The next event, or NULL after wait_ms. */
static link_event *end_next(end *self, int wait_ms) {
    int64_t until_ns = bt_now_ns() + (int64_t)wait_ms * BT_NS_PER_MS;
    while (self->taken == NULL) {
        bool is_hot = self->hub != NULL && link_hub_turn(self->hub);
        self->taken = bt_queue_take(self->queue);
        int64_t left_ms = (until_ns - bt_now_ns()) / BT_NS_PER_MS;
        if (self->taken == NULL && left_ms <= 0) return NULL;
        if (self->taken == NULL && !is_hot) bt_queue_wait(self->queue, (int)left_ms);
    }
    link_event *event = BT_QUEUE_ENTRY(self->taken, link_event, node);
    self->taken = self->taken->next;
    return event;
}

/* The link of the next event, which must be of that kind; NULL if it is not. LINK_DOWN's link is gone after this. */
static link_conn *end_expect(end *self, link_event_kind kind, int wait_ms) {
    link_event *event = end_next(self, wait_ms);
    bool is_right = event != NULL && event->kind == kind && event->source == 7;
    CHECK(is_right, "wanted event %d, got %d", kind, event == NULL ? -1 : (int)event->kind);
    link_conn *link = is_right ? event->link : NULL;
    link_event_free(event);
    return link;
}

static void end_close(end *self, uint32_t linger_ms) {
    link_hub_close(self->hub, linger_ms);
    self->hub = NULL;
    for (link_event *event; (event = end_next(self, 0)) != NULL;) link_event_free(event);
    bt_queue_close(self->queue);
}

static bt_status send_submit(link_conn *link, uint64_t serial, uint32_t n_tokens) {
    uint32_t *tokens = bt_calloc(n_tokens + 1, sizeof(*tokens));
    for (uint32_t i = 0; i < n_tokens; i++) tokens[i] = (uint32_t)serial * 31 + i;
    wire_message message = {.type = WIRE_SUBMIT};
    message.submit.request.serial = serial;
    message.submit.tokens = tokens;
    message.submit.n_tokens = n_tokens;
    bt_status status = link_send(link, &message);
    free(tokens);
    return status;
}

static bool submit_is_whole(const link_event *event, uint64_t serial, uint32_t n_tokens) {
    const wire_submit *submit = &event->message.submit;
    if (event->kind != LINK_MESSAGE || event->message.type != WIRE_SUBMIT) return false;
    if (submit->request.serial != serial || submit->n_tokens != n_tokens) return false;
    for (uint32_t i = 0; i < n_tokens; i++)
        if (submit->tokens[i] != (uint32_t)serial * 31 + i) return false;
    return true;
}

/* ---- two hubs ---------------------------------------------------------------------------------------------------- */

static void test_links_carry_messages_of_every_size_in_order(void) {
    end worker = end_open(end_config("prefill-0", WIRE_ROLE_PREFILL));
    end gateway = end_open(end_config("gateway-0", WIRE_ROLE_GATEWAY));
    link_dialer *dialer = end_dial(&gateway, end_listen(&worker));
    link_event *up = end_next(&gateway, 5000);
    BT_ASSERT(up != NULL && up->kind == LINK_UP);
    CHECK(up->message.hello.role == WIRE_ROLE_PREFILL && up->tag == 42, "the worker's HELLO");
    CHECK(strcmp(link_peer_name(up->link), "prefill-0") == 0, "%s", link_peer_name(up->link));
    link_conn *to_worker = up->link;
    link_event_free(up);
    link_conn *to_gateway = end_expect(&worker, LINK_UP, 5000);
    static const uint32_t sizes[] = {0, 1, 3, 1000, WIRE_MAX_TOKENS, 2, 262144, 16383, 16384, 5};
    enum { N_SIZES = sizeof(sizes) / sizeof(sizes[0]) };
    for (uint32_t i = 0; i < N_SIZES; i++) CHECK(send_submit(to_worker, i, sizes[i]) == BT_OK, "submit %u", i);
    for (uint32_t i = 0; i < N_SIZES; i++) {
        link_event *event = end_next(&worker, 5000);
        CHECK(event != NULL && event->link == to_gateway && submit_is_whole(event, i, sizes[i]), "size %u", sizes[i]);
        link_event_free(event);
    }
    /* What was sent before an orderly close arrives, although nobody waits for it. */
    for (uint32_t i = 0; i < 1000; i++) CHECK(send_submit(to_gateway, i, 100) == BT_OK, "submit %u", i);
    link_close(to_gateway);
    for (uint32_t i = 0; i < 1000; i++) {
        link_event *event = end_next(&gateway, 5000);
        CHECK(event != NULL && submit_is_whole(event, i, 100), "%u of 1000", i);
        link_event_free(event);
    }
    end_expect(&gateway, LINK_DOWN, 5000);
    end_expect(&worker, LINK_DOWN, 5000);
    end_expect(&gateway, LINK_UP, 5000); /* the dialer goes on */
    end_expect(&worker, LINK_UP, 5000);
    link_dialer_close(dialer);
    end_expect(&gateway, LINK_DOWN, 5000);
    end_expect(&worker, LINK_DOWN, 5000);
    end_close(&gateway, 1000);
    end_close(&worker, 1000);
}

static void test_a_flood_passes_while_the_reader_keeps_up_and_pauses_when_it_does_not(void) {
    link_config config = end_config("decode-0", WIRE_ROLE_DECODE);
    config.cap_unhandled_bytes = 64 << 10;
    end worker = end_open(config);
    end gateway = end_open(end_config("gateway-0", WIRE_ROLE_GATEWAY));
    end_dial(&gateway, end_listen(&worker));
    link_conn *link = end_expect(&gateway, LINK_UP, 5000);
    end_expect(&worker, LINK_UP, 5000);
    enum { N = 30000, TOKENS = 50 };
    int64_t begin_ns = bt_now_ns();
    for (uint32_t i = 0; i < N; i++) CHECK(send_submit(link, i, TOKENS) == BT_OK, "submit %u", i);
    CHECK(bt_now_ns() - begin_ns < 10LL * BT_NS_PER_S, "sending waited for the reader");
    uint32_t n_whole = 0;
    for (uint32_t i = 0; i < N; i++) {
        link_event *event = end_next(&worker, 5000);
        if (event == NULL) break;
        n_whole += submit_is_whole(event, i, TOKENS);
        link_event_free(event);
    }
    CHECK(n_whole == N, "%u of %u arrived in order", n_whole, N);
    fprintf(stderr, "%d messages of 278 bytes in %.0f ms\n", N, (double)(bt_now_ns() - begin_ns) / BT_NS_PER_MS);
    end_close(&gateway, 1000);
    end_close(&worker, 1000);
}

/* Until the owner's turn comes the links' threads read for it. */
static void test_an_owner_without_turns_loses_neither_peers_nor_messages(void) {
    link_config config = end_config("prefill-0", WIRE_ROLE_PREFILL);
    config.ping_ms = 50;
    config.dead_ms = 300;
    end worker = end_open(config);
    config = end_config("gateway-0", WIRE_ROLE_GATEWAY);
    config.ping_ms = 50;
    config.dead_ms = 300;
    end gateway = end_open(config);
    end_dial(&gateway, end_listen(&worker));
    link_conn *link = end_expect(&gateway, LINK_UP, 5000);
    end_expect(&worker, LINK_UP, 5000);
    enum { N = 60 };
    for (uint32_t i = 0; i < N; i++) { /* 600 ms, and the worker computes */
        CHECK(send_submit(link, i, 100) == BT_OK, "submit %u", i);
        CHECK(end_next(&gateway, 10) == NULL, "the link did not stay up");
    }
    for (uint32_t i = 0; i < N; i++) {
        link_event *event = end_next(&worker, 5000);
        CHECK(event != NULL && submit_is_whole(event, i, 100), "%u of %u", i, N);
        link_event_free(event);
    }
    end_close(&gateway, 1000);
    end_close(&worker, 1000);
}

static void test_a_peer_that_does_not_read_is_given_up(void) {
    link_config config = end_config("gateway-0", WIRE_ROLE_GATEWAY);
    config.cap_queue_bytes = 1 << 20;
    config.dead_ms = 60000; /* not by silence */
    end gateway = end_open(config);
    config = end_config("decode-0", WIRE_ROLE_DECODE);
    config.cap_unhandled_bytes = 1 << 20;
    config.dead_ms = 60000;
    end worker = end_open(config);
    end_dial(&gateway, end_listen(&worker));
    link_conn *link = end_expect(&gateway, LINK_UP, 5000);
    end_expect(&worker, LINK_UP, 5000);
    wire_message message = {.type = WIRE_SUBMIT};
    uint32_t *tokens = bt_calloc(65536, sizeof(*tokens));
    message.submit.tokens = tokens;
    message.submit.n_tokens = 65536;
    bt_status status = BT_OK;
    for (int i = 0; i < 4000 && status == BT_OK; i++) status = link_send(link, &message);
    CHECK(status == BT_PEER_LOST, "1 GB was taken");
    CHECK(link_send(link, &message) == BT_PEER_LOST, "a lost link takes messages");
    end_expect(&gateway, LINK_DOWN, 5000);
    free(tokens);
    end_close(&gateway, 1000);
    end_close(&worker, 1000);
}

static void test_strangers_with_another_secret_are_refused(void) {
    link_config config = end_config("prefill-0", WIRE_ROLE_PREFILL);
    config.cluster_key = link_cluster_key("another");
    end worker = end_open(config);
    end gateway = end_open(end_config("gateway-0", WIRE_ROLE_GATEWAY));
    end_dial(&gateway, end_listen(&worker));
    CHECK(end_next(&gateway, 300) == NULL && end_next(&worker, 0) == NULL, "a link came up");
    end_close(&gateway, 100);
    end_close(&worker, 100);
}

static void test_bad_addresses_are_refused(void) {
    end gateway = end_open(end_config("gateway-0", WIRE_ROLE_GATEWAY));
    static const char *const bad[] = {"", "nothing", "host:", ":1", "host:0", "host:65536", "a b:1", "tcp://a:1/x:1"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        link_dialer *dialer = NULL;
        CHECK(link_hub_dial(gateway.hub, bad[i], 0, &dialer, NULL) == BT_BAD_REQUEST, "\"%s\"", bad[i]);
    }
    uint32_t port = end_listen(&gateway), other = 0;
    CHECK(link_hub_listen(gateway.hub, "127.0.0.1", 0, &other, NULL) == BT_BAD_REQUEST, "listens twice");
    end second = end_open(end_config("gateway-1", WIRE_ROLE_GATEWAY));
    bt_error err = {0};
    CHECK(link_hub_listen(second.hub, "127.0.0.1", port, &other, &err) == BT_INTERNAL, "a taken port");
    CHECK(strstr(err.text, "in use") != NULL, "%s", err.text);
    end_close(&second, 0);
    end_close(&gateway, 0);
}

/* ---- a raw socket that misbehaves -------------------------------------------------------------------------------- */

static int raw_connect(uint32_t port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    BT_ASSERT(fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0);
    return fd;
}

/* Reads away what comes until the other side closes; false: it did not within wait_ms. */
static bool raw_is_closed(int fd, int wait_ms) {
    char bytes[4096];
    int64_t until_ns = bt_now_ns() + (int64_t)wait_ms * BT_NS_PER_MS;
    while (bt_now_ns() < until_ns) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        if (poll(&ready, 1, 20) == 1 && recv(fd, bytes, sizeof(bytes), 0) <= 0) return true;
    }
    return false;
}

static void put_hello(bt_buf *out, const char *name, uint64_t incarnation, uint8_t role) {
    wire_message hello = {.type = WIRE_HELLO};
    hello.hello = (wire_hello){wire_str_from(name), incarnation, role, link_cluster_key("secret")};
    wire_encode(&hello, out);
}

static void test_garbage_ends_that_link_only(void) {
    end worker = end_open(end_config("prefill-0", WIRE_ROLE_PREFILL));
    uint32_t port = end_listen(&worker);
    bt_buf cases[12] = {{0}};
    const char *const why[] = {"not ours",        "another version",    "a first frame that claims 8 MB",
                               "first a PING",    "a nameless peer",    "no incarnation",
                               "an unknown role", "a name with spaces", "HELLO twice",
                               "a KV message",    "a malformed frame",  "a frame over the limit"};
    bt_buf_puts(&cases[0], "GET / HTTP/1.1\r\n\r\n");
    put_hello(&cases[1], "g", 1, WIRE_ROLE_GATEWAY);
    cases[1].bytes[6]++;
    bt_buf_put(&cases[2], "\x00\x00\x80\x00\x42\x54\x01\x02", 8);
    wire_encode(&(wire_message){.type = WIRE_PING}, &cases[3]);
    put_hello(&cases[4], "", 1, WIRE_ROLE_GATEWAY);
    put_hello(&cases[5], "g", 0, WIRE_ROLE_GATEWAY);
    put_hello(&cases[6], "g", 1, 9);
    put_hello(&cases[7], "g g", 1, WIRE_ROLE_GATEWAY);
    for (int i = 8; i < 12; i++) put_hello(&cases[i], "g", 1, WIRE_ROLE_GATEWAY);
    put_hello(&cases[8], "g", 1, WIRE_ROLE_GATEWAY);
    wire_encode(&(wire_message){.type = WIRE_PROBE}, &cases[9]);
    bt_buf_put(&cases[10], "\x01\x00\x00\x00\x42\x54\x01\x0b\xff", 9);
    bt_buf_put(&cases[11], "\xff\xff\xff\x7f\x42\x54\x01\x02", 8);
    for (int i = 0; i < 12; i++) {
        int fd = raw_connect(port);
        CHECK(send(fd, cases[i].bytes, cases[i].n_bytes, MSG_NOSIGNAL) == (ssize_t)cases[i].n_bytes, "send");
        CHECK(raw_is_closed(fd, 700), "%s was accepted", why[i]);
        close(fd);
        bt_buf_fini(&cases[i]);
    }
    for (int i = 8; i < 12; i++) {
        end_expect(&worker, LINK_UP, 1000);
        end_expect(&worker, LINK_DOWN, 1000);
    }
    int quiet_fd = raw_connect(port); /* says nothing at all */
    CHECK(raw_is_closed(quiet_fd, 3000), "a silent stranger may stay");
    close(quiet_fd);
    CHECK(end_next(&worker, 0) == NULL, "the owner heard of a stranger");
    end_close(&worker, 100);
}

static void test_one_byte_at_a_time_is_a_message_all_the_same(void) {
    end worker = end_open(end_config("prefill-0", WIRE_ROLE_PREFILL));
    int fd = raw_connect(end_listen(&worker));
    bt_buf bytes = {0};
    put_hello(&bytes, "slow", 1, WIRE_ROLE_GATEWAY);
    wire_encode(&(wire_message){.type = WIRE_CANCEL, .cancel = {.request = {1, 2, 3}}}, &bytes);
    for (size_t i = 0; i < bytes.n_bytes; i++) CHECK(send(fd, bytes.bytes + i, 1, MSG_NOSIGNAL) == 1, "byte %zu", i);
    end_expect(&worker, LINK_UP, 2000);
    link_event *event = end_next(&worker, 2000);
    CHECK(event != NULL && event->message.type == WIRE_CANCEL && event->message.cancel.request.attempt == 3, "cancel");
    link_event_free(event);
    close(fd);
    end_expect(&worker, LINK_DOWN, 2000);
    bt_buf_fini(&bytes);
    end_close(&worker, 100);
}

static void test_more_links_than_allowed_are_turned_away(void) {
    link_config config = end_config("prefill-0", WIRE_ROLE_PREFILL);
    config.cap_links = 2;
    end worker = end_open(config);
    uint32_t port = end_listen(&worker);
    int fds[3];
    for (int i = 0; i < 2; i++) fds[i] = raw_connect(port);
    struct pollfd ready = {.fd = fds[1], .events = POLLIN};
    CHECK(poll(&ready, 1, 2000) == 1, "no HELLO");
    fds[2] = raw_connect(port);
    CHECK(raw_is_closed(fds[2], 700), "a third link");
    for (int i = 0; i < 3; i++) close(fds[i]);
    end_close(&worker, 100);
}

/* ---- another process --------------------------------------------------------------------------------------------- */

/* `link_test peer PORT`: dials and answers every SUBMIT by the same, until it is killed. */
static int peer_main(uint32_t port) {
    end self = end_open(end_config("peer", WIRE_ROLE_GATEWAY));
    end_dial(&self, port);
    for (;;) {
        link_event *event = end_next(&self, 60000);
        if (event == NULL) return 1;
        if (event->kind == LINK_MESSAGE) link_send(event->link, &event->message);
        link_event_free(event);
    }
}

static pid_t peer_start(uint32_t port) {
    char text[16];
    snprintf(text, sizeof(text), "%u", port);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* whatever happens to the test */
        execl("/proc/self/exe", "link_test", "peer", text, (char *)NULL);
        _exit(127);
    }
    return pid;
}

static void test_a_killed_peer_is_noticed_at_once_and_a_stopped_one_by_its_silence(void) {
    link_config config = end_config("decode-0", WIRE_ROLE_DECODE);
    config.cap_queue_bytes = 1 << 30;
    end worker = end_open(config);
    uint32_t port = end_listen(&worker);
    for (int is_stopped = 0; is_stopped < 2; is_stopped++) {
        pid_t pid = peer_start(port);
        link_conn *link = end_expect(&worker, LINK_UP, 10000);
        if (link == NULL) return;
        CHECK(send_submit(link, 1, 1000) == BT_OK, "submit");
        link_event *echo = end_next(&worker, 5000);
        CHECK(echo != NULL && submit_is_whole(echo, 1, 1000), "echo");
        link_event_free(echo);
        kill(pid, is_stopped ? SIGSTOP : SIGKILL);
        int64_t begin_ns = bt_now_ns();
        if (is_stopped)
            for (uint32_t i = 0; i < 100 && send_submit(link, i, 30000) == BT_OK; i++) {
            } /* more than the kernel takes */
        end_expect(&worker, LINK_DOWN, 5000);
        int64_t ms = (bt_now_ns() - begin_ns) / BT_NS_PER_MS;
        CHECK(is_stopped ? ms >= 700 && ms < 2500 : ms < 500, "down after %lld ms", (long long)ms);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    end_close(&worker, 100);
}

static void test_a_dialer_finds_a_worker_that_comes_back(void) {
    end gateway = end_open(end_config("gateway-0", WIRE_ROLE_GATEWAY));
    end worker = end_open(end_config("prefill-0", WIRE_ROLE_PREFILL));
    uint32_t port = end_listen(&worker), again = 0;
    end_dial(&gateway, port);
    end_expect(&gateway, LINK_UP, 5000);
    end_close(&worker, 500);
    end_expect(&gateway, LINK_DOWN, 5000);
    worker = end_open(end_config("prefill-0", WIRE_ROLE_PREFILL));
    bt_error err = {0};
    CHECK(link_hub_listen(worker.hub, "127.0.0.1", port, &again, &err) == BT_OK, "%s", err.text);
    end_expect(&gateway, LINK_UP, 5000);
    end_close(&worker, 500);
    end_close(&gateway, 500);
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "peer") == 0) return peer_main((uint32_t)atoi(argv[2]));
    bt_log_set_level(BT_LOG_ERROR); /* the sentences are expected */
    test_a_killed_peer_is_noticed_at_once_and_a_stopped_one_by_its_silence();
    test_links_carry_messages_of_every_size_in_order();
    test_a_flood_passes_while_the_reader_keeps_up_and_pauses_when_it_does_not();
    test_an_owner_without_turns_loses_neither_peers_nor_messages();
    test_a_peer_that_does_not_read_is_given_up();
    test_strangers_with_another_secret_are_refused();
    test_bad_addresses_are_refused();
    test_garbage_ends_that_link_only();
    test_one_byte_at_a_time_is_a_message_all_the_same();
    test_more_links_than_allowed_are_turned_away();
    test_a_dialer_finds_a_worker_that_comes_back();
    TEST_END();
}
