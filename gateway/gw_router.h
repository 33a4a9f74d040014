/* Which worker gets a request. Owns the table of workers, as this gateway loop sees it: who is up, the load each last
 * reported, and what this loop itself has sent there since. No I/O, no clock. One thread.
 *
 * A strategy is a name and a cost function; the prefill worker with the lowest cost is taken, ties are broken by the
 * seeded generator. Decode workers are ranked by one rule: room for the request's blocks first, then whether they would
 * compute the prompt themselves, then fewest sequences, then most free blocks. A decode worker is asked to compute a
 * prompt while it says that it takes some, its cache lacks little of this one, and it has at most twice as many
 * requests as the least busy one, and four: a known beginning draws no crowd. Workers that drain, or whose
 * expert-parallel group lacks a rank, are not chosen. */
#ifndef BATON_GATEWAY_GW_ROUTER_H
#define BATON_GATEWAY_GW_ROUTER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/core/map.h"
#include "common/wire/wire.h"

typedef struct gw_router gw_router;
typedef struct gw_strategy gw_strategy; /* static, immutable */

typedef struct gw_worker {
    wire_role role; /* WIRE_ROLE_PREFILL or WIRE_ROLE_DECODE */
    char name[WIRE_MAX_NAME + 1];
    char kv_address[WIRE_MAX_NAME + 1]; /* decode: host:port of its KV listener */
    uint64_t incarnation;
    uint64_t model_hash; /* part of its blocks' names */
    bool is_draining;
    bool is_incomplete; /* lacks ranks of its expert-parallel group; after gw_router_up() its STATUS says */

    /* Kept by the router. */
    uint64_t link;  /* which link this is, counted over all: a worker that was gone and came back has another */
    wire_load load; /* as last reported; zero before the first STATUS */
    uint32_t n_own, n_own_blocks; /* this loop's requests that are there or on their way, and the blocks they need */
    uint32_t n_new, n_new_blocks; /* of those, sent since `load` was reported */
    bt_map blocks;                /* names of the blocks in its prefix cache, as it told over this link */
} gw_worker;

gw_router *gw_router_open(uint64_t seed);
void gw_router_close(gw_router *router); /* NULL is accepted */

/* The strategy of that name ("least-request", "random"); "" is the default. BT_BAD_REQUEST: unknown; the sentence
 * lists the known ones. */
bt_status gw_strategy_find(const char *name, const gw_strategy **out, bt_error *err);
const char *gw_strategy_name(const gw_strategy *strategy);
const char *gw_strategy_names(void); /* "random, least-request": all, for error texts */

/* Takes what the caller knows (role, name, kv_address, incarnation, model_hash, is_draining, is_incomplete); an
 * incarnation that is there already is updated, but keeps its link and is_incomplete. */
gw_worker *gw_router_up(gw_router *router, const gw_worker *known);
void gw_router_gone(gw_router *router, uint64_t incarnation);
gw_worker *gw_router_worker(const gw_router *router, uint64_t incarnation); /* NULL: not up */

void gw_router_status(gw_router *router, uint64_t incarnation, const wire_load *load);

/* Its prefix cache has changed. false: it names more blocks than it has; what is too much is left out. */
bool gw_router_blocks(gw_router *router, uint64_t incarnation, const wire_blocks *blocks);
uint64_t gw_router_model_hash(const gw_router *router); /* of the workers, which serve one model; 0: there are none */
bool gw_worker_has_block(const gw_worker *worker, const wire_block_name *name);

/* It said so itself before a STATUS did. */
void gw_router_draining(gw_router *router, uint64_t incarnation);

/* A request was sent to the worker, or is not there any more: its share of n_own. The worker counts it in its own
 * figures from its next STATUS on. */
void gw_worker_book(gw_worker *worker, uint32_t n_blocks);
void gw_worker_unbook(gw_worker *worker, uint32_t n_blocks);

/* Workers of the role that are up, not draining and not incomplete; up and incomplete. */
uint32_t gw_router_n_usable(const gw_router *router, wire_role role);
uint32_t gw_router_n_incomplete(const gw_router *router, wire_role role);

/* All workers, in the order in which they came; stops early when fn says false. */
void gw_router_each(const gw_router *router, bool (*fn)(void *context, const gw_worker *worker), void *context);

typedef struct {
    const gw_strategy *strategy;
    const uint32_t *tokens; /* [n_tokens], for strategies that look at them */
    uint32_t n_tokens;
    uint64_t avoid_prefill, avoid_decode; /* incarnations to be chosen only if there is no other; 0: none */
    bool may_be_local;                    /* a decode worker may be asked to compute the prompt */
    const wire_block_name *names; /* [n_names] of the prompt's full blocks that need not be computed where they are */
    uint32_t n_names;
} gw_route_query;

typedef struct {
    bool is_local; /* decodes[0] computes the prompt itself, and prefill is NULL */
    gw_worker *prefill;
    gw_worker *decodes[WIRE_MAX_CANDIDATES]; /* [n_decodes], best first */
    uint32_t n_decodes;
} gw_route;

/* BT_NO_CAPACITY: no usable worker of a role; the sentence says which. */
bt_status gw_router_choose(gw_router *router, const gw_route_query *query, gw_route *out, bt_error *err);

#endif
