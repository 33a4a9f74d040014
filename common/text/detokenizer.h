/* Ids to text, as a stream: whole UTF-8 characters only.
 *
 * A byte-level token may end inside a character: those bytes wait for the next token. What can no longer become a
 * character is written as U+FFFD, one per maximal subpart, so that all pieces together are what decoding all ids at
 * once gives. */
#ifndef BATON_COMMON_TEXT_DETOKENIZER_H
#define BATON_COMMON_TEXT_DETOKENIZER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/core/buf.h"
#include "common/text/tokenizer.h"

/* One stream; plain memory, nothing to free. One thread. */
typedef struct {
    const tok_tokenizer *tokenizer; /* borrowed */
    bool skips_special;
    uint8_t pending[3]; /* the start of a character */
    uint8_t n_pending;
} det_stream;

/* `skip_special`: ids with tok_is_special() have no text. */
void det_init(det_stream *det, const tok_tokenizer *tokenizer, bool skip_special);
void det_put(det_stream *det, uint32_t id, bt_buf *out); /* appends; ids without text append nothing */
void det_finish(det_stream *det, bt_buf *out);           /* appends U+FFFD for an unfinished character */

#endif
