/* Requests that have no worker yet because none has room: who joins the queue, who leaves it, and when. Room is what
 * gw_router.h says; whenever that may have changed, the queue is walked from its front. */
#include "gateway/core/gw_internal.h"

static gw_queued item_of(const gw_core *core, const gw_slot *slot) {
    return (gw_queued){slot->priority, slot->serial, gw_slot_index(core, slot)};
}

static void put(gw_core *core, gw_slot *slot) {
    slot->is_queued = true;
    slot->info.phase = GW_WAITING;
    gw_queue_put(&core->queue, item_of(core, slot));
    bt_timers_set(&core->timers, gw_slot_index(core, slot), slot->queue_until_ns);
    core->counters.n_queued++;
}

void gw_wait_leave(gw_core *core, gw_slot *slot) {
    if (!slot->is_queued) return;
    gw_queued item = item_of(core, slot);
    bool was_there = gw_queue_remove(&core->queue, &item);
    BT_ASSERT(was_there);
    slot->is_queued = false;
    core->queue_version = 0; /* whom it held up may go */
}

/* Somebody must go: the one that would be next last. */
static bt_status make_place(gw_core *core, const gw_slot *newcomer, bt_error *err) {
    if (core->queue.n < core->options.max_queued) return BT_OK;
    core->counters.n_queue_full++;
    const gw_queued *last = core->queue.n > 0 ? &core->queue.items[core->queue.n - 1] : NULL;
    gw_queued item = item_of(core, newcomer);
    if (last == NULL || core->options.max_queued == 0 || !gw_queued_is_before(&item, last))
        return bt_fail(err, BT_AGAIN, "No worker has room for the request now, and the queue is full.");
    gw_slot_fail(core, &core->slots[last->slot], BT_AGAIN, "queue_full",
                 "The queue is full, and requests of higher priority have come.");
    return BT_OK;
}

bt_status gw_wait_join(gw_core *core, gw_slot *slot, bt_error *err) {
    bt_status status = make_place(core, slot, err);
    if (status == BT_OK) put(core, slot);
    return status;
}

void gw_wait_rejoin(gw_core *core, gw_slot *slot) { put(core, slot); }

void gw_wait_late(gw_core *core, gw_slot *slot) {
    core->counters.n_queue_late++;
    gw_slot_fail(core, slot, BT_AGAIN, "queue_timeout", "No worker had room for the request in time.");
}

/* Whoever cannot go holds up those behind it, or a large request would wait for ever behind small ones. But one that
 * a filter keeps from going where others may go stands aside. */
static void walk(gw_core *core, int64_t now_ns) {
    for (uint32_t at = 0; at < core->queue.n;) {
        gw_slot *slot = &core->slots[core->queue.items[at].slot];
        if (gw_attempt_start(core, slot, true, now_ns, NULL) == BT_OK) continue; /* it has left the queue */
        if (slot->filter == NULL) return;
        at++;
    }
}

void gw_wait_serve(gw_core *core, int64_t now_ns) {
    while (core->queue.n > 0 && core->queue_version != gw_router_version(core->router)) {
        core->queue_version = gw_router_version(core->router);
        walk(core, now_ns);
    }
}
