/* Sampling parameters on their way: what a peer may not send, and a copy of those that are lists. */
#ifndef BATON_COMMON_WIRE_SAMPLING_H
#define BATON_COMMON_WIRE_SAMPLING_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "common/wire/wire.h"

/* Numbers that a peer may not send; comparisons are false for NaN. */
static inline bool wire_sampling_is_sane(const wire_sampling *s) {
    return s->temperature >= 0 && s->temperature <= 1e6f && s->top_p > 0 && s->top_p <= 1 && s->min_p >= 0 &&
           s->min_p <= 1 && s->ignore_eos <= 1 && s->repetition_penalty >= 0 && s->repetition_penalty <= 1e6f &&
           s->presence_penalty >= -2 && s->presence_penalty <= 2 && s->frequency_penalty >= -2 &&
           s->frequency_penalty <= 2 && s->n_logprobs <= 1 + WIRE_MAX_TOP_LOGPROBS &&
           s->n_prompt_logprobs <= 1 + WIRE_MAX_TOP_LOGPROBS;
}

static inline bool wire_constraint_is_sane(const wire_constraint *constraint, uint32_t vocab_size) {
    for (uint32_t i = 0; i < constraint->n_logit_bias; i++) {
        const wire_bias *bias = &constraint->logit_bias[i];
        if (bias->token >= vocab_size || !(bias->bias >= -100 && bias->bias <= 100)) return false;
    }
    for (uint32_t i = 0; i < constraint->n_allowed_token_ids; i++)
        if (constraint->allowed_token_ids[i] >= vocab_size) return false;
    for (uint32_t i = 0; i < constraint->n_bad_words; i++) {
        const wire_word *word = &constraint->bad_words[i];
        if (word->n_tokens == 0) return false;
        for (uint32_t j = 0; j < word->n_tokens; j++)
            if (word->tokens[j] >= vocab_size) return false;
    }
    return true;
}

/* The copy's lists live in `arena`. */
static inline wire_constraint wire_constraint_copy(const wire_constraint *from, bt_arena *arena) {
    wire_constraint copy = {0};
    if (from->n_logit_bias > 0) {
        size_t n_bytes = from->n_logit_bias * sizeof(wire_bias);
        copy.logit_bias = memcpy(bt_arena_alloc(arena, n_bytes), from->logit_bias, n_bytes);
        copy.n_logit_bias = from->n_logit_bias;
    }
    if (from->n_allowed_token_ids > 0) {
        size_t n_bytes = from->n_allowed_token_ids * sizeof(uint32_t);
        copy.allowed_token_ids = memcpy(bt_arena_alloc(arena, n_bytes), from->allowed_token_ids, n_bytes);
        copy.n_allowed_token_ids = from->n_allowed_token_ids;
    }
    if (from->n_bad_words > 0) {
        wire_word *words = bt_arena_alloc(arena, from->n_bad_words * sizeof *words);
        for (uint32_t i = 0; i < from->n_bad_words; i++) {
            size_t n_bytes = from->bad_words[i].n_tokens * sizeof(uint32_t);
            words[i].tokens = memcpy(bt_arena_alloc(arena, n_bytes), from->bad_words[i].tokens, n_bytes);
            words[i].n_tokens = from->bad_words[i].n_tokens;
        }
        copy.bad_words = words;
        copy.n_bad_words = from->n_bad_words;
    }
    return copy;
}

#endif
