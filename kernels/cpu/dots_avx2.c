/* Matrix kernels for AVX2, FMA and F16C: bfloat16 operands become float32 by a shift, products are float32 FMA.
 *
 * A register holds 16 bfloat16 as 8 pairs; the even ones are bits << 16, the odd ones bits & 0xffff0000, so no shuffles
 * are needed. One accumulator per (output, row), eight lanes, even then odd products of each 16; lanes are added in a
 * fixed tree. FP8 goes through a small bfloat16 buffer, one scale block at a time, which serves up to ROW_TILE_CAP
 * rows. */
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

enum { OUTPUTS = 4, STEP = 16, ROW_CAP = 32 };

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

INLINE __m256 even_of(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
INLINE __m256 odd_of(__m256i pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int32_t)0xffff0000)));
}

/* acc[o][r] += w[o] · x[r] over n_k elements, a multiple of STEP; n_rows is a constant at every call. */
INLINE void tile(const uint8_t *const w[OUTPUTS], const uint16_t *x, size_t x_stride, uint32_t n_rows, uint32_t n_k,
                 __m256 acc[OUTPUTS][2]) {
    for (uint32_t k = 0; k < n_k; k += STEP) {
        __m256 x_even[2], x_odd[2];
        for (uint32_t r = 0; r < n_rows; r++) {
            __m256i v = _mm256_loadu_si256((const __m256i *)(x + r * x_stride + k));
            x_even[r] = even_of(v);
            x_odd[r] = odd_of(v);
        }
#pragma GCC unroll 4
        for (int o = 0; o < OUTPUTS; o++) {
            __m256i v = _mm256_loadu_si256((const __m256i *)(w[o] + (size_t)k * 2));
            __m256 even = even_of(v), odd = odd_of(v);
            for (uint32_t r = 0; r < n_rows; r++) {
                acc[o][r] = _mm256_fmadd_ps(even, x_even[r], acc[o][r]);
                acc[o][r] = _mm256_fmadd_ps(odd, x_odd[r], acc[o][r]);
            }
        }
    }
}

/* Lane sums of four accumulators, each by the same tree. */
INLINE __m128 sum4(__m256 a, __m256 b, __m256 c, __m256 d) {
    __m128 a4 = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 b4 = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    __m128 c4 = _mm_add_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1));
    __m128 d4 = _mm_add_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1));
    return _mm_hadd_ps(_mm_hadd_ps(a4, b4), _mm_hadd_ps(c4, d4));
}

INLINE void put(const cpu_dots *job, uint32_t output, uint32_t n_outputs, uint32_t row, __m128 sums) {
    if (job->weights != NULL) sums = _mm_mul_ps(sums, _mm_set1_ps(job->weights[row].weight));
    float y[OUTPUTS];
    _mm_storeu_ps(y, sums);
    for (uint32_t o = 0; o < n_outputs; o++) {
        size_t at = job->is_by_output ? (output + o) * job->out_stride + row : row * job->out_stride + output + o;
        job->out[at] = job->accumulate ? job->out[at] + y[o] : y[o];
    }
}

/* Four outputs of a bfloat16 matrix; `tail` holds the last, incomplete CPU_K_STEP of their rows. */
INLINE void bf16_rows(const cpu_dots *job, uint32_t output, uint32_t n_outputs, const uint8_t *const w[OUTPUTS],
                      const uint8_t *const tail[OUTPUTS], uint32_t row, uint32_t n_rows) {
    uint32_t n_in = job->w->n_in, whole = n_in / CPU_K_STEP * CPU_K_STEP;
    size_t stride = cpu_round_up(n_in, CPU_K_STEP);
    const uint16_t *x = job->packed + row * stride;
    __m256 acc[OUTPUTS][2];
    for (int o = 0; o < OUTPUTS; o++) acc[o][0] = acc[o][1] = _mm256_setzero_ps();
    tile(w, x, stride, n_rows, whole, acc);
    if (whole < n_in) tile(tail, x + whole, stride, n_rows, CPU_K_STEP, acc);
    for (uint32_t r = 0; r < n_rows; r++)
        put(job, output, n_outputs, row + r, sum4(acc[0][r], acc[1][r], acc[2][r], acc[3][r]));
}

static void bf16_outputs(const cpu_dots *job, uint32_t output, uint32_t n_outputs) {
    uint32_t n_in = job->w->n_in, whole = n_in / CPU_K_STEP * CPU_K_STEP;
    const uint8_t *w[OUTPUTS], *tail[OUTPUTS];
    uint16_t tails[OUTPUTS][CPU_K_STEP];
    memset(tails, 0, sizeof(tails));
    for (uint32_t o = 0; o < OUTPUTS; o++) {
        size_t row = job->first_row + output + cpu_min(o, n_outputs - 1);
        w[o] = (const uint8_t *)job->w->data + row * n_in * 2;
        memcpy(tails[o], w[o] + (size_t)whole * 2, (n_in - whole) * 2);
        tail[o] = (const uint8_t *)tails[o];
    }
    uint32_t row = 0;
    for (; row + 2 <= job->rows.n_rows; row += 2) bf16_rows(job, output, n_outputs, w, tail, row, 2);
    if (row < job->rows.n_rows) bf16_rows(job, output, n_outputs, w, tail, row, 1);
}

/* 16 E4M3 to bfloat16, exactly: its bits shifted are a float16 that is 2^8 too small, subnormals included. */
INLINE __m256i decode16(__m128i codes) {
    __m256i wide = _mm256_cvtepi8_epi16(codes);
    __m256i half = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16((int16_t)0xbf80));
    __m256 factor = _mm256_set1_ps(256.0f);
    __m256 low = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(half)), factor);
    __m256 high = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(half, 1)), factor);
    __m256i packed = _mm256_packus_epi32(_mm256_srli_epi32(_mm256_castps_si256(low), 16),
                                         _mm256_srli_epi32(_mm256_castps_si256(high), 16));
    __m256i is_nan = _mm256_cmpeq_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x7f)), _mm256_set1_epi16(0x7f));
    return _mm256_or_si256(_mm256_permute4x64_epi64(packed, 0xd8), _mm256_and_si256(is_nan, _mm256_set1_epi16(0x7fc0)));
}

static void decode(const uint8_t *codes, uint32_t n, uint16_t *out) {
    uint32_t k = 0;
    for (; k + STEP <= n; k += STEP) {
        _mm256_storeu_si256((__m256i *)(out + k), decode16(_mm_loadu_si128((const __m128i *)(codes + k))));
    }
    for (; k < cpu_round_up(n, CPU_K_STEP); k += STEP) {
        uint8_t part[STEP] = {0};
        if (k < n) memcpy(part, codes + k, n - k);
        _mm256_storeu_si256((__m256i *)(out + k), decode16(_mm_loadu_si128((const __m128i *)part)));
    }
}

/* acc[r][o] += scale[o] * (piece of w[o] · piece of x[r]) */
INLINE void fp8_rows(const uint8_t *const piece[OUTPUTS], const uint16_t *x, size_t stride, uint32_t n_rows,
                     uint32_t n_k, const float scale[OUTPUTS], __m256 acc[][OUTPUTS]) {
    __m256 raw[OUTPUTS][2];
    for (int o = 0; o < OUTPUTS; o++) raw[o][0] = raw[o][1] = _mm256_setzero_ps();
    tile(piece, x, stride, n_rows, n_k, raw);
    for (uint32_t r = 0; r < n_rows; r++) {
        for (int o = 0; o < OUTPUTS; o++) acc[r][o] = _mm256_fmadd_ps(_mm256_set1_ps(scale[o]), raw[o][r], acc[r][o]);
    }
}

static void fp8_outputs(const cpu_dots *job, uint32_t output, uint32_t n_outputs, uint32_t row, uint32_t n_rows) {
    const krn_matrix *w = job->w;
    uint16_t decoded[OUTPUTS][CPU_PIECE];
    __m256 acc[ROW_CAP][OUTPUTS];
    const uint8_t *piece[OUTPUTS], *codes[OUTPUTS];
    const float *scales[OUTPUTS];
    memset(acc, 0, sizeof(acc[0]) * n_rows);
    for (uint32_t o = 0; o < OUTPUTS; o++) {
        size_t w_row = job->first_row + output + cpu_min(o, n_outputs - 1);
        codes[o] = (const uint8_t *)w->data + w_row * w->n_in;
        scales[o] = w->scale + w_row / w->block_rows * w->n_scale_cols;
        piece[o] = (const uint8_t *)decoded[o];
    }
    size_t stride = cpu_round_up(w->n_in, CPU_K_STEP);
    for (uint32_t k = 0, n_k; k < w->n_in; k += n_k) {
        n_k = cpu_piece(w, k);
        float scale[OUTPUTS];
        for (int o = 0; o < OUTPUTS; o++) {
            decode(codes[o] + k, n_k, decoded[o]);
            scale[o] = scales[o][k / w->block_cols];
        }
        const uint16_t *x = job->packed + row * stride + k;
        uint32_t padded = cpu_round_up(n_k, CPU_K_STEP), r = 0;
        for (; r + 2 <= n_rows; r += 2) fp8_rows(piece, x + r * stride, stride, 2, padded, scale, acc + r);
        if (r < n_rows) fp8_rows(piece, x + r * stride, stride, 1, padded, scale, acc + r);
    }
    for (uint32_t r = 0; r < n_rows; r++)
        put(job, output, n_outputs, row + r, sum4(acc[r][0], acc[r][1], acc[r][2], acc[r][3]));
}

static void dots(const cpu_dots *job, uint32_t begin, uint32_t end, const cpu_scratch *scratch) {
    (void)scratch;
    for (uint32_t o = begin; o < end; o += OUTPUTS) {
        uint32_t n_outputs = cpu_min(OUTPUTS, end - o);
        if (job->w->dtype == MDL_BF16) {
            bf16_outputs(job, o, n_outputs);
            continue;
        }
        for (uint32_t row = 0; row < job->rows.n_rows; row += ROW_CAP) {
            fp8_outputs(job, o, n_outputs, row, cpu_min(ROW_CAP, job->rows.n_rows - row));
        }
    }
}

/* Rows r..r+n_rows, output elements c..c+8. */
INLINE void pairs_tile(const cpu_pairs *job, uint32_t r, uint32_t n_rows, uint32_t c) {
    __m256 acc[4];
    const uint32_t *column = job->v + c / CPU_V_PANEL * job->v_panel + c % CPU_V_PANEL;
    for (uint32_t i = 0; i < n_rows; i++) acc[i] = _mm256_setzero_ps();
    for (uint32_t j = 0; j < job->n_j; j += 2) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(column + j / 2 * job->v_stride));
        __m256 even = even_of(v), odd = odd_of(v);
        for (uint32_t i = 0; i < n_rows; i++) {
            int32_t p;
            memcpy(&p, job->p + (r + i) * job->p_stride + j, sizeof(p));
            __m256i both = _mm256_set1_epi32(p);
            acc[i] = _mm256_fmadd_ps(even_of(both), even, acc[i]);
            acc[i] = _mm256_fmadd_ps(odd_of(both), odd, acc[i]);
        }
    }
    for (uint32_t i = 0; i < n_rows; i++) {
        float *out = job->out + (r + i) * job->out_stride + c;
        __m256 sum = acc[i];
        if (job->alpha != NULL) sum = _mm256_fmadd_ps(_mm256_loadu_ps(out), _mm256_set1_ps(job->alpha[r + i]), sum);
        _mm256_storeu_ps(out, sum);
    }
}

static void pairs(const cpu_pairs *job, const cpu_scratch *scratch) {
    (void)scratch;
    uint32_t r = 0;
    for (; r + 4 <= job->n_rows; r += 4) {
        for (uint32_t c = 0; c < job->n; c += 8) pairs_tile(job, r, 4, c);
    }
    for (; r < job->n_rows; r++) {
        for (uint32_t c = 0; c < job->n; c += 8) pairs_tile(job, r, 1, c);
    }
}

const cpu_isa cpu_isa_avx2 = {.name = "avx2", .vector = &cpu_vector_avx2, .pack = pack, .dots = dots, .pairs = pairs};
