/* Turns events of requests into series of common/core/metrics.def. Times by strategy and outcome are
 * telemetry_times.c's, workers telemetry_workers.c's, vLLM's names telemetry_vllm.c's, the dashboard's past
 * history.c's. */
#include "gateway/telemetry/telemetry.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/core/metrics.h"
#include "gateway/telemetry/history.h"
#include "gateway/telemetry/telemetry_labels.h"
#include "gateway/telemetry/telemetry_times.h"
#include "gateway/telemetry/telemetry_vllm.h"
#include "gateway/telemetry/telemetry_workers.h"

static const char *const outcome_names[GW_N_OUTCOMES] = {"stop", "length", "abort", "error", "refused"};
static const char *const replay_names[] = {"lost", "failed", "late", "refused"};
static const char *const phase_names[] = {"waiting", "submitted", "accepted", "started", "handed_off"};
static const char *const refusal_names[] = {"invalid",        "requests_per_minute", "tokens_per_minute",
                                            "saturated",      "no_worker",           "draining",
                                            "predicted_ttft", "queue_full",          "queue_timeout"};
static const int statuses[] = {200, 400, 401, 404, 405, 408, 413, 415, 417, 429, 431, 499, 500, 503, 504};

enum { N_REPLAYS = 4, N_PHASES = 5, N_STATUSES = sizeof statuses / sizeof *statuses };
enum {
    INVALID, /* first; all others are sheds */
    N_REFUSALS = sizeof refusal_names / sizeof *refusal_names
};

/* One target's two counters. */
typedef struct {
    bt_series *attained, *missed;
} slo_series;

struct gw_telemetry {
    bt_metrics *metrics; /* owned, with all series; so are: */
    gw_times *times;
    gw_workers *workers;
    gw_history *history;
    bt_series *outcomes[GW_N_OUTCOMES], *replays[N_REPLAYS], *responses[N_STATUSES + 1], *left[N_PHASES];
    bt_series *refusals[N_REFUSALS];
    bt_series *running, *queued, *itl, *prompt_tokens, *output_tokens, *goodput;
    bt_series *workers_prefill, *workers_decode, *incomplete_prefill, *incomplete_decode, *redis_up;
    slo_series ttft_slo, tpot_slo;
    bt_series *known_prefill, *known_decode;
    gw_vllm_series vllm;
};

/* ---- open -----------------------------------------------------------------------------------------------------------
 */

/* One series for each value of a label. */
static void open_all(bt_metrics *m, bt_metric_id id, const char *label, const char *const *values, int n,
                     bt_series **out) {
    for (int i = 0; i < n; i++) out[i] = gw_labelled(m, id, label, values[i]);
}

static slo_series open_slo(bt_metrics *m, const char *name) {
    return (slo_series){gw_labelled(m, BT_METRIC_SLO_ATTAINED, "slo", name),
                        gw_labelled(m, BT_METRIC_SLO_MISSED, "slo", name)};
}

static void open_series(gw_telemetry *t, bt_metrics *m) {
    open_all(m, BT_METRIC_REQUESTS, "outcome", outcome_names, GW_N_OUTCOMES, t->outcomes);
    open_all(m, BT_METRIC_REPLAYS, "reason", replay_names, N_REPLAYS, t->replays);
    open_all(m, BT_METRIC_DISCONNECTS, "phase", phase_names, N_PHASES, t->left);
    open_all(m, BT_METRIC_REFUSALS, "reason", refusal_names, N_REFUSALS, t->refusals);
    for (int i = 0; i < N_STATUSES; i++) {
        char code[8];
        snprintf(code, sizeof code, "%d", statuses[i]);
        t->responses[i] = gw_labelled(m, BT_METRIC_HTTP_RESPONSES, "code", code);
    }
    t->responses[N_STATUSES] = gw_labelled(m, BT_METRIC_HTTP_RESPONSES, "code", "other");
    t->running = bt_metrics_series(m, BT_METRIC_REQUESTS_RUNNING, "");
    t->queued = bt_metrics_series(m, BT_METRIC_REQUESTS_QUEUED, "");
    t->itl = bt_metrics_series(m, BT_METRIC_ITL, "");
    t->prompt_tokens = bt_metrics_series(m, BT_METRIC_PROMPT_TOKENS, "");
    t->output_tokens = bt_metrics_series(m, BT_METRIC_OUTPUT_TOKENS, "");
    t->goodput = bt_metrics_series(m, BT_METRIC_GOODPUT, "");
    t->workers_prefill = gw_labelled(m, BT_METRIC_WORKERS, "role", "prefill");
    t->workers_decode = gw_labelled(m, BT_METRIC_WORKERS, "role", "decode");
    t->incomplete_prefill = gw_labelled(m, BT_METRIC_WORKERS_INCOMPLETE, "role", "prefill");
    t->incomplete_decode = gw_labelled(m, BT_METRIC_WORKERS_INCOMPLETE, "role", "decode");
    t->known_prefill = gw_labelled(m, BT_METRIC_KNOWN_BLOCKS, "role", "prefill");
    t->known_decode = gw_labelled(m, BT_METRIC_KNOWN_BLOCKS, "role", "decode");
    t->redis_up = bt_metrics_series(m, BT_METRIC_REDIS_UP, "");
    t->ttft_slo = open_slo(m, "ttft");
    t->tpot_slo = open_slo(m, "tpot");
    gw_vllm_open(&t->vllm, m);
}

gw_telemetry *gw_telemetry_open(const char *model_name, bool has_legacy) {
    gw_telemetry *t = bt_calloc(1, sizeof *t);
    bt_buf common = {0};
    bt_buf_puts(&common, "model_name=\"");
    gw_label_put(&common, model_name);
    bt_buf_puts(&common, "\"");
    t->metrics = bt_metrics_open(BT_ROLE_GATEWAY | (has_legacy ? (unsigned)BT_LEGACY : 0), bt_buf_text(&common));
    bt_buf_fini(&common);
    t->times = gw_times_open(t->metrics);
    t->workers = gw_workers_open(t->metrics);
    t->history = gw_history_open();
    open_series(t, t->metrics);
    return t;
}

void gw_telemetry_close(gw_telemetry *telemetry) {
    if (telemetry == NULL) return;
    gw_history_close(telemetry->history);
    gw_workers_close(telemetry->workers);
    gw_times_close(telemetry->times);
    bt_metrics_close(telemetry->metrics);
    free(telemetry);
}

const char *gw_outcome_name(gw_outcome outcome) { return outcome_names[outcome]; }

/* ---- requests -------------------------------------------------------------------------------------------------------
 */

static double seconds(int64_t ns) { return ns > 0 ? (double)ns / BT_NS_PER_S : 0; }

void gw_telemetry_admitted(gw_telemetry *t, uint32_t n_prompt) {
    bt_series_add(t->running, 1);
    bt_series_add(t->prompt_tokens, n_prompt);
}

void gw_telemetry_refused(gw_telemetry *t, const char *reason) {
    int i = N_REFUSALS - 1;
    while (i > INVALID && (reason == NULL || strcmp(refusal_names[i], reason) != 0)) i--;
    bt_series_add(t->outcomes[GW_ENDED_REFUSED], 1);
    bt_series_add(t->refusals[i], 1);
}

void gw_telemetry_queued(gw_telemetry *t, uint32_t n_before, uint32_t n_now) {
    bt_series_add(t->queued, (double)n_now - n_before);
}

void gw_telemetry_first_token(gw_telemetry *t, int64_t ttft_ns) {
    gw_history_observe(t->history, GW_HISTORY_TTFT, ttft_ns);
    gw_vllm_first_token(&t->vllm, seconds(ttft_ns));
}

void gw_telemetry_tokens(gw_telemetry *t, uint32_t n_tokens, int64_t gap_ns) {
    double gap_s = gap_ns > 0 && n_tokens > 0 ? seconds(gap_ns) / n_tokens : 0; /* that came together share it */
    bt_series_add(t->output_tokens, n_tokens);
    gw_vllm_tokens(&t->vllm, n_tokens, gap_s);
    for (uint32_t i = 0; gap_s > 0 && i < n_tokens; i++) bt_series_observe(t->itl, gap_s);
}

int64_t gw_ended_tpot_ns(const gw_ended *ended) {
    return ended->n_output > 1 ? (ended->last_token_ns - ended->first_token_ns) / (ended->n_output - 1) : 0;
}

static void count_verdict(const slo_series *series, gw_verdict verdict) {
    if (verdict != GW_SLO_UNKNOWN) bt_series_add(verdict == GW_SLO_ATTAINED ? series->attained : series->missed, 1);
}

/* Who fails before a token has missed its target, who left before one has said nothing. */
static void judge(gw_telemetry *t, const gw_ended *ended) {
    bool has_token = ended->first_token_ns > 0, has_failed = ended->outcome == GW_ENDED_ERROR;
    int64_t ttft_ns = has_token ? ended->first_token_ns - ended->arrival_ns : has_failed ? INT64_MAX : 0;
    gw_verdict ttft = gw_slo_judge(ended->slo.ttft_ns, ttft_ns);
    gw_verdict tpot = gw_slo_judge(ended->slo.tpot_ns, gw_ended_tpot_ns(ended));
    count_verdict(&t->ttft_slo, ttft);
    count_verdict(&t->tpot_slo, tpot);
    bool is_well = ended->outcome == GW_ENDED_STOP || ended->outcome == GW_ENDED_LENGTH;
    if (is_well && ttft != GW_SLO_MISSED && tpot != GW_SLO_MISSED) bt_series_add(t->goodput, 1);
}

void gw_telemetry_ended(gw_telemetry *t, const gw_ended *ended) {
    const gw_info *info = ended->info;
    bt_series_add(t->running, -1);
    if (ended->outcome == GW_ENDED_REFUSED) {
        gw_telemetry_refused(t, ended->reason);
        return;
    }
    bt_series_add(t->outcomes[ended->outcome], 1);
    gw_times_ended(t->times, ended);
    judge(t, ended);
    if (gw_ended_tpot_ns(ended) > 0) gw_history_observe(t->history, GW_HISTORY_TPOT, gw_ended_tpot_ns(ended));
    gw_vllm_ended(&t->vllm, ended);
    if (info == NULL) return;
    gw_workers_served(t->workers, WIRE_ROLE_PREFILL, info->prefill);
    gw_workers_served(t->workers, WIRE_ROLE_DECODE, info->decode);
    if (ended->outcome == GW_ENDED_ABORT) bt_series_add(t->left[info->phase], 1);
}

void gw_telemetry_answered(gw_telemetry *t, int status) {
    int i = 0;
    while (i < N_STATUSES && statuses[i] != status) i++;
    bt_series_add(t->responses[i], 1);
}

void gw_telemetry_replays(gw_telemetry *t, const gw_counters *before, const gw_counters *now) {
    bt_series_add(t->replays[0], (double)(now->n_replays_lost - before->n_replays_lost));
    bt_series_add(t->replays[1], (double)(now->n_replays_failed - before->n_replays_failed));
    bt_series_add(t->replays[2], (double)(now->n_replays_late - before->n_replays_late));
    bt_series_add(t->replays[3], (double)(now->n_replays_refused - before->n_replays_refused));
}

/* ---- once a second --------------------------------------------------------------------------------------------------
 */

static double sum(bt_series *const *series, int n) {
    double total = 0;
    for (int i = 0; i < n; i++) total += bt_series_value(series[i]);
    return total;
}

static int64_t unix_ms_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / BT_NS_PER_MS;
}

typedef struct {
    const gw_router *router;
    uint64_t n_prefill, n_decode;
} known_blocks;

static bool add_known(void *context, const gw_worker *worker) {
    known_blocks *known = context;
    uint32_t n = gw_router_n_blocks(known->router, worker);
    *(worker->role == WIRE_ROLE_PREFILL ? &known->n_prefill : &known->n_decode) += n;
    return true;
}

void gw_telemetry_second(gw_telemetry *t, const gw_router *router, bool is_redis_up) {
    bt_series_set(t->workers_prefill, gw_router_n_usable(router, WIRE_ROLE_PREFILL));
    bt_series_set(t->workers_decode, gw_router_n_usable(router, WIRE_ROLE_DECODE));
    bt_series_set(t->incomplete_prefill, gw_router_n_incomplete(router, WIRE_ROLE_PREFILL));
    bt_series_set(t->incomplete_decode, gw_router_n_incomplete(router, WIRE_ROLE_DECODE));
    known_blocks known = {.router = router};
    gw_router_each(router, add_known, &known);
    bt_series_set(t->known_prefill, (double)known.n_prefill);
    bt_series_set(t->known_decode, (double)known.n_decode);
    bt_series_set(t->redis_up, is_redis_up);
    gw_vllm_load(&t->vllm, router, (uint32_t)bt_series_value(t->queued));
    gw_sample sample = {.ended = sum(t->outcomes, GW_ENDED_REFUSED),
                        .good = bt_series_value(t->goodput),
                        .failed = bt_series_value(t->outcomes[GW_ENDED_ERROR]),
                        .left = bt_series_value(t->outcomes[GW_ENDED_ABORT]),
                        .shed = sum(t->refusals + INVALID + 1, N_REFUSALS - 1),
                        .refused = bt_series_value(t->refusals[INVALID]),
                        .replayed = sum(t->replays, N_REPLAYS),
                        .prompt_tokens = bt_series_value(t->vllm.prompt),
                        .cached_tokens = bt_series_value(t->vllm.prompt_cached),
                        .output_tokens = bt_series_value(t->output_tokens),
                        .ttft_attained = bt_series_value(t->ttft_slo.attained),
                        .ttft_missed = bt_series_value(t->ttft_slo.missed),
                        .tpot_attained = bt_series_value(t->tpot_slo.attained),
                        .tpot_missed = bt_series_value(t->tpot_slo.missed),
                        .running = bt_series_value(t->running),
                        .queued = bt_series_value(t->queued)};
    gw_workers_look(t->workers, router, &sample);
    gw_history_put(t->history, &sample, unix_ms_now());
}

/* ---- pages ----------------------------------------------------------------------------------------------------------
 */

uint32_t gw_telemetry_n_running(const gw_telemetry *t) { return (uint32_t)bt_series_value(t->running); }

void gw_telemetry_write(gw_telemetry *t, bt_buf *out) { bt_metrics_write(t->metrics, out); }

/* `"what":{"name":count,...}` of those that are not 0. */
static void put_counts(const char *what, const char *const *names, bt_series *const *series, int n, bt_buf *out) {
    const char *comma = "";
    bt_buf_printf(out, "\"%s\":{", what);
    for (int i = 0; i < n; i++) {
        double value = bt_series_value(series[i]);
        if (value == 0) continue;
        bt_buf_printf(out, "%s\"%s\":%.0f", comma, names[i], value);
        comma = ",";
    }
    bt_buf_puts(out, "},");
}

void gw_telemetry_write_live(gw_telemetry *t, uint64_t after, bt_buf *out) {
    bt_buf_printf(out, "\"redis\":%s,", bt_series_value(t->redis_up) > 0 ? "true" : "false");
    put_counts("outcomes", outcome_names, t->outcomes, GW_N_OUTCOMES, out);
    put_counts("refusals", refusal_names, t->refusals, N_REFUSALS, out);
    put_counts("replays", replay_names, t->replays, N_REPLAYS, out);
    put_counts("left", phase_names, t->left, N_PHASES, out);
    bt_buf_puts(out, "\"strategies\":");
    gw_times_write_strategies(t->times, out);
    bt_buf_puts(out, ",\"workers\":");
    gw_workers_write(t->workers, out);
    bt_buf_puts(out, ",\"history\":");
    gw_history_write(t->history, after, out);
}
