/* Owns the vocabulary: a hash table bytes -> id, and the bytes of all tokens. Most pieces are one token, and for those
 * no merging is needed: entries that merging would make of their own bytes are marked at open, so that such a piece is
 * one lookup in one cache line. Other pieces go to bpe_match.c or bpe_merge.c. Does not cut text. */
#include "common/text/bpe.h"

#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "common/core/alloc.h"
#include "common/text/bpe_internal.h"
#include "common/text/utf8.h"

enum {
    ID_BITS = BPE_MAX_IDS - 1,
    LENGTH_BITS = 15 << BPE_NOTE_LENGTH,
    PIECE_BIT = 1 << BPE_NOTE_PIECE,
    ENCODE_AT_ONCE = 64
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

uint32_t bpe_table_mask(size_t n_entries) {
    uint32_t n_slots = 64;
    while (n_slots < 2 * n_entries) n_slots *= 2;
    return n_slots - 1;
}

/* A slot without an id: the key, and the length in the note. */
static inline bpe_slot make_key(const uint8_t *bytes, size_t n_bytes) {
    if (n_bytes > BPE_KEY_BYTES) {
        return (bpe_slot){.low = XXH3_64bits(bytes, n_bytes),
                          .high = (uint32_t)n_bytes,
                          .note = (uint32_t)BPE_LONG_KEY << BPE_NOTE_LENGTH};
    }
    bpe_slot key = {.note = (uint32_t)n_bytes << BPE_NOTE_LENGTH};
    memcpy(&key.low, bytes, 8);
    memcpy(&key.high, bytes + 8, 4);
    uint64_t mask = ((uint64_t)1 << (n_bytes % 8 * 8)) - 1;
    key.high = n_bytes < 8 ? 0 : n_bytes < 12 ? key.high & (uint32_t)mask : key.high;
    key.low = n_bytes < 8 ? key.low & mask : key.low;
    return key;
}

static inline uint32_t hash_key(const bpe_slot *key) {
    __uint128_t product = (__uint128_t)(key->low ^ 0x9e3779b97f4a7c15u) * (key->high ^ 0xd1b54a32d192ed03u);
    return (uint32_t)(product >> 64) ^ (uint32_t)product;
}

static inline const bpe_slot *find_slot(const bpe_model *model, const bpe_slot *key, uint32_t hash,
                                        const uint8_t *bytes, size_t n_bytes) {
    for (uint32_t at = hash;; at++) {
        const bpe_slot *slot = &model->slots[at & model->slot_mask];
        if (slot->note == BPE_NO_NOTE) return NULL;
        if (slot->low != key->low || slot->high != key->high || ((slot->note ^ key->note) & LENGTH_BITS) != 0) continue;
        if (n_bytes <= BPE_KEY_BYTES) return slot;
        const bpe_token *token = &model->tokens[slot->note & ID_BITS];
        if (memcmp(model->bytes + token->offset, bytes, n_bytes) == 0) return slot;
    }
}

static const bpe_slot *find_bytes(const bpe_model *model, const uint8_t *bytes, size_t n_bytes) {
    bpe_slot key = make_key(bytes, n_bytes);
    return find_slot(model, &key, hash_key(&key), bytes, n_bytes);
}

bool bpe_find(const bpe_model *model, const uint8_t *bytes, size_t n_bytes, uint32_t *id) {
    const bpe_slot *slot = find_bytes(model, bytes, n_bytes);
    if (slot != NULL) *id = slot->note & ID_BITS;
    return slot != NULL;
}

void bpe_slot_insert(bpe_model *model, uint32_t id) {
    const bpe_token *token = &model->tokens[id];
    bpe_slot slot = make_key(model->bytes + token->offset, token->n_bytes);
    slot.note |= id;
    uint32_t at = hash_key(&slot);
    while (model->slots[at & model->slot_mask].note != BPE_NO_NOTE) at++;
    model->slots[at & model->slot_mask] = slot;
}

void bpe_slot_set_piece(bpe_model *model, uint32_t id) {
    const bpe_token *token = &model->tokens[id];
    const bpe_slot *slot = find_bytes(model, model->bytes + token->offset, token->n_bytes);
    model->slots[slot - model->slots].note |= PIECE_BIT;
}

static void reserve_ids(tok_ids *ids, size_t n_ids) {
    if (n_ids <= ids->cap_ids) return;
    ids->cap_ids += ids->cap_ids / 2 + 64;
    if (ids->cap_ids < n_ids) ids->cap_ids = n_ids;
    ids->ids = bt_realloc(ids->ids, ids->cap_ids, sizeof(*ids->ids));
}

void tok_ids_reserve(tok_ids *ids, size_t n_more) { reserve_ids(ids, ids->n_ids + n_more); }

void tok_ids_put(tok_ids *ids, uint32_t id) {
    reserve_ids(ids, ids->n_ids + 1);
    ids->ids[ids->n_ids++] = id;
}

void tok_ids_append(tok_ids *ids, const uint32_t *more, size_t n_more) {
    if (n_more == 0) return;
    reserve_ids(ids, ids->n_ids + n_more);
    memcpy(ids->ids + ids->n_ids, more, n_more * sizeof(*more));
    ids->n_ids += n_more;
}

void *bpe_scratch_reserve(bpe_scratch *scratch, size_t bytes) {
    if (scratch->cap_bytes < bytes) {
        scratch->memory = bt_realloc(scratch->memory, bytes, 1);
        scratch->cap_bytes = bytes;
    }
    return scratch->memory;
}

void bpe_scratch_fini(bpe_scratch *scratch) {
    free(scratch->memory);
    *scratch = (bpe_scratch){0};
}

/* The slots of some pieces are asked for together: a large vocabulary is in no near cache, and where a look-up takes
 * 200 ns, ten that overlap do too. */
static void encode_some(const bpe_model *model, bpe_scratch *scratch, const utf8_piece *pieces, size_t n_pieces,
                        size_t max_ids, tok_ids *out) {
    bpe_slot keys[ENCODE_AT_ONCE];
    uint32_t hashes[ENCODE_AT_ONCE];
    for (size_t i = 0; i < n_pieces; i++) {
        keys[i] = make_key(pieces[i].bytes, pieces[i].n_bytes);
        hashes[i] = hash_key(&keys[i]);
        __builtin_prefetch(&model->slots[hashes[i] & model->slot_mask]);
    }
    for (size_t i = 0; i < n_pieces; i++) {
        const bpe_slot *slot = find_slot(model, &keys[i], hashes[i], pieces[i].bytes, pieces[i].n_bytes);
        if (slot != NULL && (slot->note & PIECE_BIT)) {
            tok_ids_put(out, slot->note & ID_BITS);
        } else if (model->can_match && pieces[i].n_bytes > BPE_SHORT_BYTES) {
            bpe_match_encode(model, scratch, pieces[i].bytes, pieces[i].n_bytes, max_ids + BPE_SPARE_IDS, out);
        } else {
            bpe_merge_encode(model, scratch, pieces[i].bytes, pieces[i].n_bytes, out, NULL);
        }
    }
}

void bpe_encode(const bpe_model *model, bpe_scratch *scratch, const utf8_piece *pieces, size_t n_pieces, size_t max_ids,
                tok_ids *out) {
    for (size_t n; n_pieces > 0 && out->n_ids <= max_ids; pieces += n, n_pieces -= n) {
        n = n_pieces < ENCODE_AT_ONCE ? n_pieces : ENCODE_AT_ONCE;
        encode_some(model, scratch, pieces, n, max_ids, out);
    }
}

uint32_t bpe_n_ids(const bpe_model *model) { return model->n_ids; }

const uint8_t *bpe_token_bytes(const bpe_model *model, uint32_t id, size_t *n_bytes) {
    *n_bytes = id < model->n_ids ? model->tokens[id].n_bytes : 0;
    return *n_bytes > 0 ? model->bytes + model->tokens[id].offset : (const uint8_t *)"";
}
