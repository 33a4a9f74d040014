/* The lease table: which connection may push into which blocks, and what has landed. Accounting only: no UCX, no I/O.
 * One thread (the fabric's) owns a table.
 *
 *     OPEN ──close(n)──▶ CLOSING ──n landed, or one refused──▶ (nothing may begin) ──n_landing is 0──▶ is_closed,
 * removed
 */
#ifndef BATON_KVTRANSFER_KVT_LEASE_H
#define BATON_KVTRANSFER_KVT_LEASE_H

#include "kvtransfer/kvt.h"

typedef struct kvt_lease {
    struct kvt_lease *next; /* in its hash chain */
    uint64_t id;
    kvt_peer peer;
    uint32_t first_block, n_blocks, n_tokens, n_layers;
    uint32_t n_landing;      /* landings in flight: UCX may write into the blocks */
    uint32_t n_close_pushes; /* CLOSING: how many may land in all */
    bool is_closing;
    bool has_refused; /* a push of the peer was refused or broke off: counts can never come right */
    kvt_landed landed;
    uint32_t *blocks; /* [n_blocks] */
    uint8_t *taken;   /* [n_layers][n_blocks] 1: a push of it landed or is landing */
} kvt_lease;

typedef struct {
    kvt_lease **chains; /* [n_chains], a power of two */
    uint32_t n_chains, n_leases;
} kvt_lease_table;

void kvt_lease_table_init(kvt_lease_table *table);
void kvt_lease_table_fini(kvt_lease_table *table); /* frees every lease */

/* NULL: the id is in use (an owner's bug). */
kvt_lease *kvt_lease_table_add(kvt_lease_table *table, kvt_peer peer, const kvt_lease_args *args, uint32_t n_layers);
kvt_lease *kvt_lease_table_find(const kvt_lease_table *table, uint64_t id); /* NULL: none */
void kvt_lease_table_remove(kvt_lease_table *table, kvt_lease *lease);      /* and frees it; nothing may be landing */

/* A PUSH of `n_bytes` from `peer`: BT_OK and one more landing, to be ended by kvt_lease_land_end(); *block is where.
 * BT_BAD_REQUEST: not as agreed (rule 1): nothing may land. */
bt_status kvt_lease_land_begin(kvt_lease *lease, kvt_peer peer, const wire_push *push, uint64_t n_bytes,
                               uint64_t token_bytes, uint32_t *block);

/* `hash` of what landed; is_landed false: the bytes did not all arrive. */
void kvt_lease_land_end(kvt_lease *lease, uint64_t n_bytes, uint64_t hash, bool is_landed);

void kvt_lease_close_begin(kvt_lease *lease, uint32_t n_pushes);
bool kvt_lease_is_closed(const kvt_lease *lease); /* nothing is landing and nothing may begin */

#endif
