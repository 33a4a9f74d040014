/* sim --seed S --requests N [--trace]: one world from one seed, what happened in it, and the hash of its history. */
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

static int usage(void) {
    fprintf(stderr, "usage: sim [--seed S] [--requests N] [--trace]\n");
    return 2;
}

static void print(const sim_config *c, const sim_result *r, double seconds) {
    printf("cluster: %u gateways, %u prefill, %u decode; pools of %u and %u blocks; %u sequences a step\n",
           c->n_gateways, c->n_prefills, c->n_decodes, c->prefill_blocks, c->decode_blocks, c->max_num_seqs);
    printf("requests: %llu finished, %llu failed, %llu canceled, %llu shed, %llu died with their gateway\n",
           (unsigned long long)r->n_finished, (unsigned long long)r->n_failed, (unsigned long long)r->n_canceled,
           (unsigned long long)r->n_shed, (unsigned long long)r->n_died);
    printf("failures: %llu crashes, %llu cuts, %llu stalls, %llu drains, %llu blocks damaged, %llu lost\n",
           (unsigned long long)r->n_crashes, (unsigned long long)r->n_cuts, (unsigned long long)r->n_stalls,
           (unsigned long long)r->n_drains, (unsigned long long)r->n_damaged, (unsigned long long)r->n_lost);
    printf("replays: %llu lost, %llu failed, %llu late, %llu refused; %llu attempts, %llu preemptions\n",
           (unsigned long long)r->gateway.n_replays_lost, (unsigned long long)r->gateway.n_replays_failed,
           (unsigned long long)r->gateway.n_replays_late, (unsigned long long)r->gateway.n_replays_refused,
           (unsigned long long)r->n_attempts, (unsigned long long)r->decode.n_preempted);
    printf("hand-offs: %llu committed, %llu commits failed, %llu leases expired, %llu aborted, %llu quarantined\n",
           (unsigned long long)r->decode.n_committed, (unsigned long long)r->decode.n_commit_failed,
           (unsigned long long)r->decode.n_lease_expired, (unsigned long long)r->decode.n_lease_aborted,
           (unsigned long long)r->decode.n_quarantined);
    printf("%llu events, %llu tokens, %.1f s simulated in %.2f s; history %016llx\n", (unsigned long long)r->n_events,
           (unsigned long long)r->n_tokens, (double)r->end_ns / 1e9, seconds, (unsigned long long)r->history_hash);
}

int main(int argc, char **argv) {
    uint64_t seed = 1, n_requests = 1000;
    bool is_traced = false;
    for (int i = 1; i < argc; i++) {
        char *end = "";
        if (strcmp(argv[i], "--trace") == 0) {
            is_traced = true;
        } else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
            seed = strtoull(argv[++i], &end, 0);
        } else if (strcmp(argv[i], "--requests") == 0 && i + 1 < argc) {
            n_requests = strtoull(argv[++i], &end, 0);
        } else {
            return usage();
        }
        if (*end != 0) return usage();
    }
    if (n_requests == 0 || n_requests > 100000000) return usage();
    sim_config config = sim_config_random(seed, (uint32_t)n_requests);
    config.is_traced = is_traced;
    sim_result result;
    int64_t begin_ns = bt_now_ns();
    sim_run(&config, &result);
    print(&config, &result, (double)(bt_now_ns() - begin_ns) / 1e9);
    return 0;
}
