/* The router: logits in float32, then every row's choice.
 *
 * Tasks cut rows, whose x is the larger operand in a prompt's step; where few rows give too few tasks, as in decode,
 * also outputs, so that the threads share the reading of W. */
#include "kernels/cpu/cpu.h"
#include "kernels/route.h"

enum { ROWS = 63 }; /* of a task: a multiple of what dots_wide keeps in registers */

typedef struct {
    const cpu_backend *backend;
    const krn_router_args *args;
    uint32_t outputs_each, tasks_across; /* outputs of a task; tasks that share their rows */
} router_job;

static void logits_task(void *context, uint32_t task, uint32_t thread) {
    const router_job *job = context;
    const krn_router_args *args = job->args;
    uint32_t n_in = args->w->n_in, n_out = args->w->n_out, first = task / job->tasks_across * ROWS;
    uint32_t begin = task % job->tasks_across * job->outputs_each, end = cpu_min(begin + job->outputs_each, n_out);
    cpu_dots dots = {.w = args->w, .n_out = n_out, .out = args->logits + (size_t)first * n_out, .out_stride = n_out};
    dots.rows = (cpu_rows){.n_rows = cpu_min(ROWS, args->n_rows - first), .n = n_in};
    job->backend->isa->vector->dots_wide(&dots, args->x + (size_t)first * n_in, begin, end,
                                         &job->backend->scratch[thread]);
}

static void route_task(void *context, uint32_t task, uint32_t thread) {
    const router_job *job = context;
    const krn_router_args *args = job->args;
    const mdl_config *config = job->backend->limits.config;
    size_t n_chosen = config->num_experts_per_tok;
    (void)thread;
    for (uint32_t row = task * ROWS; row < cpu_min((task + 1) * ROWS, args->n_rows); row++) {
        krn_route(config, args->logits + (size_t)row * args->w->n_out, args->bias, args->experts + row * n_chosen,
                  args->weights + row * n_chosen);
    }
}

void cpu_router(krn_backend *api, const krn_router_args *args) {
    enum { MIN_SHARED_PRODUCTS = 256 << 10, TASKS_PER_THREAD = 2 };
    cpu_backend *backend = (cpu_backend *)api;
    if (args->n_rows == 0) return;
    uint32_t n_out = args->w->n_out, n_blocks = (args->n_rows + ROWS - 1) / ROWS, tasks_across = 1;
    if ((uint64_t)n_out * args->w->n_in * args->n_rows >= MIN_SHARED_PRODUCTS) {
        tasks_across = (cpu_pool_threads(backend->pool) * TASKS_PER_THREAD + n_blocks - 1) / n_blocks;
    }
    router_job job = {.backend = backend, .args = args};
    job.outputs_each = cpu_round_up((n_out + tasks_across - 1) / tasks_across, CPU_WIDE_PANEL);
    job.tasks_across = (n_out + job.outputs_each - 1) / job.outputs_each;
    cpu_pool_run(backend->pool, n_blocks * job.tasks_across, logits_task, &job);
    cpu_pool_run(backend->pool, n_blocks, route_task, &job);
}
