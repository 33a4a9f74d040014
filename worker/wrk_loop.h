/* The loop around a worker's scheduler: the engine thread (main) takes what arrives in the node's queue and turns it
 * into events, carries the actions out, runs the steps, exports the figures; sleeps when there is nothing to do.
 * Decides nothing itself. */
#ifndef BATON_WORKER_WRK_LOOP_H
#define BATON_WORKER_WRK_LOOP_H

#include "worker/wrk_node.h"
#include "worker/wrk_sched.h"

/* A counter of the scheduler, exported: the uint64_t at `offset` of wrk_sched.counters. */
typedef struct {
    bt_metric_id id;
    const char *labels;
    size_t offset;
} wrk_metric;

typedef struct {
    wrk_node *node;   /* open; borrowed */
    wrk_sched *sched; /* borrowed */
    const wrk_metric *metrics;
    uint32_t n_metrics;
    void (*export_more)(wrk_node *node, const wrk_sched *sched); /* what no counter says; NULL: nothing */
} wrk_loop_options;

/* Until a signal, DRAIN or the loss of the worker's name, and then until the last request is gone. */
void wrk_loop_run(const wrk_loop_options *options);

#endif
