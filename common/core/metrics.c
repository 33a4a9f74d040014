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

typedef struct {
    double bound;
    const char *label; /* as it is written, with what closes the labels */
} metric_bucket;

#define B(bound)                                                                                                       \
    { bound, "le=\"" #bound "\"} " }
#define LAST                                                                                                           \
    { INFINITY, "le=\"+Inf\"} " }
static const metric_bucket SECONDS[] = {B(0.001), B(0.002), B(0.005), B(0.01), B(0.02), B(0.05), B(0.1),
                                        B(0.2),   B(0.5),   B(1),     B(2),    B(5),    B(10),   B(20),
                                        B(40),    B(80),    B(160),   B(300),  B(600),  LAST};
static const metric_bucket TOKEN_SECONDS[] = {B(0.0001), B(0.0002), B(0.0005), B(0.001), B(0.002), B(0.005),
                                              B(0.01),   B(0.02),   B(0.03),   B(0.05),  B(0.075), B(0.1),
                                              B(0.2),    B(0.5),    B(1),      B(10),    LAST};
/* vLLM's own bounds: recorded quantiles and alerts name them. */
static const metric_bucket VLLM_TTFT[] = {B(0.001), B(0.005), B(0.01), B(0.02), B(0.04), B(0.06), B(0.08), B(0.1),
                                          B(0.25),  B(0.5),   B(0.75), B(1),    B(2.5),  B(5),    B(7.5),  B(10),
                                          B(20),    B(40),    B(80),   B(160),  B(640),  B(2560), LAST};
static const metric_bucket VLLM_TOKEN[] = {B(0.01), B(0.025), B(0.05), B(0.075), B(0.1), B(0.15), B(0.2),
                                           B(0.3),  B(0.4),   B(0.5),  B(0.75),  B(1),   B(2.5),  B(5),
                                           B(7.5),  B(10),    B(20),   B(40),    B(80),  LAST};
static const metric_bucket VLLM_REQUEST[] = {B(0.3), B(0.5), B(0.8), B(1),    B(1.5),  B(2),  B(2.5), B(5),
                                             B(10),  B(15),  B(20),  B(30),   B(40),   B(50), B(60),  B(120),
                                             B(240), B(480), B(960), B(1920), B(7680), LAST};
static const metric_bucket VLLM_TOKENS[] = {B(1),     B(2),     B(5),     B(10),     B(20),     B(50),
                                            B(100),   B(200),   B(500),   B(1000),   B(2000),   B(5000),
                                            B(10000), B(20000), B(50000), B(100000), B(200000), LAST};
static const metric_bucket VLLM_STEP[] = {B(1),   B(8),    B(16),   B(32),   B(64),   B(128),   B(256),
                                          B(512), B(1024), B(2048), B(4096), B(8192), B(16384), LAST};
static const metric_bucket VLLM_N[] = {B(1), B(2), B(5), B(10), B(20), LAST};
static const metric_bucket NONE[] = {LAST};
#undef B
#undef LAST

enum { MAX_BUCKETS = 23 };
#define FITS(list) _Static_assert(sizeof(list) / sizeof(list[0]) <= MAX_BUCKETS, "MAX_BUCKETS covers every list")
FITS(SECONDS);
FITS(TOKEN_SECONDS);
FITS(VLLM_TTFT);
FITS(VLLM_TOKEN);
FITS(VLLM_REQUEST);
FITS(VLLM_TOKENS);

typedef struct {
    bt_metric_kind kind;
    unsigned roles;
    const metric_bucket *buckets; /* the last one's bound is infinite */
    const char *name, *help;
} metric_family;

#define METRIC(id, kind, roles, buckets, name, help) {BT_METRIC_##kind, roles, buckets, name, help},
static const metric_family families[BT_N_METRICS] = {
#include "common/core/metrics.def"
};
#undef METRIC

typedef struct {
    bt_metric_id of;
    unsigned roles;
    const char *name, *help;
} metric_alias;

#define METRIC(id, kind, roles, buckets, name, help)
#define ALIAS(of, roles, name, help) {BT_METRIC_##of, roles, name, help},
static const metric_alias aliases[] = {
#include "common/core/metrics.def"
};
#undef METRIC

struct bt_series {
    bt_series *next;
    const metric_family *family;
    char *labels; /* owned */
    char *text;   /* owned: the registry's labels and these, as they are written */
    atomic_bool is_hidden;
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
            free(series->text);
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

static bt_series *make_series(bt_metrics *metrics, bt_metric_id id, const char *labels) {
    bt_series *series = bt_calloc(1, sizeof(*series));
    bt_buf text = {0};
    bool has_both = metrics->common_labels[0] != 0 && labels[0] != 0;
    bt_buf_printf(&text, "%s%s%s", metrics->common_labels, has_both ? "," : "", labels);
    series->family = &families[id];
    series->labels = bt_strdup(labels);
    series->text = bt_strdup(bt_buf_text(&text));
    bt_buf_fini(&text);
    series->next = atomic_load_explicit(&metrics->series[id], memory_order_relaxed);
    atomic_store_explicit(&metrics->series[id], series, memory_order_release);
    return series;
}

bt_series *bt_metrics_series(bt_metrics *metrics, bt_metric_id id, const char *labels) {
    bt_series *series = find_series(metrics, id, labels);
    if (series == NULL) {
        pthread_mutex_lock(&metrics->lock);
        series = find_series(metrics, id, labels);
        if (series == NULL) series = make_series(metrics, id, labels);
        pthread_mutex_unlock(&metrics->lock);
    }
    return series;
}

void bt_series_show(bt_series *series, bool is_shown) {
    atomic_store_explicit(&series->is_hidden, !is_shown, memory_order_relaxed);
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
    const metric_bucket *buckets = series->family->buckets;
    size_t bucket = 0;
    while (value > buckets[bucket].bound && !isinf(buckets[bucket].bound)) bucket++;
    atomic_fetch_add_explicit(&series->buckets[bucket], 1, memory_order_relaxed);
    bt_series_add(series, value);
}

double bt_series_value(const bt_series *series) { return atomic_load_explicit(&series->value, memory_order_relaxed); }

/* ---- the page ---------------------------------------------------------------------------------------------------- */

/* Most values are counts; printf would take most of a scrape's time. */
static void put_number(bt_buf *out, double value) {
    if (value < 0 || value >= 1e15 || value != floor(value)) {
        bt_buf_printf(out, "%.15g", value);
        return;
    }
    char digits[16];
    size_t at = sizeof(digits);
    uint64_t rest = (uint64_t)value;
    do {
        digits[--at] = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest > 0);
    bt_buf_put(out, digits + at, sizeof(digits) - at);
}

static bool is_vllm(const char *name) { return strncmp(name, "vllm:", 5) == 0; }

/* One line. bucket: its label, which closes the list; "": none. What has vLLM's name has vLLM's label too. */
static void write_line(const char *name, const char *suffix, const bt_series *series, const char *bucket, double value,
                       bt_buf *out) {
    const char *engine = is_vllm(name) ? "engine=\"0\"" : "";
    bool has_labels = engine[0] != 0 || series->text[0] != 0, has_bucket = bucket[0] != 0;
    bt_buf_puts(out, name);
    bt_buf_puts(out, suffix);
    if (has_labels || has_bucket) bt_buf_puts(out, "{");
    bt_buf_puts(out, engine);
    if (engine[0] != 0 && series->text[0] != 0) bt_buf_puts(out, ",");
    bt_buf_puts(out, series->text);
    if (has_labels && has_bucket) bt_buf_puts(out, ",");
    bt_buf_puts(out, has_bucket ? bucket : has_labels ? "} " : " ");
    put_number(out, value);
    bt_buf_puts(out, "\n");
}

static void write_histogram(const char *name, const bt_series *series, bt_buf *out) {
    uint64_t total = 0;
    const metric_bucket *bucket = series->family->buckets;
    for (size_t i = 0;; i++, bucket++) {
        total += atomic_load_explicit(&series->buckets[i], memory_order_relaxed);
        write_line(name, "_bucket", series, bucket->label, (double)total, out);
        if (isinf(bucket->bound)) break;
    }
    write_line(name, "_sum", series, "", bt_series_value(series), out);
    write_line(name, "_count", series, "", (double)total, out);
}

/* A family under a name of its own or another's. Without any series there is one without labels, for rates need a first
 * value; that holds for no family whose series are all hidden. */
static void write_family(bt_metrics *metrics, bt_metric_id id, const char *name, const char *help, bt_buf *out) {
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    const metric_family *family = &families[id];
    bt_buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kinds[family->kind]);
    const bt_series *series = atomic_load_explicit(&metrics->series[id], memory_order_acquire);
    if (series == NULL) series = bt_metrics_series(metrics, id, "");
    for (; series != NULL; series = series->next) {
        if (atomic_load_explicit(&series->is_hidden, memory_order_relaxed)) continue;
        if (family->kind == BT_METRIC_HISTOGRAM)
            write_histogram(name, series, out);
        else
            write_line(name, "", series, "", bt_series_value(series), out);
    }
}

static bool is_shown(const bt_metrics *metrics, unsigned roles) {
    return (roles & metrics->role & ~BT_LEGACY) != 0 && (roles & BT_LEGACY & ~metrics->role) == 0;
}

void bt_metrics_write(bt_metrics *metrics, bt_buf *out) {
    for (int id = 0; id < BT_N_METRICS; id++)
        if (is_shown(metrics, families[id].roles))
            write_family(metrics, (bt_metric_id)id, families[id].name, families[id].help, out);
    for (size_t i = 0; i < sizeof(aliases) / sizeof(aliases[0]); i++)
        if (is_shown(metrics, aliases[i].roles))
            write_family(metrics, aliases[i].of, aliases[i].name, aliases[i].help, out);
}
