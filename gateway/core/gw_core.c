/* The table of requests: submit, cancel, the ends, the action list and time. How an attempt is started, lost and
 * replayed is in gw_attempt.c; what workers say is in gw_message.c; who is chosen is in gw_router.c. */
#include "gateway/core/gw_core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/wire/end_rule.h"
#include "common/wire/sampling.h"
#include "gateway/core/gw_internal.h"

/* ---- open and close --------------------------------------------------------------------------------------------- */

static uint32_t or_default(uint32_t value, uint32_t if_zero) { return value != 0 ? value : if_zero; }

bt_status gw_core_open(const gw_core_options *options, gw_core **out, bt_error *err) {
    if (options->incarnation == 0 || options->max_requests == 0 || options->vocab_size == 0)
        return bt_fail(err, BT_BAD_REQUEST, "a gateway needs an incarnation, a vocabulary and room for a request");
    if (options->max_model_len < 2 || options->max_model_len > WIRE_MAX_TOKENS)
        return bt_fail(err, BT_BAD_REQUEST, "max-model-len is %u, it must be 2 to %d", options->max_model_len,
                       WIRE_MAX_TOKENS);
    gw_core *core = bt_calloc(1, sizeof(*core));
    gw_core_options *o = &core->options;
    *o = *options;
    uint32_t *eos_ids = bt_calloc(o->n_eos_ids, sizeof(uint32_t));
    if (o->n_eos_ids > 0) memcpy(eos_ids, options->eos_ids, o->n_eos_ids * sizeof(uint32_t));
    o->eos_ids = eos_ids;
    o->accept_ms = or_default(o->accept_ms, 10000);
    o->first_token_ms = or_default(o->first_token_ms, 600000);
    o->hand_off_ms = or_default(o->hand_off_ms, 60000);
    o->token_ms = or_default(o->token_ms, 60000);
    o->no_worker_ms = or_default(o->no_worker_ms, 10000);
    uint32_t n = o->max_requests;
    core->router =
        gw_router_open(&(gw_router_options){o->seed, o->saturation_ms, o->slo_ttft_ms, o->max_worker_queue_ms});
    core->slots = bt_calloc(n, sizeof(gw_slot));
    core->ended_slots = bt_calloc(n, sizeof(uint32_t));
    core->free_slots = bt_calloc(n, sizeof(uint32_t));
    core->n_free_slots = n;
    for (uint32_t i = 0; i < n; i++) core->free_slots[i] = n - 1 - i;
    bt_timers_init(&core->timers, n);
    *out = core;
    return BT_OK;
}

static void slot_free(gw_slot *slot) {
    free(slot->tokens);
    free(slot->names);
    free(slot->logprobs);
    bt_arena_fini(&slot->arena);
    *slot = (gw_slot){0};
}

void gw_core_close(gw_core *core) {
    if (core == NULL) return;
    for (uint32_t i = 0; i < core->options.max_requests; i++) slot_free(&core->slots[i]);
    gw_router_close(core->router);
    bt_map_fini(&core->by_serial);
    bt_timers_fini(&core->timers);
    gw_queue_fini(&core->queue);
    free((void *)core->options.eos_ids);
    free(core->slots);
    free(core->ended_slots);
    free(core->free_slots);
    free(core->actions);
    free(core);
}

/* ---- actions ---------------------------------------------------------------------------------------------------- */

gw_action *gw_act(gw_core *core, gw_action_kind kind) {
    if (core->n_actions == core->cap_actions) {
        core->cap_actions = core->cap_actions * 2 + 16;
        core->actions = bt_realloc(core->actions, core->cap_actions, sizeof(gw_action));
    }
    gw_action *action = &core->actions[core->n_actions++];
    *action = (gw_action){.kind = kind};
    return action;
}

static gw_action *act_on_client(gw_core *core, gw_action_kind kind, const gw_slot *slot) {
    gw_action *action = gw_act(core, kind);
    action->serial = slot->serial;
    action->user = slot->user;
    return action;
}

static void free_ended(gw_core *core) {
    for (uint32_t i = 0; i < core->n_ended_slots; i++) {
        uint32_t index = core->ended_slots[i];
        gw_slot *slot = &core->slots[index];
        bt_map_remove(&core->by_serial, gw_u64_key(slot->serial));
        slot_free(slot);
        core->free_slots[core->n_free_slots++] = index;
    }
    core->n_ended_slots = 0;
}

/* tokens[] and logprobs[] may have moved since the action was made, so pointers into them are taken when the action is.
 */
static bool finish_action(gw_core *core, gw_action *action) {
    bool is_send = action->kind == GW_SEND;
    if (is_send && action->message.type != WIRE_SUBMIT) return true;
    uint64_t serial = is_send ? action->message.submit.request.serial : action->serial;
    const gw_slot *slot = &core->slots[bt_map_get(&core->by_serial, gw_u64_key(serial))];
    if (is_send) {
        action->message.submit.tokens = slot->tokens;
        return true;
    }
    if (action->kind == GW_TOKENS) {
        action->tokens = slot->tokens + slot->info.n_prompt + action->index;
        action->logprobs = slot->logprobs == NULL ? NULL : slot->logprobs + action->index;
    }
    return !slot->is_canceled;
}

bool gw_core_next(gw_core *core, gw_action *out) {
    while (core->next_action < core->n_actions) {
        *out = core->actions[core->next_action++];
        if (finish_action(core, out)) return true;
    }
    core->next_action = core->n_actions = 0;
    free_ended(core);
    return false;
}

void gw_send_cancel(gw_core *core, uint64_t peer, const wire_request *request) {
    if (gw_router_worker(core->router, peer) == NULL) return;
    gw_action *action = gw_act(core, GW_SEND);
    action->peer = peer;
    action->message = (wire_message){.type = WIRE_CANCEL, .cancel = {*request}};
}

/* ---- requests --------------------------------------------------------------------------------------------------- */

static uint32_t highest_token(const uint32_t *tokens, uint32_t n_tokens) {
    uint32_t highest = 0;
    for (uint32_t i = 0; i < n_tokens; i++) highest = tokens[i] > highest ? tokens[i] : highest;
    return highest;
}

static bt_status check_submit(const gw_core *core, const gw_submit *submit, bt_error *err) {
    const gw_core_options *o = &core->options;
    if (submit->n_tokens == 0) return bt_fail(err, BT_BAD_REQUEST, "The prompt is empty.");
    if (submit->n_tokens >= o->max_model_len)
        return bt_fail(err, BT_BAD_REQUEST,
                       "This model's maximum context length is %u tokens, the prompt has %u: no output token fits.",
                       o->max_model_len, submit->n_tokens);
    if (submit->max_tokens == 0) return bt_fail(err, BT_BAD_REQUEST, "max_tokens must be at least 1.");
    if (submit->n_stop_token_ids > WIRE_MAX_STOP_IDS)
        return bt_fail(err, BT_BAD_REQUEST, "stop_token_ids has %u ids, limit %d.", submit->n_stop_token_ids,
                       WIRE_MAX_STOP_IDS);
    if (strlen(submit->cache_salt) > WIRE_MAX_NAME)
        return bt_fail(err, BT_BAD_REQUEST, "cache_salt is longer than %d bytes.", WIRE_MAX_NAME);
    if (!wire_sampling_is_sane(&submit->sampling) || !wire_constraint_is_sane(&submit->constraint, o->vocab_size))
        return bt_fail(err, BT_BAD_REQUEST, "A sampling parameter is out of range.");
    uint32_t highest = highest_token(submit->tokens, submit->n_tokens);
    if (highest >= o->vocab_size) return bt_fail(err, BT_BAD_REQUEST, "Token id %u is out of vocabulary.", highest);
    return BT_OK;
}

static void reserve_tokens(gw_slot *slot, uint32_t n_tokens) {
    if (n_tokens <= slot->cap_tokens) return;
    uint64_t cap = (uint64_t)n_tokens + n_tokens / 4 + 64, most = (uint64_t)slot->info.n_prompt + slot->max_tokens;
    if (cap > most) cap = most;
    BT_ASSERT(cap >= n_tokens);
    slot->tokens = bt_realloc(slot->tokens, cap, sizeof(uint32_t));
    slot->cap_tokens = (uint32_t)cap;
}

static const bt_selector *copy_filter(const bt_selector *filter, bt_arena *arena) {
    return filter == NULL ? NULL : memcpy(bt_arena_alloc(arena, sizeof *filter), filter, sizeof *filter);
}

static void fill_slot(gw_core *core, gw_slot *slot, const gw_submit *submit, int64_t now_ns) {
    slot->is_used = true;
    slot->serial = ++core->last_serial;
    slot->user = submit->user;
    slot->max_tokens = wire_end_max_output(submit->max_tokens, submit->n_tokens, core->options.max_model_len);
    slot->sampling = submit->sampling;
    slot->constraint = wire_constraint_copy(&submit->constraint, &slot->arena);
    slot->n_stop_token_ids = submit->n_stop_token_ids;
    if (submit->n_stop_token_ids > 0)
        memcpy(slot->stop_token_ids, submit->stop_token_ids, submit->n_stop_token_ids * sizeof(uint32_t));
    snprintf(slot->cache_salt, sizeof(slot->cache_salt), "%s", submit->cache_salt);
    slot->strategy = *submit->strategy;
    slot->filter = copy_filter(submit->filter, &slot->arena);
    slot->slo_ttft_ms = submit->slo_ttft_ms;
    slot->priority = submit->priority;
    slot->first_serial = slot->serial - submit->choice;
    slot->n_choices = submit->n_choices > 0 ? submit->n_choices : 1;
    slot->queue_until_ns = gw_after_ms(now_ns, submit->queue_ms);
    slot->session_key = submit->session_key;
    slot->session_name = submit->session_name;
    slot->info = (gw_info){.strategy = &slot->strategy, .n_prompt = submit->n_tokens, .submit_ns = now_ns};
    reserve_tokens(slot, submit->n_tokens);
    memcpy(slot->tokens, submit->tokens, submit->n_tokens * sizeof(uint32_t));
}

/* Nobody is overtaken: who may not go before all that wait joins them. */
static bt_status start_or_wait(gw_core *core, gw_slot *slot, int64_t now_ns, bt_error *err) {
    gw_queued item = {slot->priority, slot->serial, 0};
    bool is_next = core->queue.n == 0 || gw_queued_is_before(&item, &core->queue.items[0]);
    bt_status status =
        is_next ? gw_attempt_start(core, slot, true, now_ns, err) : gw_router_check(core->router, slot->filter, err);
    if (status == BT_NO_CAPACITY || (is_next && status == BT_OK)) return status;
    status = gw_wait_join(core, slot, err);
    core->queue_version = 0; /* it may go where those before it may not */
    return status;
}

bt_status gw_core_submit(gw_core *core, const gw_submit *submit, int64_t now_ns, uint64_t *out_serial, bt_error *err) {
    bt_status status = check_submit(core, submit, err);
    if (status != BT_OK) return status;
    if (core->n_free_slots == 0)
        return bt_fail(err, BT_AGAIN, "The gateway has %u requests already.", core->options.max_requests);
    uint32_t index = core->free_slots[core->n_free_slots - 1];
    gw_slot *slot = &core->slots[index];
    fill_slot(core, slot, submit, now_ns);
    status = start_or_wait(core, slot, now_ns, err);
    if (status != BT_OK) {
        slot_free(slot);
        return status;
    }
    core->n_free_slots--;
    bt_map_put(&core->by_serial, gw_u64_key(slot->serial), index);
    core->counters.n_submitted++;
    *out_serial = slot->serial;
    gw_wait_serve(core, now_ns);
    return BT_OK;
}

static void end_slot(gw_core *core, gw_slot *slot) {
    BT_ASSERT(!slot->has_ended);
    slot->has_ended = true;
    gw_wait_leave(core, slot);
    bt_timers_clear(&core->timers, gw_slot_index(core, slot));
    core->ended_slots[core->n_ended_slots++] = gw_slot_index(core, slot);
}

void gw_core_cancel(gw_core *core, uint64_t serial, int64_t now_ns) {
    uint32_t index = bt_map_get(&core->by_serial, gw_u64_key(serial));
    if (index == BT_MAP_NONE) return;
    gw_slot *slot = &core->slots[index];
    slot->is_canceled = true; /* also when its end is in the list already: it is not shown */
    if (slot->has_ended) return;
    gw_attempt_drop(core, slot, 0);
    core->counters.n_canceled++;
    end_slot(core, slot);
    gw_wait_serve(core, now_ns);
}

void gw_slot_finish(gw_core *core, gw_slot *slot) {
    gw_attempt_unbook(core, slot); /* and nobody has to be told: its owner said so */
    gw_action *action = act_on_client(core, GW_FINISHED, slot);
    action->reason = (wire_finish)slot->finish.reason;
    action->stop_token = slot->finish.stop_token;
    action->n_output = slot->finish.n_output;
    core->counters.n_finished++;
    end_slot(core, slot);
}

void gw_slot_fail(gw_core *core, gw_slot *slot, bt_status status, const char *why, const char *text) {
    if (text != slot->text) snprintf(slot->text, sizeof(slot->text), "%s", text);
    gw_action *action = act_on_client(core, GW_FAILED, slot);
    action->status = status;
    action->text = slot->text;
    action->why = why;
    action->n_output = slot->info.n_output;
    core->counters.n_failed++;
    end_slot(core, slot);
}

gw_slot *gw_slot_find(gw_core *core, uint64_t serial) {
    uint32_t index = bt_map_get(&core->by_serial, gw_u64_key(serial));
    return index == BT_MAP_NONE || core->slots[index].has_ended ? NULL : &core->slots[index];
}

void gw_slot_set_timer(gw_core *core, gw_slot *slot, int64_t now_ns, uint32_t ms) {
    bt_timers_set(&core->timers, gw_slot_index(core, slot), gw_after_ms(now_ns, ms));
}

/* `n_logprobs`: as asked for in wire_sampling. JSON knows neither NaN nor infinity upwards; what is more likely than
 * certain is wrong anyway. */
static bool is_sane_ranked(const gw_core *core, uint32_t n_logprobs, const wire_ranked *ranked) {
    uint32_t vocab_size = core->options.vocab_size, n_top = n_logprobs - 1;
    if (ranked->n_top != (n_top < vocab_size ? n_top : vocab_size) || !(ranked->logprob <= 0)) return false;
    for (uint32_t i = 0; i < ranked->n_top; i++)
        if (ranked->top[i].token >= vocab_size || !(ranked->top[i].logprob <= 0)) return false;
    return true;
}

static void put_logprobs(gw_slot *slot, uint32_t index, const wire_ranked *ranked) {
    if (index >= slot->cap_logprobs) {
        slot->cap_logprobs = index + index / 4 + 64;
        slot->logprobs = bt_realloc(slot->logprobs, slot->cap_logprobs, sizeof(wire_ranked));
    }
    wire_ranked *to = &slot->logprobs[index];
    *to = *ranked;
    if (to->n_top == 0) return;
    size_t n_bytes = to->n_top * sizeof(wire_logprob);
    to->top = memcpy(bt_arena_alloc(&slot->arena, n_bytes), ranked->top, n_bytes);
}

bool gw_slot_put_token(const gw_core *core, gw_slot *slot, uint32_t index, uint32_t token, const wire_ranked *logprobs,
                       uint32_t n_logprobs) {
    uint32_t n_wanted = slot->sampling.n_logprobs;
    if (token >= core->options.vocab_size || index >= slot->max_tokens) return false;
    if (n_wanted > 0 && (n_logprobs != 1 || !is_sane_ranked(core, n_wanted, logprobs))) return false;
    reserve_tokens(slot, slot->info.n_prompt + index + 1);
    slot->tokens[slot->info.n_prompt + index] = token;
    if (n_wanted > 0) put_logprobs(slot, index, logprobs);
    return true;
}

bool gw_slot_put_scores(gw_core *core, gw_slot *slot, uint32_t position, const wire_ranked *logprobs, uint32_t n) {
    uint32_t next = slot->n_scored + 1, end = position + n, n_wanted = slot->sampling.n_prompt_logprobs;
    if (n_wanted == 0 || slot->has_first) return false;
    if (position == 0 || position > next || n > slot->info.n_prompt || end > slot->info.n_prompt) return false;
    for (uint32_t i = 0; i < n; i++)
        if (!is_sane_ranked(core, n_wanted, &logprobs[i])) return false;
    if (end <= next) return true; /* told by an earlier attempt */
    wire_ranked *copy = bt_arena_alloc(&slot->arena, (end - next) * sizeof *copy);
    for (uint32_t i = 0; i < end - next; i++) {
        copy[i] = logprobs[next - position + i];
        size_t n_bytes = copy[i].n_top * sizeof(wire_logprob);
        if (n_bytes > 0) copy[i].top = memcpy(bt_arena_alloc(&slot->arena, n_bytes), copy[i].top, n_bytes);
    }
    gw_action *action = act_on_client(core, GW_PROMPT, slot);
    action->logprobs = copy;
    action->n_tokens = end - next;
    action->index = next;
    slot->n_scored = end - 1;
    return true;
}

/* ---- events ----------------------------------------------------------------------------------------------------- */

void gw_core_worker_up(gw_core *core, const gw_worker *known, int64_t now_ns) {
    gw_router_up(core->router, known);
    for (uint32_t i = 0; i < core->options.max_requests; i++) {
        gw_slot *slot = &core->slots[i];
        if (slot->is_used && !slot->has_ended && slot->info.phase == GW_WAITING && !slot->is_queued)
            gw_attempt_retry(core, slot, now_ns);
    }
    gw_wait_serve(core, now_ns);
}

void gw_core_worker_gone(gw_core *core, uint64_t incarnation, int64_t now_ns) {
    gw_router_gone(core->router, incarnation);
    for (uint32_t i = 0; i < core->options.max_requests; i++) {
        gw_slot *slot = &core->slots[i];
        if (!slot->is_used || slot->has_ended || slot->info.phase == GW_WAITING) continue;
        bool prefill_is_lost = slot->prefill.incarnation == incarnation && slot->info.phase != GW_HANDED_OFF;
        if (prefill_is_lost && slot->has_first && slot->decode.incarnation != 0) {
            gw_attempt_hand_off(core, slot, &slot->decode, now_ns); /* only the news of it is lost */
        } else if (prefill_is_lost && !slot->info.is_local) {
            gw_attempt_fail(core, slot, GW_LOST, incarnation, incarnation, BT_PEER_LOST,
                            "The prefill worker of the request was lost.", now_ns);
        } else if (prefill_is_lost || slot->decode.incarnation == incarnation) {
            gw_attempt_fail(core, slot, GW_LOST, incarnation, incarnation, BT_PEER_LOST,
                            "The decode worker of the request was lost.", now_ns);
        }
    }
    gw_wait_serve(core, now_ns);
}

void gw_core_message(gw_core *core, uint64_t peer, const wire_message *message, int64_t now_ns) {
    gw_message_handle(core, peer, message, now_ns);
    gw_wait_serve(core, now_ns);
}

int64_t gw_core_deadline_ns(const gw_core *core) { return bt_timers_next_ns(&core->timers); }

void gw_core_tick(gw_core *core, int64_t now_ns) {
    uint32_t index;
    while (bt_timers_pop(&core->timers, now_ns, &index)) gw_attempt_late(core, &core->slots[index], now_ns);
    gw_wait_serve(core, now_ns);
}

/* ---- looking ---------------------------------------------------------------------------------------------------- */

const gw_info *gw_core_info(gw_core *core, uint64_t serial) {
    uint32_t index = bt_map_get(&core->by_serial, gw_u64_key(serial));
    return index == BT_MAP_NONE ? NULL : &core->slots[index].info;
}

gw_router *gw_core_router(gw_core *core) { return core->router; }

uint32_t gw_core_n_alive(const gw_core *core) {
    return core->options.max_requests - core->n_free_slots - core->n_ended_slots;
}

uint32_t gw_core_n_queued(const gw_core *core) { return core->queue.n; }

const gw_counters *gw_core_counters(const gw_core *core) { return &core->counters; }
