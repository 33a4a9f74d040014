/* The sampler: known answers of the generator, greedy and its ties, the cuts against a sort, frequencies, determinism.
 */
#include "kernels/sampler.h"

#include <math.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/test.h"
#include "kernels/philox.h"

static void test_philox(void) { /* known answers of Random123's kat_vectors */
    static const struct {
        uint32_t counter[4];
        uint64_t key;
        uint32_t out[4];
    } rows[] = {
        {{0, 0, 0, 0}, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         0xffffffffffffffff,
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         0x299f31d0a4093822,
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        uint32_t out[4];
        krn_philox(rows[i].counter, rows[i].key, out);
        CHECK(memcmp(out, rows[i].out, sizeof(out)) == 0, "row %zu: %08x %08x", i, out[0], out[1]);
    }
}

static void test_greedy(void) {
    krn_sampler *sampler = krn_sampler_open(6);
    wire_sampling greedy = {.temperature = 0, .top_p = 1};
    const float tie[] = {1, 5, 2, 5, 5, -INFINITY}, with_nan[] = {NAN, -2, NAN, -1, -3, NAN},
                infinite[] = {1, 2, INFINITY, 3, INFINITY, 0};
    const float masked[] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY, 0.5f, -INFINITY};
    CHECK(krn_sample(sampler, tie, &greedy, 0) == 1, "the lowest id wins a tie");
    CHECK(krn_sample(sampler, with_nan, &greedy, 0) == 3, "NaN never wins");
    wire_sampling hot = {.temperature = 1, .top_p = 1};
    CHECK(krn_sample(sampler, infinite, &hot, 0) == 2, "infinity is certain");
    for (uint32_t i = 0; i < 100; i++) {
        CHECK(krn_sample(sampler, masked, &hot, i) == 4, "a masked token cannot be drawn");
        uint32_t id = krn_sample(sampler, with_nan, &hot, i);
        CHECK(id == 1 || id == 3 || id == 4, "NaN is never drawn: %u", id);
    }
    krn_sampler_close(sampler);
}

static uint32_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

static const float *sorted_logits;
static int compare_rank(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    if (sorted_logits[a] != sorted_logits[b]) return sorted_logits[a] > sorted_logits[b] ? -1 : 1;
    return (a > b) - (a < b);
}

/* The probabilities after the cuts, by sorting, as vLLM writes them down. */
static void expected_probabilities(const float *logits, uint32_t n, const wire_sampling *sampling, double *out) {
    uint32_t *order = bt_calloc(n, sizeof(*order));
    for (uint32_t i = 0; i < n; i++) order[i] = i;
    sorted_logits = logits;
    qsort(order, n, sizeof(*order), compare_rank);
    double max = logits[order[0]], total = 0, above = 0, kept = 0;
    uint32_t n_left = 0;
    for (uint32_t r = 0; r < n; r++) {
        double p = exp((logits[order[r]] - max) / sampling->temperature);
        bool fits_k =
            sampling->top_k == 0 || r < sampling->top_k || logits[order[r]] == logits[order[sampling->top_k - 1]];
        out[order[r]] = p >= sampling->min_p && fits_k ? p : 0;
        total += out[order[r]];
        n_left += out[order[r]] > 0;
    }
    for (uint32_t r = 0; r < n; r++) {
        double p = out[order[r]];
        if (r > 0 && above >= sampling->top_p * total) out[order[r]] = 0;
        above += p;
        kept += out[order[r]];
    }
    for (uint32_t i = 0; i < n; i++) out[i] /= kept;
    free(order);
}

static void test_distribution(void) {
    enum { VOCAB = 300, DRAWS = 40000 };
    static const wire_sampling rows[] = {
        {.temperature = 1, .top_p = 1},
        {.temperature = 0.6f, .top_p = 0.95f},
        {.temperature = 1.5f, .top_p = 1, .top_k = 7},
        {.temperature = 0.8f, .top_p = 0.5f, .top_k = 40},
        {.temperature = 1, .top_p = 1, .min_p = 0.2f},
        {.temperature = 1, .top_p = 0.7f, .top_k = 50, .min_p = 0.05f},
        {.temperature = 1, .top_p = 1e-6f},
        {.temperature = 2, .top_p = 1, .top_k = 1},
        {.temperature = 1, .top_p = 1, .top_k = 1000},
    };
    uint64_t state = 1;
    float logits[VOCAB];
    double expected[VOCAB];
    uint32_t *counts = bt_calloc(VOCAB, sizeof(*counts));
    krn_sampler *sampler = krn_sampler_open(VOCAB);
    for (size_t r = 0; r < sizeof(rows) / sizeof(rows[0]); r++) {
        wire_sampling sampling = rows[r];
        for (uint32_t i = 0; i < VOCAB; i++) logits[i] = (float)(next_random(&state) % 64) / 8; /* many ties */
        expected_probabilities(logits, VOCAB, &sampling, expected);
        memset(counts, 0, VOCAB * sizeof(*counts));
        for (uint32_t d = 0; d < DRAWS; d++) {
            sampling.seed = d / 100;
            counts[krn_sample(sampler, logits, &sampling, d % 100)]++;
        }
        double chi2 = 0;
        uint32_t n_kept = 0;
        for (uint32_t i = 0; i < VOCAB; i++) {
            CHECK(expected[i] > 0 || counts[i] == 0, "row %zu: token %u was cut but drawn %u times", r, i, counts[i]);
            if (expected[i] == 0) continue;
            double mean = expected[i] * DRAWS;
            chi2 += (counts[i] - mean) * (counts[i] - mean) / mean;
            n_kept++;
        }
        /* mean n - 1, deviation sqrt(2 (n - 1)): six deviations never happen by chance */
        CHECK(chi2 <= n_kept - 1 + 6 * sqrt(2.0 * n_kept), "row %zu: chi2 %g over %u tokens", r, chi2, n_kept);
    }
    krn_sampler_close(sampler);
    free(counts);
}

static void test_determinism(void) {
    enum { VOCAB = 5000 };
    float *logits = bt_calloc(VOCAB, sizeof(float));
    uint64_t state = 7;
    for (uint32_t i = 0; i < VOCAB; i++) logits[i] = (float)(next_random(&state) % 1000) / 100;
    krn_sampler *one = krn_sampler_open(VOCAB), *other = krn_sampler_open(VOCAB);
    uint32_t n_differ = 0;
    for (uint32_t position = 0; position < 200; position++) {
        wire_sampling sampling = {.temperature = 0.9f, .top_p = 0.9f, .seed = 42};
        uint32_t id = krn_sample(one, logits, &sampling, position);
        CHECK(krn_sample(other, logits, &sampling, position) == id, "position %u", position);
        sampling.seed = (uint64_t)42 << 32;
        n_differ += krn_sample(other, logits, &sampling, position) != id;
    }
    CHECK(n_differ > 100, "another seed gives other tokens: %u of 200", n_differ);
    krn_sampler_close(one);
    krn_sampler_close(other);
    free(logits);
}

int main(void) {
    test_philox();
    test_greedy();
    test_distribution();
    test_determinism();
    TEST_END();
}
