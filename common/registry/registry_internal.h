/* What the registry's own files share: worker checks and the small poll(2) loop. */
#ifndef BATON_COMMON_REGISTRY_REGISTRY_INTERNAL_H
#define BATON_COMMON_REGISTRY_REGISTRY_INTERNAL_H

#include "common/registry/registry.h"

bool reg_name_is_valid(const char *name, size_t n_bytes); /* need not be NUL-terminated */
bool reg_worker_equal(const reg_worker *a, const reg_worker *b);

/* A reg_loop over poll(2) for a thread that has nothing else to watch. One thread, but for reg_poll_wake(). */
typedef struct reg_poll reg_poll;

bt_status reg_poll_open(reg_poll **out, bt_error *err); /* BT_INTERNAL: no file descriptor left */
reg_loop reg_poll_loop(reg_poll *poll);
void reg_poll_run_once(reg_poll *poll, int timeout_ms); /* waits, then calls what is ready */
void reg_poll_wake(reg_poll *poll);                     /* any thread: ends the wait */
void reg_poll_close(reg_poll *poll);                    /* everything is unwatched; NULL is accepted */

#endif
