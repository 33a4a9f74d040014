/* A map from names to blocks, and each block's own name. Changes are not logged: a block whose name is not the one that
 * was told of last is on a list, once, so what there is to tell is bounded by the pool. */
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
    wire_block_name *names; /* [n_blocks] of what is cached there; all 0: nothing is */
    wire_block_name *told;  /* [n_blocks] the names that were told of */
    uint32_t *changed;      /* [n_changed] blocks that were named or evicted since */
    uint32_t n_changed;
    bool *is_changed;             /* [n_blocks] */
    wire_block_name *gone, *come; /* [n_blocks] of the last kv_prefix_changes */
};

static bt_key key_of(const wire_block_name *name) { return (bt_key){name->low, name->high, 0}; }

static bool is_none(const wire_block_name *name) { return name->low == 0 && name->high == 0; }

static void set_name(kv_prefix *prefix, uint32_t block, wire_block_name name) {
    prefix->names[block] = name;
    if (prefix->is_changed[block]) return;
    prefix->is_changed[block] = true;
    prefix->changed[prefix->n_changed++] = block;
}

static void on_evict(void *context, uint32_t block) {
    kv_prefix *prefix = context;
    bt_map_remove(&prefix->by_name, key_of(&prefix->names[block]));
    set_name(prefix, block, (wire_block_name){0});
}

kv_prefix *kv_prefix_open(kv_pool *pool) {
    kv_prefix *prefix = bt_calloc(1, sizeof(*prefix));
    prefix->pool = pool;
    uint32_t n_blocks = kv_pool_n_blocks(pool);
    prefix->names = bt_calloc(n_blocks, sizeof(wire_block_name));
    prefix->told = bt_calloc(n_blocks, sizeof(wire_block_name));
    prefix->changed = bt_calloc(n_blocks, sizeof(uint32_t));
    prefix->is_changed = bt_calloc(n_blocks, sizeof(bool));
    prefix->gone = bt_calloc(n_blocks, sizeof(wire_block_name));
    prefix->come = bt_calloc(n_blocks, sizeof(wire_block_name));
    kv_pool_on_evict(pool, on_evict, prefix);
    return prefix;
}

void kv_prefix_close(kv_prefix *prefix) {
    if (prefix == NULL) return;
    kv_pool_on_evict(prefix->pool, NULL, NULL);
    bt_map_fini(&prefix->by_name);
    free(prefix->names);
    free(prefix->told);
    free(prefix->changed);
    free(prefix->is_changed);
    free(prefix->gone);
    free(prefix->come);
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

static uint32_t find(const kv_prefix *prefix, const wire_block_name *name) {
    return bt_map_get(&prefix->by_name, key_of(name));
}

uint32_t kv_prefix_take(kv_prefix *prefix, const wire_block_name *names, uint32_t n_names, uint32_t *blocks) {
    uint32_t n = 0;
    while (n < n_names && (blocks[n] = find(prefix, &names[n])) != BT_MAP_NONE) n++;
    kv_pool_ref(prefix->pool, blocks, n);
    return n;
}

uint32_t kv_prefix_count(const kv_prefix *prefix, const wire_block_name *names, uint32_t n_names) {
    uint32_t n = 0;
    while (n < n_names && find(prefix, &names[n]) != BT_MAP_NONE) n++;
    return n;
}

void kv_prefix_put(kv_prefix *prefix, const wire_block_name *names, const uint32_t *blocks, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        if (find(prefix, &names[i]) != BT_MAP_NONE) continue;
        BT_ASSERT(!kv_pool_is_cached(prefix->pool, blocks[i]));
        set_name(prefix, blocks[i], names[i]);
        bt_map_put(&prefix->by_name, key_of(&names[i]), blocks[i]);
        kv_pool_cache(prefix->pool, blocks[i]);
    }
}

static bool is_same(const wire_block_name *a, const wire_block_name *b) {
    return a->low == b->low && a->high == b->high;
}

kv_prefix_changes kv_prefix_take_changes(kv_prefix *prefix) {
    kv_prefix_changes changes = {.gone = prefix->gone, .come = prefix->come};
    for (uint32_t i = 0; i < prefix->n_changed; i++) {
        uint32_t block = prefix->changed[i];
        wire_block_name *told = &prefix->told[block], *name = &prefix->names[block];
        prefix->is_changed[block] = false;
        if (is_same(told, name)) continue;
        if (!is_none(told)) prefix->gone[changes.n_gone++] = *told;
        if (!is_none(name)) prefix->come[changes.n_come++] = *name;
        *told = *name;
    }
    prefix->n_changed = 0;
    return changes;
}

bool kv_prefix_has_changes(const kv_prefix *prefix) { return prefix->n_changed > 0; }

uint32_t kv_prefix_told(const kv_prefix *prefix, wire_block_name *names) {
    uint32_t n = 0;
    for (uint32_t block = 0; block < kv_pool_n_blocks(prefix->pool); block++) {
        if (!is_none(&prefix->told[block])) names[n++] = prefix->told[block];
    }
    return n;
}

void kv_prefix_check(const kv_prefix *prefix) {
    uint32_t n_blocks = kv_pool_n_blocks(prefix->pool), n_cached = 0, n_named = 0;
    for (uint32_t block = 0; block < n_blocks; block++) {
        bool is_named = !is_none(&prefix->names[block]);
        BT_ASSERT(is_named == kv_pool_is_cached(prefix->pool, block));
        BT_ASSERT(prefix->is_changed[block] || is_same(&prefix->names[block], &prefix->told[block]));
        if (!is_named) continue;
        BT_ASSERT(find(prefix, &prefix->names[block]) == block);
        n_named++;
        n_cached += kv_pool_n_holders(prefix->pool, block) == 0;
    }
    BT_ASSERT(n_cached == kv_pool_n_cached(prefix->pool) && prefix->by_name.n_used == n_named);
}
