/* Routed experts: the rows of one expert are gathered, go through its three matrices, and are weighted. And their sums.
 */
#include <string.h>

#include "kernels/ref/ref.h"

void ref_experts(krn_backend *backend, const krn_experts_args *args) {
    ref_backend *ref = (ref_backend *)backend;
    size_t hidden = ref->config->hidden_size;
    const float *x = args->x;
    for (uint32_t first = 0, end; first < args->n_pairs; first = end) {
        uint32_t expert = args->pairs[first].expert;
        for (end = first; end < args->n_pairs && args->pairs[end].expert == expert && end - first < ref->max_rows;
             end++) {
        }
        uint32_t n_rows = end - first;
        for (uint32_t i = 0; i < n_rows; i++) {
            memcpy(ref->expert_x + i * hidden, x + args->pairs[first + i].row * hidden, hidden * sizeof(float));
        }
        const krn_mlp *mlp = &args->experts[expert];
        float *y = args->y + first * hidden;
        ref_gate_up(ref, mlp, ref->expert_x, n_rows);
        ref_linear(backend, &mlp->down, ref->gate, n_rows, y, false);
        for (uint32_t i = 0; i < n_rows; i++) {
            for (size_t j = 0; j < hidden; j++) y[i * hidden + j] *= args->pairs[first + i].weight;
        }
    }
}

void ref_combine(krn_backend *backend, const float *const *terms, uint32_t n_terms, uint32_t n_rows, uint32_t width,
                 float *x) {
    (void)backend;
    for (uint32_t row = 0; row < n_rows; row++) {
        for (uint32_t i = 0; i < width; i++) {
            float sum = 0;
            for (uint32_t t = 0; t < n_terms; t++) sum += terms[(size_t)row * n_terms + t][i];
            x[(size_t)row * width + i] += sum;
        }
    }
}
