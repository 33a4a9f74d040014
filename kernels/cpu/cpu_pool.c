/* One 64-bit word holds the whole schedule: number of the operation, how many tasks it has, the next one to take. A
 * thread takes a task with one fetch-add; the word it gets back says which operation the task belongs to, so a worker
 * that comes late finds either nothing left or the newer operation, never a mixture. The description of an operation
 * (function and context) is read only after a task of it was taken, and stays until that task is done.
 *
 * Sleeping: a worker announces itself in n_sleeping, looks once more, then waits on wake_seq; the caller bumps wake_seq
 * when it sees sleepers. The caller sleeps on n_done the same way. */
#include "kernels/cpu/cpu_pool.h"

#include <immintrin.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/core/alloc.h"

/* pause takes 40 to 140 cycles: some 20 us, longer than the serial gaps between the operations of a step. */
enum { SPINS = 500 };

/* Twice CPU_POOL_MAX_TASKS: each thread may take one number past the last task. */
enum { INDEX_BITS = 20 };

typedef struct {
    cpu_pool *pool;
    uint32_t index;
    pthread_t thread;
} worker;

struct cpu_pool {
    _Alignas(64) _Atomic uint64_t schedule; /* epoch << 40 | n_tasks << 20 | next task */
    _Alignas(64) _Atomic uint32_t n_done;
    _Atomic uint32_t is_caller_asleep;
    _Alignas(64) _Atomic uint32_t wake_seq;
    _Atomic uint32_t n_sleeping;
    _Atomic bool is_closing;
    cpu_task task; /* of the operation in `schedule` */
    void *context;
    uint32_t n_threads, n_started;
    worker *workers; /* owned; [n_threads - 1] */
};

static void futex_wait(_Atomic uint32_t *word, uint32_t expected) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, uint32_t n) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static uint32_t next_of(uint64_t schedule) { return schedule & ((1u << INDEX_BITS) - 1); }
static uint32_t tasks_of(uint64_t schedule) { return schedule >> INDEX_BITS & ((1u << INDEX_BITS) - 1); }
static bool has_work(uint64_t schedule) { return next_of(schedule) < tasks_of(schedule); }

static void work(cpu_pool *pool, uint32_t thread) {
    while (has_work(atomic_load_explicit(&pool->schedule, memory_order_relaxed))) {
        uint64_t taken = atomic_fetch_add_explicit(&pool->schedule, 1, memory_order_acq_rel);
        if (!has_work(taken)) return;
        uint32_t n_tasks = tasks_of(taken);
        pool->task(pool->context, next_of(taken), thread);
        if (atomic_fetch_add(&pool->n_done, 1) + 1 == n_tasks && atomic_load(&pool->is_caller_asleep) != 0) {
            futex_wake(&pool->n_done, 1);
        }
    }
}

static void wait_for_work(cpu_pool *pool) {
    for (int i = 0; i < SPINS; i++) {
        if (has_work(atomic_load_explicit(&pool->schedule, memory_order_relaxed)) || atomic_load(&pool->is_closing))
            return;
        _mm_pause();
    }
    uint32_t seq = atomic_load(&pool->wake_seq);
    atomic_fetch_add(&pool->n_sleeping, 1);
    if (!has_work(atomic_load(&pool->schedule)) && !atomic_load(&pool->is_closing)) futex_wait(&pool->wake_seq, seq);
    atomic_fetch_sub(&pool->n_sleeping, 1);
}

static void *worker_main(void *argument) {
    worker *self = argument;
    while (!atomic_load(&self->pool->is_closing)) {
        work(self->pool, self->index);
        wait_for_work(self->pool);
    }
    return NULL;
}

void cpu_pool_run(cpu_pool *pool, uint32_t n_tasks, cpu_task task, void *context) {
    BT_ASSERT(n_tasks < CPU_POOL_MAX_TASKS);
    if (n_tasks <= 1 || pool->n_threads == 1) {
        for (uint32_t i = 0; i < n_tasks; i++) task(context, i, 0);
        return;
    }
    pool->task = task;
    pool->context = context;
    atomic_store(&pool->n_done, 0);
    uint64_t epoch = (atomic_load_explicit(&pool->schedule, memory_order_relaxed) >> 2 * INDEX_BITS) + 1;
    atomic_store(&pool->schedule, epoch << 2 * INDEX_BITS | (uint64_t)n_tasks << INDEX_BITS);
    if (atomic_load(&pool->n_sleeping) > 0) {
        atomic_fetch_add(&pool->wake_seq, 1);
        futex_wake(&pool->wake_seq, INT_MAX);
    }
    work(pool, 0);
    for (int i = 0; i < SPINS && atomic_load(&pool->n_done) != n_tasks; i++) _mm_pause();
    if (atomic_load(&pool->n_done) == n_tasks) return;
    atomic_store(&pool->is_caller_asleep, 1);
    for (uint32_t n; (n = atomic_load(&pool->n_done)) != n_tasks;) futex_wait(&pool->n_done, n);
    atomic_store(&pool->is_caller_asleep, 0);
}

bt_status cpu_pool_open(uint32_t n_threads, cpu_pool **out, bt_error *err) {
    BT_ASSERT(n_threads >= 1);
    cpu_pool *pool = bt_calloc_aligned(sizeof(*pool), 64);
    pool->n_threads = n_threads;
    pool->workers = bt_calloc(n_threads, sizeof(*pool->workers));
    for (uint32_t i = 1; i < n_threads; i++) {
        worker *w = &pool->workers[i - 1];
        *w = (worker){.pool = pool, .index = i};
        int error = pthread_create(&w->thread, NULL, worker_main, w);
        if (error != 0) {
            cpu_pool_close(pool);
            return bt_fail(err, BT_INTERNAL, "cannot start compute thread %u: %s", i, strerror(error));
        }
        pool->n_started++;
    }
    *out = pool;
    return BT_OK;
}

void cpu_pool_close(cpu_pool *pool) {
    if (pool == NULL) return;
    atomic_store(&pool->is_closing, true);
    atomic_fetch_add(&pool->wake_seq, 1);
    futex_wake(&pool->wake_seq, INT_MAX);
    for (uint32_t i = 0; i < pool->n_started; i++) pthread_join(pool->workers[i].thread, NULL);
    free(pool->workers);
    free(pool);
}

uint32_t cpu_pool_threads(const cpu_pool *pool) { return pool->n_threads; }
