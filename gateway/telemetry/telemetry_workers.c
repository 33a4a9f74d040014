/* An open-addressed table that only grows: readers walk it without a lock, who adds takes one. */
#include "gateway/telemetry/telemetry_workers.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "gateway/api/api_json.h"
#include "gateway/telemetry/telemetry_labels.h"

enum { N_SLOTS = 2 * GW_CAP_WORKERS, FORGET_AFTER = 60 };

typedef enum { WORKER_GONE, WORKER_READY, WORKER_DRAINING, WORKER_INCOMPLETE } worker_state;
static const char *const state_names[] = {"gone", "ready", "draining", "incomplete"};

typedef struct {
    wire_role role;
    char name[WIRE_MAX_NAME + 1];
    bt_series *selected, *up, *running, *waiting, *kv_usage;
    atomic_int state;
    atomic_uint n_unseen; /* looks since it was there; FORGET_AFTER: not shown */
} record;

struct gw_workers {
    bt_metrics *metrics;
    pthread_mutex_t lock; /* to add */
    uint32_t n_records;
    _Atomic(record *) slots[N_SLOTS]; /* owned */
};

gw_workers *gw_workers_open(bt_metrics *metrics) {
    gw_workers *workers = bt_calloc(1, sizeof *workers);
    workers->metrics = metrics;
    pthread_mutex_init(&workers->lock, NULL);
    return workers;
}

void gw_workers_close(gw_workers *workers) {
    if (workers == NULL) return;
    for (uint32_t i = 0; i < N_SLOTS; i++) free(atomic_load(&workers->slots[i]));
    pthread_mutex_destroy(&workers->lock);
    free(workers);
}

/* ---- the table ------------------------------------------------------------------------------------------------------
 */

static const char *role_name(wire_role role) { return role == WIRE_ROLE_PREFILL ? "prefill" : "decode"; }

/* FNV-1a. */
static uint32_t hash_of(wire_role role, const char *name) {
    uint32_t hash = 2166136261u ^ role;
    for (; *name != 0; name++) hash = (hash ^ (uint8_t)*name) * 16777619u;
    return hash;
}

/* The name's slot, or the empty one where it belongs; the table is never full. */
static uint32_t slot_of(const gw_workers *workers, wire_role role, const char *name) {
    uint32_t slot = hash_of(role, name) % N_SLOTS;
    for (;; slot = (slot + 1) % N_SLOTS) {
        const record *r = atomic_load_explicit(&workers->slots[slot], memory_order_acquire);
        if (r == NULL || (r->role == role && strcmp(r->name, name) == 0)) return slot;
    }
}

static void open_series(const gw_workers *workers, record *r) {
    bt_buf labels = {0};
    bt_buf_printf(&labels, "role=\"%s\",worker=\"", role_name(r->role));
    gw_label_put(&labels, r->name);
    bt_buf_puts(&labels, "\"");
    const char *text = bt_buf_text(&labels);
    r->selected = bt_metrics_series(workers->metrics, BT_METRIC_SELECTED, text);
    r->up = bt_metrics_series(workers->metrics, BT_METRIC_WORKER_UP, text);
    r->running = bt_metrics_series(workers->metrics, BT_METRIC_WORKER_RUNNING, text);
    r->waiting = bt_metrics_series(workers->metrics, BT_METRIC_WORKER_WAITING, text);
    r->kv_usage = bt_metrics_series(workers->metrics, BT_METRIC_WORKER_KV_USAGE, text);
    bt_buf_fini(&labels);
}

static void show(const record *r, bool is_shown) {
    bt_series *const all[] = {r->selected, r->up, r->running, r->waiting, r->kv_usage};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) bt_series_show(all[i], is_shown);
}

/* NULL: there are too many. */
static record *find_or_add(gw_workers *workers, wire_role role, const char *name) {
    record *found = atomic_load_explicit(&workers->slots[slot_of(workers, role, name)], memory_order_acquire);
    if (found != NULL) return found;
    pthread_mutex_lock(&workers->lock);
    uint32_t slot = slot_of(workers, role, name);
    found = atomic_load(&workers->slots[slot]);
    if (found == NULL && workers->n_records < GW_CAP_WORKERS) {
        workers->n_records++;
        found = bt_calloc(1, sizeof *found);
        found->role = role;
        snprintf(found->name, sizeof found->name, "%s", name);
        open_series(workers, found);
        atomic_store_explicit(&workers->slots[slot], found, memory_order_release);
    }
    pthread_mutex_unlock(&workers->lock);
    return found;
}

void gw_workers_served(gw_workers *workers, wire_role role, const char *name) {
    if (name[0] == 0) return;
    record *r = find_or_add(workers, role, name);
    if (r != NULL) bt_series_add(r->selected, 1);
}

/* ---- once a second --------------------------------------------------------------------------------------------------
 */

typedef struct {
    gw_workers *workers;
    gw_sample *sample;
    double n_blocks[2], n_used_blocks[2]; /* prefill, decode */
} look;

static double share(double part, double whole) { return whole > 0 ? part / whole : 0; }

static bool look_at(void *context, const gw_worker *worker) {
    look *l = context;
    const wire_load *load = &worker->load;
    bool is_decode = worker->role == WIRE_ROLE_DECODE;
    *(is_decode ? &l->sample->decode_running : &l->sample->prefill_running) += load->running;
    *(is_decode ? &l->sample->decode_waiting : &l->sample->prefill_waiting) += load->waiting;
    l->n_blocks[is_decode] += load->kv_blocks_total;
    l->n_used_blocks[is_decode] += load->kv_blocks_used;
    record *r = find_or_add(l->workers, worker->role, worker->name);
    if (r == NULL) return true;
    if (atomic_load(&r->n_unseen) >= FORGET_AFTER) show(r, true);
    worker_state state = worker->is_draining     ? WORKER_DRAINING
                         : worker->is_incomplete ? WORKER_INCOMPLETE
                                                 : WORKER_READY;
    atomic_store(&r->state, (int)state);
    atomic_store(&r->n_unseen, 0);
    bt_series_set(r->up, state == WORKER_READY);
    bt_series_set(r->running, load->running);
    bt_series_set(r->waiting, load->waiting);
    bt_series_set(r->kv_usage, share(load->kv_blocks_used, load->kv_blocks_total));
    return true;
}

/* Who was not seen in the walk that follows keeps a count over 0. */
static void age(gw_workers *workers) {
    for (uint32_t i = 0; i < N_SLOTS; i++) {
        record *r = atomic_load_explicit(&workers->slots[i], memory_order_acquire);
        if (r != NULL && atomic_load(&r->n_unseen) < FORGET_AFTER) atomic_fetch_add(&r->n_unseen, 1);
    }
}

static void bury(gw_workers *workers) {
    for (uint32_t i = 0; i < N_SLOTS; i++) {
        record *r = atomic_load_explicit(&workers->slots[i], memory_order_acquire);
        if (r == NULL || atomic_load(&r->n_unseen) == 0) continue;
        atomic_store(&r->state, WORKER_GONE);
        bt_series *const zero[] = {r->up, r->running, r->waiting, r->kv_usage};
        for (size_t k = 0; k < sizeof zero / sizeof *zero; k++) bt_series_set(zero[k], 0);
        if (atomic_load(&r->n_unseen) == FORGET_AFTER) show(r, false);
    }
}

void gw_workers_look(gw_workers *workers, const gw_router *router, gw_sample *sample) {
    look l = {.workers = workers, .sample = sample};
    age(workers);
    gw_router_each(router, look_at, &l);
    bury(workers);
    sample->prefill_kv += share(l.n_used_blocks[0], l.n_blocks[0]);
    sample->decode_kv += share(l.n_used_blocks[1], l.n_blocks[1]);
}

/* ---- for the dashboard ----------------------------------------------------------------------------------------------
 */

void gw_workers_write(gw_workers *workers, bt_buf *out) {
    const char *comma = "";
    bt_buf_puts(out, "[");
    for (uint32_t i = 0; i < N_SLOTS; i++) {
        const record *r = atomic_load_explicit(&workers->slots[i], memory_order_acquire);
        if (r == NULL || atomic_load(&r->n_unseen) >= FORGET_AFTER) continue;
        bt_buf_printf(out, "%s{\"role\":\"%s\",\"state\":\"%s\",\"name\":", comma, role_name(r->role),
                      state_names[atomic_load(&r->state)]);
        gw_json_put_string(out, r->name, strlen(r->name));
        bt_buf_printf(out, ",\"running\":%.0f,\"waiting\":%.0f,\"kv\":%.4g,\"requests\":%.0f}",
                      bt_series_value(r->running), bt_series_value(r->waiting), bt_series_value(r->kv_usage),
                      bt_series_value(r->selected));
        comma = ",";
    }
    bt_buf_puts(out, "]");
}
