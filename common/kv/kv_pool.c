/* Free blocks are a ring: the uncached ones as a stack at its front, behind them the cached ones, the longest free
 * first. Held ones have a count. Every operation is linear in the blocks it names. Knows nothing of prefixes, requests
 * or bytes.
 */
#include "common/kv/kv_pool.h"

#include <stdlib.h>

#include "common/core/alloc.h"

struct kv_pool {
    uint32_t n_blocks, n_free;
    uint32_t n_cached;     /* of the free ones */
    uint32_t *next, *prev; /* [n_blocks + 1] the ring of free blocks; n_blocks is where it begins and ends */
    uint32_t *n_holders;   /* [n_blocks] */
    bool *is_cached;       /* [n_blocks] */
    void (*on_evict)(void *context, uint32_t block);
    void *context;
};

static void ring_insert(kv_pool *pool, uint32_t block, uint32_t before) {
    uint32_t after = pool->prev[before];
    pool->prev[block] = after;
    pool->next[block] = before;
    pool->next[after] = pool->prev[before] = block;
}

static void ring_remove(kv_pool *pool, uint32_t block) {
    pool->next[pool->prev[block]] = pool->next[block];
    pool->prev[pool->next[block]] = pool->prev[block];
}

kv_pool *kv_pool_open(uint32_t n_blocks) {
    kv_pool *pool = bt_calloc(1, sizeof(*pool));
    pool->n_blocks = pool->n_free = n_blocks;
    pool->next = bt_calloc((size_t)n_blocks + 1, sizeof(uint32_t));
    pool->prev = bt_calloc((size_t)n_blocks + 1, sizeof(uint32_t));
    pool->n_holders = bt_calloc(n_blocks, sizeof(uint32_t));
    pool->is_cached = bt_calloc(n_blocks, sizeof(bool));
    pool->next[n_blocks] = pool->prev[n_blocks] = n_blocks;
    for (uint32_t i = 0; i < n_blocks; i++) ring_insert(pool, i, n_blocks); /* block 0 goes first */
    return pool;
}

void kv_pool_close(kv_pool *pool) {
    if (pool == NULL) return;
    free(pool->next);
    free(pool->prev);
    free(pool->n_holders);
    free(pool->is_cached);
    free(pool);
}

/* A free block has a holder from now on. */
static void hold(kv_pool *pool, uint32_t block) {
    ring_remove(pool, block);
    pool->n_free--;
    if (pool->is_cached[block]) pool->n_cached--;
}

bt_status kv_pool_acquire(kv_pool *pool, uint32_t n_blocks, uint32_t *blocks) {
    if (n_blocks > pool->n_free) return BT_NO_CAPACITY; /* rule 5 */
    for (uint32_t i = 0; i < n_blocks; i++) {
        uint32_t block = blocks[i] = pool->next[pool->n_blocks];
        BT_ASSERT(pool->n_holders[block] == 0);
        hold(pool, block);
        if (pool->is_cached[block] && pool->on_evict != NULL) pool->on_evict(pool->context, block);
        pool->is_cached[block] = false; /* rule 6 */
        pool->n_holders[block] = 1;
    }
    return BT_OK;
}

void kv_pool_ref(kv_pool *pool, const uint32_t *blocks, uint32_t n_blocks) {
    for (uint32_t i = 0; i < n_blocks; i++) {
        BT_ASSERT(blocks[i] < pool->n_blocks);
        if (pool->n_holders[blocks[i]] == 0) {
            BT_ASSERT(pool->is_cached[blocks[i]]); /* rule 1: only the held and the cached */
            hold(pool, blocks[i]);
        }
        pool->n_holders[blocks[i]]++;
    }
}

/* Backwards: an acquire after it gives the same order again, and of a cached prompt the end goes before the beginning,
 * which more prompts share. */
void kv_pool_release(kv_pool *pool, const uint32_t *blocks, uint32_t n_blocks) {
    for (uint32_t i = n_blocks; i-- > 0;) {
        uint32_t block = blocks[i];
        BT_ASSERT(block < pool->n_blocks && pool->n_holders[block] > 0); /* rule 4 */
        if (--pool->n_holders[block] > 0) continue;
        pool->n_free++;
        if (pool->is_cached[block]) pool->n_cached++;
        ring_insert(pool, block, pool->is_cached[block] ? pool->n_blocks : pool->next[pool->n_blocks]);
    }
}

void kv_pool_on_evict(kv_pool *pool, void (*fn)(void *context, uint32_t block), void *context) {
    pool->on_evict = fn;
    pool->context = context;
}

void kv_pool_cache(kv_pool *pool, uint32_t block) {
    BT_ASSERT(block < pool->n_blocks && pool->n_holders[block] > 0);
    pool->is_cached[block] = true;
}

bool kv_pool_is_cached(const kv_pool *pool, uint32_t block) {
    BT_ASSERT(block < pool->n_blocks);
    return pool->is_cached[block];
}

uint32_t kv_pool_n_cached(const kv_pool *pool) { return pool->n_cached; }

uint32_t kv_pool_n_blocks(const kv_pool *pool) { return pool->n_blocks; }

uint32_t kv_pool_n_free(const kv_pool *pool) { return pool->n_free; }

uint32_t kv_pool_n_holders(const kv_pool *pool, uint32_t block) {
    BT_ASSERT(block < pool->n_blocks);
    return pool->n_holders[block];
}
