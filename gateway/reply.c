/* Whole answers. Streams are serve.c's. */
#include "gateway/reply.h"

#include <stdio.h>
#include <string.h>

enum { RETRY_NO_WORKER_S = 10 };

bool gw_request_id_is_sane(const char *bytes, size_t n_bytes) {
    if (n_bytes == 0 || n_bytes >= GW_CAP_REQUEST_ID) return false;
    for (size_t i = 0; i < n_bytes; i++)
        if (bytes[i] <= ' ' || bytes[i] > '~' || strchr("\"'\\`<>", bytes[i]) != NULL) return false;
    return true;
}

void gw_call_init(gw_call *call, gw_loop *loop, gw_http_exchange *exchange) {
    *call = (gw_call){.loop = loop, .exchange = exchange};
    gw_http_text given = gw_http_header(exchange, "x-request-id");
    call->has_own_id = given.bytes != NULL && gw_request_id_is_sane(given.bytes, given.n_bytes);
    if (call->has_own_id) {
        memcpy(call->request_id, given.bytes, given.n_bytes);
    } else {
        snprintf(call->request_id, sizeof call->request_id, "%016llx%016llx", (unsigned long long)gw_loop_random(loop),
                 (unsigned long long)gw_loop_random(loop));
    }
}

void gw_call_add_headers(const gw_call *call) {
    gw_http_add_header(call->exchange, "x-request-id", call->request_id);
    gw_http_add_header(call->exchange, "request-id", call->request_id);
    char allowed[GW_HTTP_CAP_ORIGIN];
    if (!gw_access_origin(call->loop->access, NULL, 0, allowed)) gw_http_add_header(call->exchange, "vary", "origin");
    gw_http_text origin = gw_http_header(call->exchange, "origin");
    if (origin.bytes == NULL || !gw_access_origin(call->loop->access, origin.bytes, origin.n_bytes, allowed)) return;
    gw_http_add_header(call->exchange, "access-control-allow-origin", allowed);
    gw_http_add_header(call->exchange, "access-control-expose-headers",
                       "x-request-id, request-id, retry-after, x-baton-reason, x-llm-d-request-dropped-reason, "
                       "x-baton-prefill, x-baton-decode, "
                       "x-baton-strategy, x-baton-cached-tokens, x-baton-local-prefill, routing-strategy, target-pod, "
                       "target-pod-ip, prefill-target-pod, prefill-target-pod-ip, x-session-id");
}

void gw_reply(const gw_call *call, int status, const char *content_type, const void *body, size_t n_bytes) {
    gw_call_add_headers(call);
    gw_http_reply(call->exchange, status, content_type, body, n_bytes);
}

/* llm-d's word for our reason. */
static const char *dropped_reason(const gw_error *error) {
    static const char *const words[][2] = {
        {"saturated", "rejected-saturated"},    {"predicted_ttft", "rejected-saturated"},
        {"queue_full", "rejected-saturated"},   {"queue_timeout", "rejected-ttl-expired"},
        {"no_worker", "rejected-no-endpoints"}, {"draining", "rejected-shutting-down"},
    };
    for (size_t i = 0; i < sizeof words / sizeof words[0] && error->reason != NULL; i++)
        if (strcmp(error->reason, words[i][0]) == 0) return words[i][1];
    return NULL;
}

bt_status gw_fail_no_worker(gw_error *error, const char *text, bool is_filtered) {
    gw_fail(error, 503, "", "%s", text);
    error->retry_after_s = RETRY_NO_WORKER_S;
    error->reason = "no_worker";
    gw_error_set_header(error, is_filtered ? "x-error-routing" : "x-error-no-model-backends", "true");
    return BT_BAD_REQUEST;
}

void gw_reply_error(const gw_call *call, const gw_error *error) {
    if (error->retry_after_s > 0) {
        char seconds[16];
        snprintf(seconds, sizeof seconds, "%u", error->retry_after_s);
        gw_http_add_header(call->exchange, "retry-after", seconds);
    }
    if (error->reason != NULL) gw_http_add_header(call->exchange, "x-baton-reason", error->reason);
    const char *dropped = dropped_reason(error);
    if (dropped != NULL) gw_http_add_header(call->exchange, "x-llm-d-request-dropped-reason", dropped);
    if (error->http_status == 401) gw_http_add_header(call->exchange, "www-authenticate", "Bearer");
    if (error->header != NULL) gw_http_add_header(call->exchange, error->header, error->header_value);
    if (error->header != NULL && strcmp(error->header, "x-error-invalid-routing-strategy") == 0)
        gw_http_add_header(call->exchange, "x-error-routing", "true");
    bt_buf body = {0};
    gw_error_write(error, &body);
    gw_reply(call, error->http_status, "application/json", body.bytes, body.n_bytes);
    bt_buf_fini(&body);
}
