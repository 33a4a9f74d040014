/* What both schedulers do alike. Decides nothing about requests: that is pre_sched.c's and dec_sched.c's business. */
#include "worker/wrk_sched.h"

#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"

bt_status wrk_sched_options_check(const wrk_sched_options *options, bt_error *err) {
    if (options->vocab_size == 0 || options->max_model_len == 0 || options->max_model_len > WIRE_MAX_TOKENS ||
        options->n_layers == 0)
        return bt_fail(err, BT_BAD_REQUEST, "a worker needs a vocabulary, layers and 1 to %d positions",
                       WIRE_MAX_TOKENS);
    if (kv_pool_n_blocks(options->pool) == 0) return bt_fail(err, BT_BAD_REQUEST, "the KV pool has no block");
    return BT_OK;
}

void wrk_sched_init(wrk_sched *sched, const wrk_sched_options *options, uint32_t n_slots, uint32_t max_step_seqs) {
    wrk_sched_options *o = &sched->options;
    *o = *options;
    o->status_ms = wrk_or_default(o->status_ms, 5);
    uint32_t *eos_ids = bt_calloc(o->n_eos_ids, sizeof(uint32_t));
    if (o->n_eos_ids > 0) memcpy(eos_ids, options->eos_ids, o->n_eos_ids * sizeof(uint32_t));
    o->eos_ids = eos_ids;
    sched->prefix = kv_prefix_open(o->pool);
    sched->told = bt_calloc(kv_pool_n_blocks(o->pool), sizeof(wire_block_name));
    sched->n_slots = sched->n_free_slots = n_slots;
    sched->free_slots = bt_calloc(n_slots, sizeof(uint32_t));
    for (uint32_t i = 0; i < n_slots; i++) sched->free_slots[i] = n_slots - 1 - i;
    sched->claims = bt_calloc(n_slots, sizeof(wrk_claim));
    sched->step_slots = bt_calloc(max_step_seqs, sizeof(uint32_t));
    sched->sequences = bt_calloc(max_step_seqs, sizeof(krn_sequence));
    sched->samples = bt_calloc(max_step_seqs, sizeof(wrk_sample));
    bt_timers_init(&sched->timers, n_slots + WRK_N_TIMERS);
}

void wrk_sched_fini(wrk_sched *sched) {
    kv_prefix_close(sched->prefix);
    free(sched->told);
    bt_map_fini(&sched->by_request);
    bt_map_fini(&sched->by_gateway);
    bt_timers_fini(&sched->timers);
    free((void *)sched->options.eos_ids);
    free(sched->free_slots);
    free(sched->claims);
    free(sched->step_slots);
    free(sched->sequences);
    free(sched->samples);
    free(sched->actions);
}

/* ---- actions ---------------------------------------------------------------------------------------------------- */

void wrk_begin_event(const wrk_sched *sched) { BT_ASSERT(sched->n_actions == 0); }

wrk_action *wrk_act(wrk_sched *sched, wrk_action_kind kind, uint64_t peer) {
    if (sched->n_actions == sched->cap_actions) {
        sched->cap_actions = sched->cap_actions * 2 + 16;
        sched->actions = bt_realloc(sched->actions, sched->cap_actions, sizeof(wrk_action));
    }
    wrk_action *action = &sched->actions[sched->n_actions++];
    action->kind = kind;
    action->peer = peer;
    return action;
}

bool wrk_sched_next(wrk_sched *sched, wrk_action *out) {
    if (sched->next_action == sched->n_actions) {
        sched->next_action = sched->n_actions = 0;
        return false;
    }
    *out = sched->actions[sched->next_action++];
    return true;
}

/* ---- slots ------------------------------------------------------------------------------------------------------ */

static void drain_if_empty(wrk_sched *sched) {
    if (!sched->is_draining || sched->is_drained || sched->n_free_slots < sched->n_slots) return;
    sched->is_drained = true;
    wrk_act(sched, WRK_DRAINED, 0);
}

uint32_t wrk_slot_take(wrk_sched *sched) {
    BT_ASSERT(sched->n_free_slots > 0);
    return sched->free_slots[--sched->n_free_slots];
}

void wrk_slot_put(wrk_sched *sched, uint32_t slot) {
    sched->free_slots[sched->n_free_slots++] = slot;
    drain_if_empty(sched);
}

uint32_t wrk_slot_find(const wrk_sched *sched, const wire_request *request) {
    return bt_map_get(&sched->by_request, wrk_request_key(request));
}

/* ---- time, load, drain ------------------------------------------------------------------------------------------ */

void wrk_status_changed(wrk_sched *sched, int64_t now_ns) {
    uint32_t timer = sched->n_slots + WRK_TIMER_STATUS;
    if (bt_timers_is_set(&sched->timers, timer)) return;
    bt_timers_set(&sched->timers, timer, now_ns > sched->next_status_ns ? now_ns : sched->next_status_ns);
}

/* To one gateway or all. First what is gone, then what has come, in as many messages as it takes. */
static void send_blocks(wrk_sched *sched, wrk_action_kind kind, uint64_t gateway, kv_prefix_changes changes) {
    while (changes.n_gone > 0 || changes.n_come > 0) {
        wire_blocks blocks = {.gone = changes.gone, .come = changes.come};
        blocks.n_gone = changes.n_gone < WIRE_MAX_BLOCK_NAMES ? changes.n_gone : WIRE_MAX_BLOCK_NAMES;
        if (blocks.n_gone == changes.n_gone)
            blocks.n_come = changes.n_come < WIRE_MAX_BLOCK_NAMES ? changes.n_come : WIRE_MAX_BLOCK_NAMES;
        wrk_act(sched, kind, gateway)->message = (wire_message){.type = WIRE_BLOCKS, .blocks = blocks};
        changes.gone += blocks.n_gone;
        changes.n_gone -= blocks.n_gone;
        changes.come += blocks.n_come;
        changes.n_come -= blocks.n_come;
    }
}

static void send_status(wrk_sched *sched, wrk_action_kind kind, uint64_t gateway) {
    wire_message message = {.type = WIRE_STATUS};
    sched->load(sched, &message.status.load);
    wrk_act(sched, kind, gateway)->message = message;
}

void wrk_gateway_greet(wrk_sched *sched, uint64_t gateway) {
    kv_prefix_changes all = {.come = sched->told};
    all.n_come = kv_prefix_told(sched->prefix, sched->told);
    send_status(sched, WRK_SEND_GATEWAY, gateway);
    send_blocks(sched, WRK_SEND_GATEWAY, gateway, all);
}

static void tell_gateways(wrk_sched *sched, int64_t now_ns) {
    sched->next_status_ns = wrk_after_ms(now_ns, sched->options.status_ms);
    kv_prefix_changes changes = kv_prefix_take_changes(sched->prefix); /* greetings begin from what was taken */
    if (sched->by_gateway.n_used == 0) return;
    send_status(sched, WRK_BROADCAST, 0);
    send_blocks(sched, WRK_BROADCAST, 0, changes);
}

void wrk_sched_drain(wrk_sched *sched, uint32_t grace_ms, int64_t now_ns) {
    wrk_begin_event(sched);
    if (grace_ms > 0) bt_timers_set(&sched->timers, sched->n_slots + WRK_TIMER_GRACE, wrk_after_ms(now_ns, grace_ms));
    wrk_status_changed(sched, now_ns);
    sched->is_draining = true;
    drain_if_empty(sched);
}

const char *wrk_sched_why_closed(const wrk_sched *sched, bt_status *status) {
    *status = sched->is_draining ? BT_AGAIN : BT_NO_CAPACITY;
    if (sched->is_draining) return "The worker is draining.";
    return sched->is_incomplete ? "The worker's expert-parallel group is incomplete." : NULL;
}

void wrk_sched_set_complete(wrk_sched *sched, bool is_complete, int64_t now_ns) {
    wrk_begin_event(sched);
    if (sched->is_incomplete == !is_complete) return;
    sched->is_incomplete = !is_complete;
    wrk_status_changed(sched, now_ns);
}

void wrk_sched_lose_group(wrk_sched *sched, int64_t now_ns) {
    wrk_begin_event(sched);
    sched->is_incomplete = true;
    if (sched->by_gateway.n_used > 0) send_status(sched, WRK_BROADCAST, 0); /* first: nobody shall try here again */
    sched->give_back(sched, BT_PEER_LOST, "A rank of the worker's expert-parallel group was lost.", now_ns);
    if (sched->is_stepping) sched->step_lost(sched, now_ns);
}

int64_t wrk_sched_deadline_ns(const wrk_sched *sched) { return bt_timers_next_ns(&sched->timers); }

void wrk_sched_tick(wrk_sched *sched, int64_t now_ns) {
    wrk_begin_event(sched);
    uint32_t id;
    while (bt_timers_pop(&sched->timers, now_ns, &id)) {
        if (id == sched->n_slots + WRK_TIMER_STATUS) {
            tell_gateways(sched, now_ns);
        } else if (id != sched->n_slots + WRK_TIMER_GRACE) {
            sched->late(sched, id, now_ns);
        } else if (sched->n_actions > 0) { /* they may point to what give_back() frees: the next tick does it */
            bt_timers_set(&sched->timers, id, now_ns);
            return;
        } else {
            sched->give_back(sched, BT_AGAIN, "The worker shuts down.", now_ns);
        }
    }
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

#define PACE_FADE 0.9 /* per step: the last ten weigh two thirds */

void wrk_step_began(wrk_sched *sched, int64_t now_ns) {
    sched->is_stepping = true;
    sched->pace.begin_ns = now_ns;
}

void wrk_step_ended(wrk_sched *sched, uint32_t n_rows, int64_t now_ns) {
    sched->is_stepping = false;
    sched->pace.n_steps = sched->pace.n_steps * PACE_FADE + 1;
    sched->pace.n_rows = sched->pace.n_rows * PACE_FADE + n_rows;
    sched->pace.ns = sched->pace.ns * PACE_FADE + (double)(now_ns - sched->pace.begin_ns);
}

/* 1 at least: 0 says that nothing is known. */
static uint32_t as_figure(double value) { return value < 1 ? 1 : value > UINT32_MAX ? UINT32_MAX : (uint32_t)value; }

uint32_t wrk_pace_rows_per_s(const wrk_sched *sched) {
    if (sched->pace.ns <= 0) return 0;
    return as_figure(sched->pace.n_rows * BT_NS_PER_S / sched->pace.ns);
}

uint32_t wrk_pace_step_us(const wrk_sched *sched) {
    if (sched->pace.n_steps <= 0) return 0;
    return as_figure(sched->pace.ns * 1e-3 / sched->pace.n_steps);
}

/* ---- requests --------------------------------------------------------------------------------------------------- */

wire_end_rule wrk_end_rule(const wrk_sched *sched, const wire_sampling *sampling, const uint32_t *stop_ids,
                           uint32_t n_stop_ids, uint32_t max_output) {
    uint32_t n_eos = sampling->ignore_eos ? 0 : sched->options.n_eos_ids;
    uint32_t *ids = bt_calloc(n_eos + n_stop_ids, sizeof(uint32_t));
    if (n_eos > 0) memcpy(ids, sched->options.eos_ids, n_eos * sizeof(uint32_t));
    if (n_stop_ids > 0) memcpy(ids + n_eos, stop_ids, n_stop_ids * sizeof(uint32_t));
    return (wire_end_rule){.ids = ids,
                           .n_ids = n_eos + n_stop_ids,
                           .n_eos = n_eos,
                           .min_tokens = sampling->min_tokens,
                           .max_output = max_output};
}

wire_message wrk_finished(const wire_request *request, uint8_t reason, uint32_t token, uint32_t n_output) {
    return (wire_message){.type = WIRE_FINISHED,
                          .finished = {.request = *request,
                                       .reason = reason,
                                       .stop_token = reason == WIRE_FINISH_STOP_TOKEN ? token : 0,
                                       .n_output = n_output}};
}

krn_draw_args wrk_draw_args(const wire_sampling *sampling, const wire_constraint *constraint, const wire_end_rule *end,
                            const uint32_t *tokens, uint32_t n_prompt, uint32_t n_tokens) {
    return (krn_draw_args){.sampling = sampling,
                           .constraint = constraint,
                           .tokens = tokens,
                           .n_prompt = n_prompt,
                           .n_tokens = n_tokens,
                           .banned = end->ids,
                           .n_banned = wire_end_is_banned(end, n_tokens - n_prompt + 1) ? end->n_ids : 0};
}

void wrk_sched_check_pool(const wrk_sched *sched, uint64_t n_held) {
    const kv_pool *pool = sched->options.pool;
    uint64_t n_holders = 0;
    uint32_t n_used = 0;
    for (uint32_t i = 0; i < kv_pool_n_blocks(pool); i++) {
        n_holders += kv_pool_n_holders(pool, i);
        n_used += kv_pool_n_holders(pool, i) > 0;
    }
    BT_ASSERT(n_held == n_holders); /* each slot holds what it names, nobody else holds anything */
    BT_ASSERT(n_used == kv_pool_n_blocks(pool) - kv_pool_n_free(pool));
    kv_prefix_check(sched->prefix);
}
