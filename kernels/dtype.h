/* Scalar conversions of the number formats that a checkpoint holds; shared by all host backends.
 * OCP 8-bit floating point specification (E4M3: no infinities, 0x7f and 0xff are NaN), OCP microscaling (E8M0). */
#ifndef BATON_KERNELS_DTYPE_H
#define BATON_KERNELS_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/model/checkpoint.h"

static inline float krn_float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static inline uint32_t krn_float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline float krn_float_from_bf16(uint16_t bits) { return krn_float_from_bits((uint32_t)bits << 16); }

/* Round to nearest, ties to even; a NaN stays one. */
static inline uint16_t krn_bf16_from_float(float value) {
    uint32_t bits = krn_float_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float krn_float_from_f16(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    if (exponent == 31) return krn_float_from_bits(sign | 0x7f800000 | fraction << 13);
    if (exponent > 0) return krn_float_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float magnitude = (float)fraction * 0x1p-24f; /* subnormal: exact */
    return sign != 0 ? -magnitude : magnitude;
}

static inline float krn_float_from_e4m3(uint8_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x80) << 24, exponent = bits >> 3 & 15, fraction = bits & 7;
    if (exponent == 15 && fraction == 7) return krn_float_from_bits(sign | 0x7fc00000);
    if (exponent > 0) return krn_float_from_bits(sign | (exponent + 120) << 23 | fraction << 20);
    float magnitude = (float)fraction * 0x1p-9f;
    return sign != 0 ? -magnitude : magnitude;
}

/* 2^(bits - 127); 0xff is NaN. */
static inline float krn_float_from_e8m0(uint8_t bits) {
    if (bits == 0xff) return krn_float_from_bits(0x7fc00000);
    return bits == 0 ? 0x1p-127f : krn_float_from_bits((uint32_t)bits << 23);
}

/* out[n] = data[first .. first + n) as float32; `data` needs no alignment. `dtype` is not MDL_OTHER. */
void krn_decode(const void *data, mdl_dtype dtype, size_t first, size_t n, float *out);

#endif
