/* Which ranks of this worker's expert-parallel group are there, and when they form it: what the registry says of others
 * goes in, what this rank does and announces comes out. A plain state machine without I/O; the engine thread owns it.
 *
 * A group is `size` workers of one role, model and group name, each with a rank of its own. All announce rank, address,
 * epoch and state (reg_rank):
 *
 *     WAITING ──all are announced, WAITING and stay; this is rank 0: it chooses the epoch──▶ FORMING ──connected──▶
 * FORMED ▲    ──rank 0 is FORMING an epoch above our last one: we follow────────────────────▶   │                     │
 *        └──────────────────────────────────── not all came, or refused ────────────────────────┴── a rank is lost ───┘
 *
 * Rank 0's epoch is above all that anybody has announced, so whoever is restarted, rank 0 included, uses none twice. A
 * rank that was killed is still announced, as FORMED, until its lease runs out or it is back: so nobody waits for it in
 * vain. Redis is needed to form a group, not to keep it. */
#ifndef BATON_WORKER_WRK_GROUP_H
#define BATON_WORKER_WRK_GROUP_H

#include "common/registry/registry.h"

typedef struct {
    uint64_t incarnation; /* 0: not announced */
    bool is_draining;
    reg_rank ep;
} wrk_member;

typedef struct {
    reg_worker own;      /* what we announce; own.ep is kept here, the rest does not change */
    wrk_member *members; /* [own.ep.size] owned; of our own rank: unused */
} wrk_group;

/* own->ep: group, rank, size and address; it begins WAITING. */
void wrk_group_init(wrk_group *group, const reg_worker *own);
void wrk_group_fini(wrk_group *group);

/* What the registry says of any worker, this one included: those of other groups, and who claims our rank, are ignored.
 */
void wrk_group_on_worker(wrk_group *group, reg_change change, const reg_worker *worker);

/* true: it is time to form own.ep.epoch, which is new; the state is FORMING. Addresses are in members. */
bool wrk_group_begin(wrk_group *group);

/* How that ended, or that it is over. */
void wrk_group_formed(wrk_group *group);
void wrk_group_lost(wrk_group *group);

uint32_t wrk_group_n_announced(const wrk_group *group); /* ranks, this one included */
bool wrk_group_is_leaving(const wrk_group *group);      /* another rank drains: the group will not last */

#endif
