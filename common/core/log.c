/* Formats one line into a stack buffer and writes it with one call, so lines of several threads never mix. */
#include "common/core/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static _Atomic int min_level = BT_LOG_INFO;
static const char *const level_names[] = {"debug", "info", "warn", "error"};

void bt_log_set_level(bt_log_level level) { atomic_store_explicit(&min_level, (int)level, memory_order_relaxed); }

bt_status bt_log_parse_level(const char *name, bt_log_level *out, bt_error *err) {
    for (int level = BT_LOG_DEBUG; level <= BT_LOG_ERROR; level++) {
        if (strcmp(name, level_names[level]) == 0) {
            *out = (bt_log_level)level;
            return BT_OK;
        }
    }
    return bt_fail(err, BT_BAD_REQUEST, "log level '%s' is none of debug, info, warn, error", name);
}

/* The wall clock as 2026-01-31T12:00:00.123Z: for people and for joining logs of several machines. */
static size_t put_time(char *out, size_t cap_bytes) {
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t n = strftime(out, cap_bytes, "%Y-%m-%dT%H:%M:%S", &utc);
    int more = snprintf(out + n, cap_bytes - n, ".%03ldZ", now.tv_nsec / 1000000);
    return n + (size_t)more;
}

void bt_log(bt_log_level level, const char *module, const char *message, const char *fields, ...) {
    if ((int)level < atomic_load_explicit(&min_level, memory_order_relaxed)) return;
    char line[1024];
    size_t n = put_time(line, sizeof(line));
    int more = snprintf(line + n, sizeof(line) - n, " %s %s %s ", level_names[level], module, message);
    n += (size_t)more < sizeof(line) - n ? (size_t)more : sizeof(line) - n - 1;
    va_list args;
    va_start(args, fields);
    more = vsnprintf(line + n, sizeof(line) - n, fields, args);
    va_end(args);
    if (more > 0) n += (size_t)more < sizeof(line) - n ? (size_t)more : sizeof(line) - n - 1;
    while (n > 0 && line[n - 1] == ' ') n--;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f) line[i] = '?';
    if (n == sizeof(line)) n--;
    line[n++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, n);
    (void)written; /* nowhere left to complain */
}

void bt_log_error(const char *module, const char *message, const bt_error *err) {
    bt_log(BT_LOG_ERROR, module, message, "status=%s text=\"%s\"", bt_status_name(err->status), err->text);
}
