/* A client that does not read is dropped: after write_ms without progress, or when more waits than cap_pending_bytes.
 * Client and loop share one thread. */
#include "gateway/http/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/core/clock.h"
#include "common/core/test.h"

enum { WAIT_S = 60, MORE_BYTES = 2000 };

typedef struct {
    gw_http *http;
    gw_http_exchange *exchange; /* NULL: not there yet, or gone */
    uint32_t n_gone;
    int64_t deadline_ns;
} world;

static char much[16 << 20]; /* more than the sockets between the two hold */

static void on_gone(void *user) {
    world *world = user;
    world->exchange = NULL;
    world->n_gone++;
    gw_http_stop(world->http);
}

static void on_request(void *context, gw_http_exchange *exchange) {
    world *world = context;
    world->exchange = exchange;
    gw_http_set_user(exchange, world, on_gone);
    gw_http_stream_begin(exchange, 200, "text/plain");
    gw_http_stream_write(exchange, much, sizeof much);
}

static void on_tick(void *context) {
    world *world = context;
    if (world->exchange != NULL) gw_http_stream_write(world->exchange, much, MORE_BYTES);
    if (bt_now_ns() > world->deadline_ns) gw_http_stop(world->http);
}

static void on_answered(void *context, int status) {
    (void)context;
    CHECK(status == 200, "status %d", status);
}

static bool allow_origin(void *context, const char *origin, size_t n_bytes, char out[GW_HTTP_CAP_ORIGIN]) {
    (void)context, (void)origin, (void)n_bytes, (void)out;
    return false;
}

static bool on_turn(void *context) {
    (void)context;
    return false;
}

static int ask(uint32_t port) {
    static const char request[] = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
    int client = socket(AF_INET, SOCK_STREAM, 0), n_bytes = 4096;
    setsockopt(client, SOL_SOCKET, SO_RCVBUF, &n_bytes, sizeof n_bytes);
    bool is_sent = connect(client, (struct sockaddr *)&address, sizeof address) == 0 &&
                   send(client, request, sizeof request - 1, MSG_NOSIGNAL) == sizeof request - 1;
    CHECK(is_sent, "%s", strerror(errno));
    return client;
}

static void test_drop(const char *why, uint32_t write_ms, uint64_t cap_pending_bytes) {
    world world = {0};
    bt_error err = {0};
    gw_http_config config = {.host = "127.0.0.1",
                             .is_first = true,
                             .body_limit_bytes = 1000,
                             .header_limit_bytes = 1000,
                             .idle_ms = 60000,
                             .read_ms = 60000,
                             .write_ms = write_ms,
                             .cap_pending_bytes = cap_pending_bytes,
                             .context = &world,
                             .on_request = on_request,
                             .on_answered = on_answered,
                             .allow_origin = allow_origin,
                             .on_turn = on_turn,
                             .on_tick = on_tick};
    bt_status status = gw_http_open(&config, &world.http, &err);
    CHECK(status == BT_OK, "%s", err.text);
    if (status != BT_OK) return;
    world.deadline_ns = bt_now_ns() + (int64_t)WAIT_S * BT_NS_PER_S;
    int client = ask(gw_http_port(world.http));
    gw_http_run(world.http);
    CHECK(world.n_gone == 1, "%s: the client is still there after %d s", why, WAIT_S);
    close(client);
    gw_http_close(world.http);
}

int main(void) {
    test_drop("too long", 200, UINT64_MAX);
    test_drop("too much", WAIT_S * 10000, MORE_BYTES);
    TEST_END();
}
