/* Requests in the order in which they get a worker: by priority, lower first, as vLLM has it, then as they came. A
 * sorted array: queues are short (hundreds), and the one that holds others up is looked at far more often than any
 * joins. Plain data. */
#ifndef BATON_GATEWAY_CORE_GW_QUEUE_H
#define BATON_GATEWAY_CORE_GW_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    int64_t priority;
    uint64_t serial; /* grows with each request */
    uint32_t slot;   /* the owner's */
} gw_queued;

/* Starts empty: {0}. */
typedef struct {
    gw_queued *items; /* [n] owned; the first is next */
    uint32_t n, cap;
} gw_queue;

void gw_queue_fini(gw_queue *queue);

bool gw_queued_is_before(const gw_queued *x, const gw_queued *y);
void gw_queue_put(gw_queue *queue, gw_queued item);
bool gw_queue_remove(gw_queue *queue, const gw_queued *item); /* false: it is not there */

#endif
