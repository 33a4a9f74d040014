/* How many requests and tokens a minute may have: per model, per user (the header `user`) and per API key. Owns the
 * rules and one account per name that has a limit. No I/O, no clock. One thread.
 *
 * Windows are the minutes of wall_s, the caller's seconds since 1970: a new minute starts from nothing. A request
 * counts when it is sent to a worker or queued for one, one that is refused before counts nowhere; tokens (prompt and
 * output) when they are known, in the minute in which they are; a request is refused when an account has spent its
 * requests or its tokens. What runs already is not held back, so tokens may exceed their limit by those of the requests
 * that were let in before it was reached.
 *
 * Many gateways share one limit. Each counts its own at once, tells Redis what it has added (gw_limits_take()) and is
 * told totals: the answer to that, and what others publish. Totals of a minute only grow, so the highest one heard
 * is the truth, however late, doubled or out of order they come, and a lost one is made good by the next. A decision
 * looks at the mirror alone: total + what Redis has not answered yet. So a limit may be exceeded by what the other
 * gateways admit while news travel: (gateways - 1) x rate x the time of a flush, an answer and a publication.
 * limits.h says how long that is. Without Redis each gateway has the whole limit for what it sees itself.
 *
 * When Redis has forgotten a minute, the first gateway that adds to an account puts back the total that it knows. */
#ifndef BATON_GATEWAY_CORE_GW_LIMITS_H
#define BATON_GATEWAY_CORE_GW_LIMITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/core/status.h"

typedef enum { GW_BY_MODEL, GW_BY_USER, GW_BY_KEY, GW_N_PAYERS } gw_payer;
typedef enum { GW_REQUESTS, GW_PER_TOKENS, GW_N_UNITS } gw_unit;

enum {
    GW_LIMIT_WINDOW_S = 60,
    GW_CAP_PAYER = 129,      /* a name: 1 to 128 printable ASCII characters without blanks */
    GW_CAP_ACCOUNTS = 65536, /* in a minute; further names share the account "*" of their kind */
    GW_CAP_ACCOUNT_ID = GW_CAP_PAYER + 16,
};

typedef struct gw_limits gw_limits;

/* Whom a request is charged to. NULL or "": nobody of that kind. A name that is none counts as "*". */
typedef struct {
    const char *names[GW_N_PAYERS];
} gw_payers;

/* `seed` of the table's hash: names come from clients. Without rules until gw_limits_load(). */
gw_limits *gw_limits_open(uint64_t seed);
void gw_limits_close(gw_limits *limits); /* NULL is accepted */

/* Replaces the rules; what the running minute has counted stays. One rule per line, and nothing else but empty lines
 * and comments: `KIND NAME REQUESTS TOKENS`, KIND model, user or key, the figures per minute, 0 to 10^12, `-`: no
 * limit. NAME `*` is for each name of that kind that has no line of its own. BT_BAD_REQUEST: the sentence names the
 * line, and the old rules stay. */
bt_status gw_limits_load(gw_limits *limits, const char *text, size_t n_bytes, bt_error *err);

bool gw_limits_has_rules(const gw_limits *limits);

typedef struct {
    gw_payer payer;
    gw_unit unit;
    uint64_t limit;
    uint32_t retry_after_s;  /* until the next minute, 1 to 60 */
    char name[GW_CAP_PAYER]; /* of the account */
} gw_limit_hit;

/* May it run? false: *hit says which account has nothing left. */
bool gw_limits_check(gw_limits *limits, const gw_payers *payers, int64_t wall_s, gw_limit_hit *hit);

/* It does: it is counted in all its accounts. */
void gw_limits_count(gw_limits *limits, const gw_payers *payers, int64_t wall_s);

/* Tokens of an admitted request have become known. */
void gw_limits_spend(gw_limits *limits, const gw_payers *payers, uint32_t n_tokens, int64_t wall_s);

/* ---- Redis ---------------------------------------------------------------------------------------------------------
 */

/* Something to be added to a counter in Redis: named by the window (gw_limits_window()) and an id without control
 * characters, "requests user alice". */
typedef struct {
    int64_t window;
    gw_unit unit;
    uint64_t amount;
    bool is_first;  /* on this connection: a counter that is not there begins with `known` */
    uint64_t known; /* the total as far as Redis has told us */
    char id[GW_CAP_ACCOUNT_ID];
    uint64_t book; /* for gw_limits_settle(), as `account` */
    uint32_t account;
} gw_delta;

/* The next counter of which Redis does not know everything, those of the minute before first. false: it knows. */
bool gw_limits_take(gw_limits *limits, gw_delta *out);

/* Redis has answered: the counter's total, which includes the amount. NULL: it will not answer any more. */
void gw_limits_settle(gw_limits *limits, const gw_delta *delta, const uint64_t *total);

/* A total from anywhere: another gateway, or Redis when we start. Bytes and figures are not trusted; an account without
 * a rule is ignored. */
void gw_limits_heard(gw_limits *limits, int64_t window, const char *id, size_t n_bytes, uint64_t total);

void gw_limits_reconnected(gw_limits *limits); /* Redis may have forgotten: see gw_delta.is_first */

/* The minute that counts now, as the number of minutes since 1970; starts it. */
int64_t gw_limits_window(gw_limits *limits, int64_t wall_s);

#endif
