/* Inside attention: the model's sizes with their paddings, and the memory that both forms use. */
#ifndef BATON_KERNELS_CPU_CPU_ATTENTION_H
#define BATON_KERNELS_CPU_CPU_ATTENTION_H

#include "kernels/cpu/cpu.h"

enum {
    CPU_CHUNK_BLOCKS = 8, /* absorbed: KV blocks that are summed in a row; the chunks are merged in order */
    CPU_ROUND_ROWS = 64,  /* absorbed: rows that are worked off together */
};

/* Widths in elements. */
typedef struct {
    uint32_t heads, nope, rope, rank, v;
    uint32_t width;               /* rank + rope: of a cached row */
    uint32_t key_width;           /* expanded key: nope, made even, then rope, padded to CPU_K_STEP */
    uint32_t nope_width;          /* nope padded to CPU_K_STEP */
    uint32_t v_width, rank_width; /* padded to CPU_GROUP */
    float scale;                  /* of scores, for powers of 2 */
} cpu_attention_dims;

typedef struct cpu_run cpu_run;

struct cpu_attention_memory {
    cpu_attention_dims dims;
    uint32_t max_rows, cap_slots, n_layers;
    uint32_t **w_uk; /* [n_layers], NULL before prepare(): krn_matrix.packed of kv_b */
    cpu_run *runs;   /* [max_rows]: the absorbed ones of a call */
    /* expanded: one sequence's cache, as the kernels want it */
    uint16_t *latents;   /* [max blocks][64 packed rows of rank] */
    uint32_t *rope_keys; /* pairs in panels: [positions / CPU_V_PANEL][rope / 2][CPU_V_PANEL] */
    /* absorbed: one round */
    uint16_t *queries;   /* [CPU_ROUND_ROWS][heads][width]: moved into latent space, then the rotated part */
    float *partial;      /* [cap_slots][heads][rank_width]: of a (row, chunk) */
    cpu_softmax *states; /* [cap_slots][heads] */
};

/* The rows of one sequence in a call, or some of them. */
struct cpu_run {
    const krn_sequence *sequence;
    uint32_t row;      /* of the call: where `first` lies in args->q, out, cos_sin */
    uint32_t position; /* of that row */
    uint32_t n_rows;
};

static inline const uint16_t *cpu_cached(const krn_attention_args *args, const krn_sequence *s, uint32_t position) {
    uint32_t block = s->blocks[position / KV_BLOCK_TOKENS];
    size_t at = kv_offset_bytes(&args->kv.layout, args->layer_index, block, position % KV_BLOCK_TOKENS);
    return (const uint16_t *)((const uint8_t *)args->kv.base + at);
}

/* How many of the n positions from `start` a row at `position` sees. */
static inline uint32_t cpu_n_seen(uint32_t position, uint32_t start, uint32_t n) {
    return position < start ? 0 : cpu_min(position - start + 1, n);
}

/* Takes `bytes` at *at, aligned to 64; with a NULL base it only counts. */
static inline void *cpu_take(uint8_t *base, size_t *at, size_t bytes) {
    void *taken = base == NULL ? NULL : base + *at;
    *at += (bytes + 63) / 64 * 64;
    return taken;
}

size_t cpu_expanded_work_bytes(const cpu_attention_memory *memory);
size_t cpu_absorbed_work_bytes(const cpu_attention_memory *memory);
void cpu_expanded(cpu_backend *backend, const krn_attention_args *args, const cpu_run *run);
/* `runs`: all rows of absorbed form in the call. */
void cpu_absorbed(cpu_backend *backend, const krn_attention_args *args, const cpu_run *runs, uint32_t n_runs);

#endif
