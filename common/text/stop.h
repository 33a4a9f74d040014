/* Stop strings over streamed text (openai-api: `stop`, `include_stop_str_in_output`).
 *
 * Text flows through; held back is the longest suffix that is a proper prefix of a stop string, nothing more. The
 * first stop string to be complete ends the text, whatever the pieces it came in; of several that end at the same
 * byte the longest wins. Put text of whole characters in (detokenizer.h) and whole characters come out. */
#ifndef BATON_COMMON_TEXT_STOP_H
#define BATON_COMMON_TEXT_STOP_H

#include <stdbool.h>
#include <stddef.h>

#include "common/core/buf.h"
#include "common/core/status.h"

enum { STOP_MAX_STRINGS = 64, STOP_MAX_BYTES = 16 * 1024 }; /* of all strings together */

typedef struct stop_string stop_string;

/* One stream's matcher. One thread. Starts as {0}. */
typedef struct {
    stop_string *strings; /* owned, [n_strings] */
    size_t n_strings;
    bool includes_stop;
    int matched; /* index of the string that ended the text; -1: none yet */
    bt_buf held; /* a proper prefix of a stop string */
} stop_matcher;

/* Copies the strings. `include_stop_str`: the stop string itself is part of the output. No strings: everything flows.
 * BT_BAD_REQUEST: an empty string, or more than the limits above. */
bt_status stop_init(stop_matcher *stop, const char *const *strings, size_t n_strings, bool include_stop_str,
                    bt_error *err);
void stop_fini(stop_matcher *stop);

/* Appends to *out what is sure. true: a stop string is complete; *out has the text before it (and itself, if it is to
 * be included), and further calls append nothing and return true. */
bool stop_put(stop_matcher *stop, const char *text, size_t n_bytes, bt_buf *out);

/* The text has ended otherwise: appends what was held back. */
void stop_finish(stop_matcher *stop, bt_buf *out);

#endif
