/* JSON from outside into cJSON, with what cJSON loses kept: strings that hold U+0000, and how a number was written
 * (1.0 is not 1 where a chat template prints it). Bounded depth, no trailing text, UTF-8 only.
 *
 * cJSON's own functions work on the result; they see a string up to its first NUL. */
#ifndef BATON_COMMON_TEXT_JSON_H
#define BATON_COMMON_TEXT_JSON_H

#include <cjson/cJSON.h>
#include <stddef.h>

#include "common/core/buf.h"
#include "common/core/status.h"

enum { TXT_JSON_MAX_DEPTH = 128 };

/* *out is the caller's (cJSON_Delete). A lone surrogate escape is refused. BT_BAD_REQUEST: not JSON, not UTF-8, too
 * deep, or text behind the value. */
bt_status txt_json_parse(const char *text, size_t n_bytes, cJSON **out, bt_error *err);

/* The bytes of a string item; NULL if it is none. For strings made by txt_json_parse() NUL bytes are counted. */
const char *txt_json_string(const cJSON *item, size_t *n_bytes);

/* How a number was written, "1.0"; NULL if that is not known or says no more than the number (a plain integer). */
const char *txt_json_number_text(const cJSON *item);

/* Appends a JSON string in quotes. Bytes that are not UTF-8 become U+FFFD; characters beyond ASCII stay as they are. */
void txt_json_put_string(bt_buf *out, const char *bytes, size_t n_bytes);

#endif
