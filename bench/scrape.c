/* baton-bench scrape: what a gateway's /metrics and /dashboard/data cost, and a second of its bookkeeping.
 *
 * Timed, each by itself: writing /metrics to memory, writing the dashboard's data with a full history, and what is done
 * once a second (every worker's series, a point of history). Not timed: HTTP. The gateway has seen requests of up to
 * three strategies with all outcomes, so the histograms of these pairs are there. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "gateway/telemetry/history.h"
#include "gateway/telemetry/telemetry.h"

#define FLAGS(F)                                                                                                       \
    F(str, workers, "8,64,256", "workers that the gateway knows")                                                      \
    F(u32, repeat, "301", "repetitions; the median counts")
CFG_OWN(FLAGS)

enum { MAX_WORKERS = 4096, MAX_REPEAT = 100000, N_STRATEGIES = 3 };

static gw_router *open_router(uint32_t n_workers) {
    gw_router *router = gw_router_open(&(gw_router_options){.seed = 1});
    for (uint32_t i = 0; i < n_workers; i++) {
        gw_worker known = {.role = i % 2 ? WIRE_ROLE_DECODE : WIRE_ROLE_PREFILL, .incarnation = i + 1};
        snprintf(known.name, sizeof(known.name), "%s-%u.cluster.example", i % 2 ? "decode" : "prefill", i / 2);
        gw_router_up(router, &known);
        const wire_load load = {.running = i % 40, .waiting = i % 7, .kv_blocks_total = 4096, .kv_blocks_used = i * 9};
        gw_router_status(router, known.incarnation, &load);
    }
    return router;
}

static void end_requests(gw_telemetry *telemetry) {
    const char *at = gw_strategy_names();
    for (int i = 0; i < N_STRATEGIES; i++) {
        char name[32];
        snprintf(name, sizeof(name), "%.*s", (int)strcspn(at, ","), at);
        at += strcspn(at, ",");
        at += strspn(at, ", ");
        gw_strategy strategy;
        if (gw_strategy_parse(name, &strategy, NULL) != BT_OK) return;
        gw_info info = {.strategy = &strategy, .n_prompt = 1000, .submit_ns = 2, .first_token_ns = 3};
        for (int outcome = 0; outcome < GW_ENDED_REFUSED; outcome++) {
            gw_ended ended = {.outcome = (gw_outcome)outcome,
                              .info = &info,
                              .arrival_ns = 1,
                              .first_token_ns = 12345678,
                              .last_token_ns = 987654321,
                              .now_ns = 987654322,
                              .n_output = 50};
            gw_telemetry_admitted(telemetry, info.n_prompt);
            gw_telemetry_ended(telemetry, &ended);
        }
        if (*at == 0) return;
    }
}

typedef enum { METRICS, DASHBOARD, SECOND, N_TESTS } test;
static const char *const test_names[] = {"metrics", "dashboard", "second"};

static void run_once(test which, gw_telemetry *telemetry, const gw_router *router, bt_buf *page) {
    bt_buf_clear(page);
    switch (which) {
    case METRICS:
        gw_telemetry_write(telemetry, page);
        break;
    case DASHBOARD:
        gw_telemetry_write_live(telemetry, 0, page);
        break;
    default:
        gw_telemetry_second(telemetry, router, true);
    }
}

static void measure(const cfg_own *config, uint32_t n_workers) {
    double *us = bt_calloc(config->repeat, sizeof(*us));
    gw_telemetry *telemetry = gw_telemetry_open("model", true);
    gw_router *router = open_router(n_workers);
    bt_buf page = {0};
    end_requests(telemetry);
    for (int i = 0; i < GW_HISTORY_POINTS; i++) gw_telemetry_second(telemetry, router, true);
    for (int which = 0; which < N_TESTS; which++) {
        for (uint32_t i = 0; i < config->repeat; i++) {
            int64_t begin_ns = bt_now_ns();
            run_once((test)which, telemetry, router, &page);
            us[i] = (double)(bt_now_ns() - begin_ns) * 1e-3;
        }
        double median = bench_median(us, config->repeat);
        printf("%s,%s,%u,%zu,%u,%.0f,%.0f\n", BATON_COMMIT, test_names[which], n_workers, page.n_bytes, config->repeat,
               median, us[config->repeat * 99 / 100]);
    }
    fflush(stdout);
    bt_buf_fini(&page);
    gw_router_close(router);
    gw_telemetry_close(telemetry);
    free(us);
}

static bt_status run(const void *own, bt_error *err) {
    const cfg_own *config = own;
    if (config->repeat == 0 || config->repeat > MAX_REPEAT)
        return bt_fail(err, BT_BAD_REQUEST, "--repeat is out of range");
    bench_list workers = {0};
    bt_status status = bench_list_parse("workers", config->workers, MAX_WORKERS, &workers, err);
    if (status != BT_OK) return status;
    printf("commit,test,workers,bytes,repetitions,us,us_p99\n");
    for (uint32_t i = 0; i < workers.n; i++) measure(config, workers.values[i]);
    return BT_OK;
}

BENCH_VERB(scrape, "Measures what a gateway's metrics and dashboard cost and prints CSV.", run);
