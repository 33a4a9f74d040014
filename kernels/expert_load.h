/* How much work each routed expert had: counted by a model, served by a worker as its page /experts, summed over the
 * ranks of a group by who plans a placement (plan.h).
 *
 * The page is one JSON object,
 *
 *     {"model_hash": "25d2dc6a278dc2dd", "group": "decode", "rank": 1, "n_ranks": 2, "rows": [[103, 98, ...], ...]}
 *
 * with one list per layer of routed experts, in the order of the layers: how many rows of this rank's own sequences
 * chose each expert since the worker started. A worker alone is rank 0 of 1 in a group without name. */
#ifndef BATON_KERNELS_EXPERT_LOAD_H
#define BATON_KERNELS_EXPERT_LOAD_H

#include "common/core/buf.h"
#include "kernels/forward.h"

enum { KRN_LOAD_CAP_GROUP = 64, KRN_LOAD_MAX_PAGE_BYTES = 16 << 20 };

/* Start with {0}, free with krn_expert_load_fini(). */
typedef struct {
    uint64_t model_hash;
    char group[KRN_LOAD_CAP_GROUP]; /* A-Z a-z 0-9 . _ -, or empty; of a sum: of any rank */
    uint32_t rank, n_ranks;         /* rank < n_ranks <= EP_MAX_RANKS */
    uint32_t n_layers, n_experts;   /* layers with routed experts; both 0: the model has none */
    uint64_t *rows;                 /* [n_layers][n_experts] owned */
} krn_expert_load;

void krn_expert_load_fini(krn_expert_load *load);

/* What the model has counted so far, into an empty load; a model alone is rank 0 of 1. The group's name is the
 * caller's to add. Any thread, also during a step, of which a part is counted then. */
void krn_expert_load_take(const krn_model *model, krn_expert_load *out);

void krn_expert_load_write(const krn_expert_load *load, bt_buf *page);

/* `what` names the page in the error. BT_BAD_REQUEST: not a page as above, longer than KRN_LOAD_MAX_PAGE_BYTES, lists
 * of different lengths, a number that is no count up to 2^53. */
bt_status krn_expert_load_parse(const char *what, const void *page, size_t n_bytes, krn_expert_load *out,
                                bt_error *err);

/* sum += load; an empty sum becomes a copy. BT_BAD_REQUEST: of another model. */
bt_status krn_expert_load_add(krn_expert_load *sum, const krn_expert_load *load, bt_error *err);

uint64_t krn_expert_load_total(const krn_expert_load *load);

#endif
