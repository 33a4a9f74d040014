/* The added tokens of a tokenizer.json and how they are found in text before anything else looks at it.
 *
 * Leftmost-longest, in two passes: tokens with normalized=false first, the others in what is left. lstrip, rstrip
 * and single_word are honoured. Semantics: Hugging Face tokenizers 0.23, src/tokenizer/added_vocabulary.rs. */
#ifndef BATON_COMMON_TEXT_ADDED_H
#define BATON_COMMON_TEXT_ADDED_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/core/status.h"

typedef struct add_tokens add_tokens; /* immutable, any thread */

typedef struct {
    char *content;  /* as in the file: UTF-8, not empty */
    uint8_t *bytes; /* what it decodes to: by ByteLevel's alphabet if all of it is in there, else the same */
    size_t n_content, n_bytes;
    uint32_t id;
    bool is_special, is_normalized, strips_left, strips_right, is_single_word;
} add_token;

/* `spec`: the value of "added_tokens", may be NULL. BT_BAD_REQUEST: an entry without content or with an id out of
 * range, or two entries with one id. */
bt_status add_open(const cJSON *spec, add_tokens **out, bt_error *err);
void add_close(add_tokens *tokens);

/* What text consists of: plain text (token == NULL) or one added token. Spans are not empty and come in order; only a
 * token with rstrip may reach into what follows. */
typedef bt_status (*add_sink)(void *context, const add_token *token, const uint8_t *text, size_t n_bytes,
                              bt_error *err);

/* Hands over the parts of valid UTF-8 text; stops at the first status that is not BT_OK and returns it. */
bt_status add_split(const add_tokens *tokens, const uint8_t *text, size_t n_bytes, add_sink sink, void *context,
                    bt_error *err);

const add_token *add_by_id(const add_tokens *tokens, uint32_t id);              /* NULL: not an added token */
const add_token *add_by_content(const add_tokens *tokens, const char *content); /* NULL: none */
uint32_t add_n_ids(const add_tokens *tokens);                                   /* one past the highest id */

#endif
