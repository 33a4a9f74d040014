/* baton-bench VERB FLAGS: measures parts of Baton and prints CSV. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/bench.h"
#include "common/core/alloc.h"
#include "common/core/clock.h"

static const bench_verb *const verbs[] = {&bench_engine, &bench_ep,     &bench_prompt,   &bench_route,
                                          &bench_sched,  &bench_scrape, &bench_tokenize, &bench_workers};

bt_status bench_list_parse(const char *name, const char *text, uint32_t max, bench_list *out, bt_error *err) {
    const char *at = text;
    for (;;) {
        char *end;
        unsigned long value = strtoul(at, &end, 10);
        bool is_number = end != at && *at >= '0' && *at <= '9';
        if (!is_number || value > max || out->n == BENCH_MAX_LIST || (*end != ',' && *end != 0)) {
            return bt_fail(err, BT_BAD_REQUEST,
                           "--%s is \"%s\", expected up to %d numbers up to %u, separated by commas", name, text,
                           BENCH_MAX_LIST, max);
        }
        out->values[out->n++] = (uint32_t)value;
        if (value > out->max) out->max = (uint32_t)value;
        if (*end == 0) return BT_OK;
        at = end + 1;
    }
}

int64_t bench_cpu_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (int64_t)now.tv_sec * BT_NS_PER_S + now.tv_nsec;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, uint32_t n) {
    qsort(values, n, sizeof(values[0]), compare_doubles);
    return values[n / 2];
}

static int verb_run(const bench_verb *verb, int argc, char **argv) {
    char program[32];
    snprintf(program, sizeof(program), "baton-bench %s", verb->name);
    void *config = bt_calloc(1, verb->config_bytes);
    bt_error err = {0};
    bt_status status = cfg_parse(program, verb->purpose, verb->flags, verb->n_flags, argc, argv, config, &err);
    bool is_help = status == BT_CANCELED;
    if (status == BT_OK) status = verb->run(config, &err);
    free(config);
    if (status == BT_OK || is_help) return 0;
    fprintf(stderr, "%s: %s\n", program, err.text);
    return 2;
}

int main(int argc, char **argv) {
    for (size_t i = 0; argc >= 2 && i < sizeof(verbs) / sizeof(verbs[0]); i++) {
        if (strcmp(argv[1], verbs[i]->name) == 0) return verb_run(verbs[i], argc - 1, argv + 1);
    }
    fprintf(stderr,
            "usage: baton-bench engine|ep|prompt|route|sched|scrape|tokenize|workers [flags]; baton-bench VERB --help "
            "lists them\n");
    return argc >= 2 && strcmp(argv[1], "--help") == 0 ? 0 : 2;
}
