/* A lease's life, from RESERVE to a sequence that waits for the batch, or to nothing. What lands is the transfer
 * layer's business; here is decided who may land, for how long, and whether what landed is complete and right. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "decode/dec_internal.h"

/* ---- RESERVE ---------------------------------------------------------------------------------------------------- */

void dec_lease_close(dec_sched *sched, const dec_slot *slot, uint32_t n_pushes) {
    wrk_action *action = wrk_act(&sched->base, WRK_LEASE_CLOSE, slot->prefill);
    action->lease_close.lease = slot->lease;
    action->lease_close.n_pushes = n_pushes;
}

static void refuse(dec_sched *sched, uint64_t prefill, const wire_request *request, bt_status status,
                   const char *text) {
    dec_send_prefill(
        sched, prefill,
        &(wire_message){.type = WIRE_REFUSED, .refused = {*request, (uint8_t)status, wire_str_from(text)}});
    sched->counters.n_refused++;
}

/* Takes `blocks` and those it names. */
static void grant(dec_sched *sched, uint64_t prefill, const wire_reserve *reserve, uint32_t *blocks, uint32_t n_blocks,
                  uint32_t n_held, int64_t now_ns) {
    uint32_t index = wrk_slot_take(&sched->base);
    dec_slot *slot = &sched->slots[index];
    *slot = (dec_slot){.state = DEC_LEASED,
                       .request = reserve->request,
                       .prefill = prefill,
                       .lease = ++sched->last_lease,
                       .blocks = blocks,
                       .n_blocks = n_blocks,
                       .cap_blocks = n_blocks,
                       .n_leased_tokens = reserve->n_tokens,
                       .n_shared = n_held};
    if (sched->base.options.has_prefix_cache) {
        slot->n_prefix = reserve->n_prefix;
        slot->prefix = bt_calloc(reserve->n_prefix, sizeof(wire_block_name));
        if (reserve->n_prefix > 0) memcpy(slot->prefix, reserve->prefix, reserve->n_prefix * sizeof(wire_block_name));
        sched->counters.n_prefix_queries += reserve->n_tokens;
        sched->counters.n_prefix_hits += n_held * KV_BLOCK_TOKENS;
    }
    bt_map_put(&sched->base.by_request, wrk_request_key(&slot->request), index);
    bt_map_put(&sched->by_lease, wrk_u64_key(slot->lease), index);
    bt_timers_set(&sched->base.timers, index, wrk_after_ms(now_ns, sched->options.lease_ms));
    sched->n_leases++;
    sched->counters.n_reserved++;
    wrk_act(&sched->base, WRK_LEASE_OPEN, prefill)->lease_open =
        (kvt_lease_args){.lease = slot->lease,
                         .blocks = slot->blocks,
                         .first_block = n_held,
                         .n_blocks = kv_blocks_for(reserve->n_tokens),
                         .n_tokens = reserve->n_tokens};
    dec_send_prefill(
        sched, prefill,
        &(wire_message){.type = WIRE_RESERVED,
                        .reserved = {slot->request, slot->lease, n_held * KV_BLOCK_TOKENS, sched->options.lease_ms}});
    wrk_status_changed(&sched->base, now_ns);
}

void dec_lease_reserve(dec_sched *sched, uint64_t prefill, const wire_reserve *reserve, int64_t now_ns) {
    const wire_request *request = &reserve->request;
    dec_slot *old = dec_slot_find(sched, request);
    if (old != NULL && (old->prefill != prefill || old->state == DEC_WAITING || old->state == DEC_RUNNING)) {
        sched->counters.n_strange++;
        refuse(sched, prefill, request, BT_BAD_REQUEST, "This decode worker has the request already.");
        return;
    }
    if (old != NULL) dec_slot_end(sched, old, now_ns); /* its owner starts anew */

    bt_status closed;
    const char *why_closed = wrk_sched_why_closed(&sched->base, &closed);
    if (why_closed != NULL) {
        refuse(sched, prefill, request, closed, why_closed);
    } else if (reserve->n_tokens == 0 || reserve->n_tokens >= sched->max_positions) {
        refuse(sched, prefill, request, BT_BAD_REQUEST, "The request does not fit this decode worker's context.");
    } else if (reserve->n_prefix > reserve->n_tokens / KV_BLOCK_TOKENS) {
        sched->counters.n_strange++;
        refuse(sched, prefill, request, BT_BAD_REQUEST, "RESERVE names more blocks than it has.");
    } else {
        const char *why = dec_why_full(sched);
        uint32_t n_blocks = kv_blocks_for((uint64_t)reserve->n_tokens + 1), n_held; /* + the row of the first step */
        uint32_t *blocks = bt_calloc(n_blocks, sizeof(uint32_t));
        if (why == NULL && dec_blocks_take(sched, reserve->prefix, reserve->n_prefix, n_blocks, blocks, &n_held)) {
            grant(sched, prefill, reserve, blocks, n_blocks, n_held, now_ns);
            return;
        }
        free(blocks);
        refuse(sched, prefill, request, BT_NO_CAPACITY,
               why != NULL ? why : "This decode worker has too few free KV blocks.");
    }
}

/* ---- COMMIT ----------------------------------------------------------------------------------------------------- */

static void refuse_commit(dec_sched *sched, uint64_t prefill, const wire_request *request, uint64_t lease,
                          bt_status status, const char *text) {
    dec_send_prefill(sched, prefill,
                     &(wire_message){.type = WIRE_COMMIT_FAILED,
                                     .commit_failed = {*request, lease, (uint8_t)status, wire_str_from(text)}});
    sched->counters.n_commit_failed++;
}

void dec_lease_refuse_commit(dec_sched *sched, const dec_slot *slot, bt_status status, const char *text) {
    refuse_commit(sched, slot->prefill, &slot->request, slot->lease, status, text);
}

/* NULL: what COMMIT says makes sense for this lease. */
static const char *why_senseless(const dec_sched *sched, const dec_slot *slot, const wire_commit *commit) {
    if (commit->n_tokens != slot->n_leased_tokens + 1) return "COMMIT has another number of tokens than RESERVE";
    if (commit->n_prompt == commit->n_tokens) return "COMMIT has no output";
    if (commit->n_prompt / KV_BLOCK_TOKENS < slot->n_prefix) return "COMMIT has a shorter prompt than RESERVE named";
    if (commit->n_pushes != sched->base.options.n_layers * (kv_blocks_for(slot->n_leased_tokens) - slot->n_shared))
        return "COMMIT has the wrong number of pushes";
    return dec_request_why_senseless(sched, commit);
}

void dec_lease_commit(dec_sched *sched, uint64_t prefill, const wire_commit *commit, int64_t now_ns) {
    dec_slot *slot = dec_slot_find(sched, &commit->request);
    if (slot == NULL || slot->prefill != prefill || slot->lease != commit->lease || slot->state != DEC_LEASED) {
        refuse_commit(sched, prefill, &commit->request, commit->lease, BT_TIMEOUT, "The lease is not known any more.");
        return;
    }
    const char *why = why_senseless(sched, slot, commit);
    bt_status status = BT_BAD_REQUEST;
    if (why != NULL) {
        sched->counters.n_strange++;
    } else if (bt_map_get(&sched->base.by_gateway, wrk_u64_key(commit->request.gateway)) == BT_MAP_NONE) {
        status = BT_PEER_LOST;
        why = "This decode worker has no link to the request's gateway.";
    }
    if (why != NULL) {
        dec_lease_refuse_commit(sched, slot, status, why);
        dec_slot_end(sched, slot, now_ns);
        return;
    }
    dec_request_take(sched, slot, commit);
    slot->n_pushes = commit->n_pushes;
    slot->checksum = commit->checksum;
    slot->state = DEC_SETTLING;
    bt_timers_set(&sched->base.timers, dec_slot_index(sched, slot), wrk_after_ms(now_ns, sched->options.settle_ms));
    dec_lease_close(sched, slot, commit->n_pushes);
}

/* Everything has landed, or nothing more will: the baton is taken or refused. */
static void settle(dec_sched *sched, dec_slot *slot, uint32_t n_pushes, uint64_t checksum, int64_t now_ns) {
    const char *why = NULL;
    if (n_pushes != slot->n_pushes) {
        snprintf(sched->why, sizeof(sched->why), "%u of %u pushes have landed.", n_pushes, slot->n_pushes);
        why = sched->why;
    } else if (checksum != slot->checksum) {
        why = "The checksum of what has landed is wrong.";
    }
    bt_timers_clear(&sched->base.timers, dec_slot_index(sched, slot));
    sched->n_leases--;
    if (why == NULL) {
        bt_map_remove(&sched->by_lease, wrk_u64_key(slot->lease));
        slot->gateway = bt_map_get(&sched->base.by_gateway, wrk_u64_key(slot->request.gateway));
        BT_ASSERT(slot->gateway != BT_MAP_NONE); /* a gateway that goes takes its SETTLING requests with it */
        dec_send_prefill(sched, slot->prefill,
                         &(wire_message){.type = WIRE_COMMITTED, .committed = {slot->request, slot->lease}});
        sched->counters.n_committed++;
        slot->n_cached = slot->n_leased_tokens;
        dec_blocks_offer(sched, slot, now_ns);
        dec_batch_add(sched, slot, now_ns);
        wrk_status_changed(&sched->base, now_ns);
        return;
    }
    dec_lease_refuse_commit(sched, slot, BT_INTERNAL, why);
    bt_map_remove(&sched->base.by_request, wrk_request_key(&slot->request));
    slot->state = DEC_QUARANTINE;
    sched->n_quarantined++;
    dec_slot_end(sched, slot, now_ns); /* closed already: ends at once */
}

void dec_lease_closed(wrk_sched *base, uint64_t lease, uint32_t n_pushes, uint64_t checksum, int64_t now_ns) {
    wrk_begin_event(base);
    dec_sched *sched = dec_of(base);
    uint32_t index = bt_map_get(&sched->by_lease, wrk_u64_key(lease));
    if (index == BT_MAP_NONE) return;
    dec_slot *slot = &sched->slots[index];
    switch (slot->state) {
    case DEC_SETTLING:
        settle(sched, slot, n_pushes, checksum, now_ns);
        break;
    case DEC_LEASED: /* the transfer layer gave it up; a COMMIT that comes will be refused */
        bt_timers_clear(&sched->base.timers, index);
        bt_map_remove(&sched->base.by_request, wrk_request_key(&slot->request));
        slot->state = DEC_QUARANTINE;
        sched->n_leases--;
        sched->n_quarantined++;
        dec_slot_end(sched, slot, now_ns);
        break;
    case DEC_QUARANTINE:
        dec_slot_end(sched, slot, now_ns);
        break;
    default:
        BT_ASSERT(!"by_lease leads to a slot without a lease");
    }
}

/* ---- ABORT, RENEW, time ----------------------------------------------------------------------------------------- */

void dec_lease_abort(dec_sched *sched, uint64_t prefill, const wire_abort *abort, int64_t now_ns) {
    dec_slot *slot = dec_slot_find(sched, &abort->request);
    if (slot == NULL || slot->lease == 0 || slot->prefill != prefill ||
        (abort->lease != 0 && abort->lease != slot->lease))
        return;
    /* Taken over already: prefill could not know. The gateway hears of it from both and replays once. */
    if (slot->state == DEC_WAITING || slot->state == DEC_RUNNING)
        dec_fail(sched, slot, BT_PEER_LOST, "The prefill worker gave the request up while handing it over.");
    sched->counters.n_lease_aborted++;
    dec_slot_end(sched, slot, now_ns);
}

void dec_lease_renew(dec_sched *sched, uint64_t prefill, const wire_renew *renew, int64_t now_ns) {
    for (uint32_t i = 0; i < renew->n_leases; i++) {
        uint32_t index = bt_map_get(&sched->by_lease, wrk_u64_key(renew->leases[i]));
        if (index == BT_MAP_NONE) continue;
        const dec_slot *slot = &sched->slots[index];
        if (slot->state == DEC_LEASED && slot->prefill == prefill)
            bt_timers_set(&sched->base.timers, index, wrk_after_ms(now_ns, sched->options.lease_ms));
    }
}

void dec_lease_late(dec_sched *sched, dec_slot *slot, int64_t now_ns) {
    if (slot->state == DEC_SETTLING) { /* what has landed by now decides: settle() */
        dec_lease_close(sched, slot, 0);
        return;
    }
    BT_ASSERT(slot->state == DEC_LEASED);
    sched->counters.n_lease_expired++;
    dec_slot_end(sched, slot, now_ns);
}
