/* Router logits, in float32 like everything here. */
#include "kernels/ref/ref.h"

void ref_router(krn_backend *backend, const krn_matrix *w, const float *x, uint32_t n_rows, float *logits) {
    ref_linear(backend, w, x, n_rows, logits, false);
}
