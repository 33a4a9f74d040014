/* Members by rank, and the rules of wrk_group.h. */
#include "worker/wrk_group.h"

#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"

enum { DEFAULT_RETRY_MS = 500, DEFAULT_QUIET_MS = 1000 };

static int64_t after_ms(int64_t now_ns, uint32_t ms) { return now_ns + (int64_t)ms * BT_NS_PER_MS; }

void wrk_group_init(wrk_group *group, const reg_worker *own, const wrk_group_options *options) {
    *group = (wrk_group){.options = *options, .own = *own, .members = bt_calloc(own->ep.size, sizeof(wrk_member))};
    if (group->options.retry_ms == 0) group->options.retry_ms = DEFAULT_RETRY_MS;
    if (group->options.quiet_ms == 0) group->options.quiet_ms = DEFAULT_QUIET_MS;
    group->own.ep.epoch = 0;
    group->own.ep.state = REG_RANK_WAITING;
}

void wrk_group_fini(wrk_group *group) {
    free(group->members);
    *group = (wrk_group){0};
}

static bool is_ours(const wrk_group *group, const reg_worker *worker) {
    const reg_worker *own = &group->own;
    return worker->incarnation != own->incarnation && worker->role == own->role &&
           worker->model_hash == own->model_hash && worker->ep.size == own->ep.size && worker->ep.rank < own->ep.size &&
           worker->ep.rank != own->ep.rank && strcmp(worker->ep.group, own->ep.group) == 0;
}

/* Who has left is still one that leaves: our connection to it may not have broken yet. */
void wrk_group_on_worker(wrk_group *group, reg_change change, const reg_worker *worker) {
    bool is_gone = change == REG_WORKER_LEFT || change == REG_WORKER_EXPIRED;
    for (uint32_t i = 0; i < group->own.ep.size; i++) { /* it may have been another rank before */
        wrk_member *member = &group->members[i];
        if (member->incarnation != worker->incarnation) continue;
        bool has_left = change == REG_WORKER_LEFT || (is_gone && member->is_draining);
        *member = (wrk_member){.is_draining = has_left};
    }
    if (is_gone || !is_ours(group, worker)) return;
    group->members[worker->ep.rank] = (wrk_member){worker->incarnation, worker->is_draining, worker->ep};
}

uint32_t wrk_group_n_announced(const wrk_group *group) {
    uint32_t n = 1;
    for (uint32_t i = 0; i < group->own.ep.size; i++) n += group->members[i].incarnation != 0;
    return n;
}

bool wrk_group_is_leaving(const wrk_group *group) {
    for (uint32_t i = 0; i < group->own.ep.size; i++) {
        if (group->members[i].is_draining) return true;
    }
    return false;
}

bool wrk_group_is_formed(const wrk_group *group) { return group->own.ep.state == REG_RANK_FORMED; }

bool wrk_group_is_complete(const wrk_group *group) {
    return wrk_group_is_formed(group) && !wrk_group_is_leaving(group);
}

/* ---- forming ---- */

/* The epoch that rank 0 shall form now, 0: none. */
static uint64_t epoch_to_lead(const wrk_group *group) {
    uint64_t epoch = group->own.ep.epoch;
    for (uint32_t i = 1; i < group->own.ep.size; i++) {
        if (group->members[i].ep.state != REG_RANK_WAITING) return 0;
        if (group->members[i].ep.epoch > epoch) epoch = group->members[i].ep.epoch;
    }
    return epoch == UINT64_MAX ? 0 : epoch + 1; /* that is nobody's honest epoch */
}

static uint64_t epoch_to_follow(const wrk_group *group) {
    const reg_rank *first = &group->members[0].ep;
    return first->state == REG_RANK_FORMING && first->epoch > group->own.ep.epoch ? first->epoch : 0;
}

bool wrk_group_begin(wrk_group *group, int64_t now_ns) {
    reg_rank *own = &group->own.ep;
    if (own->state != REG_RANK_WAITING || now_ns < group->retry_ns) return false;
    group->retry_ns = 0; /* only here: a deadline must stay until somebody has looked after it */
    if (group->own.is_draining || wrk_group_n_announced(group) < own->size || wrk_group_is_leaving(group)) return false;
    uint64_t epoch = own->rank == 0 ? epoch_to_lead(group) : epoch_to_follow(group);
    if (epoch == 0) return false;
    own->epoch = epoch;
    own->state = REG_RANK_FORMING;
    return true;
}

void wrk_group_formed(wrk_group *group) { group->own.ep.state = REG_RANK_FORMED; }

void wrk_group_failed(wrk_group *group, int64_t now_ns) {
    group->own.ep.state = REG_RANK_WAITING;
    group->retry_ns = after_ms(now_ns, group->options.retry_ms);
}

void wrk_group_lost(wrk_group *group) { group->own.ep.state = REG_RANK_WAITING; }

/* ---- leaving ---- */

void wrk_group_drain(wrk_group *group) { group->own.is_draining = true; }

void wrk_group_leave(wrk_group *group, int64_t now_ns) { group->quiet_ns = after_ms(now_ns, group->options.quiet_ms); }

void wrk_group_stepped(wrk_group *group, int64_t now_ns) {
    if (group->quiet_ns != 0) group->quiet_ns = after_ms(now_ns, group->options.quiet_ms);
}

bool wrk_group_is_needed(const wrk_group *group, int64_t now_ns) {
    return wrk_group_is_formed(group) && now_ns < group->quiet_ns;
}

int64_t wrk_group_deadline_ns(const wrk_group *group) {
    int64_t at_ns = group->own.ep.state == REG_RANK_WAITING ? group->retry_ns : group->quiet_ns;
    return at_ns != 0 ? at_ns : INT64_MAX;
}
