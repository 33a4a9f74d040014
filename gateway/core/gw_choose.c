/* The choice among the workers of the table, for one request. What prefill workers are compared by is gw_strategy.c's
 * business. */
#include "common/kv/kv_layout.h"
#include "gateway/core/gw_router_internal.h"

/* ---- of the prompt that is being placed -------------------------------------------------------------------------- */

/* Tokens in full blocks that the worker knows, from the first on. */
static uint32_t n_known_tokens(const gw_router *router, uint32_t column) {
    return column == GW_INDEX_NONE ? 0 : router->lengths[column] * KV_BLOCK_TOKENS;
}

static uint32_t n_missing_tokens(const gw_router *router, uint32_t column, const gw_route_query *query) {
    uint32_t n_known = n_known_tokens(router, column);
    return n_known < query->n_tokens ? query->n_tokens - n_known : 0;
}

/* May the worker at that place get it? */
static bool is_allowed(const gw_router *router, uint32_t at, wire_role role, const bt_selector *filter) {
    const gw_standing *one = &router->standings[at];
    if (one->role != role || !one->is_usable) return false;
    return filter == NULL || bt_selector_matches(filter, &router->workers[at]->labels);
}

/* ---- prefill ----------------------------------------------------------------------------------------------------- */

/* Candidates are all that are allowed, but for the avoided one if there is another. */
static uint32_t find_candidates(gw_router *router, const gw_route_query *query) {
    const gw_worker *avoided = query->avoid_prefill != 0 ? gw_router_worker(router, query->avoid_prefill) : NULL;
    uint32_t n = 0, n_avoided = 0, skipped = avoided != NULL ? avoided->place : UINT32_MAX;
    for (uint32_t i = 0; i < router->n_workers; i++) {
        if (!is_allowed(router, i, WIRE_ROLE_PREFILL, query->filter)) continue;
        if (i == skipped) {
            n_avoided = 1;
        } else {
            router->candidates[n++] = i;
        }
    }
    if (n == 0 && n_avoided > 0) router->candidates[n++] = skipped;
    return n;
}

/* Of n candidates those that have room. */
static uint32_t keep_roomy(gw_router *router, uint32_t n) {
    double mean = gw_figures_mean_speed(router->figures, n);
    uint32_t n_roomy = 0, most_ms = router->options.max_worker_queue_ms;
    for (uint32_t i = 0; i < n; i++) {
        bool is_short = most_ms == 0 || gw_figures_queue_ms(&router->figures[i], mean) <= most_ms;
        if (!is_short || router->standings[router->candidates[i]].is_full) continue;
        router->candidates[n_roomy] = router->candidates[i];
        router->figures[n_roomy++] = router->figures[i];
    }
    return n_roomy;
}

/* NULL: there is none; *has_any: there is, but none with room. */
static gw_worker *choose_prefill(gw_router *router, const gw_route_query *query, bool *has_any) {
    uint32_t n = find_candidates(router, query);
    *has_any = n > 0;
    for (uint32_t i = 0; i < n; i++) {
        const gw_standing *one = &router->standings[router->candidates[i]];
        router->figures[i] = one->figures;
        router->figures[i].n_known_tokens = n_known_tokens(router, one->column);
    }
    if (query->needs_room) n = keep_roomy(router, n);
    if (n == 0) return NULL;
    gw_scene scene = {.workers = router->figures,
                      .n_workers = n,
                      .n_tokens = query->n_tokens,
                      .session_key = query->session_key,
                      .session_name = query->session_name,
                      .saturation_ms = router->options.saturation_ms,
                      .slo_ttft_ms = query->slo_ttft_ms != 0 ? query->slo_ttft_ms : router->options.slo_ttft_ms,
                      .random = gw_random_next(&router->random)};
    return router->workers[router->candidates[gw_strategy_choose(query->strategy, &scene, router->costs)]];
}

/* ---- decode ------------------------------------------------------------------------------------------------------ */

enum { N_KEYS = 5 };

/* What decode workers are ranked by, compared from the first to the last; the lowest is best. */
typedef struct {
    uint32_t place;
    bool is_local; /* it would compute the prompt itself */
    uint64_t key[N_KEYS];
} ranked;

static uint32_t n_free_blocks(const gw_figures *worker) {
    return worker->n_blocks_used < worker->n_blocks_total ? worker->n_blocks_total - worker->n_blocks_used : 0;
}

static bool has_room(const gw_figures *worker, const gw_route_query *query) {
    bool has_reported = worker->n_blocks_total > 0;
    return !has_reported || n_free_blocks(worker) >= query->n_tokens / KV_BLOCK_TOKENS + 1;
}

/* Candidates are all that are allowed. *n_least: requests of the one with room that has fewest; UINT32_MAX: none has
 * room. */
static uint32_t find_decodes(gw_router *router, const gw_route_query *query, uint32_t *n_least) {
    uint32_t n = 0;
    *n_least = UINT32_MAX;
    for (uint32_t i = 0; i < router->n_workers; i++) {
        if (!is_allowed(router, i, WIRE_ROLE_DECODE, query->filter)) continue;
        router->candidates[n++] = i;
        const gw_figures *worker = &router->standings[i].figures;
        if (worker->n_requests < *n_least && has_room(worker, query)) *n_least = worker->n_requests;
    }
    return n;
}

/* Not much busier than the one that has least to do. What a prompt's blocks are worth is a short prefill and its
 * transfer; among more than twice as many others each token takes longer, to the request's end. */
static bool is_calm(const gw_figures *worker, uint32_t n_least) {
    enum { N_FEW = 4 }; /* so many more cost next to nothing: a step reads the weights once for all */
    return worker->n_requests <= 2 * (uint64_t)n_least + N_FEW;
}

static ranked rank_decode(gw_router *router, uint32_t at, const gw_route_query *query, uint32_t n_least) {
    const gw_standing *one = &router->standings[at];
    const gw_figures *worker = &one->figures;
    bool is_roomy = has_room(worker, query), is_free = is_roomy && is_calm(worker, n_least);
    bool is_avoided = query->avoid_decode != 0 && router->workers[at]->incarnation == query->avoid_decode;
    uint32_t n_known = n_known_tokens(router, one->column), n_missing = n_missing_tokens(router, one->column, query);
    bool is_short = one->local_prefill_tokens > 0 && n_missing <= one->local_prefill_tokens;
    bool is_local = query->may_be_local && is_free && is_short;
    bool is_holder = is_free && n_known > query->n_tokens / 2;
    uint64_t tier = is_avoided * 8u + !is_roomy * 4u + !is_local * 2u + !is_holder;
    return (ranked){
        at,
        is_local,
        {tier, worker->n_requests, n_missing, UINT64_MAX - n_free_blocks(worker), gw_random_next(&router->random)}};
}

static bool is_before(const ranked *x, const ranked *y) {
    for (int i = 0; i < N_KEYS; i++)
        if (x->key[i] != y->key[i]) return x->key[i] < y->key[i];
    return false;
}

static void choose_decodes(gw_router *router, const gw_route_query *query, gw_route *out) {
    ranked best[WIRE_MAX_CANDIDATES];
    uint32_t n = 0, n_least, n_candidates = find_decodes(router, query, &n_least);
    for (uint32_t i = 0; i < n_candidates; i++) {
        ranked one = rank_decode(router, router->candidates[i], query, n_least);
        if (n == WIRE_MAX_CANDIDATES && !is_before(&one, &best[n - 1])) continue;
        uint32_t at = n < WIRE_MAX_CANDIDATES ? n++ : n - 1;
        for (; at > 0 && is_before(&one, &best[at - 1]); at--) best[at] = best[at - 1];
        best[at] = one;
    }
    out->n_decodes = n;
    out->is_local = n > 0 && best[0].is_local;
    for (uint32_t i = 0; i < n; i++) out->decodes[i] = router->workers[best[i].place];
}

/* What they lack of the prompt, beside what others have there. The first are those with most room. */
static bool can_hold_any(const gw_router *router, const gw_route_query *query, const gw_route *route) {
    for (uint32_t i = 0; i < route->n_decodes; i++) {
        const gw_figures *worker = &router->standings[route->decodes[i]->place].figures;
        uint32_t n_blocks = n_missing_tokens(router, route->decodes[i]->column, query) / KV_BLOCK_TOKENS + 1;
        bool has_reported = worker->n_blocks_total > 0;
        if (!has_reported || worker->n_requests == 0 || n_free_blocks(worker) >= n_blocks) return true;
    }
    return false;
}

static bt_status fail_none(const bt_selector *filter, const char *role, bt_error *err) {
    return bt_fail(err, BT_NO_CAPACITY, "No %s worker is available%s.", role,
                   filter != NULL ? " among those that the filter asks for" : "");
}

bt_status gw_router_choose(gw_router *router, const gw_route_query *query, gw_route *out, bt_error *err) {
    gw_route route = {0};
    bool has_prefill = true;
    gw_index_match(router->index, query->names, query->n_names, router->lengths);
    choose_decodes(router, query, &route);
    if (!route.is_local) route.prefill = choose_prefill(router, query, &has_prefill);
    if (!has_prefill) return fail_none(query->filter, "prefill", err);
    if (route.n_decodes == 0) return fail_none(query->filter, "decode", err);
    bool has_place = route.is_local || (route.prefill != NULL && can_hold_any(router, query, &route));
    if (query->needs_room && !has_place) return bt_fail(err, BT_AGAIN, "No worker has room for the request now.");
    const gw_worker *computes = route.is_local ? route.decodes[0] : route.prefill;
    route.n_missing = n_missing_tokens(router, computes->column, query);
    *out = route;
    return BT_OK;
}

bt_status gw_router_check(const gw_router *router, const bt_selector *filter, bt_error *err) {
    bool has_prefill = false, has_decode = false;
    for (uint32_t i = 0; i < router->n_workers; i++) {
        has_prefill |= is_allowed(router, i, WIRE_ROLE_PREFILL, filter);
        has_decode |= is_allowed(router, i, WIRE_ROLE_DECODE, filter);
    }
    return has_prefill && has_decode ? BT_OK : fail_none(filter, has_prefill ? "decode" : "prefill", err);
}
