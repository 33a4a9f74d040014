/* One rule at a time: room, leases, settling, quarantine, the hand-off. Whole histories: tests/sim. */
#include "decode/dec_test.h"

static void test_room_is_promised_once(void) {
    start(4);
    reserve(1, 64 * 6);
    lease_of(1);
    CHECK(find(WRK_LEASE_OPEN, 0) < find(WRK_SEND_PEER, WIRE_RESERVED), "it may land before prefill knows");
    CHECK(find(WRK_LEASE_OPEN, 0)->lease_open.n_blocks == 6 && kv_pool_n_free(pool) == BLOCKS - 7, "and one to grow");
    reserve(2, 64 * 4);
    CHECK(find(WRK_SEND_PEER, WIRE_REFUSED)->message.refused.status == BT_NO_CAPACITY, "the watermark stays free");
    reserve(3, 64 * 12);
    CHECK(find(WRK_SEND_PEER, WIRE_REFUSED)->message.refused.status == BT_BAD_REQUEST, "never");
    reserve(4, 64 * 2);
    CHECK(lease_of(4) != 0, "a smaller one fits");
    wrk_sched_drain(sched, 0, now_ns);
    walk();
    reserve(5, 1);
    CHECK(find(WRK_SEND_PEER, WIRE_REFUSED)->message.refused.status == BT_AGAIN, "draining");
    clear();
    sched->peer_gone(sched, PREFILL, now_ns);
    walk();
    closed(1, 0, 0);
    closed(2, 0, 0);
    CHECK(done[n_done - 1].kind == WRK_DRAINED, "drained");
    stop();
}

static void test_a_dropped_lease_is_in_quarantine_until_it_is_closed(void) {
    for (uint32_t how = 0; how < 5; how++) {
        start(4);
        reserve(1, 100);
        uint64_t lease = lease_of(1);
        clear();
        if (how == 0) say((wire_message){.type = WIRE_ABORT, .abort = {request(1), lease}});
        if (how == 1) say((wire_message){.type = WIRE_ABORT, .abort = {request(1), 0}});
        if (how == 2) tick_after_ms(5000);
        if (how == 3) sched->peer_gone(sched, PREFILL, now_ns);
        if (how == 4) cancel(1);
        walk();
        CHECK(find(WRK_LEASE_CLOSE, 0)->lease_close.n_pushes == 0, "how %u: no further push begins", how);
        CHECK(kv_pool_n_free(pool) == BLOCKS - 2, "how %u: one may be landing", how);
        CHECK(dec_sched_counters(sched)->n_prefill_lost == (how == 3), "how %u: a cut transfer is counted", how);
        commit(1, lease, 100, 10);
        CHECK(find(WRK_SEND_PEER, WIRE_COMMIT_FAILED) != NULL, "how %u: too late", how);
        reserve(1, 100);
        CHECK(lease_of(1) == lease + 1, "how %u: a new lease is another one", how);
        closed(lease, 1, 1);
        CHECK(kv_pool_n_free(pool) == BLOCKS - 2, "how %u: the old blocks are free", how);
        cancel(1);
        closed(lease + 1, 0, 0);
        stop();
    }
}

static void test_a_lease_lives_as_long_as_it_is_renewed(void) {
    start(4);
    reserve(1, 100);
    uint64_t lease = lease_of(1);
    for (int i = 0; i < 5; i++) {
        tick_after_ms(4000);
        say((wire_message){.type = WIRE_RENEW, .renew = {&lease, 1}});
    }
    CHECK(dec_sched_n_leases(sched) == 1, "renewed");
    tick_after_ms(5000);
    CHECK(dec_sched_n_leases(sched) == 0 && dec_sched_counters(sched)->n_lease_expired == 1, "silent");
    closed(lease, 0, 0);
    stop();
}

static void test_what_has_not_landed_right_is_not_taken(void) {
    for (uint32_t how = 0; how < 4; how++) {
        start(4);
        reserve(1, 100);
        uint64_t lease = lease_of(1);
        commit(1, lease, how == 3 ? 99 : 100, 10);
        if (how == 0) closed(lease, 4, 78); /* checksum */
        if (how == 1) closed(lease, 3, 77); /* count */
        if (how == 2) {                     /* a push is missing for ever */
            clear();
            tick_after_ms(5000);
            CHECK(find(WRK_LEASE_CLOSE, 0)->lease_close.n_pushes == 0, "stop waiting");
            closed(lease, 3, 70);
        }
        if (how == 3) closed(lease, 0, 0); /* another number of tokens than leased: refused at once */
        static const char *const whys[] = {"The checksum of what has landed is wrong.", "3 of 4 pushes have landed.",
                                           "3 of 4 pushes have landed.",
                                           "COMMIT has another number of tokens than RESERVE"};
        const wrk_action *failed = find(WRK_SEND_PEER, WIRE_COMMIT_FAILED);
        CHECK(failed != NULL && strncmp(failed->message.commit_failed.text.bytes, whys[how], strlen(whys[how])) == 0,
              "how %u: says why", how);
        CHECK(dec_sched_counters(sched)->n_commit_failed == 1, "how %u: counted", how);
        CHECK(!begin(), "how %u", how);
        CHECK(kv_pool_n_free(pool) == BLOCKS, "how %u: and nothing is kept", how);
        stop();
    }
}

static void test_an_abort_behind_the_hand_off_gives_the_request_back(void) {
    start(4);
    admit(1, 10, 100);
    say((wire_message){.type = WIRE_ABORT, .abort = {request(1), 1}});
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FAILED)->message.failed.status == BT_PEER_LOST, "the gateway hears of it");
    CHECK(!begin() && kv_pool_n_free(pool) == BLOCKS, "gone");
    stop();
}

static void test_blocks_are_known_once_their_checksum_was_right(void) {
    start(4);
    reserve_named(1, 150, 2);
    uint64_t lease = lease_of(1);
    commit(1, lease, 150, 50);
    closed(lease, LAYERS * 3, 78);
    CHECK(find(WRK_SEND_PEER, WIRE_COMMIT_FAILED) != NULL && kv_pool_n_cached(pool) == 0, "a wrong one keeps nothing");
    reserve_named(1, 150, 2);
    lease = lease_of(1);
    CHECK(find(WRK_SEND_PEER, WIRE_RESERVED)->message.reserved.held_tokens == 0, "nothing is known yet");
    commit(1, lease, 150, 50);
    closed(lease, LAYERS * 3, 77);
    CHECK(find(WRK_SEND_PEER, WIRE_COMMITTED) != NULL, "taken");
    reserve_named(2, 250, 3);
    lease = lease_of(2);
    CHECK(find(WRK_SEND_PEER, WIRE_RESERVED)->message.reserved.held_tokens == 128, "two blocks, while 1 decodes");
    const kvt_lease_args *open = &find(WRK_LEASE_OPEN, 0)->lease_open;
    CHECK(open->first_block == 2 && open->n_blocks == 4, "pushes begin behind them");
    CHECK(kv_pool_n_holders(pool, open->blocks[0]) == 2, "held for both");
    cancel(1);
    n_held = 2;
    commit(2, lease, 250, 50);
    closed(lease, LAYERS * 2, 77);
    CHECK(find(WRK_SEND_PEER, WIRE_COMMITTED) != NULL, "with what was pushed, and what was held");
    n_held = 0;
    cancel(2);
    CHECK(kv_pool_n_free(pool) == BLOCKS && kv_pool_n_cached(pool) == 3, "three blocks of the longer prompt stay");
    CHECK(dec_sched_counters(sched)->n_prefix_hits == 128, "counted");
    stop();
}

static void test_a_prompt_that_is_held_whole_needs_no_push(void) {
    start(4);
    for (uint64_t serial = 1; serial <= 2; serial++) {
        reserve_named(serial, 128, 2);
        uint64_t lease = lease_of(serial);
        commit(serial, lease, 128, 50);
        CHECK(find(WRK_LEASE_CLOSE, 0)->lease_close.n_pushes == LAYERS * (2 - n_held), "what is awaited");
        closed(lease, LAYERS * (2 - n_held), 77);
        CHECK(find(WRK_SEND_PEER, WIRE_COMMITTED) != NULL, "taken");
        CHECK(begin() && step.n_sequences == serial && step.sequences[serial - 1].position == 128, "decodes");
        end(50);
        n_held = 2;
    }
    n_held = 0;
    CHECK(step.sequences[0].blocks[1] == step.sequences[1].blocks[1], "from the same blocks");
    CHECK(step.sequences[0].blocks[2] != step.sequences[1].blocks[2], "but each writes to its own");
    stop();
}

static void test_names_that_do_not_fit_are_refused(void) {
    start(4);
    reserve_named(1, 127, 2);
    CHECK(find(WRK_SEND_PEER, WIRE_REFUSED)->message.refused.status == BT_BAD_REQUEST, "more names than full blocks");
    reserve_named(1, 192, 3);
    uint64_t lease = lease_of(1);
    clear();
    static const uint32_t tokens[193] = {0};
    say((wire_message){.type = WIRE_COMMIT,
                       .commit = {.request = request(1),
                                  .lease = lease,
                                  .n_pushes = LAYERS * 3,
                                  .sampling = {.top_p = 1},
                                  .max_tokens = 100,
                                  .n_prompt = 191,
                                  .tokens = tokens,
                                  .n_tokens = 193}});
    CHECK(find(WRK_SEND_PEER, WIRE_COMMIT_FAILED)->message.commit_failed.status == BT_BAD_REQUEST,
          "a block with output was named");
    closed(lease, 0, 0);
    stop();
}

int main(void) {
    test_room_is_promised_once();
    test_a_dropped_lease_is_in_quarantine_until_it_is_closed();
    test_a_lease_lives_as_long_as_it_is_renewed();
    test_what_has_not_landed_right_is_not_taken();
    test_an_abort_behind_the_hand_off_gives_the_request_back();
    test_blocks_are_known_once_their_checksum_was_right();
    test_a_prompt_that_is_held_whole_needs_no_push();
    test_names_that_do_not_fit_are_refused();
    TEST_END();
}
