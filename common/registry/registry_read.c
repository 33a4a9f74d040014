/* One look at the cluster, for a tool that ends after it: a watcher until its first list is complete. */
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/registry/registry_internal.h"

typedef struct {
    reg_worker *workers; /* owned */
    size_t n_workers;
    bool is_complete;
} look;

static void on_worker(void *context, reg_change change, const reg_worker *worker) {
    look *self = context;
    size_t i = 0;
    while (i < self->n_workers && strcmp(self->workers[i].name, worker->name) != 0) i++;
    if (change == REG_WORKER_LEFT || change == REG_WORKER_EXPIRED) {
        if (i < self->n_workers) self->workers[i] = self->workers[--self->n_workers];
        return;
    }
    if (i == self->n_workers) self->workers = bt_realloc(self->workers, ++self->n_workers, sizeof(reg_worker));
    self->workers[i] = *worker;
}

static void on_list(void *context) { ((look *)context)->is_complete = true; }

static int compare_names(const void *a, const void *b) {
    return strverscmp(((const reg_worker *)a)->name, ((const reg_worker *)b)->name);
}

bt_status reg_workers_read(const char *redis, uint32_t timeout_ms, reg_worker **out, size_t *n_out, bt_error *err) {
    enum { TICK_MS = 50 };
    look self = {0};
    reg_poll *poll = NULL;
    reg_watcher *watcher = NULL;
    bt_status status = reg_poll_open(&poll, err);
    if (status != BT_OK) return status;
    const reg_loop loop = reg_poll_loop(poll);
    const reg_watcher_config config = {.redis = redis, .on_worker = on_worker, .on_list = on_list, .context = &self};
    status = reg_watcher_open(&config, &loop, &watcher, err);
    int64_t until_ns = bt_now_ns() + (int64_t)timeout_ms * BT_NS_PER_MS;
    while (status == BT_OK && !self.is_complete) {
        if (bt_now_ns() > until_ns)
            status =
                bt_fail(err, BT_TIMEOUT, "Redis at %.200s gave no list of workers within %u ms", redis, timeout_ms);
        reg_poll_run_once(poll, TICK_MS);
        reg_watcher_tick(watcher);
    }
    reg_watcher_close(watcher);
    reg_poll_close(poll);
    if (status != BT_OK) {
        free(self.workers);
        return status;
    }
    if (self.n_workers > 0) qsort(self.workers, self.n_workers, sizeof(reg_worker), compare_names);
    *out = self.workers;
    *n_out = self.n_workers;
    return BT_OK;
}
