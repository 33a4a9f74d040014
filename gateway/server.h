/* What all loops of a gateway share: read-only after the start, but for what signals change and the metrics. */
#ifndef BATON_GATEWAY_SERVER_H
#define BATON_GATEWAY_SERVER_H

#include <stdatomic.h>

#include "gateway/config.h"
#include "gateway/core/gw_router.h"
#include "gateway/telemetry/telemetry.h"
#include "gateway/text/model.h"

enum { GW_MAX_THREADS = 64 };

typedef struct {
    gw_config config;
    gw_model *model;         /* owned */
    gw_strategy strategy;    /* of requests that name none */
    gw_telemetry *telemetry; /* owned */
    gw_slo slo;              /* of requests that state none */
    int64_t started_s;       /* Unix time */
    uint64_t instance;       /* random; tells this process from others to the dashboard */
    uint64_t cluster_key;
    atomic_bool is_draining; /* SIGTERM came: new requests get 503, loops end when theirs are done */
    atomic_uint n_running_loops, n_done_loops;
    atomic_bool is_hurried; /* a second one: loops end now */
    atomic_uint n_reloads;  /* SIGHUPs: loops read keys and certificates anew */
} gw_server;

/* Flags -> server: opens the model, checks every flag. BT_BAD_REQUEST: the sentence names flag or file. */
bt_status gw_server_open(const gw_config *config, gw_server **out, bt_error *err);
void gw_server_close(gw_server *server); /* NULL is accepted */

#endif
