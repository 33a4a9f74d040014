/* Mapping of a cluster onto one vLLM engine: queue and prefill are the prefill worker's, decode is first to last token,
 * gauges are sums over the workers. */
#include "gateway/telemetry_vllm.h"

#include "common/core/clock.h"

#define ENGINE "engine=\"0\""

void gw_vllm_open(gw_vllm_series *s, bt_metrics *m) {
    *s = (gw_vllm_series){
        .running = bt_metrics_series(m, BT_METRIC_VLLM_RUNNING, ENGINE),
        .waiting = bt_metrics_series(m, BT_METRIC_VLLM_WAITING, ENGINE),
        .kv_usage = bt_metrics_series(m, BT_METRIC_VLLM_KV_USAGE, ENGINE),
        .prompt = bt_metrics_series(m, BT_METRIC_VLLM_PROMPT, ENGINE),
        .generation = bt_metrics_series(m, BT_METRIC_VLLM_GENERATION, ENGINE),
        .prefix_queries = bt_metrics_series(m, BT_METRIC_VLLM_PREFIX_QUERIES, ENGINE),
        .prefix_hits = bt_metrics_series(m, BT_METRIC_VLLM_PREFIX_HITS, ENGINE),
        .ttft = bt_metrics_series(m, BT_METRIC_VLLM_TTFT, ENGINE),
        .itl = bt_metrics_series(m, BT_METRIC_VLLM_ITL, ENGINE),
        .tpot = bt_metrics_series(m, BT_METRIC_VLLM_TPOT, ENGINE),
        .e2e = bt_metrics_series(m, BT_METRIC_VLLM_E2E, ENGINE),
        .queue = bt_metrics_series(m, BT_METRIC_VLLM_QUEUE, ENGINE),
        .prefill = bt_metrics_series(m, BT_METRIC_VLLM_PREFILL, ENGINE),
        .decode = bt_metrics_series(m, BT_METRIC_VLLM_DECODE, ENGINE),
        .inference = bt_metrics_series(m, BT_METRIC_VLLM_INFERENCE, ENGINE),
        .prompt_length = bt_metrics_series(m, BT_METRIC_VLLM_PROMPT_LENGTH, ENGINE),
        .output_length = bt_metrics_series(m, BT_METRIC_VLLM_OUTPUT_LENGTH, ENGINE),
        .success = {bt_metrics_series(m, BT_METRIC_VLLM_SUCCESS, ENGINE ",finished_reason=\"stop\""),
                    bt_metrics_series(m, BT_METRIC_VLLM_SUCCESS, ENGINE ",finished_reason=\"length\""),
                    bt_metrics_series(m, BT_METRIC_VLLM_SUCCESS, ENGINE ",finished_reason=\"abort\""),
                    bt_metrics_series(m, BT_METRIC_VLLM_SUCCESS, ENGINE ",finished_reason=\"error\"")},
    };
}

void gw_vllm_tokens(gw_vllm_series *s, uint32_t n_tokens, double gap_s) {
    bt_series_add(s->generation, n_tokens);
    for (uint32_t i = 0; gap_s > 0 && i < n_tokens; i++) bt_series_observe(s->itl, gap_s);
}

static double seconds(int64_t ns) { return ns > 0 ? (double)ns / BT_NS_PER_S : 0; }

void gw_vllm_ended(gw_vllm_series *s, const gw_ended *ended) {
    const gw_info *info = ended->info;
    if (s->success[ended->outcome] != NULL) bt_series_add(s->success[ended->outcome], 1);
    bt_series_observe(s->e2e, seconds(ended->now_ns - ended->arrival_ns));
    if (ended->first_token_ns == 0 || info == NULL) return;
    double decode_s = seconds(ended->last_token_ns - ended->first_token_ns), prefill_s = info->compute_us / 1e6;
    bt_series_add(s->prompt, info->n_prompt);
    bt_series_add(s->prefix_queries, info->n_prompt);
    bt_series_add(s->prefix_hits, info->cached_tokens);
    bt_series_observe(s->ttft, seconds(ended->first_token_ns - ended->arrival_ns));
    bt_series_observe(s->queue, seconds(info->submit_ns - ended->arrival_ns) + info->queue_us / 1e6);
    bt_series_observe(s->prefill, prefill_s);
    bt_series_observe(s->decode, decode_s);
    bt_series_observe(s->inference, prefill_s + decode_s);
    bt_series_observe(s->prompt_length, info->n_prompt);
    bt_series_observe(s->output_length, ended->n_output);
    if (ended->n_output > 1) bt_series_observe(s->tpot, decode_s / (ended->n_output - 1));
}

typedef struct {
    uint64_t n_running, n_waiting, n_blocks, n_used_blocks;
} load_sum;

static bool add_load(void *context, const gw_worker *worker) {
    load_sum *sum = context;
    sum->n_running += worker->load.running;
    sum->n_waiting += worker->load.waiting;
    if (worker->role != WIRE_ROLE_DECODE) return true;
    sum->n_blocks += worker->load.kv_blocks_total;
    sum->n_used_blocks += worker->load.kv_blocks_used;
    return true;
}

void gw_vllm_load(gw_vllm_series *s, const gw_router *router) {
    load_sum sum = {0};
    gw_router_each(router, add_load, &sum);
    bt_series_set(s->running, (double)sum.n_running);
    bt_series_set(s->waiting, (double)sum.n_waiting);
    bt_series_set(s->kv_usage, sum.n_blocks == 0 ? 0 : (double)sum.n_used_blocks / (double)sum.n_blocks);
}
