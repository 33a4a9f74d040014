/* Matrix kernels for AMX-BF16 tiles, helped by AVX-512.
 *
 * `dots`: a tile of 16 weight rows x 32 k is the left operand, loaded straight from the checkpoint (FP8: decoded into a
 * buffer first); 16 packed rows x 32 k, k in pairs, are the right one; 2 x 2 tiles make a block of 32 outputs x 32
 * rows. Sums lie in memory between pieces of k, so that a piece of weights stays in L1 while all rows pass. For
 * bfloat16 they are tiles, loaded and stored without a change; for FP8 a piece is one scale block and its tile is added
 * times the scale. A single row is a group of one column: its packed form is the plain row and the sequence of
 * operations is the same.
 *
 * `pairs`: 16 rows of p are the left operand, 32 rows of V in pairs the right one. */
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/decode_avx512.h"

enum {
    SIDE = 16,                    /* rows of a tile, and its 32-bit columns */
    TILE = SIDE * SIDE,           /* floats of a tile */
    BF16_PIECE = CPU_PACK_K,      /* k of a bfloat16 panel that stay in L1: 16 KiB */
    WIDE_OUTPUTS = 8 * CPU_PANEL, /* outputs that share a pass over many rows */
    FEW_ROWS = 64,                /* up to here a panel is finished before the next one: weights stream in order */
    L2_ELEMS = 512 << 10,         /* packed rows up to here stay in L2 from piece to piece */
    COPY_ROWS = 128,              /* from here bfloat16 panels are copied: aligned, each row of a tile one cache line */
};

#define INLINE static inline __attribute__((always_inline))

/* GCC 12's tile loads do not tell the compiler that they read memory. */
#define TILE_LOAD(tile, base, stride)                                                                                  \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(base), "r"((size_t)(stride)) : "memory")
#define TILE_STORE(tile, base, stride)                                                                                 \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(base), "r"((size_t)(stride)) : "memory")
#define TILE_ZERO(tile)           __asm__ volatile("tilezero %%tmm" #tile ::)
#define TILE_DP(acc, left, right) __asm__ volatile("tdpbf16ps %%tmm" #right ", %%tmm" #left ", %%tmm" #acc ::)

/* tmm0..3 sums (0: left 0 right 0, 1: left 1 right 0, 2: left 0 right 1, 3: left 1 right 1), 4..5 left, 6..7 right. */
static void tiles_configure(uint32_t left_rows, uint32_t right_columns) {
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

static void tiles_release(void) { __asm__ volatile("tilerelease"); }

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
    const char *ahead; /* fetched meanwhile, as many bytes as the piece has; NULL: nothing */
} panel_piece;

/* Bytes between the rows (outputs) of a tile of sums: a single column lies in one register. */
INLINE size_t sums_stride(uint32_t columns) { return columns == 1 ? 4 : 64; }

/* n_left x n_right tiles over one piece; the counts are constants at every call. sums [right][left][TILE] */
INLINE void block(const panel_piece *piece, uint32_t n_left, const uint8_t *right0, const uint8_t *right1,
                  uint32_t n_right, uint32_t columns, const float *start, float *sums) {
    size_t stride = sums_stride(columns);
    if (start != NULL) {
        TILE_LOAD(0, start, stride);
        if (n_left > 1) TILE_LOAD(1, start + TILE, stride);
        if (n_right > 1) TILE_LOAD(2, start + 2 * TILE, stride);
        if (n_left > 1 && n_right > 1) TILE_LOAD(3, start + 3 * TILE, stride);
    } else {
        TILE_ZERO(0);
        if (n_left > 1) TILE_ZERO(1);
        if (n_right > 1) TILE_ZERO(2);
        if (n_left > 1 && n_right > 1) TILE_ZERO(3);
    }
    size_t right_stride = 4 * (size_t)columns, right_step = SIDE * right_stride;
    for (uint32_t k = 0; k < piece->n_steps; k++) {
        if (piece->ahead != NULL) {
            const char *ahead = piece->ahead + (size_t)k * CPU_PANEL * 64;
#pragma GCC unroll 32
            for (size_t i = 0; i < CPU_PANEL; i++) _mm_prefetch(ahead + i * 64, _MM_HINT_T1);
        }
        TILE_LOAD(4, piece->left[0] + k * piece->step_bytes, piece->stride);
        TILE_LOAD(6, right0 + k * right_step, right_stride);
        TILE_DP(0, 4, 6);
        if (n_left > 1) TILE_LOAD(5, piece->left[1] + k * piece->step_bytes, piece->stride);
        if (n_left > 1) TILE_DP(1, 5, 6);
        if (n_right > 1) TILE_LOAD(7, right1 + k * right_step, right_stride);
        if (n_right > 1) TILE_DP(2, 4, 7);
        if (n_left > 1 && n_right > 1) TILE_DP(3, 5, 7);
    }
    TILE_STORE(0, sums, stride);
    if (n_left > 1) TILE_STORE(1, sums + TILE, stride);
    if (n_right > 1) TILE_STORE(2, sums + 2 * TILE, stride);
    if (n_left > 1 && n_right > 1) TILE_STORE(3, sums + 3 * TILE, stride);
}

/* What a call works on: some outputs of some rows. Sums of (panel, group, half): sums[((p * n_groups + g) * 2 + s) *
 * TILE]. */
typedef struct {
    const cpu_dots *job;
    uint32_t begin, end;     /* outputs */
    uint32_t row, n_rows;    /* rows, at most CPU_ROW_BLOCK; row is a multiple of CPU_GROUP */
    uint32_t n_groups, rest; /* groups of rows; columns of the last one if it is not full, else 0 */
    float *sums;             /* in scratch */
    uint8_t *left;           /* in scratch: buffer for a panel piece, 2 halves of BF16_PIECE k */
    float *tiles;            /* in scratch: four tiles */
} region;

enum { LEFT_BYTES = CPU_PANEL * BF16_PIECE * 2 };
_Static_assert(WIDE_OUTPUTS *CPU_ROW_BLOCK * 4 + LEFT_BYTES + 4 * TILE * 4 <= CPU_DOTS_SCRATCH_BYTES, "scratch");

/* Outputs first.. of the panel, k.. of their rows, as tiles in the buffer: [half][step][16][32]; absent rows are zero.
 */
static void fill_bf16(const region *g, uint32_t first, uint32_t k, uint32_t n_k) {
    const krn_matrix *w = g->job->w;
    uint32_t n_steps = cpu_round_up(n_k, CPU_K_STEP) / CPU_K_STEP;
    for (uint32_t o = 0; o < CPU_PANEL; o++) {
        uint8_t *out = g->left + (o / SIDE * n_steps * SIDE + o % SIDE) * 64;
        const uint8_t *in = (const uint8_t *)w->data + ((size_t)(g->job->first_row + first + o) * w->n_in + k) * 2;
        for (uint32_t i = 0; i < n_steps; i++, out += SIDE * 64) {
            bool is_there = first + o < g->end;
            _mm512_store_si512(out, is_there ? bf16_load(in + i * 64, n_k - i * CPU_K_STEP) : _mm512_setzero_si512());
        }
    }
}

static void fill_fp8(const region *g, uint32_t first, uint32_t k, uint32_t n_k, bool is_stream) {
    const krn_matrix *w = g->job->w;
    uint32_t n_steps = cpu_round_up(n_k, CPU_K_STEP) / CPU_K_STEP, n_there = cpu_min(CPU_PANEL, g->end - first);
    const uint8_t *codes = (const uint8_t *)w->data + (size_t)(g->job->first_row + first) * w->n_in + k;
    size_t ahead = is_stream ? (size_t)CPU_PANEL * w->n_in : 0;
    e4m3_table table = e4m3_table_load();
    for (uint32_t o = 0; o < n_there; o++, codes += w->n_in) {
        uint8_t *out = g->left + (o / SIDE * n_steps * SIDE + o % SIDE) * 64;
        for (uint32_t i = 0; i < n_k; i += 64, out += 2 * SIDE * 64) {
            __m512i decoded[2];
            e4m3_decode64(&table, e4m3_load(codes + i, n_k - i), decoded);
            _mm512_store_si512(out, decoded[0]);
            if (i + 32 < n_k) _mm512_store_si512(out + SIDE * 64, decoded[1]);
            if (ahead != 0) _mm_prefetch((const char *)codes + i + ahead, _MM_HINT_T1);
        }
    }
    for (uint32_t o = n_there; o < CPU_PANEL; o++) {
        uint8_t *out = g->left + (o / SIDE * n_steps * SIDE + o % SIDE) * 64;
        for (uint32_t i = 0; i < n_steps; i++) _mm512_store_si512(out + i * SIDE * 64, _mm512_setzero_si512());
    }
}

static panel_piece piece_of(const region *g, uint32_t first, uint32_t k, uint32_t n_k, bool is_stream) {
    const krn_matrix *w = g->job->w;
    uint32_t n_steps = cpu_round_up(n_k, CPU_K_STEP) / CPU_K_STEP;
    panel_piece piece = {.n_steps = n_steps, .step_bytes = SIDE * 64, .stride = 64};
    piece.left[0] = g->left;
    piece.left[1] = g->left + n_steps * SIDE * 64;
    if (w->dtype == MDL_F8_E4M3) {
        fill_fp8(g, first, k, n_k, is_stream);
    } else if (g->n_rows >= COPY_ROWS || n_k % CPU_K_STEP != 0 || g->end - first < CPU_PANEL) {
        fill_bf16(g, first, k, n_k);
    } else {
        size_t row_bytes = (size_t)w->n_in * 2;
        piece.left[0] = (const uint8_t *)w->data + (g->job->first_row + first) * row_bytes + (size_t)k * 2;
        piece.left[1] = piece.left[0] + SIDE * row_bytes;
        piece.step_bytes = 64;
        piece.stride = row_bytes;
        if (is_stream) { /* the next panel in the order in which it lies, this piece's share of it */
            piece.ahead =
                (const char *)w->data + (g->job->first_row + first + CPU_PANEL) * row_bytes + (size_t)k * CPU_PANEL * 2;
        }
    }
    return piece;
}

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

/* Groups `group`.. (n_right of them, `columns` wide) of one panel, one piece of k. */
INLINE void multiply(const region *g, panel_piece *piece, uint32_t panel, uint32_t group, uint32_t n_left,
                     uint32_t n_right, uint32_t columns, uint32_t k, const float *scale) {
    uint32_t n_in = g->job->w->n_in, n_rows = g->job->rows.n_rows, row = g->row + group * CPU_GROUP;
    const uint8_t *right0 = (const uint8_t *)(g->job->packed + packed_at(n_rows, n_in, row, k)), *right1 = NULL;
    if (n_right > 1) right1 = (const uint8_t *)(g->job->packed + packed_at(n_rows, n_in, row + CPU_GROUP, k));
    float *sums = g->sums + (size_t)(panel * g->n_groups + group) * 2 * TILE;
    if (scale == NULL) {
        block(piece, n_left, right0, right1, n_right, columns, k > 0 ? sums : NULL, sums);
    } else {
        block(piece, n_left, right0, right1, n_right, columns, NULL, g->tiles);
        add_tiles(sums, g->tiles, scale, n_left, n_right, columns, k == 0);
    }
    piece->ahead = NULL; /* once is enough */
}

/* Many rows: fetches share number `share` of `n_shares` of the next panel's piece. */
static void prefetch_weights(const region *g, uint32_t first, uint32_t k, uint32_t n_k, uint32_t share,
                             uint32_t n_shares) {
    const krn_matrix *w = g->job->w;
    size_t elem_bytes = cpu_elem_bytes(w->dtype), n_bytes = n_k * elem_bytes;
    uint32_t n_rows = first < g->end ? cpu_min(CPU_PANEL, g->end - first) : 0;
    const char *data = (const char *)w->data + ((size_t)(g->job->first_row + first) * w->n_in + k) * elem_bytes;
    for (uint32_t row = share * n_rows / n_shares; row < (share + 1) * n_rows / n_shares; row++) {
        const char *at = data + row * w->n_in * elem_bytes;
        for (size_t i = 0; i < n_bytes; i += 64) _mm_prefetch(at + i, _MM_HINT_T1);
    }
}

/* Many rows: fetches a panel's share of two groups' rows for the piece behind k, or for the start of the next outputs.
 * They were pushed out of L2 by the sums and the weights; without this the first panel of a piece waits for L3 at every
 * line. */
static void prefetch_rows(const region *g, uint32_t panel, uint32_t group, uint32_t k, uint32_t n_k) {
    uint32_t n_in = g->job->w->n_in, n_panels = (g->end - g->begin + CPU_PANEL - 1) / CPU_PANEL;
    uint32_t next = k + n_k < n_in ? k + n_k : 0, n_lines = cpu_min(n_k, n_in - next) * CPU_GROUP * 2 / 64;
    for (uint32_t i = 0; i < 2; i++) {
        size_t at = packed_at(g->job->rows.n_rows, n_in, g->row + (group + i) * CPU_GROUP, next);
        const char *rows = (const char *)(g->job->packed + at);
        for (uint32_t line = panel * n_lines / n_panels; line < (panel + 1) * n_lines / n_panels; line++) {
            _mm_prefetch(rows + line * 64, _MM_HINT_T1);
        }
    }
}

/* One piece of k of one panel, all groups. The tiles are configured for full groups, and are again when it returns. */
static void panel_run(const region *g, uint32_t panel, uint32_t k, uint32_t n_k, bool is_stream) {
    const krn_matrix *w = g->job->w;
    uint32_t first = g->begin + panel * CPU_PANEL, n_outputs = cpu_min(CPU_PANEL, g->end - first);
    uint32_t n_full = g->n_groups - (g->rest != 0), group = 0;
    panel_piece piece = piece_of(g, first, k, n_k, is_stream);
    float scales[CPU_PANEL] = {0};
    const float *scale = NULL;
    if (w->dtype == MDL_F8_E4M3) {
        for (uint32_t o = 0; o < n_outputs; o++) {
            scales[o] = w->scale[(size_t)((g->job->first_row + first + o) / w->block_rows) * w->n_scale_cols +
                                 k / w->block_cols];
        }
        scale = scales;
    }
    if (n_outputs > SIDE) {
        for (; group + 2 <= n_full; group += 2) {
            if (!is_stream) {
                prefetch_weights(g, first + CPU_PANEL, k, n_k, group / 2, n_full / 2);
                if (g->n_rows * (size_t)w->n_in > L2_ELEMS) prefetch_rows(g, panel, group, k, n_k);
            }
            multiply(g, &piece, panel, group, 2, 2, SIDE, k, scale);
        }
        if (group < n_full) multiply(g, &piece, panel, group, 2, 1, SIDE, k, scale);
    } else {
        for (; group < n_full; group++) multiply(g, &piece, panel, group, 1, 1, SIDE, k, scale);
    }
    if (g->rest == 0) return;
    if (n_full > 0) tiles_configure(SIDE, g->rest);
    if (n_outputs > SIDE)
        multiply(g, &piece, panel, n_full, 2, 1, g->rest, k, scale);
    else
        multiply(g, &piece, panel, n_full, 1, 1, g->rest, k, scale);
    if (n_full > 0) tiles_configure(SIDE, SIDE);
}

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

/* Rows outside, so that a row's outputs are written side by side. */
static void region_put(const region *g) {
    for (uint32_t group = 0; group < g->n_groups; group++) {
        uint32_t n_rows = g->rest != 0 && group == g->n_groups - 1 ? g->rest : CPU_GROUP;
        for (uint32_t o = g->begin; o < g->end; o += SIDE) {
            uint32_t panel = (o - g->begin) / CPU_PANEL, half = (o - g->begin) / SIDE % 2;
            const float *sums = g->sums + ((size_t)(panel * g->n_groups + group) * 2 + half) * TILE;
            tile_put(g->job, sums, o, cpu_min(SIDE, g->end - o), g->row + group * CPU_GROUP, n_rows);
        }
    }
}

static void region_run(const region *g) {
    const krn_matrix *w = g->job->w;
    bool is_stream = g->n_rows <= FEW_ROWS;
    uint32_t n_panels = (g->end - g->begin + CPU_PANEL - 1) / CPU_PANEL;
    for (uint32_t k = 0, n_k; k < w->n_in; k += n_k) {
        n_k = w->dtype == MDL_F8_E4M3 ? cpu_piece(w, k) : cpu_min(BF16_PIECE, w->n_in - k);
        for (uint32_t panel = 0; panel < n_panels; panel++) {
            panel_run(g, panel, k, n_k, is_stream && g->begin + (panel + 2) * CPU_PANEL <= g->job->n_out);
        }
    }
    region_put(g);
}

static void dots(const cpu_dots *job, uint32_t begin, uint32_t end, const cpu_scratch *scratch) {
    for (uint32_t row = 0; row < job->rows.n_rows; row += CPU_ROW_BLOCK) {
        region g = {.job = job, .row = row, .n_rows = cpu_min(CPU_ROW_BLOCK, job->rows.n_rows - row)};
        g.n_groups = (g.n_rows + CPU_GROUP - 1) / CPU_GROUP;
        g.rest = g.n_rows % CPU_GROUP;
        g.sums = scratch->dots;
        g.left = (uint8_t *)(g.sums + WIDE_OUTPUTS * CPU_ROW_BLOCK);
        g.tiles = (float *)(g.left + LEFT_BYTES);
        tiles_configure(SIDE, g.n_rows < CPU_GROUP ? g.rest : SIDE);
        uint32_t width = g.n_rows <= FEW_ROWS ? CPU_PANEL : WIDE_OUTPUTS;
        for (uint32_t o = begin; o < end; o += width) {
            g.begin = o;
            g.end = cpu_min(o + width, end);
            region_run(&g);
        }
    }
    tiles_release();
}

/* Rows r.. (two groups if n_left is 2), output elements c.. (two tiles if n_right is 2). */
INLINE void pairs_block(const cpu_pairs *job, uint32_t r, uint32_t n_left, uint32_t left_rows, uint32_t c,
                        uint32_t n_right, float *tiles) {
    const uint8_t *left = (const uint8_t *)(job->p + r * job->p_stride);
    panel_piece piece = {
        .left = {left, left + SIDE * job->p_stride * 2}, .step_bytes = 64, .stride = job->p_stride * 2};
    piece.n_steps = job->n_j / CPU_K_STEP;
    const uint8_t *right = (const uint8_t *)(job->v + c);
    TILE_ZERO(0);
    if (n_left > 1) TILE_ZERO(1);
    if (n_right > 1) TILE_ZERO(2);
    if (n_left > 1 && n_right > 1) TILE_ZERO(3);
    size_t right_stride = job->v_stride * 4;
    for (uint32_t k = 0; k < piece.n_steps; k++) {
        TILE_LOAD(4, piece.left[0] + k * 64, piece.stride);
        TILE_LOAD(6, right + k * SIDE * right_stride, right_stride);
        TILE_DP(0, 4, 6);
        if (n_left > 1) TILE_LOAD(5, piece.left[1] + k * 64, piece.stride);
        if (n_left > 1) TILE_DP(1, 5, 6);
        if (n_right > 1) TILE_LOAD(7, right + 64 + k * SIDE * right_stride, right_stride);
        if (n_right > 1) TILE_DP(2, 4, 7);
        if (n_left > 1 && n_right > 1) TILE_DP(3, 5, 7);
    }
    float *out = job->out + r * job->out_stride + c;
    size_t out_bytes = job->out_stride * 4;
    bool is_direct = job->alpha == NULL;
    float *at[4] = {tiles, tiles + TILE, tiles + 2 * TILE, tiles + 3 * TILE};
    if (is_direct) {
        at[0] = out;
        at[1] = out + SIDE * job->out_stride;
        at[2] = out + SIDE;
        at[3] = at[1] + SIDE;
    }
    size_t stride = is_direct ? out_bytes : 64;
    TILE_STORE(0, at[0], stride);
    if (n_left > 1) TILE_STORE(1, at[1], stride);
    if (n_right > 1) TILE_STORE(2, at[2], stride);
    if (n_left > 1 && n_right > 1) TILE_STORE(3, at[3], stride);
    if (is_direct) return;
    for (uint32_t i = 0; i < n_left * left_rows; i++) {
        __m512 factor = _mm512_set1_ps(job->alpha[r + i]);
        for (uint32_t d = 0; d < n_right; d++) {
            float *y = out + i * job->out_stride + d * SIDE;
            __m512 sum = _mm512_load_ps(tiles + (2 * d + i / SIDE) * TILE + i % SIDE * SIDE);
            _mm512_store_ps(y, _mm512_fmadd_ps(_mm512_load_ps(y), factor, sum));
        }
    }
}

INLINE void pairs_rows(const cpu_pairs *job, uint32_t r, uint32_t n_left, uint32_t left_rows, float *tiles) {
    uint32_t c = 0;
    for (; c + 2 * SIDE <= job->n; c += 2 * SIDE) pairs_block(job, r, n_left, left_rows, c, 2, tiles);
    if (c < job->n) pairs_block(job, r, n_left, left_rows, c, 1, tiles);
}

static void pairs(const cpu_pairs *job, const cpu_scratch *scratch) {
    float *tiles = scratch->dots;
    uint32_t r = 0, n_full = job->n_rows / SIDE * SIDE;
    if (n_full > 0) tiles_configure(SIDE, SIDE);
    for (; r + 2 * SIDE <= n_full; r += 2 * SIDE) pairs_rows(job, r, 2, SIDE, tiles);
    if (r < n_full) pairs_rows(job, r, 1, SIDE, tiles);
    if (n_full < job->n_rows) {
        tiles_configure(job->n_rows - n_full, SIDE);
        pairs_rows(job, n_full, 1, job->n_rows - n_full, tiles);
    }
    tiles_release();
}

const cpu_isa cpu_isa_amx = {
    .name = "amx-bf16", .vector = &cpu_vector_avx512, .pack = pack, .dots = dots, .pairs = pairs};
