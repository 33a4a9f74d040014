/* p · V on AMX: 16 rows of p are the left operand, 32 rows of V, in pairs, the right one; 2 x 2 tiles make a block of
 * 32 rows x 32 elements: a panel of V, which L2 delivers faster than rows far apart. All of n_j is summed in tiles;
 * then, if the output is kept, output * alpha is added once. */
#include "kernels/cpu/amx.h"

#define INLINE static inline __attribute__((always_inline))

/* Rows r.. (two groups if n_left is 2), output elements c.. (two tiles if n_right is 2). */
INLINE void block(const cpu_pairs *job, uint32_t r, uint32_t n_left, uint32_t left_rows, uint32_t c, uint32_t n_right,
                  float *tiles) {
    const uint8_t *left0 = (const uint8_t *)(job->p + r * job->p_stride), *left1 = left0 + SIDE * job->p_stride * 2;
    const uint8_t *right = (const uint8_t *)(job->v + c / CPU_V_PANEL * job->v_panel);
    size_t left_stride = job->p_stride * 2, right_stride = job->v_stride * 4;
    tiles_zero(n_left, n_right);
    for (uint32_t j = 0; j < job->n_j; j += CPU_K_STEP, right += SIDE * right_stride) {
        tiles_multiply(n_left, left0 + j * 2, left1 + j * 2, left_stride, n_right, right, right + 64, right_stride);
    }
    float *out = job->out + r * job->out_stride + c, *next = out + SIDE * job->out_stride;
    if (job->alpha == NULL) {
        float *const at[4] = {out, next, out + SIDE, next + SIDE};
        tiles_store(n_left, n_right, at, job->out_stride * 4);
        return;
    }
    float *const at[4] = {tiles, tiles + TILE, tiles + 2 * TILE, tiles + 3 * TILE};
    tiles_store(n_left, n_right, at, 64);
    for (uint32_t i = 0; i < n_left * left_rows; i++) {
        __m512 factor = _mm512_set1_ps(job->alpha[r + i]);
        for (uint32_t d = 0; d < n_right; d++) {
            float *y = out + i * job->out_stride + d * SIDE;
            __m512 sum = _mm512_load_ps(tiles + (2 * d + i / SIDE) * TILE + i % SIDE * SIDE);
            _mm512_store_ps(y, _mm512_fmadd_ps(_mm512_load_ps(y), factor, sum));
        }
    }
}

INLINE void rows_run(const cpu_pairs *job, uint32_t r, uint32_t n_left, uint32_t left_rows, float *tiles) {
    uint32_t c = 0;
    for (; c + 2 * SIDE <= job->n; c += 2 * SIDE) block(job, r, n_left, left_rows, c, 2, tiles);
    if (c < job->n) block(job, r, n_left, left_rows, c, 1, tiles);
}

void cpu_amx_pairs(const cpu_pairs *job, const cpu_scratch *scratch) {
    float *tiles = scratch->dots;
    uint32_t r = 0, n_full = job->n_rows / SIDE * SIDE;
    if (n_full > 0) tiles_configure(SIDE, SIDE);
    for (; r + 2 * SIDE <= n_full; r += 2 * SIDE) rows_run(job, r, 2, SIDE, tiles);
    if (r < n_full) rows_run(job, r, 1, SIDE, tiles);
    if (n_full < job->n_rows) {
        tiles_configure(job->n_rows - n_full, SIDE);
        rows_run(job, n_full, 1, job->n_rows - n_full, tiles);
    }
    tiles_release();
}
