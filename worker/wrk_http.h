/* GET /metrics (Prometheus text), /health and /experts (kernels/expert_load.h) of a worker, from a thread of its own: a
 * scrape never waits for the engine and the engine never for a scrape. One connection at a time, one request each, a
 * second at most: for a scraper and an operator's curl, not for clients. */
#ifndef BATON_WORKER_WRK_HTTP_H
#define BATON_WORKER_WRK_HTTP_H

#include <stdint.h>

#include "common/core/metrics.h"
#include "common/core/status.h"

typedef struct wrk_http wrk_http;

typedef struct {
    const char *host;
    uint32_t port;
    bt_metrics *metrics;                                /* borrowed until close */
    void (*write_experts)(void *context, bt_buf *page); /* on the HTTP thread */
    void *context;
} wrk_http_config;

/* BT_BAD_REQUEST: not an address. BT_INTERNAL: the port is taken, no thread. */
bt_status wrk_http_open(const wrk_http_config *config, wrk_http **out, bt_error *err);

/* Any thread. /health answers 200 "ok" with NULL, else 503 and this text, which is static. Starts with "starting". */
void wrk_http_set_trouble(wrk_http *http, const char *trouble);

void wrk_http_close(wrk_http *http); /* NULL is accepted */

#endif
