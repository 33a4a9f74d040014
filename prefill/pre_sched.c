/* The scheduler's table: slots, gateways, timers, the action list, load and drain. What is computed when is in
 * pre_pick.c and pre_step.c, the talk with decode in pre_handoff.c. Moves no byte and computes nothing. */
#include "prefill/pre_sched.h"

#include <stdlib.h>
#include <string.h>

#include "prefill/pre_internal.h"

/* ---- open and close --------------------------------------------------------------------------------------------- */

static uint32_t or_default(uint32_t value, uint32_t if_zero) { return value != 0 ? value : if_zero; }

static void fill_options(pre_sched *sched, const pre_sched_options *options) {
    pre_sched_options *o = &sched->options;
    *o = *options;
    o->connect_ms = or_default(o->connect_ms, 5000);
    o->reserve_ms = or_default(o->reserve_ms, 3000);
    o->retry_ms = or_default(o->retry_ms, 25);
    o->no_decode_ms = or_default(o->no_decode_ms, 30000);
    o->commit_ms = or_default(o->commit_ms, 10000);
    o->renew_ms = or_default(o->renew_ms, 1000);
    o->status_ms = or_default(o->status_ms, 5);
    uint32_t *eos_ids = bt_calloc(o->n_eos_ids, sizeof(uint32_t));
    if (o->n_eos_ids > 0) memcpy(eos_ids, options->eos_ids, o->n_eos_ids * sizeof(uint32_t));
    o->eos_ids = eos_ids;
    sched->renew_ms = o->renew_ms;
}

bt_status pre_sched_open(const pre_sched_options *options, pre_sched **out, bt_error *err) {
    if (options->vocab_size == 0 || options->max_model_len == 0 || options->max_model_len > WIRE_MAX_TOKENS ||
        options->n_layers == 0)
        return bt_fail(err, BT_BAD_REQUEST, "prefill needs a vocabulary, layers and 1 to %d positions",
                       WIRE_MAX_TOKENS);
    if (options->max_requests == 0 || options->max_requests > WIRE_MAX_LEASES)
        return bt_fail(err, BT_BAD_REQUEST, "max-requests is %u, it must be 1 to %d", options->max_requests,
                       WIRE_MAX_LEASES);
    if (options->max_batched_tokens == 0 || options->max_batched_seqs == 0)
        return bt_fail(err, BT_BAD_REQUEST, "max-num-batched-tokens and max-num-seqs must be at least 1");
    if (kv_pool_n_blocks(options->pool) == 0) return bt_fail(err, BT_BAD_REQUEST, "the KV pool has no block");

    pre_sched *sched = bt_calloc(1, sizeof(*sched));
    fill_options(sched, options);
    sched->pool = options->pool;
    sched->prefix = kv_prefix_open(options->pool);
    uint32_t n = sched->n_slots = sched->n_free_slots = options->max_requests;
    sched->slots = bt_calloc(n, sizeof(pre_slot));
    sched->free_slots = bt_calloc(n, sizeof(uint32_t));
    for (uint32_t i = 0; i < n; i++) sched->free_slots[i] = n - 1 - i;
    sched->pushed = bt_calloc((size_t)n * options->n_layers, sizeof(uint32_t));
    sched->order = bt_calloc(n, sizeof(uint32_t));
    sched->leases = bt_calloc(n, sizeof(uint64_t));
    sched->step_slots = bt_calloc(options->max_batched_seqs, sizeof(uint32_t));
    sched->sequences = bt_calloc(options->max_batched_seqs, sizeof(krn_sequence));
    sched->samples = bt_calloc(options->max_batched_seqs, sizeof(pre_sample));
    bt_timers_init(&sched->timers, n + PRE_N_TIMERS);
    *out = sched;
    return BT_OK;
}

static void slot_free_memory(pre_sched *sched, pre_slot *slot) {
    kv_pool_release(sched->pool, slot->blocks, slot->n_blocks);
    free(slot->blocks);
    free(slot->tokens);
    free(slot->prefix);
    free((void *)slot->end.ids);
    bt_arena_fini(&slot->arena);
}

void pre_sched_close(pre_sched *sched) {
    if (sched == NULL) return;
    for (uint32_t i = 0; i < sched->n_slots; i++)
        if (sched->slots[i].phase != PRE_FREE) slot_free_memory(sched, &sched->slots[i]);
    kv_prefix_close(sched->prefix);
    bt_map_fini(&sched->by_request);
    bt_map_fini(&sched->by_gateway);
    bt_map_fini(&sched->by_decode);
    bt_timers_fini(&sched->timers);
    free((void *)sched->options.eos_ids);
    free(sched->slots);
    free(sched->free_slots);
    free(sched->pushed);
    free(sched->order);
    free(sched->leases);
    free(sched->step_slots);
    free(sched->sequences);
    free(sched->samples);
    free(sched->actions);
    free(sched);
}

/* ---- actions ---------------------------------------------------------------------------------------------------- */

pre_action *pre_act(pre_sched *sched, pre_action_kind kind, uint64_t peer) {
    if (sched->n_actions == sched->cap_actions) {
        sched->cap_actions = sched->cap_actions * 2 + 16;
        sched->actions = bt_realloc(sched->actions, sched->cap_actions, sizeof(pre_action));
    }
    pre_action *action = &sched->actions[sched->n_actions++];
    action->kind = kind;
    action->peer = peer;
    return action;
}

bool pre_sched_next(pre_sched *sched, pre_action *out) {
    if (sched->next_action == sched->n_actions) {
        sched->next_action = sched->n_actions = 0;
        return false;
    }
    *out = sched->actions[sched->next_action++];
    return true;
}

/* The contract of every event: the actions of the one before it have been carried out. */
static void begin_event(const pre_sched *sched) { BT_ASSERT(sched->n_actions == 0); }

void pre_send_gateway(pre_sched *sched, const pre_slot *slot, const wire_message *message) {
    pre_act(sched, PRE_SEND_GATEWAY, slot->request.gateway)->message = *message;
}

void pre_send_decode(pre_sched *sched, const pre_slot *slot, const wire_message *message) {
    pre_act(sched, PRE_SEND_DECODE, slot->candidates[slot->candidate].incarnation)->message = *message;
}

/* ---- slots ------------------------------------------------------------------------------------------------------ */

pre_slot *pre_slot_find(pre_sched *sched, const wire_request *request) {
    uint32_t index = bt_map_get(&sched->by_request, pre_request_key(request));
    return index == BT_MAP_NONE ? NULL : &sched->slots[index];
}

void pre_slot_release_if_quiet(pre_sched *sched, pre_slot *slot, int64_t now_ns) {
    if (slot->n_step_rows > 0 || slot->n_pushing > 0) return; /* rule 3 */
    slot_free_memory(sched, slot);
    *slot = (pre_slot){.phase = PRE_FREE};
    sched->free_slots[sched->n_free_slots++] = pre_slot_index(sched, slot);
    pre_status_changed(sched, now_ns);
    pre_queue_admit(sched, now_ns);
    if (sched->is_draining && sched->n_free_slots == sched->n_slots && !sched->is_drained) {
        sched->is_drained = true;
        pre_act(sched, PRE_DRAINED, 0);
    }
}

void pre_slot_end(pre_sched *sched, pre_slot *slot, int64_t now_ns) {
    pre_handoff_abort(sched, slot);
    bt_timers_clear(&sched->timers, pre_slot_index(sched, slot));
    bt_map_remove(&sched->by_request, pre_request_key(&slot->request));
    if (slot->phase == PRE_COMPUTED) {
        sched->n_computed--;
    } else {
        sched->n_tokens_left -= slot->n_tokens - slot->n_computed;
        pre_queue_remove(sched, slot);
    }
    slot->phase = PRE_CLOSING;
    pre_status_changed(sched, now_ns);
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
    const pre_sched_options *o = &sched->options;
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
    pre_act(sched, PRE_SEND_GATEWAY, request->gateway)->message =
        (wire_message){.type = WIRE_FAILED, .failed = {*request, (uint8_t)status, wire_str_from(text)}};
    sched->counters.n_refused++;
}

static wire_str copy_str(pre_slot *slot, wire_str text) {
    return (wire_str){bt_arena_strndup(&slot->arena, text.bytes, text.n_bytes), text.n_bytes};
}

static void fill_slot(pre_sched *sched, pre_slot *slot, const wire_submit *submit, int64_t now_ns) {
    const pre_sched_options *o = &sched->options;
    uint32_t n_eos = submit->sampling.ignore_eos ? 0 : o->n_eos_ids, n_stop = submit->n_stop_token_ids;
    uint32_t *ids = bt_calloc(n_eos + n_stop, sizeof(uint32_t));
    if (n_eos > 0) memcpy(ids, o->eos_ids, n_eos * sizeof(uint32_t));
    if (n_stop > 0) memcpy(ids + n_eos, submit->stop_token_ids, n_stop * sizeof(uint32_t));
    *slot = (pre_slot){
        .phase = PRE_QUEUED,
        .request = submit->request,
        .sampling = submit->sampling,
        .end = {.ids = ids,
                .n_ids = n_eos + n_stop,
                .n_eos = n_eos,
                .min_tokens = submit->sampling.min_tokens,
                .max_output = wire_end_max_output(submit->max_tokens, submit->n_prompt, o->max_model_len)},
        .n_stop_ids = n_stop,
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
    for (uint32_t i = 0; i < submit->n_candidates; i++) {
        const wire_candidate *from = &submit->candidates[i];
        slot->candidates[i] =
            (wire_candidate){copy_str(slot, from->name), from->incarnation, copy_str(slot, from->kv_address)};
    }
}

static void take_submit(pre_sched *sched, uint64_t gateway, const wire_submit *submit, int64_t now_ns) {
    const wire_request *request = &submit->request;
    if (request->gateway != gateway || bt_map_get(&sched->by_gateway, pre_u64_key(gateway)) == BT_MAP_NONE ||
        pre_slot_find(sched, request) != NULL) {
        sched->counters.n_strange++;
        return;
    }
    sched->counters.n_submitted++;
    const char *why = why_senseless(sched, submit);
    if (sched->is_draining) {
        refuse(sched, request, BT_AGAIN, "The prefill worker is draining.");
    } else if (why != NULL) {
        refuse(sched, request, BT_BAD_REQUEST, why);
    } else if (sched->n_free_slots == 0) {
        refuse(sched, request, BT_NO_CAPACITY, "The prefill worker's queue is full.");
    } else {
        uint32_t index = sched->free_slots[--sched->n_free_slots];
        fill_slot(sched, &sched->slots[index], submit, now_ns);
        bt_map_put(&sched->by_request, pre_request_key(request), index);
        sched->order[sched->n_computing + sched->n_queued++] = index;
        sched->n_tokens_left += submit->n_tokens;
        pre_act(sched, PRE_SEND_GATEWAY, gateway)->message =
            (wire_message){.type = WIRE_ACCEPTED, .accepted = {*request}};
        pre_queue_admit(sched, now_ns);
        pre_status_changed(sched, now_ns);
    }
}

/* ---- gateways --------------------------------------------------------------------------------------------------- */

static void drop_gateway(pre_sched *sched, uint64_t gateway, int64_t now_ns) {
    if (!bt_map_remove(&sched->by_gateway, pre_u64_key(gateway))) return;
    for (uint32_t i = 0; i < sched->n_slots; i++) {
        pre_slot *slot = &sched->slots[i];
        if (!pre_is_living(slot) || slot->request.gateway != gateway) continue;
        sched->counters.n_gateway_lost++;
        cancel_slot(sched, slot, now_ns);
    }
}

void pre_sched_gateway_up(pre_sched *sched, uint64_t gateway, int64_t now_ns) {
    begin_event(sched);
    drop_gateway(sched, gateway, now_ns);
    bt_map_put(&sched->by_gateway, pre_u64_key(gateway), 0);
    pre_status_changed(sched, now_ns);
}

void pre_sched_gateway_gone(pre_sched *sched, uint64_t gateway, int64_t now_ns) {
    begin_event(sched);
    drop_gateway(sched, gateway, now_ns);
}

void pre_sched_gateway_message(pre_sched *sched, uint64_t gateway, const wire_message *message, int64_t now_ns) {
    begin_event(sched);
    if (message->type == WIRE_SUBMIT) {
        take_submit(sched, gateway, &message->submit, now_ns);
    } else if (message->type == WIRE_CANCEL && message->cancel.request.gateway == gateway) {
        pre_slot *slot = pre_slot_find(sched, &message->cancel.request);
        if (slot != NULL) cancel_slot(sched, slot, now_ns); /* else it ended already */
    } else if (message->type == WIRE_DRAIN) {
        pre_sched_drain(sched, message->drain.grace_ms, now_ns);
    } else {
        sched->counters.n_strange++;
    }
}

/* ---- time, load, drain ------------------------------------------------------------------------------------------ */

void pre_status_changed(pre_sched *sched, int64_t now_ns) {
    uint32_t timer = sched->n_slots + PRE_TIMER_STATUS;
    if (bt_timers_is_set(&sched->timers, timer)) return;
    bt_timers_set(&sched->timers, timer, now_ns > sched->next_status_ns ? now_ns : sched->next_status_ns);
}

static void send_status(pre_sched *sched, int64_t now_ns) {
    sched->next_status_ns = pre_after_ms(now_ns, sched->options.status_ms);
    if (sched->by_gateway.n_used == 0) return;
    wire_message message = {.type = WIRE_STATUS};
    pre_sched_load(sched, &message.status.load);
    pre_act(sched, PRE_BROADCAST, 0)->message = message;
}

void pre_sched_drain(pre_sched *sched, uint32_t grace_ms, int64_t now_ns) {
    begin_event(sched);
    if (grace_ms > 0) bt_timers_set(&sched->timers, sched->n_slots + PRE_TIMER_GRACE, pre_after_ms(now_ns, grace_ms));
    pre_status_changed(sched, now_ns);
    if (sched->is_draining) return;
    sched->is_draining = true;
    if (sched->n_free_slots < sched->n_slots) return;
    sched->is_drained = true;
    pre_act(sched, PRE_DRAINED, 0);
}

/* The grace is over: what still runs goes back to its gateway, which replays it elsewhere. */
static void give_back_all(pre_sched *sched, int64_t now_ns) {
    for (uint32_t i = 0; i < sched->n_slots; i++)
        if (pre_is_living(&sched->slots[i]))
            pre_slot_fail(sched, &sched->slots[i], BT_AGAIN, "The worker shuts down.", now_ns);
}

int64_t pre_sched_deadline_ns(const pre_sched *sched) { return bt_timers_next_ns(&sched->timers); }

void pre_sched_tick(pre_sched *sched, int64_t now_ns) {
    begin_event(sched);
    uint32_t id;
    while (bt_timers_pop(&sched->timers, now_ns, &id)) {
        if (id < sched->n_slots) {
            pre_handoff_late(sched, &sched->slots[id], now_ns);
        } else if (id - sched->n_slots == PRE_TIMER_STATUS) {
            send_status(sched, now_ns);
        } else if (id - sched->n_slots == PRE_TIMER_RENEW) {
            if (pre_handoff_renew(sched) > 0) bt_timers_set(&sched->timers, id, pre_after_ms(now_ns, sched->renew_ms));
        } else if (sched->n_actions > 0) { /* they may point to what give_back_all() frees: the next tick does it */
            bt_timers_set(&sched->timers, id, now_ns);
            return;
        } else {
            give_back_all(sched, now_ns);
        }
    }
}

const pre_counters *pre_sched_counters(const pre_sched *sched) { return &sched->counters; }

void pre_sched_load(const pre_sched *sched, wire_load *out) {
    uint32_t n_blocks = kv_pool_n_blocks(sched->pool);
    *out =
        (wire_load){.running = sched->n_computing + sched->n_computed,
                    .waiting = sched->n_queued,
                    .waiting_tokens = sched->n_tokens_left > UINT32_MAX ? UINT32_MAX : (uint32_t)sched->n_tokens_left,
                    .kv_blocks_total = n_blocks,
                    .kv_blocks_used = n_blocks - kv_pool_n_free(sched->pool),
                    .is_draining = sched->is_draining};
}
