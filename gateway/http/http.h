/* HTTP for one thread: a listener, an event loop, and exchanges (a request and its answer). The only module that knows
 * h2o; no h2o type leaves http_*.c, so that it can be swapped. OpenSSL's handshake is h2o's,
 * its context gateway/http/tls.h's.
 *
 * What it sees to by itself: a client that leaves is noticed within two ticks in every phase (HTTP/1 of this h2o reads
 * nothing while an answer is pending, so a sweep asks the kernel); a client that does not read, or that does not finish
 * its request, is dropped; bodies and headers have limits; what h2o itself refuses is said as an error object too; one
 * write in flight per answer, later bytes wait in a bounded buffer; without a descriptor left, connections wait. */
#ifndef BATON_GATEWAY_HTTP_HTTP_H
#define BATON_GATEWAY_HTTP_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/core/status.h"
#include "common/registry/registry.h"

typedef struct gw_http gw_http;                   /* one thread's loop */
typedef struct gw_http_exchange gw_http_exchange; /* valid until it is answered, or its on_gone was called */

enum { GW_HTTP_TICK_MS = 50, GW_HTTP_CAP_ORIGIN = 256 };

typedef struct {
    const char *host; /* IPv4 or IPv6 address, or a name that resolves to one */
    uint32_t port;    /* 0: the system chooses; see gw_http_port() */
    bool is_first;    /* of this process' loops: a port that another process listens on is refused, not shared */
    uint64_t body_limit_bytes, header_limit_bytes;
    uint32_t idle_ms;           /* keep-alive connections without a request */
    uint32_t read_ms;           /* from a request's first byte to its last, then 408; and for a TLS handshake */
    uint32_t write_ms;          /* without progress of a write: the client does not read */
    uint64_t cap_pending_bytes; /* of one answer, waiting to be written */
    bool has_http2;             /* HTTP/2 without TLS too (prior knowledge and Upgrade) */
    const struct gw_tls *tls;   /* borrowed; NULL: plain text */
    void *context;
    /* All on the loop's thread. */
    void (*on_request)(void *context, gw_http_exchange *exchange); /* the body is complete */
    void (*on_answered)(void *context, int status);                /* a status line is on its way, for metrics */
    /* CORS of what is refused here: as gw_access_origin(). */
    bool (*allow_origin)(void *context, const char *origin, size_t n_bytes, char out[GW_HTTP_CAP_ORIGIN]);
    bool (*on_turn)(void *context); /* after each turn of the loop; true: have the next one without sleeping */
    void (*on_tick)(void *context); /* every GW_HTTP_TICK_MS */
} gw_http_config;

/* Binds and listens (SO_REUSEPORT: several loops share a port). BT_BAD_REQUEST: no such host. BT_INTERNAL: the
 * address is taken, ... Open in one thread, one after another; then run each in its own. */
bt_status gw_http_open(const gw_http_config *config, gw_http **out, bt_error *err);
uint32_t gw_http_port(const gw_http *http);
void gw_http_run(gw_http *http);   /* until gw_http_stop() */
void gw_http_stop(gw_http *http);  /* on the loop's thread */
void gw_http_drain(gw_http *http); /* on the loop's thread: answers say `Connection: close` from now on */
uint32_t gw_http_n_exchanges(const gw_http *http); /* requests whose answer is not written to its end */
void gw_http_close(
    gw_http *http); /* after gw_http_run() returned; connections are cut, without on_gone. NULL is fine */

/* While fd is readable the loop does not sleep; on_turn() takes what is there. Borrows fd. */
bt_status gw_http_wake_on(gw_http *http, int fd, bt_error *err);

/* The same loop in the registry's words; valid as long as `http`. */
reg_loop gw_http_reg_loop(gw_http *http);

/* ---- the request --------------------------------------------------------------------------------------------------
 */

typedef struct {
    const char *bytes; /* not NUL-terminated; valid until the exchange is answered */
    size_t n_bytes;
} gw_http_text;

gw_http_text gw_http_method(const gw_http_exchange *exchange);
gw_http_text gw_http_path(const gw_http_exchange *exchange); /* percent-decoded, without the query */
gw_http_text gw_http_body(const gw_http_exchange *exchange); /* the bytes may be changed in place */
gw_http_text gw_http_header(const gw_http_exchange *exchange, const char *lower_case_name); /* {NULL, 0}: absent */
const char *gw_http_fault(const gw_http_exchange *exchange); /* of its framing, in words; NULL: none. To be refused */
uint64_t gw_http_header_bytes(const gw_http_exchange *exchange);
int64_t gw_http_arrival_ns(const gw_http_exchange *exchange); /* its first byte, on bt_now_ns()'s clock */
bool gw_http_is(gw_http_text text, const char *want);         /* exact */

/* Who wants to know when the client leaves before the answer is complete. on_gone is called at most once and never
 * after gw_http_reply(), gw_http_stream_end() or gw_http_stream_abort(). */
void gw_http_set_user(gw_http_exchange *exchange, void *user, void (*on_gone)(void *user));

/* ---- the answer ---------------------------------------------------------------------------------------------------
 */

/* Before the status goes out. Copies both. Values with bytes outside printable ASCII are dropped. */
void gw_http_add_header(gw_http_exchange *exchange, const char *lower_case_name, const char *value);

/* A whole answer; ends the exchange. HEAD gets no body. */
void gw_http_reply(gw_http_exchange *exchange, int status, const char *content_type, const void *body, size_t n_bytes);

/* Or: begin, then writes, then end or abort. Nothing reaches the client before the first write. Each write holds whole
 * events; those of one turn of the loop leave together, and so do those that wait for a write in flight. */
void gw_http_stream_begin(gw_http_exchange *exchange, int status, const char *content_type);
void gw_http_stream_write(gw_http_exchange *exchange, const void *bytes, size_t n_bytes);
void gw_http_stream_end(gw_http_exchange *exchange);   /* ends the exchange after what is pending */
void gw_http_stream_abort(gw_http_exchange *exchange); /* drops the connection: a cut stream must not look whole */

#endif
