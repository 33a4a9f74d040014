/* E4M3 to bfloat16 in AVX-512 with VBMI, exactly. Two byte permutations look up the high and the low byte of the
 * bfloat16 of a code's seven magnitude bits, the sign is put on, the bytes are interleaved: about seven instructions
 * for 64 weights. Included by the kernels of avx512-bf16 and amx-bf16. */
#ifndef BATON_KERNELS_CPU_DECODE_AVX512_H
#define BATON_KERNELS_CPU_DECODE_AVX512_H

#include <immintrin.h>

#include "kernels/cpu/cpu.h"

#define INLINE static inline __attribute__((always_inline))

typedef struct {
    __m512i high[2], low[2], sign, order;
} e4m3_table;

INLINE e4m3_table e4m3_table_load(void) {
    return (e4m3_table){
        .high = {_mm512_loadu_si512(cpu_e4m3_bytes[0]), _mm512_loadu_si512(cpu_e4m3_bytes[0] + 64)},
        .low = {_mm512_loadu_si512(cpu_e4m3_bytes[1]), _mm512_loadu_si512(cpu_e4m3_bytes[1] + 64)},
        .sign = _mm512_set1_epi8((char)0x80),
        .order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), /* so that the in-lane unpack below gives codes in order */
    };
}

INLINE void e4m3_decode64(const e4m3_table *table, __m512i codes, __m512i out[2]) {
    codes = _mm512_permutexvar_epi64(table->order, codes);
    __m512i high = _mm512_permutex2var_epi8(table->high[0], codes, table->high[1]);
    __m512i low = _mm512_permutex2var_epi8(table->low[0], codes, table->low[1]);
    high = _mm512_ternarylogic_epi64(high, codes, table->sign, 0xf8); /* high | (codes & sign) */
    out[0] = _mm512_unpacklo_epi8(low, high);
    out[1] = _mm512_unpackhi_epi8(low, high);
}

/* n <= 64 codes, zeros behind. */
INLINE __m512i e4m3_load(const uint8_t *codes, uint32_t n) {
    if (n >= 64) return _mm512_loadu_si512(codes);
    return _mm512_maskz_loadu_epi8(((uint64_t)1 << n) - 1, codes);
}

/* n elements of a bfloat16 row, at most CPU_K_STEP, zeros behind. */
INLINE __m512i bf16_load(const uint8_t *at, uint32_t n) {
    if (n >= CPU_K_STEP) return _mm512_loadu_si512(at);
    return _mm512_maskz_loadu_epi16((__mmask32)((1u << n) - 1), at);
}

/* The first CPU_K_STEP of a row that was turned by skew elements: its last `skew`, then its first. */
INLINE __m512i bf16_load_turned(const uint8_t *row, uint32_t n, uint32_t skew) {
    const uint8_t *start = row - (size_t)skew * 2;
    __mmask32 is_end = ((__mmask32)1 << skew) - 1;
    return _mm512_mask_loadu_epi16(_mm512_maskz_loadu_epi16(is_end, start + (size_t)n * 2), ~is_end, start);
}

#undef INLINE
#endif
