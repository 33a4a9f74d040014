/* From a world that fails to the smallest one found that still does: fewer requests, then one thing less at a time. */
#ifndef BATON_TESTS_SIM_SIM_SHRINK_H
#define BATON_TESTS_SIM_SIM_SHRINK_H

#include "tests/sim/sim.h"

/* A number of sim_config that may become smaller, by name. */
typedef struct {
    const char *name;
    size_t offset, n_bytes;
    uint64_t least; /* with which a world still runs */
} sim_knob;

extern const sim_knob sim_knobs[];
extern const uint32_t sim_n_knobs;

uint64_t sim_knob_get(const sim_config *config, const sim_knob *knob);
void sim_knob_set(sim_config *config, const sim_knob *knob, uint64_t value);

/* Whether this world fails; sim_shrink() asks some hundred times. */
typedef bool (*sim_predicate)(const sim_config *config, void *context);

/* Runs the world in a process of its own: true if that does not end well within `context`, an uint32_t of seconds. */
bool sim_run_fails(const sim_config *config, void *context);

/* `config` fails; so does what becomes of it. */
void sim_shrink(sim_config *config, sim_predicate fails, void *context);

#endif
