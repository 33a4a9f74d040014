/* The scheduler's table: slots, peers, timers, load. What a lease goes through is in dec_lease.c, the batch in
 * dec_step.c. Moves no byte and computes nothing. */
#include "decode/dec_sched.h"

#include <stdlib.h>
#include <string.h>

#include "decode/dec_internal.h"

/* ---- open and close --------------------------------------------------------------------------------------------- */

static void fill_options(dec_sched *sched, const wrk_sched_options *shared, const dec_sched_options *options) {
    dec_sched_options *o = &sched->options;
    uint32_t n_blocks = kv_pool_n_blocks(shared->pool);
    *o = *options;
    o->max_leases = wrk_or_default(o->max_leases, o->max_num_seqs);
    o->watermark_blocks = wrk_or_default(o->watermark_blocks, n_blocks / 64 + 1);
    o->lease_ms = wrk_or_default(o->lease_ms, 5000);
    o->settle_ms = wrk_or_default(o->settle_ms, 5000);
    o->pause_ms = wrk_or_default(o->pause_ms, 10000);
    uint64_t pool_positions = (uint64_t)n_blocks * KV_BLOCK_TOKENS;
    sched->max_positions = pool_positions < shared->max_model_len ? (uint32_t)pool_positions : shared->max_model_len;
}

static void slot_free_memory(dec_sched *sched, dec_slot *slot) {
    kv_pool_release(sched->pool, slot->blocks, slot->n_blocks);
    free(slot->blocks);
    free(slot->tokens);
    free(slot->prefix);
    free((void *)slot->end.ids);
    bt_arena_fini(&slot->arena);
}

static void sched_close(wrk_sched *base) {
    dec_sched *sched = dec_of(base);
    for (uint32_t i = 0; i < sched->base.n_slots; i++)
        if (sched->slots[i].state != DEC_FREE) slot_free_memory(sched, &sched->slots[i]);
    bt_map_fini(&sched->by_lease);
    free(sched->slots);
    free(sched->order);
    free(sched->gateways);
    free(sched->step_tokens);
    wrk_sched_fini(base);
    free(sched);
}

/* ---- messages --------------------------------------------------------------------------------------------------- */

void dec_send_gateway(dec_sched *sched, uint64_t gateway, const wire_message *message) {
    wrk_act(&sched->base, WRK_SEND_GATEWAY, gateway)->message = *message;
}

void dec_send_prefill(dec_sched *sched, uint64_t prefill, const wire_message *message) {
    wrk_act(&sched->base, WRK_SEND_PEER, prefill)->message = *message;
}

void dec_fail(dec_sched *sched, const dec_slot *slot, bt_status status, const char *text) {
    dec_send_gateway(
        sched, slot->request.gateway,
        &(wire_message){.type = WIRE_FAILED, .failed = {slot->request, (uint8_t)status, wire_str_from(text)}});
    sched->counters.n_failed++;
}

/* ---- slots ------------------------------------------------------------------------------------------------------ */

dec_slot *dec_slot_find(dec_sched *sched, const wire_request *request) {
    uint32_t index = wrk_slot_find(&sched->base, request);
    return index == BT_MAP_NONE ? NULL : &sched->slots[index];
}

void dec_slot_release(dec_sched *sched, dec_slot *slot) {
    slot_free_memory(sched, slot);
    *slot = (dec_slot){.state = DEC_FREE};
    wrk_slot_put(&sched->base, dec_slot_index(sched, slot));
}

void dec_slot_end(dec_sched *sched, dec_slot *slot, int64_t now_ns) {
    bt_timers_clear(&sched->base.timers, dec_slot_index(sched, slot));
    switch (slot->state) {
    case DEC_LEASED:
    case DEC_SETTLING: /* rule 3: a push may be landing */
        dec_lease_close(sched, slot, 0);
        bt_map_remove(&sched->base.by_request, wrk_request_key(&slot->request));
        slot->state = DEC_QUARANTINE;
        sched->n_leases--;
        sched->n_quarantined++;
        sched->counters.n_quarantined++;
        break;
    case DEC_WAITING:
    case DEC_RUNNING:
        dec_batch_remove(sched, slot);
        bt_map_remove(&sched->base.by_request, wrk_request_key(&slot->request));
        slot->state = DEC_DEAD;
        if (slot->n_step_rows == 0) dec_slot_release(sched, slot); /* rule 3: else the step still reads and writes */
        break;
    case DEC_QUARANTINE: /* closed at last */
        sched->n_quarantined--;
        bt_map_remove(&sched->by_lease, wrk_u64_key(slot->lease));
        dec_slot_release(sched, slot);
        break;
    case DEC_DEAD: /* its step is done */
        dec_slot_release(sched, slot);
        break;
    case DEC_FREE:
        BT_ASSERT(!"a free slot ends");
    }
    wrk_status_changed(&sched->base, now_ns);
}

/* ---- blocks ----------------------------------------------------------------------------------------------------- */

bool dec_blocks_take(dec_sched *sched, const wire_block_name *names, uint32_t n_names, uint32_t n_blocks,
                     uint32_t *blocks, uint32_t *n_held) {
    bool is_empty = kv_pool_n_free(sched->pool) == kv_pool_n_blocks(sched->pool);
    uint32_t keep = is_empty ? 0 : sched->options.watermark_blocks + sched->n_running;
    uint32_t n = kv_prefix_take(sched->base.prefix, names, n_names, blocks);
    if (n_blocks - n + keep > kv_pool_n_free(sched->pool)) {
        kv_pool_release(sched->pool, blocks, n);
        return false;
    }
    bt_status status = kv_pool_acquire(sched->pool, n_blocks - n, blocks + n);
    BT_ASSERT(status == BT_OK);
    *n_held = n;
    return true;
}

void dec_blocks_offer(dec_sched *sched, dec_slot *slot, int64_t now_ns) {
    uint32_t n = slot->n_cached / KV_BLOCK_TOKENS, first = slot->n_shared;
    if (n > slot->n_prefix) n = slot->n_prefix;
    if (n <= first) return;
    kv_prefix_put(sched->base.prefix, slot->prefix + first, slot->blocks + first, n - first);
    slot->n_shared = n;
    wrk_status_changed(&sched->base, now_ns); /* gateways hear of them */
}

const char *dec_why_full(const dec_sched *sched) {
    uint32_t n_pending = sched->n_leases + sched->n_quarantined + sched->n_waiting;
    if (n_pending >= sched->options.max_leases || sched->base.n_free_slots == 0)
        return "This decode worker has no free lease.";
    if (dec_batch_is_short(sched)) return "This decode worker's own sequences need its free KV blocks.";
    /* Who is taken should decode at once, not wait with a token shown. A few more than fit, because those that are
     * leased have a prompt to be computed first. */
    uint32_t n_places = sched->options.max_num_seqs + sched->options.max_num_seqs / 8;
    if (sched->n_running + sched->n_waiting + sched->n_leases >= n_places) return "This decode worker's batch is full.";
    return NULL;
}

/* ---- the ends --------------------------------------------------------------------------------------------------- */

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
    bt_map_put(&sched->base.by_gateway, wrk_u64_key(gateway), at);
}

static void drop_gateway(dec_sched *sched, uint64_t gateway, int64_t now_ns) {
    uint32_t at = bt_map_get(&sched->base.by_gateway, wrk_u64_key(gateway));
    if (at == BT_MAP_NONE) return;
    for (uint32_t i = 0; i < sched->base.n_slots; i++) {
        dec_slot *slot = &sched->slots[i];
        if (!is_living(slot) || slot->request.gateway != gateway) continue;
        sched->counters.n_gateway_lost++;
        if (slot->state == DEC_SETTLING)
            dec_lease_refuse_commit(sched, slot, BT_CANCELED, "the gateway of the request is gone");
        cancel_slot(sched, slot, now_ns);
    }
    bt_map_remove(&sched->base.by_gateway, wrk_u64_key(gateway));
    sched->gateways[at].incarnation = 0;
}

static void gateway_up(wrk_sched *base, uint64_t gateway, int64_t now_ns) {
    wrk_begin_event(base);
    dec_sched *sched = dec_of(base);
    if (gateway == 0) {
        sched->counters.n_strange++;
        return;
    }
    drop_gateway(sched, gateway, now_ns);
    add_gateway(sched, gateway);
    wrk_gateway_greet(base, gateway);
}

static void gateway_gone(wrk_sched *base, uint64_t gateway, int64_t now_ns) {
    wrk_begin_event(base);
    drop_gateway(dec_of(base), gateway, now_ns);
}

static void gateway_message(wrk_sched *base, uint64_t gateway, const wire_message *message, int64_t now_ns) {
    wrk_begin_event(base);
    dec_sched *sched = dec_of(base);
    if (message->type == WIRE_CANCEL && message->cancel.request.gateway == gateway) {
        dec_slot *slot = dec_slot_find(sched, &message->cancel.request);
        if (slot == NULL) return; /* ended already, or never came here */
        if (slot->state == DEC_SETTLING) dec_lease_refuse_commit(sched, slot, BT_CANCELED, "the request is canceled");
        cancel_slot(sched, slot, now_ns);
    } else if (message->type == WIRE_SUBMIT) {
        dec_request_submit(sched, gateway, &message->submit, now_ns);
    } else if (message->type == WIRE_DRAIN) {
        wrk_sched_drain(base, message->drain.grace_ms, now_ns);
    } else {
        sched->counters.n_strange++;
    }
}

/* ---- prefill workers -------------------------------------------------------------------------------------------- */

/* Up and gone alike: a new connection has no leases, those of an old one end with it. */
static void drop_leases(wrk_sched *base, uint64_t prefill, int64_t now_ns) {
    wrk_begin_event(base);
    dec_sched *sched = dec_of(base);
    for (uint32_t i = 0; i < sched->base.n_slots; i++) {
        dec_slot *slot = &sched->slots[i];
        if (slot->prefill != prefill || (slot->state != DEC_LEASED && slot->state != DEC_SETTLING)) continue;
        sched->counters.n_prefill_lost++;
        dec_slot_end(sched, slot, now_ns);
    }
}

static void prefill_message(wrk_sched *base, uint64_t prefill, const wire_message *message, int64_t now_ns) {
    wrk_begin_event(base);
    dec_sched *sched = dec_of(base);
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

/* ---- time, load ------------------------------------------------------------------------------------------------- */

static void give_back(wrk_sched *base, bt_status status, const char *text, int64_t now_ns) {
    dec_sched *sched = dec_of(base);
    for (uint32_t i = 0; i < sched->base.n_slots; i++) {
        dec_slot *slot = &sched->slots[i];
        if (!is_living(slot)) continue;
        if (slot->state == DEC_SETTLING) dec_lease_refuse_commit(sched, slot, status, text);
        if (slot->state == DEC_WAITING || slot->state == DEC_RUNNING) dec_fail(sched, slot, status, text);
        dec_slot_end(sched, slot, now_ns);
    }
}

static void late(wrk_sched *base, uint32_t id, int64_t now_ns) {
    dec_sched *sched = dec_of(base);
    if (id < base->n_slots)
        dec_lease_late(sched, &sched->slots[id], now_ns);
    else
        dec_batch_late(sched, now_ns);
}

static void load(const wrk_sched *base, wire_load *out) {
    const dec_sched *sched = (const dec_sched *)base;
    uint32_t n_blocks = kv_pool_n_blocks(sched->pool);
    *out = (wire_load){.running = sched->n_running,
                       .waiting = sched->n_waiting + sched->n_leases,
                       .kv_blocks_total = n_blocks,
                       .kv_blocks_used = n_blocks - kv_pool_n_free(sched->pool),
                       .is_draining = base->is_draining,
                       .is_incomplete = base->is_incomplete,
                       .local_prefill_tokens = dec_why_full(sched) != NULL ? 0 : sched->options.local_prefill_tokens,
                       .step_us = wrk_pace_step_us(base)};
}

uint32_t dec_sched_n_leases(const wrk_sched *sched) { return ((const dec_sched *)sched)->n_leases; }

/* ---- open ------------------------------------------------------------------------------------------------------- */

static const wrk_sched events = {
    .close = sched_close,
    .gateway_up = gateway_up,
    .gateway_gone = gateway_gone,
    .gateway_message = gateway_message,
    .peer_up = drop_leases,
    .peer_gone = drop_leases,
    .peer_message = prefill_message,
    .lease_closed = dec_lease_closed,
    .step_begin = dec_step_begin,
    .step_done = dec_step_done,
    .step_lost = dec_step_lost,
    .load = load,
    .late = late,
    .give_back = give_back,
    .is_owner = dec_is_owner,
    .check = dec_check,
};

bt_status dec_sched_open(const wrk_sched_options *shared, const dec_sched_options *options, wrk_sched **out,
                         bt_error *err) {
    bt_status status = wrk_sched_options_check(shared, err);
    if (status != BT_OK) return status;
    if (options->max_num_seqs == 0 || options->max_num_seqs > WIRE_MAX_STEP_TOKENS)
        return bt_fail(err, BT_BAD_REQUEST, "max-num-seqs is %u, it must be 1 to %d", options->max_num_seqs,
                       WIRE_MAX_STEP_TOKENS);
    if (options->max_batched_tokens < options->max_num_seqs)
        return bt_fail(err, BT_BAD_REQUEST, "max-num-batched-tokens is %u, it must be at least max-num-seqs, %u",
                       options->max_batched_tokens, options->max_num_seqs);
    if (options->max_leases > WIRE_MAX_LEASES)
        return bt_fail(err, BT_BAD_REQUEST, "max-leases is %u, limit %d", options->max_leases, WIRE_MAX_LEASES);
    if (kv_pool_n_blocks(shared->pool) < 2)
        return bt_fail(err, BT_BAD_REQUEST, "the KV pool has %u blocks, decode needs at least 2",
                       kv_pool_n_blocks(shared->pool));

    dec_sched *sched = bt_calloc(1, sizeof(*sched));
    fill_options(sched, shared, options);
    uint32_t n_slots = options->max_num_seqs + sched->options.max_leases;
    sched->base = events;
    wrk_sched_init(&sched->base, shared, n_slots, options->max_num_seqs);
    sched->base.counters = &sched->counters;
    sched->pool = shared->pool;
    sched->slots = bt_calloc(n_slots, sizeof(dec_slot));
    sched->order = bt_calloc(n_slots, sizeof(uint32_t));
    sched->step_tokens = bt_calloc(options->max_num_seqs, sizeof(wire_token));
    *out = &sched->base;
    return BT_OK;
}
