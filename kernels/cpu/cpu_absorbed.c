/* The absorbed form, for generated positions: W_UK moves the query into latent space, all heads then attend to the
 * cached rows themselves, W_UV brings the result back.
 *
 * Rows are worked off in rounds that fit the scratch memory. A round has three lists of tasks:
 *   1. per head: rotate the rows' queries, multiply by W_UK (packed in bfloat16 by prepare());
 *   2. per (rows of a sequence, chunk of 8 blocks, group of heads): online softmax over the chunk's blocks;
 *   3. per head: merge the chunks in ascending order, multiply by W_UV from the checkpoint.
 * Chunks start at fixed positions, so the order of a row's sums depends on its position alone. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "kernels/cpu/cpu_attention.h"
#include "kernels/dtype.h"

enum { TOKENS = KV_BLOCK_TOKENS, CHUNK_TOKENS = CPU_CHUNK_BLOCKS * TOKENS, ITEM_ROWS = 8 };

/* One thread's memory: for the three lists in turn. */
typedef struct {
    uint16_t *q_nope; /* [CPU_ROUND_ROWS][nope_width] */
    float *q_float;   /* [CPU_ROUND_ROWS][rank_width] */

    uint16_t *q_packed; /* [ITEM_ROWS][heads packed rows of width] */
    uint32_t *v;        /* [TOKENS / 2][rank_width] */
    float *scores;      /* [heads][TOKENS] */
    uint16_t *p;        /* [heads][TOKENS] */
    float *alpha;       /* [heads] */

    float *merged;      /* [rank_width] */
    uint16_t *z;        /* [CPU_ROUND_ROWS][rank] */
    uint16_t *z_packed; /* packed */
    float *out;         /* [CPU_ROUND_ROWS][v] */
} work;

static size_t work_layout(const cpu_attention_memory *m, void *base, work *w) {
    const cpu_attention_dims *d = &m->dims;
    size_t first = 0, second = 0, third = 0;
    w->q_nope = cpu_take(base, &first, (size_t)CPU_ROUND_ROWS * d->nope_width * 2);
    w->q_float = cpu_take(base, &first, (size_t)CPU_ROUND_ROWS * d->rank_width * 4);
    w->q_packed = cpu_take(base, &second, ITEM_ROWS * cpu_packed_elems(d->heads, d->width) * 2);
    w->v = cpu_take(base, &second, (size_t)TOKENS / 2 * d->rank_width * 4);
    w->scores = cpu_take(base, &second, (size_t)d->heads * TOKENS * 4);
    w->p = cpu_take(base, &second, (size_t)d->heads * TOKENS * 2);
    w->alpha = cpu_take(base, &second, (size_t)d->heads * 4);
    w->merged = cpu_take(base, &third, (size_t)d->rank_width * 4);
    w->z = cpu_take(base, &third, (size_t)CPU_ROUND_ROWS * d->rank * 2);
    w->z_packed = cpu_take(base, &third, cpu_packed_elems(CPU_ROUND_ROWS, d->rank) * 2);
    w->out = cpu_take(base, &third, (size_t)CPU_ROUND_ROWS * d->v * 4);
    size_t most = first > second ? first : second;
    return most > third ? most : third;
}

size_t cpu_absorbed_work_bytes(const cpu_attention_memory *memory) {
    work w;
    return work_layout(memory, NULL, &w);
}

/* Consecutive rows of one sequence in a round; they share the work on its cached blocks. */
typedef struct {
    cpu_run run;
    uint32_t round_row;  /* of the first row, in memory->queries */
    uint32_t n_chunks;   /* of the last row */
    uint32_t first_slot; /* slot of (row i, chunk c): first_slot + i * n_chunks + c */
    uint32_t first_task; /* in the second list, in units of groups of heads */
} item;

typedef struct {
    cpu_backend *backend;
    const krn_attention_args *args;
    item items[CPU_ROUND_ROWS];
    uint32_t n_items, n_rows, n_slots, n_chunk_tasks;
    uint32_t heads_each, n_groups; /* of the second list */
} round_job;

static uint32_t chunks_of(uint32_t position) { return position / CHUNK_TOKENS + 1; }

static void query_task(void *context, uint32_t head, uint32_t thread) {
    const round_job *j = context;
    const cpu_attention_memory *m = j->backend->attention;
    const cpu_attention_dims *d = &m->dims;
    const cpu_vector *vector = j->backend->isa->vector;
    work w;
    work_layout(m, j->backend->scratch[thread].work, &w);
    for (uint32_t i = 0; i < j->n_items; i++) {
        const item *it = &j->items[i];
        for (uint32_t r = 0; r < it->run.n_rows; r++) {
            size_t row = it->run.row + r, round_row = it->round_row + r;
            const float *q = j->args->q + (row * d->heads + head) * (d->nope + d->rope);
            uint16_t *nope = w.q_nope + round_row * d->nope_width;
            memset(nope + d->nope, 0, (d->nope_width - d->nope) * sizeof(*nope));
            vector->to_bf16(q, d->nope, 1.0f, nope);
            uint16_t *rotated = m->queries + (round_row * d->heads + head) * d->width + d->rank;
            vector->rotate(q + d->nope, j->args->cos_sin + row * d->rope, d->rope, rotated);
        }
    }
    cpu_pairs pairs = {.p = w.q_nope, .p_stride = d->nope_width, .n_rows = j->n_rows, .n_j = d->nope_width};
    pairs.v = (const uint32_t *)j->args->layer->kv_b.packed + (size_t)head * d->nope_width / 2 * d->rank_width;
    pairs.v_stride = d->rank_width;
    pairs.v_panel = CPU_V_PANEL;
    pairs.n = d->rank_width;
    pairs.out_stride = d->rank_width;
    pairs.out = w.q_float;
    j->backend->isa->pairs(&pairs, &j->backend->scratch[thread]);
    for (uint32_t r = 0; r < j->n_rows; r++) {
        uint16_t *out = m->queries + ((size_t)r * d->heads + head) * d->width;
        vector->to_bf16(w.q_float + (size_t)r * d->rank_width, d->rank, 1.0f, out);
    }
}

/* All heads of a group, one row, one block. */
static void attend(const round_job *j, const work *w, const uint16_t *q_packed, uint32_t n_heads, uint32_t n_seen,
                   const uint16_t *cached, float *sums, cpu_softmax *states, uint32_t thread) {
    const cpu_attention_dims *d = &j->backend->attention->dims;
    const cpu_isa *isa = j->backend->isa;
    krn_matrix keys = {.data = cached, .dtype = MDL_BF16, .n_out = TOKENS, .n_in = d->width};
    cpu_dots dots = {.w = &keys, .n_out = n_seen, .packed = q_packed, .out = w->scores, .out_stride = TOKENS};
    dots.rows = (cpu_rows){.n_rows = n_heads, .n = d->width};
    isa->dots(&dots, 0, n_seen, &j->backend->scratch[thread]);
    for (uint32_t h = 0; h < n_heads; h++) {
        uint16_t *p = w->p + h * TOKENS;
        w->alpha[h] = isa->vector->softmax(w->scores + h * TOKENS, n_seen, TOKENS, d->scale, &states[h], p);
    }
    cpu_pairs pairs = {.p = w->p, .p_stride = TOKENS, .n_rows = n_heads, .n_j = TOKENS, .alpha = w->alpha};
    pairs.v = w->v;
    pairs.v_stride = d->rank_width;
    pairs.v_panel = CPU_V_PANEL;
    pairs.n = d->rank_width;
    pairs.out_stride = d->rank_width;
    pairs.out = sums;
    isa->pairs(&pairs, &j->backend->scratch[thread]);
}

/* Cached rows 0..n of a block, in pairs of tokens; zeros behind. */
static void interleave_block(const round_job *j, const work *w, const uint16_t *cached, uint32_t n) {
    const cpu_attention_dims *d = &j->backend->attention->dims;
    for (uint32_t t = 0; t < TOKENS; t += 2) {
        uint32_t *v = w->v + (size_t)t / 2 * d->rank_width;
        const uint16_t *even = cached + (size_t)t * d->width;
        memset(v + d->rank, 0, (d->rank_width - d->rank) * sizeof(*v));
        if (t + 1 < n)
            j->backend->isa->vector->interleave_bf16(even, even + d->width, d->rank, v);
        else
            memset(v, 0, d->rank * sizeof(*v));
        for (uint32_t i = 0; t + 1 == n && i < d->rank; i++) v[i] = even[i];
    }
}

static void chunk_task(void *context, uint32_t task, uint32_t thread) {
    const round_job *j = context;
    const cpu_attention_memory *m = j->backend->attention;
    const cpu_attention_dims *d = &m->dims;
    uint32_t group = task % j->n_groups, n_item = 0;
    task /= j->n_groups;
    while (n_item + 1 < j->n_items && j->items[n_item + 1].first_task <= task) n_item++;
    const item *it = &j->items[n_item];
    uint32_t chunk = task - it->first_task, head = group * j->heads_each,
             n_heads = cpu_min(j->heads_each, d->heads - head);
    work w;
    work_layout(m, j->backend->scratch[thread].work, &w);
    size_t packed_elems = cpu_packed_elems(n_heads, d->width);
    for (uint32_t r = 0; r < it->run.n_rows; r++) {
        const uint16_t *queries = m->queries + ((size_t)(it->round_row + r) * d->heads + head) * d->width;
        cpu_rows rows = {.x = queries, .stride = d->width, .n_rows = n_heads, .n = d->width};
        j->backend->isa->pack(&rows, 0, n_heads, w.q_packed + r * cpu_round_up((uint32_t)packed_elems, CPU_K_STEP));
        size_t at = (size_t)(it->first_slot + r * it->n_chunks + chunk) * d->heads + head;
        memset(m->partial + at * d->rank_width, 0, (size_t)n_heads * d->rank_width * sizeof(float));
        for (uint32_t h = 0; h < n_heads; h++) m->states[at + h] = (cpu_softmax){.max = -INFINITY};
    }
    uint32_t last = it->run.position + it->run.n_rows - 1;
    for (uint32_t b = chunk * CPU_CHUNK_BLOCKS; b < (chunk + 1) * CPU_CHUNK_BLOCKS && b <= last / TOKENS; b++) {
        const uint16_t *cached = cpu_cached(j->args, it->run.sequence, b * TOKENS);
        interleave_block(j, &w, cached, cpu_n_seen(last, b * TOKENS, TOKENS));
        for (uint32_t r = 0; r < it->run.n_rows; r++) {
            uint32_t n_seen = cpu_n_seen(it->run.position + r, b * TOKENS, TOKENS);
            if (n_seen == 0) continue;
            size_t at = (size_t)(it->first_slot + r * it->n_chunks + chunk) * d->heads + head;
            attend(j, &w, w.q_packed + r * cpu_round_up((uint32_t)packed_elems, CPU_K_STEP), n_heads, n_seen, cached,
                   m->partial + at * d->rank_width, m->states + at, thread);
        }
    }
}

/* Chunks 0..n_chunks of a row and head into z: log-sum-exp, in ascending order. */
static void merge(const round_job *j, const work *w, size_t first_slot, uint32_t head, uint32_t n_chunks, uint16_t *z) {
    const cpu_attention_memory *m = j->backend->attention;
    const cpu_attention_dims *d = &m->dims;
    const cpu_vector *vector = j->backend->isa->vector;
    const cpu_softmax *states = m->states + first_slot * d->heads + head;
    const float *partial = m->partial + (first_slot * d->heads + head) * d->rank_width;
    float max = -INFINITY, sum = 0;
    for (uint32_t c = 0; c < n_chunks; c++) max = fmaxf(max, states[(size_t)c * d->heads].max);
    memset(w->merged, 0, d->rank_width * sizeof(float));
    for (uint32_t c = 0; c < n_chunks; c++) {
        const cpu_softmax *s = &states[(size_t)c * d->heads];
        float weight = exp2f(s->max - max);
        sum += weight * s->sum;
        vector->add_scaled(w->merged, partial + (size_t)c * d->heads * d->rank_width, d->rank, weight);
    }
    vector->to_bf16(w->merged, d->rank, 1.0f / sum, z);
}

static void value_task(void *context, uint32_t head, uint32_t thread) {
    const round_job *j = context;
    const cpu_attention_memory *m = j->backend->attention;
    const cpu_attention_dims *d = &m->dims;
    work w;
    work_layout(m, j->backend->scratch[thread].work, &w);
    for (uint32_t i = 0; i < j->n_items; i++) {
        const item *it = &j->items[i];
        for (uint32_t r = 0; r < it->run.n_rows; r++) {
            merge(j, &w, it->first_slot + (size_t)r * it->n_chunks, head, chunks_of(it->run.position + r),
                  w.z + (size_t)(it->round_row + r) * d->rank);
        }
    }
    cpu_dots dots = {.w = &j->args->layer->kv_b, .first_row = head * (d->nope + d->v) + d->nope, .n_out = d->v};
    dots.rows = (cpu_rows){.x = w.z, .stride = d->rank, .n_rows = j->n_rows, .n = d->rank};
    dots.rows.skew = cpu_skew(j->backend, dots.w);
    dots.packed = w.z_packed;
    dots.out = w.out;
    dots.out_stride = d->v;
    j->backend->isa->pack(&dots.rows, 0, j->n_rows, w.z_packed);
    cpu_dots_run(j->backend, &dots, 0, d->v, thread);
    for (uint32_t i = 0; i < j->n_items; i++) {
        const item *it = &j->items[i];
        for (uint32_t r = 0; r < it->run.n_rows; r++) {
            uint16_t *out = (uint16_t *)j->args->out + ((size_t)(it->run.row + r) * d->heads + head) * d->v;
            j->backend->isa->vector->to_bf16(w.out + (size_t)(it->round_row + r) * d->v, d->v, 1.0f, out);
        }
    }
}

/* Heads share the work on a block; they are split only as far as it takes to give every thread something. */
static void choose_groups(round_job *j) {
    uint32_t heads = j->backend->attention->dims.heads, n_threads = cpu_pool_threads(j->backend->pool);
    j->heads_each = heads;
    while (j->heads_each > 1 && j->n_chunk_tasks * ((heads + j->heads_each - 1) / j->heads_each) < n_threads) {
        j->heads_each = (j->heads_each + 1) / 2;
    }
    j->n_groups = (heads + j->heads_each - 1) / j->heads_each;
}

static void round_run(round_job *j) {
    if (j->n_items == 0) return;
    cpu_pool *pool = j->backend->pool;
    uint32_t heads = j->backend->attention->dims.heads;
    cpu_pool_run(pool, heads, query_task, j);
    choose_groups(j);
    cpu_pool_run(pool, j->n_chunk_tasks * j->n_groups, chunk_task, j);
    cpu_pool_run(pool, heads, value_task, j);
    j->n_items = j->n_rows = j->n_slots = j->n_chunk_tasks = 0;
}

void cpu_absorbed(cpu_backend *backend, const krn_attention_args *args, const cpu_run *runs, uint32_t n_runs) {
    const cpu_attention_memory *m = backend->attention;
    round_job j = {.backend = backend, .args = args};
    for (uint32_t i = 0; i < n_runs; i++) {
        for (uint32_t done = 0, n; done < runs[i].n_rows; done += n) {
            uint32_t position = runs[i].position + done;
            n = cpu_min(ITEM_ROWS, runs[i].n_rows - done);
            while (n > 1 && n * chunks_of(position + n - 1) > m->cap_slots) n--;
            uint32_t n_chunks = chunks_of(position + n - 1);
            if (j.n_rows + n > CPU_ROUND_ROWS || j.n_slots + n * n_chunks > m->cap_slots) round_run(&j);
            item *it = &j.items[j.n_items++];
            *it = (item){
                .round_row = j.n_rows, .n_chunks = n_chunks, .first_slot = j.n_slots, .first_task = j.n_chunk_tasks};
            it->run =
                (cpu_run){.sequence = runs[i].sequence, .row = runs[i].row + done, .position = position, .n_rows = n};
            j.n_rows += n;
            j.n_slots += n * n_chunks;
            j.n_chunk_tasks += n_chunks;
        }
    }
    round_run(&j);
}

typedef struct {
    const cpu_attention_dims *dims;
    krn_weights *weights;
    cpu_backend *backend;
} prepare_job;

/* W_UK of one layer: [head][nope_width / 2][rank_width] pairs of rows. FP8 weights are rounded to bfloat16 here: they
 * are few, the query that they multiply is rounded as much, and DeepSeek's own absorbed path does the same. */
static void prepare_task(void *context, uint32_t layer, uint32_t thread) {
    const prepare_job *j = context;
    const cpu_attention_dims *d = j->dims;
    (void)thread;
    krn_matrix *w = &j->weights->layers[layer].kv_b;
    uint32_t *packed = w->packed;
    float *rows = bt_calloc((size_t)2 * d->rank, sizeof(float));
    for (uint32_t head = 0; head < d->heads; head++) {
        for (uint32_t i = 0; i < d->nope; i += 2) {
            memset(rows, 0, (size_t)2 * d->rank * sizeof(float));
            for (uint32_t half = 0; half < 2 && i + half < d->nope; half++) {
                size_t row = (size_t)head * (d->nope + d->v) + i + half;
                float *out = rows + half * d->rank;
                krn_decode(w->data, w->dtype, row * d->rank, d->rank, out);
                if (w->dtype != MDL_F8_E4M3) continue;
                const float *scales = w->scale + row / w->block_rows * w->n_scale_cols;
                for (uint32_t c = 0; c < d->rank; c++) out[c] *= scales[c / w->block_cols];
            }
            uint32_t *out = packed + ((size_t)head * d->nope_width / 2 + i / 2) * d->rank_width;
            j->backend->isa->vector->interleave(rows, rows + d->rank, d->rank, out, CPU_V_PANEL);
        }
    }
    free(rows);
}

void cpu_attention_prepare(cpu_backend *backend, krn_weights *weights) {
    const cpu_attention_dims *d = &backend->attention->dims;
    uint32_t **w_uk = backend->attention->w_uk;
    size_t bytes = (size_t)d->heads * d->nope_width / 2 * d->rank_width * sizeof(uint32_t);
    for (uint32_t i = 0; i < backend->attention->n_layers; i++) {
        if (w_uk[i] == NULL) w_uk[i] = bt_calloc_aligned(bytes, 64);
        weights->layers[i].kv_b.packed = w_uk[i];
    }
    prepare_job j = {.dims = d, .weights = weights, .backend = backend};
    cpu_pool_run(backend->pool, backend->attention->n_layers, prepare_task, &j);
}
