/* Gated MLPs: down(silu(gate) * up), silu(z) = z / (1 + exp(-z)). */
#include <math.h>

#include "kernels/ref/ref.h"

void ref_gate_up(ref_backend *ref, const krn_mlp *mlp, const float *x, uint32_t n_rows) {
    float *gate = ref->gate, *up = ref->up;
    ref_linear(&ref->backend, &mlp->gate, x, n_rows, gate, false);
    ref_linear(&ref->backend, &mlp->up, x, n_rows, up, false);
    for (size_t i = 0; i < (size_t)n_rows * mlp->gate.n_out; i++) gate[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}

void ref_mlp(krn_backend *backend, const krn_mlp *mlp, const void *x_act, uint32_t n_rows, float *out) {
    ref_backend *ref = (ref_backend *)backend;
    ref_gate_up(ref, mlp, x_act, n_rows);
    ref_linear(backend, &mlp->down, ref->gate, n_rows, out, true);
}
