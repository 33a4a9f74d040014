/* A hash table of chains, and one list of all chunks, from the one used last to the first to go. */
#include "common/text/tok_cache.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "common/core/alloc.h"

typedef struct chunk chunk;
struct chunk {
    chunk *next;          /* in its chain */
    chunk *newer, *older; /* used after it, before it */
    uint64_t hash;
    uint64_t after; /* hash of the one that came behind it the last time; 0: none */
    uint32_t n_bytes, n_ids;
    uint32_t ids[]; /* [n_ids], and behind them the text */
};

struct tok_cache {
    chunk **chains; /* [mask + 1] owned */
    chunk *newest, *oldest;
    chunk *last, *expected; /* got or put last, and what came behind it the last time; NULL: gone, or none */
    uint64_t seed;
    size_t mask, n_bytes, max_bytes;
};

enum { CHAIN_BYTES = 2048 }; /* of memory to one chain: a chunk of English and its ids */

static uint8_t *text_of(chunk *one) { return (uint8_t *)&one->ids[one->n_ids]; }

static size_t bytes_of(size_t n_bytes, size_t n_ids) { return sizeof(chunk) + n_ids * sizeof(uint32_t) + n_bytes; }

tok_cache *tok_cache_open(size_t max_bytes, uint64_t seed) {
    tok_cache *cache = bt_calloc(1, sizeof(*cache));
    size_t n_chains = 1;
    while (n_chains < max_bytes / CHAIN_BYTES) n_chains *= 2;
    cache->chains = bt_calloc(n_chains, sizeof(chunk *));
    cache->mask = n_chains - 1;
    cache->n_bytes = n_chains * sizeof(chunk *);
    cache->max_bytes = max_bytes;
    cache->seed = seed;
    return cache;
}

void tok_cache_close(tok_cache *cache) {
    if (cache == NULL) return;
    for (chunk *one = cache->newest, *older; one != NULL; one = older) {
        older = one->older;
        free(one);
    }
    free(cache->chains);
    free(cache);
}

/* ---- the order of use ------------------------------------------------------------------------------------------- */

static void unlist(tok_cache *cache, chunk *one) {
    *(one->newer != NULL ? &one->newer->older : &cache->newest) = one->older;
    *(one->older != NULL ? &one->older->newer : &cache->oldest) = one->newer;
}

static void list_newest(tok_cache *cache, chunk *one) {
    one->newer = NULL;
    one->older = cache->newest;
    *(cache->newest != NULL ? &cache->newest->newer : &cache->oldest) = one;
    cache->newest = one;
}

static void drop_oldest(tok_cache *cache) {
    chunk *one = cache->oldest, **link = &cache->chains[one->hash & cache->mask];
    while (*link != one) link = &(*link)->next;
    *link = one->next;
    unlist(cache, one);
    cache->n_bytes -= bytes_of(one->n_bytes, one->n_ids);
    if (cache->last == one) cache->last = NULL;
    if (cache->expected == one) cache->expected = NULL;
    free(one);
}

/* ---- the table -------------------------------------------------------------------------------------------------- */

static chunk *find(const tok_cache *cache, uint64_t hash, const uint8_t *text, size_t n_bytes) {
    for (chunk *one = cache->chains[hash & cache->mask]; one != NULL; one = one->next) {
        bool is_alike = one->hash == hash && one->n_bytes == n_bytes;
        if (is_alike && memcmp(text_of(one), text, n_bytes) == 0) return one;
    }
    return NULL;
}

/* A guess: of those with the hash, whose text is to be compared. */
static chunk *find_hash(const tok_cache *cache, uint64_t hash) {
    chunk *one = cache->chains[hash & cache->mask];
    while (one != NULL && one->hash != hash) one = one->next;
    return one;
}

static void set_last(tok_cache *cache, chunk *one) {
    if (cache->last != NULL) cache->last->after = one->hash;
    cache->last = one;
    cache->expected = one->after != 0 ? find_hash(cache, one->after) : NULL;
}

static void use(tok_cache *cache, chunk *one, tok_ids *out) {
    tok_ids_append(out, one->ids, one->n_ids);
    set_last(cache, one);
    if (one == cache->newest) return;
    unlist(cache, one);
    list_newest(cache, one);
}

bool tok_cache_get(tok_cache *cache, const uint8_t *text, size_t n_bytes, tok_ids *out) {
    chunk *one = find(cache, XXH3_64bits_withSeed(text, n_bytes, cache->seed), text, n_bytes);
    if (one != NULL) use(cache, one, out);
    return one != NULL;
}

size_t tok_cache_expected(const tok_cache *cache) { return cache->expected != NULL ? cache->expected->n_bytes : 0; }

bool tok_cache_get_expected(tok_cache *cache, const uint8_t *text, tok_ids *out) {
    chunk *one = cache->expected;
    if (one == NULL || memcmp(text_of(one), text, one->n_bytes) != 0) return false;
    use(cache, one, out);
    return true;
}

void tok_cache_put(tok_cache *cache, const uint8_t *text, size_t n_bytes, const uint32_t *ids, size_t n_ids) {
    size_t n_needed = bytes_of(n_bytes, n_ids);
    uint64_t hash = XXH3_64bits_withSeed(text, n_bytes, cache->seed);
    size_t n_fixed = (cache->mask + 1) * sizeof(chunk *);
    if (n_fixed + n_needed > cache->max_bytes || find(cache, hash, text, n_bytes) != NULL) return;
    while (cache->n_bytes + n_needed > cache->max_bytes) drop_oldest(cache);
    chunk *one = bt_calloc(1, n_needed);
    one->hash = hash;
    one->n_bytes = (uint32_t)n_bytes;
    one->n_ids = (uint32_t)n_ids;
    memcpy(one->ids, ids, n_ids * sizeof(uint32_t));
    memcpy(text_of(one), text, n_bytes);
    one->next = cache->chains[hash & cache->mask];
    cache->chains[hash & cache->mask] = one;
    list_newest(cache, one);
    cache->n_bytes += n_needed;
    set_last(cache, one);
}

size_t tok_cache_n_bytes(const tok_cache *cache) { return cache->n_bytes; }
