/* A step, from the rows that pre_pick.c chose to the tokens that follow them. */
#include "prefill/pre_internal.h"

/* What the row of `position` is for: to score the prompt token behind it, or to draw the first token. */
static void add_sample(pre_sched *sched, const pre_slot *slot, uint32_t position) {
    bool is_last = position + 1 == slot->n_tokens;
    sched->base.samples[sched->n_step_samples++] =
        (wrk_sample){.is_given = !is_last,
                     .given = is_last ? 0 : slot->tokens[position + 1],
                     .draw = wrk_draw_args(&slot->sampling, &slot->constraint, &slot->end, slot->tokens, slot->n_prompt,
                                           slot->n_tokens),
                     .prefix_id = slot->request.serial};
}

static void add_sequence(pre_sched *sched, uint32_t i, int64_t now_ns) {
    pre_slot *slot = &sched->slots[sched->base.step_slots[i]];
    bool is_prompt = slot->n_computed < slot->n_prompt;
    uint32_t end = slot->n_computed + slot->n_step_rows;
    uint32_t n_logits = pre_is_scored(slot) ? slot->n_step_rows : end == slot->n_tokens;
    sched->base.sequences[i] = (krn_sequence){.token_ids = &slot->tokens[slot->n_computed],
                                              .blocks = slot->blocks,
                                              .n_rows = slot->n_step_rows,
                                              .position = slot->n_computed,
                                              .form = is_prompt ? KRN_EXPANDED : KRN_ABSORBED,
                                              .n_logits = n_logits};
    for (uint32_t position = end - n_logits; position < end; position++) add_sample(sched, slot, position);
    if (slot->first_step_ns == 0) slot->first_step_ns = now_ns;
}

bool pre_step_begin(wrk_sched *base, int64_t now_ns, wrk_step *out) {
    wrk_begin_event(base);
    pre_sched *sched = pre_of(base);
    BT_ASSERT(!sched->base.is_stepping);
    sched->n_step_samples = sched->n_layers_done = 0;
    pre_queue_admit(sched, now_ns); /* here, not where blocks are released: that may be in the midst of ending others */
    pre_pick_rows(sched);
    for (uint32_t i = 0; i < sched->base.n_step; i++) add_sequence(sched, i, now_ns);
    if (sched->base.n_step == 0) return false;
    wrk_step_began(base, now_ns);
    pre_queue_admit(sched, now_ns); /* looks for decode workers while this step runs */
    *out = (wrk_step){.sequences = sched->base.sequences,
                      .n_sequences = sched->base.n_step,
                      .n_rows = sched->n_step_rows,
                      .samples = sched->base.samples,
                      .n_samples = sched->n_step_samples};
    return true;
}

void pre_layer_done(wrk_sched *base, uint32_t layer, int64_t now_ns) {
    wrk_begin_event(base);
    pre_sched *sched = pre_of(base);
    BT_ASSERT(sched->base.is_stepping && layer == sched->n_layers_done);
    sched->n_layers_done++;
    for (uint32_t i = 0; i < sched->base.n_step; i++) {
        pre_slot *slot = &sched->slots[sched->base.step_slots[i]];
        if (slot->phase == PRE_COMPUTING) pre_handoff_push(sched, slot, layer, now_ns);
    }
}

/* Full blocks of the prompt that are complete in all layers are for others too, and read-only from now on (rule 2). */
static void offer_blocks(pre_sched *sched, pre_slot *slot) {
    uint32_t n = slot->n_computed / KV_BLOCK_TOKENS, first = slot->n_cached_blocks;
    if (n > slot->n_prefix) n = slot->n_prefix;
    if (n <= first) return;
    kv_prefix_put(sched->base.prefix, slot->prefix + first, slot->blocks + first, n - first);
    slot->n_cached_blocks = n;
}

/* The last position is computed, and `token` follows it. */
static void take_token(pre_sched *sched, pre_slot *slot, uint32_t token, const wire_ranked *logprobs, int64_t now_ns) {
    BT_ASSERT(token < sched->base.options.vocab_size);
    uint32_t index = slot->n_tokens - slot->n_prompt;
    slot->tokens[slot->n_tokens] = token;
    slot->computed_ns = now_ns;
    sched->counters.n_sampled++;
    pre_send_gateway(
        sched, slot,
        &(wire_message){.type = WIRE_FIRST_TOKEN,
                        .first_token = {.request = slot->request,
                                        .index = index,
                                        .token = token,
                                        .logprobs = logprobs,
                                        .n_logprobs = slot->sampling.n_logprobs > 0,
                                        .cached_tokens = slot->n_cached_tokens,
                                        .queue_us = (uint32_t)((slot->first_step_ns - slot->submit_ns) / BT_NS_PER_US),
                                        .compute_us = (uint32_t)((now_ns - slot->first_step_ns) / BT_NS_PER_US)}});
    pre_queue_remove(sched, slot);
    slot->phase = PRE_COMPUTED;
    sched->n_computed++;

    uint8_t reason = wire_end_reason(&slot->end, token, index + 1);
    if (reason == 0) {
        pre_handoff_commit_if_ready(sched, slot, now_ns);
        return;
    }
    const wire_message finished = wrk_finished(&slot->request, reason, token, index + 1);
    pre_send_gateway(sched, slot, &finished);
    sched->counters.n_finished++;
    pre_slot_end(sched, slot, now_ns);
}

static void send_scores(pre_sched *sched, const pre_slot *slot, uint32_t position, const wire_ranked *logprobs,
                        uint32_t n) {
    pre_send_gateway(
        sched, slot,
        &(wire_message){.type = WIRE_PROMPT_LOGPROBS,
                        .prompt_logprobs = {
                            .request = slot->request, .position = position, .logprobs = logprobs, .n_logprobs = n}});
}

void pre_step_done(wrk_sched *base, const uint32_t *tokens, const wire_ranked *logprobs, int64_t now_ns) {
    wrk_begin_event(base);
    pre_sched *sched = pre_of(base);
    BT_ASSERT(sched->base.is_stepping && sched->n_layers_done == base->options.n_layers);
    wrk_step_ended(base, sched->n_step_rows, now_ns);
    sched->n_layers_done = 0; /* "done" of the next step's rows: none */
    sched->counters.n_steps++;
    sched->counters.n_rows += sched->n_step_rows;
    for (uint32_t i = 0, sample = 0; i < sched->base.n_step; i++) {
        pre_slot *slot = &sched->slots[sched->base.step_slots[i]];
        uint32_t n_rows = slot->n_step_rows;
        slot->n_step_rows = 0;
        slot->n_computed += n_rows;
        bool is_last = slot->n_computed == slot->n_tokens;
        uint32_t n_scored = sched->base.sequences[i].n_logits - is_last;
        offer_blocks(sched, slot);
        if (slot->phase == PRE_CLOSING) {
            pre_slot_release_if_quiet(sched, slot, now_ns);
        } else {
            sched->n_tokens_left -= n_rows;
            sched->counters.n_prompt_tokens += n_rows;
            if (n_scored > 0) send_scores(sched, slot, slot->n_computed - n_rows + 1, &logprobs[sample], n_scored);
            if (is_last) take_token(sched, slot, tokens[sample + n_scored], &logprobs[sample + n_scored], now_ns);
        }
        sample += sched->base.sequences[i].n_logits;
    }
    pre_queue_admit(sched, now_ns);
    wrk_status_changed(&sched->base, now_ns);
}

/* What the step has written is half done: no block of it is offered. */
void pre_step_lost(wrk_sched *base, int64_t now_ns) {
    pre_sched *sched = pre_of(base);
    sched->base.is_stepping = false;
    sched->n_layers_done = 0;
    for (uint32_t i = 0; i < sched->base.n_step; i++) {
        pre_slot *slot = &sched->slots[sched->base.step_slots[i]];
        BT_ASSERT(slot->phase == PRE_CLOSING);
        slot->n_step_rows = 0;
        pre_slot_release_if_quiet(sched, slot, now_ns);
    }
}
