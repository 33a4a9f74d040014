/* Free blocks are a stack, held ones have a count: every operation is linear in the blocks it names. Knows nothing of
 * prefixes, requests or bytes. */
#include "common/kv/kv_pool.h"

#include <stdlib.h>

#include "common/core/alloc.h"

struct kv_pool {
    uint32_t n_blocks, n_free;
    uint32_t *free_blocks; /* [n_free] used, the last one goes first */
    uint32_t *n_holders;   /* [n_blocks] */
};

kv_pool *kv_pool_open(uint32_t n_blocks) {
    kv_pool *pool = bt_calloc(1, sizeof(*pool));
    pool->n_blocks = pool->n_free = n_blocks;
    pool->free_blocks = bt_calloc(n_blocks, sizeof(uint32_t));
    pool->n_holders = bt_calloc(n_blocks, sizeof(uint32_t));
    for (uint32_t i = 0; i < n_blocks; i++) pool->free_blocks[i] = n_blocks - 1 - i; /* block 0 goes first */
    return pool;
}

void kv_pool_close(kv_pool *pool) {
    if (pool == NULL) return;
    free(pool->free_blocks);
    free(pool->n_holders);
    free(pool);
}

bt_status kv_pool_acquire(kv_pool *pool, uint32_t n_blocks, uint32_t *blocks) {
    if (n_blocks > pool->n_free) return BT_NO_CAPACITY; /* rule 5 */
    for (uint32_t i = 0; i < n_blocks; i++) {
        blocks[i] = pool->free_blocks[--pool->n_free];
        BT_ASSERT(pool->n_holders[blocks[i]] == 0);
        pool->n_holders[blocks[i]] = 1;
    }
    return BT_OK;
}

void kv_pool_ref(kv_pool *pool, const uint32_t *blocks, uint32_t n_blocks) {
    for (uint32_t i = 0; i < n_blocks; i++) {
        BT_ASSERT(blocks[i] < pool->n_blocks && pool->n_holders[blocks[i]] > 0); /* rule 1: only the held */
        pool->n_holders[blocks[i]]++;
    }
}

void kv_pool_release(kv_pool *pool, const uint32_t *blocks, uint32_t n_blocks) {
    for (uint32_t i = n_blocks; i-- > 0;) { /* backwards: an acquire after it gives the same order again */
        BT_ASSERT(blocks[i] < pool->n_blocks && pool->n_holders[blocks[i]] > 0); /* rule 4 */
        if (--pool->n_holders[blocks[i]] == 0) pool->free_blocks[pool->n_free++] = blocks[i];
    }
}

uint32_t kv_pool_n_blocks(const kv_pool *pool) { return pool->n_blocks; }

uint32_t kv_pool_n_free(const kv_pool *pool) { return pool->n_free; }

uint32_t kv_pool_n_holders(const kv_pool *pool, uint32_t block) {
    BT_ASSERT(block < pool->n_blocks);
    return pool->n_holders[block];
}
