/* Who is computed next: which requests take blocks, and whose rows a step has.
 *
 * A step's budget is halved. The first half goes to those that have least left, so a short prompt is in the next step
 * however long the others are; all that remains goes to those that came first, so a long prompt always moves at half
 * the speed at least, however many short ones come. What one half leaves the other uses: steps are full.
 * Blocks follow the same two rules. order[] holds requests as they came. */
#include <string.h>

#include "prefill/pre_internal.h"

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

/* Blocks for all its tokens: what the cache has, and new ones. false: there are too few, and it has none. */
static bool take_blocks(pre_sched *sched, pre_slot *slot) {
    uint32_t n_blocks = kv_blocks_for(slot->n_tokens), n_most = (slot->n_tokens - 1) / KV_BLOCK_TOKENS;
    if (n_most > slot->n_prefix) n_most = slot->n_prefix; /* the last position is computed in any case */
    if (pre_is_scored(slot)) n_most = 0;                  /* and here every one */
    uint32_t n_cached = kv_prefix_take(sched->base.prefix, slot->prefix, n_most, slot->blocks);
    if (kv_pool_acquire(sched->pool, n_blocks - n_cached, slot->blocks + n_cached) != BT_OK) {
        kv_pool_release(sched->pool, slot->blocks, n_cached); /* rule 5 */
        return false;
    }
    slot->n_blocks = n_blocks;
    slot->n_cached_blocks = n_cached;
    slot->n_computed = slot->n_cached_tokens = n_cached * KV_BLOCK_TOKENS;
    sched->n_tokens_left -= slot->n_cached_tokens;
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

/* Rows and places of a step that the shorter half gets; 0 of either: steps are too small to be shared. */
static uint32_t half_rows(const pre_sched *sched) { return sched->options.max_batched_tokens / 2; }
static uint32_t half_seqs(const pre_sched *sched) { return sched->options.max_batched_seqs / 2; }

/* The queued request that has least to compute, if the next step's shorter half has room for it; else NULL. */
static pre_slot *find_short(pre_sched *sched) {
    pre_slot *best = NULL;
    uint32_t n = sched->n_computing + sched->n_queued, n_seqs = 0;
    for (uint32_t at = 0; at < n; at++) {
        pre_slot *slot = &sched->slots[sched->order[at]];
        if (slot->phase == PRE_QUEUED && (best == NULL || slot->n_tokens < best->n_tokens)) best = slot;
    }
    if (best == NULL) return NULL;
    uint64_t n_rows = 0;
    for (uint32_t at = 0; at < n; at++) {
        const pre_slot *slot = &sched->slots[sched->order[at]];
        if (slot->phase != PRE_COMPUTING || pre_n_left(slot) == 0 || pre_n_left(slot) > best->n_tokens) continue;
        n_rows += pre_n_left(slot);
        n_seqs++;
    }
    return n_rows < half_rows(sched) && n_seqs < half_seqs(sched) ? best : NULL;
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

/* Up to n_max_rows rows more of a request. The form belongs to the position, so a step of a replayed request ends where
 * its prompt does. */
static uint32_t add_rows(pre_sched *sched, pre_slot *slot, uint32_t n_max_rows) {
    bool is_prompt = slot->n_computed < slot->n_prompt;
    uint32_t n_left = (is_prompt ? slot->n_prompt : slot->n_tokens) - slot->n_computed - slot->n_step_rows;
    uint32_t n_free_logits = sched->options.max_batched_seqs - sched->n_step_logits;
    bool is_scored = pre_is_scored(slot), is_new = slot->n_step_rows == 0;
    if (is_scored && n_max_rows > n_free_logits) n_max_rows = n_free_logits;
    uint32_t n_rows = n_left < n_max_rows ? n_left : n_max_rows;
    if (n_rows == 0 || (is_new && n_free_logits == 0)) return 0;
    sched->n_step_logits += is_scored ? n_rows : is_new; /* one is kept for the row that may be its last */
    if (slot->n_step_rows == 0) sched->base.step_slots[sched->base.n_step++] = pre_slot_index(sched, slot);
    slot->n_step_rows += n_rows;
    sched->n_step_rows += n_rows;
    return n_rows;
}

/* Of those that have no row in the step yet, the one with least left; of equals the older one. */
static pre_slot *find_shortest(pre_sched *sched) {
    pre_slot *best = NULL;
    for (uint32_t at = 0; at < sched->n_computing + sched->n_queued; at++) {
        pre_slot *slot = &sched->slots[sched->order[at]];
        if (slot->phase != PRE_COMPUTING || slot->n_step_rows > 0) continue;
        if (best == NULL || pre_n_left(slot) < pre_n_left(best)) best = slot;
    }
    return best;
}

void pre_pick_rows(pre_sched *sched) {
    const pre_sched_options *o = &sched->options;
    sched->base.n_step = sched->n_step_rows = sched->n_step_logits = 0;
    while (sched->n_step_rows < half_rows(sched) && sched->base.n_step < half_seqs(sched)) {
        pre_slot *slot = find_shortest(sched);
        if (slot == NULL || add_rows(sched, slot, half_rows(sched) - sched->n_step_rows) == 0) break;
    }
    for (uint32_t at = 0; at < sched->n_computing + sched->n_queued; at++) {
        pre_slot *slot = &sched->slots[sched->order[at]];
        if (slot->phase != PRE_COMPUTING || (slot->n_step_rows == 0 && sched->base.n_step == o->max_batched_seqs))
            continue;
        add_rows(sched, slot, o->max_batched_tokens - sched->n_step_rows);
    }
}
