/* Tool calls of every format, in every way a text can come in pieces. */
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/test.h"
#include "common/text/tool_calls.h"

#define CS  "<｜tool▁calls▁begin｜>"
#define CE  "<｜tool▁calls▁end｜>"
#define B   "<｜tool▁call▁begin｜>"
#define E   "<｜tool▁call▁end｜>"
#define SEP "<｜tool▁sep｜>"
#define F   B "function" SEP
#define KS  "<|tool_calls_section_begin|>"
#define KE  "<|tool_calls_section_end|>"
#define KB  "<|tool_call_begin|>"
#define KA  "<|tool_call_argument_begin|>"
#define KX  "<|tool_call_end|>"

enum { ALL = 99 };

typedef struct {
    tcl_format format;
    const char *text, *want; /* content, then |id name(arguments) for each call */
    uint32_t max_calls;
    const char *why;
} row;

static const row rows[] = {
    {TCL_DEEPSEEK_V3, "just text", "just text", ALL, "no call"},
    {TCL_DEEPSEEK_V3, "", "", ALL, "nothing"},
    {TCL_DEEPSEEK_V3, "a <b> <｜tool", "a <b> <｜tool", ALL, "what only begins like a marker is text"},
    {TCL_DEEPSEEK_V3, CS F "f\n```json\n{\"a\": 1}\n```" E CE, "|t-00000000 f({\"a\": 1})", ALL,
     "as the template writes it"},
    {TCL_DEEPSEEK_V3, "I look.\n\n" CS F "f\n```json\n{}\n```" E CE " and so on", "I look.\n\n|t-00000000 f({})", ALL,
     "text in front is content, text behind is dropped"},
    {TCL_DEEPSEEK_V3, "\n\n" CS F "f\n```json\n{}\n```" E CE, "|t-00000000 f({})", ALL,
     "white space alone is no content"},
    {TCL_DEEPSEEK_V3, "\n\nyes", "\n\nyes", ALL, "but stays in front of text"},
    {TCL_DEEPSEEK_V3, " \n ", " \n ", ALL, "and by itself"},
    {TCL_DEEPSEEK_V3, CS F "f\n```json\n{\"a\":1}\n```" E "\n" F "g\n```json\n{\"b\":[2]}\n```" E CE,
     "|t-00000000 f({\"a\":1})|t-00000001 g({\"b\":[2]})", ALL, "two calls"},
    {TCL_DEEPSEEK_V3, CS F "f\n```json\n{}\n```" E F "g\n```json\n{}\n```" E CE, "|t-00000000 f({})", 1,
     "the first only"},
    {TCL_DEEPSEEK_V3, CS F "f\n```json\n{\n  \"a\": \"x```y\"\n}\n```" E CE, "|t-00000000 f({\n  \"a\": \"x```y\"\n})",
     ALL, "several lines, a fence within a string"},
    {TCL_DEEPSEEK_V3, CS F " f \n\n```json\n\n{}``` " E CE, "|t-00000000 f({}``` )", ALL, "odd spaces stay as written"},
    {TCL_DEEPSEEK_V3, CS F "f\n```json\n{}```" E CE, "|t-00000000 f({})", ALL, "a fence on the last line"},
    {TCL_DEEPSEEK_V3, CS F "f\n```json\n{}\n``` \n" E CE, "|t-00000000 f({})", ALL, "space behind the fence"},
    {TCL_DEEPSEEK_V3, CS F "f\n{\"a\":1}" E CE, "|t-00000000 f({\"a\":1})", ALL, "no fence"},
    {TCL_DEEPSEEK_V3, CS F "f{\"a\":1}" E CE, "|t-00000000 f({\"a\":1})", ALL, "nor a line"},
    {TCL_DEEPSEEK_V3, CS F "f\n```\n{\"a\":1}\n```" E CE, "|t-00000000 f({\"a\":1})", ALL, "a fence of no language"},
    {TCL_DEEPSEEK_V3, CS F "f" E CE, "|t-00000000 f({})", ALL, "no arguments are {}"},
    {TCL_DEEPSEEK_V3, CS F "f\n```json\n```" E CE, "|t-00000000 f({})", ALL, "an empty fence"},
    {TCL_DEEPSEEK_V3, CS F "f\n```json\n\n```" E CE, "|t-00000000 f({})", ALL, "with an empty line"},
    {TCL_DEEPSEEK_V3, CS F "f\n```json\n{\"a\": \"Ber", "|t-00000000 f({\"a\": \"Ber)", ALL,
     "cut within the arguments"},
    {TCL_DEEPSEEK_V3, CS F "f\n```json\n{\"a\":1}\n``", "|t-00000000 f({\"a\":1}\n``)", ALL, "cut within the fence"},
    {TCL_DEEPSEEK_V3, CS F "f\n```js", "|t-00000000 f(```js)", ALL, "cut in front of the arguments"},
    {TCL_DEEPSEEK_V3, "x" CS F "f", "x" CS F "f", ALL, "cut within the name: all is content, as written"},
    {TCL_DEEPSEEK_V3, CS "oops", CS "oops", ALL, "opened, and no call came"},
    {TCL_DEEPSEEK_V3, CS CE, CS CE, ALL, "nor here"},
    {TCL_DEEPSEEK_V3, CS F "\n```json\n{}\n```" E CE, CS F "\n```json\n{}\n```" E CE, ALL, "no name is no call"},
    {TCL_DEEPSEEK_V3, " " CS B "f" E CE, " " CS B "f" E CE, ALL, "nor is a head without its separator"},
    {TCL_DEEPSEEK_V3, CS B "f" E F "g\n```json\n{}\n```" E CE, "|t-00000000 g({})", ALL, "the next one counts"},
    {TCL_DEEPSEEK_V3, CS F "f\n```json\n{}\n```" F "g\n```json\n{}\n```" CE, "|t-00000000 f({})|t-00000001 g({})", ALL,
     "missing ends"},
    {TCL_DEEPSEEK_V31, "a" CS B "f" SEP "{\"a\": \"\\n```\"}" E B "g" SEP E CE,
     "a|t-00000000 f({\"a\": \"\\n```\"})|t-00000001 g({})", ALL, "V3.1: no type, no fence"},
    {TCL_DEEPSEEK_V31, CS B "f" SEP "```json\n{}\n```" E CE, "|t-00000000 f({})", ALL, "a fence is no argument"},
    {TCL_DEEPSEEK_V31, CS B "f" SEP "{\"a\":1}" CE, "|t-00000000 f({\"a\":1})", ALL, "missing end"},
    {TCL_KIMI_K2, "a" KS KB "functions.f:0" KA "{\"a\": 1}" KX KB " functions.g.h:1 " KA "{}" KX KE "b",
     "a|functions.f:0 f({\"a\": 1})|functions.g.h:1 g.h({})", ALL, "Kimi: its own ids"},
    {TCL_KIMI_K2, "<|tool_call_section_begin|>" KB "x.f" KA KX "<|tool_call_section_end|>b", "|x.f f({})", ALL,
     "the other spelling, another prefix"},
    {TCL_KIMI_K2, KS KB "functions.:0" KA "{}" KX KE, KS KB "functions.:0" KA "{}" KX KE, ALL, "no name"},
};

static void put_exact(tcl_parser *parser, const char *text, size_t n, bt_buf *content) {
    char *copy = malloc(n); /* exactly as long: reading past it is found */
    memcpy(copy, text, n);
    tcl_put(parser, copy, n, content);
    free(copy);
}

static char *summary(tcl_parser *parser, bt_buf *content) {
    for (uint32_t i = 0; i < parser->n_calls; i++) {
        tcl_call *call = &parser->calls[i];
        bt_buf_printf(content, "|%s %s(%s)", call->id, call->name, bt_buf_text(&call->arguments));
    }
    char *text = bt_strdup(bt_buf_text(content));
    bt_buf_fini(content);
    tcl_fini(parser);
    return text;
}

/* In pieces of `first`, `second`, and then `rest` bytes. */
static char *run(const row *r, size_t first, size_t second, size_t rest) {
    tcl_parser parser;
    tcl_init(&parser, r->format, "t-", r->max_calls);
    bt_buf content = {0};
    size_t n = strlen(r->text), at = 0;
    for (int i = 0; at < n; i++) {
        size_t n_piece = i == 0 ? first : i == 1 ? second : rest;
        if (n_piece > n - at) n_piece = n - at;
        put_exact(&parser, r->text + at, n_piece, &content);
        at += n_piece;
    }
    tcl_finish(&parser, &content);
    return summary(&parser, &content);
}

static void test_rows_in_any_pieces(void) {
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t n = strlen(rows[i].text), n_wrong = 0;
        char *whole = run(&rows[i], n, 0, 0);
        CHECK(strcmp(whole, rows[i].want) == 0, "%s: got %s", rows[i].why, whole);
        for (size_t first = 1; first <= n; first++) {
            for (size_t second = 1; first + second <= n + 1; second++) {
                char *pieces = run(&rows[i], first, second, n);
                n_wrong += strcmp(pieces, whole) != 0;
                free(pieces);
            }
            char *even = run(&rows[i], first, first, first);
            n_wrong += strcmp(even, whole) != 0;
            free(even);
        }
        CHECK(n_wrong == 0, "%s: %zu ways to cut it give something else", rows[i].why, n_wrong);
        free(whole);
    }
}

static void test_long_things(void) {
    bt_buf text = {0};
    for (int i = 0; i < 65; i++) bt_buf_puts(&text, "\n");
    bt_buf_puts(&text, CS B "f" SEP E CE);
    row spaces = {TCL_DEEPSEEK_V31, bt_buf_text(&text), NULL, ALL, NULL};
    for (size_t n_piece = 1; n_piece < 100; n_piece += 63) {
        char *got = run(&spaces, n_piece, n_piece, n_piece);
        CHECK(strlen(got) == 65 + strlen("|t-00000000 f({})"), "so much white space is content: %s", got);
        free(got);
    }
    bt_buf_clear(&text);
    bt_buf_puts(&text, CS B);
    for (int i = 0; i <= TCL_MAX_HEAD_BYTES; i++) bt_buf_puts(&text, "n");
    bt_buf_puts(&text, SEP "{}" E B "f" SEP "{}" E CE);
    row head = {TCL_DEEPSEEK_V31, bt_buf_text(&text), NULL, ALL, NULL};
    for (size_t n_piece = 1; n_piece < 3000; n_piece *= 7) {
        char *got = run(&head, n_piece, n_piece, n_piece);
        CHECK(strcmp(got, "|t-00000000 f({})") == 0, "a head that long is none: %s", got);
        free(got);
    }
    bt_buf_fini(&text);
}

static void test_arguments_are_given_out_as_they_come(void) {
    tcl_parser parser;
    bt_buf content = {0};
    tcl_init(&parser, TCL_DEEPSEEK_V3, "t-", ALL);
    static const char head[] = CS F "f\n```json\n{\"a\": ";
    tcl_put(&parser, head, strlen(head), &content);
    CHECK(parser.n_calls == 1 && strcmp(bt_buf_text(&parser.calls[0].arguments), "{\"a\": ") == 0, "held too much");
    tcl_put(&parser, "1}\n``", 5, &content);
    CHECK(strcmp(bt_buf_text(&parser.calls[0].arguments), "{\"a\": 1}") == 0, "held too little");
    tcl_put(&parser, "x", 1, &content);
    CHECK(strcmp(bt_buf_text(&parser.calls[0].arguments), "{\"a\": 1}\n``x") == 0, "what is no mark still waits");
    tcl_fini(&parser);
    bt_buf_fini(&content);
}

static void check_opening(tcl_format format, const char *name, const char *rest, const char *want) {
    tcl_parser parser;
    bt_buf opening = {0}, content = {0};
    tcl_init(&parser, format, "t-", ALL);
    tcl_write_opening(format, name, 3, &opening);
    tcl_put_opening(&parser, (const char *)opening.bytes, opening.n_bytes);
    tcl_put(&parser, rest, strlen(rest), &content);
    tcl_finish(&parser, &content);
    char *got = summary(&parser, &content);
    CHECK(strcmp(got, want) == 0, "%s, %s: got %s", bt_buf_text(&opening), rest, got);
    free(got);
    bt_buf_fini(&opening);
}

static void test_a_turn_that_was_opened_goes_on_with_a_call(void) {
    check_opening(TCL_DEEPSEEK_V3, NULL, "f\n```json\n{}\n```" E F "g" E CE, "|t-00000000 f({})|t-00000001 g({})");
    check_opening(TCL_DEEPSEEK_V3, "f", "{\"a\":1}\n```" E CE, "|t-00000000 f({\"a\":1})");
    check_opening(TCL_DEEPSEEK_V3, NULL, "I will not", "I will not");
    check_opening(TCL_DEEPSEEK_V3, "f", "I will not", "|t-00000000 f(I will not)");
    check_opening(TCL_DEEPSEEK_V31, NULL, "f" SEP "{}" E CE, "|t-00000000 f({})");
    check_opening(TCL_DEEPSEEK_V31, "f", "{}" E CE, "|t-00000000 f({})");
    check_opening(TCL_KIMI_K2, NULL, "functions.f:3" KA "{}" KX KE, "|functions.f:3 f({})");
    check_opening(TCL_KIMI_K2, "f", "{}" KX KE, "|functions.f:3 f({})");
}

static void test_formats(void) {
    tok_tokenizer *tokenizer = NULL;
    bt_error err = {0};
    CHECK(tok_open("deploy/models/nano-r1", &tokenizer, &err) == BT_OK, "%s", err.text);
    CHECK(tcl_format_of(tokenizer, tok_chat_template(tokenizer)) == TCL_DEEPSEEK_V3, "the bundled model");
    CHECK(tcl_format_of(tokenizer, NULL) == TCL_DEEPSEEK_V3, "no template");
    CHECK(tcl_format_of(tokenizer, "... + '" SEP "' + ...") == TCL_DEEPSEEK_V31, "calls without a fence");
    CHECK(!tcl_has_special_markers(TCL_DEEPSEEK_V3, tokenizer), "they are shown");
    tok_close(tokenizer);
    tcl_format format;
    CHECK(tcl_format_find("kimi_k2", &format) && format == TCL_KIMI_K2, "by name");
    CHECK(tcl_format_find("none", &format) && format == TCL_NONE, "none");
    CHECK(!tcl_format_find("hermes", &format), "unknown");
}

int main(void) {
    test_rows_in_any_pieces();
    test_long_things();
    test_arguments_are_given_out_as_they_come();
    test_a_turn_that_was_opened_goes_on_with_a_call();
    test_formats();
    TEST_END();
}
