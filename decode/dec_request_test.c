/* One rule at a time: prompts that decode computes itself. Whole histories: tests/sim. */
#include "decode/dec_test.h"

static void test_a_short_prompt_is_computed_here(void) {
    start(4);
    submit(1, 90, 90);
    CHECK(find(WRK_SEND_GATEWAY, WIRE_ACCEPTED) != NULL && sched->is_owner(sched, &(wire_request){GATEWAY, 1, 0}),
          "ours");
    CHECK(begin() && step.n_sequences == 1 && step.n_samples == 0, "a chunk");
    CHECK(step.sequences[0].n_rows == 61 && step.sequences[0].form == KRN_EXPANDED, "under the budget");
    end(0);
    CHECK(begin() && step.sequences[0].position == 61 && step.sequences[0].n_rows == 29 && step.n_samples == 1, "rest");
    now_ns += 3 * MS;
    clear();
    end(50);
    const wire_first_token *first = &find(WRK_SEND_GATEWAY, WIRE_FIRST_TOKEN)->message.first_token;
    CHECK(n_said == 0 && first->index == 0 && first->token == 50 && first->cached_tokens == 0, "FIRST_TOKEN");
    CHECK(first->compute_us == 3000, "%u", first->compute_us);
    CHECK(begin() && step.sequences[0].position == 90 && step.sequences[0].form == KRN_ABSORBED, "then it decodes");
    end(51);
    CHECK(n_said == 1 && said[0].index == 1, "in TOKENS");
    const dec_counters *counters = dec_sched_counters(sched);
    CHECK(counters->n_local == 1 && counters->n_local_tokens == 90 && counters->n_recomputed == 0, "counted");

    submit(2, 160, 160);
    CHECK(begin() && step.n_sequences == 2 && step.sequences[1].position == 64, "a known beginning is not computed");
    end(50);
    cancel(1);
    CHECK(begin() && step.n_sequences == 1 && step.sequences[0].position == 125, "behind it 96 positions");
    end(50);
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FIRST_TOKEN)->message.first_token.cached_tokens == 64, "told");
    submit(3, 128, 128);
    CHECK(begin() && step.sequences[1].position == 64, "the last position is computed, and so its block");
    end(50);
    stop();
}

static bool is_told_of_blocks(uint32_t n_come) {
    for (uint32_t i = 0; i < n_done; i++)
        if (done[i].kind == WRK_BROADCAST && done[i].message.type == WIRE_BLOCKS)
            return done[i].message.blocks.n_come == n_come;
    return false;
}

static void test_gateways_hear_of_blocks_that_were_computed_here(void) {
    for (int is_lost = 0; is_lost < 2; is_lost++) {
        start(4);
        submit(1, 90, 90);
        tick_after_ms(10);
        CHECK(begin(), "-");
        end(0);
        CHECK(begin(), "-");
        end(50);
        clear();
        if (is_lost) sched->gateway_gone(sched, GATEWAY, now_ns);
        walk();
        tick_after_ms(10);
        CHECK(is_told_of_blocks(1) == !is_lost, "while the prompt's owner decodes");
        clear();
        if (is_lost) sched->gateway_up(sched, GATEWAY, now_ns);
        walk();
        CHECK(!kv_prefix_has_changes(sched->prefix), "a gateway that comes has nothing to wait for");
        stop();
    }
}

static void test_a_prompt_that_began_elsewhere_keeps_its_forms(void) {
    start(4);
    submit(1, 20, 25);
    CHECK(begin() && step.sequences[0].n_rows == 20 && step.n_samples == 0, "the prompt");
    end(0);
    CHECK(begin() && step.sequences[0].n_rows == 5 && step.sequences[0].form == KRN_ABSORBED, "what was generated");
    end(50);
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FIRST_TOKEN)->message.first_token.index == 5, "the sixth token");
    stop();
}

static bt_status refusal(void) {
    const wrk_action *failed = find(WRK_SEND_GATEWAY, WIRE_FAILED);
    return failed == NULL ? BT_OK : (bt_status)failed->message.failed.status;
}

static void test_what_prefill_should_compute_is_refused(void) {
    start(2);
    submit(1, 101, 101);
    CHECK(refusal() == BT_NO_CAPACITY && kv_pool_n_free(pool) == BLOCKS, "too long");
    submit(2, 64 * BLOCKS, 64 * BLOCKS);
    CHECK(refusal() == BT_NO_CAPACITY, "longer than the context: another worker's may be larger");
    sampling.n_prompt_logprobs = 1;
    submit(3, 10, 10);
    CHECK(refusal() == BT_NO_CAPACITY, "scores of a prompt are prefill's");
    sampling = (wire_sampling){.top_p = 2};
    submit(4, 10, 10);
    CHECK(refusal() == BT_BAD_REQUEST, "nonsense");
    sampling = (wire_sampling){.top_p = 1};
    submit(5, 10, 60);
    CHECK(refusal() == BT_BAD_REQUEST, "it has all its tokens");
    submit(6, 0, 0);
    CHECK(refusal() == BT_BAD_REQUEST, "no prompt");
    submit(7, 10, 10);
    submit(8, 10, 10);
    submit(9, 10, 10);
    CHECK(refusal() == BT_NO_CAPACITY, "the batch is full");
    wire_load load;
    sched->load(sched, &load);
    CHECK(load.local_prefill_tokens == 0, "which gateways are told");
    submit(8, 10, 10);
    CHECK(n_done == 0 && dec_sched_counters(sched)->n_strange == 1, "known already");
    reserve(8, 10);
    CHECK(find(WRK_SEND_PEER, WIRE_REFUSED)->message.refused.status == BT_BAD_REQUEST, "likewise");
    say((wire_message){.type = WIRE_ABORT, .abort = {request(8), 0}});
    CHECK(sched->is_owner(sched, &(wire_request){GATEWAY, 8, 0}), "no prefill worker has a say in it");
    cancel(7);
    sched->load(sched, &load);
    CHECK(load.local_prefill_tokens == 100, "there is room again");
    wrk_sched_drain(sched, 0, now_ns);
    walk();
    submit(10, 10, 10);
    CHECK(refusal() == BT_AGAIN, "draining");
    stop();
}

static void test_a_prompt_that_gave_way_is_counted_once(void) {
    start(2);
    admit(1, 64 * 9 - 2, 1000);
    submit(2, 100, 100); /* two blocks; one is left */
    CHECK(begin() && step.n_rows == 1 + 61, "a chunk");
    end(50);
    CHECK(kv_pool_n_free(pool) == 1, "%u", kv_pool_n_free(pool));
    CHECK(begin() && step.n_rows == 1 + 39, "the rest");
    end(50);
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FIRST_TOKEN) != NULL, "the first token");
    run_to_preemption();
    end(50);
    cancel(1);
    CHECK(begin(), "again");
    end(50);
    const dec_counters *counters = dec_sched_counters(sched);
    CHECK(counters->n_local_tokens == 100 && counters->n_recomputed > 0, "%llu, and %llu again",
          (unsigned long long)counters->n_local_tokens, (unsigned long long)counters->n_recomputed);
    stop();
}

/* Runs a step: did it give the request its first token? */
static bool step_answers(uint64_t serial) {
    clear();
    CHECK(begin(), "a step");
    end(50);
    for (uint32_t i = 0; i < n_done; i++)
        if (done[i].kind == WRK_SEND_GATEWAY && done[i].message.type == WIRE_FIRST_TOKEN &&
            done[i].message.first_token.request.serial == serial)
            return true;
    return false;
}

static void test_a_short_prompt_does_not_wait_for_a_long_one(void) {
    n_spare = 120, local_prefill_tokens = 1000;
    start(4);
    submit(1, 500, 500);
    CHECK(!step_answers(1), "a chunk of it");
    submit(2, 50, 50);
    CHECK(step_answers(2), "the next step has it, whatever is left of the long one");
    stop();
    start(4);
    admit(1, 64 * 5 - 1, 1000);
    admit(2, 64 * 5 - 1, 1000);
    run_to_preemption();
    end(50);
    cancel(1);
    CHECK(begin() && step.n_sequences == 1 && step.n_rows == 121, "what gave way is computed again, in chunks");
    end(50);
    submit(3, 50, 50);
    CHECK(step_answers(3), "which nobody waits for either");
    stop();
    n_spare = 60, local_prefill_tokens = 100;
}

static void test_a_long_prompt_is_not_starved_by_short_ones(void) {
    n_spare = 120, local_prefill_tokens = 1000;
    start(4);
    submit(1, 500, 500);
    uint32_t n_steps = 0;
    for (bool is_answered = false; !is_answered && n_steps < 20; n_steps++) {
        uint64_t serial = 2 + n_steps;
        submit(serial, 61, 61); /* in every step as much as the short ones can get */
        is_answered = step_answers(1);
        cancel(serial);
    }
    CHECK(n_steps == 9, "500 positions at 61 a step: %u steps", n_steps);
    stop();
    n_spare = 60, local_prefill_tokens = 100;
}

int main(void) {
    test_a_short_prompt_is_computed_here();
    test_gateways_hear_of_blocks_that_were_computed_here();
    test_a_prompt_that_began_elsewhere_keeps_its_forms();
    test_what_prefill_should_compute_is_refused();
    test_a_prompt_that_gave_way_is_counted_once();
    test_a_short_prompt_does_not_wait_for_a_long_one();
    test_a_long_prompt_is_not_starved_by_short_ones();
    TEST_END();
}
