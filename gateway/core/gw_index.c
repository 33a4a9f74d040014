/* Linear hashing (Litwin, VLDB 1980): buckets are chains of entries, and each entry that is added
 * splits a few buckets in two, the next in turn. Entries never move in memory order, so a sweep is a walk over their
 * array.
 *
 * A column goes through: free -> live -> (left) waiting -> swept -> free. The sweep that runs clears the columns of
 * `swept`; those that leave meanwhile wait for the next one. Bits of columns that are not live mean nothing. */
#include "gateway/core/gw_index.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/core/alloc.h"

enum {
    N_WORDS = GW_INDEX_MAX_WORKERS / 64,
    SWEEP_ENTRIES = 1024,  /* in one call: some 60 KB of memory, read in order */
    AHEAD = 12,            /* names that are fetched together: a lookup is two cache misses */
    STRIDE = 16,           /* entries that are fetched ahead where they lie in the prompt's order */
    BUCKETS_PER_ENTRY = 4, /* so that nearly always it is no third */
};
#define NO_ENTRY   UINT32_MAX
#define PAGE_BYTES ((size_t)2 << 20) /* a huge one */

typedef struct {
    uint64_t words[N_WORDS];
} column_set;

typedef struct {
    wire_block_name name;
    column_set holders; /* none: the entry is free */
    uint32_t next;      /* in its bucket, or of the free ones */
    uint32_t after;     /* a guess: the entry of the block behind it in a prompt; NO_ENTRY: none */
} entry;

struct gw_index {
    uint64_t seed;
    uint32_t max_blocks;
    uint32_t *buckets; /* [cap_buckets] owned: the first entry's number */
    uint32_t n_buckets, cap_buckets;
    entry *entries; /* [cap_entries] owned; those from n_entries on were never used */
    uint32_t n_entries, cap_entries, n_used, first_free;
    column_set live, swept, waiting;
    bool is_sweeping;
    uint32_t sweep_at;
    uint32_t n_blocks[GW_INDEX_MAX_WORKERS];
    uint32_t last_put[GW_INDEX_MAX_WORKERS]; /* by column: entry, or NO_ENTRY */
};

/* ---- sets of columns -------------------------------------------------------------------------------------------- */

static bool set_has(const column_set *set, uint32_t column) { return set->words[column / 64] >> column % 64 & 1; }
static void set_add(column_set *set, uint32_t column) { set->words[column / 64] |= (uint64_t)1 << column % 64; }
static void set_drop(column_set *set, uint32_t column) { set->words[column / 64] &= ~((uint64_t)1 << column % 64); }

static bool set_is_empty(const column_set *set) {
    uint64_t any = 0;
    for (int i = 0; i < N_WORDS; i++) any |= set->words[i];
    return any == 0;
}

static column_set set_and(const column_set *x, const column_set *y) {
    column_set both;
    for (int i = 0; i < N_WORDS; i++) both.words[i] = x->words[i] & y->words[i];
    return both;
}

/* ---- the map ---------------------------------------------------------------------------------------------------- */

/* Every bit reaches the low ones: Murmur3's 64-bit finalizer. */
static uint64_t hash_of(const gw_index *index, const wire_block_name *name) {
    uint64_t h = (name->low ^ index->seed) * 0x9e3779b97f4a7c15u + name->high;
    h = (h ^ h >> 33) * 0xff51afd7ed558ccdu;
    h = (h ^ h >> 33) * 0xc4ceb9fe1a85ec53u;
    return h ^ h >> 33;
}

static uint32_t highest_bit(uint32_t n) { return 1u << (31 - __builtin_clz(n)); }

/* Of n buckets: the hash's low bits, as many as name one that is there. */
static uint32_t bucket_of(uint64_t hash, uint32_t n) {
    uint32_t top = highest_bit(n), bucket = (uint32_t)hash & (2 * top - 1);
    return bucket < n ? bucket : bucket & (top - 1);
}

static bool name_equal(const wire_block_name *x, const wire_block_name *y) {
    return x->low == y->low && x->high == y->high;
}

static size_t in_pages(size_t n_bytes) { return (n_bytes + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1); }

/* Address space for an array that grows where it is, in huge pages: lookups are at random. */
static void *reserve(size_t n_bytes) {
    size_t n_room = in_pages(n_bytes) + PAGE_BYTES;
    uint8_t *room = mmap(NULL, n_room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    BT_ASSERT(room != MAP_FAILED);
    size_t before = -(uintptr_t)room & (PAGE_BYTES - 1);
    if (before > 0) munmap(room, before);
    munmap(room + n_room - (PAGE_BYTES - before), PAGE_BYTES - before);
    return room + before;
}

/* One page more of it, zeroed: how many items there is room for now. `cap`: before. */
static uint32_t take_page(void *array, uint32_t cap, size_t item_bytes) {
    size_t n_taken = in_pages(cap * item_bytes);
    int refused = mprotect((uint8_t *)array + n_taken, PAGE_BYTES, PROT_READ | PROT_WRITE);
    BT_ASSERT(refused == 0);
    (void)madvise((uint8_t *)array + n_taken, PAGE_BYTES, MADV_HUGEPAGE);
    return (uint32_t)((n_taken + PAGE_BYTES) / item_bytes);
}

/* The link that leads to the name's entry, or the one at its chain's end. */
static uint32_t *find_link(const gw_index *index, const wire_block_name *name) {
    uint32_t *link = &index->buckets[bucket_of(hash_of(index, name), index->n_buckets)];
    while (*link != NO_ENTRY && !name_equal(&index->entries[*link].name, name)) link = &index->entries[*link].next;
    return link;
}

/* A new last bucket takes its share of the one whose number is the same but for the highest bit. */
static void split_bucket(gw_index *index) {
    if (index->n_buckets == index->cap_buckets)
        index->cap_buckets = take_page(index->buckets, index->cap_buckets, sizeof(*index->buckets));
    uint32_t added = index->n_buckets++;
    uint32_t *to = &index->buckets[added], *link = &index->buckets[added - highest_bit(added)];
    *to = NO_ENTRY;
    while (*link != NO_ENTRY) {
        entry *at = &index->entries[*link];
        if (bucket_of(hash_of(index, &at->name), index->n_buckets) != added) {
            link = &at->next;
            continue;
        }
        uint32_t moved = *link, rest = at->next;
        at->next = *to;
        *to = moved;
        *link = rest;
    }
}

static uint32_t take_entry(gw_index *index) {
    uint32_t taken = index->first_free;
    if (taken != NO_ENTRY) {
        index->first_free = index->entries[taken].next;
        return taken;
    }
    if (index->n_entries == index->max_blocks) return NO_ENTRY;
    if (index->n_entries == index->cap_entries)
        index->cap_entries = take_page(index->entries, index->cap_entries, sizeof(*index->entries));
    return index->n_entries++;
}

static void drop_entry(gw_index *index, uint32_t *link) {
    uint32_t dropped = *link;
    entry *at = &index->entries[dropped];
    *link = at->next;
    *at = (entry){.next = index->first_free, .after = NO_ENTRY};
    index->first_free = dropped;
    index->n_used--;
}

/* ---- open, columns ---------------------------------------------------------------------------------------------- */

gw_index *gw_index_open(uint32_t max_blocks, uint64_t seed) {
    gw_index *index = bt_calloc(1, sizeof(*index));
    index->seed = seed;
    index->max_blocks = max_blocks;
    index->buckets = reserve(BUCKETS_PER_ENTRY * (size_t)max_blocks * sizeof(*index->buckets));
    index->entries = reserve(max_blocks * sizeof(*index->entries));
    index->cap_buckets = take_page(index->buckets, 0, sizeof(*index->buckets));
    index->n_buckets = 1;
    index->buckets[0] = index->first_free = NO_ENTRY;
    return index;
}

void gw_index_close(gw_index *index) {
    if (index == NULL) return;
    munmap(index->buckets, in_pages(BUCKETS_PER_ENTRY * (size_t)index->max_blocks * sizeof(*index->buckets)));
    munmap(index->entries, in_pages(index->max_blocks * sizeof(*index->entries)));
    free(index);
}

static uint32_t find_free_column(const gw_index *index) {
    for (uint32_t i = 0; i < N_WORDS; i++) {
        uint64_t is_free = ~(index->live.words[i] | index->swept.words[i] | index->waiting.words[i]);
        if (is_free != 0) return i * 64 + (uint32_t)__builtin_ctzll(is_free);
    }
    return GW_INDEX_NONE;
}

uint32_t gw_index_join(gw_index *index) {
    uint32_t column = find_free_column(index);
    while (column == GW_INDEX_NONE && index->is_sweeping) { /* more came and went than there are columns */
        gw_index_sweep(index);
        column = find_free_column(index);
    }
    if (column == GW_INDEX_NONE) return GW_INDEX_NONE;
    set_add(&index->live, column);
    index->n_blocks[column] = 0;
    index->last_put[column] = NO_ENTRY;
    return column;
}

void gw_index_leave(gw_index *index, uint32_t column) {
    set_drop(&index->live, column);
    if (index->n_blocks[column] == 0) return;
    set_add(index->is_sweeping ? &index->waiting : &index->swept, column);
    if (!index->is_sweeping) index->sweep_at = 0;
    index->is_sweeping = true;
}

void gw_index_sweep(gw_index *index) {
    if (!index->is_sweeping) return;
    uint32_t left = index->n_entries - index->sweep_at, n = left < SWEEP_ENTRIES ? left : SWEEP_ENTRIES;
    for (uint32_t end = index->sweep_at + n; index->sweep_at < end; index->sweep_at++) {
        entry *at = &index->entries[index->sweep_at];
        if (set_is_empty(&at->holders)) continue;
        for (int i = 0; i < N_WORDS; i++) at->holders.words[i] &= ~index->swept.words[i];
        if (set_is_empty(&at->holders)) drop_entry(index, find_link(index, &at->name));
    }
    if (index->sweep_at < index->n_entries) return;
    index->swept = index->waiting;
    index->waiting = (column_set){0};
    index->sweep_at = 0;
    index->is_sweeping = !set_is_empty(&index->swept);
}

/* ---- blocks ----------------------------------------------------------------------------------------------------- */

/* Workers tell of a prompt's blocks in their order. */
static void guess_order(gw_index *index, uint32_t column, uint32_t put) {
    if (index->last_put[column] != NO_ENTRY) index->entries[index->last_put[column]].after = put;
    index->last_put[column] = put;
}

bool gw_index_put(gw_index *index, uint32_t column, const wire_block_name *name) {
    uint32_t *link = find_link(index, name);
    if (*link == NO_ENTRY) {
        uint32_t taken = take_entry(index);
        if (taken == NO_ENTRY) return false;
        index->entries[taken] = (entry){.name = *name, .next = NO_ENTRY, .after = NO_ENTRY};
        *link = taken;
        index->n_used++;
    } else if (set_has(&index->entries[*link].holders, column)) {
        return false;
    }
    set_add(&index->entries[*link].holders, column);
    guess_order(index, column, *link);
    index->n_blocks[column]++;
    for (int i = 0; i < 2 * BUCKETS_PER_ENTRY && index->n_buckets < BUCKETS_PER_ENTRY * index->n_used; i++)
        split_bucket(index);
    return true;
}

bool gw_index_remove(gw_index *index, uint32_t column, const wire_block_name *name) {
    uint32_t *link = find_link(index, name);
    if (*link == NO_ENTRY || !set_has(&index->entries[*link].holders, column)) return false;
    column_set *holders = &index->entries[*link].holders;
    set_drop(holders, column);
    column_set rest = set_and(holders, &index->live);
    if (set_is_empty(&rest)) drop_entry(index, link);
    index->n_blocks[column]--;
    return true;
}

bool gw_index_has(const gw_index *index, uint32_t column, const wire_block_name *name) {
    uint32_t found = *find_link(index, name);
    return found != NO_ENTRY && set_has(&index->entries[found].holders, column);
}

uint32_t gw_index_n_blocks(const gw_index *index, uint32_t column) { return index->n_blocks[column]; }

/* The bucket of one, and the first entry of one whose bucket was asked for AHEAD names ago. Always inline: GCC 12 takes
 * a function that does nothing but prefetch for one without effects, and leaves its calls out. */
static inline __attribute__((always_inline)) void prefetch(const gw_index *index, const wire_block_name *names,
                                                           uint32_t n_names, uint32_t at) {
    if (at < n_names) __builtin_prefetch(&index->buckets[bucket_of(hash_of(index, &names[at]), index->n_buckets)]);
    if (at < AHEAD || at - AHEAD >= n_names) return;
    uint32_t first = index->buckets[bucket_of(hash_of(index, &names[at - AHEAD]), index->n_buckets)];
    if (first == NO_ENTRY) return;
    __builtin_prefetch(&index->entries[first]);
    __builtin_prefetch(&index->entries[first].next);
}

void gw_index_ahead(const gw_index *index, const wire_block_name *names, uint32_t n_names, uint32_t at) {
    for (uint32_t i = at == 0 ? 0 : at + 2 * AHEAD; i <= at + 2 * AHEAD; i++) prefetch(index, names, n_names, i);
}

/* The entry of a prompt's next name; NULL: nobody holds it. *guess: where it probably lies, by the one before; they
 * mostly lie side by side too, so that memory is read as it comes. */
static const entry *find_next(const gw_index *index, const wire_block_name *name, uint32_t *guess) {
    uint32_t found = *guess;
    if (found == NO_ENTRY || !name_equal(&index->entries[found].name, name)) found = *find_link(index, name);
    if (found == NO_ENTRY) return NULL;
    *guess = index->entries[found].after;
    if (*guess == found + 1) {
        __builtin_prefetch(&index->entries[found] + STRIDE);
    } else if (*guess != NO_ENTRY) {
        for (uint32_t i = 0; i <= STRIDE; i++) __builtin_prefetch(&index->entries[*guess] + i);
    }
    return &index->entries[found];
}

/* lengths[] of the columns in `set` becomes n. */
static void set_lengths(const column_set *set, uint32_t n, uint32_t *lengths) {
    for (uint32_t i = 0; i < N_WORDS; i++)
        for (uint64_t word = set->words[i]; word != 0; word &= word - 1)
            lengths[i * 64 + (uint32_t)__builtin_ctzll(word)] = n;
}

void gw_index_match(const gw_index *index, const wire_block_name *names, uint32_t n_names, uint32_t *lengths) {
    uint32_t guess = NO_ENTRY;
    column_set holders = index->live;
    memset(lengths, 0, GW_INDEX_MAX_WORKERS * sizeof(*lengths));
    for (uint32_t n = 0; n < n_names && !set_is_empty(&holders); n++) {
        const entry *found = find_next(index, &names[n], &guess);
        column_set here = {0}, lost;
        if (found != NULL) here = set_and(&holders, &found->holders);
        for (int i = 0; i < N_WORDS; i++) lost.words[i] = holders.words[i] & ~here.words[i];
        if (n > 0 && !set_is_empty(&lost)) set_lengths(&lost, n, lengths);
        holders = here;
    }
    if (n_names > 0) set_lengths(&holders, n_names, lengths);
}

uint32_t gw_index_check(const gw_index *index) {
    uint32_t n_chained = 0, n_blocks[GW_INDEX_MAX_WORKERS] = {0};
    for (uint32_t b = 0; b < index->n_buckets; b++) {
        for (uint32_t i = index->buckets[b]; i != NO_ENTRY; i = index->entries[i].next, n_chained++) {
            const entry *at = &index->entries[i];
            BT_ASSERT(i < index->n_entries && bucket_of(hash_of(index, &at->name), index->n_buckets) == b);
            BT_ASSERT(!set_is_empty(&at->holders));
            for (uint32_t c = 0; c < GW_INDEX_MAX_WORKERS; c++) n_blocks[c] += set_has(&at->holders, c);
        }
    }
    BT_ASSERT(n_chained == index->n_used);
    for (uint32_t c = 0; c < GW_INDEX_MAX_WORKERS; c++)
        BT_ASSERT(!set_has(&index->live, c) || n_blocks[c] == index->n_blocks[c]);
    return index->n_used;
}
