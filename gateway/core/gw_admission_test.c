/* Predictions against a pretended cluster: one server that takes prompts by priority, then in order, so many tokens per
 * second, and adds a constant. */
#include "gateway/core/gw_admission.h"

#include <string.h>

#include "common/core/clock.h"
#include "common/core/test.h"

enum { N_TOKENS = 100, CAP_QUEUE = 1 << 17, N_PRIORITIES = 2 };

/* What entered with one priority; the times since the last measure. */
typedef struct {
    gw_ticket tickets[CAP_QUEUE];
    uint32_t n_entered, n_served, n_refused;
    double worst_s;
} line;

static gw_admission door;
static line lines[N_PRIORITIES]; /* by priority */
static double free_at_s, busy_s; /* the server's next idle moment; since the last measure */
static double constant_s = 0.02;
static double patience_s; /* of those of low priority; 0: without end */
static uint32_t n_left;   /* who had none any more, since the last measure */

static double entered_s(const line *line) { return (double)line->tickets[line->n_served].at_ns / BT_NS_PER_S; }

/* Who is next, and when: the first priority in which somebody waits when the server is free, or whoever comes first. */
static line *next_line(double *begin_s) {
    line *next = NULL;
    for (int i = 0; i < N_PRIORITIES; i++) {
        line *line = &lines[i];
        if (line->n_served == line->n_entered) continue;
        double at_s = entered_s(line) > free_at_s ? entered_s(line) : free_at_s;
        if (next == NULL || at_s < *begin_s) next = line, *begin_s = at_s;
    }
    return next;
}

static void lose_patience(double now_s) {
    line *low = &lines[N_PRIORITIES - 1];
    for (; low->n_served < low->n_entered && now_s - entered_s(low) > patience_s; low->n_served++, n_left++)
        gw_admission_leave(&door, &low->tickets[low->n_served], (int64_t)(now_s * BT_NS_PER_S));
}

/* Everything that the server has done by now. */
static void serve(double now_s, double tokens_per_s) {
    double begin_s = 0;
    for (line *line; (line = next_line(&begin_s)) != NULL; line->n_served++) {
        gw_ticket *ticket = &line->tickets[line->n_served];
        double end_s = begin_s + ticket->n_tokens / tokens_per_s;
        if (end_s + constant_s > now_s) return;
        double time_s = end_s + constant_s - entered_s(line);
        if (time_s > line->worst_s) line->worst_s = time_s;
        busy_s += end_s - begin_s;
        free_at_s = end_s;
        gw_admission_first_token(&door, ticket, (int64_t)((end_s + constant_s) * BT_NS_PER_S));
    }
}

static void arrive(int priority, double now_s, double limit_s) {
    line *line = &lines[priority];
    int64_t wait_ns = gw_admission_predict_ns(&door, priority, N_TOKENS);
    if (limit_s > 0 && (double)wait_ns > limit_s * BT_NS_PER_S)
        line->n_refused++;
    else
        gw_admission_enter(&door, &line->tickets[line->n_entered++], priority, N_TOKENS,
                           (int64_t)(now_s * BT_NS_PER_S));
}

static void measure(void) {
    for (int i = 0; i < N_PRIORITIES; i++) lines[i].worst_s = 0, lines[i].n_refused = 0;
    busy_s = 0;
    n_left = 0;
}

/* `seconds` of arrivals, all alike but that each `every`th is of low priority; what is predicted to wait for longer
 * than limit_s is refused. */
static double drive_mixed(double from_s, double seconds, double requests_per_s, double tokens_per_s, double limit_s,
                          int every) {
    measure();
    int i = 0;
    for (double now_s = from_s; now_s < from_s + seconds; now_s += 1 / requests_per_s) {
        serve(now_s, tokens_per_s);
        if (patience_s > 0) lose_patience(now_s);
        arrive(every > 0 && i++ % every > 0, now_s, limit_s);
    }
    return from_s + seconds;
}

static double drive(double from_s, double seconds, double requests_per_s, double tokens_per_s, double limit_s) {
    return drive_mixed(from_s, seconds, requests_per_s, tokens_per_s, limit_s, 0);
}

static void reset(void) {
    gw_admission_fini(&door);
    memset(lines, 0, sizeof lines);
    free_at_s = 0;
}

static void test_an_idle_cluster_refuses_nobody(void) {
    reset();
    drive(0, 60, 50, 10000, 0.5);
    CHECK(lines[0].n_refused == 0, "%u", lines[0].n_refused);
    CHECK(lines[0].n_entered - lines[0].n_served <= 2, "%u of %u", lines[0].n_served, lines[0].n_entered);
}

static void test_at_three_times_the_capacity_those_admitted_are_in_time_and_the_server_is_busy(void) {
    reset();
    double now_s = drive(0, 20, 50, 10000, 1); /* half of what it can do */
    now_s = drive(now_s, 5, 300, 10000, 1);    /* the first seconds: it learns */
    CHECK(lines[0].worst_s < 1.6, "%f s while it learns", lines[0].worst_s);
    now_s = drive(now_s, 60, 300, 10000, 1);
    CHECK(lines[0].worst_s < 1.1, "%f s", lines[0].worst_s);
    CHECK(busy_s > 60 * 0.95, "busy for %f of 60 s", busy_s);
    now_s = drive(now_s, 5, 50, 10000, 1);
    drive(now_s, 20, 50, 10000, 1);
    CHECK(lines[0].n_refused == 0, "when the crowd has gone all are admitted: %u", lines[0].n_refused);
}

static void test_a_server_that_gets_slower_or_faster_is_followed(void) {
    reset();
    double now_s = drive(0, 30, 300, 10000, 1);
    now_s = drive(now_s, 20, 300, 5000, 1);
    now_s = drive(now_s, 30, 300, 5000, 1);
    CHECK(lines[0].worst_s < 1.15, "half as fast: %f s", lines[0].worst_s);
    CHECK(busy_s > 30 * 0.9, "busy for %f of 30 s", busy_s);
    now_s = drive(now_s, 20, 300, 20000, 1);
    drive(now_s, 30, 300, 20000, 1);
    CHECK(lines[0].worst_s < 1.15 && busy_s > 30 * 0.9, "four times as fast: %f s, busy for %f of 30 s",
          lines[0].worst_s, busy_s);
}

static void test_a_wrong_model_heals(void) {
    reset();
    door.floor_s = 1000;
    door.paces[GW_N_PACES / 2] = (gw_pace){.tokens = 1, .seconds = 1e6}; /* of priority 0 */
    double now_s = drive(0, 30, 50, 10000, 0.5);
    drive(now_s, 20, 50, 10000, 0.5);
    CHECK(lines[0].n_refused == 0, "%u", lines[0].n_refused);
}

static void test_few_come_later_than_predicted(void) {
    reset();
    const int64_t ms = BT_NS_PER_MS;
    uint32_t n_late = 0;
    gw_ticket a = {0}, b = {0};
    for (int i = 0; i < 4000; i++) {
        int64_t now_ns = i * 1000 * ms, second_ns = (i % 4 == 0 ? 320 : 200) * ms; /* every fourth is late */
        gw_admission_enter(&door, &a, 0, N_TOKENS, now_ns);
        int64_t predicted_ns = gw_admission_predict_ns(&door, 0, N_TOKENS);
        gw_admission_enter(&door, &b, 0, N_TOKENS, now_ns);
        n_late += i >= 2000 && second_ns > predicted_ns;
        gw_admission_first_token(&door, &a, now_ns + 100 * ms);
        gw_admission_first_token(&door, &b, now_ns + second_ns);
    }
    CHECK(n_late < 2000 / 20, "%u of 2000", n_late);
}

static void test_who_leaves_waits_no_more_and_teaches_only_that_it_was_long(void) {
    reset();
    const gw_pace *pace = &door.paces[GW_N_PACES / 2]; /* of priority 0 */
    gw_ticket a = {0}, b = {0}, never = {0};
    gw_admission_enter(&door, &a, 0, 7, 0);
    gw_admission_enter(&door, &b, 0, 5, 0);
    CHECK(door.n_waiting == 1 && door.waiting[0].n_tokens == 12 && b.n_ahead == 12, "-");
    gw_admission_leave(&door, &a, 9 * (int64_t)BT_NS_PER_S);
    gw_admission_leave(&door, &a, 9 * (int64_t)BT_NS_PER_S);
    gw_admission_first_token(&door, &a, BT_NS_PER_S);
    gw_admission_leave(&door, &never, BT_NS_PER_S);
    CHECK(door.n_waiting == 1 && door.waiting[0].n_tokens == 5 && pace->tokens == 0, "nothing is known yet");
    gw_admission_first_token(&door, &b, BT_NS_PER_S);
    gw_admission_leave(&door, &b, BT_NS_PER_S);
    CHECK(door.n_waiting == 0 && door.floor_s == 1, "-");
    CHECK(gw_admission_predict_ns(&door, 0, 1000000) == 0, "nothing waits");
    double slowness = pace->seconds / pace->tokens;
    gw_admission_enter(&door, &a, 0, 5, 0);
    gw_admission_leave(&door, &a, BT_NS_PER_S / 2);
    CHECK(pace->seconds / pace->tokens == slowness, "early");
    gw_admission_enter(&door, &a, 0, 5, 0);
    gw_admission_leave(&door, &a, 4 * (int64_t)BT_NS_PER_S);
    CHECK(pace->seconds / pace->tokens > slowness && door.floor_s == 1, "late");
}

static void test_only_those_that_go_first_are_ahead(void) {
    static const int64_t priorities[] = {0, 7, INT64_MIN, INT64_MAX, 7, -1};
    static const uint64_t aheads[] = {1, 3, 4, 15, 23, 36}; /* of 1, 2, 4, ... tokens */
    enum { N = sizeof priorities / sizeof *priorities };
    reset();
    gw_ticket tickets[N] = {0};
    for (int i = 0; i < N; i++) {
        gw_admission_enter(&door, &tickets[i], priorities[i], 1u << i, 0);
        CHECK(tickets[i].n_ahead == aheads[i] && tickets[i].is_alone == (i == 0), "%d: %d", i, (int)tickets[i].n_ahead);
    }
    for (int i = 0; i < GW_N_PACES; i++) door.paces[i].tokens = door.paces[i].seconds = 1; /* a token per second */
    CHECK(gw_admission_predict_ns(&door, -2, 10) == 14 * (int64_t)BT_NS_PER_S, "the smallest is ahead");
    CHECK(gw_admission_predict_ns(&door, 7, 10) == 65 * (int64_t)BT_NS_PER_S, "all but the largest");
    gw_admission_leave(&door, &tickets[2], 0);
    CHECK(gw_admission_predict_ns(&door, -2, 10) == 0, "nothing is ahead of it, though much waits");
    for (int i = 0; i < N; i++) gw_admission_leave(&door, &tickets[i], 0);
    CHECK(door.n_waiting == 0, "%u priorities", door.n_waiting);
}

static void test_priorities_of_which_nothing_is_known_borrow_from_the_nearest(void) {
    static const struct {
        int64_t priority;
        int pace; /* seconds per token */
    } rows[] = {{INT64_MIN, 2}, {-9, 2}, {-4, 2}, {-2, 2}, {-1, 6}, {0, 6}, {2, 6}, {3, 6}, {99, 6}, {INT64_MAX, 6}};
    reset();
    gw_ticket ticket = {0};
    gw_admission_enter(&door, &ticket, INT64_MIN, 1, 0);
    door.paces[0] = (gw_pace){.tokens = 1, .seconds = 2}; /* -4 and below */
    door.paces[5] = (gw_pace){.tokens = 1, .seconds = 6}; /* 1 */
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int64_t wait_ns = gw_admission_predict_ns(&door, rows[i].priority, 1);
        CHECK(wait_ns == 2 * rows[i].pace * (int64_t)BT_NS_PER_S, "priority %lld: %f s", (long long)rows[i].priority,
              (double)wait_ns / BT_NS_PER_S);
    }
}

/* Three times the capacity, of which those of high priority take three fifths, or all. */
static void test_a_crowd_of_low_priority_keeps_no_other_out(void) {
    const line *high = &lines[0], *low = &lines[1];
    for (int every = 3; every <= 5; every += 2) {
        reset();
        patience_s = 1;
        double now_s = drive_mixed(0, 30, 300, 10000, 1, every);
        uint32_t n_entered = low->n_entered;
        drive_mixed(now_s, 60, 300, 10000, 1, every);
        CHECK(high->n_refused == 0 && high->worst_s < 0.1, "1 of %d: %u, %f s", every, high->n_refused, high->worst_s);
        CHECK(busy_s > 60 * 0.95, "1 of %d: busy for %f of 60 s", every, busy_s);
        if (every == 3) continue; /* no other is served */
        CHECK(low->worst_s < 1.1, "1 of %d: %f s", every, low->worst_s);
        CHECK(n_left < (low->n_entered - n_entered) / 10, "1 of %d: %u of %u left", every, n_left, low->n_entered);
    }
    patience_s = 0;
}

int main(void) {
    test_an_idle_cluster_refuses_nobody();
    test_at_three_times_the_capacity_those_admitted_are_in_time_and_the_server_is_busy();
    test_a_server_that_gets_slower_or_faster_is_followed();
    test_a_wrong_model_heals();
    test_few_come_later_than_predicted();
    test_who_leaves_waits_no_more_and_teaches_only_that_it_was_long();
    test_only_those_that_go_first_are_ahead();
    test_priorities_of_which_nothing_is_known_borrow_from_the_nearest();
    test_a_crowd_of_low_priority_keeps_no_other_out();
    reset();
    TEST_END();
}
