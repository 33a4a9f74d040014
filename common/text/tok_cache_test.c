/* Text is encoded alike with and without the cache, whatever the cache has seen; the cache keeps to its memory. With
 * the tokenizer of the bundled model, whose pre-tokenizer is DeepSeek-V3's. */
#include "common/text/tok_cache.h"

#include <stdlib.h>
#include <string.h>

#include "common/core/buf.h"
#include "common/core/test.h"
#include "common/text/tokenizer.h"

static uint64_t state = 1;

static uint32_t below(uint32_t n) { /* xorshift64 */
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (uint32_t)(state >> 20) % n;
}

/* Pieces that meet at all kinds of borders; words are many, so that there are seams. */
static void put_random(bt_buf *out, uint32_t n_pieces) {
    static const char *const pieces[] = {" ",
                                         "  ",
                                         "\n",
                                         "\r\n",
                                         "\t",
                                         ".",
                                         ", ",
                                         "!a",
                                         "1",
                                         "12345",
                                         "don't",
                                         " (x",
                                         "\xc3\xa9",
                                         "e\xcc\x81",
                                         "\xe4\xb8\x80",
                                         "\xe3\x81\x82",
                                         "\xef\xbc\x8c",
                                         "\xf0\x9f\x91\xa9",
                                         "\xff",
                                         "\xc2\xa0",
                                         "<think>",
                                         "</think>",
                                         "_a b",
                                         "a b",
                                         "\xe2\x80\x8d",
                                         "A"};
    enum { N = sizeof(pieces) / sizeof(pieces[0]) };
    for (uint32_t i = 0; i < n_pieces; i++) {
        for (uint32_t letters = below(8), k = 0; k < letters; k++) bt_buf_printf(out, "%c", 'a' + (int)below(26));
        bt_buf_puts(out, below(4) > 0 ? " " : pieces[below(N)]);
    }
}

static bool is_alike(const tok_tokenizer *tokenizer, tok_cache *cache, const bt_buf *text) {
    tok_ids plain = {0}, cached = {0};
    bt_status status = tok_encode(tokenizer, (char *)text->bytes, text->n_bytes, 0, &plain, NULL);
    bt_status again =
        tok_encode_cached(tokenizer, cache, (char *)text->bytes, text->n_bytes, 0, TOK_ANY_IDS, &cached, NULL);
    bool is_same = status == BT_OK && again == BT_OK && plain.n_ids == cached.n_ids &&
                   memcmp(plain.ids, cached.ids, plain.n_ids * sizeof(*plain.ids)) == 0;
    tok_ids_fini(&plain);
    tok_ids_fini(&cached);
    return is_same;
}

/* Conversations that grow, begin alike and go apart. */
static void test_known_text_has_the_same_ids(const tok_tokenizer *tokenizer) {
    enum { N_TEXTS = 8, N_TURNS = 300, SMALL = 20000 };
    tok_cache *large = tok_cache_open(64 << 20, 7), *small = tok_cache_open(SMALL, 7);
    bt_buf texts[N_TEXTS] = {0};
    for (int turn = 0; turn < N_TURNS; turn++) {
        bt_buf *text = &texts[below(N_TEXTS)];
        const bt_buf *other = &texts[below(N_TEXTS)];
        if (below(8) == 0) text->n_bytes = 0;
        if (text->n_bytes == 0 && other->n_bytes > 0) {
            uint32_t from = below((uint32_t)other->n_bytes);
            bt_buf_put(text, other->bytes + from, other->n_bytes - from); /* may begin within a character */
        }
        put_random(text, 1 + below(600));
        bt_buf_reserve(text, 1);
        CHECK(is_alike(tokenizer, large, text), "turn %d, %zu bytes", turn, text->n_bytes);
        CHECK(is_alike(tokenizer, small, text), "turn %d, %zu bytes, little memory", turn, text->n_bytes);
        CHECK(tok_cache_n_bytes(small) <= SMALL, "%zu bytes", tok_cache_n_bytes(small));
    }
    CHECK(tok_cache_n_bytes(large) > 1 << 20, "something was kept");
    for (int i = 0; i < N_TEXTS; i++) bt_buf_fini(&texts[i]);
    tok_cache_close(large);
    tok_cache_close(small);
}

static void put_letter(tok_cache *cache, char letter) { /* a chunk "a" of id 'a' */
    tok_cache_put(cache, (uint8_t *)&letter, 1, &(uint32_t){(uint32_t)letter}, 1);
}

static void test_text_is_expected_to_go_on_as_it_did(void) {
    tok_cache *cache = tok_cache_open(1 << 16, 1);
    tok_ids out = {0};
    CHECK(tok_cache_expected(cache) == 0 && !tok_cache_get_expected(cache, (uint8_t *)"a", &out), "nothing yet");
    for (const char *letter = "abcax"; *letter != 0; letter++)
        if (!tok_cache_get(cache, (uint8_t *)letter, 1, &out)) put_letter(cache, *letter);
    out.n_ids = 0;
    CHECK(tok_cache_expected(cache) == 0, "x came last, and nothing ever behind it");
    CHECK(tok_cache_get(cache, (uint8_t *)"b", 1, &out) && tok_cache_expected(cache) == 1, "c came behind b");
    CHECK(!tok_cache_get_expected(cache, (uint8_t *)"a", &out) && out.n_ids == 1, "it is compared");
    CHECK(tok_cache_get_expected(cache, (uint8_t *)"c", &out) && out.ids[1] == 'c', "it is found");
    CHECK(tok_cache_get_expected(cache, (uint8_t *)"a", &out) && out.ids[2] == 'a', "and so on");
    CHECK(tok_cache_get_expected(cache, (uint8_t *)"x", &out) && out.n_ids == 4, "what came the last time, not first");
    tok_ids_fini(&out);
    tok_cache_close(cache);
}

static void test_what_was_not_used_for_longest_goes_first(void) {
    enum { N = 100, N_IDS = 50 };
    tok_cache *cache = tok_cache_open(N * 200, 1); /* room for fewer than N chunks */
    uint32_t ids[N_IDS];
    tok_ids out = {0};
    for (uint32_t i = 0; i < N; i++) {
        for (uint32_t k = 0; k < N_IDS; k++) ids[k] = i + k;
        tok_cache_put(cache, (uint8_t *)&i, sizeof(i), ids, N_IDS);
        tok_cache_put(cache, (uint8_t *)&i, sizeof(i), ids, N_IDS); /* once is enough */
        uint32_t first = 0;
        out.n_ids = 0;
        bool is_there = tok_cache_get(cache, (uint8_t *)&first, sizeof(first), &out);
        CHECK(is_there && out.n_ids == N_IDS && out.ids[N_IDS - 1] == N_IDS - 1, "what is used stays, %u", i);
    }
    uint32_t old = 1, last = N - 1, n_known = 0;
    CHECK(!tok_cache_get(cache, (uint8_t *)&old, sizeof(old), &out), "what is not used goes");
    CHECK(tok_cache_get(cache, (uint8_t *)&last, sizeof(last), &out), "the newest is there");
    CHECK(!tok_cache_get(cache, (uint8_t *)&last, 3, &out), "a part of it is another text");
    for (uint32_t i = 0; i < N; i++) n_known += tok_cache_get(cache, (uint8_t *)&i, sizeof(i), &out);
    CHECK(n_known > N / 2 && tok_cache_n_bytes(cache) <= N * 200, "%u, %zu bytes", n_known, tok_cache_n_bytes(cache));
    tok_ids_fini(&out);
    tok_cache_close(cache);
    cache = tok_cache_open(0, 1);
    tok_cache_put(cache, (uint8_t *)&old, sizeof(old), ids, N_IDS);
    CHECK(!tok_cache_get(cache, (uint8_t *)&old, sizeof(old), &out), "no memory, no chunks");
    tok_cache_close(cache);
}

int main(void) {
    tok_tokenizer *tokenizer = NULL;
    bt_error err = {0};
    CHECK(tok_open("deploy/models/nano-r1", &tokenizer, &err) == BT_OK, "%s", err.text);
    if (tokenizer != NULL) test_known_text_has_the_same_ids(tokenizer);
    tok_close(tokenizer);
    test_text_is_expected_to_go_on_as_it_did();
    test_what_was_not_used_for_longest_goes_first();
    TEST_END();
}
