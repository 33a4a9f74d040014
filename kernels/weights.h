/* The model's weights by their place in the computation: pointers into the mapped checkpoint, checked for dtype and
 * shape against the config. Nothing is copied but small vectors (norm gains, router bias), which become float32. */
#ifndef BATON_KERNELS_WEIGHTS_H
#define BATON_KERNELS_WEIGHTS_H

#include "common/model/checkpoint.h"
#include "common/model/config.h"
#include "kernels/placement.h"

/* y = x · Wᵀ, W row-major [n_out, n_in] in its stored type. */
typedef struct {
    const void *data; /* borrowed: mapped checkpoint */
    mdl_dtype dtype;  /* BF16, F16, F32 or F8_E4M3 */
    uint32_t n_out, n_in;
    /* F8_E4M3 only: W[o][i] = e4m3(data[o][i]) * scale[(o / block_rows) * n_scale_cols + i / block_cols] */
    const float *scale; /* owned by krn_weights; [ceil(n_out / block_rows), n_scale_cols] */
    uint32_t block_rows, block_cols, n_scale_cols;
    void *packed; /* a backend's own form, made by its prepare(), owned by that backend; NULL: none */
} krn_matrix;

typedef struct {
    krn_matrix gate, up, down; /* down(silu(gate(x)) * up(x)) */
} krn_mlp;

typedef struct {
    const float *input_norm, *post_attention_norm; /* [hidden_size] */
    krn_matrix q_a, q_b;                           /* q_lora_rank > 0 */
    const float *q_a_norm;                         /* [q_lora_rank] */
    krn_matrix q;                                  /* q_lora_rank == 0 */
    krn_matrix kv_a;                               /* [kv_lora_rank + rope, hidden_size] */
    const float *kv_a_norm;                        /* [kv_lora_rank] */
    krn_matrix kv_b;                               /* per head: nope rows of W_UK, then v_head_dim rows of W_UV */
    krn_matrix o;
    bool is_moe;
    krn_mlp dense;            /* !is_moe */
    krn_matrix router;        /* is_moe: [n_routed_experts, hidden_size] */
    const float *router_bias; /* is_moe and noaux_tc: [n_routed_experts]; else NULL */
    krn_mlp *experts;         /* is_moe: [n_routed_experts]; zero: another rank's */
    krn_mlp shared;           /* is_moe and n_shared_experts > 0 */
} krn_layer;

typedef struct {
    krn_matrix embed, lm_head; /* the same matrix when tie_word_embeddings */
    const float *final_norm;
    krn_layer *layers;          /* [num_hidden_layers] */
    const mdl_tensor **tensors; /* [n_tensors]: all that are used here */
    size_t n_tensors;
    uint64_t n_bytes;      /* of these */
    uint64_t active_bytes; /* of n_bytes that one token reads, on average if experts are elsewhere: the roofline of
                              decode at batch 1 */
    uint64_t expert_bytes; /* of one routed expert of one layer, on average over those that are here; 0: none */
} krn_weights;

/* The checkpoint must outlive the weights. Extra tensors (MTP layers, rotary buffers) are ignored. With `placement`, of
 * the routed experts only those that it gives to `rank` are looked at; NULL: all.
 * BT_BAD_REQUEST: a tensor is missing or has the wrong dtype or shape: file, tensor, found, expected. */
bt_status krn_weights_open(const mdl_checkpoint *checkpoint, const mdl_config *config, const krn_placement *placement,
                           uint32_t rank, krn_weights **out, bt_error *err);
void krn_weights_close(krn_weights *weights);

#endif
