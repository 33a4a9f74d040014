/* For tests: a loop and its clients in one thread. */
#ifndef BATON_GATEWAY_HTTP_TEST_LOOP_H
#define BATON_GATEWAY_HTTP_TEST_LOOP_H

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/core/test.h"
#include "gateway/http/http.h"

static void test_loop_on_answered(void *context, int status) {
    (void)context;
    CHECK(status == 200, "status %d", status);
}

static bool test_loop_allow_origin(void *context, const char *origin, size_t n_bytes, char out[GW_HTTP_CAP_ORIGIN]) {
    (void)context, (void)origin, (void)n_bytes, (void)out;
    return false;
}

static bool test_loop_on_turn(void *context) {
    (void)context;
    return false;
}

static void test_loop_on_tick(void *context) { (void)context; }

/* Of a loop that answers with 200 and waits a minute for anything; on_request is the test's. */
static inline gw_http_config test_loop_config(void *context) {
    return (gw_http_config){.host = "127.0.0.1",
                            .is_first = true,
                            .body_limit_bytes = 1000,
                            .header_limit_bytes = 1000,
                            .idle_ms = 60000,
                            .read_ms = 60000,
                            .write_ms = 60000,
                            .cap_pending_bytes = 1000,
                            .context = context,
                            .on_answered = test_loop_on_answered,
                            .allow_origin = test_loop_allow_origin,
                            .on_turn = test_loop_on_turn,
                            .on_tick = test_loop_on_tick};
}

/* A client of the loop; recv_bytes: of its socket's buffer, 0: as it comes. -1: it cannot connect, which is noted. */
static inline int test_loop_connect(const gw_http *http, int recv_bytes) {
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                  .sin_port = htons((uint16_t)gw_http_port(http))};
    int client = socket(AF_INET, SOCK_STREAM, 0);
    if (recv_bytes > 0) setsockopt(client, SOL_SOCKET, SO_RCVBUF, &recv_bytes, sizeof recv_bytes);
    if (connect(client, (struct sockaddr *)&address, sizeof address) == 0) return client;
    CHECK(false, "connect: %s", strerror(errno));
    close(client);
    return -1;
}

static inline void test_loop_ask(int client) {
    static const char request[] = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    ssize_t n = send(client, request, sizeof request - 1, MSG_NOSIGNAL);
    CHECK(n == sizeof request - 1, "%s", strerror(errno));
}

#endif
