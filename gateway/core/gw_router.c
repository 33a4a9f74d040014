/* The table of workers: who is up, their figures, this loop's shares of their load. */
#include "gateway/core/gw_router.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "gateway/core/gw_router_internal.h"

enum { MAX_BLOCKS = 1 << 24 }; /* a thousand million tokens' */

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
        (gw_standing){.figures = {.name_hash = worker->name_hash,
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
    router->standings = bt_realloc(router->standings, n, sizeof(gw_standing));
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
    for (uint32_t i = 0; i < blocks->n_gone; i++) {
        gw_index_ahead(index, blocks->gone, blocks->n_gone, i);
        gw_index_remove(index, column, &blocks->gone[i]);
    }
    for (uint32_t i = 0; i < blocks->n_come && has_room; i++) {
        gw_index_ahead(index, blocks->come, blocks->n_come, i);
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
