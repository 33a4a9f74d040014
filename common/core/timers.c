/* A binary heap of ids that knows where each id is, so that a deadline can be moved or taken out. */
#include "common/core/timers.h"

#include <stdlib.h>

#include "common/core/alloc.h"
#include "common/core/status.h"

void bt_timers_init(bt_timers *timers, uint32_t n_ids) {
    *timers = (bt_timers){.at_ns = bt_calloc(n_ids, sizeof(int64_t)),
                          .heap = bt_calloc(n_ids, sizeof(uint32_t)),
                          .where = bt_calloc(n_ids, sizeof(uint32_t)),
                          .n_ids = n_ids};
    for (uint32_t i = 0; i < n_ids; i++) timers->where[i] = UINT32_MAX;
}

void bt_timers_fini(bt_timers *timers) {
    free(timers->at_ns);
    free(timers->heap);
    free(timers->where);
    *timers = (bt_timers){0};
}

static void place(bt_timers *timers, uint32_t at, uint32_t id) {
    timers->heap[at] = id;
    timers->where[id] = at;
}

static void sift_up(bt_timers *timers, uint32_t at, uint32_t id) {
    while (at > 0 && timers->at_ns[timers->heap[(at - 1) / 2]] > timers->at_ns[id]) {
        place(timers, at, timers->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    place(timers, at, id);
}

static void sift_down(bt_timers *timers, uint32_t at, uint32_t id) {
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= timers->n_set) break;
        if (child + 1 < timers->n_set && timers->at_ns[timers->heap[child + 1]] < timers->at_ns[timers->heap[child]])
            child++;
        if (timers->at_ns[timers->heap[child]] >= timers->at_ns[id]) break;
        place(timers, at, timers->heap[child]);
        at = child;
    }
    place(timers, at, id);
}

void bt_timers_clear(bt_timers *timers, uint32_t id) {
    BT_ASSERT(id < timers->n_ids);
    uint32_t at = timers->where[id];
    if (at == UINT32_MAX) return;
    timers->where[id] = UINT32_MAX;
    uint32_t last = timers->heap[--timers->n_set];
    if (last == id) return;
    if (at > 0 && timers->at_ns[timers->heap[(at - 1) / 2]] > timers->at_ns[last]) {
        sift_up(timers, at, last);
    } else {
        sift_down(timers, at, last);
    }
}

void bt_timers_set(bt_timers *timers, uint32_t id, int64_t at_ns) {
    BT_ASSERT(id < timers->n_ids);
    uint32_t at = timers->where[id];
    int64_t was_ns = timers->at_ns[id];
    timers->at_ns[id] = at_ns;
    if (at == UINT32_MAX) {
        sift_up(timers, timers->n_set++, id);
    } else if (at_ns < was_ns) {
        sift_up(timers, at, id);
    } else {
        sift_down(timers, at, id);
    }
}

bool bt_timers_is_set(const bt_timers *timers, uint32_t id) { return timers->where[id] != UINT32_MAX; }

int64_t bt_timers_next_ns(const bt_timers *timers) {
    return timers->n_set == 0 ? INT64_MAX : timers->at_ns[timers->heap[0]];
}

bool bt_timers_pop(bt_timers *timers, int64_t now_ns, uint32_t *out_id) {
    if (timers->n_set == 0 || timers->at_ns[timers->heap[0]] > now_ns) return false;
    *out_id = timers->heap[0];
    bt_timers_clear(timers, *out_id);
    return true;
}
