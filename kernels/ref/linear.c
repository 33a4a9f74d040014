/* y = x · Wᵀ. A row of W is decoded once and meets all rows of x; each output is one ref_dot(), whatever n_rows is. */
#include "kernels/dtype.h"
#include "kernels/ref/ref.h"

void ref_matrix_row(const krn_matrix *w, uint32_t row, float *out) {
    krn_decode(w->data, w->dtype, (size_t)row * w->n_in, w->n_in, out);
    if (w->dtype != MDL_F8_E4M3) return;
    const float *scale = w->scale + (size_t)(row / w->block_rows) * w->n_scale_cols;
    for (uint32_t start = 0; start < w->n_in; start += w->block_cols, scale++) {
        uint32_t end = w->n_in - start < w->block_cols ? w->n_in : start + w->block_cols;
        for (uint32_t i = start; i < end; i++) out[i] *= *scale;
    }
}

void ref_linear(krn_backend *backend, const krn_matrix *w, const void *x_act, uint32_t n_rows, float *out,
                bool accumulate) {
    ref_backend *ref = (ref_backend *)backend;
    const float *x = x_act;
    for (uint32_t o = 0; o < w->n_out; o++) {
        ref_matrix_row(w, o, ref->weight_row);
        for (uint32_t row = 0; row < n_rows; row++) {
            float sum = ref_dot(x + (size_t)row * w->n_in, ref->weight_row, w->n_in);
            float *y = &out[(size_t)row * w->n_out + o];
            *y = accumulate ? *y + sum : sum;
        }
    }
}
