/* The table of workers and the choice among them. Strategies are rows of a table: to add one, write its cost function.
 *
 * A worker's load is what it last reported plus what this loop has sent since; and never less than what this loop knows
 * to be there, because a request shows in a decode worker's own figures only when prefill has asked for room. */
#include "gateway/gw_router.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/map.h"
#include "common/kv/kv_layout.h"

struct gw_router {
    gw_worker **workers; /* [n_workers] owned, in the order in which they came */
    uint32_t n_workers, cap_workers;
    bt_map by_incarnation; /* -> index in workers */
    uint64_t n_links;      /* ever */
    uint64_t random;
};

/* splitmix64 (Steele, Lea, Flood, OOPSLA 2014). */
static uint64_t next_random(gw_router *router) {
    uint64_t z = router->random += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* ---- strategies ------------------------------------------------------------------------------------------------- */

struct gw_strategy {
    const char *name;
    double (*cost)(gw_router *router, const gw_worker *worker, const gw_route_query *query); /* the lowest wins */
};

static uint32_t n_requests(const gw_worker *worker) {
    uint64_t n = (uint64_t)worker->load.running + worker->load.waiting + worker->n_new;
    if (n < worker->n_own) n = worker->n_own;
    return n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
}

static double cost_least_request(gw_router *router, const gw_worker *worker, const gw_route_query *query) {
    (void)router, (void)query;
    return n_requests(worker);
}

static double cost_random(gw_router *router, const gw_worker *worker, const gw_route_query *query) {
    (void)worker, (void)query;
    return (double)(next_random(router) >> 11);
}

/* One row each; the first is the default. */
#define STRATEGIES(ROW)                                                                                                \
    ROW("least-request", cost_least_request)                                                                           \
    ROW("random", cost_random)

#define ROW(name, cost) {name, cost},
static const gw_strategy strategies[] = {STRATEGIES(ROW)};
#undef ROW
enum { N_STRATEGIES = sizeof(strategies) / sizeof(strategies[0]) };

const char *gw_strategy_names(void) {
#define ROW(name, cost) ", " name
    static const char names[] = STRATEGIES(ROW);
#undef ROW
    return names + strlen(", ");
}

bt_status gw_strategy_find(const char *name, const gw_strategy **out, bt_error *err) {
    for (int i = 0; i < N_STRATEGIES; i++) {
        if (name[0] != 0 && strcmp(name, strategies[i].name) != 0) continue;
        *out = &strategies[i];
        return BT_OK;
    }
    return bt_fail(err, BT_BAD_REQUEST, "incorrect routing strategy %.64s, known are: %s", name, gw_strategy_names());
}

const char *gw_strategy_name(const gw_strategy *strategy) { return strategy->name; }

/* ---- the table -------------------------------------------------------------------------------------------------- */

static bt_key key_of(uint64_t incarnation) { return (bt_key){incarnation, 0, 0}; }

static void worker_free(gw_worker *worker) {
    bt_map_fini(&worker->blocks);
    free(worker);
}

gw_router *gw_router_open(uint64_t seed) {
    gw_router *router = bt_calloc(1, sizeof(*router));
    router->random = seed;
    return router;
}

void gw_router_close(gw_router *router) {
    if (router == NULL) return;
    for (uint32_t i = 0; i < router->n_workers; i++) worker_free(router->workers[i]);
    free(router->workers);
    bt_map_fini(&router->by_incarnation);
    free(router);
}

gw_worker *gw_router_worker(const gw_router *router, uint64_t incarnation) {
    uint32_t index = bt_map_get(&router->by_incarnation, key_of(incarnation));
    return index == BT_MAP_NONE ? NULL : router->workers[index];
}

static void copy_known(gw_worker *worker, const gw_worker *known) {
    worker->role = known->role;
    snprintf(worker->name, sizeof(worker->name), "%s", known->name);
    snprintf(worker->kv_address, sizeof(worker->kv_address), "%s", known->kv_address);
    worker->incarnation = known->incarnation;
    worker->model_hash = known->model_hash;
    worker->is_draining = known->is_draining;
}

gw_worker *gw_router_up(gw_router *router, const gw_worker *known) {
    gw_worker *worker = gw_router_worker(router, known->incarnation);
    if (worker != NULL) {
        copy_known(worker, known);
        return worker;
    }
    if (router->n_workers == router->cap_workers) {
        router->cap_workers = router->cap_workers * 2 + 8;
        router->workers = bt_realloc(router->workers, router->cap_workers, sizeof(gw_worker *));
    }
    worker = bt_calloc(1, sizeof(*worker));
    copy_known(worker, known);
    worker->is_incomplete = known->is_incomplete;
    worker->link = ++router->n_links;
    bt_map_put(&router->by_incarnation, key_of(worker->incarnation), router->n_workers);
    router->workers[router->n_workers++] = worker;
    return worker;
}

void gw_router_gone(gw_router *router, uint64_t incarnation) {
    uint32_t index = bt_map_get(&router->by_incarnation, key_of(incarnation));
    if (index == BT_MAP_NONE) return;
    bt_map_remove(&router->by_incarnation, key_of(incarnation));
    worker_free(router->workers[index]);
    router->n_workers--;
    for (uint32_t i = index; i < router->n_workers; i++) {
        router->workers[i] = router->workers[i + 1];
        bt_map_put(&router->by_incarnation, key_of(router->workers[i]->incarnation), i);
    }
}

void gw_router_status(gw_router *router, uint64_t incarnation, const wire_load *load) {
    gw_worker *worker = gw_router_worker(router, incarnation);
    if (worker == NULL) return;
    worker->load = *load;
    worker->is_draining = load->is_draining != 0;
    worker->is_incomplete = load->is_incomplete != 0;
    worker->n_new = worker->n_new_blocks = 0;
}

static bt_key block_key(const wire_block_name *name) { return (bt_key){name->low, name->high, 0}; }

bool gw_router_blocks(gw_router *router, uint64_t incarnation, const wire_blocks *blocks) {
    gw_worker *worker = gw_router_worker(router, incarnation);
    if (worker == NULL) return true;
    for (uint32_t i = 0; i < blocks->n_gone; i++) bt_map_remove(&worker->blocks, block_key(&blocks->gone[i]));
    for (uint32_t i = 0; i < blocks->n_come; i++) {
        if (worker->blocks.n_used >= worker->load.kv_blocks_total) return false;
        bt_map_put(&worker->blocks, block_key(&blocks->come[i]), 0);
    }
    return true;
}

uint64_t gw_router_model_hash(const gw_router *router) {
    return router->n_workers > 0 ? router->workers[0]->model_hash : 0;
}

bool gw_worker_has_block(const gw_worker *worker, const wire_block_name *name) {
    return bt_map_get(&worker->blocks, block_key(name)) != BT_MAP_NONE;
}

void gw_router_draining(gw_router *router, uint64_t incarnation) {
    gw_worker *worker = gw_router_worker(router, incarnation);
    if (worker != NULL) worker->is_draining = true;
}

void gw_worker_book(gw_worker *worker, uint32_t n_blocks) {
    worker->n_own++;
    worker->n_new++;
    worker->n_own_blocks += n_blocks;
    worker->n_new_blocks += n_blocks;
}

void gw_worker_unbook(gw_worker *worker, uint32_t n_blocks) {
    BT_ASSERT(worker->n_own > 0 && worker->n_own_blocks >= n_blocks);
    worker->n_own--;
    worker->n_own_blocks -= n_blocks;
}

static bool is_usable(const gw_worker *worker, wire_role role) {
    return worker->role == role && !worker->is_draining && !worker->is_incomplete;
}

uint32_t gw_router_n_usable(const gw_router *router, wire_role role) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < router->n_workers; i++) n += is_usable(router->workers[i], role);
    return n;
}

uint32_t gw_router_n_incomplete(const gw_router *router, wire_role role) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < router->n_workers; i++)
        n += router->workers[i]->role == role && router->workers[i]->is_incomplete;
    return n;
}

void gw_router_each(const gw_router *router, bool (*fn)(void *context, const gw_worker *worker), void *context) {
    for (uint32_t i = 0; i < router->n_workers; i++)
        if (!fn(context, router->workers[i])) return;
}

/* ---- choosing --------------------------------------------------------------------------------------------------- */

static gw_worker *choose_prefill(gw_router *router, const gw_route_query *query) {
    gw_worker *best = NULL;
    bool best_is_avoided = false;
    double best_cost = 0;
    uint64_t n_ties = 0; /* each of n with the same cost wins with chance 1/n */
    for (uint32_t i = 0; i < router->n_workers; i++) {
        gw_worker *worker = router->workers[i];
        if (!is_usable(worker, WIRE_ROLE_PREFILL)) continue;
        bool is_avoided = worker->incarnation == query->avoid_prefill;
        double cost = query->strategy->cost(router, worker, query);
        if (best != NULL && is_avoided == best_is_avoided && cost == best_cost) {
            if (next_random(router) % ++n_ties == 0) best = worker;
        } else if (best == NULL || (is_avoided != best_is_avoided ? best_is_avoided : cost < best_cost)) {
            best = worker;
            best_is_avoided = is_avoided;
            best_cost = cost;
            n_ties = 1;
        }
    }
    return best;
}

enum { N_KEYS = 6 };

/* What decode workers are ranked by, compared from the first to the last; the lowest is best. */
typedef struct {
    gw_worker *worker;
    bool is_local; /* it would compute the prompt itself */
    uint64_t key[N_KEYS];
} ranked;

/* Would it compute the prompt itself? */
static bool is_short_for(const gw_worker *worker, const gw_route_query *query) {
    uint32_t n_known = 0, most = worker->load.local_prefill_tokens;
    if (most == 0) return false;
    while (n_known < query->n_names && gw_worker_has_block(worker, &query->names[n_known])) n_known++;
    return query->n_tokens - n_known * KV_BLOCK_TOKENS <= most;
}

static uint64_t n_free_blocks(const gw_worker *worker) {
    uint64_t used = (uint64_t)worker->load.kv_blocks_used + worker->n_new_blocks, total = worker->load.kv_blocks_total;
    if (used < worker->n_own_blocks) used = worker->n_own_blocks;
    return used < total ? total - used : 0;
}

static bool has_room(const gw_worker *worker, const gw_route_query *query) {
    bool has_reported = worker->load.kv_blocks_total > 0;
    return !has_reported || n_free_blocks(worker) >= query->n_tokens / KV_BLOCK_TOKENS + 1;
}

/* Requests of the decode worker with room that has fewest; UINT32_MAX: none has room. */
static uint32_t n_requests_least(const gw_router *router, const gw_route_query *query) {
    uint32_t least = UINT32_MAX;
    for (uint32_t i = 0; i < router->n_workers; i++) {
        const gw_worker *worker = router->workers[i];
        if (!is_usable(worker, WIRE_ROLE_DECODE) || !has_room(worker, query)) continue;
        if (n_requests(worker) < least) least = n_requests(worker);
    }
    return least;
}

/* Not much busier than the one that has least to do. What a prompt's blocks are worth is a short prefill and its
 * transfer; among more than twice as many others each token takes longer, to the request's end. */
static bool is_calm(const gw_worker *worker, uint32_t n_least) {
    enum { N_FEW = 4 }; /* so many more cost next to nothing: a step reads the weights once for all */
    return n_requests(worker) <= 2 * (uint64_t)n_least + N_FEW;
}

static ranked rank_decode(gw_router *router, gw_worker *worker, const gw_route_query *query, uint32_t n_least) {
    bool is_roomy = has_room(worker, query);
    bool is_local = query->may_be_local && is_roomy && is_calm(worker, n_least) && is_short_for(worker, query);
    return (ranked){worker,
                    is_local,
                    {worker->incarnation == query->avoid_decode, !is_roomy, !is_local, n_requests(worker),
                     UINT64_MAX - n_free_blocks(worker), next_random(router)}};
}

static bool is_before(const ranked *x, const ranked *y) {
    for (int i = 0; i < N_KEYS; i++)
        if (x->key[i] != y->key[i]) return x->key[i] < y->key[i];
    return false;
}

static void choose_decodes(gw_router *router, const gw_route_query *query, gw_route *out) {
    ranked best[WIRE_MAX_CANDIDATES];
    uint32_t n = 0, n_least = n_requests_least(router, query);
    for (uint32_t i = 0; i < router->n_workers; i++) {
        if (!is_usable(router->workers[i], WIRE_ROLE_DECODE)) continue;
        ranked one = rank_decode(router, router->workers[i], query, n_least);
        if (n == WIRE_MAX_CANDIDATES && !is_before(&one, &best[n - 1])) continue;
        uint32_t at = n < WIRE_MAX_CANDIDATES ? n++ : n - 1;
        for (; at > 0 && is_before(&one, &best[at - 1]); at--) best[at] = best[at - 1];
        best[at] = one;
    }
    out->n_decodes = n;
    out->is_local = n > 0 && best[0].is_local;
    for (uint32_t i = 0; i < n; i++) out->decodes[i] = best[i].worker;
}

bt_status gw_router_choose(gw_router *router, const gw_route_query *query, gw_route *out, bt_error *err) {
    gw_route route = {0};
    choose_decodes(router, query, &route);
    if (!route.is_local) route.prefill = choose_prefill(router, query);
    if (!route.is_local && route.prefill == NULL)
        return bt_fail(err, BT_NO_CAPACITY, "No prefill worker is available.");
    if (route.n_decodes == 0) return bt_fail(err, BT_NO_CAPACITY, "No decode worker is available.");
    *out = route;
    return BT_OK;
}
