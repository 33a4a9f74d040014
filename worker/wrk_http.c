/* Plain sockets and poll(2): small enough to need no HTTP library here. Owns its listener and thread. Reads the request
 * line, ignores the headers, answers, closes. */
#include "worker/wrk_http.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"

enum { MAX_REQUEST_BYTES = 8192, REQUEST_MS = 1000 };

struct wrk_http {
    wrk_http_config config;
    int listener, stop; /* stop: an eventfd, readable when the thread shall end */
    pthread_t thread;
    bool has_thread;
    _Atomic(const char *) trouble; /* any thread; NULL: none */
};

static bool wait_for(int fd, short events, int64_t deadline_ns) {
    int64_t left_ns = deadline_ns - bt_now_ns();
    struct pollfd poll_fd = {.fd = fd, .events = events};
    return left_ns > 0 && poll(&poll_fd, 1, (int)(left_ns / BT_NS_PER_MS) + 1) > 0;
}

/* Up to the empty line. false: too long, too slow or broken off. */
static bool request_read(int fd, int64_t deadline_ns, char *request, size_t cap_bytes) {
    size_t n_bytes = 0;
    request[0] = 0;
    while (strstr(request, "\r\n\r\n") == NULL && strstr(request, "\n\n") == NULL) {
        if (n_bytes + 1 == cap_bytes || !wait_for(fd, POLLIN, deadline_ns)) return false;
        ssize_t n = recv(fd, request + n_bytes, cap_bytes - 1 - n_bytes, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return false;
        if (n > 0) n_bytes += (size_t)n;
        request[n_bytes] = 0;
    }
    return true;
}

static void answer_write(int fd, int64_t deadline_ns, const bt_buf *answer) {
    size_t n_done = 0;
    while (n_done < answer->n_bytes) {
        ssize_t n = send(fd, answer->bytes + n_done, answer->n_bytes - n_done, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN && errno != EINTR) return;
        if (n > 0)
            n_done += (size_t)n;
        else if (!wait_for(fd, POLLOUT, deadline_ns))
            return;
    }
}

static bool is_path(const char *path, const char *page) {
    size_t n_bytes = strcspn(path, " ?\r\n");
    return n_bytes == strlen(page) && strncmp(path, page, n_bytes) == 0;
}

static void answer_make(wrk_http *http, const char *request, bt_buf *out) {
    const char *status = "200 OK", *type = "text/plain; version=0.0.4; charset=utf-8";
    bt_buf body = {0};
    bool is_get = strncmp(request, "GET ", 4) == 0;
    const char *path = is_get ? request + 4 : "";
    if (!is_get) {
        status = "405 Method Not Allowed";
        bt_buf_puts(&body, "only GET\n");
    } else if (is_path(path, "/metrics")) {
        bt_metrics_write(http->config.metrics, &body);
    } else if (is_path(path, "/experts")) {
        type = "application/json";
        http->config.write_experts(http->config.context, &body);
    } else if (is_path(path, "/health")) {
        const char *trouble = atomic_load(&http->trouble);
        if (trouble != NULL) status = "503 Service Unavailable";
        bt_buf_printf(&body, "%s\n", trouble != NULL ? trouble : "ok");
    } else {
        status = "404 Not Found";
        bt_buf_puts(&body, "only /metrics, /health and /experts\n");
    }
    bt_buf_printf(out, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n%s\r\n", status,
                  type, body.n_bytes, is_get ? "" : "Allow: GET\r\n");
    bt_buf_put(out, body.bytes, body.n_bytes);
    bt_buf_fini(&body);
}

static void serve_one(wrk_http *http) {
    int fd = accept4(http->listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) return;
    int64_t deadline_ns = bt_now_ns() + (int64_t)REQUEST_MS * BT_NS_PER_MS;
    char request[MAX_REQUEST_BYTES];
    if (request_read(fd, deadline_ns, request, sizeof(request))) {
        bt_buf answer = {0};
        answer_make(http, request, &answer);
        answer_write(fd, deadline_ns, &answer);
        bt_buf_fini(&answer);
    }
    close(fd);
}

static void *http_thread(void *context) {
    wrk_http *http = context;
    for (;;) {
        struct pollfd fds[] = {{.fd = http->listener, .events = POLLIN}, {.fd = http->stop, .events = POLLIN}};
        if (poll(fds, 2, -1) < 0) continue;
        if (fds[1].revents != 0) return NULL;
        if (fds[0].revents != 0) serve_one(http);
    }
}

static bt_status listener_open(const char *host, uint32_t port, int *out, bt_error *err) {
    char number[16];
    snprintf(number, sizeof(number), "%u", port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *found = NULL;
    int failed = getaddrinfo(host, number, &hints, &found);
    if (failed) return bt_fail(err, BT_BAD_REQUEST, "cannot serve HTTP on %s:%u: %s", host, port, gai_strerror(failed));
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), one = 1;
    if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    bool is_open = fd >= 0 && bind(fd, found->ai_addr, found->ai_addrlen) == 0 && listen(fd, 16) == 0;
    freeaddrinfo(found);
    if (is_open) {
        *out = fd;
        return BT_OK;
    }
    bt_status status = bt_fail(err, BT_INTERNAL, "cannot serve HTTP on %s:%u: %s", host, port, strerror(errno));
    if (fd >= 0) close(fd);
    return status;
}

bt_status wrk_http_open(const wrk_http_config *config, wrk_http **out, bt_error *err) {
    wrk_http *http = bt_calloc(1, sizeof(*http));
    http->config = *config;
    http->listener = http->stop = -1;
    atomic_store(&http->trouble, "starting");
    bt_status status = listener_open(config->host, config->port, &http->listener, err);
    if (status != BT_OK) goto fail;
    http->stop = eventfd(0, EFD_CLOEXEC);
    if (http->stop < 0 || pthread_create(&http->thread, NULL, http_thread, http) != 0) {
        status = bt_fail(err, BT_INTERNAL, "cannot start the HTTP thread");
        goto fail;
    }
    http->has_thread = true;
    *out = http;
    return BT_OK;
fail:
    wrk_http_close(http);
    return status;
}

void wrk_http_set_trouble(wrk_http *http, const char *trouble) { atomic_store(&http->trouble, trouble); }

void wrk_http_close(wrk_http *http) {
    if (http == NULL) return;
    if (http->has_thread) {
        uint64_t one = 1;
        ssize_t n = write(http->stop, &one, sizeof(one));
        (void)n;
        pthread_join(http->thread, NULL);
    }
    if (http->stop >= 0) close(http->stop);
    if (http->listener >= 0) close(http->listener);
    free(http);
}
