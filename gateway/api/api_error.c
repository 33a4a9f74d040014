/* The error envelope. Owns no state: fills structs and writes JSON. Who sends the answer, and whether it still can be
 * a status line or must be an event in a stream, is decided by serve.c. */
#include "gateway/api/api_error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "gateway/api/api_json.h"

/* snprintf may cut inside a character: drop the incomplete rest. */
static void trim_partial_character(char *text) {
    size_t n = strlen(text), start = n;
    while (start > 0 && n - start < 4 && ((unsigned char)text[start - 1] & 0xC0) == 0x80) start--;
    if (start == 0) return;
    unsigned char lead = (unsigned char)text[start - 1];
    size_t want = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
    if (want > 1 && n - (start - 1) < want) text[start - 1] = 0;
}

bt_status gw_fail(gw_error *error, int http_status, const char *param, const char *format, ...) {
    *error = (gw_error){.http_status = http_status};
    snprintf(error->param, sizeof error->param, "%s", param);
    va_list args;
    va_start(args, format);
    vsnprintf(error->message, sizeof error->message, format, args);
    va_end(args);
    trim_partial_character(error->message);
    trim_partial_character(error->param);
    return BT_BAD_REQUEST;
}

void gw_error_set_header(gw_error *error, const char *header, const char *value) {
    error->header = header;
    size_t n = 0;
    for (; value[n] != 0 && n + 1 < sizeof error->header_value; n++)
        error->header_value[n] = value[n] > 0x20 && value[n] < 0x7F ? value[n] : '?';
    error->header_value[n] = 0;
}

const char *gw_error_type(int http_status) {
    switch (http_status) {
    case 400:
        return "BadRequestError";
    case 401:
        return "AuthenticationError";
    case 404:
        return "NotFoundError";
    case 405:
        return "Method Not Allowed";
    case 408:
        return "Request Timeout";
    case 413:
        return "Request Entity Too Large";
    case 415:
        return "Unsupported Media Type";
    case 429:
        return "RateLimitError";
    case 431:
        return "Request Header Fields Too Large";
    case 503:
        return "Service Unavailable";
    case 504:
        return "Gateway Timeout";
    default:
        return http_status < 500 ? "BadRequestError" : "InternalServerError";
    }
}

void gw_error_write(const gw_error *error, bt_buf *out) {
    bt_buf_puts(out, "{\"error\":{\"message\":");
    gw_json_put_string(out, error->message, strlen(error->message));
    bt_buf_puts(out, ",\"type\":");
    gw_json_put_string(out, gw_error_type(error->http_status), strlen(gw_error_type(error->http_status)));
    bt_buf_puts(out, ",\"param\":");
    if (error->param[0] != 0) {
        gw_json_put_string(out, error->param, strlen(error->param));
    } else {
        bt_buf_puts(out, "null");
    }
    bt_buf_printf(out, ",\"code\":%d}}", error->http_status);
}
