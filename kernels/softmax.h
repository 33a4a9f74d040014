/* The two loops that sampler and logprobs share: sums in fixed lanes and an exponential written here, so that the bits
 * are the same on every processor and a compiler makes vector instructions of them. */
#ifndef BATON_KERNELS_SOFTMAX_H
#define BATON_KERNELS_SOFTMAX_H

#include <stdint.h>
#include <string.h>

enum { KRN_LANES = 16 };

static inline float krn_sum_lanes(const float *values, uint32_t n) {
    float lanes[KRN_LANES] = {0};
    uint32_t i = 0;
    for (; i + KRN_LANES <= n; i += KRN_LANES) {
        for (int j = 0; j < KRN_LANES; j++) lanes[j] += values[i + j];
    }
    for (int j = 0; i + j < n; j++) lanes[j] += values[i + j];
    for (int half = KRN_LANES / 2; half > 0; half /= 2) {
        for (int j = 0; j < half; j++) lanes[j] += lanes[j + half];
    }
    return lanes[0];
}

/* exp(x) for x in [-80, 0], about 2 ulp: 2^n times a polynomial, after Cephes' expf (S. Moshier). */
static inline float krn_exp_negative(float x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    float shifted = x * 1.44269504f + magic, n = shifted - magic;
    uint32_t exponent, one;
    memcpy(&exponent, &shifted, sizeof(exponent));
    memcpy(&one, &magic, sizeof(one));
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits = (exponent - one + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof(power));
    return p * power;
}

#endif
