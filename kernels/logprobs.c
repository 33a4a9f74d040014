/* Two passes over the vocabulary: the largest logits by insertion, as they come rarely, then the sum of exponentials in
 * a fixed order. */
#include "kernels/logprobs.h"

#include <math.h>

#include "kernels/softmax.h"

/* The `n_top` largest, falling; the first of equal ones stays in front. Returns how many there are. */
static uint32_t find_top(const float *logits, uint32_t vocab_size, uint32_t n_top, wire_logprob *top) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < vocab_size; i++) {
        float logit = logits[i] > -INFINITY ? logits[i] : -INFINITY;
        if (n == n_top && !(logit > top[n - 1].logprob)) continue;
        uint32_t place = n < n_top ? n++ : n - 1;
        for (; place > 0 && logit > top[place - 1].logprob; place--) top[place] = top[place - 1];
        top[place] = (wire_logprob){i, logit};
    }
    return n;
}

static float find_max(const float *logits, uint32_t vocab_size) {
    float max = -INFINITY;
    for (uint32_t i = 0; i < vocab_size; i++) max = logits[i] > max ? logits[i] : max;
    return max;
}

enum { BLOCK = 256 }; /* summed in float32; blocks are summed in float64 */

static float log_sum_exp(const float *logits, uint32_t vocab_size, float max) {
    float block[BLOCK];
    double sum = 0;
    for (uint32_t start = 0; start < vocab_size; start += BLOCK) {
        uint32_t n = vocab_size - start < BLOCK ? vocab_size - start : BLOCK;
        for (uint32_t i = 0; i < n; i++) {
            float x = logits[start + i] - max;
            float weight = krn_exp_negative(x > -80 ? x : -80.0f);
            block[i] = x > -80 ? weight : 0; /* also NaN and -infinity */
        }
        sum += krn_sum_lanes(block, n);
    }
    return max + (float)log(sum);
}

static uint32_t find_rank(const float *logits, uint32_t vocab_size, uint32_t token) {
    float logit = logits[token];
    uint32_t rank = 1;
    for (uint32_t i = 0; i < vocab_size; i++) rank += logits[i] > logit;
    for (uint32_t i = 0; i < token; i++) rank += logits[i] == logit;
    return rank;
}

void krn_logprobs(const float *logits, uint32_t vocab_size, uint32_t token, uint32_t n_top, wire_logprob *top,
                  wire_ranked *out) {
    float lse = log_sum_exp(logits, vocab_size, find_max(logits, vocab_size));
    *out = (wire_ranked){.logprob = logits[token] - lse, .rank = find_rank(logits, vocab_size, token), .top = top};
    if (n_top > 0) out->n_top = find_top(logits, vocab_size, n_top, top);
    for (uint32_t i = 0; i < out->n_top; i++) top[i].logprob -= lse;
    for (uint32_t i = 0; i < out->n_top; i++)
        if (!(top[i].logprob <= 0)) top[i].logprob = -INFINITY; /* all logits are NaN or infinite */
    if (!(out->logprob <= 0)) out->logprob = -INFINITY;
}
