/* A map from names to blocks, and each block's own name. An evicted block's entry is not searched for when the pool
 * gives it away: a look-up sees that the block is not cached any more, and when it is cached again the entry goes. So
 * each entry leads to a block of that name, and there are never more entries than blocks. */
#include "common/kv/kv_prefix.h"

#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "common/core/alloc.h"
#include "common/core/map.h"
#include "common/kv/kv_layout.h"

struct kv_prefix {
    kv_pool *pool;
    bt_map by_name;         /* -> block */
    wire_block_name *names; /* [n_blocks] of the last content that was cached there; all 0: never was */
};

kv_prefix *kv_prefix_open(kv_pool *pool) {
    kv_prefix *prefix = bt_calloc(1, sizeof(*prefix));
    prefix->pool = pool;
    prefix->names = bt_calloc(kv_pool_n_blocks(pool), sizeof(wire_block_name));
    return prefix;
}

void kv_prefix_close(kv_prefix *prefix) {
    if (prefix == NULL) return;
    bt_map_fini(&prefix->by_name);
    free(prefix->names);
    free(prefix);
}

void kv_prefix_names(uint64_t model_hash, wire_str cache_salt, const uint32_t *tokens, uint32_t n_blocks,
                     wire_block_name *names) {
    struct {
        XXH128_hash_t before;
        uint32_t tokens[KV_BLOCK_TOKENS];
    } block;
    block.before = XXH3_128bits_withSeed(cache_salt.bytes, cache_salt.n_bytes, model_hash);
    for (uint32_t i = 0; i < n_blocks; i++) {
        memcpy(block.tokens, tokens + (size_t)i * KV_BLOCK_TOKENS, sizeof(block.tokens));
        block.before = XXH3_128bits(&block, sizeof(block));
        names[i] = (wire_block_name){block.before.low64, block.before.high64};
    }
}

static bt_key key_of(const wire_block_name *name) { return (bt_key){name->low, name->high, 0}; }

/* BT_MAP_NONE: not here, or not any more. */
static uint32_t find(const kv_prefix *prefix, const wire_block_name *name) {
    uint32_t block = bt_map_get(&prefix->by_name, key_of(name));
    return block != BT_MAP_NONE && kv_pool_is_cached(prefix->pool, block) ? block : BT_MAP_NONE;
}

uint32_t kv_prefix_take(kv_prefix *prefix, const wire_block_name *names, uint32_t n_names, uint32_t *blocks) {
    uint32_t n = 0;
    while (n < n_names && (blocks[n] = find(prefix, &names[n])) != BT_MAP_NONE) n++;
    kv_pool_ref(prefix->pool, blocks, n);
    return n;
}

void kv_prefix_put(kv_prefix *prefix, const wire_block_name *names, const uint32_t *blocks, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        if (find(prefix, &names[i]) != BT_MAP_NONE) continue;
        wire_block_name *name = &prefix->names[blocks[i]];
        BT_ASSERT(!kv_pool_is_cached(prefix->pool, blocks[i]));
        if (bt_map_get(&prefix->by_name, key_of(name)) == blocks[i]) bt_map_remove(&prefix->by_name, key_of(name));
        *name = names[i];
        bt_map_put(&prefix->by_name, key_of(name), blocks[i]);
        kv_pool_cache(prefix->pool, blocks[i]);
    }
}

void kv_prefix_check(const kv_prefix *prefix) {
    uint32_t n_blocks = kv_pool_n_blocks(prefix->pool), n_cached = 0;
    for (uint32_t block = 0; block < n_blocks; block++) {
        if (!kv_pool_is_cached(prefix->pool, block)) continue;
        BT_ASSERT(find(prefix, &prefix->names[block]) == block);
        n_cached += kv_pool_n_holders(prefix->pool, block) == 0;
    }
    BT_ASSERT(n_cached == kv_pool_n_cached(prefix->pool) && prefix->by_name.n_used <= n_blocks);
}
