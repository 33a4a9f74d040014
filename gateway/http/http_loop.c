/* The loop: h2o's event loop, the listener, ticks, and descriptors of others (Redis, the links' queue). Knows nothing
 * of what is asked or answered. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/core/log.h"
#include "gateway/http/http_internal.h"

#ifdef __SANITIZE_ADDRESS__ /* what h2o 2.2.5 does not free at a thread's and a context's end, a few KiB per loop */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:h2o_mem_alloc_recycle\nleak:h2o_multithread_create_queue\n";
}
#endif

#define ACCEPTS_PER_WAKE 16
#define BACKLOG          4096
#define FULL_LOG_MS      1000 /* without a shortage of descriptors; then the next one is told */

/* ---- listener -------------------------------------------------------------------------------------------------------
 */

/* A connection that cannot be accepted stays where it is, and the listener readable: do not look until the next tick.
 */
static void pause_accepting(gw_http *http) {
    const char *reason = strerror(errno);
    int64_t now_ns = bt_now_ns();
    if (now_ns - http->full_ns > (int64_t)FULL_LOG_MS * BT_NS_PER_MS)
        bt_log(BT_LOG_WARN, "http", "connections wait", "port=%u reason=\"%s\"", http->port, reason);
    http->full_ns = now_ns;
    http->is_full = true;
    h2o_socket_read_stop(http->listener);
}

static void on_accept(h2o_socket_t *listener, const char *err) {
    if (err != NULL) return;
    gw_http *http = listener->data;
    for (int i = 0; i < ACCEPTS_PER_WAKE; i++) {
        h2o_socket_t *sock = h2o_evloop_socket_accept(listener);
        if (sock == NULL && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) pause_accepting(http);
        if (sock == NULL) return;
        int on = 1; /* each event leaves at once */
        setsockopt(h2o_socket_get_fd(sock), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        gw_http_head_accept(http, sock);
    }
}

/* -1: errno says why. */
static int bind_address(const struct addrinfo *address, bool is_shared) {
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (is_shared) setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    if (bind(fd, address->ai_addr, address->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0) return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

/* SO_REUSEPORT would let two gateways share a port by mistake, each getting half of the connections. */
static int bind_first(const struct addrinfo *address) {
    int probe = bind_address(address, false);
    if (probe < 0) return -1;
    close(probe);
    return bind_address(address, true);
}

static bt_status open_listener(gw_http *http, bt_error *err) {
    char port[8];
    snprintf(port, sizeof port, "%u", http->config.port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *found = NULL;
    int code = getaddrinfo(http->config.host, port, &hints, &found);
    if (code != 0)
        return bt_fail(err, BT_BAD_REQUEST, "cannot resolve --host %s: %s", http->config.host, gai_strerror(code));
    int fd = http->config.is_first ? bind_first(found) : bind_address(found, true);
    int error = errno;
    freeaddrinfo(found);
    if (fd < 0)
        return bt_fail(err, BT_INTERNAL, "cannot listen on %s port %s: %s", http->config.host, port, strerror(error));
    struct sockaddr_storage bound = {0};
    socklen_t n_bound = sizeof bound;
    getsockname(fd, (struct sockaddr *)&bound, &n_bound);
    http->port = ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
                                                   : ((struct sockaddr_in *)&bound)->sin_port);
    http->listener = h2o_evloop_socket_create(http->context.loop, fd, H2O_SOCKET_FLAG_DONT_READ);
    http->listener->data = http;
    h2o_socket_read_start(http->listener, on_accept);
    return BT_OK;
}

static void unwatch(void *handle);

/* ---- loop -----------------------------------------------------------------------------------------------------------
 */

bt_status gw_http_open(const gw_http_config *config, gw_http **out, bt_error *err) {
    gw_http *http = bt_calloc(1, sizeof *http);
    http->config = *config;
    h2o_linklist_init_anchor(&http->exchanges);
    h2o_linklist_init_anchor(&http->dirty);
    h2o_linklist_init_anchor(&http->heads);
    h2o_linklist_init_anchor(&http->lingers);
    h2o_config_init(&http->global);
    http->global.server_name = h2o_iovec_init(H2O_STRLIT("baton"));
    http->global.max_request_entity_size = config->body_limit_bytes;
    http->global.http1.req_timeout = (uint64_t)config->idle_ms + config->read_ms; /* h2o has one timer for both */
    http->global.http1.upgrade_to_http2 = config->has_http2;
    http->global.http2.idle_timeout = config->idle_ms;
    h2o_hostconf_t *host = h2o_config_register_host(&http->global, h2o_iovec_init(H2O_STRLIT("default")), 65535);
    /* one path for everything: what h2o refuses by itself is answered through the fallback path too */
    gw_http_guard_register(http, &host->fallback_path);
    h2o_create_handler(&host->fallback_path, sizeof(h2o_handler_t))->on_req = gw_http_on_request;
    h2o_context_init(&http->context, h2o_evloop_create(), &http->global);
    http->accept.ctx = &http->context;
    http->accept.hosts = http->global.hosts;
    bt_status status = open_listener(http, err);
    if (status != BT_OK) {
        gw_http_close(http);
        return status;
    }
    *out = http;
    return BT_OK;
}

uint32_t gw_http_port(const gw_http *http) { return http->port; }

static void resume_accepting(gw_http *http) {
    if (!http->is_full) return;
    http->is_full = false;
    h2o_socket_read_start(http->listener, on_accept);
}

static void on_turn(h2o_timeout_entry_t *entry) {
    gw_http *http = H2O_STRUCT_FROM_MEMBER(gw_http, turn, entry);
    http->is_busy = http->config.on_turn(http->config.context);
    int64_t now_ns = bt_now_ns();
    if (now_ns - http->last_tick_ns >= (int64_t)GW_HTTP_TICK_MS * BT_NS_PER_MS) {
        http->last_tick_ns = now_ns;
        gw_http_guard_tick(http, now_ns);
        resume_accepting(http);
        http->config.on_tick(http->config.context);
        http->is_busy = true; /* what it said leaves in the next turn */
    }
    gw_http_flush_dirty(http);
}

/* Our part of a turn is a timer that is due at once: h2o 2.2.5 must not be written to outside of its own turn, or it
 * finds a socket writable, later, of which nobody waits for that any more, and aborts. */
void gw_http_run(gw_http *http) {
    http->turn.cb = on_turn;
    while (!http->is_stopped) {
        if (!http->is_busy) h2o_evloop_run(http->context.loop, GW_HTTP_TICK_MS); /* -1 on EINTR: look, then again */
        if (h2o_timeout_is_linked(&http->turn)) h2o_timeout_unlink(&http->turn); /* the clock went back */
        h2o_timeout_link(http->context.loop, &http->context.zero_timeout, &http->turn);
        h2o_evloop_run(http->context.loop, 0);
    }
    if (h2o_timeout_is_linked(&http->turn)) h2o_timeout_unlink(&http->turn);
}

void gw_http_stop(gw_http *http) { http->is_stopped = true; }
void gw_http_drain(gw_http *http) { h2o_context_request_shutdown(&http->context); }

uint32_t gw_http_n_exchanges(const gw_http *http) { return http->n_exchanges; }

static int cut_connection(h2o_req_t *req, void *arg) {
    (void)arg;
    int fd = gw_http_socket_fd(req);
    if (fd >= 0) shutdown(fd, SHUT_RDWR);
    return 0;
}

/* h2o ends a connection only from within its loop: cut them all and let it notice. false: some would not end. */
static bool end_connections(gw_http *http) {
    for (h2o_linklist_t *at = http->exchanges.next; at != &http->exchanges; at = at->next)
        H2O_STRUCT_FROM_MEMBER(gw_http_exchange, link, at)->user = NULL;
    const h2o_linklist_t *http1 = &http->context.http1._conns, *http2 = &http->context.http2._conns;
    for (int turn = 0; turn < 20; turn++) {
        if (h2o_linklist_is_empty((h2o_linklist_t *)http1) && h2o_linklist_is_empty((h2o_linklist_t *)http2))
            return true;
        http->global.http1.callbacks.foreach_request(&http->context, cut_connection, NULL);
        for (h2o_linklist_t *at = http->exchanges.next, *next; at != &http->exchanges; at = next) {
            next = at->next;
            gw_http_exchange_drop(H2O_STRUCT_FROM_MEMBER(gw_http_exchange, link, at));
        }
        h2o_evloop_run(http->context.loop, 5);
    }
    return false;
}

void gw_http_close(gw_http *http) {
    if (http == NULL) return;
    while (http->watches != NULL) unwatch(http->watches);
    if (http->listener != NULL) {
        h2o_socket_read_stop(http->listener);
        h2o_socket_close(http->listener);
    }
    gw_http_head_close_all(http);
    gw_http_linger_end_all(http);
    bool is_empty = end_connections(http);
    free(http->polls);
    free(http->polled);
    if (!is_empty) return; /* h2o's memory cannot be taken from under live connections; the process ends now */
    h2o_timeout_unlink(&http->context.http2._graceful_shutdown_timeout);
    h2o_loop_t *loop = http->context.loop;
    h2o_context_dispose(&http->context);
    h2o_evloop_run(loop, 0); /* frees the sockets closed above */
    h2o_evloop_destroy(loop);
    h2o_config_dispose(&http->global);
    free(http);
}

/* ---- descriptors of others ------------------------------------------------------------------------------------------
 */

/* h2o owns the descriptors of its sockets: each watch has a duplicate. */
struct gw_http_watched {
    gw_http_watched *next, **at; /* in http->watches */
    h2o_socket_t *sock;
    reg_ready ready;
    void *arg;
    bool wants_read, wants_write, is_dead;
    uint32_t n_callbacks; /* running: the owner may unwatch inside its own callback */
};

static void watched_free(gw_http_watched *w) {
    *w->at = w->next;
    if (w->next != NULL) w->next->at = w->at;
    h2o_socket_read_stop(w->sock);
    h2o_socket_close(w->sock);
    free(w);
}

static void watched_leave(gw_http_watched *w) {
    if (--w->n_callbacks == 0 && w->is_dead) watched_free(w);
}

static void watched_on_read(h2o_socket_t *sock, const char *err) {
    (void)err; /* DONT_READ: always NULL, the bytes are still in the kernel */
    gw_http_watched *w = sock->data;
    w->n_callbacks++;
    w->ready.on_readable(w->arg);
    watched_leave(w);
}

static void watched_on_write(h2o_socket_t *sock, const char *err) {
    (void)err;
    gw_http_watched *w = sock->data;
    if (!w->wants_write || w->is_dead) return; /* the notice cannot be cancelled */
    w->n_callbacks++;
    w->ready.on_writable(w->arg);
    if (w->wants_write && !w->is_dead && !h2o_socket_is_writing(sock))
        h2o_socket_notify_write(sock, watched_on_write); /* one-shot: again */
    watched_leave(w);
}

static void *watch(void *context, int fd, const reg_ready *ready, void *arg) {
    gw_http *http = context;
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0) return NULL;
    gw_http_watched *w = bt_calloc(1, sizeof *w);
    w->ready = *ready;
    w->arg = arg;
    w->sock = h2o_evloop_socket_create(http->context.loop, copy, H2O_SOCKET_FLAG_DONT_READ);
    w->sock->data = w;
    w->next = http->watches;
    w->at = &http->watches;
    if (w->next != NULL) w->next->at = &w->next;
    http->watches = w;
    return w;
}

static void want_read(void *handle, bool on) {
    gw_http_watched *w = handle;
    if (on == w->wants_read) return;
    w->wants_read = on;
    if (on) {
        h2o_socket_read_start(w->sock, watched_on_read);
    } else {
        h2o_socket_read_stop(w->sock);
    }
}

static void want_write(void *handle, bool on) {
    gw_http_watched *w = handle;
    w->wants_write = on;
    if (on && !h2o_socket_is_writing(w->sock)) h2o_socket_notify_write(w->sock, watched_on_write);
}

static void unwatch(void *handle) {
    gw_http_watched *w = handle;
    w->is_dead = true;
    w->wants_read = w->wants_write = false;
    h2o_socket_read_stop(w->sock);
    if (w->n_callbacks == 0) watched_free(w);
}

reg_loop gw_http_reg_loop(gw_http *http) {
    return (reg_loop){
        .context = http, .watch = watch, .want_read = want_read, .want_write = want_write, .unwatch = unwatch};
}

static void on_wakeup(void *arg) { (void)arg; /* the turn that follows looks */ }

bt_status gw_http_wake_on(gw_http *http, int fd, bt_error *err) {
    static const reg_ready wakes = {.on_readable = on_wakeup};
    void *w = watch(http, fd, &wakes, NULL);
    if (w == NULL) return bt_fail(err, BT_INTERNAL, "cannot watch a descriptor: %s", strerror(errno));
    want_read(w, true);
    return BT_OK;
}
