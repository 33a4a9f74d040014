/* Element-wise work in 512-bit registers: AVX-512 F, BW, VL, DQ. */
#define LANES  16
#define SUFFIX avx512
#include "kernels/cpu/vector_body.h"
