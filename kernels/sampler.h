/* From logits to a token. The draw depends on the logits, the parameters, the seed and the token's position alone, so
 * that prefill's first token and decode's next follow one law, whatever the batch. */
#ifndef BATON_KERNELS_SAMPLER_H
#define BATON_KERNELS_SAMPLER_H

#include "common/wire/wire.h"

typedef struct krn_sampler krn_sampler; /* scratch for one vocabulary; one thread */

krn_sampler *krn_sampler_open(uint32_t vocab_size);
void krn_sampler_close(krn_sampler *sampler);

/* `logits` [vocab_size] float32, not changed; tokens at -infinity cannot be drawn (the caller masks end-of-sequence so
 * while min_tokens holds). `position`: index of the token to be drawn in its sequence (prompt and all).
 *
 * vLLM's rules in vLLM's order: a temperature below 1e-5 is greedy, below 0.01 counts as 0.01; min-p drops
 * p < min_p * max p; top-k keeps what is at least as large as the k-th largest, so ties may keep more; top-p, of what
 * is left, keeps a token while the mass above it is below top_p, equal tokens ranked by id. One draw from a
 * counter-based generator keyed by (seed, position). The lowest id wins a greedy tie; NaN never wins. */
uint32_t krn_sample(krn_sampler *sampler, const float *logits, const wire_sampling *sampling, uint32_t position);

#endif
