/* One request at a time: order of delivery, every way to replay, every way to end. Whole histories: tests/sim. */
#include "gateway/core/gw_core.h"

#include <string.h>

#include "common/core/test.h"
#include "common/kv/kv_prefix.h"

enum { GATEWAY = 7, EOS = 1, PREFILL = 100, DECODE = 200, MS = 1000000 };

static gw_core *core;
static int64_t now_ns;
static uint64_t serial;
static gw_action sent[64], heard[64]; /* since the last clear() */
static uint32_t n_sent, n_heard;
static uint32_t tokens[64], n_tokens; /* delivered, all */
static wire_sampling sampling = {.top_p = 1};
static char why[WIRE_MAX_TEXT + 1]; /* of the last GW_FAILED */

static const gw_strategy *any_strategy(void) {
    static gw_strategy strategy;
    CHECK(gw_strategy_parse("", &strategy, NULL) == BT_OK, "the default");
    return &strategy;
}

static void walk(void) {
    gw_action action;
    while (gw_core_next(core, &action)) {
        if (action.kind == GW_SEND) {
            sent[n_sent++] = action;
            continue;
        }
        heard[n_heard++] = action;
        if (action.kind == GW_FAILED) snprintf(why, sizeof(why), "%s", action.text);
        if (action.kind == GW_PROMPT) continue;
        for (uint32_t i = 0; i < action.n_tokens; i++) tokens[n_tokens++] = action.tokens[i];
    }
    gw_core_check(core);
}

static void clear(void) { n_sent = n_heard = 0; }

static void up(uint64_t worker) {
    gw_worker known = {.role = worker < DECODE ? WIRE_ROLE_PREFILL : WIRE_ROLE_DECODE, .incarnation = worker};
    snprintf(known.name, sizeof(known.name), "w%d", (int)worker);
    gw_core_worker_up(core, &known, now_ns);
    walk();
}

static void gone(uint64_t worker) {
    gw_core_worker_gone(core, worker, now_ns);
    walk();
}

static void start(uint32_t n_prefills, uint32_t n_decodes, uint32_t migration_limit) {
    static const uint32_t eos[] = {EOS}, prompt[] = {10, 11, 12};
    gw_core_options options = {.incarnation = GATEWAY,
                               .max_requests = 4,
                               .vocab_size = 100,
                               .max_model_len = 500,
                               .migration_limit = migration_limit,
                               .eos_ids = eos,
                               .n_eos_ids = 1};
    n_tokens = 0;
    CHECK(gw_core_open(&options, &core, NULL) == BT_OK, "open");
    for (uint32_t i = 0; i < n_prefills; i++) up(PREFILL + i);
    for (uint32_t i = 0; i < n_decodes; i++) up(DECODE + i);
    gw_submit submit = {.tokens = prompt, .n_tokens = 3, .max_tokens = 5, .sampling = sampling, .cache_salt = ""};
    submit.strategy = any_strategy();
    clear();
    CHECK(gw_core_submit(core, &submit, now_ns, &serial, NULL) == BT_OK, "submit");
    walk();
}

static wire_request attempt(uint32_t number) { return (wire_request){GATEWAY, serial, number}; }

static void say(uint64_t worker, wire_message message) {
    gw_core_message(core, worker, &message, now_ns);
    walk();
}

static void say_first(uint64_t worker, uint32_t number, uint32_t index, uint32_t token) {
    say(worker, (wire_message){.type = WIRE_ACCEPTED, .accepted = {attempt(number)}});
    say(worker, (wire_message){.type = WIRE_FIRST_TOKEN,
                               .first_token = {.request = attempt(number), .index = index, .token = token}});
}

static void say_handed_off(uint64_t worker, uint32_t number, uint64_t decode) {
    say(worker,
        (wire_message){
            .type = WIRE_HANDED_OFF,
            .handed_off = {.request = attempt(number), .decode = wire_str_from("d"), .decode_incarnation = decode}});
}

static void say_token(uint64_t worker, uint32_t number, uint32_t index, uint32_t token) {
    wire_token one = {attempt(number), index, token, NULL, 0};
    say(worker, (wire_message){.type = WIRE_TOKENS, .tokens = {&one, 1}});
}

static void say_finished(uint64_t worker, uint32_t number, wire_finish reason, uint32_t n_output) {
    say(worker, (wire_message){.type = WIRE_FINISHED, .finished = {attempt(number), (uint8_t)reason, 0, n_output}});
}

static void say_failed(uint64_t worker, uint32_t number, bt_status status) {
    say(worker,
        (wire_message){.type = WIRE_FAILED, .failed = {attempt(number), (uint8_t)status, wire_str_from("Why not.")}});
}

/* Of the prompt's tokens from `position` on, with `n_top` beside each. */
static void say_scores(uint64_t worker, uint32_t number, uint32_t position, uint32_t n, uint32_t n_top) {
    static const wire_logprob top[] = {{5, -0.5f}, {6, -1}, {7, -2}};
    wire_ranked scores[4];
    for (uint32_t i = 0; i < n; i++) scores[i] = (wire_ranked){-1 - (float)(position + i), 1, top, n_top};
    say(worker,
        (wire_message){.type = WIRE_PROMPT_LOGPROBS, .prompt_logprobs = {attempt(number), position, scores, n}});
}

static const gw_action *last_sent(wire_type type) {
    for (uint32_t i = n_sent; i-- > 0;)
        if (sent[i].message.type == type) return &sent[i];
    return NULL;
}

static bool is_told_cancel(uint64_t worker) {
    for (uint32_t i = 0; i < n_sent; i++)
        if (sent[i].message.type == WIRE_CANCEL && sent[i].peer == worker) return true;
    return false;
}

static void say_local(uint64_t decode, uint32_t local_prefill_tokens) {
    say(decode, (wire_message){.type = WIRE_STATUS,
                               .status = {{.kv_blocks_total = 50, .local_prefill_tokens = local_prefill_tokens}}});
}

static uint32_t prompt[400]; /* of submit_another() */

/* The worker's cache has the first n_blocks of it, if they are salted so. */
static void say_blocks(uint64_t worker, uint32_t n_blocks, const char *cache_salt) {
    wire_block_name names[4];
    kv_prefix_names(0, wire_str_from(cache_salt), prompt, n_blocks, names);
    say(worker, (wire_message){.type = WIRE_BLOCKS, .blocks = {.come = names, .n_come = n_blocks}});
}

/* Instead of the one that start() has sent. */
static void submit_another(uint32_t n_prompt, const char *cache_salt) {
    for (uint32_t i = 0; i < 400; i++) prompt[i] = 10 + i % 80;
    gw_core_cancel(core, serial, now_ns);
    walk();
    gw_submit submit = {
        .tokens = prompt, .n_tokens = n_prompt, .max_tokens = 5, .sampling = {.top_p = 1}, .cache_salt = cache_salt};
    submit.strategy = any_strategy();
    clear();
    n_tokens = 0;
    CHECK(gw_core_submit(core, &submit, now_ns, &serial, NULL) == BT_OK, "submit");
    walk();
}

static void stop(void) {
    CHECK(gw_core_n_alive(core) == 0, "nothing is left");
    gw_core_close(core);
}

static void test_a_request_goes_its_way(void) {
    start(1, 1, 3);
    const wire_submit *submit = &last_sent(WIRE_SUBMIT)->message.submit;
    CHECK(n_sent == 1 && sent[0].peer == PREFILL && submit->n_tokens == 3 && submit->n_candidates == 1, "SUBMIT");
    say_first(PREFILL, 0, 0, 20);
    CHECK(n_heard == 1 && heard[0].index == 0 && tokens[0] == 20, "the first token goes to the client at once");
    say_handed_off(PREFILL, 0, DECODE);
    say_token(DECODE, 0, 1, 21);
    say_token(DECODE, 0, 2, EOS);
    say_finished(DECODE, 0, WIRE_FINISH_EOS, 3);
    CHECK(n_heard == 4 && heard[3].kind == GW_FINISHED && heard[3].reason == WIRE_FINISH_EOS, "finished");
    CHECK(n_tokens == 3 && tokens[2] == EOS && n_sent == 1, "three tokens, nobody had to be told anything");
    stop();
}

static void test_decode_may_overtake_prefill(void) {
    start(1, 1, 3);
    say_token(DECODE, 0, 1, 21);
    say_token(DECODE, 0, 2, 22);
    say_finished(DECODE, 0, WIRE_FINISH_STOP_TOKEN, 3);
    CHECK(n_heard == 0, "index 0 is missing");
    say_first(PREFILL, 0, 0, 20);
    CHECK(n_heard == 2 && heard[0].n_tokens == 3 && heard[1].kind == GW_FINISHED, "then all come at once");
    CHECK(tokens[0] == 20 && tokens[1] == 21 && tokens[2] == 22, "in order");
    stop();
}

static void test_a_lost_worker_is_a_replay_with_what_is_there(void) {
    start(2, 2, 3);
    uint64_t prefill = sent[0].peer, decode = sent[0].message.submit.candidates[0].incarnation;
    say_first(prefill, 0, 0, 20);
    say_handed_off(prefill, 0, decode);
    say_token(decode, 0, 1, 21);
    clear();
    gone(decode);
    const gw_action *again = last_sent(WIRE_SUBMIT);
    CHECK(again != NULL && again->message.submit.request.attempt == 1, "the second attempt");
    CHECK(again->message.submit.n_prompt == 3 && again->message.submit.n_tokens == 5, "prompt and output");
    CHECK(again->message.submit.tokens[4] == 21 && again->message.submit.max_tokens == 5, "the same limit");
    CHECK(again->message.submit.candidates[0].incarnation != decode, "another decode worker");
    say_token(decode, 0, 2, 99);
    CHECK(n_heard == 0, "the lost one says nothing any more");
    say_first(again->peer, 1, 2, 22);
    CHECK(n_tokens == 3 && tokens[2] == 22 && heard[0].index == 2, "it goes on where it was");
    gw_core_cancel(core, serial, now_ns);
    walk();
    stop();
}

static void test_prefill_lost_behind_the_hand_off_is_no_loss(void) {
    start(2, 1, 3);
    uint64_t prefill = sent[0].peer;
    say_first(prefill, 0, 0, 20);
    say_token(DECODE, 0, 1, 21); /* HANDED_OFF was on its way */
    clear();
    gone(prefill);
    CHECK(n_sent == 0 && n_heard == 0, "decode is the owner: nothing happens");
    say_token(DECODE, 0, 2, EOS);
    say_finished(DECODE, 0, WIRE_FINISH_EOS, 3);
    CHECK(heard[n_heard - 1].kind == GW_FINISHED, "finished");
    stop();
}

static void test_prefill_lost_with_the_first_token_is_a_replay(void) {
    start(2, 1, 3);
    uint64_t prefill = sent[0].peer;
    say_token(DECODE, 0, 1, 21);
    clear();
    gone(prefill);
    CHECK(is_told_cancel(DECODE), "decode computes in vain");
    CHECK(last_sent(WIRE_SUBMIT)->message.submit.n_tokens == 3, "from the prompt on");
    say_token(DECODE, 0, 2, 22);
    CHECK(n_heard == 0, "the old attempt is not listened to");
    gw_core_cancel(core, serial, now_ns);
    walk();
    stop();
}

static void test_a_lost_last_word_is_not_replayed(void) {
    start(1, 1, 3);
    say_first(PREFILL, 0, 0, 20);
    say_handed_off(PREFILL, 0, DECODE);
    say_token(DECODE, 0, 1, EOS);
    gone(DECODE);
    CHECK(heard[n_heard - 1].kind == GW_FINISHED && heard[n_heard - 1].reason == WIRE_FINISH_EOS, "it had ended");
    stop();
}

static void test_migrations_are_limited(void) {
    start(1, 1, 2);
    for (uint32_t i = 0; i < 3; i++) say_failed(PREFILL, i, BT_INTERNAL);
    CHECK(n_heard == 1 && heard[0].kind == GW_FAILED && heard[0].status == BT_INTERNAL, "the third failure is final");
    CHECK(strcmp(why, "Why not.") == 0, "with its sentence");
    stop();
    start(1, 1, 2);
    say_failed(PREFILL, 0, BT_BAD_REQUEST);
    CHECK(n_heard == 1 && heard[0].status == BT_BAD_REQUEST, "what is wrong stays wrong");
    stop();
}

static void test_a_replay_waits_for_full_workers_but_not_for_ever(void) {
    start(1, 2, 1);
    say_first(PREFILL, 0, 0, 20);
    say_handed_off(PREFILL, 0, DECODE);
    gone(DECODE);
    n_heard = 0;
    uint32_t n_attempts = 1;
    int64_t begin_ns = now_ns;
    while (n_heard == 0 && n_attempts < 1000) {
        if (last_sent(WIRE_SUBMIT) != NULL) {
            clear();
            say_failed(PREFILL, n_attempts++, BT_NO_CAPACITY);
        }
        if (n_heard > 0) break;
        now_ns = gw_core_deadline_ns(core);
        gw_core_tick(core, now_ns);
        walk();
    }
    CHECK(heard[0].kind == GW_FAILED && heard[0].status == BT_NO_CAPACITY, "given up");
    CHECK(now_ns - begin_ns >= 10000ll * MS && now_ns - begin_ns < 11000ll * MS, "after %lld ms: %s",
          (long long)((now_ns - begin_ns) / MS), why);
    CHECK(n_attempts > 10 && n_attempts < 40, "%u attempts", n_attempts);
    stop();
}

static void test_no_worker_is_waited_for_in_a_replay_only(void) {
    start(1, 1, 3);
    gone(PREFILL);
    CHECK(n_heard == 0, "it waits: %s", why);
    uint64_t other;
    gw_submit submit = {
        .tokens = (uint32_t[]){1}, .n_tokens = 1, .max_tokens = 1, .sampling = {.top_p = 1}, .cache_salt = ""};
    submit.strategy = any_strategy();
    CHECK(gw_core_submit(core, &submit, now_ns, &other, NULL) == BT_NO_CAPACITY, "a new one is not taken");
    clear();
    up(PREFILL + 1);
    CHECK(last_sent(WIRE_SUBMIT) != NULL && last_sent(WIRE_SUBMIT)->peer == PREFILL + 1, "at once when one comes");
    gw_core_cancel(core, serial, now_ns);
    walk();
    CHECK(is_told_cancel(PREFILL + 1) && n_heard == 0, "a cancel is told, not heard");
    stop();
}

static void test_every_silence_has_an_end(void) {
    for (uint32_t phase = 0; phase < 4; phase++) { /* silent after SUBMIT, ACCEPTED, FIRST_TOKEN, HANDED_OFF */
        start(1, 1, 0);
        if (phase == 1) say(PREFILL, (wire_message){.type = WIRE_ACCEPTED, .accepted = {attempt(0)}});
        if (phase >= 2) say_first(PREFILL, 0, 0, 20);
        if (phase == 3) say_handed_off(PREFILL, 0, DECODE);
        clear();
        now_ns = gw_core_deadline_ns(core);
        gw_core_tick(core, now_ns);
        walk();
        CHECK(n_heard == 1 && heard[0].kind == GW_FAILED && heard[0].status == BT_TIMEOUT, "phase %u", phase);
        CHECK(is_told_cancel(phase < 3 ? PREFILL : DECODE), "phase %u: whoever may have it is told", phase);
        stop();
    }
}

static void test_a_pause_of_decode_is_no_silence(void) {
    start(1, 1, 0);
    say_first(PREFILL, 0, 0, 20);
    say_handed_off(PREFILL, 0, DECODE);
    say_token(DECODE, 0, 1, 21);
    for (uint32_t i = 0; i < 3; i++) {
        now_ns = gw_core_deadline_ns(core) - 1;
        say(DECODE, (wire_message){.type = WIRE_ACCEPTED, .accepted = {attempt(0)}});
        CHECK(gw_core_deadline_ns(core) - now_ns == 60000ll * MS, "the owner's word counts: all of it again");
    }
    say_token(DECODE, 0, 2, 22);
    CHECK(n_heard == 3 && tokens[2] == 22, "then it goes on");
    now_ns = gw_core_deadline_ns(core);
    say(PREFILL, (wire_message){.type = WIRE_ACCEPTED, .accepted = {attempt(0)}});
    gw_core_tick(core, now_ns);
    walk();
    CHECK(heard[n_heard - 1].kind == GW_FAILED && heard[n_heard - 1].status == BT_TIMEOUT, "nobody else's word does");
    stop();
}

static void test_a_stop_string_ends_it_while_walking(void) {
    start(1, 1, 3);
    say_first(PREFILL, 0, 0, 20);
    say_handed_off(PREFILL, 0, DECODE);
    wire_token two[] = {{attempt(0), 1, 21, NULL, 0}, {attempt(0), 2, EOS, NULL, 0}};
    wire_message message = {.type = WIRE_TOKENS, .tokens = {two, 2}};
    gw_core_message(core, DECODE, &message, now_ns);
    message = (wire_message){.type = WIRE_FINISHED, .finished = {attempt(0), WIRE_FINISH_EOS, 0, 3}};
    gw_core_message(core, DECODE, &message, now_ns); /* its end is in the list already */
    gw_action action;
    CHECK(gw_core_next(core, &action) && action.kind == GW_TOKENS && action.tokens[0] == 21, "the stop string");
    gw_core_cancel(core, serial, now_ns);
    CHECK(gw_core_info(core, serial) != NULL, "it can be looked at");
    clear();
    walk();
    CHECK(n_heard == 0, "nothing comes behind a cancel");
    stop();
}

static void test_a_hand_off_behind_a_cancel_is_stopped(void) {
    start(1, 1, 3);
    say_first(PREFILL, 0, 0, 20);
    gw_core_cancel(core, serial, now_ns);
    walk();
    clear();
    say_handed_off(PREFILL, 0, DECODE);
    CHECK(is_told_cancel(DECODE), "decode took it while we canceled");
    clear();
    say_token(DECODE, 0, 1, 21);
    CHECK(is_told_cancel(DECODE) && n_heard == 0, "and so is whoever speaks of it");
    stop();
}

static void test_each_token_of_a_prompt_is_scored_once(void) {
    sampling.n_prompt_logprobs = 3; /* and none of the output */
    start(2, 1, 3);
    uint64_t prefill = sent[0].peer, other = 2 * PREFILL + 1 - prefill;
    say_scores(prefill, 0, 1, 1, 2);
    CHECK(n_heard == 1 && heard[0].kind == GW_PROMPT && heard[0].index == 1 && heard[0].n_tokens == 1, "the second");
    gone(prefill);
    say_scores(other, 1, 1, 2, 2);
    CHECK(n_heard == 2 && heard[1].index == 2 && heard[1].n_tokens == 1, "the third, not the second again");
    CHECK(heard[1].logprobs[0].logprob == -3 && heard[1].logprobs[0].n_top == 2, "with two beside it");
    say_first(other, 1, 0, EOS);
    say_finished(other, 1, WIRE_FINISH_EOS, 1);
    CHECK(n_heard == 4 && heard[2].kind == GW_TOKENS && heard[3].kind == GW_FINISHED, "then the output");
    stop();
    static const struct {
        uint32_t position, n, n_top;
        const char *why;
    } rows[] = {{0, 1, 2, "of the first token nothing is known"},
                {2, 1, 2, "the second is left out"},
                {1, 3, 2, "beyond the prompt"},
                {1, 2, 1, "fewer beside each than asked for"},
                {1, 2, 3, "more"},
                {1, 1, 2, "the token comes before the last score"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        start(1, 1, 0);
        say_scores(PREFILL, 0, rows[i].position, rows[i].n, rows[i].n_top);
        if (i + 1 == sizeof rows / sizeof *rows) say_first(PREFILL, 0, 0, 20);
        CHECK(n_heard > 0 && heard[n_heard - 1].kind == GW_FAILED, "%s", rows[i].why);
        stop();
    }
    sampling.n_prompt_logprobs = 0;
}

static void test_decode_alone_computes_a_short_prompt(void) {
    start(1, 1, 3);
    say_local(DECODE, 30);
    submit_another(30, "");
    const wire_submit *submit = &last_sent(WIRE_SUBMIT)->message.submit;
    CHECK(n_sent == 1 && sent[0].peer == DECODE && submit->n_candidates == 0, "SUBMIT goes to decode");
    say_first(DECODE, 0, 0, 20);
    CHECK(n_tokens == 1 && tokens[0] == 20, "the first token");
    const gw_info *info = gw_core_info(core, serial);
    CHECK(info->is_local && info->phase == GW_HANDED_OFF && info->prefill[0] == 0 && strcmp(info->decode, "w200") == 0,
          "and it has the request");
    say_token(DECODE, 0, 1, 21);
    say_token(DECODE, 0, 2, EOS);
    say_finished(DECODE, 0, WIRE_FINISH_EOS, 3);
    CHECK(n_tokens == 3 && heard[n_heard - 1].kind == GW_FINISHED && n_sent == 1, "to its end");
    submit_another(31, "");
    CHECK(sent[0].peer == PREFILL, "one token more goes the usual way");
    say_first(PREFILL, 0, 0, EOS);
    say_finished(PREFILL, 0, WIRE_FINISH_EOS, 1);
    stop();
}

static void test_a_known_beginning_makes_a_prompt_short(void) {
    start(1, 2, 3);
    say_local(DECODE, 30);
    say_local(DECODE + 1, 30);
    submit_another(150, "");
    CHECK(sent[0].peer == PREFILL, "nobody knows it");
    say_blocks(DECODE, 1, "");
    say_blocks(DECODE + 1, 2, "");
    submit_another(158, "");
    CHECK(sent[0].peer == DECODE + 1, "it is there, and 30 tokens more");
    submit_another(159, "");
    CHECK(sent[0].peer == PREFILL, "31 are too many");
    submit_another(158, "pepper");
    CHECK(sent[0].peer == PREFILL, "another salt, another beginning");
    submit_another(128, "");
    CHECK(sent[0].peer == PREFILL, "the last block is computed in any case: 64 tokens");
    gone(DECODE + 1);
    submit_another(158, "");
    CHECK(sent[0].peer == PREFILL, "the worker that knew it is gone");
    submit_another(94, "");
    CHECK(sent[0].peer == DECODE, "the other one knows less of it");
    gw_core_cancel(core, serial, now_ns);
    walk();
    stop();
}

static void test_who_is_not_taken_by_decode_goes_the_usual_way_at_once(void) {
    for (uint32_t how = 0; how < 4; how++) {
        start(1, 2, how == 1 ? 1 : 0);
        say_local(DECODE, 30);
        submit_another(30, "");
        CHECK(sent[0].peer == DECODE, "asked");
        clear();
        if (how == 0) say_failed(DECODE, 0, BT_NO_CAPACITY);
        if (how == 1) gone(DECODE);
        if (how == 2) say_failed(DECODE, 0, BT_AGAIN);
        if (how == 3) {
            gw_core_cancel(core, serial, now_ns);
            walk();
            CHECK(is_told_cancel(DECODE), "it may have begun");
            stop();
            continue;
        }
        const gw_action *submit = last_sent(WIRE_SUBMIT);
        CHECK(submit != NULL && submit->peer == PREFILL && submit->message.submit.request.attempt == 1, "how %u", how);
        CHECK(gw_core_info(core, serial)->n_migrations == (how == 1), "a refusal is no migration");
        say_first(PREFILL, 1, 0, EOS);
        say_finished(PREFILL, 1, WIRE_FINISH_EOS, 1);
        CHECK(n_tokens == 1, "how %u", how);
        stop();
    }
}

int main(void) {
    test_a_request_goes_its_way();
    test_decode_may_overtake_prefill();
    test_a_lost_worker_is_a_replay_with_what_is_there();
    test_prefill_lost_behind_the_hand_off_is_no_loss();
    test_prefill_lost_with_the_first_token_is_a_replay();
    test_a_lost_last_word_is_not_replayed();
    test_migrations_are_limited();
    test_a_replay_waits_for_full_workers_but_not_for_ever();
    test_no_worker_is_waited_for_in_a_replay_only();
    test_every_silence_has_an_end();
    test_a_pause_of_decode_is_no_silence();
    test_a_stop_string_ends_it_while_walking();
    test_a_hand_off_behind_a_cancel_is_stopped();
    test_each_token_of_a_prompt_is_scored_once();
    test_decode_alone_computes_a_short_prompt();
    test_a_known_beginning_makes_a_prompt_short();
    test_who_is_not_taken_by_decode_goes_the_usual_way_at_once();
    TEST_END();
}
