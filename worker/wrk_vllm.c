/* Figures of messages and loads -> series. */
#include "worker/wrk_vllm.h"

#include <stdio.h>

#include "common/kv/kv_layout.h"

/* Routers read the pool's size in labels: another size is another series. */
static void show_cache(wrk_vllm *v, uint32_t n_blocks) {
    char labels[96];
    snprintf(labels, sizeof(labels), "block_size=\"%d\",num_gpu_blocks=\"%u\"", KV_BLOCK_TOKENS, n_blocks);
    if (v->cache_info != NULL) bt_series_show(v->cache_info, false);
    v->cache_info = bt_metrics_series(v->metrics, BT_METRIC_VLLM_CACHE_INFO, labels);
    bt_series_set(v->cache_info, 1);
    bt_series_show(v->cache_info, true);
    v->n_blocks = n_blocks;
}

void wrk_vllm_open(wrk_vllm *v, bt_metrics *m) {
    *v = (wrk_vllm){
        .metrics = m,
        .kv_usage = bt_metrics_series(m, BT_METRIC_VLLM_KV_USAGE, ""),
        .waiting = bt_metrics_series(m, BT_METRIC_VLLM_WAITING_BY, "reason=\"capacity\""),
        .ttft = bt_metrics_series(m, BT_METRIC_VLLM_TTFT, ""),
        .queue = bt_metrics_series(m, BT_METRIC_VLLM_QUEUE, ""),
        .prefill = bt_metrics_series(m, BT_METRIC_VLLM_PREFILL, ""),
        .stopped = bt_metrics_series(m, BT_METRIC_VLLM_SUCCESS, "finished_reason=\"stop\""),
        .cut = bt_metrics_series(m, BT_METRIC_VLLM_SUCCESS, "finished_reason=\"length\""),
        .failed = bt_metrics_series(m, BT_METRIC_VLLM_SUCCESS, "finished_reason=\"error\""),
    };
    show_cache(v, 0);
}

void wrk_vllm_load(wrk_vllm *v, const wire_load *load) {
    bt_series_set(v->waiting, load->waiting);
    bt_series_set(v->kv_usage, load->kv_blocks_total == 0 ? 0 : (double)load->kv_blocks_used / load->kv_blocks_total);
    if (load->kv_blocks_total != v->n_blocks) show_cache(v, load->kv_blocks_total);
}

void wrk_vllm_message(const wrk_vllm *v, const wire_message *message) {
    if (message->type == WIRE_FIRST_TOKEN) {
        double queue_s = message->first_token.queue_us * 1e-6, prefill_s = message->first_token.compute_us * 1e-6;
        bt_series_observe(v->queue, queue_s);
        bt_series_observe(v->prefill, prefill_s);
        bt_series_observe(v->ttft, queue_s + prefill_s);
    } else if (message->type == WIRE_FINISHED) {
        bt_series_add(message->finished.reason == WIRE_FINISH_LENGTH ? v->cut : v->stopped, 1);
    } else if (message->type == WIRE_FAILED) {
        bt_series_add(v->failed, 1);
    }
}
