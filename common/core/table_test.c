/* map.h and timers.h against plain models, over many random operations. */
#include "common/core/map.h"
#include "common/core/test.h"
#include "common/core/timers.h"

static uint32_t random_state = 1;

static uint32_t random_below(uint32_t n) {
    random_state = random_state * 1664525 + 1013904223;
    return (random_state >> 8) % n;
}

/* Few keys that differ in one part only, so that they meet. */
static bt_key key_of(uint32_t i) { return (bt_key){i % 7, (uint64_t)(i / 7 % 11) << 40, i / 77}; }

static void test_a_map_agrees_with_a_plain_table(void) {
    enum { N = 600, STEPS = 200000 };
    uint32_t truth[N], n_used = 0;
    bt_map map = {0};
    for (uint32_t i = 0; i < N; i++) truth[i] = BT_MAP_NONE;
    CHECK(bt_map_get(&map, key_of(0)) == BT_MAP_NONE && !bt_map_remove(&map, key_of(0)), "an empty map has nothing");
    for (uint32_t step = 0; step < STEPS; step++) {
        uint32_t i = random_below(N);
        if (random_below(2)) {
            n_used += truth[i] == BT_MAP_NONE;
            truth[i] = step;
            bt_map_put(&map, key_of(i), step);
        } else {
            CHECK(bt_map_remove(&map, key_of(i)) == (truth[i] != BT_MAP_NONE), "step %u", step);
            n_used -= truth[i] != BT_MAP_NONE;
            truth[i] = BT_MAP_NONE;
        }
        i = random_below(N);
        CHECK(bt_map_get(&map, key_of(i)) == truth[i] && map.n_used == n_used, "step %u key %u", step, i);
    }
    bt_map_fini(&map);
}

static void test_timers_come_out_in_order(void) {
    enum { N = 50, STEPS = 50000 };
    int64_t truth[N], now = 0;
    bt_timers timers;
    bt_timers_init(&timers, N);
    for (uint32_t i = 0; i < N; i++) truth[i] = INT64_MAX;
    for (uint32_t step = 0; step < STEPS; step++) {
        uint32_t i = random_below(N), id;
        if (random_below(4) == 0) {
            bt_timers_clear(&timers, i);
            truth[i] = INT64_MAX;
        } else {
            truth[i] = now + random_below(100);
            bt_timers_set(&timers, i, truth[i]);
        }
        now += random_below(3);
        int64_t last = INT64_MIN;
        while (bt_timers_pop(&timers, now, &id)) {
            CHECK(truth[id] <= now && truth[id] >= last, "step %u: timer %u", step, id);
            last = truth[id];
            truth[id] = INT64_MAX;
        }
        int64_t next = INT64_MAX;
        for (i = 0; i < N; i++) next = truth[i] < next ? truth[i] : next;
        CHECK(bt_timers_next_ns(&timers) == next && next > now, "step %u", step);
    }
    bt_timers_fini(&timers);
}

int main(void) {
    test_a_map_agrees_with_a_plain_table();
    test_timers_come_out_in_order();
    TEST_END();
}
