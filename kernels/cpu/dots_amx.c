/* x · Wᵀ on AMX.
 *
 * A tile of 16 weight rows x 32 k is the left operand, read where it lies or from a buffer (amx_supply.h; with many
 * rows the first ones fill it); 16 packed rows x 32 k, k in pairs, are the right one; 2 x 2 tiles make a block of 32
 * outputs x 32 rows, summed over all of k and put in its place. Sums pause in memory between pieces of k: for FP8 a
 * piece is (part of) one scale block, whose tile is added times the scale; bfloat16 rows are cut only when a panel of
 * them would fill the caches, and their tiles are stored and loaded without a change. A single row is a group of one
 * column: its packed form is the plain row and the sequence of operations is the same. */
#include "kernels/cpu/amx_supply.h"

enum {
    BF16_PIECE = 2048, /* k of a bfloat16 panel between two touches of the sums: 128 KiB */
    KEEP_ROWS = 128,   /* from here the tiles of a bfloat16 panel are kept: it repays the stores */
};

#define INLINE static inline __attribute__((always_inline))

/* Packed rows: groups of 16 rows, in a group pairs of k, [k / 2][row]; only the last group has fewer rows. Where the
 * group that starts with `row` of n_rows has its k, a multiple of 32: */
INLINE size_t packed_at(uint32_t n_rows, uint32_t n, uint32_t row, uint32_t k) {
    return (size_t)row * cpu_round_up(n, CPU_K_STEP) + (size_t)k * cpu_min(CPU_GROUP, n_rows - row);
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

/* What a call works on, and where it is: a panel of outputs, a piece of k. */
typedef struct {
    const cpu_dots *job;
    uint32_t row, n_rows;    /* rows, at most CPU_ROW_BLOCK; row is a multiple of CPU_GROUP */
    uint32_t n_groups, rest; /* groups of rows; columns of the last one if it is not full, else 0 */
    uint32_t first, end;     /* the panel's first output; where outputs end */
    uint32_t k, n_k;
    float *sums;      /* in scratch: [group][half] tiles, of sums that pause */
    float *tiles;     /* in scratch: four tiles */
    uint8_t *left[2]; /* in scratch: buffers for a piece, in turn */
} place;

enum { LEFT_BYTES = CPU_PANEL * BF16_PIECE * 2, SUMS = CPU_ROW_BLOCK * CPU_PANEL };
_Static_assert(SUMS * 4 + 4 * TILE * 4 + 2 * LEFT_BYTES <= CPU_DOTS_SCRATCH_BYTES, "scratch");

static void set_piece(place *p, uint32_t k) {
    const krn_matrix *w = p->job->w;
    p->k = k;
    p->n_k = w->dtype == MDL_F8_E4M3 ? cpu_piece(w, k) : cpu_min(BF16_PIECE, w->n_in - k);
}

/* All k of a panel, then the next panel, so that weights are read in the order in which they lie. Returns false behind
 * the last one. */
static bool advance(place *p) {
    if (p->k + p->n_k < p->job->w->n_in) {
        set_piece(p, p->k + p->n_k);
        return true;
    }
    p->first += CPU_PANEL;
    set_piece(p, 0);
    return p->first < p->end;
}

/* Whether the piece is read where it lies. */
static bool is_direct(const place *p) {
    return p->job->w->dtype == MDL_BF16 && p->n_k % CPU_K_STEP == 0 && p->end - p->first >= CPU_PANEL;
}

static const uint8_t *weights_at(const place *p, uint32_t output, uint32_t k) {
    const krn_matrix *w = p->job->w;
    return (const uint8_t *)w->data + ((size_t)(p->job->first_row + output) * w->n_in + k) * cpu_elem_bytes(w->dtype);
}

/* What to bring in while piece `now` is multiplied: the next piece, and from memory the panel behind it, in the order
 * in which it lies: this piece's share of it. */
static supply supply_after(const place *now, const place *next) {
    const krn_matrix *w = now->job->w;
    bool is_fetched = next == NULL || is_direct(next);
    const place *of = is_fetched ? now : next;
    uint32_t elem_bytes = (uint32_t)cpu_elem_bytes(w->dtype);
    supply s = {.n = of->n_k, .elem_bytes = elem_bytes, .row_bytes = (size_t)w->n_in * elem_bytes};
    if (of->first + 2 * CPU_PANEL <= of->job->n_out) {
        s.ahead = weights_at(of, of->first + CPU_PANEL, 0) + (size_t)of->k * CPU_PANEL * elem_bytes;
        s.ahead_stride = (size_t)of->n_k * elem_bytes;
    }
    if (is_fetched) {
        s.kind = s.ahead != NULL ? SUPPLY_FETCH : SUPPLY_NOTHING;
        return s;
    }
    s.kind = w->dtype == MDL_BF16 ? SUPPLY_COPY : SUPPLY_DECODE;
    s.from = weights_at(next, next->first, next->k);
    s.n_there = cpu_min(CPU_PANEL, next->end - next->first);
    s.to = next->left[0];
    s.n_steps = cpu_round_up(next->n_k, CPU_K_STEP) / CPU_K_STEP;
    return s;
}

static panel_piece piece_of(const place *p) {
    uint32_t n_steps = cpu_round_up(p->n_k, CPU_K_STEP) / CPU_K_STEP;
    panel_piece piece = {.n_steps = n_steps, .step_bytes = SIDE * 64, .stride = 64};
    piece.left[0] = p->left[0];
    piece.left[1] = p->left[0] + (size_t)n_steps * SIDE * 64;
    if (!is_direct(p)) return piece;
    piece.step_bytes = 64;
    piece.stride = (size_t)p->job->w->n_in * 2;
    piece.left[0] = weights_at(p, p->first, p->k);
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

INLINE void put(const cpu_dots *job, float *out, __mmask16 mask, __m512 sums, uint32_t row) {
    if (job->weights != NULL) sums = _mm512_mul_ps(sums, _mm512_set1_ps(job->weights[row].weight));
    if (job->accumulate) sums = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), sums);
    if (job->is_streamed && mask == 0xffff && (uintptr_t)out % 64 == 0)
        _mm512_stream_ps(out, sums);
    else
        _mm512_mask_storeu_ps(out, mask, sums);
}

/* A tile of sums, n_outputs x n_rows, to its place. */
INLINE void tile_put(const cpu_dots *job, const float *sums, uint32_t output, uint32_t n_outputs, uint32_t row,
                     uint32_t n_rows) {
    size_t stride = sums_stride(n_rows) / sizeof(float);
    if (job->is_by_output) {
        __mmask16 mask = (__mmask16)((1u << n_rows) - 1);
        for (uint32_t o = 0; o < n_outputs; o++) {
            float *out = job->out + (output + o) * job->out_stride + row;
            __m512 v = _mm512_maskz_loadu_ps(mask, sums + o * stride);
            if (job->accumulate) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), v);
            _mm512_mask_storeu_ps(out, mask, v);
        }
        return;
    }
    __mmask16 mask = (__mmask16)((1u << n_outputs) - 1);
    float *out = job->out + row * job->out_stride + output;
    if (n_rows == 1) {
        put(job, out, mask, _mm512_load_ps(sums), row);
        return;
    }
    __m512i v[SIDE];
#pragma GCC unroll 16
    for (uint32_t i = 0; i < SIDE; i++) v[i] = _mm512_load_si512(sums + i * SIDE);
    transpose16(v);
    for (uint32_t r = 0; r < n_rows; r++) put(job, out + r * job->out_stride, mask, _mm512_castsi512_ps(v[r]), row + r);
}

/* The finished sums of n_right groups. */
static void block_put(const place *p, const float *sums, uint32_t group, uint32_t n_right, uint32_t columns) {
    for (uint32_t g = 0; g < n_right; g++) {
        for (uint32_t o = p->first, half = 0; half < 2 && o < p->end; o += SIDE, half++) {
            tile_put(p->job, sums + (2 * g + half) * TILE, o, cpu_min(SIDE, p->end - o),
                     p->row + (group + g) * CPU_GROUP, columns);
        }
    }
}

/* Fetches what the block's sums will be added to. */
INLINE void fetch_outputs(const place *p, uint32_t group, uint32_t n_rows) {
    const char *out = (const char *)(p->job->out + (p->row + group * CPU_GROUP) * p->job->out_stride + p->first);
    for (uint32_t r = 0; r < n_rows; r++, out += p->job->out_stride * sizeof(float)) {
        _mm_prefetch(out, _MM_HINT_T0);
        _mm_prefetch(out + 64, _MM_HINT_T0);
    }
}

/* Groups `group`.. (n_right of them, `columns` wide); the counts are constants at every call. Where `keep` is not NULL
 * the left operands are stored in it, step by step: two tiles per step, the second ones behind all the first. */
INLINE void multiply(const place *p, panel_run *run, uint32_t group, uint32_t n_left, uint32_t n_right,
                     uint32_t columns, uint8_t *keep) {
    uint32_t n_in = p->job->w->n_in, n_rows = p->job->rows.n_rows, row = p->row + group * CPU_GROUP;
    bool is_first = p->k == 0, is_last = p->k + p->n_k == n_in, is_scaled = run->scale != NULL;
    const panel_piece *piece = &run->piece;
    const uint8_t *right0 = (const uint8_t *)(p->job->packed + packed_at(n_rows, n_in, row, p->k)), *right1 = right0;
    if (n_right > 1) right1 = (const uint8_t *)(p->job->packed + packed_at(n_rows, n_in, row + CPU_GROUP, p->k));
    float *sums = is_first && is_last && !is_scaled ? p->tiles : p->sums + (size_t)group * 2 * TILE;
    float *out = is_scaled ? p->tiles : sums;
    float *const at[4] = {out, out + TILE, out + 2 * TILE, out + 3 * TILE};
    size_t stride = sums_stride(columns), right_stride = 4 * (size_t)columns, right_step = SIDE * right_stride;
    if (is_last && p->job->accumulate && columns > 1) fetch_outputs(p, group, n_right * columns);
    if (is_first || is_scaled)
        tiles_zero(n_left, n_right);
    else
        tiles_load(n_left, n_right, (const float *const *)at, stride);
    for (uint32_t i = 0; i < piece->n_steps; i++) {
        size_t step = i * piece->step_bytes;
        tiles_multiply(n_left, piece->left[0] + step, piece->left[1] + step, piece->stride, n_right,
                       right0 + i * right_step, right1 + i * right_step, right_stride);
        if (keep != NULL) {
            TILE_STORE(4, keep + i * SIDE * 64, 64);
            TILE_STORE(5, keep + (i + piece->n_steps) * SIDE * 64, 64);
        }
        supply_some(&run->supply, &run->table, run->units_each);
    }
    tiles_store(n_left, n_right, at, stride);
    if (is_scaled) add_tiles(sums, p->tiles, run->scale, n_left, n_right, columns, is_first);
    if (is_last) block_put(p, sums, group, n_right, columns);
}

/* The first groups read the panel where it lies and keep its tiles for the others, aligned and side by side. Returns
 * how many groups that were. */
static uint32_t groups_keep(const place *p, panel_run *run) {
    panel_piece *piece = &run->piece;
    multiply(p, run, 0, 2, 2, SIDE, p->left[0]);
    piece->left[0] = p->left[0];
    piece->left[1] = p->left[0] + (size_t)piece->n_steps * SIDE * 64;
    piece->step_bytes = SIDE * 64;
    piece->stride = 64;
    return 2;
}

/* All groups of one panel and piece. Tiles are configured for full groups, if there are any, before and after. */
static void groups_run(const place *p, panel_run *run) {
    uint32_t n_outputs = cpu_min(CPU_PANEL, p->end - p->first), n_full = p->n_groups - (p->rest != 0), group = 0;
    if (n_outputs > SIDE) {
        if (p->n_rows >= KEEP_ROWS && is_direct(p)) group = groups_keep(p, run);
        for (; group + 2 <= n_full; group += 2) multiply(p, run, group, 2, 2, SIDE, NULL);
        if (group < n_full) multiply(p, run, group, 2, 1, SIDE, NULL);
    } else {
        for (; group < n_full; group++) multiply(p, run, group, 1, 1, SIDE, NULL);
    }
    if (p->rest == 0) return;
    if (n_full > 0) tiles_configure(SIDE, p->rest);
    if (n_outputs > SIDE)
        multiply(p, run, n_full, 2, 1, p->rest, NULL);
    else
        multiply(p, run, n_full, 1, 1, p->rest, NULL);
    if (n_full > 0) tiles_configure(SIDE, SIDE);
}

static void place_run(const place *now, const place *next) {
    const krn_matrix *w = now->job->w;
    panel_run run = {.piece = piece_of(now), .supply = supply_after(now, next), .table = e4m3_table_load()};
    float scales[CPU_PANEL] = {0};
    if (w->dtype == MDL_F8_E4M3) {
        run.scale = scales;
        for (uint32_t o = 0; o < cpu_min(CPU_PANEL, now->end - now->first); o++) {
            uint32_t row = now->job->first_row + now->first + o;
            scales[o] = w->scale[(size_t)(row / w->block_rows) * w->n_scale_cols + now->k / w->block_cols];
        }
    }
    uint32_t n_steps = (now->n_groups + 1) / 2 * run.piece.n_steps;
    run.units_each = (supply_units(&run.supply) + n_steps - 1) / n_steps;
    groups_run(now, &run);
    supply_some(&run.supply, &run.table, UINT32_MAX); /* what rounding left over */
}

static void rows_run(place *p) {
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
        *p = next;
    }
}

static void dots(const cpu_dots *job, uint32_t begin, uint32_t end, const cpu_scratch *scratch) {
    if (begin == end) return;
    BT_ASSERT(!job->is_by_output || job->weights == NULL);
    for (uint32_t row = 0; row < job->rows.n_rows; row += CPU_ROW_BLOCK) {
        place p = {.job = job, .row = row, .n_rows = cpu_min(CPU_ROW_BLOCK, job->rows.n_rows - row)};
        p.n_groups = (p.n_rows + CPU_GROUP - 1) / CPU_GROUP;
        p.rest = p.n_rows % CPU_GROUP;
        p.first = begin;
        p.end = end;
        p.sums = scratch->dots;
        p.tiles = p.sums + SUMS;
        p.left[0] = (uint8_t *)(p.tiles + 4 * TILE);
        p.left[1] = p.left[0] + LEFT_BYTES;
        tiles_configure(SIDE, p.n_rows < CPU_GROUP ? p.rest : SIDE);
        rows_run(&p);
    }
    tiles_release();
    if (job->is_streamed) _mm_sfence();
}

const cpu_isa cpu_isa_amx = {
    .name = "amx-bf16", .vector = &cpu_vector_avx512, .pack = pack, .dots = dots, .pairs = cpu_amx_pairs};
