/* Counters, gauges and histograms in Prometheus' text format.
 *
 * Families are defined once, in metrics.def; a process opens the ones of its role. A series (a family with label
 * values) is looked up once and kept; updates are relaxed atomics: no lock on a hot path. The scrape walks the
 * series and takes the registry's lock only against new series. */
#ifndef BATON_COMMON_CORE_METRICS_H
#define BATON_COMMON_CORE_METRICS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/core/buf.h"

/* Roles, as a mask in metrics.def: which process exports a family, even before its first event. BT_LEGACY beside a
 * role: only a registry that was opened with it too. */
enum { BT_ROLE_GATEWAY = 1, BT_ROLE_PREFILL = 2, BT_ROLE_DECODE = 4, BT_LEGACY = 8 };

typedef enum { BT_METRIC_COUNTER, BT_METRIC_GAUGE, BT_METRIC_HISTOGRAM } bt_metric_kind;

#define METRIC(id, kind, roles, buckets, name, help) BT_METRIC_##id,
typedef enum {
#include "common/core/metrics.def"
    BT_N_METRICS
} bt_metric_id;
#undef METRIC

typedef struct bt_metrics bt_metrics;
typedef struct bt_series bt_series;

/* `role`: one of BT_ROLE_, with or without BT_LEGACY. `common_labels`: labels on every series, e.g.
 * `model_name="nano-r1"`, or "". Copied. */
bt_metrics *bt_metrics_open(unsigned role, const char *common_labels);
void bt_metrics_close(bt_metrics *metrics);

/* The series of a family with these labels (`stage="queue"`, or ""), made at the first call; lives as long as the
 * registry. Label values must be escaped by the caller if a client can choose them. Any thread. */
bt_series *bt_metrics_series(bt_metrics *metrics, bt_metric_id id, const char *labels);

/* Whether it is written; of a worker that is gone it is not. Any thread. */
void bt_series_show(bt_series *series, bool is_shown);

/* Any thread, lock-free. A counter only grows; durations are in seconds. */
void bt_series_add(bt_series *series, double amount);    /* counter or gauge */
void bt_series_set(bt_series *series, double value);     /* gauge */
void bt_series_observe(bt_series *series, double value); /* histogram */
double bt_series_value(const bt_series *series);         /* counter or gauge; of a histogram the sum */

/* Appends the exposition text of all families of the role, and of their aliases. Series with vLLM's names carry its
 * label engine="0" too. Any thread. */
void bt_metrics_write(bt_metrics *metrics, bt_buf *out);

#endif
