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

/* A choice of the same answer has left the queue: it runs, or has ended. */
static bool has_begun(const gw_core *core, const gw_slot *slot) {
    for (uint32_t i = 0; i < slot->n_choices; i++) {
        uint32_t index = bt_map_get(&core->by_serial, gw_u64_key(slot->first_serial + i));
        if (index == BT_MAP_NONE || !core->slots[index].is_queued) return true;
    }
    return false;
}

static gw_slot *slot_at(const gw_core *core, uint32_t at) { return &core->slots[core->queue.items[at].slot]; }

/* How many places there would be for a newcomer and the choices that follow it. Those of an answer that has not begun
 * are neighbours. */
static int64_t count_places(const gw_core *core, const gw_queued *item, int64_t n_needed) {
    int64_t n = (int64_t)core->options.max_queued - core->queue.n;
    for (uint32_t at = core->queue.n; at > 0 && n < n_needed;) {
        if (!gw_queued_is_before(item, &core->queue.items[at - 1])) break;
        const gw_slot *slot = slot_at(core, at - 1);
        bool may_go = !has_begun(core, slot);
        if (may_go) n += slot->n_choices;
        at -= may_go ? slot->n_choices : 1;
    }
    return n;
}

/* With the other choices of its answer, none of which has begun. */
static void push_out(gw_core *core, const gw_slot *slot, const char *why, const char *text) {
    uint64_t first = slot->first_serial, end = first + slot->n_choices;
    for (uint64_t serial = first; serial < end; serial++)
        gw_slot_fail(core, gw_slot_find(core, serial), BT_AGAIN, why, text);
}

/* Somebody must go: the one that would be next last. */
static bt_status make_place(gw_core *core, const gw_slot *newcomer, bt_error *err) {
    gw_queued item = item_of(core, newcomer);
    int64_t n_needed = (int64_t)(newcomer->first_serial + newcomer->n_choices - newcomer->serial);
    if (core->queue.n + n_needed <= core->options.max_queued) return BT_OK;
    core->counters.n_queue_full++;
    if (count_places(core, &item, n_needed) < n_needed)
        return bt_fail(err, BT_AGAIN, "No worker has room for the request now, and the queue is full.");
    for (uint32_t at = core->queue.n; core->queue.n >= core->options.max_queued;) {
        const gw_slot *last = slot_at(core, --at);
        if (has_begun(core, last)) continue;
        at -= last->n_choices - 1;
        push_out(core, last, "queue_full", "The queue is full, and requests of higher priority have come.");
    }
    return BT_OK;
}

bt_status gw_wait_join(gw_core *core, gw_slot *slot, bt_error *err) {
    bt_status status = make_place(core, slot, err);
    if (status == BT_OK) put(core, slot);
    return status;
}

void gw_wait_rejoin(gw_core *core, gw_slot *slot) { put(core, slot); }

void gw_wait_late(gw_core *core, gw_slot *slot, int64_t now_ns) {
    if (has_begun(core, slot)) {
        gw_slot_set_timer(core, slot, now_ns, core->options.first_token_ms);
        return;
    }
    core->counters.n_queue_late += slot->n_choices;
    push_out(core, slot, "queue_timeout", "No worker had room for the request in time.");
}

/* Whoever cannot go holds up those behind it, or a large request would wait for ever behind small ones. But one that
 * a filter keeps from going where others may go stands aside, and one whose last worker is gone waits for that one's
 * return, and not for long. */
static void walk(gw_core *core, int64_t now_ns) {
    for (uint32_t at = 0; at < core->queue.n;) {
        gw_slot *slot = slot_at(core, at);
        bt_status status = gw_attempt_start(core, slot, true, now_ns, NULL);
        if (status == BT_OK) continue; /* it has left the queue */
        if (status == BT_NO_CAPACITY) {
            gw_wait_leave(core, slot);
            gw_attempt_retry(core, slot, now_ns);
        } else if (slot->filter == NULL) {
            return;
        } else {
            at++;
        }
    }
}

void gw_wait_serve(gw_core *core, int64_t now_ns) {
    while (core->queue.n > 0 && core->queue_version != gw_router_version(core->router)) {
        core->queue_version = gw_router_version(core->router);
        walk(core, now_ns);
    }
}
