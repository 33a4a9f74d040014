/* The registry as ranks see it (common/registry): an announcement for each of them, under a lease. What is written
 * arrives late; the members of the group read it some time after, as it is then, so a state that was short may never be
 * seen. The dead are there until their lease runs out, or until their successor takes the name. Redis may stand still:
 * then nothing is written, read or forgotten. */
#include "tests/sim/sim.h"

enum { WRITE_US = 300, READ_US = 1000, LATE_MS = 200, RENEW_MS = 30 };

static int64_t after_ns(sim_world *world, int64_t mean_us) {
    return world->now_ns + 50 * BT_NS_PER_US + sim_exponential_ns(world, mean_us * BT_NS_PER_US);
}

void sim_announce(sim_world *world, uint32_t index) {
    sim_plan(world, after_ns(world, WRITE_US), SIM_ANNOUNCE, index, 0, NULL);
}

void sim_registry_read(sim_world *world, uint32_t index) {
    int64_t at_ns = after_ns(world, READ_US);
    if (sim_chance(world, world->config.read_ppm)) {
        at_ns += sim_below(world, LATE_MS * BT_NS_PER_MS);
        world->result.n_reads_late++;
        sim_disturb(world, index, at_ns);
    }
    sim_plan(world, at_ns, SIM_READ, index, 0, NULL);
}

static void has_changed(sim_world *world, uint32_t index) {
    uint32_t first, n = sim_ranks_of(world, index, &first);
    for (uint32_t i = 0; i < n; i++)
        if (world->nodes[first + i].incarnation != 0) sim_registry_read(world, first + i);
}

void sim_registry_forget(sim_world *world, uint32_t index, int64_t lease_ns) {
    sim_plan(world, world->now_ns + lease_ns, SIM_FORGET, index, world->nodes[index].incarnation, NULL);
    sim_disturb(world, index, world->now_ns + lease_ns);
}

void sim_registry_lose(sim_world *world, uint32_t index) {
    world->result.n_leases_forgotten++;
    sim_registry_forget(world, index, 0);
}

void sim_registry_stall(sim_world *world, int64_t until_ns) {
    world->result.n_redis_stalls++;
    if (until_ns > world->redis_ns) world->redis_ns = until_ns;
    for (uint32_t i = 0; i < world->n_nodes; i++) sim_disturb(world, i, until_ns);
}

/* All that there is, as a watcher's next list would say it. */
static void read_event(sim_world *world, uint32_t index) {
    sim_rank *rank = &world->nodes[index].rank;
    uint32_t first, n = sim_ranks_of(world, index, &first);
    for (uint32_t i = 0; i < n; i++) {
        const reg_worker *there = &world->registry[first + i];
        reg_worker *known = &rank->mirror[i];
        if (there->incarnation != 0) {
            bool is_new = there->incarnation != known->incarnation;
            wrk_group_on_worker(&rank->group, is_new ? REG_WORKER_UP : REG_WORKER_CHANGED, there);
            rank->is_leaving[i] = there->is_draining && first + i != index;
        } else if (known->incarnation != 0) {
            wrk_group_on_worker(&rank->group, known->is_draining ? REG_WORKER_LEFT : REG_WORKER_EXPIRED, known);
        }
        *known = *there;
    }
    sim_node_after(world, index);
}

/* Who lives renews its announcement, so it comes back. */
static void forget_event(sim_world *world, uint32_t index, uint64_t incarnation) {
    if (world->registry[index].incarnation != incarnation) return;
    world->registry[index] = (reg_worker){0};
    has_changed(world, index);
    if (world->nodes[index].incarnation != incarnation) return;
    int64_t back_ns = world->now_ns + RENEW_MS * BT_NS_PER_MS;
    sim_disturb(world, index, back_ns);
    sim_plan(world, back_ns, SIM_ANNOUNCE, index, 0, NULL);
}

void sim_registry_event(sim_world *world, const sim_event *event) {
    uint32_t index = event->node;
    if (world->now_ns < world->redis_ns) {
        sim_plan(world, world->redis_ns + sim_below(world, BT_NS_PER_MS), event->kind, index, event->a, NULL);
    } else if (event->kind == SIM_READ) {
        read_event(world, index);
    } else if (event->kind == SIM_ANNOUNCE) {
        world->registry[index] = world->nodes[index].rank.group.own;
        has_changed(world, index);
    } else {
        forget_event(world, index, event->a);
    }
}
