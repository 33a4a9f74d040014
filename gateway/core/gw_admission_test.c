/* Predictions against a pretended cluster: one server that takes prompts in order, so many tokens per second, and adds
 * a constant. */
#include "gateway/core/gw_admission.h"

#include <string.h>

#include "common/core/clock.h"
#include "common/core/test.h"

enum { N_TOKENS = 100, CAP_QUEUE = 1 << 17 };

static gw_admission door;
static gw_ticket tickets[CAP_QUEUE];
static uint32_t n_entered, n_served, n_refused;
static double free_at_s, worst_s, busy_s; /* the server's next idle moment; since the last measure() */
static double constant_s = 0.02;

/* Everything that the server has done by now. */
static void serve(double now_s, double tokens_per_s) {
    while (n_served < n_entered) {
        gw_ticket *ticket = &tickets[n_served];
        double entered_s = (double)ticket->at_ns / BT_NS_PER_S, begin_s = free_at_s > entered_s ? free_at_s : entered_s;
        double end_s = begin_s + ticket->n_tokens / tokens_per_s;
        if (end_s + constant_s > now_s) return;
        double time_s = end_s + constant_s - entered_s;
        if (time_s > worst_s) worst_s = time_s;
        busy_s += end_s - begin_s;
        free_at_s = end_s;
        gw_admission_first_token(&door, ticket, (int64_t)((end_s + constant_s) * BT_NS_PER_S));
        n_served++;
    }
}

/* `seconds` of arrivals, all alike; what is predicted to wait for longer than limit_s is refused. */
static double drive(double from_s, double seconds, double requests_per_s, double tokens_per_s, double limit_s) {
    worst_s = busy_s = 0;
    n_refused = 0;
    for (double now_s = from_s; now_s < from_s + seconds; now_s += 1 / requests_per_s) {
        serve(now_s, tokens_per_s);
        int64_t wait_ns = gw_admission_predict_ns(&door, N_TOKENS);
        if (limit_s > 0 && (double)wait_ns > limit_s * BT_NS_PER_S)
            n_refused++;
        else
            gw_admission_enter(&door, &tickets[n_entered++], N_TOKENS, (int64_t)(now_s * BT_NS_PER_S));
    }
    return from_s + seconds;
}

static void reset(void) {
    memset(&door, 0, sizeof door);
    n_entered = n_served = 0;
    free_at_s = 0;
}

static void test_an_idle_cluster_refuses_nobody(void) {
    reset();
    drive(0, 60, 50, 10000, 0.5);
    CHECK(n_refused == 0, "%u", n_refused);
    CHECK(door.n_waiting <= 2, "%u", door.n_waiting);
}

static void test_at_three_times_the_capacity_those_admitted_are_in_time_and_the_server_is_busy(void) {
    reset();
    double now_s = drive(0, 20, 50, 10000, 1); /* half of what it can do */
    now_s = drive(now_s, 5, 300, 10000, 1);    /* the first seconds: it learns */
    CHECK(worst_s < 1.6, "%f s while it learns", worst_s);
    now_s = drive(now_s, 60, 300, 10000, 1);
    CHECK(worst_s < 1.1, "%f s", worst_s);
    CHECK(busy_s > 60 * 0.95, "busy for %f of 60 s", busy_s);
    now_s = drive(now_s, 5, 50, 10000, 1);
    drive(now_s, 20, 50, 10000, 1);
    CHECK(n_refused == 0, "when the crowd has gone all are admitted: %u", n_refused);
}

static void test_a_server_that_gets_slower_or_faster_is_followed(void) {
    reset();
    double now_s = drive(0, 30, 300, 10000, 1);
    now_s = drive(now_s, 20, 300, 5000, 1);
    now_s = drive(now_s, 30, 300, 5000, 1);
    CHECK(worst_s < 1.15, "half as fast: %f s", worst_s);
    CHECK(busy_s > 30 * 0.9, "busy for %f of 30 s", busy_s);
    now_s = drive(now_s, 20, 300, 20000, 1);
    drive(now_s, 30, 300, 20000, 1);
    CHECK(worst_s < 1.15 && busy_s > 30 * 0.9, "four times as fast: %f s, busy for %f of 30 s", worst_s, busy_s);
}

static void test_a_wrong_model_heals(void) {
    reset();
    door = (gw_admission){.floor_s = 1000, .tokens = 1, .seconds = 1e6};
    double now_s = drive(0, 30, 50, 10000, 0.5);
    drive(now_s, 20, 50, 10000, 0.5);
    CHECK(n_refused == 0, "%u", n_refused);
}

static void test_few_come_later_than_predicted(void) {
    reset();
    const int64_t ms = BT_NS_PER_MS;
    uint32_t n_late = 0;
    for (int i = 0; i < 4000; i++) {
        int64_t now_ns = i * 1000 * ms, second_ns = (i % 4 == 0 ? 320 : 200) * ms; /* every fourth is late */
        gw_admission_enter(&door, &tickets[0], N_TOKENS, now_ns);
        int64_t predicted_ns = gw_admission_predict_ns(&door, N_TOKENS);
        gw_admission_enter(&door, &tickets[1], N_TOKENS, now_ns);
        n_late += i >= 2000 && second_ns > predicted_ns;
        gw_admission_first_token(&door, &tickets[0], now_ns + 100 * ms);
        gw_admission_first_token(&door, &tickets[1], now_ns + second_ns);
    }
    CHECK(n_late < 2000 / 20, "%u of 2000", n_late);
}

static void test_who_leaves_waits_no_more_and_teaches_nothing(void) {
    reset();
    gw_ticket a = {0}, b = {0}, never = {0};
    gw_admission_enter(&door, &a, 7, 0);
    gw_admission_enter(&door, &b, 5, 0);
    CHECK(door.n_waiting_tokens == 12 && b.n_ahead == 12, "-");
    gw_admission_leave(&door, &a);
    gw_admission_leave(&door, &a);
    gw_admission_first_token(&door, &a, BT_NS_PER_S);
    gw_admission_leave(&door, &never);
    CHECK(door.n_waiting == 1 && door.n_waiting_tokens == 5 && door.tokens == 0, "-");
    gw_admission_first_token(&door, &b, BT_NS_PER_S);
    gw_admission_leave(&door, &b);
    CHECK(door.n_waiting == 0 && door.n_waiting_tokens == 0 && door.floor_s == 1, "-");
    CHECK(gw_admission_predict_ns(&door, 1000000) == 0, "nothing waits");
}

int main(void) {
    test_an_idle_cluster_refuses_nobody();
    test_at_three_times_the_capacity_those_admitted_are_in_time_and_the_server_is_busy();
    test_a_server_that_gets_slower_or_faster_is_followed();
    test_a_wrong_model_heals();
    test_few_come_later_than_predicted();
    test_who_leaves_waits_no_more_and_teaches_nothing();
    TEST_END();
}
