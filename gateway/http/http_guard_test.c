/* A client that does not read is dropped: after write_ms without progress, or when more waits than cap_pending_bytes.
 * Client and loop share one thread. */
#include "common/core/clock.h"
#include "gateway/http/test_loop.h"

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

static void test_drop(const char *why, uint32_t write_ms, uint64_t cap_pending_bytes) {
    world world = {0};
    bt_error err = {0};
    gw_http_config config = test_loop_config(&world);
    config.write_ms = write_ms;
    config.cap_pending_bytes = cap_pending_bytes;
    config.on_request = on_request;
    config.on_tick = on_tick;
    bt_status status = gw_http_open(&config, &world.http, &err);
    CHECK(status == BT_OK, "%s", err.text);
    if (status != BT_OK) return;
    world.deadline_ns = bt_now_ns() + (int64_t)WAIT_S * BT_NS_PER_S;
    int client = test_loop_connect(world.http, 4096);
    test_loop_ask(client);
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
