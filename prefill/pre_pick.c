/* Who is computed next: which requests take blocks, and whose rows a step has.
 *
 * Rows are shared by wrk_rows.h's two rules: half of a step for those that have least left, the rest for those that
 * came first. Blocks follow the same two. order[] holds requests by priority, then as they came; "older" below means
 * earlier there. */
#include <string.h>

#include "prefill/pre_internal.h"

void pre_queue_put(pre_sched *sched, const pre_slot *slot) {
    uint32_t at = sched->n_computing + sched->n_queued++;
    for (; at > 0 && sched->slots[sched->order[at - 1]].priority > slot->priority; at--)
        sched->order[at] = sched->order[at - 1];
    sched->order[at] = pre_slot_index(sched, slot);
}

void pre_queue_remove(pre_sched *sched, const pre_slot *slot) {
    uint32_t index = pre_slot_index(sched, slot), n = sched->n_computing + sched->n_queued, at = 0;
    while (sched->order[at] != index) at++;
    memmove(&sched->order[at], &sched->order[at + 1], (n - at - 1) * sizeof(uint32_t));
    if (slot->phase == PRE_QUEUED) {
        sched->n_queued--;
    } else {
        sched->n_computing--;
    }
}

/* ---- blocks ----------------------------------------------------------------------------------------------------- */

uint32_t pre_n_cacheable(const pre_slot *slot) {
    uint32_t n_most = (slot->n_tokens - 1) / KV_BLOCK_TOKENS; /* the last position is computed in any case */
    if (pre_is_scored(slot)) return 0;                        /* and here every one */
    return n_most < slot->n_prefix ? n_most : slot->n_prefix;
}

/* Blocks for all its tokens: what the cache has, and new ones. false: there are too few, and it has none. */
static bool take_blocks(pre_sched *sched, pre_slot *slot) {
    uint32_t n_blocks = kv_blocks_for(slot->n_tokens), n_most = pre_n_cacheable(slot);
    uint32_t n_cached = kv_prefix_take(sched->base.prefix, slot->prefix, n_most, slot->blocks);
    if (kv_pool_acquire(sched->pool, n_blocks - n_cached, slot->blocks + n_cached) != BT_OK) {
        kv_pool_release(sched->pool, slot->blocks, n_cached); /* rule 5 */
        return false;
    }
    slot->n_blocks = n_blocks;
    slot->n_cached_blocks = n_cached;
    slot->n_computed = slot->n_cached_tokens = n_cached * KV_BLOCK_TOKENS;
    sched->n_tokens_left += slot->n_hoped_tokens;
    sched->n_tokens_left -= slot->n_cached_tokens;
    slot->n_hoped_tokens = 0;
    if (sched->base.options.has_prefix_cache) sched->counters.n_prefix_queries += slot->n_prompt;
    sched->counters.n_prefix_hits += slot->n_cached_tokens;
    return true;
}

static bool admit(pre_sched *sched, pre_slot *slot, int64_t now_ns) {
    if (!take_blocks(sched, slot)) return false; /* it is asked again before every step */
    slot->phase = PRE_COMPUTING;
    sched->n_queued--;
    sched->n_computing++;
    wrk_status_changed(&sched->base, now_ns);
    pre_handoff_start(sched, slot, now_ns);
    return true;
}

/* The queued request that has least to compute, if the next step's shorter half has room for it; else NULL. */
static pre_slot *find_short(pre_sched *sched) {
    pre_slot *best = NULL;
    uint32_t n = sched->n_computing + sched->n_queued, n_seqs = 0;
    for (uint32_t at = 0; at < n; at++) {
        pre_slot *slot = &sched->slots[sched->order[at]];
        if (slot->phase == PRE_QUEUED && (best == NULL || pre_n_left(slot) < pre_n_left(best))) best = slot;
    }
    if (best == NULL) return NULL;
    uint64_t n_rows = 0;
    for (uint32_t at = 0; at < n; at++) {
        const pre_slot *slot = &sched->slots[sched->order[at]];
        if (slot->phase != PRE_COMPUTING || pre_n_left(slot) == 0 || pre_n_left(slot) > pre_n_left(best)) continue;
        n_rows += pre_n_left(slot);
        n_seqs++;
    }
    const pre_sched_options *o = &sched->options;
    bool has_room = n_rows < wrk_rows_half(o->max_batched_tokens) && n_seqs < wrk_rows_half(o->max_batched_seqs);
    return has_room ? best : NULL;
}

/* Blocks here and a lease at decode are taken no earlier than the next step needs: what waits in the queue holds
 * nothing. First those that came first, as long as what is older does not fill a step; when one of these finds too few
 * blocks nobody overtakes it, or it might wait for ever. Then the short ones. */
void pre_queue_admit(pre_sched *sched, int64_t now_ns) {
    uint64_t n_older = 0;
    for (uint32_t at = 0; at < sched->n_computing + sched->n_queued && sched->n_queued > 0; at++) {
        pre_slot *slot = &sched->slots[sched->order[at]];
        if (n_older >= sched->options.max_batched_tokens) break;
        if (slot->phase == PRE_QUEUED && !admit(sched, slot, now_ns)) return;
        n_older += pre_n_left(slot);
    }
    for (pre_slot *slot; sched->n_queued > 0 && (slot = find_short(sched)) != NULL;)
        if (!admit(sched, slot, now_ns)) return;
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */

/* The form belongs to the position, so a step of a replayed request ends where its prompt does. */
static uint32_t n_of_one_form(const pre_slot *slot) {
    return (slot->n_computed < slot->n_prompt ? slot->n_prompt : slot->n_tokens) - slot->n_computed;
}

/* A place is a row of logits: one is kept for each request, because this row may be its last. */
void pre_pick_rows(pre_sched *sched) {
    wrk_sched *base = &sched->base;
    uint32_t n_claims = 0;
    base->n_step = sched->n_step_rows = 0;
    for (uint32_t at = 0; at < sched->n_computing + sched->n_queued; at++) {
        const pre_slot *slot = &sched->slots[sched->order[at]];
        if (slot->phase == PRE_COMPUTING)
            base->claims[n_claims++] =
                (wrk_claim){.slot = sched->order[at], .n_left = n_of_one_form(slot), .is_scored = pre_is_scored(slot)};
    }
    wrk_rows_share(base->claims, n_claims, sched->options.max_batched_tokens, sched->options.max_batched_seqs);
    for (uint32_t i = 0; i < n_claims; i++) {
        if (base->claims[i].n_rows == 0) continue;
        base->step_slots[base->n_step++] = base->claims[i].slot;
        sched->slots[base->claims[i].slot].n_step_rows = base->claims[i].n_rows;
        sched->n_step_rows += base->claims[i].n_rows;
    }
}
