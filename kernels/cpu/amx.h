/* AMX tiles in C: instructions, configuration, and the 16 x 16 transposition that goes with them. Included by the
 * kernels of amx-bf16 only. Tiles are named by number: tmm0..3 are sums (0: left 0 right 0, 1: left 1 right 0, 2: left
 * 0 right 1, 3: left 1 right 1), 4..5 left operands, 6..7 right operands. */
#ifndef BATON_KERNELS_CPU_AMX_H
#define BATON_KERNELS_CPU_AMX_H

#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

enum {
    SIDE = 16,          /* rows of a tile, and its 32-bit columns */
    TILE = SIDE * SIDE, /* floats of a tile */
};

#define INLINE static inline __attribute__((always_inline))

/* GCC 12's tile loads do not tell the compiler that they read memory. */
#define TILE_LOAD(tile, base, stride)                                                                                  \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(base), "r"((size_t)(stride)) : "memory")
#define TILE_STORE(tile, base, stride)                                                                                 \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(base), "r"((size_t)(stride)) : "memory")
#define TILE_ZERO(tile)           __asm__ volatile("tilezero %%tmm" #tile ::)
#define TILE_DP(acc, left, right) __asm__ volatile("tdpbf16ps %%tmm" #right ", %%tmm" #left ", %%tmm" #acc ::)

/* Left operands of `left_rows` rows, right ones of `right_columns` columns. */
static inline void tiles_configure(uint32_t left_rows, uint32_t right_columns) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config;
    memset(&config, 0, sizeof(config));
    config.palette = 1;
    for (int i = 0; i < 8; i++) {
        config.rows[i] = (uint8_t)(i < 6 ? left_rows : SIDE);
        config.row_bytes[i] = (uint16_t)(i == 4 || i == 5 ? 64 : 4 * right_columns);
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

static inline void tiles_release(void) { __asm__ volatile("tilerelease"); }

INLINE void transpose16(__m512i v[16]) {
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        v[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        v[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        v[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        v[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

/* Starts the sums of n_left x n_right tiles at zero. */
INLINE void tiles_zero(uint32_t n_left, uint32_t n_right) {
    TILE_ZERO(0);
    if (n_left > 1) TILE_ZERO(1);
    if (n_right > 1) TILE_ZERO(2);
    if (n_left > 1 && n_right > 1) TILE_ZERO(3);
}

/* One step of 32 k: loads the operands and adds their products to the sums. Loads come first: with operands in L2 no
 * order is faster on a core of one's own (65 % of the rate of products alone), and where the other hardware thread is
 * busy loads and products take turns whatever the order (45 % of the rate that products alone have then). */
INLINE void tiles_multiply(uint32_t n_left, const uint8_t *left0, const uint8_t *left1, size_t left_stride,
                           uint32_t n_right, const uint8_t *right0, const uint8_t *right1, size_t right_stride) {
    TILE_LOAD(4, left0, left_stride);
    if (n_left > 1) TILE_LOAD(5, left1, left_stride);
    TILE_LOAD(6, right0, right_stride);
    if (n_right > 1) TILE_LOAD(7, right1, right_stride);
    TILE_DP(0, 4, 6);
    if (n_left > 1) TILE_DP(1, 5, 6);
    if (n_right > 1) TILE_DP(2, 4, 7);
    if (n_left > 1 && n_right > 1) TILE_DP(3, 5, 7);
}

INLINE void tiles_load(uint32_t n_left, uint32_t n_right, const float *const at[4], size_t stride) {
    TILE_LOAD(0, at[0], stride);
    if (n_left > 1) TILE_LOAD(1, at[1], stride);
    if (n_right > 1) TILE_LOAD(2, at[2], stride);
    if (n_left > 1 && n_right > 1) TILE_LOAD(3, at[3], stride);
}

INLINE void tiles_store(uint32_t n_left, uint32_t n_right, float *const at[4], size_t stride) {
    TILE_STORE(0, at[0], stride);
    if (n_left > 1) TILE_STORE(1, at[1], stride);
    if (n_right > 1) TILE_STORE(2, at[2], stride);
    if (n_left > 1 && n_right > 1) TILE_STORE(3, at[3], stride);
}

/* pairs_amx.c */
void cpu_amx_pairs(const cpu_pairs *job, const cpu_scratch *scratch);

#undef INLINE
#endif
