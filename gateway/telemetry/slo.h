/* Targets for a request's times, and whether it met them. The operator's come from --slo-ttft-ms and --slo-tpot-ms; a
 * client may state its own in llm-d's headers. They are measured against, nothing is promised. Any thread. */
#ifndef BATON_GATEWAY_TELEMETRY_SLO_H
#define BATON_GATEWAY_TELEMETRY_SLO_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    int64_t ttft_ns; /* first request byte to first token; 0: no target */
    int64_t tpot_ns; /* mean time of a token after the first; 0: no target */
} gw_slo;

typedef enum { GW_SLO_UNKNOWN, GW_SLO_ATTAINED, GW_SLO_MISSED } gw_verdict;

/* A header's milliseconds ("250", "12.5"), which replace *target_ns; what is no number over 0 and up to a day is
 * ignored. */
void gw_slo_read(const char *text, size_t n_bytes, int64_t *target_ns);

/* GW_SLO_UNKNOWN: there is no target, or time_ns is 0: nothing was measured. */
gw_verdict gw_slo_judge(int64_t target_ns, int64_t time_ns);

#endif
