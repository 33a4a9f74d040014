/* The gateway's metrics: series looked up once, so that updates are a relaxed atomic each. Any thread. */
#ifndef BATON_GATEWAY_TELEMETRY_TELEMETRY_H
#define BATON_GATEWAY_TELEMETRY_TELEMETRY_H

#include <stdbool.h>
#include <stdint.h>

#include "common/core/buf.h"
#include "gateway/core/gw_core.h"
#include "gateway/telemetry/slo.h"

typedef struct gw_telemetry gw_telemetry;

typedef enum {
    GW_ENDED_STOP,
    GW_ENDED_LENGTH,
    GW_ENDED_ABORT,
    GW_ENDED_ERROR,
    GW_ENDED_REFUSED,
    GW_N_OUTCOMES
} gw_outcome;

/* has_legacy: also under names that vLLM has given up. */
gw_telemetry *gw_telemetry_open(const char *model_name, bool has_legacy);
void gw_telemetry_close(gw_telemetry *telemetry); /* NULL is accepted */

const char *gw_outcome_name(gw_outcome outcome);

void gw_telemetry_admitted(gw_telemetry *telemetry, uint32_t n_prompt);
void gw_telemetry_refused(gw_telemetry *telemetry, const char *reason); /* gw_error.reason; NULL: it is invalid */
void gw_telemetry_queued(gw_telemetry *telemetry, uint32_t n_before, uint32_t n_now); /* a loop's queue */
void gw_telemetry_first_token(gw_telemetry *telemetry, int64_t ttft_ns);
void gw_telemetry_tokens(gw_telemetry *telemetry, uint32_t n_tokens, int64_t gap_ns); /* gap 0: the first ones */

/* An admitted request's end. `info` may be NULL; its times fill the stages. */
typedef struct {
    gw_outcome outcome;
    const char *reason; /* GW_ENDED_REFUSED, which it was while it waited for room: as of gw_telemetry_refused() */
    const gw_info *info;
    gw_slo slo;
    int64_t arrival_ns, first_token_ns, last_token_ns, now_ns; /* 0: never */
    uint32_t n_output, max_tokens;
    uint32_t n_choices; /* that the client asked for; this is one of them */
} gw_ended;
void gw_telemetry_ended(gw_telemetry *telemetry, const gw_ended *ended);
int64_t gw_ended_tpot_ns(const gw_ended *ended); /* 0: fewer than two tokens */

void gw_telemetry_answered(gw_telemetry *telemetry, int status);
void gw_telemetry_replays(gw_telemetry *telemetry, const gw_counters *before, const gw_counters *now);

/* Once a second, by one of the loops: what all loops see alike, and one more point of the dashboard's history. */
void gw_telemetry_second(gw_telemetry *telemetry, const gw_router *router, bool is_redis_up);

uint32_t gw_telemetry_n_running(const gw_telemetry *telemetry);
void gw_telemetry_write(gw_telemetry *telemetry, bt_buf *out); /* /metrics */

/* Appends members of a JSON object for the dashboard: "redis", "outcomes", "refusals", "replays", "left", "strategies"
 * and "workers" as they are now, and "history" behind point `after` (gateway/telemetry/history.h). Names of models and
 * workers, never of users, and no prompt. */
void gw_telemetry_write_live(gw_telemetry *telemetry, uint64_t after, bt_buf *out);

#endif
