/* Which cached block holds the KV of which tokens: finds the longest known beginning of a prompt.
 *
 * A full block of 64 prompt tokens is named by a 128-bit hash over the name of the block before it and its tokens, so a
 * name stands for everything up to the block's end. The first name of a chain starts from the model and the client's
 * cache_salt: who does not know the salt of others finds nothing of theirs. Names travel (RESERVE); equal names are
 * taken for equal content.
 *
 * Only blocks of prompt positions belong here: what is generated is computed in another form of attention and has other
 * bits. The last, partial block of a prompt is always private. Who holds a cached block and when it goes: kv_pool.h,
 * rules 1, 2 and 6.
 *
 * One thread owns a cache and its pool. */
#ifndef BATON_COMMON_KV_PREFIX_H
#define BATON_COMMON_KV_PREFIX_H

#include <stdint.h>

#include "common/kv/kv_pool.h"
#include "common/wire/wire.h"

typedef struct kv_prefix kv_prefix;

/* `pool` is borrowed until close, and nobody else caches blocks in it or listens to its evictions. */
kv_prefix *kv_prefix_open(kv_pool *pool);
void kv_prefix_close(kv_prefix *prefix); /* NULL is accepted; the pool keeps its blocks */

/* Writes the names of the first n_blocks blocks of tokens[n_blocks * KV_BLOCK_TOKENS] into names[]. */
void kv_prefix_names(uint64_t model_hash, wire_str cache_salt, const uint32_t *tokens, uint32_t n_blocks,
                     wire_block_name *names);

/* How many blocks of the chain, from its beginning, are here: they are held for the caller (one more holder each), and
 * their numbers are in blocks[]. */
uint32_t kv_prefix_take(kv_prefix *prefix, const wire_block_name *names, uint32_t n_names, uint32_t *blocks);

/* How many of them kv_prefix_take() would find now. */
uint32_t kv_prefix_count(const kv_prefix *prefix, const wire_block_name *names, uint32_t n_names);

/* The caller holds blocks[n], each complete and right, named names[n]. A name that is here already keeps its block. */
void kv_prefix_put(kv_prefix *prefix, const wire_block_name *names, const uint32_t *blocks, uint32_t n);

/* What has changed since it was last asked for. `gone` applies first: a name may have moved to another block. Valid
 * until the next call of any function here. */
typedef struct {
    const wire_block_name *gone, *come;
    uint32_t n_gone, n_come;
} kv_prefix_changes;
kv_prefix_changes kv_prefix_take_changes(kv_prefix *prefix);
bool kv_prefix_has_changes(const kv_prefix *prefix);

/* All names that were told of by kv_prefix_take_changes() and have not gone since: what a new listener starts from.
 * names[n_blocks of the pool]; returns their number. */
uint32_t kv_prefix_told(const kv_prefix *prefix, wire_block_name *names);

/* For tests: asserts that names and blocks agree (linear in the pool). */
void kv_prefix_check(const kv_prefix *prefix);

#endif
