/* What the parts of the UCX exchange share. Everything here belongs to the engine's thread. */
#ifndef BATON_KVTRANSFER_EP_IMPL_H
#define BATON_KVTRANSFER_EP_IMPL_H

#include "common/core/buf.h"
#include "common/core/queue.h"
#include "kvtransfer/ep_ucx.h"
#include "kvtransfer/kvt_ucx.h"

enum {
    EP_AM_FRAME = 1, /* one wire frame */
    EP_AM_DATA = 2,  /* bytes behind an EP_ROWS or EP_RESULTS frame */
    EP_MAX_ADDRESS = 280,
    EP_CAP_FRAME_BYTES = 1024, /* of EP_HELLO, EP_WELCOME, EP_LEAVE */
    EP_CAP_CONNS = 4 * EP_MAX_RANKS,
    EP_GREET_MS = 5000, /* for a stranger to say EP_HELLO */
    EP_MAX_LOOKS = 64,  /* attempts to arm UCX in a row; it may refuse for long, and deadlines must not wait for that */
    EP_LINGER_MS = 1000,
    EP_ABANDON_MS = 500, /* for UCX to complete what it has of a connection that is closed */
};

/*   we connect:    DIALING ──EP_WELCOME──▶ UP ─▶ CLOSING ─▶ gone
 *   they connect:  GREETING ──EP_HELLO──▶ WAITING ──we form that epoch──▶ UP
 *                      └──────┴── refused ──▶ REFUSED, until the peer closes
 *   any state: lost ─▶ CLOSING */
typedef enum { EP_DIALING, EP_GREETING, EP_WAITING, EP_IS_UP, EP_REFUSED, EP_CLOSING } ep_conn_state;

/* One message on its way out. Its memory is the connection's, so that nothing is allocated in a step. */
typedef enum { EP_OP_GREETING, EP_OP_BEGIN, EP_OP_ROWS, EP_OP_RESULTS, EP_OP_LEAVE, EP_N_OPS } ep_op_kind;
typedef struct {
    struct ep_conn *conn;
    bool is_busy; /* UCX has it */
    uint8_t *frame;
} ep_op;

/* A message that comes in: EMPTY ─▶ RECEIVING (by rendezvous) ─▶ FULL ─▶ TAKEN by the engine ─▶ EMPTY. */
typedef enum { EP_EMPTY, EP_RECEIVING, EP_FULL, EP_TAKEN } ep_slot_state;
typedef struct {
    struct ep_conn *conn;
    ep_slot_state state;
    uint64_t step;
    uint32_t layer, n_rows, n_pairs;
    uint8_t *bytes; /* owned, aligned to 64 */
    size_t n_bytes;
} ep_slot;

typedef struct ep_conn {
    struct ep_conn *next; /* in the net's list */
    ep_net *net;
    struct ucp_ep *ep; /* NULL: none */
    ep_conn_state state;
    bool is_lost;  /* to be closed, outside of callbacks */
    bool is_told;  /* REFUSED: why */
    bool has_left; /* UP: EP_LEAVE came: what it sent before still counts */
    bool is_eager;
    bt_error why;
    int64_t deadline_ns; /* GREETING, REFUSED; INT64_MAX: none */
    uint64_t epoch;      /* DIALING, WAITING, UP: of which group, and which rank is there */
    uint32_t rank;
    wire_ep_hello hello; /* WAITING: what it said */
    ep_op ops[EP_N_OPS];
    ep_slot rows, results;           /* in */
    uint8_t *rows_out, *results_out; /* owned, aligned to 64 */
    uint32_t n_pairs_sent;           /* so many results must come back */
    uint64_t step_begun;             /* by the peer */
    uint32_t n_pending;              /* requests that UCX has not completed, the close included */
    bool is_flushing, is_closed;
    char address[EP_MAX_ADDRESS];
} ep_conn;

typedef struct ep_group ep_group;

struct ep_net {
    kvt_ucx ucx;
    wire_compat compat;
    bool is_rendezvous;
    bt_queue *accepts; /* from UCX's listener; posted by any of its threads */
    int wait_fd;       /* epoll: UCX, accepts, called_fd */
    int called_fd;     /* eventfd, readable from begin() until is_called() finds nothing */
    ep_conn *conns;
    ep_conn *abandoned; /* closed, but UCX never completed what it had: freed with the worker */
    uint32_t n_conns;
    uint64_t last_epoch;
    ep_group *group; /* NULL: none */
    bt_buf scratch;  /* encoding */
};

struct ep_group {
    ep_exchange exchange; /* first */
    ep_net *net;
    ep_limits limits;
    int64_t step_timeout_ns;
    char (*addresses)[EP_MAX_ADDRESS]; /* [rank] of lower ranks */
    uint32_t form_timeout_ms;
    int64_t form_deadline_ns, dial_ns; /* dial_ns: not before, for a rank that does not listen yet */
    bool has_failed;                   /* or is being closed: nothing that happens matters any more */
    bool has_told;                     /* EP_LEAVE is on its way */
    bt_error why;
    uint64_t step;
    ep_conn *peers[EP_MAX_RANKS]; /* NULL: itself, or not there */
    uint64_t n_dropped;           /* messages of other epochs */
};

/* ep_net.c */
/* Everything that can be done without waiting. What a callback finds is acted upon afterwards: over TCP, UCX 1.13
 * aborts when a callback's send finds another connection broken whose event it has fetched already. */
void ep_net_progress(ep_net *net);
/* Progresses until something may have changed or the time has come; looks for a while, then sleeps. */
void ep_net_wait(ep_net *net, int64_t deadline_ns);
bool ep_net_arm(ep_net *net);                  /* true: wait_fd wakes up when anything comes */
void ep_net_call(ep_net *net, bool is_called); /* called_fd */

/* ep_conn.c: connections and their greeting. */
void ep_conn_dial(ep_group *group, const char *address, uint32_t rank);
void ep_conn_accept(ep_net *net, struct ucp_conn_request *request);
void ep_conn_welcome(ep_conn *conn, const char *refusal); /* WAITING -> UP, or REFUSED */
void ep_conn_lose(ep_conn *conn, bt_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));
void ep_conn_close(ep_conn *conn);              /* at once; not from UCX's callbacks */
void ep_conn_look(ep_net *net, int64_t now_ns); /* closes what is lost, releases what is closed */
void ep_conn_flush(ep_conn *conn);              /* is_flushing until what was sent is there, or never will be */
void ep_conn_free(ep_conn *conn);
void ep_conn_take_frame(ep_conn *conn, const wire_message *message);

/* ep_link.c: messages over a connection. */
bt_status ep_link_open(ep_net *net, bt_error *err);           /* the active message handlers */
void ep_link_buffers(ep_conn *conn, const ep_limits *limits); /* for a group */
void ep_link_send(ep_conn *conn, ep_op_kind kind, const wire_message *message, const void *data, size_t n_bytes);

/* ep_group.c */
void ep_group_hello(const ep_group *group, wire_ep_hello *out); /* what we say about it */
void ep_group_fail(ep_group *group, const char *format, ...) __attribute__((format(printf, 2, 3)));
void ep_group_tell(ep_group *group); /* the others, once, that it failed */

/* Where the pairs begin behind n_rows rows. */
static inline size_t ep_pairs_offset(const ep_limits *limits, uint32_t n_rows) {
    return ((size_t)n_rows * limits->row_bytes + 63) & ~(size_t)63;
}
static inline size_t ep_rows_bytes(const ep_limits *limits, uint32_t n_rows, uint32_t n_pairs) {
    return ep_pairs_offset(limits, n_rows) + (size_t)n_pairs * sizeof(ep_pair);
}
static inline size_t ep_results_bytes(const ep_limits *limits, uint32_t n_pairs) {
    return (size_t)n_pairs * limits->result_elements * sizeof(float);
}

#endif
