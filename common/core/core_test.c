/* Config, metrics, queue, buffers and arenas do what their headers say. */
#include <pthread.h>
#include <string.h>

#include "common/core/address.h"
#include "common/core/alloc.h"
#include "common/core/config.h"
#include "common/core/metrics.h"
#include "common/core/queue.h"
#include "common/core/test.h"

typedef struct {
    cfg_u32 max_num_seqs;
    cfg_u64 kv_cache_memory_bytes;
    cfg_f64 temperature;
    cfg_bool enable_prefix_caching;
    cfg_str host;
} test_config;

static const cfg_flag flags[] = {CFG_ENTRY(test_config, u32, max_num_seqs, "64", "sequences")
                                     CFG_ENTRY(test_config, u64, kv_cache_memory_bytes, "1G", "bytes")
                                         CFG_ENTRY(test_config, f64, temperature, "0.6", "heat")
                                             CFG_ENTRY(test_config, bool, enable_prefix_caching, "true", "cache")
                                                 CFG_ENTRY(test_config, str, host, "127.0.0.1", "address")};

static bt_status parse(test_config *config, bt_error *err, int argc, const char *const *argv) {
    return cfg_parse("test", "a test", flags, sizeof(flags) / sizeof(flags[0]), argc, (char **)(uintptr_t)argv, config,
                     err);
}

static void test_flags_come_from_defaults_and_arguments(void) {
    test_config config;
    bt_error err = {0};
    const char *good[] = {"x", "--max-num-seqs", "8", "--kv-cache-memory-bytes=3K", "--no-enable-prefix-caching"};
    CHECK(parse(&config, &err, 5, good) == BT_OK, "%s", err.text);
    CHECK(config.max_num_seqs == 8 && config.kv_cache_memory_bytes == 3072, "numbers");
    CHECK(!config.enable_prefix_caching && strcmp(config.host, "127.0.0.1") == 0, "bool and default");
    const char *bad[][3] = {{"x", "--nope", "1"},          {"x", "--max-num-seqs", "-1"},
                            {"x", "--temperature", "nan"}, {"x", "--max-num-seqs", "5x"},
                            {"x", "positional", ""},       {"x", "--max-num-seqs", "4G"}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        CHECK(parse(&config, &err, 3, bad[i]) == BT_BAD_REQUEST, "%s %s", bad[i][1], bad[i][2]);
}

static void test_metrics_are_written_in_prometheus_format(void) {
    bt_metrics *metrics = bt_metrics_open(BT_ROLE_GATEWAY, "model_name=\"m\"");
    bt_series_add(bt_metrics_series(metrics, BT_METRIC_REQUESTS, "outcome=\"stop\""), 2);
    bt_series_observe(bt_metrics_series(metrics, BT_METRIC_TTFT, ""), 0.015);
    bt_buf out = {0};
    bt_metrics_write(metrics, &out);
    const char *text = bt_buf_text(&out);
    CHECK(strstr(text, "baton_requests_total{model_name=\"m\",outcome=\"stop\"} 2\n") != NULL, "%s", text);
    CHECK(strstr(text, "baton_time_to_first_token_seconds_bucket{model_name=\"m\",le=\"0.02\"} 1\n") != NULL, "bucket");
    CHECK(strstr(text, "baton_time_to_first_token_seconds_bucket{model_name=\"m\",le=\"0.01\"} 0\n") != NULL, "below");
    CHECK(strstr(text, "baton_kv_leases") == NULL, "a family of another role");
    bt_buf_fini(&out);
    bt_metrics_close(metrics);
}

static bt_buf scrape(bt_metrics *metrics) {
    bt_buf out = {0};
    bt_metrics_write(metrics, &out);
    bt_buf_text(&out);
    return out;
}

/* Prometheus refuses a page on which a family is said twice; several lists make one. */
static void test_no_role_exports_a_family_twice(void) {
    static const unsigned roles[] = {BT_ROLE_GATEWAY, BT_ROLE_PREFILL, BT_ROLE_DECODE};
    for (size_t i = 0; i < 3; i++) {
        bt_metrics *metrics = bt_metrics_open(roles[i] | BT_LEGACY, "");
        bt_buf page = scrape(metrics);
        const char *text = (const char *)page.bytes;
        for (const char *at = text; (at = strstr(at, "# TYPE ")) != NULL; at++) {
            char line[160];
            int n_name = (int)strcspn(at + 7, " ");
            snprintf(line, sizeof(line), "# TYPE %.*s ", n_name, at + 7);
            CHECK(strstr(at + 1, line) == NULL && strstr(text, line) == at, "role %u: %s", roles[i], line);
        }
        bt_buf_fini(&page);
        bt_metrics_close(metrics);
    }
}

static void test_an_alias_is_the_same_series_under_vllms_name(void) {
    bt_metrics *metrics = bt_metrics_open(BT_ROLE_DECODE, "model_name=\"m\"");
    bt_series_add(bt_metrics_series(metrics, BT_METRIC_PREFIX_HITS, ""), 64);
    bt_series_observe(bt_metrics_series(metrics, BT_METRIC_STEP_ROWS, ""), 9);
    bt_buf page = scrape(metrics);
    const char *text = (const char *)page.bytes;
    CHECK(strstr(text, "\nbaton_prefix_cache_hits_total{model_name=\"m\"} 64\n") != NULL, "%s", text);
    CHECK(strstr(text, "\nvllm:prefix_cache_hits_total{engine=\"0\",model_name=\"m\"} 64\n") != NULL, "%s", text);
    CHECK(strstr(text, "\nvllm:iteration_tokens_total_bucket{engine=\"0\",model_name=\"m\",le=\"16\"} 1\n") != NULL,
          "%s", text);
    CHECK(strstr(text, "gpu_prefix_cache") == NULL, "legacy names were not asked for");
    bt_buf_fini(&page);
    bt_metrics_close(metrics);
}

static void test_a_hidden_series_is_not_written(void) {
    bt_metrics *metrics = bt_metrics_open(BT_ROLE_GATEWAY, "");
    bt_series *series = bt_metrics_series(metrics, BT_METRIC_WORKER_UP, "worker=\"w\"");
    bt_series_set(series, 1.5);
    bt_series_show(series, false);
    bt_buf page = scrape(metrics);
    CHECK(strstr((const char *)page.bytes, "baton_worker_up{") == NULL, "hidden");
    bt_buf_fini(&page);
    CHECK(bt_metrics_series(metrics, BT_METRIC_WORKER_UP, "worker=\"w\"") == series, "the same");
    bt_series_show(series, true);
    page = scrape(metrics);
    CHECK(strstr((const char *)page.bytes, "\nbaton_worker_up{worker=\"w\"} 1.5\n") != NULL, "shown again");
    bt_buf_fini(&page);
    bt_metrics_close(metrics);
}

enum { N_PUSHERS = 4, N_PUSHES = 10000 };
static bt_queue *queue;
typedef struct {
    bt_queue_node node;
    int from, serial;
} test_message;

static void *push_many(void *argument) {
    for (int i = 0; i < N_PUSHES; i++) {
        test_message *message = bt_calloc(1, sizeof(*message));
        message->from = (int)(intptr_t)argument;
        message->serial = i;
        bt_queue_push(queue, &message->node);
    }
    return NULL;
}

static void test_queue_keeps_each_producers_order(void) {
    pthread_t threads[N_PUSHERS];
    int next[N_PUSHERS] = {0}, n_seen = 0, n_misordered = 0;
    CHECK(bt_queue_open(&queue, NULL) == BT_OK, "open");
    for (intptr_t i = 0; i < N_PUSHERS; i++) pthread_create(&threads[i], NULL, push_many, (void *)i);
    while (n_seen < N_PUSHERS * N_PUSHES) {
        bt_queue_wait(queue, 1000);
        bt_queue_node *node = bt_queue_take(queue);
        while (node != NULL) {
            test_message *message = BT_QUEUE_ENTRY(node, test_message, node);
            node = node->next;
            n_misordered += message->serial != next[message->from]++;
            n_seen++;
            free(message);
        }
    }
    for (int i = 0; i < N_PUSHERS; i++) pthread_join(threads[i], NULL);
    CHECK(n_misordered == 0, "%d out of order", n_misordered);
    bt_queue_close(queue);
}

static void test_buffers_and_arenas_grow(void) {
    bt_buf buf = {0};
    for (int i = 0; i < 1000; i++) bt_buf_printf(&buf, "%d,", i);
    CHECK(strncmp(bt_buf_text(&buf), "0,1,2,", 6) == 0 && buf.n_bytes == 3890, "%zu", buf.n_bytes);
    bt_buf_consume(&buf, 2);
    CHECK(bt_buf_text(&buf)[0] == '1', "consumed");
    bt_buf_fini(&buf);
    bt_arena arena = {0};
    for (size_t i = 1; i < 10000; i += 77) memset(bt_arena_alloc(&arena, i), 0xff, i);
    CHECK(((unsigned char *)bt_arena_alloc(&arena, 16))[15] == 0, "zeroed");
    bt_arena_fini(&arena);
}

static void test_addresses_are_split_or_refused(void) {
    static const struct {
        const char *text, *host;
        uint32_t port;
    } good[] = {
        {"127.0.0.1:80", "127.0.0.1", 80}, {"[::1]:65535", "::1", 65535}, {"worker-0.pods_a:7", "worker-0.pods_a", 7}};
    char host[64];
    uint32_t port = 0;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        bt_status status = bt_address_split(good[i].text, host, sizeof(host), &port, NULL);
        CHECK(status == BT_OK && strcmp(host, good[i].host) == 0 && port == good[i].port, "%s", good[i].text);
    }
    static const char *const bad[] = {"",     ":",    "a",     "a:",   ":1",     "a:0",   "a:65536",  "a:1x",
                                      "a: 1", "a:-1", "a b:1", "[]:1", "[::1:1", "::1:1", "a:000001", "a/b:1"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        CHECK(bt_address_split(bad[i], host, sizeof(host), &port, NULL) == BT_BAD_REQUEST, "\"%s\" was taken", bad[i]);
}

int main(void) {
    test_addresses_are_split_or_refused();
    test_flags_come_from_defaults_and_arguments();
    test_metrics_are_written_in_prometheus_format();
    test_no_role_exports_a_family_twice();
    test_an_alias_is_the_same_series_under_vllms_name();
    test_a_hidden_series_is_not_written();
    test_queue_keeps_each_producers_order();
    test_buffers_and_arenas_grow();
    TEST_END();
}
