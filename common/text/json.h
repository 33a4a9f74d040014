/* JSON from outside into cJSON's tree: RFC 8259 to the letter, UTF-8, bounded, nothing behind the value. What the tree
 * has no place for is kept: strings that hold U+0000, and how a number was written where its double says less (1.0 is
 * not 1 where a chat template prints it, and integers over 2^53).
 *
 * cJSON's own functions work on the result; they see a string up to its first NUL. */
#ifndef BATON_COMMON_TEXT_JSON_H
#define BATON_COMMON_TEXT_JSON_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/core/buf.h"
#include "common/core/status.h"

enum { TXT_JSON_MAX_DEPTH = 128 };

typedef struct {
    uint32_t max_depth;  /* <= TXT_JSON_MAX_DEPTH */
    uint32_t max_values; /* bounds the tree: 64 bytes each */
    bool repairs;        /* lone surrogates and \u0000 become U+FFFD; else the former are refused, the latter kept */
} txt_json_rules;

/* Strings and keys are not copied: their escapes are resolved where they stand, so `text` is changed and must outlive
 * *out, which the caller ends with cJSON_Delete(). A leading byte order mark is passed over. BT_BAD_REQUEST: the
 * sentence says what and at which byte; `text` is spoilt. */
bt_status txt_json_read(char *text, size_t n_bytes, const txt_json_rules *rules, cJSON **out, bt_error *err);

/* The same with copies; `text` stays as it is. */
bt_status txt_json_copy(const char *text, size_t n_bytes, const txt_json_rules *rules, cJSON **out, bt_error *err);

/* The same up to TXT_JSON_MAX_DEPTH, nothing repaired. */
bt_status txt_json_parse(const char *text, size_t n_bytes, cJSON **out, bt_error *err);

/* The bytes of a string item; NULL if it is none. NUL bytes are counted where they were kept. */
const char *txt_json_string(const cJSON *item, size_t *n_bytes);

/* How a number was written; NULL where its double says as much. */
const char *txt_json_number_text(const cJSON *item);

/* Appends a JSON string in quotes. Bytes that are not UTF-8 become U+FFFD; characters beyond ASCII stay as they are. */
void txt_json_put_string(bt_buf *out, const char *bytes, size_t n_bytes);

#endif
