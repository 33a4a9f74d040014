/* What must hold between any two events; tests and the simulation ask after each. */
#include "decode/dec_internal.h"

bool dec_is_owner(const wrk_sched *base, const wire_request *request) {
    const dec_sched *sched = (const dec_sched *)base;
    uint32_t index = wrk_slot_find(base, request);
    if (index == BT_MAP_NONE) return false;
    return sched->slots[index].state == DEC_WAITING || sched->slots[index].state == DEC_RUNNING;
}

static void check_slot(const dec_sched *sched, const dec_slot *slot) {
    uint32_t index = dec_slot_index(sched, slot);
    bool has_lease = slot->state == DEC_LEASED || slot->state == DEC_SETTLING || slot->state == DEC_QUARANTINE;
    bool is_ours = slot->state == DEC_WAITING || slot->state == DEC_RUNNING;
    for (uint32_t i = 0; i < slot->n_blocks; i++) /* rule 2: somebody writes, so the slot is alone */
        BT_ASSERT(i < slot->n_shared || (kv_pool_n_holders(sched->pool, slot->blocks[i]) == 1 &&
                                         !kv_pool_is_cached(sched->pool, slot->blocks[i])));
    BT_ASSERT(slot->n_shared * KV_BLOCK_TOKENS <= (has_lease ? slot->n_leased_tokens : slot->n_cached));
    BT_ASSERT(slot->n_shared <= slot->n_prefix && slot->n_blocks <= slot->cap_blocks);
    BT_ASSERT(!has_lease || bt_map_get(&sched->by_lease, wrk_u64_key(slot->lease)) == index);
    BT_ASSERT(slot->state != DEC_LEASED || bt_timers_is_set(&sched->base.timers, index));
    BT_ASSERT(slot->state == DEC_LEASED || slot->state == DEC_SETTLING ||
              !bt_timers_is_set(&sched->base.timers, index));
    BT_ASSERT(slot->state != DEC_DEAD || slot->n_step_rows > 0);
    if (slot->state != DEC_QUARANTINE && slot->state != DEC_DEAD)
        BT_ASSERT(bt_map_get(&sched->base.by_request, wrk_request_key(&slot->request)) == index);
    if (!is_ours) return;
    BT_ASSERT(sched->gateways[slot->gateway].incarnation == slot->request.gateway);
    BT_ASSERT(slot->n_tokens + slot->owes_first > slot->n_prompt &&
              slot->n_tokens < slot->n_prompt + slot->end.max_output);
    BT_ASSERT(slot->n_cached < slot->n_tokens &&
              slot->n_cached + slot->n_step_rows <= slot->n_blocks * KV_BLOCK_TOKENS);
    BT_ASSERT(slot->state == DEC_WAITING || slot->n_blocks > 0);
    BT_ASSERT(slot->n_step_rows == 0 || (slot->state == DEC_RUNNING && sched->base.is_stepping));
}

void dec_check(const wrk_sched *base) {
    const dec_sched *sched = (const dec_sched *)base;
    uint32_t n[DEC_DEAD + 1] = {0};
    uint64_t n_blocks = 0;
    for (uint32_t i = 0; i < sched->base.n_slots; i++) {
        const dec_slot *slot = &sched->slots[i];
        n[slot->state]++;
        n_blocks += slot->n_blocks;
        if (slot->state != DEC_FREE) check_slot(sched, slot);
    }
    BT_ASSERT(n[DEC_FREE] == sched->base.n_free_slots && n[DEC_LEASED] + n[DEC_SETTLING] == sched->n_leases);
    BT_ASSERT(n[DEC_QUARANTINE] == sched->n_quarantined);
    BT_ASSERT(n[DEC_WAITING] == sched->n_waiting && n[DEC_RUNNING] == sched->n_running);
    wrk_sched_check_pool(base, n_blocks);
    BT_ASSERT(sched->by_lease.n_used == sched->n_leases + sched->n_quarantined);
    BT_ASSERT(sched->base.by_request.n_used == sched->n_leases + sched->n_waiting + sched->n_running);
    BT_ASSERT(bt_timers_is_set(&base->timers, base->n_slots + WRK_TIMER_ROLE) == (n[DEC_WAITING] + n[DEC_RUNNING] > 0));
    for (uint32_t i = 0; i < sched->n_running + sched->n_waiting; i++)
        BT_ASSERT(sched->slots[sched->order[i]].state == DEC_RUNNING ||
                  sched->slots[sched->order[i]].state == DEC_WAITING);
}
