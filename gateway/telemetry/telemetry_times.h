/* A request's times as histograms, by the strategy that routed it and by how it ended. The series of a pair are made
 * when it first occurs, those of the default strategy at the start: a few strategies are in use, many exist. */
#ifndef BATON_GATEWAY_TELEMETRY_TELEMETRY_TIMES_H
#define BATON_GATEWAY_TELEMETRY_TELEMETRY_TIMES_H

#include "common/core/metrics.h"
#include "gateway/telemetry/telemetry.h"

typedef struct gw_times gw_times;

gw_times *gw_times_open(bt_metrics *metrics); /* borrowed */
void gw_times_close(gw_times *times);         /* NULL is accepted */

/* Any thread, lock-free but for the first time of a pair. */
void gw_times_ended(gw_times *times, const gw_ended *ended);

/* Appends a JSON object: requests ended, by the names of strategies that had any. Any thread. */
void gw_times_write_strategies(const gw_times *times, bt_buf *out);

#endif
