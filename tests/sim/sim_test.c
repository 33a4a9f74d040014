/* Many small worlds, each with its own cluster and failures; every one ends whole, and the same seed is the same
 * history. */
#include "common/core/test.h"
#include "tests/sim/sim_shrink.h"

static void add(uint64_t *sums, const void *more, size_t bytes) {
    const uint64_t *values = more;
    for (size_t i = 0; i < bytes / sizeof(uint64_t); i++) sums[i] += values[i];
}

static void check_groups(const sim_result *sum) {
    CHECK(sum->n_formed > 100 && sum->n_group_lost > 50 && sum->n_helped > 1000, "%llu formed, %llu lost, %llu helped",
          (unsigned long long)sum->n_formed, (unsigned long long)sum->n_group_lost, (unsigned long long)sum->n_helped);
    CHECK(sum->n_killed_waiting > 0 && sum->n_killed_forming > 0 && sum->n_killed_idle > 0 &&
              sum->n_killed_in_step > 0 && sum->n_killed_draining > 0,
          "ranks killed in every state: %llu waiting, %llu forming, %llu idle, %llu in a step, %llu draining",
          (unsigned long long)sum->n_killed_waiting, (unsigned long long)sum->n_killed_forming,
          (unsigned long long)sum->n_killed_idle, (unsigned long long)sum->n_killed_in_step,
          (unsigned long long)sum->n_killed_draining);
    CHECK(sum->n_redis_stalls > 0 && sum->n_reads_late > 0 && sum->n_leases_forgotten > 0, "the registry");
    CHECK(sum->n_not_formed > 0 && sum->n_dials_failed > 0 && sum->n_dials_refused > 0 && sum->n_rank_timeouts > 0,
          "%llu not formed, %llu dials failed, %llu refused, %llu timeouts", (unsigned long long)sum->n_not_formed,
          (unsigned long long)sum->n_dials_failed, (unsigned long long)sum->n_dials_refused,
          (unsigned long long)sum->n_rank_timeouts);
}

static void test_worlds_end_whole_and_every_failure_has_happened(void) {
    enum { N_WORLDS = 48, N_REQUESTS = 400 };
    sim_result sum = {0};
    for (uint64_t seed = 0; seed < N_WORLDS; seed++) {
        sim_config config = sim_config_random(seed, N_REQUESTS);
        sim_result result;
        sim_run(&config, &result);
        add((uint64_t *)&sum, &result, sizeof(sum));
    }
    CHECK(sum.n_finished > N_WORLDS * N_REQUESTS / 4, "%llu finished", (unsigned long long)sum.n_finished);
    CHECK(sum.n_crashes > 0 && sum.n_cuts > 0 && sum.n_drains > 0 && sum.n_damaged > 0 && sum.n_lost > 0, "failures");
    CHECK(sum.gateway.n_replays_lost > 0 && sum.gateway.n_replays_refused > 0 && sum.gateway.n_replays_late > 0 &&
              sum.gateway.n_replays_failed > 0,
          "every kind of replay");
    CHECK(sum.decode.n_preempted > 0 && sum.decode.n_recomputed > sum.decode.n_preempted,
          "%llu preempted, %llu positions computed again", (unsigned long long)sum.decode.n_preempted,
          (unsigned long long)sum.decode.n_recomputed);
    CHECK(sum.decode.n_local > 100 && sum.decode.n_local_tokens > sum.decode.n_local, "%llu prompts computed by decode",
          (unsigned long long)sum.decode.n_local);
    CHECK(sum.decode.n_commit_failed > 0 && sum.decode.n_lease_aborted > 0, "decode");
    CHECK(sum.prefill.n_prefix_hits > sum.prefill.n_prefix_queries / 100 &&
              sum.decode.n_prefix_hits > sum.decode.n_prefix_queries / 100,
          "both caches are used: %llu of %llu, %llu of %llu", (unsigned long long)sum.prefill.n_prefix_hits,
          (unsigned long long)sum.prefill.n_prefix_queries, (unsigned long long)sum.decode.n_prefix_hits,
          (unsigned long long)sum.decode.n_prefix_queries);
    CHECK(sum.decode.n_canceled_leased > 0 && sum.decode.n_canceled_waiting > 0 && sum.decode.n_canceled_running > 0,
          "cancels in every phase of decode");
    CHECK(sum.prefill.n_canceled_queued > 0 && sum.prefill.n_canceled_computing > 0 &&
              sum.prefill.n_canceled_computed > 0 && sum.prefill.n_canceled_committing > 0,
          "cancels in every phase of prefill");
    check_groups(&sum);
    CHECK(sum.gateway.n_queued > 100 && sum.gateway.n_queue_full > 0 && sum.gateway.n_queue_late > 0,
          "%llu queued, %llu times full, %llu for too long", (unsigned long long)sum.gateway.n_queued,
          (unsigned long long)sum.gateway.n_queue_full, (unsigned long long)sum.gateway.n_queue_late);
    CHECK(sum.prefill.n_reserve_refused > 0 && sum.prefill.n_decode_lost > 0 && sum.prefill.n_timeouts > 0, "prefill");
}

static void test_short_prompts_do_not_wait_for_long_ones(void) {
    enum { STEP_NS = 900000 }; /* of 64 rows: a prompt of 1000 tokens needs 16 of them */
    sim_config config = {.seed = 4,
                         .n_requests = 1000,
                         .n_gateways = 1,
                         .n_prefills = 1,
                         .n_decodes = 1,
                         .prefill_blocks = 800,
                         .decode_blocks = 800,
                         .max_requests = 200,
                         .max_batched_tokens = 64,
                         .max_batched_seqs = 16,
                         .max_num_seqs = 60,
                         .max_leases = 60,
                         .gateway_requests = 500,
                         .max_queued = 500,
                         .queue_ms = 60000,
                         .migration_limit = 3,
                         .max_prompt = 1000,
                         .max_output = 8,
                         .n_chats = 1,
                         .arrival_ns = 4 * (int64_t)BT_NS_PER_MS};
    sim_result result;
    sim_run(&config, &result);
    CHECK(result.n_short > 50, "%llu short ones", (unsigned long long)result.n_short);
    CHECK(result.max_short_wait_ns < 6 * STEP_NS, "one waited %llu us",
          (unsigned long long)result.max_short_wait_ns / 1000);
}

/* Prompts fit, what they grow to does not: many a sequence gives way, and its client sees a pause. */
static void test_preempted_sequences_end_as_if_nothing_had_happened(void) {
    sim_result sum = {0};
    for (uint64_t seed = 0; seed < 4; seed++) {
        const sim_config config = {.seed = seed,
                                   .n_requests = 150,
                                   .n_gateways = 1,
                                   .n_prefills = 1,
                                   .n_decodes = 1,
                                   .prefill_blocks = 200,
                                   .decode_blocks = 20,
                                   .max_requests = 64,
                                   .max_batched_tokens = 256,
                                   .max_batched_seqs = 16,
                                   .max_num_seqs = 16,
                                   .spare_rows = (uint32_t)seed * 40,
                                   .max_leases = 8,
                                   .gateway_requests = 300,
                                   .max_queued = 300,
                                   .queue_ms = 60000,
                                   .migration_limit = 0,
                                   .max_prompt = 200,
                                   .max_output = 900,
                                   .n_chats = 4,
                                   .has_prefix_cache = seed % 2 == 0,
                                   .long_percent = 90,
                                   .arrival_ns = 80 * (int64_t)BT_NS_PER_MS};
        sim_result result;
        sim_run(&config, &result);
        CHECK(result.n_finished == config.n_requests, "seed %llu: %llu of %u finished", (unsigned long long)seed,
              (unsigned long long)result.n_finished, config.n_requests);
        const gw_counters *g = &result.gateway; /* refused: prefill found no room for long; nobody who was taken */
        CHECK(result.decode.n_failed == 0 && g->n_replays_lost + g->n_replays_failed + g->n_replays_late == 0,
              "seed %llu: without a second attempt", (unsigned long long)seed);
        add((uint64_t *)&sum, &result, sizeof(sum));
    }
    CHECK(sum.decode.n_preempted > 20 && sum.decode.n_recomputed > 20 * 64, "%llu preempted, %llu recomputed",
          (unsigned long long)sum.decode.n_preempted, (unsigned long long)sum.decode.n_recomputed);
}

/* Both roles in groups that break up all the time, in the midst of steps, over prompts that begin alike: a block that a
 * lost step has half written would be found. */
static void test_lost_groups_leave_nothing_wrong_behind(void) {
    sim_result sum = {0};
    for (uint64_t seed = 1; seed < 12; seed += 2) {
        sim_config config = sim_config_random(seed, 800);
        config.prefill_ranks = config.decode_ranks = config.n_prefills = config.n_decodes = 2;
        config.prefill_blocks = config.decode_blocks = 80;
        config.has_prefix_cache = true;
        config.n_chats = 2;
        config.max_prompt = 500;
        config.local_tokens = 200;
        config.arrival_ns = 3 * (int64_t)BT_NS_PER_MS;
        config.fault_ns = 30 * (int64_t)BT_NS_PER_MS;
        sim_result result;
        sim_run(&config, &result);
        add((uint64_t *)&sum, &result, sizeof(sum));
    }
    CHECK(sum.n_group_lost > 20 && sum.gateway.n_replays_failed > 50, "%llu lost, %llu replays",
          (unsigned long long)sum.n_group_lost, (unsigned long long)sum.gateway.n_replays_failed);
}

static void test_a_seed_is_a_history(void) {
    for (uint64_t seed = 1; seed < 6; seed++) {
        sim_config config = sim_config_random(seed, 300);
        sim_result first, second;
        sim_run(&config, &first);
        sim_run(&config, &second);
        CHECK(first.history_hash == second.history_hash && first.n_events == second.n_events, "seed %llu",
              (unsigned long long)seed);
    }
}

/* The world fails when both of its knobs are on and enough requests come; everything else is in the way. */
static bool is_bad(const sim_config *config, void *context) {
    ++*(uint32_t *)context;
    return config->n_requests >= 37 && config->damage_ppm > 0 && config->n_decodes >= 2 && config->max_output >= 9;
}

static void test_shrinking_keeps_what_matters(void) {
    sim_config config = sim_config_random(6, 100000);
    config.damage_ppm = 1000;
    config.n_decodes = 4;
    config.max_output = 100;
    uint32_t n_asked = 0;
    sim_shrink(&config, is_bad, &n_asked);
    CHECK(is_bad(&config, &n_asked) && config.n_requests == 37, "%u requests", config.n_requests);
    CHECK(config.damage_ppm == 1 && config.n_decodes == 2 && config.max_output == 9, "%u ppm, %u decodes, %u tokens",
          config.damage_ppm, config.n_decodes, config.max_output);
    CHECK(config.fault_ns == 0 && config.loss_ppm == 0 && config.n_prefills == 1, "what does not matter is off");
    CHECK(n_asked < 2000, "asked %u times", n_asked);
}

int main(void) {
    test_shrinking_keeps_what_matters();
    test_worlds_end_whole_and_every_failure_has_happened();
    test_short_prompts_do_not_wait_for_long_ones();
    test_preempted_sequences_end_as_if_nothing_had_happened();
    test_lost_groups_leave_nothing_wrong_behind();
    test_a_seed_is_a_history();
    TEST_END();
}
