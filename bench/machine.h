/* What this machine can do at most, measured now: how fast n threads read memory, and how fast they multiply bfloat16
 * on operands that stay in registers (2 FLOP per multiply-add). The scale for everything that baton-bench reports. */
#ifndef BATON_BENCH_MACHINE_H
#define BATON_BENCH_MACHINE_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    double read_gb_s;     /* median; GB = 1e9 bytes */
    double bf16_gflop_s;  /* median; with AVX2, float32 multiply-adds */
    const char *bf16_how; /* "amx", "avx512", "avx2": the unit that was measured */
} bench_machine;

/* `isa` as krn_backend.isa names it; takes about a second, and n_threads x 256 MiB. */
void bench_machine_measure(uint32_t n_threads, const char *isa, bench_machine *out);

/* Multiply-adds for a while; return how many FLOP. Only on machines that have the instructions. */
double bench_flops_amx(void);
double bench_flops_avx512(void);
double bench_flops_avx2(void);

#endif
