/* What must hold between any two events; tests and the simulation ask after each. */
#include "gateway/gw_internal.h"

typedef struct {
    uint64_t n_own, n_own_blocks;
} sums;

static bool add_worker(void *context, const gw_worker *worker) {
    sums *sum = context;
    sum->n_own += worker->n_own;
    sum->n_own_blocks += worker->n_own_blocks;
    return true;
}

static bool is_booked(const gw_core *core, const gw_peer *where) {
    const gw_worker *worker = where->incarnation != 0 ? gw_router_worker(core->router, where->incarnation) : NULL;
    return worker != NULL && worker->link == where->link;
}

void gw_core_check(const gw_core *core) {
    sums booked = {0}, workers = {0};
    uint32_t n_used = 0, n_ended = 0;
    for (uint32_t i = 0; i < core->options.max_requests; i++) {
        const gw_slot *slot = &core->slots[i];
        n_used += slot->is_used;
        n_ended += slot->has_ended;
        if (!slot->is_used) continue;
        BT_ASSERT(bt_map_get(&core->by_serial, gw_u64_key(slot->serial)) == i);
        BT_ASSERT(bt_timers_is_set(&core->timers, i) == !slot->has_ended); /* every wait has a deadline */
        BT_ASSERT(slot->info.n_output <= slot->max_tokens && slot->n_base <= slot->info.n_output);
        BT_ASSERT(slot->info.n_prompt + slot->info.n_output <= slot->cap_tokens);
        if (is_booked(core, &slot->booked_prefill)) booked.n_own++;
        if (!is_booked(core, &slot->booked_decode)) continue;
        booked.n_own++;
        booked.n_own_blocks += slot->n_blocks;
    }
    gw_router_each(core->router, add_worker, &workers);
    BT_ASSERT(booked.n_own == workers.n_own && booked.n_own_blocks == workers.n_own_blocks);
    BT_ASSERT(n_used + core->n_free_slots == core->options.max_requests && n_ended == core->n_ended_slots);
    BT_ASSERT(core->by_serial.n_used == n_used);
}
