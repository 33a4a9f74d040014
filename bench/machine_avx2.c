/* AVX2: float32 multiply-adds, ten independent accumulators. */
#include <immintrin.h>

#include "bench/machine.h"

double bench_flops_avx2(void) {
    enum { N = 2000000, ACCUMULATORS = 10, FLOP = ACCUMULATORS * 2 * 8 };
    __m256 acc[ACCUMULATORS];
    for (int k = 0; k < ACCUMULATORS; k++) acc[k] = _mm256_setzero_ps();
    __m256 a = _mm256_set1_ps(0.5f), b = a;
    for (int i = 0; i < N; i++) {
#pragma GCC unroll 10
        for (int k = 0; k < ACCUMULATORS; k++) acc[k] = _mm256_fmadd_ps(a, b, acc[k]);
        __asm__ volatile("" : "+x"(a), "+x"(b));
    }
    for (int k = 1; k < ACCUMULATORS; k++) acc[0] = _mm256_add_ps(acc[0], acc[k]);
    volatile float sink = acc[0][0];
    (void)sink;
    return (double)N * FLOP;
}
