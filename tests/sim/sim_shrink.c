/* Every change draws other random numbers from there on, so a few seeds are tried for each. */
#include "tests/sim/sim_shrink.h"

#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { N_SEEDS = 8 };

#define KNOB(name, least)                                                                                              \
    { #name, offsetof(sim_config, name), sizeof(((sim_config *)0)->name), least }

/* All that a seed chooses, so that a command can say what a world is. In the order in which they are tried: what makes
 * a history hard to read goes first. */
const sim_knob sim_knobs[] = {
    KNOB(fault_ns, 0),         KNOB(stall_ppm, 0),      KNOB(damage_ppm, 0),
    KNOB(loss_ppm, 0),         KNOB(dial_ppm, 0),       KNOB(read_ppm, 0),
    KNOB(has_fixed_ports, 0),  KNOB(decode_ranks, 1),   KNOB(prefill_ranks, 1),
    KNOB(cancel_percent, 0),   KNOB(stop_percent, 0),   KNOB(has_prefix_cache, 0),
    KNOB(n_chats, 1),          KNOB(n_gateways, 1),     KNOB(n_prefills, 1),
    KNOB(n_decodes, 1),        KNOB(max_output, 1),     KNOB(max_prompt, 16),
    KNOB(migration_limit, 0),  KNOB(max_num_seqs, 1),   KNOB(max_leases, 1),
    KNOB(max_batched_seqs, 1), KNOB(max_requests, 1),   KNOB(gateway_requests, 1),
    KNOB(long_percent, 0),     KNOB(spare_rows, 0),     KNOB(local_tokens, 0),
    KNOB(prefill_blocks, 17),  KNOB(decode_blocks, 17), KNOB(max_batched_tokens, 32),
    KNOB(arrival_ns, 200000),  KNOB(urgent_percent, 0), KNOB(worker_queue_ms, 0),
    KNOB(max_queued, 0),       KNOB(queue_ms, 1),
};
const uint32_t sim_n_knobs = sizeof(sim_knobs) / sizeof(sim_knobs[0]);

uint64_t sim_knob_get(const sim_config *config, const sim_knob *knob) {
    uint64_t value = 0;
    memcpy(&value, (const uint8_t *)config + knob->offset, knob->n_bytes); /* little-endian */
    return value;
}

void sim_knob_set(sim_config *config, const sim_knob *knob, uint64_t value) {
    memcpy((uint8_t *)config + knob->offset, &value, knob->n_bytes);
}

bool sim_run_fails(const sim_config *config, void *context) {
    pid_t child = fork();
    BT_ASSERT(child >= 0);
    if (child == 0) {
        sim_result result;
        int nowhere = open("/dev/null", O_WRONLY);
        dup2(nowhere, STDERR_FILENO);
        alarm(*(const uint32_t *)context);
        sim_run(config, &result);
        _exit(0);
    }
    int status = 0;
    BT_ASSERT(waitpid(child, &status, 0) == child);
    return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

/* What happens before a request arrives does not depend on it, so fewer requests fail or the failure is cut off. */
static void shrink_requests(sim_config *config, sim_predicate fails, void *context) {
    uint32_t passes = 0, fails_at = config->n_requests;
    while (fails_at - passes > 1) {
        sim_config middle = *config;
        middle.n_requests = passes + (fails_at - passes) / 2;
        if (fails(&middle, context))
            fails_at = middle.n_requests;
        else
            passes = middle.n_requests;
    }
    config->n_requests = fails_at;
}

static bool try_value(sim_config *config, const sim_knob *knob, uint64_t value, sim_predicate fails, void *context) {
    for (uint64_t i = 0; i < N_SEEDS; i++) {
        sim_config changed = *config;
        sim_knob_set(&changed, knob, value);
        changed.seed += i;
        if (!fails(&changed, context)) continue;
        *config = changed;
        return true;
    }
    return false;
}

/* The knob's least value does not fail. */
static void bisect(sim_config *config, const sim_knob *knob, sim_predicate fails, void *context) {
    enum { MAX_TRIES = 12 };
    uint64_t passes = knob->least;
    for (int i = 0; i < MAX_TRIES && sim_knob_get(config, knob) - passes > 1; i++) {
        uint64_t middle = passes + (sim_knob_get(config, knob) - passes) / 2;
        if (!try_value(config, knob, middle, fails, context)) passes = middle;
    }
}

void sim_shrink(sim_config *config, sim_predicate fails, void *context) {
    shrink_requests(config, fails, context);
    for (bool has_changed = true; has_changed;) {
        has_changed = false;
        for (uint32_t k = 0; k < sim_n_knobs; k++) {
            const sim_knob *knob = &sim_knobs[k];
            uint64_t value = sim_knob_get(config, knob);
            if (value <= knob->least) continue;
            if (!try_value(config, knob, knob->least, fails, context)) bisect(config, knob, fails, context);
            has_changed |= sim_knob_get(config, knob) != value;
        }
        if (has_changed) shrink_requests(config, fails, context);
    }
}
