/* The first half of an MLP: silu(gate) * up, silu(z) = z / (1 + exp(-z)). */
#include <math.h>

#include "kernels/ref/ref.h"

void ref_gate_up(krn_backend *backend, const krn_mlp *mlp, const void *x_act, uint32_t n_rows, void *out_act) {
    ref_backend *ref = (ref_backend *)backend;
    float *gate = ref->gate, *up = ref->up, *out = out_act;
    ref_linear(backend, &mlp->gate, x_act, n_rows, gate, false);
    ref_linear(backend, &mlp->up, x_act, n_rows, up, false);
    for (size_t i = 0; i < (size_t)n_rows * mlp->gate.n_out; i++) out[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}
