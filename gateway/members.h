/* The workers of one gateway loop: who the registry says there is, and the link to each. Feeds gw_core with who comes
 * and goes. Loop's thread only.
 *
 * Redis says whom to dial; the link says who lives. A worker that the registry lost stays as long as its link does (it
 * or Redis may be cut off from the other); one that deregistered gets nothing new and stays until its link ends. */
#ifndef BATON_GATEWAY_MEMBERS_H
#define BATON_GATEWAY_MEMBERS_H

#include "common/control/link.h"
#include "common/registry/registry.h"
#include "gateway/core/gw_core.h"

typedef struct gw_members gw_members;

typedef struct {
    gw_core *core; /* borrowed, as the hub: both outlive the members */
    link_hub *hub;
    bool (*serves)(void *context, const char *served_model); /* workers that announce another model are left alone */
    /* Called before each event that the core is given: carries out what the core decided before. */
    void (*settle)(void *context);
    void *context;
} gw_members_config;

gw_members *gw_members_open(const gw_members_config *config);
void gw_members_close(gw_members *members); /* closes the dialers; NULL is accepted */

/* reg_watcher_config.on_worker with the members as context. */
void gw_members_on_registry(void *members, reg_change change, const reg_worker *worker);

/* What came from the hub's queue; the caller frees it. */
void gw_members_on_link(gw_members *members, const link_event *event, int64_t now_ns);

/* Unknown or gone peers: nothing, gw_core hears of the loss. */
void gw_members_send(gw_members *members, uint64_t peer, const wire_message *message);

/* The smallest max_model_len among the workers that are up, UINT32_MAX: none is. */
uint32_t gw_members_max_model_len(const gw_members *members);

#endif
