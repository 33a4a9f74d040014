/* Which workers are a group and which are not, whose page is whose, and a client against servers that answer well,
 * wrongly, too much or never. */
#include <arpa/inet.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/core/test.h"
#include "tools/ctl_group.h"
#include "tools/ctl_http.h"

/* ---- groups ------------------------------------------------------------------------------------------------------ */

/* Ranks 0 to 2 of decode group a, a prefill worker that has the same name of a group, a worker alone. */
enum { N_WORKERS = 5 };

static void workers_make(reg_worker workers[N_WORKERS]) {
    memset(workers, 0, N_WORKERS * sizeof(workers[0]));
    for (uint32_t i = 0; i < N_WORKERS; i++) {
        snprintf(workers[i].name, sizeof(workers[i].name), "w%u", i);
        snprintf(workers[i].http_address, sizeof(workers[i].http_address), "127.0.0.1:%u", 7000 + i);
        workers[i].role = i == 3 ? WIRE_ROLE_PREFILL : WIRE_ROLE_DECODE;
        workers[i].model_hash = 0xabc;
        if (i < 4) workers[i].ep = (reg_rank){.group = "a", .rank = 2 - i % 3, .size = 3};
    }
}

static void check_group(const reg_worker *workers, size_t n_workers, const char *name, const char *sentence) {
    ctl_group group;
    bt_error err = {0};
    bt_status status = ctl_group_find(workers, n_workers, WIRE_ROLE_DECODE, name, &group, &err);
    CHECK(status == BT_BAD_REQUEST && strstr(err.text, sentence) != NULL, "%s: \"%s\"", sentence, err.text);
}

static void test_a_group_is_found_whole_or_not_at_all(void) {
    reg_worker workers[N_WORKERS];
    ctl_group group;
    bt_error err = {0};
    workers_make(workers);
    for (int is_named = 0; is_named < 2; is_named++) {
        CHECK(ctl_group_find(workers, N_WORKERS, WIRE_ROLE_DECODE, is_named ? "a" : "", &group, &err) == BT_OK, "%s",
              err.text);
        CHECK(group.n_ranks == 3 && group.members[0] == &workers[2] && group.members[2] == &workers[0], "by rank");
    }
    check_group(workers, N_WORKERS, "b", "no decode group b");
    check_group(workers, 0, "", "no decode group");
    check_group(workers, 2, "a", "rank 0 of 3 of group a is not there");
    workers[1].ep.rank = 2;
    check_group(workers, N_WORKERS, "a", "w0 and w1 both are rank 2");
    workers_make(workers);
    workers[1].ep.size = 4;
    check_group(workers, N_WORKERS, "a", "ranks of 3 and, with w1, of 4");
    workers_make(workers);
    workers[1].model_hash++;
    check_group(workers, N_WORKERS, "a", "w1 has another model than w2");
    workers_make(workers);
    workers[1].http_address[0] = 0;
    check_group(workers, N_WORKERS, "a", "w1 serves no HTTP");
    workers_make(workers);
    workers[4].ep = (reg_rank){.group = "b", .rank = 0, .size = 2};
    check_group(workers, N_WORKERS, "", "several decode groups, a and b");
}

static void test_pages_of_a_group_add_up(void) {
    reg_worker workers[N_WORKERS];
    workers_make(workers);
    krn_expert_load sum = {0};
    bt_error err = {0};
    for (uint32_t i = 0; i < 3; i++) {
        uint64_t rows[] = {10 * i, 1};
        const krn_expert_load load = {.model_hash = 0xabc,
                                      .group = "a",
                                      .rank = 2 - i,
                                      .n_ranks = 3,
                                      .n_layers = 1,
                                      .n_experts = 2,
                                      .rows = rows};
        bt_buf page = {0};
        krn_expert_load_write(&load, &page);
        for (uint32_t j = 0; j < 3; j++) {
            bt_status status = ctl_group_add_page(&workers[j], page.bytes, page.n_bytes, &sum, &err);
            CHECK(status == (i == j ? BT_OK : BT_BAD_REQUEST), "page of w%u as that of w%u", i, j);
        }
        workers[i].model_hash++;
        CHECK(ctl_group_add_page(&workers[i], page.bytes, page.n_bytes, &sum, &err) == BT_BAD_REQUEST, "another model");
        CHECK(ctl_group_add_page(&workers[i], "{}", 2, &sum, &err) == BT_BAD_REQUEST, "no page");
        bt_buf_fini(&page);
    }
    CHECK(sum.n_layers == 1 && sum.n_experts == 2 && sum.rows[0] == 30 && sum.rows[1] == 3,
          "what was refused is not in");
    krn_expert_load_fini(&sum);
}

/* ---- HTTP -------------------------------------------------------------------------------------------------------- */

typedef struct {
    int listener;
    const char *answer; /* NULL: none */
    size_t n_bytes;
} server;

static void *serve_one(void *context) {
    const server *s = context;
    char request[1024];
    int fd = accept(s->listener, NULL, NULL);
    for (size_t n = 0; n < s->n_bytes;) {
        ssize_t sent = send(fd, s->answer + n, s->n_bytes - n, MSG_NOSIGNAL);
        if (sent <= 0) break;
        n += (size_t)sent;
    }
    if (s->answer != NULL) shutdown(fd, SHUT_WR);
    while (recv(fd, request, sizeof(request), 0) > 0) continue; /* until the client has enough of it */
    close(fd);
    return NULL;
}

/* A server for one request; its port. */
static uint32_t listener_open(int *out) {
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n_bytes = sizeof(addr);
    *out = socket(AF_INET, SOCK_STREAM, 0);
    BT_ASSERT(bind(*out, (struct sockaddr *)&addr, n_bytes) == 0 && listen(*out, 1) == 0);
    getsockname(*out, (struct sockaddr *)&addr, &n_bytes);
    return ntohs(addr.sin_port);
}

static void check_answer(const char *answer, size_t n_bytes, uint32_t timeout_ms, bt_status expected,
                         const char *body_or_sentence) {
    enum { MAX_BYTES = 100 };
    server s = {.answer = answer, .n_bytes = n_bytes};
    char address[32];
    snprintf(address, sizeof(address), "127.0.0.1:%u", listener_open(&s.listener));
    pthread_t thread;
    BT_ASSERT(pthread_create(&thread, NULL, serve_one, &s) == 0);
    bt_buf body = {0};
    bt_buf_puts(&body, "what was there");
    bt_error err = {0};
    bt_status status = ctl_http_get(address, "/experts", timeout_ms, MAX_BYTES, &body, &err);
    const char *found = status == BT_OK ? bt_buf_text(&body) : err.text;
    bool is_right = status == BT_OK ? strcmp(found, body_or_sentence) == 0 : strstr(found, body_or_sentence) != NULL;
    CHECK(status == expected && is_right, "%s, expected %s: \"%s\"", bt_status_name(status), body_or_sentence, found);
    pthread_join(thread, NULL);
    close(s.listener);
    bt_buf_fini(&body);
}

static void test_a_page_is_fetched_whole_or_not_at_all(void) {
    enum { LONG_MS = 60000 };
    static const struct {
        const char *answer;
        bt_status status;
        const char *body_or_sentence;
    } rows[] = {
        {"HTTP/1.1 200 OK\r\nContent-Type: x\r\nContent-Length: 3\r\n\r\n{}\n", BT_OK, "{}\n"},
        {"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", BT_OK, ""},
        {"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}", BT_BAD_REQUEST, "status 404"},
        {"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n", BT_BAD_REQUEST,
         "status 302"},
        {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}", BT_PEER_LOST, "not answer"},
        {"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", BT_PEER_LOST, "not answer"},
        {"SSH-2.0-x\r\n\r\n", BT_BAD_REQUEST, "127.0.0.1"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        check_answer(rows[i].answer, strlen(rows[i].answer), LONG_MS, rows[i].status, rows[i].body_or_sentence);
    }
    static const char head[] = "HTTP/1.1 200 OK\r\n\r\n";
    static char huge[1 << 20];
    memset(huge, 'x', sizeof(huge));
    memcpy(huge, head, sizeof(head) - 1);
    check_answer(huge, sizeof(huge), LONG_MS, BT_BAD_REQUEST, "more than");
    check_answer(NULL, 0, 100, BT_TIMEOUT, "in time");
}

static void test_nobody_there_is_said(void) {
    int listener;
    char address[32];
    snprintf(address, sizeof(address), "127.0.0.1:%u", listener_open(&listener));
    close(listener);
    bt_buf body = {0};
    bt_error err = {0};
    CHECK(ctl_http_get(address, "/experts", 60000, 100, &body, &err) == BT_PEER_LOST, "%s", err.text);
    CHECK(ctl_http_get("nowhere", "/experts", 60000, 100, &body, &err) == BT_BAD_REQUEST, "%s", err.text);
    bt_buf_fini(&body);
}

int main(void) {
    test_a_group_is_found_whole_or_not_at_all();
    test_pages_of_a_group_add_up();
    test_a_page_is_fetched_whole_or_not_at_all();
    test_nobody_there_is_said();
    TEST_END();
}
