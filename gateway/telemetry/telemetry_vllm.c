/* Mapping of a cluster onto one vLLM engine: queue is the gateway's and the prefill worker's, prefill the latter's,
 * decode is first to last token, gauges are sums over the workers. */
#include "gateway/telemetry/telemetry_vllm.h"

#include <stdio.h>

#include "common/core/clock.h"
#include "common/kv/kv_layout.h"
#include "gateway/telemetry/telemetry_labels.h"

/* Routers read the pool's size in labels: another size is another series. */
static void show_cache(gw_vllm_series *s, uint64_t n_blocks) {
    char labels[96];
    snprintf(labels, sizeof labels, "block_size=\"%d\",num_gpu_blocks=\"%llu\"", KV_BLOCK_TOKENS,
             (unsigned long long)n_blocks);
    if (s->cache_info != NULL) bt_series_show(s->cache_info, false);
    s->cache_info = bt_metrics_series(s->metrics, BT_METRIC_VLLM_CACHE_INFO, labels);
    bt_series_set(s->cache_info, 1);
    bt_series_show(s->cache_info, true);
    s->n_blocks = n_blocks;
}

void gw_vllm_open(gw_vllm_series *s, bt_metrics *m) {
    *s = (gw_vllm_series){
        .metrics = m,
        .running = bt_metrics_series(m, BT_METRIC_VLLM_RUNNING, ""),
        .waiting = bt_metrics_series(m, BT_METRIC_VLLM_WAITING, ""),
        .waiting_for_room = gw_labelled(m, BT_METRIC_VLLM_WAITING_BY, "reason", "capacity"),
        .kv_usage = bt_metrics_series(m, BT_METRIC_VLLM_KV_USAGE, ""),
        .prompt = bt_metrics_series(m, BT_METRIC_VLLM_PROMPT, ""),
        .prompt_cached = bt_metrics_series(m, BT_METRIC_VLLM_PROMPT_CACHED, ""),
        .prompt_computed = gw_labelled(m, BT_METRIC_VLLM_PROMPT_BY, "source", "local_compute"),
        .prompt_hit = gw_labelled(m, BT_METRIC_VLLM_PROMPT_BY, "source", "local_cache_hit"),
        .generation = bt_metrics_series(m, BT_METRIC_VLLM_GENERATION, ""),
        .prefix_queries = bt_metrics_series(m, BT_METRIC_VLLM_PREFIX_QUERIES, ""),
        .prefix_hits = bt_metrics_series(m, BT_METRIC_VLLM_PREFIX_HITS, ""),
        .ttft = bt_metrics_series(m, BT_METRIC_VLLM_TTFT, ""),
        .itl = bt_metrics_series(m, BT_METRIC_VLLM_ITL, ""),
        .tpot = bt_metrics_series(m, BT_METRIC_VLLM_TPOT, ""),
        .e2e = bt_metrics_series(m, BT_METRIC_VLLM_E2E, ""),
        .queue = bt_metrics_series(m, BT_METRIC_VLLM_QUEUE, ""),
        .prefill = bt_metrics_series(m, BT_METRIC_VLLM_PREFILL, ""),
        .decode = bt_metrics_series(m, BT_METRIC_VLLM_DECODE, ""),
        .inference = bt_metrics_series(m, BT_METRIC_VLLM_INFERENCE, ""),
        .prompt_length = bt_metrics_series(m, BT_METRIC_VLLM_PROMPT_LENGTH, ""),
        .computed_length = bt_metrics_series(m, BT_METRIC_VLLM_COMPUTED, ""),
        .output_length = bt_metrics_series(m, BT_METRIC_VLLM_OUTPUT_LENGTH, ""),
        .max_output = bt_metrics_series(m, BT_METRIC_VLLM_MAX_OUTPUT, ""),
        .max_tokens = bt_metrics_series(m, BT_METRIC_VLLM_MAX_TOKENS, ""),
        .n_choices = bt_metrics_series(m, BT_METRIC_VLLM_N, ""),
    };
    for (int i = 0; i <= GW_ENDED_ERROR; i++)
        s->success[i] = gw_labelled(m, BT_METRIC_VLLM_SUCCESS, "finished_reason", gw_outcome_name((gw_outcome)i));
    (void)gw_labelled(m, BT_METRIC_VLLM_PROMPT_BY, "source",
                      "external_kv_transfer"); /* what prefill sends is no source */
    show_cache(s, 0);
}

void gw_vllm_first_token(gw_vllm_series *s, double ttft_s) { bt_series_observe(s->ttft, ttft_s); }

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
    /* what lies between the worker's figure and the gateway's first token is prefill, so that the parts are the whole
     */
    double ttft_s = seconds(ended->first_token_ns - ended->arrival_ns);
    double queue_s = seconds(info->sent_ns - ended->arrival_ns) + info->queue_us / 1e6;
    double prefill_s = ttft_s > queue_s ? ttft_s - queue_s : 0;
    double decode_s = seconds(ended->last_token_ns - ended->first_token_ns);
    bt_series_add(s->prompt, info->n_prompt);
    bt_series_add(s->prompt_cached, info->cached_tokens);
    bt_series_add(s->prompt_hit, info->cached_tokens);
    bt_series_add(s->prompt_computed, info->n_prompt - info->cached_tokens);
    bt_series_add(s->prefix_queries, info->n_prompt);
    bt_series_add(s->prefix_hits, info->cached_tokens);
    bt_series_observe(s->queue, queue_s);
    bt_series_observe(s->prefill, prefill_s);
    bt_series_observe(s->decode, decode_s);
    bt_series_observe(s->inference, prefill_s + decode_s);
    bt_series_observe(s->prompt_length, info->n_prompt);
    bt_series_observe(s->computed_length, info->n_prompt - info->cached_tokens);
    bt_series_observe(s->output_length, ended->n_output);
    bt_series_observe(s->max_output, ended->n_output);
    bt_series_observe(s->max_tokens, ended->max_tokens);
    bt_series_observe(s->n_choices, ended->n_choices);
    if (gw_ended_tpot_ns(ended) > 0) bt_series_observe(s->tpot, seconds(gw_ended_tpot_ns(ended)));
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

void gw_vllm_load(gw_vllm_series *s, const gw_router *router, uint32_t n_queued) {
    load_sum sum = {.n_waiting = n_queued};
    gw_router_each(router, add_load, &sum);
    bt_series_set(s->running, (double)sum.n_running);
    bt_series_set(s->waiting, (double)sum.n_waiting);
    bt_series_set(s->waiting_for_room, (double)sum.n_waiting);
    if (sum.n_blocks != s->n_blocks) show_cache(s, sum.n_blocks);
    bt_series_set(s->kv_usage, sum.n_blocks == 0 ? 0 : (double)sum.n_used_blocks / (double)sum.n_blocks);
}
