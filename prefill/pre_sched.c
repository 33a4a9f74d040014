/* The scheduler's table: slots, gateways, timers, load. What is computed when is in pre_pick.c and pre_step.c, the talk
 * with decode in pre_handoff.c. Moves no byte and computes nothing. */
#include "prefill/pre_sched.h"

#include <stdlib.h>
#include <string.h>

#include "prefill/pre_internal.h"

/* ---- open and close --------------------------------------------------------------------------------------------- */

static void fill_options(pre_sched *sched, const pre_sched_options *options) {
    pre_sched_options *o = &sched->options;
    *o = *options;
    o->connect_ms = wrk_or_default(o->connect_ms, 5000);
    o->reserve_ms = wrk_or_default(o->reserve_ms, 3000);
    o->retry_ms = wrk_or_default(o->retry_ms, 25);
    o->no_decode_ms = wrk_or_default(o->no_decode_ms, 30000);
    o->commit_ms = wrk_or_default(o->commit_ms, 10000);
    o->renew_ms = wrk_or_default(o->renew_ms, 1000);
    sched->renew_ms = o->renew_ms;
}

static void slot_free_memory(pre_sched *sched, pre_slot *slot) {
    kv_pool_release(sched->pool, slot->blocks, slot->n_blocks);
    free(slot->blocks);
    free(slot->tokens);
    free(slot->prefix);
    free((void *)slot->end.ids);
    bt_arena_fini(&slot->arena);
}

static void sched_close(wrk_sched *base) {
    pre_sched *sched = pre_of(base);
    for (uint32_t i = 0; i < sched->base.n_slots; i++)
        if (sched->slots[i].phase != PRE_FREE) slot_free_memory(sched, &sched->slots[i]);
    bt_map_fini(&sched->by_decode);
    free(sched->slots);
    free(sched->pushed);
    free(sched->order);
    free(sched->leases);
    wrk_sched_fini(base);
    free(sched);
}

/* ---- messages --------------------------------------------------------------------------------------------------- */

void pre_send_gateway(pre_sched *sched, const pre_slot *slot, const wire_message *message) {
    wrk_act(&sched->base, WRK_SEND_GATEWAY, slot->request.gateway)->message = *message;
}

void pre_send_decode(pre_sched *sched, const pre_slot *slot, const wire_message *message) {
    wrk_act(&sched->base, WRK_SEND_PEER, slot->candidates[slot->candidate].incarnation)->message = *message;
}

/* ---- slots ------------------------------------------------------------------------------------------------------ */

pre_slot *pre_slot_find(pre_sched *sched, const wire_request *request) {
    uint32_t index = wrk_slot_find(&sched->base, request);
    return index == BT_MAP_NONE ? NULL : &sched->slots[index];
}

void pre_slot_release_if_quiet(pre_sched *sched, pre_slot *slot, int64_t now_ns) {
    if (slot->n_step_rows > 0 || slot->n_pushing > 0) return; /* rule 3 */
    slot_free_memory(sched, slot);
    *slot = (pre_slot){.phase = PRE_FREE};
    wrk_status_changed(&sched->base, now_ns);
    wrk_slot_put(&sched->base, pre_slot_index(sched, slot));
}

void pre_slot_end(pre_sched *sched, pre_slot *slot, int64_t now_ns) {
    pre_handoff_abort(sched, slot);
    bt_timers_clear(&sched->base.timers, pre_slot_index(sched, slot));
    bt_map_remove(&sched->base.by_request, wrk_request_key(&slot->request));
    if (slot->phase == PRE_COMPUTED) {
        sched->n_computed--;
    } else {
        sched->n_tokens_left -= slot->n_tokens - slot->n_computed - slot->n_hoped_tokens;
        pre_queue_remove(sched, slot);
    }
    slot->phase = PRE_CLOSING;
    wrk_status_changed(&sched->base, now_ns);
    pre_slot_release_if_quiet(sched, slot, now_ns);
}

void pre_slot_fail(pre_sched *sched, pre_slot *slot, bt_status status, const char *text, int64_t now_ns) {
    pre_send_gateway(
        sched, slot,
        &(wire_message){.type = WIRE_FAILED, .failed = {slot->request, (uint8_t)status, wire_str_from(text)}});
    sched->counters.n_failed++;
    pre_slot_end(sched, slot, now_ns);
}

static void cancel_slot(pre_sched *sched, pre_slot *slot, int64_t now_ns) {
    pre_counters *counters = &sched->counters;
    if (slot->phase == PRE_QUEUED) {
        counters->n_canceled_queued++;
    } else if (slot->phase == PRE_COMPUTING) {
        counters->n_canceled_computing++;
    } else if (slot->bond != PRE_COMMITTING) {
        counters->n_canceled_computed++;
    } else {
        counters->n_canceled_committing++;
    }
    pre_slot_end(sched, slot, now_ns);
}

/* ---- SUBMIT ----------------------------------------------------------------------------------------------------- */

/* NULL: the request can be computed here. */
static const char *why_senseless(const pre_sched *sched, const wire_submit *submit) {
    const wrk_sched_options *o = &sched->base.options;
    if (submit->n_prompt == 0 || submit->n_prompt > submit->n_tokens) return "The request has no prompt.";
    if (submit->n_tokens >= o->max_model_len) return "The prompt does not fit the model's context.";
    if (kv_blocks_for(submit->n_tokens) > kv_pool_n_blocks(sched->pool))
        return "The prompt does not fit the KV pool of this prefill worker.";
    if (submit->n_tokens - submit->n_prompt >=
        wire_end_max_output(submit->max_tokens, submit->n_prompt, o->max_model_len))
        return "The request leaves no token to generate.";
    if (submit->n_candidates == 0) return "The request names no decode worker.";
    if (!wire_sampling_is_sane(&submit->sampling) || !wire_constraint_is_sane(&submit->constraint, o->vocab_size))
        return "The request has impossible sampling parameters.";
    for (uint32_t i = 0; i < submit->n_tokens; i++)
        if (submit->tokens[i] >= o->vocab_size) return "The request has a token outside the vocabulary.";
    for (uint32_t i = 0; i < submit->n_candidates; i++) /* answers are told apart by incarnation */
        for (uint32_t j = 0; j < i; j++)
            if (submit->candidates[i].incarnation == submit->candidates[j].incarnation)
                return "The request names a decode worker twice.";
    return NULL;
}

static void refuse(pre_sched *sched, const wire_request *request, bt_status status, const char *text) {
    wrk_act(&sched->base, WRK_SEND_GATEWAY, request->gateway)->message =
        (wire_message){.type = WIRE_FAILED, .failed = {*request, (uint8_t)status, wire_str_from(text)}};
    sched->counters.n_refused++;
}

static wire_str copy_str(pre_slot *slot, wire_str text) {
    return (wire_str){bt_arena_strndup(&slot->arena, text.bytes, text.n_bytes), text.n_bytes};
}

static void fill_slot(pre_sched *sched, pre_slot *slot, const wire_submit *submit, int64_t now_ns) {
    const wrk_sched_options *o = &sched->base.options;
    *slot = (pre_slot){
        .phase = PRE_QUEUED,
        .request = submit->request,
        .sampling = submit->sampling,
        .end = wrk_end_rule(&sched->base, &submit->sampling, submit->stop_token_ids, submit->n_stop_token_ids,
                            wire_end_max_output(submit->max_tokens, submit->n_prompt, o->max_model_len)),
        .n_stop_ids = submit->n_stop_token_ids,
        .priority = submit->priority,
        .max_tokens = submit->max_tokens,
        .tokens = bt_calloc((size_t)submit->n_tokens + 1, sizeof(uint32_t)),
        .n_tokens = submit->n_tokens,
        .n_prompt = submit->n_prompt,
        .blocks = bt_calloc(kv_blocks_for(submit->n_tokens), sizeof(uint32_t)),
        .n_candidates = submit->n_candidates,
        .n_pushed = &sched->pushed[(size_t)pre_slot_index(sched, slot) * o->n_layers],
        .submit_ns = now_ns,
    };
    memcpy(slot->tokens, submit->tokens, submit->n_tokens * sizeof(uint32_t));
    slot->constraint = wire_constraint_copy(&submit->constraint, &slot->arena);
    slot->n_prefix = o->has_prefix_cache ? submit->n_prompt / KV_BLOCK_TOKENS : 0;
    slot->prefix = bt_calloc(slot->n_prefix, sizeof(wire_block_name));
    kv_prefix_names(o->model_hash, submit->cache_salt, slot->tokens, slot->n_prefix, slot->prefix);
    uint32_t n_cached = kv_prefix_count(sched->base.prefix, slot->prefix, pre_n_cacheable(slot));
    slot->n_hoped_tokens = n_cached * KV_BLOCK_TOKENS;
    for (uint32_t i = 0; i < submit->n_candidates; i++) {
        const wire_candidate *from = &submit->candidates[i];
        slot->candidates[i] =
            (wire_candidate){copy_str(slot, from->name), from->incarnation, copy_str(slot, from->kv_address)};
    }
}

static void take_submit(pre_sched *sched, uint64_t gateway, const wire_submit *submit, int64_t now_ns) {
    const wire_request *request = &submit->request;
    if (request->gateway != gateway || bt_map_get(&sched->base.by_gateway, wrk_u64_key(gateway)) == BT_MAP_NONE ||
        pre_slot_find(sched, request) != NULL) {
        sched->counters.n_strange++;
        return;
    }
    sched->counters.n_submitted++;
    const char *why = why_senseless(sched, submit);
    bt_status closed;
    const char *why_closed = wrk_sched_why_closed(&sched->base, &closed);
    if (why_closed != NULL) {
        refuse(sched, request, closed, why_closed);
    } else if (why != NULL) {
        refuse(sched, request, BT_BAD_REQUEST, why);
    } else if (sched->base.n_free_slots == 0) {
        refuse(sched, request, BT_NO_CAPACITY, "The prefill worker's queue is full.");
    } else {
        uint32_t index = wrk_slot_take(&sched->base);
        pre_slot *slot = &sched->slots[index];
        fill_slot(sched, slot, submit, now_ns);
        bt_map_put(&sched->base.by_request, wrk_request_key(request), index);
        pre_queue_put(sched, slot);
        sched->n_tokens_left += pre_n_left(slot);
        wrk_act(&sched->base, WRK_SEND_GATEWAY, gateway)->message =
            (wire_message){.type = WIRE_ACCEPTED, .accepted = {*request}};
        pre_queue_admit(sched, now_ns);
        wrk_status_changed(&sched->base, now_ns);
    }
}

/* ---- gateways --------------------------------------------------------------------------------------------------- */

static void drop_gateway(pre_sched *sched, uint64_t gateway, int64_t now_ns) {
    if (!bt_map_remove(&sched->base.by_gateway, wrk_u64_key(gateway))) return;
    for (uint32_t i = 0; i < sched->base.n_slots; i++) {
        pre_slot *slot = &sched->slots[i];
        if (!pre_is_living(slot) || slot->request.gateway != gateway) continue;
        sched->counters.n_gateway_lost++;
        cancel_slot(sched, slot, now_ns);
    }
}

static void gateway_up(wrk_sched *base, uint64_t gateway, int64_t now_ns) {
    wrk_begin_event(base);
    pre_sched *sched = pre_of(base);
    drop_gateway(sched, gateway, now_ns);
    bt_map_put(&base->by_gateway, wrk_u64_key(gateway), 0);
    wrk_gateway_greet(base, gateway);
}

static void gateway_gone(wrk_sched *base, uint64_t gateway, int64_t now_ns) {
    wrk_begin_event(base);
    drop_gateway(pre_of(base), gateway, now_ns);
}

static void gateway_message(wrk_sched *base, uint64_t gateway, const wire_message *message, int64_t now_ns) {
    wrk_begin_event(base);
    pre_sched *sched = pre_of(base);
    if (message->type == WIRE_SUBMIT) {
        take_submit(sched, gateway, &message->submit, now_ns);
    } else if (message->type == WIRE_CANCEL && message->cancel.request.gateway == gateway) {
        pre_slot *slot = pre_slot_find(sched, &message->cancel.request);
        if (slot != NULL) cancel_slot(sched, slot, now_ns); /* else it ended already */
    } else if (message->type == WIRE_DRAIN) {
        wrk_sched_drain(base, message->drain.grace_ms, now_ns);
    } else {
        sched->counters.n_strange++;
    }
}

/* ---- time, load ------------------------------------------------------------------------------------------------- */

static void give_back(wrk_sched *base, bt_status status, const char *text, int64_t now_ns) {
    pre_sched *sched = pre_of(base);
    for (uint32_t i = 0; i < base->n_slots; i++)
        if (pre_is_living(&sched->slots[i])) pre_slot_fail(sched, &sched->slots[i], status, text, now_ns);
}

static void late(wrk_sched *base, uint32_t id, int64_t now_ns) {
    pre_sched *sched = pre_of(base);
    if (id < base->n_slots) {
        pre_handoff_late(sched, &sched->slots[id], now_ns);
    } else if (pre_handoff_renew(sched) > 0) {
        bt_timers_set(&base->timers, id, wrk_after_ms(now_ns, sched->renew_ms));
    }
}

static void load(const wrk_sched *base, wire_load *out) {
    const pre_sched *sched = (const pre_sched *)base;
    uint32_t n_blocks = kv_pool_n_blocks(sched->pool);
    *out =
        (wire_load){.running = sched->n_computing + sched->n_computed,
                    .waiting = sched->n_queued,
                    .waiting_tokens = sched->n_tokens_left > UINT32_MAX ? UINT32_MAX : (uint32_t)sched->n_tokens_left,
                    .kv_blocks_total = n_blocks,
                    .kv_blocks_used = n_blocks - kv_pool_n_free(sched->pool),
                    .is_draining = base->is_draining,
                    .is_incomplete = base->is_incomplete,
                    .prefill_tokens_per_s = wrk_pace_rows_per_s(base),
                    .step_us = wrk_pace_step_us(base)};
}

/* ---- open ------------------------------------------------------------------------------------------------------- */

static const wrk_sched events = {
    .close = sched_close,
    .gateway_up = gateway_up,
    .gateway_gone = gateway_gone,
    .gateway_message = gateway_message,
    .peer_up = pre_decode_up,
    .peer_gone = pre_decode_gone,
    .peer_message = pre_decode_message,
    .push_done = pre_push_done,
    .step_begin = pre_step_begin,
    .layer_done = pre_layer_done,
    .step_done = pre_step_done,
    .step_lost = pre_step_lost,
    .load = load,
    .late = late,
    .give_back = give_back,
    .is_owner = pre_is_owner,
    .check = pre_check,
};

bt_status pre_sched_open(const wrk_sched_options *shared, const pre_sched_options *options, wrk_sched **out,
                         bt_error *err) {
    bt_status status = wrk_sched_options_check(shared, err);
    if (status != BT_OK) return status;
    if (options->max_requests == 0 || options->max_requests > WIRE_MAX_LEASES)
        return bt_fail(err, BT_BAD_REQUEST, "max-requests is %u, it must be 1 to %d", options->max_requests,
                       WIRE_MAX_LEASES);
    if (options->max_batched_tokens == 0 || options->max_batched_seqs == 0)
        return bt_fail(err, BT_BAD_REQUEST, "max-num-batched-tokens and max-num-seqs must be at least 1");

    pre_sched *sched = bt_calloc(1, sizeof(*sched));
    uint32_t n = options->max_requests;
    sched->base = events;
    wrk_sched_init(&sched->base, shared, n, options->max_batched_seqs);
    sched->base.counters = &sched->counters;
    fill_options(sched, options);
    sched->pool = shared->pool;
    sched->slots = bt_calloc(n, sizeof(pre_slot));
    sched->pushed = bt_calloc((size_t)n * shared->n_layers, sizeof(uint32_t));
    sched->order = bt_calloc(n, sizeof(uint32_t));
    sched->leases = bt_calloc(n, sizeof(uint64_t));
    *out = &sched->base;
    return BT_OK;
}
