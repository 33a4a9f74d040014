/* The tokenizer of a model directory: text to ids and ids to bytes, exactly as Hugging Face tokenizers 0.23 does it
 * for byte-level BPE files. */
#ifndef BATON_COMMON_TEXT_TOKENIZER_H
#define BATON_COMMON_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/core/status.h"
#include "common/text/bpe.h" /* tok_ids */
#include "common/text/tok_cache.h"

typedef struct tok_tokenizer tok_tokenizer; /* immutable after open, any thread */

typedef enum {
    TOK_ADD_BOS = 1, /* put the BOS id first, if this tokenizer adds one by itself (tok_adds_bos) */
    TOK_PLAIN = 2,   /* added tokens in the text are ordinary text */
    TOK_CHECKED = 4, /* it is valid UTF-8, and UTF8_SLACK_BYTES behind it are readable: no copy is made */
} tok_flags;

enum { TOK_MAX_TEXT_BYTES = 16 << 20 };

/* Reads `model_dir`/tokenizer.json (required), tokenizer_config.json and chat_template.jinja (optional).
 * BT_BAD_REQUEST: a file that is missing, malformed or asks for something unsupported; the sentence says which. */
bt_status tok_open(const char *model_dir, tok_tokenizer **out, bt_error *err);
void tok_close(tok_tokenizer *tokenizer);

/* Appends the ids of `text` to *out, which grows and stays the caller's (tok_ids_fini). Any bytes are text: broken
 * UTF-8 is read as U+FFFD, one per maximal subpart, as a lossy decoder in front of the original would; NUL is a
 * character. The time is O(n) for any text with vocabularies that were trained, O(n log n) with others. BT_BAD_REQUEST:
 * over TOK_MAX_TEXT_BYTES, or (never with the patterns of known models) a pattern that backtracks without end; *out is
 * then as it was. */
bt_status tok_encode(const tok_tokenizer *tokenizer, const char *text, size_t n_bytes, unsigned flags, tok_ids *out,
                     bt_error *err);
void tok_ids_fini(tok_ids *ids);

/* The same ids, with what `cache` knows of the text not encoded again, and kept there; NULL: none. BT_NO_CAPACITY: *out
 * would have more than max_ids; the rest of the text was not encoded, and *out is as it was. */
enum { TOK_ANY_IDS = BPE_ANY_IDS };
bt_status tok_encode_cached(const tok_tokenizer *tokenizer, tok_cache *cache, const char *text, size_t n_bytes,
                            unsigned flags, size_t max_ids, tok_ids *out, bt_error *err);

/* One past the highest id that has text. The model's logits may be wider; ids beyond have no text. */
uint32_t tok_vocab_size(const tok_tokenizer *tokenizer);

/* The raw bytes of an id, possibly part of a character; borrowed. Ids without text have 0 bytes.
 * BT_BAD_REQUEST: id >= tok_vocab_size(); *n_bytes is 0 then too. */
bt_status tok_token_bytes(const tok_tokenizer *tokenizer, uint32_t id, const uint8_t **bytes, size_t *n_bytes);

/* Appends an id's entry as tokenizer.json writes it, which for the space in front of a word is a letter like any other:
 * what Hugging Face calls the token. Nothing for ids without text. */
void tok_put_entry(const tok_tokenizer *tokenizer, uint32_t id, bt_buf *out);

/* An added token with "special": true; skip_special_tokens drops these. <think> of DeepSeek is not one. */
bool tok_is_special(const tok_tokenizer *tokenizer, uint32_t id);
bool tok_is_added(const tok_tokenizer *tokenizer, uint32_t id);

/* The id of a token by its text: an added token, or else a vocabulary entry that stands for these bytes. */
bool tok_find(const tok_tokenizer *tokenizer, const char *content, uint32_t *id);

/* From tokenizer_config.json. The text is NULL and the id absent (false) if the file names none. */
const char *tok_bos_text(const tok_tokenizer *tokenizer);
const char *tok_eos_text(const tok_tokenizer *tokenizer);
bool tok_bos_id(const tok_tokenizer *tokenizer, uint32_t *id);
bool tok_eos_id(const tok_tokenizer *tokenizer, uint32_t *id);

/* Whether plain text (not a rendered chat) gets a BOS: add_bos_token if given, else what the tokenizer class does
 * (LlamaTokenizer: yes; others: if their post-processor is a template that begins with it). */
bool tok_adds_bos(const tok_tokenizer *tokenizer);

/* The chat template's source: "chat_template" of tokenizer_config.json (a list: the one named "default"), else the file
 * chat_template.jinja; NULL: none. Borrowed. */
const char *tok_chat_template(const tok_tokenizer *tokenizer);

#endif
