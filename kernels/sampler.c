/* Draws one token. No sort: the two cuts (top-k by count, top-p by mass) are found by partitioning the candidates
 * around pivots until the cut is one candidate wide, O(vocabulary) on average.
 *
 * All ranking uses one total order, larger logit first and then lower id, and the draw walks what is kept by id, so
 * that the partitioning's shuffling does not show in the result. */
#include "kernels/sampler.h"

#include <math.h>
#include <stdlib.h>

#include "common/core/alloc.h"
#include "kernels/philox.h"

typedef struct {
    float logit;  /* divided by the temperature */
    float weight; /* exp(logit - max): the probability, not normalised */
    uint32_t id;
} candidate;

struct krn_sampler {
    uint32_t vocab_size;
    candidate *candidates; /* [vocab_size] */
};

krn_sampler *krn_sampler_open(uint32_t vocab_size) {
    krn_sampler *sampler = bt_calloc(1, sizeof(*sampler));
    sampler->vocab_size = vocab_size;
    sampler->candidates = bt_calloc(vocab_size, sizeof(candidate));
    return sampler;
}

void krn_sampler_close(krn_sampler *sampler) {
    if (sampler == NULL) return;
    free(sampler->candidates);
    free(sampler);
}

static uint32_t pick_greedy(const float *logits, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++) {
        if (logits[i] > logits[best] || (isnan(logits[best]) && !isnan(logits[i]))) best = i;
    }
    return best;
}

static inline bool ranks_above(candidate a, candidate b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

static inline void swap(candidate *a, candidate *b) {
    candidate held = *a;
    *a = *b;
    *b = held;
}

/* Moves what ranks above a pivot of [first, end) in front of it; returns the pivot's place. */
static uint32_t partition(candidate *all, uint32_t first, uint32_t end) {
    candidate *low = &all[first], *middle = &all[first + (end - first) / 2], *high = &all[end - 1];
    if (ranks_above(*middle, *low)) swap(middle, low); /* median of three into *middle */
    if (ranks_above(*high, *low)) swap(high, low);
    if (ranks_above(*high, *middle)) swap(high, middle);
    swap(middle, high);
    candidate pivot = *high;
    uint32_t place = first;
    for (uint32_t i = first; i < end - 1; i++) {
        if (ranks_above(all[i], pivot)) swap(&all[i], &all[place++]);
    }
    swap(&all[place], high);
    return place;
}

/* Keeps what is not smaller than the k-th largest. Returns the number kept, at the front. */
static uint32_t keep_top_k(candidate *all, uint32_t n, uint32_t k) {
    if (k == 0 || k >= n) return n;
    uint32_t first = 0, end = n, wanted = k - 1;
    while (end - first > 1) {
        uint32_t place = partition(all, first, end);
        if (place == wanted) break;
        if (place > wanted)
            end = place;
        else
            first = place + 1;
    }
    float smallest = all[wanted].logit;
    uint32_t n_kept = k;
    for (uint32_t i = k; i < n; i++) {
        if (all[i].logit == smallest) swap(&all[i], &all[n_kept++]);
    }
    return n_kept;
}

/* Keeps tokens while the mass that ranks above them is below top_p of the whole; always the first. */
static uint32_t keep_top_p(candidate *all, uint32_t n, double top_p) {
    if (top_p >= 1) return n;
    double total = 0, above = 0; /* above: mass in front of `first` */
    for (uint32_t i = 0; i < n; i++) total += all[i].weight;
    uint32_t first = 0, end = n; /* the cut is in [first, end] */
    while (first < end) {
        uint32_t place = partition(all, first, end);
        double mass = above;
        for (uint32_t i = first; i < place; i++) mass += all[i].weight;
        if (mass >= top_p * total) {
            end = place;
        } else {
            above = mass + all[place].weight;
            first = place + 1;
        }
    }
    return first > 0 ? first : 1;
}

/* 53 random bits in [0, 1). */
static double draw_uniform(uint64_t seed, uint32_t position) {
    const uint32_t counter[4] = {position, 0, 0, 0};
    uint32_t words[4];
    krn_philox(counter, seed, words);
    uint64_t bits = ((uint64_t)words[0] << 32 | words[1]) >> 11;
    return (double)bits * 0x1p-53;
}

/* All tokens that rank at or above `lowest`, by id, with their weights. Returns their number. */
static uint32_t collect(krn_sampler *sampler, const float *logits, float temperature, float max, candidate lowest) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < sampler->vocab_size; i++) {
        candidate token = {.logit = logits[i] / temperature, .id = i};
        if (isnan(token.logit) || ranks_above(lowest, token)) continue;
        token.weight = expf(token.logit - max);
        sampler->candidates[n++] = token;
    }
    return n;
}

static candidate lowest_of(const candidate *all, uint32_t n) {
    candidate lowest = all[0];
    for (uint32_t i = 1; i < n; i++) {
        if (ranks_above(lowest, all[i])) lowest = all[i];
    }
    return lowest;
}

uint32_t krn_sample(krn_sampler *sampler, const float *logits, const wire_sampling *sampling, uint32_t position) {
    /* A token this far below the best has less than 1e-21 of its probability: a draw of 53 bits cannot see it. */
    const float out_of_sight = 50;
    uint32_t best = pick_greedy(logits, sampler->vocab_size);
    float temperature = sampling->temperature < 0.01f ? 0.01f : sampling->temperature;
    float max = logits[best] / temperature;
    if (!(sampling->temperature >= 1e-5f) || !isfinite(max)) return best;

    candidate lowest = {.logit = max - out_of_sight, .id = UINT32_MAX};
    if (sampling->min_p > 0) lowest.logit = fmaxf(lowest.logit, max + logf(sampling->min_p));
    uint32_t n = collect(sampler, logits, temperature, max, lowest);
    uint32_t n_kept =
        keep_top_p(sampler->candidates, keep_top_k(sampler->candidates, n, sampling->top_k), sampling->top_p);
    if (n_kept < n) n = collect(sampler, logits, temperature, max, lowest_of(sampler->candidates, n_kept));

    double total = 0, sum = 0;
    for (uint32_t i = 0; i < n; i++) total += sampler->candidates[i].weight;
    double target = draw_uniform(sampling->seed, position) * total;
    for (uint32_t i = 0; i < n; i++) {
        sum += sampler->candidates[i].weight;
        if (sum > target) return sampler->candidates[i].id;
    }
    return best; /* not reached: the sums are equal and the draw is below 1 */
}
