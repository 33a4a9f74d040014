/* From logits to a token. The draw depends on the logits, the parameters, the seed and the token's position alone, so
 * that prefill's first token and decode's next follow one law, whatever the batch. */
#ifndef BATON_KERNELS_SAMPLER_H
#define BATON_KERNELS_SAMPLER_H

#include "common/wire/wire.h"

typedef struct krn_sampler krn_sampler; /* scratch for one vocabulary; one thread */

krn_sampler *krn_sampler_open(uint32_t vocab_size);
void krn_sampler_close(krn_sampler *sampler);

/* `logits` [vocab_size] float32, not changed. `position`: index of the token to be drawn in its sequence (prompt and
 * all). temperature 0 is greedy, the lowest id wins a tie. Order: temperature, top-k, top-p, min-p, one draw from a
 * counter-based generator keyed by (seed, position). NaN logits never win. */
uint32_t krn_sample(krn_sampler *sampler, const float *logits, const wire_sampling *sampling, uint32_t position);

#endif
