/* Helpers sleep until the first rank begins a step, go through it without rows, and end when the group does. */
#include "tools/run_group.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "kernels/exchange_local.h"

typedef struct {
    krn_model *model;
    ep_exchange *exchange;
    pthread_t thread;
    bool has_thread;
} rank;

struct run_group {
    krn_model *first;
    uint32_t n_ranks;
    rank ranks[]; /* [n_ranks]; the first has neither model nor thread */
};

static void *help(void *context) {
    rank *r = context;
    const krn_kv nothing = {.layout = krn_model_kv_layout(r->model, 0)};
    struct pollfd fd = {.fd = r->exchange->wait_fd(r->exchange), .events = POLLIN};
    bt_status status = BT_OK;
    while (status == BT_OK) {
        if (r->exchange->is_called(r->exchange))
            status = krn_forward(r->model, nothing, NULL, 0, NULL, NULL, NULL);
        else if (poll(&fd, 1, -1) < 0 && errno != EINTR)
            status = BT_INTERNAL;
    }
    ep_exchange_close(r->exchange);
    return NULL;
}

bt_status run_group_open(const krn_model_options *options, krn_model *first, run_group **out, bt_error *err) {
    enum { TIMEOUT_MS = 60000 };
    uint32_t n_ranks = options->n_ranks;
    run_group *group = bt_calloc(1, sizeof(*group) + n_ranks * sizeof(rank));
    ep_exchange *exchanges[EP_MAX_RANKS];
    const ep_limits limits = krn_model_ep_limits(first);
    group->first = first;
    group->n_ranks = n_ranks;
    bt_status status = BT_OK;
    for (uint32_t i = 1; i < n_ranks && status == BT_OK; i++) {
        krn_model_options of_rank = *options;
        of_rank.rank = i;
        status = krn_model_open(&of_rank, &group->ranks[i].model, err);
    }
    if (status == BT_OK) status = ep_local_open(&limits, n_ranks, 1, TIMEOUT_MS, exchanges, err);
    if (status != BT_OK) goto fail;
    for (uint32_t i = 0; i < n_ranks; i++) {
        group->ranks[i].exchange = exchanges[i];
        krn_model_set_exchange(i == 0 ? first : group->ranks[i].model, exchanges[i]);
    }
    for (uint32_t i = 1; i < n_ranks; i++) {
        int code = pthread_create(&group->ranks[i].thread, NULL, help, &group->ranks[i]);
        group->ranks[i].has_thread = code == 0;
        if (code == 0) continue;
        status = bt_fail(err, BT_INTERNAL, "no thread for rank %u: %s", i, strerror(code));
        goto fail;
    }
    *out = group;
    return BT_OK;
fail:
    run_group_close(group);
    return status;
}

void run_group_close(run_group *group) {
    if (group == NULL) return;
    krn_model_set_exchange(group->first, NULL);
    ep_exchange_close(group->ranks[0].exchange); /* the others notice */
    for (uint32_t i = 1; i < group->n_ranks; i++) {
        rank *r = &group->ranks[i];
        if (r->has_thread)
            pthread_join(r->thread, NULL);
        else
            ep_exchange_close(r->exchange);
        krn_model_close(r->model);
    }
    free(group);
}
