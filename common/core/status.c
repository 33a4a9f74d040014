#include "common/core/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

bt_status bt_fail(bt_error *err, bt_status status, const char *format, ...) {
    if (err == NULL) return status;
    err->status = status;
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof(err->text), format, args);
    va_end(args);
    return status;
}

const char *bt_status_name(bt_status status) {
    switch (status) {
    case BT_OK:
        return "ok";
    case BT_AGAIN:
        return "again";
    case BT_BAD_REQUEST:
        return "bad_request";
    case BT_NO_CAPACITY:
        return "no_capacity";
    case BT_TIMEOUT:
        return "timeout";
    case BT_PEER_LOST:
        return "peer_lost";
    case BT_CANCELED:
        return "canceled";
    case BT_INTERNAL:
        return "internal";
    }
    return "unknown";
}

void bt_assert_failed(const char *condition, const char *file, int line) {
    fprintf(stderr, "error core assertion failed condition=\"%s\" at=%s:%d\n", condition, file, line);
    abort();
}
