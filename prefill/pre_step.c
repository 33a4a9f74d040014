/* What a step computes: first come first served under a token budget; short prompts share a step, long ones are split.
 * order[] holds requests as they came: the computing ones, then the queued ones. */
#include <string.h>

#include "prefill/pre_internal.h"

void pre_queue_remove(pre_sched *sched, const pre_slot *slot) {
    uint32_t index = pre_slot_index(sched, slot), n = sched->n_computing + sched->n_queued, at = 0;
    while (sched->order[at] != index) at++;
    memmove(&sched->order[at], &sched->order[at + 1], (n - at - 1) * sizeof(uint32_t));
    if (slot->phase == PRE_QUEUED) {
        sched->n_queued--;
    } else {
        sched->n_computing--;
    }
}

/* Blocks here and a lease at decode are taken no earlier than the next step needs: what waits in the queue holds
 * nothing. Strictly in order, so that a long prompt is not starved by short ones. */
void pre_queue_admit(pre_sched *sched, int64_t now_ns) {
    while (sched->n_queued > 0 && sched->n_tokens_ready < sched->options.max_batched_tokens) {
        pre_slot *slot = &sched->slots[sched->order[sched->n_computing]];
        uint32_t n_blocks = kv_blocks_for(slot->n_tokens);
        if (kv_pool_acquire(sched->pool, n_blocks, slot->blocks) != BT_OK) return; /* a release comes back here */
        slot->n_blocks = n_blocks;
        slot->phase = PRE_COMPUTING;
        sched->n_queued--;
        sched->n_computing++;
        sched->n_tokens_ready += slot->n_tokens;
        pre_status_changed(sched, now_ns);
        pre_handoff_start(sched, slot, now_ns);
    }
}

static void add_rows(pre_sched *sched, pre_slot *slot, uint32_t n_max_rows, int64_t now_ns) {
    /* The form belongs to the position, so a step of a replayed request ends where its prompt does. */
    bool is_prompt = slot->n_computed < slot->n_prompt;
    uint32_t n_left = (is_prompt ? slot->n_prompt : slot->n_tokens) - slot->n_computed;
    uint32_t n_rows = n_left < n_max_rows ? n_left : n_max_rows;
    bool is_last = slot->n_computed + n_rows == slot->n_tokens;
    uint32_t i = sched->n_step++;
    sched->step_slots[i] = pre_slot_index(sched, slot);
    sched->sequences[i] = (krn_sequence){.token_ids = &slot->tokens[slot->n_computed],
                                         .blocks = slot->blocks,
                                         .n_rows = n_rows,
                                         .position = slot->n_computed,
                                         .form = is_prompt ? KRN_EXPANDED : KRN_ABSORBED,
                                         .n_logits = is_last};
    if (is_last) {
        bool is_banned = wire_end_is_banned(&slot->end, slot->n_tokens - slot->n_prompt + 1);
        sched->samples[sched->n_step_samples++] = (pre_sample){.draw = {.sampling = &slot->sampling,
                                                                        .constraint = &slot->constraint,
                                                                        .tokens = slot->tokens,
                                                                        .n_prompt = slot->n_prompt,
                                                                        .n_tokens = slot->n_tokens,
                                                                        .banned = slot->end.ids,
                                                                        .n_banned = is_banned ? slot->end.n_ids : 0},
                                                               .prefix_id = slot->request.serial};
    }
    if (slot->first_step_ns == 0) slot->first_step_ns = now_ns;
    slot->n_step_rows = n_rows;
    sched->n_step_rows += n_rows;
    sched->n_tokens_ready -= n_rows;
}

bool pre_sched_step_begin(pre_sched *sched, int64_t now_ns, pre_step *out) {
    BT_ASSERT(!sched->is_stepping && sched->n_actions == 0);
    const pre_sched_options *o = &sched->options;
    sched->n_step = sched->n_step_samples = sched->n_step_rows = sched->n_layers_done = 0;
    for (uint32_t at = 0; at < sched->n_computing && sched->n_step < o->max_batched_seqs; at++) {
        if (sched->n_step_rows == o->max_batched_tokens) break;
        add_rows(sched, &sched->slots[sched->order[at]], o->max_batched_tokens - sched->n_step_rows, now_ns);
    }
    if (sched->n_step == 0) return false;
    sched->is_stepping = true;
    pre_queue_admit(sched, now_ns); /* looks for decode workers while this step runs */
    *out = (pre_step){.sequences = sched->sequences,
                      .n_sequences = sched->n_step,
                      .n_rows = sched->n_step_rows,
                      .samples = sched->samples,
                      .n_samples = sched->n_step_samples};
    return true;
}

void pre_sched_layer_done(pre_sched *sched, uint32_t layer, int64_t now_ns) {
    BT_ASSERT(sched->is_stepping && layer == sched->n_layers_done && sched->n_actions == 0);
    sched->n_layers_done++;
    for (uint32_t i = 0; i < sched->n_step; i++) {
        pre_slot *slot = &sched->slots[sched->step_slots[i]];
        if (slot->phase == PRE_COMPUTING) pre_handoff_push(sched, slot, layer, now_ns);
    }
}

/* The last position is computed, and `token` follows it. */
static void take_token(pre_sched *sched, pre_slot *slot, uint32_t token, const wire_ranked *logprobs, int64_t now_ns) {
    BT_ASSERT(token < sched->options.vocab_size);
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
    pre_send_gateway(sched, slot,
                     &(wire_message){.type = WIRE_FINISHED,
                                     .finished = {.request = slot->request,
                                                  .reason = reason,
                                                  .stop_token = reason == WIRE_FINISH_STOP_TOKEN ? token : 0,
                                                  .n_output = index + 1}});
    sched->counters.n_finished++;
    pre_slot_end(sched, slot, now_ns);
}

void pre_sched_step_done(pre_sched *sched, const uint32_t *tokens, const wire_ranked *logprobs, int64_t now_ns) {
    BT_ASSERT(sched->is_stepping && sched->n_layers_done == sched->options.n_layers && sched->n_actions == 0);
    sched->is_stepping = false;
    sched->n_layers_done = 0; /* "done" of the next step's rows: none */
    sched->counters.n_steps++;
    sched->counters.n_rows += sched->n_step_rows;
    for (uint32_t i = 0, sample = 0; i < sched->n_step; i++) {
        pre_slot *slot = &sched->slots[sched->step_slots[i]];
        uint32_t n_rows = slot->n_step_rows;
        bool is_last = sched->sequences[i].n_logits == 1;
        slot->n_step_rows = 0;
        slot->n_computed += n_rows;
        if (slot->phase == PRE_CLOSING) {
            pre_slot_release_if_quiet(sched, slot, now_ns);
        } else {
            sched->n_tokens_left -= n_rows;
            sched->counters.n_prompt_tokens += n_rows;
            if (is_last) take_token(sched, slot, tokens[sample], &logprobs[sample], now_ns);
        }
        if (is_last) sample++;
    }
    pre_queue_admit(sched, now_ns);
    pre_status_changed(sched, now_ns);
}
