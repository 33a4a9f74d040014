/* The expanded form, for prompts: each head's keys and values are rebuilt from the latents, 16 KV blocks at a time, and
 * all rows of the sequence pass over them with an online softmax, in ascending steps of 256 positions.
 *
 * First the sequence's latents are packed once for all heads; then a task is one head, or with more threads than heads
 * one head and a part of the rows. K is kept as interleaved pairs along its width and V along the tokens: what `pairs`
 * wants on its right, so neither needs a transposition: the kernel that rebuilds them writes K by output and V by
 * token. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu_attention.h"

enum {
    TOKENS = KV_BLOCK_TOKENS,
    STEP_TOKENS = CPU_STEP_BLOCKS * TOKENS,
    EXPAND_TOKENS = CPU_EXPAND_BLOCKS * TOKENS,
    ROW_TILE = 32, /* rows whose scores of a step stay in L1 */
};

/* One thread's memory. */
typedef struct {
    uint16_t *q;         /* [max_rows][key_width] */
    float *sums;         /* [max_rows][v_width] */
    cpu_softmax *states; /* [max_rows] */
    float *k_float;      /* [nope made even][STEP_TOKENS] */
    float *v_float;      /* [STEP_TOKENS][v] */
    uint32_t *k;         /* [CPU_EXPAND_BLOCKS][key_width / 2][TOKENS] */
    uint32_t *v;         /* [EXPAND_TOKENS / 2][v_width] */
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
    w->k_float = cpu_take(base, &at, (size_t)(d->nope + 1) * STEP_TOKENS * 4);
    w->v_float = cpu_take(base, &at, (size_t)STEP_TOKENS * d->v * 4);
    w->k = cpu_take(base, &at, (size_t)EXPAND_TOKENS * d->key_width / 2 * 4);
    w->v = cpu_take(base, &at, (size_t)EXPAND_TOKENS / 2 * d->v_width * 4);
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

/* One KV block: latents packed (or plain, if kv_b is of a type that is not packed), rotated keys in pairs. */
static void pack_task(void *context, uint32_t block, uint32_t thread) {
    const job *j = context;
    (void)thread;
    cpu_attention_memory *m = j->backend->attention;
    const cpu_attention_dims *d = &m->dims;
    uint32_t n = cpu_min(TOKENS, j->n_context - block * TOKENS);
    const uint16_t *cached = cpu_cached(j->args, j->run->sequence, block * TOKENS);
    uint16_t *out = m->latents + block * cpu_packed_elems(TOKENS, d->rank);
    if (cpu_is_narrow(&j->args->layer->kv_b)) {
        cpu_rows rows = {.x = cached, .stride = d->width, .n_rows = n, .n = d->rank};
        j->backend->isa->pack(&rows, 0, n, out);
    } else {
        size_t stride = cpu_round_up(d->rank, CPU_K_STEP);
        for (uint32_t t = 0; t < n; t++) memcpy(out + t * stride, cached + t * d->width, d->rank * sizeof(*out));
    }
    uint32_t *keys = m->rope_keys + (size_t)block * d->rope / 2 * TOKENS;
    for (uint32_t t = 0; t < n; t++) {
        const uint16_t *key = cached + t * d->width + d->rank;
        for (uint32_t i = 0; i < d->rope / 2; i++) keys[i * TOKENS + t] = key[2 * i] | (uint32_t)key[2 * i + 1] << 16;
    }
}

/* The head's K and V of a step's tokens, up to n_context, to their place in w. */
static void expand(const job *j, const work *w, uint32_t head, uint32_t start, uint32_t thread) {
    const cpu_attention_memory *m = j->backend->attention;
    const cpu_attention_dims *d = &m->dims;
    const cpu_vector *vector = j->backend->isa->vector;
    uint32_t n = cpu_min(STEP_TOKENS, j->n_context - start), block = start / TOKENS;
    const uint16_t *latents = m->latents + block * cpu_packed_elems(TOKENS, d->rank);
    cpu_dots dots = {.w = &j->args->layer->kv_b, .first_row = head * (d->nope + d->v), .packed = latents};
    dots.rows = (cpu_rows){.x = latents, .stride = cpu_round_up(d->rank, CPU_K_STEP), .n_rows = n, .n = d->rank};
    dots.n_out = d->nope;
    dots.out = w->k_float;
    dots.out_stride = STEP_TOKENS;
    dots.is_by_output = true;
    cpu_dots_run(j->backend, &dots, 0, d->nope, thread);
    dots.first_row += d->nope;
    dots.n_out = d->v;
    dots.out = w->v_float;
    dots.out_stride = d->v;
    dots.is_by_output = false;
    cpu_dots_run(j->backend, &dots, 0, d->v, thread);

    uint32_t n_blocks = kv_blocks_for(n), nope_even = cpu_round_up(d->nope, 2);
    memset(w->v_float + (size_t)n * d->v, 0, (size_t)(n_blocks * TOKENS - n) * d->v * sizeof(float));
    if (nope_even > d->nope) memset(w->k_float + (size_t)d->nope * STEP_TOKENS, 0, STEP_TOKENS * sizeof(float));
    for (uint32_t b = 0; b < n_blocks; b++) {
        uint32_t *k = w->k + (size_t)((block + b) % CPU_EXPAND_BLOCKS) * d->key_width / 2 * TOKENS;
        const float *even = w->k_float + b * TOKENS;
        for (uint32_t i = 0; i < nope_even; i += 2, even += 2 * STEP_TOKENS, k += TOKENS) {
            vector->interleave(even, even + STEP_TOKENS, TOKENS, k);
        }
        memcpy(k, m->rope_keys + (size_t)(block + b) * d->rope / 2 * TOKENS, (size_t)d->rope / 2 * TOKENS * sizeof(*k));
        k += (size_t)d->rope / 2 * TOKENS; /* padding: queries are 0 there, but 0 times a stale NaN is one */
        memset(k, 0, (size_t)(d->key_width - nope_even - d->rope) / 2 * TOKENS * sizeof(*k));
    }
    uint32_t *v = w->v + (size_t)(start % EXPAND_TOKENS) / 2 * d->v_width;
    const float *v_float = w->v_float;
    for (uint32_t t = 0; t < n_blocks * TOKENS; t += 2, v_float += 2 * d->v, v += d->v_width) {
        vector->interleave(v_float, v_float + d->v, d->v, v);
    }
}

/* Rows first..first+n_rows (at most ROW_TILE) of the task over one step's tokens, as far as the last row sees them. */
static void attend(const job *j, const work *w, uint32_t position, uint32_t first, uint32_t n_rows, uint32_t start,
                   uint32_t thread) {
    const cpu_attention_dims *d = &j->backend->attention->dims;
    const cpu_isa *isa = j->backend->isa;
    uint32_t at = start % EXPAND_TOKENS;
    uint32_t n = cpu_round_up(cpu_n_seen(position + first + n_rows - 1, start, STEP_TOKENS), CPU_K_STEP);
    cpu_pairs scores = {.p = w->q + (size_t)first * d->key_width, .p_stride = d->key_width, .n_rows = n_rows};
    scores.n_j = d->key_width;
    scores.v_stride = TOKENS;
    scores.out_stride = STEP_TOKENS;
    for (uint32_t t = 0; t < n; t += TOKENS) {
        scores.v = w->k + (size_t)(at + t) * d->key_width / 2;
        scores.n = cpu_min(TOKENS, n - t);
        scores.out = w->scores + t;
        isa->pairs(&scores, &j->backend->scratch[thread]);
    }
    for (uint32_t i = 0; i < n_rows; i++) {
        uint32_t n_seen = cpu_n_seen(position + first + i, start, STEP_TOKENS);
        w->alpha[i] = isa->vector->softmax(w->scores + i * STEP_TOKENS, n_seen, n, d->scale, &w->states[first + i],
                                           w->p + i * STEP_TOKENS);
    }
    cpu_pairs sums = {.p = w->p, .p_stride = STEP_TOKENS, .n_rows = n_rows, .n_j = n, .alpha = w->alpha};
    sums.v = w->v + (size_t)at / 2 * d->v_width;
    sums.v_stride = d->v_width;
    sums.n = d->v_width;
    sums.out_stride = d->v_width;
    sums.out = w->sums + (size_t)first * d->v_width;
    isa->pairs(&sums, &j->backend->scratch[thread]);
}

/* The head's queries of the task's rows: rounded, rotated, laid out like K. */
static void take_queries(const job *j, const work *w, uint32_t head, uint32_t row, uint32_t n_rows) {
    const cpu_attention_dims *d = &j->backend->attention->dims;
    uint32_t head_width = d->nope + d->rope, nope_even = cpu_round_up(d->nope, 2);
    for (uint32_t i = 0; i < n_rows; i++) {
        const float *q = j->args->q + ((size_t)(row + i) * d->heads + head) * head_width;
        uint16_t *out = w->q + (size_t)i * d->key_width;
        memset(out, 0, d->key_width * sizeof(*out));
        j->backend->isa->vector->to_bf16(q, d->nope, 1.0f, out);
        j->backend->isa->vector->rotate(q + d->nope, j->args->cos_sin + (size_t)(row + i) * d->rope, d->rope,
                                        out + nope_even);
        w->states[i] = (cpu_softmax){.max = -INFINITY};
    }
    memset(w->sums, 0, (size_t)n_rows * d->v_width * sizeof(float));
}

static void head_task(void *context, uint32_t task, uint32_t thread) {
    const job *j = context;
    const cpu_attention_dims *d = &j->backend->attention->dims;
    uint32_t head = task % d->heads, skip = task / d->heads * j->rows_each;
    uint32_t n_rows = cpu_min(j->rows_each, j->run->n_rows - skip), row = j->run->row + skip;
    uint32_t position = j->run->position + skip, n_seen = position + n_rows;
    work w;
    work_layout(j->backend->attention, j->backend->scratch[thread].work, &w);
    take_queries(j, &w, head, row, n_rows);
    for (uint32_t start = 0; start < n_seen; start += EXPAND_TOKENS) {
        uint32_t end = cpu_min(start + EXPAND_TOKENS, n_seen);
        for (uint32_t t = start; t < end; t += STEP_TOKENS) expand(j, &w, head, t, thread);
        for (uint32_t first = 0; first < n_rows; first += ROW_TILE) {
            uint32_t n = cpu_min(ROW_TILE, n_rows - first), visible = cpu_min(end, position + first + n);
            for (uint32_t t = start; t < visible; t += STEP_TOKENS) attend(j, &w, position, first, n, t, thread);
        }
    }
    for (uint32_t i = 0; i < n_rows; i++) {
        uint16_t *out = (uint16_t *)j->args->out + ((size_t)(row + i) * d->heads + head) * d->v;
        j->backend->isa->vector->to_bf16(w.sums + (size_t)i * d->v_width, d->v, 1.0f / w.states[i].sum, out);
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
