/* The table of workers, for the two files that are the router: gw_router.c keeps it, gw_choose.c chooses from it. */
#ifndef BATON_GATEWAY_CORE_GW_ROUTER_INTERNAL_H
#define BATON_GATEWAY_CORE_GW_ROUTER_INTERNAL_H

#include "common/core/map.h"
#include "gateway/core/gw_router.h"

/* What a decision reads of a worker. It reads all of them, so they lie side by side; gw_router.c keeps them. */
typedef struct {
    gw_figures figures; /* n_known_tokens: 0 */
    uint32_t column, local_prefill_tokens;
    wire_role role;
    bool is_usable, is_full;
} gw_standing;

struct gw_router {
    gw_router_options options;
    gw_worker **workers;    /* [n_workers] owned, in the order in which they came */
    gw_standing *standings; /* [n_workers] theirs */
    uint32_t n_workers, cap_workers;
    bt_map by_incarnation; /* -> index in workers */
    gw_index *index;
    uint64_t n_links; /* ever */
    uint64_t version;
    uint64_t random;
    uint32_t lengths[GW_INDEX_MAX_WORKERS]; /* of the prompt that is being placed: blocks known, by column */

    /* Scratch of choosing a worker, [cap_workers] each; costs twice as many. */
    uint32_t *candidates; /* places */
    gw_figures *figures;
    double *costs;
};

#endif
