/* One HTTP call on its way through the gateway, and its answers that are whole: error objects, small JSON bodies. Adds
 * the headers that every answer has: x-request-id and request-id, CORS, Retry-After. */
#ifndef BATON_GATEWAY_REPLY_H
#define BATON_GATEWAY_REPLY_H

#include "gateway/api/api_error.h"
#include "gateway/loop.h"

enum { GW_CAP_REQUEST_ID = 129 };

typedef struct {
    gw_loop *loop;
    gw_http_exchange *exchange;
    char request_id[GW_CAP_REQUEST_ID]; /* the client's X-Request-Id if it is sane, else random */
    bool has_own_id;                    /* it is the client's */
    char user[GW_CAP_KEY_NAME];         /* whose key it came with; "": none was asked for */
} gw_call;

void gw_call_init(gw_call *call, gw_loop *loop, gw_http_exchange *exchange);

/* 1 to 128 printable ASCII characters without blanks, quotes and backslashes: fit for headers, ids and logs. */
bool gw_request_id_is_sane(const char *bytes, size_t n_bytes);

void gw_call_add_headers(const gw_call *call); /* once, before any answer; gw_reply_*() do it themselves */

/* No worker takes the request, at once or after it was admitted; `is_filtered`: there are some, but not of the kind
 * that was asked for. Returns BT_BAD_REQUEST. */
bt_status gw_fail_no_worker(gw_error *error, const char *text, bool is_filtered);

void gw_reply(const gw_call *call, int status, const char *content_type, const void *body, size_t n_bytes);
void gw_reply_error(const gw_call *call, const gw_error *error);

#endif
