/* tokenizer.c against Hugging Face's ids: the fixtures of DeepSeek-V3 and hostile text. */
#include "common/text/tokenizer.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/buf.h"
#include "common/core/clock.h"
#include "common/core/test.h"
#include "common/text/detokenizer.h"
#include "common/text/json.h"

static bool ids_equal(const tok_ids *ids, const cJSON *expected) {
    if ((int)ids->n_ids != cJSON_GetArraySize(expected)) return false;
    const cJSON *item = expected->child;
    for (size_t i = 0; i < ids->n_ids; i++, item = item->next) {
        if (ids->ids[i] != (uint32_t)item->valuedouble) return false;
    }
    return true;
}

static void decode_all(const tok_tokenizer *tokenizer, const tok_ids *ids, bt_buf *out) {
    det_stream det;
    det_init(&det, tokenizer, false);
    for (size_t i = 0; i < ids->n_ids; i++) det_put(&det, ids->ids[i], out);
    det_finish(&det, out);
}

static void test_fixture(const tok_tokenizer *tokenizer, FILE *file) {
    char *line = NULL;
    size_t cap = 0;
    int n_lines = 0;
    while (getline(&line, &cap, file) > 0) {
        cJSON *row = NULL;
        size_t n_text, n_decoded;
        txt_json_parse(line, strlen(line), &row, NULL);
        const char *text = txt_json_string(cJSON_GetObjectItem(row, "text"), &n_text);
        const char *decoded = txt_json_string(cJSON_GetObjectItem(row, "decoded"), &n_decoded);
        tok_ids ids = {0};
        bt_buf out = {0};
        n_lines++;
        CHECK(tok_encode(tokenizer, text, n_text, 0, &ids, NULL) == BT_OK, "line %d", n_lines);
        CHECK(ids_equal(&ids, cJSON_GetObjectItem(row, "ids")), "line %d: %s", n_lines, text);
        decode_all(tokenizer, &ids, &out);
        if (decoded == NULL) decoded = text, n_decoded = n_text;
        CHECK(out.n_bytes == n_decoded && memcmp(bt_buf_text(&out), decoded, n_decoded) == 0,
              "line %d decodes otherwise", n_lines);
        bt_buf_fini(&out);
        tok_ids_fini(&ids);
        cJSON_Delete(row);
    }
    CHECK(n_lines > 600, "%d lines", n_lines);
    free(line);
}

/* A megabyte of anything is encoded in linear time (quadratic would run into the test's limit) and decodes to what went
 * in. */
static void test_hostile(const tok_tokenizer *tokenizer, const char *unit, size_t n_unit, const char *decoded_unit) {
    enum { N_BYTES = 1 << 20 };
    bt_buf text = {0}, expected = {0}, out = {0};
    tok_ids ids = {0};
    while (text.n_bytes < N_BYTES) {
        bt_buf_put(&text, unit, n_unit);
        bt_buf_put(&expected, decoded_unit, decoded_unit == unit ? n_unit : strlen(decoded_unit));
    }
    CHECK(tok_encode(tokenizer, (char *)text.bytes, text.n_bytes, 0, &ids, NULL) == BT_OK, "unit %s", unit);
    decode_all(tokenizer, &ids, &out);
    CHECK(out.n_bytes == expected.n_bytes && memcmp(out.bytes, expected.bytes, out.n_bytes) == 0, "unit %s", unit);
    bt_buf_fini(&text);
    bt_buf_fini(&expected);
    bt_buf_fini(&out);
    tok_ids_fini(&ids);
}

static void test_hostile_all(const tok_tokenizer *tokenizer) {
    static const struct {
        const char *unit;
        size_t n_bytes;
        const char *decoded; /* NULL: as it is */
    } rows[] = {{" ", 1, NULL},
                {"a", 1, NULL},
                {"A", 1, NULL},
                {"\n", 1, NULL},
                {" \n", 2, NULL},
                {"\xcc\x81", 2, NULL},
                {"\0", 1, NULL},
                {"1", 1, NULL},
                {"\xff", 1, "\xef\xbf\xbd"},
                {"\xe4\xb8", 2, "\xef\xbf\xbd"},
                {"!", 1, NULL},
                {"<", 1, NULL},
                {"<\xef\xbd\x9c", 4, NULL},
                {"\xe4\xb8\x80", 3, NULL},
                {"\xe2\x80\x8d", 3, NULL},
                {"aB", 2, NULL},
                {"\xf0\x9f\x91\xa9", 4, NULL}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        test_hostile(tokenizer, rows[i].unit, rows[i].n_bytes,
                     rows[i].decoded != NULL ? rows[i].decoded : rows[i].unit);
    }
}

int main(void) {
    if (test_shared() == NULL) TEST_SKIP("BATON_SHARED is not set");
    char path[512];
    bt_error err = {0};
    tok_tokenizer *tokenizer = NULL;
    snprintf(path, sizeof(path), "%s/data/deepseek-v3-tokenizer", test_shared());
    int64_t start_ns = bt_now_ns();
    bt_status status = tok_open(path, &tokenizer, &err);
    fprintf(stderr, "open: %.3f s\n", (double)(bt_now_ns() - start_ns) / BT_NS_PER_S);
    CHECK(status == BT_OK, "%s", err.text);
    if (status != BT_OK) TEST_END();
    snprintf(path, sizeof(path), "%s/fixtures/tokenizer-deepseek-v3.jsonl", test_shared());
    FILE *file = fopen(path, "r");
    CHECK(file != NULL, "%s", path);
    if (file != NULL) test_fixture(tokenizer, file);
    if (file != NULL) fclose(file);
    test_hostile_all(tokenizer);
    tok_close(tokenizer);
    TEST_END();
}
