/* The exchange of threads: a mailbox per ordered pair of ranks and kind, each with one buffer, as exchange.h allows.
 *
 * The lock guards flags and labels; bytes are copied outside it, by the sender while the mailbox is empty, and read by
 * the receiver before it answers, which is before the sender may fill it again. A rank that closes early fails the
 * group. The last one out frees it. */
#include "kernels/exchange_local.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"

enum { ALIGN_BYTES = 64 };

typedef struct {
    bool is_full;
    uint64_t step;
    uint32_t layer, n_rows, n_pairs;
    void *rows;     /* activations, or results */
    ep_pair *pairs; /* of activations only */
} mailbox;

typedef struct group group;

typedef struct {
    ep_exchange api; /* first: what the caller holds */
    group *group;
    uint64_t step;     /* under the lock: peers ask for it */
    uint32_t *n_asked; /* [n_ranks]: pairs that post_rows sent there */
    int fd;            /* eventfd: readable while a peer is a step ahead, or the group has failed */
} member;

struct group {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    ep_limits limits;
    uint32_t n_ranks, n_open;
    int64_t timeout_ns;
    bool has_failed;
    mailbox *rows, *results; /* [from][to] */
    member *members;         /* [n_ranks] */
};

static mailbox *box(const group *g, mailbox *boxes, uint32_t from, uint32_t to) {
    return &boxes[(size_t)from * g->n_ranks + to];
}

static void wake(const member *m) { (void)!write(m->fd, &(uint64_t){1}, sizeof(uint64_t)); } /* full is readable too */

/* With the lock held. */
static bt_status group_fail(group *g) {
    if (!g->has_failed) {
        g->has_failed = true;
        pthread_cond_broadcast(&g->changed);
        for (uint32_t r = 0; r < g->n_ranks; r++) wake(&g->members[r]);
    }
    return BT_PEER_LOST;
}

static bt_status local_begin(ep_exchange *api) {
    member *m = (member *)api;
    group *g = m->group;
    uint64_t count;
    pthread_mutex_lock(&g->lock);
    bt_status status = g->has_failed ? BT_PEER_LOST : BT_OK;
    if (status == BT_OK) {
        m->step++;
        (void)!read(m->fd, &count, sizeof(count));
    }
    pthread_mutex_unlock(&g->lock);
    return status;
}

static bt_status check_empty(group *g, mailbox *boxes, uint32_t from) {
    pthread_mutex_lock(&g->lock);
    bt_status status = g->has_failed ? BT_PEER_LOST : BT_OK;
    for (uint32_t to = 0; to < g->n_ranks && status == BT_OK; to++) {
        if (to != from && box(g, boxes, from, to)->is_full) status = group_fail(g); /* called out of order */
    }
    pthread_mutex_unlock(&g->lock);
    return status;
}

/* Labels the sender's mailboxes and hands them over. */
static bt_status hand_over(member *m, mailbox *boxes, uint32_t layer) {
    group *g = m->group;
    pthread_mutex_lock(&g->lock);
    bt_status status = g->has_failed ? BT_PEER_LOST : BT_OK;
    for (uint32_t to = 0; to < g->n_ranks && status == BT_OK; to++) {
        if (to == m->api.rank) continue;
        mailbox *b = box(g, boxes, m->api.rank, to);
        b->is_full = true;
        b->step = m->step;
        b->layer = layer;
        if (g->members[to].step < m->step) wake(&g->members[to]);
    }
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
    return status;
}

static bool has_all(const group *g, mailbox *boxes, uint32_t to) {
    for (uint32_t from = 0; from < g->n_ranks; from++) {
        if (from != to && !box(g, boxes, from, to)->is_full) return false;
    }
    return true;
}

/* Waits for all mailboxes to this rank, empties them and checks their labels. */
static bt_status take_all(member *m, mailbox *boxes, uint32_t layer) {
    group *g = m->group;
    uint32_t rank = m->api.rank;
    int64_t deadline_ns = bt_now_ns() + g->timeout_ns;
    const struct timespec deadline = {deadline_ns / BT_NS_PER_S, deadline_ns % BT_NS_PER_S};
    pthread_mutex_lock(&g->lock);
    int code = 0;
    while (!g->has_failed && !has_all(g, boxes, rank) && code != ETIMEDOUT) {
        code = pthread_cond_timedwait(&g->changed, &g->lock, &deadline);
    }
    bt_status status = g->has_failed || !has_all(g, boxes, rank) ? group_fail(g) : BT_OK;
    for (uint32_t from = 0; from < g->n_ranks && status == BT_OK; from++) {
        mailbox *b = box(g, boxes, from, rank);
        if (from == rank) continue;
        b->is_full = false;
        if (b->step != m->step || b->layer != layer) status = group_fail(g);
    }
    pthread_mutex_unlock(&g->lock);
    return status;
}

static bt_status local_post_rows(ep_exchange *api, uint32_t layer, const void *x, const ep_rows_out *out) {
    member *m = (member *)api;
    group *g = m->group;
    bt_status status = check_empty(g, g->rows, api->rank);
    if (status != BT_OK) return status;
    for (uint32_t to = 0; to < g->n_ranks; to++) {
        if (to == api->rank) continue;
        mailbox *b = box(g, g->rows, api->rank, to);
        BT_ASSERT(out[to].n_rows <= g->limits.max_rows && out[to].n_pairs <= g->limits.max_pairs);
        b->n_rows = out[to].n_rows;
        b->n_pairs = m->n_asked[to] = out[to].n_pairs;
        for (uint32_t i = 0; i < b->n_rows; i++) {
            memcpy((uint8_t *)b->rows + (size_t)i * g->limits.row_bytes,
                   (const uint8_t *)x + (size_t)out[to].rows[i] * g->limits.row_bytes, g->limits.row_bytes);
        }
        if (b->n_pairs > 0) memcpy(b->pairs, out[to].pairs, b->n_pairs * sizeof(ep_pair));
    }
    return hand_over(m, g->rows, layer);
}

static bt_status local_take_rows(ep_exchange *api, uint32_t layer, ep_rows_in *in) {
    member *m = (member *)api;
    group *g = m->group;
    bt_status status = take_all(m, g->rows, layer);
    for (uint32_t from = 0; from < g->n_ranks && status == BT_OK; from++) {
        const mailbox *b = box(g, g->rows, from, api->rank);
        if (from != api->rank) in[from] = (ep_rows_in){b->rows, b->pairs, b->n_rows, b->n_pairs};
    }
    return status;
}

static bt_status local_post_results(ep_exchange *api, uint32_t layer, const float *y, const ep_results_out *out) {
    member *m = (member *)api;
    group *g = m->group;
    bt_status status = check_empty(g, g->results, api->rank);
    if (status != BT_OK) return status;
    size_t n = g->limits.result_elements;
    for (uint32_t to = 0; to < g->n_ranks; to++) {
        if (to == api->rank) continue;
        mailbox *b = box(g, g->results, api->rank, to);
        BT_ASSERT(out[to].n_rows <= g->limits.max_pairs);
        b->n_rows = out[to].n_rows;
        for (uint32_t i = 0; i < b->n_rows; i++) {
            memcpy((float *)b->rows + i * n, y + out[to].rows[i] * n, n * sizeof(float));
        }
    }
    return hand_over(m, g->results, layer);
}

static bt_status local_take_results(ep_exchange *api, uint32_t layer, const float **in) {
    member *m = (member *)api;
    group *g = m->group;
    bt_status status = take_all(m, g->results, layer);
    for (uint32_t from = 0; from < g->n_ranks && status == BT_OK; from++) {
        const mailbox *b = box(g, g->results, from, api->rank);
        if (from == api->rank) continue;
        in[from] = b->rows;
        if (b->n_rows != m->n_asked[from]) {
            api->fail(api);
            status = BT_PEER_LOST;
        }
    }
    return status;
}

static bool local_is_called(ep_exchange *api) {
    member *m = (member *)api;
    group *g = m->group;
    pthread_mutex_lock(&g->lock);
    bool is_called = g->has_failed;
    for (uint32_t r = 0; r < g->n_ranks; r++) is_called = is_called || g->members[r].step > m->step;
    pthread_mutex_unlock(&g->lock);
    return is_called;
}

static int local_wait_fd(ep_exchange *api) { return ((member *)api)->fd; }

static void local_fail(ep_exchange *api) {
    group *g = ((member *)api)->group;
    pthread_mutex_lock(&g->lock);
    group_fail(g);
    pthread_mutex_unlock(&g->lock);
}

static void group_free(group *g) {
    for (size_t i = 0; i < (size_t)g->n_ranks * g->n_ranks; i++) {
        free(g->rows[i].rows);
        free(g->rows[i].pairs);
        free(g->results[i].rows);
    }
    for (uint32_t r = 0; r < g->n_ranks; r++) {
        free(g->members[r].n_asked);
        if (g->members[r].fd >= 0) close(g->members[r].fd);
    }
    free(g->rows);
    free(g->results);
    free(g->members);
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->lock);
    free(g);
}

static void local_close(ep_exchange *api) {
    group *g = ((member *)api)->group;
    pthread_mutex_lock(&g->lock);
    group_fail(g);
    bool is_last = --g->n_open == 0;
    pthread_mutex_unlock(&g->lock);
    if (is_last) group_free(g);
}

static void mailboxes_open(group *g) {
    const ep_limits *l = &g->limits;
    g->rows = bt_calloc((size_t)g->n_ranks * g->n_ranks, sizeof(mailbox));
    g->results = bt_calloc((size_t)g->n_ranks * g->n_ranks, sizeof(mailbox));
    for (uint32_t i = 0; i < g->n_ranks * g->n_ranks; i++) {
        if (i / g->n_ranks == i % g->n_ranks) continue;
        g->rows[i].rows = bt_calloc_aligned((size_t)l->max_rows * l->row_bytes, ALIGN_BYTES);
        g->rows[i].pairs = bt_calloc(l->max_pairs, sizeof(ep_pair));
        g->results[i].rows = bt_calloc_aligned((size_t)l->max_pairs * l->result_elements * sizeof(float), ALIGN_BYTES);
    }
}

bt_status ep_local_open(const ep_limits *limits, uint32_t n_ranks, uint64_t epoch, uint32_t timeout_ms,
                        ep_exchange **out, bt_error *err) {
    group *g = bt_calloc(1, sizeof(*g));
    g->limits = *limits;
    g->n_ranks = g->n_open = n_ranks;
    g->timeout_ns = (int64_t)timeout_ms * BT_NS_PER_MS;
    g->members = bt_calloc(n_ranks, sizeof(*g->members));
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    mailboxes_open(g);
    bool has_fds = true;
    for (uint32_t r = 0; r < n_ranks; r++) {
        member *m = &g->members[r];
        m->group = g;
        m->n_asked = bt_calloc(n_ranks, sizeof(uint32_t));
        m->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        has_fds = has_fds && m->fd >= 0;
        m->api = (ep_exchange){r,
                               n_ranks,
                               epoch,
                               local_begin,
                               local_post_rows,
                               local_take_rows,
                               local_post_results,
                               local_take_results,
                               local_is_called,
                               local_wait_fd,
                               local_fail,
                               local_close};
    }
    if (!has_fds) {
        group_free(g);
        return bt_fail(err, BT_INTERNAL, "no event descriptors for %u ranks: %s", n_ranks, strerror(errno));
    }
    for (uint32_t r = 0; r < n_ranks; r++) out[r] = &g->members[r].api;
    return BT_OK;
}
