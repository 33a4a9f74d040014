/* Draws one token without sorting the vocabulary. min-p, top-k and top-p each only move a threshold in one total order
 * of the tokens (larger logit first, then lower id); the draw then walks what is at or above it, by id.
 *
 * Passes over the vocabulary are plain loops over floats that a compiler vectorises: sums go through fixed lanes and
 * the exponential is a polynomial written here, so the bits are the same on every processor. The two selections, the
 * k-th largest and the cut of top-p, run on candidates that a bound has thinned out first. */
#include "kernels/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "kernels/philox.h"
#include "kernels/softmax.h"

typedef struct {
    float logit, weight;
    uint32_t id;
} candidate;

struct krn_sampler {
    uint32_t vocab_size;
    float *weights;        /* [vocab_size]: exp((logit - largest) / temperature); 0 of what is out */
    candidate *candidates; /* [vocab_size] */
    double *masses;        /* [N_BUCKETS] */
};

enum { N_BUCKETS = 0x3f80 + 1 }; /* of weights up to 1.0f = 0x3f800000, see bucket_of() */

krn_sampler *krn_sampler_open(uint32_t vocab_size) {
    krn_sampler *sampler = bt_calloc(1, sizeof(*sampler));
    sampler->vocab_size = vocab_size;
    sampler->weights = bt_calloc(vocab_size, sizeof(float));
    sampler->candidates = bt_calloc(vocab_size, sizeof(candidate));
    sampler->masses = bt_calloc(N_BUCKETS, sizeof(double));
    return sampler;
}

void krn_sampler_close(krn_sampler *sampler) {
    if (sampler == NULL) return;
    free(sampler->weights);
    free(sampler->candidates);
    free(sampler->masses);
    free(sampler);
}

/* The largest logit's lowest id; NaN compares false and so never wins. */
static uint32_t pick_greedy(const float *logits, uint32_t n) {
    float lanes[KRN_LANES], max = -INFINITY;
    for (int j = 0; j < KRN_LANES; j++) lanes[j] = -INFINITY;
    uint32_t i = 0;
    for (; i + KRN_LANES <= n; i += KRN_LANES) {
        for (int j = 0; j < KRN_LANES; j++) lanes[j] = logits[i + j] > lanes[j] ? logits[i + j] : lanes[j];
    }
    for (; i < n; i++) max = logits[i] > max ? logits[i] : max;
    for (int j = 0; j < KRN_LANES; j++) max = lanes[j] > max ? lanes[j] : max;
    for (i = 0; i < n; i++) {
        if (logits[i] == max) return i;
    }
    return 0; /* all NaN */
}

enum { BLOCK = 256 }; /* weights that are summed in float32; blocks are summed in float64 */

static uint32_t block_end(const krn_sampler *sampler, uint32_t start) {
    return sampler->vocab_size - start < BLOCK ? sampler->vocab_size : start + BLOCK;
}

static double sum_weights(const krn_sampler *sampler) {
    double sum = 0;
    for (uint32_t i = 0; i < sampler->vocab_size; i += BLOCK) {
        sum += krn_sum_lanes(sampler->weights + i, block_end(sampler, i) - i);
    }
    return sum;
}

static void fill_weights(krn_sampler *sampler, const float *logits, float max, float temperature, float lowest) {
    float inverse = 1 / temperature, *weights = sampler->weights;
    uint32_t n = sampler->vocab_size;
    for (uint32_t i = 0; i < n; i++) {
        float x = (logits[i] - max) * inverse;
        x = x > -80 ? x : -80.0f; /* NaN and -infinity become -80, and are out */
        float weight = krn_exp_negative(x);
        weights[i] = logits[i] >= lowest ? weight : 0;
    }
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

/* Moves the k that rank highest to the front, the lowest of them to k - 1. */
static void select_top(candidate *all, uint32_t n, uint32_t k) {
    uint32_t first = 0, end = n;
    while (end - first > 1) {
        uint32_t place = partition(all, first, end);
        if (place == k - 1) return;
        if (place >= k)
            end = place;
        else
            first = place + 1;
    }
}

/* The k-th largest logit, if it is above `lowest`. Candidates pile up to twice k, then the lower half is dropped and
 * the bar is raised, so few tokens of a large vocabulary ever become candidates. */
static float top_k_threshold(krn_sampler *sampler, const float *logits, uint32_t k, float lowest) {
    if (k == 0 || k >= sampler->vocab_size) return lowest;
    candidate *all = sampler->candidates;
    uint32_t n = 0, cap = k < sampler->vocab_size / 2 ? 2 * k : sampler->vocab_size;
    for (uint32_t i = 0; i < sampler->vocab_size; i++) {
        if (!(logits[i] >= lowest)) continue;
        if (n >= k && logits[i] == lowest) continue; /* cannot raise the bar */
        all[n++] = (candidate){.logit = logits[i], .id = i};
        if (n < cap) continue;
        select_top(all, n, k);
        n = k;
        lowest = all[k - 1].logit;
    }
    if (n < k) return lowest;
    select_top(all, n, k);
    return all[k - 1].logit;
}

/* Weights are in (0, 1]: the upper half of their bits orders them into buckets 1/128 wide. */
static inline uint32_t bucket_of(float weight) {
    uint32_t bits;
    memcpy(&bits, &weight, sizeof(bits));
    return bits >> 16;
}

/* The lowest token that top-p keeps: tokens are kept while the mass above them is below top_p of `total`. The bucket in
 * which that happens is found by summing buckets; only its tokens are ranked. */
static candidate top_p_threshold(krn_sampler *sampler, const float *logits, double top_p, double total) {
    candidate *all = sampler->candidates;
    double target = top_p * total, above = 0;
    memset(sampler->masses, 0, N_BUCKETS * sizeof(double));
    for (uint32_t i = 0; i < sampler->vocab_size; i++) {
        sampler->masses[bucket_of(sampler->weights[i])] += sampler->weights[i];
    }
    uint32_t bucket = N_BUCKETS - 1;
    while (bucket > 1 && above + sampler->masses[bucket] < target) above += sampler->masses[bucket--];
    while (sampler->masses[bucket] == 0) bucket++; /* only if rounding kept the sum below the target */

    uint32_t n = 0;
    for (uint32_t i = 0; i < sampler->vocab_size; i++) {
        float weight = sampler->weights[i];
        if (bucket_of(weight) == bucket) all[n++] = (candidate){.logit = logits[i], .weight = weight, .id = i};
    }
    uint32_t first = 0, end = n; /* the cut is in [first, end]; `above` is the mass in front of first */
    candidate lowest = all[0];
    while (first < end) {
        uint32_t place = partition(all, first, end);
        double mass = above;
        for (uint32_t i = first; i < place; i++) mass += all[i].weight;
        if (mass >= target && place > 0) { /* the first of all is kept whatever top_p is */
            end = place;
        } else {
            lowest = all[place];
            above = mass + lowest.weight;
            first = place + 1;
        }
    }
    return lowest;
}

/* Weights below the threshold become 0. */
static void drop_below(krn_sampler *sampler, const float *logits, candidate lowest) {
    uint32_t n = sampler->vocab_size;
    float *weights = sampler->weights;
    for (uint32_t i = 0; i < n; i++) weights[i] = logits[i] >= lowest.logit ? weights[i] : 0;
    for (uint32_t i = lowest.id + 1; i < n; i++) {
        if (logits[i] == lowest.logit) weights[i] = 0;
    }
}

/* 53 random bits in [0, 1). */
static double draw_uniform(uint64_t seed, uint32_t position) {
    const uint32_t counter[4] = {position, 0, 0, 0};
    uint32_t words[4];
    krn_philox(counter, seed, words);
    uint64_t bits = ((uint64_t)words[0] << 32 | words[1]) >> 11;
    return (double)bits * 0x1p-53;
}

/* The token in whose share of the summed weights the target falls. */
static uint32_t pick_share(const krn_sampler *sampler, double target, uint32_t fallback) {
    double sum = 0;
    for (uint32_t start = 0; start < sampler->vocab_size; start += BLOCK) {
        uint32_t end = block_end(sampler, start);
        float block = krn_sum_lanes(sampler->weights + start, end - start);
        if (sum + block <= target) {
            sum += block;
            continue;
        }
        for (uint32_t i = start; i < end; i++) {
            if (sampler->weights[i] == 0) continue;
            fallback = i; /* if rounding puts the block's last share below the target */
            sum += sampler->weights[i];
            if (sum > target) break;
        }
        return fallback;
    }
    return fallback;
}

uint32_t krn_sample(krn_sampler *sampler, const float *logits, const wire_sampling *sampling, uint32_t position) {
    /* A token this far below the best has less than 1e-21 of its probability: a draw of 53 bits cannot see it. */
    const float out_of_sight = 50;
    uint32_t best = pick_greedy(logits, sampler->vocab_size);
    float temperature = sampling->temperature < 0.01f ? 0.01f : sampling->temperature, max = logits[best];
    if (!(sampling->temperature >= 1e-5f) || !isfinite(max)) return best;

    float depth = sampling->min_p > 0 ? fminf(out_of_sight, -logf(sampling->min_p)) : out_of_sight;
    float lowest = max - depth * temperature;
    lowest = top_k_threshold(sampler, logits, sampling->top_k, lowest);
    fill_weights(sampler, logits, max, temperature, lowest);
    double total = sum_weights(sampler);
    if (sampling->top_p < 1) {
        drop_below(sampler, logits, top_p_threshold(sampler, logits, sampling->top_p, total));
        total = sum_weights(sampler);
    }
    return pick_share(sampler, draw_uniform(sampling->seed, position) * total, best);
}
