/* Runs one thing on n threads at once and takes the median rate. Reading: every thread ORs its own buffer, far larger
 * than its share of any cache. Multiplying: the unit that the backend uses, each in its own file with its own flags. */
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

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Units per second, all threads together. */
static double median_rate(uint32_t n_threads, double (*work)(const void *), const uint8_t *memory) {
    double rates[N_REPETITIONS];
    job *jobs = bt_calloc(n_threads, sizeof(*jobs));
    pthread_t *threads = bt_calloc(n_threads, sizeof(*threads));
    for (int repetition = -1; repetition < N_REPETITIONS; repetition++) { /* -1 warms up */
        pthread_barrier_t start;
        pthread_barrier_init(&start, NULL, n_threads + 1);
        for (uint32_t i = 0; i < n_threads; i++) {
            jobs[i] =
                (job){.work = work, .memory = memory == NULL ? NULL : memory + (size_t)i * READ_BYTES, .start = &start};
            BT_ASSERT(pthread_create(&threads[i], NULL, run, &jobs[i]) == 0);
        }
        pthread_barrier_wait(&start);
        int64_t start_ns = bt_now_ns();
        double done = 0;
        for (uint32_t i = 0; i < n_threads; i++) {
            pthread_join(threads[i], NULL);
            done += jobs[i].done;
        }
        if (repetition >= 0) rates[repetition] = done * BT_NS_PER_S / (double)(bt_now_ns() - start_ns);
        pthread_barrier_destroy(&start);
    }
    free(jobs);
    free(threads);
    qsort(rates, N_REPETITIONS, sizeof(rates[0]), compare_doubles);
    return rates[N_REPETITIONS / 2];
}

void bench_machine_measure(uint32_t n_threads, const char *isa, bench_machine *out) {
    BT_ASSERT(n_threads > 0 && n_threads <= MAX_THREADS);
    uint8_t *memory = bt_calloc_aligned((size_t)n_threads * READ_BYTES, 64);
    memset(memory, 1, (size_t)n_threads * READ_BYTES);
    out->read_gb_s = median_rate(n_threads, read_all, memory) * 1e-9;
    free(memory);
    double (*work)(const void *) = run_avx2;
    out->bf16_how = "avx2";
    if (strcmp(isa, "amx-bf16") == 0) {
        work = run_amx;
        out->bf16_how = "amx";
    } else if (strcmp(isa, "avx512-bf16") == 0) {
        work = run_avx512;
        out->bf16_how = "avx512";
    }
    out->bf16_gflop_s = median_rate(n_threads, work, NULL) * 1e-9;
}
