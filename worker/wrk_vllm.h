/* vLLM's metric families that a worker fills itself; others are aliases in common/core/metrics.def. For routers and
 * autoscalers that ask each engine. Engine thread. */
#ifndef BATON_WORKER_WRK_VLLM_H
#define BATON_WORKER_WRK_VLLM_H

#include "common/core/metrics.h"
#include "common/wire/wire.h"

typedef struct {
    bt_metrics *metrics; /* borrowed */
    bt_series *kv_usage, *waiting, *ttft, *queue, *prefill, *stopped, *cut, *failed;
    bt_series *cache_info; /* of n_blocks */
    uint32_t n_blocks;
} wrk_vllm;

void wrk_vllm_open(wrk_vllm *vllm, bt_metrics *metrics);
void wrk_vllm_load(wrk_vllm *vllm, const wire_load *load);

/* What the worker says to a gateway: a first token has its times, an end its reason. */
void wrk_vllm_message(const wrk_vllm *vllm, const wire_message *message);

#endif
