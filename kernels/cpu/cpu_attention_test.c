/* Both forms of attention, on every instruction set of this machine: against plain loops in double precision, and bit
 * for bit whatever the chunking, the threads, the neighbours and the place of the blocks. */
#include "kernels/cpu/cpu_test.h"

enum { MAX_ROWS = 200, CONTEXT = 1100, N_BLOCKS = 40, MAX_BLOCKS = (CONTEXT + 63) / 64 };

static const uint32_t checked_rows[] = {0, 1, 63, 64, 299, 511, 512, 1023, 1024, CONTEXT - 1};
enum { N_CHECKED = sizeof(checked_rows) / sizeof(checked_rows[0]) };

/* One long sequence's inputs, and what attention gives for some of its rows. */
typedef struct {
    mdl_config config;
    test_matrix kv_b;
    krn_layer layer;
    float *norm, *q, *kv_a, *cos_sin; /* [CONTEXT][...] */
    float *cached;                    /* [CONTEXT][kv_width] */
    double *expected;                 /* [N_CHECKED][out_width] */
    uint32_t q_width, kv_width, out_width;
} fixture;

static float rounded(double x) { return krn_float_from_bf16(krn_bf16_from_float((float)x)); }

static void rotate(const float *x, const float *cos_sin, uint32_t n, float *out) {
    for (uint32_t i = 0; i < n; i += 2) {
        out[i] = rounded(x[i] * cos_sin[i] - x[i + 1] * cos_sin[i + 1]);
        out[i + 1] = rounded(x[i] * cos_sin[i + 1] + x[i + 1] * cos_sin[i]);
    }
}

/* What the cache must hold: the only place where the plain loops round. */
static void fill_cached(fixture *f) {
    const mdl_config *c = &f->config;
    uint32_t rank = c->kv_lora_rank;
    for (uint32_t u = 0; u < CONTEXT; u++) {
        const float *kv_a = f->kv_a + (size_t)u * f->kv_width;
        float *cached = f->cached + (size_t)u * f->kv_width;
        double squares = 0;
        for (uint32_t k = 0; k < rank; k++) squares += (double)kv_a[k] * kv_a[k];
        for (uint32_t k = 0; k < rank; k++)
            cached[k] = rounded(kv_a[k] / sqrt(squares / rank + c->rms_norm_eps) * f->norm[k]);
        rotate(kv_a + rank, f->cos_sin + (size_t)u * c->qk_rope_head_dim, c->qk_rope_head_dim, cached + rank);
    }
}

/* Row t of one head, by the formulas. */
static void attend_plain(const fixture *f, uint32_t t, uint32_t head, double *out) {
    const mdl_config *c = &f->config;
    uint32_t rank = c->kv_lora_rank, rope = c->qk_rope_head_dim, nope = c->qk_nope_head_dim, v = c->v_head_dim;
    const float *q = f->q + (size_t)t * f->q_width + head * (nope + rope);
    const float *w_k = f->kv_b.values + (size_t)head * (nope + v) * rank, *w_v = w_k + (size_t)nope * rank;
    float query[256] = {0}, z[256] = {0}, p[CONTEXT], max = -INFINITY;
    double sum = 0, size;
    rotate(q + nope, f->cos_sin + (size_t)t * rope, rope, query + rank);
    for (uint32_t i = 0; i < nope; i++) {
        for (uint32_t k = 0; k < rank; k++) query[k] += rounded(q[i]) * w_k[(size_t)i * rank + k];
    }
    for (uint32_t u = 0; u <= t; u++) {
        p[u] = (float)test_dot(query, f->cached + (size_t)u * f->kv_width, f->kv_width, &size) * mdl_softmax_scale(c);
        max = fmaxf(max, p[u]);
    }
    for (uint32_t u = 0; u <= t; u++) {
        p[u] = expf(p[u] - max);
        sum += p[u];
        for (uint32_t k = 0; k < rank; k++) z[k] += p[u] * f->cached[(size_t)u * f->kv_width + k];
    }
    for (uint32_t i = 0; i < v; i++) out[i] = test_dot(z, w_v + (size_t)i * rank, rank, &size) / sum;
}

static fixture fixture_make(mdl_config config, mdl_dtype dtype) {
    fixture f = {.config = config};
    const mdl_config *c = &f.config;
    f.q_width = c->num_attention_heads * (c->qk_nope_head_dim + c->qk_rope_head_dim);
    f.kv_width = mdl_kv_width(c);
    f.out_width = c->num_attention_heads * c->v_head_dim;
    f.kv_b =
        test_matrix_make(dtype, c->num_attention_heads * (c->qk_nope_head_dim + c->v_head_dim), c->kv_lora_rank, 128);
    f.norm = test_floats(c->kv_lora_rank);
    f.layer = (krn_layer){.kv_a_norm = f.norm, .kv_b = f.kv_b.w};
    f.q = test_floats((size_t)CONTEXT * f.q_width);
    f.kv_a = test_floats((size_t)CONTEXT * f.kv_width);
    f.cos_sin = bt_calloc((size_t)CONTEXT * c->qk_rope_head_dim, sizeof(float));
    for (uint32_t i = 0; i < CONTEXT * c->qk_rope_head_dim; i += 2) {
        float angle = test_uniform() * 3;
        f.cos_sin[i] = cosf(angle);
        f.cos_sin[i + 1] = sinf(angle);
    }
    f.cached = bt_calloc((size_t)CONTEXT * f.kv_width, sizeof(float));
    fill_cached(&f);
    f.expected = bt_calloc((size_t)N_CHECKED * f.out_width, sizeof(double));
    for (size_t i = 0; i < N_CHECKED; i++) {
        for (uint32_t head = 0; head < c->num_attention_heads; head++) {
            attend_plain(&f, checked_rows[i], head, f.expected + i * f.out_width + head * c->v_head_dim);
        }
    }
    return f;
}

static void fixture_free(fixture *f) {
    test_matrix_free(&f->kv_b);
    free(f->norm);
    free(f->q);
    free(f->kv_a);
    free(f->cos_sin);
    free(f->cached);
    free(f->expected);
}

/* A backend with its cache. Garbage fills what was never written: nothing may read it. */
typedef struct {
    krn_backend *backend;
    krn_kv kv;
    krn_weights weights;
    krn_layer layer;
} engine;

static engine engine_open(const fixture *f, const char *isa, uint32_t n_threads) {
    engine e = {.backend = test_open(&f->config, isa, n_threads, MAX_ROWS, CONTEXT), .layer = f->layer};
    e.kv.layout = (kv_layout){.dtype = KV_BFLOAT16, .n_layers = 2, .n_blocks = N_BLOCKS, .width = f->kv_width};
    e.kv.base = bt_calloc_aligned(kv_pool_bytes(&e.kv.layout), 64);
    memset(e.kv.base, 0xff, kv_pool_bytes(&e.kv.layout));
    e.weights.layers = &e.layer;
    e.backend->prepare(e.backend, &e.weights);
    return e;
}

static void engine_close(engine *e) {
    e->backend->close(e->backend);
    free(e->kv.base);
}

/* Rows position..position+n of the fixture, `form`, into out + row * width; several sequences at once. */
typedef struct {
    uint32_t position, n;
    krn_form form;
    uint32_t first_block; /* the sequence's blocks are first_block, first_block + 1, ... modulo N_BLOCKS */
} part;

static void run_parts(const fixture *f, engine *e, const part *parts, uint32_t n_parts, uint16_t *out) {
    krn_sequence sequences[8];
    uint32_t blocks[8][MAX_BLOCKS], n_rows = 0;
    uint32_t rope = f->config.qk_rope_head_dim;
    float *q = bt_calloc((size_t)MAX_ROWS * f->q_width, sizeof(float));
    float *kv_a = bt_calloc((size_t)MAX_ROWS * f->kv_width, sizeof(float));
    float *cos_sin = bt_calloc((size_t)MAX_ROWS * rope, sizeof(float));
    for (uint32_t i = 0; i < n_parts; i++) {
        const part *p = &parts[i];
        for (uint32_t b = 0; b < MAX_BLOCKS; b++) blocks[i][b] = (p->first_block + b) % N_BLOCKS;
        sequences[i] = (krn_sequence){.blocks = blocks[i], .n_rows = p->n, .position = p->position, .form = p->form};
        memcpy(q + (size_t)n_rows * f->q_width, f->q + (size_t)p->position * f->q_width, (size_t)p->n * f->q_width * 4);
        memcpy(kv_a + (size_t)n_rows * f->kv_width, f->kv_a + (size_t)p->position * f->kv_width,
               (size_t)p->n * f->kv_width * 4);
        memcpy(cos_sin + (size_t)n_rows * rope, f->cos_sin + (size_t)p->position * rope, (size_t)p->n * rope * 4);
        n_rows += p->n;
    }
    krn_attention_args args = {.layer = &e->layer, .layer_index = 1, .sequences = sequences, .n_sequences = n_parts};
    args.n_rows = n_rows;
    args.cos_sin = cos_sin;
    args.q = q;
    args.kv_a = kv_a;
    args.kv = e->kv;
    args.out = out;
    e->backend->attention(e->backend, &args);
    free(q);
    free(kv_a);
    free(cos_sin);
}

/* The whole sequence in steps of at most `step` rows. */
static void run_whole(const fixture *f, engine *e, krn_form form, uint32_t step, uint32_t first_block, uint16_t *out) {
    for (uint32_t at = 0; at < CONTEXT; at += step) {
        part p = {at, CONTEXT - at < step ? CONTEXT - at : step, form, first_block};
        run_parts(f, e, &p, 1, out + (size_t)at * f->out_width);
    }
}

static void check_values(const char *what, const fixture *f, const uint16_t *out) {
    uint32_t v = f->config.v_head_dim;
    for (size_t i = 0; i < N_CHECKED; i++) {
        for (uint32_t head = 0; head < f->config.num_attention_heads; head++) {
            const double *expected = f->expected + i * f->out_width + head * v;
            const uint16_t *y = out + (size_t)checked_rows[i] * f->out_width + head * v;
            double error = 0, size = 0;
            for (uint32_t k = 0; k < v; k++) {
                error = fmax(error, fabs(krn_float_from_bf16(y[k]) - expected[k]));
                size = fmax(size, fabs(expected[k]));
            }
            CHECK(error <= 0.02 * size, "%s: row %u head %u is off by %g of %g", what, checked_rows[i], head, error,
                  size);
        }
    }
}

/* Mixed forms, several sequences, blocks that wrap around: each part must have the bits it has alone. */
static void check_mixture(const char *what, const fixture *f, engine *e, uint16_t *const whole[2], uint16_t *out) {
    static const struct {
        uint32_t n;
        part parts[6];
    } mixtures[] = {
        {2, {{1090, 10, KRN_EXPANDED, 0}, {100, 1, KRN_ABSORBED, 20}}},
        {6,
         {{0, 20, KRN_EXPANDED, 38},
          {1099, 1, KRN_ABSORBED, 0},
          {0, 1, KRN_ABSORBED, 37},
          {512, 17, KRN_ABSORBED, 20},
          {0, 64, KRN_EXPANDED, 39},
          {0, 70, KRN_ABSORBED, 18}}},
    };
    run_whole(f, e, KRN_EXPANDED, MAX_ROWS, 0, out); /* fills blocks 0..17 */
    run_whole(f, e, KRN_EXPANDED, MAX_ROWS, 20,
              out); /* and 20..37; the parts of the first mixture write what is there */
    for (size_t m = 0; m < sizeof(mixtures) / sizeof(mixtures[0]); m++) {
        run_parts(f, e, mixtures[m].parts, mixtures[m].n, out);
        size_t row = 0;
        for (uint32_t i = 0; i < mixtures[m].n; i++) {
            const part *p = &mixtures[m].parts[i];
            const uint16_t *expected = whole[p->form] + (size_t)p->position * f->out_width;
            bool is_equal = memcmp(out + row * f->out_width, expected, (size_t)p->n * f->out_width * 2) == 0;
            CHECK(is_equal, "%s: part %u of mixture %zu has other bits", what, i, m);
            row += p->n;
        }
    }
}

static void check_fixture(const char *isa, const char *name, const fixture *f) {
    /* small steps cost the expanded form the whole context each */
    static const uint32_t steps[2][4] = {{130, 97, 190, 160}, {1, 130, 64, 7}};
    char what[128];
    size_t bytes = (size_t)CONTEXT * f->out_width * sizeof(uint16_t);
    uint16_t *whole[2] = {bt_calloc(1, bytes), bt_calloc(1, bytes)}, *out = bt_calloc(1, bytes);
    for (uint32_t n_threads = 1; n_threads <= 4; n_threads += 3) {
        engine e = engine_open(f, isa, n_threads);
        for (krn_form form = KRN_EXPANDED; form <= KRN_ABSORBED; form++) {
            snprintf(what, sizeof(what), "%s %s %s %u threads", isa, name,
                     form == KRN_EXPANDED ? "expanded" : "absorbed", n_threads);
            if (n_threads == 1) {
                run_whole(f, &e, form, MAX_ROWS, 3, whole[form]);
                check_values(what, f, whole[form]);
            }
            for (size_t i = n_threads / 2 % 2; i < 4; i += 2) {
                run_whole(f, &e, form, steps[form][i], 30, out);
                CHECK(memcmp(out, whole[form], bytes) == 0, "%s: steps of %u give other bits", what, steps[form][i]);
            }
        }
        snprintf(what, sizeof(what), "%s %s %u threads", isa, name, n_threads);
        check_mixture(what, f, &e, whole, out);
        engine_close(&e);
    }
    free(whole[0]);
    free(whole[1]);
    free(out);
}

int main(void) {
    const char *isas[KRN_CPU_MAX_ISAS];
    uint32_t n_isas = krn_cpu_isas(isas);
    if (n_isas == 0) TEST_SKIP("this processor lacks AVX2, FMA or F16C");
    mdl_config even = test_config(), odd = test_config();
    odd.kv_lora_rank = 37; /* nothing is a multiple of anything */
    odd.qk_nope_head_dim = 11;
    odd.qk_rope_head_dim = 6;
    odd.v_head_dim = 19;
    odd.num_attention_heads = 5;
    const struct {
        const char *name;
        const mdl_config *config;
        mdl_dtype dtype;
    } kinds[] = {
        {"fp8", &even, MDL_F8_E4M3},
        {"odd sizes", &odd, MDL_BF16},
#ifndef __SANITIZE_ADDRESS__ /* a minute of arithmetic in plain loops; the code is the same */
        {"bf16", &even, MDL_BF16},
        {"odd sizes f16", &odd, MDL_F16},
#endif
    };
    for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
        fixture f = fixture_make(*kinds[k].config, kinds[k].dtype);
        for (uint32_t i = 0; i < n_isas; i++) check_fixture(isas[i], kinds[k].name, &f);
        fixture_free(&f);
    }
    TEST_END();
}
