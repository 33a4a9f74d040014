/* Which workers get a request. Owns the table of workers, as this gateway loop sees it: who is up, the load each last
 * reported, what this loop itself has sent there since, and the index of who holds which block. No I/O, no clock. One
 * thread.
 *
 * Both workers are chosen at once. The prefill worker is the strategy's (gw_strategy.h). Decode workers are ranked by
 * one rule: room for the request's blocks first, then whether they would compute the prompt themselves, then whether
 * they hold most of it already, then fewest sequences, then fewest blocks to be sent, then most free blocks. A worker
 * is preferred for what it knows of the prompt only while it has at most twice as many requests as the least busy one,
 * and four: a known beginning draws no crowd. Workers that drain, or whose expert-parallel group lacks a rank, are not
 * chosen, nor are those that a request's filter leaves out, of either role.
 *
 * Room: a prefill worker has room while what it has to compute takes at most max_worker_queue_ms and it did not refuse
 * a request since its last report; a decode worker while it has free blocks for what it lacks of the prompt. One
 * without any request always has room, so nothing waits for ever because of a figure. */
#ifndef BATON_GATEWAY_CORE_GW_ROUTER_H
#define BATON_GATEWAY_CORE_GW_ROUTER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/core/labels.h"
#include "common/wire/wire.h"
#include "gateway/core/gw_index.h"
#include "gateway/core/gw_strategy.h"

typedef struct gw_router gw_router;

/* Some of this loop's requests at a worker: how many, the blocks they need, the prompt tokens to be computed. */
typedef struct {
    uint32_t n, n_blocks, n_tokens;
} gw_sum;

typedef struct gw_worker {
    wire_role role; /* WIRE_ROLE_PREFILL or WIRE_ROLE_DECODE */
    uint64_t incarnation;
    uint64_t model_hash; /* part of its blocks' names */
    bool is_draining;
    bt_labels labels;
    bool is_incomplete; /* lacks ranks of its expert-parallel group; after gw_router_up() its STATUS says */

    /* Kept by the router. */
    uint32_t place;     /* in its table, now */
    uint64_t link;      /* which link this is, counted over all: a worker that was gone and came back has another */
    uint64_t name_hash; /* for gw_strategy */
    uint32_t column;    /* in the index; GW_INDEX_NONE: there was none left, nothing is known of its blocks */
    wire_load load;     /* as last reported; zero before the first STATUS */
    uint64_t n_heard;   /* how often it was reported */
    gw_sum own;         /* all that are there or on their way */
    gw_sum unseen;      /* of those, what `load` does not count yet */
    gw_sum accepted;    /* of those, what the next one will */
    bool is_full;       /* it has refused a request for want of room, and not reported since */

    char name[WIRE_MAX_NAME + 1];
    char address[WIRE_MAX_NAME + 1];    /* host:port of its control link, for response headers */
    char kv_address[WIRE_MAX_NAME + 1]; /* decode: host:port of its KV listener */
} gw_worker;

/* A request's share of a worker's load, from when it is sent there until it is not there any more. */
typedef struct {
    uint64_t incarnation, link; /* 0: nowhere */
    uint32_t n_blocks, n_tokens;
    bool is_accepted;
    uint64_t n_heard; /* when it was accepted */
} gw_booking;

typedef struct {
    uint64_t seed;
    uint32_t saturation_ms, slo_ttft_ms; /* gw_strategy.h; 0: 2000 and 2000 */
    uint32_t max_worker_queue_ms;        /* prompts at a worker with room; 0: any */
} gw_router_options;

gw_router *gw_router_open(const gw_router_options *options);
void gw_router_close(gw_router *router); /* NULL is accepted */

/* Takes what the caller knows (role, name, address, kv_address, incarnation, model_hash, labels, is_draining,
 * is_incomplete); an incarnation that is there already is updated, but keeps its link and is_incomplete. */
gw_worker *gw_router_up(gw_router *router, const gw_worker *known);
void gw_router_gone(gw_router *router, uint64_t incarnation);
gw_worker *gw_router_worker(const gw_router *router, uint64_t incarnation); /* NULL: not up */

void gw_router_status(gw_router *router, uint64_t incarnation, const wire_load *load);

/* Its prefix cache has changed. false: it names more blocks than it has; what is too much is left out. */
bool gw_router_blocks(gw_router *router, uint64_t incarnation, const wire_blocks *blocks);
uint64_t gw_router_model_hash(const gw_router *router); /* of the workers, which serve one model; 0: there are none */
uint32_t gw_router_n_blocks(const gw_router *router, const gw_worker *worker); /* in its prefix cache */
bool gw_router_has_block(const gw_router *router, const gw_worker *worker, const wire_block_name *name);

/* It said so itself before a STATUS did. */
void gw_router_draining(gw_router *router, uint64_t incarnation);
void gw_router_full(gw_router *router, uint64_t incarnation);

/* Grows with all that may make room somewhere. */
uint64_t gw_router_version(const gw_router *router);

/* A request is sent to the worker: it needs so many blocks there, and so many prompt tokens are to be computed. A
 * prefill worker counts it in its own figures from the first STATUS after ACCEPTED on (the link keeps their order). A
 * decode worker does so when prefill has asked it for room, of which nobody tells: there this loop's share is counted
 * on top until the next STATUS, and after that the total is never less than what this loop knows to be there. */
void gw_router_book(gw_router *router, gw_booking *out, gw_worker *worker, uint32_t n_blocks, uint32_t n_tokens);
void gw_router_accepted(gw_router *router, gw_booking *booking); /* ACCEPTED came; nothing if it is nowhere */
void gw_router_unbook(gw_router *router, gw_booking *booking);   /* nowhere afterwards */

/* Workers of the role that are up, not draining and not incomplete; up and incomplete. */
uint32_t gw_router_n_usable(const gw_router *router, wire_role role);
uint32_t gw_router_n_incomplete(const gw_router *router, wire_role role);

/* All workers, in the order in which they came; stops early when fn says false. */
void gw_router_each(const gw_router *router, bool (*fn)(void *context, const gw_worker *worker), void *context);

typedef struct {
    const gw_strategy *strategy;
    const bt_selector *filter;            /* NULL: every worker will do */
    uint32_t n_tokens;                    /* of the prompt, and of what is replayed */
    uint64_t avoid_prefill, avoid_decode; /* incarnations to be chosen only if there is no other; 0: none */
    bool may_be_local;                    /* a decode worker may be asked to compute the prompt */
    bool needs_room;                      /* only workers that have room */
    const wire_block_name *names; /* [n_names] of the prompt's full blocks that need not be computed where they are */
    uint32_t n_names;
    uint64_t session_key, session_name; /* gw_strategy.h */
    uint32_t slo_ttft_ms;               /* likewise; 0: the router's */
} gw_route_query;

typedef struct {
    bool is_local; /* decodes[0] computes the prompt itself, and prefill is NULL */
    gw_worker *prefill;
    gw_worker *decodes[WIRE_MAX_CANDIDATES]; /* [n_decodes], best first */
    uint32_t n_decodes;
    uint32_t n_missing; /* tokens that whoever computes the prompt does not know */
} gw_route;

/* BT_NO_CAPACITY: no usable worker of a role, or none that the filter lets through; the sentence says which. BT_AGAIN:
 * none of them has room, and the query needs that. */
bt_status gw_router_choose(gw_router *router, const gw_route_query *query, gw_route *out, bt_error *err);

/* Is there, for the filter (NULL: none), any usable worker of each role? Errors as above. */
bt_status gw_router_check(const gw_router *router, const bt_selector *filter, bt_error *err);

#endif
