/* What a backend computes: the operations that forward.c composes into the model, once for all backends.
 *
 * `ref` is plain float32 C, obviously correct. `cpu` is vectorised, chooses its instruction set at run time and keeps
 * activations and KV in bfloat16. Everywhere: x and y of a linear are rows, accumulators and residuals float32;
 * "act" is the backend's activation type (activation_bytes per element), what linears take as input.
 *
 * The one-order rule: an output element's reduction order depends on the element alone, never on the number of rows,
 * on threads, or on which other rows are there. Tests compare bit for bit.
 *
 * Threads: one thread calls a backend; a call returns when the result is there. No allocation inside a call once
 * open() has seen the limits. All pointers are host memory here; no argument overlaps an output unless it says so. */
#ifndef BATON_KERNELS_BACKEND_H
#define BATON_KERNELS_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/kv/kv_layout.h"
#include "kernels/weights.h"

/* How a sequence's rows attend. Prompt positions use the expanded form (keys and values rebuilt per head from the
 * latent), generated positions the absorbed form (queries moved into latent space). They agree mathematically, not bit
 * for bit, so the form belongs to the position, whoever computes it. */
typedef enum { KRN_EXPANDED, KRN_ABSORBED } krn_form;

/* The rows of one sequence in a step: consecutive positions, all of one form. */
typedef struct {
    const uint32_t *token_ids; /* [n_rows], each < vocab_size */
    const uint32_t *blocks;    /* [ceil((position + n_rows) / 64)] block numbers; blocks before `position` are filled */
    uint32_t n_rows;
    uint32_t position; /* of the first row */
    krn_form form;
    uint32_t n_logits; /* logits wanted of that many last rows: 0..n_rows */
} krn_sequence;

/* The KV cache as the kernels see it. */
typedef struct {
    void *base; /* kv_pool_bytes(layout) */
    kv_layout layout;
} krn_kv;

/* Called on the model's thread when layer `layer` of all rows is in the cache: the moment to push it. */
typedef void (*krn_layer_done)(void *context, uint32_t layer);

typedef struct {
    const krn_layer *layer;
    uint32_t layer_index;
    const krn_sequence *sequences; /* [n_sequences]; their rows lie one after another */
    uint32_t n_sequences, n_rows;
    const float *cos_sin; /* [n_rows][rope / 2][2]: of each row's position */
    const float *q;       /* [n_rows][heads * (nope + rope)], not rotated yet */
    const float *kv_a;    /* [n_rows][kv_lora_rank + rope], not normalised, not rotated */
    void *out;            /* act [n_rows][heads * v_head_dim] */
    krn_kv kv;
} krn_attention_args;

/* A row that visits an expert. Pairs come grouped by expert, ascending; rows ascending within an expert. */
typedef struct {
    uint32_t row, expert;
    float weight;
} krn_pair;

typedef struct {
    const krn_mlp *experts;
    const krn_pair *pairs; /* [n_pairs] */
    uint32_t n_pairs;
    const void *x; /* act [n_rows][hidden_size] */
    float *y;      /* [n_pairs][hidden_size]: weight * expert(x[row]) */
} krn_experts_args;

typedef struct {
    const krn_matrix *w; /* [n_routed_experts, hidden_size] */
    const float *bias;   /* [n_routed_experts] or NULL, as krn_route() takes it */
    const float *x;      /* [n_rows][hidden_size] */
    uint32_t n_rows;
    float *logits;     /* [n_rows][n_routed_experts] */
    uint32_t *experts; /* [n_rows][num_experts_per_tok] */
    float *weights;    /* [n_rows][num_experts_per_tok] */
} krn_router_args;

typedef struct krn_backend krn_backend;

typedef struct {
    uint32_t n_threads;
    uint32_t max_rows;        /* in one call; experts() takes any number */
    uint32_t n_ranks;         /* that send their rows' pairs into one experts(); 0 is 1: sizes scratch for speed only */
    uint32_t max_positions;   /* longest sequence: sizes attention scratch where it depends on it */
    const mdl_config *config; /* borrowed for the backend's life */
} krn_backend_limits;

struct krn_backend {
    const char *name;        /* "ref", "cpu" */
    const char *isa;         /* chosen at run time: "c", "avx2", "avx512-bf16", "amx-bf16" */
    size_t activation_bytes; /* 4 or 2 */
    kv_dtype kv;             /* what this backend's cache holds */

    void (*close)(krn_backend *backend);

    /* Once, before the first operation: may build packed copies of matrices (krn_matrix.packed). */
    void (*prepare)(krn_backend *backend, krn_weights *weights);

    /* out[n_rows][hidden] = table[ids[row]] */
    void (*embed)(krn_backend *backend, const krn_matrix *table, const uint32_t *ids, uint32_t n_rows, float *out);

    /* out = x / sqrt(mean(x^2) + eps) * gain, of rows [width]; out_float may be NULL. */
    void (*rmsnorm)(krn_backend *backend, const float *x, uint32_t n_rows, uint32_t width, const float *gain, float eps,
                    void *out_act, float *out_float);

    /* out[n_rows][n_out] = x · Wᵀ; with `accumulate` added to what is there, after the whole sum is formed. */
    void (*linear)(krn_backend *backend, const krn_matrix *w, const void *x_act, uint32_t n_rows, float *out,
                   bool accumulate);

    /* out[n_rows][hidden_size] += (silu(x · Gᵀ) * (x · Uᵀ)) · Dᵀ, silu(z) = z / (1 + exp(-z)) */
    void (*mlp)(krn_backend *backend, const krn_mlp *mlp, const void *x_act, uint32_t n_rows, float *out);

    /* Normalises and rotates kv_a, stores it in the cache at each row's position, rotates q, then attends: row t reads
     * what the cache holds at positions 0..t of its sequence, block by block in ascending order. */
    void (*attention)(krn_backend *backend, const krn_attention_args *args);

    /* logits = x · Wᵀ in float32 throughout: near ties must not flip with the backend's rounding. Then krn_route() of
     * every row's logits. */
    void (*router)(krn_backend *backend, const krn_router_args *args);

    void (*experts)(krn_backend *backend, const krn_experts_args *args);

    /* x[n_rows][width] += ((0 + terms[0]) + terms[1]) + ..., of the n_terms rows [width] that terms[n_rows][n_terms]
     * points to, in this order. */
    void (*combine)(krn_backend *backend, const float *const *terms, uint32_t n_terms, uint32_t n_rows, uint32_t width,
                    float *x);
};

/* `name`: "ref" or "cpu". BT_BAD_REQUEST: unknown name, or the processor lacks what "cpu" needs (AVX2, FMA, F16C).
 * "sim" has no operations to compose: it is a model of its own (kernels/sim/sim.h). */
bt_status krn_backend_open(const char *name, const krn_backend_limits *limits, krn_backend **out, bt_error *err);

/* The backends' own constructors, which krn_backend_open() chooses from. */
bt_status krn_ref_open(const krn_backend_limits *limits, krn_backend **out, bt_error *err);
bt_status krn_cpu_open(const krn_backend_limits *limits, krn_backend **out, bt_error *err);

#endif
