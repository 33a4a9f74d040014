/* The model: token rows in, logits out, KV written. Composes a backend's operations; knows no instruction set.
 * One thread owns a krn_model. DeepSeek-V3 technical report (arXiv 2412.19437) §2.1; inference/model.py. */
#ifndef BATON_KERNELS_FORWARD_H
#define BATON_KERNELS_FORWARD_H

#include "kernels/backend.h"
#include "kernels/exchange.h"
#include "kernels/sim/sim.h"

typedef struct krn_model krn_model;

typedef struct {
    const char *dir;        /* the checkpoint's folder */
    const char *backend;    /* "ref", "cpu" or "sim" */
    uint32_t n_threads;     /* 0: all processors */
    uint32_t max_rows;      /* token rows in one krn_forward(), over all sequences */
    uint32_t max_positions; /* longest sequence; at most max_position_embeddings */
    uint32_t max_logits;    /* rows of logits in one krn_forward() */
    /* Expert parallelism: this model is one of n_ranks (0: alone) that share the routed experts. */
    uint32_t rank, n_ranks;
    const char *placement; /* file of placement.h; NULL or empty: consecutive runs */
    krn_sim_options sim;   /* with backend "sim", which is always alone */
} krn_model_options;

/* Opens checkpoint, weights and backend; reads the weights that this rank holds once so that the first request does not
 * pay for disk, with a progress line in the log every second. BT_BAD_REQUEST as the parts say. */
bt_status krn_model_open(const krn_model_options *options, krn_model **out, bt_error *err);
void krn_model_close(krn_model *model);

const mdl_config *krn_model_config(const krn_model *model);
const krn_backend *krn_model_backend(const krn_model *model);
const krn_sim *krn_model_sim(const krn_model *model);    /* NULL: another backend */
uint64_t krn_model_hash(const krn_model *model);         /* mdl_checkpoint_hash() or krn_sim_hash() */
uint64_t krn_model_weight_bytes(const krn_model *model); /* krn_weights.n_bytes; "sim": 0, as the next two */
uint64_t krn_model_active_bytes(const krn_model *model); /* krn_weights.active_bytes */
uint64_t krn_model_expert_bytes(const krn_model *model); /* krn_weights.expert_bytes */

/* The cache that krn_forward() wants, of n_blocks blocks. */
kv_layout krn_model_kv_layout(const krn_model *model, uint32_t n_blocks);
/* How many blocks n_bytes of memory are. Backend "sim": of the real model in bfloat16, so that a simulated worker has
 * as many as a real one with the same flags. */
uint64_t krn_model_kv_blocks(const krn_model *model, uint64_t n_bytes);

/* How often this model's rows chose each expert: [num_hidden_layers][n_routed_experts], counted since open. NULL: the
 * model has no routed experts. Any thread may read it, also during a step. */
const _Atomic uint64_t *krn_model_expert_load(const krn_model *model);

/* What the messages of this model's group hold; only with n_ranks > 0. Equal on all ranks of the same max_rows. */
ep_limits krn_model_ep_limits(const krn_model *model);

/* Joins a group (NULL: leaves it). Borrowed until the next call; rank and n_ranks must be the model's. */
void krn_model_set_exchange(krn_model *model, ep_exchange *exchange);

/* One step: the sequences' rows (together <= max_rows) go through all layers; `logits` receives
 * [sum of n_logits][vocab_size] in the order of the sequences. Sequences may not share a block that one of them
 * writes. `on_layer` may be NULL; with backend "sim" `logits` may be NULL, and krn_sim_logits() gives them row by row.
 * Ids, lengths and counts outside the limits are the caller's bug (BT_ASSERT): whoever takes them from a client checks
 * them.
 *
 * With n_ranks > 1 all ranks of the group make this call, with zero sequences if they have none; a rank learns from
 * the exchange that it is called. BT_PEER_LOST, then only: the group has failed, or this model has no exchange. Rows of
 * the step are then partly in the cache and to be computed again; the model can join a new group. on_layer is not
 * called for a step without rows. */
bt_status krn_forward(krn_model *model, krn_kv kv, const krn_sequence *sequences, uint32_t n_sequences, float *logits,
                      krn_layer_done on_layer, void *context);

#endif
