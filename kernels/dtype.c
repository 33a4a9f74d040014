/* Runs of elements to float32. The table makes E4M3 one load per element. */
#include "kernels/dtype.h"

#include "common/core/status.h"

static float e4m3_table[256];

__attribute__((constructor)) static void fill_e4m3_table(void) {
    for (unsigned bits = 0; bits < 256; bits++) e4m3_table[bits] = krn_float_from_e4m3((uint8_t)bits);
}

static inline uint16_t load_u16(const uint8_t *at) {
    uint16_t bits;
    memcpy(&bits, at, sizeof(bits));
    return bits;
}

void krn_decode(const void *data, mdl_dtype dtype, size_t first, size_t n, float *out) {
    const uint8_t *bytes = data;
    switch (dtype) {
    case MDL_BF16:
        for (size_t i = 0; i < n; i++) out[i] = krn_float_from_bf16(load_u16(bytes + (first + i) * 2));
        return;
    case MDL_F16:
        for (size_t i = 0; i < n; i++) out[i] = krn_float_from_f16(load_u16(bytes + (first + i) * 2));
        return;
    case MDL_F32:
        memcpy(out, bytes + first * 4, n * 4);
        return;
    case MDL_F8_E4M3:
        for (size_t i = 0; i < n; i++) out[i] = e4m3_table[bytes[first + i]];
        return;
    case MDL_F8_E8M0:
        for (size_t i = 0; i < n; i++) out[i] = krn_float_from_e8m0(bytes[first + i]);
        return;
    case MDL_OTHER:
        break;
    }
    BT_ASSERT(dtype != MDL_OTHER);
}
