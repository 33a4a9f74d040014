/* Element-wise work and float32 dot products, written once with GCC's vector types and compiled once per register
 * width: vector_avx2.c and vector_avx512.c define LANES and SUFFIX and include this body. Rows end in a partial vector
 * that is padded with zeros, so every element takes the same instructions wherever it lies. Where the two widths
 * have different instructions for one thing, both stand under #if LANES. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/dtype.h"

typedef float f32v __attribute__((vector_size(LANES * 4)));
typedef float f32u __attribute__((vector_size(LANES * 4), aligned(1), may_alias));
typedef int32_t i32v __attribute__((vector_size(LANES * 4)));
typedef uint32_t u32v __attribute__((vector_size(LANES * 4)));
typedef uint32_t u32u __attribute__((vector_size(LANES * 4), aligned(1), may_alias));
typedef uint16_t u16v __attribute__((vector_size(LANES * 2)));
typedef uint16_t u16u __attribute__((vector_size(LANES * 2), aligned(1), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE f32v splat(float value) { return value - (f32v){0}; }
INLINE f32v load(const float *at) { return *(const f32u *)at; }
INLINE void store(float *at, f32v v) { *(f32u *)at = v; }
INLINE f32v from_bits(u32v bits) { return (f32v)bits; }
INLINE f32v load_bf16(const uint16_t *at) { return from_bits(__builtin_convertvector(*(const u16u *)at, u32v) << 16); }
INLINE i32v lane_numbers(void) {
    i32v lane;
    for (int32_t i = 0; i < LANES; i++) lane[i] = i;
    return lane;
}
INLINE f32v choose(i32v mask, f32v yes, f32v no) { return (f32v)((mask & (i32v)yes) | (~mask & (i32v)no)); }

INLINE u32v bf16_bits(f32v v) {
    u32v bits = (u32v)v, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, nan = bits >> 16 | 0x40;
    u32v is_nan = (u32v)(v != v);
    return (is_nan & nan) | (~is_nan & rounded);
}
INLINE void store_bf16(uint16_t *at, f32v v) { *(u16u *)at = __builtin_convertvector(bf16_bits(v), u16v); }

/* n < LANES elements, zeros behind. */
INLINE f32v load_part(const float *at, size_t n) {
    float lanes[LANES] = {0};
    memcpy(lanes, at, n * sizeof(float));
    return load(lanes);
}
INLINE f32v load_bf16_part(const uint16_t *at, size_t n) {
    uint16_t lanes[LANES] = {0};
    memcpy(lanes, at, n * sizeof(uint16_t));
    return load_bf16(lanes);
}
INLINE void store_part(float *at, f32v v, size_t n) {
    float lanes[LANES];
    store(lanes, v);
    memcpy(at, lanes, n * sizeof(float));
}
INLINE void store_bf16_part(uint16_t *at, f32v v, size_t n) {
    uint16_t lanes[LANES];
    store_bf16(lanes, v);
    memcpy(at, lanes, n * sizeof(uint16_t));
}

#if LANES == 16
INLINE f32v max_v(f32v a, f32v b) { return _mm512_max_ps(a, b); } /* b, if one is a NaN */
INLINE f32v min_v(f32v a, f32v b) { return _mm512_min_ps(a, b); }
INLINE f32v fraction(f32v x) { return _mm512_reduce_ps(x, _MM_FROUND_FLOOR); }
INLINE f32v times_power(f32v x, f32v n) { return _mm512_scalef_ps(x, n); }
/* Even in the low halves. */
INLINE u32v pairs_of(f32v even, f32v odd) {
    static const uint16_t order[2 * LANES] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                              8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
    return (u32v)_mm512_permutexvar_epi16(_mm512_loadu_si512(order), halves);
}
/* Rounds 2 * LANES weights to p, and adds what they became to the sums. */
INLINE f32v store_weights(uint16_t *p, f32v a, f32v b, f32v sums) {
    __m512bh weights = _mm512_cvtne2ps_pbh(b, a), ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    _mm512_storeu_si512(p, (__m512i)weights);
    return _mm512_dpbf16_ps(sums, weights, ones);
}
#else
INLINE f32v max_v(f32v a, f32v b) { return _mm256_max_ps(a, b); }
INLINE f32v min_v(f32v a, f32v b) { return _mm256_min_ps(a, b); }
INLINE f32v fraction(f32v x) { return x - _mm256_floor_ps(x); }
INLINE f32v times_power(f32v x, f32v n) {
    u32v exponent = (u32v)_mm256_cvttps_epi32(_mm256_floor_ps(n)) + 127;
    return x * from_bits(exponent << 23);
}
INLINE u32v pairs_of(f32v even, f32v odd) { return bf16_bits(even) | bf16_bits(odd) << 16; }
INLINE f32v store_weights(uint16_t *p, f32v a, f32v b, f32v sums) {
    u32v a_bits = bf16_bits(a), b_bits = bf16_bits(b);
    *(u16u *)p = __builtin_convertvector(a_bits, u16v);
    *(u16u *)(p + LANES) = __builtin_convertvector(b_bits, u16v);
    return sums + from_bits(a_bits << 16) + from_bits(b_bits << 16);
}
#endif

/* Neighbouring halves, down to one: a fixed tree. */
INLINE float sum_lanes(f32v v) {
    for (int32_t half = LANES / 2; half > 0; half /= 2) v += __builtin_shuffle(v, lane_numbers() ^ half);
    return v[0];
}
INLINE float max_lanes(f32v v) {
    for (int32_t half = LANES / 2; half > 0; half /= 2) v = max_v(v, __builtin_shuffle(v, lane_numbers() ^ half));
    return v[0];
}

/* 2^x, to 3e-6: 2^floor(x) times a polynomial for the fraction, which is least off on [0, 1] and exact at 0. x is at
 * most 127; below -126, where results would not be normal (and slow), it counts as -126; a NaN stays one. */
INLINE f32v exp2_v(f32v x) {
    x = max_v(splat(-126), x);
    f32v f = fraction(x), p = splat(0.0134266838f);
    p = p * f + splat(0.0522424728f);
    p = p * f + splat(0.241280198f);
    p = p * f + splat(0.693044841f);
    p = p * f + splat(1.0f);
    return times_power(p, x);
}

static void rmsnorm(const float *x, uint32_t n, const float *gain, float eps, uint16_t *out_bf16, float *out_float) {
    f32v sum[2] = {splat(0), splat(0)};
    uint32_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        f32v a = load(x + i), b = load(x + i + LANES);
        sum[0] += a * a;
        sum[1] += b * b;
    }
    for (; i < n; i += LANES) {
        f32v a = n - i >= LANES ? load(x + i) : load_part(x + i, n - i);
        sum[0] += a * a;
    }
    float inverse = 1.0f / sqrtf(sum_lanes(sum[0] + sum[1]) / (float)n + eps);
    for (i = 0; i < n; i += LANES) {
        if (n - i >= LANES) {
            f32v y = load(x + i) * splat(inverse) * load(gain + i);
            if (out_float != NULL) store(out_float + i, y);
            if (out_bf16 != NULL) store_bf16(out_bf16 + i, y);
        } else {
            f32v y = load_part(x + i, n - i) * splat(inverse) * load_part(gain + i, n - i);
            if (out_float != NULL) store_part(out_float + i, y, n - i);
            if (out_bf16 != NULL) store_bf16_part(out_bf16 + i, y, n - i);
        }
    }
}

INLINE f32v silu_mul_v(f32v gate, f32v up) {
    f32v power = min_v(splat(127), gate * splat(-(float)M_LOG2E));
    return gate / (splat(1.0f) + exp2_v(power)) * up;
}

static void silu_mul(const float *gate, const float *up, size_t n, uint16_t *out) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) store_bf16(out + i, silu_mul_v(load(gate + i), load(up + i)));
    if (i < n) store_bf16_part(out + i, silu_mul_v(load_part(gate + i, n - i), load_part(up + i, n - i)), n - i);
}

static void to_bf16(const float *x, size_t n, float factor, uint16_t *out) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) store_bf16(out + i, load(x + i) * splat(factor));
    if (i < n) store_bf16_part(out + i, load_part(x + i, n - i) * splat(factor), n - i);
}

static void scale(float *x, size_t n, float factor) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) store(x + i, load(x + i) * splat(factor));
    if (i < n) store_part(x + i, load_part(x + i, n - i) * splat(factor), n - i);
}

static void add_scaled(float *y, const float *x, size_t n, float factor) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) store(y + i, load(y + i) + load(x + i) * splat(factor));
    if (i < n) store_part(y + i, load_part(y + i, n - i) + load_part(x + i, n - i) * splat(factor), n - i);
}

static void add_sum(float *y, const float *const *terms, uint32_t n_terms, size_t n) {
    for (size_t i = 0; i < n; i += LANES) {
        size_t part = n - i;
        f32v sum = splat(0);
        if (part >= LANES) {
            for (uint32_t t = 0; t < n_terms; t++) sum += load(terms[t] + i);
            store(y + i, load(y + i) + sum);
        } else {
            for (uint32_t t = 0; t < n_terms; t++) sum += load_part(terms[t] + i, part);
            store_part(y + i, load_part(y + i, part) + sum, part);
        }
    }
}

/* Pairs of elements by their angles: (x0, x1) * (c, s) as complex numbers. */
INLINE f32v rotate_v(f32v x, f32v cos_sin) {
    i32v lane = lane_numbers(), even_sign = ((lane & 1) - 1) & INT32_MIN;
    f32v cosine = __builtin_shuffle(cos_sin, lane & ~1), sine = __builtin_shuffle(cos_sin, lane | 1);
    return x * cosine + __builtin_shuffle(x, lane ^ 1) * (f32v)((i32v)sine ^ even_sign);
}

static void rotate(const float *x, const float *cos_sin, size_t n, uint16_t *out) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) store_bf16(out + i, rotate_v(load(x + i), load(cos_sin + i)));
    if (i < n) store_bf16_part(out + i, rotate_v(load_part(x + i, n - i), load_part(cos_sin + i, n - i)), n - i);
}

static void interleave(const float *even, const float *odd, size_t n, uint32_t *out, size_t panel) {
    for (size_t c = 0; c < n; c += CPU_V_PANEL, out += panel) {
        size_t i = c, end = n - c < CPU_V_PANEL ? n : c + CPU_V_PANEL;
        for (; i + LANES <= end; i += LANES) *(u32u *)(out + i - c) = pairs_of(load(even + i), load(odd + i));
        for (; i < end; i++) out[i - c] = krn_bf16_from_float(even[i]) | (uint32_t)krn_bf16_from_float(odd[i]) << 16;
    }
}

static void interleave_bf16(const uint16_t *even, const uint16_t *odd, size_t n, uint32_t *out) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        u32v low = __builtin_convertvector(*(const u16u *)(even + i), u32v);
        u32v high = __builtin_convertvector(*(const u16u *)(odd + i), u32v);
        *(u32u *)(out + i) = low | high << 16;
    }
    for (; i < n; i++) out[i] = even[i] | (uint32_t)odd[i] << 16;
}

INLINE f32v visible(const float *scores, uint32_t i, uint32_t n_valid) {
    return choose(lane_numbers() + (int32_t)i < (int32_t)n_valid, load(scores + i), splat(-INFINITY));
}

/* Weights are rounded to bfloat16 before they are summed, so that they add up to what multiplies V. What is not visible
 * adds exact zeros: a row's sum does not depend on n. */
static float softmax(const float *scores, uint32_t n_valid, uint32_t n, float score_scale, cpu_softmax *state,
                     uint16_t *p) {
    enum { STEP = 2 * LANES };
    if (n_valid == 0) {
        memset(p, 0, n * sizeof(*p));
        return 1.0f;
    }
    uint32_t whole = n_valid / STEP * STEP, i;
    f32v largest[2] = {splat(-INFINITY), splat(-INFINITY)};
    for (i = 0; i < whole; i += STEP) {
        largest[0] = max_v(load(scores + i), largest[0]);
        largest[1] = max_v(load(scores + i + LANES), largest[1]);
    }
    if (i < n_valid) {
        largest[0] = max_v(visible(scores, i, n_valid), largest[0]);
        largest[1] = max_v(visible(scores, i + LANES, n_valid), largest[1]);
    }
    float old_max = state->max, new_max = max_lanes(max_v(largest[0], largest[1])) * score_scale;
    if (old_max > new_max) new_max = old_max;

    f32v factor = splat(score_scale), max = splat(new_max), sum = splat(0);
    for (i = 0; i < whole; i += STEP) {
        f32v a = exp2_v(load(scores + i) * factor - max), b = exp2_v(load(scores + i + LANES) * factor - max);
        sum = store_weights(p + i, a, b, sum);
    }
    if (i < n_valid) {
        f32v a = exp2_v(load(scores + i) * factor - max), b = exp2_v(load(scores + i + LANES) * factor - max);
        i32v lane = lane_numbers() + (int32_t)i;
        a = choose(lane < (int32_t)n_valid, a, splat(0));
        b = choose(lane + LANES < (int32_t)n_valid, b, splat(0));
        sum = store_weights(p + i, a, b, sum);
        i += STEP;
    }
    if (i < n) memset(p + i, 0, (n - i) * sizeof(*p));
    float alpha = 0;
    if (old_max > -INFINITY) alpha = exp2_v(splat(old_max - new_max))[0];
    state->max = new_max;
    state->sum = state->sum * alpha + sum_lanes(sum);
    return alpha;
}

/* Row `row` of W as float32 in out[n_in], zeros up to the next vector. */
static void decode_row(const krn_matrix *w, uint32_t row, float *out) {
    uint32_t n = w->n_in, i = 0;
    const uint8_t *at = (const uint8_t *)w->data + (size_t)row * n * cpu_elem_bytes(w->dtype);
    if (w->dtype == MDL_F16) {
        for (; i + 8 <= n; i += 8) {
            _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(at + i * 2))));
        }
    }
    if (w->dtype == MDL_BF16) {
        for (; i + LANES <= n; i += LANES) store(out + i, load_bf16((const uint16_t *)(const void *)(at + i * 2)));
    }
    krn_decode(at, w->dtype, i, n - i, out + i);
    for (uint32_t pad = n; pad % LANES != 0; pad++) out[pad] = 0;
    if (w->dtype != MDL_F8_E4M3) return;
    const float *scales = w->scale + (size_t)(row / w->block_rows) * w->n_scale_cols;
    for (i = 0; i < n; i += w->block_cols) scale(out + i, cpu_min(w->block_cols, n - i), scales[i / w->block_cols]);
}

/* Float32 dot products: panels of outputs meet groups of rows in registers. Each product is two sums, of the vectors at
 * even and at odd places, that are added at the end. */
enum { WIDE_ROWS = LANES == 16 ? 3 : 1 }; /* times CPU_WIDE_PANEL times two sums: fit 32 or 16 registers */

typedef struct {
    const float *w; /* [CPU_WIDE_PANEL][w_stride] */
    size_t w_stride;
    const float *x_float[WIDE_ROWS]; /* or */
    const uint16_t *x_bf16[WIDE_ROWS];
} wide_operands;

/* sum += w * x of the `part` elements from k: the next vector, or what is left. */
INLINE void wide_step(const wide_operands *in, uint32_t n_rows, bool is_bf16, size_t k, size_t part,
                      f32v sum[WIDE_ROWS][CPU_WIDE_PANEL]) {
    for (uint32_t r = 0; r < n_rows; r++) {
        f32v x;
        if (part >= LANES)
            x = is_bf16 ? load_bf16(in->x_bf16[r] + k) : load(in->x_float[r] + k);
        else
            x = is_bf16 ? load_bf16_part(in->x_bf16[r] + k, part) : load_part(in->x_float[r] + k, part);
        for (int o = 0; o < CPU_WIDE_PANEL; o++) sum[r][o] += load(in->w + o * in->w_stride + k) * x;
    }
}

INLINE void wide_dots(const wide_operands *in, uint32_t n_rows, bool is_bf16, size_t n,
                      float y[WIDE_ROWS][CPU_WIDE_PANEL]) {
    f32v even[WIDE_ROWS][CPU_WIDE_PANEL] = {0}, odd[WIDE_ROWS][CPU_WIDE_PANEL] = {0};
    size_t k = 0;
    for (; k + 2 * LANES <= n; k += 2 * LANES) {
        wide_step(in, n_rows, is_bf16, k, LANES, even);
        wide_step(in, n_rows, is_bf16, k + LANES, LANES, odd);
    }
    if (k < n) wide_step(in, n_rows, is_bf16, k, n - k, even);
    if (k + LANES < n) wide_step(in, n_rows, is_bf16, k + LANES, n - k - LANES, odd);
    for (uint32_t r = 0; r < n_rows; r++) {
        for (int o = 0; o < CPU_WIDE_PANEL; o++) y[r][o] = sum_lanes(even[r][o] + odd[r][o]);
    }
}

/* n_rows (1 or WIDE_ROWS) rows from `row`, outputs begin..end (at most CPU_WIDE_PANEL). */
INLINE void wide_tile(const cpu_dots *job, const float *x_float, wide_operands *in, uint32_t row, uint32_t n_rows,
                      uint32_t begin, uint32_t end) {
    uint32_t n = job->w->n_in;
    float y[WIDE_ROWS][CPU_WIDE_PANEL];
    if (x_float != NULL) {
        for (uint32_t r = 0; r < n_rows; r++) in->x_float[r] = x_float + (size_t)(row + r) * n;
        wide_dots(in, n_rows, false, n, y);
    } else {
        for (uint32_t r = 0; r < n_rows; r++) in->x_bf16[r] = cpu_row(&job->rows, row + r);
        wide_dots(in, n_rows, true, n, y);
    }
    for (uint32_t r = row; r < row + n_rows; r++) {
        for (uint32_t o = begin; o < end; o++) {
            float *out = job->out + (job->is_by_output ? o * job->out_stride + r : r * job->out_stride + o);
            float sum = y[r - row][o - begin];
            if (job->weights != NULL) sum *= job->weights[r].weight;
            *out = job->accumulate ? *out + sum : sum;
        }
    }
}

/* Rows are cut into blocks that stay in L2 while all of W passes, W into panels that are decoded once per block. */
static void dots_wide(const cpu_dots *job, const float *x_float, uint32_t begin, uint32_t end,
                      const cpu_scratch *scratch) {
    enum { BLOCK_ELEMS = 256 << 10 };
    uint32_t n = job->w->n_in, n_rows = job->rows.n_rows;
    uint32_t rows_each = cpu_round_up(BLOCK_ELEMS / n + 1, WIDE_ROWS);
    wide_operands in = {.w = scratch->row, .w_stride = cpu_round_up(n, LANES)};
    for (uint32_t first = 0; first < n_rows; first += rows_each) {
        uint32_t last = cpu_min(first + rows_each, n_rows);
        for (uint32_t panel = begin; panel < end; panel += CPU_WIDE_PANEL) {
            uint32_t panel_end = cpu_min(panel + CPU_WIDE_PANEL, end), row = first;
            for (uint32_t o = panel; o < panel_end; o++) {
                decode_row(job->w, job->first_row + o, scratch->row + (o - panel) * in.w_stride);
            }
            for (; row + WIDE_ROWS <= last; row += WIDE_ROWS) {
                wide_tile(job, x_float, &in, row, WIDE_ROWS, panel, panel_end);
            }
            for (; row < last; row++) wide_tile(job, x_float, &in, row, 1, panel, panel_end);
        }
    }
}

#define JOIN_(a, b) a##b
#define JOIN(a, b)  JOIN_(a, b)
const cpu_vector JOIN(cpu_vector_, SUFFIX) = {
    .dots_wide = dots_wide,
    .rmsnorm = rmsnorm,
    .silu_mul = silu_mul,
    .to_bf16 = to_bf16,
    .scale = scale,
    .add_scaled = add_scaled,
    .add_sum = add_sum,
    .rotate = rotate,
    .interleave = interleave,
    .interleave_bf16 = interleave_bf16,
    .softmax = softmax,
};
