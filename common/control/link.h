/* Control links: one reliable, ordered stream of wire messages between a gateway and a worker. The only module that
 * knows NNG; no NNG type leaves link_impl.h.
 *
 * A hub is one process' (or one gateway loop's) end of all its links: a worker's hub listens, a gateway's hub dials.
 * Both sides send HELLO first; magic, version and cluster key are checked before the owner hears of the link. A peer
 * that sends garbage, falls silent (PING every ping_ms, lost after dead_ms) or does not drain what it is sent (more
 * than cap_queue_bytes waiting) is closed with one logged sentence.
 *
 * Everything the owner hears arrives as a link_event in its bt_queue:
 *
 *      LINK_UP  (LINK_MESSAGE)*  LINK_DOWN          for each link, in this order, each link exactly once up and down
 *
 * A link_conn may be used from its LINK_UP until link_event_free() of its LINK_DOWN: the events hold it. What was
 * sent but not delivered when a link goes down is lost; a new link of the same dialer is a new link_conn.
 *
 * The owner has turns (link_hub_turn): what it sent leaves in one write per link, and what came is read in its thread
 * for as long as more comes, so a busy owner costs no switch of threads per message. Where it has none for a while, as
 * during a long step, the hub's threads read for it and answer pings.
 *
 * Threads: the owner is the queue's taker; link_send(), link_hub_turn(), link_event_free() and link_hub_close() are
 * its own, the other functions may be called from any thread. None but link_hub_close() waits for the network. */
#ifndef BATON_COMMON_CONTROL_LINK_H
#define BATON_COMMON_CONTROL_LINK_H

#include "common/core/queue.h"
#include "common/core/status.h"
#include "common/wire/wire.h"

typedef struct link_hub link_hub;       /* all links of one owner */
typedef struct link_dialer link_dialer; /* one address that is dialed until closed; has at most one link at a time */
typedef struct link_conn link_conn;     /* one connection */

typedef struct {
    /* Who we are, for HELLO. Copied. */
    const char *name;
    uint64_t incarnation; /* link_random_u64() at process start */
    wire_role role;
    uint64_t cluster_key; /* link_cluster_key() of --cluster-secret; must be equal on both sides */

    bt_queue *queue; /* borrowed: where events go; must outlive the hub and be emptied after link_hub_close() */
    uint32_t source; /* copied into each event: lets one queue carry other modules' events too */

    /* 0: the default in brackets. */
    uint32_t ping_ms;             /* how often a link is pinged [1000] */
    uint32_t dead_ms;             /* silence, or no HELLO, for this long: peer lost [3000] */
    uint32_t retry_min_ms;        /* a dialer's backoff doubles from here [50] */
    uint32_t retry_max_ms;        /* to here [1000] */
    uint32_t cap_links;           /* accepted connections, at most [1024] */
    uint64_t cap_queue_bytes;     /* waiting to be sent on one link, at most [64 MiB] */
    uint64_t cap_unhandled_bytes; /* received on one link and not freed yet: reading pauses there [64 MiB] */
} link_config;

typedef enum { LINK_UP, LINK_MESSAGE, LINK_DOWN } link_event_kind;

/* Owned by who took it from the queue; give it back with link_event_free(). */
typedef struct link_event {
    bt_queue_node node; /* first */
    uint32_t source;    /* link_config.source */
    link_event_kind kind;
    link_conn *link;
    uint64_t tag;         /* of link_hub_dial(); 0 for accepted links */
    wire_message message; /* LINK_UP: the peer's HELLO; LINK_MESSAGE: never HELLO, PING or PONG; LINK_DOWN: unset.
                           * Arrays and strings in it live until link_event_free() */
    char reason[160];     /* LINK_DOWN: why, in one sentence */
    bt_arena arena;       /* the message's arrays */
    uint64_t n_bytes;     /* the frame's size, counted against cap_unhandled_bytes */
    uint8_t frame[];
} link_event;

/* BT_INTERNAL: no thread. */
bt_status link_hub_open(const link_config *config, link_hub **out, bt_error *err);

/* Accepts links on host:port; port 0: the system chooses, *out_port says which. Once per hub.
 * BT_BAD_REQUEST: not an address. BT_INTERNAL: the address is taken, ... */
bt_status link_hub_listen(link_hub *hub, const char *host, uint32_t port, uint32_t *out_port, bt_error *err);

/* Dials "host:port" now, and again after each failure or LINK_DOWN with backoff, until link_dialer_close(). `tag` is
 * copied into the events. BT_BAD_REQUEST: not an address. */
bt_status link_hub_dial(link_hub *hub, const char *address, uint64_t tag, link_dialer **out, bt_error *err);

/* No further attempts; its link, if any, is closed as by link_close() and its LINK_DOWN still comes. The dialer is
 * invalid after the call. NULL is accepted. */
void link_dialer_close(link_dialer *dialer);

/* Once per turn of the owner's loop, before it sleeps or computes: what link_send() queued leaves, and links that were
 * just heard from are read into the queue. true: something came, and more may: have another turn rather than sleep.
 * NULL is accepted. */
bool link_hub_turn(link_hub *hub);

/* Queues one message; frames that wait leave in one write at the owner's next turn. BT_PEER_LOST: the link is down or
 * closing (LINK_DOWN comes or came), nothing was queued. */
bt_status link_send(link_conn *link, const wire_message *message);

/* Orderly end: what is queued is delivered (confirmed by the peer, for dead_ms at most), then LINK_DOWN comes. */
void link_close(link_conn *link);

/* The peer's HELLO, for logs; valid as long as the link is. */
const char *link_peer_name(const link_conn *link);
uint64_t link_peer_incarnation(const link_conn *link);

/* Closes all dialers and links in order, waiting linger_ms at most for what is queued, then releases the hub. Every
 * LINK_UP has got its LINK_DOWN in the queue when it returns; the owner takes and frees them. NULL is accepted. */
void link_hub_close(link_hub *hub, uint32_t linger_ms);

/* NULL is accepted. May be called after link_hub_close(). */
void link_event_free(link_event *event);

/* What HELLO and KV_HELLO carry for --cluster-secret: keeps strangers and other clusters out by accident; it is no
 * proof against somebody who reads the wire. "" gives 0. */
uint64_t link_cluster_key(const char *secret);

/* From the kernel, never 0: incarnations. */
uint64_t link_random_u64(void);

#endif
