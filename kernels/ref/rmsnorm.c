/* RMSNorm (arXiv 1910.07467): x / sqrt(mean(x^2) + eps) * gain. */
#include <math.h>

#include "kernels/ref/ref.h"

void ref_rmsnorm(krn_backend *backend, const float *x, uint32_t n_rows, uint32_t width, const float *gain, float eps,
                 void *out_act, float *out_float) {
    (void)backend;
    float *out = out_act; /* activations are float32 here */
    for (uint32_t row = 0; row < n_rows; row++) {
        const float *in = x + (size_t)row * width;
        float inverse = 1 / sqrtf(ref_dot(in, in, width) / (float)width + eps);
        for (uint32_t i = 0; i < width; i++) {
            float y = in[i] * inverse * gain[i];
            out[(size_t)row * width + i] = y;
            if (out_float != NULL) out_float[(size_t)row * width + i] = y;
        }
    }
}
