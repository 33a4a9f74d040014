/* Runs one thing on n threads at once, a few times, and takes the mean rate. Reading: every thread ORs its own buffer,
 * far larger than its share of any cache. Multiplying: the unit that the backend uses, each in its own file with its
 * own flags. */
#include "bench/machine.h"

#include <emmintrin.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/core/status.h"

enum { N_REPETITIONS = 3, READ_BYTES = 256 << 20, MAX_THREADS = 1024 };

typedef struct {
    double (*work)(const void *memory);
    const void *memory;
    double done; /* bytes or FLOP */
    pthread_barrier_t *start;
} job;

static volatile int64_t sink;

static double read_all(const void *memory) {
    const __m128i *at = memory;
    __m128i sum[8];
    memset(sum, 0, sizeof(sum));
    for (size_t i = 0; i < READ_BYTES / sizeof(*at); i += 8) {
        for (size_t k = 0; k < 8; k++) sum[k] = _mm_or_si128(sum[k], _mm_load_si128(at + i + k));
    }
    for (size_t k = 1; k < 8; k++) sum[0] = _mm_or_si128(sum[0], sum[k]);
    sink = _mm_cvtsi128_si64(sum[0]);
    return READ_BYTES;
}

static double run_amx(const void *memory) { return (void)memory, bench_flops_amx(); }
static double run_avx512(const void *memory) { return (void)memory, bench_flops_avx512(); }
static double run_avx2(const void *memory) { return (void)memory, bench_flops_avx2(); }

static void *run(void *argument) {
    job *j = argument;
    pthread_barrier_wait(j->start);
    j->done = j->work(j->memory);
    return NULL;
}

struct bench_machine {
    uint32_t n_threads;
    uint8_t *memory; /* [n_threads][READ_BYTES] */
    double (*multiply)(const void *);
    const char *unit;
};

/* Units per second, all threads together. */
static double mean_rate(const bench_machine *machine, double (*work)(const void *)) {
    job jobs[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    double done = 0, ns = 0;
    for (int repetition = -1; repetition < N_REPETITIONS; repetition++) { /* -1 warms up */
        pthread_barrier_t start;
        pthread_barrier_init(&start, NULL, machine->n_threads + 1);
        for (uint32_t i = 0; i < machine->n_threads; i++) {
            jobs[i] = (job){.work = work, .memory = machine->memory + (size_t)i * READ_BYTES, .start = &start};
            BT_ASSERT(pthread_create(&threads[i], NULL, run, &jobs[i]) == 0);
        }
        pthread_barrier_wait(&start);
        int64_t start_ns = bt_now_ns();
        for (uint32_t i = 0; i < machine->n_threads; i++) {
            pthread_join(threads[i], NULL);
            if (repetition >= 0) done += jobs[i].done;
        }
        if (repetition >= 0) ns += (double)(bt_now_ns() - start_ns);
        pthread_barrier_destroy(&start);
    }
    return done * BT_NS_PER_S / ns;
}

bench_machine *bench_machine_open(uint32_t n_threads, const char *isa) {
    BT_ASSERT(n_threads > 0 && n_threads <= MAX_THREADS);
    bench_machine *machine = bt_calloc(1, sizeof(*machine));
    machine->n_threads = n_threads;
    machine->memory = bt_calloc_aligned((size_t)n_threads * READ_BYTES, 64);
    memset(machine->memory, 1, (size_t)n_threads * READ_BYTES);
    machine->multiply = run_avx2;
    machine->unit = "avx2";
    if (strcmp(isa, "amx-bf16") == 0) {
        machine->multiply = run_amx;
        machine->unit = "amx";
    } else if (strcmp(isa, "avx512-bf16") == 0) {
        machine->multiply = run_avx512;
        machine->unit = "avx512";
    }
    return machine;
}

void bench_machine_close(bench_machine *machine) {
    if (machine == NULL) return;
    free(machine->memory);
    free(machine);
}

bench_limits bench_machine_measure(const bench_machine *machine) {
    return (bench_limits){.read_gb_s = mean_rate(machine, read_all) * 1e-9,
                          .bf16_gflop_s = mean_rate(machine, machine->multiply) * 1e-9};
}

const char *bench_machine_unit(const bench_machine *machine) { return machine->unit; }
