/* The pool's rules, one by one, then against a plain model over many random operations. */
#include "common/kv/kv_pool.h"

#include <string.h>

#include "common/core/test.h"
#include "common/kv/kv_layout.h"

static void test_all_or_nothing(void) {
    kv_pool *pool = kv_pool_open(4);
    uint32_t blocks[8] = {9, 9, 9, 9, 9};
    CHECK(kv_pool_acquire(pool, 5, blocks) == BT_NO_CAPACITY && blocks[0] == 9, "five of four");
    CHECK(kv_pool_n_free(pool) == 4, "nothing was taken");
    CHECK(kv_pool_acquire(pool, 4, blocks) == BT_OK && kv_pool_n_free(pool) == 0, "four of four");
    CHECK(kv_pool_acquire(pool, 1, blocks + 4) == BT_NO_CAPACITY, "one of none");
    CHECK(kv_pool_acquire(pool, 0, blocks + 4) == BT_OK, "nothing of nothing");
    kv_pool_release(pool, blocks, 4);
    CHECK(kv_pool_n_free(pool) == 4, "all are back");
    kv_pool_close(pool);
    kv_pool_close(NULL);
}

static void test_the_last_holder_frees(void) {
    kv_pool *pool = kv_pool_open(3);
    uint32_t blocks[2];
    kv_pool_acquire(pool, 2, blocks);
    kv_pool_ref(pool, blocks, 1);
    kv_pool_release(pool, blocks, 2);
    CHECK(kv_pool_n_holders(pool, blocks[0]) == 1 && kv_pool_n_free(pool) == 2, "one block has a holder left");
    kv_pool_release(pool, blocks, 1);
    CHECK(kv_pool_n_free(pool) == 3, "free");
    kv_pool_close(pool);
}

static void test_many_operations_agree_with_a_plain_model(void) {
    enum { N = 37, STEPS = 20000 };
    uint32_t holders[N] = {0}, random = 1;
    kv_pool *pool = kv_pool_open(N);
    for (uint32_t step = 0; step < STEPS; step++) {
        random = random * 1664525 + 1013904223;
        uint32_t block = (random >> 8) % N, n_free = 0;
        for (uint32_t i = 0; i < N; i++) n_free += holders[i] == 0;
        CHECK(kv_pool_n_free(pool) == n_free, "step %u: %u free, not %u", step, kv_pool_n_free(pool), n_free);
        if (random >> 31) {
            uint32_t want = (random >> 16) % 5, got[5];
            bt_status status = kv_pool_acquire(pool, want, got);
            CHECK((status == BT_OK) == (want <= n_free), "step %u", step);
            for (uint32_t i = 0; status == BT_OK && i < want; i++) {
                CHECK(holders[got[i]] == 0, "step %u: block %u was held", step, got[i]);
                holders[got[i]] = 1;
            }
        } else if (holders[block] > 0 && random >> 30) {
            kv_pool_ref(pool, &block, 1);
            holders[block]++;
        } else if (holders[block] > 0) {
            kv_pool_release(pool, &block, 1);
            holders[block]--;
        }
        CHECK(kv_pool_n_holders(pool, block) == holders[block], "step %u", step);
    }
    kv_pool_close(pool);
}

static void test_the_layout_is_layer_block_row(void) {
    kv_layout layout = {.dtype = KV_BFLOAT16, .n_layers = 61, .n_blocks = 10, .width = 576};
    CHECK(kv_block_bytes(&layout) == 64 * 576 * 2, "a block of a layer");
    CHECK(kv_pool_bytes(&layout) == 61ull * 10 * 64 * 1152, "the pool");
    CHECK(kv_offset_bytes(&layout, 60, 9, 63) == kv_pool_bytes(&layout) - 1152, "the last row");
    CHECK(kv_blocks_for(0) == 0 && kv_blocks_for(1) == 1 && kv_blocks_for(64) == 1 && kv_blocks_for(65) == 2, "count");
}

int main(void) {
    test_all_or_nothing();
    test_the_last_holder_frees();
    test_many_operations_agree_with_a_plain_model();
    test_the_layout_is_layer_block_row();
    TEST_END();
}
