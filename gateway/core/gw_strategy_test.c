/* Each strategy by what it chooses: none passes for another. And mixes, names, and the corners of single rules. */
#include "gateway/core/gw_strategy.h"

#include <string.h>

#include "common/core/test.h"

enum { N = 8, N_DRAWS = 700, TOKENS = 1000, SESSION = 5, MOST = 7 };

/* In each figure another worker is best. Speed is 1000 tokens/s, so a token is a millisecond, but for the third. */
static const gw_figures crowd[N] = {
    {.n_requests = 1, .n_queued_tokens = 2000, .n_blocks_used = 50},
    {.n_requests = 5, .n_queued_tokens = 100, .n_blocks_used = 50},
    {.n_requests = 6, .n_queued_tokens = 2000, .n_blocks_used = 10},
    {.n_requests = 7, .n_queued_tokens = 1000, .n_blocks_used = 50, .tokens_per_s = 4000},  /* waits 500 ms */
    {.n_requests = 8, .n_queued_tokens = 1140, .n_blocks_used = 50, .n_known_tokens = 640}, /* 1500 ms */
    {.n_requests = 9, .n_queued_tokens = 2000, .n_blocks_used = 50},
    {.n_requests = 4, .n_queued_tokens = 248, .n_blocks_used = 50, .n_known_tokens = 448}, /* 800 ms */
    {.n_requests = 10, .n_queued_tokens = 2000, .n_blocks_used = 50},
};

static gw_figures workers[N];

static gw_scene scene_of(const gw_figures *figures, uint32_t n) {
    memcpy(workers, figures, n * sizeof(*figures));
    for (uint32_t i = 0; i < n; i++) {
        workers[i].name_hash = 100 + i;
        workers[i].n_blocks_total = 100;
        if (workers[i].tokens_per_s == 0) workers[i].tokens_per_s = 1000;
    }
    return (gw_scene){
        .workers = workers, .n_workers = n, .n_tokens = TOKENS, .saturation_ms = 2000, .slo_ttft_ms = 1000};
}

static gw_strategy parse(const char *text) {
    gw_strategy strategy = {0};
    CHECK(gw_strategy_parse(text, &strategy, NULL) == BT_OK, "%s", text);
    return strategy;
}

static uint32_t choose(const char *text, gw_scene scene) {
    double scratch[2 * N];
    gw_strategy strategy = parse(text);
    return gw_strategy_choose(&strategy, &scene, scratch);
}

typedef struct {
    const char *name;
    uint32_t always; /* it chooses this one; N: see is_like() */
} rule;

static bool is_like(const rule *rule, const uint32_t *n_chosen) {
    if (rule->always < N) return n_chosen[rule->always] == N_DRAWS;
    bool is_random = strcmp(rule->name, "random") == 0;
    for (uint32_t i = 0; is_random && i < N; i++)
        if (n_chosen[i] < N_DRAWS / N / 2 || n_chosen[i] > N_DRAWS / N * 3 / 2) return false;
    if (is_random) return true;
    /* Of two different ones the better: the best wins 7 of 28 pairs, the second 6, the worst none. */
    return n_chosen[MOST] == 0 && n_chosen[SESSION] > 0 && n_chosen[0] > N_DRAWS / 6 && n_chosen[0] < N_DRAWS / 3;
}

static void test_no_strategy_passes_for_another(void) {
    static const rule rules[] = {{"least-request", 0}, {"throughput", 1},   {"least-kv-cache", 2},
                                 {"least-latency", 3}, {"prefix-cache", 4}, {"session-affinity", SESSION},
                                 {"slo", 6},           {"random", N},       {"power-of-two", N}};
    enum { N_RULES = sizeof rules / sizeof *rules };
    gw_scene scene = scene_of(crowd, N);
    scene.session_name = 100 + SESSION;
    for (uint32_t i = 0; i < N_RULES; i++) {
        uint32_t n_chosen[N] = {0};
        for (scene.random = 1; scene.random <= N_DRAWS; scene.random++) n_chosen[choose(rules[i].name, scene)]++;
        for (uint32_t k = 0; k < N_RULES; k++)
            CHECK(is_like(&rules[k], n_chosen) == (i == k), "%s, judged as %s", rules[i].name, rules[k].name);
    }
    CHECK(choose("pd", scene) == 4 && choose("", scene) == 4 && choose("least-gpu-cache", scene) == 2, "other names");
}

static void test_ties_are_broken_evenly(void) {
    static const gw_figures same[4];
    gw_scene scene = scene_of(same, 4);
    uint32_t n_chosen[4] = {0};
    for (scene.random = 1; scene.random <= 400; scene.random++) n_chosen[choose("prefix-cache", scene)]++;
    for (int i = 0; i < 4; i++) CHECK(n_chosen[i] > 60 && n_chosen[i] < 140, "%d: %u", i, n_chosen[i]);
}

static void test_prefix_cache_is_sticky_until_saturated(void) {
    static const struct {
        gw_figures home, other;
        uint32_t chosen;
        const char *why;
    } rows[] = {
        {{.n_queued_tokens = 2000, .n_known_tokens = 960}, {0}, 0, "the queue is at the bound, though it waits longer"},
        {{.n_queued_tokens = 2001, .n_known_tokens = 960}, {0}, 1, "above the bound the other waits less"},
        {{.n_queued_tokens = 2001, .n_known_tokens = 960}, {.n_queued_tokens = 2000}, 0, "but not always"},
        {{.n_queued_tokens = 2001, .n_known_tokens = 960, .tokens_per_s = 2000}, {0}, 0, "a fast one has more time"},
        {{.n_queued_tokens = 500, .n_known_tokens = 448}, {0}, 1, "less than half is known: the queue decides"},
        {{.n_queued_tokens = 400, .n_known_tokens = 448}, {0}, 0, "likewise"},
        {{.n_queued_tokens = 900, .n_known_tokens = 960}, {.n_known_tokens = 896}, 0, "the longest beginning"},
        {{.n_queued_tokens = 900, .n_known_tokens = 960}, {.n_known_tokens = 960}, 1, "of equals the shortest queue"},
        {{.n_queued_tokens = 2001, .n_known_tokens = 960}, {.n_queued_tokens = 2001}, 0, "all are saturated"},
        {{.tokens_per_s = 9000, .n_blocks_kept = 8},
         {.n_blocks_kept = 7},
         1,
         "new to idle ones: who keeps fewest blocks"},
        {{.tokens_per_s = 9000, .n_queued_tokens = 1}, {.n_blocks_kept = 999}, 1, "new: the shortest queue, not speed"},
        {{.n_known_tokens = 960, .n_blocks_kept = 99}, {.n_known_tokens = 896}, 0, "nor do blocks outweigh tokens"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const gw_figures two[] = {rows[i].home, rows[i].other};
        CHECK(choose("prefix-cache", scene_of(two, 2)) == rows[i].chosen, "%s", rows[i].why);
    }
}

static void test_an_unmeasured_worker_is_taken_for_an_average_one(void) {
    const gw_figures three[] = {{.n_queued_tokens = 1000, .tokens_per_s = 1000},
                                {.n_queued_tokens = 1000},
                                {.n_queued_tokens = 1000, .tokens_per_s = 4000}};
    gw_scene scene = scene_of(three, 3);
    workers[1].tokens_per_s = 0;
    CHECK(choose("least-latency", scene) == 2, "the fastest");
    scene.n_workers = 2;
    workers[0].n_queued_tokens = 1001;
    CHECK(choose("least-latency", scene) == 1, "2500/s, or as fast as the other");
}

static void test_slo_takes_the_shortest_wait_if_none_meets_the_target(void) {
    const gw_figures two[] = {{.n_queued_tokens = 1500, .n_known_tokens = 960}, {.n_queued_tokens = 400}};
    CHECK(choose("slo", scene_of(two, 2)) == 1, "1540 and 1400 ms, target 1000");
}

static void test_a_session_stays_and_moves_only_if_its_worker_is_gone(void) {
    static const gw_figures idle[N];
    gw_scene scene = scene_of(idle, N);
    uint32_t n_chosen[N] = {0}, n_moved = 0;
    for (uint64_t key = 1; key <= 400; key++) {
        scene = scene_of(idle, N);
        scene.session_key = gw_strategy_hash("a") * key;
        scene.random = key;
        uint32_t home = choose("session-affinity", scene);
        n_chosen[home]++;
        scene.random = ~key;
        CHECK(choose("session-affinity", scene) == home, "whatever the draw");
        scene.n_workers--; /* the last one goes */
        uint32_t next = choose("session-affinity", scene);
        n_moved += next != home;
        CHECK(home == N - 1 || next == home, "only its sessions move");
    }
    CHECK(n_moved == n_chosen[N - 1], "all of them");
    for (int i = 0; i < N; i++) CHECK(n_chosen[i] > 20 && n_chosen[i] < 90, "%d has %u of 400", i, n_chosen[i]);
    scene = scene_of(crowd, N);
    CHECK(choose("session-affinity", scene) == 0, "without a session: fewest requests");
    scene.session_name = 999;
    CHECK(choose("session-affinity", scene) == 0, "likewise if its worker is gone");
}

static void test_a_mix_weighs_scaled_costs(void) {
    const gw_figures three[] = {{.n_requests = 0, .n_blocks_used = 100},
                                {.n_requests = 40, .n_blocks_used = 40},
                                {.n_requests = 100, .n_blocks_used = 0}};
    CHECK(choose("least-request:1,least-kv-cache:1", scene_of(three, 3)) == 1, "0.8 against 1 and 1");
    CHECK(choose("least-request:2,least-kv-cache:1", scene_of(three, 3)) == 0, "1, 1.2, 2");
    CHECK(choose("least-request:1,least-kv-cache:2", scene_of(three, 3)) == 2, "2, 1.2, 1");
    CHECK(choose("least-request:0,least-kv-cache:1", scene_of(three, 3)) == 2, "a weight of 0 says nothing");
    CHECK(choose(" least-request , random:5", scene_of(three, 3)) == 0, "random adds nothing");
}

static void test_what_is_no_strategy_is_refused(void) {
    static const char *const bad[] = {"best",           "rand",      "random,",       ",random",
                                      "random:",        "random:-1", "random:1.5",    "random:1000001",
                                      "random:1:1",     ":1",        "random random", "least-busy-time",
                                      "slo-least-load", "vtc-basic", "Random",        "random:99999999999999999999"};
    gw_strategy strategy;
    bt_error err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(gw_strategy_parse(bad[i], &strategy, &err) == BT_BAD_REQUEST &&
                  strstr(err.text, "incorrect routing strategy ") != NULL &&
                  strstr(err.text, ", power-of-two,") != NULL,
              "%s: %s", bad[i], err.text);
    CHECK(gw_strategy_parse("pd:1,random:1", &strategy, &err) == BT_BAD_REQUEST && strstr(err.text, "mixed"), "pd");
    CHECK(gw_strategy_parse("random,slo", &strategy, &err) == BT_BAD_REQUEST && strstr(err.text, "mixed"), "slo");
    CHECK(gw_strategy_parse("slo:3", &strategy, &err) == BT_OK, "one with a weight");
    CHECK(gw_strategy_parse("random:1000000,throughput:0", &strategy, &err) == BT_OK && strategy.n_parts == 2, "mix");
    CHECK(strcmp(strategy.name, "random:1000000,throughput:0") == 0, "as given");
    char longest[GW_CAP_STRATEGY + 8] = "random";
    while (strlen(longest) < GW_CAP_STRATEGY - 1) strcat(longest, " ");
    CHECK(gw_strategy_parse(longest, &strategy, &err) == BT_OK, "as long as it may be");
    strcat(longest, " ");
    CHECK(gw_strategy_parse(longest, &strategy, &err) == BT_BAD_REQUEST, "longer");
    CHECK(gw_strategy_parse("random,random,random,random,random,random,random,random,random", &strategy, &err) ==
              BT_BAD_REQUEST,
          "nine");
    CHECK(gw_strategy_has_session(&(gw_strategy){.n_parts = 0}) == false, "none");
    strategy = parse("random:1,session-affinity:2");
    CHECK(gw_strategy_has_session(&strategy), "in a mix");
}

int main(void) {
    test_no_strategy_passes_for_another();
    test_ties_are_broken_evenly();
    test_prefix_cache_is_sticky_until_saturated();
    test_an_unmeasured_worker_is_taken_for_an_average_one();
    test_slo_takes_the_shortest_wait_if_none_meets_the_target();
    test_a_session_stays_and_moves_only_if_its_worker_is_gone();
    test_a_mix_weighs_scaled_costs();
    test_what_is_no_strategy_is_refused();
    TEST_END();
}
