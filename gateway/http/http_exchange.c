/* Exchanges: h2o's request and generator behind gateway/http/http.h. An exchange lives in its request's pool; its
 * dispose function runs exactly once however the request ends, and unlinks it. Parses no bodies, decides no statuses.
 */
#include <string.h>

#include "common/core/clock.h"
#include "gateway/http/http_framing.h"
#include "gateway/http/http_internal.h"

enum { MAX_RESETS = 200 };

static void on_proceed(h2o_generator_t *generator, h2o_req_t *req);

bool gw_http_exchange_is_ours(const h2o_req_t *req) {
    return req->_generator != NULL && req->_generator->proceed == on_proceed;
}

h2o_socket_t *gw_http_socket(const h2o_req_t *req) { return req->conn->callbacks->get_socket(req->conn); }

int gw_http_socket_fd(const h2o_req_t *req) {
    if (req->version >= 0x200) return -1;
    h2o_socket_t *sock = gw_http_socket(req);
    return sock == NULL ? -1 : h2o_socket_get_fd(sock);
}

static void tell_user(gw_http_exchange *x) {
    if (x->user == NULL) return;
    void *user = x->user;
    x->user = NULL;
    x->on_gone(user);
}

/* A request that is taken back as soon as it was made costs us all the same (CVE-2023-44487), and HTTP/2 bounds only
 * those that are open. A connection may take back as many as it lets be answered, and MAX_RESETS more. */
static void count_reset(const gw_http_exchange *x) {
    if (x->req->version < 0x200) return;
    uint64_t id = x->req->conn->id;
    size_t slot = id % GW_HTTP_RESET_SLOTS;
    if (x->http->resets[slot].connection != id) x->http->resets[slot].n = 0;
    x->http->resets[slot].connection = id;
    uint32_t *n = &x->http->resets[slot].n;
    if (x->is_ended) {
        *n -= *n > 0;
    } else if (++*n > MAX_RESETS) {
        shutdown(h2o_socket_get_fd(gw_http_socket(x->req)), SHUT_RDWR);
    }
}

static void on_dispose(void *memory) {
    gw_http_exchange *x = memory;
    count_reset(x);
    x->is_lost = true;
    tell_user(x); /* the connection broke before the answer was complete */
    h2o_linklist_unlink(&x->link);
    if (h2o_linklist_is_linked(&x->dirty)) h2o_linklist_unlink(&x->dirty);
    x->http->n_exchanges--;
    bt_buf_fini(&x->pending);
    bt_buf_fini(&x->sending);
}

/* The head lies where it was read until h2o drops the request. Chunks are framed by h2o's decoder, which takes more
 * than the standard does: whatever it left behind must not be read as a request, so the connection ends with the
 * answer. */
static void check_framing(gw_http_exchange *x) {
    if (x->req->version >= 0x200) return;
    const h2o_buffer_t *input = gw_http_socket(x->req)->input;
    bool is_chunked;
    x->fault = gw_http_framing_fault(input->bytes, input->size, &is_chunked);
    if (x->fault != NULL || is_chunked) x->req->http1_is_persistent = 0;
}

int gw_http_on_request(h2o_handler_t *handler, h2o_req_t *req) {
    (void)handler;
    gw_http *http = H2O_STRUCT_FROM_MEMBER(gw_http, context, req->conn->ctx);
    gw_http_exchange *x = h2o_mem_alloc_shared(&req->pool, sizeof *x, on_dispose);
    memset(x, 0, sizeof *x);
    x->generator.proceed = on_proceed;
    x->req = req;
    x->http = http;
    h2o_linklist_insert(&http->exchanges, &x->link);
    http->n_exchanges++;
    check_framing(x);
    http->config.on_request(http->config.context, x);
    return 0;
}

/* ---- request ------------------------------------------------------------------------------------------------------
 */

static gw_http_text text_of(h2o_iovec_t vec) { return (gw_http_text){vec.base, vec.len}; }

gw_http_text gw_http_method(const gw_http_exchange *x) { return text_of(x->req->method); }
gw_http_text gw_http_path(const gw_http_exchange *x) { return text_of(x->req->path_normalized); }
gw_http_text gw_http_body(const gw_http_exchange *x) { return text_of(x->req->entity); }

gw_http_text gw_http_header(const gw_http_exchange *x, const char *lower_case_name) {
    ssize_t at = h2o_find_header_by_str(&x->req->headers, lower_case_name, strlen(lower_case_name), -1);
    return at == -1 ? (gw_http_text){NULL, 0} : text_of(x->req->headers.entries[at].value);
}

const char *gw_http_fault(const gw_http_exchange *x) { return x->fault; }

uint64_t gw_http_header_bytes(const gw_http_exchange *x) {
    uint64_t n_bytes = x->req->input.path.len;
    for (size_t i = 0; i < x->req->headers.size; i++)
        n_bytes += x->req->headers.entries[i].name->len + x->req->headers.entries[i].value.len + 4;
    return n_bytes;
}

int64_t gw_http_arrival_ns(const gw_http_exchange *x) {
    struct timeval begin = x->req->timestamps.request_begin_at, now;
    gettimeofday(&now, NULL); /* h2o's own stamps are wall clock: only their age is used */
    int64_t age_us = (int64_t)(now.tv_sec - begin.tv_sec) * 1000000 + (now.tv_usec - begin.tv_usec);
    if (begin.tv_sec == 0 || age_us < 0) age_us = 0;
    return bt_now_ns() - age_us * BT_NS_PER_US;
}

bool gw_http_is(gw_http_text text, const char *want) {
    return text.n_bytes == strlen(want) && memcmp(text.bytes, want, text.n_bytes) == 0;
}

void gw_http_set_user(gw_http_exchange *x, void *user, void (*on_gone)(void *user)) {
    x->user = user;
    x->on_gone = on_gone;
}

/* ---- answer -------------------------------------------------------------------------------------------------------
 */

void gw_http_add_header(gw_http_exchange *x, const char *lower_case_name, const char *value) {
    for (const char *at = value; *at != 0; at++)
        if (*at < 0x20 || *at > 0x7E) return;
    h2o_iovec_t name = h2o_strdup(&x->req->pool, lower_case_name, SIZE_MAX);
    h2o_iovec_t copy = h2o_strdup(&x->req->pool, value, SIZE_MAX);
    h2o_add_header_by_str(&x->req->pool, &x->req->res.headers, name.base, name.len, 1, NULL, copy.base, copy.len);
}

static const char *reason_phrase(int status) {
    switch (status) {
    case 200:
        return "OK";
    case 400:
        return "Bad Request";
    case 401:
        return "Unauthorized";
    case 404:
        return "Not Found";
    case 405:
        return "Method Not Allowed";
    case 408:
        return "Request Timeout";
    case 413:
        return "Payload Too Large";
    case 415:
        return "Unsupported Media Type";
    case 429:
        return "Too Many Requests";
    case 431:
        return "Request Header Fields Too Large";
    case 500:
        return "Internal Server Error";
    case 503:
        return "Service Unavailable";
    case 504:
        return "Gateway Timeout";
    default:
        return "Status";
    }
}

static void start(gw_http_exchange *x, int status, const char *content_type) {
    x->is_started = true;
    x->req->res.status = status;
    x->req->res.reason = reason_phrase(status);
    if (content_type[0] != 0) gw_http_add_header(x, "content-type", content_type);
    x->http->config.on_answered(x->http->config.context, status);
    h2o_start_response(x->req, &x->generator);
}

void gw_http_reply(gw_http_exchange *x, int status, const char *content_type, const void *body, size_t n_bytes) {
    x->user = NULL;
    if (x->is_lost) return;
    bool is_head = gw_http_is(gw_http_method(x), "HEAD");
    if (!is_head) bt_buf_put(&x->sending, body, n_bytes);
    x->req->res.content_length = n_bytes;
    start(x, status, content_type);
    x->is_ended = x->is_sending = true;
    x->progress_ns = bt_now_ns();
    h2o_iovec_t vec = h2o_iovec_init(x->sending.bytes, x->sending.n_bytes);
    h2o_send(x->req, &vec, vec.len > 0, H2O_SEND_STATE_FINAL);
}

void gw_http_stream_begin(gw_http_exchange *x, int status, const char *content_type) {
    if (x->is_lost) return;
    start(x, status, content_type);
}

/* Sends what is pending, if nothing is in flight; the last piece together with the end. May free the exchange. */
static void flush(gw_http_exchange *x) {
    if (x->is_sending || x->is_ended || x->is_lost) return;
    if (x->pending.n_bytes == 0 && !x->is_ending) return;
    bt_buf previous = x->sending;
    x->sending = x->pending;
    x->pending = previous;
    bt_buf_clear(&x->pending);
    x->is_sending = true;
    x->is_ended = x->is_ending;
    x->progress_ns = bt_now_ns();
    h2o_iovec_t vec = h2o_iovec_init(x->sending.bytes, x->sending.n_bytes);
    h2o_send(x->req, &vec, vec.len > 0, x->is_ended ? H2O_SEND_STATE_FINAL : H2O_SEND_STATE_IN_PROGRESS);
}

/* Written at the turn's end, or by on_proceed() if a write is in flight. */
static void soil(gw_http_exchange *x) {
    if (!x->is_sending && !h2o_linklist_is_linked(&x->dirty)) h2o_linklist_insert(&x->http->dirty, &x->dirty);
}

static void on_proceed(h2o_generator_t *generator, h2o_req_t *req) {
    gw_http_exchange *x = (gw_http_exchange *)generator;
    x->is_sending = false;
    bt_buf_clear(&x->sending);
    if (x->is_lost) {
        x->is_ended = true;
        h2o_send(req, NULL, 0, H2O_SEND_STATE_ERROR);
        return;
    }
    flush(x);
}

void gw_http_stream_write(gw_http_exchange *x, const void *bytes, size_t n_bytes) {
    if (x->is_lost || x->is_ending) return;
    bt_buf_put(&x->pending, bytes, n_bytes);
    soil(x);
    /* beyond the cap the sweep drops it: not here, inside the writer's own call */
}

void gw_http_stream_end(gw_http_exchange *x) {
    x->user = NULL;
    if (x->is_lost) return;
    x->is_ending = true;
    soil(x);
}

void gw_http_flush_dirty(gw_http *http) {
    while (!h2o_linklist_is_empty(&http->dirty)) {
        gw_http_exchange *x = H2O_STRUCT_FROM_MEMBER(gw_http_exchange, dirty, http->dirty.next);
        h2o_linklist_unlink(&x->dirty);
        flush(x);
    }
}

void gw_http_stream_abort(gw_http_exchange *x) {
    x->user = NULL;
    gw_http_exchange_drop(x);
}

void gw_http_exchange_drop(gw_http_exchange *x) {
    if (x->is_lost) return;
    x->is_lost = true;
    tell_user(x);
    if (x->is_sending || x->is_ended) { /* the write fails, h2o closes and disposes; on HTTP/2 other streams go too */
        h2o_socket_t *sock = gw_http_socket(x->req);
        if (sock != NULL) shutdown(h2o_socket_get_fd(sock), SHUT_RDWR);
        return;
    }
    x->is_ended = true;
    x->req->http1_is_persistent = 0;
    if (!x->is_started) { /* nobody reads it, but h2o wants an answer before it closes */
        x->is_started = true;
        x->req->res.status = 499;
        x->req->res.reason = "Client Closed Request";
        x->req->res.content_length = 0;
        h2o_start_response(x->req, &x->generator);
        h2o_send(x->req, NULL, 0, H2O_SEND_STATE_FINAL);
        return;
    }
    h2o_send(x->req, NULL, 0, H2O_SEND_STATE_ERROR);
}
