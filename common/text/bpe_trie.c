/* The whole tokens as a trie in one array of words, each node in front of its children's nodes, so that what lies on a
 * path that few texts take lies side by side: a hash table of edges took a miss of the cache for each byte, and the
 * tokenizer twice the time on Chinese.
 *
 * A reference is 0 (nothing), LEAF | id (a token that none goes on from) or the index of a node. A node is
 *   id          of the token that ends here, or BPE_NO_ID
 *   n, low, kind   n << 16 | low << 8 | kind
 *   DENSE       n references, of the bytes low to low + n - 1
 *   SPARSE      n bytes, filled up to words, then their n references
 */
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/text/bpe_internal.h"

enum { SPARSE, DENSE, MAX_SPARSE = 8, MAX_DEPTH = 1024 };
static const uint32_t LEAF = 0x80000000u;

static inline uint32_t find_child(const uint32_t *node, uint8_t byte) {
    uint32_t n = node[1] >> 16, k = (uint8_t)(byte - (node[1] >> 8));
    if ((node[1] & 0xff) == DENSE) return k < n ? node[2 + k] : 0;
    const uint8_t *bytes = (const uint8_t *)&node[2];
    for (k = 0; k < n; k++) {
        if (bytes[k] == byte) return node[2 + (n + 3) / 4 + k];
    }
    return 0;
}

uint32_t bpe_trie_longest(const bpe_trie *trie, const uint8_t *text, size_t n_bytes, size_t *n_token) {
    uint32_t ref = trie->roots[text[0]], id = BPE_NO_ID;
    for (size_t i = 1; ref != 0; i++) {
        const uint32_t *node = &trie->words[ref & LEAF ? 0 : ref];
        uint32_t here = ref & LEAF ? ref & ~LEAF : node[0];
        if (here != BPE_NO_ID) {
            id = here;
            *n_token = i;
        }
        if (ref & LEAF || i == n_bytes) break;
        ref = find_child(node, text[i]);
    }
    return id;
}

typedef struct {
    const bpe_model *model;
    bpe_trie *trie;
    uint32_t *sorted; /* ids in the order of their tokens' bytes */
    size_t cap_words;
    bpe_split *splits;
} trie_builder;

static uint32_t add_words(trie_builder *builder, size_t n) {
    bpe_trie *trie = builder->trie;
    while (trie->n_words + n > builder->cap_words) {
        builder->cap_words = 2 * builder->cap_words + 1024;
        trie->words = bt_realloc(trie->words, builder->cap_words, sizeof(*trie->words));
    }
    memset(trie->words + trie->n_words, 0, n * sizeof(*trie->words));
    trie->n_words += n;
    return (uint32_t)(trie->n_words - n);
}

static const bpe_token *token_at(const trie_builder *builder, uint32_t i) {
    return &builder->model->tokens[builder->sorted[i]];
}

static uint8_t byte_at(const trie_builder *builder, uint32_t i, uint32_t depth) {
    return builder->model->bytes[token_at(builder, i)->offset + depth];
}

/* Behind the tokens from `begin` that have the same byte at `depth`. */
static uint32_t group_end(const trie_builder *builder, uint32_t begin, uint32_t end, uint32_t depth) {
    uint32_t at = begin;
    while (at < end && byte_at(builder, at, depth) == byte_at(builder, begin, depth)) at++;
    return at;
}

/* The tokens from `begin` to `end` have `depth` bytes in common; `shorter`: the longest token within these. */
static uint32_t build(trie_builder *builder, uint32_t begin, uint32_t end, uint32_t depth, uint32_t shorter) {
    uint32_t id = token_at(builder, begin)->n_bytes == depth ? builder->sorted[begin++] : BPE_NO_ID;
    if (id != BPE_NO_ID) {
        builder->splits[id].shorter = shorter;
        shorter = id;
    }
    if (begin == end) return LEAF | id;
    uint32_t n = 0, low = byte_at(builder, begin, depth), range = byte_at(builder, end - 1, depth) - low + 1;
    for (uint32_t at = begin; at < end; at = group_end(builder, at, end, depth)) n++;
    bool is_dense = n > MAX_SPARSE || range <= n + 1;
    uint32_t n_keys = is_dense ? 0 : (n + 3) / 4;
    uint32_t node = add_words(builder, 2 + n_keys + (is_dense ? range : n));
    builder->trie->words[node] = id;
    builder->trie->words[node + 1] = (is_dense ? range : n) << 16 | low << 8 | (is_dense ? DENSE : SPARSE);
    uint32_t nth = 0;
    for (uint32_t at = begin, next; at < end; at = next, nth++) {
        next = group_end(builder, at, end, depth);
        uint8_t byte = byte_at(builder, at, depth);
        uint32_t ref = build(builder, at, next, depth + 1, shorter);
        uint32_t *words = builder->trie->words + node + 2;
        if (!is_dense) ((uint8_t *)words)[nth] = byte;
        words[n_keys + (is_dense ? byte - low : nth)] = ref;
    }
    return node;
}

static int compare_bytes(const void *a, const void *b, void *context) {
    const bpe_model *model = context;
    const bpe_token *x = &model->tokens[*(const uint32_t *)a], *y = &model->tokens[*(const uint32_t *)b];
    uint32_t n_bytes = x->n_bytes < y->n_bytes ? x->n_bytes : y->n_bytes;
    int order = memcmp(model->bytes + x->offset, model->bytes + y->offset, n_bytes);
    return order != 0 ? order : (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes);
}

bool bpe_trie_open(const bpe_model *model, bpe_split *splits, bpe_trie *out) {
    trie_builder builder = {.model = model, .trie = out, .splits = splits};
    builder.sorted = bt_calloc(model->n_ids, sizeof(*builder.sorted));
    uint32_t n_sorted = 0;
    bool is_small = true;
    for (uint32_t id = 0; id < model->n_ids; id++) {
        if (!model->tokens[id].is_whole) continue;
        builder.sorted[n_sorted++] = id;
        is_small &= model->tokens[id].n_bytes <= MAX_DEPTH;
    }
    qsort_r(builder.sorted, n_sorted, sizeof(*builder.sorted), compare_bytes, (void *)(uintptr_t)model);
    add_words(&builder, 1); /* index 0 is no node */
    for (uint32_t at = 0, next; at < n_sorted && is_small; at = next) {
        next = group_end(&builder, at, n_sorted, 0);
        uint8_t byte = byte_at(&builder, at, 0);
        uint32_t ref = build(&builder, at, next, 1, BPE_NO_ID);
        out->roots[byte] = ref;
        is_small = out->n_words < LEAF;
    }
    free(builder.sorted);
    return is_small;
}

void bpe_trie_fini(bpe_trie *trie) { free(trie->words); }
