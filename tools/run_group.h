/* The other ranks of baton-run --ep: models on threads of their own, without rows, that help the first one. */
#ifndef BATON_TOOLS_RUN_GROUP_H
#define BATON_TOOLS_RUN_GROUP_H

#include "kernels/forward.h"

typedef struct run_group run_group;

/* `options` are those of `first`, rank 0 of options->n_ranks. Opens the others and joins all in one group.
 * BT_BAD_REQUEST: as krn_model_open(). */
bt_status run_group_open(const krn_model_options *options, krn_model *first, run_group **out, bt_error *err);

/* Before the first model is closed; `group` may be NULL. */
void run_group_close(run_group *group);

/* Writes a placement for `model`'s group by the load that its rows made: EPLB with n_slots slots per layer, 0: one per
 * expert, in either case rounded up to a multiple of the ranks. BT_BAD_REQUEST: fewer slots than experts, or more than
 * make sense. BT_INTERNAL: the file cannot be written. */
bt_status run_placement_write(const char *path, const krn_model *model, uint32_t n_ranks, uint32_t n_slots,
                              bt_error *err);

#endif
