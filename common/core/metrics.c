/* Series hang on their family's list; the list only grows, so a reader walks it without a lock. */
#include "common/core/metrics.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/status.h"

static const double SECONDS[] = {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1,
                                 2,     5,     10,    20,   40,   80,   160, 300, 600, INFINITY};
static const double TOKEN_SECONDS[] = {0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02,    0.03,
                                       0.05,   0.075,  0.1,    0.2,   0.5,   1,     10,   INFINITY};
static const double COUNTS[] = {1,   2,    4,    8,    16,    32,    64,     128,     256,
                                512, 1024, 2048, 4096, 16384, 65536, 262144, 1048576, INFINITY};
/* vLLM's own bounds: recorded quantiles and alerts name them. */
static const double VLLM_TTFT[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5,  0.75,    1,
                                   2.5,   5,     7.5,  10,   20,   40,   80,   160, 640,  2560, INFINITY};
static const double VLLM_TOKEN[] = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                                    0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80,  INFINITY};
static const double VLLM_REQUEST[] = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,   20,
                                      30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680, INFINITY};
static const double NONE[] = {INFINITY};

enum { MAX_BUCKETS = 23 };
_Static_assert(sizeof(VLLM_TTFT) / sizeof(VLLM_TTFT[0]) <= MAX_BUCKETS, "MAX_BUCKETS covers every list of bounds");
_Static_assert(sizeof(SECONDS) / sizeof(SECONDS[0]) <= MAX_BUCKETS, "MAX_BUCKETS covers every list of bounds");

typedef struct {
    bt_metric_kind kind;
    unsigned roles;
    const double *bounds; /* ends with infinity */
    const char *name, *help;
} metric_family;

#define METRIC(id, kind, roles, buckets, name, help) {BT_METRIC_##kind, roles, buckets, name, help},
static const metric_family families[BT_N_METRICS] = {
#include "common/core/metrics.def"
};
#undef METRIC

struct bt_series {
    bt_series *next;
    const metric_family *family;
    char *labels;                          /* owned */
    _Atomic double value;                  /* counter, gauge; histogram: the sum */
    _Atomic uint64_t buckets[MAX_BUCKETS]; /* histogram only; not cumulative */
};

struct bt_metrics {
    unsigned role;
    char *common_labels;                     /* owned */
    pthread_mutex_t lock;                    /* taken to add a series */
    bt_series *_Atomic series[BT_N_METRICS]; /* newest first */
};

bt_metrics *bt_metrics_open(unsigned role, const char *common_labels) {
    bt_metrics *metrics = bt_calloc(1, sizeof(*metrics));
    metrics->role = role;
    metrics->common_labels = bt_strdup(common_labels);
    pthread_mutex_init(&metrics->lock, NULL);
    return metrics;
}

void bt_metrics_close(bt_metrics *metrics) {
    if (metrics == NULL) return;
    for (int id = 0; id < BT_N_METRICS; id++) {
        bt_series *series = atomic_load(&metrics->series[id]);
        while (series != NULL) {
            bt_series *next = series->next;
            free(series->labels);
            free(series);
            series = next;
        }
    }
    pthread_mutex_destroy(&metrics->lock);
    free(metrics->common_labels);
    free(metrics);
}

static bt_series *find_series(bt_metrics *metrics, bt_metric_id id, const char *labels) {
    bt_series *series = atomic_load_explicit(&metrics->series[id], memory_order_acquire);
    while (series != NULL && strcmp(series->labels, labels) != 0) series = series->next;
    return series;
}

bt_series *bt_metrics_series(bt_metrics *metrics, bt_metric_id id, const char *labels) {
    bt_series *series = find_series(metrics, id, labels);
    if (series != NULL) return series;
    pthread_mutex_lock(&metrics->lock);
    series = find_series(metrics, id, labels);
    if (series == NULL) {
        series = bt_calloc(1, sizeof(*series));
        series->family = &families[id];
        series->labels = bt_strdup(labels);
        series->next = atomic_load_explicit(&metrics->series[id], memory_order_relaxed);
        atomic_store_explicit(&metrics->series[id], series, memory_order_release);
    }
    pthread_mutex_unlock(&metrics->lock);
    return series;
}

void bt_series_add(bt_series *series, double amount) {
    double old = atomic_load_explicit(&series->value, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&series->value, &old, old + amount, memory_order_relaxed,
                                                  memory_order_relaxed)) {
    }
}

void bt_series_set(bt_series *series, double value) {
    atomic_store_explicit(&series->value, value, memory_order_relaxed);
}

void bt_series_observe(bt_series *series, double value) {
    const double *bounds = series->family->bounds;
    size_t bucket = 0;
    while (value > bounds[bucket] && !isinf(bounds[bucket])) bucket++;
    atomic_fetch_add_explicit(&series->buckets[bucket], 1, memory_order_relaxed);
    bt_series_add(series, value);
}

double bt_series_value(const bt_series *series) { return atomic_load_explicit(&series->value, memory_order_relaxed); }

/* `name{common,own,extra} ` with the commas and braces where they belong. */
static void write_name(const bt_metrics *metrics, const char *name, const char *suffix, const char *labels,
                       const char *extra, bt_buf *out) {
    const char *parts[] = {metrics->common_labels, labels, extra};
    bt_buf_printf(out, "%s%s", name, suffix);
    bool is_open = false;
    for (size_t i = 0; i < 3; i++) {
        if (parts[i][0] == 0) continue;
        bt_buf_printf(out, "%s%s", is_open ? "," : "{", parts[i]);
        is_open = true;
    }
    bt_buf_puts(out, is_open ? "} " : " ");
}

static void write_histogram(const bt_metrics *metrics, const bt_series *series, bt_buf *out) {
    const metric_family *family = series->family;
    uint64_t total = 0;
    for (size_t i = 0;; i++) {
        char bound[48];
        total += atomic_load_explicit(&series->buckets[i], memory_order_relaxed);
        if (isinf(family->bounds[i]))
            snprintf(bound, sizeof(bound), "le=\"+Inf\"");
        else
            snprintf(bound, sizeof(bound), "le=\"%g\"", family->bounds[i]);
        write_name(metrics, family->name, "_bucket", series->labels, bound, out);
        bt_buf_printf(out, "%llu\n", (unsigned long long)total);
        if (isinf(family->bounds[i])) break;
    }
    write_name(metrics, family->name, "_sum", series->labels, "", out);
    bt_buf_printf(out, "%.9g\n", bt_series_value(series));
    write_name(metrics, family->name, "_count", series->labels, "", out);
    bt_buf_printf(out, "%llu\n", (unsigned long long)total);
}

void bt_metrics_write(bt_metrics *metrics, bt_buf *out) {
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    for (int id = 0; id < BT_N_METRICS; id++) {
        const metric_family *family = &families[id];
        if ((family->roles & metrics->role) == 0) continue;
        bt_buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", family->name, family->help, family->name,
                      kinds[family->kind]);
        const bt_series *series = atomic_load_explicit(&metrics->series[id], memory_order_acquire);
        if (series == NULL) series = bt_metrics_series(metrics, (bt_metric_id)id, "");
        for (; series != NULL; series = series->next) {
            if (family->kind == BT_METRIC_HISTOGRAM) {
                write_histogram(metrics, series, out);
            } else {
                write_name(metrics, family->name, "", series->labels, "", out);
                bt_buf_printf(out, "%.17g\n", bt_series_value(series));
            }
        }
    }
}
