/* What the files of a BPE model share. bpe.c owns the vocabulary and encodes a piece that is one token; bpe_read.c
 * fills the model from its file; bpe_merge.c merges a piece as the definition says; bpe_match.c finds the same ids
 * without merging, where the merges allow it. */
#ifndef BATON_COMMON_TEXT_BPE_INTERNAL_H
#define BATON_COMMON_TEXT_BPE_INTERNAL_H

#include "common/text/bpe.h"

enum {
    BPE_MAX_TOKEN_BYTES = 1 << 16,
    BPE_SPARE_IDS = 256,  /* see bpe_match_encode() */
    BPE_SHORT_BYTES = 16, /* pieces up to so many are merged: English takes 0.7 of the time that matching takes */
};
#define BPE_NO_ID    UINT32_MAX
#define BPE_NO_ORDER UINT32_MAX

typedef struct {
    uint32_t offset, n_bytes; /* in model->bytes */
    bool is_whole;            /* its bytes encode to itself alone */
    bool is_byte_level;       /* text can become it */
} bpe_token;

/* An entry, found by its bytes in one cache line: up to BPE_KEY_BYTES of them are the key, with zeros behind; of more
 * it is their hash and their number, and the bytes are to be compared. */
enum { BPE_KEY_BYTES = 12, BPE_LONG_KEY = 15 };
typedef struct {
    uint64_t low;
    uint32_t high;
    uint32_t note; /* id, 24 bits; bytes, 4 bits, or BPE_LONG_KEY; whether it is the id of such a piece, 1 bit */
} bpe_slot;
enum { BPE_NOTE_LENGTH = 24, BPE_NOTE_PIECE = 28 };
#define BPE_NO_NOTE UINT32_MAX /* no entry */

typedef struct {
    uint64_t pair;  /* left << 32 | right; 0 and order 0 where there is none */
    uint32_t order; /* a merge with a lower one is done first; from 1 on */
    uint32_t id;
} bpe_merge;
enum { BPE_LEFT = 1, BPE_RIGHT = 2 };

/* How a whole token comes about, and what else begins as it does. */
typedef struct {
    uint32_t left, right, order; /* of its last merge; a single byte: order 0 */
    uint32_t shorter;            /* the longest other whole token that this one begins with; BPE_NO_ID: none */
} bpe_split;

typedef struct {
    uint32_t *words; /* owned; bpe_trie.c says what they are */
    size_t n_words;
    uint32_t roots[256];
} bpe_trie;

struct bpe_model {
    bpe_token *tokens;   /* [n_ids] */
    uint8_t *bytes;      /* of all tokens, and UTF8_SLACK_BYTES */
    bpe_slot *slots;     /* [slot_mask + 1] */
    bpe_merge *merges;   /* [merge_mask + 1] */
    uint8_t *merge_tags; /* [merge_mask + 1] a byte of the pair's hash; 0: no merge there */
    uint8_t *sides;      /* [n_ids] BPE_LEFT, BPE_RIGHT: it is that side of some merge */
    uint32_t n_ids, slot_mask, merge_mask;
    uint32_t byte_ids[256];
    bool ignores_merges;
    bpe_split *splits; /* [n_ids] */
    bpe_trie trie;
    bool can_match; /* the merges allow bpe_match_encode() */
};

static inline uint64_t bpe_pair_hash(uint32_t left, uint32_t right) {
    return ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u;
}

static inline uint8_t bpe_pair_tag(uint64_t hash) { return (uint8_t)(hash >> 56 | 1); }

/* Most pairs that are asked for do not merge: most tokens are no side of any merge, and the tags, a quarter of a
 * megabyte for a large model, say of most others that they are not there. NULL: none. */
static inline const bpe_merge *bpe_merge_find(const bpe_model *model, uint32_t left, uint32_t right) {
    if (!(model->sides[left] & BPE_LEFT) || !(model->sides[right] & BPE_RIGHT)) return NULL;
    uint64_t pair = (uint64_t)left << 32 | right, hash = bpe_pair_hash(left, right);
    for (uint32_t at = (uint32_t)(hash >> 32);; at++) {
        uint8_t tag = model->merge_tags[at & model->merge_mask];
        if (tag == 0) return NULL;
        const bpe_merge *merge = &model->merges[at & model->merge_mask];
        if (tag == bpe_pair_tag(hash) && merge->pair == pair) return merge;
    }
}

/* Slots for a table that stays at most half full, less one. */
uint32_t bpe_table_mask(size_t n_entries);

/* Adds an entry by its bytes, those of tokens[id]. */
void bpe_slot_insert(bpe_model *model, uint32_t id);
void bpe_slot_set_piece(bpe_model *model, uint32_t id);

void *bpe_scratch_reserve(bpe_scratch *scratch, size_t bytes); /* at least so many, aligned for anything */

/* Appends the ids of a piece by merging. *last: the merge that was the last one, if there was any; may be NULL. */
void bpe_merge_encode(const bpe_model *model, bpe_scratch *scratch, const uint8_t *piece, size_t n_bytes, tok_ids *out,
                      bpe_merge *last);

/* After the whole tokens are known, with their splits: sets can_match and what it needs. */
void bpe_match_open(bpe_model *model);

/* Appends the ids of a piece; gives up when *out has more than max_ids. A beginning of a piece can have more ids than
 * the whole, for what follows moves borders: in texts made of tokens and parts of them 3 with DeepSeek-V3's vocabulary,
 * 6 with the bundled model's. Who must not refuse a piece that has max_ids allows BPE_SPARE_IDS more. */
void bpe_match_encode(const bpe_model *model, bpe_scratch *scratch, const uint8_t *piece, size_t n_bytes,
                      size_t max_ids, tok_ids *out);

/* All whole tokens; fills the splits' `shorter`. False: they are too many or too long. */
bool bpe_trie_open(const bpe_model *model, bpe_split *splits, bpe_trie *out);
void bpe_trie_fini(bpe_trie *trie);

/* The longest whole token at the beginning of `text`, and its bytes; n_bytes > 0. BPE_NO_ID: none. */
uint32_t bpe_trie_longest(const bpe_trie *trie, const uint8_t *text, size_t n_bytes, size_t *n_token);

#endif
