/* x · Wᵀ on AMX.
 *
 * A tile of 16 weight rows x 32 k is the left operand, read where it lies or from a buffer (amx_supply.h); 16 packed
 * rows x 32 k, k in pairs, are the right one; 2 x 2 tiles make a block of 32 outputs x 32 rows. Sums lie in memory
 * between pieces of k, so that a piece of weights stays in L1 while all rows pass. For bfloat16 they are tiles, loaded
 * and stored without a change; for FP8 a piece is (part of) one scale block and its tile is added times the scale. A
 * single row is a group of one column: its packed form is the plain row and the sequence of operations is the same. */
#include "kernels/cpu/amx_supply.h"

enum {
    BF16_PIECE = CPU_PACK_K,      /* k of a bfloat16 panel that stay in L1: 16 KiB */
    WIDE_OUTPUTS = 8 * CPU_PANEL, /* outputs that share a pass over many rows */
    COPY_ROWS = 128,              /* from here bfloat16 panels are copied: aligned, no two rows in one set of L1 */
    L2_ELEMS = 512 << 10,         /* packed rows up to here stay in L2 from piece to piece */
};

#define INLINE static inline __attribute__((always_inline))

/* Packed rows: blocks of CPU_PACK_ROWS rows; in a block pieces of CPU_PACK_K k; in a piece groups of 16 rows; in a
 * group pairs of k, [k / 2][row]. So what one pass over a piece reads lies together. Only the last block, and in it the
 * last group, have fewer rows. Where group `row / 16` of n_rows has its k, a multiple of 32: */
INLINE size_t packed_at(uint32_t n_rows, uint32_t n, uint32_t row, uint32_t k) {
    uint32_t block = row / CPU_PACK_ROWS * CPU_PACK_ROWS, width = cpu_round_up(n, CPU_K_STEP);
    uint32_t block_rows = cpu_min(CPU_PACK_ROWS, n_rows - block), columns = cpu_min(CPU_GROUP, n_rows - row);
    uint32_t piece = k / CPU_PACK_K * CPU_PACK_K, piece_k = cpu_min(CPU_PACK_K, width - piece);
    return (size_t)block * width + (size_t)piece * block_rows + (row - block) * piece_k + (k - piece) * columns;
}

static void pack_one(const uint16_t *row, uint32_t n, uint16_t *out) {
    memcpy(out, row, n * sizeof(*out));
    memset(out + n, 0, (cpu_round_up(n, CPU_K_STEP) - n) * sizeof(*out));
}

static void pack_group(const cpu_rows *rows, uint32_t first, uint32_t n, uint16_t *packed) {
    __mmask16 mask = (__mmask16)((1u << n) - 1);
    const uint16_t *row[SIDE];
    for (uint32_t r = 0; r < n; r++) row[r] = cpu_row(rows, first + r);
    for (uint32_t k = 0; k < rows->n; k += CPU_K_STEP) {
        __m512i v[SIDE];
        if (n == SIDE && k + CPU_K_STEP <= rows->n) {
#pragma GCC unroll 16
            for (uint32_t r = 0; r < SIDE; r++) v[r] = _mm512_loadu_si512(row[r] + k);
        } else {
            for (uint32_t r = 0; r < SIDE; r++) {
                v[r] = r < n ? bf16_load((const uint8_t *)(row[r] + k), rows->n - k) : _mm512_setzero_si512();
            }
        }
        transpose16(v);
        uint32_t *out = (uint32_t *)(packed + packed_at(rows->n_rows, rows->n, first, k));
        for (uint32_t i = 0; i < SIDE; i++) _mm512_mask_storeu_epi32(out + i * n, mask, v[i]);
    }
}

static void pack(const cpu_rows *rows, uint32_t begin, uint32_t end, uint16_t *packed) {
    if (rows->n_rows == 1) {
        pack_one(cpu_row(rows, 0), rows->n, packed);
        return;
    }
    for (uint32_t r = begin; r < end; r += CPU_GROUP) pack_group(rows, r, cpu_min(CPU_GROUP, end - r), packed);
}

/* One piece of a panel's weights, as left operands: output s * 16 + i, step k at left[s] + k * step_bytes + i * stride.
 */
typedef struct {
    const uint8_t *left[2];
    size_t step_bytes, stride;
    uint32_t n_steps;
} panel_piece;

/* What a call works on, and where it is: a panel of a range of outputs, a piece of k. Sums of (panel, group, half) lie
 * at sums[((panel * n_groups + group) * 2 + half) * TILE]. */
typedef struct {
    const cpu_dots *job;
    uint32_t row, n_rows;      /* rows, at most CPU_ROW_BLOCK; row is a multiple of CPU_PACK_ROWS */
    uint32_t n_groups, rest;   /* groups of rows; columns of the last one if it is not full, else 0 */
    uint32_t begin, end, last; /* outputs of the range; where the last range ends */
    bool is_far;               /* the packed rows are too many for L2 */
    uint32_t panel, k, n_k;
    float *sums;      /* in scratch */
    uint8_t *left[2]; /* in scratch: buffers for a piece, in turn */
    float *tiles;     /* in scratch: four tiles */
} place;

enum { LEFT_BYTES = CPU_PANEL * BF16_PIECE * 2 };
_Static_assert(WIDE_OUTPUTS *CPU_ROW_BLOCK * 4 + 2 * LEFT_BYTES + 4 * TILE * 4 <= CPU_DOTS_SCRATCH_BYTES, "scratch");

INLINE uint32_t first_of(const place *p) { return p->begin + p->panel * CPU_PANEL; }
INLINE uint32_t panels_of(const place *p) { return (p->end - p->begin + CPU_PANEL - 1) / CPU_PANEL; }

static void set_piece(place *p, uint32_t k) {
    const krn_matrix *w = p->job->w;
    p->k = k;
    p->n_k = w->dtype == MDL_F8_E4M3 ? cpu_piece(w, k) : cpu_min(BF16_PIECE, w->n_in - k);
}

/* Within a range all k of a panel, then the next panel, so that weights are read in the order in which they lie; or, if
 * the rows do not stay in L2, all panels for a piece of k. Then the next range. Returns false behind the last one. */
static bool advance(place *p) {
    bool has_panel = p->panel + 1 < panels_of(p), has_k = p->k + p->n_k < p->job->w->n_in;
    if (has_k && !(p->is_far && has_panel)) {
        if (p->is_far) p->panel = 0;
        set_piece(p, p->k + p->n_k);
    } else if (has_panel) {
        p->panel++;
        if (!p->is_far) set_piece(p, 0);
    } else {
        if (p->end == p->last) return false;
        p->begin = p->end;
        p->end = cpu_min(p->begin + WIDE_OUTPUTS, p->last);
        p->panel = 0;
        set_piece(p, 0);
    }
    return true;
}

/* Whether the piece is read where it lies. */
static bool is_direct(const place *p) {
    return p->job->w->dtype == MDL_BF16 && p->n_rows < COPY_ROWS && p->n_k % CPU_K_STEP == 0 &&
           p->end - first_of(p) >= CPU_PANEL;
}

static const uint8_t *weights_at(const place *p, uint32_t output, uint32_t k) {
    const krn_matrix *w = p->job->w;
    return (const uint8_t *)w->data + ((size_t)(p->job->first_row + output) * w->n_in + k) * cpu_elem_bytes(w->dtype);
}

/* What to bring in while piece `now` is multiplied: the next piece, and the panel behind it from memory. */
static supply supply_after(const place *now, const place *next) {
    const krn_matrix *w = now->job->w;
    size_t elem_bytes = cpu_elem_bytes(w->dtype), row_bytes = w->n_in * elem_bytes;
    const place *of = next != NULL && !is_direct(next) ? next : now;
    bool has_panel_behind = first_of(of) + 2 * CPU_PANEL <= of->job->n_out;
    supply s = {.kind = SUPPLY_NOTHING, .n_rows = CPU_PANEL, .n_there = CPU_PANEL, .row_bytes = row_bytes};
    if (has_panel_behind && of->is_far) {
        s.ahead = weights_at(of, first_of(of) + CPU_PANEL, of->k);
        s.ahead_stride = row_bytes;
    } else if (has_panel_behind) { /* in the order in which it lies, this piece's share of it */
        s.ahead = weights_at(of, first_of(of) + CPU_PANEL, 0) + of->k * CPU_PANEL * elem_bytes;
        s.ahead_stride = of->n_k * elem_bytes;
    }
    if (of != next) {
        if (!is_direct(now) || !has_panel_behind) return s;
        s.kind = SUPPLY_FETCH;
        s.n = now->n_k * 2;
        return s;
    }
    s.kind = w->dtype == MDL_BF16 ? SUPPLY_COPY : SUPPLY_DECODE;
    s.from = weights_at(next, first_of(next), next->k);
    s.n_there = cpu_min(CPU_PANEL, next->end - first_of(next));
    s.n = next->n_k;
    s.to = next->left[0];
    s.n_steps = cpu_round_up(next->n_k, CPU_K_STEP) / CPU_K_STEP;
    return s;
}

static panel_piece piece_of(const place *p) {
    uint32_t n_steps = cpu_round_up(p->n_k, CPU_K_STEP) / CPU_K_STEP;
    panel_piece piece = {.n_steps = n_steps, .step_bytes = SIDE * 64, .stride = 64};
    piece.left[0] = p->left[0];
    piece.left[1] = p->left[0] + n_steps * SIDE * 64;
    if (!is_direct(p)) return piece;
    piece.step_bytes = 64;
    piece.stride = (size_t)p->job->w->n_in * 2;
    piece.left[0] = weights_at(p, first_of(p), p->k);
    piece.left[1] = piece.left[0] + SIDE * piece.stride;
    return piece;
}

/* Bytes between the rows (outputs) of a tile of sums: a single column lies in one register. */
INLINE size_t sums_stride(uint32_t columns) { return columns == 1 ? 4 : 64; }

/* sums (+)= scale * tiles, output by output; scale [CPU_PANEL] */
INLINE void add_tiles(float *sums, const float *tiles, const float *scale, uint32_t n_left, uint32_t n_right,
                      uint32_t columns, bool is_first) {
    for (uint32_t t = 0; t < n_left * n_right; t++) {
        uint32_t half = n_left > 1 ? t % 2 : 0, tile = n_left > 1 ? t : 2 * t;
        for (uint32_t i = 0; i < (columns == 1 ? 1 : SIDE); i++) {
            __m512 factor =
                columns == 1 ? _mm512_loadu_ps(scale + half * SIDE) : _mm512_set1_ps(scale[half * SIDE + i]);
            __m512 v = _mm512_load_ps(tiles + tile * TILE + i * SIDE);
            float *at = sums + tile * TILE + i * SIDE;
            __m512 sum = is_first ? _mm512_mul_ps(v, factor) : _mm512_fmadd_ps(v, factor, _mm512_load_ps(at));
            _mm512_store_ps(at, sum);
        }
    }
}

/* One panel and piece: its weights, its scales, and what is brought in meanwhile. */
typedef struct {
    panel_piece piece;
    const float *scale; /* [CPU_PANEL]; NULL: bfloat16 */
    supply supply;
    uint32_t units_each; /* of supply, after each step of the tiles */
    e4m3_table table;
} panel_run;

INLINE void put(float *out, __mmask16 mask, __m512 sums, bool accumulate) {
    if (accumulate) sums = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), sums);
    _mm512_mask_storeu_ps(out, mask, sums);
}

/* A tile of sums, n_outputs x n_rows, to its place. */
static void tile_put(const cpu_dots *job, const float *sums, uint32_t output, uint32_t n_outputs, uint32_t row,
                     uint32_t n_rows) {
    size_t stride = sums_stride(n_rows) / sizeof(float);
    if (job->is_by_output) {
        __mmask16 mask = (__mmask16)((1u << n_rows) - 1);
        for (uint32_t o = 0; o < n_outputs; o++) {
            __m512 v = _mm512_maskz_loadu_ps(mask, sums + o * stride);
            put(job->out + (output + o) * job->out_stride + row, mask, v, job->accumulate);
        }
        return;
    }
    __mmask16 mask = (__mmask16)((1u << n_outputs) - 1);
    float *out = job->out + row * job->out_stride + output;
    if (n_rows == 1) {
        put(out, mask, _mm512_load_ps(sums), job->accumulate);
        return;
    }
    __m512i v[SIDE];
#pragma GCC unroll 16
    for (uint32_t i = 0; i < SIDE; i++) v[i] = _mm512_load_si512(sums + i * SIDE);
    transpose16(v);
    for (uint32_t r = 0; r < n_rows; r++) {
        put(out + r * job->out_stride, mask, _mm512_castsi512_ps(v[r]), job->accumulate);
    }
}

/* All sums of the range to their places: rows outside, so that a row's outputs are written side by side. */
static void range_put(const place *p) {
    for (uint32_t group = 0; group < p->n_groups; group++) {
        uint32_t n_rows = p->rest != 0 && group == p->n_groups - 1 ? p->rest : CPU_GROUP;
        for (uint32_t o = p->begin; o < p->end; o += SIDE) {
            uint32_t panel = (o - p->begin) / CPU_PANEL, half = (o - p->begin) / SIDE % 2;
            const float *sums = p->sums + ((size_t)(panel * p->n_groups + group) * 2 + half) * TILE;
            tile_put(p->job, sums, o, cpu_min(SIDE, p->end - o), p->row + group * CPU_GROUP, n_rows);
        }
    }
}

/* Groups `group`.. (n_right of them, `columns` wide); the counts are constants at every call. */
INLINE void multiply(const place *p, panel_run *run, uint32_t group, uint32_t n_left, uint32_t n_right,
                     uint32_t columns) {
    uint32_t n_in = p->job->w->n_in, n_rows = p->job->rows.n_rows, row = p->row + group * CPU_GROUP;
    const panel_piece *piece = &run->piece;
    const uint8_t *right0 = (const uint8_t *)(p->job->packed + packed_at(n_rows, n_in, row, p->k)), *right1 = right0;
    if (n_right > 1) right1 = (const uint8_t *)(p->job->packed + packed_at(n_rows, n_in, row + CPU_GROUP, p->k));
    float *sums = p->sums + (size_t)(p->panel * p->n_groups + group) * 2 * TILE;
    float *out = run->scale == NULL ? sums : p->tiles;
    float *const at[4] = {out, out + TILE, out + 2 * TILE, out + 3 * TILE};
    size_t stride = sums_stride(columns), right_stride = 4 * (size_t)columns, right_step = SIDE * right_stride;
    if (run->scale == NULL && p->k > 0)
        tiles_load(n_left, n_right, (const float *const *)at, stride);
    else
        tiles_zero(n_left, n_right);
    for (uint32_t i = 0; i < piece->n_steps; i++) {
        size_t step = i * piece->step_bytes;
        tiles_multiply(n_left, piece->left[0] + step, piece->left[1] + step, piece->stride, n_right,
                       right0 + i * right_step, right1 + i * right_step, right_stride);
        supply_some(&run->supply, &run->table, run->units_each);
    }
    tiles_store(n_left, n_right, at, stride);
    if (run->scale != NULL) add_tiles(sums, p->tiles, run->scale, n_left, n_right, columns, p->k == 0);
}

/* Many rows: fetches a panel's share of two groups' rows for the piece behind k, or for the start of the next outputs.
 * They were pushed out of L2 by the sums and the weights; without this the first panel of a piece waits for L3 at every
 * line. */
static void prefetch_rows(const place *p, uint32_t group) {
    uint32_t n_in = p->job->w->n_in, n_panels = panels_of(p), next = p->k + p->n_k < n_in ? p->k + p->n_k : 0;
    uint32_t n_lines = cpu_min(p->n_k, n_in - next) * CPU_GROUP * 2 / 64;
    for (uint32_t i = 0; i < 2; i++) {
        size_t at = packed_at(p->job->rows.n_rows, n_in, p->row + (group + i) * CPU_GROUP, next);
        const char *rows = (const char *)(p->job->packed + at);
        for (uint32_t line = p->panel * n_lines / n_panels; line < (p->panel + 1) * n_lines / n_panels; line++) {
            _mm_prefetch(rows + line * 64, _MM_HINT_T1);
        }
    }
}

/* All groups of one panel and piece. Tiles are configured for full groups, if there are any, before and after. */
static void groups_run(const place *p, panel_run *run) {
    uint32_t n_outputs = cpu_min(CPU_PANEL, p->end - first_of(p)), n_full = p->n_groups - (p->rest != 0), group = 0;
    if (n_outputs > SIDE) {
        for (; group + 2 <= n_full; group += 2) {
            if (p->is_far) prefetch_rows(p, group);
            multiply(p, run, group, 2, 2, SIDE);
        }
        if (group < n_full) multiply(p, run, group, 2, 1, SIDE);
    } else {
        for (; group < n_full; group++) multiply(p, run, group, 1, 1, SIDE);
    }
    if (p->rest == 0) return;
    if (n_full > 0) tiles_configure(SIDE, p->rest);
    if (n_outputs > SIDE)
        multiply(p, run, n_full, 2, 1, p->rest);
    else
        multiply(p, run, n_full, 1, 1, p->rest);
    if (n_full > 0) tiles_configure(SIDE, SIDE);
}

static void place_run(const place *now, const place *next) {
    const krn_matrix *w = now->job->w;
    panel_run run = {.piece = piece_of(now), .supply = supply_after(now, next), .table = e4m3_table_load()};
    float scales[CPU_PANEL] = {0};
    if (w->dtype == MDL_F8_E4M3) {
        run.scale = scales;
        for (uint32_t o = 0; o < cpu_min(CPU_PANEL, now->end - first_of(now)); o++) {
            uint32_t row = now->job->first_row + first_of(now) + o;
            scales[o] = w->scale[(size_t)(row / w->block_rows) * w->n_scale_cols + now->k / w->block_cols];
        }
    }
    uint32_t n_steps = (now->n_groups + 1) / 2 * run.piece.n_steps;
    run.units_each = (run.supply.n_rows + n_steps - 1) / n_steps;
    groups_run(now, &run);
    supply_some(&run.supply, &run.table, UINT32_MAX); /* what rounding left over */
}

static void rows_run(place *p, uint32_t begin) {
    p->begin = begin;
    p->end = cpu_min(begin + WIDE_OUTPUTS, p->last);
    p->panel = 0;
    set_piece(p, 0);
    if (!is_direct(p)) {
        supply first = supply_after(p, p);
        e4m3_table table = e4m3_table_load();
        supply_some(&first, &table, UINT32_MAX);
    }
    for (bool has_next = true; has_next;) {
        place next = *p;
        next.left[0] = p->left[1];
        next.left[1] = p->left[0];
        has_next = advance(&next);
        place_run(p, has_next ? &next : NULL);
        if (!has_next || next.begin != p->begin) range_put(p);
        *p = next;
    }
}

static void dots(const cpu_dots *job, uint32_t begin, uint32_t end, const cpu_scratch *scratch) {
    if (begin == end) return;
    for (uint32_t row = 0; row < job->rows.n_rows; row += CPU_ROW_BLOCK) {
        place p = {.job = job, .row = row, .n_rows = cpu_min(CPU_ROW_BLOCK, job->rows.n_rows - row), .last = end};
        p.n_groups = (p.n_rows + CPU_GROUP - 1) / CPU_GROUP;
        p.rest = p.n_rows % CPU_GROUP;
        p.is_far = p.n_rows * (size_t)job->w->n_in > L2_ELEMS;
        p.sums = scratch->dots;
        p.left[0] = (uint8_t *)(p.sums + WIDE_OUTPUTS * CPU_ROW_BLOCK);
        p.left[1] = p.left[0] + LEFT_BYTES;
        p.tiles = (float *)(p.left[1] + LEFT_BYTES);
        tiles_configure(SIDE, p.n_rows < CPU_GROUP ? p.rest : SIDE);
        rows_run(&p, begin);
    }
    tiles_release();
}

const cpu_isa cpu_isa_amx = {
    .name = "amx-bf16", .vector = &cpu_vector_avx512, .pack = pack, .dots = dots, .pairs = cpu_amx_pairs};
