/* The small parts, with nano-r1's tokenizer where one is needed: broken UTF-8, JSON, stop strings, streaming
 * detokenization, the reasoning parser. */
#include <stdlib.h>
#include <string.h>

#include "common/core/test.h"
#include "common/text/detokenizer.h"
#include "common/text/json.h"
#include "common/text/reasoning.h"
#include "common/text/stop.h"
#include "common/text/tokenizer.h"
#include "common/text/utf8.h"

#define U "\xef\xbf\xbd"

static void test_lossy_utf8(void) {
    static const struct {
        const char *bytes, *text;
    } rows[] = {
        {"abc", "abc"},
        {"\xe4\xb8\xad", "\xe4\xb8\xad"},
        {"\xff", U},
        {"a\xe4\xb8z", "a" U "z"},                             /* the two valid leading bytes are one */
        {"\xf0\x9f\x91", U},                                   /* cut off: one */
        {"\xc0\xaf\xe0\x80\xbf", U U U U U},                   /* overlong forms: one each */
        {"\xed\xa0\x80", U U U},                               /* a surrogate */
        {"\xf4\x90\x80\x80", U U U U},                         /* beyond U+10FFFF */
        {"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", U U U U "A"}, /* Unicode 15, table 3-11 */
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        bt_buf out = {0};
        utf8_put_lossy(&out, (const uint8_t *)rows[i].bytes, strlen(rows[i].bytes));
        CHECK(strcmp(bt_buf_text(&out), rows[i].text) == 0, "row %zu: %s", i, bt_buf_text(&out));
        CHECK(utf8_is_valid((const uint8_t *)rows[i].bytes, strlen(rows[i].bytes)) == (i < 2), "row %zu", i);
        bt_buf_fini(&out);
    }
}

/* Puts text in pieces of n bytes; returns whether it stopped. */
static bool run_stop(stop_matcher *stop, const char *text, size_t n_piece, bt_buf *out) {
    for (size_t at = 0, n = strlen(text); at < n; at += n_piece) {
        if (stop_put(stop, text + at, n - at < n_piece ? n - at : n_piece, out)) return true;
    }
    stop_finish(stop, out);
    return false;
}

static void test_stop(void) {
    static const struct {
        const char *stops[3], *text, *want;
        int matched;
        bool includes;
    } rows[] = {
        {{"END"}, "abcENDdef", "abc", 0, false},
        {{"END"}, "abcENDdef", "abcEND", 0, true},
        {{"END"}, "abcEN", "abcEN", -1, false},
        {{"aab"}, "aaaab", "aa", 0, false},               /* an overlap that starts over */
        {{"lo", "hello"}, "say hello", "say ", 1, false}, /* both end at the same byte: the longer one */
        {{"xyz", "b"}, "abxyz", "a", 1, false},
        {{"abcd", "bc"}, "zabce", "za", 1, false}, /* the first to be complete */
        {{"\n\n"}, "a\nb\n\nc", "a\nb", 0, false},
        {{NULL}, "free", "free", -1, false},
        {{"\xe2\x82\xac"}, "1\xe2\x82\xac", "1", 0, false},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        for (size_t n_piece = 1; n_piece < 12; n_piece++) {
            size_t n_stops = 0;
            while (rows[i].stops[n_stops] != NULL) n_stops++;
            stop_matcher stop = {0};
            bt_buf out = {0};
            CHECK(stop_init(&stop, rows[i].stops, n_stops, rows[i].includes, NULL) == BT_OK, "row %zu", i);
            bool has_stopped = run_stop(&stop, rows[i].text, n_piece, &out);
            CHECK(has_stopped == (rows[i].matched >= 0) && stop.matched == rows[i].matched, "row %zu: %d", i,
                  stop.matched);
            CHECK(strcmp(bt_buf_text(&out), rows[i].want) == 0, "row %zu: %s", i, bt_buf_text(&out));
            stop_fini(&stop);
            bt_buf_fini(&out);
        }
    }
    stop_matcher stop = {0};
    const char *empty = "", *one = "\n\nUser:";
    CHECK(stop_init(&stop, &empty, 1, false, NULL) == BT_BAD_REQUEST, "an empty string is accepted");
    CHECK(stop_init(&stop, &one, 1, false, NULL) == BT_OK, "refused");
    bt_buf out = {0};
    stop_put(&stop, "hi\n\nUs", 6, &out);
    CHECK(strcmp(bt_buf_text(&out), "hi") == 0, "held back too little or too much: %s", bt_buf_text(&out));
    stop_put(&stop, "x", 1, &out);
    CHECK(strcmp(bt_buf_text(&out), "hi\n\nUsx") == 0, "what cannot match any more still waits");
    stop_fini(&stop);
    bt_buf_fini(&out);
}

static void test_detokenizer(const tok_tokenizer *tokenizer) {
    static const char text[] =
        "caf\xc3\xa9 \xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa9 \xe6\x97\xa5\xe6\x9c\xac<think>x</think>\n";
    tok_ids ids = {0};
    bt_buf out = {0};
    det_stream det;
    CHECK(tok_encode(tokenizer, text, strlen(text), 0, &ids, NULL) == BT_OK, "refused");
    det_init(&det, tokenizer, true);
    for (size_t i = 0; i < ids.n_ids; i++) {
        size_t n_before = out.n_bytes;
        det_put(&det, ids.ids[i], &out);
        CHECK(utf8_is_valid(out.bytes + n_before, out.n_bytes - n_before), "a piece ends inside a character");
    }
    det_finish(&det, &out);
    CHECK(strcmp(bt_buf_text(&out), text) == 0, "%s", bt_buf_text(&out));
    bt_buf_clear(&out);
    uint32_t eos_id, lead_id;
    CHECK(tok_eos_id(tokenizer, &eos_id) && tok_is_special(tokenizer, eos_id), "no EOS");
    CHECK(tok_find(tokenizer, "\xf0", &lead_id), "no byte token");
    det_init(&det, tokenizer, true);
    det_put(&det, eos_id, &out);     /* special: nothing */
    det_put(&det, lead_id, &out);    /* waits */
    det_put(&det, UINT32_MAX, &out); /* no text */
    CHECK(out.n_bytes == 0, "%s", bt_buf_text(&out));
    det_put(&det, lead_id, &out); /* the first can become nothing any more */
    CHECK(strcmp(bt_buf_text(&out), U) == 0, "%s", bt_buf_text(&out));
    det_finish(&det, &out);
    CHECK(strcmp(bt_buf_text(&out), U U) == 0, "%s", bt_buf_text(&out));
    tok_ids_fini(&ids);
    bt_buf_fini(&out);
}

static void test_tokenizer(const tok_tokenizer *tokenizer) {
    tok_ids ids = {0}, plain = {0};
    uint32_t bos_id, think_id;
    CHECK(tok_bos_id(tokenizer, &bos_id) && bos_id == 0 && tok_adds_bos(tokenizer), "BOS");
    CHECK(tok_find(tokenizer, "<think>", &think_id) && !tok_is_special(tokenizer, think_id), "<think>");
    CHECK(tok_encode(tokenizer, "<think>", 7, TOK_ADD_BOS, &ids, NULL) == BT_OK && ids.n_ids == 2 &&
              ids.ids[0] == bos_id && ids.ids[1] == think_id,
          "%zu ids", ids.n_ids);
    CHECK(tok_encode(tokenizer, "<think>", 7, TOK_PLAIN, &plain, NULL) == BT_OK && plain.n_ids > 1, "%zu", plain.n_ids);
    for (size_t i = 0; i < plain.n_ids; i++)
        CHECK(!tok_is_added(tokenizer, plain.ids[i]), "an added token in plain text");
    plain.n_ids = 0;
    CHECK(tok_encode(tokenizer, "", 0, 0, &plain, NULL) == BT_OK && plain.n_ids == 0, "empty text");
    bt_error err = {0};
    tok_tokenizer *none = NULL;
    CHECK(tok_open("/nonexistent", &none, &err) == BT_BAD_REQUEST && err.text[0] != 0, "opened nothing");
    tok_ids_fini(&ids);
    tok_ids_fini(&plain);
}

/* Text is put in pieces of every size (ids: token by token) and must come out the same. */
static void check_reasoning(const tok_tokenizer *tokenizer, bool is_open, const char *text, const char *reasoning,
                            const char *content) {
    for (size_t n_piece = 1; n_piece < 20; n_piece++) {
        bt_buf thought = {0}, answer = {0};
        rsn_parser rsn;
        rsn_init(&rsn, NULL, is_open);
        for (size_t at = 0, n = strlen(text); at < n; at += n_piece) {
            rsn_put_text(&rsn, text + at, n - at < n_piece ? n - at : n_piece, &thought, &answer);
        }
        rsn_finish(&rsn, &thought, &answer);
        CHECK(strcmp(bt_buf_text(&thought), reasoning) == 0, "'%s' by %zu: thought '%s'", text, n_piece,
              bt_buf_text(&thought));
        CHECK(strcmp(bt_buf_text(&answer), content) == 0, "'%s' by %zu: answer '%s'", text, n_piece,
              bt_buf_text(&answer));
        bt_buf_fini(&thought);
        bt_buf_fini(&answer);
    }
    bt_buf thought = {0}, answer = {0}, piece = {0};
    tok_ids ids = {0};
    rsn_parser rsn;
    det_stream det;
    rsn_init(&rsn, tokenizer, is_open);
    det_init(&det, tokenizer, true);
    tok_encode(tokenizer, text, strlen(text), 0, &ids, NULL);
    for (size_t i = 0; i < ids.n_ids; i++) {
        bt_buf_clear(&piece);
        det_put(&det, ids.ids[i], &piece);
        rsn_put(&rsn, ids.ids[i], bt_buf_text(&piece), piece.n_bytes, &thought, &answer);
    }
    rsn_finish(&rsn, &thought, &answer);
    CHECK(strcmp(bt_buf_text(&thought), reasoning) == 0, "'%s' by ids: thought '%s'", text, bt_buf_text(&thought));
    CHECK(strcmp(bt_buf_text(&answer), content) == 0, "'%s' by ids: answer '%s'", text, bt_buf_text(&answer));
    tok_ids_fini(&ids);
    bt_buf_fini(&thought);
    bt_buf_fini(&answer);
    bt_buf_fini(&piece);
}

static void test_reasoning(const tok_tokenizer *tokenizer) {
    static const struct {
        bool is_open;
        const char *text, *reasoning, *content;
    } rows[] = {
        {true, "why\n</think>\n\nso", "why\n", "\n\nso"},
        {true, "never ends", "never ends", ""},
        {true, "</think>so", "", "so"},
        {true, "a <thi </thin b</think>c", "a <thi </thin b", "c"},
        {true, "<think>twice</think>x</think>y", "twice", "x</think>y"},
        {false, "just text", "", "just text"},
        {false, "<think>why</think>so", "why", "so"},
        {false, "\n<think>why</think>so", "why", "so"},
        {false, "  text", "", "  text"},
        {false, "x </think> y", "", "x </think> y"},
        {false, "", "", ""},
        {false, " \n", "", " \n"},
        {true, "a</thi", "a</thi", ""},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        check_reasoning(tokenizer, rows[i].is_open, rows[i].text, rows[i].reasoning, rows[i].content);
    }
    tok_ids ids = {0};
    tok_encode(tokenizer, "a<think>\n", 9, 0, &ids, NULL);
    CHECK(rsn_prompt_opens_think(tokenizer, ids.ids, ids.n_ids), "an open thought is not seen");
    tok_encode(tokenizer, "</think>\n", 9, 0, &ids, NULL);
    CHECK(!rsn_prompt_opens_think(tokenizer, ids.ids, ids.n_ids), "a closed thought is not seen");
    tok_ids_fini(&ids);
}

/* What tok_put_entry() writes is what bpe_unmap() read from the file. */
static void test_entries(const tok_tokenizer *tokenizer) {
    bt_buf entry = {0};
    uint8_t unmapped[1024];
    for (uint32_t id = 0; id < tok_vocab_size(tokenizer); id++) {
        const uint8_t *bytes;
        size_t n_bytes, n_unmapped;
        tok_token_bytes(tokenizer, id, &bytes, &n_bytes);
        bt_buf_clear(&entry);
        tok_put_entry(tokenizer, id, &entry);
        if (tok_is_added(tokenizer, id) || entry.n_bytes > sizeof unmapped) continue;
        CHECK(bpe_unmap(bt_buf_text(&entry), unmapped, &n_unmapped), "%s", bt_buf_text(&entry));
        CHECK(n_unmapped == n_bytes && memcmp(unmapped, bytes, n_bytes) == 0, "id %u: %s", id, bt_buf_text(&entry));
    }
    bt_buf_clear(&entry);
    tok_put_entry(tokenizer, tok_vocab_size(tokenizer), &entry);
    CHECK(entry.n_bytes == 0, "beyond the vocabulary there is nothing");
    bt_buf_fini(&entry);
}

int main(void) {
    test_lossy_utf8();
    test_stop();
    bt_error err = {0};
    tok_tokenizer *tokenizer = NULL;
    CHECK(tok_open("deploy/models/nano-r1", &tokenizer, &err) == BT_OK, "%s", err.text);
    if (tokenizer != NULL) {
        test_tokenizer(tokenizer);
        test_detokenizer(tokenizer);
        test_reasoning(tokenizer);
        test_entries(tokenizer);
    }
    tok_close(tokenizer);
    TEST_END();
}
