/* The index against a naive model: random stories of workers that come, tell, evict and go. */
#include "gateway/core/gw_index.h"

#include <string.h>

#include "common/core/alloc.h"
#include "common/core/test.h"

enum { N_CHAINS = 24, N_DEPTH = 40, MAX_COLUMNS = GW_INDEX_MAX_WORKERS };

static uint64_t state = 1;

static uint32_t below(uint32_t n) { /* xorshift64 */
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (uint32_t)(state >> 20) % n;
}

static wire_block_name name_of(uint32_t chain, uint32_t depth) { return (wire_block_name){chain, depth}; }

/* What each column holds. */
static bool is_live[MAX_COLUMNS], holds[MAX_COLUMNS][N_CHAINS][N_DEPTH];

static void check_chain(const gw_index *index, uint32_t chain) {
    wire_block_name names[N_DEPTH];
    uint32_t lengths[MAX_COLUMNS], n_names = below(N_DEPTH + 1), n_wrong = 0;
    for (uint32_t i = 0; i < n_names; i++) names[i] = name_of(chain, i);
    gw_index_match(index, names, n_names, lengths);
    for (uint32_t c = 0; c < MAX_COLUMNS; c++) {
        uint32_t n = 0;
        while (is_live[c] && n < n_names && holds[c][chain][n]) n++;
        n_wrong += lengths[c] != n;
    }
    CHECK(n_wrong == 0, "%u columns, chain %u", n_wrong, chain);
}

static void test_it_says_what_a_naive_model_says(void) {
    for (uint64_t seed = 1; seed <= 6; seed++) {
        state = seed * 0x9e3779b97f4a7c15u;
        memset(is_live, 0, sizeof(is_live));
        memset(holds, 0, sizeof(holds));
        gw_index *index = gw_index_open(4096, seed);
        uint32_t n_workers = 1 + below(40), columns[40], n_columns = 0;
        for (int event = 0; event < 6000; event++) {
            uint32_t kind = below(1000), which = n_columns > 0 ? below(n_columns) : 0;
            uint32_t chain = below(N_CHAINS), depth = below(N_DEPTH);
            wire_block_name name = name_of(chain, depth);
            if (n_columns < n_workers && (n_columns == 0 || kind < 20)) {
                uint32_t column = gw_index_join(index);
                CHECK(column < MAX_COLUMNS && !is_live[column], "a column of its own");
                is_live[column] = true;
                memset(holds[column], 0, sizeof(holds[column]));
                columns[n_columns++] = column;
            } else if (kind < 30) {
                gw_index_leave(index, columns[which]);
                is_live[columns[which]] = false;
                columns[which] = columns[--n_columns];
            } else if (kind < 60) {
                check_chain(index, chain);
            } else if (kind < 70) {
                gw_index_sweep(index);
            } else if (kind < 350) {
                bool *held = &holds[columns[which]][chain][depth];
                CHECK(gw_index_has(index, columns[which], &name) == *held, "known");
                CHECK(gw_index_remove(index, columns[which], &name) == *held, "gone");
                *held = false;
            } else { /* chains are told from their beginning */
                for (uint32_t i = 0; i <= depth; i++) {
                    name = name_of(chain, i);
                    CHECK(gw_index_put(index, columns[which], &name) != holds[columns[which]][chain][i], "come");
                    holds[columns[which]][chain][i] = true;
                }
            }
            if (event % 500 == 0) gw_index_check(index);
        }
        while (n_columns > 0) gw_index_leave(index, columns[--n_columns]);
        for (int i = 0; i < 100; i++) gw_index_sweep(index);
        CHECK(gw_index_check(index) == 0, "nothing is left of workers that are gone");
        gw_index_close(index);
    }
}

static void test_there_are_as_many_columns_as_workers_may_be(void) {
    gw_index *index = gw_index_open(1 << 22, 7);
    wire_block_name name = {1, 2};
    for (uint32_t i = 0; i < MAX_COLUMNS; i++) {
        uint32_t column = gw_index_join(index);
        CHECK(column < MAX_COLUMNS && gw_index_put(index, column, &name), "worker %u", i);
    }
    CHECK(gw_index_join(index) == GW_INDEX_NONE, "one too many");
    gw_index_leave(index, 17);
    gw_index_leave(index, 200); /* while the first is being swept */
    CHECK(gw_index_join(index) == 17 && gw_index_join(index) == 200, "columns come back, swept");
    CHECK(gw_index_n_blocks(index, 17) == 0 && !gw_index_has(index, 200, &name), "and empty");
    uint32_t lengths[MAX_COLUMNS];
    gw_index_match(index, &name, 1, lengths);
    CHECK(lengths[16] == 1 && lengths[17] == 0 && lengths[200] == 0, "the others' are as they were");
    gw_index_close(index);
}

static void test_a_worker_that_leaves_costs_a_bounded_piece_at_a_time(void) {
    enum { N = 20000 };
    gw_index *index = gw_index_open(1 << 22, 7);
    uint32_t gone = gw_index_join(index), stays = gw_index_join(index), n_sweeps = 0;
    for (uint64_t i = 0; i < N; i++) {
        wire_block_name name = {i, ~i};
        gw_index_put(index, gone, &name);
        if (i % 2 == 0) gw_index_put(index, stays, &name);
    }
    gw_index_leave(index, gone);
    CHECK(gw_index_check(index) == N, "nothing was done yet");
    wire_block_name first = {0, ~(uint64_t)0};
    uint32_t lengths[MAX_COLUMNS];
    gw_index_match(index, &first, 1, lengths);
    CHECK(lengths[gone] == 0 && lengths[stays] == 1, "but nobody sees it");
    for (uint32_t before = N, now; (now = (gw_index_sweep(index), gw_index_check(index))) > N / 2; before = now) {
        CHECK(before - now <= 1024, "a piece");
        n_sweeps++;
    }
    CHECK(n_sweeps > 10 && n_sweeps < 40, "%u", n_sweeps);
    CHECK(gw_index_n_blocks(index, stays) == N / 2, "the other's are all there");
    gw_index_close(index);
}

static void test_what_there_is_no_room_for_is_left_out(void) {
    gw_index *index = gw_index_open(3, 7);
    uint32_t one = gw_index_join(index), two = gw_index_join(index);
    wire_block_name names[4] = {{1, 1}, {2, 2}, {3, 3}, {4, 4}};
    for (uint32_t i = 0; i < 3; i++) CHECK(gw_index_put(index, one, &names[i]), "block %u", i);
    CHECK(!gw_index_put(index, one, &names[3]) && !gw_index_has(index, one, &names[3]), "one too many");
    CHECK(gw_index_n_blocks(index, one) == 3 && !gw_index_remove(index, one, &names[3]), "it was never there");
    CHECK(gw_index_put(index, two, &names[2]), "another holder needs no room");
    CHECK(gw_index_remove(index, one, &names[0]) && gw_index_put(index, one, &names[3]), "one went, one comes");
    CHECK(gw_index_check(index) == 3, "in order");
    gw_index_close(index);
}

int main(void) {
    test_it_says_what_a_naive_model_says();
    test_there_are_as_many_columns_as_workers_may_be();
    test_a_worker_that_leaves_costs_a_bounded_piece_at_a_time();
    test_what_there_is_no_room_for_is_left_out();
    TEST_END();
}
