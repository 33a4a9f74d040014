/* Logs: one event per line on stderr, `time level module message key=value ...`, one write(2) per line.
 *
 *     bt_log(BT_LOG_INFO, "kvt", "endpoint open", "peer=%s transport=%s", name, transport);
 *
 * Messages are lower case; values that may hold spaces are quoted by the caller ("text=\"%s\""). A request is always
 * req=, a worker always worker=, so that one grep follows a request across processes. Prompts, outputs and keys are
 * never logged. Any thread may log. */
#ifndef BATON_COMMON_CORE_LOG_H
#define BATON_COMMON_CORE_LOG_H

#include "common/core/status.h"

typedef enum { BT_LOG_DEBUG, BT_LOG_INFO, BT_LOG_WARN, BT_LOG_ERROR } bt_log_level;

/* Lines below `level` are dropped. Default: info. */
void bt_log_set_level(bt_log_level level);

/* "debug", "info", "warn", "error". BT_BAD_REQUEST: none of them. */
bt_status bt_log_parse_level(const char *name, bt_log_level *out, bt_error *err);

/* `fields` may be "" but not NULL. Control characters in the result are written as '?', so a line stays a line. */
void bt_log(bt_log_level level, const char *module, const char *message, const char *fields, ...)
    __attribute__((format(printf, 4, 5)));

/* Says an error once: `error module message status=... text="..."`. */
void bt_log_error(const char *module, const char *message, const bt_error *err);

#endif
