/* Threads that share the tasks of one operation: the caller and its workers take task numbers from one counter.
 *
 * Tasks write disjoint outputs and a task's result depends on its number alone, so who runs what, and how many threads
 * there are, never shows in a result. A worker that sleeps or lost its processor delays nobody: the others take its
 * share. Between operations workers spin for a few microseconds, then sleep: an idle pool uses no processor time. */
#ifndef BATON_KERNELS_CPU_CPU_POOL_H
#define BATON_KERNELS_CPU_CPU_POOL_H

#include <stdint.h>

#include "common/core/status.h"

typedef struct cpu_pool cpu_pool;

/* `thread` is 0 for the caller, 1..n_threads-1 for workers: an index into per-thread scratch. */
typedef void (*cpu_task)(void *context, uint32_t task, uint32_t thread);

enum { CPU_POOL_MAX_TASKS = 1 << 19 };

/* n_threads >= 1, the caller included. BT_INTERNAL: no thread can be made. */
bt_status cpu_pool_open(uint32_t n_threads, cpu_pool **out, bt_error *err);
void cpu_pool_close(cpu_pool *pool);
uint32_t cpu_pool_threads(const cpu_pool *pool);

/* Runs task 0..n_tasks-1 (< CPU_POOL_MAX_TASKS) and returns when all are done. One thread calls. */
void cpu_pool_run(cpu_pool *pool, uint32_t n_tasks, cpu_task task, void *context);

#endif
