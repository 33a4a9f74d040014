/* The last minutes of a gateway, a point a second, for the dashboard: what was counted in it, gauges at its end, and
 * quantiles of the latencies of the last GW_HISTORY_WINDOW seconds. Bounded memory (some 200 KiB), whatever the load.
 *
 * Latencies are counted in buckets that grow by an eighth of a power of two, so a quantile is right within 7 %. */
#ifndef BATON_GATEWAY_TELEMETRY_HISTORY_H
#define BATON_GATEWAY_TELEMETRY_HISTORY_H

#include <stdint.h>

#include "common/core/buf.h"

enum { GW_HISTORY_POINTS = 300, GW_HISTORY_WINDOW = 15 };

/* The caller's figures: totals since the start, of which a point has the growth; and gauges. */
#define GW_HISTORY_TOTALS(X)                                                                                           \
    X(ended)                                                                                                           \
    X(good)                                                                                                            \
    X(failed)                                                                                                          \
    X(left)                                                                                                            \
    X(shed)                                                                                                            \
    X(refused)                                                                                                         \
    X(replayed)                                                                                                        \
    X(prompt_tokens)                                                                                                   \
    X(cached_tokens)                                                                                                   \
    X(output_tokens)                                                                                                   \
    X(ttft_attained)                                                                                                   \
    X(ttft_missed)                                                                                                     \
    X(tpot_attained)                                                                                                   \
    X(tpot_missed)
#define GW_HISTORY_GAUGES(X)                                                                                           \
    X(running)                                                                                                         \
    X(queued)                                                                                                          \
    X(prefill_running)                                                                                                 \
    X(prefill_waiting)                                                                                                 \
    X(decode_running)                                                                                                  \
    X(decode_waiting)                                                                                                  \
    X(prefill_kv)                                                                                                      \
    X(decode_kv)

typedef struct {
#define X(name) double name;
    GW_HISTORY_TOTALS(X)
    GW_HISTORY_GAUGES(X)
#undef X
} gw_sample;

typedef struct gw_history gw_history;

gw_history *gw_history_open(void);
void gw_history_close(gw_history *history); /* NULL is accepted */

typedef enum { GW_HISTORY_TTFT, GW_HISTORY_TPOT, GW_N_LATENCIES } gw_latency;

/* Any thread, lock-free. */
void gw_history_observe(gw_history *history, gw_latency which, int64_t ns);

/* One more point. One thread, once a second. */
void gw_history_put(gw_history *history, const gw_sample *sample, int64_t unix_ms);

/* Appends `{"last":N,"columns":[...],"points":[[...],...]}`: the points behind number `after` (0: all), oldest first;
 * N is the newest one's number, to be asked for next. Quantiles are in ms, null where nothing was measured. Any
 * thread. */
void gw_history_write(gw_history *history, uint64_t after, bt_buf *out);

#endif
