/* What requests add to plain sampling. Each rule looks at its own parameter first, so a request that asks for nothing
 * costs nothing; penalties cost a walk over the sequence. */
#include "kernels/draw.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "kernels/logprobs.h"
#include "kernels/sampler.h"

struct krn_drawer {
    uint32_t vocab_size;
    krn_sampler *sampler;
    uint32_t *marks; /* [vocab_size] all 0 between calls */
    float *raw;      /* [vocab_size] logits as they came in, while a copy is needed */
};

krn_drawer *krn_drawer_open(uint32_t vocab_size) {
    krn_drawer *drawer = bt_calloc(1, sizeof(*drawer));
    drawer->vocab_size = vocab_size;
    drawer->sampler = krn_sampler_open(vocab_size);
    drawer->marks = bt_calloc(vocab_size, sizeof(uint32_t));
    drawer->raw = bt_calloc(vocab_size, sizeof(float));
    return drawer;
}

void krn_drawer_close(krn_drawer *drawer) {
    if (drawer == NULL) return;
    krn_sampler_close(drawer->sampler);
    free(drawer->marks);
    free(drawer->raw);
    free(drawer);
}

static void mask_others(krn_drawer *drawer, float *logits, const uint32_t *allowed, uint32_t n_allowed) {
    for (uint32_t i = 0; i < n_allowed; i++) drawer->marks[allowed[i]] = 1;
    for (uint32_t i = 0; i < drawer->vocab_size; i++)
        if (drawer->marks[i] == 0) logits[i] = -INFINITY;
    for (uint32_t i = 0; i < n_allowed; i++) drawer->marks[allowed[i]] = 0;
}

/* The prompt does not count: a word begins in the output. */
static void mask_bad_words(float *logits, const krn_draw_args *args) {
    const wire_constraint *c = args->constraint;
    for (uint32_t i = 0; i < c->n_bad_words; i++) {
        const wire_word *word = &c->bad_words[i];
        uint32_t n_before = word->n_tokens - 1;
        if (n_before > args->n_tokens - args->n_prompt) continue;
        const uint32_t *before = args->tokens + args->n_tokens - n_before;
        if (n_before == 0 || memcmp(before, word->tokens, n_before * sizeof(uint32_t)) == 0)
            logits[word->tokens[n_before]] = -INFINITY;
    }
}

static bool has_penalties(const wire_sampling *s) {
    bool has_repetition = s->repetition_penalty != 0 && s->repetition_penalty != 1;
    return has_repetition || s->presence_penalty != 0 || s->frequency_penalty != 0;
}

/* marks[]: SEEN once the repetition penalty is paid, below it the occurrences in the output. */
static void apply_penalties(krn_drawer *drawer, float *logits, const krn_draw_args *args) {
    enum { SEEN = 1u << 30 };
    const wire_sampling *s = args->sampling;
    uint32_t *marks = drawer->marks;
    float repetition = s->repetition_penalty == 0 ? 1 : s->repetition_penalty;
    for (uint32_t i = 0; i < args->n_tokens; i++) {
        uint32_t id = args->tokens[i];
        if (marks[id] == 0) logits[id] = logits[id] > 0 ? logits[id] / repetition : logits[id] * repetition;
        marks[id] |= SEEN;
        if (i >= args->n_prompt) marks[id]++;
    }
    for (uint32_t i = args->n_prompt; i < args->n_tokens; i++) {
        uint32_t id = args->tokens[i], count = marks[id] & ~(uint32_t)SEEN;
        if (count == 0) continue; /* paid at its first occurrence */
        logits[id] -= s->frequency_penalty * (float)count;
        logits[id] -= s->presence_penalty;
        marks[id] = SEEN;
    }
    for (uint32_t i = 0; i < args->n_tokens; i++) marks[args->tokens[i]] = 0;
}

uint32_t krn_draw(krn_drawer *drawer, float *logits, const krn_draw_args *args, wire_logprob *top,
                  wire_ranked *logprobs) {
    const wire_constraint *c = args->constraint;
    bool is_penalised = has_penalties(args->sampling), wants_logprobs = args->sampling->n_logprobs > 0;
    bool is_changed =
        c->n_allowed_token_ids > 0 || c->n_bad_words > 0 || args->n_banned > 0 || c->n_logit_bias > 0 || is_penalised;
    const float *raw = logits;
    if (wants_logprobs && is_changed) {
        memcpy(drawer->raw, logits, drawer->vocab_size * sizeof(float));
        raw = drawer->raw;
    }
    if (c->n_allowed_token_ids > 0) mask_others(drawer, logits, c->allowed_token_ids, c->n_allowed_token_ids);
    mask_bad_words(logits, args);
    for (uint32_t i = 0; i < args->n_banned; i++)
        if (args->banned[i] < drawer->vocab_size) logits[args->banned[i]] = -INFINITY;
    for (uint32_t i = 0; i < c->n_logit_bias; i++) logits[c->logit_bias[i].token] += c->logit_bias[i].bias;
    if (is_penalised) apply_penalties(drawer, logits, args);
    uint32_t token = krn_sample(drawer->sampler, logits, args->sampling, args->n_tokens);
    if (wants_logprobs) krn_logprobs(raw, drawer->vocab_size, token, args->sampling->n_logprobs - 1, top, logprobs);
    return token;
}
