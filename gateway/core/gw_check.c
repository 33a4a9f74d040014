/* What must hold between any two events; tests and the simulation ask after each. */
#include "gateway/core/gw_internal.h"

static bool add_worker(void *context, const gw_worker *worker) {
    gw_sum *sum = context;
    sum->n += worker->own.n;
    sum->n_blocks += worker->own.n_blocks;
    sum->n_tokens += worker->own.n_tokens;
    BT_ASSERT(worker->unseen.n <= worker->own.n && worker->accepted.n <= worker->unseen.n);
    return true;
}

static void add_booking(const gw_core *core, const gw_booking *booking, gw_sum *sum) {
    const gw_worker *worker = booking->incarnation != 0 ? gw_router_worker(core->router, booking->incarnation) : NULL;
    if (worker == NULL || worker->link != booking->link) return;
    sum->n++;
    sum->n_blocks += booking->n_blocks;
    sum->n_tokens += booking->n_tokens;
}

void gw_core_check(gw_core *core) {
    gw_sum booked = {0}, workers = {0};
    uint32_t n_used = 0, n_ended = 0, n_queued = 0;
    for (uint32_t i = 0; i < core->options.max_requests; i++) {
        const gw_slot *slot = &core->slots[i];
        n_used += slot->is_used;
        n_ended += slot->has_ended;
        if (!slot->is_used) continue;
        BT_ASSERT(bt_map_get(&core->by_serial, gw_u64_key(slot->serial)) == i);
        BT_ASSERT(bt_timers_is_set(&core->timers, i) == !slot->has_ended); /* every wait has a deadline */
        BT_ASSERT(slot->info.n_output <= slot->max_tokens && slot->n_base <= slot->info.n_output);
        BT_ASSERT(slot->info.n_prompt + slot->info.n_output <= slot->cap_tokens);
        n_queued += slot->is_queued;
        BT_ASSERT(!slot->is_queued || (slot->info.phase == GW_WAITING && !slot->has_ended));
        add_booking(core, &slot->booked_prefill, &booked);
        add_booking(core, &slot->booked_decode, &booked);
    }
    gw_router_each(core->router, add_worker, &workers);
    BT_ASSERT(booked.n == workers.n && booked.n_blocks == workers.n_blocks && booked.n_tokens == workers.n_tokens);
    BT_ASSERT(n_used + core->n_free_slots == core->options.max_requests && n_ended == core->n_ended_slots);
    BT_ASSERT(core->by_serial.n_used == n_used && n_queued == core->queue.n);
    BT_ASSERT(core->queue.n == 0 || !gw_attempt_has_room(core, &core->slots[core->queue.items[0].slot]));
    for (uint32_t i = 0; i < core->queue.n; i++) {
        BT_ASSERT(core->slots[core->queue.items[i].slot].is_queued);
        BT_ASSERT(i == 0 || gw_queued_is_before(&core->queue.items[i - 1], &core->queue.items[i]));
    }
}
