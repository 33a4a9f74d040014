#include "common/core/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/status.h"

void bt_buf_reserve(bt_buf *buf, size_t more_bytes) {
    BT_ASSERT(more_bytes < SIZE_MAX / 4 - buf->n_bytes);
    size_t want_bytes = buf->n_bytes + more_bytes;
    if (want_bytes <= buf->cap_bytes) return;
    size_t cap_bytes = buf->cap_bytes < 64 ? 64 : buf->cap_bytes;
    while (cap_bytes < want_bytes) cap_bytes *= 2;
    buf->bytes = bt_realloc(buf->bytes, cap_bytes, 1);
    buf->cap_bytes = cap_bytes;
}

void bt_buf_put(bt_buf *buf, const void *bytes, size_t n_bytes) {
    if (n_bytes == 0) return;
    bt_buf_reserve(buf, n_bytes);
    memcpy(buf->bytes + buf->n_bytes, bytes, n_bytes);
    buf->n_bytes += n_bytes;
}

void bt_buf_puts(bt_buf *buf, const char *text) { bt_buf_put(buf, text, strlen(text)); }

void bt_buf_printf(bt_buf *buf, const char *format, ...) {
    bt_buf_reserve(buf, 128);
    for (;;) {
        size_t room = buf->cap_bytes - buf->n_bytes;
        va_list args;
        va_start(args, format);
        int n = vsnprintf((char *)buf->bytes + buf->n_bytes, room, format, args);
        va_end(args);
        BT_ASSERT(n >= 0);
        if ((size_t)n < room) {
            buf->n_bytes += (size_t)n;
            return;
        }
        bt_buf_reserve(buf, (size_t)n + 1);
    }
}

const char *bt_buf_text(bt_buf *buf) {
    bt_buf_reserve(buf, 1);
    buf->bytes[buf->n_bytes] = 0;
    return (const char *)buf->bytes;
}

void bt_buf_consume(bt_buf *buf, size_t n_bytes) {
    BT_ASSERT(n_bytes <= buf->n_bytes);
    memmove(buf->bytes, buf->bytes + n_bytes, buf->n_bytes - n_bytes);
    buf->n_bytes -= n_bytes;
}

void bt_buf_clear(bt_buf *buf) { buf->n_bytes = 0; }

void bt_buf_fini(bt_buf *buf) {
    free(buf->bytes);
    *buf = (bt_buf){0};
}
