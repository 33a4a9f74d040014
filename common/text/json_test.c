/* JSON: the trees that cJSON's own parser makes, what it would lose, what it would not refuse. */
#include "common/text/json.h"

#include <stdlib.h>
#include <string.h>

#include "common/core/test.h"
#include "common/text/json_unescape.h"

enum { MAX_DEPTH = 64 };
static const txt_json_rules rules = {.max_depth = MAX_DEPTH, .max_values = 1000, .repairs = true};

static bool is_json(char *text, size_t n_bytes) {
    cJSON *tree = NULL;
    bt_status status = txt_json_read(text, n_bytes, &rules, &tree, NULL);
    cJSON_Delete(tree);
    return status == BT_OK;
}

/* What cJSON's own parser makes of it is the same tree, where it takes the text. */
static void check_tree(const char *text, const char *want) {
    char *copy = strdup(text);
    cJSON *tree = NULL, *theirs = cJSON_Parse(text);
    CHECK(txt_json_read(copy, strlen(copy), &rules, &tree, NULL) == BT_OK, "%s", text);
    char *printed = cJSON_PrintUnformatted(tree), *expected = cJSON_PrintUnformatted(theirs);
    const char *wanted = want != NULL ? want : expected;
    CHECK(printed != NULL && wanted != NULL && strcmp(printed, wanted) == 0, "%s: %s, not %s", text, printed, wanted);
    cJSON_free(printed);
    cJSON_free(expected);
    cJSON_Delete(tree);
    cJSON_Delete(theirs);
    free(copy);
}

static void test_trees(void) {
    check_tree(" [ ] ", NULL);
    check_tree("{\"\":{},\"a\":[[],[{}],{\"b\":[1,2]}],\"a\":null}", NULL);
    check_tree("[0,-0,1.5,-2e3,1E-2,123456789012345678,1e300,true,false,null]", NULL);
    check_tree("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", NULL);
    check_tree("{\"k\\u00e9y\\n\":\"\\u0041\\u00e9\\u20ac\\ud83d\\ude00 plain text, long enough\\tfor words\\u007f\"}",
               NULL);
    check_tree("\"\xe4\xbd\xa0\xf0\x9f\x98\x80\xc2\x85\"", NULL);
    check_tree("\xef\xbb\xbf[1]", "[1]");
    check_tree("\"a\\u0000b\"", "\"a\xef\xbf\xbd"
                                "b\"");
    check_tree("\"\\ud800\"", "\"\xef\xbf\xbd\"");
    check_tree("\"\\ud800\\u0041\\udc00x\"", "\"\xef\xbf\xbd"
                                             "A\xef\xbf\xbdx\"");
    check_tree("\"\\ud800\\ud800\\udc00\"", "\"\xef\xbf\xbd\xf0\x90\x80\x80\"");
}

/* Escapes at each place of a vector, behind text, each other and themselves. */
static void test_places(void) {
    static const char *const parts[] = {"\\n",     "\\\\",     "\\\"",   "\\/",    "\\u0041",
                                        "\\u00e9", "\xc3\xa9", "\\b\\f", "\\r\\t", "\\\\n"};
    enum { N = sizeof(parts) / sizeof(parts[0]), PLACES = 140 };
    for (int part = 0; part < N; part++) {
        for (int place = 0; place < PLACES; place++) {
            bt_buf text = {0};
            bt_buf_printf(&text, "[\"%.*s%s", place,
                          "the quick brown fox jumps over the lazy dog and the lazy dog does not mind: "
                          "the quick brown fox jumps over the lazy dog and the lazy dog does not mind",
                          parts[part]);
            for (int i = 0; i < place % N; i++) bt_buf_puts(&text, parts[(part + i) % N]);
            bt_buf_puts(&text, "and seventy bytes more, so that there is a vector's length left behind it.\",1]");
            check_tree(bt_buf_text(&text), NULL);
            bt_buf_fini(&text);
        }
    }
}

/* Moved by 0 to 15 bytes: what is plain arrives, what is behind it stays. */
static void test_words(void) {
    static const char specials[] = "\"\\\n\x01\x1f\x80\xff";
    uint64_t state = 1;
    for (int round = 0; round < 20000; round++) {
        uint8_t text[128], before[sizeof(text)], *to;
        state = state * 6364136223846793005u + 1442695040888963407u;
        size_t shift = state >> 60, n = state >> 33 & 63, special = state >> 40 & 63;
        for (size_t i = 0; i < sizeof(text); i++) text[i] = (uint8_t)('#' + (i * 7 + (size_t)round) % 50);
        if (special < n) text[shift + special] = (uint8_t)specials[(state >> 50) % (sizeof(specials) - 1)];
        memcpy(before, text, sizeof(text));
        to = text;
        size_t n_moved = json_unescape_words(&to, text + shift, n), n_plain = special < n ? special : n;
        CHECK(n_moved <= n_plain && to == text + n_moved, "%zu of %zu", n_moved, n_plain);
        CHECK(n_moved == n_plain || n - n_moved < 8, "stops at %zu of %zu", n_moved, n_plain);
        CHECK(memcmp(text, before + shift, n_moved) == 0, "what is plain arrives");
        CHECK(memcmp(text + shift + n_moved, before + shift + n_moved, sizeof(text) - shift - n_moved) == 0,
              "the rest stays");
    }
}

static void test_depth(void) {
    for (size_t depth = 63; depth <= 10000; depth += depth == 63 ? 1 : 9936) {
        char *body = malloc(2 * depth + 16);
        memcpy(body, "{\"a\":", 5);
        memset(body + 5, '[', depth);
        memset(body + 5 + depth, ']', depth);
        memcpy(body + 5 + 2 * depth, "}", 2);
        CHECK(is_json(body, strlen(body)) == (depth < MAX_DEPTH), "depth %zu", depth);
        free(body);
    }
}

/* Each special byte at each place of a string of plain ones, which are read eight at a time. */
static void test_special_bytes(void) {
    for (int byte = 1; byte < 256; byte++) {
        for (size_t at = 1; at < 20; at++) {
            char text[24] = "\"abcdefghijklmnopqrs\"";
            text[at] = (char)byte;
            bool is_plain = byte >= 0x20 && byte < 0x80 && byte != '"' && byte != '\\';
            bool escapes_next = byte == '\\' && strchr("bfnr", text[at + 1]) != NULL; /* a letter, or the end */
            CHECK(is_json(text, 21) == (is_plain || escapes_next), "byte %d at %zu", byte, at);
        }
    }
}

static void test_number_of_values(void) {
    char text[4096] = "[0";
    for (int i = 1; i < 999; i++) memcpy(text + 2 * i, ",0", 3);
    memcpy(text + 2 * 999, "]", 2);
    CHECK(is_json(text, strlen(text)), "a list and 999 values");
    memcpy(text + 2 * 999, ",0]", 4);
    CHECK(!is_json(text, strlen(text)), "one more");
}

static void test_what_is_refused_and_kept(void) {
    static const char *const bad[] = {"",
                                      "{",
                                      "[1,]",
                                      "{} x",
                                      "\"\\ud800\"",
                                      "\"\\udc00\"",
                                      "\"\\ud800\\u0041\"",
                                      "\"\xff\"",
                                      "nul",
                                      "[1 2]",
                                      "{\x01\"a\":1.5}",
                                      "[1.5,\x0b\"a\"]"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        cJSON *item = NULL;
        CHECK(txt_json_parse(bad[i], strlen(bad[i]), &item, NULL) == BT_BAD_REQUEST, "%s is accepted", bad[i]);
    }
    bt_buf deep = {0};
    for (int i = 0; i < 200; i++) bt_buf_puts(&deep, "[");
    for (int i = 0; i < 200; i++) bt_buf_puts(&deep, "]");
    cJSON *item = NULL;
    CHECK(txt_json_parse((char *)deep.bytes, deep.n_bytes, &item, NULL) == BT_BAD_REQUEST, "200 levels are accepted");
    bt_buf_fini(&deep);
    static const char text[] = " {\"a\\\"\": [1, 1.0, 2e3, 1.5, 9007199254740993], \"n\\u0000\": "
                               "\"x\\u0000\\u00e9\\ud83d\\ude00\\n\", \"e\": {} , \"t\":true}\n";
    CHECK(txt_json_parse(text, strlen(text), &item, NULL) == BT_OK, "refused");
    if (item == NULL) return;
    size_t n_bytes;
    const char *bytes = txt_json_string(item->child->next, &n_bytes);
    CHECK(n_bytes == 9 && memcmp(bytes, "x\0\xc3\xa9\xf0\x9f\x98\x80\n", 9) == 0, "%zu bytes", n_bytes);
    const cJSON *numbers = item->child->child;
    CHECK(txt_json_number_text(numbers) == NULL, "a plain integer has no text");
    CHECK(strcmp(txt_json_number_text(numbers->next), "1.0") == 0, "how 1.0 was written is lost");
    CHECK(strcmp(txt_json_number_text(numbers->next->next), "2e3") == 0, "how 2e3 was written is lost");
    CHECK(strcmp(txt_json_number_text(numbers->prev), "9007199254740993") == 0, "more than a double holds");
    cJSON_Delete(item);
    CHECK(txt_json_parse("\xef\xbb\xbf[1.0]", 8, &item, NULL) == BT_OK, "a byte order mark is refused");
    CHECK(strcmp(txt_json_number_text(item->child), "1.0") == 0, "how 1.0 was written is lost behind a mark");
    cJSON_Delete(item);
}

static void test_put_string(void) {
    bt_buf out = {0};
    txt_json_put_string(&out, "a\"\\\n\x01\0\xc3\xa9\xff", 9);
    CHECK(strcmp(bt_buf_text(&out), "\"a\\\"\\\\\\n\\u0001\\u0000\xc3\xa9\xef\xbf\xbd\"") == 0, "%s",
          bt_buf_text(&out));
    bt_buf_fini(&out);
}

int main(void) {
    test_trees();
    test_places();
    test_words();
    test_depth();
    test_special_bytes();
    test_number_of_values();
    test_what_is_refused_and_kept();
    test_put_string();
    TEST_END();
}
