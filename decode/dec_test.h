/* For decode's tests: a scheduler, a gateway and a prefill worker that speak by hand; what the scheduler says is kept.
 */
#ifndef BATON_DECODE_DEC_TEST_H
#define BATON_DECODE_DEC_TEST_H

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
static uint32_t n_held;                                   /* blocks that commit() does not count as pushed */
static uint32_t n_spare = 60, local_prefill_tokens = 100; /* of the next start() */

static inline void walk(void) {
    while (wrk_sched_next(sched, &done[n_done])) {
        const wrk_action *action = &done[n_done];
        if (action->kind == WRK_SEND_GATEWAY && action->message.type == WIRE_TOKENS)
            for (uint32_t i = 0; i < action->message.tokens.n_tokens; i++)
                said[n_said++] = action->message.tokens.tokens[i];
        BT_ASSERT(++n_done < 64);
    }
    sched->check(sched);
}

static inline void clear(void) { n_done = n_said = 0; }

static inline void start(uint32_t max_num_seqs) {
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
                                       .max_batched_tokens = max_num_seqs + n_spare,
                                       .max_leases = 4,
                                       .watermark_blocks = 1,
                                       .local_prefill_tokens = local_prefill_tokens};
    CHECK(dec_sched_open(&shared, &options, &sched, NULL) == BT_OK, "open");
    sched->gateway_up(sched, GATEWAY, now_ns);
    walk();
    clear();
}

static inline wire_request request(uint64_t serial) { return (wire_request){GATEWAY, serial, 0}; }

static inline const wrk_action *find(wrk_action_kind kind, wire_type type) {
    for (uint32_t i = n_done; i-- > 0;) {
        bool is_message = kind == WRK_SEND_GATEWAY || kind == WRK_SEND_PEER;
        if (done[i].kind == kind && (!is_message || done[i].message.type == type)) return &done[i];
    }
    return NULL;
}

static inline void say(wire_message message) {
    sched->peer_message(sched, PREFILL, &message, now_ns);
    walk();
}

static inline void reserve(uint64_t serial, uint32_t n_tokens) {
    clear();
    say((wire_message){.type = WIRE_RESERVE, .reserve = {request(serial), n_tokens, 100}});
}

static const wire_block_name names[] = {{1, 1}, {2, 1}, {3, 1}};

/* Of a prompt whose full blocks are named. */
static inline void reserve_named(uint64_t serial, uint32_t n_tokens, uint32_t n_names) {
    clear();
    say((wire_message){.type = WIRE_RESERVE, .reserve = {request(serial), n_tokens, 100, names, n_names}});
}

static inline uint64_t lease_of(uint64_t serial) {
    const wrk_action *action = find(WRK_SEND_PEER, WIRE_RESERVED);
    CHECK(action != NULL && action->message.reserved.request.serial == serial, "RESERVED %d", (int)serial);
    return action == NULL ? 0 : action->message.reserved.lease;
}

static inline void commit(uint64_t serial, uint64_t lease, uint32_t n_tokens, uint32_t max_tokens) {
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
static inline void submit(uint64_t serial, uint32_t n_prompt, uint32_t n_tokens) {
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

static inline void closed(uint64_t lease, uint32_t n_pushes, uint64_t checksum) {
    sched->lease_closed(sched, lease, n_pushes, checksum, now_ns);
    walk();
}

/* From RESERVE to the batch. */
static inline void admit(uint64_t serial, uint32_t n_tokens, uint32_t max_tokens) {
    reserve(serial, n_tokens);
    uint64_t lease = lease_of(serial);
    commit(serial, lease, n_tokens, max_tokens);
    CHECK(find(WRK_LEASE_CLOSE, 0)->lease_close.n_pushes == LAYERS * ((n_tokens + 63) / 64), "its pushes are awaited");
    closed(lease, LAYERS * ((n_tokens + 63) / 64), 77);
    CHECK(find(WRK_SEND_PEER, WIRE_COMMITTED) != NULL, "taken");
    clear();
}

static inline bool begin(void) {
    bool has_step = sched->step_begin(sched, now_ns, &step);
    walk();
    return has_step;
}

static inline void end(uint32_t token) {
    uint32_t tokens[16];
    wire_ranked logprobs[16] = {0};
    for (int i = 0; i < 16; i++) tokens[i] = token;
    sched->step_done(sched, tokens, logprobs, now_ns);
    walk();
}

static inline void tick_after_ms(uint32_t ms) {
    now_ns += (int64_t)ms * MS;
    wrk_sched_tick(sched, now_ns);
    walk();
}

static inline void cancel(uint64_t serial) {
    wire_message message = {.type = WIRE_CANCEL, .cancel = {request(serial)}};
    sched->gateway_message(sched, GATEWAY, &message, now_ns);
    walk();
}

static inline void stop(void) {
    sched->gateway_gone(sched, GATEWAY, now_ns);
    walk();
    CHECK(kv_pool_n_free(pool) == BLOCKS, "%u blocks are free", kv_pool_n_free(pool));
    sched->close(sched);
    kv_pool_close(pool);
}

/* Steps until a sequence gives way; how many there were. */
static inline uint32_t run_to_preemption(void) {
    uint64_t before = dec_sched_counters(sched)->n_preempted;
    for (uint32_t n = 0; n < 200; n++) {
        clear();
        if (!begin() || dec_sched_counters(sched)->n_preempted > before) return n;
        end(50);
    }
    CHECK(false, "nobody gave way");
    return 0;
}

#endif
