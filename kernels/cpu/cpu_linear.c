/* Linears: few rows are packed once, then ranges of outputs are handed out; many rows are handed out in blocks, whose
 * tasks pack them where they are used.
 *
 * A task is a multiple of CPU_PANEL outputs. Work that a single thread does in a few microseconds is not handed out:
 * waking another thread would cost as much. */
#include "kernels/cpu/cpu.h"

typedef struct {
    cpu_backend *backend;
    cpu_dots dots; /* of all rows; packed: NULL if each task packs its own */
    uint32_t rows_each, outputs_each;
    uint32_t n_ranges; /* of outputs */
} linear_job;

/* Few rows: some tasks per thread, so that a thread that is held up does not hold up the others; each worth at least 20
 * us. */
static uint32_t outputs_per_task(const cpu_backend *backend, const krn_matrix *w, uint32_t n_rows) {
    enum { TASKS_PER_THREAD = 4, MIN_TASK_BYTES = 64 << 10, MIN_TASK_PRODUCTS = 4 << 20 };
    uint64_t row_bytes = (uint64_t)w->n_in * cpu_elem_bytes(w->dtype), row_products = (uint64_t)w->n_in * n_rows;
    uint64_t least = MIN_TASK_BYTES / row_bytes;
    if (MIN_TASK_PRODUCTS / row_products < least) least = MIN_TASK_PRODUCTS / row_products;
    uint32_t even = w->n_out / (cpu_pool_threads(backend->pool) * TASKS_PER_THREAD);
    return cpu_round_up(cpu_max(cpu_max((uint32_t)least, even), 1), CPU_PANEL);
}

/* Many rows: as few ranges as give every thread enough to do, since each packs its rows once more. */
static uint32_t outputs_per_block(const cpu_backend *backend, const krn_matrix *w, uint32_t n_blocks) {
    enum { TASKS_PER_THREAD = 8, MIN_OUTPUTS = 4 * CPU_PANEL };
    uint32_t n_ranges = (cpu_pool_threads(backend->pool) * TASKS_PER_THREAD + n_blocks - 1) / n_blocks;
    return cpu_round_up(cpu_max((w->n_out + n_ranges - 1) / n_ranges, MIN_OUTPUTS), CPU_PANEL);
}

static void linear_task(void *context, uint32_t task, uint32_t thread) {
    const linear_job *job = context;
    const cpu_backend *backend = job->backend;
    uint32_t begin = task % job->n_ranges * job->outputs_each,
             end = cpu_min(begin + job->outputs_each, job->dots.n_out);
    uint32_t row = task / job->n_ranges * job->rows_each;
    cpu_dots dots = job->dots;
    dots.rows.x += row * dots.rows.stride;
    dots.rows.n_rows = cpu_min(job->rows_each, dots.rows.n_rows - row);
    dots.out += row * dots.out_stride;
    if (dots.packed == NULL && cpu_is_narrow(dots.w)) {
        backend->isa->pack(&dots.rows, 0, dots.rows.n_rows, backend->scratch[thread].packed);
        dots.packed = backend->scratch[thread].packed;
    }
    cpu_dots_run(backend, &dots, begin, end, thread);
}

static void linear_run(linear_job *job, uint32_t n_blocks) {
    job->n_ranges = (job->dots.n_out + job->outputs_each - 1) / job->outputs_each;
    cpu_pool_run(job->backend->pool, n_blocks * job->n_ranges, linear_task, job);
}

void cpu_linear(krn_backend *api, const krn_matrix *w, const void *x_act, uint32_t n_rows, float *out,
                bool accumulate) {
    enum { STREAMED_BYTES = 1 << 20 }; /* more than that would not stay in L2 for the reader */
    cpu_backend *backend = (cpu_backend *)api;
    if (n_rows == 0) return;
    linear_job job = {.backend = backend, .rows_each = n_rows};
    job.dots = (cpu_dots){.w = w, .n_out = w->n_out, .out = out, .out_stride = w->n_out, .accumulate = accumulate};
    job.dots.rows = (cpu_rows){.x = x_act, .stride = w->n_in, .n_rows = n_rows, .n = w->n_in};
    job.dots.rows.skew = cpu_skew(backend, w);
    if (n_rows > CPU_FEW_ROWS) {
        job.rows_each = cpu_rows_each(n_rows, cpu_rows_most(w->n_in));
        uint32_t n_blocks = (n_rows + job.rows_each - 1) / job.rows_each;
        job.dots.is_streamed = !accumulate && (size_t)n_rows * w->n_out * sizeof(float) > STREAMED_BYTES;
        job.outputs_each = outputs_per_block(backend, w, n_blocks);
        linear_run(&job, n_blocks);
        return;
    }
    if (cpu_is_narrow(w)) {
        backend->isa->pack(&job.dots.rows, 0, n_rows, backend->packed);
        job.dots.packed = backend->packed;
    }
    job.outputs_each = outputs_per_task(backend, w, n_rows);
    linear_run(&job, 1);
}
