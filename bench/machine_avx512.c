/* AVX-512 BF16: twelve independent accumulators. */
#include <immintrin.h>

#include "bench/machine.h"

double bench_flops_avx512(void) {
    enum { N = 2000000, ACCUMULATORS = 12, FLOP = ACCUMULATORS * 2 * 32 };
    __m512 acc[ACCUMULATORS];
    for (int k = 0; k < ACCUMULATORS; k++) acc[k] = _mm512_setzero_ps();
    __m512i a = _mm512_set1_epi16(0x3f00), b = a; /* 1/2 */
    for (int i = 0; i < N; i++) {
#pragma GCC unroll 12
        for (int k = 0; k < ACCUMULATORS; k++) acc[k] = _mm512_dpbf16_ps(acc[k], (__m512bh)a, (__m512bh)b);
        __asm__ volatile("" : "+v"(a), "+v"(b));
    }
    for (int k = 1; k < ACCUMULATORS; k++) acc[0] = _mm512_add_ps(acc[0], acc[k]);
    volatile float sink = _mm512_reduce_add_ps(acc[0]);
    (void)sink;
    return (double)N * FLOP;
}
