/* Element-wise work in 256-bit registers: AVX2, FMA, F16C. */
#define LANES  8
#define SUFFIX avx2
#include "kernels/cpu/vector_body.h"
