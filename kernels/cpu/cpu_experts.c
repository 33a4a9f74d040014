/* Routed experts: silu(x · Gᵀ) * (x · Uᵀ), then · Dᵀ, for pairs of (row, expert) that come grouped by expert.
 *
 * Pairs are worked off in batches of whole or cut experts that fit the scratch memory. In a batch all experts' gate and
 * up outputs are one list of tasks, all down outputs a second one, so the threads meet twice per batch, not per expert.
 * A task is some outputs of one expert for all its pairs: weights are read once, and with few pairs (decode) streamed.
 */
#include "common/core/alloc.h"
#include "kernels/cpu/cpu.h"

enum { OUTPUTS = 64, ROWS = 128 }; /* of a gate-and-up task: its float32 results, 2 x 32 KiB, stay in L2 */
_Static_assert(ROWS % CPU_PACK_ROWS == 0 && OUTPUTS % CPU_PANEL == 0, "tasks are cut at panels and packed blocks");

size_t cpu_experts_work_bytes(void) { return (size_t)2 * OUTPUTS * ROWS * sizeof(float); }

/* A run of pairs of one expert. */
typedef struct {
    const krn_mlp *mlp;
    uint32_t first, n_pairs; /* in the batch */
} run;

enum { MAX_RUNS = 1024 };

typedef struct {
    cpu_backend *backend;
    const krn_experts_args *args;
    uint32_t first, n_pairs; /* of the batch, in args->pairs */
    run runs[MAX_RUNS];
    uint32_t n_runs, hidden, inter;
    uint32_t tasks_each, outputs_each; /* of the list of tasks that is being run */
    bool is_down;
} batch;

static cpu_rows rows_of(const batch *b, const run *r) {
    const cpu_backend *backend = b->backend;
    if (b->is_down) {
        const uint16_t *h = backend->expert_h + (size_t)r->first * b->inter;
        return (cpu_rows){.x = h, .stride = b->inter, .n_rows = r->n_pairs, .n = b->inter};
    }
    const krn_pair *pairs = b->args->pairs + b->first + r->first;
    return (cpu_rows){.x = b->args->x, .stride = b->hidden, .pairs = pairs, .n_rows = r->n_pairs, .n = b->hidden};
}

static uint16_t *packed_of(const batch *b, const run *r) {
    uint16_t *packed = b->is_down ? b->backend->expert_h_packed : b->backend->expert_x;
    return packed + cpu_packed_elems(r->first, b->is_down ? b->inter : b->hidden);
}

static void pack_task(void *context, uint32_t task, uint32_t thread) {
    const batch *b = context;
    (void)thread;
    const run *r = &b->runs[task];
    cpu_rows rows = rows_of(b, r);
    b->backend->isa->pack(&rows, 0, rows.n_rows, packed_of(b, r));
}

static void pack(batch *b) {
    if (b->n_pairs * (size_t)b->hidden < 64 << 10) {
        for (uint32_t i = 0; i < b->n_runs; i++) pack_task(b, i, 0);
    } else {
        cpu_pool_run(b->backend->pool, b->n_runs, pack_task, b);
    }
}

/* `n` rows of a run from `first`, a multiple of CPU_PACK_ROWS. */
static cpu_dots part_of(const batch *b, const run *r, const krn_matrix *w, uint32_t first, uint32_t n) {
    cpu_dots dots = {.w = w, .n_out = w->n_out, .rows = rows_of(b, r)};
    if (dots.rows.pairs != NULL)
        dots.rows.pairs += first;
    else
        dots.rows.x += first * dots.rows.stride;
    dots.rows.n_rows = n;
    dots.packed = packed_of(b, r) + cpu_packed_elems(first, w->n_in);
    return dots;
}

static void gate_up_task(void *context, uint32_t task, uint32_t thread) {
    const batch *b = context;
    const run *r = &b->runs[task / b->tasks_each];
    const cpu_vector *vector = b->backend->isa->vector;
    float *gate = b->backend->scratch[thread].work, *up = gate + OUTPUTS * ROWS;
    uint32_t begin = task % b->tasks_each * OUTPUTS, end = cpu_min(begin + OUTPUTS, b->inter);
    for (uint32_t first = 0; first < r->n_pairs; first += ROWS) {
        uint32_t n = cpu_min(ROWS, r->n_pairs - first);
        cpu_dots dots = part_of(b, r, &r->mlp->gate, first, n);
        dots.first_row = begin;
        dots.n_out = b->inter - begin;
        dots.out_stride = OUTPUTS;
        dots.out = gate;
        cpu_dots_run(b->backend, &dots, 0, end - begin, thread);
        dots.w = &r->mlp->up;
        dots.out = up;
        cpu_dots_run(b->backend, &dots, 0, end - begin, thread);
        for (uint32_t i = 0; i < n; i++) {
            uint16_t *h = b->backend->expert_h + (size_t)(r->first + first + i) * b->inter;
            vector->silu_mul(gate + i * OUTPUTS, up + i * OUTPUTS, end - begin, h + begin);
        }
    }
}

static void down_task(void *context, uint32_t task, uint32_t thread) {
    const batch *b = context;
    const run *r = &b->runs[task / b->tasks_each];
    uint32_t begin = task % b->tasks_each * b->outputs_each, end = cpu_min(begin + b->outputs_each, b->hidden);
    cpu_dots dots = part_of(b, r, &r->mlp->down, 0, r->n_pairs);
    dots.out_stride = b->hidden;
    dots.out = b->args->y + (size_t)(b->first + r->first) * b->hidden;
    cpu_dots_run(b->backend, &dots, begin, end, thread);
    const krn_pair *pairs = b->args->pairs + b->first + r->first;
    for (uint32_t i = 0; i < r->n_pairs; i++) {
        b->backend->isa->vector->scale(dots.out + (size_t)i * b->hidden + begin, end - begin, pairs[i].weight);
    }
}

static void batch_run(batch *b) {
    cpu_pool *pool = b->backend->pool;
    b->is_down = false;
    pack(b);
    b->tasks_each = (b->inter + OUTPUTS - 1) / OUTPUTS;
    cpu_pool_run(pool, b->n_runs * b->tasks_each, gate_up_task, b);
    b->is_down = true;
    pack(b);
    b->outputs_each = 4 * OUTPUTS;
    b->tasks_each = (b->hidden + b->outputs_each - 1) / b->outputs_each;
    cpu_pool_run(pool, b->n_runs * b->tasks_each, down_task, b);
}

void cpu_experts(krn_backend *api, const krn_experts_args *args) {
    cpu_backend *backend = (cpu_backend *)api;
    const mdl_config *c = backend->limits.config;
    batch b = {.backend = backend, .args = args, .hidden = c->hidden_size, .inter = c->moe_intermediate_size};
    for (uint32_t i = 0; i < args->n_pairs;) {
        b.first = i;
        b.n_runs = b.n_pairs = 0;
        while (i < args->n_pairs && b.n_pairs < backend->cap_pairs && b.n_runs < MAX_RUNS) {
            uint32_t expert = args->pairs[i].expert, n = 0, room = backend->cap_pairs - b.n_pairs;
            while (i + n < args->n_pairs && n < room && args->pairs[i + n].expert == expert) n++;
            b.runs[b.n_runs++] = (run){.mlp = &args->experts[expert], .first = b.n_pairs, .n_pairs = n};
            b.n_pairs += n;
            i += n;
        }
        batch_run(&b);
    }
}
