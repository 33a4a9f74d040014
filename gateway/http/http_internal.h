/* What http_loop.c (loop, listener, descriptors), http_head.c (first request heads), http_exchange.c (requests,
 * answers) and http_guard.c (leavers, slow clients, h2o's own refusals) share. */
#ifndef BATON_GATEWAY_HTTP_HTTP_INTERNAL_H
#define BATON_GATEWAY_HTTP_HTTP_INTERNAL_H

#define H2O_USE_LIBUV 0
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wstrict-prototypes"
#include <h2o.h>
#include <h2o/http1.h>
#include <h2o/http2.h>
#pragma GCC diagnostic pop
#include <poll.h>

#include "common/core/buf.h"
#include "gateway/http/http.h"

typedef struct gw_http_watched gw_http_watched;

enum { GW_HTTP_RESET_SLOTS = 64 };

struct gw_http {
    gw_http_config config;
    h2o_globalconf_t global; /* each loop has its own: nothing is shared */
    h2o_context_t context;
    h2o_accept_ctx_t accept;
    h2o_socket_t *listener;
    uint32_t port;
    bool is_full;    /* no descriptor is left: the listener is not read until the next tick */
    int64_t full_ns; /* when that was so last */
    bool is_stopped;
    bool is_busy;             /* the next turn does not sleep */
    h2o_timeout_entry_t turn; /* runs what is ours of a turn */
    h2o_linklist_t exchanges; /* of this loop, whole life */
    uint32_t n_exchanges;
    h2o_linklist_t dirty;     /* exchanges with something to write at the turn's end */
    gw_http_watched *watches; /* owned */
    h2o_linklist_t heads;     /* connections whose first request head is not complete */
    h2o_linklist_t lingers;   /* refused requests whose rest is being thrown away */
    struct pollfd *polls;     /* [cap_polls] scratch of the sweep */
    gw_http_exchange **polled;
    uint32_t cap_polls;
    int64_t last_tick_ns, last_slow_sweep_ns;
    struct {
        uint64_t connection;
        uint32_t n;
    } resets[GW_HTTP_RESET_SLOTS]; /* by connection; one that comes later takes a slot over */
};

struct gw_http_exchange {
    h2o_generator_t generator; /* first */
    h2o_req_t *req;
    gw_http *http;
    h2o_linklist_t link, dirty;
    void *user;
    void (*on_gone)(void *user);
    bt_buf pending, sending;
    const char *fault;   /* gw_http_fault() */
    bool is_started;     /* status and headers are decided */
    bool is_sending;     /* a write is in flight: `sending` must stay */
    bool is_ending;      /* end once pending is written */
    bool is_ended;       /* h2o has its last byte; the exchange waits for its disposal */
    bool is_lost;        /* the client left or is being dropped: nothing is written any more */
    int64_t progress_ns; /* when the write in flight began */
};

/* After a refusal: reads and throws away what the client still sends, for a bounded time. Closing at once would reset
 * the connection and take the answer along. */
typedef struct gw_http_linger {
    h2o_linklist_t link;
    h2o_socket_t *sock;
    void *sock_data;                             /* the owner's, put aside while we read */
    void (*done)(struct gw_http_linger *linger); /* sock->data is as before; may free the linger */
    uint64_t n_bytes;
    int64_t deadline_ns;
    bool is_running;
} gw_http_linger;

/* http_exchange.c */
int gw_http_on_request(h2o_handler_t *handler, h2o_req_t *req);
void gw_http_flush_dirty(gw_http *http);
void gw_http_exchange_drop(gw_http_exchange *exchange); /* tells the user, then cuts the connection; may free it */
bool gw_http_exchange_is_ours(const h2o_req_t *req);
h2o_socket_t *gw_http_socket(const h2o_req_t *req);
int gw_http_socket_fd(const h2o_req_t *req); /* -1: not HTTP/1 */

/* http_guard.c */
const char *gw_http_any_origin(const gw_http *http); /* a header line that lets any page read, or "" */
void gw_http_guard_register(gw_http *http, h2o_pathconf_t *path);
void gw_http_guard_tick(gw_http *http, int64_t now_ns);
void gw_http_linger_start(gw_http *http, gw_http_linger *linger, h2o_socket_t *sock,
                          void (*done)(gw_http_linger *linger));
void gw_http_linger_end_all(gw_http *http);

/* http_head.c */
void gw_http_head_accept(gw_http *http, h2o_socket_t *sock);
void gw_http_head_tick(gw_http *http, int64_t now_ns);
void gw_http_head_close_all(gw_http *http);

#endif
