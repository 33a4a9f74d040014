/* The vectorised backend with its instruction set given by name: for tests and measurements, which run every one that
 * the machine has. Programs call krn_cpu_open(), which takes the best. */
#ifndef BATON_KERNELS_CPU_KRN_CPU_H
#define BATON_KERNELS_CPU_KRN_CPU_H

#include "kernels/backend.h"

enum { KRN_CPU_MAX_ISAS = 3 };

/* Names of the instruction sets that this machine can run, best first; returns how many (0..KRN_CPU_MAX_ISAS). */
uint32_t krn_cpu_isas(const char *names[KRN_CPU_MAX_ISAS]);

/* `isa`: "amx-bf16", "avx512-bf16", "avx2"; NULL: the best one. BT_BAD_REQUEST: unknown, or this machine lacks it. */
bt_status krn_cpu_open_isa(const krn_backend_limits *limits, const char *isa, krn_backend **out, bt_error *err);

#endif
