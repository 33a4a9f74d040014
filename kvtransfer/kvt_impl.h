/* What the parts of the fabric share. Everything here belongs to the fabric's thread, except what says otherwise.
 */
#ifndef BATON_KVTRANSFER_KVT_IMPL_H
#define BATON_KVTRANSFER_KVT_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "kvtransfer/kvt_hash.h"
#include "kvtransfer/kvt_lease.h"
#include "kvtransfer/kvt_ucx.h"

enum {
    KVT_PROBE_PIECES = 64, /* pieces of one block each: about what one layer of a 4k prompt is */
    KVT_WINDOW = 32,       /* messages with pushes of one peer handed to UCX and not completed */
    KVT_EAGER_WINDOW = 4,  /* where a message completes when it is copied: what waits, hashed, leaves the caches */
    KVT_PUSH_BLOCKS = 4,   /* in one message over TCP, where packets cost: a block alone is one and a bit */
    KVT_PULL_WINDOW = 2,   /* PULLs of one peer that are not answered */
    KVT_PULL_BLOCKS = 8,   /* in one PULL: what still lies in the sender's cache, hashed, when it is read */
    KVT_ABANDON_MS = 500,  /* after its endpoint is gone, for UCX to complete what it still had of a peer */
    KVT_LINGER_MS = 1000,  /* for what is queued at an orderly close */
    KVT_DEFAULT_TIMEOUT_MS = 5000,
    KVT_DEFAULT_STALL_MS = 10000,
    KVT_DEFAULT_CAP_PEERS = 1024,
};

/* What a thread asks of the fabric's thread. One allocation, freed there. */
typedef enum {
    KVT_CMD_CONNECT,
    KVT_CMD_ACCEPT, /* from UCX's listener */
    KVT_CMD_DISCONNECT,
    KVT_CMD_SEND,
    KVT_CMD_PUSH,
    KVT_CMD_LEASE_OPEN,
    KVT_CMD_LEASE_CLOSE,
    KVT_CMD_STOP,
} kvt_command_kind;

typedef struct kvt_command {
    bt_queue_node node; /* first; in the fabric's queue, later in a peer's */
    kvt_command_kind kind;
    kvt_peer peer;
    uint64_t tag, lease;
    struct ucp_conn_request *request; /* ACCEPT */
    uint32_t layer, first_block, n_blocks, n_rows_last;
    uint32_t n_tokens;                /* LEASE_OPEN */
    uint32_t n_pushes;                /* LEASE_CLOSE */
    uint32_t next_block, n_in_flight; /* PUSH: how far it got */
    uint64_t n_sent_bytes;
    bt_status status; /* PUSH: the first failure */
    wire_type type;   /* SEND */
    size_t n_bytes;   /* of the frame or the address, its NUL included */
    union {
        uint32_t *blocks; /* PUSH, LEASE_OPEN: behind this struct */
        uint8_t *frame;   /* SEND */
        char *address;    /* CONNECT */
    };
} kvt_command;

/* A PULL that is not answered. */
typedef struct {
    kvt_command *push;
    uint64_t n_bytes;
} kvt_announced;

/* What was pushed under a lease of the peer's, for its COMMIT. */
typedef struct kvt_sum {
    struct kvt_sum *next;
    uint64_t lease, checksum;
    uint32_t n_pushes;
} kvt_sum;

/*   we connect:      GREETING ──WELCOME──▶ PROBING ──all PROBED──▶ UP ──disconnect──▶ DRAINING ─▶ CLOSING ─▶ gone
 *   they connect:    GREETING ──HELLO────▶ UP         (a refusal is sent in DRAINING)
 *   any state:       a lost peer, a deadline, a bad frame ─▶ CLOSING */
typedef enum { KVT_GREETING, KVT_PROBING, KVT_IS_UP, KVT_DRAINING, KVT_CLOSING } kvt_conn_state;

typedef struct kvt_conn {
    struct kvt_conn *next; /* in the fabric's list */
    struct kvt_fabric *fabric;
    kvt_peer id;
    uint64_t tag;
    struct ucp_ep *ep;
    kvt_conn_state state;
    bool is_accepted;
    bool is_lost;     /* UCX reported an error, or we gave up: close it at the next look, outside of callbacks */
    bool was_up;      /* KVT_UP was posted, so KVT_DOWN must be */
    bool peer_closes; /* DRAINING: a refusal must not be overtaken by our close, so the peer closes, or the deadline */
    bool is_eager;    /* its transport moves a block faster without a rendezvous */
    bt_error why;     /* why it goes down */
    int64_t deadline_ns;              /* GREETING, PROBING, DRAINING; INT64_MAX: none */
    bt_queue_node *jobs, **jobs_tail; /* kvt_command PUSH and COMMIT, in order */
    kvt_sum *sums;
    bool has_offered, is_pulled;              /* PULL_OFFER is sent; is taken: our pushes are PULLs */
    kvt_announced announced[KVT_PULL_WINDOW]; /* a ring */
    uint32_t first_announced, n_announced;
    kvt_memory theirs;       /* the KV memory of the peer, mapped; base NULL: it is not */
    int64_t moved_ns;        /* when something of this peer last arrived, completed, or began with nothing in flight */
    uint32_t n_sends;        /* handed to UCX, not completed: pushes, frames; and PULLs not answered */
    uint32_t n_pushing;      /* of those, pushes, PULLs and probes */
    uint32_t n_landings;     /* receives of this peer that UCX has not completed */
    struct kvt_send_op *ops; /* owned: the sends, newest first */
    struct kvt_landing *landing; /* owned: the landings, newest first */
    bool is_flushing, is_flushed, is_closed;
    char address[KVT_MAX_ADDRESS]; /* CONNECT: whom; ACCEPT: from where */
    char name[WIRE_MAX_NAME + 1];
    uint64_t incarnation;
    char transport[64];
    uint32_t n_probes_sent, n_probed;
    int64_t probe_begin_ns;
    double bytes_per_second;
} kvt_conn;

struct kvt_fabric {
    kvt_config config; /* its strings are copies */
    char name[WIRE_MAX_NAME + 1];
    kvt_ucx ucx; /* its memory is the KV pool */
    bt_queue *commands;
    pthread_t thread;
    bool has_thread;
    _Atomic uint64_t last_peer; /* any thread */
    kvt_conn *conns;
    uint32_t n_conns;
    kvt_lease_table leases;
    uint8_t *probe; /* one block of zeros to send, overwritten by probes received */
    bt_buf scratch; /* encoding */
    bool is_stopping;
    int64_t stop_ns;                                                                         /* force at this time */
    _Atomic uint64_t bytes_sent, bytes_landed, bytes_pulled, pushes_refused, frames_refused; /* any thread */
};

static inline size_t kvt_block_bytes(const kvt_fabric *fabric) { return kv_block_bytes(&fabric->config.layout); }

/* kvt_conn.c: the life of a connection. */
void kvt_conn_connect(kvt_fabric *fabric, const kvt_command *command);
void kvt_conn_accept(kvt_fabric *fabric, struct ucp_conn_request *request);
kvt_conn *kvt_conn_find(kvt_fabric *fabric, kvt_peer peer);              /* NULL: none, or going down */
kvt_conn *kvt_conn_find_ep(kvt_fabric *fabric, const struct ucp_ep *ep); /* NULL: none, lost or closing */
void kvt_conn_lose(kvt_conn *conn, bt_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));
void kvt_conn_drain(kvt_conn *conn, bt_status status, const char *why);
/* Deadlines, closing, releasing what is closed. True: something moved. */
bool kvt_conn_look(kvt_fabric *fabric, int64_t now_ns);
int64_t kvt_conn_next_deadline(const kvt_fabric *fabric); /* INT64_MAX: none */

/* kvt_hello.c. Writes the first difference into `out`, "" when all is equal. The cluster's secret comes first: a
 * stranger learns nothing about the model. */
void kvt_hello_mismatch(const wire_compat *theirs, const wire_compat *ours, char *out, size_t cap_bytes);
/* KV_HELLO, KV_WELCOME, PROBE. They answer false for a message that is out of place. */
void kvt_hello_send(kvt_conn *conn);
bool kvt_hello_take(kvt_conn *conn, const wire_message *message);
/* A first frame that did not decode may be a HELLO of another version: says so to the peer. false: it is not the first.
 */
bool kvt_hello_refuse(kvt_conn *conn, const char *text);
void kvt_hello_send_probed(kvt_conn *conn, uint64_t nonce);

/* kvt_send.c: everything outgoing. */
void kvt_send_command(kvt_conn *conn, kvt_command *command); /* takes it */
void kvt_send_frame(kvt_conn *conn, const wire_message *message);
void kvt_send_probe(kvt_conn *conn, uint64_t nonce);
bool kvt_send_pump(kvt_fabric *fabric);               /* hands queued pushes to UCX; true: some were */
void kvt_send_drop(kvt_conn *conn, bt_status status); /* what has not left, and PULLs */
bool kvt_send_pulled(kvt_conn *conn, uint32_t n); /* the oldest n PULLs are done with; false: so many there are not */
/* The endpoint is gone and UCX 1.13 has forgotten some requests (seen: rendezvous over shared memory). They end here;
 * should UCX remember one after all, it is only freed. */
void kvt_send_abandon(kvt_conn *conn);
void kvt_land_abandon(kvt_conn *conn);
void kvt_send_refuse(kvt_fabric *fabric, kvt_command *push, bt_status status); /* takes it: posts its KVT_PUSHED */

/* kvt_land.c: everything incoming. */
bt_status kvt_land_open(kvt_fabric *fabric, bt_error *err); /* the active message handlers */
void kvt_land_lease_open(kvt_fabric *fabric, const kvt_command *command);
void kvt_land_lease_close(kvt_fabric *fabric, uint64_t id, uint32_t n_pushes);
void kvt_land_lease_close_all(kvt_fabric *fabric);

/* A push whose `bytes` lie in the peer's memory (kvt_pull.c calls). It has landed, or was refused, when this returns.
 */
void kvt_land_pull(kvt_conn *conn, const wire_push *push, const uint8_t *bytes);

/* kvt_pull.c: pushes that are fetched from the sender's memory. */
void kvt_pull_offer(kvt_conn *conn); /* when it is up: if the transport and our configuration allow */
/* PULL_OFFER, PULL, PULLED. false: out of place. */
bool kvt_pull_take(kvt_conn *conn, const wire_message *message);

/* kvt_event.c */
kvt_event *kvt_event_new(const kvt_fabric *fabric, kvt_event_kind kind, kvt_peer peer);
void kvt_event_post(const kvt_fabric *fabric, kvt_event *event); /* takes it */

#endif
