/* vLLM's metric families, filled from the same events as our own: for dashboards and autoscalers that know only those.
 * Any thread, but for gw_vllm_load(): one. */
#ifndef BATON_GATEWAY_TELEMETRY_TELEMETRY_VLLM_H
#define BATON_GATEWAY_TELEMETRY_TELEMETRY_VLLM_H

#include "common/core/metrics.h"
#include "gateway/telemetry/telemetry.h"

typedef struct {
    bt_series *success[GW_N_OUTCOMES]; /* NULL: not an outcome of vLLM's */
    bt_series *running, *waiting, *waiting_for_room, *kv_usage, *prompt, *prompt_cached, *prompt_hit, *prompt_computed;
    bt_series *generation, *prefix_queries, *prefix_hits;
    bt_series *ttft, *itl, *tpot, *e2e, *queue, *prefill, *decode, *inference;
    bt_series *prompt_length, *computed_length, *output_length, *max_output, *max_tokens, *n_choices;
    bt_metrics *metrics;   /* borrowed */
    bt_series *cache_info; /* of n_blocks */
    uint64_t n_blocks;
} gw_vllm_series;

void gw_vllm_open(gw_vllm_series *series, bt_metrics *metrics);
void gw_vllm_first_token(gw_vllm_series *series, double ttft_s);
void gw_vllm_tokens(gw_vllm_series *series, uint32_t n_tokens, double gap_s); /* gap of each; 0: the first ones */
void gw_vllm_ended(gw_vllm_series *series, const gw_ended *ended);
/* Once a second. `n_queued`: requests that wait in the gateway. */
void gw_vllm_load(gw_vllm_series *series, const gw_router *router, uint32_t n_queued);

#endif
