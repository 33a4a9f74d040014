/* Every operation but attention, on every instruction set of this machine: against plain loops in double precision, on
 * sizes that fit no register, and bit for bit whatever the number of rows, threads and neighbours. */
#include "kernels/cpu/cpu_pool.h"
#include "kernels/cpu/cpu_test.h"
#include "kernels/route.h"

enum { MAX_ROWS = 170, MAX_THREADS = 3 };

static const struct {
    mdl_dtype dtype;
    uint32_t n_out, n_in, block;
    const char *why;
} shapes[] = {
    {MDL_BF16, 64, 128, 0, "whole tiles"},
    {MDL_BF16, 1, 32, 0, "one output"},
    {MDL_BF16, 20, 24, 0, "less than a step of k"},
    {MDL_BF16, 53, 97, 0, "odd in both directions"},
    {MDL_BF16, 200, 40, 0, "several panels, a short tail of k"},
    {MDL_BF16, 33, 1100, 0, "several pieces of k"},
    {MDL_BF16, 700, 64, 0, "several tasks"},
    {MDL_BF16, 80, 8200, 0, "more rows times k than stay in L2"},
    {MDL_BF16, 100, 4160, 0, "whole steps, in pieces"},
    {MDL_BF16, 4000, 40, 0, "results that bypass the cache"},
    {MDL_F8_E4M3, 80, 8200, 128, "the same in FP8"},
    {MDL_F8_E4M3, 128, 256, 128, "whole blocks"},
    {MDL_F8_E4M3, 57, 192, 128, "a block cut by the edge"},
    {MDL_F8_E4M3, 300, 137, 128, "blocks that end inside a panel, odd k"},
    {MDL_F8_E4M3, 40, 300, 96, "blocks that are no power of two"},
    {MDL_F8_E4M3, 40, 700, 256, "blocks longer than a piece"},
    {MDL_F8_E4M3, 30, 100, 24, "blocks that no kernel step divides"},
    {MDL_F16, 33, 75, 0, "half precision"},
    {MDL_F32, 33, 75, 0, "float32"},
};

static void check_linear(const char *isa, size_t shape, krn_backend *const backends[MAX_THREADS]) {
    test_matrix m = test_matrix_make(shapes[shape].dtype, shapes[shape].n_out, shapes[shape].n_in, shapes[shape].block);
    uint32_t n_out = m.w.n_out, n_in = m.w.n_in;
    float *x_float;
    uint16_t *x = test_rows((size_t)MAX_ROWS * n_in, &x_float);
    float *expected = bt_calloc((size_t)MAX_ROWS * n_out, sizeof(float));
    float *y = bt_calloc((size_t)MAX_ROWS * n_out, sizeof(float));
    for (uint32_t r = 0; r < MAX_ROWS; r++) { /* one row at a time, the measure for all others */
        backends[0]->linear(backends[0], &m.w, x + (size_t)r * n_in, 1, expected + (size_t)r * n_out, false);
        for (uint32_t o = 0; o < n_out; o++) {
            double size, sum = test_dot(m.values + (size_t)o * n_in, x_float + (size_t)r * n_in, n_in, &size);
            double error = fabs(expected[(size_t)r * n_out + o] - sum);
            CHECK(error <= 4e-6 * size, "%s %s: row %u output %u is off by %g of %g", isa, shapes[shape].why, r, o,
                  error, size);
        }
    }
    for (uint32_t n_rows = 2; n_rows <= MAX_ROWS; n_rows += n_rows < 40 ? 1 : 13) {
        krn_backend *backend = backends[n_rows % MAX_THREADS];
        memset(y, 0xff, (size_t)n_rows * n_out * sizeof(float));
        backend->linear(backend, &m.w, x, n_rows, y, false);
        CHECK(memcmp(y, expected, (size_t)n_rows * n_out * sizeof(float)) == 0, "%s %s: %u rows give other bits", isa,
              shapes[shape].why, n_rows);
    }
    for (size_t i = 0; i < (size_t)MAX_ROWS * n_out; i++) y[i] = 0.25f;
    backends[1]->linear(backends[1], &m.w, x, MAX_ROWS, y, true);
    for (size_t i = 0; i < (size_t)MAX_ROWS * n_out; i++) {
        CHECK(y[i] == 0.25f + expected[i], "%s %s: accumulate", isa, shapes[shape].why);
    }
    free(x);
    free(x_float);
    free(expected);
    free(y);
    test_matrix_free(&m);
}

/* All 256 codes, one at a time: exact, NaN included. */
static void check_fp8_codes(const char *isa, krn_backend *backend) {
    uint8_t codes[256][32] = {{0}};
    float scale[2] = {1, 1}, y[256];
    uint16_t x[32] = {krn_bf16_from_float(1)};
    for (int i = 0; i < 256; i++) codes[i][0] = (uint8_t)i;
    krn_matrix w = {.data = codes, .dtype = MDL_F8_E4M3, .n_out = 256, .n_in = 32, .scale = scale};
    w.block_rows = w.block_cols = 128;
    w.n_scale_cols = 1;
    backend->linear(backend, &w, x, 1, y, false);
    for (int i = 0; i < 256; i++) {
        float value = krn_float_from_e4m3((uint8_t)i);
        CHECK(y[i] == value || (isnan(value) && isnan(y[i])), "%s: code %d is %g, not %g", isa, i, y[i], value);
    }
}

static void check_rows(const char *isa, krn_backend *backend) {
    static const uint32_t widths[] = {1, 7, 8, 16, 31, 96, 129, 1000};
    for (size_t i = 0; i < sizeof(widths) / sizeof(widths[0]); i++) {
        uint32_t n = widths[i];
        float *x = test_floats(5 * n), *gain = test_floats(n), out[5 * 1000];
        uint16_t act[5 * 1000];
        backend->rmsnorm(backend, x, 5, n, gain, 1e-5f, act, out);
        for (uint32_t r = 0; r < 5; r++) {
            double squares = 0;
            for (uint32_t k = 0; k < n; k++) squares += (double)x[r * n + k] * x[r * n + k];
            for (uint32_t k = 0; k < n; k++) {
                double expected = x[r * n + k] / sqrt(squares / n + 1e-5) * gain[k];
                float y = out[r * n + k];
                CHECK(fabs(y - expected) <= 1e-6 * fabs(expected) + 1e-9, "%s: rmsnorm of %u: %g, not %g", isa, n, y,
                      expected);
                CHECK(act[r * n + k] == krn_bf16_from_float(y), "%s: rmsnorm of %u rounds wrongly", isa, n);
            }
        }
        free(x);
        free(gain);
    }
}

static void check_embed(const char *isa, krn_backend *backend) {
    static const mdl_dtype dtypes[] = {MDL_BF16, MDL_F16, MDL_F32, MDL_F8_E4M3};
    static const uint32_t ids[] = {49, 0, 7, 7, 48};
    for (size_t i = 0; i < 4; i++) {
        test_matrix m = test_matrix_make(dtypes[i], 50, 90, 32);
        float out[5 * 90];
        backend->embed(backend, &m.w, ids, 5, out);
        for (uint32_t r = 0; r < 5; r++) {
            CHECK(memcmp(out + r * 90, m.values + ids[r] * 90, 90 * sizeof(float)) == 0, "%s: %s embedding", isa,
                  mdl_dtype_name(dtypes[i]));
        }
        test_matrix_free(&m);
    }
}

/* The router must not round to bfloat16 anywhere. Rows and outputs that fill no task, no tile and no panel. */
static void check_router(const char *isa, mdl_dtype dtype, uint32_t n_experts, uint32_t width) {
    enum { MAX_EXPERTS = 150, ROWS = 200, CHOSEN = 3 };
    mdl_config config = test_config();
    config.n_routed_experts = n_experts;
    config.hidden_size = width;
    test_matrix m = test_matrix_make(dtype, n_experts, width, 0);
    float *x = test_floats(ROWS * width), *bias = test_floats(n_experts);
    float all[ROWS * MAX_EXPERTS], one[MAX_EXPERTS], all_weights[ROWS * CHOSEN], one_weights[CHOSEN];
    uint32_t all_experts[ROWS * CHOSEN], one_experts[CHOSEN];
    krn_router_args args = {
        .w = &m.w, .bias = bias, .x = x, .logits = all, .experts = all_experts, .weights = all_weights};
    krn_router_args alone = {
        .w = &m.w, .bias = bias, .n_rows = 1, .logits = one, .experts = one_experts, .weights = one_weights};
    for (uint32_t b = 0; b < MAX_THREADS; b++) {
        krn_backend *backend = test_open(&config, isa, b + 1, ROWS, 64);
        args.n_rows = ROWS - b * 71;
        backend->router(backend, &args);
        for (uint32_t r = 0; r < args.n_rows; r++) {
            alone.x = x + r * width;
            backend->router(backend, &alone);
            CHECK(memcmp(one, all + r * n_experts, n_experts * sizeof(float)) == 0, "%s: router bits depend on rows",
                  isa);
            for (uint32_t e = 0; e < n_experts; e++) {
                double size, sum = test_dot(m.values + e * width, x + r * width, width, &size);
                CHECK(fabs(one[e] - sum) <= 3e-7 * size, "%s: router logit %g, not %g", isa, one[e], sum);
            }
            krn_route(&config, one, bias, one_experts, one_weights);
            CHECK(memcmp(one_experts, all_experts + r * CHOSEN, sizeof(one_experts)) == 0 &&
                      memcmp(one_weights, all_weights + r * CHOSEN, sizeof(one_weights)) == 0,
                  "%s: row %u of %u goes elsewhere", isa, r, args.n_rows);
        }
        backend->close(backend);
    }
    free(x);
    free(bias);
    test_matrix_free(&m);
}

/* Terms in the given order from zero, then what is there: bit for bit as a plain loop has it. */
static void check_combine(const char *isa, krn_backend *const backends[MAX_THREADS]) {
    enum { ROWS = 70, TERMS = 5, WIDTH = 1003 };
    float *values = test_floats(ROWS * TERMS * WIDTH), *x = test_floats(ROWS * WIDTH);
    float *expected = bt_calloc(ROWS * WIDTH, sizeof(float)), *y = bt_calloc(ROWS * WIDTH, sizeof(float));
    const float *terms[ROWS * TERMS];
    for (uint32_t i = 0; i < ROWS * TERMS; i++) terms[i] = values + (size_t)(i * 37 % (ROWS * TERMS)) * WIDTH;
    for (uint32_t r = 0; r < ROWS; r++) {
        for (uint32_t i = 0; i < WIDTH; i++) {
            float sum = 0;
            for (uint32_t t = 0; t < TERMS; t++) sum += terms[r * TERMS + t][i];
            expected[r * WIDTH + i] = x[r * WIDTH + i] + sum;
        }
    }
    for (uint32_t n_rows = 0; n_rows <= ROWS; n_rows++) {
        memcpy(y, x, ROWS * WIDTH * sizeof(float));
        krn_backend *backend = backends[n_rows % MAX_THREADS];
        backend->combine(backend, terms, TERMS, n_rows, WIDTH, y);
        CHECK(memcmp(y, expected, n_rows * WIDTH * sizeof(float)) == 0, "%s: sum of %u rows", isa, n_rows);
        CHECK(memcmp(y + n_rows * WIDTH, x + n_rows * WIDTH, (ROWS - n_rows) * WIDTH * sizeof(float)) == 0,
              "%s: sum of %u rows goes too far", isa, n_rows);
    }
    free(values);
    free(x);
    free(expected);
    free(y);
}

static void mlp_plain(const test_matrix mlp[3], const float *x, uint32_t hidden, uint32_t inter, float *y) {
    float *h = bt_calloc(inter, sizeof(float));
    double size;
    for (uint32_t i = 0; i < inter; i++) {
        double gate = test_dot(mlp[0].values + (size_t)i * hidden, x, hidden, &size);
        double up = test_dot(mlp[1].values + (size_t)i * hidden, x, hidden, &size);
        h[i] = krn_float_from_bf16(krn_bf16_from_float((float)(gate / (1 + exp(-gate)) * up)));
    }
    for (uint32_t o = 0; o < hidden; o++) y[o] = (float)test_dot(mlp[2].values + (size_t)o * inter, h, inter, &size);
    free(h);
}

/* silu of small and of large numbers; the rows' bits do not depend on each other. */
static void check_mlp(const char *isa, mdl_dtype dtype, uint32_t hidden, uint32_t inter,
                      krn_backend *const backends[MAX_THREADS]) {
    test_matrix parts[3] = {test_matrix_make(dtype, inter, hidden, 32), test_matrix_make(MDL_BF16, inter, hidden, 0),
                            test_matrix_make(dtype, hidden, inter, 32)};
    krn_mlp mlp = {.gate = parts[0].w, .up = parts[1].w, .down = parts[2].w};
    uint16_t *x = test_rows((size_t)MAX_ROWS * hidden, NULL);
    float *x_float = bt_calloc((size_t)MAX_ROWS * hidden, sizeof(float)), *start = test_floats(hidden);
    float *all = bt_calloc((size_t)MAX_ROWS * hidden, sizeof(float)), *one = bt_calloc(hidden, sizeof(float));
    float *expected = bt_calloc(hidden, sizeof(float));
    for (uint32_t i = 0; i < MAX_ROWS * hidden; i++) {
        x_float[i] = krn_float_from_bf16(x[i]) * (float)(1 << i / hidden % 8);
        x[i] = krn_bf16_from_float(x_float[i]);
    }
    for (uint32_t n_rows = 1; n_rows <= MAX_ROWS; n_rows += 23) {
        krn_backend *backend = backends[n_rows % MAX_THREADS];
        for (uint32_t r = 0; r < n_rows; r++) memcpy(all + (size_t)r * hidden, start, hidden * sizeof(float));
        backend->mlp(backend, &mlp, x, n_rows, all);
        uint32_t row = test_random() % n_rows;
        memcpy(one, start, hidden * sizeof(float));
        backends[0]->mlp(backends[0], &mlp, x + row * hidden, 1, one);
        CHECK(memcmp(one, all + (size_t)row * hidden, hidden * sizeof(float)) == 0,
              "%s: row %u of %u has other bits alone", isa, row, n_rows);
        mlp_plain(parts, x_float + row * hidden, hidden, inter, expected);
        double error = 0, size = 0;
        for (uint32_t o = 0; o < hidden; o++) {
            error = fmax(error, fabs(one[o] - (start[o] + expected[o])));
            size = fmax(size, fabs(expected[o]));
        }
        CHECK(error <= 0.005 * size, "%s %s %u x %u: row %u is off by %g of %g", isa, mdl_dtype_name(dtype), hidden,
              inter, row, error, size);
    }
    for (int i = 0; i < 3; i++) test_matrix_free(&parts[i]);
    free(x);
    free(x_float);
    free(start);
    free(all);
    free(one);
    free(expected);
}

static void check_experts(const char *isa, mdl_dtype dtype, krn_backend *const backends[MAX_THREADS],
                          const mdl_config *c) {
    enum { ROWS = 60 };
    uint32_t hidden = c->hidden_size, inter = c->moe_intermediate_size, n_pairs = 0;
    test_matrix parts[6][3];
    krn_mlp experts[6];
    krn_pair pairs[6 * ROWS];
    for (uint32_t e = 0; e < 6; e++) {
        parts[e][0] = test_matrix_make(dtype, inter, hidden, 32);
        parts[e][1] = test_matrix_make(MDL_BF16, inter, hidden, 0); /* types may differ within an expert */
        parts[e][2] = test_matrix_make(dtype, hidden, inter, 32);
        experts[e] = (krn_mlp){parts[e][0].w, parts[e][1].w, parts[e][2].w};
        for (uint32_t row = 0; row < ROWS; row++) { /* expert 0 sees all rows, 4 one, 5 none */
            if (e == 5 || (e == 4 && row != 33) || (e > 0 && test_random() % 2 == 0)) continue;
            pairs[n_pairs++] = (krn_pair){.row = row, .expert = e, .weight = test_uniform()};
        }
    }
    float *x_float, *all = bt_calloc((size_t)n_pairs * hidden, sizeof(float)), *one = bt_calloc(hidden, sizeof(float));
    uint16_t *x = test_rows((size_t)ROWS * hidden, &x_float);
    krn_experts_args args = {.experts = experts, .pairs = pairs, .n_pairs = n_pairs, .x = x, .y = all};
    for (uint32_t b = 0; b < MAX_THREADS; b++) {
        memset(all, 0xff, (size_t)n_pairs * hidden * sizeof(float));
        backends[b]->experts(backends[b], &args);
        for (uint32_t p = 0; p < n_pairs; p += 1 + test_random() % 5) {
            krn_experts_args single = {.experts = experts, .pairs = &pairs[p], .n_pairs = 1, .x = x, .y = one};
            backends[0]->experts(backends[0], &single);
            CHECK(memcmp(one, all + (size_t)p * hidden, hidden * sizeof(float)) == 0,
                  "%s: pair %u has other bits alone", isa, p);
            float expected[96];
            mlp_plain(parts[pairs[p].expert], x_float + pairs[p].row * hidden, hidden, inter, expected);
            double error = 0, size = 0;
            for (uint32_t o = 0; o < hidden; o++) {
                error = fmax(error, fabs(one[o] - pairs[p].weight * expected[o]));
                size = fmax(size, fabs(pairs[p].weight * expected[o]));
            }
            CHECK(error <= 0.005 * size, "%s %s: pair %u is off by %g of %g", isa, mdl_dtype_name(dtype), p, error,
                  size);
        }
    }
    for (uint32_t e = 0; e < 6; e++) {
        for (int i = 0; i < 3; i++) test_matrix_free(&parts[e][i]);
    }
    free(x);
    free(x_float);
    free(all);
    free(one);
}

enum { POOL_TASKS = 40 };

static void count_task(void *context, uint32_t task, uint32_t thread) {
    uint32_t *counts = context;
    counts[task] += 1 + thread * 0;
}

static void check_pool(void) {
    for (uint32_t n_threads = 1; n_threads <= 4; n_threads++) {
        cpu_pool *pool = NULL;
        bt_error err = {0};
        CHECK(cpu_pool_open(n_threads, &pool, &err) == BT_OK, "%s", err.text);
        uint32_t counts[POOL_TASKS] = {0}, runs = 3000;
        for (uint32_t i = 0; i < runs; i++) cpu_pool_run(pool, POOL_TASKS - i % 2, count_task, counts);
        for (uint32_t t = 0; t < POOL_TASKS; t++) {
            uint32_t expected = t < POOL_TASKS - 1 ? runs : runs / 2;
            CHECK(counts[t] == expected, "task %u ran %u times with %u threads", t, counts[t], n_threads);
        }
        cpu_pool_close(pool);
    }
}

static void check_isa(const char *isa) {
    mdl_config config = test_config();
    mdl_config wide = config; /* scratch for the longest row of the shapes above */
    wide.intermediate_size = 8200;
    krn_backend *backends[MAX_THREADS];
    for (uint32_t i = 0; i < MAX_THREADS; i++) backends[i] = test_open(&wide, isa, i + 1, MAX_ROWS, 64);
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) check_linear(isa, i, backends);
    check_fp8_codes(isa, backends[0]);
    check_rows(isa, backends[0]);
    check_embed(isa, backends[0]);
    check_router(isa, MDL_BF16, 150, 93);
    check_router(isa, MDL_F32, 7, 264);
    check_combine(isa, backends);
    check_mlp(isa, MDL_BF16, 97, 150, backends);
    check_mlp(isa, MDL_BF16, 96, 160, backends);
    check_mlp(isa, MDL_BF16, 8200, 32, backends); /* rows that are cut into blocks of many and few */
    check_mlp(isa, MDL_F8_E4M3, 97, 150, backends);
    check_mlp(isa, MDL_F8_E4M3, 96, 160, backends);
    check_mlp(isa, MDL_F16, 97, 160, backends);
    check_experts(isa, MDL_BF16, backends, &config);
    check_experts(isa, MDL_F8_E4M3, backends, &config);
    check_experts(isa, MDL_F16, backends, &config);
    for (uint32_t i = 0; i < MAX_THREADS; i++) backends[i]->close(backends[i]);

    config.moe_intermediate_size = 64; /* whole panels */
    for (uint32_t i = 0; i < MAX_THREADS; i++) backends[i] = test_open(&config, isa, i + 1, MAX_ROWS, 64);
    check_experts(isa, MDL_BF16, backends, &config);
    check_experts(isa, MDL_F8_E4M3, backends, &config);
    for (uint32_t i = 0; i < MAX_THREADS; i++) backends[i]->close(backends[i]);
}

int main(void) {
    const char *isas[KRN_CPU_MAX_ISAS];
    uint32_t n_isas = krn_cpu_isas(isas);
    if (n_isas == 0) TEST_SKIP("this processor lacks AVX2, FMA or F16C");
    check_pool();
#ifdef __SANITIZE_THREAD__
    n_isas = 1; /* threads do the same on all of them */
#endif
    for (uint32_t i = 0; i < n_isas; i++) {
        fprintf(stderr, "%s\n", isas[i]);
        check_isa(isas[i]);
    }
    bt_error err = {0};
    mdl_config config = test_config();
    krn_backend_limits limits = {.n_threads = 1, .max_rows = 1, .max_positions = 1, .config = &config};
    krn_backend *backend = NULL;
    CHECK(krn_cpu_open_isa(&limits, "mmx", &backend, &err) == BT_BAD_REQUEST, "mmx must be refused");
    TEST_END();
}
