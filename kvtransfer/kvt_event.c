/* Events on their way to the owner of the fabric, and the push hash that both sides must agree on. */
#include <stdlib.h>
#include <xxhash.h>
#if defined(__x86_64__)
#include <xxh_x86dispatch.h> /* the same hash by the widest vectors there are: twice as fast with AVX-512 */
#endif

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

uint64_t kvt_push_hash(uint32_t layer, uint32_t block, const void *bytes, size_t n_bytes) {
    return XXH3_64bits_withSeed(bytes, n_bytes, (uint64_t)layer << 32 | block);
}
