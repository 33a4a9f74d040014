/* The verbs of baton-bench, and what they share. */
#ifndef BATON_BENCH_BENCH_H
#define BATON_BENCH_BENCH_H

#include <stdint.h>

#include "common/core/config.h"
#include "common/core/status.h"

typedef struct {
    const char *name, *purpose;
    const cfg_flag *flags;
    size_t n_flags, config_bytes;
    /* config: the verb's cfg_own. BT_BAD_REQUEST: it cannot be measured so; any failure ends the program with 2. */
    bt_status (*run)(const void *config, bt_error *err);
} bench_verb;

extern const bench_verb bench_engine, bench_ep, bench_prompt, bench_route, bench_sched, bench_scrape, bench_tokenize,
    bench_workers;

/* In a verb's file, behind CFG_OWN(). */
#define BENCH_VERB(name, purpose, run)                                                                                 \
    const bench_verb bench_##name = {                                                                                  \
        #name, purpose, cfg_own_flags, sizeof(cfg_own_flags) / sizeof(cfg_own_flags[0]), sizeof(cfg_own), run}

enum { BENCH_MAX_LIST = 16 };

typedef struct {
    uint32_t values[BENCH_MAX_LIST], n, max;
} bench_list;

/* "1,8,32" of flag --name. BT_BAD_REQUEST: not numbers up to `max`, or too many. */
bt_status bench_list_parse(const char *name, const char *text, uint32_t max, bench_list *out, bt_error *err);

/* Processor time of this thread: what the machine does for others does not count, what it does to the caches does. A
 * call takes a microsecond. */
int64_t bench_cpu_ns(void);

double bench_median(double *values, uint32_t n); /* sorts */

#endif
