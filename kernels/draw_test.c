/* Masks, bias, penalties and logprobs against plain loops in double, and that a draw leaves nothing behind. */
#include "kernels/draw.h"

#include <math.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/test.h"
#include "kernels/logprobs.h"

enum { VOCAB = 1000 };

static uint32_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

static void fill(float *logits, uint64_t seed) {
    for (uint32_t i = 0; i < VOCAB; i++) logits[i] = (float)(next_random(&seed) % 4001) / 200 - 10;
}

static const wire_constraint none;

static void test_penalties_are_vllms_formulas(void) {
    static const uint32_t tokens[] = {1, 2, 2, 3, /* output: */ 4, 4, 4, 2, 5};
    float logits[VOCAB], expected[VOCAB];
    fill(logits, 3);
    logits[1] = 2, logits[2] = -3, logits[3] = 0, logits[4] = 6, logits[5] = -1, logits[6] = 4;
    memcpy(expected, logits, sizeof(logits));
    expected[1] = 2 / 1.5f;
    expected[2] = -3 * 1.5f - 0.25f - 0.5f; /* once in the prompt, once in the output */
    expected[3] = 0;
    expected[4] = 6 / 1.5f - 0.25f * 3 - 0.5f;
    expected[5] = -1 * 1.5f - 0.25f - 0.5f;
    wire_sampling sampling = {
        .top_p = 1, .repetition_penalty = 1.5f, .frequency_penalty = 0.25f, .presence_penalty = 0.5f};
    krn_draw_args args = {.sampling = &sampling, .constraint = &none, .tokens = tokens, .n_prompt = 4, .n_tokens = 9};
    krn_drawer *drawer = krn_drawer_open(VOCAB);
    for (int round = 0; round < 2; round++) { /* the second finds no marks of the first */
        float changed[VOCAB];
        memcpy(changed, logits, sizeof(logits));
        krn_draw(drawer, changed, &args, NULL, NULL);
        for (uint32_t i = 0; i < VOCAB; i++)
            CHECK(changed[i] == expected[i], "round %d: token %u is %g, not %g", round, i, changed[i], expected[i]);
    }
    krn_drawer_close(drawer);
}

static void test_masks_come_before_the_bias(void) {
    static const uint32_t allowed[] = {7, 9, 9, 11}, banned[] = {9, VOCAB + 5};
    static const wire_bias biases[] = {{9, 100}, {11, 3}, {12, 100}};
    wire_constraint constraint = {.logit_bias = biases, 3, .allowed_token_ids = allowed, 4};
    wire_sampling sampling = {.top_p = 1};
    krn_draw_args args = {
        .sampling = &sampling, .constraint = &constraint, .n_tokens = 5, .banned = banned, .n_banned = 2};
    float logits[VOCAB] = {0};
    logits[7] = 2, logits[9] = 50, logits[11] = 0.5f, logits[12] = 90;
    krn_drawer *drawer = krn_drawer_open(VOCAB);
    uint32_t token = krn_draw(drawer, logits, &args, NULL, NULL);
    CHECK(token == 11 && logits[11] == 3.5f, "the bias lifts an allowed token: %u", token);
    CHECK(logits[12] == -INFINITY && logits[9] == -INFINITY, "no bias lifts a masked or banned one");
    krn_drawer_close(drawer);
}

static void test_a_bad_word_loses_its_last_token_where_the_others_stand(void) {
    static const struct {
        uint32_t word[4], n_word, output[4], n_output, masked;
        const char *why;
    } rows[] = {
        {{7}, 1, {0}, 0, 7, "a word of one token at once"},
        {{7}, 1, {1, 2}, 2, 7, "and everywhere"},
        {{1, 7}, 2, {1}, 1, 7, "the second token behind the first"},
        {{1, 7}, 2, {2}, 1, VOCAB, "not behind another"},
        {{1, 7}, 2, {1, 2}, 2, VOCAB, "not later"},
        {{5, 7}, 2, {0}, 0, VOCAB, "the prompt ends with 5, but a word begins in the output"},
        {{5, 1, 7}, 3, {1}, 1, VOCAB, "nor does half of it in the prompt count"},
        {{1, 1, 7}, 3, {2, 1, 1}, 3, 7, "three tokens"},
        {{2, 1, 1, 7}, 4, {2, 1, 1}, 3, 7, "all of the output"},
        {{2, 1, 1, 7}, 4, {1, 1}, 2, VOCAB, "longer than the output"},
    };
    static const wire_bias lifted = {7, 100};
    wire_sampling sampling = {.top_p = 1, .n_logprobs = 1};
    krn_drawer *drawer = krn_drawer_open(VOCAB);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint32_t tokens[6] = {9, 5};
        memcpy(tokens + 2, rows[i].output, sizeof rows[i].output);
        wire_word word = {rows[i].word, rows[i].n_word};
        wire_constraint constraint = {.logit_bias = &lifted, 1, .bad_words = &word, .n_bad_words = 1};
        krn_draw_args args = {.sampling = &sampling,
                              .constraint = &constraint,
                              .tokens = tokens,
                              .n_prompt = 2,
                              .n_tokens = 2 + rows[i].n_output};
        float logits[VOCAB] = {[7] = 3, [8] = 2}, raw[VOCAB] = {[7] = 3, [8] = 2};
        wire_ranked told, expected;
        uint32_t token = krn_draw(drawer, logits, &args, NULL, &told);
        CHECK(token == (rows[i].masked == 7 ? 8 : 7), "%s: %u", rows[i].why, token);
        krn_logprobs(raw, VOCAB, token, 0, NULL, &expected);
        CHECK(told.logprob == expected.logprob, "%s: logprobs know nothing of it", rows[i].why);
    }
    krn_drawer_close(drawer);
}

static void test_logprobs_are_the_log_softmax(void) {
    float logits[VOCAB];
    wire_logprob top[WIRE_MAX_TOP_LOGPROBS];
    wire_ranked out;
    fill(logits, 7);
    logits[17] = NAN;
    logits[400] = logits[40] = 11, logits[41] = 11.5f; /* a tie behind the best */
    double sum = 0;
    for (uint32_t i = 0; i < VOCAB; i++) sum += i == 17 ? 0 : exp(logits[i]);
    for (uint32_t token = 0; token < VOCAB; token++) {
        krn_logprobs(logits, VOCAB, token, 5, top, &out);
        if (token == 17) {
            CHECK(out.logprob == -INFINITY, "NaN has no probability");
            continue;
        }
        double expected = logits[token] - log(sum);
        CHECK(fabs(out.logprob - expected) < 1e-5, "token %u: %g, not %g", token, out.logprob, expected);
        uint32_t rank = 1;
        for (uint32_t i = 0; i < VOCAB; i++)
            rank += logits[i] > logits[token] || (logits[i] == logits[token] && i < token);
        CHECK(out.rank == rank, "token %u: rank %u, not %u", token, out.rank, rank);
        if (rank <= 5) CHECK(top[rank - 1].token == token && top[rank - 1].logprob == out.logprob, "the same bits");
    }
    CHECK(out.n_top == 5 && top[0].token == 41 && top[1].token == 40 && top[2].token == 400, "falling, ties by id");
    krn_logprobs(logits, 3, 0, 20, top, &out);
    CHECK(out.n_top == 3, "no more than there are: %u", out.n_top);
}

static void test_logprobs_are_of_the_raw_logits(void) {
    static const wire_bias biases[] = {{5, 100}};
    wire_constraint constraint = {.logit_bias = biases, .n_logit_bias = 1};
    wire_sampling sampling = {.top_p = 1, .n_logprobs = 3};
    krn_draw_args args = {.sampling = &sampling, .constraint = &constraint, .n_tokens = 1};
    float logits[VOCAB], raw[VOCAB];
    wire_logprob top[2], expected_top[2];
    wire_ranked out, expected;
    fill(logits, 9);
    memcpy(raw, logits, sizeof(raw));
    krn_drawer *drawer = krn_drawer_open(VOCAB);
    uint32_t token = krn_draw(drawer, logits, &args, top, &out);
    krn_logprobs(raw, VOCAB, 5, 2, expected_top, &expected);
    CHECK(token == 5 && out.logprob == expected.logprob && out.rank == expected.rank && out.n_top == 2, "biased");
    CHECK(memcmp(top, expected_top, sizeof(top)) == 0, "the likeliest, had nobody interfered");
    krn_drawer_close(drawer);
}

int main(void) {
    test_penalties_are_vllms_formulas();
    test_masks_come_before_the_bias();
    test_a_bad_word_loses_its_last_token_where_the_others_stand();
    test_logprobs_are_the_log_softmax();
    test_logprobs_are_of_the_raw_logits();
    TEST_END();
}
