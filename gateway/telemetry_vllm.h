/* vLLM's metric families, filled from the same events as our own: for dashboards and autoscalers that know only those.
 * Label engine="0" on all. Any thread. */
#ifndef BATON_GATEWAY_TELEMETRY_VLLM_H
#define BATON_GATEWAY_TELEMETRY_VLLM_H

#include "common/core/metrics.h"
#include "gateway/telemetry.h"

typedef struct {
    bt_series *success[GW_N_OUTCOMES]; /* NULL: not an outcome of vLLM's */
    bt_series *running, *waiting, *kv_usage, *prompt, *generation, *prefix_queries, *prefix_hits;
    bt_series *ttft, *itl, *tpot, *e2e, *queue, *prefill, *decode, *inference, *prompt_length, *output_length;
} gw_vllm_series;

void gw_vllm_open(gw_vllm_series *series, bt_metrics *metrics);
void gw_vllm_tokens(gw_vllm_series *series, uint32_t n_tokens, double gap_s); /* gap of each; 0: the first ones */
void gw_vllm_ended(gw_vllm_series *series, const gw_ended *ended);
void gw_vllm_load(gw_vllm_series *series, const gw_router *router);

#endif
