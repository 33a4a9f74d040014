/* One try of a request at a pair of workers: how it starts, who is told when it ends, and what comes after it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/kv/kv_layout.h"
#include "common/kv/kv_prefix.h"
#include "common/wire/end_rule.h"
#include "gateway/core/gw_internal.h"

enum { BACKOFF_MIN_MS = 10, BACKOFF_MAX_MS = 500 };

void gw_attempt_unbook(gw_core *core, gw_slot *slot) {
    gw_router_unbook(core->router, &slot->booked_prefill);
    gw_router_unbook(core->router, &slot->booked_decode);
}

/* The worker, if it is still there over the same link. */
static gw_worker *worker_of(const gw_core *core, const gw_peer *peer) {
    gw_worker *worker = peer->incarnation != 0 ? gw_router_worker(core->router, peer->incarnation) : NULL;
    return worker != NULL && worker->link == peer->link ? worker : NULL;
}

/* ---- start ------------------------------------------------------------------------------------------------------ */

static void set_candidates(gw_slot *slot, const gw_route *route) {
    slot->n_candidates = route->n_decodes;
    for (uint32_t i = 0; i < route->n_decodes; i++) {
        const gw_worker *decode = route->decodes[i];
        char *name = slot->candidate_names[i][0], *address = slot->candidate_names[i][1];
        memcpy(name, decode->name, sizeof(slot->candidate_names[i][0]));
        memcpy(address, decode->kv_address, sizeof(slot->candidate_names[i][1]));
        slot->candidates[i] = (gw_peer){decode->incarnation, decode->link};
        slot->wire_candidates[i] = (wire_candidate){wire_str_from(name), decode->incarnation, wire_str_from(address)};
    }
}

static void send_submit(gw_core *core, const gw_slot *slot, uint64_t prefill) {
    gw_action *action = gw_act(core, GW_SEND);
    action->peer = prefill;
    action->message = (wire_message){.type = WIRE_SUBMIT,
                                     .submit = {.request = gw_slot_request(core, slot),
                                                .sampling = slot->sampling,
                                                .constraint = slot->constraint,
                                                .priority = (uint64_t)slot->priority + (UINT64_C(1) << 63),
                                                .max_tokens = slot->max_tokens,
                                                .n_prompt = slot->info.n_prompt,
                                                .tokens = slot->tokens, /* looked up again by gw_core_next() */
                                                .n_tokens = slot->info.n_prompt + slot->info.n_output,
                                                .stop_token_ids = slot->stop_token_ids,
                                                .n_stop_token_ids = slot->n_stop_token_ids,
                                                .cache_salt = wire_str_from(slot->cache_salt),
                                                .candidates = slot->wire_candidates,
                                                .n_candidates = slot->n_candidates}};
}

/* Names the prompt's full blocks: once, unless the workers' model has changed meanwhile. Returns how many of them need
 * not be computed where they are: not the last position's. */
static uint32_t name_blocks(const gw_core *core, gw_slot *slot) {
    uint32_t n = slot->info.n_prompt / KV_BLOCK_TOKENS;
    uint32_t n_most = (slot->info.n_prompt + slot->info.n_output - 1) / KV_BLOCK_TOKENS;
    uint64_t model = gw_router_model_hash(core->router);
    if (slot->names == NULL || slot->names_model != model) {
        if (slot->names == NULL) slot->names = bt_calloc(n + 1, sizeof(*slot->names));
        kv_prefix_names(model, wire_str_from(slot->cache_salt), slot->tokens, n, slot->names);
        slot->names_model = model;
    }
    return n < n_most ? n : n_most;
}

static void note_route(gw_slot *slot, const gw_route *route) {
    gw_info *info = &slot->info;
    info->is_local = route->is_local;
    info->prefill[0] = info->prefill_address[0] = 0;
    if (!route->is_local) {
        memcpy(info->prefill, route->prefill->name, sizeof(info->prefill));
        memcpy(info->prefill_address, route->prefill->address, sizeof(info->prefill_address));
    }
    memcpy(info->decode, route->decodes[0]->name, sizeof(info->decode));
    memcpy(info->decode_address, route->decodes[0]->address, sizeof(info->decode_address));
}

static bt_status choose(gw_core *core, gw_slot *slot, bool needs_room, gw_route *out, bt_error *err) {
    uint32_t n_names = name_blocks(core, slot);
    gw_route_query query = {.n_names = n_names,
                            .names = slot->names,
                            .strategy = &slot->strategy,
                            .filter = slot->filter,
                            .n_tokens = slot->info.n_prompt + slot->info.n_output,
                            .avoid_prefill = slot->avoid_prefill,
                            .avoid_decode = slot->avoid_decode,
                            .session_key = slot->session_key,
                            .session_name = slot->session_name,
                            .slo_ttft_ms = slot->slo_ttft_ms,
                            .needs_room = needs_room,
                            .may_be_local = !slot->shuns_local && slot->sampling.n_prompt_logprobs == 0};
    return gw_router_choose(core->router, &query, out, err);
}

bool gw_attempt_has_room(gw_core *core, gw_slot *slot) {
    gw_route route;
    return choose(core, slot, true, &route, NULL) == BT_OK;
}

bt_status gw_attempt_start(gw_core *core, gw_slot *slot, bool needs_room, int64_t now_ns, bt_error *err) {
    gw_route route;
    uint32_t n_tokens = slot->info.n_prompt + slot->info.n_output;
    bt_status status = choose(core, slot, needs_room, &route, err);
    if (status != BT_OK) return status;

    gw_wait_leave(core, slot);
    if (slot->info.accepted_ns == 0) slot->info.sent_ns = now_ns;
    slot->n_base = slot->info.n_output;
    slot->n_decode = slot->n_base + 1;
    slot->has_first = slot->has_finish = false;
    const gw_worker *first = route.is_local ? route.decodes[0] : route.prefill;
    note_route(slot, &route);
    slot->prefill = (gw_peer){first->incarnation, first->link};
    slot->decode = (gw_peer){0};
    set_candidates(slot, &route);
    if (route.is_local) slot->n_candidates = 0;
    uint32_t n_blocks = kv_blocks_for((uint64_t)n_tokens + 1);
    if (!route.is_local)
        gw_router_book(core->router, &slot->booked_prefill, route.prefill, kv_blocks_for(route.n_missing),
                       route.n_missing);
    gw_router_book(core->router, &slot->booked_decode, route.decodes[0], n_blocks,
                   route.is_local ? route.n_missing : 0);
    slot->info.phase = GW_SUBMITTED;
    gw_slot_set_timer(core, slot, now_ns, core->options.accept_ms);
    send_submit(core, slot, slot->prefill.incarnation);
    return BT_OK;
}

/* ---- the end of an attempt -------------------------------------------------------------------------------------- */

void gw_attempt_drop(gw_core *core, gw_slot *slot, uint64_t teller) {
    if (slot->info.phase == GW_WAITING) return; /* there is none */
    wire_request request = gw_slot_request(core, slot);
    if (slot->info.phase != GW_HANDED_OFF && slot->prefill.incarnation != teller)
        gw_send_cancel(core, slot->prefill.incarnation, &request);
    if (slot->decode.incarnation != 0) {
        if (slot->decode.incarnation != teller) gw_send_cancel(core, slot->decode.incarnation, &request);
    } else if (slot->info.phase == GW_STARTED || worker_of(core, &slot->prefill) == NULL) {
        /* Any candidate may have it, without our knowing. One that gets it after this is told when it speaks. */
        for (uint32_t i = 0; i < slot->n_candidates; i++)
            gw_send_cancel(core, slot->candidates[i].incarnation, &request);
    }
    gw_attempt_unbook(core, slot);
}

/* The last token may have ended the request, and the FINISHED behind it be lost. */
static bool finish_if_complete(gw_core *core, gw_slot *slot) {
    const gw_core_options *o = &core->options;
    uint32_t n_output = slot->info.n_output;
    if (n_output == 0) return false;
    uint32_t last = slot->tokens[slot->info.n_prompt + n_output - 1];
    wire_end_rule rule = {.min_tokens = slot->sampling.min_tokens, .max_output = slot->max_tokens};
    wire_end_rule eos = rule, stop = rule;
    eos.ids = o->eos_ids;
    eos.n_ids = eos.n_eos = slot->sampling.ignore_eos ? 0 : o->n_eos_ids;
    stop.ids = slot->stop_token_ids;
    stop.n_ids = slot->n_stop_token_ids;
    uint8_t reason = wire_end_reason(&eos, last, n_output);
    if (reason != WIRE_FINISH_EOS) reason = wire_end_reason(&stop, last, n_output);
    if (reason == 0) return false;
    slot->finish = (wire_finished){
        .reason = reason, .stop_token = reason == WIRE_FINISH_STOP_TOKEN ? last : 0, .n_output = n_output};
    gw_slot_finish(core, slot);
    return true;
}

/* No worker takes it now: look again later, but not for ever. */
static void wait_for_worker(gw_core *core, gw_slot *slot, int64_t now_ns) {
    slot->info.phase = GW_WAITING;
    if (slot->waiting_since_ns == 0) slot->waiting_since_ns = now_ns;
    if (now_ns >= gw_after_ms(slot->waiting_since_ns, core->options.no_worker_ms)) {
        gw_slot_fail(core, slot, BT_NO_CAPACITY, "no_worker", slot->text);
        return;
    }
    uint32_t shift = slot->n_refusals < 8 ? slot->n_refusals : 8, ms = BACKOFF_MIN_MS << shift;
    slot->n_refusals++;
    gw_slot_set_timer(core, slot, now_ns, ms < BACKOFF_MAX_MS ? ms : BACKOFF_MAX_MS);
}

void gw_attempt_retry(gw_core *core, gw_slot *slot, int64_t now_ns) {
    bt_error err;
    if (gw_attempt_start(core, slot, false, now_ns, &err) == BT_OK) return;
    snprintf(slot->text, sizeof(slot->text), "%.*s", WIRE_MAX_TEXT, err.text);
    wait_for_worker(core, slot, now_ns);
}

void gw_attempt_fail(gw_core *core, gw_slot *slot, gw_why why, uint64_t teller, uint64_t guilty, bt_status status,
                     const char *text, int64_t now_ns) {
    snprintf(slot->text, sizeof(slot->text), "%s", text);
    gw_attempt_drop(core, slot, teller);
    if (finish_if_complete(core, slot)) return;
    bool is_local_refusal = why == GW_REFUSED && slot->info.is_local; /* the usual way is open, and tried at once */
    bool is_full = why == GW_REFUSED && status != BT_AGAIN && !is_local_refusal;
    bool may_queue = is_full && status == BT_NO_CAPACITY && slot->info.n_output == 0;
    slot->shuns_local |= slot->info.is_local;
    if (status == BT_BAD_REQUEST || (why != GW_REFUSED && slot->info.n_migrations >= core->options.migration_limit)) {
        gw_slot_fail(core, slot, status, NULL, slot->text);
        return;
    }
    slot->avoid_prefill = guilty;
    slot->avoid_decode = guilty;
    slot->info.attempt++;
    gw_counters *counters = &core->counters;
    switch (why) {
    case GW_LOST:
        counters->n_replays_lost++;
        break;
    case GW_BROKEN:
        counters->n_replays_failed++;
        break;
    case GW_LATE:
        counters->n_replays_late++;
        break;
    case GW_REFUSED:
        counters->n_replays_refused++;
        break;
    }
    if (why == GW_REFUSED) {
        slot->n_refusals += !is_local_refusal && !may_queue;
    } else {
        slot->info.n_migrations++;
    }
    if (may_queue) {
        gw_router_full(core->router, teller);
        gw_wait_rejoin(core, slot);
    } else if (is_full || slot->n_refusals > 1) { /* one worker that drains is no reason to wait */
        wait_for_worker(core, slot, now_ns);
    } else {
        gw_attempt_retry(core, slot, now_ns);
    }
}

void gw_attempt_late(gw_core *core, gw_slot *slot, int64_t now_ns) {
    uint64_t prefill = slot->prefill.incarnation, decode = slot->decode.incarnation;
    switch (slot->info.phase) {
    case GW_WAITING:
        if (slot->is_queued) {
            gw_wait_late(core, slot, now_ns);
        } else {
            gw_attempt_retry(core, slot, now_ns);
        }
        break;
    case GW_SUBMITTED:
        gw_attempt_fail(core, slot, GW_LATE, 0, prefill, BT_TIMEOUT,
                        "The worker of the request did not answer in time.", now_ns);
        break;
    case GW_ACCEPTED:
        gw_attempt_fail(core, slot, GW_LATE, 0, prefill, BT_TIMEOUT, "The first token did not come in time.", now_ns);
        break;
    case GW_STARTED:
        gw_attempt_fail(core, slot, GW_LATE, 0, decode, BT_TIMEOUT, "The hand-off to decode took too long.", now_ns);
        break;
    case GW_HANDED_OFF:
        gw_attempt_fail(core, slot, GW_LATE, 0, decode, BT_TIMEOUT, "The next token did not come in time.", now_ns);
        break;
    }
}

void gw_attempt_hand_off(gw_core *core, gw_slot *slot, const gw_peer *decode, int64_t now_ns) {
    gw_peer to = *decode;
    slot->decode = to;
    slot->info.phase = GW_HANDED_OFF;
    gw_router_unbook(core->router, &slot->booked_prefill);
    gw_worker *worker = worker_of(core, &to);
    if (worker != NULL) {
        memcpy(slot->info.decode, worker->name, sizeof(slot->info.decode));
        memcpy(slot->info.decode_address, worker->address, sizeof(slot->info.decode_address));
    }
    if (slot->booked_decode.incarnation != to.incarnation && worker != NULL) {
        uint32_t n_blocks = slot->booked_decode.n_blocks;
        gw_router_unbook(core->router, &slot->booked_decode);
        gw_router_book(core->router, &slot->booked_decode, worker, n_blocks, 0);
    }
    gw_attempt_await_token(core, slot, now_ns);
}

/* Decode may have to wait for a place in its batch before the first; afterwards there is one in each step. */
void gw_attempt_await_token(gw_core *core, gw_slot *slot, int64_t now_ns) {
    bool has_decoded = slot->n_decode > slot->n_base + 1;
    gw_slot_set_timer(core, slot, now_ns, has_decoded ? core->options.token_ms : core->options.first_token_ms);
}
