/* The talk with decode about one request: find a worker that takes it, push each block of each layer once when it is
 * complete, hand over, and keep the lease alive meanwhile. What a push is made of is the transfer layer's business.
 *
 * A partially filled block is not pushed before the last position is computed, so no block is pushed twice under one
 * lease and the number of pushes is known to both sides. */
#include <string.h>

#include "prefill/pre_internal.h"

static void set_timer(pre_sched *sched, const pre_slot *slot, int64_t now_ns, uint32_t ms) {
    bt_timers_set(&sched->base.timers, pre_slot_index(sched, slot), wrk_after_ms(now_ns, ms));
}

static uint64_t decode_of(const pre_slot *slot) { return slot->candidates[slot->candidate].incarnation; }

/* UINT32_MAX: the request does not know that worker. */
static uint32_t candidate_of(const pre_slot *slot, uint64_t decode) {
    for (uint32_t i = 0; i < slot->n_candidates; i++)
        if (slot->candidates[i].incarnation == decode) return i;
    return UINT32_MAX;
}

/* ---- choosing --------------------------------------------------------------------------------------------------- */

static void send_reserve(pre_sched *sched, pre_slot *slot, int64_t now_ns) {
    slot->bond = PRE_RESERVING;
    uint32_t n_output = slot->n_tokens - slot->n_prompt; /* so far */
    pre_send_decode(sched, slot,
                    &(wire_message){.type = WIRE_RESERVE,
                                    .reserve = {.request = slot->request,
                                                .n_tokens = slot->n_tokens,
                                                .max_tokens = slot->end.max_output - n_output,
                                                .prefix = slot->prefix,
                                                .n_prefix = slot->n_prefix}});
    set_timer(sched, slot, now_ns, sched->options.reserve_ms);
}

static void try_candidate(pre_sched *sched, pre_slot *slot, uint32_t candidate, int64_t now_ns) {
    slot->candidate = candidate;
    uint64_t decode = decode_of(slot);
    uint32_t peer = bt_map_get(&sched->by_decode, wrk_u64_key(decode));
    if (peer == PRE_PEER_UP) {
        send_reserve(sched, slot, now_ns);
        return;
    }
    slot->bond = PRE_CONNECTING;
    set_timer(sched, slot, now_ns, sched->options.connect_ms);
    if (peer == PRE_PEER_CONNECTING) return; /* on behalf of another request */
    bt_map_put(&sched->by_decode, wrk_u64_key(decode), PRE_PEER_CONNECTING);
    wrk_act(&sched->base, WRK_CONNECT, decode)->candidate = slot->candidates[candidate];
}

/* The next one of this round; after the last a pause and a new round, until it has lasted too long. The slot is
 * unbound. */
static void try_next(pre_sched *sched, pre_slot *slot, int64_t now_ns) {
    slot->bond = PRE_UNBOUND;
    for (uint32_t i = 0; i < slot->n_candidates; i++) {
        if (((slot->tried | slot->hopeless) >> i & 1) != 0) continue;
        try_candidate(sched, slot, i, now_ns);
        return;
    }
    if (slot->give_up_ns == 0) slot->give_up_ns = wrk_after_ms(now_ns, sched->options.no_decode_ms);
    if (slot->hopeless == (1u << slot->n_candidates) - 1) {
        if (slot->has_lost_candidate) {
            pre_slot_fail(sched, slot, BT_PEER_LOST, "No decode worker of the request is left.", now_ns);
        } else {
            pre_slot_fail(sched, slot, BT_BAD_REQUEST, "The request does not fit any decode worker.", now_ns);
        }
    } else if (now_ns >= slot->give_up_ns) {
        pre_slot_fail(sched, slot, BT_NO_CAPACITY, "No decode worker had room for the request.", now_ns);
    } else {
        slot->tried = 0;
        set_timer(sched, slot, now_ns, sched->options.retry_ms);
    }
}

void pre_handoff_start(pre_sched *sched, pre_slot *slot, int64_t now_ns) { try_next(sched, slot, now_ns); }

static void skip_candidate(pre_sched *sched, pre_slot *slot, bool is_hopeless, bool is_lost, int64_t now_ns) {
    uint32_t bit = 1u << slot->candidate;
    slot->tried |= bit;
    if (is_hopeless) slot->hopeless |= bit;
    if (is_lost) slot->has_lost_candidate = true;
    try_next(sched, slot, now_ns);
}

void pre_handoff_abort(pre_sched *sched, pre_slot *slot) {
    wire_message abort = {.type = WIRE_ABORT, .abort = {.request = slot->request}};
    switch (slot->bond) {
    case PRE_RESERVING: /* its answer will come and mean nothing */
        slot->n_stale[slot->candidate]++;
        pre_send_decode(sched, slot, &abort);
        break;
    case PRE_LEASED:
    case PRE_COMMITTING:
        abort.abort.lease = slot->lease;
        pre_send_decode(sched, slot, &abort);
        break;
    case PRE_UNBOUND:
    case PRE_CONNECTING:
        break;
    }
    slot->bond = PRE_UNBOUND;
    bt_timers_clear(&sched->base.timers, pre_slot_index(sched, slot));
}

void pre_handoff_late(pre_sched *sched, pre_slot *slot, int64_t now_ns) {
    switch (slot->bond) {
    case PRE_UNBOUND: /* the pause is over */
        try_next(sched, slot, now_ns);
        break;
    case PRE_CONNECTING:
        sched->counters.n_timeouts++;
        skip_candidate(sched, slot, false, false, now_ns);
        break;
    case PRE_RESERVING:
        sched->counters.n_timeouts++;
        pre_handoff_abort(sched, slot);
        skip_candidate(sched, slot, false, false, now_ns);
        break;
    case PRE_COMMITTING: /* in doubt, and nobody else may get it: the gateway starts anew */
        sched->counters.n_timeouts++;
        pre_slot_fail(sched, slot, BT_TIMEOUT, "The decode worker did not confirm the hand-off in time.", now_ns);
        break;
    case PRE_LEASED:
        BT_ASSERT(!"a lease has no timer here");
    }
}

/* ---- pushing and handing over ----------------------------------------------------------------------------------- */

/* Blocks whose layer `layer` is complete. */
static uint32_t n_ready_blocks(const pre_sched *sched, const pre_slot *slot, uint32_t layer) {
    uint32_t n = slot->n_computed + (layer < sched->n_layers_done ? slot->n_step_rows : 0);
    return n == slot->n_tokens ? kv_blocks_for(n) : n / KV_BLOCK_TOKENS;
}

void pre_handoff_push(pre_sched *sched, pre_slot *slot, uint32_t layer, int64_t now_ns) {
    uint32_t first = slot->n_pushed[layer], n = n_ready_blocks(sched, slot, layer);
    if (slot->bond != PRE_LEASED || n <= first) return;
    uint32_t n_rows_last = n * KV_BLOCK_TOKENS <= slot->n_tokens ? KV_BLOCK_TOKENS : slot->n_tokens % KV_BLOCK_TOKENS;
    wrk_action *action = wrk_act(&sched->base, WRK_PUSH, decode_of(slot));
    action->push_id = pre_slot_index(sched, slot);
    action->push = (kvt_push_args){.lease = slot->lease,
                                   .layer = layer,
                                   .first_block = first,
                                   .blocks = slot->blocks + first,
                                   .n_blocks = n - first,
                                   .n_rows_last = n_rows_last};
    slot->n_pushed[layer] = n;
    slot->n_pushing++; /* rule 3 */
    if (slot->first_push_ns == 0) slot->first_push_ns = now_ns;
    sched->counters.n_pushes += n - first;
}

void pre_push_done(wrk_sched *base, uint64_t push_id, uint64_t n_bytes, int64_t now_ns) {
    wrk_begin_event(base);
    BT_ASSERT(push_id < base->n_slots);
    pre_sched *sched = pre_of(base);
    pre_slot *slot = &sched->slots[push_id];
    BT_ASSERT(slot->n_pushing > 0);
    slot->n_pushing--;
    slot->n_push_bytes += n_bytes;
    sched->counters.n_push_bytes += n_bytes;
    if (slot->phase == PRE_CLOSING) pre_slot_release_if_quiet(sched, slot, now_ns);
}

void pre_handoff_commit_if_ready(pre_sched *sched, pre_slot *slot, int64_t now_ns) {
    if (slot->phase != PRE_COMPUTED || slot->bond != PRE_LEASED) return;
    uint32_t n_blocks = kv_blocks_for(slot->n_tokens);
    slot->bond = PRE_COMMITTING;
    slot->n_commits++;
    pre_send_decode(
        sched, slot,
        &(wire_message){.type = WIRE_COMMIT,
                        .commit = {.request = slot->request,
                                   .lease = slot->lease,
                                   .n_pushes = sched->base.options.n_layers * (n_blocks - slot->n_held_blocks),
                                   .sampling = slot->sampling,
                                   .constraint = slot->constraint,
                                   .max_tokens = slot->max_tokens,
                                   .n_prompt = slot->n_prompt,
                                   .tokens = slot->tokens,
                                   .n_tokens = slot->n_tokens + 1,
                                   .stop_token_ids = slot->end.ids + (slot->end.n_ids - slot->n_stop_ids),
                                   .n_stop_token_ids = slot->n_stop_ids}});
    set_timer(sched, slot, now_ns, sched->options.commit_ms);
}

/* ---- decode's answers ------------------------------------------------------------------------------------------- */

/* Is this the answer to the RESERVE that is pending? */
static bool is_awaited(pre_sched *sched, pre_slot *slot, uint64_t decode) {
    uint32_t candidate = candidate_of(slot, decode);
    if (candidate != UINT32_MAX && slot->n_stale[candidate] > 0) {
        slot->n_stale[candidate]--;
        return false;
    }
    if (candidate != UINT32_MAX && candidate == slot->candidate && slot->bond == PRE_RESERVING) return true;
    sched->counters.n_strange++;
    return false;
}

static void take_reserved(pre_sched *sched, pre_slot *slot, uint64_t decode, const wire_reserved *reserved,
                          int64_t now_ns) {
    if (!is_awaited(sched, slot, decode)) return;
    bt_timers_clear(&sched->base.timers, pre_slot_index(sched, slot));
    slot->bond = PRE_LEASED;
    slot->lease = reserved->lease;
    slot->n_held_blocks = reserved->held_tokens / KV_BLOCK_TOKENS;
    if (reserved->lease == 0 || reserved->held_tokens % KV_BLOCK_TOKENS != 0 || slot->n_held_blocks > slot->n_prefix) {
        sched->counters.n_strange++;
        pre_handoff_abort(sched, slot);
        skip_candidate(sched, slot, true, true, now_ns);
        return;
    }
    slot->give_up_ns = 0;
    uint32_t ms = reserved->ttl_ms / 3, timer = sched->base.n_slots + WRK_TIMER_ROLE;
    if (ms < sched->renew_ms) sched->renew_ms = ms < 10 ? 10 : ms; /* 10: a peer cannot make us spin */
    if (!bt_timers_is_set(&sched->base.timers, timer))
        bt_timers_set(&sched->base.timers, timer, wrk_after_ms(now_ns, sched->renew_ms));
    for (uint32_t layer = 0; layer < sched->base.options.n_layers; layer++) {
        slot->n_pushed[layer] = slot->n_held_blocks;
        pre_handoff_push(sched, slot, layer, now_ns);
    }
    pre_handoff_commit_if_ready(sched, slot, now_ns);
}

static void take_refused(pre_sched *sched, pre_slot *slot, uint64_t decode, const wire_refused *refused,
                         int64_t now_ns) {
    if (!is_awaited(sched, slot, decode)) return;
    sched->counters.n_reserve_refused++;
    bool is_unfit = refused->status == BT_BAD_REQUEST;
    skip_candidate(sched, slot, is_unfit || refused->status != BT_NO_CAPACITY, !is_unfit, now_ns);
}

static void take_committed(pre_sched *sched, pre_slot *slot, int64_t now_ns) {
    const wire_candidate *decode = &slot->candidates[slot->candidate];
    wire_str name = {sched->handed_off_to, decode->name.n_bytes};
    memcpy(sched->handed_off_to, decode->name.bytes, name.n_bytes); /* <= WIRE_MAX_NAME: it came off the wire */
    int64_t exposed_ns = now_ns - slot->computed_ns;
    int64_t transfer_ns = now_ns - (slot->first_push_ns != 0 ? slot->first_push_ns : slot->computed_ns);
    pre_send_gateway(sched, slot,
                     &(wire_message){.type = WIRE_HANDED_OFF,
                                     .handed_off = {.request = slot->request,
                                                    .decode = name,
                                                    .decode_incarnation = decode->incarnation,
                                                    .transfer_bytes = slot->n_push_bytes,
                                                    .transfer_us = (uint32_t)(transfer_ns / BT_NS_PER_US),
                                                    .exposed_us = (uint32_t)(exposed_ns / BT_NS_PER_US)}});
    sched->counters.n_handed_off++;
    slot->bond = PRE_UNBOUND; /* decode's now: no ABORT */
    pre_slot_end(sched, slot, now_ns);
}

static void take_commit_failed(pre_sched *sched, pre_slot *slot, const wire_commit_failed *failed, int64_t now_ns) {
    enum { MAX_COMMITS = 2 }; /* damaged bytes are rare; twice in a row is a broken machine */
    sched->counters.n_commit_failed++;
    slot->bond = PRE_UNBOUND; /* the lease is gone */
    if (slot->n_commits >= MAX_COMMITS) {
        pre_slot_fail(sched, slot, BT_INTERNAL, "The hand-off to decode failed twice.", now_ns);
        return;
    }
    bool is_worth_it = failed->status == BT_INTERNAL || failed->status == BT_TIMEOUT;
    if (is_worth_it) {
        try_candidate(sched, slot, slot->candidate, now_ns);
    } else {
        skip_candidate(sched, slot, true, true, now_ns);
    }
}

void pre_decode_message(wrk_sched *base, uint64_t decode, const wire_message *message, int64_t now_ns) {
    wrk_begin_event(base);
    pre_sched *sched = pre_of(base);
    pre_slot *slot = NULL;
    switch (message->type) {
    case WIRE_RESERVED:
        slot = pre_slot_find(sched, &message->reserved.request);
        if (slot != NULL) take_reserved(sched, slot, decode, &message->reserved, now_ns);
        break;
    case WIRE_REFUSED:
        slot = pre_slot_find(sched, &message->refused.request);
        if (slot != NULL) take_refused(sched, slot, decode, &message->refused, now_ns);
        break;
    case WIRE_COMMITTED:
        slot = pre_slot_find(sched, &message->committed.request);
        if (slot != NULL && slot->bond == PRE_COMMITTING && decode_of(slot) == decode &&
            slot->lease == message->committed.lease)
            take_committed(sched, slot, now_ns);
        break;
    case WIRE_COMMIT_FAILED:
        slot = pre_slot_find(sched, &message->commit_failed.request);
        if (slot != NULL && slot->bond == PRE_COMMITTING && decode_of(slot) == decode &&
            slot->lease == message->commit_failed.lease)
            take_commit_failed(sched, slot, &message->commit_failed, now_ns);
        break;
    default:
        sched->counters.n_strange++;
    }
}

/* ---- decode's connection ---------------------------------------------------------------------------------------- */

void pre_decode_up(wrk_sched *base, uint64_t decode, int64_t now_ns) {
    wrk_begin_event(base);
    pre_sched *sched = pre_of(base);
    bt_map_put(&sched->by_decode, wrk_u64_key(decode), PRE_PEER_UP);
    for (uint32_t i = 0; i < sched->base.n_slots; i++) {
        pre_slot *slot = &sched->slots[i];
        if (pre_is_living(slot) && slot->bond == PRE_CONNECTING && decode_of(slot) == decode)
            send_reserve(sched, slot, now_ns);
    }
}

void pre_decode_gone(wrk_sched *base, uint64_t decode, int64_t now_ns) {
    wrk_begin_event(base);
    pre_sched *sched = pre_of(base);
    bt_map_remove(&sched->by_decode, wrk_u64_key(decode));
    for (uint32_t i = 0; i < sched->base.n_slots; i++) {
        pre_slot *slot = &sched->slots[i];
        uint32_t candidate = pre_is_living(slot) ? candidate_of(slot, decode) : UINT32_MAX;
        if (candidate == UINT32_MAX) continue;
        slot->n_stale[candidate] = 0; /* no answer comes any more */
        if (slot->bond == PRE_UNBOUND || slot->candidate != candidate) continue;
        sched->counters.n_decode_lost++;
        bool was_committing = slot->bond == PRE_COMMITTING;
        slot->bond = PRE_UNBOUND; /* nobody to send an ABORT to */
        if (was_committing) {     /* in doubt, and nobody else may get it: the gateway starts anew */
            pre_slot_fail(sched, slot, BT_PEER_LOST, "The decode worker was lost during the hand-off.", now_ns);
        } else {
            skip_candidate(sched, slot, true, true, now_ns);
        }
    }
}

/* One RENEW per decode worker, for all its leases. */
uint32_t pre_handoff_renew(pre_sched *sched) {
    uint32_t n_leases = 0;
    for (uint32_t i = 0; i < sched->base.n_slots; i++) sched->slots[i].is_renewed = sched->slots[i].bond != PRE_LEASED;
    for (uint32_t i = 0; i < sched->base.n_slots; i++) {
        if (sched->slots[i].is_renewed) continue;
        uint64_t decode = decode_of(&sched->slots[i]), *leases = &sched->leases[n_leases];
        uint32_t n = 0;
        for (uint32_t j = i; j < sched->base.n_slots; j++) {
            pre_slot *slot = &sched->slots[j];
            if (slot->is_renewed || decode_of(slot) != decode) continue;
            slot->is_renewed = true;
            leases[n++] = slot->lease;
        }
        wrk_act(&sched->base, WRK_SEND_PEER, decode)->message =
            (wire_message){.type = WIRE_RENEW, .renew = {.leases = leases, .n_leases = n}};
        n_leases += n;
    }
    return n_leases;
}
