/* Ranks that hear of each other in any order form one group under one epoch, and again after any of them is lost. */
#include <stdio.h>
#include <string.h>

#include "common/core/clock.h"
#include "common/core/test.h"
#include "worker/wrk_group.h"

enum { N = 3, RETRY_MS = 30, QUIET_MS = 50 };

static const wrk_group_options options = {RETRY_MS, QUIET_MS};
static uint64_t n_incarnations;
static int64_t now_ns = BT_NS_PER_S;

static reg_worker worker_of(uint32_t rank) {
    reg_worker worker = {.role = WIRE_ROLE_DECODE, .incarnation = ++n_incarnations, .model_hash = 7};
    snprintf(worker.name, sizeof(worker.name), "decode-%u", rank);
    worker.ep = (reg_rank){.group = "decode", .rank = rank, .size = N};
    snprintf(worker.ep.address, sizeof(worker.ep.address), "127.0.0.1:%u", 7000 + rank);
    return worker;
}

static void tell(wrk_group *groups, reg_change change, const reg_worker *worker) {
    for (uint32_t i = 0; i < N; i++) wrk_group_on_worker(&groups[i], change, worker);
}

static void announce(wrk_group *groups, uint32_t rank) { tell(groups, REG_WORKER_CHANGED, &groups[rank].own); }

static void open_all(wrk_group *groups) {
    for (uint32_t i = 0; i < N; i++) {
        const reg_worker worker = worker_of(i);
        wrk_group_init(&groups[i], &worker, &options);
    }
}

static void close_all(wrk_group *groups) {
    for (uint32_t i = 0; i < N; i++) wrk_group_fini(&groups[i]);
}

/* Everybody waits and is announced: rank 0 leads, the others follow, the group is formed. */
static void form(wrk_group *groups, uint64_t epoch) {
    for (uint32_t i = 1; i < N; i++) CHECK(!wrk_group_begin(&groups[i], now_ns), "rank %u does not lead", i);
    CHECK(wrk_group_begin(&groups[0], now_ns) && groups[0].own.ep.epoch == epoch, "epoch %llu",
          (unsigned long long)groups[0].own.ep.epoch);
    CHECK(!wrk_group_begin(&groups[0], now_ns), "once");
    announce(groups, 0);
    for (uint32_t i = 1; i < N; i++) {
        CHECK(wrk_group_begin(&groups[i], now_ns) && groups[i].own.ep.epoch == epoch, "rank %u follows", i);
        announce(groups, i);
    }
    for (uint32_t i = 0; i < N; i++) {
        wrk_group_formed(&groups[i]);
        announce(groups, i);
        CHECK(!wrk_group_begin(&groups[i], now_ns), "formed is formed");
    }
}

static void restart(wrk_group *groups, uint32_t rank) {
    const reg_worker again = worker_of(rank);
    wrk_group_fini(&groups[rank]);
    wrk_group_init(&groups[rank], &again, &options);
    for (uint32_t i = 0; i < N; i++) { /* it reads what is there */
        wrk_group_on_worker(&groups[rank], REG_WORKER_UP, &groups[i].own);
    }
    announce(groups, rank);
}

static void a_group_forms_when_all_are_announced(void) {
    wrk_group groups[N];
    open_all(groups);
    for (uint32_t i = 0; i + 1 < N; i++) {
        announce(groups, i);
        CHECK(!wrk_group_begin(&groups[0], now_ns) && wrk_group_n_announced(&groups[0]) == i + 1, "%u are not enough",
              i + 1);
    }
    announce(groups, N - 1);
    CHECK(strcmp(groups[2].members[1].ep.address, "127.0.0.1:7001") == 0, "%s", groups[2].members[1].ep.address);
    form(groups, 1);
    close_all(groups);
}

static void a_lost_rank_is_waited_for_under_a_new_epoch(void) {
    for (uint32_t lost = 0; lost < N; lost++) {
        wrk_group groups[N];
        open_all(groups);
        for (uint32_t i = 0; i < N; i++) announce(groups, i);
        form(groups, 1);
        for (uint32_t i = 0; i < N; i++) {
            if (i == lost) continue;
            wrk_group_lost(&groups[i]);
            announce(groups, i);
            CHECK(!wrk_group_begin(&groups[i], now_ns), "rank %u is announced, but not there", lost);
        }
        tell(groups, REG_WORKER_EXPIRED, &groups[lost].own);
        for (uint32_t i = 0; i < N; i++) CHECK(i == lost || !wrk_group_begin(&groups[i], now_ns), "one is missing");
        restart(groups, lost);
        form(groups, 2);
        close_all(groups);
    }
}

static void an_epoch_that_came_to_nothing_is_not_used_again(void) {
    wrk_group groups[N];
    open_all(groups);
    for (uint32_t i = 0; i < N; i++) announce(groups, i);
    CHECK(wrk_group_begin(&groups[0], now_ns), "begins");
    announce(groups, 0);
    CHECK(wrk_group_begin(&groups[1], now_ns), "one follows"); /* the other one is late */
    announce(groups, 1);
    wrk_group_lost(&groups[0]);
    announce(groups, 0);
    CHECK(!wrk_group_begin(&groups[0], now_ns), "rank 1 still tries");
    CHECK(!wrk_group_begin(&groups[2], now_ns), "what rank 0 gave up is not followed");
    wrk_group_lost(&groups[1]);
    announce(groups, 1);
    form(groups, 2);
    for (uint32_t i = 0; i < N; i++) wrk_group_lost(&groups[i]);
    restart(groups, 0); /* knows of no epoch by itself */
    announce(groups, 1);
    announce(groups, 2);
    form(groups, 3);
    close_all(groups);
}

static void who_leaves_is_not_counted_on(void) {
    wrk_group groups[N];
    open_all(groups);
    for (uint32_t i = 0; i < N; i++) announce(groups, i);
    groups[1].own.is_draining = true;
    announce(groups, 1);
    CHECK(wrk_group_is_leaving(&groups[0]) && !wrk_group_is_leaving(&groups[1]), "the others know");
    CHECK(!wrk_group_begin(&groups[0], now_ns), "no group with one that leaves");
    tell(groups, REG_WORKER_LEFT, &groups[1].own);
    CHECK(wrk_group_is_leaving(&groups[0]) && wrk_group_n_announced(&groups[0]) == N - 1, "it has left");
    restart(groups, 1);
    form(groups, 1);
    close_all(groups);
}

/* Its announcement may go before its connection does: what was taken in between would be lost with the group. */
static void who_has_left_is_not_counted_on_until_another_takes_its_rank(void) {
    for (reg_change change = REG_WORKER_LEFT; change <= REG_WORKER_EXPIRED; change++) {
        wrk_group groups[N];
        open_all(groups);
        for (uint32_t i = 0; i < N; i++) announce(groups, i);
        form(groups, 1);
        groups[1].own.is_draining = true;
        announce(groups, 1);
        tell(groups, change, &groups[1].own);
        CHECK(wrk_group_is_formed(&groups[0]) && !wrk_group_is_complete(&groups[0]), "change %d", (int)change);
        restart(groups, 1);
        CHECK(!wrk_group_is_leaving(&groups[0]), "another one is there");
        tell(groups, REG_WORKER_EXPIRED, &groups[1].own);
        CHECK(wrk_group_is_complete(&groups[0]), "a lease that ran out says nothing: Redis may have lost it");
        close_all(groups);
    }
}

static void strangers_are_ignored(void) {
    wrk_group groups[N];
    open_all(groups);
    for (uint32_t i = 0; i < N; i++) {
        reg_worker stranger = worker_of(1);
        announce(groups, 0);
        announce(groups, 2);
        if (i == 0) stranger.role = WIRE_ROLE_PREFILL;
        if (i == 1) stranger.model_hash = 8;
        if (i == 2) snprintf(stranger.ep.group, sizeof(stranger.ep.group), "other");
        tell(groups, REG_WORKER_UP, &stranger);
        stranger = worker_of(1);
        stranger.ep.size = N + i + 1;
        stranger.ep.rank = N + i;
        tell(groups, REG_WORKER_UP, &stranger);
        stranger = worker_of(0); /* our own rank, to rank 0 */
        wrk_group_on_worker(&groups[0], REG_WORKER_UP, &stranger);
        CHECK(wrk_group_n_announced(&groups[0]) == 2 && !wrk_group_begin(&groups[0], now_ns), "stranger %u counts", i);
    }
    announce(groups, 1);
    form(groups, 1);
    groups[1].own.ep.epoch = UINT64_MAX; /* a lie must not wrap around */
    for (uint32_t i = 0; i < N; i++) wrk_group_lost(&groups[i]);
    for (uint32_t i = 0; i < N; i++) announce(groups, i);
    CHECK(!wrk_group_begin(&groups[0], now_ns), "no epoch is above that");
    close_all(groups);
}

static void time_passes_after_an_attempt_that_failed_and_none_after_a_loss(void) {
    wrk_group groups[N];
    open_all(groups);
    for (uint32_t i = 0; i < N; i++) announce(groups, i);
    CHECK(wrk_group_deadline_ns(&groups[0]) == INT64_MAX, "it waits for others");
    CHECK(wrk_group_begin(&groups[0], now_ns), "begins");
    announce(groups, 0);
    CHECK(wrk_group_begin(&groups[1], now_ns), "follows");
    wrk_group_failed(&groups[1], now_ns);
    CHECK(!wrk_group_begin(&groups[1], wrk_group_deadline_ns(&groups[1])), "not again, though rank 0 still tries");
    wrk_group_failed(&groups[0], now_ns);
    announce(groups, 0);
    announce(groups, 1);
    int64_t until_ns = now_ns + RETRY_MS * BT_NS_PER_MS;
    now_ns = until_ns - 1;
    CHECK(!wrk_group_begin(&groups[0], now_ns) && wrk_group_deadline_ns(&groups[0]) == until_ns, "not before");
    now_ns = until_ns + 1;
    CHECK(wrk_group_deadline_ns(&groups[0]) == until_ns, "a deadline stays until somebody has looked");
    form(groups, 2);
    CHECK(wrk_group_deadline_ns(&groups[0]) == INT64_MAX, "then it is over");
    for (uint32_t i = 0; i < N; i++) wrk_group_lost(&groups[i]);
    for (uint32_t i = 0; i < N; i++) announce(groups, i);
    form(groups, 3);
    close_all(groups);
}

static void who_drains_begins_nothing_and_asks_nobody_to_wake_it(void) {
    wrk_group groups[N];
    open_all(groups);
    for (uint32_t i = 0; i < N; i++) announce(groups, i);
    CHECK(wrk_group_begin(&groups[0], now_ns), "begins");
    wrk_group_failed(&groups[0], now_ns);
    wrk_group_drain(&groups[0]);
    now_ns += RETRY_MS * BT_NS_PER_MS;
    CHECK(!wrk_group_begin(&groups[0], now_ns), "it leaves");
    CHECK(wrk_group_deadline_ns(&groups[0]) == INT64_MAX, "nothing to wait for");
    wrk_group_leave(&groups[0], now_ns);
    CHECK(!wrk_group_is_needed(&groups[0], now_ns), "nobody counts on a rank without a group");
    close_all(groups);
}

static void who_drains_helps_until_the_others_are_quiet(void) {
    wrk_group groups[N];
    open_all(groups);
    for (uint32_t i = 0; i < N; i++) announce(groups, i);
    form(groups, 1);
    CHECK(wrk_group_is_complete(&groups[2]), "it takes requests");
    wrk_group_drain(&groups[1]);
    announce(groups, 1);
    CHECK(!wrk_group_is_complete(&groups[2]) && wrk_group_is_formed(&groups[2]), "nothing new, but steps");
    wrk_group_stepped(&groups[1], now_ns);
    CHECK(wrk_group_deadline_ns(&groups[1]) == INT64_MAX, "it has work of its own");
    wrk_group_leave(&groups[1], now_ns);
    int64_t quiet_ns = QUIET_MS * BT_NS_PER_MS;
    CHECK(wrk_group_deadline_ns(&groups[1]) == now_ns + quiet_ns, "when it may go");
    CHECK(wrk_group_is_needed(&groups[1], now_ns + quiet_ns - 1), "others may have something");
    now_ns += quiet_ns - 1;
    wrk_group_stepped(&groups[1], now_ns);
    CHECK(wrk_group_is_needed(&groups[1], now_ns + quiet_ns - 1), "they had");
    CHECK(!wrk_group_is_needed(&groups[1], now_ns + quiet_ns), "quiet");
    wrk_group_lost(&groups[1]);
    CHECK(!wrk_group_is_needed(&groups[1], now_ns), "the group is over anyway");
    close_all(groups);
}

int main(void) {
    a_group_forms_when_all_are_announced();
    a_lost_rank_is_waited_for_under_a_new_epoch();
    an_epoch_that_came_to_nothing_is_not_used_again();
    who_leaves_is_not_counted_on();
    who_has_left_is_not_counted_on_until_another_takes_its_rank();
    strangers_are_ignored();
    time_passes_after_an_attempt_that_failed_and_none_after_a_loss();
    who_drains_begins_nothing_and_asks_nobody_to_wake_it();
    who_drains_helps_until_the_others_are_quiet();
    TEST_END();
}
