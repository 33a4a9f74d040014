/* The batch: who decodes together, who waits, who gives way when the pool is full, and what becomes of a step's tokens.
 *
 * One rule for rows: a sequence's blocks hold its first n_cached positions, and a step computes from there towards its
 * last known token, whose row is drawn from. That is one row for a sequence that has just been given a token, what the
 * cache lacks of a prompt that is computed here, and everything for one that lost its blocks: preemption takes the
 * blocks, never the tokens, and its client sees a pause.
 * order[] holds sequences by age. The newest gives way, and nobody who lost blocks is overtaken by another such one. */
#include <string.h>

#include "decode/dec_internal.h"

static uint32_t pause_timer(const dec_sched *sched) { return sched->base.n_slots + WRK_TIMER_ROLE; }

static uint32_t n_sequences(const dec_sched *sched) { return sched->n_running + sched->n_waiting; }

void dec_batch_add(dec_sched *sched, dec_slot *slot, int64_t now_ns) {
    slot->state = DEC_WAITING;
    sched->order[n_sequences(sched)] = dec_slot_index(sched, slot);
    sched->n_waiting++;
    if (!bt_timers_is_set(&sched->base.timers, pause_timer(sched)))
        bt_timers_set(&sched->base.timers, pause_timer(sched), wrk_after_ms(now_ns, sched->options.pause_ms));
}

/* Who got no token since the last look is told of: its gateway would take the silence for a loss. */
void dec_batch_late(dec_sched *sched, int64_t now_ns) {
    for (uint32_t at = 0; at < n_sequences(sched); at++) {
        dec_slot *slot = &sched->slots[sched->order[at]];
        if (slot->n_tokens_seen == slot->n_tokens)
            dec_send_gateway(sched, slot->request.gateway,
                             &(wire_message){.type = WIRE_ACCEPTED, .accepted = {slot->request}});
        slot->n_tokens_seen = slot->n_tokens;
    }
    bt_timers_set(&sched->base.timers, pause_timer(sched), wrk_after_ms(now_ns, sched->options.pause_ms));
}

void dec_batch_remove(dec_sched *sched, dec_slot *slot) {
    uint32_t index = dec_slot_index(sched, slot), n = n_sequences(sched), at = 0;
    while (sched->order[at] != index) at++;
    memmove(&sched->order[at], &sched->order[at + 1], (n - at - 1) * sizeof(uint32_t));
    if (slot->state == DEC_RUNNING) {
        sched->n_running--;
    } else {
        sched->n_waiting--;
    }
    if (n == 1) bt_timers_clear(&sched->base.timers, pause_timer(sched));
}

/* ---- blocks ----------------------------------------------------------------------------------------------------- */

bool dec_batch_is_short(const dec_sched *sched) {
    for (uint32_t at = 0; at < n_sequences(sched); at++)
        if (sched->slots[sched->order[at]].n_blocks == 0) return true;
    return false;
}

/* The newest that has blocks: `slot` itself has some. */
static dec_slot *find_newest(const dec_sched *sched) {
    uint32_t at = n_sequences(sched) - 1;
    while (sched->slots[sched->order[at]].n_blocks == 0) at--;
    return &sched->slots[sched->order[at]];
}

static bool is_oldest(const dec_sched *sched, const dec_slot *slot) {
    uint32_t at = 0;
    while (sched->slots[sched->order[at]].n_blocks == 0) at++;
    return &sched->slots[sched->order[at]] == slot;
}

/* No step runs. What the prefix cache has of its prompt stays there until somebody needs the room. */
static void preempt(dec_sched *sched, dec_slot *slot, int64_t now_ns) {
    kv_pool_release(sched->pool, slot->blocks, slot->n_blocks);
    if (slot->n_lost < slot->n_cached) slot->n_lost = slot->n_cached;
    slot->n_blocks = slot->n_shared = slot->n_cached = 0;
    if (slot->state == DEC_RUNNING) {
        slot->state = DEC_WAITING;
        sched->n_running--;
        sched->n_waiting++;
    }
    sched->counters.n_preempted++;
    wrk_status_changed(&sched->base, now_ns);
}

/* Room in the cache for the slot's last token. The newest sequence gives way, and that may be the slot itself; the
 * oldest never does: alone it waits for the leases that hold the blocks, and the pool holds any single request.
 * false: no row in this step. */
static bool grow(dec_sched *sched, dec_slot *slot, int64_t now_ns) {
    if (kv_blocks_for(slot->n_tokens) <= slot->n_blocks) return true;
    while (kv_pool_acquire(sched->pool, 1, &slot->blocks[slot->n_blocks]) != BT_OK) {
        dec_slot *newest = find_newest(sched);
        if (newest == slot && is_oldest(sched, slot)) {
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

/* Blocks for all its tokens, for one that has none. */
static bool take_blocks(dec_sched *sched, dec_slot *slot) {
    uint32_t n_held, n_blocks = kv_blocks_for(slot->n_tokens);
    if (!dec_blocks_take(sched, slot->prefix, slot->n_prefix, n_blocks, slot->blocks, &n_held)) return false;
    slot->n_blocks = n_blocks;
    slot->n_shared = n_held;
    slot->n_cached = n_held * KV_BLOCK_TOKENS;
    return true;
}

static void admit(dec_sched *sched, dec_slot *slot, int64_t now_ns) {
    if (sched->n_running == sched->options.max_num_seqs) return;
    if (slot->n_blocks == 0 && !take_blocks(sched, slot)) return;
    slot->state = DEC_RUNNING;
    sched->n_waiting--;
    sched->n_running++;
    wrk_status_changed(&sched->base, now_ns);
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

static void add_sample(dec_sched *sched, const dec_slot *slot) {
    sched->base.samples[sched->n_step_samples++] =
        (wrk_sample){.draw = wrk_draw_args(&slot->sampling, &slot->constraint, &slot->end, slot->tokens, slot->n_prompt,
                                           slot->n_tokens),
                     .prefix_id = slot->request.serial};
}

/* Rows that it has use for. The form belongs to the position, so they end where the prompt does. */
static uint32_t n_of_one_form(const dec_slot *slot) {
    return (slot->n_cached < slot->n_prompt ? slot->n_prompt : slot->n_tokens) - slot->n_cached;
}

static void add_sequence(dec_sched *sched, uint32_t i, int64_t now_ns) {
    dec_slot *slot = &sched->slots[sched->base.step_slots[i]];
    uint32_t end = slot->n_cached + slot->n_step_rows;
    uint32_t n_known = slot->n_lost > slot->n_cached ? slot->n_lost - slot->n_cached : 0;
    uint32_t n_again = n_known < slot->n_step_rows ? n_known : slot->n_step_rows;
    sched->n_step_rows += slot->n_step_rows;
    sched->base.sequences[i] = (krn_sequence){.token_ids = &slot->tokens[slot->n_cached],
                                              .blocks = slot->blocks,
                                              .n_rows = slot->n_step_rows,
                                              .position = slot->n_cached,
                                              .form = slot->n_cached < slot->n_prompt ? KRN_EXPANDED : KRN_ABSORBED,
                                              .n_logits = end == slot->n_tokens};
    if (end == slot->n_tokens) add_sample(sched, slot);
    sched->counters.n_recomputed += n_again;
    if (slot->owes_first) sched->counters.n_local_tokens += slot->n_step_rows - n_again;
    if (slot->first_step_ns == 0) slot->first_step_ns = now_ns;
}

/* Each sequence of the batch that has room for a row gets one, so none waits for another one's prompt; what the budget
 * has beyond that is shared among those that have use for more. */
static void pick_rows(dec_sched *sched, int64_t now_ns) {
    wrk_sched *base = &sched->base;
    uint32_t n_claims = 0;
    bool is_short = false; /* an older one has no blocks */
    for (uint32_t at = 0; at < n_sequences(sched); at++) {
        uint32_t index = sched->order[at];
        dec_slot *slot = &sched->slots[index];
        if (slot->state == DEC_WAITING && (slot->n_blocks > 0 || !is_short)) admit(sched, slot, now_ns);
        bool has_row = slot->state == DEC_RUNNING && grow(sched, slot, now_ns);
        is_short |= slot->n_blocks == 0;
        if (!has_row) continue;
        slot->n_step_rows = 1;
        base->step_slots[base->n_step++] = index;
        uint32_t n_more = n_of_one_form(slot) - 1;
        if (n_more > 0) base->claims[n_claims++] = (wrk_claim){.slot = index, .n_left = n_more};
    }
    uint32_t n_spare = sched->options.max_batched_tokens - sched->options.max_num_seqs;
    wrk_rows_share(base->claims, n_claims, n_spare, UINT32_MAX); /* each has its place */
    for (uint32_t i = 0; i < n_claims; i++) sched->slots[base->claims[i].slot].n_step_rows += base->claims[i].n_rows;
}

bool dec_step_begin(wrk_sched *base, int64_t now_ns, wrk_step *out) {
    wrk_begin_event(base);
    dec_sched *sched = dec_of(base);
    BT_ASSERT(!base->is_stepping);
    base->n_step = sched->n_step_rows = sched->n_step_samples = 0;
    pick_rows(sched, now_ns);
    if (base->n_step == 0) return false;
    for (uint32_t i = 0; i < base->n_step; i++) add_sequence(sched, i, now_ns);
    wrk_step_began(base, now_ns);
    *out = (wrk_step){.sequences = base->sequences,
                      .n_sequences = base->n_step,
                      .n_rows = sched->n_step_rows,
                      .samples = base->samples,
                      .n_samples = sched->n_step_samples};
    return true;
}

/* ---- tokens ----------------------------------------------------------------------------------------------------- */

/* Does the sequence i of the step live, and was a token drawn for it that goes into TOKENS? */
static bool has_token(const dec_sched *sched, uint32_t i) {
    const dec_slot *slot = &sched->slots[sched->base.step_slots[i]];
    return sched->base.sequences[i].n_logits > 0 && slot->state != DEC_DEAD && !slot->owes_first;
}

/* All in one TOKENS per gateway: counted, then placed. */
static void send_tokens(dec_sched *sched, const uint32_t *tokens, const wire_ranked *logprobs) {
    for (uint32_t g = 0; g < sched->cap_gateways; g++) sched->gateways[g].n_tokens = 0;
    for (uint32_t i = 0; i < sched->base.n_step; i++)
        if (has_token(sched, i)) sched->gateways[sched->slots[sched->base.step_slots[i]].gateway].n_tokens++;
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
    for (uint32_t i = 0, sample = 0; i < sched->base.n_step; sample += sched->base.sequences[i].n_logits, i++) {
        const dec_slot *slot = &sched->slots[sched->base.step_slots[i]];
        if (!has_token(sched, i)) continue;
        sched->step_tokens[sched->gateways[slot->gateway].n_tokens++] =
            (wire_token){.request = slot->request,
                         .index = slot->n_tokens - slot->n_prompt,
                         .token = tokens[sample],
                         .logprobs = &logprobs[sample],
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
    BT_ASSERT(base->is_stepping);
    wrk_step_ended(base, sched->n_step_rows, now_ns);
    sched->counters.n_steps++;
    sched->counters.n_sampled += sched->n_step_samples;
    send_tokens(sched, tokens, logprobs);
    for (uint32_t i = 0, sample = 0; i < base->n_step; sample += base->sequences[i].n_logits, i++) {
        dec_slot *slot = &sched->slots[base->step_slots[i]];
        slot->n_cached += slot->n_step_rows;
        slot->n_step_rows = 0;
        if (slot->state == DEC_DEAD) {
            dec_slot_end(sched, slot, now_ns);
            continue;
        }
        dec_blocks_offer(sched, slot, now_ns);
        if (base->sequences[i].n_logits == 0) continue;
        if (slot->owes_first) dec_request_send_first(sched, slot, tokens[sample], &logprobs[sample], now_ns);
        take_token(sched, slot, tokens[sample], now_ns);
    }
}

void dec_step_lost(wrk_sched *base, int64_t now_ns) {
    dec_sched *sched = dec_of(base);
    base->is_stepping = false;
    for (uint32_t i = 0; i < base->n_step; i++) {
        dec_slot *slot = &sched->slots[base->step_slots[i]];
        BT_ASSERT(slot->state == DEC_DEAD);
        slot->n_step_rows = 0;
        dec_slot_end(sched, slot, now_ns);
    }
}
