/* x · Wᵀ on AMX.
 *
 * A tile of 16 weight rows x 32 k is the left operand, read where it lies or from a buffer (amx_supply.h); 16 packed
 * rows x 32 k, k in pairs, are the right one; 2 x 2 tiles make a block of 32 outputs x 32 rows, summed over all of k
 * and put in its place. Sums pause in memory between pieces of k: for FP8 a piece is (part of) one scale block, whose
 * tile is added times the scale; bfloat16 rows are cut only when a panel of them would fill the caches, and their tiles
 * are stored and loaded without a change. A single row is a group of one column: its packed form is the plain row and
 * the sequence of operations is the same.
 *
 * Tensors in a checkpoint lie at any multiple of their element, so a row of weights starts in the middle of a cache
 * line, and a tile at multiples of 32 k would read two lines per row, half as fast. Steps therefore start where lines
 * do: k counts from the line that a row starts in. Before the row's start that line holds a neighbour's weights, as
 * many (the skew) as the row has in its last line; so the row's last weights are put there, in a copy of this one step,
 * and packed rows are turned by the skew as well.
 *
 * Gated results (cpu_gated): each panel of the gate comes before the same panel of W, and its sums wait in scratch.
 * What becomes of both is by output, so pairs of outputs are pairs of k of the packed rows: nothing is transposed. */
#include "kernels/cpu/amx_supply.h"

enum { BF16_PIECE = 2048 }; /* k of a bfloat16 panel between two touches of the sums: 128 KiB */

#define INLINE static inline __attribute__((always_inline))

/* Elements from the start of w's rows back to the start of a cache line; 0 if its rows do not all start alike. */
static uint32_t skew(const krn_matrix *w) {
    uintptr_t at = (uintptr_t)w->data;
    return w->dtype == MDL_BF16 && w->n_in % CPU_K_STEP == 0 && at % 2 == 0 ? (uint32_t)(at % 64 / 2) : 0;
}

/* Packed rows: groups of 16 rows, in a group pairs of k, [k / 2][row]; only the last group has fewer rows. Where the
 * group that starts with `row` has its k, an even one that counts the skew: */
INLINE size_t packed_at(const cpu_rows *rows, uint32_t row, uint32_t k) {
    return (size_t)row * cpu_round_up(rows->n, CPU_K_STEP) + (size_t)k * cpu_min(CPU_GROUP, rows->n_rows - row);
}

static void pack_one(const cpu_rows *rows, uint16_t *out) {
    const uint16_t *row = cpu_row(rows, 0);
    uint32_t n_start = rows->n - rows->skew, padded = cpu_round_up(rows->n, CPU_K_STEP);
    memcpy(out, row + n_start, rows->skew * sizeof(*out));
    memcpy(out + rows->skew, row, n_start * sizeof(*out));
    memset(out + rows->n, 0, (padded - rows->n) * sizeof(*out));
}

static void pack_group(const cpu_rows *rows, uint32_t first, uint32_t n, uint16_t *packed) {
    __mmask16 mask = (__mmask16)((1u << n) - 1);
    const uint8_t *row[SIDE];
    for (uint32_t r = 0; r < n; r++) row[r] = (const uint8_t *)cpu_row(rows, first + r);
    for (uint32_t k = 0; k < rows->n; k += CPU_K_STEP) {
        ptrdiff_t at = ((ptrdiff_t)k - rows->skew) * 2;
        __m512i v[SIDE];
        if (n == SIDE && at >= 0 && k + CPU_K_STEP <= rows->n) {
#pragma GCC unroll 16
            for (uint32_t r = 0; r < SIDE; r++) v[r] = _mm512_loadu_si512(row[r] + at);
        } else {
            for (uint32_t r = 0; r < n; r++) {
                v[r] = at < 0 ? bf16_load_turned(row[r], rows->n, rows->skew) : bf16_load(row[r] + at, rows->n - k);
            }
            for (uint32_t r = n; r < SIDE; r++) v[r] = _mm512_setzero_si512();
        }
        transpose16(v);
        uint32_t *out = (uint32_t *)(packed + packed_at(rows, first, k));
        for (uint32_t i = 0; i < SIDE; i++) _mm512_mask_storeu_epi32(out + i * n, mask, v[i]);
    }
}

static void pack(const cpu_rows *rows, uint32_t begin, uint32_t end, uint16_t *packed) {
    if (rows->n_rows == 1) {
        pack_one(rows, packed);
        return;
    }
    for (uint32_t r = begin; r < end; r += CPU_GROUP) pack_group(rows, r, cpu_min(CPU_GROUP, end - r), packed);
}

/* One piece of a panel's weights, as left operands: output s * 16 + i, step k at left[s] + k * step_bytes + i * stride;
 * but the first step at `turned` [CPU_PANEL][64 bytes], unless that is NULL. */
typedef struct {
    const uint8_t *left[2], *turned;
    size_t step_bytes, stride;
    uint32_t n_steps;
} panel_piece;

/* What a call works on, and where it is: a panel of outputs, a piece of k. */
typedef struct {
    const cpu_dots *job;
    const krn_matrix *w;     /* the job's, or its gate */
    uint32_t row, n_rows;    /* rows, at most CPU_ROW_BLOCK; row is a multiple of CPU_GROUP */
    uint32_t n_groups, rest; /* groups of rows; columns of the last one if it is not full, else 0 */
    uint32_t first, end;     /* the panel's first output; where outputs end */
    uint32_t k, n_k;         /* k counts the rows' skew */
    float *sums;             /* in scratch: [group][half] tiles, of sums that pause */
    float *gate_sums;        /* in scratch: the same, of the gate's panel */
    float *tiles;            /* in scratch: four tiles */
    uint8_t *left[2];        /* in scratch: buffers for a piece, in turn */
} place;

enum { LEFT_BYTES = CPU_PANEL * BF16_PIECE * 2, SUMS = CPU_ROW_BLOCK * CPU_PANEL };
_Static_assert(2 * SUMS * 4 + 4 * TILE * 4 + 2 * LEFT_BYTES <= CPU_DOTS_SCRATCH_BYTES, "scratch");

static bool is_gate(const place *p) { return p->w != p->job->w; }

static void set_piece(place *p, uint32_t k) {
    p->k = k;
    p->n_k = p->w->dtype == MDL_F8_E4M3 ? cpu_piece(p->w, k) : cpu_min(BF16_PIECE, p->w->n_in - k);
}

static void set_panel(place *p, uint32_t first) {
    p->first = first;
    p->w = p->job->gated != NULL ? p->job->gated->gate : p->job->w;
    set_piece(p, 0);
}

/* All k of a panel, then the next panel, so that weights are read in the order in which they lie. Returns false behind
 * the last one. */
static bool advance(place *p) {
    if (p->k + p->n_k < p->w->n_in) {
        set_piece(p, p->k + p->n_k);
    } else if (is_gate(p)) {
        p->w = p->job->w;
        set_piece(p, 0);
    } else {
        set_panel(p, p->first + CPU_PANEL);
    }
    return p->first < p->end;
}

/* Weight k of an output; not its own where k is in the skew. */
static const uint8_t *weights_at(const place *p, uint32_t output, uint32_t k) {
    const krn_matrix *w = p->w;
    ptrdiff_t element = (ptrdiff_t)(p->job->first_row + output) * w->n_in + k - p->job->rows.skew;
    return (const uint8_t *)w->data + element * (ptrdiff_t)cpu_elem_bytes(w->dtype);
}

/* Whether the piece is read where it lies: its steps are cache lines. */
static bool is_direct(const place *p) {
    const krn_matrix *w = p->w;
    return w->dtype == MDL_BF16 && w->n_in % CPU_K_STEP == 0 && p->end - p->first >= CPU_PANEL &&
           (uintptr_t)weights_at(p, p->first, 0) % 64 == 0;
}

/* What to do while piece `now` is multiplied: bring in the next piece if it needs that, and fetch from memory a share
 * of the panel behind the one that is multiplied, or brought in: as much of it as the piece is of its own panel. */
static supply supply_after(const place *now, const place *next) {
    bool is_brought = next != NULL && !is_direct(next);
    const place *of = is_brought ? next : now;
    const krn_matrix *w = of->w;
    size_t elem_bytes = cpu_elem_bytes(w->dtype);
    supply s = {0};
    if (of->first + 2 * CPU_PANEL <= of->job->n_out) {
        s.fetch = weights_at(of, of->first + CPU_PANEL, 0) + of->k * CPU_PANEL * elem_bytes;
        s.fetch_end = s.fetch + of->n_k * CPU_PANEL * elem_bytes;
    }
    if (!is_brought) return s;
    s.kind = w->dtype == MDL_BF16 ? SUPPLY_COPY : SUPPLY_DECODE;
    s.from = weights_at(next, next->first, next->k);
    s.row_bytes = w->n_in * elem_bytes;
    s.elem_bytes = (uint32_t)elem_bytes;
    s.n_there = cpu_min(CPU_PANEL, next->end - next->first);
    s.n = next->n_k;
    s.n_unit = cpu_min(UNIT, s.n);
    s.skew = next->k == 0 ? next->job->rows.skew : 0;
    s.n_row = w->n_in;
    s.to = s.buffer = next->left[0];
    s.half_bytes = (size_t)cpu_round_up(s.n, CPU_K_STEP) / CPU_K_STEP * SIDE * 64;
    return s;
}

/* The first step of a panel that is read where it lies. */
static const uint8_t *copy_turned(const place *p, uint8_t *to) {
    uint32_t n = p->w->n_in, skew = p->job->rows.skew;
    const uint8_t *row = weights_at(p, p->first, skew);
    for (uint32_t i = 0; i < CPU_PANEL; i++, row += (size_t)n * 2)
        _mm512_store_si512(to + (size_t)i * 64, bf16_load_turned(row, n, skew));
    return to;
}

static panel_piece piece_of(const place *p) {
    uint32_t n_steps = cpu_round_up(p->n_k, CPU_K_STEP) / CPU_K_STEP;
    panel_piece piece = {.n_steps = n_steps, .step_bytes = SIDE * 64, .stride = 64};
    piece.left[0] = p->left[0];
    piece.left[1] = p->left[0] + (size_t)n_steps * SIDE * 64;
    if (!is_direct(p)) return piece;
    piece.step_bytes = 64;
    piece.stride = (size_t)p->w->n_in * 2;
    piece.left[0] = weights_at(p, p->first, p->k);
    piece.left[1] = piece.left[0] + SIDE * piece.stride;
    if (p->k == 0 && p->job->rows.skew > 0) piece.turned = copy_turned(p, p->left[0]);
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

/* Tiles of sums, n_outputs x n_rows, to their place: outputs 0..16 at sums, 16..32 a tile behind. */
static void put_by_output(const cpu_dots *job, const float *sums, uint32_t output, uint32_t n_outputs, uint32_t row,
                          uint32_t n_rows) {
    __mmask16 mask = (__mmask16)((1u << n_rows) - 1);
    for (uint32_t o = 0; o < n_outputs; o++) {
        float *out = job->out + (output + o) * job->out_stride + row;
        __m512 v = _mm512_maskz_loadu_ps(mask, sums + o / SIDE * TILE + o % SIDE * sums_stride(n_rows) / sizeof(float));
        if (job->accumulate) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), v);
        _mm512_mask_storeu_ps(out, mask, v);
    }
}

/* The same by row: both lines of a row at once, for memory likes that better. */
INLINE void put_by_row(const cpu_dots *job, const float *sums, uint32_t output, uint32_t n_outputs, uint32_t row,
                       uint32_t n_rows, uint32_t n_tiles) {
    __m512i v[2][SIDE];
    for (uint32_t t = 0; t < n_tiles; t++) {
        for (uint32_t i = 0; i < (n_rows == 1 ? 1 : SIDE); i++) v[t][i] = _mm512_load_si512(sums + t * TILE + i * SIDE);
        if (n_rows > 1) transpose16(v[t]);
    }
    uint32_t mask = (uint32_t)(((uint64_t)1 << n_outputs) - 1);
    float *out = job->out + row * job->out_stride + output;
    for (uint32_t r = 0; r < n_rows; r++, out += job->out_stride) {
        for (uint32_t t = 0; t < n_tiles; t++) {
            put(job, out + t * SIDE, (__mmask16)(mask >> t * SIDE), _mm512_castsi512_ps(v[t][r]), row + r);
        }
    }
}

/* The sums of both tiles of a group, together with the gate's. */
static void put_gated(const place *p, const float *sums, uint32_t group, uint32_t n_rows) {
    const cpu_gated *gated = p->job->gated;
    const float *gate = p->gate_sums + (size_t)group * 2 * TILE;
    uint32_t row = p->row + group * CPU_GROUP, n = gated->rows.n, k = p->first + gated->rows.skew;
    uint32_t *out = (uint32_t *)(gated->packed + packed_at(&gated->rows, row, 0)); /* [pair of k][row] */
    _Alignas(64) uint16_t h[CPU_PANEL * SIDE];
    if (n_rows == 1) {
        for (uint32_t t = 0; t < 2; t++)
            cpu_vector_avx512.silu_mul(gate + t * TILE, sums + t * TILE, SIDE, h + t * SIDE);
        for (uint32_t o = 0; o < CPU_PANEL; o += 2, k += 2)
            memcpy(out + (k < n ? k : k - n) / 2, h + o, 2 * sizeof(*h));
        return;
    }
    __mmask16 mask = (__mmask16)((1u << n_rows) - 1);
    cpu_vector_avx512.silu_mul(gate, sums, CPU_PANEL * SIDE, h);
    for (uint32_t o = 0; o < CPU_PANEL; o += 2, k += 2) {
        __m512i even = _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i *)(h + o * SIDE)));
        __m512i odd = _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i *)(h + (o + 1) * SIDE)));
        uint32_t *at = out + (size_t)(k < n ? k : k - n) / 2 * n_rows;
        _mm512_mask_storeu_epi32(at, mask, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
}

/* The finished sums of n_right groups. */
static void block_put(const place *p, const float *sums, uint32_t group, uint32_t n_right, uint32_t columns) {
    uint32_t row = p->row + group * CPU_GROUP, n_outputs = cpu_min(CPU_PANEL, p->end - p->first);
    for (uint32_t g = 0; g < n_right; g++, row += CPU_GROUP, sums += 2 * TILE) {
        if (p->job->gated != NULL)
            put_gated(p, sums, group + g, columns);
        else if (p->job->is_by_output)
            put_by_output(p->job, sums, p->first, n_outputs, row, columns);
        else if (n_outputs > SIDE)
            put_by_row(p->job, sums, p->first, n_outputs, row, columns, 2);
        else
            put_by_row(p->job, sums, p->first, n_outputs, row, columns, 1);
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

/* Groups `group`.. (n_right of them, `columns` wide); the counts are constants at every call. */
INLINE void multiply(const place *p, panel_run *run, uint32_t group, uint32_t n_left, uint32_t n_right,
                     uint32_t columns) {
    const cpu_rows *rows = &p->job->rows;
    uint32_t row = p->row + group * CPU_GROUP;
    bool is_first = p->k == 0, is_last = p->k + p->n_k == p->w->n_in, is_scaled = run->scale != NULL;
    const panel_piece *piece = &run->piece;
    const uint8_t *right0 = (const uint8_t *)(p->job->packed + packed_at(rows, row, p->k)), *right1 = right0;
    if (n_right > 1) right1 = (const uint8_t *)(p->job->packed + packed_at(rows, row + CPU_GROUP, p->k));
    float *sums = (is_gate(p) ? p->gate_sums : p->sums) + (size_t)group * 2 * TILE;
    if (is_first && is_last && !is_scaled && !is_gate(p)) sums = p->tiles;
    float *out = is_scaled ? p->tiles : sums;
    float *const at[4] = {out, out + TILE, out + 2 * TILE, out + 3 * TILE};
    size_t stride = sums_stride(columns), right_stride = 4 * (size_t)columns, right_step = SIDE * right_stride;
    if (is_last && p->job->accumulate && columns > 1) fetch_outputs(p, group, n_right * columns);
    if (is_first || is_scaled)
        tiles_zero(n_left, n_right);
    else
        tiles_load(n_left, n_right, (const float *const *)at, stride);
    const uint8_t *left0 = piece->left[0], *left1 = piece->left[1];
    size_t left_stride = piece->stride;
    if (piece->turned != NULL) {
        left0 = piece->turned;
        left1 = left0 + SIDE * 64;
        left_stride = 64;
    }
    for (size_t i = 0;;) {
        tiles_multiply(n_left, left0, left1, left_stride, n_right, right0, right1, right_stride);
        supply_some(&run->supply, &run->table);
        if (++i == piece->n_steps) break;
        left0 = piece->left[0] + i * piece->step_bytes;
        left1 = piece->left[1] + i * piece->step_bytes;
        left_stride = piece->stride;
        right0 += right_step;
        right1 += right_step;
    }
    tiles_store(n_left, n_right, at, stride);
    if (is_scaled) add_tiles(sums, p->tiles, run->scale, n_left, n_right, columns, is_first);
    if (is_last && !is_gate(p)) block_put(p, sums, group, n_right, columns);
}

/* All groups of one panel and piece. Tiles are configured for full groups, if there are any, before and after. */
static void groups_run(const place *p, panel_run *run) {
    uint32_t n_outputs = cpu_min(CPU_PANEL, p->end - p->first), n_full = p->n_groups - (p->rest != 0), group = 0;
    if (n_outputs > SIDE) {
        for (; group + 2 <= n_full; group += 2) multiply(p, run, group, 2, 2, SIDE);
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

/* The FP8 scales of a piece, output by output. */
static void load_scales(const place *p, float scales[CPU_PANEL]) {
    const krn_matrix *w = p->w;
    uint32_t n = cpu_min(CPU_PANEL, p->end - p->first), row = p->job->first_row + p->first;
    uint32_t block_end = w->block_rows - row % w->block_rows; /* counted from the panel's first output */
    const float *scale = w->scale + (size_t)(row / w->block_rows) * w->n_scale_cols + p->k / w->block_cols;
    for (uint32_t o = 0; o < n; block_end += w->block_rows, scale += w->n_scale_cols) {
        for (; o < cpu_min(n, block_end); o++) scales[o] = *scale;
    }
}

static void place_run(const place *now, const place *next) {
    panel_run run = {.piece = piece_of(now), .supply = supply_after(now, next), .table = e4m3_table_load()};
    float scales[CPU_PANEL] = {0};
    if (now->w->dtype == MDL_F8_E4M3) {
        load_scales(now, scales);
        run.scale = scales;
    }
    supply_spread(&run.supply, (now->n_groups + 1) / 2 * run.piece.n_steps);
    groups_run(now, &run);
    supply_rest(&run.supply, &run.table);
}

static void rows_run(place *p) {
    if (!is_direct(p)) {
        supply first = supply_after(p, p);
        e4m3_table table = e4m3_table_load();
        supply_rest(&first, &table);
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
    BT_ASSERT(job->rows.skew == 0 || job->w->dtype == MDL_BF16);
    BT_ASSERT(job->gated == NULL || (job->gated->rows.skew % 2 == 0 && job->n_out % CPU_PANEL == 0));
    for (uint32_t row = 0; row < job->rows.n_rows; row += CPU_ROW_BLOCK) {
        place p = {.job = job, .row = row, .n_rows = cpu_min(CPU_ROW_BLOCK, job->rows.n_rows - row)};
        p.n_groups = (p.n_rows + CPU_GROUP - 1) / CPU_GROUP;
        p.rest = p.n_rows % CPU_GROUP;
        p.end = end;
        set_panel(&p, begin);
        p.sums = scratch->dots;
        p.gate_sums = p.sums + SUMS;
        p.tiles = p.gate_sums + SUMS;
        p.left[0] = (uint8_t *)(p.tiles + 4 * TILE);
        p.left[1] = p.left[0] + LEFT_BYTES;
        tiles_configure(SIDE, p.n_rows < CPU_GROUP ? p.rest : SIDE);
        rows_run(&p);
    }
    tiles_release();
    if (job->is_streamed) _mm_sfence();
}

const cpu_isa cpu_isa_amx = {.name = "amx-bf16",
                             .vector = &cpu_vector_avx512,
                             .has_gated = true,
                             .skew = skew,
                             .pack = pack,
                             .dots = dots,
                             .pairs = cpu_amx_pairs};
