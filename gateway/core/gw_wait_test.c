/* The queue: its order, its bound, its deadlines, and what makes room. One prefill and one decode worker; prompts are
 * long enough that a worker with one of them has room for no other. */
#include <string.h>

#include "common/core/test.h"
#include "gateway/core/gw_core.h"
#include "gateway/core/gw_queue.h"

enum { GATEWAY = 7, PREFILL = 100, DECODE = 200, MS = 1000000, QUEUE_MS = 5000, N_PROMPT = 200, CAP_SERIALS = 1 << 15 };

static gw_core *core;
static int64_t now_ns;
static uint64_t sent[32], failed[32]; /* serials of SUBMITs, and of GW_FAILED, since the last clear() */
static uint32_t n_sent, n_failed;
static const char *why, *whys[32];     /* of the last, of all of these */
static uint32_t attempts[CAP_SERIALS]; /* by serial */

static void walk(void) {
    gw_action action;
    while (gw_core_next(core, &action)) {
        if (action.kind == GW_SEND && action.message.type == WIRE_SUBMIT) {
            uint64_t serial = action.message.submit.request.serial;
            attempts[serial] = action.message.submit.request.attempt;
            sent[n_sent++] = serial;
        } else if (action.kind == GW_FAILED) {
            why = whys[n_failed] = action.why;
            failed[n_failed++] = action.serial;
        }
    }
    gw_core_check(core);
}

static void clear(void) { n_sent = n_failed = 0; }

static void up(uint64_t incarnation, const char *labels) {
    gw_worker known = {.role = incarnation < DECODE ? WIRE_ROLE_PREFILL : WIRE_ROLE_DECODE, .incarnation = incarnation};
    CHECK(bt_labels_parse(labels, &known.labels, NULL) == BT_OK, "%s", labels);
    gw_core_worker_up(core, &known, now_ns);
    walk();
}

static void start(uint32_t max_queued) {
    static const uint32_t eos[] = {1};
    gw_core_options options = {.incarnation = GATEWAY,
                               .max_worker_queue_ms = 100, /* before any is measured: 100 tokens */
                               .max_queued = max_queued,
                               .max_requests = 20,
                               .vocab_size = 100,
                               .max_model_len = 500,
                               .migration_limit = 3,
                               .eos_ids = eos,
                               .n_eos_ids = 1};
    CHECK(gw_core_open(&options, &core, NULL) == BT_OK, "open");
    up(PREFILL, "zone=a");
    up(DECODE, "zone=a");
    clear();
}

static void stop(void) {
    for (uint64_t serial = 1; serial < 20; serial++) gw_core_cancel(core, serial, now_ns);
    walk();
    CHECK(gw_core_n_alive(core) == 0 && gw_core_n_queued(core) == 0, "nothing is left");
    gw_core_close(core);
}

static uint32_t choice, n_choices; /* of the next submits */

static bt_status submit_to(const char *filter, int64_t priority, uint64_t *out_serial) {
    static uint32_t tokens[N_PROMPT];
    gw_strategy strategy;
    bt_selector selector;
    CHECK(gw_strategy_parse("", &strategy, NULL) == BT_OK, "the default");
    CHECK(filter == NULL || bt_selector_parse(filter, &selector, NULL) == BT_OK, "%s", filter);
    gw_submit submit = {.tokens = tokens,
                        .n_tokens = N_PROMPT,
                        .max_tokens = 5,
                        .sampling = {.top_p = 1},
                        .cache_salt = "",
                        .strategy = &strategy,
                        .filter = filter == NULL ? NULL : &selector,
                        .priority = priority,
                        .queue_ms = QUEUE_MS,
                        .choice = choice,
                        .n_choices = n_choices};
    bt_status status = gw_core_submit(core, &submit, now_ns, out_serial, NULL);
    walk();
    return status;
}

static uint64_t submit(int64_t priority) {
    uint64_t serial = 0;
    CHECK(submit_to(NULL, priority, &serial) == BT_OK, "it is taken");
    return serial;
}

/* Choices of one answer, until one is refused; how many were taken. */
static uint32_t submit_choices(int64_t priority, uint32_t n, uint64_t *out_serials) {
    uint32_t n_taken = 0;
    n_choices = n;
    for (choice = 0; choice < n && submit_to(NULL, priority, &out_serials[choice]) == BT_OK; choice++) n_taken++;
    choice = n_choices = 0;
    return n_taken;
}

static void say(uint64_t worker, wire_message message) {
    gw_core_message(core, worker, &message, now_ns);
    walk();
}

static void say_load(uint64_t worker, wire_load load) {
    say(worker, (wire_message){.type = WIRE_STATUS, .status = {load}});
}

static wire_request request(uint64_t serial) { return (wire_request){GATEWAY, serial, attempts[serial]}; }

/* The prefill worker has taken the request and computed it. */
static void compute(uint64_t serial) {
    say(PREFILL, (wire_message){.type = WIRE_ACCEPTED, .accepted = {request(serial)}});
    say_load(PREFILL, (wire_load){.running = 1});
}

static void refuse(uint64_t serial) {
    say(PREFILL,
        (wire_message){.type = WIRE_FAILED, .failed = {request(serial), BT_NO_CAPACITY, wire_str_from("It is full.")}});
}

static void test_who_waits_goes_by_priority_then_as_it_came(void) {
    start(8);
    uint64_t first = submit(0);
    CHECK(n_sent == 1 && sent[0] == first, "there is room");
    uint64_t second = submit(0), urgent = submit(-1), idle = submit(7), third = submit(0);
    CHECK(n_sent == 1 && gw_core_n_queued(core) == 4, "now there is none");
    CHECK(gw_core_info(core, second)->phase == GW_WAITING && gw_core_info(core, second)->sent_ns == 0, "it waits");
    const uint64_t order[] = {first, urgent, second, third, idle};
    for (uint32_t i = 0; i < 4; i++) {
        clear();
        compute(order[i]);
        CHECK(n_sent == 1 && sent[0] == order[i + 1], "%u: the next one goes", i);
    }
    CHECK(gw_core_n_queued(core) == 0 && gw_core_counters(core)->n_queued == 4, "all have gone");
    stop();
}

static void test_a_full_queue_drops_who_would_go_last(void) {
    start(2);
    uint64_t serial, running = submit(0), second = submit(0), last = submit(1);
    CHECK(submit_to(NULL, 1, &serial) == BT_AGAIN && n_failed == 0, "a newcomer that would be behind is refused");
    uint64_t urgent = submit(0);
    CHECK(n_failed == 1 && failed[0] == last && strcmp(why, "queue_full") == 0, "one that would be before it is not");
    CHECK(submit_to(NULL, 0, &serial) == BT_AGAIN, "among equals the newer is last");
    CHECK(gw_core_counters(core)->n_queue_full == 3, "counted");
    clear();
    compute(running);
    CHECK(n_sent == 1 && sent[0] == second && gw_core_n_queued(core) == 1, "the older of two equals");
    compute(second);
    CHECK(sent[1] == urgent, "and the other one");
    stop();
    start(0);
    (void)submit(0);
    CHECK(submit_to(NULL, -5, &serial) == BT_AGAIN && gw_core_n_alive(core) == 1, "without a queue nobody waits");
    stop();
}

static void test_choices_of_an_answer_are_pushed_out_together(void) {
    start(5);
    uint64_t pair[2], more[3], serial;
    (void)submit(0);
    CHECK(submit_choices(1, 2, pair) == 2 && submit_choices(2, 3, more) == 3 && gw_core_n_queued(core) == 5, "full");
    (void)submit(0);
    CHECK(n_failed == 3 && failed[0] == more[0] && failed[2] == more[2], "one must go, and with it the other two");
    CHECK(gw_core_n_queued(core) == 3, "%u", gw_core_n_queued(core));
    clear();
    CHECK(submit_choices(0, 3, more) == 3 && n_failed == 2 && failed[0] == pair[0], "for the third of three, two");
    CHECK(submit_choices(-1, 6, more) == 0 && n_failed == 2, "nobody goes for six: they would not all have a place");
    CHECK(submit_to(NULL, 1, &serial) == BT_OK && submit_choices(-1, 2, more) == 2, "two have");
    CHECK(n_failed == 6, "a single one and three that are the last: %u", n_failed);
    stop();
}

static void test_an_answer_that_has_begun_is_not_given_up(void) {
    start(3);
    uint64_t begun[3], serial;
    CHECK(submit_choices(1, 3, begun) == 3 && n_sent == 1 && gw_core_n_queued(core) == 2, "one runs, two wait");
    uint64_t last = submit(2);
    (void)submit(0);
    CHECK(n_failed == 1 && failed[0] == last, "who would go last goes");
    CHECK(submit_to(NULL, 0, &serial) == BT_AGAIN && n_failed == 1, "they do not");
    clear();
    now_ns += (int64_t)QUEUE_MS * MS;
    compute(begun[0]);
    gw_core_tick(core, now_ns);
    walk();
    CHECK(n_failed == 0 && gw_core_n_queued(core) == 2, "nor are they late: %u", n_failed);
    stop();
}

enum { UNKNOWN, WAITS, RUNS, OVER };
typedef struct {
    uint64_t first; /* of its answer */
    uint32_t n;
    int state;
} known;
static known all[CAP_SERIALS]; /* by serial */

static uint32_t below(uint32_t n) { return (uint32_t)rand() % n; }

/* What the last event did to answers: what has begun is not pushed out, what is goes as a whole. */
static void follow(void) {
    for (uint32_t i = 0; i < n_failed; i++) {
        const known *one = &all[failed[i]];
        if (whys[i] == NULL || strncmp(whys[i], "queue_", 6) != 0) continue;
        for (uint64_t serial = one->first; serial < one->first + one->n; serial++) {
            bool is_gone = false;
            for (uint32_t j = 0; j < n_failed; j++) is_gone |= failed[j] == serial;
            CHECK(is_gone && all[serial].state == WAITS, "%llu is pushed out with %llu, which is in state %d",
                  (unsigned long long)failed[i], (unsigned long long)serial, all[serial].state);
        }
    }
    for (uint32_t i = 0; i < n_failed; i++) all[failed[i]].state = OVER;
    for (uint32_t i = 0; i < n_sent; i++) all[sent[i]].state = RUNS;
    clear();
}

static void leave(uint64_t serial) {
    if (all[serial].state == UNKNOWN || all[serial].state == OVER) return;
    all[serial].state = OVER;
    gw_core_cancel(core, serial, now_ns);
    walk();
    follow();
}

/* Taken as a whole, or given up as one, as the gateway does it. The last serial that was given. */
static uint64_t come(uint64_t last_serial) {
    uint64_t serials[5];
    uint32_t n = 1 + below(4), n_taken = submit_choices(below(3), n, serials);
    for (uint32_t i = 0; i < n_taken; i++) all[serials[i]] = (known){serials[0], n, WAITS};
    follow();
    for (uint32_t i = 0; i < n_taken && n_taken < n; i++) leave(serials[i]);
    return n_taken > 0 ? serials[n_taken - 1] : last_serial;
}

static void test_no_answer_is_torn_whatever_happens(void) {
    srand(3);
    uint64_t n_full = 0, n_late = 0;
    for (uint32_t round = 0; round < 20; round++) {
        memset(all, 0, sizeof all);
        start(round % 9);
        uint64_t last = 0;
        for (int step = 0; step < 400; step++) {
            uint64_t serial = last > 16 ? last - below(16) : last;
            uint32_t what = below(8);
            if (what < 3) {
                last = come(last);
            } else if (what < 5) {
                if (all[serial].state == RUNS) compute(serial);
            } else if (what < 7) {
                leave(serial);
            } else {
                now_ns += (int64_t)below(QUEUE_MS / 2) * MS;
                gw_core_tick(core, now_ns);
                walk();
            }
            follow();
        }
        n_full += gw_core_counters(core)->n_queue_full;
        n_late += gw_core_counters(core)->n_queue_late;
        for (uint64_t serial = 1; serial <= last; serial++) leave(serial);
        stop();
    }
    CHECK(n_full > 100 && n_late > 100, "%d full, %d late", (int)n_full, (int)n_late);
}

static void test_who_waits_too_long_is_told(void) {
    start(8);
    (void)submit(0);
    uint64_t waiting = submit(0);
    now_ns += (int64_t)QUEUE_MS * MS - 1;
    gw_core_tick(core, now_ns);
    walk();
    CHECK(n_failed == 0, "not yet");
    now_ns++;
    gw_core_tick(core, now_ns);
    walk();
    CHECK(n_failed == 1 && failed[0] == waiting && strcmp(why, "queue_timeout") == 0, "now");
    CHECK(gw_core_counters(core)->n_queue_late == 1, "counted");
    stop();
}

static void test_who_has_no_worker_left_does_not_wait_for_long(void) {
    start(8);
    uint64_t runs = submit(0), waiting[3] = {submit(0), submit(1)};
    CHECK(submit_to("zone=a", 0, &waiting[2]) == BT_OK && gw_core_n_queued(core) == 3, "one runs, three wait");
    clear();
    gw_core_worker_gone(core, PREFILL, now_ns);
    walk();
    CHECK(gw_core_n_queued(core) == 0 && n_failed == 0, "they wait for a worker, whatever its room");
    for (int i = 0; i < 9; i++) {
        now_ns += 1000 * (int64_t)MS;
        gw_core_tick(core, now_ns);
        walk();
    }
    CHECK(n_failed == 0 && n_sent == 0, "it may come back");
    now_ns += 2000 * (int64_t)MS;
    gw_core_tick(core, now_ns);
    walk();
    CHECK(n_failed == 4 && strcmp(why, "no_worker") == 0, "it does not: %u", n_failed);
    for (int i = 0; i < 4; i++) CHECK(failed[i] >= runs && failed[i] <= waiting[2], "%d", i);
    stop();
}

static void test_a_worker_that_comes_back_gets_who_waited(void) {
    start(8);
    (void)submit(0);
    (void)submit(0);
    gw_core_worker_gone(core, PREFILL, now_ns);
    walk();
    clear();
    up(PREFILL + 1, "zone=a");
    now_ns += 5000 * (int64_t)MS;
    gw_core_tick(core, now_ns);
    walk();
    CHECK(n_failed == 0 && n_sent == 2, "both: %u", n_sent);
    stop();
}

static void test_who_leaves_makes_room(void) {
    start(8);
    uint64_t running = submit(0), second = submit(0), third = submit(0);
    gw_core_cancel(core, second, now_ns);
    walk();
    CHECK(gw_core_n_queued(core) == 1 && n_sent == 1, "one has left the queue");
    gw_core_cancel(core, running, now_ns);
    walk();
    CHECK(n_sent == 2 && sent[1] == third && gw_core_n_queued(core) == 0, "one has left its worker");
    stop();
}

static void test_who_is_refused_is_back_in_its_place_until_the_worker_reports(void) {
    start(8);
    uint64_t first = submit(0), second = submit(0);
    clear();
    refuse(first);
    CHECK(n_sent == 0 && n_failed == 0 && gw_core_n_queued(core) == 2, "nobody is sent to a worker that is full");
    CHECK(gw_core_info(core, first)->n_migrations == 0, "it is no migration");
    say_load(PREFILL, (wire_load){.running = 3});
    CHECK(n_sent == 1 && sent[0] == first && attempts[first] == 1, "the first is still the first");
    compute(first);
    CHECK(n_sent == 2 && sent[1] == second, "then the second");
    stop();
}

static void test_decode_without_free_blocks_has_no_room_unless_it_is_idle(void) {
    start(8);
    say_load(DECODE, (wire_load){.running = 1, .kv_blocks_total = 10, .kv_blocks_used = 8});
    uint64_t serial = submit(0);
    CHECK(n_sent == 0 && gw_core_n_queued(core) == 1, "200 tokens need more than two blocks");
    say_load(DECODE, (wire_load){.running = 1, .kv_blocks_total = 10, .kv_blocks_used = 6});
    CHECK(n_sent == 1 && sent[0] == serial, "four will do");
    say_load(DECODE, (wire_load){.running = 2, .kv_blocks_total = 10, .kv_blocks_used = 10});
    compute(serial);
    serial = submit(0);
    CHECK(gw_core_n_queued(core) == 1, "full again");
    gw_core_worker_gone(core, DECODE, now_ns);
    up(DECODE + 1, "");
    CHECK(sent[n_sent - 1] == serial || sent[n_sent - 2] == serial, "a new one is empty");
    say_load(DECODE + 1, (wire_load){.kv_blocks_total = 2});
    stop();
}

static void test_one_that_its_filter_holds_up_stands_aside(void) {
    start(8);
    up(PREFILL + 1, "zone=b");
    up(DECODE + 1, "zone=b");
    uint64_t in_a, more_in_a, anywhere, more, serial;
    CHECK(submit_to("zone=a", 0, &in_a) == BT_OK && submit_to("zone=a", 0, &more_in_a) == BT_OK, "a");
    CHECK(n_sent == 1 && gw_core_n_queued(core) == 1, "zone a is full");
    anywhere = submit(0);
    CHECK(n_sent == 2 && sent[1] == anywhere, "zone b is not");
    more = submit(0);
    CHECK(n_sent == 2 && gw_core_n_queued(core) == 2, "now it is");
    CHECK(submit_to("zone=c", 0, &serial) == BT_NO_CAPACITY, "where there is nobody nobody waits");
    compute(in_a);
    CHECK(n_sent == 3 && sent[2] == more_in_a, "it was first");
    compute(more_in_a);
    CHECK(n_sent == 4 && sent[3] == more, "now the other");
    stop();
}

static void test_a_replay_does_not_queue(void) {
    start(8);
    uint64_t first = submit(0), second = submit(0);
    up(DECODE + 1, "");
    say(PREFILL, (wire_message){.type = WIRE_ACCEPTED, .accepted = {request(first)}});
    say(PREFILL,
        (wire_message){.type = WIRE_FIRST_TOKEN, .first_token = {.request = request(first), .index = 0, .token = 9}});
    say(PREFILL, (wire_message){.type = WIRE_HANDED_OFF,
                                .handed_off = {.request = request(first), .decode_incarnation = DECODE}});
    CHECK(n_sent == 2 && sent[1] == second, "the hand-off has made room, and it is taken");
    gw_core_worker_gone(core, DECODE, now_ns);
    walk();
    CHECK(n_sent >= 3 && gw_core_n_queued(core) == 0, "whose client has tokens already is sent at once");
    stop();
}

/* Against a plain list. */
static void test_a_queue_is_in_order_whatever_happens(void) {
    enum { N = 200 };
    gw_queue queue = {0};
    bool is_in[N] = {false};
    uint32_t random = 1, n_in = 0;
    for (int step = 0; step < 20000; step++) {
        random = random * 1664525 + 1013904223;
        uint32_t i = (random >> 8) % N;
        gw_queued item = {.priority = i % 5, .serial = i * 7919 % N, .slot = i};
        if (is_in[i]) {
            CHECK(gw_queue_remove(&queue, &item), "%u was there", i);
        } else {
            CHECK(!gw_queue_remove(&queue, &item), "%u was not", i);
            gw_queue_put(&queue, item);
        }
        is_in[i] = !is_in[i];
        n_in += is_in[i] ? 1 : UINT32_MAX;
        CHECK(queue.n == n_in, "%u of %u", queue.n, n_in);
        bool is_sorted = true;
        for (uint32_t at = 1; at < queue.n; at++)
            is_sorted &= gw_queued_is_before(&queue.items[at - 1], &queue.items[at]);
        CHECK(is_sorted, "step %d", step);
    }
    gw_queue_fini(&queue);
}

int main(void) {
    test_who_waits_goes_by_priority_then_as_it_came();
    test_a_full_queue_drops_who_would_go_last();
    test_choices_of_an_answer_are_pushed_out_together();
    test_an_answer_that_has_begun_is_not_given_up();
    test_no_answer_is_torn_whatever_happens();
    test_who_waits_too_long_is_told();
    test_who_has_no_worker_left_does_not_wait_for_long();
    test_a_worker_that_comes_back_gets_who_waited();
    test_who_leaves_makes_room();
    test_who_is_refused_is_back_in_its_place_until_the_worker_reports();
    test_decode_without_free_blocks_has_no_room_unless_it_is_idle();
    test_one_that_its_filter_holds_up_stands_aside();
    test_a_replay_does_not_queue();
    test_a_queue_is_in_order_whatever_happens();
    TEST_END();
}
