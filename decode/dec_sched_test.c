/* One rule at a time: leases, settling, quarantine, the batch, preemption and the ends. Whole histories: tests/sim. */
#include "decode/dec_sched.h"

#include <string.h>

#include "common/core/test.h"

enum { GATEWAY = 7, PREFILL = 100, EOS = 1, STOP = 9, LAYERS = 2, BLOCKS = 12, MS = 1000000 };

static kv_pool *pool;
static wrk_sched *sched;
static wrk_step step;
static int64_t now_ns;
static wrk_action done[64]; /* since the last clear() */
static uint32_t n_done;
static wire_token said[64]; /* in TOKENS since the last clear() */
static uint32_t n_said;
static wire_sampling sampling = {.top_p = 1};
static uint32_t n_held; /* blocks that commit() does not count as pushed */

static void walk(void) {
    while (wrk_sched_next(sched, &done[n_done])) {
        const wrk_action *action = &done[n_done];
        if (action->kind == WRK_SEND_GATEWAY && action->message.type == WIRE_TOKENS)
            for (uint32_t i = 0; i < action->message.tokens.n_tokens; i++)
                said[n_said++] = action->message.tokens.tokens[i];
        BT_ASSERT(++n_done < 64);
    }
    sched->check(sched);
}

static void clear(void) { n_done = n_said = 0; }

static void start(uint32_t max_num_seqs) {
    static const uint32_t eos[] = {EOS};
    pool = kv_pool_open(BLOCKS);
    const wrk_sched_options shared = {.pool = pool,
                                      .vocab_size = 1000,
                                      .max_model_len = 10000,
                                      .n_layers = LAYERS,
                                      .eos_ids = eos,
                                      .n_eos_ids = 1,
                                      .has_prefix_cache = true};
    const dec_sched_options options = {.max_num_seqs = max_num_seqs,
                                       .max_batched_tokens = max_num_seqs + 60,
                                       .max_leases = 4,
                                       .watermark_blocks = 1,
                                       .local_prefill_tokens = 100};
    CHECK(dec_sched_open(&shared, &options, &sched, NULL) == BT_OK, "open");
    sched->gateway_up(sched, GATEWAY, now_ns);
    walk();
    clear();
}

static wire_request request(uint64_t serial) { return (wire_request){GATEWAY, serial, 0}; }

static const wrk_action *find(wrk_action_kind kind, wire_type type) {
    for (uint32_t i = n_done; i-- > 0;) {
        bool is_message = kind == WRK_SEND_GATEWAY || kind == WRK_SEND_PEER;
        if (done[i].kind == kind && (!is_message || done[i].message.type == type)) return &done[i];
    }
    return NULL;
}

static void say(wire_message message) {
    sched->peer_message(sched, PREFILL, &message, now_ns);
    walk();
}

static void reserve(uint64_t serial, uint32_t n_tokens) {
    clear();
    say((wire_message){.type = WIRE_RESERVE, .reserve = {request(serial), n_tokens, 100}});
}

static const wire_block_name names[] = {{1, 1}, {2, 1}, {3, 1}};

/* Of a prompt whose full blocks are named. */
static void reserve_named(uint64_t serial, uint32_t n_tokens, uint32_t n_names) {
    clear();
    say((wire_message){.type = WIRE_RESERVE, .reserve = {request(serial), n_tokens, 100, names, n_names}});
}

static uint64_t lease_of(uint64_t serial) {
    const wrk_action *action = find(WRK_SEND_PEER, WIRE_RESERVED);
    CHECK(action != NULL && action->message.reserved.request.serial == serial, "RESERVED %d", (int)serial);
    return action == NULL ? 0 : action->message.reserved.lease;
}

static void commit(uint64_t serial, uint64_t lease, uint32_t n_tokens, uint32_t max_tokens) {
    static uint32_t tokens[2000];
    static const uint32_t stops[] = {STOP};
    for (uint32_t i = 0; i < 2000; i++) tokens[i] = 10 + i % 900;
    clear();
    say((wire_message){.type = WIRE_COMMIT,
                       .commit = {.request = request(serial),
                                  .lease = lease,
                                  .n_pushes = LAYERS * ((n_tokens + 63) / 64 - n_held),
                                  .checksum = 77,
                                  .sampling = {.top_p = 1},
                                  .max_tokens = max_tokens,
                                  .n_prompt = n_tokens,
                                  .tokens = tokens,
                                  .n_tokens = n_tokens + 1,
                                  .stop_token_ids = stops,
                                  .n_stop_token_ids = 1}});
}

/* The prompt's tokens are those of every other one; n_tokens > n_prompt: with output of an earlier attempt. */
static void submit(uint64_t serial, uint32_t n_prompt, uint32_t n_tokens) {
    static uint32_t tokens[2000];
    for (uint32_t i = 0; i < 2000; i++) tokens[i] = 10 + i % 900;
    const wire_message message = {.type = WIRE_SUBMIT,
                                  .submit = {.request = request(serial),
                                             .sampling = sampling,
                                             .max_tokens = 50,
                                             .n_prompt = n_prompt,
                                             .tokens = tokens,
                                             .n_tokens = n_tokens}};
    clear();
    sched->gateway_message(sched, GATEWAY, &message, now_ns);
    walk();
}

static void closed(uint64_t lease, uint32_t n_pushes, uint64_t checksum) {
    sched->lease_closed(sched, lease, n_pushes, checksum, now_ns);
    walk();
}

/* From RESERVE to the batch. */
static void admit(uint64_t serial, uint32_t n_tokens, uint32_t max_tokens) {
    reserve(serial, n_tokens);
    uint64_t lease = lease_of(serial);
    commit(serial, lease, n_tokens, max_tokens);
    CHECK(find(WRK_LEASE_CLOSE, 0)->lease_close.n_pushes == LAYERS * ((n_tokens + 63) / 64), "its pushes are awaited");
    closed(lease, LAYERS * ((n_tokens + 63) / 64), 77);
    CHECK(find(WRK_SEND_PEER, WIRE_COMMITTED) != NULL, "taken");
    clear();
}

static bool begin(void) {
    bool has_step = sched->step_begin(sched, now_ns, &step);
    walk();
    return has_step;
}

static void end(uint32_t token) {
    uint32_t tokens[16];
    wire_ranked logprobs[16] = {0};
    for (int i = 0; i < 16; i++) tokens[i] = token;
    sched->step_done(sched, tokens, logprobs, now_ns);
    walk();
}

static void tick_after_ms(uint32_t ms) {
    now_ns += (int64_t)ms * MS;
    wrk_sched_tick(sched, now_ns);
    walk();
}

static void cancel(uint64_t serial) {
    wire_message message = {.type = WIRE_CANCEL, .cancel = {request(serial)}};
    sched->gateway_message(sched, GATEWAY, &message, now_ns);
    walk();
}

static void stop(void) {
    sched->gateway_gone(sched, GATEWAY, now_ns);
    walk();
    CHECK(kv_pool_n_free(pool) == BLOCKS, "%u blocks are free", kv_pool_n_free(pool));
    sched->close(sched);
    kv_pool_close(pool);
}

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
        CHECK(find(WRK_SEND_PEER, WIRE_COMMIT_FAILED) != NULL && !begin(), "how %u", how);
        CHECK(kv_pool_n_free(pool) == BLOCKS, "how %u: and nothing is kept", how);
        stop();
    }
}

/* Steps until a sequence gives way; how many there were. */
static uint32_t run_to_preemption(void) {
    uint64_t before = dec_sched_counters(sched)->n_preempted;
    for (uint32_t n = 0; n < 200; n++) {
        clear();
        if (!begin() || dec_sched_counters(sched)->n_preempted > before) return n;
        end(50);
    }
    CHECK(false, "nobody gave way");
    return 0;
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
    CHECK(begin() && step.n_sequences == 2 && step.sequences[0].n_rows == 61, "and does");
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

static void test_an_abort_behind_the_hand_off_gives_the_request_back(void) {
    start(4);
    admit(1, 10, 100);
    say((wire_message){.type = WIRE_ABORT, .abort = {request(1), 1}});
    CHECK(find(WRK_SEND_GATEWAY, WIRE_FAILED)->message.failed.status == BT_PEER_LOST, "the gateway hears of it");
    CHECK(!begin() && kv_pool_n_free(pool) == BLOCKS, "gone");
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

int main(void) {
    test_a_sequence_decodes_to_its_end();
    test_room_is_promised_once();
    test_a_dropped_lease_is_in_quarantine_until_it_is_closed();
    test_a_lease_lives_as_long_as_it_is_renewed();
    test_what_has_not_landed_right_is_not_taken();
    test_the_newest_gives_way_and_is_computed_again();
    test_chunks_leave_every_sequence_its_row();
    test_what_gave_way_begins_behind_what_the_cache_still_has();
    test_who_gave_way_may_be_canceled_or_lost();
    test_the_oldest_never_gives_way();
    test_nobody_overtakes_who_gave_way();
    test_the_context_ends_a_request();
    test_a_cancel_in_a_step_keeps_its_blocks_until_the_step_is_done();
    test_a_lost_group_gives_everything_back_and_takes_nothing_until_it_is_whole();
    test_more_than_fit_wait_in_order();
    test_an_abort_behind_the_hand_off_gives_the_request_back();
    test_min_tokens_bans_what_would_end_it();
    test_blocks_are_known_once_their_checksum_was_right();
    test_a_prompt_that_is_held_whole_needs_no_push();
    test_names_that_do_not_fit_are_refused();
    test_a_short_prompt_is_computed_here();
    test_gateways_hear_of_blocks_that_were_computed_here();
    test_a_prompt_that_began_elsewhere_keeps_its_forms();
    test_what_prefill_should_compute_is_refused();
    test_a_prompt_that_gave_way_is_counted_once();
    TEST_END();
}
