/* Matrix kernels for AVX-512 with BF16 and VBMI (Zen 4 and later, Sapphire Rapids without AMX).
 *
 * `dots`: one accumulator register per (output, row), VDPBF16PS over k in steps of 32, lanes added in a fixed tree. FP8
 * is decoded into a small buffer, PIECE elements of eight weight rows, which up to ROW_CAP rows read; a piece's sum is
 * multiplied by its scale lane by lane. `pairs`: broadcast p times interleaved rows of V, no lane sums.
 *
 * Decode streams weights: while four rows are multiplied, the next ones, which lie behind them, are fetched to L2. */
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/decode_avx512.h"

enum { OUTPUTS = 4, FP8_OUTPUTS = 8, ROW_CAP = 32, FEW_ROWS = 4 };

#define INLINE static inline __attribute__((always_inline))

/* Plain rows, zeros up to a multiple of CPU_K_STEP. */
static void pack(const cpu_rows *rows, uint32_t begin, uint32_t end, uint16_t *packed) {
    uint32_t width = cpu_round_up(rows->n, CPU_K_STEP);
    for (uint32_t r = begin; r < end; r++) {
        uint16_t *out = packed + (size_t)r * width;
        memcpy(out, cpu_row(rows, r), rows->n * sizeof(*out));
        memset(out + rows->n, 0, (width - rows->n) * sizeof(*out));
    }
}

INLINE __m512 dp(__m512 acc, __m512i a, __m512i b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }

/* acc[r][o] += w[o] · x[r] over n_k elements; n_rows is a constant at every call. `ahead` bytes behind w is what to
 * fetch; 0: nothing. */
INLINE void tile(const uint8_t *const w[OUTPUTS], const uint16_t *x, size_t x_stride, uint32_t n_rows, uint32_t n_k,
                 size_t ahead, __m512 acc[4][OUTPUTS]) {
    uint32_t whole = n_k / CPU_K_STEP * CPU_K_STEP;
    for (uint32_t k = 0; k < whole; k += CPU_K_STEP) {
        __m512i v[OUTPUTS];
#pragma GCC unroll 4
        for (int o = 0; o < OUTPUTS; o++) {
            v[o] = _mm512_loadu_si512(w[o] + (size_t)k * 2);
            if (ahead != 0) _mm_prefetch((const char *)w[o] + (size_t)k * 2 + ahead, _MM_HINT_T1);
        }
#pragma GCC unroll 4
        for (uint32_t r = 0; r < n_rows; r++) {
            __m512i b = _mm512_loadu_si512(x + r * x_stride + k);
#pragma GCC unroll 4
            for (int o = 0; o < OUTPUTS; o++) acc[r][o] = dp(acc[r][o], v[o], b);
        }
    }
    if (whole == n_k) return;
    for (uint32_t r = 0; r < n_rows; r++) {
        __m512i b = _mm512_loadu_si512(x + r * x_stride + whole);
        for (int o = 0; o < OUTPUTS; o++)
            acc[r][o] = dp(acc[r][o], bf16_load(w[o] + (size_t)whole * 2, n_k - whole), b);
    }
}

/* Lane sums of four accumulators, each by the same tree. */
INLINE __m128 sum4(const __m512 v[OUTPUTS]) {
    __m128 q[OUTPUTS];
#pragma GCC unroll 4
    for (int o = 0; o < OUTPUTS; o++) {
        __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v[o]), _mm512_extractf32x8_ps(v[o], 1));
        q[o] = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    }
    return _mm_hadd_ps(_mm_hadd_ps(q[0], q[1]), _mm_hadd_ps(q[2], q[3]));
}

INLINE void put(const cpu_dots *job, uint32_t output, uint32_t n_outputs, uint32_t row, __m128 sums) {
    if (job->weights != NULL) sums = _mm_mul_ps(sums, _mm_set1_ps(job->weights[row].weight));
    if (job->is_by_output) {
        float y[OUTPUTS];
        _mm_storeu_ps(y, sums);
        for (uint32_t o = 0; o < n_outputs; o++) {
            float *out = job->out + (output + o) * job->out_stride + row;
            *out = job->accumulate ? *out + y[o] : y[o];
        }
        return;
    }
    __mmask8 mask = (__mmask8)((1u << n_outputs) - 1);
    float *out = job->out + row * job->out_stride + output;
    if (job->accumulate) sums = _mm_add_ps(_mm_maskz_loadu_ps(mask, out), sums);
    _mm_mask_storeu_ps(out, mask, sums);
}

INLINE void bf16_rows(const cpu_dots *job, uint32_t output, uint32_t n_outputs, const uint8_t *const w[OUTPUTS],
                      uint32_t row, uint32_t n_rows, size_t ahead) {
    size_t stride = cpu_round_up(job->w->n_in, CPU_K_STEP);
    __m512 acc[4][OUTPUTS];
    for (uint32_t r = 0; r < n_rows; r++) {
        for (int o = 0; o < OUTPUTS; o++) acc[r][o] = _mm512_setzero_ps();
    }
    tile(w, job->packed + row * stride, stride, n_rows, job->w->n_in, ahead, acc);
    for (uint32_t r = 0; r < n_rows; r++) put(job, output, n_outputs, row + r, sum4(acc[r]));
}

static void bf16_outputs(const cpu_dots *job, uint32_t output, uint32_t n_outputs, uint32_t row, uint32_t end_row) {
    size_t row_bytes = (size_t)job->w->n_in * 2;
    const uint8_t *w[OUTPUTS];
    for (uint32_t o = 0; o < OUTPUTS; o++) {
        w[o] = (const uint8_t *)job->w->data + (job->first_row + output + cpu_min(o, n_outputs - 1)) * row_bytes;
    }
    if (end_row - row <= FEW_ROWS && output + 2 * OUTPUTS <= job->n_out) {
        for (; row < end_row; row++) bf16_rows(job, output, n_outputs, w, row, 1, OUTPUTS * row_bytes);
        return;
    }
    for (; row + 4 <= end_row; row += 4) bf16_rows(job, output, n_outputs, w, row, 4, 0);
    for (; row < end_row; row++) bf16_rows(job, output, n_outputs, w, row, 1, 0);
}

/* acc[r][o] += scale[o] * (piece of w[o] · piece of x[r]) */
INLINE void fp8_rows(const uint16_t (*piece)[CPU_PIECE], const uint16_t *x, size_t stride, uint32_t n_rows,
                     uint32_t n_k, const float scale[OUTPUTS], __m512 (*acc)[FP8_OUTPUTS]) {
    const uint8_t *w[OUTPUTS];
    __m512 raw[4][OUTPUTS];
    for (int o = 0; o < OUTPUTS; o++) w[o] = (const uint8_t *)piece[o];
    for (uint32_t r = 0; r < n_rows; r++) {
        for (int o = 0; o < OUTPUTS; o++) raw[r][o] = _mm512_setzero_ps();
    }
    tile(w, x, stride, n_rows, n_k, 0, raw);
    for (uint32_t r = 0; r < n_rows; r++) {
#pragma GCC unroll 4
        for (int o = 0; o < OUTPUTS; o++) acc[r][o] = _mm512_fmadd_ps(_mm512_set1_ps(scale[o]), raw[r][o], acc[r][o]);
    }
}

/* Eight rows' codes k..k+n_k to bfloat16; fetches the next eight rows' codes. */
static void fp8_decode(const uint8_t *const codes[FP8_OUTPUTS], uint32_t k, uint32_t n_k, size_t ahead,
                       uint16_t (*piece)[CPU_PIECE]) {
    e4m3_table table = e4m3_table_load();
    for (int o = 0; o < FP8_OUTPUTS; o++) {
        for (uint32_t i = 0; i < n_k; i += 64) {
            __m512i decoded[2];
            e4m3_decode64(&table, e4m3_load(codes[o] + k + i, n_k - i), decoded);
            if (ahead != 0) _mm_prefetch((const char *)codes[o] + k + i + ahead, _MM_HINT_T1);
            _mm512_store_si512(piece[o] + i, decoded[0]);
            _mm512_store_si512(piece[o] + i + 32, decoded[1]);
        }
    }
}

static void fp8_outputs(const cpu_dots *job, uint32_t output, uint32_t n_outputs, uint32_t row, uint32_t n_rows) {
    const krn_matrix *w = job->w;
    _Alignas(64) uint16_t piece[FP8_OUTPUTS][CPU_PIECE];
    __m512 acc[ROW_CAP][FP8_OUTPUTS];
    const uint8_t *codes[FP8_OUTPUTS];
    const float *scales[FP8_OUTPUTS];
    memset(acc, 0, sizeof(acc[0]) * n_rows);
    for (uint32_t o = 0; o < FP8_OUTPUTS; o++) {
        size_t w_row = job->first_row + output + cpu_min(o, n_outputs - 1);
        codes[o] = (const uint8_t *)w->data + w_row * w->n_in;
        scales[o] = w->scale + w_row / w->block_rows * w->n_scale_cols;
    }
    size_t stride = cpu_round_up(w->n_in, CPU_K_STEP);
    size_t ahead = output + 2 * FP8_OUTPUTS <= job->n_out ? (size_t)FP8_OUTPUTS * w->n_in : 0;
    for (uint32_t k = 0, n_k; k < w->n_in; k += n_k) {
        n_k = cpu_piece(w, k);
        fp8_decode(codes, k, n_k, ahead, piece);
        uint32_t padded = cpu_round_up(n_k, CPU_K_STEP);
        for (uint32_t first = 0; first < n_outputs; first += OUTPUTS) {
            float scale[OUTPUTS];
            for (int o = 0; o < OUTPUTS; o++) scale[o] = scales[first + o][k / w->block_cols];
            const uint16_t *x = job->packed + row * stride + k;
            uint32_t r = 0;
            for (; r + 4 <= n_rows; r += 4)
                fp8_rows(piece + first, x + r * stride, stride, 4, padded, scale, (void *)&acc[r][first]);
            for (; r < n_rows; r++)
                fp8_rows(piece + first, x + r * stride, stride, 1, padded, scale, (void *)&acc[r][first]);
        }
    }
    for (uint32_t r = 0; r < n_rows; r++) {
        for (uint32_t first = 0; first < n_outputs; first += OUTPUTS) {
            put(job, output + first, cpu_min(OUTPUTS, n_outputs - first), row + r, sum4(&acc[r][first]));
        }
    }
}

static void dots(const cpu_dots *job, uint32_t begin, uint32_t end, const cpu_scratch *scratch) {
    (void)scratch;
    enum { X_BYTES = 256 << 10 }; /* of packed rows that stay in L2 while all outputs pass */
    bool is_bf16 = job->w->dtype == MDL_BF16;
    uint32_t block = is_bf16 ? cpu_max(X_BYTES / (2 * cpu_round_up(job->w->n_in, CPU_K_STEP)) / 4 * 4, 32) : ROW_CAP;
    for (uint32_t row = 0; row < job->rows.n_rows; row += block) {
        uint32_t end_row = cpu_min(row + block, job->rows.n_rows);
        if (is_bf16) {
            for (uint32_t o = begin; o < end; o += OUTPUTS)
                bf16_outputs(job, o, cpu_min(OUTPUTS, end - o), row, end_row);
        } else {
            for (uint32_t o = begin; o < end; o += FP8_OUTPUTS) {
                fp8_outputs(job, o, cpu_min(FP8_OUTPUTS, end - o), row, end_row - row);
            }
        }
    }
}

/* Rows r..r+n_rows, output elements c.., n_cols times 16. */
INLINE void pairs_tile(const cpu_pairs *job, uint32_t r, uint32_t n_rows, uint32_t n_cols, uint32_t c) {
    __m512 acc[4][4];
    const uint32_t *column[4];
    for (uint32_t d = 0; d < n_cols; d++) {
        column[d] = job->v + (c + d * 16) / CPU_V_PANEL * job->v_panel + (c + d * 16) % CPU_V_PANEL;
    }
    for (uint32_t i = 0; i < n_rows; i++) {
        for (uint32_t d = 0; d < n_cols; d++) acc[i][d] = _mm512_setzero_ps();
    }
    for (uint32_t j = 0; j < job->n_j; j += 2) {
        __m512i v[4];
#pragma GCC unroll 4
        for (uint32_t d = 0; d < n_cols; d++) v[d] = _mm512_load_si512(column[d] + j / 2 * job->v_stride);
#pragma GCC unroll 4
        for (uint32_t i = 0; i < n_rows; i++) {
            int32_t p;
            memcpy(&p, job->p + (r + i) * job->p_stride + j, sizeof(p));
            __m512i both = _mm512_set1_epi32(p);
#pragma GCC unroll 4
            for (uint32_t d = 0; d < n_cols; d++) acc[i][d] = dp(acc[i][d], both, v[d]);
        }
    }
    for (uint32_t i = 0; i < n_rows; i++) {
        for (uint32_t d = 0; d < n_cols; d++) {
            float *out = job->out + (r + i) * job->out_stride + c + d * 16;
            __m512 sum = acc[i][d];
            if (job->alpha != NULL) sum = _mm512_fmadd_ps(_mm512_load_ps(out), _mm512_set1_ps(job->alpha[r + i]), sum);
            _mm512_store_ps(out, sum);
        }
    }
}

INLINE void pairs_columns(const cpu_pairs *job, uint32_t n_cols, uint32_t c) {
    uint32_t r = 0;
    for (; r + 4 <= job->n_rows; r += 4) pairs_tile(job, r, 4, n_cols, c);
    for (; r < job->n_rows; r++) pairs_tile(job, r, 1, n_cols, c);
}

static void pairs(const cpu_pairs *job, const cpu_scratch *scratch) {
    (void)scratch;
    uint32_t c = 0;
    for (; c + 64 <= job->n; c += 64) pairs_columns(job, 4, c);
    for (; c < job->n; c += 16) pairs_columns(job, 1, c);
}

const cpu_isa cpu_isa_avx512 = {
    .name = "avx512-bf16", .vector = &cpu_vector_avx512, .pack = pack, .dots = dots, .pairs = pairs};
