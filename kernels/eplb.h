/* EPLB: which experts to hold twice, and where, so that ranks carry equal loads. DeepSeek's algorithm (github.com/
 * deepseek-ai/EPLB, eplb.py), slot for slot. Decides from numbers alone; placement.h reads what it decides. */
#ifndef BATON_KERNELS_EPLB_H
#define BATON_KERNELS_EPLB_H

#include <stdint.h>

#include "common/core/status.h"

typedef struct {
    uint32_t n_experts; /* per layer */
    uint32_t n_slots;   /* experts with their replicas, over all ranks: a multiple of n_ranks, at least n_experts */
    uint32_t n_groups;  /* of consecutive experts, which stay on one node where n_nodes divides it */
    uint32_t n_nodes;   /* of consecutive ranks */
    uint32_t n_ranks;   /* a multiple of n_nodes */
} eplb_shape;

/* One layer. load [n_experts]; phy2log [n_slots]: the expert in each slot, slots by rank.
 * BT_BAD_REQUEST: the shape contradicts itself. */
bt_status eplb_place(const eplb_shape *shape, const uint64_t *load, uint32_t *phy2log, bt_error *err);

#endif
