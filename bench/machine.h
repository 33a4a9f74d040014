/* What this machine can do at most, at this moment: how fast n threads read memory, and how fast they multiply bfloat16
 * on numbers that stay in registers (2 FLOP per multiply-add). The scale for everything that baton-bench reports. On a
 * shared machine it changes within a second, so it is measured again beside every measurement. */
#ifndef BATON_BENCH_MACHINE_H
#define BATON_BENCH_MACHINE_H

#include <stddef.h>
#include <stdint.h>

typedef struct bench_machine bench_machine;

typedef struct {
    double read_gb_s;    /* GB = 1e9 bytes */
    double bf16_gflop_s; /* with AVX2, float32 multiply-adds */
} bench_limits;

/* `isa` as krn_backend.isa names it. Takes n_threads x 256 MiB. */
bench_machine *bench_machine_open(uint32_t n_threads, const char *isa);
void bench_machine_close(bench_machine *machine);

/* Takes some tenths of a second. */
bench_limits bench_machine_measure(const bench_machine *machine);

/* "amx", "avx512", "avx2": the unit that multiplies. */
const char *bench_machine_unit(const bench_machine *machine);

/* Multiply-adds for a while; return how many FLOP. Only on machines that have the instructions. */
double bench_flops_amx(void);
double bench_flops_avx512(void);
double bench_flops_avx2(void);

#endif
