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

#endif
