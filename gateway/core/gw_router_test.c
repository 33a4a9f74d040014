/* Who is chosen: strategies, ties, avoidance, draining, decode's ranking, and the books of own requests. */
#include "gateway/core/gw_router.h"

#include <string.h>

#include "common/core/test.h"

static gw_router *open_router(uint32_t n_prefills, uint32_t n_decodes) {
    gw_router *router = gw_router_open(&(gw_router_options){.seed = 1});
    for (uint32_t i = 0; i < n_prefills + n_decodes; i++) {
        bool is_prefill = i < n_prefills;
        gw_worker known = {.role = is_prefill ? WIRE_ROLE_PREFILL : WIRE_ROLE_DECODE,
                           .incarnation = is_prefill ? 100 + i : 200 + i - n_prefills};
        snprintf(known.name, sizeof(known.name), "worker-%u", i);
        gw_router_up(router, &known);
    }
    return router;
}

static gw_route choose(gw_router *router, const char *name, uint64_t avoid_prefill, uint64_t avoid_decode) {
    gw_strategy strategy;
    gw_route_query query = {
        .strategy = &strategy, .n_tokens = 100, .avoid_prefill = avoid_prefill, .avoid_decode = avoid_decode};
    gw_route route = {0};
    CHECK(gw_strategy_parse(name, &strategy, NULL) == BT_OK, "%s", name);
    CHECK(gw_router_choose(router, &query, &route, NULL) == BT_OK, "somebody is there");
    return route;
}

static gw_strategy default_strategy;

/* A share that nobody asks back. */
static void book(gw_router *router, gw_worker *worker, uint32_t n_blocks, uint32_t n_tokens) {
    gw_booking booking;
    gw_router_book(router, &booking, worker, n_blocks, n_tokens);
}

static void test_no_worker_of_a_role_is_no_capacity(void) {
    gw_router *router = open_router(1, 0);
    gw_route_query query = {.strategy = &default_strategy, .n_tokens = 1};
    gw_route route;
    bt_error err;
    CHECK(gw_router_choose(router, &query, &route, &err) == BT_NO_CAPACITY && strstr(err.text, "decode"), "%s",
          err.text);
    gw_router_gone(router, 100);
    CHECK(gw_router_choose(router, &query, &route, &err) == BT_NO_CAPACITY && strstr(err.text, "prefill"), "%s",
          err.text);
    gw_router_close(router);
}

static void test_random_reaches_all_and_is_the_same_again(void) {
    gw_router *one = open_router(4, 1), *two = open_router(4, 1);
    uint32_t n_chosen[4] = {0};
    for (int i = 0; i < 400; i++) {
        uint64_t chosen = choose(one, "random", 0, 0).prefill->incarnation;
        CHECK(chosen == choose(two, "random", 0, 0).prefill->incarnation, "the same seed, the same choice");
        n_chosen[chosen - 100]++;
    }
    for (int i = 0; i < 4; i++) CHECK(n_chosen[i] > 60 && n_chosen[i] < 140, "worker %d: %u of 400", i, n_chosen[i]);
    gw_router_close(one);
    gw_router_close(two);
}

static void test_least_request_fills_evenly_and_counts_what_was_just_sent(void) {
    gw_router *router = open_router(3, 1);
    for (int i = 0; i < 30; i++) book(router, choose(router, "least-request", 0, 0).prefill, 0, 0);
    for (uint64_t w = 100; w < 103; w++) CHECK(gw_router_worker(router, w)->own.n == 10, "worker %d", (int)w);

    /* Others' requests count, and ours count on top until the worker reports them itself. */
    gw_router_status(router, 100, &(wire_load){.running = 20});
    gw_router_status(router, 101, &(wire_load){.running = 12, .waiting = 1});
    gw_router_status(router, 102, &(wire_load){.running = 30});
    for (int i = 0; i < 7; i++) book(router, choose(router, "least-request", 0, 0).prefill, 0, 0);
    CHECK(gw_router_worker(router, 101)->own.n == 17, "the first seven go to the one with 13");
    gw_worker *worker = choose(router, "least-request", 0, 0).prefill;
    CHECK(worker->incarnation == 100 || worker->incarnation == 101, "20 and 13 + 7 tie");
    gw_router_close(router);
}

static void test_draining_is_not_chosen_and_avoided_only_if_there_is_another(void) {
    gw_router *router = open_router(2, 2);
    for (int i = 0; i < 20; i++) {
        gw_route route = choose(router, "random", 100, 200);
        CHECK(route.prefill->incarnation == 101, "another prefill worker");
        CHECK(route.n_decodes == 2 && route.decodes[0]->incarnation == 201, "the avoided one last");
    }
    gw_router_draining(router, 101);
    CHECK(gw_router_n_usable(router, WIRE_ROLE_PREFILL) == 1, "one drains");
    CHECK(choose(router, "least-request", 100, 0).prefill->incarnation == 100, "better the avoided one than none");
    gw_router_status(router, 200, &(wire_load){.is_draining = 1});
    CHECK(choose(router, "random", 0, 0).n_decodes == 1, "a STATUS that says draining counts");
    gw_router_close(router);
}

static void test_a_filter_leaves_workers_of_both_roles_out(void) {
    gw_router *router = open_router(0, 0);
    static const char *const labels[] = {"zone=a", "zone=b", "zone=b,spot=1"};
    for (uint32_t i = 0; i < 6; i++) {
        gw_worker known = {.role = i < 3 ? WIRE_ROLE_PREFILL : WIRE_ROLE_DECODE,
                           .incarnation = i < 3 ? 100 + i : 197 + i};
        CHECK(bt_labels_parse(labels[i % 3], &known.labels, NULL) == BT_OK, "labels");
        gw_router_up(router, &known);
    }
    static const struct {
        const char *filter;
        uint32_t n; /* of each role */
    } rows[] = {{"zone", 3}, {"zone=b", 2}, {"zone=b,!spot", 1}, {"zone=c", 0}, {"zone!=c", 3}};
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        gw_strategy strategy;
        bt_selector filter;
        gw_route_query query = {.strategy = &strategy, .filter = &filter, .n_tokens = 100};
        gw_route route = {0};
        bt_error err = {0};
        CHECK(bt_selector_parse(rows[r].filter, &filter, NULL) == BT_OK, "%s", rows[r].filter);
        CHECK(gw_strategy_parse("random", &strategy, NULL) == BT_OK, "random");
        bool is_chosen[3] = {false};
        for (int i = 0; i < 60; i++) {
            bt_status status = gw_router_choose(router, &query, &route, &err);
            CHECK(status == (rows[r].n > 0 ? BT_OK : BT_NO_CAPACITY), "%s", rows[r].filter);
            if (status == BT_OK) is_chosen[route.prefill->incarnation - 100] = true;
        }
        uint32_t n_chosen = (uint32_t)is_chosen[0] + is_chosen[1] + is_chosen[2];
        CHECK(n_chosen == rows[r].n && route.n_decodes == rows[r].n, "%s: %u and %u", rows[r].filter, n_chosen,
              route.n_decodes);
        if (rows[r].n == 0) CHECK(strstr(err.text, "filter") != NULL, "%s", err.text);
    }
    gw_router_close(router);
}

static void test_an_incomplete_worker_is_not_chosen_until_its_status_says_otherwise(void) {
    gw_router *router = open_router(1, 2);
    gw_worker known = {.role = WIRE_ROLE_DECODE, .incarnation = 300, .is_incomplete = true};
    gw_router_up(router, &known);
    CHECK(choose(router, "random", 0, 0).n_decodes == 2 && gw_router_n_usable(router, WIRE_ROLE_DECODE) == 2, "not it");
    CHECK(gw_router_n_incomplete(router, WIRE_ROLE_DECODE) == 1, "it is counted apart");
    gw_router_status(router, 300, &(wire_load){.running = 1});
    gw_router_up(router, &known); /* the registry is late */
    CHECK(choose(router, "random", 0, 0).n_decodes == 3, "complete");
    gw_router_status(router, 300, &(wire_load){.is_incomplete = 1});
    CHECK(choose(router, "random", 0, 0).n_decodes == 2, "and again not");
    gw_router_close(router);
}

static void test_decode_workers_are_ranked_by_room_then_sequences_then_blocks(void) {
    gw_router *router = open_router(1, 10);
    for (uint64_t w = 0; w < 10; w++) { /* the query needs 2 blocks */
        wire_load load = {.running = (uint32_t)(10 - w), .kv_blocks_total = 100, .kv_blocks_used = 50};
        if (w == 9) load.kv_blocks_used = 99;                   /* fewest sequences, but no room */
        if (w == 7) load.running = 2, load.kv_blocks_used = 40; /* as many as 8, more blocks */
        gw_router_status(router, 200 + w, &load);
    }
    gw_route route = choose(router, "random", 0, 0);
    CHECK(route.n_decodes == WIRE_MAX_CANDIDATES, "%u", route.n_decodes);
    static const uint64_t order[] = {207, 208, 206, 205, 204, 203, 202, 201};
    for (int i = 0; i < WIRE_MAX_CANDIDATES; i++)
        CHECK(route.decodes[i]->incarnation == order[i], "rank %d is %d", i, (int)route.decodes[i]->incarnation);
    book(router, route.decodes[0], 59, 0); /* takes the room away before the worker says so */
    CHECK(choose(router, "random", 0, 0).decodes[0]->incarnation == 208, "what was just sent counts");
    gw_router_close(router);
}

static void test_who_would_compute_the_prompt_itself_is_ranked_first(void) {
    gw_router *router = open_router(1, 3);
    static const wire_block_name names[] = {{1, 1}, {2, 1}, {3, 1}};
    for (uint64_t w = 200; w < 203; w++)
        gw_router_status(router, w,
                         &(wire_load){.running = w == 201 ? 4 : 0, .kv_blocks_total = 100, .local_prefill_tokens = 40});
    CHECK(gw_router_blocks(router, 200, &(wire_blocks){.come = names + 1, .n_come = 2}), "the chain's beginning lacks");
    CHECK(gw_router_blocks(router, 201, &(wire_blocks){.come = names, .n_come = 2}), "two of it");
    gw_route_query query = {
        .strategy = &default_strategy, .n_tokens = 168, .may_be_local = true, .names = names, .n_names = 2};
    gw_route route;
    CHECK(gw_router_choose(router, &query, &route, NULL) == BT_OK && route.is_local && route.prefill == NULL, "local");
    CHECK(route.decodes[0]->incarnation == 201 && route.n_decodes == 3, "though it is busier");
    query.n_tokens = 169;
    CHECK(gw_router_choose(router, &query, &route, NULL) == BT_OK && !route.is_local && route.prefill != NULL, "no");
    CHECK(route.decodes[0]->incarnation == 201, "still first: it holds most of it, that need not be sent");
    query.n_tokens = 256;
    CHECK(gw_router_choose(router, &query, &route, NULL) == BT_OK && route.decodes[0]->incarnation != 201, "half");
    CHECK(route.n_missing == 256, "prefill knows nothing of it");
    query.n_tokens = 168;
    gw_router_status(router, 201,
                     &(wire_load){.kv_blocks_total = 100, .kv_blocks_used = 99, .local_prefill_tokens = 40});
    CHECK(gw_router_choose(router, &query, &route, NULL) == BT_OK && !route.is_local, "it has no room");
    query.n_tokens = 40;
    gw_router_gone(router, 100);
    CHECK(gw_router_choose(router, &query, &route, NULL) == BT_OK && route.is_local, "without any prefill worker");
    query.may_be_local = false;
    CHECK(gw_router_choose(router, &query, &route, NULL) == BT_NO_CAPACITY, "if it may");
    gw_router_close(router);
}

static void test_a_known_beginning_draws_no_crowd(void) {
    static const struct {
        uint32_t n_there, n_other;
        bool is_local;
    } rows[] = {{0, 0, true},  {4, 0, true},    {5, 0, false},   {6, 1, true},
                {7, 1, false}, {100, 48, true}, {100, 47, false}};
    static const wire_block_name names[] = {{1, 1}, {2, 1}};
    gw_route_query query = {
        .strategy = &default_strategy, .n_tokens = 168, .may_be_local = true, .names = names, .n_names = 2};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        gw_router *router = open_router(1, 3);
        wire_load load = {.kv_blocks_total = 100, .local_prefill_tokens = 40};
        for (uint64_t w = 200; w < 203; w++) {
            load.kv_blocks_used = w == 202 ? 99 : 0; /* the third has no room, so nothing is lost by its leisure */
            load.running = w == 200 ? rows[i].n_there : w == 201 ? rows[i].n_other : 0;
            gw_router_status(router, w, &load);
        }
        CHECK(gw_router_blocks(router, 200, &(wire_blocks){.come = names, .n_come = 2}), "known there");
        gw_route route;
        CHECK(gw_router_choose(router, &query, &route, NULL) == BT_OK, "-");
        CHECK(route.is_local == rows[i].is_local && (route.decodes[0]->incarnation == 200) == rows[i].is_local,
              "%u there, %u elsewhere", rows[i].n_there, rows[i].n_other);
        gw_router_close(router);
    }
    gw_router *router = open_router(1, 2);
    for (uint64_t w = 200; w < 202; w++)
        gw_router_status(router, w, &(wire_load){.kv_blocks_total = 100, .local_prefill_tokens = 40});
    CHECK(gw_router_blocks(router, 200, &(wire_blocks){.come = names, .n_come = 2}), "known there");
    uint32_t n_there = 0;
    for (gw_route route; gw_router_choose(router, &query, &route, NULL) == BT_OK && route.is_local; n_there++)
        book(router, route.decodes[0], 1, 0);
    CHECK(n_there == 5, "what was just sent counts: %u", n_there);
    gw_router_close(router);
}

static void test_of_equals_decode_sends_the_fewest_bytes(void) {
    gw_router *router = open_router(1, 3);
    static const wire_block_name names[] = {{1, 1}, {2, 1}, {3, 1}, {4, 1}};
    for (uint64_t w = 200; w < 203; w++) gw_router_status(router, w, &(wire_load){.kv_blocks_total = 100});
    CHECK(gw_router_blocks(router, 201, &(wire_blocks){.come = names, .n_come = 1}), "a quarter");
    gw_route_query query = {.strategy = &default_strategy, .n_tokens = 260, .names = names, .n_names = 4};
    gw_route route;
    CHECK(gw_router_choose(router, &query, &route, NULL) == BT_OK && route.decodes[0]->incarnation == 201, "known");
    gw_router_status(router, 201, &(wire_load){.running = 1, .kv_blocks_total = 100});
    CHECK(gw_router_choose(router, &query, &route, NULL) == BT_OK && route.decodes[0]->incarnation != 201, "busier");
    gw_router_close(router);
}

static void test_a_prefill_worker_s_share_is_counted_once_whatever_overtakes_it(void) {
    gw_router *router = open_router(2, 1);
    gw_booking one, two;
    gw_worker *worker = gw_router_worker(router, 100);
    gw_router_book(router, &one, worker, 2, 70);
    gw_router_status(router, 100, &(wire_load){.waiting_tokens = 5}); /* was on its way when the request left */
    CHECK(worker->unseen.n == 1 && worker->unseen.n_tokens == 70, "not in these figures yet");
    gw_router_accepted(router, &one);
    gw_router_book(router, &two, worker, 3, 80);
    CHECK(worker->unseen.n == 2, "nor in others before the next");
    gw_router_status(router, 100, &(wire_load){.waiting = 1, .waiting_tokens = 75});
    CHECK(worker->unseen.n == 1 && worker->unseen.n_tokens == 80 && worker->own.n == 2, "one of two");
    gw_router_accepted(router, &two);
    gw_router_unbook(router, &two); /* before a STATUS knew it */
    CHECK(worker->unseen.n == 0 && worker->accepted.n == 0 && worker->own.n == 1, "as if it never was");
    gw_router_unbook(router, &one);
    gw_router_unbook(router, &one);
    CHECK(worker->own.n == 0 && worker->own.n_blocks == 0 && worker->own.n_tokens == 0, "nothing is left");
    gw_router_book(router, &one, worker, 2, 70);
    gw_router_gone(router, 100);
    gw_router_accepted(router, &one);
    gw_router_unbook(router, &one); /* of a link that is gone */
    gw_router_close(router);
}

static void test_the_strategy_sees_what_was_sent_and_what_is_known(void) {
    gw_router *router = open_router(3, 1);
    static const wire_block_name names[] = {{1, 1}, {2, 1}, {3, 1}};
    for (uint64_t w = 100; w < 103; w++)
        gw_router_status(router, w, &(wire_load){.kv_blocks_total = 100, .prefill_tokens_per_s = 1000});
    CHECK(gw_router_blocks(router, 101, &(wire_blocks){.come = names, .n_come = 2}), "-");
    gw_route_query query = {.strategy = &default_strategy, .n_tokens = 200, .names = names, .n_names = 3};
    gw_route route;
    for (uint32_t n_sent = 0; n_sent <= 2000; n_sent += 100) { /* ms: until it is saturated */
        CHECK(gw_router_choose(router, &query, &route, NULL) == BT_OK, "-");
        CHECK(route.prefill->incarnation == 101 && route.n_missing == 200 - 2 * 64, "home, after %u", n_sent);
        book(router, route.prefill, 0, 100);
    }
    CHECK(gw_router_choose(router, &query, &route, NULL) == BT_OK && route.prefill->incarnation != 101, "saturated");
    CHECK(route.n_missing == 200, "who knows nothing of it");
    query.avoid_prefill = 100;
    CHECK(gw_router_choose(router, &query, &route, NULL) == BT_OK && route.prefill->incarnation == 102, "avoided");
    gw_router_close(router);
}

static void test_a_request_may_have_its_own_target(void) {
    gw_router *router = open_router(2, 1);
    static const wire_block_name names[] = {{1, 1}, {2, 1}};
    for (uint64_t w = 100; w < 102; w++) /* 100 knows most of it, and has work for half a second */
        gw_router_status(
            router, w,
            &(wire_load){.kv_blocks_total = 100, .prefill_tokens_per_s = 1000, .waiting_tokens = w == 100 ? 500 : 0});
    CHECK(gw_router_blocks(router, 100, &(wire_blocks){.come = names, .n_come = 2}), "-");
    static const uint32_t targets[] = {0, 600, 300}, chosen[] = {100, 100, 101};
    gw_strategy strategy;
    CHECK(gw_strategy_parse("slo", &strategy, NULL) == BT_OK, "slo");
    for (int i = 0; i < 3; i++) {
        gw_route_query query = {.strategy = &strategy, .n_tokens = 200, .names = names, .n_names = 2};
        query.slo_ttft_ms = targets[i];
        gw_route route;
        CHECK(gw_router_choose(router, &query, &route, NULL) == BT_OK, "-");
        CHECK(route.prefill->incarnation == chosen[i], "target %u ms", targets[i]);
    }
    gw_router_close(router);
}

/* Several gateways send a burst to the same workers. Each knows what it sent itself at once, and what the others did
 * from STATUS, which comes late: after every N_LATE requests. Nothing is ever finished. */
static void test_gateways_that_share_workers_stay_balanced(void) {
    enum { N_WORKERS = 8, N_LATE = 64, N_REQUESTS = 4000 };
    static const char *const names[] = {"least-request", "prefix-cache", "throughput", "power-of-two"};
    for (uint32_t n_gateways = 2; n_gateways <= 8; n_gateways += 3) {
        for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
            gw_router *routers[8];
            uint32_t n_there[N_WORKERS] = {0};
            gw_strategy strategy;
            CHECK(gw_strategy_parse(names[k], &strategy, NULL) == BT_OK, "%s", names[k]);
            for (uint32_t g = 0; g < n_gateways; g++) {
                routers[g] = gw_router_open(&(gw_router_options){.seed = 10 + g});
                for (uint64_t w = 0; w <= N_WORKERS; w++) {
                    gw_worker known = {.role = w < N_WORKERS ? WIRE_ROLE_PREFILL : WIRE_ROLE_DECODE,
                                       .incarnation = 100 + w};
                    gw_router_up(routers[g], &known);
                }
            }
            static gw_booking bookings[8][N_REQUESTS];
            uint32_t n_booked[8] = {0};
            for (uint32_t i = 1; i <= N_REQUESTS; i++) {
                uint32_t g = (i * 7 + i / 13) % n_gateways;
                gw_route_query query = {.strategy = &strategy, .n_tokens = 100};
                gw_route route;
                CHECK(gw_router_choose(routers[g], &query, &route, NULL) == BT_OK, "-");
                gw_router_book(routers[g], &bookings[g][n_booked[g]++], route.prefill, 2, 100);
                n_there[route.prefill->incarnation - 100]++;
                if (i % N_LATE != 0) continue;
                for (uint32_t at = 0; at < n_gateways; at++) {
                    for (uint32_t b = 0; b < n_booked[at]; b++) gw_router_accepted(routers[at], &bookings[at][b]);
                    n_booked[at] = 0;
                    for (uint32_t w = 0; w < N_WORKERS; w++)
                        gw_router_status(routers[at], 100 + w,
                                         &(wire_load){.waiting = n_there[w], .waiting_tokens = n_there[w] * 100});
                }
            }
            uint32_t most = 0, least = UINT32_MAX;
            for (uint32_t w = 0; w < N_WORKERS; w++) {
                most = n_there[w] > most ? n_there[w] : most;
                least = n_there[w] < least ? n_there[w] : least;
            }
            CHECK(most - least <= N_LATE / 2, "%s, %u gateways: %u to %u", names[k], n_gateways, least, most);
            for (uint32_t g = 0; g < n_gateways; g++) gw_router_close(routers[g]);
        }
    }
}

static void test_a_worker_that_comes_back_has_another_link(void) {
    gw_router *router = open_router(2, 1);
    uint64_t link = gw_router_worker(router, 100)->link;
    gw_worker known = {.role = WIRE_ROLE_PREFILL, .incarnation = 100, .is_draining = true};
    CHECK(gw_router_up(router, &known)->link == link && gw_router_worker(router, 100)->is_draining, "updated");
    gw_router_gone(router, 100);
    gw_router_gone(router, 100);
    CHECK(gw_router_worker(router, 100) == NULL && gw_router_worker(router, 101) != NULL, "one left");
    CHECK(gw_router_up(router, &known)->link != link, "a new link");
    gw_router_close(router);
}

static void test_a_workers_blocks_are_known_and_bounded(void) {
    gw_router *router = open_router(1, 1);
    const wire_block_name names[] = {{1, 1}, {2, 1}, {2, 2}, {3, 3}};
    const gw_worker *worker = gw_router_worker(router, 100);
    CHECK(!gw_router_blocks(router, 100, &(wire_blocks){.come = names, .n_come = 1}), "it has no block yet");
    gw_router_status(router, 100, &(wire_load){.kv_blocks_total = 3});
    CHECK(gw_router_blocks(router, 100, &(wire_blocks){.come = names, .n_come = 3}), "three of three");
    CHECK(gw_router_has_block(router, worker, &names[2]) && !gw_router_has_block(router, worker, &names[3]),
          "as it said");
    CHECK(!gw_router_blocks(router, 100, &(wire_blocks){.come = names + 3, .n_come = 1}), "a fourth of three");
    const wire_blocks moved = {.gone = names, .n_gone = 2, .come = names, .n_come = 1};
    CHECK(gw_router_blocks(router, 100, &moved), "gone applies first");
    CHECK(gw_router_has_block(router, worker, &names[0]) && !gw_router_has_block(router, worker, &names[1]),
          "as it said");
    CHECK(!gw_router_has_block(router, gw_router_worker(router, 200), &names[0]), "others know nothing of it");
    gw_router_gone(router, 100);
    CHECK(gw_router_blocks(router, 100, &moved), "nobody");
    gw_router_close(router);
}

int main(void) {
    test_a_workers_blocks_are_known_and_bounded();
    CHECK(gw_strategy_parse("", &default_strategy, NULL) == BT_OK, "the default");
    test_no_worker_of_a_role_is_no_capacity();
    test_random_reaches_all_and_is_the_same_again();
    test_least_request_fills_evenly_and_counts_what_was_just_sent();
    test_draining_is_not_chosen_and_avoided_only_if_there_is_another();
    test_a_filter_leaves_workers_of_both_roles_out();
    test_an_incomplete_worker_is_not_chosen_until_its_status_says_otherwise();
    test_decode_workers_are_ranked_by_room_then_sequences_then_blocks();
    test_who_would_compute_the_prompt_itself_is_ranked_first();
    test_a_known_beginning_draws_no_crowd();
    test_of_equals_decode_sends_the_fewest_bytes();
    test_a_prefill_worker_s_share_is_counted_once_whatever_overtakes_it();
    test_the_strategy_sees_what_was_sent_and_what_is_known();
    test_a_request_may_have_its_own_target();
    test_gateways_that_share_workers_stay_balanced();
    test_a_worker_that_comes_back_has_another_link();
    TEST_END();
}
