/* main() of a worker program, but for what its role brings along: baton-prefill and baton-decode are one of these each.
 */
#ifndef BATON_WORKER_WRK_PROGRAM_H
#define BATON_WORKER_WRK_PROGRAM_H

#include "worker/wrk_loop.h"

typedef struct {
    const char *name, *purpose; /* for --help */
    const char *module;         /* of its log lines */
    const cfg_flag *flags;      /* the role's own; those of worker/config.def come behind */
    size_t n_flags;
    wrk_config *config; /* where flags go: the first member of a struct that `flags` are offsets in */

    /* Called when *config is filled. */
    void (*node_options)(wrk_node_options *options); /* name, role, max_rows, max_logits, capacity, KV listener */
    bt_status (*sched_open)(const wrk_sched_options *shared, wrk_sched **out, bt_error *err);

    const wrk_metric *metrics; /* these three as in wrk_loop_options */
    uint32_t n_metrics;
    void (*export_more)(wrk_node *node, const wrk_sched *sched);
} wrk_program;

/* Returns what main() returns: 0, also for --help; 1: it could not start; 2: a flag is wrong. */
int wrk_program_run(const wrk_program *program, int argc, char **argv);

#endif
