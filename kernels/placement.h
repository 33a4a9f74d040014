/* Which ranks of an expert-parallel group hold which experts, layer by layer. Immutable after open; any thread.
 *
 * Without a file every rank holds a run of consecutive experts, the same in all layers, and two ranks' runs differ by
 * at most one. With a file an expert may be on several ranks. The file is one JSON object,
 *
 *     {"n_ranks": 8, "phy2log": [[5, 6, 5, 7, ...], ...]}
 *
 * as EPLB writes it (eplb.h): one list per layer with routed experts, in the order of the layers; slot i of a list is
 * on rank i / (slots / n_ranks) and holds that expert. Every expert has a slot in every layer; lists may differ in
 * length, which is a multiple of n_ranks.
 *
 * Results do not depend on the placement: a pair's arithmetic is the same everywhere, and its source sums. */
#ifndef BATON_KERNELS_PLACEMENT_H
#define BATON_KERNELS_PLACEMENT_H

#include "common/model/config.h"

typedef struct krn_placement krn_placement;

/* `path` NULL or empty: consecutive runs. BT_BAD_REQUEST: no ranks, more of them than experts or than EP_MAX_RANKS; a
 * file that is not as above, is for another number of ranks or for another model. */
bt_status krn_placement_open(const mdl_config *config, uint32_t n_ranks, const char *path, krn_placement **out,
                             bt_error *err);
void krn_placement_close(krn_placement *placement);

uint32_t krn_placement_n_ranks(const krn_placement *placement);

/* Equal for equal placements, on all machines. */
uint64_t krn_placement_hash(const krn_placement *placement);

/* The most experts that a rank holds in a layer. */
uint32_t krn_placement_max_held(const krn_placement *placement);

/* Layers are the model's, of which only those with routed experts have an answer. */
bool krn_placement_holds(const krn_placement *placement, uint32_t rank, uint32_t layer, uint32_t expert);

/* The rank that computes `expert` for row `row` of rank `rank`: itself if it holds the expert, else its replicas in
 * turn. */
uint32_t krn_placement_choose(const krn_placement *placement, uint32_t rank, uint32_t layer, uint32_t expert,
                              uint32_t row);

#endif
