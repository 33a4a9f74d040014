/* Milliseconds in, verdicts out. */
#include "gateway/telemetry/slo.h"

#include <stdlib.h>
#include <string.h>

#include "common/core/clock.h"

void gw_slo_read(const char *text, size_t n_bytes, int64_t *target_ns) {
    enum { MAX_MS = 24 * 3600 * 1000 };
    char copy[16], *end;
    if (n_bytes == 0 || n_bytes >= sizeof copy) return;
    memcpy(copy, text, n_bytes);
    copy[n_bytes] = 0;
    if (strspn(copy, "0123456789.") != n_bytes) return; /* strtod takes signs, spaces, hexadecimal and names too */
    double ms = strtod(copy, &end);
    if (*end != 0 || ms * BT_NS_PER_MS < 1 || ms > MAX_MS) return;
    *target_ns = (int64_t)(ms * BT_NS_PER_MS);
}

gw_verdict gw_slo_judge(int64_t target_ns, int64_t time_ns) {
    if (target_ns == 0 || time_ns == 0) return GW_SLO_UNKNOWN;
    return time_ns <= target_ns ? GW_SLO_ATTAINED : GW_SLO_MISSED;
}
