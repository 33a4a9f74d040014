/* Where the weights of `dots` come from on AMX. A panel is 32 outputs; a piece is what is multiplied of it between two
 * touches of the sums. While one piece is multiplied the next one is brought in, a few units after each step of the
 * tiles, so that the loads, permutations and stores of this file run in the shadow of the multiplications: fetch
 * bfloat16 that is read where it lies: the panel behind, into L2 copy    bfloat16 for many rows, or ragged at an edge:
 * into a buffer, aligned, zeros where nothing is decode  FP8: into a buffer, as bfloat16 */
#ifndef BATON_KERNELS_CPU_AMX_SUPPLY_H
#define BATON_KERNELS_CPU_AMX_SUPPLY_H

#include "kernels/cpu/amx.h"
#include "kernels/cpu/decode_avx512.h"

#define INLINE static inline __attribute__((always_inline))

typedef enum { SUPPLY_NOTHING, SUPPLY_FETCH, SUPPLY_COPY, SUPPLY_DECODE } supply_kind;

/* A unit is one row of the piece, or of memory. */
typedef struct {
    supply_kind kind;
    const uint8_t *from; /* row 0 of what is copied or decoded */
    size_t row_bytes;
    uint32_t n_rows, n_there; /* rows of the piece; those that exist, the others become zero */
    uint32_t n;               /* of a row: bytes to fetch, elements to copy, codes to decode; at most a piece */
    const uint8_t *ahead;     /* fetched too, a row's bytes with each row, ahead_stride bytes apart; NULL: nothing */
    size_t ahead_stride;
    uint8_t *to; /* [half][n_steps][16][64 bytes] */
    uint32_t n_steps;
    uint32_t row; /* the next one */
} supply;

INLINE uint8_t *supply_place(const supply *s) {
    return s->to + ((size_t)(s->row / SIDE * s->n_steps) * SIDE + s->row % SIDE) * 64;
}

INLINE void supply_ahead(const supply *s, uint32_t n_bytes) {
    if (s->ahead == NULL) return;
    const char *ahead = (const char *)s->ahead + s->row * s->ahead_stride;
    for (uint32_t i = 0; i < n_bytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
}

INLINE void supply_zero_row(const supply *s) {
    uint8_t *to = supply_place(s);
    for (uint32_t i = 0; i < s->n_steps; i++, to += SIDE * 64) _mm512_store_si512(to, _mm512_setzero_si512());
}

INLINE void supply_copy_row(const supply *s, const uint8_t *from) {
    uint8_t *to = supply_place(s);
    uint32_t i = 0;
    for (; i + CPU_K_STEP <= s->n; i += CPU_K_STEP, to += SIDE * 64) {
        _mm512_store_si512(to, _mm512_loadu_si512(from + (size_t)i * 2));
    }
    if (i < s->n) _mm512_store_si512(to, bf16_load(from + (size_t)i * 2, s->n - i));
    supply_ahead(s, s->n * 2);
}

INLINE void supply_decode_row(const supply *s, const uint8_t *from, const e4m3_table *table) {
    uint8_t *to = supply_place(s);
    __m512i v[4];
    if (s->n == CPU_PIECE) { /* all but edges */
        e4m3_decode64(table, _mm512_loadu_si512(from), v);
        e4m3_decode64(table, _mm512_loadu_si512(from + 64), v + 2);
        for (uint32_t i = 0; i < 4; i++) _mm512_store_si512(to + i * SIDE * 64, v[i]);
    } else {
        for (uint32_t i = 0; i < s->n; i += 64, to += 2 * SIDE * 64) {
            e4m3_decode64(table, e4m3_load(from + i, s->n - i), v);
            _mm512_store_si512(to, v[0]);
            if (i + CPU_K_STEP < s->n) _mm512_store_si512(to + SIDE * 64, v[1]);
        }
    }
    supply_ahead(s, s->n);
}

/* Up to n units. */
INLINE void supply_some(supply *s, const e4m3_table *table, uint32_t n) {
    if (s->kind == SUPPLY_NOTHING) return;
    for (; n > 0 && s->row < s->n_rows; n--, s->row++) {
        const uint8_t *from = s->from + s->row * s->row_bytes;
        if (s->row >= s->n_there)
            supply_zero_row(s);
        else if (s->kind == SUPPLY_DECODE)
            supply_decode_row(s, from, table);
        else if (s->kind == SUPPLY_COPY)
            supply_copy_row(s, from);
        else
            supply_ahead(s, s->n);
    }
}

#undef INLINE
#endif
