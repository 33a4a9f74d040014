/* TLS's handshake, and the first request head of a connection, read before h2o gets the socket: h2o 2.2.5 takes 408 KiB
 * and 100 headers and refuses more, and whatever is not HTTP, by a bare text. Here these are error objects: 431, 400,
 * 408. Only looks; parsing is h2o's, and later requests of the connection are read by it alone, with its own limits. */
#include <string.h>
#include <sys/socket.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "gateway/api/api_error.h"
#include "gateway/http/http_framing.h"
#include "gateway/http/http_internal.h"
#include "gateway/http/tls.h"

enum { MAX_HEADER_LINES = 100 }; /* h2o's */

typedef struct {
    gw_http_linger linger; /* first */
    h2o_linklist_t link;   /* in http->heads until handed over or refused */
    gw_http *http;
    h2o_socket_t *sock;
    int64_t accepted_ns, first_byte_ns; /* 0: none yet */
    size_t n_scanned;
    uint32_t n_lines;
    size_t n_blank;  /* bytes of the current line so far, without CR */
    bool is_started; /* something else than line ends was seen */
    bool is_shaking; /* hands, with TLS: the socket is h2o's to read */
    bt_buf answer;
} head;

static void head_free(head *h) {
    if (h2o_linklist_is_linked(&h->link)) h2o_linklist_unlink(&h->link);
    bt_buf_fini(&h->answer);
    free(h);
}

static void close_socket(head *h) {
    h2o_socket_t *sock = h->sock;
    head_free(h);
    h2o_socket_read_stop(sock);
    h2o_socket_close(sock);
}

static void on_lingered(gw_http_linger *linger) { close_socket((head *)linger); }

static void on_refusal_sent(h2o_socket_t *sock, const char *err) {
    head *h = sock->data;
    if (err != NULL) {
        close_socket(h);
        return;
    }
    shutdown(h2o_socket_get_fd(sock), SHUT_WR);
    gw_http_linger_start(h->http, &h->linger, sock, on_lingered);
}

static void refuse(head *h, const gw_error *error, const char *reason) {
    h2o_linklist_unlink(&h->link);
    h2o_socket_read_stop(h->sock);
    bt_buf body = {0};
    gw_error_write(error, &body);
    bt_buf_printf(
        &h->answer,
        "HTTP/1.1 %d %s\r\nconnection: close\r\ncontent-type: application/json\r\n%scontent-length: %zu\r\n\r\n",
        error->http_status, reason, gw_http_any_origin(h->http), body.n_bytes);
    bt_buf_put(&h->answer, body.bytes, body.n_bytes);
    bt_buf_fini(&body);
    h->http->config.on_answered(h->http->config.context, error->http_status);
    h2o_iovec_t vec = h2o_iovec_init(h->answer.bytes, h->answer.n_bytes);
    h2o_socket_write(h->sock, &vec, 1, on_refusal_sent);
}

static void refuse_size(head *h) {
    gw_error error;
    gw_fail(&error, 431, "", "The request's headers are over the limit of %llu bytes or %d lines.",
            (unsigned long long)h->http->config.header_limit_bytes, MAX_HEADER_LINES);
    refuse(h, &error, "Request Header Fields Too Large");
}

static void refuse_protocol(head *h, const char *fault) {
    gw_error error;
    gw_fail(&error, 400, "", "The HTTP request could not be read: %s.", fault);
    refuse(h, &error, "Bad Request");
}

/* The request line ends in " HTTP/1.x"; h2o checks the rest. With HTTP/2 on, its preface passes too. */
static bool is_request_line(const gw_http *http, const char *line, size_t n) {
    if (n > 0 && line[n - 1] == '\r') n--;
    if (n >= 14 && memcmp(line + n - 9, " HTTP/1.", 8) == 0 && line[n - 1] >= '0' && line[n - 1] <= '9') return true;
    return http->config.has_http2 && n == 14 && memcmp(line, "PRI * HTTP/2.0", 14) == 0;
}

typedef enum { HEAD_MORE, HEAD_COMPLETE, HEAD_TOO_LARGE, HEAD_NOT_HTTP } head_state;

/* Goes through the bytes that are new. */
static head_state scan(head *h) {
    const h2o_buffer_t *input = h->sock->input;
    for (; h->n_scanned < input->size; h->n_scanned++) {
        char byte = input->bytes[h->n_scanned];
        if (byte != '\n') {
            if (byte != '\r') h->n_blank++;
            continue;
        }
        if (h->n_blank == 0 && h->is_started) return HEAD_COMPLETE;
        if (h->n_blank == 0) continue; /* empty lines in front of a request are allowed */
        const char *line = input->bytes + h->n_scanned - h->n_blank;
        if (!h->is_started) {
            while (line > input->bytes && line[-1] != '\n') line--; /* CRs were not counted */
            if (!is_request_line(h->http, line, (size_t)(input->bytes + h->n_scanned - line))) return HEAD_NOT_HTTP;
        }
        h->is_started = true;
        h->n_blank = 0;
        if (++h->n_lines > MAX_HEADER_LINES + 1) return HEAD_TOO_LARGE;
        if (h->n_scanned > h->http->config.header_limit_bytes) return HEAD_TOO_LARGE;
    }
    return input->size > h->http->config.header_limit_bytes ? HEAD_TOO_LARGE : HEAD_MORE;
}

static void on_read(h2o_socket_t *sock, const char *err) {
    head *h = sock->data;
    if (err != NULL) {
        close_socket(h);
        return;
    }
    if (h->first_byte_ns == 0 && sock->input->size > 0) h->first_byte_ns = bt_now_ns();
    switch (scan(h)) {
    case HEAD_MORE:
        return;
    case HEAD_TOO_LARGE:
        refuse_size(h);
        return;
    case HEAD_NOT_HTTP:
        refuse_protocol(h, "this is not HTTP/1");
        return;
    case HEAD_COMPLETE:
        break;
    }
    bool is_chunked;
    const char *fault = gw_http_framing_fault(sock->input->bytes, sock->input->size, &is_chunked);
    if (fault != NULL) {
        refuse_protocol(h, fault);
        return;
    }
    gw_http *http = h->http;
    head_free(h);
    h2o_socket_read_stop(sock);
    h2o_accept(&http->accept, sock); /* finds what was read in sock->input */
}

static struct timeval now_of_day(void) {
    struct timeval now;
    gettimeofday(&now, NULL);
    return now;
}

static void on_handshake(h2o_socket_t *sock, const char *err) {
    head *h = sock->data;
    gw_http *http = h->http;
    h->is_shaking = false;
    h->accepted_ns = bt_now_ns();
    if (err != NULL) {
        close_socket(h);
        return;
    }
    h2o_iovec_t protocol = h2o_socket_ssl_get_selected_protocol(sock);
    if (h2o_memis(protocol.base, protocol.len, H2O_STRLIT("h2"))) {
        head_free(h);
        h2o_http2_accept(&http->accept, sock, now_of_day());
        return;
    }
    h2o_socket_read_start(sock, on_read);
    if (sock->input->size > 0) on_read(sock, NULL); /* it came with the handshake's last bytes */
}

void gw_http_head_accept(gw_http *http, h2o_socket_t *sock) {
    head *h = bt_calloc(1, sizeof *h);
    h->http = http;
    h->sock = sock;
    h->accepted_ns = bt_now_ns();
    h2o_linklist_insert(&http->heads, &h->link);
    sock->data = h;
    if (http->config.tls == NULL) {
        h2o_socket_read_start(sock, on_read);
        return;
    }
    h->is_shaking = true;
    h2o_socket_ssl_handshake(sock, gw_tls_context(http->config.tls), NULL, on_handshake);
}

void gw_http_head_tick(gw_http *http, int64_t now_ns) {
    for (h2o_linklist_t *at = http->heads.next, *next; at != &http->heads; at = next) {
        next = at->next;
        head *h = H2O_STRUCT_FROM_MEMBER(head, link, at);
        bool is_late = now_ns - h->accepted_ns > (int64_t)http->config.read_ms * BT_NS_PER_MS;
        if (h->is_shaking) {
            if (is_late) close_socket(h);
        } else if (h->first_byte_ns == 0 && now_ns - h->accepted_ns > (int64_t)http->config.idle_ms * BT_NS_PER_MS) {
            close_socket(h);
        } else if (h->first_byte_ns > 0 && now_ns - h->first_byte_ns > (int64_t)http->config.read_ms * BT_NS_PER_MS) {
            gw_error error;
            gw_fail(&error, 408, "", "The request did not arrive completely within %u ms.", http->config.read_ms);
            refuse(h, &error, "Request Timeout");
        }
    }
}

void gw_http_head_close_all(gw_http *http) {
    while (!h2o_linklist_is_empty(&http->heads)) close_socket(H2O_STRUCT_FROM_MEMBER(head, link, http->heads.next));
}
