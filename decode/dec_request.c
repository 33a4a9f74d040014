/* What a request asks for, from COMMIT or SUBMIT: checked, and copied into its slot. And SUBMIT itself: a prompt of
 * which the prefix cache holds nearly all is computed here, without a prefill worker. From ACCEPTED on it is a sequence
 * like any other, with more than one row to be computed before its next token. */
#include <string.h>

#include "decode/dec_internal.h"

const char *dec_request_why_senseless(const dec_sched *sched, const wire_commit *asked) {
    const wrk_sched_options *o = &sched->base.options;
    if (asked->n_prompt == 0 || asked->n_prompt > asked->n_tokens) return "The request has no prompt.";
    if (asked->n_tokens - asked->n_prompt >=
        wire_end_max_output(asked->max_tokens, asked->n_prompt, sched->max_positions))
        return "The request has all its tokens.";
    if (!wire_sampling_is_sane(&asked->sampling) || !wire_constraint_is_sane(&asked->constraint, o->vocab_size))
        return "The request has impossible sampling parameters.";
    for (uint32_t i = 0; i < asked->n_tokens; i++)
        if (asked->tokens[i] >= o->vocab_size) return "The request has a token outside the vocabulary.";
    return NULL;
}

void dec_request_take(dec_sched *sched, dec_slot *slot, const wire_commit *asked) {
    slot->end = wrk_end_rule(&sched->base, &asked->sampling, asked->stop_token_ids, asked->n_stop_token_ids,
                             wire_end_max_output(asked->max_tokens, asked->n_prompt, sched->max_positions));
    slot->sampling = asked->sampling;
    slot->constraint = wire_constraint_copy(&asked->constraint, &slot->arena);
    slot->n_prompt = asked->n_prompt;
    slot->n_tokens = asked->n_tokens;
    slot->tokens = bt_calloc((size_t)asked->n_prompt + slot->end.max_output, sizeof(uint32_t));
    memcpy(slot->tokens, asked->tokens, asked->n_tokens * sizeof(uint32_t));
    slot->cap_blocks = kv_blocks_for((uint64_t)asked->n_prompt + slot->end.max_output);
    slot->blocks = bt_realloc(slot->blocks, slot->cap_blocks, sizeof(uint32_t));
}

/* ---- SUBMIT ----------------------------------------------------------------------------------------------------- */

static void name_blocks(dec_sched *sched, dec_slot *slot, wire_str cache_salt) {
    const wrk_sched_options *o = &sched->base.options;
    if (!o->has_prefix_cache) return;
    slot->n_prefix = slot->n_prompt / KV_BLOCK_TOKENS;
    slot->prefix = bt_calloc(slot->n_prefix, sizeof(wire_block_name));
    kv_prefix_names(o->model_hash, cache_salt, slot->tokens, slot->n_prefix, slot->prefix);
}

/* Of a slot that is in no book yet: blocks for its tokens and the next one. false: too little of them is cached, or
 * there is no room; it has none then. The last position is computed in any case. */
static bool take_blocks(dec_sched *sched, dec_slot *slot) {
    uint32_t n_most = (slot->n_tokens - 1) / KV_BLOCK_TOKENS, n_blocks = kv_blocks_for((uint64_t)slot->n_tokens + 1);
    if (n_most > slot->n_prefix) n_most = slot->n_prefix;
    uint32_t n_known = kv_prefix_take(sched->base.prefix, slot->prefix, n_most, slot->blocks);
    kv_pool_release(sched->pool, slot->blocks, n_known); /* asked first: taking new ones costs others' cached ones */
    if (slot->n_tokens - n_known * KV_BLOCK_TOKENS > sched->options.local_prefill_tokens) return false;
    if (!dec_blocks_take(sched, slot->prefix, n_most, n_blocks, slot->blocks, &slot->n_shared)) return false;
    slot->n_blocks = n_blocks;
    slot->n_cached = slot->n_found = slot->n_shared * KV_BLOCK_TOKENS;
    return true;
}

static void take(dec_sched *sched, dec_slot *slot, int64_t now_ns) {
    slot->gateway = bt_map_get(&sched->base.by_gateway, wrk_u64_key(slot->request.gateway));
    slot->owes_first = true;
    slot->submit_ns = now_ns;
    bt_map_put(&sched->base.by_request, wrk_request_key(&slot->request), dec_slot_index(sched, slot));
    sched->counters.n_local++;
    if (sched->base.options.has_prefix_cache) sched->counters.n_prefix_queries += slot->n_tokens;
    sched->counters.n_prefix_hits += slot->n_cached;
    dec_send_gateway(sched, slot->request.gateway, &(wire_message){.type = WIRE_ACCEPTED, .accepted = {slot->request}});
    dec_batch_add(sched, slot, now_ns);
    wrk_status_changed(&sched->base, now_ns);
}

/* NULL: it may be taken. A prefill worker, or another decode worker, may say otherwise of all but BT_BAD_REQUEST. */
static const char *why_refused(const dec_sched *sched, const wire_commit *asked, bt_status *status) {
    const char *why = wrk_sched_why_closed(&sched->base, status);
    if (why != NULL) return why;
    *status = BT_NO_CAPACITY;
    if ((why = dec_why_full(sched)) != NULL) return why;
    if (asked->n_tokens >= sched->max_positions) return "The prompt does not fit this decode worker.";
    if (asked->sampling.n_prompt_logprobs > 0) return "This decode worker does not score prompts.";
    *status = BT_BAD_REQUEST;
    return dec_request_why_senseless(sched, asked);
}

void dec_request_submit(dec_sched *sched, uint64_t gateway, const wire_submit *submit, int64_t now_ns) {
    const wire_request *request = &submit->request;
    if (request->gateway != gateway || bt_map_get(&sched->base.by_gateway, wrk_u64_key(gateway)) == BT_MAP_NONE ||
        dec_slot_find(sched, request) != NULL) {
        sched->counters.n_strange++;
        return;
    }
    const wire_commit asked = {.sampling = submit->sampling,
                               .constraint = submit->constraint,
                               .max_tokens = submit->max_tokens,
                               .n_prompt = submit->n_prompt,
                               .tokens = submit->tokens,
                               .n_tokens = submit->n_tokens,
                               .stop_token_ids = submit->stop_token_ids,
                               .n_stop_token_ids = submit->n_stop_token_ids};
    bt_status status;
    const char *why = why_refused(sched, &asked, &status);
    if (why == NULL) {
        dec_slot *slot = &sched->slots[wrk_slot_take(&sched->base)];
        *slot = (dec_slot){.state = DEC_WAITING, .request = *request};
        dec_request_take(sched, slot, &asked);
        name_blocks(sched, slot, submit->cache_salt);
        if (take_blocks(sched, slot)) {
            take(sched, slot, now_ns);
            return;
        }
        dec_slot_release(sched, slot);
        status = BT_NO_CAPACITY;
        why = "Too little of the prompt is in this decode worker's cache, or no room.";
    }
    dec_send_gateway(sched, gateway,
                     &(wire_message){.type = WIRE_FAILED, .failed = {*request, (uint8_t)status, wire_str_from(why)}});
    sched->counters.n_refused++;
}

/* Its first token of this attempt says FIRST_TOKEN, with what the gateway reports of a prompt. */
void dec_request_send_first(dec_sched *sched, dec_slot *slot, uint32_t token, const wire_ranked *logprobs,
                            int64_t now_ns) {
    slot->owes_first = false;
    dec_send_gateway(
        sched, slot->request.gateway,
        &(wire_message){.type = WIRE_FIRST_TOKEN,
                        .first_token = {.request = slot->request,
                                        .index = slot->n_tokens - slot->n_prompt,
                                        .token = token,
                                        .logprobs = logprobs,
                                        .n_logprobs = slot->sampling.n_logprobs > 0,
                                        .cached_tokens = slot->n_found,
                                        .queue_us = (uint32_t)((slot->first_step_ns - slot->submit_ns) / BT_NS_PER_US),
                                        .compute_us = (uint32_t)((now_ns - slot->first_step_ns) / BT_NS_PER_US)}});
}
