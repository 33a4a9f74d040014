/* JSON at the edge: a strict reader for what comes in, and a fast writer for what goes out. */
#ifndef BATON_GATEWAY_API_API_JSON_H
#define BATON_GATEWAY_API_API_JSON_H

#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdint.h>

#include "common/core/buf.h"
#include "common/core/status.h"

enum {
    GW_JSON_MAX_DEPTH = 64,
    GW_JSON_MAX_VALUES = 2 << 20, /* bounds the tree (64 bytes a node): 1024 prompts share this many tokens */
};

typedef struct {
    size_t seed_offset, seed_bytes; /* the number of the last top-level key "seed": doubles lose integers over 2^53 */
} gw_json_notes;

/* Reads exactly one JSON value: RFC 8259, UTF-8, depth and number of values within the limits. Its strings and keys are
 * not copied: their escapes are resolved where they stand, so `text` is changed and must outlive *out, which the caller
 * ends with cJSON_Delete(). Escapes that no UTF-8 string can hold become U+FFFD: lone surrogates, and \u0000 (C strings
 * end there; no prompt needs it). A leading byte order mark is passed over. BT_BAD_REQUEST: the sentence says what and
 * at which byte; `text` is spoilt. */
bt_status gw_json_parse(char *text, size_t n_bytes, gw_json_notes *notes, cJSON **out, bt_error *err);

/* Appends `"text"` with quotes. Escapes what JSON demands, and U+0085, U+2028, U+2029, at which some clients split
 * lines; bytes that are not UTF-8 become U+FFFD. */
void gw_json_put_string(bt_buf *out, const char *text, size_t n_bytes);

#endif
