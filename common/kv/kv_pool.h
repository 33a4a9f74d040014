/* Which KV blocks are free, and who holds the others: numbers and reference counts, no bytes, no device. Layout of the
 * bytes: kv_layout.h.
 *
 * The rules, cited as "rule 3" where code follows one:
 *
 *   rule 1  A block is free or held. Only kv_pool_acquire() makes a free block held; its caller is the first holder.
 *   rule 2  Only the sole holder of a block writes to it. A block with several holders is read-only for all of them.
 *   rule 3  Whoever lets bytes move holds the block until they have stopped: prefill until every push that reads it
 *           is complete, decode until the transfer layer said that nothing can land in it any more (quarantine).
 *           The step that runs is a mover too.
 *   rule 4  Each holder releases exactly once. The last release makes the block free.
 *   rule 5  All or nothing: a caller that cannot have all blocks it asks for gets none.
 *
 * One thread owns a pool. Deterministic: the same calls give the same block numbers. */
#ifndef BATON_COMMON_KV_POOL_H
#define BATON_COMMON_KV_POOL_H

#include <stdint.h>

#include "common/core/status.h"

typedef struct kv_pool kv_pool;

kv_pool *kv_pool_open(uint32_t n_blocks);
void kv_pool_close(kv_pool *pool); /* NULL is accepted; held blocks are the caller's bug, not checked here */

/* Writes n_blocks block numbers into blocks[]. BT_NO_CAPACITY: fewer are free, nothing was taken. */
bt_status kv_pool_acquire(kv_pool *pool, uint32_t n_blocks, uint32_t *blocks);

void kv_pool_ref(kv_pool *pool, const uint32_t *blocks, uint32_t n_blocks);     /* one more holder of each */
void kv_pool_release(kv_pool *pool, const uint32_t *blocks, uint32_t n_blocks); /* one holder less of each */

uint32_t kv_pool_n_blocks(const kv_pool *pool);
uint32_t kv_pool_n_free(const kv_pool *pool);
uint32_t kv_pool_n_holders(const kv_pool *pool, uint32_t block); /* 0: free */

#endif
