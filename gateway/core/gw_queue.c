#include "gateway/core/gw_queue.h"

#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"

void gw_queue_fini(gw_queue *queue) {
    free(queue->items);
    *queue = (gw_queue){0};
}

bool gw_queued_is_before(const gw_queued *x, const gw_queued *y) {
    return x->priority != y->priority ? x->priority < y->priority : x->serial < y->serial;
}

/* How many are before it. */
static uint32_t place_of(const gw_queue *queue, const gw_queued *item) {
    uint32_t low = 0, high = queue->n;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (gw_queued_is_before(&queue->items[middle], item)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

void gw_queue_put(gw_queue *queue, gw_queued item) {
    if (queue->n == queue->cap) {
        queue->cap = queue->cap * 2 + 16;
        queue->items = bt_realloc(queue->items, queue->cap, sizeof(gw_queued));
    }
    uint32_t at = place_of(queue, &item);
    memmove(&queue->items[at + 1], &queue->items[at], (queue->n - at) * sizeof(gw_queued));
    queue->items[at] = item;
    queue->n++;
}

bool gw_queue_remove(gw_queue *queue, const gw_queued *item) {
    uint32_t at = place_of(queue, item);
    if (at == queue->n || queue->items[at].serial != item->serial) return false;
    queue->n--;
    memmove(&queue->items[at], &queue->items[at + 1], (queue->n - at) * sizeof(gw_queued));
    return true;
}
