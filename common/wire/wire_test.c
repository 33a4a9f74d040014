/* Golden bytes of messages, every message round-trips, and every cut or damaged frame is refused. */
#include "common/wire/wire.h"

#include <string.h>

#include "common/core/test.h"
#include "common/wire/sampling.h"

static void check_bytes(const char *what, const wire_message *message, const char *hex) {
    bt_buf out = {0};
    wire_encode(message, &out);
    char text[1024] = "";
    for (size_t i = 0; i < out.n_bytes && i * 2 + 2 < sizeof(text); i++) sprintf(text + 2 * i, "%02x", out.bytes[i]);
    CHECK(strcmp(text, hex) == 0, "%s is %s", what, text);
    bt_buf_fini(&out);
}

static void test_golden_bytes_do_not_change(void) {
    wire_request request = {.gateway = 0x1122334455667788, .serial = 5, .attempt = 1};
    check_bytes("cancel", &(wire_message){.type = WIRE_CANCEL, .cancel = {.request = request}},
                "14000000"
                "42540703"
                "8877665544332211"
                "0500000000000000"
                "01000000");
    check_bytes("drain", &(wire_message){.type = WIRE_DRAIN},
                "04000000"
                "4254070d"
                "00000000");
    wire_token tokens[] = {{.request = request, .index = 7, .token = 300}};
    check_bytes("tokens", &(wire_message){.type = WIRE_TOKENS, .tokens = {.tokens = tokens, .n_tokens = 1}},
                "24000000"
                "42540707"
                "01000000"
                "8877665544332211"
                "0500000000000000"
                "01000000"
                "07000000"
                "2c010000"
                "00000000");
    wire_block_name names[] = {{0x0102030405060708, 0x1112131415161718}};
    check_bytes("reserve",
                &(wire_message){.type = WIRE_RESERVE,
                                .reserve = {.request = request, .n_tokens = 65, .max_tokens = 9, names, 1}},
                "30000000"
                "42540722"
                "8877665544332211"
                "0500000000000000"
                "01000000"
                "41000000"
                "09000000"
                "01000000"
                "0807060504030201"
                "1817161514131211");
    check_bytes("failed",
                &(wire_message){.type = WIRE_FAILED,
                                .failed = {.request = request, .status = BT_NO_CAPACITY, .text = wire_str_from("no")}},
                "1b000000"
                "42540709"
                "8877665544332211"
                "0500000000000000"
                "01000000"
                "03"
                "02000000"
                "6e6f");
    check_bytes("ep_rows", &(wire_message){.type = WIRE_EP_ROWS, .ep_rows = {9, 300, 3, 16, 17}},
                "1c000000"
                "42540733"
                "0900000000000000"
                "2c01000000000000"
                "03000000"
                "10000000"
                "11000000");
}

/* A SUBMIT has every kind of field. */
static wire_message big_submit(void) {
    static const uint32_t ids[] = {0, 2036, 491, 303};
    static const uint32_t stops[] = {9};
    static wire_candidate candidates[2];
    for (unsigned i = 0; i < 2; i++)
        candidates[i] =
            (wire_candidate){wire_str_from(i == 0 ? "decode-0" : "decode-1"), 77 + i, wire_str_from("127.0.0.1:9")};
    static const wire_bias biases[] = {{7, -100}, {8, 1.5f}};
    static const wire_word words[] = {{stops, 1}, {ids, 3}};
    return (wire_message){.type = WIRE_SUBMIT,
                          .submit = {.request = {1, 2, 3},
                                     .constraint = {biases, 2, ids, 4, words, 2},
                                     .sampling = {.temperature = 0.6f, .top_p = 0.95f, .seed = 42, .ignore_eos = 1},
                                     .max_tokens = 100,
                                     .n_prompt = 4,
                                     .tokens = ids,
                                     .n_tokens = 4,
                                     .stop_token_ids = stops,
                                     .n_stop_token_ids = 1,
                                     .priority = (UINT64_C(1) << 63) - 5,
                                     .cache_salt = wire_str_from("salt"),
                                     .candidates = candidates,
                                     .n_candidates = 2}};
}

static void test_a_submit_survives_the_round_trip(void) {
    wire_message submit = big_submit(), back;
    bt_buf out = {0};
    bt_arena arena = {0};
    bt_error err = {0};
    wire_encode(&submit, &out);
    CHECK(wire_decode(out.bytes, out.n_bytes, &arena, &back, &err) == BT_OK, "%s", err.text);
    CHECK(back.submit.n_tokens == 4 && back.submit.tokens[1] == 2036, "tokens");
    CHECK(back.submit.n_candidates == 2 && back.submit.candidates[1].incarnation == 78, "candidates");
    const wire_constraint *constraint = &back.submit.constraint;
    CHECK(constraint->n_logit_bias == 2 && constraint->logit_bias[1].bias == 1.5f, "logit_bias");
    CHECK(constraint->n_allowed_token_ids == 4 && constraint->allowed_token_ids[3] == 303, "allowed_token_ids");
    const wire_word *words = constraint->bad_words;
    CHECK(constraint->n_bad_words == 2 && words[0].n_tokens == 1 && words[1].n_tokens == 3, "bad_words");
    CHECK(words[0].tokens[0] == 9 && words[1].tokens[2] == 491, "their tokens");
    CHECK(back.submit.sampling.top_p == 0.95f && back.submit.sampling.ignore_eos == 1, "sampling");
    CHECK(back.submit.priority == (UINT64_C(1) << 63) - 5, "priority");
    CHECK(back.submit.cache_salt.n_bytes == 4 && memcmp(back.submit.cache_salt.bytes, "salt", 4) == 0, "salt");
    bt_arena_fini(&arena);
    bt_buf_fini(&out);
}

static void test_cut_and_damaged_frames_are_refused(void) {
    wire_message submit = big_submit(), back;
    bt_buf out = {0};
    bt_error err = {0};
    size_t frame_bytes;
    wire_encode(&submit, &out);
    for (size_t n = 0; n < out.n_bytes; n++) {
        bt_arena arena = {0};
        CHECK(wire_decode(out.bytes, n, &arena, &back, &err) == BT_BAD_REQUEST, "cut at %zu", n);
        CHECK(wire_frame_size(out.bytes, n, &frame_bytes, &err) == BT_AGAIN, "%zu bytes are not a frame", n);
        bt_arena_fini(&arena);
    }
    for (size_t i = 0; i < 8; i++) { /* any damage of the header */
        bt_arena arena = {0};
        uint8_t old = out.bytes[i];
        out.bytes[i] = (uint8_t)(old ^ 0x40);
        CHECK(wire_decode(out.bytes, out.n_bytes, &arena, &back, &err) == BT_BAD_REQUEST, "header byte %zu", i);
        out.bytes[i] = old;
        bt_arena_fini(&arena);
    }
    uint8_t nul_in_name[] = {0x1b, 0, 0, 0, 0x42, 0x54, WIRE_VERSION, 9, [8 + 20] = 3, 2, 0, 0, 0, 'n', 0};
    bt_arena arena = {0};
    CHECK(wire_decode(nul_in_name, sizeof(nul_in_name), &arena, &back, &err) == BT_BAD_REQUEST, "NUL in a string");
    bt_arena_fini(&arena);
    bt_buf_fini(&out);
}

static void test_unknown_numbers_and_huge_counts_are_refused(void) {
    wire_message back;
    bt_error err = {0};
    for (unsigned number = 0; number < 256; number++) {
        uint8_t frame[] = {0, 0, 0, 0, 0x42, 0x54, WIRE_VERSION, (uint8_t)number};
        bt_arena arena = {0};
        CHECK(wire_decode(frame, sizeof(frame), &arena, &back, &err) == BT_BAD_REQUEST, "number %u", number);
        bt_arena_fini(&arena);
    }
    uint8_t huge[] = {4, 0, 0, 0, 0x42, 0x54, WIRE_VERSION, WIRE_TOKENS, 0xff, 0x0f, 0, 0};
    bt_arena arena = {0};
    CHECK(wire_decode(huge, sizeof(huge), &arena, &back, &err) == BT_BAD_REQUEST, "4095 tokens in no bytes");
    CHECK(arena.used_bytes < 4096, "no memory was taken for them");
    bt_arena_fini(&arena);
}

static void test_constraints_are_checked_and_copied_whole(void) {
    enum { VOCAB = 100 };
    static const wire_bias biases[] = {{99, -100}};
    uint32_t ids[] = {99, 5}, other[] = {7};
    wire_word words[] = {{ids, 2}, {other, 1}};
    wire_constraint constraint = {biases, 1, ids, 2, words, 2};
    CHECK(wire_constraint_is_sane(&constraint, VOCAB), "every id is below the vocabulary's size");
    bt_arena arena = {0};
    wire_constraint copy = wire_constraint_copy(&constraint, &arena);
    other[0] = VOCAB;
    CHECK(!wire_constraint_is_sane(&constraint, VOCAB), "a word's token is not");
    CHECK(wire_constraint_is_sane(&copy, VOCAB) && copy.bad_words[1].tokens[0] == 7, "the copy does not change");
    CHECK(copy.n_bad_words == 2 && copy.bad_words[0].n_tokens == 2 && copy.bad_words[0].tokens[1] == 5, "its words");
    words[1].n_tokens = 0;
    CHECK(!wire_constraint_is_sane(&constraint, VOCAB), "a word without tokens");
    bt_arena_fini(&arena);
    wire_sampling sampling = {.top_p = 1, .n_prompt_logprobs = 1 + WIRE_MAX_TOP_LOGPROBS};
    CHECK(wire_sampling_is_sane(&sampling), "as many logprobs as there may be");
    sampling.n_prompt_logprobs++;
    CHECK(!wire_sampling_is_sane(&sampling), "one more");
}

/* The largest message that a step can make must fit its frame: 4096 rows, each with all alternatives. */
static void test_a_full_step_fits_a_frame(void) {
    static wire_logprob top[WIRE_MAX_TOP_LOGPROBS];
    static wire_ranked ranked = {.top = top, .n_top = WIRE_MAX_TOP_LOGPROBS};
    static wire_token tokens[WIRE_MAX_STEP_TOKENS];
    for (uint32_t i = 0; i < WIRE_MAX_STEP_TOKENS; i++) tokens[i] = (wire_token){.logprobs = &ranked, .n_logprobs = 1};
    bt_buf out = {0};
    bt_arena arena = {0};
    wire_message back;
    wire_encode(&(wire_message){.type = WIRE_TOKENS, .tokens = {tokens, WIRE_MAX_STEP_TOKENS}}, &out);
    CHECK(wire_decode(out.bytes, out.n_bytes, &arena, &back, NULL) == BT_OK, "%zu bytes", out.n_bytes);
    CHECK(back.tokens.n_tokens == WIRE_MAX_STEP_TOKENS, "all of them");
    bt_arena_fini(&arena);
    bt_buf_fini(&out);
}

int main(void) {
    test_constraints_are_checked_and_copied_whole();
    test_a_full_step_fits_a_frame();
    test_golden_bytes_do_not_change();
    test_a_submit_survives_the_round_trip();
    test_cut_and_damaged_frames_are_refused();
    test_unknown_numbers_and_huge_counts_are_refused();
    TEST_END();
}
