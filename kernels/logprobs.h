/* What a row of logits says about a token: log-softmax in float32, rank, and the likeliest tokens. */
#ifndef BATON_KERNELS_LOGPROBS_H
#define BATON_KERNELS_LOGPROBS_H

#include "common/wire/wire.h"

/* `logits` [vocab_size] float32 as the model gave them. Fills *out with `token`'s logprob and rank and points out->top
 * to the min(n_top, vocab_size) likeliest, falling; the lower id goes first in a tie, in rank and list. `top` [n_top]
 * is the caller's, n_top <= WIRE_MAX_TOP_LOGPROBS. Equal logits get equal bits, in whatever place they stand. A logit
 * that is NaN or -infinity has logprob -infinity. */
void krn_logprobs(const float *logits, uint32_t vocab_size, uint32_t token, uint32_t n_top, wire_logprob *top,
                  wire_ranked *out);

#endif
