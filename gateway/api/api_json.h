/* The JSON writer of the hot path. What comes in is read by common/text/json.h. */
#ifndef BATON_GATEWAY_API_API_JSON_H
#define BATON_GATEWAY_API_API_JSON_H

#include "common/core/buf.h"

/* Appends `"text"` with quotes. Escapes what JSON demands, and U+0085, U+2028, U+2029, at which some clients split
 * lines; bytes that are not UTF-8 become U+FFFD. */
void gw_json_put_string(bt_buf *out, const char *text, size_t n_bytes);

#endif
