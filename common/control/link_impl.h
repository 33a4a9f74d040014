/* What link_conn.c and link_hub.c share; nobody else includes it.
 *
 * Three kinds of threads come here. NNG's call back when bytes arrived or left, or a connection was made. The owner
 * sends, reads on and frees events. The hub's own thread does what may take time: it dials, looks for silent peers and
 * releases what has ended, because an NNG object may not be released in its own callback.
 *
 * A message that NNG's threads bring costs three of them a wake-up: the one that polls, the one that calls back, the
 * owner. So they bring the first one only: the link is then hot, and the owner reads it in its own thread, turn by
 * turn, until nothing is there (link_hub_turn). Sending is tried in the caller's thread too, and left to NNG where the
 * peer's window is full.
 *
 * Locks: a hub's is never taken while a link's is held. A receive or send begins under the link's lock while it is not
 * DOWN, and the stream is closed after it is: NNG never completes what begins on a closed stream. (Its callbacks run
 * on its own threads, so nothing calls back under the lock.) Only the hub's thread takes links and dialers out of the
 * hub's lists, so it alone walks them without the lock. */
#ifndef BATON_COMMON_CONTROL_LINK_IMPL_H
#define BATON_COMMON_CONTROL_LINK_IMPL_H

#include <nng/nng.h>
#include <pthread.h>
#include <stdatomic.h>

#include "common/control/link.h"
#include "common/core/clock.h"

typedef enum { STATE_HELLO, STATE_UP, STATE_CLOSING, STATE_DOWN } link_state;

struct link_conn {
    link_hub *hub;      /* a reference */
    nng_stream *stream; /* owned, with the aios, until the hub's thread releases them */
    nng_aio *recv_aio, *send_aio;
    nng_aio *try_aio; /* without a callback: what completes at once or not at all; with the lock held */
    uint64_t tag;
    bool is_accepted;
    bt_buf in;         /* of who receives: the callback, or who has the hot link */
    bt_buf sending;    /* of the send in flight */
    size_t sent_bytes; /* of `sending` */
    atomic_int n_refs; /* the hub's list, each event, whoever looks at it */

    pthread_mutex_t lock; /* the rest, but for the last two */
    link_state state;
    int n_in_flight;   /* receiving, a send, calls of nng_stream_close(): the stream stays until they are over */
    bool is_receiving; /* a receive is in flight, or the link is hot */
    bool is_sending, is_paused, was_up, is_down_posted;
    bt_buf waiting;
    uint64_t unhandled_bytes;
    int64_t opened_ns, heard_ns, pinged_ns, close_by_ns;
    char peer_name[WIRE_MAX_NAME + 1];
    uint64_t peer_incarnation;
    char reason[sizeof((link_event *)0)->reason];

    link_dialer *dialer;   /* hub->lock; NULL: accepted, or its dialer was closed */
    link_conn *next;       /* hub->lock */
    link_conn *next_hot;   /* hub->lock, or of who took the list */
    link_conn *next_dirty; /* the owner's, as is_dirty */
    bool is_dirty;
};

struct link_dialer {
    link_hub *hub; /* borrowed: the hub outlives its dialers */
    nng_stream_dialer *dialer;
    nng_aio *aio;
    uint64_t tag;
    char address[WIRE_MAX_NAME + 1];
    /* hub->lock: */
    link_conn *link; /* borrowed from the hub's list */
    bool is_dialing, is_closed, is_failure_logged;
    uint32_t backoff_ms;
    int64_t next_ns;
    link_dialer *next;
};

struct link_hub {
    link_config config; /* name is owned */
    pthread_t thread;
    atomic_int n_refs; /* the owner, each link */
    nng_stream_listener *listener;
    nng_aio *accept_aio;

    pthread_mutex_t lock; /* the rest */
    pthread_cond_t kicked;
    link_conn *links;     /* owned: a reference each */
    link_dialer *dialers; /* owned */
    link_conn *hot;       /* no receive in flight: the owner reads, or if it does not, hub_cool(); a reference each */
    uint64_t n_turns;     /* of the owner */
    uint32_t n_accepted;
    bool is_kicked, is_accepting;
    atomic_bool is_closing; /* set once, after close_by_ns */
    int64_t close_by_ns;

    link_conn *dirty; /* the owner's: messages wait for its turn; a reference each */
};

static inline int64_t link_ms_to_ns(uint32_t ms) { return (int64_t)ms * BT_NS_PER_MS; }

static inline nng_aio *link_aio_new(void (*callback)(void *), void *arg) {
    nng_aio *aio = NULL;
    BT_ASSERT(nng_aio_alloc(&aio, callback, arg) == 0); /* fails for lack of memory only */
    return aio;
}

/* link_hub.c */
void link_hub_kick(link_hub *hub); /* its thread looks */
void link_hub_unref(link_hub *hub);
void link_hub_heat(link_hub *hub, link_conn *link); /* takes a reference */
void link_hub_soil(link_hub *hub, link_conn *link); /* likewise; the owner's thread */

/* link_conn.c: one connection, whoever made it. */
link_conn *link_conn_new(link_hub *hub, nng_stream *stream, uint64_t tag, bool is_accepted); /* with two references */
void link_conn_begin(link_conn *link); /* HELLO goes out, the peer's is awaited */
void link_conn_ref(link_conn *link);
void link_conn_unref(link_conn *link);
void link_conn_flush(link_conn *link); /* sends what waits */
bool link_conn_read_on(
    link_conn *link);                 /* a hot link; true: something came. It is hot still, NNG reads on, or it ends */
void link_conn_cool(link_conn *link); /* a hot link: NNG reads on */
void link_conn_fail(link_conn *link, const char *reason); /* only the first reason counts; needs a reference */
void link_conn_watch(link_conn *link, bool was_asleep, int64_t now_ns); /* pings, and gives silent peers up */
bool link_conn_is_over(link_conn *link);                                /* nothing is in flight any more */
void link_conn_release(link_conn *link); /* its stream, and the hub's reference; in the hub's thread only */

#endif
