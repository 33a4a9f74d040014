/* bpe.c and bpe_match.c against bpe_merge.c, which is the definition: random vocabularies over few letters, where
 * pieces can be cut in many ways, and random pieces. */
#include <stdlib.h>
#include <string.h>

#include "common/core/test.h"
#include "common/text/bpe_internal.h"

enum { N_LETTERS = 3, MAX_TEXT = 300 };

typedef struct {
    char texts[256][80];
    int n;
} words;

static int find_word(const words *words, const char *text) {
    int i = 0;
    while (i < words->n && strcmp(words->texts[i], text) != 0) i++;
    return i;
}

/* A vocabulary of the bytes alone, each under its own number. */
static cJSON *all_bytes(void) {
    cJSON *vocab = cJSON_CreateObject();
    for (int byte = 0; byte < 256; byte++) {
        uint32_t c = byte >= 0x21 && byte <= 0x7e ? (uint32_t)byte : 0;
        for (uint32_t other = 0x100; c == 0 && other < 0x144;
             other++) { /* ByteLevel's letter: let bpe_unmap() find it */
            char text[3] = {(char)(0xc0 | other >> 6), (char)(0x80 | (other & 0x3f)), 0};
            uint8_t back[2];
            size_t n;
            if (bpe_unmap(text, back, &n) && back[0] == byte) c = other;
        }
        if (c == 0) c = (uint32_t)byte;
        char text[3] = {(char)c, 0, 0};
        if (c >= 0x80) text[0] = (char)(0xc0 | c >> 6), text[1] = (char)(0x80 | (c & 0x3f));
        cJSON_AddNumberToObject(vocab, text, byte);
    }
    return vocab;
}

/* Merges of words that are there into new ones or, where `repeats`, ones that are there already, with which a merge may
 * come before those that make its sides. */
static cJSON *random_spec(bool repeats, bool ignores_merges, bool has_all_bytes) {
    words words = {.n = N_LETTERS};
    for (int i = 0; i < N_LETTERS; i++) words.texts[i][0] = (char)('a' + i);
    cJSON *spec = cJSON_CreateObject(), *merges = cJSON_CreateArray(), *vocab = all_bytes();
    for (int turn = 0, n = rand() % 60; turn < n; turn++) {
        char text[160], pair[170];
        const char *left = words.texts[rand() % words.n], *right = words.texts[rand() % words.n];
        snprintf(text, sizeof(text), "%s%s", left, right);
        snprintf(pair, sizeof(pair), "%s %s", left, right);
        bool is_new = find_word(&words, text) == words.n;
        if (strlen(text) >= sizeof(words.texts[0]) || !(is_new || repeats)) continue;
        cJSON_AddItemToArray(merges, cJSON_CreateString(pair));
        if (!is_new) continue;
        cJSON_AddNumberToObject(vocab, text, 256 + words.n);
        strcpy(words.texts[words.n++], text);
    }
    if (!has_all_bytes) cJSON_DeleteItemFromObjectCaseSensitive(vocab, "!");
    cJSON_AddStringToObject(spec, "type", "BPE");
    cJSON_AddItemToObject(spec, "vocab", vocab);
    cJSON_AddItemToObject(spec, "merges", merges);
    cJSON_AddBoolToObject(spec, "ignore_merges", ignores_merges);
    return spec;
}

static bool ids_equal(const tok_ids *a, const tok_ids *b) {
    return a->n_ids == b->n_ids && (a->n_ids == 0 || memcmp(a->ids, b->ids, a->n_ids * sizeof(*a->ids)) == 0);
}

static void check_pieces(const bpe_model *model) {
    bpe_scratch scratch = {0};
    tok_ids want = {0}, matched = {0}, encoded = {0};
    for (int turn = 0; turn < 60; turn++) {
        uint8_t text[MAX_TEXT + UTF8_SLACK_BYTES] = {0};
        size_t n_bytes = 1 + (size_t)rand() % (turn % 3 == 0 ? MAX_TEXT : 20);
        for (size_t i = 0; i < n_bytes; i++) text[i] = (uint8_t)(rand() % 40 == 0 ? rand() : 'a' + rand() % N_LETTERS);
        utf8_piece piece = {text, n_bytes};
        uint32_t whole;
        want.n_ids = matched.n_ids = encoded.n_ids = 0;
        bpe_merge_encode(model, &scratch, text, n_bytes, &want, NULL);
        if (model->can_match) {
            bpe_match_encode(model, &scratch, text, n_bytes, BPE_ANY_IDS, &matched);
            CHECK(ids_equal(&matched, &want), "%s: %zu ids matched, %zu merged", text, matched.n_ids, want.n_ids);
            size_t max_ids = want.n_ids / 2;
            matched.n_ids = 0;
            bpe_match_encode(model, &scratch, text, n_bytes, max_ids, &matched);
            CHECK(matched.n_ids == max_ids + 1, "%s: gave up with %zu ids of %zu", text, matched.n_ids, max_ids);
            matched.n_ids = 0;
            bpe_match_encode(model, &scratch, text, n_bytes, want.n_ids + 8, &matched);
            CHECK(ids_equal(&matched, &want), "%s: few more ids on the way than in the end", text);
        }
        if (model->ignores_merges && bpe_find(model, text, n_bytes, &whole)) {
            want.n_ids = 0;
            tok_ids_put(&want, whole);
        }
        bpe_encode(model, &scratch, &piece, 1, BPE_ANY_IDS, &encoded);
        CHECK(ids_equal(&encoded, &want), "%s: %zu ids encoded, %zu merged", text, encoded.n_ids, want.n_ids);
    }
    free(want.ids);
    free(matched.ids);
    free(encoded.ids);
    bpe_scratch_fini(&scratch);
}

static void test_random_models(void) {
    int n_matching = 0;
    srand(5);
    for (int turn = 0; turn < 400; turn++) {
        bt_error err = {0};
        bpe_model *model = NULL;
        cJSON *spec = random_spec(turn % 4 == 0, turn % 7 == 0, turn % 10 != 0);
        CHECK(bpe_open(spec, &model, &err) == BT_OK, "%s", err.text);
        cJSON_Delete(spec);
        if (model == NULL) continue;
        CHECK(turn % 4 == 0 || turn % 10 == 0 || model->can_match, "turn %d: merges in order are not matched", turn);
        CHECK(turn % 10 != 0 || !model->can_match, "turn %d: without a token for each byte nothing can match", turn);
        n_matching += model->can_match;
        check_pieces(model);
        bpe_close(model);
    }
    CHECK(n_matching > 200 && n_matching < 400, "%d of 400", n_matching);
}

static void test_order_of_merges(void) {
    static const struct {
        const char *merges, *piece;
        uint32_t ids[4], n;
    } rows[] = {
        {"[\"a a\"]", "aaa", {300, 'a'}, 2},                       /* leftmost of equals */
        {"[\"b c\",\"a b\"]", "abc", {'a', 300}, 2},               /* lowest first */
        {"[\"a b\",\"ab c\",\"c d\"]", "abcd", {301, 'd'}, 2},     /* made on the way */
        {"[\"a b\",\"c d\",\"ab cd\",\"b c\"]", "abcd", {302}, 1}, /* a whole token */
        {"[\"b c\",\"a b\",\"ab c\"]", "abc", {'a', 300}, 2},      /* a token that merging never makes */
        {"[\"a b\",\"c d\",\"b c\",\"ab cd\"]", "aabcd", {'a', 303}, 2},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        cJSON *spec = cJSON_CreateObject(), *vocab = all_bytes(), *merges = cJSON_Parse(rows[i].merges);
        int id = 300;
        for (cJSON *item = merges->child; item != NULL; item = item->next) {
            char text[8] = {0};
            for (const char *c = item->valuestring; *c != 0; c++)
                if (*c != ' ') text[strlen(text)] = *c;
            cJSON_AddNumberToObject(vocab, text, id++);
        }
        cJSON_AddItemToObject(spec, "vocab", vocab);
        cJSON_AddItemToObject(spec, "merges", merges);
        bt_error err = {0};
        bpe_model *model = NULL;
        CHECK(bpe_open(spec, &model, &err) == BT_OK, "%s", err.text);
        uint8_t text[32] = {0};
        tok_ids ids = {0}, want = {.ids = (uint32_t *)(uintptr_t)rows[i].ids, .n_ids = rows[i].n};
        bpe_scratch scratch = {0};
        memcpy(text, rows[i].piece, strlen(rows[i].piece));
        bpe_encode(model, &scratch, &(utf8_piece){text, strlen(rows[i].piece)}, 1, BPE_ANY_IDS, &ids);
        CHECK(ids_equal(&ids, &want), "%s: %zu ids", rows[i].merges, ids.n_ids);
        free(ids.ids);
        bpe_scratch_fini(&scratch);
        bpe_close(model);
        cJSON_Delete(spec);
    }
}

int main(void) {
    test_order_of_merges();
    test_random_models();
    TEST_END();
}
