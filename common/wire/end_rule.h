/* When a token ends its request: one rule for the two that sample, prefill (first token) and decode (the others).
 * Order as in vLLM's check_stop(): end-of-sequence, stop token, length. */
#ifndef BATON_COMMON_WIRE_END_RULE_H
#define BATON_COMMON_WIRE_END_RULE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/wire/wire.h"

/* The ids that end a request: eos ids unless ignored, then its stop ids. */
typedef struct {
    const uint32_t *ids; /* [n_ids] */
    uint32_t n_ids, n_eos;
    uint32_t min_tokens; /* ids end nothing before that many output tokens */
    uint32_t max_output; /* max_tokens, and what the context leaves */
} wire_end_rule;

/* `n_output` counts `token`. 0: the request goes on. */
static inline uint8_t wire_end_reason(const wire_end_rule *rule, uint32_t token, uint32_t n_output) {
    if (n_output > rule->min_tokens)
        for (uint32_t i = 0; i < rule->n_ids; i++)
            if (rule->ids[i] == token) return i < rule->n_eos ? WIRE_FINISH_EOS : WIRE_FINISH_STOP_TOKEN;
    return n_output >= rule->max_output ? WIRE_FINISH_LENGTH : 0;
}

/* May output token number n_output (from 1) end the request? If not, the sampler must not draw one of the ids. */
static inline bool wire_end_is_banned(const wire_end_rule *rule, uint32_t n_output) {
    return n_output <= rule->min_tokens;
}

/* How many output tokens a request gets: a position must be left for each but the last. */
static inline uint32_t wire_end_max_output(uint32_t max_tokens, uint32_t n_prompt, uint32_t max_model_len) {
    uint32_t room = max_model_len > n_prompt ? max_model_len - n_prompt : 0;
    return max_tokens < room ? max_tokens : room;
}

#endif
