/* A placement from measured loads: EPLB for every layer, written as the file that placement.h reads; and how evenly a
 * placement spreads such a load. */
#ifndef BATON_KERNELS_PLAN_H
#define BATON_KERNELS_PLAN_H

#include "kernels/expert_load.h"

/* n_slots: experts with their replicas per layer, over all ranks; 0: one of each; in either case rounded up to a
 * multiple of the ranks. BT_BAD_REQUEST: a load without rows, fewer slots than experts, more than n_ranks times as
 * many, more ranks than experts or than EP_MAX_RANKS. BT_INTERNAL: the file cannot be written. */
bt_status krn_plan_write(const char *path, const krn_expert_load *load, uint32_t n_ranks, uint32_t n_slots,
                         bt_error *err);

/* Who would compute how much of `load`, replicas taken to share their expert's rows evenly. A step waits in each layer
 * for the busiest rank, so *slowest is the rows of each layer's busiest rank over those of a mean rank, over all
 * layers: 1 is best, n_ranks worst. `path` NULL or empty: consecutive runs. BT_BAD_REQUEST: as krn_placement_open(). */
bt_status krn_plan_weigh(const char *path, const krn_expert_load *load, uint32_t n_ranks, double *slowest,
                         bt_error *err);

#endif
