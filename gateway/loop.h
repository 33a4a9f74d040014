/* One gateway thread: an HTTP loop, a core, the workers' links and a view of the registry, all its own. Shares only
 * gw_server. Everything here runs on the loop's thread once gw_loop_run() does. */
#ifndef BATON_GATEWAY_LOOP_H
#define BATON_GATEWAY_LOOP_H

#include "gateway/core/gw_admission.h"
#include "gateway/http/access.h"
#include "gateway/http/http.h"
#include "gateway/limits.h"
#include "gateway/members.h"
#include "gateway/server.h"

typedef struct gw_answer gw_answer;

typedef struct gw_loop {
    gw_server *server; /* borrowed */
    uint32_t index;
    uint64_t incarnation; /* random; names this loop to workers */
    uint64_t random;      /* state of gw_loop_random() */
    gw_access *access;
    gw_http *http;
    gw_core *core;
    bt_queue *events; /* of the links' threads */
    link_hub *hub;
    gw_members *members;
    reg_watcher *watcher;
    gw_admission admission; /* prompts without a first token, and how fast they get one */
    gw_limiter *limiter;    /* NULL: no limits */
    tok_cache *tok_cache;   /* NULL: text is encoded anew each time */
    gw_answer *answers;     /* alive, newest first */
    gw_answer *ended;       /* to be freed when no action can point to them any more */
    uint32_t n_answers;
    bool is_pumping, is_draining;
    bool is_done;           /* drained; waits for the other loops */
    int64_t drain_ns;       /* when draining began */
    int64_t last_second_ns; /* last once-a-second work */
    gw_counters told;       /* what telemetry has heard of the core's counters */
    uint32_t n_queued_told; /* likewise of its queue */
} gw_loop;

/* Listens, dials, watches. `port` replaces the flag's (0 there: the first loop's choice). */
bt_status gw_loop_open(gw_server *server, uint32_t index, uint32_t port, gw_loop **out, bt_error *err);
void gw_loop_run(gw_loop *loop);   /* until server->is_draining and all is done, or too late */
void gw_loop_close(gw_loop *loop); /* NULL is accepted */

/* Carries out what gw_core decided. After every event; nested calls leave it to the outer one. */
void gw_loop_pump(gw_loop *loop);

uint64_t gw_loop_random(gw_loop *loop);

/* A prefill and a decode worker would take a request now. */
bool gw_loop_is_ready(const gw_loop *loop);
uint32_t gw_loop_max_model_len(const gw_loop *loop);

#endif
