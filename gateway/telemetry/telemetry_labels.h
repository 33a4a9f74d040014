/* Labels of series: `name="value"`, the value escaped as Prometheus wants it. */
#ifndef BATON_GATEWAY_TELEMETRY_TELEMETRY_LABELS_H
#define BATON_GATEWAY_TELEMETRY_TELEMETRY_LABELS_H

#include "common/core/metrics.h"

void gw_label_put(bt_buf *out, const char *value); /* without the quotes */

/* The series of a family with this one label. */
bt_series *gw_labelled(bt_metrics *metrics, bt_metric_id id, const char *label, const char *value);

#endif
