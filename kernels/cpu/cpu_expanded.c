/* The expanded form, for prompts: each head's keys and values are rebuilt from the latents, 1024 positions at a time,
 * and all rows of the sequence pass over them with an online softmax, in ascending steps of 512 positions.
 *
 * First the sequence's latents are packed once for all heads; then a task is one head, or with more threads than heads
 * one head and a part of the rows. K is kept as interleaved pairs along its width and V along the tokens: what `pairs`
 * wants on its right, so neither needs a transposition: the kernel that rebuilds them writes K by output and V by
 * token. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu_attention.h"

/* Positions; each starts at multiples of itself. */
enum {
    TOKENS = KV_BLOCK_TOKENS,
    REBUILD_TOKENS = 256, /* rebuilt by one call of the kernel: its float output stays in L2 */
    STEP_TOKENS = 512,    /* scores under one maximum: more of them cost the same rescaling, but leave L2 */
    PASS_TOKENS = 1024,   /* K and V that stay in L2 while rows pass: more of them, and rows come less often */
};

enum {
    ROW_TILE = 32,     /* rows that are multiplied and weighed together */
    QUERIES_AHEAD = 2, /* rows whose queries are fetched: they lie pages apart */
};

/* One thread's memory. */
typedef struct {
    uint16_t *q;         /* [max_rows][key_width] */
    float *sums;         /* [max_rows][v_width] */
    cpu_softmax *states; /* [max_rows] */
    float *k_float;      /* [nope made even][REBUILD_TOKENS] */
    float *v_float;      /* [REBUILD_TOKENS][v] */
    uint32_t *k;         /* panels: [PASS_TOKENS / CPU_V_PANEL][key_width / 2][CPU_V_PANEL] */
    uint32_t *v;         /* panels: [v_width made whole panels / CPU_V_PANEL][PASS_TOKENS / 2][CPU_V_PANEL] */
    float *scores;       /* [ROW_TILE][STEP_TOKENS] */
    uint16_t *p;         /* [ROW_TILE][STEP_TOKENS] */
    float *alpha;        /* [ROW_TILE] */
} work;

static size_t work_layout(const cpu_attention_memory *m, void *base, work *w) {
    const cpu_attention_dims *d = &m->dims;
    size_t at = 0;
    w->q = cpu_take(base, &at, (size_t)m->max_rows * d->key_width * 2);
    w->sums = cpu_take(base, &at, (size_t)m->max_rows * d->v_width * 4);
    w->states = cpu_take(base, &at, m->max_rows * sizeof(cpu_softmax));
    w->k_float = cpu_take(base, &at, (size_t)(d->nope + 1) * REBUILD_TOKENS * 4);
    w->v_float = cpu_take(base, &at, (size_t)REBUILD_TOKENS * d->v * 4);
    w->k = cpu_take(base, &at, (size_t)PASS_TOKENS * d->key_width / 2 * 4);
    w->v = cpu_take(base, &at, (size_t)PASS_TOKENS / 2 * cpu_round_up(d->v_width, CPU_V_PANEL) * 4);
    w->scores = cpu_take(base, &at, (size_t)ROW_TILE * STEP_TOKENS * 4);
    w->p = cpu_take(base, &at, (size_t)ROW_TILE * STEP_TOKENS * 2);
    w->alpha = cpu_take(base, &at, (size_t)ROW_TILE * 4);
    return at;
}

size_t cpu_expanded_work_bytes(const cpu_attention_memory *memory) {
    work w;
    return work_layout(memory, NULL, &w);
}

typedef struct {
    cpu_backend *backend;
    const krn_attention_args *args;
    const cpu_run *run;
    uint32_t n_context; /* positions that are in the cache */
    uint32_t rows_each; /* of a task */
} job;

/* The sequence's latents, as what multiplies kv_b. */
static cpu_rows latent_rows(const job *j, uint32_t n) {
    const cpu_attention_dims *d = &j->backend->attention->dims;
    cpu_rows rows = {.stride = d->width, .n_rows = n, .n = d->rank};
    rows.skew = cpu_skew(j->backend, &j->args->layer->kv_b);
    return rows;
}

/* One KV block: latents packed (or plain, if kv_b is of a type that is not packed), rotated keys in pairs. */
static void pack_task(void *context, uint32_t block, uint32_t thread) {
    const job *j = context;
    (void)thread;
    cpu_attention_memory *m = j->backend->attention;
    const cpu_attention_dims *d = &m->dims;
    uint32_t n = cpu_min(TOKENS, j->n_context - block * TOKENS);
    const uint16_t *cached = cpu_cached(j->args, j->run->sequence, block * TOKENS);
    cpu_rows rows = latent_rows(j, n);
    size_t width = cpu_round_up(d->rank, CPU_K_STEP);
    uint16_t *out = m->latents + block * TOKENS * width;
    rows.x = cached;
    if (cpu_is_narrow(&j->args->layer->kv_b)) {
        j->backend->isa->pack(&rows, 0, n, out);
    } else {
        for (uint32_t t = 0; t < n; t++) memcpy(out + t * width, cpu_row(&rows, t), d->rank * sizeof(*out));
    }
    for (uint32_t t = 0; t < n; t++) {
        const uint16_t *key = cached + t * d->width + d->rank;
        size_t panel = (block * TOKENS + t) / CPU_V_PANEL;
        uint32_t *pairs = m->rope_keys + panel * d->rope / 2 * CPU_V_PANEL + t % CPU_V_PANEL;
        for (uint32_t i = 0; i < d->rope; i += 2, pairs += CPU_V_PANEL) *pairs = key[i] | (uint32_t)key[i + 1] << 16;
    }
}

/* The head's K and V of REBUILD_TOKENS positions, up to n_context, to their place in w. */
static void rebuild(const job *j, const work *w, uint32_t head, uint32_t start, uint32_t thread) {
    const cpu_attention_memory *m = j->backend->attention;
    const cpu_attention_dims *d = &m->dims;
    const cpu_vector *vector = j->backend->isa->vector;
    uint32_t n = cpu_min(REBUILD_TOKENS, j->n_context - start);
    cpu_dots dots = {.w = &j->args->layer->kv_b, .first_row = head * (d->nope + d->v), .rows = latent_rows(j, n)};
    dots.rows.stride = cpu_round_up(d->rank, CPU_K_STEP);
    dots.rows.x = dots.packed = m->latents + start * dots.rows.stride;
    dots.n_out = d->nope;
    dots.out = w->k_float;
    dots.out_stride = REBUILD_TOKENS;
    dots.is_by_output = true;
    cpu_dots_run(j->backend, &dots, 0, d->nope, thread);
    dots.first_row += d->nope;
    dots.n_out = d->v;
    dots.out = w->v_float;
    dots.out_stride = d->v;
    dots.is_by_output = false;
    cpu_dots_run(j->backend, &dots, 0, d->v, thread);

    uint32_t n_padded = cpu_round_up(n, CPU_V_PANEL), nope_even = cpu_round_up(d->nope, 2);
    memset(w->v_float + (size_t)n * d->v, 0, (size_t)(n_padded - n) * d->v * sizeof(float));
    if (nope_even > d->nope) memset(w->k_float + (size_t)d->nope * REBUILD_TOKENS, 0, REBUILD_TOKENS * sizeof(float));
    size_t panel = (size_t)d->key_width / 2 * CPU_V_PANEL;
    uint32_t *k = w->k + start % PASS_TOKENS / CPU_V_PANEL * panel;
    const float *even = w->k_float;
    for (uint32_t i = 0; i < nope_even; i += 2, even += 2 * REBUILD_TOKENS, k += CPU_V_PANEL) {
        vector->interleave(even, even + REBUILD_TOKENS, n_padded, k, panel);
    }
    size_t n_rope = (size_t)d->rope / 2 * CPU_V_PANEL, n_rest = (size_t)(d->key_width - nope_even) / 2 * CPU_V_PANEL;
    for (uint32_t t = 0; t < n_padded; t += CPU_V_PANEL, k += panel) {
        memcpy(k, m->rope_keys + (size_t)(start + t) / CPU_V_PANEL * n_rope, n_rope * sizeof(*k));
        memset(k + n_rope, 0, (n_rest - n_rope) * sizeof(*k)); /* queries are 0 there, but 0 times a stale NaN is one */
    }
    uint32_t *v = w->v + start % PASS_TOKENS / 2 * CPU_V_PANEL;
    const float *v_float = w->v_float;
    for (uint32_t t = 0; t < n_padded; t += 2, v_float += 2 * d->v, v += CPU_V_PANEL) {
        vector->interleave(v_float, v_float + d->v, d->v, v, PASS_TOKENS / 2 * CPU_V_PANEL);
    }
}

/* A head's rows, or a part of them. */
typedef struct {
    const job *j;
    const work *w;
    uint32_t thread, head;
    uint32_t row, position, n_rows; /* the first row: of the call, and its place in the sequence */
} task;

/* Queries of rows first..end: rounded, rotated, laid out like K. */
static void take_queries(const task *t, uint32_t first, uint32_t end) {
    const cpu_attention_dims *d = &t->j->backend->attention->dims;
    const krn_attention_args *args = t->j->args;
    const cpu_vector *vector = t->j->backend->isa->vector;
    uint32_t nope_even = cpu_round_up(d->nope, 2), n = nope_even + d->rope, head_width = d->nope + d->rope;
    for (uint32_t i = first; i < end; i++) {
        const float *q = args->q + ((size_t)(t->row + i) * d->heads + t->head) * head_width;
        const float *ahead = q + (size_t)QUERIES_AHEAD * d->heads * head_width;
        for (uint32_t k = 0; i + QUERIES_AHEAD < t->n_rows && k < head_width; k += CPU_GROUP)
            __builtin_prefetch(ahead + k);
        uint16_t *out = t->w->q + (size_t)i * d->key_width;
        vector->to_bf16(q, d->nope, 1.0f, out);
        if (nope_even > d->nope) out[d->nope] = 0;
        vector->rotate(q + d->nope, args->cos_sin + (size_t)(t->row + i) * d->rope, d->rope, out + nope_even);
        memset(out + n, 0, (d->key_width - n) * sizeof(*out));
        t->w->states[i] = (cpu_softmax){.max = -INFINITY};
    }
}

static void put_rows(const task *t, uint32_t first, uint32_t end) {
    const cpu_attention_dims *d = &t->j->backend->attention->dims;
    for (uint32_t i = first; i < end; i++) {
        uint16_t *out = (uint16_t *)t->j->args->out + ((size_t)(t->row + i) * d->heads + t->head) * d->v;
        float factor = 1.0f / t->w->states[i].sum;
        t->j->backend->isa->vector->to_bf16(t->w->sums + (size_t)i * d->v_width, d->v, factor, out);
    }
}

/* Rows first..first+n_rows (at most ROW_TILE) over the step at `start`, as far as the last row sees. */
static void attend(const task *t, uint32_t first, uint32_t n_rows, uint32_t start) {
    const cpu_attention_dims *d = &t->j->backend->attention->dims;
    const cpu_isa *isa = t->j->backend->isa;
    const cpu_scratch *scratch = &t->j->backend->scratch[t->thread];
    const work *w = t->w;
    uint32_t position = t->position + first, at = start % PASS_TOKENS;
    uint32_t n = cpu_round_up(cpu_n_seen(position + n_rows - 1, start, STEP_TOKENS), CPU_K_STEP);
    cpu_pairs scores = {.p = w->q + (size_t)first * d->key_width, .p_stride = d->key_width, .n_rows = n_rows, .n = n};
    scores.n_j = d->key_width;
    scores.v_stride = CPU_V_PANEL;
    scores.v_panel = (size_t)d->key_width / 2 * CPU_V_PANEL;
    scores.v = w->k + at / CPU_V_PANEL * scores.v_panel;
    scores.out = w->scores;
    scores.out_stride = STEP_TOKENS;
    isa->pairs(&scores, scratch);
    for (uint32_t i = 0; i < n_rows; i++) {
        uint32_t n_seen = cpu_n_seen(position + i, start, STEP_TOKENS);
        w->alpha[i] = isa->vector->softmax(w->scores + i * STEP_TOKENS, n_seen, n, d->scale, &w->states[first + i],
                                           w->p + i * STEP_TOKENS);
    }
    cpu_pairs sums = {.p = w->p, .p_stride = STEP_TOKENS, .n_rows = n_rows, .n_j = n};
    sums.alpha = start == 0 ? NULL : w->alpha; /* before the first step nothing was summed */
    sums.v = w->v + at / 2 * CPU_V_PANEL;
    sums.v_stride = CPU_V_PANEL;
    sums.v_panel = PASS_TOKENS / 2 * CPU_V_PANEL;
    sums.n = d->v_width;
    sums.out = w->sums + (size_t)first * d->v_width;
    sums.out_stride = d->v_width;
    isa->pairs(&sums, scratch);
}

static void head_task(void *context, uint32_t index, uint32_t thread) {
    const job *j = context;
    const cpu_attention_dims *d = &j->backend->attention->dims;
    uint32_t skip = index / d->heads * j->rows_each;
    work w;
    work_layout(j->backend->attention, j->backend->scratch[thread].work, &w);
    task t = {.j = j, .w = &w, .thread = thread, .head = index % d->heads};
    t.row = j->run->row + skip;
    t.position = j->run->position + skip;
    t.n_rows = cpu_min(j->rows_each, j->run->n_rows - skip);
    for (uint32_t begin = 0, end; begin < t.position + t.n_rows; begin = end) {
        end = cpu_min(begin + PASS_TOKENS, t.position + t.n_rows);
        for (uint32_t at = begin; at < end; at += REBUILD_TOKENS) rebuild(j, &w, t.head, at, thread);
        for (uint32_t first = 0; first < t.n_rows; first += ROW_TILE) {
            uint32_t n_rows = cpu_min(ROW_TILE, t.n_rows - first), n_seen = t.position + first + n_rows;
            if (begin == 0) take_queries(&t, first, first + n_rows);
            for (uint32_t at = begin; at < cpu_min(end, n_seen); at += STEP_TOKENS) attend(&t, first, n_rows, at);
            if (begin < n_seen && n_seen <= end) put_rows(&t, first, first + n_rows);
        }
    }
}

void cpu_expanded(cpu_backend *backend, const krn_attention_args *args, const cpu_run *run) {
    job j = {.backend = backend, .args = args, .run = run, .n_context = run->position + run->n_rows};
    const cpu_attention_dims *d = &backend->attention->dims;
    cpu_pool_run(backend->pool, kv_blocks_for(j.n_context), pack_task, &j);
    uint32_t n_threads = cpu_pool_threads(backend->pool), n_parts = (n_threads + d->heads - 1) / d->heads;
    j.rows_each = cpu_max(cpu_round_up((run->n_rows + n_parts - 1) / n_parts, ROW_TILE), ROW_TILE);
    n_parts = (run->n_rows + j.rows_each - 1) / j.rows_each;
    cpu_pool_run(backend->pool, d->heads * n_parts, head_task, &j);
}
