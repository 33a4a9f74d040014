/* What a client is told when its request fails: HTTP status, the four keys of OpenAI's error object, headers.
 * Contract: one envelope everywhere, `{"error":{"message","type","param","code"}}`, all four keys always; the message
 * is one sentence without internal addresses. */
#ifndef BATON_GATEWAY_API_API_ERROR_H
#define BATON_GATEWAY_API_API_ERROR_H

#include <stdint.h>

#include "common/core/buf.h"
#include "common/core/status.h"

typedef struct {
    int http_status; /* 400..599 */
    char param[96];  /* the plain name of the field at fault; "": null */
    char message[480];
    uint32_t retry_after_s; /* header Retry-After; 0: none */
    const char *reason;     /* for machines, in header x-baton-reason and in metrics; static; NULL: none */
    const char *header;     /* one extra header, static name; NULL: none */
    char header_value[160]; /* printable ASCII */
} gw_error;

/* Fills *error and returns BT_BAD_REQUEST, so that `return gw_fail(...)` is the whole idiom of a parser. `param` may
 * be "". A message that does not fit is cut at a character's boundary. */
bt_status gw_fail(gw_error *error, int http_status, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Names the refused thing in a header; bytes outside printable ASCII become '?'. `header` must be static. */
void gw_error_set_header(gw_error *error, const char *header, const char *value);

/* "BadRequestError", "NotFoundError", ... as vLLM names them. */
const char *gw_error_type(int http_status);

/* Appends the JSON object. */
void gw_error_write(const gw_error *error, bt_buf *out);

#endif
