/* Where the weights of `dots` come from on AMX. A panel is 32 outputs; a piece is what is multiplied of it between two
 * touches of the sums. While one piece is multiplied, after each step of the tiles a little is done for what follows,
 * so that it runs in the shadow of the multiplications:
 *
 *   fetch   a share of the next panel from memory into L2; evenly, for fetches in bursts hold up the tiles' loads
 *   copy    the next piece into a buffer, if it is bfloat16 that cannot be read where it lies; zeros where nothing is
 *   decode  the next piece into a buffer, if it is FP8: as bfloat16 */
#ifndef BATON_KERNELS_CPU_AMX_SUPPLY_H
#define BATON_KERNELS_CPU_AMX_SUPPLY_H

#include "kernels/cpu/amx.h"
#include "kernels/cpu/decode_avx512.h"

#define INLINE static inline __attribute__((always_inline))

typedef enum { SUPPLY_NOTHING, SUPPLY_COPY, SUPPLY_DECODE } supply_kind;

enum { UNIT = 128, FETCH_BYTES = 256 }; /* at a time: elements of one row that are copied or decoded; what is fetched */

typedef struct {
    const uint8_t *fetch, *fetch_end; /* what is still to be fetched */
    supply_kind kind;
    const uint8_t *from; /* row 0 of what is copied or decoded, from its first element in this piece */
    size_t row_bytes;
    uint32_t elem_bytes;
    uint32_t n_there;     /* of the panel's rows: those that exist, the others become zero */
    uint32_t n;           /* elements of a row in this piece */
    uint32_t skew, n_row; /* of the row, if the piece is its first one and copied; else 0 */
    uint8_t *to;          /* [half][n_steps][16][64 bytes] */
    uint32_t n_steps;
    uint32_t row, at;                  /* the next unit */
    uint32_t fetches_each, units_each; /* after one step of the tiles */
} supply;

/* Spreads the work over n_steps of the tiles. */
static void supply_spread(supply *s, uint32_t n_steps) {
    uint32_t n_fetches = (uint32_t)(s->fetch_end - s->fetch + FETCH_BYTES - 1) / FETCH_BYTES;
    uint32_t n_units = s->kind == SUPPLY_NOTHING ? 0 : (s->n + UNIT - 1) / UNIT * CPU_PANEL;
    s->fetches_each = (n_fetches + n_steps - 1) / n_steps;
    s->units_each = (n_units + n_steps - 1) / n_steps;
}

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
    uint32_t i = 0;
    if (s->at == 0 && s->skew > 0) {
        _mm512_store_si512(to, bf16_load_turned(from + (size_t)s->skew * 2, s->n_row, s->skew));
        i = CPU_K_STEP;
    }
    for (; i < n; i += CPU_K_STEP) {
        _mm512_store_si512(to + (size_t)i / CPU_K_STEP * SIDE * 64, bf16_load(from + (size_t)i * 2, n - i));
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

INLINE void supply_unit(supply *s, const e4m3_table *table) {
    uint32_t n = cpu_min(UNIT, s->n - s->at);
    const uint8_t *from = s->from + s->row * s->row_bytes + (size_t)s->at * s->elem_bytes;
    if (s->row >= s->n_there)
        supply_zero(s, n);
    else if (s->kind == SUPPLY_DECODE)
        supply_decode(s, from, n, table);
    else
        supply_copy(s, from, n);
    s->at += n;
    if (s->at >= s->n) s->at = 0, s->row++;
}

/* What is due after one step of the tiles. */
INLINE void supply_some(supply *s, const e4m3_table *table) {
    for (uint32_t i = 0; i < s->fetches_each && s->fetch < s->fetch_end; i++, s->fetch += FETCH_BYTES) {
        for (uint32_t at = 0; at < FETCH_BYTES; at += 64) _mm_prefetch((const char *)s->fetch + at, _MM_HINT_T1);
    }
    for (uint32_t i = 0; i < s->units_each && s->row < CPU_PANEL; i++) supply_unit(s, table);
}

/* What is left. */
INLINE void supply_rest(supply *s, const e4m3_table *table) {
    while (s->kind != SUPPLY_NOTHING && s->row < CPU_PANEL) supply_unit(s, table);
}

#undef INLINE
#endif
