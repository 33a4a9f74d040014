/* What workers say about requests: which attempt it concerns, whether it makes sense, and what it changes. */
#include <string.h>

#include "gateway/core/gw_internal.h"

/* The living request whose current attempt `request` is, if `peer` may speak about it. */
static gw_slot *find_current(gw_core *core, const wire_request *request) {
    if (request->gateway != core->options.incarnation) {
        core->counters.n_strange++;
        return NULL;
    }
    gw_slot *slot = gw_slot_find(core, request->serial);
    if (slot != NULL && slot->info.attempt == request->attempt && slot->info.phase != GW_WAITING) return slot;
    core->counters.n_late++;
    return NULL;
}

static gw_slot *find_of_prefill(gw_core *core, uint64_t peer, const wire_request *request) {
    gw_slot *slot = find_current(core, request);
    if (slot == NULL || slot->prefill.incarnation == peer) return slot;
    core->counters.n_strange++;
    return NULL;
}

static void set_once(int64_t *time_ns, int64_t now_ns) {
    if (*time_ns == 0) *time_ns = now_ns;
}

static void fail_strange(gw_core *core, gw_slot *slot, uint64_t peer, const char *text, int64_t now_ns) {
    core->counters.n_strange++;
    gw_attempt_fail(core, slot, GW_BROKEN, 0, peer, BT_INTERNAL, text, now_ns);
}

/* ---- tokens ----------------------------------------------------------------------------------------------------- */

/* Everything without a gap goes to the client; FINISHED when it was the last. */
static void deliver(gw_core *core, gw_slot *slot, int64_t now_ns) {
    gw_info *info = &slot->info;
    if (!slot->has_first) return;
    if (slot->n_decode > info->n_output) {
        gw_action *action = gw_act(core, GW_TOKENS);
        action->serial = slot->serial;
        action->user = slot->user;
        action->index = info->n_output;
        action->n_tokens = slot->n_decode - info->n_output;
        core->counters.n_tokens += action->n_tokens;
        info->n_output = slot->n_decode;
        info->last_token_ns = now_ns;
        slot->n_refusals = 0;
        slot->waiting_since_ns = 0;
    }
    if (slot->has_finish) gw_slot_finish(core, slot);
}

static void take_first_token(gw_core *core, uint64_t peer, const wire_first_token *first, int64_t now_ns) {
    gw_slot *slot = find_of_prefill(core, peer, &first->request);
    if (slot == NULL) return;
    bool lacks_scores = slot->sampling.n_prompt_logprobs > 0 && slot->n_scored + 1 < slot->info.n_prompt;
    if (slot->has_first || first->index != slot->n_base || lacks_scores || first->cached_tokens > slot->info.n_prompt ||
        !gw_slot_put_token(core, slot, first->index, first->token, first->logprobs, first->n_logprobs)) {
        fail_strange(core, slot, peer, "A worker sent a first token that makes no sense.", now_ns);
        return;
    }
    slot->has_first = true;
    gw_info *info = &slot->info;
    if (info->first_token_ns == 0) {
        info->cached_tokens = first->cached_tokens;
        info->queue_us = first->queue_us;
        info->compute_us = first->compute_us;
    }
    set_once(&info->accepted_ns, now_ns);
    set_once(&info->first_token_ns, now_ns);
    if (info->phase != GW_HANDED_OFF) {
        info->phase = GW_STARTED;
        gw_slot_set_timer(core, slot, now_ns, core->options.hand_off_ms);
    }
    if (info->is_local) { /* it has the request, and keeps it */
        gw_attempt_hand_off(core, slot, &slot->prefill, now_ns);
        slot->prefill = (gw_peer){0};
    }
    deliver(core, slot, now_ns);
}

static void take_prompt_logprobs(gw_core *core, uint64_t peer, const wire_prompt_logprobs *said, int64_t now_ns) {
    gw_slot *slot = find_of_prefill(core, peer, &said->request);
    if (slot == NULL || gw_slot_put_scores(core, slot, said->position, said->logprobs, said->n_logprobs)) return;
    fail_strange(core, slot, peer, "The prefill worker sent logprobs that make no sense.", now_ns);
}

/* The living request whose current attempt `peer` decodes; binds the request to it at its first word. A worker that
 * decodes something nobody waits for is told to stop. */
static gw_slot *find_of_decode(gw_core *core, uint64_t peer, const wire_request *request, int64_t now_ns) {
    gw_slot *slot = find_current(core, request);
    if (request->gateway != core->options.incarnation) return NULL;
    if (slot != NULL && slot->decode.incarnation == peer) return slot;
    if (slot != NULL && slot->decode.incarnation == 0) {
        for (uint32_t i = 0; i < slot->n_candidates; i++) {
            if (slot->candidates[i].incarnation != peer) continue;
            slot->decode = slot->candidates[i];
            /* Ahead of prefill's messages: these should come soon, however long prefill was given. */
            if (slot->info.phase != GW_STARTED) gw_slot_set_timer(core, slot, now_ns, core->options.hand_off_ms);
            return slot;
        }
    }
    if (slot != NULL) core->counters.n_strange++;
    gw_send_cancel(core, peer, request);
    return NULL;
}

static void take_token(gw_core *core, uint64_t peer, const wire_token *token, int64_t now_ns) {
    gw_slot *slot = find_of_decode(core, peer, &token->request, now_ns);
    if (slot == NULL) return;
    if (token->index != slot->n_decode || slot->has_finish ||
        !gw_slot_put_token(core, slot, token->index, token->token, token->logprobs, token->n_logprobs)) {
        fail_strange(core, slot, peer, "The decode worker sent a token that makes no sense.", now_ns);
        return;
    }
    slot->n_decode++;
    set_once(&slot->info.first_decode_ns, now_ns);
    if (slot->info.phase == GW_HANDED_OFF) gw_attempt_await_token(core, slot, now_ns);
    deliver(core, slot, now_ns);
}

/* ---- the other messages ----------------------------------------------------------------------------------------- */

static void take_accepted(gw_core *core, uint64_t peer, const wire_accepted *accepted, int64_t now_ns) {
    gw_slot *slot = find_current(core, &accepted->request);
    if (slot == NULL) return;
    if (peer != slot->prefill.incarnation) { /* decode has it still, but no token */
        slot = find_of_decode(core, peer, &accepted->request, now_ns);
        if (slot != NULL && slot->info.phase == GW_HANDED_OFF) gw_attempt_await_token(core, slot, now_ns);
        return;
    }
    if (slot->info.phase != GW_SUBMITTED) return;
    slot->info.phase = GW_ACCEPTED;
    gw_router_accepted(core->router, &slot->booked_prefill);
    set_once(&slot->info.accepted_ns, now_ns);
    if (slot->decode.incarnation == 0) gw_slot_set_timer(core, slot, now_ns, core->options.first_token_ms);
}

static void take_handed_off(gw_core *core, uint64_t peer, const wire_handed_off *handed_off, int64_t now_ns) {
    uint64_t decode = handed_off->decode_incarnation;
    gw_slot *slot = find_of_prefill(core, peer, &handed_off->request);
    if (slot == NULL) { /* canceled or replayed while the baton was in the air */
        if (handed_off->request.gateway == core->options.incarnation)
            gw_send_cancel(core, decode, &handed_off->request);
        return;
    }
    const gw_peer *to = NULL;
    for (uint32_t i = 0; i < slot->n_candidates; i++)
        if (slot->candidates[i].incarnation == decode) to = &slot->candidates[i];
    if (to == NULL || slot->info.phase != GW_STARTED ||
        (slot->decode.incarnation != 0 && slot->decode.incarnation != decode)) {
        fail_strange(core, slot, peer, "The prefill worker handed the request to an unknown decode worker.", now_ns);
        return;
    }
    const gw_worker *worker = gw_router_worker(core->router, decode);
    if (worker == NULL || worker->link != to->link) { /* it dropped our requests when it lost us */
        gw_attempt_fail(core, slot, GW_LOST, peer, decode, BT_PEER_LOST, "The decode worker of the request was lost.",
                        now_ns);
        return;
    }
    gw_info *info = &slot->info;
    if (info->handed_off_ns == 0) {
        info->transfer_bytes = handed_off->transfer_bytes;
        info->transfer_us = handed_off->transfer_us;
        info->exposed_us = handed_off->exposed_us;
    }
    set_once(&info->handed_off_ns, now_ns);
    gw_attempt_hand_off(core, slot, to, now_ns);
}

static void take_finished(gw_core *core, uint64_t peer, const wire_finished *finished, int64_t now_ns) {
    gw_slot *slot = find_current(core, &finished->request);
    if (slot == NULL) return;
    bool is_prefill = peer == slot->prefill.incarnation;
    if (!is_prefill && (slot = find_of_decode(core, peer, &finished->request, now_ns)) == NULL) return;
    bool is_sane = finished->reason >= WIRE_FINISH_EOS && finished->reason <= WIRE_FINISH_LENGTH && !slot->has_finish &&
                   finished->n_output == slot->n_decode &&
                   (!is_prefill || (slot->has_first && finished->n_output == slot->n_base + 1));
    if (!is_sane) {
        fail_strange(core, slot, peer, "A worker finished the request before its last token.", now_ns);
        return;
    }
    slot->finish = *finished;
    slot->has_finish = true;
    deliver(core, slot, now_ns);
}

static void take_failed(gw_core *core, uint64_t peer, const wire_failed *failed, int64_t now_ns) {
    gw_slot *slot = find_current(core, &failed->request);
    if (slot == NULL) return;
    bool is_prefill = peer == slot->prefill.incarnation;
    if (!is_prefill && (slot = find_of_decode(core, peer, &failed->request, now_ns)) == NULL) return;
    bt_status status =
        failed->status > BT_OK && failed->status <= BT_INTERNAL ? (bt_status)failed->status : BT_INTERNAL;
    char text[WIRE_MAX_TEXT + 1];
    memcpy(text, failed->text.bytes, failed->text.n_bytes);
    text[failed->text.n_bytes] = 0;
    if (status == BT_AGAIN) gw_router_draining(core->router, peer); /* it goes; the next STATUS would say so */
    /* Prefill may know earlier than we do that a decode worker is gone. If it has computed nothing yet, nothing is
     * lost. */
    bool has_no_decode = is_prefill && status == BT_PEER_LOST && !slot->has_first;
    bool is_refusal = status == BT_AGAIN || status == BT_NO_CAPACITY || has_no_decode;
    /* Prefill that lost decode, or found none, is not to blame. */
    uint64_t guilty = is_refusal || status == BT_PEER_LOST ? 0 : peer;
    gw_attempt_fail(core, slot, is_refusal ? GW_REFUSED : GW_BROKEN, peer, guilty, status, text, now_ns);
}

void gw_message_handle(gw_core *core, uint64_t peer, const wire_message *message, int64_t now_ns) {
    if (gw_router_worker(core->router, peer) == NULL) { /* its link is gone, and so is what it said */
        core->counters.n_late++;
        return;
    }
    switch (message->type) {
    case WIRE_ACCEPTED:
        take_accepted(core, peer, &message->accepted, now_ns);
        break;
    case WIRE_FIRST_TOKEN:
        take_first_token(core, peer, &message->first_token, now_ns);
        break;
    case WIRE_PROMPT_LOGPROBS:
        take_prompt_logprobs(core, peer, &message->prompt_logprobs, now_ns);
        break;
    case WIRE_HANDED_OFF:
        take_handed_off(core, peer, &message->handed_off, now_ns);
        break;
    case WIRE_TOKENS:
        for (uint32_t i = 0; i < message->tokens.n_tokens; i++)
            take_token(core, peer, &message->tokens.tokens[i], now_ns);
        break;
    case WIRE_FINISHED:
        take_finished(core, peer, &message->finished, now_ns);
        break;
    case WIRE_FAILED:
        take_failed(core, peer, &message->failed, now_ns);
        break;
    case WIRE_STATUS:
        gw_router_status(core->router, peer, &message->status.load);
        break;
    case WIRE_BLOCKS:
        if (!gw_router_blocks(core->router, peer, &message->blocks)) core->counters.n_strange++;
        break;
    default:
        core->counters.n_strange++;
    }
}
