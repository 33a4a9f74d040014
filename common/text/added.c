/* Owns the list of added tokens and one trie of bytes per pass. A token can only begin at a byte that begins one of
 * them, so plain text is skipped byte by byte with a table of 256; from there the trie is walked for the longest token.
 * That costs at most the longest token per position, which the size limit on a token bounds. */
#include "common/text/added.h"

#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/text/bpe.h"
#include "common/text/unicode.h"
#include "common/text/utf8.h"

enum { MAX_TOKEN_BYTES = 1024, MAX_TOKENS = 1 << 20, N_PASSES = 2 };

typedef struct {
    uint32_t child, sibling; /* 0: none */
    uint32_t token;          /* index + 1 into tokens; 0: none ends here */
    uint8_t byte;
} trie_node;

typedef struct {
    trie_node *nodes; /* nodes[0] is the root */
    size_t n_nodes, cap_nodes;
    bool is_first[256];  /* bytes that begin a token */
    bool is_second[256]; /* that are second in one, or anything where a token has one byte */
    int n_first;
    uint8_t a_first; /* one of them */
} trie;

struct add_tokens {
    add_token *tokens; /* [n_tokens] in file order */
    size_t n_tokens;
    uint32_t *index_by_id; /* [n_ids] index + 1; 0: none */
    uint32_t n_ids;
    trie passes[N_PASSES];
};

static uint32_t trie_child(const trie *trie, uint32_t node, uint8_t byte) {
    uint32_t child = trie->nodes[node].child;
    while (child != 0 && trie->nodes[child].byte != byte) child = trie->nodes[child].sibling;
    return child;
}

static uint32_t trie_add_node(trie *trie, uint8_t byte) {
    if (trie->n_nodes == trie->cap_nodes) {
        trie->cap_nodes = 2 * trie->cap_nodes + 64;
        trie->nodes = bt_realloc(trie->nodes, trie->cap_nodes, sizeof(*trie->nodes));
    }
    trie->nodes[trie->n_nodes] = (trie_node){.byte = byte};
    return (uint32_t)trie->n_nodes++;
}

static void trie_insert(trie *trie, const char *content, size_t n_bytes, uint32_t token) {
    uint32_t node = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        uint32_t child = trie_child(trie, node, (uint8_t)content[i]);
        if (child == 0) {
            child = trie_add_node(trie, (uint8_t)content[i]);
            trie->nodes[child].sibling = trie->nodes[node].child;
            trie->nodes[node].child = child;
        }
        node = child;
    }
    trie->n_first += !trie->is_first[(uint8_t)content[0]];
    trie->a_first = (uint8_t)content[0];
    trie->is_first[trie->a_first] = true;
    if (n_bytes == 1) memset(trie->is_second, true, sizeof(trie->is_second));
    trie->is_second[(uint8_t)content[1]] = true; /* its zero, if it has one byte */
    trie->nodes[node].token = token;
}

/* The longest token that begins at p; 0: none. */
static uint32_t trie_longest(const trie *trie, const uint8_t *p, const uint8_t *end) {
    uint32_t node = 0, found = 0;
    while (p < end && (node = trie_child(trie, node, *p++)) != 0) {
        if (trie->nodes[node].token != 0) found = trie->nodes[node].token;
    }
    return found;
}

static const uint8_t *next_first(const trie *trie, const uint8_t *p, const uint8_t *end) {
    if (trie->n_first <= 1) {
        const uint8_t *found = trie->n_first == 1 ? memchr(p, trie->a_first, (size_t)(end - p)) : NULL;
        return found != NULL ? found : end;
    }
    while (p < end && !trie->is_first[*p]) p++;
    return p;
}

/* Where a token may begin, from p on. DeepSeek's all begin with '<': memchr() takes a fortieth of the table's time. */
static const uint8_t *next_begin(const trie *trie, const uint8_t *p, const uint8_t *end) {
    while ((p = next_first(trie, p, end)) + 1 < end && !trie->is_second[p[1]]) p++;
    return p;
}

static bool is_word_at(const uint8_t *p) {
    uint32_t c;
    utf8_next(p, &c);
    return c == '_' || (unicode_classes()[c] & (UNI_LETTER | UNI_MARK | UNI_NUMBER)) != 0;
}

static bool is_space_at(const uint8_t *p) {
    uint32_t c;
    utf8_next(p, &c);
    return (unicode_classes()[c] & UNI_SPACE) != 0;
}

static const uint8_t *char_before(const uint8_t *p) {
    do p--;
    while ((*p & 0xc0) == 0x80);
    return p;
}

static const uint8_t *char_after(const uint8_t *p) {
    uint32_t c;
    return p + utf8_next(p, &c);
}

typedef struct {
    const add_tokens *tokens;
    int pass;
    add_sink sink;
    void *context;
} add_walk;

static bt_status walk_pass(const add_walk *walk, int pass, const uint8_t *text, size_t n_bytes, bt_error *err);

static bt_status put_plain(const add_walk *walk, int pass, const uint8_t *begin, const uint8_t *end, bt_error *err) {
    return begin < end ? walk_pass(walk, pass + 1, begin, (size_t)(end - begin), err) : BT_OK;
}

static bt_status walk_pass(const add_walk *walk, int pass, const uint8_t *text, size_t n_bytes, bt_error *err) {
    if (pass == N_PASSES) return walk->sink(walk->context, NULL, text, n_bytes, err);
    const trie *trie = &walk->tokens->passes[pass];
    const uint8_t *end = text + n_bytes, *plain = text, *p = text;
    bt_status status = BT_OK;
    while ((p = next_begin(trie, p, end)) < end && status == BT_OK) {
        uint32_t found = trie_longest(trie, p, end);
        if (found == 0) {
            p++;
            continue;
        }
        const add_token *token = &walk->tokens->tokens[found - 1];
        const uint8_t *begin = p, *stop = p + token->n_content;
        p = stop; /* even if it is then refused, as the original does */
        if (token->is_single_word &&
            ((begin > text && is_word_at(char_before(begin))) || (stop < end && is_word_at(stop)))) {
            continue;
        }
        if (token->strips_left) {
            while (begin > plain && is_space_at(char_before(begin))) begin = char_before(begin);
        }
        if (token->strips_right) {
            while (stop < end && is_space_at(stop)) stop = char_after(stop);
        }
        /* A token may begin inside the white space that the one before has taken; the original lets it. */
        status = put_plain(walk, pass, plain, begin, err);
        if (status == BT_OK) status = walk->sink(walk->context, token, begin, (size_t)(stop - begin), err);
        plain = stop;
    }
    return status == BT_OK ? put_plain(walk, pass, plain, end, err) : status;
}

bt_status add_split(const add_tokens *tokens, const uint8_t *text, size_t n_bytes, add_sink sink, void *context,
                    bt_error *err) {
    add_walk walk = {.tokens = tokens, .sink = sink, .context = context};
    return n_bytes > 0 ? walk_pass(&walk, 0, text, n_bytes, err) : BT_OK;
}

static bool flag_of(const cJSON *object, const char *key) {
    return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(object, key));
}

static bt_status read_token(const cJSON *item, add_token *token, bt_error *err) {
    const char *content = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, "content"));
    const cJSON *id = cJSON_GetObjectItemCaseSensitive(item, "id");
    if (content == NULL || content[0] == 0 || strlen(content) > MAX_TOKEN_BYTES) {
        return bt_fail(err, BT_BAD_REQUEST, "an added token has no content of 1 to %d bytes", (int)MAX_TOKEN_BYTES);
    }
    if (!cJSON_IsNumber(id) || !(id->valuedouble >= 0 && id->valuedouble < BPE_MAX_IDS)) {
        return bt_fail(err, BT_BAD_REQUEST, "added token %.40s has no id below %d", content, (int)BPE_MAX_IDS);
    }
    token->content = bt_strdup(content);
    token->n_content = strlen(content);
    token->bytes = bt_calloc(token->n_content, 1);
    bpe_unmap(content, token->bytes, &token->n_bytes);
    token->id = (uint32_t)id->valuedouble;
    token->is_special = flag_of(item, "special");
    token->is_normalized = flag_of(item, "normalized");
    token->strips_left = flag_of(item, "lstrip");
    token->strips_right = flag_of(item, "rstrip");
    token->is_single_word = flag_of(item, "single_word");
    return BT_OK;
}

static bt_status index_tokens(add_tokens *tokens, bt_error *err) {
    for (size_t i = 0; i < tokens->n_tokens; i++) {
        if (tokens->tokens[i].id >= tokens->n_ids) tokens->n_ids = tokens->tokens[i].id + 1;
    }
    tokens->index_by_id = bt_calloc(tokens->n_ids, sizeof(*tokens->index_by_id));
    for (size_t i = 0; i < tokens->n_tokens; i++) {
        const add_token *token = &tokens->tokens[i];
        if (tokens->index_by_id[token->id] != 0) {
            return bt_fail(err, BT_BAD_REQUEST, "two added tokens have the id %u", token->id);
        }
        tokens->index_by_id[token->id] = (uint32_t)i + 1;
        trie_insert(&tokens->passes[token->is_normalized], token->content, token->n_content, (uint32_t)i + 1);
    }
    return BT_OK;
}

bt_status add_open(const cJSON *spec, add_tokens **out, bt_error *err) {
    add_tokens *tokens = bt_calloc(1, sizeof(*tokens));
    for (int pass = 0; pass < N_PASSES; pass++) trie_add_node(&tokens->passes[pass], 0);
    size_t n_items = cJSON_IsArray(spec) ? (size_t)cJSON_GetArraySize(spec) : 0;
    bt_status status = BT_OK;
    if (n_items > MAX_TOKENS) status = bt_fail(err, BT_BAD_REQUEST, "more than %d added tokens", (int)MAX_TOKENS);
    tokens->tokens = bt_calloc(status == BT_OK ? n_items : 0, sizeof(*tokens->tokens));
    const cJSON *item;
    cJSON_ArrayForEach(item, spec) {
        if (status == BT_OK) status = read_token(item, &tokens->tokens[tokens->n_tokens], err);
        tokens->n_tokens += status == BT_OK;
    }
    if (status == BT_OK) status = index_tokens(tokens, err);
    if (status != BT_OK) {
        add_close(tokens);
        return status;
    }
    *out = tokens;
    return BT_OK;
}

void add_close(add_tokens *tokens) {
    if (tokens == NULL) return;
    for (size_t i = 0; i < tokens->n_tokens; i++) {
        free(tokens->tokens[i].content);
        free(tokens->tokens[i].bytes);
    }
    for (int pass = 0; pass < N_PASSES; pass++) free(tokens->passes[pass].nodes);
    free(tokens->tokens);
    free(tokens->index_by_id);
    free(tokens);
}

const add_token *add_by_id(const add_tokens *tokens, uint32_t id) {
    uint32_t index = id < tokens->n_ids ? tokens->index_by_id[id] : 0;
    return index != 0 ? &tokens->tokens[index - 1] : NULL;
}

const add_token *add_by_content(const add_tokens *tokens, const char *content) {
    size_t n_bytes = strlen(content);
    for (size_t i = 0; i < tokens->n_tokens; i++) {
        const add_token *token = &tokens->tokens[i];
        if (token->n_content == n_bytes && memcmp(token->content, content, n_bytes) == 0) return token;
    }
    return NULL;
}

uint32_t add_n_ids(const add_tokens *tokens) { return tokens->n_ids; }
