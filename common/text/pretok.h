/* The pre-tokenizer of a tokenizer.json: cuts text into the pieces within which BPE merges.
 *
 * Supported: Sequence, Split (Regex and String patterns, all behaviors, invert), Digits, and ByteLevel at the end
 * (add_prefix_space, use_regex). Pieces are handed over as raw UTF-8 bytes: the byte-to-character alphabet of
 * ByteLevel is undone once, in the vocabulary (bpe.h). */
#ifndef BATON_COMMON_TEXT_PRETOK_H
#define BATON_COMMON_TEXT_PRETOK_H

#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdint.h>

#include "common/core/status.h"
#include "common/text/utf8.h"

typedef struct ptk_splitter ptk_splitter; /* immutable, any thread */
typedef struct ptk_scratch ptk_scratch;   /* what one thread needs to split */

/* `spec`: the value of "pre_tokenizer". BT_BAD_REQUEST: a type, pattern or order that is not supported. */
bt_status ptk_open(const cJSON *spec, ptk_splitter **out, bt_error *err);
void ptk_close(ptk_splitter *splitter);

ptk_scratch *ptk_scratch_open(const ptk_splitter *splitter);
void ptk_scratch_close(ptk_scratch *scratch);

/* Receives the pieces in order, some at a time so that their look-ups can overlap; they are valid during the call. */
enum { PTK_MAX_PIECES = 64 };
typedef void (*ptk_sink)(void *context, const utf8_piece *pieces, size_t n_pieces);

/* `text`: valid UTF-8 without added tokens; UTF8_SLACK_BYTES behind it are readable, behind the pieces too.
 * BT_BAD_REQUEST: a pattern exceeded its work limit on this text; pieces may have been handed over by then. */
bt_status ptk_split(const ptk_splitter *splitter, ptk_scratch *scratch, const uint8_t *text, size_t n_bytes,
                    ptk_sink sink, void *context, bt_error *err);

/* How long a beginning of the text is, at most all of it, that is split alike with and without what follows; a place
 * that the text itself says, so that what two texts share has mostly the same ones. 0: this splitter knows none. */
size_t ptk_chunk(const ptk_splitter *splitter, const uint8_t *text, size_t n_bytes);

/* Would the text be split alike at `at` without what follows? What ptk_chunk() returns is such a place. */
bool ptk_may_cut(const ptk_splitter *splitter, const uint8_t *text, size_t n_bytes, size_t at);

/* Turns the hand-written scanner off, so that tests can compare it with the regular expressions. Right after open. */
void ptk_use_regex_only(ptk_splitter *splitter);

/* Pieces on their way to the sink. Starts with n 0. */
typedef struct {
    ptk_sink sink;
    void *context;
    size_t n;
    utf8_piece pieces[PTK_MAX_PIECES];
} ptk_batch;

void ptk_batch_flush(ptk_batch *batch);

static inline void ptk_batch_put(ptk_batch *batch, const uint8_t *piece, size_t n_bytes) {
    batch->pieces[batch->n++] = (utf8_piece){piece, n_bytes};
    if (batch->n == PTK_MAX_PIECES) ptk_batch_flush(batch);
}

/* The hand-written scanner for DeepSeek-V3's three regular expressions (pretok_v3.c); same pieces, many times faster.
 */
void ptk_v3_split(const uint8_t *text, size_t n_bytes, ptk_batch *batch);
size_t ptk_v3_chunk(const uint8_t *text, size_t n_bytes);
bool ptk_v3_is_seam(const uint8_t *space); /* the bytes before and behind may be read */

#endif
