/* The hand-written scanner against the regular expressions it stands for, and the translation of patterns. */
#include <stdlib.h>
#include <string.h>

#include "common/core/buf.h"
#include "common/core/test.h"
#include "common/text/pretok.h"
#include "common/text/regex.h"
#include "common/text/utf8.h"

#define V3_REGEX                                                                                                       \
    "[!\\\"#$%&'()*+,\\\\-./"                                                                                          \
    ":;<=>?@\\\\[\\\\\\\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\\\p{L}\\\\p{P}\\\\p{S}]?[\\\\p{L}\\\\p{M}]+|"                \
    " ?[\\\\p{P}\\\\p{S}]+[\\r\\n]*|\\\\s*[\\r\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
static const char v3_spec[] =
    "{\"type\": \"Sequence\", \"pretokenizers\": ["
    "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"\\\\p{N}{1,3}\"}, \"behavior\": \"Isolated\", \"invert\": false},"
    "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"[\\u4e00-\\u9fa5\\u3040-\\u309f\\u30a0-\\u30ff]+\"}, "
    "\"behavior\": "
    "\"Isolated\", \"invert\": false},"
    "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"" V3_REGEX "\"}, \"behavior\": \"Isolated\", \"invert\": false},"
    "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": false}]}";

/* Pieces as text with a separator behind each. */
static void collect(void *context, const utf8_piece *pieces, size_t n_pieces) {
    for (size_t i = 0; i < n_pieces; i++) {
        bt_buf_put(context, pieces[i].bytes, pieces[i].n_bytes);
        bt_buf_put(context, "\xff", 1);
    }
}

static void random_text(bt_buf *out) {
    static const char *const units[] = {" ",
                                        "  ",
                                        "\n",
                                        "\r",
                                        "\t",
                                        "a",
                                        "B",
                                        "ab",
                                        "1",
                                        "12",
                                        "!",
                                        "-",
                                        "'",
                                        "_",
                                        "\xc3\xa9",
                                        "\xcc\x81",
                                        "\xe6\x97\xa5",
                                        "\xe3\x81\x82",
                                        "\xe3\x83\xbc",
                                        "\xe3\x83\xbb",
                                        "\xe3\x82\x99",
                                        "\xe3\x80\x80",
                                        "\xc2\xa0",
                                        "\xe1\xa0\x8e",
                                        "\xe2\x80\x8b",
                                        "\xef\xbc\x91",
                                        "\xc2\xbd",
                                        "\xf0\x9f\x91\xa9",
                                        "\xe2\x80\x9c",
                                        "\x01",
                                        "\xc2\x85",
                                        "\xe2\x80\xa8",
                                        "$",
                                        "=",
                                        "\xd9\xa0",
                                        "\xe9\xbe\xa6"};
    bt_buf_clear(out);
    for (int n = rand() % 24; n > 0; n--) {
        if (rand() % 8 == 0) {
            utf8_put_char(out, (uint32_t)rand() % (rand() % 2 ? 0x3100 : 0x110000));
        } else {
            bt_buf_puts(out, units[(size_t)rand() % (sizeof(units) / sizeof(units[0]))]);
        }
    }
}

static void test_v3_scanner(void) {
    bt_error err = {0};
    cJSON *spec = cJSON_Parse(v3_spec);
    ptk_splitter *fast = NULL, *slow = NULL;
    CHECK(ptk_open(spec, &fast, &err) == BT_OK, "%s", err.text);
    CHECK(ptk_open(spec, &slow, &err) == BT_OK, "%s", err.text);
    ptk_use_regex_only(slow);
    ptk_scratch *fast_scratch = ptk_scratch_open(fast), *slow_scratch = ptk_scratch_open(slow);
    bt_buf text = {0}, got = {0}, want = {0};
    srand(7);
    for (int i = 0; i < 20000; i++) {
        random_text(&text);
        utf8_put_slack(&text);
        bt_buf_clear(&got);
        bt_buf_clear(&want);
        ptk_split(fast, fast_scratch, text.bytes, text.n_bytes, collect, &got, NULL);
        ptk_split(slow, slow_scratch, text.bytes, text.n_bytes, collect, &want, NULL);
        bool is_equal =
            got.n_bytes == want.n_bytes && (got.n_bytes == 0 || memcmp(got.bytes, want.bytes, got.n_bytes) == 0);
        CHECK(is_equal, "'%s' cut into '%s', not '%s'", bt_buf_text(&text), bt_buf_text(&got), bt_buf_text(&want));
        if (!is_equal) break;
    }
    bt_buf_fini(&text);
    bt_buf_fini(&got);
    bt_buf_fini(&want);
    ptk_scratch_close(fast_scratch);
    ptk_scratch_close(slow_scratch);
    ptk_close(fast);
    ptk_close(slow);
    cJSON_Delete(spec);
}

static void test_behaviors(void) {
    static const struct {
        const char *spec, *text, *pieces; /* pieces end with | */
    } rows[] = {
        {"{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"Isolated\"}", "a--b-", "a|-|-|b|-|"},
        {"{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"Removed\"}", "a--b-", "a|b|"},
        {"{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"MergedWithPrevious\"}", "a--b-",
         "a-|-|b-|"},
        {"{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"MergedWithNext\"}", "a--b-", "a|-|-b|-|"},
        {"{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"Contiguous\"}", "a--b-", "a|--|b|-|"},
        {"{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a-z]+\"},\"behavior\":\"Removed\",\"invert\":true}", "ab1cd",
         "ab|cd|"},
        {"{\"type\":\"Digits\",\"individual_digits\":true}", "a12", "a|1|2|"},
        {"{\"type\":\"Digits\",\"individual_digits\":false}", "a12b", "a|12|b|"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        bt_buf json = {0}, got = {0};
        bt_error err = {0};
        ptk_splitter *splitter = NULL;
        bt_buf_printf(&json,
                      "{\"type\":\"Sequence\",\"pretokenizers\":[%s,{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
                      "\"use_regex\":false}]}",
                      rows[i].spec);
        cJSON *spec = cJSON_Parse(bt_buf_text(&json));
        CHECK(ptk_open(spec, &splitter, &err) == BT_OK, "%s", err.text);
        ptk_scratch *scratch = ptk_scratch_open(splitter);
        ptk_split(splitter, scratch, (const uint8_t *)rows[i].text, strlen(rows[i].text), collect, &got, NULL);
        for (size_t k = 0; k < got.n_bytes; k++) got.bytes[k] = got.bytes[k] == 0xff ? '|' : got.bytes[k];
        CHECK(strcmp(bt_buf_text(&got), rows[i].pieces) == 0, "%s: %s", rows[i].spec, bt_buf_text(&got));
        ptk_scratch_close(scratch);
        ptk_close(splitter);
        cJSON_Delete(spec);
        bt_buf_fini(&json);
        bt_buf_fini(&got);
    }
}

static void test_refusals(void) {
    static const char *const specs[] = {
        "null",
        "{}",
        "{\"type\":\"Metaspace\"}",
        "{\"type\":\"Sequence\",\"pretokenizers\":[]}",
        "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":\"Isolated\"}",
        "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a\"},\"behavior\":\"Isolated\"}",
        "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\\\\\"},\"behavior\":\"Isolated\"}",
        "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Other\"}",
        "{\"type\":\"Split\",\"pattern\":{},\"behavior\":\"Isolated\"}",
    };
    for (size_t i = 0; i < sizeof(specs) / sizeof(specs[0]); i++) {
        bt_error err = {0};
        ptk_splitter *splitter = NULL;
        cJSON *spec = cJSON_Parse(specs[i]);
        CHECK(ptk_open(spec, &splitter, &err) == BT_BAD_REQUEST && err.text[0] != 0, "%s is accepted", specs[i]);
        cJSON_Delete(spec);
    }
}

static void test_translation(void) {
    static const struct {
        const char *from, *to;
    } rows[] = {
        {"\\p{N}{1,3}", "\\p{N}{1,3}"},
        {"a{2}+", "(?:a{2})+"},
        {"(ab){1,2}+c", "(?:(ab){1,2})+c"},
        {"\\p{Han}", "\\p{sc:Han}"},
        {"\\p{^Lu}", "\\p{^Lu}"},
        {"[\\p{L}&&[^\\p{Han}]]+", "(?:(?=[\\p{L}])(?:[^\\p{sc:Han}]))+"},
        {"[a[b]]", "(?:[b]|[a])"},
        {"\\p{Letter}", "\\p{L}"},
        {"x{y}", "x\\{y}"},
        {"\\u00e9", "\\x{00e9}"},
        {"(?m:.)", "(?s:.)"},
        {"\\x{1F600}{2}", "\\x{1F600}{2}"},
        {"[\\S]", "[\\S\\x{180e}]"},
        {"\\h", "[0-9A-Fa-f]"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        bt_buf out = {0};
        bt_error err = {0};
        CHECK(rgx_translate(rows[i].from, &out, &err) == BT_OK, "%s", err.text);
        CHECK(strcmp(bt_buf_text(&out), rows[i].to) == 0, "%s became %s", rows[i].from, bt_buf_text(&out));
        bt_buf_fini(&out);
    }
}

int main(void) {
    test_translation();
    test_behaviors();
    test_refusals();
    test_v3_scanner();
    TEST_END();
}
