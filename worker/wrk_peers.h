/* Who is connected, by incarnation: the cores name peers so, links and fabric name connections. A newer connection of
 * the same incarnation replaces the older one. The engine thread owns it. Starts empty: {0}. */
#ifndef BATON_WORKER_WRK_PEERS_H
#define BATON_WORKER_WRK_PEERS_H

#include "common/control/link.h"
#include "kvtransfer/kvt.h"

typedef struct {
    uint64_t incarnation;
    link_conn *link; /* a gateway; borrowed, valid until its LINK_DOWN is freed */
    kvt_peer kv;     /* a KV peer; 0: a gateway */
} wrk_peer;

typedef struct {
    wrk_peer *items; /* owned */
    uint32_t n_items, cap_items;
} wrk_peers;

/* Adds or replaces. */
void wrk_peers_put_link(wrk_peers *peers, uint64_t incarnation, link_conn *link);
void wrk_peers_put_kv(wrk_peers *peers, uint64_t incarnation, kvt_peer kv);

link_conn *wrk_peers_link(const wrk_peers *peers, uint64_t incarnation); /* NULL: gone */
kvt_peer wrk_peers_kv(const wrk_peers *peers, uint64_t incarnation);     /* 0: gone */

/* The connection is gone: true and its incarnation, if it was its incarnation's current one. */
bool wrk_peers_remove_link(wrk_peers *peers, const link_conn *link, uint64_t *incarnation);
bool wrk_peers_remove_kv(wrk_peers *peers, kvt_peer kv, uint64_t *incarnation);

/* What an event of a link or of the fabric means for the core, after the list was brought up to date, and whose it is.
 * A connection that turns out to be another's, or that a newer one replaces, is closed. */
typedef enum { WRK_IGNORE, WRK_UP, WRK_MESSAGE, WRK_GONE } wrk_news;
wrk_news wrk_peers_on_link(wrk_peers *peers, const link_event *event, uint64_t *gateway);
wrk_news wrk_peers_on_kv(wrk_peers *peers, kvt_fabric *fabric, const kvt_event *event, uint64_t *peer);

/* To every gateway. */
void wrk_peers_broadcast(const wrk_peers *peers, const wire_message *message);

void wrk_peers_fini(wrk_peers *peers);

#endif
