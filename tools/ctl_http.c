/* Plain sockets and poll(2), as at the other end. */
#include "tools/ctl_http.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/core/address.h"
#include "common/core/clock.h"

enum { MAX_HEAD_BYTES = 8192, MAX_SLEEP_MS = 60000 };

typedef struct {
    const char *address; /* for sentences */
    int fd;
    int64_t deadline_ns;
} http_conn;

static bt_status wait_for(const http_conn *conn, short events, bt_error *err) {
    for (;;) {
        int64_t left_ms = (conn->deadline_ns - bt_now_ns()) / BT_NS_PER_MS;
        struct pollfd fd = {.fd = conn->fd, .events = events};
        if (left_ms <= 0) return bt_fail(err, BT_TIMEOUT, "%s does not answer in time", conn->address);
        if (poll(&fd, 1, left_ms < MAX_SLEEP_MS ? (int)left_ms : MAX_SLEEP_MS) > 0) return BT_OK;
    }
}

static bt_status lost(const http_conn *conn, int code, bt_error *err) {
    return bt_fail(err, BT_PEER_LOST, "%s does not answer: %s", conn->address, strerror(code));
}

static bt_status dial(http_conn *conn, bt_error *err) {
    char host[256], number[8];
    uint32_t port = 0;
    bt_status status = bt_address_split(conn->address, host, sizeof(host), &port, err);
    if (status != BT_OK) return status;
    snprintf(number, sizeof(number), "%u", port);
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    int code = getaddrinfo(host, number, &hints, &found);
    if (code != 0) return bt_fail(err, BT_BAD_REQUEST, "%s: %s", conn->address, gai_strerror(code));
    conn->fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool is_begun =
        conn->fd >= 0 && (connect(conn->fd, found->ai_addr, found->ai_addrlen) == 0 || errno == EINPROGRESS);
    int failed = errno;
    freeaddrinfo(found);
    if (!is_begun) return lost(conn, failed, err);
    status = wait_for(conn, POLLOUT, err);
    socklen_t n_bytes = sizeof(failed);
    if (status == BT_OK && getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &failed, &n_bytes) == 0 && failed != 0)
        status = lost(conn, failed, err);
    return status;
}

static bt_status ask(const http_conn *conn, const char *path, bt_error *err) {
    char request[512];
    int n_bytes = snprintf(request, sizeof(request), "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", path, conn->address);
    BT_ASSERT(n_bytes < (int)sizeof(request));
    for (int n_sent = 0; n_sent < n_bytes;) {
        ssize_t n = send(conn->fd, request + n_sent, (size_t)(n_bytes - n_sent), MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN && errno != EINTR) return lost(conn, errno, err);
        if (n > 0) n_sent += (int)n;
        bt_status status = n_sent < n_bytes ? wait_for(conn, POLLOUT, err) : BT_OK;
        if (status != BT_OK) return status;
    }
    return BT_OK;
}

/* Everything until the other side closes. */
static bt_status receive(const http_conn *conn, size_t max_bytes, bt_buf *answer, bt_error *err) {
    char piece[16384];
    for (;;) {
        bt_status status = wait_for(conn, POLLIN, err);
        if (status != BT_OK) return status;
        ssize_t n = recv(conn->fd, piece, sizeof(piece), 0);
        if (n == 0) return BT_OK;
        if (n < 0 && errno != EAGAIN && errno != EINTR) return lost(conn, errno, err);
        if (n > 0) bt_buf_put(answer, piece, (size_t)n);
        if (answer->n_bytes > max_bytes)
            return bt_fail(err, BT_BAD_REQUEST, "%s answers with more than %zu bytes", conn->address, max_bytes);
    }
}

/* Checks the head and drops it. */
static bt_status body_take(const char *address, bt_buf *answer, bt_error *err) {
    static const char length_name[] = "\r\nContent-Length: ";
    const char *text = bt_buf_text(answer), *end = strstr(text, "\r\n\r\n");
    if (end == NULL || end - text > MAX_HEAD_BYTES || strncmp(text, "HTTP/1.", 7) != 0 || text[7] == 0 ||
        text[8] != ' ')
        return bt_fail(err, BT_BAD_REQUEST, "%s does not speak HTTP", address);
    if (strncmp(text + 9, "200 ", 4) != 0)
        return bt_fail(err, BT_BAD_REQUEST, "%s answers with HTTP status %d", address, (int)strtol(text + 9, NULL, 10));
    size_t n_body = answer->n_bytes - (size_t)(end + 4 - text);
    const char *length = strcasestr(text, length_name);
    if (length == NULL || length >= end || strtoull(length + strlen(length_name), NULL, 10) != n_body)
        return bt_fail(err, BT_BAD_REQUEST, "%s does not send as many bytes as it says", address);
    bt_buf_consume(answer, answer->n_bytes - n_body);
    return BT_OK;
}

bt_status ctl_http_get(const char *address, const char *path, uint32_t timeout_ms, size_t max_bytes, bt_buf *body,
                       bt_error *err) {
    http_conn conn = {address, -1, bt_now_ns() + (int64_t)timeout_ms * BT_NS_PER_MS};
    bt_buf_clear(body);
    bt_status status = dial(&conn, err);
    if (status == BT_OK) status = ask(&conn, path, err);
    if (status == BT_OK) status = receive(&conn, max_bytes + MAX_HEAD_BYTES, body, err);
    if (status == BT_OK) status = body_take(address, body, err);
    if (conn.fd >= 0) close(conn.fd);
    return status;
}
