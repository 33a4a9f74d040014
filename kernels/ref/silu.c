/* The gated activation: silu(gate) * up, silu(z) = z / (1 + exp(-z)). */
#include <math.h>

#include "kernels/ref/ref.h"

void ref_silu_mul(krn_backend *backend, const float *gate, const float *up, size_t n, void *out_act) {
    (void)backend;
    float *out = out_act;
    for (size_t i = 0; i < n; i++) out[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}
