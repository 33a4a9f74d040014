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

/* The next piece comes in units: up to UNIT elements of a row, then the same elements of the next row. */
typedef struct {
    const uint8_t *fetch, *fetch_end; /* what is still to be fetched */
    supply_kind kind;
    const uint8_t *from; /* the next unit */
    size_t row_bytes;
    uint32_t elem_bytes;
    uint32_t n, at, n_unit; /* elements of a row in this piece; where units are and how many elements they have */
    uint32_t row, n_there;  /* of the panel: the next unit's; rows that exist, the others become zero */
    uint32_t skew, n_row;   /* of the row, if the piece is its first one and copied; else 0 */
    uint8_t *to, *buffer;   /* of the next unit; [half][steps of k][16][64 bytes] */
    size_t half_bytes;
    uint32_t fetches_each, units_each; /* after one step of the tiles */
} supply;

/* Spreads the work over n_steps of the tiles. */
static void supply_spread(supply *s, uint32_t n_steps) {
    uint32_t n_fetches = (uint32_t)(s->fetch_end - s->fetch + FETCH_BYTES - 1) / FETCH_BYTES;
    uint32_t n_units = s->kind == SUPPLY_NOTHING ? 0 : (s->n + UNIT - 1) / UNIT * CPU_PANEL;
    s->fetches_each = (n_fetches + n_steps - 1) / n_steps;
    s->units_each = (n_units + n_steps - 1) / n_steps;
}

INLINE void supply_zero(const supply *s) {
    for (uint32_t i = 0; i < s->n_unit; i += CPU_K_STEP)
        _mm512_store_si512(s->to + (size_t)i / CPU_K_STEP * SIDE * 64, _mm512_setzero_si512());
}

INLINE void supply_copy(const supply *s) {
    uint32_t i = 0;
    if (s->at == 0 && s->skew > 0) {
        _mm512_store_si512(s->to, bf16_load_turned(s->from + (size_t)s->skew * 2, s->n_row, s->skew));
        i = CPU_K_STEP;
    }
    for (; i < s->n_unit; i += CPU_K_STEP) {
        _mm512_store_si512(s->to + (size_t)i / CPU_K_STEP * SIDE * 64,
                           bf16_load(s->from + (size_t)i * 2, s->n_unit - i));
    }
}

INLINE void supply_decode(const supply *s, const e4m3_table *table) {
    __m512i v[4];
    if (s->n_unit == UNIT) {
        e4m3_decode64(table, _mm512_loadu_si512(s->from), v);
        e4m3_decode64(table, _mm512_loadu_si512(s->from + 64), v + 2);
        for (uint32_t i = 0; i < 4; i++) _mm512_store_si512(s->to + i * SIDE * 64, v[i]);
        return;
    }
    uint8_t *to = s->to;
    for (uint32_t i = 0; i < s->n_unit; i += 64, to += 2 * SIDE * 64) {
        e4m3_decode64(table, e4m3_load(s->from + i, s->n_unit - i), v);
        _mm512_store_si512(to, v[0]);
        if (i + CPU_K_STEP < s->n_unit) _mm512_store_si512(to + SIDE * 64, v[1]);
    }
}

/* From the last row to the first one's next elements. */
static void supply_next_elements(supply *s) {
    s->at += s->n_unit;
    if (s->at >= s->n) return;
    s->from += (size_t)s->n_unit * s->elem_bytes - CPU_PANEL * s->row_bytes;
    s->to = s->buffer + (size_t)s->at / CPU_K_STEP * SIDE * 64;
    s->n_unit = cpu_min(UNIT, s->n - s->at);
    s->row = 0;
}

INLINE void supply_unit(supply *s, const e4m3_table *table) {
    if (s->row >= s->n_there)
        supply_zero(s);
    else if (s->kind == SUPPLY_DECODE)
        supply_decode(s, table);
    else
        supply_copy(s);
    s->from += s->row_bytes;
    s->to += 64;
    if (++s->row == SIDE) s->to += s->half_bytes - SIDE * 64;
    if (s->row == CPU_PANEL) supply_next_elements(s);
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
