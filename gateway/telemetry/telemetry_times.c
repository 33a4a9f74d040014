/* A table of strategies and outcomes; a cell points to its series once it has any. */
#include "gateway/telemetry/telemetry_times.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "gateway/api/api_json.h"
#include "gateway/telemetry/telemetry_labels.h"

static const char *const stage_names[] = {"gateway",         "gateway_queue", "prefill_queue",
                                          "prefill_compute", "transfer",      "decode_queue"};

enum { N_STAGES = 6, MAX_STRATEGIES = 32, CAP_NAME = 32, N_ENDS = GW_ENDED_REFUSED };

typedef struct {
    bt_series *ttft, *tpot, *e2e, *stages[N_STAGES];
} cell;

typedef struct {
    char name[CAP_NAME];
    bt_series *requests;
    _Atomic(cell *) cells[N_ENDS]; /* owned */
} strategy_row;

struct gw_times {
    bt_metrics *metrics;
    strategy_row rows[MAX_STRATEGIES + 1]; /* [n_rows]; the last is "mixed": what has no name of its own */
    uint32_t n_rows;
};

static void add_row(gw_times *times, const char *name, size_t n_bytes) {
    strategy_row *row = &times->rows[times->n_rows++];
    snprintf(row->name, sizeof row->name, "%.*s", (int)n_bytes, name);
    row->requests = gw_labelled(times->metrics, BT_METRIC_STRATEGY_REQUESTS, "strategy", row->name);
}

static cell *cell_at(gw_times *times, uint32_t row, gw_outcome outcome) {
    _Atomic(cell *) *at = &times->rows[row].cells[outcome];
    cell *found = atomic_load_explicit(at, memory_order_acquire), *made;
    if (found != NULL) return found;
    bt_metrics *m = times->metrics;
    made = bt_calloc(1, sizeof *made);
    char labels[128], of_stage[160];
    snprintf(labels, sizeof labels, "strategy=\"%s\",outcome=\"%s\"", times->rows[row].name, gw_outcome_name(outcome));
    made->ttft = bt_metrics_series(m, BT_METRIC_TTFT, labels);
    made->tpot = bt_metrics_series(m, BT_METRIC_TPOT, labels);
    made->e2e = bt_metrics_series(m, BT_METRIC_E2E, labels);
    for (int i = 0; i < N_STAGES; i++) {
        snprintf(of_stage, sizeof of_stage, "stage=\"%s\",%s", stage_names[i], labels);
        made->stages[i] = bt_metrics_series(m, BT_METRIC_TTFT_STAGE, of_stage);
    }
    if (atomic_compare_exchange_strong(at, &found, made)) return made;
    free(made); /* another thread made the same; the series are the same too */
    return found;
}

/* Names come in the order of the table that a strategy's parts point into. */
static uint32_t row_of(const gw_times *times, const gw_strategy *strategy) {
    uint32_t mixed = times->n_rows - 1;
    if (strategy == NULL || strategy->n_parts != 1) return mixed;
    return strategy->parts[0].which < mixed ? strategy->parts[0].which : mixed;
}

gw_times *gw_times_open(bt_metrics *metrics) {
    gw_times *times = bt_calloc(1, sizeof *times);
    times->metrics = metrics;
    for (const char *at = gw_strategy_names(); times->n_rows < MAX_STRATEGIES;) {
        size_t n = strcspn(at, ",");
        add_row(times, at, n);
        if (at[n] == 0) break;
        at += n + strspn(at + n, ", ");
    }
    add_row(times, "mixed", strlen("mixed"));
    gw_strategy usual = {0};
    (void)gw_strategy_parse("", &usual, NULL);
    for (int outcome = 0; outcome < N_ENDS; outcome++) (void)cell_at(times, row_of(times, &usual), (gw_outcome)outcome);
    return times;
}

void gw_times_close(gw_times *times) {
    if (times == NULL) return;
    for (uint32_t row = 0; row < times->n_rows; row++)
        for (int outcome = 0; outcome < N_ENDS; outcome++) free(atomic_load(&times->rows[row].cells[outcome]));
    free(times);
}

/* ---- a request ------------------------------------------------------------------------------------------------------
 */

static double seconds(int64_t ns) { return ns > 0 ? (double)ns / BT_NS_PER_S : 0; }

static void observe_stages(const cell *to, const gw_ended *ended) {
    const gw_info *info = ended->info;
    if (info->first_token_ns == 0) return;
    bt_series_observe(to->stages[0], seconds(info->submit_ns - ended->arrival_ns));
    bt_series_observe(to->stages[1], seconds(info->sent_ns - info->submit_ns));
    bt_series_observe(to->stages[2], info->queue_us / 1e6);
    bt_series_observe(to->stages[3], info->compute_us / 1e6);
    if (info->handed_off_ns == 0) return;
    bt_series_observe(to->stages[4], info->exposed_us / 1e6);
    if (info->first_decode_ns > 0)
        bt_series_observe(to->stages[5], seconds(info->first_decode_ns - info->handed_off_ns));
}

void gw_times_ended(gw_times *times, const gw_ended *ended) {
    uint32_t row = row_of(times, ended->info == NULL ? NULL : ended->info->strategy);
    const cell *to = cell_at(times, row, ended->outcome);
    bt_series_add(times->rows[row].requests, 1);
    bt_series_observe(to->e2e, seconds(ended->now_ns - ended->arrival_ns));
    if (ended->first_token_ns > 0) bt_series_observe(to->ttft, seconds(ended->first_token_ns - ended->arrival_ns));
    if (gw_ended_tpot_ns(ended) > 0) bt_series_observe(to->tpot, seconds(gw_ended_tpot_ns(ended)));
    if (ended->info != NULL) observe_stages(to, ended);
}

void gw_times_write_strategies(const gw_times *times, bt_buf *out) {
    const char *comma = "";
    bt_buf_puts(out, "{");
    for (uint32_t row = 0; row < times->n_rows; row++) {
        double n = bt_series_value(times->rows[row].requests);
        if (n == 0) continue;
        bt_buf_puts(out, comma);
        gw_json_put_string(out, times->rows[row].name, strlen(times->rows[row].name));
        bt_buf_printf(out, ":%.0f", n);
        comma = ",";
    }
    bt_buf_puts(out, "}");
}
