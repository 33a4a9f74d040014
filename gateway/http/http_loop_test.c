/* The loop with more sockets ready at once than h2o asks the kernel for (256). Clients, loop and answers share one
 * thread, so that all of them are ready before the loop looks. */
#include "common/core/clock.h"
#include "gateway/http/test_loop.h"

enum { N_CLIENTS = 400, N_ROUNDS = 4, WAIT_S = 60 };

typedef struct {
    gw_http *http;
    int clients[N_CLIENTS];
    gw_http_exchange *exchanges[N_CLIENTS]; /* of this round */
    uint32_t n_exchanges, n_begun;          /* answers: a part is written */
    uint32_t n_rounds;
    bool is_ended; /* all answers */
    int64_t deadline_ns;
} world;

static void on_request(void *context, gw_http_exchange *exchange) {
    world *world = context;
    CHECK(world->n_exchanges < N_CLIENTS, "each client has asked once");
    if (world->n_exchanges < N_CLIENTS) world->exchanges[world->n_exchanges++] = exchange;
}

static void ask_all(world *world) {
    for (int i = 0; i < N_CLIENTS; i++) test_loop_ask(world->clients[i]);
    world->n_exchanges = world->n_begun = 0;
    world->is_ended = false;
    world->n_rounds++;
}

static void read_all(world *world) {
    for (int i = 0; i < N_CLIENTS; i++) {
        char answer[512] = "";
        ssize_t n = recv(world->clients[i], answer, sizeof answer - 1, MSG_DONTWAIT);
        CHECK(n > 0 && strncmp(answer, "HTTP/1.1 200", 12) == 0 && strstr(answer, "\r\n0\r\n\r\n") != NULL,
              "client %d, round %u: %s", i, world->n_rounds, answer);
    }
}

/* Behind the turn in which the loop has read a request, its answer begins; all end together. Between the two nothing of
 * an answer changes but that its first part has left. */
static bool on_turn(void *context) {
    world *world = context;
    bool is_late = bt_now_ns() > world->deadline_ns;
    CHECK(!is_late, "%u answers begun in round %u after %d s", world->n_begun, world->n_rounds, WAIT_S);
    if (world->n_begun == N_CLIENTS && !world->is_ended) {
        for (uint32_t i = 0; i < N_CLIENTS; i++) gw_http_stream_end(world->exchanges[i]);
        world->is_ended = true;
    }
    for (; world->n_begun < world->n_exchanges; world->n_begun++) {
        gw_http_stream_begin(world->exchanges[world->n_begun], 200, "text/plain");
        gw_http_stream_write(world->exchanges[world->n_begun], "yes", 3);
    }
    if (is_late) gw_http_stop(world->http);
    if (!world->is_ended || gw_http_n_exchanges(world->http) > 0) return false;
    read_all(world);
    if (world->n_rounds == N_ROUNDS) {
        gw_http_stop(world->http);
    } else {
        ask_all(world);
    }
    return true;
}

static bool connect_all(world *world) {
    for (int i = 0; i < N_CLIENTS; i++) {
        world->clients[i] = test_loop_connect(world->http, 0);
        if (world->clients[i] < 0) return false;
    }
    return true;
}

int main(void) {
    static world world;
    bt_error err = {0};
    gw_http_config config = test_loop_config(&world);
    config.on_request = on_request;
    config.on_turn = on_turn;
    bt_status status = gw_http_open(&config, &world.http, &err);
    CHECK(status == BT_OK, "%s", err.text);
    if (status != BT_OK) TEST_END();
    world.deadline_ns = bt_now_ns() + (int64_t)WAIT_S * BT_NS_PER_S;
    if (connect_all(&world)) {
        ask_all(&world); /* accepted few at a time; later rounds find all connections open */
        gw_http_run(world.http);
    }
    for (int i = 0; i < N_CLIENTS; i++) close(world.clients[i]);
    gw_http_close(world.http);
    TEST_END();
}
