/* From a row of logits to a token and its logprobs, with everything that a request may ask for. A draw depends on the
 * logits and its arguments alone: penalties and bad words look at the tokens anew each time, so a sequence has no state
 * that would have to be handed over. */
#ifndef BATON_KERNELS_DRAW_H
#define BATON_KERNELS_DRAW_H

#include "common/wire/wire.h"

typedef struct krn_drawer krn_drawer; /* scratch for one vocabulary; one thread */

krn_drawer *krn_drawer_open(uint32_t vocab_size);
void krn_drawer_close(krn_drawer *drawer);

/* A token wanted from a row of logits. Ids are below the vocabulary's size, but `banned` may have any. */
typedef struct {
    const wire_sampling *sampling;
    const wire_constraint *constraint;
    const uint32_t *tokens;      /* [n_tokens] the sequence so far; read only if there are penalties or bad words */
    uint32_t n_prompt, n_tokens; /* the first n_prompt are the prompt; n_tokens is the position of the token wanted */
    const uint32_t *banned;      /* [n_banned] ids that cannot be drawn: what would end it before min_tokens */
    uint32_t n_banned;
} krn_draw_args;

/* `logits` [vocab_size] float32, changed. vLLM's rules in vLLM's order: what is not in allowed_token_ids is masked,
 * then the last token of each of bad_words whose others the output ends with, then `banned`; logit_bias is added;
 * repetition_penalty divides positive logits and multiplies negative ones of tokens in prompt or output;
 * frequency_penalty, per occurrence, and presence_penalty are subtracted from those in the output; then krn_sample().
 * If sampling->n_logprobs is not 0, *logprobs tells of the logits as they came in (krn_logprobs()) and points to `top`
 * [n_logprobs - 1]; else neither is touched. */
uint32_t krn_draw(krn_drawer *drawer, float *logits, const krn_draw_args *args, wire_logprob *top,
                  wire_ranked *logprobs);

#endif
