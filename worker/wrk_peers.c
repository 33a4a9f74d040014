/* A short list, searched from its front: a worker has tens of peers, not thousands. */
#include "worker/wrk_peers.h"

#include <stdlib.h>

#include "common/core/alloc.h"
#include "common/core/log.h"

static wrk_peer *find(const wrk_peers *peers, uint64_t incarnation, bool is_gateway) {
    for (uint32_t i = 0; i < peers->n_items; i++) {
        wrk_peer *peer = &peers->items[i];
        if (peer->incarnation == incarnation && (peer->link != NULL) == is_gateway) return peer;
    }
    return NULL;
}

static void put(wrk_peers *peers, wrk_peer peer) {
    wrk_peer *old = find(peers, peer.incarnation, peer.link != NULL);
    if (old != NULL) {
        *old = peer;
        return;
    }
    if (peers->n_items == peers->cap_items) {
        peers->cap_items = peers->cap_items > 0 ? peers->cap_items * 2 : 16;
        peers->items = bt_realloc(peers->items, peers->cap_items, sizeof(*peers->items));
    }
    peers->items[peers->n_items++] = peer;
}

void wrk_peers_put_link(wrk_peers *peers, uint64_t incarnation, link_conn *link) {
    put(peers, (wrk_peer){incarnation, link, 0});
}

void wrk_peers_put_kv(wrk_peers *peers, uint64_t incarnation, kvt_peer kv) {
    put(peers, (wrk_peer){incarnation, NULL, kv});
}

link_conn *wrk_peers_link(const wrk_peers *peers, uint64_t incarnation) {
    const wrk_peer *peer = find(peers, incarnation, true);
    return peer != NULL ? peer->link : NULL;
}

kvt_peer wrk_peers_kv(const wrk_peers *peers, uint64_t incarnation) {
    const wrk_peer *peer = find(peers, incarnation, false);
    return peer != NULL ? peer->kv : 0;
}

static bool take_out(wrk_peers *peers, uint32_t i, uint64_t *incarnation) {
    *incarnation = peers->items[i].incarnation;
    peers->items[i] = peers->items[--peers->n_items];
    return true;
}

bool wrk_peers_remove_link(wrk_peers *peers, const link_conn *link, uint64_t *incarnation) {
    for (uint32_t i = 0; i < peers->n_items; i++) {
        if (peers->items[i].link == link) return take_out(peers, i, incarnation);
    }
    return false;
}

bool wrk_peers_remove_kv(wrk_peers *peers, kvt_peer kv, uint64_t *incarnation) {
    for (uint32_t i = 0; i < peers->n_items; i++) {
        if (peers->items[i].link == NULL && peers->items[i].kv == kv) return take_out(peers, i, incarnation);
    }
    return false;
}

wrk_news wrk_peers_on_link(wrk_peers *peers, const link_event *event, uint64_t *gateway) {
    *gateway = link_peer_incarnation(event->link);
    link_conn *current = wrk_peers_link(peers, *gateway);
    switch (event->kind) {
    case LINK_UP:
        if (current != NULL) link_close(current); /* its LINK_DOWN will find itself replaced */
        wrk_peers_put_link(peers, *gateway, event->link);
        bt_log(BT_LOG_INFO, "worker", "gateway up", "gateway=%s", link_peer_name(event->link));
        return WRK_UP;
    case LINK_MESSAGE:
        return current == event->link ? WRK_MESSAGE : WRK_IGNORE;
    case LINK_DOWN:
        if (!wrk_peers_remove_link(peers, event->link, gateway)) return WRK_IGNORE;
        bt_log(BT_LOG_INFO, "worker", "gateway gone", "gateway=%s text=\"%s\"", link_peer_name(event->link),
               event->reason);
        return WRK_GONE;
    }
    return WRK_IGNORE;
}

static wrk_news on_kv_up(wrk_peers *peers, kvt_fabric *fabric, const kvt_event *event, uint64_t *peer) {
    if (event->tag == 0) { /* came to us */
        kvt_peer old = wrk_peers_kv(peers, *peer = event->incarnation);
        wrk_peers_put_kv(peers, *peer, event->peer);
        if (old != 0) kvt_disconnect(fabric, old); /* its KVT_DOWN will find itself replaced */
        return WRK_UP;
    }
    *peer = event->tag; /* whom we wanted */
    if (wrk_peers_kv(peers, *peer) != event->peer) return WRK_IGNORE;
    if (event->incarnation == *peer) return WRK_UP;
    bt_log(BT_LOG_WARN, "worker", "another incarnation answers", "peer=%s", event->name);
    wrk_peers_remove_kv(peers, event->peer, peer);
    kvt_disconnect(fabric, event->peer);
    return WRK_GONE;
}

wrk_news wrk_peers_on_kv(wrk_peers *peers, kvt_fabric *fabric, const kvt_event *event, uint64_t *peer) {
    *peer = event->incarnation;
    switch (event->kind) {
    case KVT_UP:
        return on_kv_up(peers, fabric, event, peer);
    case KVT_DOWN:
        return wrk_peers_remove_kv(peers, event->peer, peer) ? WRK_GONE : WRK_IGNORE;
    case KVT_MESSAGE:
        return wrk_peers_kv(peers, *peer) == event->peer ? WRK_MESSAGE : WRK_IGNORE;
    case KVT_PUSHED:
    case KVT_LEASE_CLOSED:
        break;
    }
    return WRK_IGNORE;
}

void wrk_peers_broadcast(const wrk_peers *peers, const wire_message *message) {
    for (uint32_t i = 0; i < peers->n_items; i++) {
        if (peers->items[i].link != NULL) link_send(peers->items[i].link, message); /* a lost one says so itself */
    }
}

void wrk_peers_fini(wrk_peers *peers) {
    free(peers->items);
    *peers = (wrk_peers){0};
}
