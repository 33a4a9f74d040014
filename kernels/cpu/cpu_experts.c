/* Routed experts: silu(x · Gᵀ) * (x · Uᵀ), then · Dᵀ, for pairs of (row, expert) that come grouped by expert.
 *
 * Pairs are worked off in batches of runs: some pairs of one expert, as many as a task's packed rows may be. In a batch
 * all gate and up outputs are one list of tasks, all down outputs a second one, so the threads meet twice per batch,
 * not per expert. A task is some outputs of one run: weights are read once, and with few pairs (decode) streamed. */
#include "common/core/alloc.h"
#include "kernels/cpu/cpu.h"

enum {
    OUTPUTS = 128, /* of gate and up that are computed before silu: their float32 results stay in L2 */
    MAX_RUNS = 1024,
};
_Static_assert(OUTPUTS % CPU_PANEL == 0, "tasks are cut at panels");

size_t cpu_experts_work_bytes(void) { return (size_t)2 * OUTPUTS * CPU_ROW_BLOCK * sizeof(float); }

/* Pairs of one expert. */
typedef struct {
    const krn_mlp *mlp;
    uint32_t first, n_pairs; /* in the batch */
} run;

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
    if (r->n_pairs <= CPU_FEW_ROWS) b->backend->isa->pack(&rows, 0, rows.n_rows, packed_of(b, r));
}

static void pack(batch *b) {
    if (b->n_pairs * (size_t)b->hidden < 64 << 10) {
        for (uint32_t i = 0; i < b->n_runs; i++) pack_task(b, i, 0);
    } else {
        cpu_pool_run(b->backend->pool, b->n_runs, pack_task, b);
    }
}

/* The run's rows, packed: before, if they are few, or now. */
static cpu_dots dots_of(const batch *b, const run *r, uint32_t thread) {
    cpu_dots dots = {.rows = rows_of(b, r), .packed = packed_of(b, r)};
    if (r->n_pairs > CPU_FEW_ROWS) {
        dots.packed = b->backend->scratch[thread].packed;
        b->backend->isa->pack(&dots.rows, 0, r->n_pairs, b->backend->scratch[thread].packed);
    }
    return dots;
}

static void gate_up_task(void *context, uint32_t task, uint32_t thread) {
    const batch *b = context;
    const run *r = &b->runs[task / b->tasks_each];
    const cpu_vector *vector = b->backend->isa->vector;
    float *gate = b->backend->scratch[thread].work, *up = gate + OUTPUTS * CPU_ROW_BLOCK;
    uint32_t first = task % b->tasks_each * b->outputs_each, last = cpu_min(first + b->outputs_each, b->inter);
    cpu_dots dots = dots_of(b, r, thread);
    dots.out_stride = OUTPUTS;
    for (uint32_t begin = first; begin < last; begin += OUTPUTS) {
        uint32_t n = cpu_min(OUTPUTS, last - begin);
        dots.first_row = begin;
        dots.n_out = b->inter - begin;
        dots.w = &r->mlp->gate;
        dots.out = gate;
        cpu_dots_run(b->backend, &dots, 0, n, thread);
        dots.w = &r->mlp->up;
        dots.out = up;
        cpu_dots_run(b->backend, &dots, 0, n, thread);
        for (uint32_t i = 0; i < r->n_pairs; i++) {
            uint16_t *h = b->backend->expert_h + (size_t)(r->first + i) * b->inter;
            vector->silu_mul(gate + i * OUTPUTS, up + i * OUTPUTS, n, h + begin);
        }
    }
}

static void down_task(void *context, uint32_t task, uint32_t thread) {
    const batch *b = context;
    const run *r = &b->runs[task / b->tasks_each];
    uint32_t begin = task % b->tasks_each * b->outputs_each, end = cpu_min(begin + b->outputs_each, b->hidden);
    cpu_dots dots = dots_of(b, r, thread);
    dots.w = &r->mlp->down;
    dots.n_out = b->hidden;
    dots.out_stride = b->hidden;
    dots.out = b->args->y + (size_t)(b->first + r->first) * b->hidden;
    dots.weights = b->args->pairs + b->first + r->first;
    dots.is_streamed = r->n_pairs > CPU_FEW_ROWS;
    cpu_dots_run(b->backend, &dots, begin, end, thread);
}

/* Cuts n_out outputs of every run into as few tasks as give every thread enough to do. */
static uint32_t cut(batch *b, uint32_t n_out) {
    enum { TASKS_PER_THREAD = 8, MIN_OUTPUTS = 64 };
    uint32_t n_ranges = (cpu_pool_threads(b->backend->pool) * TASKS_PER_THREAD + b->n_runs - 1) / b->n_runs;
    b->outputs_each = cpu_round_up(cpu_max((n_out + n_ranges - 1) / n_ranges, MIN_OUTPUTS), CPU_PANEL);
    b->tasks_each = (n_out + b->outputs_each - 1) / b->outputs_each;
    return b->n_runs * b->tasks_each;
}

static void batch_run(batch *b) {
    cpu_pool *pool = b->backend->pool;
    b->is_down = false;
    pack(b);
    cpu_pool_run(pool, cut(b, b->inter), gate_up_task, b);
    b->is_down = true;
    pack(b);
    cpu_pool_run(pool, cut(b, b->hidden), down_task, b);
}

void cpu_experts(krn_backend *api, const krn_experts_args *args) {
    cpu_backend *backend = (cpu_backend *)api;
    const mdl_config *c = backend->limits.config;
    batch b = {.backend = backend, .args = args, .hidden = c->hidden_size, .inter = c->moe_intermediate_size};
    uint32_t rows_each = cpu_rows_each(cpu_max(b.hidden, b.inter));
    for (uint32_t i = 0; i < args->n_pairs;) {
        b.first = i;
        b.n_runs = b.n_pairs = 0;
        while (i < args->n_pairs && b.n_pairs < backend->cap_pairs && b.n_runs < MAX_RUNS) {
            uint32_t expert = args->pairs[i].expert, n = 0, room = cpu_min(backend->cap_pairs - b.n_pairs, rows_each);
            while (i + n < args->n_pairs && n < room && args->pairs[i + n].expert == expert) n++;
            b.runs[b.n_runs++] = (run){.mlp = &args->experts[expert], .first = b.n_pairs, .n_pairs = n};
            b.n_pairs += n;
            i += n;
        }
        batch_run(&b);
    }
}
