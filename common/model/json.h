/* JSON of a checkpoint, read with suspicion: to the letter, size, nesting and number of values bounded. */
#ifndef BATON_COMMON_MODEL_JSON_H
#define BATON_COMMON_MODEL_JSON_H

#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdint.h>

#include "common/core/buf.h"
#include "common/core/status.h"

enum { MDL_JSON_MAX_DEPTH = 64, MDL_JSON_MAX_VALUES = 1 << 23 };

/* Reads a whole regular file. BT_BAD_REQUEST: missing, not a regular file, longer than `max_bytes`. `out` is appended
 * to; on failure it may hold a part of the file. */
bt_status mdl_file_read(const char *path, size_t max_bytes, bt_buf *out, bt_error *err);

/* `what` names the text in the error. Free *out with cJSON_Delete(). BT_BAD_REQUEST: not one JSON object, nested deeper
 * than MDL_JSON_MAX_DEPTH, more than MDL_JSON_MAX_VALUES values, or bytes after it. */
bt_status mdl_json_parse(const char *what, const void *text, size_t n_bytes, cJSON **out, bt_error *err);

/* True if `item` is a number that is an integer in 0..max; max is at most 2^53. */
int mdl_json_is_uint(const cJSON *item, uint64_t max);

#endif
