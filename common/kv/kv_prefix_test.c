/* Names, the longest chain, what is kept and what goes first; then against a plain model over many random operations.
 */
#include "common/kv/kv_prefix.h"

#include <string.h>

#include "common/core/test.h"
#include "common/kv/kv_layout.h"

enum { BLOCKS = 6 };

static kv_pool *pool;
static kv_prefix *prefix;

static void start(void) {
    pool = kv_pool_open(BLOCKS);
    prefix = kv_prefix_open(pool);
}

static void stop(void) {
    kv_prefix_check(prefix);
    CHECK(kv_pool_n_free(pool) == BLOCKS, "everything is free");
    kv_prefix_close(prefix);
    kv_pool_close(pool);
}

static void names_of(uint32_t chain, uint32_t n, wire_block_name *names) {
    uint32_t tokens[BLOCKS * KV_BLOCK_TOKENS];
    for (uint32_t i = 0; i < n * KV_BLOCK_TOKENS; i++) tokens[i] = chain * 1000 + i;
    kv_prefix_names(1, wire_str_from(""), tokens, n, names);
}

static bool is_same(wire_block_name a, wire_block_name b) { return a.low == b.low && a.high == b.high; }

static void test_a_name_stands_for_model_salt_and_everything_before(void) {
    uint32_t tokens[2 * KV_BLOCK_TOKENS] = {0};
    wire_block_name names[2], others[2];
    kv_prefix_names(1, wire_str_from("salt"), tokens, 2, names);
    kv_prefix_names(1, wire_str_from("salt"), tokens, 2, others);
    CHECK(is_same(names[0], others[0]) && is_same(names[1], others[1]), "the same");
    CHECK(!is_same(names[0], names[1]), "equal tokens at another place");
    kv_prefix_names(2, wire_str_from("salt"), tokens, 2, others);
    CHECK(!is_same(names[0], others[0]), "another model");
    kv_prefix_names(1, wire_str_from("pepper"), tokens, 2, others);
    CHECK(!is_same(names[0], others[0]) && !is_same(names[1], others[1]), "another salt");
    tokens[0] = 1;
    kv_prefix_names(1, wire_str_from("salt"), tokens, 2, others);
    CHECK(!is_same(names[0], others[0]) && !is_same(names[1], others[1]), "one token at the beginning");
}

static void test_the_longest_chain_is_taken_and_cached_blocks_count_as_free(void) {
    start();
    wire_block_name names[3];
    uint32_t blocks[3], found[3];
    names_of(0, 3, names);
    kv_pool_acquire(pool, 3, blocks);
    kv_prefix_put(prefix, names, blocks, 2);
    CHECK(kv_prefix_count(prefix, names, 3) == 2 && kv_prefix_count(prefix, names, 1) == 1, "without holding them");
    CHECK(kv_prefix_take(prefix, names, 3, found) == 2 && found[0] == blocks[0] && found[1] == blocks[1],
          "two of three");
    CHECK(kv_pool_n_holders(pool, blocks[1]) == 2 && kv_pool_n_cached(pool) == 0, "one holder more");
    kv_pool_release(pool, found, 2);
    kv_pool_release(pool, blocks, 3);
    CHECK(kv_pool_n_free(pool) == BLOCKS && kv_pool_n_cached(pool) == 2, "free, and still known");
    CHECK(kv_prefix_take(prefix, names, 3, found) == 2 && kv_pool_n_free(pool) == BLOCKS - 2, "held again");
    kv_pool_release(pool, found, 2);
    stop();
}

static void test_a_name_that_is_known_keeps_its_block(void) {
    start();
    wire_block_name name;
    uint32_t first, second, found;
    names_of(0, 1, &name);
    kv_pool_acquire(pool, 1, &first);
    kv_pool_acquire(pool, 1, &second);
    kv_prefix_put(prefix, &name, &first, 1);
    kv_prefix_put(prefix, &name, &second, 1);
    CHECK(!kv_pool_is_cached(pool, second), "the second one stays private");
    kv_pool_release(pool, &first, 1);
    kv_pool_release(pool, &second, 1);
    CHECK(kv_prefix_take(prefix, &name, 1, &found) == 1 && found == first, "the first one is found");
    kv_pool_release(pool, &found, 1);
    stop();
}

static void test_the_longest_unused_goes_first_and_the_end_of_a_chain_before_its_beginning(void) {
    start();
    wire_block_name names[2][2];
    uint32_t blocks[2][2], found[2], all[BLOCKS];
    for (uint32_t chain = 0; chain < 2; chain++) {
        names_of(chain, 2, names[chain]);
        kv_pool_acquire(pool, 2, blocks[chain]);
        kv_prefix_put(prefix, names[chain], blocks[chain], 2);
    }
    kv_pool_release(pool, blocks[0], 2);
    kv_pool_release(pool, blocks[1], 2);
    CHECK(kv_prefix_take(prefix, names[0], 2, found) == 2, "the older one is used again");
    kv_pool_release(pool, found, 2);
    kv_pool_acquire(pool, 3, all);
    CHECK(kv_prefix_take(prefix, names[1], 2, found) == 1, "the end of the other one has gone");
    kv_pool_release(pool, found, 1);
    CHECK(kv_prefix_take(prefix, names[0], 2, found) == 2, "this one is whole");
    kv_pool_release(pool, found, 2);
    kv_pool_acquire(pool, 3, all + 3);
    CHECK(kv_prefix_take(prefix, names[0], 2, found) == 0 && kv_pool_n_cached(pool) == 0, "others needed the room");
    kv_pool_release(pool, all, BLOCKS);
    stop();
}

/* What a block holds is written into content[] when its holder fills it: whatever is taken must hold what was asked. */
static void test_many_operations_never_find_anything_else(void) {
    enum { CHAINS = 5, LENGTH = 3, HOLDERS = 4, STEPS = 20000 };
    start();
    wire_block_name names[CHAINS][LENGTH];
    for (uint32_t chain = 0; chain < CHAINS; chain++) names_of(chain, LENGTH, names[chain]);
    uint32_t content[BLOCKS] = {0}, held[HOLDERS][LENGTH], n_held[HOLDERS] = {0}, random = 1, n_hits = 0;
    for (uint32_t step = 0; step < STEPS; step++) {
        random = random * 1664525 + 1013904223;
        uint32_t chain = (random >> 8) % CHAINS, holder = (random >> 16) % HOLDERS, n = 1 + (random >> 24) % LENGTH;
        if (n_held[holder] > 0) {
            kv_pool_release(pool, held[holder], n_held[holder]);
            n_held[holder] = 0;
            kv_prefix_check(prefix);
            continue;
        }
        uint32_t *blocks = held[holder], n_found = kv_prefix_take(prefix, names[chain], n, blocks);
        for (uint32_t i = 0; i < n_found; i++)
            CHECK(content[blocks[i]] == chain * LENGTH + i, "step %u: block %u", step, blocks[i]);
        n_hits += n_found;
        if (kv_pool_acquire(pool, n - n_found, blocks + n_found) != BT_OK) {
            kv_pool_release(pool, blocks, n_found);
            continue;
        }
        for (uint32_t i = n_found; i < n; i++) content[blocks[i]] = chain * LENGTH + i;
        if (random >> 31) kv_prefix_put(prefix, names[chain], blocks, n);
        n_held[holder] = n;
        kv_prefix_check(prefix);
    }
    CHECK(n_hits > STEPS / 20, "%u hits", n_hits);
    for (uint32_t holder = 0; holder < HOLDERS; holder++) kv_pool_release(pool, held[holder], n_held[holder]);
    stop();
}

static void test_changes_are_told_once_and_add_up(void) {
    start();
    wire_block_name names[4], others[4], told[BLOCKS];
    uint32_t blocks[BLOCKS], more[BLOCKS];
    names_of(0, 4, names);
    names_of(1, 4, others);
    kv_pool_acquire(pool, 3, blocks);
    kv_prefix_put(prefix, names, blocks, 3);
    CHECK(kv_prefix_told(prefix, told) == 0 && kv_prefix_has_changes(prefix), "not told yet");
    kv_prefix_changes changes = kv_prefix_take_changes(prefix);
    CHECK(changes.n_gone == 0 && changes.n_come == 3 && is_same(changes.come[2], names[2]), "three have come");
    CHECK(!kv_prefix_has_changes(prefix) && kv_prefix_told(prefix, told) == 3, "told");
    kv_pool_release(pool, blocks, 3);
    kv_pool_acquire(pool, 4, more); /* three were never cached; the end of the chain goes */
    changes = kv_prefix_take_changes(prefix);
    CHECK(changes.n_gone == 1 && is_same(changes.gone[0], names[2]) && changes.n_come == 0, "one is gone");
    kv_prefix_put(prefix, &names[2], &more[0], 1); /* it comes back in another block, */
    kv_pool_release(pool, more, 4);
    kv_pool_acquire(pool, BLOCKS, more); /* and all go before anybody asks */
    changes = kv_prefix_take_changes(prefix);
    CHECK(changes.n_gone == 2 && changes.n_come == 0, "what came and went is not told: %u, %u", changes.n_gone,
          changes.n_come);
    CHECK(kv_prefix_told(prefix, told) == 0, "nothing is left");
    kv_pool_release(pool, more, BLOCKS);
    stop();
}

int main(void) {
    test_changes_are_told_once_and_add_up();
    test_a_name_stands_for_model_salt_and_everything_before();
    test_the_longest_chain_is_taken_and_cached_blocks_count_as_free();
    test_a_name_that_is_known_keeps_its_block();
    test_the_longest_unused_goes_first_and_the_end_of_a_chain_before_its_beginning();
    test_many_operations_never_find_anything_else();
    TEST_END();
}
