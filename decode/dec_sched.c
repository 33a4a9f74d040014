/* The scheduler's table: slots, peers, timers, the action list, load and drain. What a lease goes through is in
 * dec_lease.c, the batch in dec_step.c. Moves no byte and computes nothing. */
#include "decode/dec_sched.h"

#include <stdlib.h>
#include <string.h>

#include "decode/dec_internal.h"

/* ---- open and close --------------------------------------------------------------------------------------------- */

static uint32_t or_default(uint32_t value, uint32_t if_zero) { return value != 0 ? value : if_zero; }

static void fill_options(dec_sched *sched, const dec_sched_options *options) {
    dec_sched_options *o = &sched->options;
    *o = *options;
    o->max_leases = or_default(o->max_leases, o->max_num_seqs);
    o->watermark_blocks = or_default(o->watermark_blocks, kv_pool_n_blocks(o->pool) / 64 + 1);
    o->lease_ms = or_default(o->lease_ms, 5000);
    o->settle_ms = or_default(o->settle_ms, 5000);
    o->status_ms = or_default(o->status_ms, 5);
    uint32_t *eos_ids = bt_calloc(o->n_eos_ids, sizeof(uint32_t));
    if (o->n_eos_ids > 0) memcpy(eos_ids, options->eos_ids, o->n_eos_ids * sizeof(uint32_t));
    o->eos_ids = eos_ids;
    uint64_t pool_positions = (uint64_t)kv_pool_n_blocks(o->pool) * KV_BLOCK_TOKENS;
    sched->max_positions = pool_positions < o->max_model_len ? (uint32_t)pool_positions : o->max_model_len;
}

bt_status dec_sched_open(const dec_sched_options *options, dec_sched **out, bt_error *err) {
    if (options->vocab_size == 0 || options->max_model_len == 0 || options->max_model_len > WIRE_MAX_TOKENS ||
        options->n_layers == 0)
        return bt_fail(err, BT_BAD_REQUEST, "decode needs a vocabulary, layers and 1 to %d positions", WIRE_MAX_TOKENS);
    if (options->max_num_seqs == 0 || options->max_num_seqs > WIRE_MAX_STEP_TOKENS)
        return bt_fail(err, BT_BAD_REQUEST, "max-num-seqs is %u, it must be 1 to %d", options->max_num_seqs,
                       WIRE_MAX_STEP_TOKENS);
    if (options->max_leases > WIRE_MAX_LEASES)
        return bt_fail(err, BT_BAD_REQUEST, "max-leases is %u, limit %d", options->max_leases, WIRE_MAX_LEASES);
    if (kv_pool_n_blocks(options->pool) < 2)
        return bt_fail(err, BT_BAD_REQUEST, "the KV pool has %u blocks, decode needs at least 2",
                       kv_pool_n_blocks(options->pool));

    dec_sched *sched = bt_calloc(1, sizeof(*sched));
    fill_options(sched, options);
    sched->pool = options->pool;
    sched->prefix = kv_prefix_open(options->pool);
    sched->n_slots = sched->n_free_slots = sched->options.max_num_seqs + sched->options.max_leases;
    sched->slots = bt_calloc(sched->n_slots, sizeof(dec_slot));
    sched->free_slots = bt_calloc(sched->n_slots, sizeof(uint32_t));
    for (uint32_t i = 0; i < sched->n_slots; i++) sched->free_slots[i] = sched->n_slots - 1 - i;
    sched->order = bt_calloc(sched->n_slots, sizeof(uint32_t));
    sched->step_slots = bt_calloc(options->max_num_seqs, sizeof(uint32_t));
    sched->sequences = bt_calloc(options->max_num_seqs, sizeof(krn_sequence));
    sched->samples = bt_calloc(options->max_num_seqs, sizeof(dec_sample));
    sched->step_tokens = bt_calloc(options->max_num_seqs, sizeof(wire_token));
    bt_timers_init(&sched->timers, sched->n_slots + DEC_N_TIMERS);
    *out = sched;
    return BT_OK;
}

static void slot_free_memory(dec_sched *sched, dec_slot *slot) {
    kv_pool_release(sched->pool, slot->blocks, slot->n_blocks);
    free(slot->blocks);
    free(slot->tokens);
    free(slot->prefix);
    free((void *)slot->end.ids);
    bt_arena_fini(&slot->arena);
}

void dec_sched_close(dec_sched *sched) {
    if (sched == NULL) return;
    for (uint32_t i = 0; i < sched->n_slots; i++)
        if (sched->slots[i].state != DEC_FREE) slot_free_memory(sched, &sched->slots[i]);
    kv_prefix_close(sched->prefix);
    bt_map_fini(&sched->by_request);
    bt_map_fini(&sched->by_lease);
    bt_map_fini(&sched->by_gateway);
    bt_timers_fini(&sched->timers);
    free((void *)sched->options.eos_ids);
    free(sched->slots);
    free(sched->free_slots);
    free(sched->order);
    free(sched->gateways);
    free(sched->step_slots);
    free(sched->sequences);
    free(sched->samples);
    free(sched->step_tokens);
    free(sched->actions);
    free(sched);
}

/* ---- actions ---------------------------------------------------------------------------------------------------- */

dec_action *dec_act(dec_sched *sched, dec_action_kind kind, uint64_t peer) {
    if (sched->n_actions == sched->cap_actions) {
        sched->cap_actions = sched->cap_actions * 2 + 16;
        sched->actions = bt_realloc(sched->actions, sched->cap_actions, sizeof(dec_action));
    }
    dec_action *action = &sched->actions[sched->n_actions++];
    action->kind = kind;
    action->peer = peer;
    return action;
}

bool dec_sched_next(dec_sched *sched, dec_action *out) {
    if (sched->next_action == sched->n_actions) {
        sched->next_action = sched->n_actions = 0;
        return false;
    }
    *out = sched->actions[sched->next_action++];
    return true;
}

/* The contract of every event: the actions of the one before it have been carried out. */
static void begin_event(const dec_sched *sched) { BT_ASSERT(sched->n_actions == 0); }

void dec_send_gateway(dec_sched *sched, uint64_t gateway, const wire_message *message) {
    dec_act(sched, DEC_SEND_GATEWAY, gateway)->message = *message;
}

void dec_send_prefill(dec_sched *sched, uint64_t prefill, const wire_message *message) {
    dec_act(sched, DEC_SEND_PREFILL, prefill)->message = *message;
}

void dec_fail(dec_sched *sched, const dec_slot *slot, bt_status status, const char *text) {
    dec_send_gateway(
        sched, slot->request.gateway,
        &(wire_message){.type = WIRE_FAILED, .failed = {slot->request, (uint8_t)status, wire_str_from(text)}});
    sched->counters.n_failed++;
}

/* ---- slots ------------------------------------------------------------------------------------------------------ */

dec_slot *dec_slot_find(dec_sched *sched, const wire_request *request) {
    uint32_t index = bt_map_get(&sched->by_request, dec_request_key(request));
    return index == BT_MAP_NONE ? NULL : &sched->slots[index];
}

static void slot_release(dec_sched *sched, dec_slot *slot) {
    slot_free_memory(sched, slot);
    *slot = (dec_slot){.state = DEC_FREE};
    sched->free_slots[sched->n_free_slots++] = dec_slot_index(sched, slot);
    if (sched->is_draining && sched->n_free_slots == sched->n_slots && !sched->is_drained) {
        sched->is_drained = true;
        dec_act(sched, DEC_DRAINED, 0);
    }
}

void dec_slot_end(dec_sched *sched, dec_slot *slot, int64_t now_ns) {
    bt_timers_clear(&sched->timers, dec_slot_index(sched, slot));
    switch (slot->state) {
    case DEC_LEASED:
    case DEC_SETTLING: /* rule 3: a push may be landing */
        dec_act(sched, DEC_LEASE_CLOSE, slot->prefill)->lease_close = (dec_lease_close){slot->lease, 0};
        bt_map_remove(&sched->by_request, dec_request_key(&slot->request));
        slot->state = DEC_QUARANTINE;
        sched->n_leases--;
        sched->n_quarantined++;
        sched->counters.n_quarantined++;
        break;
    case DEC_WAITING:
    case DEC_RUNNING:
        dec_batch_remove(sched, slot);
        bt_map_remove(&sched->by_request, dec_request_key(&slot->request));
        slot->state = DEC_DEAD;
        if (!slot->in_step) slot_release(sched, slot); /* rule 3: else the step still reads and writes */
        break;
    case DEC_QUARANTINE: /* closed at last */
        sched->n_quarantined--;
        bt_map_remove(&sched->by_lease, dec_u64_key(slot->lease));
        slot_release(sched, slot);
        break;
    case DEC_DEAD: /* its step is done */
        slot_release(sched, slot);
        break;
    case DEC_FREE:
        BT_ASSERT(!"a free slot ends");
    }
    dec_status_changed(sched, now_ns);
}

/* A request that somebody took away from us: counted by phase. */
static void cancel_slot(dec_sched *sched, dec_slot *slot, int64_t now_ns) {
    dec_counters *counters = &sched->counters;
    switch (slot->state) {
    case DEC_LEASED:
    case DEC_SETTLING:
        counters->n_canceled_leased++;
        break;
    case DEC_WAITING:
        counters->n_canceled_waiting++;
        break;
    case DEC_RUNNING:
        counters->n_canceled_running++;
        break;
    default:
        BT_ASSERT(!"a request that is gone is canceled");
    }
    dec_slot_end(sched, slot, now_ns);
}

static bool is_living(const dec_slot *slot) {
    return slot->state == DEC_LEASED || slot->state == DEC_SETTLING || slot->state == DEC_WAITING ||
           slot->state == DEC_RUNNING;
}

/* ---- gateways --------------------------------------------------------------------------------------------------- */

static void add_gateway(dec_sched *sched, uint64_t gateway) {
    uint32_t at = 0;
    while (at < sched->cap_gateways && sched->gateways[at].incarnation != 0) at++;
    if (at == sched->cap_gateways) {
        uint32_t cap = sched->cap_gateways * 2 + 4;
        sched->gateways = bt_realloc(sched->gateways, cap, sizeof(dec_gateway));
        for (uint32_t i = sched->cap_gateways; i < cap; i++) sched->gateways[i] = (dec_gateway){0};
        sched->cap_gateways = cap;
    }
    sched->gateways[at] = (dec_gateway){.incarnation = gateway};
    sched->n_gateways++;
    bt_map_put(&sched->by_gateway, dec_u64_key(gateway), at);
}

static void drop_gateway(dec_sched *sched, uint64_t gateway, int64_t now_ns) {
    uint32_t at = bt_map_get(&sched->by_gateway, dec_u64_key(gateway));
    if (at == BT_MAP_NONE) return;
    for (uint32_t i = 0; i < sched->n_slots; i++) {
        dec_slot *slot = &sched->slots[i];
        if (!is_living(slot) || slot->request.gateway != gateway) continue;
        sched->counters.n_gateway_lost++;
        if (slot->state == DEC_SETTLING)
            dec_lease_refuse_commit(sched, slot, BT_CANCELED, "the gateway of the request is gone");
        cancel_slot(sched, slot, now_ns);
    }
    bt_map_remove(&sched->by_gateway, dec_u64_key(gateway));
    sched->gateways[at].incarnation = 0;
    sched->n_gateways--;
}

void dec_sched_gateway_up(dec_sched *sched, uint64_t gateway, int64_t now_ns) {
    begin_event(sched);
    if (gateway == 0) {
        sched->counters.n_strange++;
        return;
    }
    drop_gateway(sched, gateway, now_ns);
    add_gateway(sched, gateway);
    dec_status_changed(sched, now_ns);
}

void dec_sched_gateway_gone(dec_sched *sched, uint64_t gateway, int64_t now_ns) {
    begin_event(sched);
    drop_gateway(sched, gateway, now_ns);
}

void dec_sched_gateway_message(dec_sched *sched, uint64_t gateway, const wire_message *message, int64_t now_ns) {
    begin_event(sched);
    if (message->type == WIRE_CANCEL && message->cancel.request.gateway == gateway) {
        dec_slot *slot = dec_slot_find(sched, &message->cancel.request);
        if (slot == NULL) return; /* ended already, or never came here */
        if (slot->state == DEC_SETTLING) dec_lease_refuse_commit(sched, slot, BT_CANCELED, "the request is canceled");
        cancel_slot(sched, slot, now_ns);
    } else if (message->type == WIRE_DRAIN) {
        dec_sched_drain(sched, message->drain.grace_ms, now_ns);
    } else {
        sched->counters.n_strange++;
    }
}

/* ---- prefill workers -------------------------------------------------------------------------------------------- */

void dec_sched_prefill_gone(dec_sched *sched, uint64_t prefill, int64_t now_ns) {
    begin_event(sched);
    for (uint32_t i = 0; i < sched->n_slots; i++) {
        dec_slot *slot = &sched->slots[i];
        if (slot->prefill != prefill || (slot->state != DEC_LEASED && slot->state != DEC_SETTLING)) continue;
        sched->counters.n_prefill_lost++;
        dec_slot_end(sched, slot, now_ns);
    }
}

void dec_sched_prefill_message(dec_sched *sched, uint64_t prefill, const wire_message *message, int64_t now_ns) {
    begin_event(sched);
    switch (message->type) {
    case WIRE_RESERVE:
        dec_lease_reserve(sched, prefill, &message->reserve, now_ns);
        break;
    case WIRE_COMMIT:
        dec_lease_commit(sched, prefill, &message->commit, now_ns);
        break;
    case WIRE_ABORT:
        dec_lease_abort(sched, prefill, &message->abort, now_ns);
        break;
    case WIRE_RENEW:
        dec_lease_renew(sched, prefill, &message->renew, now_ns);
        break;
    default:
        sched->counters.n_strange++;
    }
}

/* ---- time, load, drain ------------------------------------------------------------------------------------------ */

void dec_status_changed(dec_sched *sched, int64_t now_ns) {
    uint32_t timer = sched->n_slots + DEC_TIMER_STATUS;
    if (bt_timers_is_set(&sched->timers, timer)) return;
    bt_timers_set(&sched->timers, timer, now_ns > sched->next_status_ns ? now_ns : sched->next_status_ns);
}

static void send_status(dec_sched *sched, int64_t now_ns) {
    sched->next_status_ns = dec_after_ms(now_ns, sched->options.status_ms);
    if (sched->n_gateways == 0) return;
    wire_message message = {.type = WIRE_STATUS};
    dec_sched_load(sched, &message.status.load);
    dec_act(sched, DEC_BROADCAST, 0)->message = message;
}

/* The grace is over: what still runs goes back to its gateway, which replays it elsewhere. */
static void give_back_all(dec_sched *sched, int64_t now_ns) {
    for (uint32_t i = 0; i < sched->n_slots; i++) {
        dec_slot *slot = &sched->slots[i];
        if (!is_living(slot)) continue;
        if (slot->state == DEC_SETTLING) dec_lease_refuse_commit(sched, slot, BT_AGAIN, "the worker shuts down");
        if (slot->state == DEC_WAITING || slot->state == DEC_RUNNING)
            dec_fail(sched, slot, BT_AGAIN, "The worker shuts down.");
        dec_slot_end(sched, slot, now_ns);
    }
}

void dec_sched_drain(dec_sched *sched, uint32_t grace_ms, int64_t now_ns) {
    begin_event(sched);
    if (grace_ms > 0) bt_timers_set(&sched->timers, sched->n_slots + DEC_TIMER_GRACE, dec_after_ms(now_ns, grace_ms));
    dec_status_changed(sched, now_ns);
    if (sched->is_draining) return;
    sched->is_draining = true;
    if (sched->n_free_slots < sched->n_slots) return;
    sched->is_drained = true;
    dec_act(sched, DEC_DRAINED, 0);
}

int64_t dec_sched_deadline_ns(const dec_sched *sched) { return bt_timers_next_ns(&sched->timers); }

void dec_sched_tick(dec_sched *sched, int64_t now_ns) {
    begin_event(sched);
    uint32_t id;
    while (bt_timers_pop(&sched->timers, now_ns, &id)) {
        if (id < sched->n_slots) {
            dec_lease_late(sched, &sched->slots[id], now_ns);
        } else if (id - sched->n_slots == DEC_TIMER_STATUS) {
            send_status(sched, now_ns);
        } else {
            give_back_all(sched, now_ns);
        }
    }
}

const dec_counters *dec_sched_counters(const dec_sched *sched) { return &sched->counters; }

uint32_t dec_sched_n_leases(const dec_sched *sched) { return sched->n_leases; }

void dec_sched_load(const dec_sched *sched, wire_load *out) {
    uint32_t n_blocks = kv_pool_n_blocks(sched->pool);
    *out = (wire_load){.running = sched->n_running,
                       .waiting = sched->n_waiting + sched->n_leases,
                       .kv_blocks_total = n_blocks,
                       .kv_blocks_used = n_blocks - kv_pool_n_free(sched->pool),
                       .is_draining = sched->is_draining};
}
