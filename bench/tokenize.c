/* baton-bench tokenize: what text costs the tokenizer, on one thread.
 *
 * Timed, in processor time: tok_encode() into an empty list of ids. Not timed: reading the model, making the text,
 * freeing the ids.
 *
 * Alone it measures texts that are one unit repeated, the worst that a client can send, in sizes that double: the time
 * per byte must not grow with the size. With --pipe it encodes what it is given: "BYTES\n" and that many bytes on
 * stdin, "NANOSECONDS ID ID ...\n" on stdout; bench/tokenizer.py asks so, in turns with Hugging Face's library. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "common/core/alloc.h"
#include "common/core/buf.h"
#include "common/text/tokenizer.h"

#define FLAGS(F)                                                                                                       \
    F(str, model, "", "folder with the tokenizer.json")                                                                \
    F(u32, min_bytes, "1024", "the smallest text")                                                                     \
    F(u32, max_bytes, "1048576", "the largest; sizes double")                                                          \
    F(u32, repeat, "5", "repetitions; the median counts")                                                              \
    F(bool, pipe, "false", "answer texts on stdin instead")
CFG_OWN(FLAGS)

enum { MAX_REPEAT = 1000 };

static bt_status encode_timed(const tok_tokenizer *tokenizer, const char *text, size_t n_bytes, tok_ids *ids,
                              int64_t *ns, bt_error *err) {
    int64_t begin_ns = bench_cpu_ns();
    bt_status status = tok_encode(tokenizer, text, n_bytes, 0, ids, err);
    *ns = bench_cpu_ns() - begin_ns;
    return status;
}

static const struct {
    const char *name, *unit;
} worst[] = {
    {"letters", "a"},
    {"capitals", "A"},
    {"random letters", NULL},
    {"spaces", " "},
    {"newlines", "\n"},
    {"combining marks", "\xcc\x81"},
    {"digits", "7"},
    {"punctuation", "!"},
    {"CJK", "\xe4\xb8\x80"},
    {"CJK sentence", "\xe6\x88\x91\xe4\xbb\xac\xe5\x9c\xa8\xe5\x85\xac\xe5\x9b\xad\xe5\xad\xa6\xe4\xb9\xa0"},
    {"emoji", "\xf0\x9f\x91\xa9\xe2\x80\x8d"},
    {"broken UTF-8", "\xff"},
    {"marks of added tokens", "<\xef\xbd\x9c"},
};

static void make_text(const char *unit, size_t n_bytes, bt_buf *text) {
    bt_buf_clear(text);
    uint64_t random = 1;
    while (text->n_bytes < n_bytes) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        char letter[] = {(char)('a' + (random >> 33) % 26), 0};
        bt_buf_puts(text, unit != NULL ? unit : letter);
    }
}

static bt_status measure_worst(const cfg_own *config, const tok_tokenizer *tokenizer, bt_error *err) {
    bt_buf text = {0};
    double ns_per_byte[MAX_REPEAT];
    bt_status status = BT_OK;
    printf("commit,text,bytes,tokens,ns_per_byte,mb_per_s\n");
    for (size_t i = 0; i < sizeof(worst) / sizeof(worst[0]) && status == BT_OK; i++) {
        for (size_t n_bytes = config->min_bytes; n_bytes <= config->max_bytes && status == BT_OK; n_bytes *= 2) {
            make_text(worst[i].unit, n_bytes, &text);
            size_t n_ids = 0;
            for (uint32_t turn = 0; turn < config->repeat && status == BT_OK; turn++) {
                int64_t ns = 0;
                tok_ids ids = {0};
                status = encode_timed(tokenizer, (const char *)text.bytes, text.n_bytes, &ids, &ns, err);
                ns_per_byte[turn] = (double)ns / (double)text.n_bytes;
                n_ids = ids.n_ids;
                tok_ids_fini(&ids);
            }
            if (status != BT_OK) break;
            double median = bench_median(ns_per_byte, config->repeat);
            printf("%s,%s,%zu,%zu,%.2f,%.1f\n", BATON_COMMIT, worst[i].name, text.n_bytes, n_ids, median,
                   1000.0 / median);
        }
    }
    bt_buf_fini(&text);
    return status;
}

static bt_status answer_texts(const tok_tokenizer *tokenizer, bt_error *err) {
    bt_buf text = {0};
    bt_status status = BT_OK;
    for (size_t n_bytes; status == BT_OK && scanf("%zu", &n_bytes) == 1 && getchar() == '\n';) {
        bt_buf_clear(&text);
        if (n_bytes > TOK_MAX_TEXT_BYTES) {
            status = bt_fail(err, BT_BAD_REQUEST, "a text of %zu bytes, limit %d", n_bytes, (int)TOK_MAX_TEXT_BYTES);
            break;
        }
        bt_buf_reserve(&text, n_bytes + 1);
        if (fread(text.bytes, 1, n_bytes, stdin) != n_bytes) {
            status = bt_fail(err, BT_BAD_REQUEST, "stdin ended inside a text");
            break;
        }
        int64_t ns = 0;
        tok_ids ids = {0};
        status = encode_timed(tokenizer, (const char *)text.bytes, n_bytes, &ids, &ns, err);
        printf("%" PRId64, ns);
        for (size_t i = 0; i < ids.n_ids; i++) printf(" %u", ids.ids[i]);
        printf("\n");
        fflush(stdout);
        tok_ids_fini(&ids);
    }
    bt_buf_fini(&text);
    return status;
}

static bt_status run(const void *own, bt_error *err) {
    const cfg_own *config = own;
    if (config->model[0] == 0) return bt_fail(err, BT_BAD_REQUEST, "--model is missing");
    if (config->repeat == 0 || config->repeat > MAX_REPEAT || config->min_bytes == 0)
        return bt_fail(err, BT_BAD_REQUEST, "--repeat is 1 to %d, --min-bytes at least 1", (int)MAX_REPEAT);
    tok_tokenizer *tokenizer = NULL;
    bt_status status = tok_open(config->model, &tokenizer, err);
    if (status == BT_OK && config->pipe) status = answer_texts(tokenizer, err);
    if (status == BT_OK && !config->pipe) status = measure_worst(config, tokenizer, err);
    tok_close(tokenizer);
    return status;
}

BENCH_VERB(tokenize, "measures the tokenizer on the worst texts, or on those on stdin.", run);
