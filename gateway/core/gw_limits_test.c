/* Rules, minutes, and several gateways that count together over a pretended Redis. */
#include "gateway/core/gw_limits.h"

#include <string.h>

#include "common/core/test.h"

enum { NOON = 43200, N_GATEWAYS = 3 };

static const char rules[] = "# who, what\n"
                            "model r1 1000 -\n"
                            "\n"
                            "  user alice 3 100\n"
                            "user * 2 -\r\n"
                            "key team-a 5 50\n";

static gw_limits *open_with(const char *text) {
    gw_limits *limits = gw_limits_open(7);
    bt_error err = {0};
    CHECK(gw_limits_load(limits, text, strlen(text), &err) == BT_OK, "%s", err.text);
    return limits;
}

static gw_limit_hit hit;

static bool admit_payers(gw_limits *limits, const gw_payers *payers, int64_t at_s) {
    if (!gw_limits_check(limits, payers, at_s, &hit)) return false;
    gw_limits_count(limits, payers, at_s);
    return true;
}

static bool admit(gw_limits *limits, const char *user, int64_t at_s) {
    const gw_payers payers = {{[GW_BY_MODEL] = "r1", [GW_BY_USER] = user}};
    return admit_payers(limits, &payers, at_s);
}

static void spend(gw_limits *limits, const char *user, uint32_t n_tokens, int64_t at_s) {
    const gw_payers payers = {{[GW_BY_MODEL] = "r1", [GW_BY_USER] = user}};
    gw_limits_spend(limits, &payers, n_tokens, at_s);
}

static void test_wrong_rules_are_refused_and_the_old_ones_stay(void) {
    static const char *const wrong[] = {"user alice 3",
                                        "user alice 3 4 5",
                                        "robot alice 3 4",
                                        "user alice -1 4",
                                        "user alice 3 1000000000001",
                                        "user alice 3 0x10",
                                        "user a 1 1\nuser a 2 2",
                                        "user al\x01"
                                        "ice 3 4",
                                        "user \xc3\xa9 3 4",
                                        "user alice 3 4k"};
    gw_limits *limits = open_with(rules);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        bt_error err = {0};
        CHECK(gw_limits_load(limits, wrong[i], strlen(wrong[i]), &err) == BT_BAD_REQUEST, "%s", wrong[i]);
        CHECK(strstr(err.text, "line ") != NULL, "%s", err.text);
    }
    CHECK(gw_limits_load(limits, "user a 1\0 1\n", 11, NULL) == BT_BAD_REQUEST, "a NUL");
    char name[600];
    memset(name, 'n', sizeof name);
    memcpy(name, "user ", 5);
    CHECK(gw_limits_load(limits, name, sizeof name, NULL) == BT_BAD_REQUEST, "a long line");
    for (int i = 0; i < 3; i++) CHECK(admit(limits, "alice", NOON), "the old rules, request %d", i);
    CHECK(!admit(limits, "alice", NOON) && hit.limit == 3, "the old rules");
    gw_limits_close(limits);
}

static void test_requests_are_counted_by_the_minute_and_by_name(void) {
    gw_limits *limits = open_with(rules);
    for (int i = 0; i < 3; i++) CHECK(admit(limits, "alice", NOON + 45), "request %d", i);
    CHECK(!admit(limits, "alice", NOON + 45), "the fourth");
    CHECK(hit.payer == GW_BY_USER && hit.unit == GW_REQUESTS && strcmp(hit.name, "alice") == 0, "%s", hit.name);
    CHECK(hit.retry_after_s == 15, "%u", hit.retry_after_s);
    CHECK(!admit(limits, "alice", NOON + 59) && hit.retry_after_s == 1, "%u", hit.retry_after_s);
    CHECK(admit(limits, "bob", NOON + 59) && admit(limits, "bob", NOON + 59) && !admit(limits, "bob", NOON + 59),
          "two for anybody else");
    CHECK(admit(limits, "carol", NOON + 59), "each of them");
    for (int i = 0; i < 100; i++) CHECK(admit(limits, NULL, NOON + 59), "nobody has no limit");
    CHECK(admit(limits, "alice", NOON + 60), "the next minute");
    gw_limits_close(limits);
}

static void test_a_refused_request_is_counted_nowhere(void) {
    gw_limits *limits = open_with("model r1 3 -\nuser * 1 -\n");
    CHECK(admit(limits, "a", NOON), "-");
    for (int i = 0; i < 5; i++) CHECK(!admit(limits, "a", NOON), "over its limit");
    CHECK(admit(limits, "b", NOON) && admit(limits, "c", NOON), "the model has two left");
    CHECK(!admit(limits, "d", NOON) && hit.payer == GW_BY_MODEL, "and then none");
    gw_limits_close(limits);
}

static void test_tokens_are_counted_when_they_come_and_refuse_what_follows(void) {
    gw_limits *limits = open_with("user alice - 100\n");
    CHECK(admit(limits, "alice", NOON), "-");
    spend(limits, "alice", 99, NOON);
    CHECK(admit(limits, "alice", NOON), "one is left");
    spend(limits, "alice", 1000, NOON + 1);
    CHECK(!admit(limits, "alice", NOON + 2) && hit.unit == GW_PER_TOKENS && hit.limit == 100, "spent");
    spend(limits, "alice", 100, NOON + 60);
    CHECK(!admit(limits, "alice", NOON + 61), "tokens count in the minute in which they are written");
    CHECK(admit(limits, "alice", NOON + 120), "-");
    gw_limits_close(limits);
}

static void test_a_key_is_charged_whatever_the_user_calls_itself(void) {
    gw_limits *limits = open_with(rules);
    gw_payers payers = {{[GW_BY_KEY] = "team-a"}};
    char name[16];
    for (int i = 0; i < 5; i++) {
        snprintf(name, sizeof name, "u%d", i);
        payers.names[GW_BY_USER] = name;
        CHECK(gw_limits_check(limits, &payers, NOON, &hit) && gw_limits_check(limits, &payers, NOON, &hit),
              "asked twice");
        CHECK(admit_payers(limits, &payers, NOON), "request %d", i);
    }
    payers.names[GW_BY_USER] = "another";
    CHECK(!gw_limits_check(limits, &payers, NOON, &hit) && hit.payer == GW_BY_KEY, "the key is spent");
    gw_limits_close(limits);
}

static void test_new_rules_count_what_was_counted_before(void) {
    gw_limits *limits = open_with(rules);
    CHECK(admit(limits, "alice", NOON) && admit(limits, "alice", NOON), "-");
    CHECK(gw_limits_load(limits, "user alice 2 -", 14, NULL) == BT_OK, "-");
    CHECK(!admit(limits, "alice", NOON) && hit.limit == 2, "less");
    CHECK(gw_limits_load(limits, "user alice 3 -", 14, NULL) == BT_OK, "-");
    CHECK(admit(limits, "alice", NOON) && !admit(limits, "alice", NOON), "one more");
    CHECK(gw_limits_load(limits, "", 0, NULL) == BT_OK && !gw_limits_has_rules(limits), "-");
    CHECK(admit(limits, "alice", NOON), "no limits");
    gw_limits_close(limits);
}

static void test_names_without_end_share_an_account(void) {
    gw_limits *limits = open_with("user * 1 -\n");
    char name[300];
    memset(name, 'x', sizeof name - 1);
    name[sizeof name - 1] = 0;
    CHECK(admit(limits, name, NOON) && !admit(limits, "two words", NOON) && strcmp(hit.name, "*") == 0,
          "what is no name is *");
    for (int i = 0; i < GW_CAP_ACCOUNTS; i++) {
        snprintf(name, sizeof name, "user-%d", i);
        admit(limits, name, NOON + 60);
    }
    CHECK(admit(limits, "late-1", NOON + 60) && !admit(limits, "late-2", NOON + 60), "there is one account for all");
    CHECK(!admit(limits, "user-7", NOON + 60) && strcmp(hit.name, "user-7") == 0, "who has one keeps it");
    gw_limits_close(limits);
}

/* ---- several gateways -----------------------------------------------------------------------------------------------
 */

static gw_limits *gateways[N_GATEWAYS];
static uint64_t redis_total; /* of the one counter of these tests */
static bool has_redis_counter;

static void cluster_open(const char *text) {
    for (int i = 0; i < N_GATEWAYS; i++) gateways[i] = open_with(text);
    redis_total = 0;
    has_redis_counter = false;
}

static void cluster_close(void) {
    for (int i = 0; i < N_GATEWAYS; i++) gw_limits_close(gateways[i]);
}

/* Redis adds up and answers; the others hear of it if they listen. */
static void flush(int gateway, bool others_listen) {
    gw_delta delta;
    while (gw_limits_take(gateways[gateway], &delta)) {
        if (delta.is_first && !has_redis_counter) redis_total = delta.known;
        has_redis_counter = true;
        redis_total += delta.amount;
        uint64_t total = redis_total;
        gw_limits_settle(gateways[gateway], &delta, &total);
        for (int i = 0; i < N_GATEWAYS && others_listen; i++)
            gw_limits_heard(gateways[i], delta.window, delta.id, strlen(delta.id), total);
    }
}

static void test_gateways_that_hear_of_each_other_share_one_limit(void) {
    cluster_open("user alice 10 -\n");
    int n_admitted = 0;
    for (int i = 0; i < 30; i++) {
        for (int g = 0; g < N_GATEWAYS; g++) gw_limits_window(gateways[g], NOON);
        n_admitted += admit(gateways[i % N_GATEWAYS], "alice", NOON);
        flush(i % N_GATEWAYS, true);
    }
    CHECK(n_admitted == 10, "%d", n_admitted);
    cluster_close();
}

static void test_what_news_take_is_all_that_a_limit_is_exceeded_by(void) {
    cluster_open("user alice 10 -\n");
    int n_admitted = 0;
    for (int i = 0; i < 10 * N_GATEWAYS; i++) n_admitted += admit(gateways[i % N_GATEWAYS], "alice", NOON);
    CHECK(n_admitted == 10 * N_GATEWAYS, "%d: none has heard of another", n_admitted);
    for (int g = 0; g < N_GATEWAYS; g++) flush(g, true);
    CHECK(redis_total == 10 * N_GATEWAYS, "%llu", (unsigned long long)redis_total);
    for (int g = 0; g < N_GATEWAYS; g++) CHECK(!admit(gateways[g], "alice", NOON), "gateway %d", g);
    cluster_close();
}

static void test_totals_may_come_late_twice_and_out_of_order(void) {
    cluster_open("user alice 10 -\n");
    gw_limits *limits = gateways[0];
    static const char id[] = "requests user alice";
    CHECK(admit(limits, "alice", NOON), "-");
    flush(0, false);
    gw_limits_heard(limits, NOON / 60, id, strlen(id), 9);
    gw_limits_heard(limits, NOON / 60, id, strlen(id), 4);
    gw_limits_heard(limits, NOON / 60, id, strlen(id), 9);
    gw_limits_heard(limits, NOON / 60 - 1, id, strlen(id), 5000);
    CHECK(admit(limits, "alice", NOON) && !admit(limits, "alice", NOON), "nine and one");
    cluster_close();
}

static void test_an_answer_that_never_comes_is_counted_here(void) {
    cluster_open("user alice 2 -\n");
    gw_delta delta, none;
    CHECK(admit(gateways[0], "alice", NOON) && gw_limits_take(gateways[0], &delta), "-");
    CHECK(delta.amount == 1 && delta.is_first && strcmp(delta.id, "requests user alice") == 0, "%s", delta.id);
    gw_limits_settle(gateways[0], &delta, NULL);
    CHECK(!gw_limits_take(gateways[0], &none), "it is not sent twice");
    CHECK(admit(gateways[0], "alice", NOON) && !admit(gateways[0], "alice", NOON), "-");
    cluster_close();
}

static void test_a_redis_that_forgot_is_told_by_whoever_counts_first(void) {
    cluster_open("user alice 10 -\n");
    for (int i = 0; i < 6; i++) {
        for (int g = 0; g < N_GATEWAYS; g++) gw_limits_window(gateways[g], NOON);
        CHECK(admit(gateways[0], "alice", NOON), "-");
        flush(0, true);
    }
    redis_total = 0;
    has_redis_counter = false;
    for (int g = 0; g < N_GATEWAYS; g++) gw_limits_reconnected(gateways[g]);
    int n_admitted = 0;
    for (int i = 0; i < 30; i++) {
        n_admitted += admit(gateways[i % N_GATEWAYS], "alice", NOON);
        flush(i % N_GATEWAYS, true);
    }
    CHECK(n_admitted == 4 && redis_total == 10, "%d more, Redis has %llu", n_admitted, (unsigned long long)redis_total);
    cluster_close();
}

static void test_an_answer_of_another_minute_touches_nothing(void) {
    cluster_open("user alice 2 -\n");
    gw_delta delta;
    uint64_t total = 2;
    CHECK(admit(gateways[0], "alice", NOON) && gw_limits_take(gateways[0], &delta), "-");
    gw_limits_window(gateways[0], NOON + 60);
    gw_limits_settle(gateways[0], &delta, &total);
    gw_limits_window(gateways[0], NOON); /* a clock that was put back */
    gw_limits_settle(gateways[0], &delta, &total);
    CHECK(admit(gateways[0], "alice", NOON) && admit(gateways[0], "alice", NOON), "-");
    cluster_close();
}

static void test_what_waits_when_a_minute_ends_is_counted_in_it(void) {
    cluster_open("user alice 2 100\n");
    gw_limits *limits = gateways[0];
    gw_delta delta;
    CHECK(admit(limits, "alice", NOON) && admit(limits, "alice", NOON), "-");
    spend(limits, "alice", 70, NOON + 59);
    CHECK(admit(limits, "alice", NOON + 60), "the next minute has all of it");
    uint64_t want[][2] = {{NOON / 60, 2}, {NOON / 60, 70}, {NOON / 60 + 1, 1}}, total = 1000;
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        CHECK(gw_limits_take(limits, &delta) && (uint64_t)delta.window == want[i][0] && delta.amount == want[i][1],
              "%zu: %llu of minute %lld", i, (unsigned long long)delta.amount, (long long)delta.window);
        if (i < 2) gw_limits_settle(limits, &delta, &total);
    }
    CHECK(!gw_limits_take(limits, &delta), "that is all");
    CHECK(admit(limits, "alice", NOON + 60) && !admit(limits, "alice", NOON + 60), "what was told then is not of now");
    gw_limits_window(limits, NOON + 120);
    gw_limits_window(limits, NOON + 180);
    CHECK(!gw_limits_take(limits, &delta), "a minute later it is of no use");
    cluster_close();
}

static void test_strange_totals_are_ignored(void) {
    static const char *const strange[] = {"",
                                          " ",
                                          "requests",
                                          "requests user",
                                          "requests user ",
                                          "requests robot alice",
                                          "bytes user alice",
                                          "requests user bob",
                                          "requests user two words",
                                          "requests  user alice"};
    cluster_open("user alice 2 -\n");
    gw_limits_window(gateways[0], NOON);
    for (size_t i = 0; i < sizeof strange / sizeof *strange; i++)
        gw_limits_heard(gateways[0], NOON / 60, strange[i], strlen(strange[i]), 100);
    gw_limits_heard(gateways[0], NOON / 60, "requests user alice", 19, UINT64_MAX);
    CHECK(admit(gateways[0], "alice", NOON) && admit(gateways[0], "alice", NOON), "-");
    cluster_close();
}

int main(void) {
    test_wrong_rules_are_refused_and_the_old_ones_stay();
    test_requests_are_counted_by_the_minute_and_by_name();
    test_a_refused_request_is_counted_nowhere();
    test_tokens_are_counted_when_they_come_and_refuse_what_follows();
    test_a_key_is_charged_whatever_the_user_calls_itself();
    test_new_rules_count_what_was_counted_before();
    test_names_without_end_share_an_account();
    test_gateways_that_hear_of_each_other_share_one_limit();
    test_what_news_take_is_all_that_a_limit_is_exceeded_by();
    test_totals_may_come_late_twice_and_out_of_order();
    test_an_answer_that_never_comes_is_counted_here();
    test_a_redis_that_forgot_is_told_by_whoever_counts_first();
    test_an_answer_of_another_minute_touches_nothing();
    test_what_waits_when_a_minute_ends_is_counted_in_it();
    test_strange_totals_are_ignored();
    TEST_END();
}
