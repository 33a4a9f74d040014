/* What the gateway exports of each worker: whether it takes requests, the load that it last reported, and how many
 * requests it had. One table for all loops, by role and name, so a restarted worker goes on where it was; bounded. */
#ifndef BATON_GATEWAY_TELEMETRY_TELEMETRY_WORKERS_H
#define BATON_GATEWAY_TELEMETRY_TELEMETRY_WORKERS_H

#include "common/core/metrics.h"
#include "gateway/core/gw_router.h"
#include "gateway/telemetry/history.h"

enum { GW_CAP_WORKERS = 4096 }; /* names ever seen; further ones are not exported */

typedef struct gw_workers gw_workers;

gw_workers *gw_workers_open(bt_metrics *metrics); /* borrowed */
void gw_workers_close(gw_workers *workers);       /* NULL is accepted */

/* A request that this worker had has ended. Any thread, lock-free but for the first time of a name; "" is ignored. */
void gw_workers_served(gw_workers *workers, wire_role role, const char *name);

/* Takes over what the router knows, and adds the pools' sums to *sample's gauges. One thread, once a second. Who is not
 * there any more is down, and a minute later gone from the metrics. */
void gw_workers_look(gw_workers *workers, const gw_router *router, gw_sample *sample);

/* Appends a JSON array of those that are shown, in no order. Any thread. */
void gw_workers_write(gw_workers *workers, bt_buf *out);

#endif
