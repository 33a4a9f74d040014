/* The one-order rule, bit for bit: `forward_test ref|cpu`. Whatever the chunks, the neighbours in the batch and the
 * places of the blocks, a row's logits and its KV are the same. And both forms of attention say the same within
 * rounding. On random models of odd shapes and on the bundled one. */
#include "kernels/forward.h"

#include "common/core/test.h"
#include "kernels/test_engine.h"
#include "kernels/test_model.h"

enum { MAX_ROWS = 160, N_BLOCKS = 24, MAX_TOKENS = 192, SEQUENCE_BLOCKS = MAX_TOKENS / KV_BLOCK_TOKENS };

typedef struct {
    uint32_t ids[MAX_TOKENS], blocks[SEQUENCE_BLOCKS];
} text;

static const char *backend = "ref";

static void text_make(text *out, uint32_t number, uint32_t vocab) {
    uint64_t state = 99 + number;
    for (uint32_t i = 0; i < MAX_TOKENS; i++)
        out->ids[i] = (uint32_t)((test_random(&state) + 1) / 2 * 0.999f * (float)vocab);
    for (uint32_t i = 0; i < SEQUENCE_BLOCKS; i++) out->blocks[i] = (number * SEQUENCE_BLOCKS + i) * 7 % N_BLOCKS;
}

/* Rows first..first + n of a text. */
static krn_sequence rows_of(const text *t, uint32_t first, uint32_t n, krn_form form, uint32_t n_logits) {
    return (krn_sequence){t->ids + first, t->blocks, n, first, form, n_logits};
}

/* Feeds n tokens in chunks; out [n][vocab]. */
static void run_chunks(test_engine *engine, const text *t, uint32_t n, uint32_t chunk, krn_form form, float *out) {
    for (uint32_t first = 0; first < n; first += chunk) {
        uint32_t n_rows = n - first < chunk ? n - first : chunk;
        krn_sequence rows = rows_of(t, first, n_rows, form, n_rows);
        test_engine_step(engine, &rows, 1);
        memcpy(out + (size_t)first * engine->vocab, engine->logits, (size_t)n_rows * engine->vocab * sizeof(float));
    }
}

/* All cached bytes of n tokens, in order: [layer][token]. */
static void copy_kv(const test_engine *engine, const text *t, uint32_t n, uint8_t *out) {
    const kv_layout *layout = &engine->kv.layout;
    size_t token_bytes = kv_token_bytes(layout);
    for (uint32_t layer = 0; layer < layout->n_layers; layer++) {
        for (uint32_t i = 0; i < n; i++, out += token_bytes) {
            size_t offset = kv_offset_bytes(layout, layer, t->blocks[i / KV_BLOCK_TOKENS], i % KV_BLOCK_TOKENS);
            memcpy(out, (const uint8_t *)engine->kv.base + offset, token_bytes);
        }
    }
}

static void test_chunks(test_engine *engine, const char *name) {
    static const uint32_t chunks[] = {64, 1, 7, 65, 100};
    /* Small chunks rebuild the keys of all blocks every time: in plain C on the bundled model that takes minutes. */
    size_t n_chunks = engine->is_slow ? 1 : sizeof(chunks) / sizeof(chunks[0]);
    uint32_t n = engine->is_slow ? 70 : 150;
    size_t n_logits = (size_t)n * engine->vocab,
           kv_bytes = engine->kv.layout.n_layers * n * kv_token_bytes(&engine->kv.layout);
    float *whole = bt_calloc(n_logits, sizeof(float)), *pieces = bt_calloc(n_logits, sizeof(float));
    uint8_t *whole_kv = bt_calloc(kv_bytes, 1), *pieces_kv = bt_calloc(kv_bytes, 1);
    text t, elsewhere;
    text_make(&t, 0, engine->vocab);
    elsewhere = t;
    for (uint32_t i = 0; i < SEQUENCE_BLOCKS; i++) elsewhere.blocks[i] = N_BLOCKS - 1 - t.blocks[i];
    run_chunks(engine, &t, n, n, KRN_EXPANDED, whole);
    copy_kv(engine, &t, n, whole_kv);
    for (size_t c = 0; c < n_chunks; c++) {
        run_chunks(engine, &elsewhere, n, chunks[c], KRN_EXPANDED, pieces);
        copy_kv(engine, &elsewhere, n, pieces_kv);
        CHECK(memcmp(whole, pieces, n_logits * sizeof(float)) == 0, "%s: logits in chunks of %u", name, chunks[c]);
        CHECK(memcmp(whole_kv, pieces_kv, kv_bytes) == 0, "%s: KV in chunks of %u", name, chunks[c]);
    }
    krn_sequence tail = rows_of(&t, n - 10, 10, KRN_EXPANDED, 3);
    test_engine_step(engine, &tail, 1);
    CHECK(memcmp(engine->logits, whole + (size_t)(n - 3) * engine->vocab, 3 * engine->vocab * sizeof(float)) == 0,
          "%s: fewer logits are the same logits", name);
    free(whole);
    free(pieces);
    free(whole_kv);
    free(pieces_kv);
}

/* Sequences of both forms and several lengths in one step, against each alone. */
static void test_neighbours(test_engine *engine, const char *name) {
    static const struct {
        uint32_t first, n_rows;
        krn_form form;
        uint32_t n_logits;
    } parts[] = {{60, 9, KRN_EXPANDED, 2},  {63, 1, KRN_ABSORBED, 1}, {0, 70, KRN_EXPANDED, 1},
                 {129, 1, KRN_ABSORBED, 1}, {5, 3, KRN_ABSORBED, 3},  {30, 1, KRN_EXPANDED, 0},
                 {64, 1, KRN_ABSORBED, 1}};
    enum { N = sizeof(parts) / sizeof(parts[0]) };
    text texts[N];
    krn_sequence together[N];
    float *alone = bt_calloc((size_t)MAX_ROWS * engine->vocab, sizeof(float)), *place = alone;
    for (uint32_t s = 0; s < N; s++) {
        text_make(&texts[s], s, engine->vocab);
        krn_sequence before = rows_of(&texts[s], 0, parts[s].first, KRN_EXPANDED, 0);
        if (parts[s].first > 0) test_engine_step(engine, &before, 1);
        together[s] = rows_of(&texts[s], parts[s].first, parts[s].n_rows, parts[s].form, parts[s].n_logits);
        test_engine_step(engine, &together[s], 1);
        size_t n = (size_t)parts[s].n_logits * engine->vocab;
        if (n > 0) memcpy(place, engine->logits, n * sizeof(float));
        place += n;
    }
    test_engine_step(engine, together, N);
    CHECK(memcmp(alone, engine->logits, (size_t)(place - alone) * sizeof(float)) == 0, "%s: a batch and each alone",
          name);
    krn_sequence reversed[N];
    for (uint32_t s = 0; s < N; s++) reversed[s] = together[N - 1 - s];
    float *last = bt_calloc(engine->vocab, sizeof(float));
    memcpy(last, engine->logits + (size_t)(place - alone) - engine->vocab, engine->vocab * sizeof(float));
    test_engine_step(engine, reversed, N);
    CHECK(memcmp(last, engine->logits, engine->vocab * sizeof(float)) == 0, "%s: in another order", name);
    free(last);
    free(alone);
}

static int compare_floats(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void test_forms(test_engine *engine, const char *name) {
    enum { N = 90 };
    size_t n = (size_t)N * engine->vocab;
    float *expanded = bt_calloc(n, sizeof(float)), *absorbed = bt_calloc(n, sizeof(float));
    text t;
    text_make(&t, 3, engine->vocab);
    run_chunks(engine, &t, N, 32, KRN_EXPANDED, expanded);
    run_chunks(engine, &t, N, 32, KRN_ABSORBED, absorbed);
    for (size_t i = 0; i < n; i++) absorbed[i] = fabsf(absorbed[i] - expanded[i]);
    qsort(absorbed, n, sizeof(float), compare_floats);
    bool is_ref = strcmp(backend, "ref") == 0; /* bf16 may flip experts: its median counts */
    float median = absorbed[n / 2], largest = absorbed[n - 1];
    printf("%-10s %s: absorbed and expanded logits differ by median %.2g, max %.2g\n", name, backend, median, largest);
    CHECK(is_ref ? largest < 1e-4f : median < 5e-2f, "%s: the forms differ by %g, median %g", name, largest, median);
    free(expanded);
    free(absorbed);
}

typedef struct {
    test_engine *engine;
    const text *text;
    uint32_t n_layers_done;
    bool is_stored;
} watcher;

static void on_layer(void *context, uint32_t layer) {
    watcher *w = context;
    const kv_layout *layout = &w->engine->kv.layout;
    const uint8_t *last = (const uint8_t *)w->engine->kv.base + kv_offset_bytes(layout, layer, w->text->blocks[0], 9);
    bool is_zero = true;
    for (size_t i = 0; i < kv_token_bytes(layout); i++) is_zero = is_zero && last[i] == 0;
    w->is_stored = w->is_stored && !is_zero && layer == w->n_layers_done;
    w->n_layers_done++;
}

static void test_layers(test_engine *engine, const char *name) {
    text t;
    text_make(&t, 5, engine->vocab);
    memset(engine->kv.base, 0, kv_pool_bytes(&engine->kv.layout));
    watcher w = {engine, &t, 0, true};
    krn_sequence rows = rows_of(&t, 0, 10, KRN_EXPANDED, 0);
    krn_forward(engine->model, engine->kv, &rows, 1, engine->logits, on_layer, &w);
    CHECK(w.n_layers_done == engine->kv.layout.n_layers && w.is_stored,
          "%s: each layer is in the cache when it is said", name);
}

static void test_model_dir(const char *dir, const char *name) {
    test_engine engine = {.is_slow = strcmp(backend, "ref") == 0 && strcmp(name, "nano-r1") == 0};
    bt_error err = {0};
    bt_status status = test_engine_open(dir, backend, MAX_ROWS, N_BLOCKS, &engine, &err);
    CHECK(status == BT_OK, "%s: %s", name, err.text);
    if (status != BT_OK) return;
    test_chunks(&engine, name);
    test_neighbours(&engine, name);
    test_forms(&engine, name);
    test_layers(&engine, name);
    test_engine_close(&engine);
}

static void test_options(const char *dir) {
    static const struct {
        krn_model_options options;
        const char *sentence;
    } rows[] = {
        {{.backend = "tpu", .max_rows = 1, .max_positions = 8, .max_logits = 1}, "backend is \"tpu\""},
        {{.backend = "ref", .max_rows = 0, .max_positions = 8, .max_logits = 1}, "rows per step is 0"},
        {{.backend = "ref", .max_rows = 1, .max_positions = 1 << 20, .max_logits = 1}, "max_position_embeddings is"},
        {{.backend = "ref", .max_rows = 1, .max_positions = 8, .max_logits = 0}, "rows of logits"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        krn_model *model = NULL;
        krn_model_options options = rows[i].options;
        bt_error err = {0};
        options.dir = dir;
        CHECK(krn_model_open(&options, &model, &err) == BT_BAD_REQUEST && strstr(err.text, rows[i].sentence) != NULL,
              "row %zu: \"%s\"", i, err.text);
        krn_model_close(model);
    }
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        test_model model;
    } models[] = {
        {"v3-bf16", {TEST_CONFIG_V3 "}", "BF16", "", "F32", NULL, NULL, NULL, false, false}},
        {"v3-fp8", {TEST_CONFIG_V3 TEST_FP8(16, 32) "}", "F8_E4M3", "F32", "F32", NULL, NULL, NULL, false, false}},
        {"v3-e8m0",
         {TEST_CONFIG_V3 TEST_FP8(128, 128) "}", "F8_E4M3", "F8_E8M0", "F32", NULL, NULL, NULL, false, true}},
        {"v2-f16", {TEST_CONFIG_V2 "}", "F16", "", "", NULL, NULL, NULL, false, false}},
        {"v2-f32",
         {TEST_CONFIG_V2 ",\"tie_word_embeddings\":true,\"n_shared_experts\":2}", "F32", "", "", NULL, NULL, NULL,
          false, false}},
    };
    char dir[TEST_PATH_BYTES];
    if (argc > 1) backend = argv[1];
    test_dir_make(dir);
    for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++) {
        test_model_write(dir, &models[i].model);
        test_model_dir(dir, models[i].name);
    }
    test_options(dir);
    test_dir_remove(dir);
    test_model_dir("deploy/models/nano-r1", "nano-r1");
    TEST_END();
}
