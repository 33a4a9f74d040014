/* Owns two hash tables, bytes -> id and (left id, right id) -> (rank, merged id), and the bytes of all tokens.
 *
 * Most pieces are one token, and for those no merging is needed: at open every entry is merged once, and entries that
 * come back as themselves are marked, so that such a piece is one lookup. Other short pieces merge by looking for the
 * lowest rank in an array; long ones use a heap with stale entries, as the original does. Does not cut text. */
#include "common/text/bpe.h"

#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "common/core/alloc.h"
#include "common/text/utf8.h"

enum { SHORT_PIECE_BYTES = 48, MAX_TOKEN_BYTES = 1 << 16 };
static const uint32_t NO_ID = UINT32_MAX;
static const uint32_t NO_RANK = UINT32_MAX;

typedef struct {
    uint32_t offset, n_bytes; /* in model->bytes */
    bool is_whole;            /* its bytes encode to itself alone */
    bool is_byte_level;       /* text can become it */
} bpe_token;

typedef struct {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: empty */
    uint32_t rank, id;
} bpe_merge;

typedef struct {
    uint32_t hash, id; /* NO_ID: empty */
} bpe_slot;

struct bpe_model {
    bpe_token *tokens; /* [n_ids] */
    uint8_t *bytes;
    bpe_slot *slots;   /* [slot_mask + 1] */
    bpe_merge *merges; /* [merge_mask + 1] */
    uint32_t n_ids, slot_mask, merge_mask;
    uint32_t byte_ids[256];
    bool ignores_merges;
};

/* ByteLevel's alphabet (GPT-2's bytes_to_unicode): printable Latin-1 stands for itself, the rest is U+0100 onwards. */
static bool is_self_mapped(uint32_t c) {
    return (c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff);
}

static int byte_of_char(uint32_t code_point) {
    if (code_point < 256) return is_self_mapped(code_point) ? (int)code_point : -1;
    int nth = (int)code_point - 256; /* among the 33 + 34 + 1 other bytes: 0-32, 127-160, 173 */
    if (nth < 33) return nth;
    return nth < 67 ? nth + 94 : nth == 67 ? 173 : -1;
}

bool bpe_unmap(const char *text, uint8_t *out, size_t *n_bytes) {
    const uint8_t *p = (const uint8_t *)text;
    size_t length = strlen(text);
    *n_bytes = 0;
    while (*p != 0) {
        uint32_t code_point;
        p += utf8_next(p, &code_point);
        int byte = byte_of_char(code_point);
        if (byte < 0) {
            memcpy(out, text, length);
            *n_bytes = length;
            return false;
        }
        out[(*n_bytes)++] = (uint8_t)byte;
    }
    return true;
}

static uint32_t char_of_byte(uint8_t byte) {
    if (is_self_mapped(byte)) return byte;
    return 256u + (byte < 33 ? byte : byte < 161 ? byte - 94u : 67u);
}

static uint32_t hash_bytes(const uint8_t *bytes, size_t n_bytes) { return (uint32_t)XXH3_64bits(bytes, n_bytes); }

static uint32_t hash_pair(uint64_t pair) { return (uint32_t)((pair * 0x9e3779b97f4a7c15u) >> 32); }

static uint32_t table_mask(size_t n_entries) {
    uint32_t n_slots = 64;
    while (n_slots < 2 * n_entries) n_slots *= 2;
    return n_slots - 1;
}

void bpe_put_entry(const bpe_model *model, uint32_t id, bt_buf *out) {
    size_t n_bytes;
    const uint8_t *bytes = bpe_token_bytes(model, id, &n_bytes);
    if (n_bytes > 0 && !model->tokens[id].is_byte_level) {
        bt_buf_put(out, bytes, n_bytes);
        return;
    }
    for (size_t i = 0; i < n_bytes; i++) {
        uint32_t c = char_of_byte(bytes[i]); /* below U+0144 */
        if (c < 0x80) bt_buf_put(out, (uint8_t[]){(uint8_t)c}, 1);
        if (c >= 0x80) bt_buf_put(out, (uint8_t[]){(uint8_t)(0xc0 | c >> 6), (uint8_t)(0x80 | (c & 0x3f))}, 2);
    }
}

bool bpe_find(const bpe_model *model, const uint8_t *bytes, size_t n_bytes, uint32_t *id) {
    uint32_t hash = hash_bytes(bytes, n_bytes);
    for (uint32_t at = hash & model->slot_mask;; at = (at + 1) & model->slot_mask) {
        const bpe_slot *slot = &model->slots[at];
        if (slot->id == NO_ID) return false;
        if (slot->hash != hash) continue;
        const bpe_token *token = &model->tokens[slot->id];
        if (token->n_bytes != n_bytes || memcmp(model->bytes + token->offset, bytes, n_bytes) != 0) continue;
        *id = slot->id;
        return true;
    }
}

static void slot_insert(bpe_model *model, uint32_t id) {
    const bpe_token *token = &model->tokens[id];
    uint32_t hash = hash_bytes(model->bytes + token->offset, token->n_bytes);
    uint32_t at = hash & model->slot_mask;
    while (model->slots[at].id != NO_ID) at = (at + 1) & model->slot_mask;
    model->slots[at] = (bpe_slot){.hash = hash, .id = id};
}

static const bpe_merge *merge_find(const bpe_model *model, uint32_t left, uint32_t right) {
    uint64_t pair = (uint64_t)left << 32 | right;
    for (uint32_t at = hash_pair(pair) & model->merge_mask;; at = (at + 1) & model->merge_mask) {
        const bpe_merge *merge = &model->merges[at];
        if (merge->pair == pair) return merge;
        if (merge->pair == UINT64_MAX) return NULL;
    }
}

static uint32_t rank_of(const bpe_model *model, uint32_t left, uint32_t right) {
    const bpe_merge *merge = merge_find(model, left, right);
    return merge != NULL ? merge->rank : NO_RANK;
}

static void ids_reserve(tok_ids *out, size_t more_ids) {
    if (out->cap_ids - out->n_ids >= more_ids) return;
    out->cap_ids = out->n_ids + more_ids + out->cap_ids / 2;
    out->ids = bt_realloc(out->ids, out->cap_ids, sizeof(*out->ids));
}

void tok_ids_put(tok_ids *ids, uint32_t id) {
    ids_reserve(ids, 1);
    ids->ids[ids->n_ids++] = id;
}

/* A quadratic search that is faster than a heap as long as everything is in two cache lines. */
static void encode_short(const bpe_model *model, const uint8_t *piece, size_t n_bytes, tok_ids *out) {
    uint32_t ids[SHORT_PIECE_BYTES + 1], ranks[SHORT_PIECE_BYTES + 1]; /* ranks[i]: of the pair i, i + 1 */
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        ids[n] = model->byte_ids[piece[i]];
        n += ids[n] != NO_ID;
    }
    for (size_t i = 0; i + 1 < n; i++) ranks[i] = rank_of(model, ids[i], ids[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++) best = ranks[i] < ranks[best] ? i : best;
        if (ranks[best] == NO_RANK) break;
        ids[best] = merge_find(model, ids[best], ids[best + 1])->id;
        n--;
        memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof(*ids));
        memmove(ranks + best, ranks + best + 1, (n - best - 1) * sizeof(*ranks));
        if (best + 1 < n) ranks[best] = rank_of(model, ids[best], ids[best + 1]);
        if (best > 0) ranks[best - 1] = rank_of(model, ids[best - 1], ids[best]);
    }
    ids_reserve(out, n);
    memcpy(out->ids + out->n_ids, ids, n * sizeof(*ids));
    out->n_ids += n;
}

typedef struct {
    uint32_t id; /* NO_ID: merged into the symbol before */
    int32_t prev, next;
} bpe_symbol;

typedef struct {
    uint64_t order; /* rank << 32 | position: lowest rank first, then leftmost */
    uint32_t id;    /* what the pair became when this was pushed */
} bpe_candidate;

typedef struct {
    bpe_candidate *items;
    size_t n;
} bpe_heap;

static void heap_push(bpe_heap *heap, bpe_candidate item) {
    size_t at = heap->n++;
    for (; at > 0 && heap->items[(at - 1) / 2].order > item.order; at = (at - 1) / 2) {
        heap->items[at] = heap->items[(at - 1) / 2];
    }
    heap->items[at] = item;
}

static bpe_candidate heap_pop(bpe_heap *heap) {
    bpe_candidate top = heap->items[0], last = heap->items[--heap->n];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < heap->n; at = child) {
        if (child + 1 < heap->n && heap->items[child + 1].order < heap->items[child].order) child++;
        if (heap->items[child].order >= last.order) break;
        heap->items[at] = heap->items[child];
    }
    heap->items[at] = last;
    return top;
}

static void heap_offer(const bpe_model *model, bpe_heap *heap, const bpe_symbol *symbols, int32_t left) {
    if (left < 0 || symbols[left].next < 0) return;
    const bpe_merge *merge = merge_find(model, symbols[left].id, symbols[symbols[left].next].id);
    if (merge == NULL) return;
    heap_push(heap, (bpe_candidate){.order = (uint64_t)merge->rank << 32 | (uint32_t)left, .id = merge->id});
}

static void encode_long(const bpe_model *model, bpe_scratch *scratch, const uint8_t *piece, size_t n_bytes,
                        tok_ids *out) {
    /* Every symbol is offered once at the start, and every merge offers two pairs and removes one symbol. */
    size_t need_bytes = n_bytes * (sizeof(bpe_symbol) + 3 * sizeof(bpe_candidate));
    if (scratch->cap_bytes < need_bytes) {
        scratch->memory = bt_realloc(scratch->memory, need_bytes, 1);
        scratch->cap_bytes = need_bytes;
    }
    bpe_heap heap = {.items = scratch->memory};
    bpe_symbol *symbols = (bpe_symbol *)(void *)(heap.items + 3 * n_bytes);
    int32_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        uint32_t id = model->byte_ids[piece[i]];
        if (id == NO_ID) continue;
        symbols[n] = (bpe_symbol){.id = id, .prev = n - 1, .next = n + 1};
        n++;
    }
    if (n == 0) return;
    symbols[n - 1].next = -1;
    for (int32_t i = 0; i < n; i++) heap_offer(model, &heap, symbols, i);
    while (heap.n > 0) {
        bpe_candidate top = heap_pop(&heap);
        bpe_symbol *left = &symbols[(uint32_t)top.order];
        if (left->id == NO_ID || left->next < 0) continue;
        bpe_symbol *right = &symbols[left->next];
        const bpe_merge *merge = merge_find(model, left->id, right->id);
        if (merge == NULL || merge->id != top.id) continue; /* stale: a neighbour has been merged since */
        left->id = merge->id;
        left->next = right->next;
        right->id = NO_ID;
        if (left->next >= 0) symbols[left->next].prev = (int32_t)(left - symbols);
        heap_offer(model, &heap, symbols, left->prev);
        heap_offer(model, &heap, symbols, (int32_t)(left - symbols));
    }
    ids_reserve(out, (size_t)n);
    for (int32_t i = 0; i >= 0; i = symbols[i].next) out->ids[out->n_ids++] = symbols[i].id;
}

static void encode_merged(const bpe_model *model, bpe_scratch *scratch, const uint8_t *piece, size_t n_bytes,
                          tok_ids *out) {
    if (n_bytes <= SHORT_PIECE_BYTES) {
        encode_short(model, piece, n_bytes, out);
    } else {
        encode_long(model, scratch, piece, n_bytes, out);
    }
}

void bpe_encode(const bpe_model *model, bpe_scratch *scratch, const uint8_t *piece, size_t n_bytes, tok_ids *out) {
    uint32_t id;
    if (bpe_find(model, piece, n_bytes, &id) && (model->tokens[id].is_whole || model->ignores_merges)) {
        tok_ids_put(out, id);
        return;
    }
    encode_merged(model, scratch, piece, n_bytes, out);
}

void bpe_scratch_fini(bpe_scratch *scratch) {
    free(scratch->memory);
    *scratch = (bpe_scratch){0};
}

uint32_t bpe_n_ids(const bpe_model *model) { return model->n_ids; }

const uint8_t *bpe_token_bytes(const bpe_model *model, uint32_t id, size_t *n_bytes) {
    *n_bytes = id < model->n_ids ? model->tokens[id].n_bytes : 0;
    return *n_bytes > 0 ? model->bytes + model->tokens[id].offset : (const uint8_t *)"";
}

/* Reading the file. */

static bt_status check_options(const cJSON *spec, bt_error *err) {
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(spec, "type");
    if (cJSON_IsString(type) && strcmp(type->valuestring, "BPE") != 0) {
        return bt_fail(err, BT_BAD_REQUEST, "tokenizer model type %.40s is not supported, only BPE", type->valuestring);
    }
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < 2; i++) {
        const cJSON *affix = cJSON_GetObjectItemCaseSensitive(spec, affixes[i]);
        if (cJSON_IsString(affix) && affix->valuestring[0] != 0) {
            return bt_fail(err, BT_BAD_REQUEST, "tokenizer model option %s is not supported", affixes[i]);
        }
    }
    const cJSON *dropout = cJSON_GetObjectItemCaseSensitive(spec, "dropout");
    if (cJSON_IsNumber(dropout) && dropout->valuedouble != 0) {
        return bt_fail(err, BT_BAD_REQUEST, "tokenizer model option dropout is not supported");
    }
    return BT_OK;
}

static bt_status read_vocab(bpe_model *model, const cJSON *vocab, bt_error *err) {
    if (!cJSON_IsObject(vocab)) return bt_fail(err, BT_BAD_REQUEST, "tokenizer model has no vocab object");
    size_t n_bytes = 0, n_entries = 0;
    const cJSON *entry;
    cJSON_ArrayForEach(entry, vocab) {
        double id = cJSON_IsNumber(entry) ? entry->valuedouble : -1;
        if (!(id >= 0 && id < BPE_MAX_IDS) || id != (double)(uint32_t)id || strlen(entry->string) > MAX_TOKEN_BYTES) {
            return bt_fail(err, BT_BAD_REQUEST, "tokenizer vocab entry %zu has no id below %d, or a text over %d bytes",
                           n_entries, (int)BPE_MAX_IDS, (int)MAX_TOKEN_BYTES);
        }
        if ((uint32_t)id >= model->n_ids) model->n_ids = (uint32_t)id + 1;
        n_bytes += strlen(entry->string);
        n_entries++;
    }
    if (n_bytes > UINT32_MAX) return bt_fail(err, BT_BAD_REQUEST, "tokenizer vocab is over 4 GiB");
    model->tokens = bt_calloc(model->n_ids, sizeof(*model->tokens));
    model->bytes = bt_calloc(n_bytes, 1);
    model->slot_mask = table_mask(n_entries);
    model->slots = bt_calloc((size_t)model->slot_mask + 1, sizeof(*model->slots));
    memset(model->slots, 0xff, ((size_t)model->slot_mask + 1) * sizeof(*model->slots));
    uint32_t offset = 0;
    cJSON_ArrayForEach(entry, vocab) {
        uint32_t id = (uint32_t)entry->valuedouble, other;
        bpe_token *token = &model->tokens[id];
        if (token->n_bytes > 0) return bt_fail(err, BT_BAD_REQUEST, "tokenizer vocab gives the id %u twice", id);
        size_t n_token;
        token->is_byte_level = bpe_unmap(entry->string, model->bytes + offset, &n_token);
        token->offset = offset;
        token->n_bytes = (uint32_t)n_token;
        offset += token->n_bytes;
        if (!token->is_byte_level || n_token == 0) continue;
        if (bpe_find(model, model->bytes + token->offset, n_token, &other)) {
            return bt_fail(err, BT_BAD_REQUEST, "tokenizer vocab has the text of id %u twice", id);
        }
        slot_insert(model, id);
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        uint8_t one = (uint8_t)byte;
        if (!bpe_find(model, &one, 1, &model->byte_ids[byte])) model->byte_ids[byte] = NO_ID;
    }
    return BT_OK;
}

/* The two sides of a merge, "a b" or ["a", "b"], as bytes put together in `out`; *n_left is where they meet. */
static bool read_sides(const cJSON *item, uint8_t *out, size_t cap_bytes, size_t *n_left, size_t *n_both) {
    const char *left = NULL, *right = NULL, *space = NULL;
    if (cJSON_IsString(item)) {
        left = item->valuestring;
        space = strchr(left, ' ');
        right = space != NULL ? space + 1 : NULL;
    } else if (cJSON_IsArray(item) && cJSON_GetArraySize(item) == 2) {
        left = cJSON_GetStringValue(item->child);
        right = cJSON_GetStringValue(item->child->next);
    }
    if (left == NULL || right == NULL || strlen(left) + strlen(right) + 1 > cap_bytes) return false;
    char *split = space != NULL ? strndup(left, (size_t)(space - left)) : bt_strdup(left);
    size_t n_right = 0;
    bool is_ok = bpe_unmap(split, out, n_left) && bpe_unmap(right, out + *n_left, &n_right);
    free(split);
    *n_both = *n_left + n_right;
    return is_ok;
}

static bt_status read_merges(bpe_model *model, const cJSON *merges, bt_error *err) {
    if (!cJSON_IsArray(merges)) return bt_fail(err, BT_BAD_REQUEST, "tokenizer model has no merges array");
    size_t n_merges = (size_t)cJSON_GetArraySize(merges);
    if (n_merges > BPE_MAX_IDS) return bt_fail(err, BT_BAD_REQUEST, "tokenizer model has too many merges");
    model->merge_mask = table_mask(n_merges);
    model->merges = bt_calloc((size_t)model->merge_mask + 1, sizeof(*model->merges));
    memset(model->merges, 0xff, ((size_t)model->merge_mask + 1) * sizeof(*model->merges));
    uint8_t *both = bt_calloc(2 * MAX_TOKEN_BYTES, 1);
    const cJSON *item;
    uint32_t rank = 0;
    bt_status status = BT_OK;
    cJSON_ArrayForEach(item, merges) {
        size_t n_left, n_both;
        uint32_t left, right, merged;
        if (!read_sides(item, both, 2 * MAX_TOKEN_BYTES, &n_left, &n_both) || !bpe_find(model, both, n_left, &left) ||
            !bpe_find(model, both + n_left, n_both - n_left, &right) || !bpe_find(model, both, n_both, &merged)) {
            status = bt_fail(err, BT_BAD_REQUEST, "tokenizer merge %u is not two tokens whose union is a token", rank);
            break;
        }
        uint64_t pair = (uint64_t)left << 32 | right;
        uint32_t at = hash_pair(pair) & model->merge_mask;
        while (model->merges[at].pair != UINT64_MAX && model->merges[at].pair != pair)
            at = (at + 1) & model->merge_mask;
        model->merges[at] = (bpe_merge){.pair = pair, .rank = rank++, .id = merged};
    }
    free(both);
    return status;
}

static void mark_whole_tokens(bpe_model *model) {
    bpe_scratch scratch = {0};
    tok_ids ids = {0};
    for (uint32_t id = 0; id < model->n_ids; id++) {
        bpe_token *token = &model->tokens[id];
        if (!token->is_byte_level || token->n_bytes == 0) continue;
        ids.n_ids = 0;
        encode_merged(model, &scratch, model->bytes + token->offset, token->n_bytes, &ids);
        token->is_whole = ids.n_ids == 1 && ids.ids[0] == id;
    }
    free(ids.ids);
    bpe_scratch_fini(&scratch);
}

bt_status bpe_open(const cJSON *spec, bpe_model **out, bt_error *err) {
    bpe_model *model = bt_calloc(1, sizeof(*model));
    bt_status status = check_options(spec, err);
    if (status == BT_OK) status = read_vocab(model, cJSON_GetObjectItemCaseSensitive(spec, "vocab"), err);
    if (status == BT_OK) status = read_merges(model, cJSON_GetObjectItemCaseSensitive(spec, "merges"), err);
    if (status != BT_OK) {
        bpe_close(model);
        return status;
    }
    model->ignores_merges = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(spec, "ignore_merges"));
    mark_whole_tokens(model);
    *out = model;
    return BT_OK;
}

void bpe_close(bpe_model *model) {
    if (model == NULL) return;
    free(model->tokens);
    free(model->bytes);
    free(model->slots);
    free(model->merges);
    free(model);
}
