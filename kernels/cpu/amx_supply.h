/* Where the weights of `dots` come from on AMX. A panel is 32 outputs; a piece is what is multiplied of it between two
 * touches of the sums. While one piece is multiplied the next one is brought in, a few units after each step of the
 * tiles, so that the loads, permutations and stores of this file run in the shadow of the multiplications:
 *
 *   fetch   bfloat16 that is read where it lies: the panel behind, into L2
 *   copy    bfloat16 that is ragged at an edge: into a buffer, zeros where nothing is
 *   decode  FP8: into a buffer, as bfloat16 */
#ifndef BATON_KERNELS_CPU_AMX_SUPPLY_H
#define BATON_KERNELS_CPU_AMX_SUPPLY_H

#include "kernels/cpu/amx.h"
#include "kernels/cpu/decode_avx512.h"

#define INLINE static inline __attribute__((always_inline))

typedef enum { SUPPLY_NOTHING, SUPPLY_FETCH, SUPPLY_COPY, SUPPLY_DECODE } supply_kind;

enum { UNIT = 128, FETCH_UNIT = 512 }; /* elements of one row: what is brought in at a time */

typedef struct {
    supply_kind kind;
    const uint8_t *from; /* row 0 of what is copied or decoded */
    size_t row_bytes;
    uint32_t elem_bytes;
    uint32_t n_there;     /* of the panel's rows: those that exist, the others become zero */
    uint32_t n;           /* elements of a row in this piece */
    const uint8_t *ahead; /* fetched too, as many bytes, its rows ahead_stride apart; NULL: nothing */
    size_t ahead_stride;
    uint8_t *to; /* [half][n_steps][16][64 bytes] */
    uint32_t n_steps;
    uint32_t row, at; /* the next unit */
} supply;

/* Where element `at` of the row lies in the buffer; the next 32 elements are SIDE * 64 bytes behind. */
INLINE uint8_t *supply_place(const supply *s) {
    return s->to + (((size_t)s->row / SIDE * s->n_steps + s->at / CPU_K_STEP) * SIDE + s->row % SIDE) * 64;
}

INLINE void supply_zero(const supply *s, uint32_t n) {
    uint8_t *to = supply_place(s);
    for (uint32_t i = 0; i < n; i += CPU_K_STEP, to += SIDE * 64) _mm512_store_si512(to, _mm512_setzero_si512());
}

INLINE void supply_copy(const supply *s, const uint8_t *from, uint32_t n) {
    uint8_t *to = supply_place(s);
    if (n == UNIT) { /* all but edges */
        for (uint32_t i = 0; i < 4; i++) _mm512_store_si512(to + i * SIDE * 64, _mm512_loadu_si512(from + i * 64));
        return;
    }
    for (uint32_t i = 0; i < n; i += CPU_K_STEP, to += SIDE * 64) {
        _mm512_store_si512(to, bf16_load(from + (size_t)i * 2, n - i));
    }
}

INLINE void supply_decode(const supply *s, const uint8_t *from, uint32_t n, const e4m3_table *table) {
    uint8_t *to = supply_place(s);
    __m512i v[4];
    if (n == UNIT) {
        e4m3_decode64(table, _mm512_loadu_si512(from), v);
        e4m3_decode64(table, _mm512_loadu_si512(from + 64), v + 2);
        for (uint32_t i = 0; i < 4; i++) _mm512_store_si512(to + i * SIDE * 64, v[i]);
        return;
    }
    for (uint32_t i = 0; i < n; i += 64, to += 2 * SIDE * 64) {
        e4m3_decode64(table, e4m3_load(from + i, n - i), v);
        _mm512_store_si512(to, v[0]);
        if (i + CPU_K_STEP < n) _mm512_store_si512(to + SIDE * 64, v[1]);
    }
}

INLINE void supply_ahead(const supply *s, uint32_t n) {
    if (s->ahead == NULL) return;
    const char *ahead = (const char *)s->ahead + s->row * s->ahead_stride + (size_t)s->at * s->elem_bytes;
    for (uint32_t i = 0; i < n * s->elem_bytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
}

INLINE uint32_t supply_unit(const supply *s) { return s->kind == SUPPLY_FETCH ? FETCH_UNIT : UNIT; }

/* Of the whole piece. */
INLINE uint32_t supply_units(const supply *s) { return (s->n + supply_unit(s) - 1) / supply_unit(s) * CPU_PANEL; }

/* Up to n_units. */
INLINE void supply_some(supply *s, const e4m3_table *table, uint32_t n_units) {
    if (s->kind == SUPPLY_NOTHING) return;
    for (; n_units > 0 && s->row < CPU_PANEL; n_units--) {
        uint32_t n = cpu_min(supply_unit(s), s->n - s->at);
        const uint8_t *from = s->from + s->row * s->row_bytes + (size_t)s->at * s->elem_bytes;
        if (s->kind != SUPPLY_FETCH && s->row >= s->n_there)
            supply_zero(s, n);
        else if (s->kind == SUPPLY_DECODE)
            supply_decode(s, from, n, table);
        else if (s->kind == SUPPLY_COPY)
            supply_copy(s, from, n);
        supply_ahead(s, n);
        s->at += n;
        if (s->at >= s->n) s->at = 0, s->row++;
    }
}

#undef INLINE
#endif
