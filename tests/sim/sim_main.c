/* sim: worlds from seeds. One: what happened in it, and the hash of its history. --worlds: many, one seed after
 * another, each in a process of its own; the first that fails is shrunk. --shrink: the smallest world found that still
 * fails, as a command that replays it. */
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim_shrink.h"

enum { WORLD_SECONDS = 300 };

static int usage(void) {
    fprintf(stderr,
            "usage: sim [--seed S] [--requests N] [--set KNOB=VALUE]... [--trace | --shrink | --worlds N]\nknobs:");
    for (uint32_t i = 0; i < sim_n_knobs; i++) fprintf(stderr, " %s", sim_knobs[i].name);
    fprintf(stderr, "\n");
    return 2;
}

static void print(const sim_config *c, const sim_result *r, double seconds) {
    printf("cluster: %u gateways, %u prefill, %u decode; pools of %u and %u blocks; %u sequences a step\n",
           c->n_gateways, c->n_prefills, c->n_decodes, c->prefill_blocks, c->decode_blocks, c->max_num_seqs);
    printf("ranks of a group: %u of prefill, %u of decode\n", c->prefill_ranks, c->decode_ranks);
    printf("requests: %llu finished, %llu failed, %llu canceled, %llu shed, %llu died with their gateway\n",
           (unsigned long long)r->n_finished, (unsigned long long)r->n_failed, (unsigned long long)r->n_canceled,
           (unsigned long long)r->n_shed, (unsigned long long)r->n_died);
    printf("failures: %llu crashes, %llu cuts, %llu stalls, %llu drains, %llu blocks damaged, %llu lost\n",
           (unsigned long long)r->n_crashes, (unsigned long long)r->n_cuts, (unsigned long long)r->n_stalls,
           (unsigned long long)r->n_drains, (unsigned long long)r->n_damaged, (unsigned long long)r->n_lost);
    printf(
        "replays: %llu lost, %llu failed, %llu late, %llu refused; %llu attempts, %llu preemptions, %llu recomputed\n",
        (unsigned long long)r->gateway.n_replays_lost, (unsigned long long)r->gateway.n_replays_failed,
        (unsigned long long)r->gateway.n_replays_late, (unsigned long long)r->gateway.n_replays_refused,
        (unsigned long long)r->n_attempts, (unsigned long long)r->decode.n_preempted,
        (unsigned long long)r->decode.n_recomputed);
    printf("hand-offs: %llu committed, %llu commits failed, %llu leases expired, %llu aborted, %llu quarantined\n",
           (unsigned long long)r->decode.n_committed, (unsigned long long)r->decode.n_commit_failed,
           (unsigned long long)r->decode.n_lease_expired, (unsigned long long)r->decode.n_lease_aborted,
           (unsigned long long)r->decode.n_quarantined);
    printf(
        "groups, by rank: %llu formed, %llu not, %llu lost; %llu steps without rows; %llu dials failed, %llu refused, "
        "%llu timeouts\n",
        (unsigned long long)r->n_formed, (unsigned long long)r->n_not_formed, (unsigned long long)r->n_group_lost,
        (unsigned long long)r->n_helped, (unsigned long long)r->n_dials_failed, (unsigned long long)r->n_dials_refused,
        (unsigned long long)r->n_rank_timeouts);
    printf("ranks killed: %llu waiting, %llu forming, %llu idle, %llu in a step, %llu draining\n",
           (unsigned long long)r->n_killed_waiting, (unsigned long long)r->n_killed_forming,
           (unsigned long long)r->n_killed_idle, (unsigned long long)r->n_killed_in_step,
           (unsigned long long)r->n_killed_draining);
    printf("registry: %llu stalls, %llu late readings, %llu leases forgotten\n", (unsigned long long)r->n_redis_stalls,
           (unsigned long long)r->n_reads_late, (unsigned long long)r->n_leases_forgotten);
    printf("%llu events, %llu tokens, %.1f s simulated in %.2f s; history %016llx\n", (unsigned long long)r->n_events,
           (unsigned long long)r->n_tokens, (double)r->end_ns / 1e9, seconds, (unsigned long long)r->history_hash);
}

typedef struct {
    uint64_t seed, n_requests, n_worlds;
    bool is_traced, is_shrunk;
    const char *sets[64]; /* [n_sets] */
    uint32_t n_sets;
} arguments;

static bool parse(int argc, char **argv, arguments *out) {
    *out = (arguments){.seed = 1, .n_requests = 1000};
    for (int i = 1; i < argc; i++) {
        char *end = "";
        bool has_value = i + 1 < argc;
        if (strcmp(argv[i], "--trace") == 0)
            out->is_traced = true;
        else if (strcmp(argv[i], "--shrink") == 0)
            out->is_shrunk = true;
        else if (strcmp(argv[i], "--seed") == 0 && has_value)
            out->seed = strtoull(argv[++i], &end, 0);
        else if (strcmp(argv[i], "--requests") == 0 && has_value)
            out->n_requests = strtoull(argv[++i], &end, 0);
        else if (strcmp(argv[i], "--worlds") == 0 && has_value)
            out->n_worlds = strtoull(argv[++i], &end, 0);
        else if (strcmp(argv[i], "--set") == 0 && has_value && out->n_sets < 64)
            out->sets[out->n_sets++] = argv[++i];
        else
            return false;
        if (*end != 0) return false;
    }
    return out->n_requests > 0 && out->n_requests <= 100000000;
}

/* "knob=value" */
static bool set(sim_config *config, const char *text) {
    for (uint32_t i = 0; i < sim_n_knobs; i++) {
        const sim_knob *knob = &sim_knobs[i];
        size_t n = strlen(knob->name);
        if (strncmp(text, knob->name, n) != 0 || text[n] != '=') continue;
        char *end;
        uint64_t value = strtoull(text + n + 1, &end, 0);
        if (end == text + n + 1 || *end != 0 || value < knob->least) return false;
        sim_knob_set(config, knob, value);
        return true;
    }
    return false;
}

static bool make_config(const arguments *a, uint64_t seed, sim_config *out) {
    *out = sim_config_random(seed, (uint32_t)a->n_requests);
    out->is_traced = a->is_traced;
    for (uint32_t i = 0; i < a->n_sets; i++)
        if (!set(out, a->sets[i])) return false;
    return true;
}

/* Only what the seed would not have chosen by itself is set. */
static void print_command(const sim_config *config) {
    sim_config chosen = sim_config_random(config->seed, config->n_requests);
    printf("replay: build/bin/sim --seed %llu --requests %u", (unsigned long long)config->seed, config->n_requests);
    for (uint32_t i = 0; i < sim_n_knobs; i++) {
        uint64_t value = sim_knob_get(config, &sim_knobs[i]);
        if (value != sim_knob_get(&chosen, &sim_knobs[i]))
            printf(" --set %s=%llu", sim_knobs[i].name, (unsigned long long)value);
    }
    printf(" --trace\n");
}

static int shrink(sim_config *config) {
    uint32_t seconds = WORLD_SECONDS;
    if (!sim_run_fails(config, &seconds)) {
        printf("this world ends whole\n");
        return 0;
    }
    sim_shrink(config, sim_run_fails, &seconds);
    print_command(config);
    return 1;
}

static int run_worlds(const arguments *a) {
    uint32_t seconds = WORLD_SECONDS;
    for (uint64_t i = 0; i < a->n_worlds; i++) {
        sim_config config;
        if (!make_config(a, a->seed + i, &config)) return usage();
        if (!sim_run_fails(&config, &seconds)) continue;
        printf("seed %llu fails\n", (unsigned long long)config.seed);
        return shrink(&config);
    }
    printf("%llu worlds of %llu requests ended whole\n", (unsigned long long)a->n_worlds,
           (unsigned long long)a->n_requests);
    return 0;
}

int main(int argc, char **argv) {
    arguments a;
    sim_config config;
    if (!parse(argc, argv, &a) || !make_config(&a, a.seed, &config)) return usage();
    if (a.n_worlds > 0) return run_worlds(&a);
    if (a.is_shrunk) return shrink(&config);
    if (config.is_traced) setvbuf(stdout, NULL, _IOLBF, 0); /* what comes before an abort is what one looks for */
    sim_result result;
    int64_t begin_ns = bt_now_ns();
    sim_run(&config, &result);
    print(&config, &result, (double)(bt_now_ns() - begin_ns) / 1e9);
    return 0;
}
