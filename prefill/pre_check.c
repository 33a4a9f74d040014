/* What must hold between any two events; tests and the simulation ask after each. */
#include "prefill/pre_internal.h"

bool pre_is_owner(const wrk_sched *base, const wire_request *request) {
    uint32_t index = wrk_slot_find(base, request);
    return index != BT_MAP_NONE && ((const pre_sched *)base)->slots[index].bond != PRE_COMMITTING;
}

static void check_slot(const pre_sched *sched, const pre_slot *slot) {
    uint32_t index = pre_slot_index(sched, slot);
    bool is_queued = slot->phase == PRE_QUEUED;
    BT_ASSERT(slot->n_blocks == (is_queued ? 0 : kv_blocks_for(slot->n_tokens)));
    uint32_t n_complete = slot->n_computed / KV_BLOCK_TOKENS;
    for (uint32_t i = 0; i < slot->n_blocks; i++) /* rule 2: what we still write to is ours alone */
        BT_ASSERT(i < n_complete || (kv_pool_n_holders(sched->pool, slot->blocks[i]) == 1 &&
                                     !kv_pool_is_cached(sched->pool, slot->blocks[i])));
    BT_ASSERT(slot->n_cached_blocks == (n_complete < slot->n_prefix ? n_complete : slot->n_prefix));
    BT_ASSERT(slot->n_computed + slot->n_step_rows <= slot->n_tokens);
    BT_ASSERT((slot->phase == PRE_COMPUTED) <= (slot->n_computed == slot->n_tokens));
    if (slot->phase == PRE_CLOSING) {
        BT_ASSERT(slot->n_step_rows > 0 || slot->n_pushing > 0);
        BT_ASSERT(slot->bond == PRE_UNBOUND && !bt_timers_is_set(&sched->base.timers, index));
        return;
    }
    BT_ASSERT(bt_map_get(&sched->base.by_request, wrk_request_key(&slot->request)) == index);
    BT_ASSERT(!is_queued || slot->bond == PRE_UNBOUND);
    BT_ASSERT(slot->bond != PRE_COMMITTING || slot->phase == PRE_COMPUTED);
    /* Every wait has a deadline; a lease waits for our own steps, a queued request for room. */
    bool waits = !is_queued && slot->bond != PRE_LEASED;
    BT_ASSERT(bt_timers_is_set(&sched->base.timers, index) == waits);
}

void pre_check(const wrk_sched *base) {
    const pre_sched *sched = (const pre_sched *)base;
    uint32_t n[PRE_CLOSING + 1] = {0};
    uint64_t n_left = 0, n_blocks = 0;
    for (uint32_t i = 0; i < sched->base.n_slots; i++) {
        const pre_slot *slot = &sched->slots[i];
        n[slot->phase]++;
        n_blocks += slot->n_blocks;
        if (slot->phase == PRE_FREE) continue;
        check_slot(sched, slot);
        if (slot->phase != PRE_QUEUED && slot->phase != PRE_COMPUTING) continue;
        BT_ASSERT(slot->n_hoped_tokens == 0 || slot->phase == PRE_QUEUED);
        n_left += slot->n_tokens - slot->n_computed - slot->n_hoped_tokens;
    }
    BT_ASSERT(n[PRE_FREE] == sched->base.n_free_slots && n[PRE_QUEUED] == sched->n_queued);
    BT_ASSERT(n[PRE_COMPUTING] == sched->n_computing && n[PRE_COMPUTED] == sched->n_computed);
    BT_ASSERT(n_left == sched->n_tokens_left);
    wrk_sched_check_pool(base, n_blocks);
    BT_ASSERT(sched->base.by_request.n_used == sched->n_queued + sched->n_computing + sched->n_computed);
    for (uint32_t i = 0; i < sched->n_computing + sched->n_queued; i++) {
        pre_phase phase = sched->slots[sched->order[i]].phase;
        BT_ASSERT(i == 0 || sched->slots[sched->order[i - 1]].priority <= sched->slots[sched->order[i]].priority);
        BT_ASSERT(phase == PRE_COMPUTING || phase == PRE_QUEUED);
    }
}
