/* A ring of points behind a lock that nobody needs more often than once a second, and counts without one. */
#include "gateway/telemetry/history.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"

#define X(name) +1
enum {
    N_TOTALS = 0 GW_HISTORY_TOTALS(X),
    N_VALUES = N_TOTALS GW_HISTORY_GAUGES(X),
    N_BUCKETS = 248, /* 1 us to an hour */
    N_QUANTILES = 3,
};
#undef X
_Static_assert(sizeof(gw_sample) == N_VALUES * sizeof(double), "a sample is read as a row of numbers");

static const double quantiles[N_QUANTILES] = {0.5, 0.95, 0.99};

/* Latencies of the last seconds. */
typedef struct {
    atomic_uint now[N_BUCKETS];                     /* since the last point */
    uint32_t seconds[GW_HISTORY_WINDOW][N_BUCKETS]; /* a ring */
    uint32_t sum[N_BUCKETS], n;                     /* of the ring */
} latencies;

struct gw_history {
    latencies latency[GW_N_LATENCIES];
    double last_totals[N_TOTALS];
    pthread_mutex_t lock;             /* of what follows */
    uint64_t n_points;                /* ever */
    bt_buf points[GW_HISTORY_POINTS]; /* as they are sent, so that who asks for all of them costs a copy */
};

gw_history *gw_history_open(void) {
    gw_history *history = bt_calloc(1, sizeof *history);
    pthread_mutex_init(&history->lock, NULL);
    return history;
}

void gw_history_close(gw_history *history) {
    if (history == NULL) return;
    for (int i = 0; i < GW_HISTORY_POINTS; i++) bt_buf_fini(&history->points[i]);
    pthread_mutex_destroy(&history->lock);
    free(history);
}

/* ---- latencies ------------------------------------------------------------------------------------------------------
 */

/* Eight buckets from one power of two to the next, in units of 1024 ns. */
static uint32_t bucket_of(int64_t ns) {
    uint64_t units = ns > 0 ? (uint64_t)ns >> 10 : 0;
    if (units < 8) return (uint32_t)units;
    uint32_t power = 63 - (uint32_t)__builtin_clzll(units);
    uint32_t bucket = 8 * (power - 2) + ((uint32_t)(units >> (power - 3)) & 7);
    return bucket < N_BUCKETS ? bucket : N_BUCKETS - 1;
}

static double middle_ms(uint32_t bucket) {
    double units = bucket < 8 ? bucket + 0.5 : ldexp(8.5 + bucket % 8, (int)(bucket / 8) - 1);
    return units * 1024 / 1e6;
}

void gw_history_observe(gw_history *history, gw_latency which, int64_t ns) {
    atomic_fetch_add_explicit(&history->latency[which].now[bucket_of(ns)], 1, memory_order_relaxed);
}

/* The current second takes the place of the oldest. */
static void window_move(latencies *l, uint64_t n_points) {
    uint32_t *oldest = l->seconds[n_points % GW_HISTORY_WINDOW];
    for (uint32_t i = 0; i < N_BUCKETS; i++) {
        uint32_t n_new = atomic_exchange_explicit(&l->now[i], 0, memory_order_relaxed);
        l->sum[i] += n_new - oldest[i];
        l->n += n_new - oldest[i];
        oldest[i] = n_new;
    }
}

/* Appends the quantiles, in ms. */
static void window_write(const latencies *l, bt_buf *out) {
    uint64_t n_below = 0;
    uint32_t bucket = 0;
    for (int q = 0; q < N_QUANTILES; q++) {
        double rank = ceil(quantiles[q] * l->n); /* of the sample that is meant, from 1 */
        while (l->n > 0 && (double)(n_below + l->sum[bucket]) < rank) n_below += l->sum[bucket++];
        if (l->n > 0)
            bt_buf_printf(out, ",%.4g", middle_ms(bucket));
        else
            bt_buf_puts(out, ",null");
    }
}

/* ---- points ---------------------------------------------------------------------------------------------------------
 */

void gw_history_put(gw_history *history, const gw_sample *sample, int64_t unix_ms) {
    double values[N_VALUES];
    memcpy(values, sample, sizeof values);
    pthread_mutex_lock(&history->lock);
    bt_buf *point = &history->points[history->n_points % GW_HISTORY_POINTS];
    bt_buf_clear(point);
    bt_buf_printf(point, "[%lld", (long long)unix_ms);
    for (int i = 0; i < N_VALUES; i++) {
        bt_buf_printf(point, ",%.6g", i < N_TOTALS ? values[i] - history->last_totals[i] : values[i]);
        if (i < N_TOTALS) history->last_totals[i] = values[i];
    }
    for (int i = 0; i < GW_N_LATENCIES; i++) {
        window_move(&history->latency[i], history->n_points);
        window_write(&history->latency[i], point);
    }
    bt_buf_puts(point, "]");
    history->n_points++;
    pthread_mutex_unlock(&history->lock);
}

void gw_history_write(gw_history *history, uint64_t after, bt_buf *out) {
#define X(name) ",\"" #name "\""
    static const char columns[] = "\"columns\":[\"t\"" GW_HISTORY_TOTALS(X)
        GW_HISTORY_GAUGES(X) ",\"ttft_p50\",\"ttft_p95\",\"ttft_p99\",\"tpot_p50\",\"tpot_p95\",\"tpot_p99\"]";
#undef X
    pthread_mutex_lock(&history->lock);
    uint64_t last = history->n_points, oldest = last < GW_HISTORY_POINTS ? 0 : last - GW_HISTORY_POINTS;
    if (after > last) after = 0; /* of an earlier life of this gateway */
    bt_buf_printf(out, "{\"last\":%llu,%s,\"points\":[", (unsigned long long)last, columns);
    for (uint64_t i = after > oldest ? after : oldest, first = i; i < last; i++) {
        if (i > first) bt_buf_puts(out, ",");
        bt_buf_put(out, history->points[i % GW_HISTORY_POINTS].bytes, history->points[i % GW_HISTORY_POINTS].n_bytes);
    }
    pthread_mutex_unlock(&history->lock);
    bt_buf_puts(out, "]}");
}
