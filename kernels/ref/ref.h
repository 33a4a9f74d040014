/* The reference backend's inside: plain C, float32 activations and float32 KV, one thread. Obviously correct first;
 * fast only as far as a compiler vectorises a loop of 16 independent sums. */
#ifndef BATON_KERNELS_REF_REF_H
#define BATON_KERNELS_REF_REF_H

#include "kernels/backend.h"

typedef struct {
    krn_backend backend; /* first: what the caller holds */
    const mdl_config *config;
    float softmax_scale;
    uint32_t max_rows;
    /* scratch, sized at open */
    float *weight_row;  /* one decoded row of the widest matrix */
    float *head;        /* [nope + v][kv_lora_rank]: kv_b's rows of one head */
    float *q_rope;      /* [max_rows][heads][rope], rotated */
    float *keys;        /* [KV_BLOCK_TOKENS][nope]: one block of one head, expanded */
    float *values;      /* [KV_BLOCK_TOKENS][v] */
    float *q_latent;    /* [kv_lora_rank]: one absorbed query */
    float *accumulator; /* [max_rows][max(v, kv_lora_rank)]: sum of p * value of one head */
    float *row_max;     /* [max_rows]: largest score so far */
    float *row_sum;     /* [max_rows]: sum of exp(score - row_max) so far */
    float *gate, *up;   /* [max_rows][widest MLP] */
    float *expert_x;    /* [max_rows][hidden]: rows of one expert */
} ref_backend;

void ref_embed(krn_backend *backend, const krn_matrix *table, const uint32_t *ids, uint32_t n_rows, float *out);
void ref_rmsnorm(krn_backend *backend, const float *x, uint32_t n_rows, uint32_t width, const float *gain, float eps,
                 void *out_act, float *out_float);
void ref_linear(krn_backend *backend, const krn_matrix *w, const void *x_act, uint32_t n_rows, float *out,
                bool accumulate);
void ref_mlp(krn_backend *backend, const krn_mlp *mlp, const void *x_act, uint32_t n_rows, float *out);
void ref_attention(krn_backend *backend, const krn_attention_args *args);
void ref_router(krn_backend *backend, const krn_router_args *args);
void ref_experts(krn_backend *backend, const krn_experts_args *args);
void ref_combine(krn_backend *backend, const float *const *terms, uint32_t n_terms, uint32_t n_rows, uint32_t width,
                 float *x);

/* The rows of one sequence, `first_row` of the step onwards, for one head, whose part of kv_b is in ref->head. */
void ref_attend_expanded(ref_backend *ref, const krn_attention_args *args, const krn_sequence *sequence,
                         uint32_t first_row, uint32_t head);
void ref_attend_absorbed(ref_backend *ref, const krn_attention_args *args, const krn_sequence *sequence,
                         uint32_t first_row, uint32_t head);

/* The first half of an MLP: silu(gate) * up of n_rows, into ref->gate. */
void ref_gate_up(ref_backend *ref, const krn_mlp *mlp, const float *x, uint32_t n_rows);

/* Row `row` of W, dequantised, into out[n_in]. */
void ref_matrix_row(const krn_matrix *w, uint32_t row, float *out);

/* What the cache holds for one position of a sequence: [kv_lora_rank + rope]. */
float *ref_kv_row(const krn_attention_args *args, const krn_sequence *sequence, uint32_t position);

/* The order of every sum of products here: 16 lanes, then a tree over the lanes. */
static inline float ref_dot(const float *a, const float *b, size_t n) {
    enum { LANES = 16 };
    float lanes[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (size_t j = 0; j < LANES; j++) lanes[j] += a[i + j] * b[i + j];
    }
    for (size_t j = 0; i + j < n; j++) lanes[j] += a[i + j] * b[i + j];
    for (size_t half = LANES / 2; half > 0; half /= 2) {
        for (size_t j = 0; j < half; j++) lanes[j] += lanes[j + half];
    }
    return lanes[0];
}

/* out += factor * x */
static inline void ref_add_scaled(float *out, float factor, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] += factor * x[i];
}

/* One row's step of the online softmax (arXiv 1805.02867) over one block: scores[n] become weights exp(score - max);
 * what the row has summed so far, and its accumulator[width], are scaled to the new maximum. */
void ref_softmax_step(ref_backend *ref, uint32_t row, float *scores, uint32_t n, float *accumulator, uint32_t width);

#endif
