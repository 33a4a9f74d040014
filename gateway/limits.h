/* The limits of one loop (gw_limits.h): rules from a file that may change while we run, and Redis, through which the
 * loops of all gateways count together. On the loop's thread.
 *
 * What is new is sent at once, unless an answer is still due: then at the next tick (50 ms), as are output tokens. Each
 * batch is a pipeline of HINCRBY, and one PUBLISH of the totals when all are answered. So others hear of a request
 * after two round trips to Redis, or a tick and two round trips, if the one before was only just sent. */
#ifndef BATON_GATEWAY_LIMITS_H
#define BATON_GATEWAY_LIMITS_H

#include "common/registry/registry.h"
#include "gateway/api/api_error.h"
#include "gateway/core/gw_limits.h"

typedef struct gw_limiter gw_limiter;

typedef struct {
    const char *path;  /* --limits-file; borrowed */
    const char *redis; /* as in reg_watcher_config */
    bool is_first;     /* of the process' loops: it speaks for all in the log */
    uint64_t seed;
    int64_t (*wall_s)(void); /* seconds since 1970; NULL: the system's */
} gw_limiter_config;

/* BT_BAD_REQUEST: the file cannot be read or is wrong, the sentence says where; `redis` is no address. */
bt_status gw_limiter_open(const gw_limiter_config *config, const reg_loop *loop, gw_limiter **out, bt_error *err);
void gw_limiter_close(gw_limiter *limiter); /* NULL is accepted, here and below: no limits */

void gw_limiter_tick(gw_limiter *limiter);   /* every 50 to 250 ms */
void gw_limiter_reload(gw_limiter *limiter); /* once a second: if the file has changed; if it is wrong, nothing does */

/* May it run? BT_BAD_REQUEST: a 429 that says when and why. */
bt_status gw_limiter_check(gw_limiter *limiter, const gw_payers *payers, gw_error *error);
void gw_limiter_count(gw_limiter *limiter, const gw_payers *payers); /* it does */
void gw_limiter_spend(gw_limiter *limiter, const gw_payers *payers, uint32_t n_tokens);

#endif
