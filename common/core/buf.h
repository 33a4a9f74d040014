/* A growable byte buffer: for text being written (JSON, metrics, logs) and frames being put together.
 * One thread owns it. Starts empty: {0}. The bytes are not NUL-terminated unless bt_buf_text() is asked for them. */
#ifndef BATON_COMMON_CORE_BUF_H
#define BATON_COMMON_CORE_BUF_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint8_t *bytes; /* owned */
    size_t n_bytes, cap_bytes;
} bt_buf;

void bt_buf_reserve(bt_buf *buf, size_t more_bytes); /* room for that many without another allocation */
void bt_buf_put(bt_buf *buf, const void *bytes, size_t n_bytes);
void bt_buf_puts(bt_buf *buf, const char *text);
void bt_buf_printf(bt_buf *buf, const char *format, ...) __attribute__((format(printf, 2, 3)));
const char *bt_buf_text(bt_buf *buf);             /* the bytes with a NUL behind them; valid until the next change */
void bt_buf_consume(bt_buf *buf, size_t n_bytes); /* drops the first bytes */
void bt_buf_clear(bt_buf *buf);                   /* empty, memory kept */
void bt_buf_fini(bt_buf *buf);                    /* empty, memory freed */

#endif
