/* One rule at a time: packing and splitting, what is pushed when, the hand-off's ways to fail, and what is freed when.
 * Whole histories: tests/sim. */
#include "prefill/pre_sched.h"

#include <string.h>

#include "common/core/test.h"

enum { GATEWAY = 7, DECODE = 200, EOS = 1, LAYERS = 2, BLOCKS = 16, MS = 1000000 };

static kv_pool *pool;
static wrk_sched *sched;
static wrk_step step;
static int64_t now_ns;
static wrk_action done[64]; /* since the last clear() */
static uint32_t n_done;
static bool is_alike; /* do the prompts of submit() share their blocks? */

static void walk(void) {
    while (wrk_sched_next(sched, &done[n_done])) BT_ASSERT(++n_done < 64);
    sched->check(sched);
}

static void clear(void) { n_done = 0; }

static void start(void) {
    is_alike = false;
    static const uint32_t eos[] = {EOS};
    pool = kv_pool_open(BLOCKS);
    const wrk_sched_options shared = {.pool = pool,
                                      .vocab_size = 1000,
                                      .max_model_len = 1000,
                                      .n_layers = LAYERS,
                                      .eos_ids = eos,
                                      .n_eos_ids = 1,
                                      .has_prefix_cache = true};
    const pre_sched_options options = {.max_requests = 4, .max_batched_tokens = 256, .max_batched_seqs = 8};
    CHECK(pre_sched_open(&shared, &options, &sched, NULL) == BT_OK, "open");
    sched->gateway_up(sched, GATEWAY, now_ns);
    walk();
    clear();
}

static void stop(void) {
    sched->gateway_gone(sched, GATEWAY, now_ns);
    walk();
    CHECK(kv_pool_n_free(pool) == BLOCKS, "%u blocks are free", kv_pool_n_free(pool));
    sched->close(sched);
    kv_pool_close(pool);
}

static wire_request request(uint64_t serial) { return (wire_request){GATEWAY, serial, 0}; }

static wire_sampling sampling = {.top_p = 1};
static uint64_t priority;

static void submit(uint64_t serial, uint32_t n_prompt, uint32_t n_tokens, uint32_t n_candidates) {
    static uint32_t tokens[1000];
    wire_candidate candidates[WIRE_MAX_CANDIDATES];
    char salt[24];
    snprintf(salt, sizeof(salt), "%llu", (unsigned long long)serial);
    for (uint32_t i = 0; i < 1000; i++) tokens[i] = 10 + i % 900;
    for (uint32_t i = 0; i < n_candidates; i++)
        candidates[i] = (wire_candidate){wire_str_from("d"), DECODE + i, wire_str_from("d:1")};
    wire_message message = {.type = WIRE_SUBMIT,
                            .submit = {.request = request(serial),
                                       .sampling = sampling,
                                       .priority = priority,
                                       .max_tokens = 50,
                                       .n_prompt = n_prompt,
                                       .cache_salt = wire_str_from(is_alike ? "" : salt),
                                       .tokens = tokens,
                                       .n_tokens = n_tokens,
                                       .candidates = candidates,
                                       .n_candidates = n_candidates}};
    sched->gateway_message(sched, GATEWAY, &message, now_ns);
    walk();
}

static const wrk_action *find(wrk_action_kind kind, wire_type type) {
    for (uint32_t i = n_done; i-- > 0;)
        if (done[i].kind == kind && (kind == WRK_CONNECT || kind == WRK_PUSH || done[i].message.type == type))
            return &done[i];
    return NULL;
}

static uint32_t count_pushes(uint32_t layer) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_done; i++)
        if (done[i].kind == WRK_PUSH && done[i].push.layer == layer) n += done[i].push.n_blocks;
    return n;
}

static void finish_pushes(void) {
    uint32_t n = n_done;
    for (uint32_t i = 0; i < n; i++) {
        if (done[i].kind != WRK_PUSH) continue;
        done[i].kind = WRK_BROADCAST; /* done once */
        sched->push_done(sched, done[i].push_id, 1, now_ns);
        walk();
    }
}

static void decode_up(uint64_t decode) {
    sched->peer_up(sched, decode, now_ns);
    walk();
}

static void say(uint64_t decode, wire_message message) {
    sched->peer_message(sched, decode, &message, now_ns);
    walk();
}

static void say_reserved(uint64_t decode, uint64_t serial, uint64_t lease) {
    say(decode, (wire_message){.type = WIRE_RESERVED, .reserved = {request(serial), lease, 0, 60000}});
}

static void say_refused(uint64_t decode, uint64_t serial, bt_status status) {
    say(decode,
        (wire_message){.type = WIRE_REFUSED, .refused = {request(serial), (uint8_t)status, wire_str_from("no")}});
}

static bool begin(void) {
    bool has_step = sched->step_begin(sched, now_ns, &step);
    walk();
    return has_step;
}

static void layer_done(uint32_t layer) {
    sched->layer_done(sched, layer, now_ns);
    walk();
}

static void end(uint32_t token) {
    uint32_t tokens[8];
    wire_ranked logprobs[8] = {0};
    for (int i = 0; i < 8; i++) tokens[i] = token;
    sched->step_done(sched, tokens, logprobs, now_ns);
    walk();
}

static void run_step(uint32_t token) {
    CHECK(begin(), "a step");
    for (uint32_t layer = 0; layer < LAYERS; layer++) layer_done(layer);
    end(token);
}

static void test_short_prompts_share_a_step_and_long_ones_are_split(void) {
    start();
    submit(1, 100, 100, 1);
    submit(2, 300, 300, 1);
    submit(3, 20, 20, 1);
    CHECK(begin() && step.n_sequences == 3 && step.n_rows == 256, "the budget is full");
    CHECK(step.sequences[0].n_rows == 100 && step.sequences[2].n_rows == 20 && step.n_samples == 2, "the short ones");
    CHECK(step.sequences[1].n_rows == 136 && step.sequences[1].n_logits == 0, "a part of the long one");
    for (uint32_t layer = 0; layer < LAYERS; layer++) layer_done(layer);
    end(50);
    CHECK(begin() && step.n_sequences == 1 && step.sequences[0].position == 136, "the rest of it");
    CHECK(step.sequences[0].n_rows == 164 && step.n_samples == 1, "ends");
    for (uint32_t layer = 0; layer < LAYERS; layer++) layer_done(layer);
    end(50);
    CHECK(!begin(), "nothing is left to compute");
    stop();
}

/* Runs a step: did it give the request its first token? */
static bool step_answers(uint64_t serial) {
    clear();
    run_step(50);
    for (uint32_t i = 0; i < n_done; i++)
        if (done[i].kind == WRK_SEND_GATEWAY && done[i].message.type == WIRE_FIRST_TOKEN &&
            done[i].message.first_token.request.serial == serial)
            return true;
    return false;
}

static void test_a_short_prompt_does_not_wait_for_a_long_one(void) {
    start();
    submit(1, 900, 900, 1);
    run_step(50);
    submit(2, 50, 50, 1);
    CHECK(step_answers(2), "the next step has it, whatever is left of the long one");
    stop();
}

static void cancel(uint64_t serial) {
    wire_message message = {.type = WIRE_CANCEL, .cancel = {request(serial)}};
    sched->gateway_message(sched, GATEWAY, &message, now_ns);
    walk();
}

static void test_a_long_prompt_is_not_starved_by_short_ones(void) {
    start();
    submit(1, 700, 700, 1);
    uint32_t n_steps = 0;
    for (bool is_answered = false; !is_answered && n_steps < 20; n_steps++) {
        uint64_t serial = 2 + n_steps;
        submit(serial, 127, 127, 1); /* in every step as much as the short ones can get */
        is_answered = step_answers(1);
        cancel(serial);
    }
    CHECK(n_steps == 6, "700 positions at 129 a step: %u steps", n_steps);
    stop();
}

static void test_a_lower_priority_goes_first_but_among_the_shortest(void) {
    start();
    priority = 5;
    submit(1, 700, 700, 1);
    submit(2, 60, 60, 1);
    submit(3, 400, 400, 1);
    priority = 4;
    submit(4, 300, 300, 1);
    priority = 0;
    CHECK(begin() && step.n_sequences == 2, "%u of them", step.n_sequences);
    for (uint32_t layer = 0; layer < LAYERS; layer++) layer_done(layer);
    end(50);
    cancel(1); /* eleven of sixteen blocks */
    CHECK(begin() && step.n_sequences == 1 && step.n_rows == 256, "one fills the step");
    for (uint32_t layer = 0; layer < LAYERS; layer++) layer_done(layer);
    end(50);
    CHECK(step_answers(4), "the later one of a lower priority");
    stop();
}

static void test_a_known_beginning_is_not_computed_but_pushed_at_once(void) {
    start();
    is_alike = true;
    submit(1, 300, 300, 1);
    run_step(50);
    run_step(50);
    cancel(1);
    CHECK(kv_pool_n_free(pool) == BLOCKS && kv_pool_n_cached(pool) == 4, "full blocks stay, and are free");
    clear();
    submit(2, 300, 300, 1);
    decode_up(DECODE);
    const wire_reserve *reserve = &find(WRK_SEND_PEER, WIRE_RESERVE)->message.reserve;
    CHECK(reserve->n_prefix == 4, "decode hears the names");
    say(DECODE, (wire_message){.type = WIRE_RESERVED, .reserved = {request(2), 5, 128, 60000}});
    CHECK(count_pushes(0) == 2 && count_pushes(1) == 2 && find(WRK_PUSH, 0)->push.first_block == 2,
          "what decode does not have is pushed before any step");
    CHECK(begin() && step.n_rows == 44 && step.sequences[0].position == 256, "the rest is computed");
    for (uint32_t layer = 0; layer < LAYERS; layer++) layer_done(layer);
    end(50);
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FIRST_TOKEN)->message.first_token.cached_tokens == 256, "and the client is told");
    CHECK(find(WRK_SEND_PEER, WIRE_COMMIT)->message.commit.n_pushes == LAYERS * 3, "two of five blocks were held");
    CHECK(pre_sched_counters(sched)->n_prefix_hits == 256 && pre_sched_counters(sched)->n_prefix_queries == 600,
          "counted");
    finish_pushes();
    stop();
}

static void test_what_is_cached_is_no_load(void) {
    start();
    is_alike = true;
    submit(1, 300, 300, 1);
    run_step(50);
    run_step(50);
    cancel(1);
    is_alike = false;
    submit(2, 600, 600, 1);
    is_alike = true;
    submit(3, 300, 300, 1);
    wire_load load;
    sched->load(sched, &load);
    CHECK(load.waiting == 0 && load.waiting_tokens == 600 + 44,
          "%u waiting, %u tokens: its rest is short, and shares the step", load.waiting, load.waiting_tokens);
    is_alike = false;
    submit(4, 200, 200, 1);
    sched->load(sched, &load);
    CHECK(load.waiting == 1 && load.waiting_tokens == 600 + 44 + 200,
          "%u waiting, %u tokens: there are no blocks for it", load.waiting, load.waiting_tokens);
    cancel(4);
    cancel(3);
    sched->load(sched, &load);
    CHECK(load.waiting_tokens == 600, "%u", load.waiting_tokens);
    stop();
}

static void test_the_last_position_is_always_computed_and_output_is_not_kept(void) {
    start();
    is_alike = true;
    submit(1, 128, 160, 1);
    run_step(50);
    run_step(50);
    cancel(1);
    CHECK(kv_pool_n_cached(pool) == 2, "the replayed output is in another form");
    submit(2, 128, 128, 1);
    CHECK(begin() && step.sequences[0].position == 64 && step.n_rows == 64, "its logits are needed");
    submit(3, 128, 128, 1);
    for (uint32_t layer = 0; layer < LAYERS; layer++) layer_done(layer);
    end(50);
    CHECK(kv_pool_n_holders(pool, step.sequences[0].blocks[0]) == 2, "both hold the first block");
    run_step(50);
    stop();
}

static void test_a_replayed_request_keeps_its_forms(void) {
    start();
    submit(1, 70, 90, 1);
    CHECK(begin() && step.n_rows == 70 && step.sequences[0].form == KRN_EXPANDED, "the prompt by itself");
    CHECK(step.n_samples == 0, "no logits yet");
    for (uint32_t layer = 0; layer < LAYERS; layer++) layer_done(layer);
    end(0);
    CHECK(begin() && step.n_rows == 20 && step.sequences[0].form == KRN_ABSORBED, "then the generated ones");
    CHECK(step.n_samples == 1 && step.samples[0].draw.n_tokens == 90, "and the next token");
    for (uint32_t layer = 0; layer < LAYERS; layer++) layer_done(layer);
    end(50);
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FIRST_TOKEN)->message.first_token.index == 20, "its index counts the replayed");
    stop();
}

static void test_a_scored_prompt_has_logits_at_every_row(void) {
    start();
    uint32_t n_logits = 8, position = 0;
    sampling = (wire_sampling){.top_p = 1, .n_prompt_logprobs = 3};
    submit(1, 20, 20, 1);
    sampling = (wire_sampling){.top_p = 1};
    while (position < 20) {
        uint32_t n = 20 - position < n_logits ? 20 - position : n_logits;
        CHECK(begin() && step.sequences[0].n_rows == n && step.sequences[0].n_logits == n, "as many as logits fit");
        CHECK(step.n_samples == n, "one for each row");
        for (uint32_t i = 0; i < n; i++) {
            bool is_last = position + i == 19;
            CHECK(step.samples[i].is_given == !is_last, "row %u", position + i);
            CHECK(is_last || step.samples[i].given == 10 + position + i + 1, "the token behind it is scored");
        }
        n_done = 0;
        for (uint32_t layer = 0; layer < LAYERS; layer++) layer_done(layer);
        end(50);
        const wire_message *said = &find(WRK_SEND_GATEWAY, WIRE_PROMPT_LOGPROBS)->message;
        CHECK(said->prompt_logprobs.position == position + 1, "of the tokens behind the rows");
        CHECK(said->prompt_logprobs.n_logprobs == n - (position + n == 20), "the last row has the first token");
        position += n;
    }
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FIRST_TOKEN)->message.first_token.token == 50, "which comes as always");
    stop();
}

static void test_layers_are_pushed_as_they_are_done_and_parts_of_blocks_last(void) {
    start();
    submit(1, 300, 300, 1);
    CHECK(find(WRK_CONNECT, 0) != NULL, "a decode worker is looked for at once");
    decode_up(DECODE);
    CHECK(find(WRK_SEND_PEER, WIRE_RESERVE)->message.reserve.n_tokens == 300, "and asked");
    CHECK(begin() && step.n_rows == 256, "the first part");
    layer_done(0);
    CHECK(count_pushes(0) == 0, "no lease, no push");
    say_reserved(DECODE, 1, 5);
    CHECK(count_pushes(0) == 4 && count_pushes(1) == 0, "layer 0 was done, in the middle of the step");
    layer_done(1);
    CHECK(count_pushes(1) == 4, "layer 1 at once");
    end(0);
    clear();
    run_step(50);
    CHECK(count_pushes(0) == 1 && count_pushes(1) == 1, "the last block is not full, but last");
    CHECK(find(WRK_PUSH, 0)->push.n_rows_last == 300 - 256 && find(WRK_PUSH, 0)->push.first_block == 4, "44 rows");
    const wire_commit *commit = &find(WRK_SEND_PEER, WIRE_COMMIT)->message.commit;
    CHECK(commit->lease == 5 && commit->n_pushes == 10 && commit->n_tokens == 301 && commit->tokens[300] == 50,
          "COMMIT follows the pushes");
    CHECK(done[0].push.layer == 0 && find(WRK_SEND_GATEWAY, WIRE_FIRST_TOKEN) < find(WRK_SEND_PEER, WIRE_COMMIT),
          "the first token does not wait for it");
    say(DECODE, (wire_message){.type = WIRE_COMMITTED, .committed = {request(1), 5}});
    CHECK(find(WRK_SEND_GATEWAY, WIRE_HANDED_OFF) != NULL, "handed off");
    CHECK(kv_pool_n_free(pool) == BLOCKS - 5, "the pushes still read the blocks");
    pre_counters counters = *pre_sched_counters(sched);
    for (int i = 0; i < 2; i++) { /* those of the first part, which clear() has forgotten */
        sched->push_done(sched, find(WRK_PUSH, 0)->push_id, 1, now_ns);
        walk();
    }
    finish_pushes();
    CHECK(kv_pool_n_free(pool) == BLOCKS && counters.n_handed_off == 1, "then they are free");
    stop();
}

static void test_a_refused_request_tries_the_next_then_waits_then_gives_up(void) {
    start();
    submit(1, 10, 10, 2);
    decode_up(DECODE);
    say_refused(DECODE, 1, BT_NO_CAPACITY);
    CHECK(find(WRK_CONNECT, 0)->peer == DECODE + 1, "the next candidate");
    decode_up(DECODE + 1);
    say_refused(DECODE + 1, 1, BT_NO_CAPACITY);
    int64_t begin_ns = now_ns;
    for (int i = 0; i < 100000 && find(WRK_SEND_GATEWAY, WIRE_FAILED) == NULL; i++) {
        clear();
        now_ns = wrk_sched_deadline_ns(sched);
        wrk_sched_tick(sched, now_ns);
        walk();
        const wrk_action *asked = find(WRK_SEND_PEER, WIRE_RESERVE);
        if (asked != NULL) say_refused(asked->peer, 1, BT_NO_CAPACITY);
        asked = find(WRK_SEND_PEER, WIRE_RESERVE);
        if (asked != NULL && asked->peer == DECODE + 1) say_refused(asked->peer, 1, BT_NO_CAPACITY);
    }
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FAILED)->message.failed.status == BT_NO_CAPACITY, "given up");
    CHECK(now_ns - begin_ns >= 30000ll * MS && now_ns - begin_ns < 31000ll * MS, "after thirty seconds");
    stop();
}

static void test_candidates_that_cannot_ever_are_told_apart(void) {
    start();
    submit(1, 10, 10, 2);
    decode_up(DECODE);
    say_refused(DECODE, 1, BT_BAD_REQUEST);
    decode_up(DECODE + 1);
    say_refused(DECODE + 1, 1, BT_BAD_REQUEST);
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FAILED)->message.failed.status == BT_BAD_REQUEST, "it fits nowhere");
    submit(2, 10, 10, 2);
    say_refused(DECODE, 2, BT_AGAIN);
    clear();
    sched->peer_gone(sched, DECODE + 1, now_ns);
    walk();
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FAILED)->message.failed.status == BT_PEER_LOST, "one drains, one is gone");
    stop();
}

static void test_a_failed_commit_is_tried_once_more(void) {
    start();
    submit(1, 10, 10, 1);
    decode_up(DECODE);
    say_reserved(DECODE, 1, 5);
    run_step(50);
    wire_message failed = {.type = WIRE_COMMIT_FAILED,
                           .commit_failed = {request(1), 5, BT_INTERNAL, wire_str_from("checksum")}};
    say(DECODE, failed);
    CHECK(find(WRK_SEND_PEER, WIRE_RESERVE) > find(WRK_SEND_PEER, WIRE_COMMIT), "a new lease");
    finish_pushes();
    clear();
    say_reserved(DECODE, 1, 6);
    CHECK(count_pushes(0) == 1 && count_pushes(1) == 1, "everything is pushed again");
    CHECK(find(WRK_SEND_PEER, WIRE_COMMIT)->message.commit.lease == 6, "and committed");
    failed.commit_failed.lease = 6;
    say(DECODE, failed);
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FAILED)->message.failed.status == BT_INTERNAL, "twice is enough");
    CHECK(pre_sched_counters(sched)->n_commit_failed == 2, "both are counted");
    finish_pushes();
    stop();
}

static void test_a_baton_in_the_air_is_never_given_to_a_second(void) {
    for (int is_lost = 0; is_lost < 2; is_lost++) {
        start();
        submit(1, 10, 10, 2);
        decode_up(DECODE);
        say_reserved(DECODE, 1, 5);
        run_step(50);
        finish_pushes();
        clear();
        if (is_lost) {
            sched->peer_gone(sched, DECODE, now_ns);
        } else {
            now_ns += 10000ll * MS;
            wrk_sched_tick(sched, now_ns);
        }
        walk();
        CHECK(find(WRK_SEND_GATEWAY, WIRE_FAILED) != NULL && find(WRK_SEND_PEER, WIRE_RESERVE) == NULL &&
                  find(WRK_CONNECT, 0) == NULL,
              "the gateway starts anew, prefill does not");
        CHECK(is_lost || find(WRK_SEND_PEER, WIRE_ABORT)->message.abort.lease == 5, "decode is told");
        const pre_counters *counters = pre_sched_counters(sched);
        CHECK(counters->n_decode_lost == (is_lost ? 1 : 0) && counters->n_timeouts == (is_lost ? 0 : 1), "counted");
        stop();
    }
}

static void test_an_answer_to_an_old_question_is_not_taken_for_a_new_one(void) {
    start();
    submit(1, 10, 10, 1);
    decode_up(DECODE);
    clear();
    now_ns += 3000ll * MS; /* no answer */
    wrk_sched_tick(sched, now_ns);
    walk();
    CHECK(find(WRK_SEND_PEER, WIRE_ABORT)->message.abort.lease == 0, "the lease that may come is given back");
    now_ns += 25ll * MS;
    wrk_sched_tick(sched, now_ns);
    walk();
    CHECK(find(WRK_SEND_PEER, WIRE_RESERVE) != NULL, "asked again");
    run_step(50);
    clear();
    say_reserved(DECODE, 1, 5); /* of the first question: aborted by now */
    CHECK(count_pushes(0) == 0, "ignored");
    say_reserved(DECODE, 1, 6);
    CHECK(count_pushes(0) == 1 && find(WRK_PUSH, 0)->push.lease == 6, "this one counts");
    finish_pushes();
    stop();
}

static void test_a_cancel_keeps_what_a_step_or_a_push_reads(void) {
    start();
    submit(1, 300, 300, 1);
    decode_up(DECODE);
    say_reserved(DECODE, 1, 5);
    CHECK(begin(), "a step");
    layer_done(0);
    wire_message cancel = {.type = WIRE_CANCEL, .cancel = {request(1)}};
    sched->gateway_message(sched, GATEWAY, &cancel, now_ns);
    walk();
    CHECK(find(WRK_SEND_PEER, WIRE_ABORT)->message.abort.lease == 5, "decode is told");
    CHECK(kv_pool_n_free(pool) == BLOCKS - 5, "the step runs");
    layer_done(1);
    CHECK(count_pushes(1) == 0, "nothing more is pushed");
    end(0);
    CHECK(kv_pool_n_free(pool) == BLOCKS - 5, "a push runs");
    finish_pushes();
    CHECK(kv_pool_n_free(pool) == BLOCKS, "nothing reads any more");
    CHECK(pre_sched_counters(sched)->n_canceled_computing == 1, "counted by phase");
    stop();
}

static void test_requests_that_end_together_do_not_wake_each_other(void) {
    start();
    submit(1, 64 * (BLOCKS - 1), 64 * (BLOCKS - 1), 1); /* all blocks but one */
    submit(2, 64 * 3, 64 * 3, 1);
    decode_up(DECODE);
    clear();
    sched->gateway_gone(sched, GATEWAY, now_ns);
    walk();
    for (uint32_t i = 0; i < n_done; i++)
        CHECK(done[i].kind != WRK_SEND_PEER || done[i].message.type != WIRE_RESERVE, "room for one that is gone");
    stop();
}

static void test_a_lost_group_gives_everything_back_and_keeps_no_half_computed_block(void) {
    start();
    is_alike = true;
    submit(1, 300, 300, 1);
    decode_up(DECODE);
    say_reserved(DECODE, 1, 5);
    CHECK(begin(), "a step");
    layer_done(0);
    finish_pushes();
    clear();
    wrk_sched_lose_group(sched, now_ns);
    walk();
    CHECK(done[0].kind == WRK_BROADCAST && done[0].message.status.load.is_incomplete, "gateways know it first");
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FAILED)->message.failed.status == BT_PEER_LOST, "then their requests fail");
    CHECK(find(WRK_SEND_PEER, WIRE_ABORT)->message.abort.lease == 5, "decode is told");
    submit(2, 10, 10, 1);
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FAILED)->message.failed.status == BT_NO_CAPACITY, "incomplete");
    wrk_sched_set_complete(sched, true, now_ns);
    walk();
    submit(3, 300, 300, 1);
    CHECK(begin() && step.sequences[0].position == 0, "the first layer of a block is no block");
    for (uint32_t layer = 0; layer < LAYERS; layer++) layer_done(layer);
    end(50);
    is_alike = false;
    stop();
}

static void test_a_token_that_ends_the_request_is_not_handed_on(void) {
    start();
    submit(1, 10, 10, 1);
    decode_up(DECODE);
    say_reserved(DECODE, 1, 5);
    run_step(EOS);
    const wire_finished *finished = &find(WRK_SEND_GATEWAY, WIRE_FINISHED)->message.finished;
    CHECK(finished->reason == WIRE_FINISH_EOS && finished->n_output == 1, "finished here");
    CHECK(find(WRK_SEND_PEER, WIRE_COMMIT) == NULL && find(WRK_SEND_PEER, WIRE_ABORT) != NULL, "no hand-off");
    finish_pushes();
    stop();
}

static void test_min_tokens_bans_what_would_end_it(void) {
    for (uint32_t min_tokens = 0; min_tokens < 2; min_tokens++) {
        start();
        sampling.min_tokens = min_tokens;
        submit(1, 10, 10, 1);
        sampling.min_tokens = 0;
        CHECK(begin() && step.samples[0].draw.n_banned == min_tokens, "the first token may not end it");
        CHECK(min_tokens == 0 || step.samples[0].draw.banned[0] == EOS, "in any way");
        for (uint32_t layer = 0; layer < LAYERS; layer++) layer_done(layer);
        end(50);
        stop();
    }
}

static void test_bad_submits_are_refused_in_a_sentence(void) {
    start();
    submit(1, 0, 10, 1);
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FAILED)->message.failed.status == BT_BAD_REQUEST, "no prompt");
    submit(2, 11, 10, 1);
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FAILED)->message.failed.request.serial == 2, "more prompt than tokens");
    submit(3, 10, 10, 0);
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FAILED)->message.failed.request.serial == 3, "no decode worker");
    submit(4, 10, 60, 1);
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FAILED)->message.failed.request.serial == 4, "has all its tokens");
    clear();
    for (uint64_t i = 5; i < 10; i++) submit(i, 10, 10, 1);
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FAILED)->message.failed.status == BT_NO_CAPACITY, "the fifth of four");
    clear();
    wrk_sched_drain(sched, 0, now_ns);
    walk();
    submit(10, 10, 10, 1);
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FAILED)->message.failed.status == BT_AGAIN, "draining");
    sched->gateway_gone(sched, GATEWAY, now_ns);
    walk();
    CHECK(done[n_done - 1].kind == WRK_DRAINED, "and then it may exit");
    stop();
}

int main(void) {
    test_short_prompts_share_a_step_and_long_ones_are_split();
    test_a_short_prompt_does_not_wait_for_a_long_one();
    test_a_long_prompt_is_not_starved_by_short_ones();
    test_a_lower_priority_goes_first_but_among_the_shortest();
    test_a_known_beginning_is_not_computed_but_pushed_at_once();
    test_what_is_cached_is_no_load();
    test_the_last_position_is_always_computed_and_output_is_not_kept();
    test_a_replayed_request_keeps_its_forms();
    test_a_scored_prompt_has_logits_at_every_row();
    test_layers_are_pushed_as_they_are_done_and_parts_of_blocks_last();
    test_a_refused_request_tries_the_next_then_waits_then_gives_up();
    test_candidates_that_cannot_ever_are_told_apart();
    test_a_failed_commit_is_tried_once_more();
    test_a_baton_in_the_air_is_never_given_to_a_second();
    test_an_answer_to_an_old_question_is_not_taken_for_a_new_one();
    test_a_cancel_keeps_what_a_step_or_a_push_reads();
    test_requests_that_end_together_do_not_wake_each_other();
    test_a_lost_group_gives_everything_back_and_keeps_no_half_computed_block();
    test_a_token_that_ends_the_request_is_not_handed_on();
    test_min_tokens_bans_what_would_end_it();
    test_bad_submits_are_refused_in_a_sentence();
    TEST_END();
}
