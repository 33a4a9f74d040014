/* The verbs of baton-bench, and what they share. A verb parses its own flags (argv[0] is the verb) and returns the exit
 * status. */
#ifndef BATON_BENCH_BENCH_H
#define BATON_BENCH_BENCH_H

#include <stdint.h>

#include "common/core/status.h"

int bench_engine(int argc, char **argv);
int bench_ep(int argc, char **argv);
int bench_sched(int argc, char **argv);

enum { BENCH_MAX_LIST = 16 };

typedef struct {
    uint32_t values[BENCH_MAX_LIST], n, max;
} bench_list;

/* "1,8,32" of flag --name. BT_BAD_REQUEST: not numbers up to `max`, or too many. */
bt_status bench_list_parse(const char *name, const char *text, uint32_t max, bench_list *out, bt_error *err);

double bench_median(double *values, uint32_t n); /* sorts */

#endif
