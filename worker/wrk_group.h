/* Which ranks of this worker's expert-parallel group are there, when they form it, and how long a rank that drains
 * stays: what the registry says of others goes in, what this rank does and announces comes out. A plain state machine
 * without I/O or clock; the engine thread owns it.
 *
 * A group is `size` workers of one role, model and group name, each with a rank of its own. All announce rank, address,
 * epoch and state (reg_rank):
 *
 *     WAITING ──rank 0: all others are announced, WAITING and stay; it chooses the epoch──▶ FORMING
 *     WAITING ──another: rank 0 is FORMING an epoch above our last one; we follow─────────▶ FORMING
 *     FORMING ──all are connected──▶ FORMED
 *     FORMING ──not all came, or refused──▶ WAITING
 *     FORMED  ──a rank is lost──▶ WAITING
 *
 * Rank 0's epoch is above all that anybody has announced, so whoever is restarted, rank 0 included, uses none twice. A
 * rank that was killed is still announced, as FORMED, until its lease runs out or it is back: so nobody waits for it in
 * vain. Redis is needed to form a group, not to keep it. */
#ifndef BATON_WORKER_WRK_GROUP_H
#define BATON_WORKER_WRK_GROUP_H

#include "common/registry/registry.h"

typedef struct {
    uint64_t incarnation; /* 0: not announced */
    bool is_draining;     /* or it has left: until another process takes its rank */
    reg_rank ep;
} wrk_member;

typedef struct {
    uint32_t retry_ms; /* from an attempt that failed to the next one; 0: 500 */
    uint32_t quiet_ms; /* a rank that has nothing left stays until no step was run for so long; 0: 1000 */
} wrk_group_options;

typedef struct {
    wrk_group_options options;
    reg_worker own;      /* what we announce; ep and is_draining are kept here, the rest does not change */
    wrk_member *members; /* [own.ep.size] owned; of our own rank: unused */
    int64_t retry_ns;    /* nothing begins before; 0: at once */
    int64_t quiet_ns;    /* the others do without us from then on; 0: we have work of our own */
} wrk_group;

/* own->ep: group, rank, size and address; it begins WAITING. */
void wrk_group_init(wrk_group *group, const reg_worker *own, const wrk_group_options *options);
void wrk_group_fini(wrk_group *group);

/* What the registry says of any worker, this one included: those of other groups, and who claims our rank, are ignored.
 */
void wrk_group_on_worker(wrk_group *group, reg_change change, const reg_worker *worker);

/* ---- forming ---- */

/* true: it is time to form own.ep.epoch, which is new; the state is FORMING. Addresses are in members. */
bool wrk_group_begin(wrk_group *group, int64_t now_ns);

/* How that ended, or that it is over. */
void wrk_group_formed(wrk_group *group);
void wrk_group_failed(wrk_group *group, int64_t now_ns); /* not all came, or we were refused: some time passes */
void wrk_group_lost(wrk_group *group);                   /* it was formed: as soon as all are back */

/* ---- being in it ---- */

uint32_t wrk_group_n_announced(const wrk_group *group); /* ranks, this one included */
bool wrk_group_is_leaving(const wrk_group *group);      /* another rank drains or left: the group will not last */
bool wrk_group_is_formed(const wrk_group *group);       /* steps can be run */
bool wrk_group_is_complete(const wrk_group *group);     /* and requests be taken: no other rank is about to leave */

void wrk_group_stepped(wrk_group *group, int64_t now_ns); /* a step of the group has ended well */

/* ---- leaving ---- */

/* This rank drains: it begins no group any more, stays in the one that it is in, and announces that it leaves, so that
 * the others take nothing new. Cheap to repeat. */
void wrk_group_drain(wrk_group *group);

/* Nothing of its own is left: from now on it helps the others with what they have, as long as it is needed. */
void wrk_group_leave(wrk_group *group, int64_t now_ns);
bool wrk_group_is_needed(const wrk_group *group, int64_t now_ns);

/* When wrk_group_begin() or wrk_group_is_needed() answer something else because time has passed. INT64_MAX: never. */
int64_t wrk_group_deadline_ns(const wrk_group *group);

#endif
