/* What the gateway counts, and what its pages say of it: metrics, targets, workers, the dashboard's history. */
#include <pthread.h>
#include <string.h>

#include "common/core/clock.h"
#include "common/core/test.h"
#include "gateway/telemetry/history.h"
#include "gateway/telemetry/telemetry.h"

#define MS BT_NS_PER_MS

static const char *page_of(gw_telemetry *telemetry, bt_buf *page) {
    bt_buf_clear(page);
    gw_telemetry_write(telemetry, page);
    return bt_buf_text(page);
}

static void check_has(gw_telemetry *telemetry, const char *line, const char *why) {
    bt_buf page = {0};
    CHECK(strstr(page_of(telemetry, &page), line) != NULL, "%s: no %s", why, line);
    bt_buf_fini(&page);
}

static void check_lacks(gw_telemetry *telemetry, const char *part, const char *why) {
    bt_buf page = {0};
    CHECK(strstr(page_of(telemetry, &page), part) == NULL, "%s: has %s", why, part);
    bt_buf_fini(&page);
}

/* ---- families -------------------------------------------------------------------------------------------------------
 */

static void what_autoscalers_need_is_there_before_the_first_request(void) {
    gw_telemetry *t = gw_telemetry_open("m", true);
    static const char *const lines[] = {
        "\nvllm:num_requests_running{engine=\"0\",model_name=\"m\"} 0\n",
        "\nvllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 0\n",
        "\nvllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0\n",
        "\nvllm:gpu_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0\n",
        "\nvllm:cache_config_info{engine=\"0\",model_name=\"m\",block_size=\"64\",num_gpu_blocks=\"0\"} 1\n",
        "\nvllm:request_success_total{engine=\"0\",model_name=\"m\",finished_reason=\"abort\"} 0\n",
        "\nvllm:time_to_first_token_seconds_bucket{engine=\"0\",model_name=\"m\",le=\"2560\"} 0\n",
        "\nvllm:time_per_output_token_seconds_count{engine=\"0\",model_name=\"m\"} 0\n",
        "\nbaton_slo_missed_total{model_name=\"m\",slo=\"tpot\"} 0\n",
        "\nbaton_refused_total{model_name=\"m\",reason=\"saturated\"} 0\n",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) check_has(t, lines[i], "from the start");
    gw_telemetry_close(t);
    t = gw_telemetry_open("a \"quoted\\\n\" name", false);
    check_lacks(t, "vllm:gpu_cache_usage_perc", "legacy names were not asked for");
    check_has(t, "{model_name=\"a \\\"quoted\\\\ \\\" name\"} 0\n", "a name cannot end its label");
    gw_telemetry_close(t);
}

/* ---- requests -------------------------------------------------------------------------------------------------------
 */

/* A request that came at 1 s, waited 10 ms, had its first token 50 ms after it came and then one every 10 ms. */
static void end_routed(gw_telemetry *t, const char *routing, gw_outcome outcome, uint32_t n_output, gw_slo slo) {
    int64_t arrival_ns = BT_NS_PER_S, first_ns = arrival_ns + 50 * MS;
    int64_t last_ns = first_ns + (n_output > 0 ? n_output - 1 : 0) * 10 * MS;
    gw_strategy strategy;
    if (gw_strategy_parse(routing, &strategy, NULL) != BT_OK) return; /* no CHECK: several threads are here */
    gw_info info = {.phase = GW_HANDED_OFF,
                    .strategy = &strategy,
                    .prefill = "p",
                    .decode = "d",
                    .n_prompt = 100,
                    .cached_tokens = 64,
                    .submit_ns = arrival_ns + 2 * MS,
                    .sent_ns = arrival_ns + 4 * MS,
                    .queue_us = 6000,
                    .compute_us = 30000,
                    .first_token_ns = n_output > 0 ? first_ns : 0};
    gw_ended ended = {.outcome = outcome,
                      .info = &info,
                      .slo = slo,
                      .arrival_ns = arrival_ns,
                      .first_token_ns = n_output > 0 ? first_ns : 0,
                      .last_token_ns = n_output > 0 ? last_ns : 0,
                      .now_ns = last_ns,
                      .n_output = n_output,
                      .max_tokens = 20,
                      .n_choices = 1};
    gw_telemetry_admitted(t, info.n_prompt);
    if (n_output > 0) gw_telemetry_first_token(t, first_ns - arrival_ns);
    gw_telemetry_ended(t, &ended);
}

static void end_request(gw_telemetry *t, gw_outcome outcome, uint32_t n_output, gw_slo slo) {
    end_routed(t, "random", outcome, n_output, slo);
}

static void times_are_told_apart_by_strategy_and_outcome(void) {
    gw_telemetry *t = gw_telemetry_open("m", false);
    check_lacks(t, "strategy=\"random\",outcome", "a strategy that nobody used has no histograms");
    end_request(t, GW_ENDED_STOP, 11, (gw_slo){0, 0});
    end_request(t, GW_ENDED_ABORT, 0, (gw_slo){0, 0});
#define RANDOM(outcome) "{model_name=\"m\",strategy=\"random\",outcome=\"" outcome "\"} "
    check_has(t, "\nbaton_time_to_first_token_seconds_count" RANDOM("stop") "1\n", "one had a token");
    check_has(t, "\nbaton_time_to_first_token_seconds_count" RANDOM("abort") "0\n", "the other did not");
    check_has(t, "\nbaton_time_per_output_token_seconds_sum" RANDOM("stop") "0.01\n", "10 ms each");
    check_has(t, "\nbaton_request_seconds_count" RANDOM("abort") "1\n", "both ended");
    check_has(t, "\nbaton_strategy_requests_total{model_name=\"m\",strategy=\"random\"} 2\n", "by strategy");
    check_has(t, "stage=\"prefill_compute\",strategy=\"random\",outcome=\"stop\"} 0.03\n", "stages");
    check_has(t, "\nbaton_selected_total{model_name=\"m\",role=\"decode\",worker=\"d\"} 2\n", "by worker");
    check_has(t, "\nbaton_client_disconnects_total{model_name=\"m\",phase=\"handed_off\"} 1\n", "by phase");
    gw_telemetry_close(t);
}

static void a_mix_is_one_name_and_a_weight_none(void) {
    gw_telemetry *t = gw_telemetry_open("m", false);
    end_routed(t, "", GW_ENDED_STOP, 2, (gw_slo){0, 0});
    end_routed(t, "random:5", GW_ENDED_STOP, 2, (gw_slo){0, 0});
    end_routed(t, "random:5,least-request:2", GW_ENDED_STOP, 2, (gw_slo){0, 0});
    check_has(t, "\nbaton_strategy_requests_total{model_name=\"m\",strategy=\"prefix-cache\"} 1\n", "the default");
    check_has(t, "\nbaton_strategy_requests_total{model_name=\"m\",strategy=\"random\"} 1\n", "a weight alone");
    check_has(t, "\nbaton_strategy_requests_total{model_name=\"m\",strategy=\"mixed\"} 1\n", "two of them");
    gw_telemetry_close(t);
}

/* The contract: queue, prefill and decode are the whole. */
static void vllms_parts_of_a_request_add_up(void) {
    gw_telemetry *t = gw_telemetry_open("m", false);
    end_request(t, GW_ENDED_STOP, 11, (gw_slo){0, 0});
#define ENGINE "{engine=\"0\",model_name=\"m\"} "
    check_has(t, "\nvllm:request_queue_time_seconds_sum" ENGINE "0.01\n", "until the first step");
    check_has(t, "\nvllm:request_prefill_time_seconds_sum" ENGINE "0.04\n", "until the first token");
    check_has(t, "\nvllm:request_decode_time_seconds_sum" ENGINE "0.1\n", "until the last");
    check_has(t, "\nvllm:e2e_request_latency_seconds_sum" ENGINE "0.15\n", "all");
    check_has(t, "\nvllm:request_prefill_kv_computed_tokens_sum" ENGINE "36\n", "100, and 64 were cached");
    check_has(t, "\nvllm:request_params_max_tokens_sum" ENGINE "20\n", "asked for");
    gw_telemetry_close(t);
}

static void targets_are_met_or_missed(void) {
    static const struct {
        gw_outcome outcome;
        uint32_t n_output;
        gw_slo slo;
        int ttft_attained, ttft_missed, tpot_attained, tpot_missed, good;
        const char *why;
    } rows[] = {
        {GW_ENDED_STOP, 11, {0, 0}, 0, 0, 0, 0, 1, "without targets every good end is goodput"},
        {GW_ENDED_STOP, 11, {50 * MS, 10 * MS}, 1, 0, 1, 0, 1, "exactly on target"},
        {GW_ENDED_LENGTH, 11, {49 * MS, 10 * MS}, 0, 1, 1, 0, 0, "the first token is late"},
        {GW_ENDED_STOP, 11, {50 * MS, 9 * MS}, 1, 0, 0, 1, 0, "the others are slow"},
        {GW_ENDED_STOP, 1, {50 * MS, 9 * MS}, 1, 0, 0, 0, 1, "a single token has no time per token"},
        {GW_ENDED_ABORT, 0, {50 * MS, 9 * MS}, 0, 0, 0, 0, 0, "who left before a token says nothing"},
        {GW_ENDED_ERROR, 0, {50 * MS, 9 * MS}, 0, 1, 0, 0, 0, "a failure is a miss"},
        {GW_ENDED_ERROR, 0, {0, 0}, 0, 0, 0, 0, 0, "of a target that is there"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        gw_telemetry *t = gw_telemetry_open("m", false);
        end_request(t, rows[i].outcome, rows[i].n_output, rows[i].slo);
        char want[600];
        snprintf(want, sizeof want,
                 "\nbaton_slo_attained_total{model_name=\"m\",slo=\"tpot\"} %d\n"
                 "baton_slo_attained_total{model_name=\"m\",slo=\"ttft\"} %d\n",
                 rows[i].tpot_attained, rows[i].ttft_attained);
        check_has(t, want, rows[i].why);
        snprintf(want, sizeof want,
                 "\nbaton_slo_missed_total{model_name=\"m\",slo=\"tpot\"} %d\n"
                 "baton_slo_missed_total{model_name=\"m\",slo=\"ttft\"} %d\n",
                 rows[i].tpot_missed, rows[i].ttft_missed);
        check_has(t, want, rows[i].why);
        snprintf(want, sizeof want, "\nbaton_goodput_requests_total{model_name=\"m\"} %d\n", rows[i].good);
        check_has(t, want, rows[i].why);
        gw_telemetry_close(t);
    }
}

static void a_clients_target_is_read_or_ignored(void) {
    static const struct {
        const char *text;
        int64_t want_ns;
    } rows[] = {{"250", 250 * MS},
                {"12.5", 12500 * BT_NS_PER_US},
                {"0", 7},
                {"-1", 7},
                {"", 7},
                {"1e3", 7},
                {"0x10", 7},
                {"inf", 7},
                {"1.2.3", 7},
                {".", 7},
                {"99999999999", 7},
                {" 5", 7},
                {"5 ms", 7},
                {"86400000", (int64_t)86400000 * MS},
                {"111111111111111111111111111111", 7}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int64_t ns = 7;
        gw_slo_read(rows[i].text, strlen(rows[i].text), &ns);
        CHECK(ns == rows[i].want_ns, "\"%s\": %lld", rows[i].text, (long long)ns);
    }
}

/* ---- workers --------------------------------------------------------------------------------------------------------
 */

static void a_worker_is_shown_while_it_is_there_and_a_minute_longer(void) {
    gw_telemetry *t = gw_telemetry_open("m", false);
    gw_router *router = gw_router_open(&(gw_router_options){.seed = 1});
    gw_worker known = {.role = WIRE_ROLE_DECODE, .name = "d\"0", .incarnation = 5};
    wire_load load = {.running = 3, .waiting = 2, .kv_blocks_total = 8, .kv_blocks_used = 2};
    gw_router_up(router, &known);
    gw_router_status(router, 5, &load);
    gw_telemetry_second(t, router, true);
#define WORKER "{model_name=\"m\",role=\"decode\",worker=\"d\\\"0\"} "
    check_has(t, "\nbaton_worker_up" WORKER "1\n", "there");
    check_has(t, "\nbaton_worker_running" WORKER "3\n", "its load");
    check_has(t, "\nbaton_worker_kv_usage" WORKER "0.25\n", "its memory");
    check_has(t, "\nvllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 2\n", "the sum");
    check_has(t, "num_gpu_blocks=\"8\"} 1\n", "the pool");
    check_lacks(t, "num_gpu_blocks=\"0\"", "one size only");
    load.is_draining = 1;
    gw_router_status(router, 5, &load);
    gw_telemetry_second(t, router, true);
    check_has(t, "\nbaton_worker_up" WORKER "0\n", "draining");
    gw_router_gone(router, 5);
    gw_telemetry_second(t, router, true);
    check_has(t, "\nbaton_worker_running" WORKER "0\n", "gone");
    for (int i = 0; i < 60; i++) gw_telemetry_second(t, router, true);
    check_lacks(t, "worker=\"d", "forgotten");
    known.incarnation = 6;
    gw_router_up(router, &known);
    gw_telemetry_second(t, router, true);
    check_has(t, "\nbaton_worker_up" WORKER "1\n", "back");
    gw_router_close(router);
    gw_telemetry_close(t);
}

/* ---- threads --------------------------------------------------------------------------------------------------------
 */

enum { N_LOOPS = 4, N_REQUESTS = 500 };

static void *run_loop(void *telemetry) {
    for (int i = 0; i < N_REQUESTS; i++) {
        end_request(telemetry, (gw_outcome)(i % GW_ENDED_REFUSED), 3, (gw_slo){50 * MS, 0});
        gw_telemetry_tokens(telemetry, 3, 30 * MS);
    }
    return NULL;
}

/* While loops count, one of them looks at the workers, and somebody scrapes. */
static void nothing_is_lost_between_loops(void) {
    gw_telemetry *t = gw_telemetry_open("m", true);
    gw_router *router = gw_router_open(&(gw_router_options){.seed = 1});
    const gw_worker known = {.role = WIRE_ROLE_DECODE, .name = "d", .incarnation = 5};
    gw_router_up(router, &known);
    pthread_t loops[N_LOOPS];
    for (int i = 0; i < N_LOOPS; i++) CHECK(pthread_create(&loops[i], NULL, run_loop, t) == 0, "a thread");
    bt_buf page = {0};
    for (int i = 0; i < 100; i++) { /* the worker goes and comes */
        gw_telemetry_second(t, router, true);
        page_of(t, &page);
        bt_buf_clear(&page);
        gw_telemetry_write_live(t, 0, &page);
        if (i == 20) gw_router_gone(router, 5);
        if (i == 90) gw_router_up(router, &known);
    }
    bt_buf_fini(&page);
    for (int i = 0; i < N_LOOPS; i++) pthread_join(loops[i], NULL);
    check_has(t, "\nbaton_selected_total{model_name=\"m\",role=\"decode\",worker=\"d\"} 2000\n", "workers");
    check_has(t, "\nbaton_slo_attained_total{model_name=\"m\",slo=\"ttft\"} 2000\n", "targets");
    check_has(t, "\nbaton_request_seconds_count" RANDOM("stop") "500\n", "histograms");
    check_has(t, "\nbaton_inter_token_latency_seconds_count{model_name=\"m\"} 6000\n", "tokens");
    check_has(t, "\nbaton_requests_running{model_name=\"m\"} 0\n", "gauges");
    gw_router_close(router);
    gw_telemetry_close(t);
}

/* ---- history --------------------------------------------------------------------------------------------------------
 */

/* The numbers of the last point; null is -1. */
static uint32_t last_point(gw_history *history, double out[64]) {
    bt_buf json = {0};
    gw_history_write(history, 0, &json);
    const char *at = strrchr(bt_buf_text(&json), '[') + 1;
    uint32_t n = 0;
    while (*at != ']') {
        char *end;
        bool is_null = strncmp(at, "null", 4) == 0;
        out[n++] = is_null ? -1 : strtod(at, &end);
        at = is_null ? at + 4 : end;
        if (*at == ',') at++;
    }
    bt_buf_fini(&json);
    return n;
}

enum { ENDED = 1, RUNNING = 15, TTFT_P50 = 23, TTFT_P99 = 25, TPOT_P50 = 26, N_COLUMNS = 29 };

static bool is_near(double value, double want) { return value > want * 0.93 && value < want * 1.07; }

static void quantiles_are_those_of_the_last_seconds(void) {
    gw_history *history = gw_history_open();
    double point[64];
    for (int ms = 1; ms <= 1000; ms++) gw_history_observe(history, GW_HISTORY_TTFT, ms * MS);
    gw_sample sample = {.ended = 10, .running = 4};
    gw_history_put(history, &sample, 1000);
    CHECK(last_point(history, point) == N_COLUMNS, "a point has all columns");
    CHECK(is_near(point[TTFT_P50], 500) && is_near(point[TTFT_P99], 990), "p50 %g p99 %g", point[TTFT_P50],
          point[TTFT_P99]);
    CHECK(point[TPOT_P50] == -1, "nothing was measured");
    CHECK(point[0] == 1000 && point[ENDED] == 10 && point[RUNNING] == 4, "t, growth, gauge");
    sample.ended = 13;
    for (int i = 1; i < GW_HISTORY_WINDOW; i++) gw_history_put(history, &sample, 1000 + i);
    last_point(history, point);
    CHECK(is_near(point[TTFT_P50], 500) && point[ENDED] == 0, "still in the window; nothing ended since");
    gw_history_put(history, &sample, 3000);
    last_point(history, point);
    CHECK(point[TTFT_P50] == -1, "the window has moved on");
    static const int64_t extremes_ns[] = {-5, 0, 1, 1023, 8191, 8192, INT64_MAX};
    for (size_t i = 0; i < sizeof extremes_ns / sizeof *extremes_ns; i++)
        gw_history_observe(history, GW_HISTORY_TPOT, extremes_ns[i]);
    gw_history_put(history, &sample, 4000);
    last_point(history, point);
    CHECK(point[TPOT_P50] > 0 && point[TPOT_P50] < 0.01 && point[TPOT_P50 + 2] > 3e6, "%g %g", point[TPOT_P50],
          point[TPOT_P50 + 2]);
    gw_history_close(history);
}

static uint32_t n_points(gw_history *history, uint64_t after, const char *last) {
    bt_buf json = {0};
    gw_history_write(history, after, &json);
    const char *text = bt_buf_text(&json);
    CHECK(strstr(text, last) != NULL, "no %s in %.40s", last, text);
    uint32_t n = 0;
    for (const char *at = strstr(text, "\"points\":["); (at = strchr(at + 1, '[')) != NULL;) n++;
    bt_buf_fini(&json);
    return n - 1; /* the list's own */
}

static void who_asks_again_gets_what_is_new(void) {
    gw_history *history = gw_history_open();
    gw_sample sample = {0};
    CHECK(n_points(history, 0, "{\"last\":0,") == 0, "empty");
    for (int i = 0; i < 3; i++) gw_history_put(history, &sample, i);
    CHECK(n_points(history, 0, "{\"last\":3,") == 3, "all");
    CHECK(n_points(history, 2, "{\"last\":3,") == 1, "one is new");
    CHECK(n_points(history, 3, "{\"last\":3,") == 0, "nothing is new");
    CHECK(n_points(history, 77, "{\"last\":3,") == 3, "a number of another life: all");
    for (int i = 0; i < GW_HISTORY_POINTS; i++) gw_history_put(history, &sample, i);
    CHECK(n_points(history, 0, "{\"last\":303,") == GW_HISTORY_POINTS, "no more than it keeps");
    CHECK(n_points(history, 1, "{\"last\":303,") == GW_HISTORY_POINTS, "what is gone is left out");
    gw_history_close(history);
}

int main(void) {
    what_autoscalers_need_is_there_before_the_first_request();
    times_are_told_apart_by_strategy_and_outcome();
    a_mix_is_one_name_and_a_weight_none();
    vllms_parts_of_a_request_add_up();
    targets_are_met_or_missed();
    a_clients_target_is_read_or_ignored();
    a_worker_is_shown_while_it_is_there_and_a_minute_longer();
    nothing_is_lost_between_loops();
    quantiles_are_those_of_the_last_seconds();
    who_asks_again_gets_what_is_new();
    TEST_END();
}
