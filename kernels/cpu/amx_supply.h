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

typedef struct {
    supply_kind kind;
    const uint8_t *from; /* row i of the piece lies at from + i * row_bytes */
    size_t row_bytes;
    uint32_t n_rows, n_there; /* rows of the piece; those that exist, the others become zero */
    uint32_t n;               /* of a row: bytes to fetch, elements to copy, codes to decode */
    size_t ahead;             /* what lies that many bytes behind is fetched too; 0: nothing */
    uint8_t *to;              /* [half][n_steps][16][64 bytes] */
    uint32_t n_steps;
    uint32_t row, at; /* the next unit */
} supply;

INLINE uint32_t supply_unit(const supply *s) { return s->kind == SUPPLY_COPY ? CPU_K_STEP : 64; }

INLINE uint32_t supply_units(const supply *s) {
    return s->kind == SUPPLY_NOTHING ? 0 : s->n_rows * ((s->n + supply_unit(s) - 1) / supply_unit(s));
}

INLINE uint8_t *supply_place(const supply *s) {
    return s->to + ((size_t)(s->row / SIDE * s->n_steps + s->at / CPU_K_STEP) * SIDE + s->row % SIDE) * 64;
}

INLINE void supply_copy(const supply *s) {
    const uint8_t *from = s->from + s->row * s->row_bytes + (size_t)s->at * 2;
    bool is_there = s->row < s->n_there;
    _mm512_store_si512(supply_place(s), is_there ? bf16_load(from, s->n - s->at) : _mm512_setzero_si512());
    if (s->ahead != 0) _mm_prefetch((const char *)from + s->ahead, _MM_HINT_T1);
}

INLINE void supply_decode(const supply *s, const e4m3_table *table) {
    const uint8_t *from = s->from + s->row * s->row_bytes + s->at;
    uint8_t *to = supply_place(s);
    __m512i decoded[2];
    e4m3_decode64(table, s->row < s->n_there ? e4m3_load(from, s->n - s->at) : _mm512_setzero_si512(), decoded);
    _mm512_store_si512(to, decoded[0]);
    if (s->at + CPU_K_STEP < s->n) _mm512_store_si512(to + SIDE * 64, decoded[1]);
    if (s->ahead != 0) _mm_prefetch((const char *)from + s->ahead, _MM_HINT_T1);
}

/* Up to n units. */
INLINE void supply_some(supply *s, uint32_t n) {
    if (s->kind == SUPPLY_NOTHING) return;
    e4m3_table table = e4m3_table_load();
    uint32_t unit = supply_unit(s);
    for (; n > 0 && s->row < s->n_rows; n--) {
        if (s->kind == SUPPLY_DECODE)
            supply_decode(s, &table);
        else if (s->kind == SUPPLY_COPY)
            supply_copy(s);
        else
            _mm_prefetch((const char *)s->from + s->row * s->row_bytes + s->at, _MM_HINT_T1);
        s->at += unit;
        if (s->at >= s->n) {
            s->at = 0;
            s->row++;
        }
    }
}

#undef INLINE
#endif
