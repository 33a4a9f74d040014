/* The batch: who decodes together, who waits, who gives way when the pool is full, and what becomes of a step's tokens.
 * order[] holds sequences as they came: the running ones, then the waiting ones, so the newest is always the last. */
#include <string.h>

#include "decode/dec_internal.h"

void dec_batch_add(dec_sched *sched, dec_slot *slot) {
    slot->state = DEC_WAITING;
    sched->order[sched->n_running + sched->n_waiting++] = dec_slot_index(sched, slot);
}

void dec_batch_remove(dec_sched *sched, dec_slot *slot) {
    uint32_t index = dec_slot_index(sched, slot), n = sched->n_running + sched->n_waiting, at = 0;
    while (sched->order[at] != index) at++;
    memmove(&sched->order[at], &sched->order[at + 1], (n - at - 1) * sizeof(uint32_t));
    if (slot->state == DEC_RUNNING) {
        sched->n_running--;
    } else {
        sched->n_waiting--;
    }
}

static void preempt(dec_sched *sched, dec_slot *slot, int64_t now_ns) {
    sched->counters.n_preempted++;
    dec_fail(sched, slot, BT_NO_CAPACITY, "The decode worker ran out of KV blocks.");
    dec_slot_end(sched, slot, now_ns);
}

/* Room in the cache for the slot's next row. The newest sequence gives way, and that may be the slot itself; the oldest
 * never does: alone it waits for the leases that hold the blocks, and the pool holds any single request.
 * false: no row in this step. */
static bool find_block(dec_sched *sched, dec_slot *slot, int64_t now_ns) {
    if (kv_blocks_for(slot->n_tokens) <= slot->n_blocks) return true;
    while (kv_pool_acquire(sched->pool, 1, &slot->blocks[slot->n_blocks]) != BT_OK) {
        dec_slot *newest = &sched->slots[sched->order[sched->n_running + sched->n_waiting - 1]];
        if (sched->n_running + sched->n_waiting == 1) {
            sched->counters.n_stalled++;
            return false;
        }
        preempt(sched, newest, now_ns);
        if (newest == slot) return false;
    }
    slot->n_blocks++;
    wrk_status_changed(&sched->base, now_ns);
    return true;
}

static void add_row(dec_sched *sched, dec_slot *slot) {
    uint32_t i = sched->base.n_step++, n_output = slot->n_tokens - slot->n_prompt;
    bool is_banned = wire_end_is_banned(&slot->end, n_output + 1);
    slot->in_step = true;
    sched->base.step_slots[i] = dec_slot_index(sched, slot);
    sched->base.sequences[i] = (krn_sequence){.token_ids = &slot->tokens[slot->n_tokens - 1],
                                              .blocks = slot->blocks,
                                              .n_rows = 1,
                                              .position = slot->n_tokens - 1,
                                              .form = KRN_ABSORBED,
                                              .n_logits = 1};
    sched->base.samples[i] = (wrk_sample){.draw = {.sampling = &slot->sampling,
                                                   .constraint = &slot->constraint,
                                                   .tokens = slot->tokens,
                                                   .n_prompt = slot->n_prompt,
                                                   .n_tokens = slot->n_tokens,
                                                   .banned = slot->end.ids,
                                                   .n_banned = is_banned ? slot->end.n_ids : 0},
                                          .prefix_id = slot->request.serial};
}

bool dec_step_begin(wrk_sched *base, int64_t now_ns, wrk_step *out) {
    wrk_begin_event(base);
    dec_sched *sched = dec_of(base);
    BT_ASSERT(!sched->base.is_stepping);
    sched->base.n_step = 0;
    for (uint32_t at = 0;
         at < sched->n_running + sched->n_waiting && sched->base.n_step < sched->options.max_num_seqs;) {
        dec_slot *slot = &sched->slots[sched->order[at]];
        if (slot->state == DEC_WAITING) {
            slot->state = DEC_RUNNING;
            sched->n_waiting--;
            sched->n_running++;
            wrk_status_changed(&sched->base, now_ns);
        }
        if (find_block(sched, slot, now_ns)) add_row(sched, slot);
        if (slot->state == DEC_RUNNING) at++; /* else it gave way, and the next one moved up */
    }
    if (sched->base.n_step == 0) return false;
    sched->base.is_stepping = true;
    *out = (wrk_step){.sequences = sched->base.sequences,
                      .n_sequences = sched->base.n_step,
                      .n_rows = sched->base.n_step,
                      .samples = sched->base.samples,
                      .n_samples = sched->base.n_step};
    return true;
}

/* Every living sequence's token in one TOKENS per gateway: counted, then placed. */
static void send_tokens(dec_sched *sched, const uint32_t *tokens, const wire_ranked *logprobs) {
    for (uint32_t g = 0; g < sched->cap_gateways; g++) sched->gateways[g].n_tokens = 0;
    for (uint32_t i = 0; i < sched->base.n_step; i++) {
        const dec_slot *slot = &sched->slots[sched->base.step_slots[i]];
        if (slot->state != DEC_DEAD) sched->gateways[slot->gateway].n_tokens++;
    }
    uint32_t at = 0;
    for (uint32_t g = 0; g < sched->cap_gateways; g++) {
        uint32_t n = sched->gateways[g].n_tokens;
        sched->gateways[g].n_tokens = at; /* from here on: where its next token goes */
        if (n > 0)
            dec_send_gateway(
                sched, sched->gateways[g].incarnation,
                &(wire_message){.type = WIRE_TOKENS, .tokens = {.tokens = &sched->step_tokens[at], .n_tokens = n}});
        at += n;
    }
    for (uint32_t i = 0; i < sched->base.n_step; i++) {
        const dec_slot *slot = &sched->slots[sched->base.step_slots[i]];
        if (slot->state == DEC_DEAD) continue;
        sched->step_tokens[sched->gateways[slot->gateway].n_tokens++] =
            (wire_token){.request = slot->request,
                         .index = slot->n_tokens - slot->n_prompt,
                         .token = tokens[i],
                         .logprobs = &logprobs[i],
                         .n_logprobs = slot->sampling.n_logprobs > 0};
    }
}

static void take_token(dec_sched *sched, dec_slot *slot, uint32_t token, int64_t now_ns) {
    BT_ASSERT(token < sched->base.options.vocab_size);
    slot->tokens[slot->n_tokens++] = token;
    uint32_t n_output = slot->n_tokens - slot->n_prompt;
    uint8_t reason = wire_end_reason(&slot->end, token, n_output);
    if (reason == 0) return;
    const wire_message finished = wrk_finished(&slot->request, reason, token, n_output);
    dec_send_gateway(sched, slot->request.gateway, &finished);
    sched->counters.n_finished++;
    dec_slot_end(sched, slot, now_ns);
}

void dec_step_done(wrk_sched *base, const uint32_t *tokens, const wire_ranked *logprobs, int64_t now_ns) {
    wrk_begin_event(base);
    dec_sched *sched = dec_of(base);
    BT_ASSERT(sched->base.is_stepping);
    sched->base.is_stepping = false;
    sched->counters.n_steps++;
    sched->counters.n_sampled += sched->base.n_step;
    send_tokens(sched, tokens, logprobs);
    for (uint32_t i = 0; i < sched->base.n_step; i++) {
        dec_slot *slot = &sched->slots[sched->base.step_slots[i]];
        slot->in_step = false;
        if (slot->state == DEC_DEAD) {
            dec_slot_end(sched, slot, now_ns);
        } else {
            take_token(sched, slot, tokens[i], now_ns);
        }
    }
}
