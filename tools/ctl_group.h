/* A group of ranks, found among the workers that Redis names, and the loads that its ranks report, checked against what
 * they announced. Decides; reads nothing itself. */
#ifndef BATON_TOOLS_CTL_GROUP_H
#define BATON_TOOLS_CTL_GROUP_H

#include "common/registry/registry.h"
#include "kernels/expert_load.h"

typedef struct {
    const reg_worker *members[REG_CAP_RANKS]; /* [n_ranks] borrowed, by rank */
    uint32_t n_ranks;
} ctl_group;

/* `name` empty: the only group of that role. BT_BAD_REQUEST: no such group, or several; a rank that is missing, or
 * claimed twice; ranks that disagree about size or model; a rank without an HTTP address. */
bt_status ctl_group_find(const reg_worker *workers, size_t n_workers, wire_role role, const char *name, ctl_group *out,
                         bt_error *err);

/* sum += what `member` answered to GET /experts. BT_BAD_REQUEST: no such page (kernels/expert_load.h), another rank's,
 * or of another model than it announced or the sum has. */
bt_status ctl_group_add_page(const reg_worker *member, const void *page, size_t n_bytes, krn_expert_load *sum,
                             bt_error *err);

#endif
