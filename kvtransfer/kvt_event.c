/* Events on their way to the owner of the fabric. */
#include <stdlib.h>

#include "kvtransfer/kvt_impl.h"

kvt_event *kvt_event_new(const kvt_fabric *fabric, kvt_event_kind kind, kvt_peer peer) {
    kvt_event *event = bt_calloc(1, sizeof(*event));
    event->source = fabric->config.source;
    event->kind = kind;
    event->peer = peer;
    return event;
}

void kvt_event_post(const kvt_fabric *fabric, kvt_event *event) { bt_queue_push(fabric->config.queue, &event->node); }

void kvt_event_free(kvt_event *event) {
    if (event == NULL) return;
    bt_arena_fini(&event->arena);
    free(event->frame);
    free(event);
}
