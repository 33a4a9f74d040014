/* Which KV blocks are free, and who holds the others: numbers and reference counts, no bytes, no device. Layout of the
 * bytes: kv_layout.h. What is in a cached block: kv_prefix.h.
 *
 * The rules, cited as "rule 3" where code follows one:
 *
 *   rule 1  A block is free or held. Only kv_pool_acquire() makes a free block held; its caller is the first holder. A
 *           free block that is cached may also be held again, as it is, by kv_pool_ref().
 *   rule 2  Only the sole holder of a block writes to it. A block with several holders is read-only for all of them,
 * and so is a cached one from kv_pool_cache() on, whoever holds it. rule 3  Whoever lets bytes move holds the block
 * until they have stopped: prefill until every push that reads it is complete, decode until the transfer layer said
 * that nothing can land in it any more (quarantine). The step that runs is a mover too. rule 4  Each holder releases
 * exactly once. The last release makes the block free. rule 5  All or nothing: a caller that cannot have all blocks it
 * asks for gets none. rule 6  A cached block without holders is free like any other, but goes last, and among its kind
 * the one that was released first. Whoever acquires it gets it uncached.
 *
 * One thread owns a pool. Deterministic: the same calls give the same block numbers. */
#ifndef BATON_COMMON_KV_POOL_H
#define BATON_COMMON_KV_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/core/status.h"

typedef struct kv_pool kv_pool;

kv_pool *kv_pool_open(uint32_t n_blocks);
void kv_pool_close(kv_pool *pool); /* NULL is accepted; held blocks are the caller's bug, not checked here */

/* Writes n_blocks block numbers into blocks[]. BT_NO_CAPACITY: fewer are free, nothing was taken. */
bt_status kv_pool_acquire(kv_pool *pool, uint32_t n_blocks, uint32_t *blocks);

void kv_pool_ref(kv_pool *pool, const uint32_t *blocks, uint32_t n_blocks);     /* one more holder of each: rule 1 */
void kv_pool_release(kv_pool *pool, const uint32_t *blocks, uint32_t n_blocks); /* one holder less of each */

/* Called within kv_pool_acquire() when it gives away a cached block: what was in it is gone. One listener; may not call
 * the pool. */
void kv_pool_on_evict(kv_pool *pool, void (*fn)(void *context, uint32_t block), void *context);

/* The caller holds the block, its content is complete and worth keeping: rule 2 and rule 6 from now on. */
void kv_pool_cache(kv_pool *pool, uint32_t block);
bool kv_pool_is_cached(const kv_pool *pool, uint32_t block);

uint32_t kv_pool_n_blocks(const kv_pool *pool);
uint32_t kv_pool_n_free(const kv_pool *pool);
uint32_t kv_pool_n_cached(const kv_pool *pool);                  /* of the free ones */
uint32_t kv_pool_n_holders(const kv_pool *pool, uint32_t block); /* 0: free */

#endif
