/* The "model" of a tokenizer.json: a byte-level BPE vocabulary with its merges.
 *
 * A vocabulary entry is written in ByteLevel's alphabet (one character per byte); it is kept as the bytes it stands
 * for. Merging follows Hugging Face tokenizers 0.23 (src/models/bpe/word.rs): the adjacent pair with the lowest rank
 * first, the leftmost of equals. */
#ifndef BATON_COMMON_TEXT_BPE_H
#define BATON_COMMON_TEXT_BPE_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/core/buf.h"
#include "common/core/status.h"
#include "common/text/utf8.h"

typedef struct bpe_model bpe_model; /* immutable, any thread */

/* Ids, growing. Starts empty: {0}. */
typedef struct {
    uint32_t *ids; /* owned */
    size_t n_ids, cap_ids;
} tok_ids;

/* Memory for merging long pieces. One thread owns it. Starts empty: {0}. */
typedef struct {
    void *memory;
    size_t cap_bytes;
} bpe_scratch;

void tok_ids_reserve(tok_ids *ids, size_t n_more);
void tok_ids_put(tok_ids *ids, uint32_t id); /* appends one */
void tok_ids_append(tok_ids *ids, const uint32_t *more, size_t n_more);

enum { BPE_MAX_IDS = 1 << 24, BPE_ANY_IDS = INT32_MAX };

/* `spec`: the value of "model". BT_BAD_REQUEST: not a BPE model, an option that changes byte-level merging, a merge of
 * unknown tokens, an id out of range or given twice. */
bt_status bpe_open(const cJSON *spec, bpe_model **out, bt_error *err);
void bpe_close(bpe_model *model);

/* Appends the ids of pieces, of each of which UTF8_SLACK_BYTES may be read whatever its length. Bytes without a token
 * are dropped, as the original does without an unknown token. n_bytes < 2^31. O(n) for any piece with trained
 * vocabularies, O(n log n) with all. Gives up when *out has more than max_ids, which then it has in the end whatever
 * ids these are; with trained vocabularies also within a piece. */
void bpe_encode(const bpe_model *model, bpe_scratch *scratch, const utf8_piece *pieces, size_t n_pieces, size_t max_ids,
                tok_ids *out);
void bpe_scratch_fini(bpe_scratch *scratch);

uint32_t bpe_n_ids(const bpe_model *model); /* one past the highest id */

/* The bytes an id stands for; 0 bytes for ids without an entry. Valid as long as the model. */
const uint8_t *bpe_token_bytes(const bpe_model *model, uint32_t id, size_t *n_bytes);

/* The entry that stands for exactly these bytes, of which UTF8_SLACK_BYTES may be read. */
bool bpe_find(const bpe_model *model, const uint8_t *bytes, size_t n_bytes, uint32_t *id);

/* The bytes that a token's text in the file stands for: by ByteLevel's alphabet if every character is in it (returns
 * true), else its UTF-8 as it is (false). `out` has room for strlen(text) bytes. */
bool bpe_unmap(const char *text, uint8_t *out, size_t *n_bytes);

/* Appends an id's entry as the file writes it; nothing for ids without one. */
void bpe_put_entry(const bpe_model *model, uint32_t id, bt_buf *out);

#endif
