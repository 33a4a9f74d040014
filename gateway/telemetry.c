/* Turns events of requests into series of common/core/metrics.def. */
#include "gateway/telemetry.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/core/metrics.h"
#include "gateway/telemetry_vllm.h"

static const char *const outcome_names[GW_N_OUTCOMES] = {"stop", "length", "abort", "error", "refused"};
static const char *const stage_names[] = {"gateway", "prefill_queue", "prefill_compute", "transfer", "decode_queue"};
static const char *const replay_names[] = {"lost", "failed", "late", "refused"};
static const int statuses[] = {200, 400, 401, 404, 405, 408, 413, 415, 417, 429, 431, 499, 500, 503, 504};

enum { N_STAGES = 5, N_REPLAYS = 4, N_STATUSES = sizeof statuses / sizeof *statuses };

struct gw_telemetry {
    bt_metrics *metrics; /* owned, with all series */
    bt_series *outcomes[GW_N_OUTCOMES], *stages[N_STAGES], *replays[N_REPLAYS], *responses[N_STATUSES + 1];
    bt_series *running, *ttft, *tpot, *itl, *e2e, *prompt_tokens, *output_tokens;
    bt_series *workers_prefill, *workers_decode, *incomplete_prefill, *incomplete_decode, *redis_up;
    gw_vllm_series vllm;
};

static bt_series *labelled(bt_metrics *metrics, bt_metric_id id, const char *label, const char *value) {
    char labels[64];
    snprintf(labels, sizeof labels, "%s=\"%s\"", label, value);
    return bt_metrics_series(metrics, id, labels);
}

/* A label's value: backslash, quote and newline escaped. */
static void put_label(bt_buf *out, const char *text) {
    for (; *text != 0; text++) {
        if (*text == '\\' || *text == '"') bt_buf_put(out, "\\", 1);
        bt_buf_put(out, *text == '\n' ? " " : text, 1);
    }
}

gw_telemetry *gw_telemetry_open(const char *model_name) {
    gw_telemetry *t = bt_calloc(1, sizeof *t);
    bt_buf common = {0};
    bt_buf_puts(&common, "model_name=\"");
    put_label(&common, model_name);
    bt_buf_puts(&common, "\"");
    bt_metrics *m = t->metrics = bt_metrics_open(BT_ROLE_GATEWAY, bt_buf_text(&common));
    bt_buf_fini(&common);
    for (int i = 0; i < GW_N_OUTCOMES; i++)
        t->outcomes[i] = labelled(m, BT_METRIC_REQUESTS, "outcome", outcome_names[i]);
    for (int i = 0; i < N_STAGES; i++) t->stages[i] = labelled(m, BT_METRIC_TTFT_STAGE, "stage", stage_names[i]);
    for (int i = 0; i < N_REPLAYS; i++) t->replays[i] = labelled(m, BT_METRIC_REPLAYS, "reason", replay_names[i]);
    for (int i = 0; i < N_STATUSES; i++) {
        char code[8];
        snprintf(code, sizeof code, "%d", statuses[i]);
        t->responses[i] = labelled(m, BT_METRIC_HTTP_RESPONSES, "code", code);
    }
    t->responses[N_STATUSES] = labelled(m, BT_METRIC_HTTP_RESPONSES, "code", "other");
    t->running = bt_metrics_series(m, BT_METRIC_REQUESTS_RUNNING, "");
    t->ttft = bt_metrics_series(m, BT_METRIC_TTFT, "");
    t->tpot = bt_metrics_series(m, BT_METRIC_TPOT, "");
    t->itl = bt_metrics_series(m, BT_METRIC_ITL, "");
    t->e2e = bt_metrics_series(m, BT_METRIC_E2E, "");
    t->prompt_tokens = bt_metrics_series(m, BT_METRIC_PROMPT_TOKENS, "");
    t->output_tokens = bt_metrics_series(m, BT_METRIC_OUTPUT_TOKENS, "");
    t->workers_prefill = labelled(m, BT_METRIC_WORKERS, "role", "prefill");
    t->workers_decode = labelled(m, BT_METRIC_WORKERS, "role", "decode");
    t->incomplete_prefill = labelled(m, BT_METRIC_WORKERS_INCOMPLETE, "role", "prefill");
    t->incomplete_decode = labelled(m, BT_METRIC_WORKERS_INCOMPLETE, "role", "decode");
    t->redis_up = bt_metrics_series(m, BT_METRIC_REDIS_UP, "");
    gw_vllm_open(&t->vllm, m);
    return t;
}

void gw_telemetry_close(gw_telemetry *telemetry) {
    if (telemetry == NULL) return;
    bt_metrics_close(telemetry->metrics);
    free(telemetry);
}

const char *gw_outcome_name(gw_outcome outcome) { return outcome_names[outcome]; }

static double seconds(int64_t ns) { return ns > 0 ? (double)ns / BT_NS_PER_S : 0; }

void gw_telemetry_admitted(gw_telemetry *t, uint32_t n_prompt) {
    bt_series_add(t->running, 1);
    bt_series_add(t->prompt_tokens, n_prompt);
}

void gw_telemetry_refused(gw_telemetry *t) { bt_series_add(t->outcomes[GW_ENDED_REFUSED], 1); }

void gw_telemetry_first_token(gw_telemetry *t, int64_t ttft_ns) { bt_series_observe(t->ttft, seconds(ttft_ns)); }

void gw_telemetry_tokens(gw_telemetry *t, uint32_t n_tokens, int64_t gap_ns) {
    double gap_s = gap_ns > 0 ? seconds(gap_ns) / n_tokens : 0; /* tokens that came together share it */
    bt_series_add(t->output_tokens, n_tokens);
    gw_vllm_tokens(&t->vllm, n_tokens, gap_s);
    for (uint32_t i = 0; gap_s > 0 && i < n_tokens; i++) bt_series_observe(t->itl, gap_s);
}

static void observe_stages(gw_telemetry *t, const gw_ended *ended) {
    const gw_info *info = ended->info;
    if (info == NULL || info->first_token_ns == 0) return;
    bt_series_observe(t->stages[0], seconds(info->submit_ns - ended->arrival_ns));
    bt_series_observe(t->stages[1], info->queue_us / 1e6);
    bt_series_observe(t->stages[2], info->compute_us / 1e6);
    if (info->handed_off_ns == 0) return;
    bt_series_observe(t->stages[3], info->exposed_us / 1e6);
    if (info->first_decode_ns > 0)
        bt_series_observe(t->stages[4], seconds(info->first_decode_ns - info->handed_off_ns));
}

void gw_telemetry_ended(gw_telemetry *t, const gw_ended *ended) {
    bt_series_add(t->running, -1);
    bt_series_add(t->outcomes[ended->outcome], 1);
    bt_series_observe(t->e2e, seconds(ended->now_ns - ended->arrival_ns));
    if (ended->n_output > 1)
        bt_series_observe(t->tpot, seconds(ended->last_token_ns - ended->first_token_ns) / (ended->n_output - 1));
    observe_stages(t, ended);
    gw_vllm_ended(&t->vllm, ended);
}

void gw_telemetry_answered(gw_telemetry *t, int status) {
    int i = 0;
    while (i < N_STATUSES && statuses[i] != status) i++;
    bt_series_add(t->responses[i], 1);
}

void gw_telemetry_workers(gw_telemetry *t, const gw_router *router, bool is_redis_up) {
    bt_series_set(t->workers_prefill, gw_router_n_usable(router, WIRE_ROLE_PREFILL));
    bt_series_set(t->workers_decode, gw_router_n_usable(router, WIRE_ROLE_DECODE));
    bt_series_set(t->incomplete_prefill, gw_router_n_incomplete(router, WIRE_ROLE_PREFILL));
    bt_series_set(t->incomplete_decode, gw_router_n_incomplete(router, WIRE_ROLE_DECODE));
    bt_series_set(t->redis_up, is_redis_up);
    gw_vllm_load(&t->vllm, router);
}

void gw_telemetry_replays(gw_telemetry *t, const gw_counters *before, const gw_counters *now) {
    bt_series_add(t->replays[0], (double)(now->n_replays_lost - before->n_replays_lost));
    bt_series_add(t->replays[1], (double)(now->n_replays_failed - before->n_replays_failed));
    bt_series_add(t->replays[2], (double)(now->n_replays_late - before->n_replays_late));
    bt_series_add(t->replays[3], (double)(now->n_replays_refused - before->n_replays_refused));
}

uint32_t gw_telemetry_n_running(const gw_telemetry *t) { return (uint32_t)bt_series_value(t->running); }

void gw_telemetry_write(gw_telemetry *t, bt_buf *out) { bt_metrics_write(t->metrics, out); }
