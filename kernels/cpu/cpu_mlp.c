/* Gated MLPs, (silu(x · Gᵀ) * (x · Uᵀ)) · Dᵀ: of rows in order, or of pairs of (row, expert) that come grouped by
 * expert.
 *
 * Work comes in batches of runs: some rows of one MLP, as many as a task may pack. In a batch all gate and up outputs
 * are one list of tasks, all down outputs a second one, so the threads meet twice per batch, not per expert. A task is
 * some outputs of one run: weights are read once, and with few rows (decode) streamed. What lies between the lists, h,
 * is packed by the first one if the instruction set can do that (cpu_gated), else it lies in plain rows. */
#include "common/core/alloc.h"
#include "kernels/cpu/cpu.h"

enum {
    OUTPUTS = 128, /* of gate and up that are computed before silu, if h is plain: their results stay in L2 */
    MAX_RUNS = 1024,
};
_Static_assert(OUTPUTS % CPU_PANEL == 0, "tasks are cut at panels");

size_t cpu_mlp_work_bytes(void) { return (size_t)2 * OUTPUTS * CPU_ROW_BLOCK * sizeof(float); }

/* Rows of one MLP. */
typedef struct {
    const krn_mlp *mlp;
    uint32_t first, n_rows; /* in the batch */
    bool is_gated;          /* h is packed at once */
} run;

typedef struct {
    cpu_backend *backend;
    const uint16_t *x;     /* [..][hidden] */
    const krn_pair *pairs; /* the batch's, which say what rows of x it has; NULL: its rows lie in order */
    float *y;              /* [n_rows][hidden]: of pairs weighted; else added to what is there */
    uint16_t *x_packed;    /* of runs with few rows */
    uint32_t n_rows, n_runs, hidden, inter;
    uint32_t tasks_each, outputs_each; /* of the list of tasks that is being run */
    bool is_down;
    run runs[MAX_RUNS];
} batch;

static uint16_t *h_of(const batch *b, const run *r) { return b->backend->h + (size_t)r->first * b->inter; }

static uint16_t *h_packed_of(const batch *b, const run *r) {
    return b->backend->h_packed + cpu_packed_elems(r->first, b->inter);
}

/* What gate and up read. */
static cpu_rows x_rows(const batch *b, const run *r) {
    cpu_rows rows = {.x = b->x, .stride = b->hidden, .n_rows = r->n_rows, .n = b->hidden};
    if (b->pairs != NULL)
        rows.pairs = b->pairs + r->first;
    else
        rows.x += (size_t)r->first * b->hidden;
    uint32_t gate = cpu_skew(b->backend, &r->mlp->gate), up = cpu_skew(b->backend, &r->mlp->up);
    if (gate == up) rows.skew = gate;
    return rows;
}

/* What down reads. */
static cpu_rows h_rows(const batch *b, const run *r) {
    cpu_rows rows = {.x = h_of(b, r), .stride = b->inter, .n_rows = r->n_rows, .n = b->inter};
    rows.skew = cpu_skew(b->backend, &r->mlp->down);
    return rows;
}

static bool can_gate(const batch *b, const krn_mlp *mlp) {
    return b->backend->isa->has_gated && cpu_is_narrow(&mlp->gate) && cpu_is_narrow(&mlp->up) &&
           cpu_is_narrow(&mlp->down) && b->inter % CPU_PANEL == 0 && cpu_skew(b->backend, &mlp->down) % 2 == 0;
}

/* Whether the run's rows are packed once for all of its tasks: many are packed by each task where it is. */
static bool is_shared(const run *r) { return r->n_rows <= CPU_FEW_ROWS; }

static uint16_t *shared_of(const batch *b, const run *r) {
    if (b->is_down) return h_packed_of(b, r);
    return b->x_packed + (b->pairs != NULL ? cpu_packed_elems(r->first, b->hidden) : 0);
}

static void pack_task(void *context, uint32_t task, uint32_t thread) {
    const batch *b = context;
    (void)thread;
    const run *r = &b->runs[task];
    if (!is_shared(r) || (b->is_down && r->is_gated)) return;
    cpu_rows rows = b->is_down ? h_rows(b, r) : x_rows(b, r);
    b->backend->isa->pack(&rows, 0, rows.n_rows, shared_of(b, r));
}

static void pack(batch *b) {
    if (b->n_rows * (size_t)b->hidden < 64 << 10) {
        for (uint32_t i = 0; i < b->n_runs; i++) pack_task(b, i, 0);
    } else {
        cpu_pool_run(b->backend->pool, b->n_runs, pack_task, b);
    }
}

static cpu_dots dots_of(const batch *b, const run *r, uint32_t thread) {
    cpu_dots dots = {.rows = b->is_down ? h_rows(b, r) : x_rows(b, r)};
    if (is_shared(r) || (b->is_down && r->is_gated)) {
        dots.packed = shared_of(b, r);
        return dots;
    }
    uint16_t *packed = b->backend->scratch[thread].packed;
    b->backend->isa->pack(&dots.rows, 0, r->n_rows, packed);
    dots.packed = packed;
    return dots;
}

static void gate_up_plain(const batch *b, const run *r, cpu_dots dots, uint32_t first, uint32_t last, uint32_t thread) {
    const cpu_vector *vector = b->backend->isa->vector;
    float *gate = b->backend->scratch[thread].work, *up = gate + OUTPUTS * CPU_ROW_BLOCK;
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
        for (uint32_t i = 0; i < r->n_rows; i++) {
            vector->silu_mul(gate + i * OUTPUTS, up + i * OUTPUTS, n, h_of(b, r) + i * b->inter + begin);
        }
    }
}

static void gate_up_task(void *context, uint32_t task, uint32_t thread) {
    const batch *b = context;
    const run *r = &b->runs[task / b->tasks_each];
    uint32_t begin = task % b->tasks_each * b->outputs_each, end = cpu_min(begin + b->outputs_each, b->inter);
    cpu_dots dots = dots_of(b, r, thread);
    if (!r->is_gated) {
        gate_up_plain(b, r, dots, begin, end, thread);
        return;
    }
    cpu_gated gated = {.gate = &r->mlp->gate, .rows = h_rows(b, r), .packed = h_packed_of(b, r)};
    dots.gated = &gated;
    dots.w = &r->mlp->up;
    dots.n_out = b->inter;
    cpu_dots_run(b->backend, &dots, begin, end, thread);
}

static void down_task(void *context, uint32_t task, uint32_t thread) {
    const batch *b = context;
    const run *r = &b->runs[task / b->tasks_each];
    uint32_t begin = task % b->tasks_each * b->outputs_each, end = cpu_min(begin + b->outputs_each, b->hidden);
    cpu_dots dots = dots_of(b, r, thread);
    dots.w = &r->mlp->down;
    dots.n_out = b->hidden;
    dots.out_stride = b->hidden;
    dots.out = b->y + (size_t)r->first * b->hidden;
    dots.accumulate = b->pairs == NULL;
    if (b->pairs != NULL) {
        dots.weights = b->pairs + r->first;
        dots.is_streamed = r->n_rows > CPU_FEW_ROWS;
    }
    cpu_dots_run(b->backend, &dots, begin, end, thread);
}

/* Cuts n_out outputs of every run, of bytes_each bytes of weights, into tasks: some per thread, but each worth its
 * handing out; with many rows few, since each packs its rows. */
static void run_tasks(batch *b, uint32_t n_out, size_t bytes_each, cpu_task task) {
    enum { TASKS_PER_THREAD = 8, MIN_TASK_BYTES = 32 << 10 };
    uint32_t n_ranges = (cpu_pool_threads(b->backend->pool) * TASKS_PER_THREAD + b->n_runs - 1) / b->n_runs;
    uint32_t least = cpu_max((uint32_t)(MIN_TASK_BYTES / bytes_each), 2 * CPU_PANEL);
    b->outputs_each = cpu_round_up(cpu_max((n_out + n_ranges - 1) / n_ranges, least), CPU_PANEL);
    b->tasks_each = (n_out + b->outputs_each - 1) / b->outputs_each;
    cpu_pool_run(b->backend->pool, b->n_runs * b->tasks_each, task, b);
}

static void run_batch(batch *b) {
    const krn_mlp *mlp = b->runs[0].mlp;
    b->is_down = false;
    pack(b);
    run_tasks(b, b->inter, 2 * b->hidden * cpu_elem_bytes(mlp->gate.dtype), gate_up_task);
    b->is_down = true;
    pack(b);
    run_tasks(b, b->hidden, b->inter * cpu_elem_bytes(mlp->down.dtype), down_task);
}

/* n_rows of one MLP, in runs of at most `most`, as far as there is room for runs. */
static void add_runs(batch *b, const krn_mlp *mlp, uint32_t n_rows, uint32_t most) {
    uint32_t each = cpu_rows_each(n_rows, most);
    bool is_gated = can_gate(b, mlp);
    for (uint32_t n; n_rows > 0 && b->n_runs < MAX_RUNS; n_rows -= n) {
        n = cpu_min(each, n_rows);
        b->runs[b->n_runs++] = (run){.mlp = mlp, .first = b->n_rows, .n_rows = n, .is_gated = is_gated};
        b->n_rows += n;
    }
}

void cpu_mlp(krn_backend *api, const krn_mlp *mlp, const void *x_act, uint32_t n_rows, float *out) {
    cpu_backend *backend = (cpu_backend *)api;
    batch b;
    b.backend = backend;
    b.x = x_act;
    b.pairs = NULL;
    b.y = out;
    b.x_packed = backend->packed; /* runs are alike: at most one has few rows */
    b.hidden = mlp->gate.n_in;
    b.inter = mlp->gate.n_out;
    uint32_t most = cpu_rows_most(cpu_max(b.hidden, b.inter));
    for (uint32_t done = 0; done < n_rows; done += b.n_rows) {
        b.n_runs = b.n_rows = 0;
        add_runs(&b, mlp, n_rows - done, most);
        run_batch(&b);
        b.x += (size_t)b.n_rows * b.hidden;
        b.y += (size_t)b.n_rows * b.hidden;
    }
}

void cpu_experts(krn_backend *api, const krn_experts_args *args) {
    cpu_backend *backend = (cpu_backend *)api;
    const mdl_config *c = backend->limits.config;
    batch b;
    b.backend = backend;
    b.x = args->x;
    b.x_packed = backend->expert_x;
    b.hidden = c->hidden_size;
    b.inter = c->moe_intermediate_size;
    uint32_t most = cpu_rows_most(cpu_max(b.hidden, b.inter));
    for (uint32_t i = 0; i < args->n_pairs; i += b.n_rows) {
        b.pairs = args->pairs + i;
        b.y = args->y + (size_t)i * b.hidden;
        b.n_runs = b.n_rows = 0;
        while (i + b.n_rows < args->n_pairs && b.n_rows < backend->cap_pairs && b.n_runs < MAX_RUNS) {
            const krn_pair *first = b.pairs + b.n_rows;
            uint32_t n_left = cpu_min(backend->cap_pairs, args->n_pairs - i) - b.n_rows, n = 1;
            while (n < n_left && first[n].expert == first->expert) n++;
            add_runs(&b, &args->experts[first->expert], n, most);
        }
        run_batch(&b);
    }
}
