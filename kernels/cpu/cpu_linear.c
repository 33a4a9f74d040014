/* Linears: pack the rows once, then hand out ranges of outputs.
 *
 * A task is a multiple of CPU_PANEL outputs. Work that a single thread does in a few microseconds is not handed out:
 * waking another thread would cost as much. */
#include <string.h>

#include "kernels/cpu/cpu.h"

typedef struct {
    cpu_backend *backend;
    cpu_dots dots;
    uint32_t outputs_each;
} linear_job;

typedef struct {
    cpu_backend *backend;
    const cpu_rows *rows;
    uint16_t *packed;
    uint32_t rows_each;
} pack_job;

static void pack_task(void *context, uint32_t task, uint32_t thread) {
    const pack_job *job = context;
    (void)thread;
    uint32_t begin = task * job->rows_each;
    job->backend->isa->pack(job->rows, begin, cpu_min(begin + job->rows_each, job->rows->n_rows), job->packed);
}

void cpu_pack(cpu_backend *backend, const cpu_rows *rows, uint16_t *packed) {
    enum { TASK_ELEMS = 64 << 10 };
    pack_job job = {.backend = backend, .rows = rows, .packed = packed};
    job.rows_each = cpu_round_up(cpu_max(TASK_ELEMS / cpu_max(rows->n, 1), 1), CPU_PACK_ROWS);
    cpu_pool_run(backend->pool, (rows->n_rows + job.rows_each - 1) / job.rows_each, pack_task, &job);
}

/* Some tasks per thread, so that a thread that is held up does not hold up the others; each worth at least 20 us. */
static uint32_t outputs_per_task(const cpu_backend *backend, const krn_matrix *w, uint32_t n_rows) {
    enum { TASKS_PER_THREAD = 4, MIN_TASK_BYTES = 64 << 10, MIN_TASK_PRODUCTS = 4 << 20 };
    uint64_t row_bytes = (uint64_t)w->n_in * cpu_elem_bytes(w->dtype), row_products = (uint64_t)w->n_in * n_rows;
    uint64_t least = MIN_TASK_BYTES / row_bytes;
    if (MIN_TASK_PRODUCTS / row_products < least) least = MIN_TASK_PRODUCTS / row_products;
    uint32_t even = w->n_out / (cpu_pool_threads(backend->pool) * TASKS_PER_THREAD);
    uint32_t outputs = cpu_round_up(cpu_max(cpu_max((uint32_t)least, even), 1), CPU_PANEL);
    return n_rows > CPU_PANEL ? cpu_min(outputs, 8 * CPU_PANEL) : outputs;
}

static void linear_task(void *context, uint32_t task, uint32_t thread) {
    const linear_job *job = context;
    uint32_t begin = task * job->outputs_each, end = cpu_min(begin + job->outputs_each, job->dots.n_out);
    cpu_dots_run(job->backend, &job->dots, begin, end, thread);
}

void cpu_linear(krn_backend *api, const krn_matrix *w, const void *x_act, uint32_t n_rows, float *out,
                bool accumulate) {
    cpu_backend *backend = (cpu_backend *)api;
    if (n_rows == 0) return;
    linear_job job = {.backend = backend};
    job.dots = (cpu_dots){.w = w, .n_out = w->n_out, .out = out, .out_stride = w->n_out, .accumulate = accumulate};
    job.dots.rows = (cpu_rows){.x = x_act, .stride = w->n_in, .n_rows = n_rows, .n = w->n_in};
    if (cpu_is_narrow(w)) {
        BT_ASSERT(cpu_packed_elems(n_rows, w->n_in) <= backend->packed_elems);
        cpu_pack(backend, &job.dots.rows, backend->packed);
        job.dots.packed = backend->packed;
    }
    job.outputs_each = outputs_per_task(backend, w, n_rows);
    cpu_pool_run(backend->pool, (w->n_out + job.outputs_each - 1) / job.outputs_each, linear_task, &job);
}
