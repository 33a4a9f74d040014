/* Guards: clients that leave, that do not read, that do not finish their request, and what h2o refuses before a
 * handler sees it. Runs from the loop's tick. Measured facts and traps: h2o 2.2.5's lib/http1.c. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "gateway/api/api_error.h"
#include "gateway/http/http_internal.h"

#define LINGER_MS     5000 /* for a client to notice that its upload was refused */
#define SLOW_SWEEP_MS 1000
#define CAP_LINGERED  ((uint64_t)1 << 30)

/* ---- leavers and slow readers ---------------------------------------------------------------------------------------
 */

static bool is_stuck(const gw_http_exchange *x, int64_t now_ns) {
    if (x->pending.n_bytes > x->http->config.cap_pending_bytes) return true;
    return x->is_sending && now_ns - x->progress_ns > (int64_t)x->http->config.write_ms * BT_NS_PER_MS;
}

static void sweep_exchanges(gw_http *http, int64_t now_ns) {
    if (http->n_exchanges > http->cap_polls) {
        http->cap_polls = http->n_exchanges * 2;
        http->polls = bt_realloc(http->polls, http->cap_polls, sizeof *http->polls);
        http->polled = bt_realloc(http->polled, http->cap_polls, sizeof *http->polled);
    }
    uint32_t n = 0;
    for (h2o_linklist_t *at = http->exchanges.next; at != &http->exchanges; at = at->next) {
        gw_http_exchange *x = H2O_STRUCT_FROM_MEMBER(gw_http_exchange, link, at);
        if (x->is_lost) continue;
        int fd = gw_http_socket_fd(x->req); /* -1 is skipped by poll(); HTTP/2 tells us by itself */
        http->polls[n] = (struct pollfd){.fd = fd, .events = POLLRDHUP};
        http->polled[n++] = x;
    }
    if (n > 0 && poll(http->polls, n, 0) < 0) return;
    for (uint32_t i = 0; i < n; i++) { /* dropping one exchange frees no other */
        gw_http_exchange *x = http->polled[i];
        if (is_stuck(x, now_ns) || (http->polls[i].revents != 0 && !x->is_ended)) gw_http_exchange_drop(x);
    }
}

/* ---- requests that do not arrive whole ------------------------------------------------------------------------------
 */

const char *gw_http_any_origin(const gw_http *http) {
    char allowed[GW_HTTP_CAP_ORIGIN];
    bool is_any = http->config.allow_origin(http->config.context, NULL, 0, allowed);
    return is_any ? "access-control-allow-origin: *\r\n" : "";
}

static int drop_if_slow(h2o_req_t *req, void *arg) {
    const gw_http *http = arg;
    struct timeval begin = req->timestamps.request_begin_at, now;
    if (begin.tv_sec == 0 || req->processed_at.at.tv_sec != 0) return 0; /* idle, or being answered */
    gettimeofday(&now, NULL);
    if ((now.tv_sec - begin.tv_sec) * 1000 + (now.tv_usec - begin.tv_usec) / 1000 < http->config.read_ms) return 0;
    int fd = gw_http_socket_fd(req);
    bool is_plain = fd >= 0 && gw_http_socket(req)->ssl == NULL; /* within TLS only h2o can write: it is just cut */
    gw_error error;
    gw_fail(&error, 408, "", "The request did not arrive completely within %u ms.", http->config.read_ms);
    bt_buf body = {0}, answer = {0};
    gw_error_write(&error, &body);
    bt_buf_printf(&answer,
                  "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n%s"
                  "content-length: %zu\r\n\r\n",
                  gw_http_any_origin(http), body.n_bytes);
    bt_buf_put(&answer, body.bytes, body.n_bytes);
    /* h2o has written nothing on this connection and reads end of file next, upon which it closes it */
    if (is_plain && send(fd, answer.bytes, answer.n_bytes, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
        http->config.on_answered(http->config.context, 408);
    if (fd >= 0) shutdown(fd, SHUT_RDWR);
    bt_buf_fini(&body);
    bt_buf_fini(&answer);
    return 0;
}

/* ---- lingering ------------------------------------------------------------------------------------------------------
 */

static void linger_end(gw_http_linger *linger) {
    linger->is_running = false;
    h2o_linklist_unlink(&linger->link);
    h2o_socket_read_stop(linger->sock);
    linger->sock->data = linger->sock_data;
    linger->done(linger);
}

static void on_lingered(h2o_socket_t *sock, const char *err) {
    gw_http_linger *linger = sock->data;
    linger->n_bytes += sock->bytes_read;
    h2o_buffer_consume(&sock->input, sock->input->size);
    if (err != NULL || linger->n_bytes > CAP_LINGERED) linger_end(linger);
}

void gw_http_linger_start(gw_http *http, gw_http_linger *linger, h2o_socket_t *sock,
                          void (*done)(gw_http_linger *linger)) {
    *linger = (gw_http_linger){.sock = sock,
                               .sock_data = sock->data,
                               .done = done,
                               .deadline_ns = bt_now_ns() + (int64_t)LINGER_MS * BT_NS_PER_MS,
                               .is_running = true};
    sock->data = linger;
    h2o_linklist_insert(&http->lingers, &linger->link);
    h2o_buffer_consume(&sock->input, sock->input->size);
    h2o_socket_read_start(sock, on_lingered);
}

static void end_lingers(gw_http *http, int64_t now_ns) {
    for (h2o_linklist_t *at = http->lingers.next, *next; at != &http->lingers; at = next) {
        next = at->next;
        gw_http_linger *linger = H2O_STRUCT_FROM_MEMBER(gw_http_linger, link, at);
        if (now_ns >= linger->deadline_ns) linger_end(linger);
    }
}

void gw_http_linger_end_all(gw_http *http) { end_lingers(http, INT64_MAX); }

/* ---- h2o's own refusals ---------------------------------------------------------------------------------------------
 */

/* Replaces the body of an error that h2o made (413, a broken body) by an error object, then lingers. */
typedef struct {
    h2o_ostream_t super; /* first */
    gw_http_linger linger;
    h2o_req_t *req;
    gw_http *http;
    bool is_answered;
    bt_buf body;
} refusal;

static void refusal_finish(gw_http_linger *linger) {
    refusal *r = H2O_STRUCT_FROM_MEMBER(refusal, linger, linger);
    h2o_ostream_send_next(&r->super, r->req, NULL, 0, H2O_SEND_STATE_FINAL); /* closes the connection: frees r */
}

/* Called with h2o's own body, and again when ours is written. */
static void refusal_send(h2o_ostream_t *ostream, h2o_req_t *req, h2o_iovec_t *bufs, size_t n_bufs,
                         h2o_send_state_t state) {
    (void)bufs;
    (void)n_bufs;
    refusal *r = (refusal *)ostream;
    bool is_http1 = req->version < 0x200;
    if (!r->is_answered) {
        r->is_answered = true;
        h2o_iovec_t vec = h2o_iovec_init(r->body.bytes, r->body.n_bytes);
        h2o_ostream_send_next(ostream, req, &vec, 1, is_http1 ? H2O_SEND_STATE_IN_PROGRESS : state);
        return;
    }
    h2o_socket_t *sock = gw_http_socket(req);
    shutdown(h2o_socket_get_fd(sock), SHUT_WR); /* the client need not wait for the linger's end */
    gw_http_linger_start(r->http, &r->linger, sock, refusal_finish);
}

static void refusal_dispose(void *memory) {
    refusal *r = memory;
    if (r->linger.is_running) h2o_linklist_unlink(&r->linger.link);
    bt_buf_fini(&r->body);
}

static void allow_origin(const gw_http *http, h2o_req_t *req) {
    ssize_t at = h2o_find_header_by_str(&req->headers, H2O_STRLIT("origin"), -1);
    h2o_iovec_t origin = at == -1 ? h2o_iovec_init(NULL, 0) : req->headers.entries[at].value;
    char allowed[GW_HTTP_CAP_ORIGIN];
    if (!http->config.allow_origin(http->config.context, origin.base, origin.len, allowed)) return;
    h2o_iovec_t copy = h2o_strdup(&req->pool, allowed, SIZE_MAX);
    h2o_add_header_by_str(&req->pool, &req->res.headers, H2O_STRLIT("access-control-allow-origin"), 1, NULL, copy.base,
                          copy.len);
}

static void on_setup_ostream(h2o_filter_t *self, h2o_req_t *req, h2o_ostream_t **slot) {
    (void)self;
    if (gw_http_exchange_is_ours(req)) {
        h2o_setup_next_ostream(req, slot);
        return;
    }
    gw_http *http = H2O_STRUCT_FROM_MEMBER(gw_http, context, req->conn->ctx);
    refusal *r = h2o_mem_alloc_shared(&req->pool, sizeof *r, refusal_dispose);
    memset(r, 0, sizeof *r);
    r->super.do_send = refusal_send;
    r->req = req;
    r->http = http;
    gw_error error;
    if (req->res.status == 413) {
        gw_fail(&error, 413, "", "The request body is over the limit of %llu bytes.",
                (unsigned long long)http->config.body_limit_bytes);
    } else {
        gw_fail(&error, req->res.status, "", "The HTTP request could not be read: %s.",
                req->res.status == 417 ? "unknown expectation" : "broken headers or body framing");
    }
    gw_error_write(&error, &r->body);
    memset(&req->res.headers, 0, sizeof req->res.headers);
    h2o_add_header(&req->pool, &req->res.headers, H2O_TOKEN_CONTENT_TYPE, NULL, H2O_STRLIT("application/json"));
    allow_origin(http, req);
    req->res.content_length = r->body.n_bytes;
    req->http1_is_persistent = 0;
    http->config.on_answered(http->config.context, req->res.status);
    r->super.next = *slot;
    *slot = &r->super;
    h2o_setup_next_ostream(req, &r->super.next);
}

void gw_http_guard_register(gw_http *http, h2o_pathconf_t *path) {
    (void)http;
    h2o_filter_t *filter = h2o_create_filter(path, sizeof *filter);
    filter->on_setup_ostream = on_setup_ostream;
}

void gw_http_guard_tick(gw_http *http, int64_t now_ns) {
    sweep_exchanges(http, now_ns);
    end_lingers(http, now_ns);
    if (now_ns - http->last_slow_sweep_ns < (int64_t)SLOW_SWEEP_MS * BT_NS_PER_MS) return;
    http->last_slow_sweep_ns = now_ns;
    gw_http_head_tick(http, now_ns);
    http->global.http1.callbacks.foreach_request(&http->context, drop_if_slow, http);
}
