/* The table of workers and the choice among them. What prefill workers are compared by is gw_strategy.c's business. */
#include "gateway/core/gw_router.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/map.h"
#include "common/kv/kv_layout.h"

enum { MAX_BLOCKS = 1 << 24 }; /* a thousand million tokens' */

/* What a decision reads of a worker. It reads all of them, so they lie side by side; refresh() keeps them. */
typedef struct {
    gw_figures figures; /* n_known_tokens: 0 */
    uint32_t column, local_prefill_tokens;
    wire_role role;
    bool is_usable, is_full;
} standing;

struct gw_router {
    gw_router_options options;
    gw_worker **workers; /* [n_workers] owned, in the order in which they came */
    standing *standings; /* [n_workers] theirs */
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

/* ---- the table -------------------------------------------------------------------------------------------------- */

static bt_key key_of(uint64_t incarnation) { return (bt_key){incarnation, 0, 0}; }

gw_router *gw_router_open(const gw_router_options *options) {
    gw_router *router = bt_calloc(1, sizeof(*router));
    router->options = *options;
    if (router->options.saturation_ms == 0) router->options.saturation_ms = 2000;
    if (router->options.slo_ttft_ms == 0) router->options.slo_ttft_ms = 2000;
    router->random = options->seed;
    router->index = gw_index_open(MAX_BLOCKS, options->seed);
    return router;
}

void gw_router_close(gw_router *router) {
    if (router == NULL) return;
    for (uint32_t i = 0; i < router->n_workers; i++) free(router->workers[i]);
    free(router->workers);
    free(router->standings);
    free(router->candidates);
    free(router->figures);
    free(router->costs);
    gw_index_close(router->index);
    bt_map_fini(&router->by_incarnation);
    free(router);
}

gw_worker *gw_router_worker(const gw_router *router, uint64_t incarnation) {
    uint32_t index = bt_map_get(&router->by_incarnation, key_of(incarnation));
    return index == BT_MAP_NONE ? NULL : router->workers[index];
}

/* ---- what decisions read ---------------------------------------------------------------------------------------- */

static uint32_t add_figures(uint64_t reported, uint32_t unseen, uint32_t at_least) {
    uint64_t sum = reported + unseen;
    if (sum < at_least) sum = at_least;
    return sum > UINT32_MAX ? UINT32_MAX : (uint32_t)sum;
}

/* To be called when anything of the worker has changed. */
static void refresh(gw_router *router, const gw_worker *worker) {
    const wire_load *load = &worker->load;
    const gw_sum *unseen = &worker->unseen, *own = &worker->own;
    router->version++;
    router->standings[worker->place] =
        (standing){.figures = {.name_hash = worker->name_hash,
                               .n_requests = add_figures((uint64_t)load->running + load->waiting, unseen->n, own->n),
                               .n_queued_tokens = add_figures(load->waiting_tokens, unseen->n_tokens, 0),
                               .n_blocks_used = add_figures(load->kv_blocks_used, unseen->n_blocks, own->n_blocks),
                               .n_blocks_total = load->kv_blocks_total,
                               .n_blocks_kept = gw_router_n_blocks(router, worker),
                               .tokens_per_s = load->prefill_tokens_per_s},
                   .column = worker->column,
                   .local_prefill_tokens = load->local_prefill_tokens,
                   .role = worker->role,
                   .is_usable = !worker->is_draining && !worker->is_incomplete,
                   .is_full = worker->is_full};
}

/* ---- who comes and goes ----------------------------------------------------------------------------------------- */

static void copy_known(gw_worker *worker, const gw_worker *known) {
    worker->role = known->role;
    snprintf(worker->name, sizeof(worker->name), "%s", known->name);
    worker->name_hash = gw_strategy_hash(known->name);
    snprintf(worker->address, sizeof(worker->address), "%s", known->address);
    snprintf(worker->kv_address, sizeof(worker->kv_address), "%s", known->kv_address);
    worker->incarnation = known->incarnation;
    worker->model_hash = known->model_hash;
    worker->labels = known->labels;
    worker->is_draining = known->is_draining;
}

static void reserve(gw_router *router, uint32_t n) {
    router->workers = bt_realloc(router->workers, n, sizeof(gw_worker *));
    router->standings = bt_realloc(router->standings, n, sizeof(standing));
    router->candidates = bt_realloc(router->candidates, n, sizeof(uint32_t));
    router->figures = bt_realloc(router->figures, n, sizeof(gw_figures));
    router->costs = bt_realloc(router->costs, 2 * n, sizeof(double));
    router->cap_workers = n;
}

static void place(gw_router *router, gw_worker *worker, uint32_t at) {
    router->workers[at] = worker;
    worker->place = at;
    bt_map_put(&router->by_incarnation, key_of(worker->incarnation), at);
    refresh(router, worker);
}

gw_worker *gw_router_up(gw_router *router, const gw_worker *known) {
    gw_worker *worker = gw_router_worker(router, known->incarnation);
    if (worker != NULL) {
        copy_known(worker, known);
        refresh(router, worker);
        return worker;
    }
    if (router->n_workers == router->cap_workers) reserve(router, router->cap_workers * 2 + 8);
    worker = bt_calloc(1, sizeof(*worker));
    copy_known(worker, known);
    worker->is_incomplete = known->is_incomplete;
    worker->link = ++router->n_links;
    worker->column = gw_index_join(router->index);
    place(router, worker, router->n_workers++);
    return worker;
}

void gw_router_gone(gw_router *router, uint64_t incarnation) {
    uint32_t index = bt_map_get(&router->by_incarnation, key_of(incarnation));
    if (index == BT_MAP_NONE) return;
    bt_map_remove(&router->by_incarnation, key_of(incarnation));
    gw_worker *worker = router->workers[index];
    if (worker->column != GW_INDEX_NONE) gw_index_leave(router->index, worker->column);
    free(worker);
    router->n_workers--;
    router->version++;
    for (uint32_t i = index; i < router->n_workers; i++) place(router, router->workers[i + 1], i);
}

static void sum_add(gw_sum *sum, const gw_sum *share) {
    sum->n += share->n;
    sum->n_blocks += share->n_blocks;
    sum->n_tokens += share->n_tokens;
}

static void sum_take(gw_sum *sum, const gw_sum *share) {
    BT_ASSERT(sum->n >= share->n && sum->n_blocks >= share->n_blocks && sum->n_tokens >= share->n_tokens);
    sum->n -= share->n;
    sum->n_blocks -= share->n_blocks;
    sum->n_tokens -= share->n_tokens;
}

void gw_router_status(gw_router *router, uint64_t incarnation, const wire_load *load) {
    gw_worker *worker = gw_router_worker(router, incarnation);
    if (worker == NULL) return;
    worker->load = *load;
    worker->is_draining = load->is_draining != 0;
    worker->is_incomplete = load->is_incomplete != 0;
    worker->n_heard++;
    worker->is_full = false;
    if (worker->role == WIRE_ROLE_PREFILL) {
        sum_take(&worker->unseen, &worker->accepted);
    } else {
        worker->unseen = (gw_sum){0};
    }
    worker->accepted = (gw_sum){0};
    refresh(router, worker);
    gw_index_sweep(router->index);
}

bool gw_router_blocks(gw_router *router, uint64_t incarnation, const wire_blocks *blocks) {
    const gw_worker *worker = gw_router_worker(router, incarnation);
    if (worker == NULL || worker->column == GW_INDEX_NONE) return true;
    gw_index *index = router->index;
    uint32_t column = worker->column;
    bool has_room = true;
    for (uint32_t i = 0; i < blocks->n_gone; i++) gw_index_remove(index, column, &blocks->gone[i]);
    for (uint32_t i = 0; i < blocks->n_come && has_room; i++) {
        has_room = gw_index_n_blocks(index, column) < worker->load.kv_blocks_total ||
                   gw_index_has(index, column, &blocks->come[i]);
        if (has_room) gw_index_put(index, column, &blocks->come[i]);
    }
    gw_index_sweep(index);
    refresh(router, worker);
    return has_room;
}

uint64_t gw_router_model_hash(const gw_router *router) {
    return router->n_workers > 0 ? router->workers[0]->model_hash : 0;
}

bool gw_router_has_block(const gw_router *router, const gw_worker *worker, const wire_block_name *name) {
    return worker->column != GW_INDEX_NONE && gw_index_has(router->index, worker->column, name);
}

uint32_t gw_router_n_blocks(const gw_router *router, const gw_worker *worker) {
    return worker->column != GW_INDEX_NONE ? gw_index_n_blocks(router->index, worker->column) : 0;
}

void gw_router_draining(gw_router *router, uint64_t incarnation) {
    gw_worker *worker = gw_router_worker(router, incarnation);
    if (worker == NULL) return;
    worker->is_draining = true;
    refresh(router, worker);
}

void gw_router_full(gw_router *router, uint64_t incarnation) {
    gw_worker *worker = gw_router_worker(router, incarnation);
    if (worker == NULL) return;
    worker->is_full = true;
    refresh(router, worker);
}

uint64_t gw_router_version(const gw_router *router) { return router->version; }

/* ---- shares of load --------------------------------------------------------------------------------------------- */

static gw_sum share_of(const gw_booking *booking) { return (gw_sum){1, booking->n_blocks, booking->n_tokens}; }

/* NULL: nowhere, or what was there ended with its link. */
static gw_worker *worker_of(const gw_router *router, const gw_booking *booking) {
    gw_worker *worker = booking->incarnation != 0 ? gw_router_worker(router, booking->incarnation) : NULL;
    return worker != NULL && worker->link == booking->link ? worker : NULL;
}

void gw_router_book(gw_router *router, gw_booking *out, gw_worker *worker, uint32_t n_blocks, uint32_t n_tokens) {
    *out = (gw_booking){worker->incarnation, worker->link, n_blocks, n_tokens, false, worker->n_heard};
    gw_sum share = share_of(out);
    sum_add(&worker->own, &share);
    sum_add(&worker->unseen, &share);
    refresh(router, worker);
}

void gw_router_accepted(gw_router *router, gw_booking *booking) {
    gw_worker *worker = worker_of(router, booking);
    if (worker == NULL || booking->is_accepted || worker->role != WIRE_ROLE_PREFILL) return;
    booking->is_accepted = true;
    booking->n_heard = worker->n_heard;
    gw_sum share = share_of(booking);
    sum_add(&worker->accepted, &share);
}

/* Does `load` count it already? */
static bool is_seen(const gw_worker *worker, const gw_booking *booking) {
    bool counts = worker->role == WIRE_ROLE_DECODE || booking->is_accepted;
    return counts && worker->n_heard > booking->n_heard;
}

void gw_router_unbook(gw_router *router, gw_booking *booking) {
    gw_worker *worker = worker_of(router, booking);
    if (worker != NULL) {
        gw_sum share = share_of(booking);
        sum_take(&worker->own, &share);
        if (!is_seen(worker, booking)) {
            sum_take(&worker->unseen, &share);
            if (booking->is_accepted) sum_take(&worker->accepted, &share);
        }
        refresh(router, worker);
    }
    *booking = (gw_booking){0};
}

/* ---- who is there ----------------------------------------------------------------------------------------------- */

uint32_t gw_router_n_usable(const gw_router *router, wire_role role) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < router->n_workers; i++)
        n += router->standings[i].role == role && router->standings[i].is_usable;
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
    const standing *one = &router->standings[at];
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
        const standing *one = &router->standings[router->candidates[i]];
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
    const standing *one = &router->standings[at];
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
