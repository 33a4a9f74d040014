/* Inside the cpu backend: what an instruction set provides (cpu_isa) and what an open backend owns (cpu_backend).
 *
 * Two matrix kernels carry the model. `dots` is y = x · Wᵀ with W row-major in its stored type: linears, experts, and
 * the absorbed scores, whose W is the cache itself. `pairs` is y = p · V with V in rows, two of them interleaved:
 * expanded scores, both P · V, the absorbed query. Their common input format is bfloat16, their output float32.
 *
 * One order: an output element of either kernel is the same sequence of operations for any number of rows. All pointers
 * may be unaligned unless said otherwise; n_out, n_in and row counts are arbitrary. */
#ifndef BATON_KERNELS_CPU_CPU_H
#define BATON_KERNELS_CPU_CPU_H

#include "kernels/backend.h"
#include "kernels/cpu/cpu_pool.h"

enum {
    CPU_GROUP = 16,    /* rows that are packed together, and floats in the widest vector */
    CPU_K_STEP = 32,   /* k is padded with zeros to a multiple of this in packed rows */
    CPU_PIECE = 128,   /* elements of one FP8 scale block that are multiplied before the scale is applied */
    CPU_PANEL = 32,    /* outputs that a kernel handles together: task boundaries are multiples of it */
    CPU_V_PANEL = 32,  /* columns of V (cpu_pairs) that lie together */
    CPU_FEW_ROWS = 32, /* up to here rows are packed once for all tasks; more are packed by the task that reads them */
    CPU_ROW_BLOCK = 256,      /* rows of a task, at most; a multiple of CPU_GROUP */
    CPU_L2_BYTES = 832 << 10, /* what a task's packed rows may take of L2: weights pass through the rest */
};

static inline uint32_t cpu_round_up(uint32_t n, uint32_t multiple) { return (n + multiple - 1) / multiple * multiple; }
static inline uint32_t cpu_min(uint32_t a, uint32_t b) { return a < b ? a : b; }
static inline uint32_t cpu_max(uint32_t a, uint32_t b) { return a > b ? a : b; }

/* Rows of bfloat16 as they lie in memory: row i is x + index * stride, index = pairs[i].row, or i without pairs. */
typedef struct {
    const uint16_t *x;
    size_t stride; /* elements */
    const krn_pair *pairs;
    uint32_t n_rows, n; /* n: elements of a row */
    uint32_t skew; /* element k lies at (k + skew) % n when packed: cpu_isa.skew of the matrix that multiplies them */
} cpu_rows;

static inline const uint16_t *cpu_row(const cpu_rows *rows, uint32_t i) {
    return rows->x + rows->stride * (rows->pairs != NULL ? rows->pairs[i].row : i);
}

static inline size_t cpu_packed_elems(uint32_t n_rows, uint32_t n) {
    return (size_t)n_rows * cpu_round_up(n, CPU_K_STEP);
}

/* Instead of x · Wᵀ: silu(x · Gᵀ) * (x · Wᵀ), in bfloat16, packed for the matrix that reads it next. */
typedef struct {
    const krn_matrix *gate; /* of W's shape */
    cpu_rows rows;          /* of all outputs, with the next matrix's skew, an even one; x is not used */
    uint16_t *packed;
} cpu_gated;

typedef struct {
    const krn_matrix *w;
    uint32_t first_row, n_out; /* W's rows first_row .. first_row + n_out are outputs 0 .. n_out */
    cpu_rows rows;
    const uint16_t *packed; /* `rows` packed by isa->pack; aligned to 64 bytes */
    float *out;             /* row r, output o: out[r * stride + o], or out[o * stride + r] if is_by_output */
    size_t out_stride;
    bool is_by_output, accumulate;
    bool is_streamed; /* the results are read much later: they need not stay in the cache */
    /* Row r's results are multiplied by weights[r].weight; NULL: by nothing. Not together with is_by_output. */
    const krn_pair *weights;
    const cpu_gated *gated; /* NULL, or where the results go; all of W's outputs, then, a multiple of CPU_PANEL */
} cpu_dots;

/* out[r] = (alpha ? out[r] * alpha[r] : 0) + sum over j of p[r][j] * v[j]
 *
 * V is pairs of its rows: a uint32_t is the bf16 of row 2i (low half) and row 2i + 1. Panels of CPU_V_PANEL columns lie
 * v_panel apart, in a panel the pairs of rows v_stride apart; plain rows are panels that are CPU_V_PANEL apart. */
typedef struct {
    const uint16_t *p; /* bf16 [n_rows][p_stride], n_j of them used; rows aligned to 64 bytes */
    size_t p_stride;
    uint32_t n_rows, n_j; /* n_j: a multiple of CPU_K_STEP */
    const uint32_t *v;    /* aligned to 64 bytes, as are v_stride and v_panel */
    size_t v_stride, v_panel;
    uint32_t n; /* elements of an output row: a multiple of CPU_GROUP */
    float *out; /* [n_rows][out_stride]; rows aligned to 64 bytes */
    size_t out_stride;
    const float *alpha;
} cpu_pairs;

/* Memory of one thread inside a kernel. */
enum { CPU_DOTS_SCRATCH_BYTES = 512 << 10 };
enum { CPU_WIDE_PANEL = 4 }; /* outputs that dots_wide handles together */
typedef struct {
    void *dots;       /* [CPU_DOTS_SCRATCH_BYTES]: the kernels' own; aligned to 64 bytes */
    float *row;       /* [CPU_WIDE_PANEL][longest row + CPU_GROUP]: decoded weights */
    uint16_t *packed; /* as many rows as cpu_rows_most() says */
    void *work;       /* what the calling operation needs: experts and attention say how much */
} cpu_scratch;

/* State of an online softmax, in base 2: the weight of score s is 2^(s * scale - max). Starts as {-INFINITY, 0}. */
typedef struct {
    float max, sum;
} cpu_softmax;

/* Element by element, in float32; n is arbitrary. Compiled for two register widths (vector_body.h). */
typedef struct {
    /* As cpu_isa.dots, for every type of W: reads job->rows, or x_float [n_rows][n_in] if that is not NULL (router). */
    void (*dots_wide)(const cpu_dots *job, const float *x_float, uint32_t begin, uint32_t end,
                      const cpu_scratch *scratch);
    void (*rmsnorm)(const float *x, uint32_t n, const float *gain, float eps, uint16_t *out_bf16, float *out_float);
    void (*silu_mul)(const float *gate, const float *up, size_t n, uint16_t *out);
    void (*to_bf16)(const float *x, size_t n, float factor, uint16_t *out); /* factor * x */
    /* y += ((0 + terms[0]) + terms[1]) + ... */
    void (*add_sum)(float *y, const float *const *terms, uint32_t n_terms, size_t n);
    void (*scale)(float *x, size_t n, float factor);
    void (*add_scaled)(float *y, const float *x, size_t n, float factor); /* y += factor * x */
    /* Rotates n elements, pairs side by side, by cos_sin [n / 2][2], and rounds. */
    void (*rotate)(const float *x, const float *cos_sin, size_t n, uint16_t *out);
    /* Two rows of V, as `pairs` wants them: panels lie `panel` apart. */
    void (*interleave)(const float *even, const float *odd, size_t n, uint32_t *out, size_t panel);
    void (*interleave_bf16)(const uint16_t *even, const uint16_t *odd, size_t n, uint32_t *out);
    /* Takes n_valid scores into the state: p receives n weights relative to the new maximum, zero behind n_valid;
     * returns the factor for what was summed before. n: a multiple of CPU_K_STEP; n scores are read. */
    float (*softmax)(const float *scores, uint32_t n_valid, uint32_t n, float scale, cpu_softmax *state, uint16_t *p);
} cpu_vector;

extern const cpu_vector cpu_vector_avx2, cpu_vector_avx512;

typedef struct {
    const char *name;
    const cpu_vector *vector;
    bool has_gated; /* dots knows cpu_dots.gated */

    /* What `skew` rows that multiply w shall have, less than CPU_K_STEP, and 0 unless n is a multiple of it: steps of k
     * then start where w's cache lines do. Part of the order of sums, so it depends on where w lies alone. NULL: always
     * 0. Rows of another skew, the same for all row counts, are multiplied too, slower. */
    uint32_t (*skew)(const krn_matrix *w);
    /* Rows begin..end of `rows` (begin a multiple of CPU_GROUP) into their place in `packed`. */
    void (*pack)(const cpu_rows *rows, uint32_t begin, uint32_t end, uint16_t *packed);
    /* Outputs begin..end. W is BF16, or F8_E4M3 with block_cols a multiple of CPU_K_STEP. */
    void (*dots)(const cpu_dots *job, uint32_t begin, uint32_t end, const cpu_scratch *scratch);
    void (*pairs)(const cpu_pairs *job, const cpu_scratch *scratch);
} cpu_isa;

/* Bytes of the bfloat16 of E4M3's 128 magnitudes: [high, low byte][code]; for byte permutations. */
extern uint8_t cpu_e4m3_bytes[2][128];

extern const cpu_isa cpu_isa_avx2, cpu_isa_avx512, cpu_isa_amx;

/* Memory that experts and attention need: sized at open. */
typedef struct cpu_attention_memory cpu_attention_memory;

typedef struct {
    krn_backend api; /* first: what the caller holds */
    const cpu_isa *isa;
    krn_backend_limits limits;
    cpu_pool *pool;
    cpu_scratch *scratch; /* [n_threads] */

    uint16_t *packed;   /* up to CPU_FEW_ROWS rows of one linear */
    uint32_t cap_pairs; /* of experts, in one batch */
    uint16_t *expert_x; /* packed rows of the experts that have few, of up to cap_pairs pairs */
    size_t h_elems;     /* of each of: */
    uint16_t *h;        /* silu(gate) * up of a batch's rows */
    uint16_t *h_packed; /* the same, packed */
    cpu_attention_memory *attention;
} cpu_backend;

/* Whether `dots` can read this matrix; dots_wide otherwise. */
static inline bool cpu_is_narrow(const krn_matrix *w) {
    return w->dtype == MDL_BF16 || (w->dtype == MDL_F8_E4M3 && w->block_cols % CPU_K_STEP == 0);
}

static inline size_t cpu_elem_bytes(mdl_dtype dtype) { return dtype == MDL_F8_E4M3 ? 1 : dtype == MDL_F32 ? 4 : 2; }

/* Elements from k (a multiple of CPU_K_STEP) that are multiplied before an FP8 scale is applied: never across a block.
 */
static inline uint32_t cpu_piece(const krn_matrix *w, uint32_t k) {
    uint32_t to_block_end = w->block_cols - k % w->block_cols;
    return cpu_min(CPU_PIECE, cpu_min(to_block_end, w->n_in - k));
}

static inline uint32_t cpu_skew(const cpu_backend *backend, const krn_matrix *w) {
    return backend->isa->skew == NULL ? 0 : backend->isa->skew(w);
}

/* Rows of n elements that a task takes at most: packed they stay in L2 while all its weights pass. */
static inline uint32_t cpu_rows_most(uint32_t n) {
    uint32_t rows = (uint32_t)(CPU_L2_BYTES / (cpu_packed_elems(1, n) * sizeof(uint16_t))) / 32 * 32;
    return cpu_max(cpu_min(rows, CPU_ROW_BLOCK), 64);
}

/* n_rows in parts of at most `most`, a multiple of CPU_GROUP, all nearly alike. */
static inline uint32_t cpu_rows_each(uint32_t n_rows, uint32_t most) {
    uint32_t n_parts = (n_rows + most - 1) / most;
    return cpu_round_up((n_rows + n_parts - 1) / n_parts, CPU_GROUP);
}

/* The right one of dots and dots_wide. */
static inline void cpu_dots_run(const cpu_backend *backend, const cpu_dots *job, uint32_t begin, uint32_t end,
                                uint32_t thread) {
    const cpu_scratch *scratch = &backend->scratch[thread];
    if (cpu_is_narrow(job->w))
        backend->isa->dots(job, begin, end, scratch);
    else
        backend->isa->vector->dots_wide(job, NULL, begin, end, scratch);
}

void cpu_linear(krn_backend *api, const krn_matrix *w, const void *x_act, uint32_t n_rows, float *out, bool accumulate);
void cpu_router(krn_backend *api, const krn_router_args *args);
void cpu_mlp(krn_backend *api, const krn_mlp *mlp, const void *x_act, uint32_t n_rows, float *out);
void cpu_experts(krn_backend *api, const krn_experts_args *args);
void cpu_attention(krn_backend *api, const krn_attention_args *args);

size_t cpu_mlp_work_bytes(void);
cpu_attention_memory *cpu_attention_open(const krn_backend_limits *limits);
void cpu_attention_close(cpu_attention_memory *memory);
size_t cpu_attention_work_bytes(const cpu_attention_memory *memory);

/* Packs W_UK of every layer for the absorbed query: krn_matrix.packed of kv_b. */
void cpu_attention_prepare(cpu_backend *backend, krn_weights *weights);

#endif
