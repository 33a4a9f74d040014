/* The scrape endpoint against good and bad clients; what it says in vLLM's names; peers that come, are replaced and go.
 */
#include <arpa/inet.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/core/test.h"
#include "worker/wrk_http.h"
#include "worker/wrk_peers.h"
#include "worker/wrk_vllm.h"

static uint32_t free_port(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n_bytes = sizeof(addr);
    if (bind(fd, (struct sockaddr *)&addr, n_bytes) != 0) exit(1);
    getsockname(fd, (struct sockaddr *)&addr, &n_bytes);
    close(fd);
    return ntohs(addr.sin_port);
}

static int dial(uint32_t port) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in addr = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0, "connect");
    return fd;
}

static const char *ask(uint32_t port, const char *request) {
    static char answer[65536];
    int fd = dial(port);
    if (send(fd, request, strlen(request), MSG_NOSIGNAL) < 0) exit(1);
    size_t n_bytes = 0;
    for (ssize_t n; (n = recv(fd, answer + n_bytes, sizeof(answer) - 1 - n_bytes, 0)) > 0;) n_bytes += (size_t)n;
    answer[n_bytes] = 0;
    close(fd);
    return answer;
}

static bool begins_with(const char *text, const char *begin) { return strncmp(text, begin, strlen(begin)) == 0; }

static void write_experts(void *context, bt_buf *page) { bt_buf_puts(page, context); }

static void metrics_health_and_experts_are_served(void) {
    bt_metrics *metrics = bt_metrics_open(BT_ROLE_DECODE, "model_name=\"m\"");
    bt_series_set(bt_metrics_series(metrics, BT_METRIC_RUNNING, ""), 3);
    wrk_http *http = NULL, *second = NULL;
    bt_error err = {0};
    uint32_t port = free_port();
    wrk_http_config config = {"127.0.0.1", port, metrics, write_experts, "{}"};
    CHECK(wrk_http_open(&config, &http, &err) == BT_OK, "%s", err.text);
    CHECK(wrk_http_open(&config, &second, &err) == BT_INTERNAL, "the port is taken");
    config.host = "no such host";
    CHECK(wrk_http_open(&config, &second, &err) == BT_BAD_REQUEST, "%s", err.text);
    const char *answer = ask(port, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    CHECK(begins_with(answer, "HTTP/1.1 200 "), "%s", answer);
    CHECK(strstr(answer, "\nbaton_running{model_name=\"m\"} 3\n") != NULL, "%s", answer);
    CHECK(begins_with(ask(port, "GET /health HTTP/1.0\r\n\r\n"), "HTTP/1.1 503 "), "starting");
    wrk_http_set_trouble(http, NULL);
    CHECK(begins_with(ask(port, "GET /health HTTP/1.0\r\n\r\n"), "HTTP/1.1 200 "), "healthy");
    wrk_http_set_trouble(http, "draining");
    answer = ask(port, "GET /health?x=1 HTTP/1.1\r\n\r\n");
    CHECK(begins_with(answer, "HTTP/1.1 503 ") && strstr(answer, "\r\n\r\ndraining\n") != NULL, "%s", answer);
    answer = ask(port, "GET /experts HTTP/1.0\r\n\r\n");
    CHECK(begins_with(answer, "HTTP/1.1 200 ") && strstr(answer, "application/json\r\n") != NULL &&
              strstr(answer, "\r\n\r\n{}") != NULL,
          "%s", answer);
    CHECK(begins_with(ask(port, "GET / HTTP/1.1\r\n\r\n"), "HTTP/1.1 404 "), "no such page");
    CHECK(begins_with(ask(port, "GET /metricsx HTTP/1.1\r\n\r\n"), "HTTP/1.1 404 "), "no such page");
    CHECK(begins_with(ask(port, "POST /metrics HTTP/1.1\r\n\r\n"), "HTTP/1.1 405 "), "only GET");
    CHECK(begins_with(ask(port, "\n\n"), "HTTP/1.1 405 "), "nonsense");

    int silent = dial(port); /* holds the thread for a second; forever, and this test would not end */
    CHECK(begins_with(ask(port, "GET /metrics HTTP/1.1\r\n\r\n"), "HTTP/1.1 200 "), "behind a silent client");
    close(silent);
    static char huge[20000];
    memset(huge, 'a', sizeof(huge) - 1);
    CHECK(ask(port, huge)[0] == 0, "a request without end gets no answer");
    wrk_http_close(http);
    bt_metrics_close(metrics);
}

static void routers_find_vllms_figures(void) {
    bt_metrics *metrics = bt_metrics_open(BT_ROLE_DECODE, "");
    wrk_vllm vllm;
    wrk_vllm_open(&vllm, metrics);
    const wire_load load = {.waiting = 2, .kv_blocks_total = 8, .kv_blocks_used = 6};
    wrk_vllm_load(&vllm, &load);
    wrk_vllm_message(&vllm,
                     &(wire_message){.type = WIRE_FIRST_TOKEN, .first_token = {.queue_us = 2000, .compute_us = 3000}});
    wrk_vllm_message(&vllm, &(wire_message){.type = WIRE_FINISHED, .finished = {.reason = WIRE_FINISH_LENGTH}});
    wrk_vllm_message(&vllm, &(wire_message){.type = WIRE_TOKENS});
    bt_buf page = {0};
    bt_metrics_write(metrics, &page);
    static const char *const lines[] = {
        "\nvllm:num_requests_running{engine=\"0\"} 0\n",
        "\nvllm:num_requests_waiting_by_reason{engine=\"0\",reason=\"capacity\"} 2\n",
        "\nvllm:kv_cache_usage_perc{engine=\"0\"} 0.75\n",
        "\nvllm:cache_config_info{engine=\"0\",block_size=\"64\",num_gpu_blocks=\"8\"} 1\n",
        "\nvllm:time_to_first_token_seconds_sum{engine=\"0\"} 0.005\n",
        "\nvllm:request_success_total{engine=\"0\",finished_reason=\"length\"} 1\n",
        "\nvllm:num_preemptions_total{engine=\"0\"} 0\n",
    };
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++)
        CHECK(strstr(bt_buf_text(&page), lines[i]) != NULL, "no %s", lines[i]);
    bt_buf_fini(&page);
    bt_metrics_close(metrics);
}

static void a_newer_connection_replaces_the_older(void) {
    wrk_peers peers = {0};
    link_conn *links[3] = {(link_conn *)&links[0], (link_conn *)&links[1], (link_conn *)&links[2]}; /* only compared */
    uint64_t incarnation = 0;
    wrk_peers_put_link(&peers, 7, links[0]);
    wrk_peers_put_kv(&peers, 7, 100); /* a KV peer may have the number of a gateway */
    wrk_peers_put_link(&peers, 8, links[1]);
    wrk_peers_put_link(&peers, 7, links[2]);
    CHECK(wrk_peers_link(&peers, 7) == links[2] && wrk_peers_link(&peers, 8) == links[1], "the newest of each");
    CHECK(!wrk_peers_remove_link(&peers, links[0], &incarnation), "a replaced link is not its gateway's end");
    CHECK(wrk_peers_remove_link(&peers, links[2], &incarnation) && incarnation == 7, "the current one is");
    CHECK(wrk_peers_link(&peers, 7) == NULL && wrk_peers_kv(&peers, 7) == 100, "only the link is gone");
    wrk_peers_put_kv(&peers, 7, 101);
    CHECK(!wrk_peers_remove_kv(&peers, 100, &incarnation), "replaced");
    CHECK(wrk_peers_remove_kv(&peers, 101, &incarnation) && incarnation == 7, "current");
    CHECK(wrk_peers_kv(&peers, 7) == 0, "gone");
    for (uint64_t i = 1; i <= 100; i++) wrk_peers_put_kv(&peers, i, i + 1000);
    for (uint64_t i = 1; i <= 100; i++) CHECK(wrk_peers_kv(&peers, i) == i + 1000, "peer %d", (int)i);
    wrk_peers_fini(&peers);
}

static wrk_news on_kv(wrk_peers *peers, kvt_event_kind kind, kvt_peer kv, uint64_t tag, uint64_t incarnation,
                      uint64_t *peer) {
    const kvt_event event = {.kind = kind, .peer = kv, .tag = tag, .incarnation = incarnation};
    return wrk_peers_on_kv(peers, NULL, &event, peer); /* without a fabric: none of these closes a connection */
}

static void events_of_kv_connections_name_the_peer(void) {
    enum { DIALED = 20, CAME = 30 };
    wrk_peers peers = {0};
    uint64_t peer = 0;
    wrk_peers_put_kv(&peers, 7, DIALED);
    CHECK(on_kv(&peers, KVT_UP, DIALED, 7, 7, &peer) == WRK_UP && peer == 7, "whom we wanted answers");
    CHECK(on_kv(&peers, KVT_UP, DIALED - 1, 7, 7, &peer) == WRK_IGNORE, "a connection that was given up");
    CHECK(on_kv(&peers, KVT_UP, CAME, 0, 8, &peer) == WRK_UP && peer == 8, "somebody came");
    CHECK(on_kv(&peers, KVT_MESSAGE, CAME, 0, 8, &peer) == WRK_MESSAGE && peer == 8, "its message");
    CHECK(on_kv(&peers, KVT_MESSAGE, CAME, 0, 7, &peer) == WRK_IGNORE, "a message over another's connection");
    CHECK(on_kv(&peers, KVT_PUSHED, DIALED, 3, 0, &peer) == WRK_IGNORE, "no news of the peer");
    CHECK(on_kv(&peers, KVT_DOWN, DIALED - 1, 7, 0, &peer) == WRK_IGNORE, "what is gone was not current");
    CHECK(on_kv(&peers, KVT_DOWN, DIALED, 7, 0, &peer) == WRK_GONE && peer == 7, "a DOWN need not say whose");
    CHECK(wrk_peers_kv(&peers, 7) == 0 && wrk_peers_kv(&peers, 8) == CAME, "only that one is gone");
    wrk_peers_fini(&peers);
}

int main(void) {
    metrics_health_and_experts_are_served();
    routers_find_vllms_figures();
    a_newer_connection_replaces_the_older();
    events_of_kv_connections_name_the_peer();
    TEST_END();
}
