/* The fabric: KV blocks and control messages between prefill and decode workers, over UCX. Moves bytes and decides
 * nothing.
 *
 * Everything travels as UCX active messages: id KVT_AM_FRAME carries one wire frame; id KVT_AM_DATA carries KV bytes
 * behind a PUSH frame (or probe bytes behind a PROBE frame). Within one machine KV bytes need not travel: a PULL says
 * where they lie, and the receiver reads them from the sender's memory, which it has mapped. Either way the receiver
 * decides where bytes land: a push names a lease, and the lease, opened here by the owner of the KV memory, names the
 * blocks. So nobody ever holds a key to write with, and:
 *
 *   rule 1: a push lands only in a block of an open lease that was given to the very connection that it came from.
 *   rule 2: after KVT_LEASE_CLOSED nothing lands in that lease's blocks any more; until then they must not be reused.
 *   rule 3: the memory of a push may be changed or freed after its KVT_PUSHED, never before.
 *   rule 4: KVT_DOWN is the last event of a peer: all its KVT_PUSHED have come and all its landings have ended.
 *   rule 5: messages keep their order, but pushes may land after a message that was sent after them: who gets a COMMIT
 * closes its lease with the COMMIT's count, and KVT_LEASE_CLOSED says what has landed.
 *
 * What the owner of the queue hears of one peer:
 *
 *      kvt_connect() ── KVT_UP ── (KVT_MESSAGE | KVT_PUSHED)* ── KVT_DOWN
 *                └────────────────────── KVT_DOWN (not reached, refused, too late)
 *      a peer that connected to us:  KVT_UP ... KVT_DOWN
 *
 * Threads: one thread of the fabric's own owns the UCX worker and every connection. All functions may be called from
 * any thread and return at once (open and close excepted); what one thread asks for is done in the order of its calls.
 * Answers are kvt_events in the owner's bt_queue. */
#ifndef BATON_KVTRANSFER_KVT_H
#define BATON_KVTRANSFER_KVT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/core/queue.h"
#include "common/core/status.h"
#include "common/kv/kv_layout.h"
#include "common/wire/wire.h"
#include "kvtransfer/kvt_memory.h"

typedef struct kvt_fabric kvt_fabric;
typedef uint64_t kvt_peer; /* one connection; never 0, never used twice by one fabric */

enum { KVT_AM_FRAME = 1, KVT_AM_DATA = 2 };
enum { KVT_MAX_ADDRESS = 280 }; /* "host:port" with its NUL */

/* How KV bytes get there. */
typedef enum {
    KVT_WAY_BEST,       /* by what suits the transport */
    KVT_WAY_PULL,       /* fetched from the sender's memory; shared memory only, else as BEST */
    KVT_WAY_EAGER,      /* behind their PUSH */
    KVT_WAY_RENDEZVOUS, /* when the receiver asks UCX for them */
} kvt_way;

typedef struct {
    /* Who we are, for KV_HELLO and KV_WELCOME. Copied. */
    const char *name;
    uint64_t incarnation;
    /* What must be equal on both sides, together with the layout below (its n_blocks excepted). */
    uint64_t model_hash, cluster_key;
    uint32_t first_layer;

    kvt_memory memory; /* borrowed until close: kv_pool_bytes(&layout), registered with UCX as a whole */
    kv_layout layout;

    const char *host;       /* listen here; NULL or "": do not listen */
    uint32_t port;          /* 0: the system chooses */
    const char *transports; /* UCX_TLS, e.g. "tcp,self"; NULL or "": all that the machine has */

    kvt_way way; /* of our pushes; KVT_WAY_BEST but to measure and to test the others */

    bt_queue *queue; /* borrowed: where events go; must outlive the fabric and be emptied after kvt_fabric_close() */
    uint32_t source; /* copied into each event: lets one queue carry other modules' events too */

    /* 0: the default in brackets. */
    uint32_t connect_timeout_ms; /* until UP, on both sides [5000] */
    uint32_t stall_ms;  /* something is in flight and nothing moves for so long: the peer hangs and is lost [10000] */
    uint32_t cap_peers; /* connections at once [1024] */
} kvt_config;

/* What a lease has received. */
typedef struct {
    uint32_t n_pushes; /* no (layer, block) counts twice */
    uint64_t checksum; /* sum of their kvt_push_hash(), see kvt_hash.h */
    uint64_t n_bytes;
} kvt_landed;

typedef enum { KVT_UP, KVT_DOWN, KVT_MESSAGE, KVT_PUSHED, KVT_LEASE_CLOSED } kvt_event_kind;

/* Owned by who took it from the queue; give it back with kvt_event_free(). */
typedef struct {
    bt_queue_node node; /* first */
    uint32_t source;    /* kvt_config.source */
    kvt_event_kind kind;
    kvt_peer peer;
    uint64_t tag;      /* UP, DOWN: of kvt_connect(), 0: accepted. PUSHED: of kvt_push() */
    uint64_t lease;    /* PUSHED, LEASE_CLOSED */
    uint64_t n_bytes;  /* PUSHED: sent */
    kvt_landed landed; /* LEASE_CLOSED */
    bt_status
        status; /* PUSHED: BT_OK, BT_CANCELED (an ABORT or kvt_disconnect() overtook it), BT_PEER_LOST.
                 * DOWN: BT_CANCELED our own doing, BT_BAD_REQUEST refused or misbehaved, BT_TIMEOUT, BT_PEER_LOST */
    /* UP */
    char name[WIRE_MAX_NAME + 1];
    uint64_t incarnation;
    char transport[64];      /* what carries the bytes: "posix/memory", "tcp/eth0" */
    double bytes_per_second; /* measured by the side that connected; 0 on the other */
    /* DOWN */
    char text[WIRE_MAX_TEXT + 1]; /* why, in one sentence */
    /* MESSAGE: RESERVE, RESERVED, REFUSED, COMMIT, COMMITTED, COMMIT_FAILED, ABORT or RENEW. Its arrays and strings
     * live until kvt_event_free(). Meaning (ranges of ids, the lease's owner) is the receiver's to check. */
    wire_message message;
    bt_arena arena;
    uint8_t *frame; /* owned */
} kvt_event;

/* Starts UCX and the fabric's thread. Call early in main(): it sets UCX_* defaults in the environment (the operator's
 * own settings win). BT_BAD_REQUEST: not an address. BT_INTERNAL: UCX or the system refused; the sentence says what. */
bt_status kvt_fabric_open(const kvt_config *config, kvt_fabric **out, bt_error *err);

/* Lets what is queued leave (for a second at most), closes all peers and stops the thread. Every open lease and push
 * is over when it returns; the last events are in the queue. NULL is accepted. */
void kvt_fabric_close(kvt_fabric *fabric);

uint32_t kvt_fabric_port(const kvt_fabric *fabric); /* of the listener; 0: none */

/* Connects to "host:port", says KV_HELLO, checks KV_WELCOME, measures the bandwidth; then KVT_UP, else KVT_DOWN. */
kvt_peer kvt_connect(kvt_fabric *fabric, const char *address, uint64_t tag);

/* Sends what is queued, then closes; KVT_DOWN follows. Unknown peers are ignored. */
void kvt_disconnect(kvt_fabric *fabric, kvt_peer peer);

/* Sends one message. Unknown peers are ignored: their KVT_DOWN has come or is on its way.
 * COMMIT waits behind this peer's queued pushes; n_pushes and checksum are filled in here, from what was pushed under
 * its lease. ABORT takes back the pushes of its lease that have not left yet. */
void kvt_send(kvt_fabric *fabric, kvt_peer peer, const wire_message *message);

/* Pushes one layer of consecutive blocks of a request. Copied but for the KV bytes (rule 3). */
typedef struct {
    uint64_t lease;         /* of the peer */
    uint32_t layer;         /* < n_layers */
    uint32_t first_block;   /* index in the request's block table */
    const uint32_t *blocks; /* [n_blocks] numbers in our KV memory, each < n_blocks of the layout */
    uint32_t n_blocks;      /* > 0 */
    uint32_t n_rows_last;   /* rows of the last block, 1..64; the others are full */
} kvt_push_args;

/* KVT_PUSHED with `tag` follows, exactly once, also for an unknown peer. */
void kvt_push(kvt_fabric *fabric, kvt_peer peer, const kvt_push_args *args, uint64_t tag);

/* Lets `peer` push under `lease`: block i of the request, first_block <= i < n_blocks, into block blocks[i] of our
 * memory, each (layer, block) once, 64 rows each or what n_tokens leaves for the last. Call it before the RESERVED that
 * tells the peer. */
typedef struct {
    uint64_t lease;
    const uint32_t *blocks; /* [n_blocks], each < n_blocks of the layout; copied */
    uint32_t first_block, n_blocks;
    uint32_t n_tokens; /* <= n_blocks * 64 */
} kvt_lease_args;
void kvt_lease_open(kvt_fabric *fabric, kvt_peer peer, const kvt_lease_args *args);

/* Lets pushes begin until n_pushes have landed in all, or one was refused, then none; 0: none from now on. May be
 * called again with 0, to stop waiting. KVT_LEASE_CLOSED follows when none is in flight any more (rule 2), exactly once
 * for each opened lease. A lease that is not open is ignored. A lost peer's leases stay open until this call. */
void kvt_lease_close(kvt_fabric *fabric, uint64_t lease, uint32_t n_pushes);

void kvt_event_free(kvt_event *event); /* NULL is accepted */

/* Counters since open. Any thread. */
typedef struct {
    uint64_t bytes_sent, bytes_landed;
    uint64_t bytes_pulled;   /* of those that landed: fetched from the sender's memory */
    uint64_t pushes_refused; /* arrived for no open lease, or not as agreed */
    uint64_t frames_refused; /* malformed or out of place: their peers were closed */
} kvt_stats;
void kvt_fabric_stats(const kvt_fabric *fabric, kvt_stats *out);

#endif
