/* A chained hash table that doubles, and the checks of rule 1. Owns the leases; does not touch KV memory: kvt_land.c
 * moves the bytes between land_begin and land_end. */
#include "kvtransfer/kvt_lease.h"

#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"

enum { FIRST_CHAINS = 64 };

/* Lease ids are the owner's counters or random: multiply to spread either (Knuth, TAOCP 3, 6.4). */
static uint32_t lease_slot(uint64_t id, uint32_t n_chains) {
    return (uint32_t)((id * 0x9E3779B97F4A7C15u) >> 32) & (n_chains - 1);
}

void kvt_lease_table_init(kvt_lease_table *table) {
    *table = (kvt_lease_table){.n_chains = FIRST_CHAINS};
    table->chains = bt_calloc(FIRST_CHAINS, sizeof(*table->chains));
}

static void lease_free(kvt_lease *lease) {
    free(lease->blocks);
    free(lease->taken);
    free(lease);
}

void kvt_lease_table_fini(kvt_lease_table *table) {
    for (uint32_t i = 0; i < table->n_chains; i++) {
        for (kvt_lease *lease = table->chains[i], *next; lease != NULL; lease = next) {
            next = lease->next;
            lease_free(lease);
        }
    }
    free(table->chains);
    *table = (kvt_lease_table){0};
}

static void table_grow(kvt_lease_table *table) {
    uint32_t n_chains = table->n_chains * 2;
    kvt_lease **chains = bt_calloc(n_chains, sizeof(*chains));
    for (uint32_t i = 0; i < table->n_chains; i++) {
        for (kvt_lease *lease = table->chains[i], *next; lease != NULL; lease = next) {
            next = lease->next;
            kvt_lease **chain = &chains[lease_slot(lease->id, n_chains)];
            lease->next = *chain;
            *chain = lease;
        }
    }
    free(table->chains);
    table->chains = chains;
    table->n_chains = n_chains;
}

kvt_lease *kvt_lease_table_add(kvt_lease_table *table, kvt_peer peer, const kvt_lease_args *args, uint32_t n_layers) {
    if (kvt_lease_table_find(table, args->lease) != NULL) return NULL;
    if (table->n_leases >= table->n_chains) table_grow(table);
    kvt_lease *lease = bt_calloc(1, sizeof(*lease));
    lease->id = args->lease;
    lease->peer = peer;
    lease->first_block = args->first_block;
    lease->n_blocks = args->n_blocks;
    lease->n_tokens = args->n_tokens;
    lease->n_layers = n_layers;
    lease->blocks = bt_calloc(args->n_blocks + 1u, sizeof(*lease->blocks));
    if (args->n_blocks > 0) memcpy(lease->blocks, args->blocks, args->n_blocks * sizeof(*lease->blocks));
    lease->taken = bt_calloc(args->n_blocks + 1u, n_layers);
    kvt_lease **chain = &table->chains[lease_slot(lease->id, table->n_chains)];
    lease->next = *chain;
    *chain = lease;
    table->n_leases++;
    return lease;
}

kvt_lease *kvt_lease_table_find(const kvt_lease_table *table, uint64_t id) {
    kvt_lease *lease = table->chains[lease_slot(id, table->n_chains)];
    while (lease != NULL && lease->id != id) lease = lease->next;
    return lease;
}

void kvt_lease_table_remove(kvt_lease_table *table, kvt_lease *lease) {
    BT_ASSERT(lease->n_landing == 0);
    kvt_lease **at = &table->chains[lease_slot(lease->id, table->n_chains)];
    while (*at != lease) at = &(*at)->next;
    *at = lease->next;
    table->n_leases--;
    lease_free(lease);
}

static bool may_begin(const kvt_lease *lease) {
    if (!lease->is_closing) return true;
    return !lease->has_refused && lease->landed.n_pushes + lease->n_landing < lease->n_close_pushes;
}

/* Rows that a push of this block must carry; 0: it may not be pushed. */
static uint32_t rows_agreed(const kvt_lease *lease, uint32_t block) {
    uint64_t begin = (uint64_t)block * KV_BLOCK_TOKENS;
    if (block < lease->first_block || block >= lease->n_blocks || begin >= lease->n_tokens) return 0;
    uint64_t n_left = lease->n_tokens - begin;
    return n_left < KV_BLOCK_TOKENS ? (uint32_t)n_left : KV_BLOCK_TOKENS;
}

bt_status kvt_lease_land_begin(kvt_lease *lease, kvt_peer peer, const wire_push *push, uint64_t n_bytes,
                               uint64_t token_bytes, uint32_t *block) {
    if (lease->peer != peer) return BT_BAD_REQUEST; /* not its lease: its owner must not suffer for it */
    uint32_t n_rows = rows_agreed(lease, push->block);
    bool is_agreed = may_begin(lease) && push->layer < lease->n_layers && n_rows > 0 && push->n_rows == n_rows &&
                     n_bytes == n_rows * token_bytes;
    uint8_t *taken = is_agreed ? &lease->taken[(size_t)push->layer * lease->n_blocks + push->block] : NULL;
    if (taken == NULL || *taken) {
        lease->has_refused = true;
        return BT_BAD_REQUEST;
    }
    *taken = 1;
    *block = lease->blocks[push->block];
    lease->n_landing++;
    return BT_OK;
}

void kvt_lease_land_end(kvt_lease *lease, uint64_t n_bytes, uint64_t hash, bool is_landed) {
    lease->n_landing--;
    if (!is_landed) {
        lease->has_refused = true;
        return;
    }
    lease->landed.n_pushes++;
    lease->landed.n_bytes += n_bytes;
    lease->landed.checksum += hash;
}

void kvt_lease_close_begin(kvt_lease *lease, uint32_t n_pushes) {
    lease->n_close_pushes = n_pushes;
    lease->is_closing = true;
}

bool kvt_lease_is_closed(const kvt_lease *lease) {
    return lease->is_closing && lease->n_landing == 0 && !may_begin(lease);
}
