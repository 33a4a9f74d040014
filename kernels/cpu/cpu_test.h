/* For the tests of this folder: random matrices in every type with their exact values beside, and plain loops. */
#ifndef BATON_KERNELS_CPU_CPU_TEST_H
#define BATON_KERNELS_CPU_CPU_TEST_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/test.h"
#include "kernels/cpu/krn_cpu.h"
#include "kernels/dtype.h"

static uint64_t test_state = 1;

static inline uint32_t test_random(void) { /* xorshift64* */
    test_state ^= test_state >> 12;
    test_state ^= test_state << 25;
    test_state ^= test_state >> 27;
    return (uint32_t)(test_state * 0x2545f4914f6cdd1dull >> 32);
}

/* Uniform in [-1, 1). */
static inline float test_uniform(void) { return (float)(test_random() >> 8) * 0x1p-23f - 1.0f; }

typedef struct {
    krn_matrix w;
    void *data;    /* owned: where w.data lies, at any element of a cache line, between NaNs */
    float *scales; /* owned */
    float *values; /* owned: [n_out][n_in], exact but for F8, whose products with the scale are rounded */
} test_matrix;

static inline test_matrix test_matrix_make(mdl_dtype dtype, uint32_t n_out, uint32_t n_in, uint32_t block) {
    size_t n = (size_t)n_out * n_in, elem_bytes = dtype == MDL_F32 ? 4 : dtype == MDL_F8_E4M3 ? 1 : 2;
    test_matrix m = {.w = {.dtype = dtype, .n_out = n_out, .n_in = n_in}};
    uint8_t *bytes = bt_calloc(n + 64, elem_bytes);
    memset(bytes, 0xff, (n + 64) * elem_bytes);
    m.data = bytes;
    m.w.data = bytes += (1 + test_random() % 32) * elem_bytes;
    m.values = bt_calloc(n, sizeof(float));
    for (size_t i = 0; i < n; i++) {
        float value = test_uniform();
        uint16_t bits = krn_bf16_from_float(value);
        if (dtype == MDL_F32) memcpy(bytes + i * 4, &value, 4);
        if (dtype == MDL_F16) bits = (uint16_t)((test_random() & 0x83ff) | (10 + test_random() % 5) << 10);
        if (dtype == MDL_BF16 || dtype == MDL_F16) memcpy(bytes + i * 2, &bits, 2);
        if (dtype == MDL_F8_E4M3) bytes[i] = (uint8_t)(test_random() % 0x78 | (test_random() & 0x80));
    }
    krn_decode(bytes, dtype, 0, n, m.values);
    if (dtype != MDL_F8_E4M3) return m;
    m.w.block_rows = m.w.block_cols = block;
    m.w.n_scale_cols = (n_in + block - 1) / block;
    m.scales = bt_calloc((size_t)m.w.n_scale_cols * ((n_out + block - 1) / block), sizeof(float));
    m.w.scale = m.scales;
    for (uint32_t o = 0; o < n_out; o++) {
        for (uint32_t i = 0; i < n_in; i++) {
            float *scale = &m.scales[o / block * m.w.n_scale_cols + i / block];
            if (*scale == 0) *scale = (1.5f + test_uniform()) / 256;
            m.values[(size_t)o * n_in + i] *= *scale;
        }
    }
    return m;
}

static inline void test_matrix_free(test_matrix *m) {
    free(m->data);
    free(m->scales);
    free(m->values);
}

/* n random values, rounded to bfloat16; `floats` may be NULL. */
static inline uint16_t *test_rows(size_t n, float **floats) {
    uint16_t *x = bt_calloc(n, sizeof(*x));
    if (floats != NULL) *floats = bt_calloc(n, sizeof(float));
    for (size_t i = 0; i < n; i++) {
        x[i] = krn_bf16_from_float(test_uniform());
        if (floats != NULL) (*floats)[i] = krn_float_from_bf16(x[i]);
    }
    return x;
}

static inline float *test_floats(size_t n) {
    float *x = bt_calloc(n, sizeof(*x));
    for (size_t i = 0; i < n; i++) x[i] = test_uniform();
    return x;
}

/* Sum of a[i] * b[i]; *size receives the sum of magnitudes, the measure of what rounding may do. */
static inline double test_dot(const float *a, const float *b, size_t n, double *size) {
    double sum = 0;
    *size = 1e-30;
    for (size_t i = 0; i < n; i++) {
        sum += (double)a[i] * b[i];
        *size += fabs((double)a[i] * b[i]);
    }
    return sum;
}

static inline mdl_config test_config(void) {
    return (mdl_config){
        .vocab_size = 50,
        .hidden_size = 96,
        .intermediate_size = 200,
        .moe_intermediate_size = 72,
        .num_hidden_layers = 1,
        .moe_layer_freq = 1,
        .num_attention_heads = 3,
        .q_lora_rank = 40,
        .kv_lora_rank = 160,
        .qk_nope_head_dim = 48,
        .qk_rope_head_dim = 32,
        .v_head_dim = 56,
        .n_routed_experts = 6,
        .n_shared_experts = 1,
        .num_experts_per_tok = 3,
        .n_group = 1,
        .topk_group = 1,
        .max_position_embeddings = 4096,
        .rms_norm_eps = 1e-6f,
        .rope_theta = 10000,
    };
}

static inline krn_backend *test_open(const mdl_config *config, const char *isa, uint32_t n_threads, uint32_t max_rows,
                                     uint32_t max_positions) {
    krn_backend_limits limits = {
        .n_threads = n_threads, .max_rows = max_rows, .max_positions = max_positions, .config = config};
    krn_backend *backend = NULL;
    bt_error err = {0};
    bt_status status = krn_cpu_open_isa(&limits, isa, &backend, &err);
    CHECK(status == BT_OK, "%s: %s", isa, err.text);
    if (status != BT_OK) exit(1);
    return backend;
}

#endif
