/* Time and chance: the event queue, one generator, and the trace. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>

#include "tests/sim/sim.h"

uint64_t sim_mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

uint64_t sim_random(sim_world *world) { return sim_mix(world->random += 0x9e3779b97f4a7c15u); }

uint32_t sim_below(sim_world *world, uint32_t n) { return (uint32_t)((sim_random(world) >> 32) * n >> 32); }

bool sim_chance(sim_world *world, uint32_t ppm) { return sim_below(world, 1000000) < ppm; }

int64_t sim_exponential_ns(sim_world *world, int64_t mean_ns) {
    double u = ((double)(sim_random(world) >> 11) + 1) / 9007199254740993.0;
    return (int64_t)(-log(u) * (double)mean_ns);
}

static bool is_before(const sim_event *x, const sim_event *y) {
    return x->at_ns != y->at_ns ? x->at_ns < y->at_ns : x->order < y->order;
}

void sim_plan(sim_world *world, int64_t at_ns, sim_event_kind kind, uint32_t node, uint64_t a, void *payload) {
    if (world->n_heap == world->cap_heap) {
        world->cap_heap = world->cap_heap * 2 + 1024;
        world->heap = bt_realloc(world->heap, world->cap_heap, sizeof(sim_event));
    }
    bool is_for_any =
        kind == SIM_RESTART || kind == SIM_FAULT || kind == SIM_ARRIVAL || kind == SIM_FORGET || kind == SIM_CALM;
    uint64_t incarnation = is_for_any ? 0 : world->nodes[node].incarnation;
    sim_event event = {at_ns, world->n_planned++, kind, node, incarnation, a, payload};
    uint32_t at = world->n_heap++;
    for (; at > 0 && is_before(&event, &world->heap[(at - 1) / 2]); at = (at - 1) / 2)
        world->heap[at] = world->heap[(at - 1) / 2];
    world->heap[at] = event;
}

bool sim_pop(sim_world *world, sim_event *out) {
    if (world->n_heap == 0) return false;
    *out = world->heap[0];
    sim_event last = world->heap[--world->n_heap];
    uint32_t at = 0;
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= world->n_heap) break;
        if (child + 1 < world->n_heap && is_before(&world->heap[child + 1], &world->heap[child])) child++;
        if (!is_before(&world->heap[child], &last)) break;
        world->heap[at] = world->heap[child];
        at = child;
    }
    if (world->n_heap > 0) world->heap[at] = last;
    return true;
}

void sim_trace(sim_world *world, const char *format, ...) {
    if (!world->config.is_traced) return;
    printf("%12.6f ", (double)world->now_ns / 1e9);
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
}
