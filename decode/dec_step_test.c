/* One rule at a time: the batch, preemption, cancels, and the ends. Whole histories: tests/sim. */
#include "decode/dec_test.h"

static void test_a_sequence_decodes_to_its_end(void) {
    static const struct {
        uint32_t tokens[3], n_tokens;
        wire_finish reason;
        uint32_t stop_token;
    } rows[] = {{{50, EOS}, 2, WIRE_FINISH_EOS, 0},
                {{50, STOP}, 2, WIRE_FINISH_STOP_TOKEN, STOP},
                {{50, 51, 52}, 3, WIRE_FINISH_LENGTH, 0}};
    for (uint32_t row = 0; row < 3; row++) {
        start(4);
        admit(1, 63, 4); /* its first row is the block's last: the second needs a block */
        for (uint32_t i = 0; i < rows[row].n_tokens; i++) {
            CHECK(begin() && step.n_sequences == 1, "a step");
            CHECK(step.sequences[0].position == 63 + i && step.sequences[0].n_rows == 1, "one row");
            CHECK(step.sequences[0].form == KRN_ABSORBED && step.samples[0].draw.n_tokens == 64 + i, "generated");
            end(rows[row].tokens[i]);
            CHECK(n_said == i + 1 && said[i].index == i + 1 && said[i].token == rows[row].tokens[i], "TOKENS");
        }
        const wire_finished *finished = &find(WRK_SEND_GATEWAY, WIRE_FINISHED)->message.finished;
        CHECK(finished->reason == rows[row].reason && finished->stop_token == rows[row].stop_token, "row %u", row);
        CHECK(finished->n_output == rows[row].n_tokens + 1, "prefill's token counts");
        CHECK(!begin() && kv_pool_n_free(pool) == BLOCKS, "nothing is left");
        stop();
    }
}

static void test_the_newest_gives_way_and_is_computed_again(void) {
    start(4);
    admit(1, 64 * 3 - 1, 1000); /* 3 blocks each, the fourth with the second row */
    admit(2, 64 * 3 - 1, 1000);
    admit(3, 64 * 3 - 1, 1000);
    admit(4, 10, 1000);
    CHECK(begin() && step.n_sequences == 4 && step.n_rows == 4 && kv_pool_n_free(pool) == 2, "all four");
    end(50);
    clear();
    CHECK(begin() && step.n_sequences == 3, "a block each for the older ones: the newest gives its only one");
    CHECK(n_done == 0 && dec_sched_counters(sched)->n_preempted == 1, "and nobody is told");
    reserve(5, 10);
    CHECK(find(WRK_SEND_PEER, WIRE_REFUSED)->message.refused.status == BT_NO_CAPACITY, "it comes first");
    end(51);
    CHECK(begin() && step.n_sequences == 3, "the pool is full");
    end(51);
    cancel(2);
    clear();
    CHECK(begin() && step.n_sequences == 3 && step.n_rows == 2 + 10, "there is room: its prompt");
    const krn_sequence *rows = &step.sequences[2];
    CHECK(rows->position == 0 && rows->n_rows == 10 && rows->form == KRN_EXPANDED && rows->n_logits == 0, "expanded");
    CHECK(step.n_samples == 2, "it has its next token already");
    end(52);
    CHECK(n_said == 2, "the others go on");
    clear();
    CHECK(begin(), "then what it had generated");
    rows = &step.sequences[2];
    CHECK(rows->position == 10 && rows->n_rows == 2 && rows->form == KRN_ABSORBED && rows->n_logits == 1, "absorbed");
    CHECK(rows->token_ids[1] == 50 && step.samples[2].draw.n_tokens == 12, "to its last token");
    end(53);
    CHECK(n_said == 3 && said[2].request.serial == 4 && said[2].index == 2 && said[2].token == 53, "the third one");
    CHECK(dec_sched_counters(sched)->n_recomputed == 11, "of which 11 positions a second time");
    stop();
}

static void test_chunks_leave_every_sequence_its_row(void) {
    start(3); /* 63 rows in a step, so 60 are to spare */
    admit(1, 64 * 4 - 2, 1000);
    admit(2, 64 * 4 - 2, 1000);
    admit(3, 100, 1000);
    run_to_preemption();
    end(50);
    cancel(1);
    static const uint32_t n_rows[] = {61, 39, 0};
    for (uint32_t i = 0; n_rows[i] > 0; i++) {
        clear();
        CHECK(begin() && step.n_sequences == 2 && step.sequences[0].n_rows == 1, "the older one has its row");
        CHECK(step.sequences[1].n_rows == n_rows[i] && step.sequences[1].form == KRN_EXPANDED, "chunk %u: %u", i,
              step.sequences[1].n_rows);
        end(50);
        CHECK(n_said == 1 && said[0].request.serial == 2, "and its token");
    }
    stop();
}

static void test_what_gave_way_begins_behind_what_the_cache_still_has(void) {
    start(3);
    admit(1, 64 * 5 - 1, 1000);
    admit(2, 64 * 2 - 1, 1000);
    reserve_named(3, 64 * 3 - 1, 2);
    commit(3, lease_of(3), 64 * 3 - 1, 1000);
    closed(3, LAYERS * 3, 77);
    run_to_preemption();
    CHECK(kv_pool_n_cached(pool) > 0, "blocks of its prompt are free, and known");
    end(50);
    cancel(2);
    clear();
    CHECK(begin() && step.n_sequences == 2, "again");
    CHECK(step.sequences[1].position == 128 && step.sequences[1].n_rows == 61, "behind the blocks that nobody took: %u",
          step.sequences[1].position);
    end(50);
    stop();
}

static void test_who_gave_way_may_be_canceled_or_lost(void) {
    for (uint32_t how = 0; how < 3; how++) {
        start(2);
        admit(1, 64 * 5 - 1, 1000);
        admit(2, 64 * 5 - 1, 1000);
        run_to_preemption();
        if (how == 0) cancel(2);
        if (how == 1) say((wire_message){.type = WIRE_ABORT, .abort = {request(2), 0}});
        end(50);
        CHECK(dec_sched_counters(sched)->n_canceled_waiting == (how == 0), "how %u", how);
        stop(); /* how 2: with its gateway */
    }
}

static uint32_t n_accepted(uint64_t serial) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_done; i++)
        n += done[i].kind == WRK_SEND_GATEWAY && done[i].message.type == WIRE_ACCEPTED &&
             done[i].message.accepted.request.serial == serial;
    return n;
}

static void test_who_pauses_says_that_it_is_here(void) {
    start(2);
    admit(1, 64 * 5 - 1, 1000);
    admit(2, 64 * 5 - 1, 1000);
    run_to_preemption();
    end(50);
    clear();
    tick_after_ms(10000);
    CHECK(n_accepted(1) == 0 && n_accepted(2) == 0, "both had tokens lately");
    for (uint32_t i = 0; i < 2; i++) {
        CHECK(begin() && step.n_sequences == 1, "the first one alone");
        end(50);
        clear();
        tick_after_ms(10000);
        CHECK(n_accepted(1) == 0 && n_accepted(2) == 1, "the second one waits for room");
    }
    cancel(2);
    clear();
    tick_after_ms(10000);
    CHECK(n_accepted(1) == 1 && n_accepted(2) == 0, "now the steps stand still");
    stop();
}

static void test_the_oldest_never_gives_way(void) {
    start(2);
    admit(1, 64 * 8 - 1, 1000);
    reserve(2, 64 * 2);
    uint64_t lease = lease_of(2);
    CHECK(kv_pool_n_free(pool) == 1, "%u free", kv_pool_n_free(pool));
    for (int i = 0; i < 65; i++) {
        CHECK(begin(), "step %d", i);
        end(50);
        clear();
    }
    CHECK(!begin() && n_done == 0, "alone, it waits for the lease's blocks");
    cancel(2);
    closed(lease, 0, 0);
    CHECK(begin(), "and goes on");
    end(50);
    stop();
}

static void test_nobody_overtakes_who_gave_way(void) {
    start(3);
    admit(1, 64 * 4 - 1, 1000);
    admit(2, 64 * 6 - 1, 1000); /* needs more than the third, which comes back first if it may */
    admit(3, 10, 1000);
    run_to_preemption(); /* the third, for the second's block */
    end(50);
    run_to_preemption(); /* the second, for the first's */
    CHECK(step.n_sequences == 1 && kv_pool_n_free(pool) == 6, "there would be room for the third: %u blocks",
          kv_pool_n_free(pool));
    end(50);
    CHECK(begin() && step.n_sequences == 1, "but the second comes first");
    end(50);
    cancel(1);
    CHECK(begin() && step.n_sequences == 2 && step.n_rows == 62 && step.sequences[0].n_rows == 52, "and does");
    end(50);
    stop();
}

static void test_the_context_ends_a_request(void) {
    start(4);
    admit(1, 64 * BLOCKS - 3, 1000); /* the pool is the context: three more positions */
    for (int i = 0; i < 2; i++) {
        CHECK(begin(), "step %d", i);
        end(50);
    }
    const wrk_action *finished = find(WRK_SEND_GATEWAY, WIRE_FINISHED);
    CHECK(finished != NULL && finished->message.finished.reason == WIRE_FINISH_LENGTH, "full");
    CHECK(finished->message.finished.n_output == 3, "three tokens");
    stop();
}

static void test_a_cancel_in_a_step_keeps_its_blocks_until_the_step_is_done(void) {
    start(4);
    admit(1, 10, 100);
    admit(2, 10, 100);
    CHECK(begin() && step.n_sequences == 2, "two");
    cancel(1);
    CHECK(kv_pool_n_free(pool) == BLOCKS - 2, "the step runs");
    end(50);
    CHECK(kv_pool_n_free(pool) == BLOCKS - 1 && n_said == 1 && said[0].request.serial == 2, "it says nothing");
    CHECK(begin() && step.n_sequences == 1, "one is left");
    sched->gateway_gone(sched, GATEWAY, now_ns); /* in the step, too */
    walk();
    clear();
    end(50);
    CHECK(n_said == 0 && kv_pool_n_free(pool) == BLOCKS, "nobody is there to hear it");
    stop();
}

static void test_a_lost_group_gives_everything_back_and_takes_nothing_until_it_is_whole(void) {
    for (int has_step = 0; has_step < 2; has_step++) {
        start(4);
        admit(1, 10, 100);
        reserve(2, 10);
        uint64_t lease = lease_of(2);
        CHECK(!has_step || (begin() && step.n_sequences == 1), "a step");
        clear();
        wrk_sched_lose_group(sched, now_ns);
        walk();
        CHECK(done[0].kind == WRK_BROADCAST && done[0].message.status.load.is_incomplete, "gateways know it first");
        CHECK(find(WRK_SEND_GATEWAY, WIRE_FAILED)->message.failed.status == BT_PEER_LOST, "then their requests fail");
        CHECK(find(WRK_LEASE_CLOSE, 0) != NULL, "nobody counts on the lease");
        closed(lease, 0, 0);
        CHECK(kv_pool_n_free(pool) == BLOCKS && !begin(), "nothing is left, of the step neither");
        reserve(3, 10);
        CHECK(find(WRK_SEND_PEER, WIRE_REFUSED)->message.refused.status == BT_NO_CAPACITY, "incomplete");
        wrk_sched_set_complete(sched, true, now_ns);
        walk();
        clear();
        tick_after_ms(5);
        CHECK(done[0].kind == WRK_BROADCAST && !done[0].message.status.load.is_incomplete, "gateways hear of it");
        admit(4, 10, 100);
        CHECK(begin(), "and it goes on");
        end(50);
        stop();
    }
}

static void test_more_than_fit_wait_in_order(void) {
    start(2);
    admit(1, 10, 3);
    admit(2, 10, 100);
    reserve(3, 10);
    CHECK(find(WRK_SEND_PEER, WIRE_REFUSED)->message.refused.status == BT_NO_CAPACITY, "the batch is full");
    CHECK(begin() && step.n_sequences == 2, "two");
    end(50);
    CHECK(begin(), "-");
    end(50);
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FINISHED)->message.finished.request.serial == 1, "the first is done");
    admit(3, 10, 100);
    CHECK(begin() && step.n_sequences == 2, "the third has its place");
    end(50);
    stop();
}

static void test_min_tokens_bans_what_would_end_it(void) {
    start(4);
    reserve(1, 10);
    static const uint32_t tokens[11] = {5}, stops[] = {STOP};
    say((wire_message){.type = WIRE_COMMIT,
                       .commit = {.request = request(1),
                                  .lease = 1,
                                  .n_pushes = LAYERS,
                                  .checksum = 77,
                                  .sampling = {.top_p = 1, .min_tokens = 2},
                                  .max_tokens = 9,
                                  .n_prompt = 10,
                                  .tokens = tokens,
                                  .n_tokens = 11,
                                  .stop_token_ids = stops,
                                  .n_stop_token_ids = 1}});
    closed(1, LAYERS, 77);
    CHECK(begin() && step.samples[0].draw.n_banned == 2, "the second token may not end it");
    CHECK(step.samples[0].draw.banned[0] == EOS && step.samples[0].draw.banned[1] == STOP, "neither way");
    end(50);
    CHECK(begin() && step.samples[0].draw.n_banned == 0, "the third may");
    end(EOS);
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FINISHED)->message.finished.n_output == 3, "and does");
    stop();
}

int main(void) {
    test_a_sequence_decodes_to_its_end();
    test_the_newest_gives_way_and_is_computed_again();
    test_chunks_leave_every_sequence_its_row();
    test_what_gave_way_begins_behind_what_the_cache_still_has();
    test_who_gave_way_may_be_canceled_or_lost();
    test_who_pauses_says_that_it_is_here();
    test_the_oldest_never_gives_way();
    test_nobody_overtakes_who_gave_way();
    test_the_context_ends_a_request();
    test_a_cancel_in_a_step_keeps_its_blocks_until_the_step_is_done();
    test_a_lost_group_gives_everything_back_and_takes_nothing_until_it_is_whole();
    test_more_than_fit_wait_in_order();
    test_min_tokens_bans_what_would_end_it();
    TEST_END();
}
