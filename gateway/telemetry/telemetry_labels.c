/* What a client or a worker chose may be in a value: it must not end it. */
#include "gateway/telemetry/telemetry_labels.h"

void gw_label_put(bt_buf *out, const char *value) {
    for (; *value != 0; value++) {
        if (*value == '\\' || *value == '"') bt_buf_put(out, "\\", 1);
        bt_buf_put(out, (uint8_t)*value < ' ' ? " " : value, 1);
    }
}

bt_series *gw_labelled(bt_metrics *metrics, bt_metric_id id, const char *label, const char *value) {
    bt_buf labels = {0};
    bt_buf_printf(&labels, "%s=\"", label);
    gw_label_put(&labels, value);
    bt_buf_puts(&labels, "\"");
    bt_series *series = bt_metrics_series(metrics, id, bt_buf_text(&labels));
    bt_buf_fini(&labels);
    return series;
}
