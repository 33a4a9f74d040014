/* The world: what a seed chooses, the loop, the failures, and what must be true when it is over. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/sim/sim.h"

/* ---- what a seed chooses ---------------------------------------------------------------------------------------- */

static bool has_groups(const sim_config *config) { return config->decode_ranks > 1 || config->prefill_ranks > 1; }

/* Groups: of decode in a third of the worlds, of prefill in a quarter. They need time to form again. */
static void choose_ranks(sim_config *c, sim_world *dice) {
    c->decode_ranks = sim_below(dice, 3) == 0 ? 2 + sim_below(dice, SIM_MAX_OF_ROLE - 1) : 1;
    c->prefill_ranks = sim_below(dice, 4) == 0 ? 2 + sim_below(dice, SIM_MAX_OF_ROLE - 1) : 1;
    if (c->n_decodes < c->decode_ranks) c->n_decodes = c->decode_ranks;
    if (c->n_prefills < c->prefill_ranks) c->n_prefills = c->prefill_ranks;
    c->has_fixed_ports = sim_below(dice, 2) == 0;
    if (!has_groups(c)) return;
    c->arrival_ns *= 2;
    if (c->seed % 4 == 0) return;
    c->fault_ns = 20 * (int64_t)BT_NS_PER_MS + sim_below(dice, 150 * BT_NS_PER_MS);
    c->dial_ppm = sim_below(dice, 200000);
    c->read_ppm = sim_below(dice, 100000);
}

sim_config sim_config_random(uint64_t seed, uint32_t n_requests) {
    sim_world dice = {.random = sim_mix(seed + 1)};
    sim_config c = {.seed = seed, .n_requests = n_requests};
    c.n_gateways = 1 + sim_below(&dice, 2);
    c.n_prefills = 1 + sim_below(&dice, 3);
    c.n_decodes = 1 + sim_below(&dice, 4);
    c.prefill_blocks = 17 + sim_below(&dice, 60);
    c.decode_blocks = 17 + sim_below(&dice, 80);
    c.max_requests = 4 + sim_below(&dice, 28);
    c.max_batched_tokens = 32 + sim_below(&dice, 480);
    c.max_batched_seqs = 1 + sim_below(&dice, 16);
    c.max_num_seqs = 1 + sim_below(&dice, 24);
    c.max_leases = 1 + sim_below(&dice, 16);
    c.gateway_requests = 8 + sim_below(&dice, 56);
    c.migration_limit = sim_below(&dice, 3) == 0 ? sim_below(&dice, 4) : 20;
    c.max_prompt = 16 + sim_below(&dice, 500);
    c.max_output = 1 + sim_below(&dice, 120);
    c.n_chats = 1 + sim_below(&dice, 12);
    c.has_prefix_cache = sim_below(&dice, 8) != 0;
    c.arrival_ns = 200000 + sim_exponential_ns(&dice, 3000000); /* from overload to idle */
    c.fault_ns = seed % 4 == 0 ? 0 : 20 * (int64_t)BT_NS_PER_MS + sim_below(&dice, 400 * BT_NS_PER_MS);
    c.stall_ppm = seed % 4 == 0 ? 0 : sim_below(&dice, seed % 8 == 5 ? 5000 : 300);
    c.cancel_percent = sim_below(&dice, 3) == 0 ? 30 : 5;
    c.stop_percent = 5;
    if (seed % 4 >= 2) {
        c.damage_ppm = sim_below(&dice, 3000);
        c.loss_ppm = sim_below(&dice, 1000);
    }
    c.long_percent = 5;
    if (sim_below(&dice, 6) == 0) { /* sequences outgrow the pool */
        c.long_percent = 80;
        c.max_output = 300 + sim_below(&dice, 500);
        c.decode_blocks = 17 + sim_below(&dice, 8);
        c.arrival_ns *= 4;
    }
    c.spare_rows = sim_below(&dice, 100);
    c.local_tokens = sim_below(&dice, 2) == 0 ? 0 : 1 + sim_below(&dice, 150);
    choose_ranks(&c, &dice);
    c.worker_queue_ms = sim_below(&dice, 3) == 0 ? 0 : 1 + sim_below(&dice, 10);
    c.max_queued = sim_below(&dice, 4) == 0 ? sim_below(&dice, 4) : 64;
    c.queue_ms = sim_below(&dice, 4) == 0 ? 5 + sim_below(&dice, 100) : 5000;
    c.urgent_percent = sim_below(&dice, 40);
    return c;
}

/* ---- failures --------------------------------------------------------------------------------------------------- */

static void note_killed_rank(sim_result *result, const sim_node *node) {
    const sim_rank *rank = &node->rank;
    if (node->worker->is_draining)
        result->n_killed_draining++;
    else if (rank->group.own.ep.state == REG_RANK_WAITING)
        result->n_killed_waiting++;
    else if (rank->group.own.ep.state == REG_RANK_FORMING)
        result->n_killed_forming++;
    else if (rank->is_in_step)
        result->n_killed_in_step++;
    else
        result->n_killed_idle++;
}

static void crash(sim_world *world, uint32_t index) {
    if (world->nodes[index].incarnation == 0) return;
    if (sim_is_rank(&world->nodes[index])) note_killed_rank(&world->result, &world->nodes[index]);
    sim_trace(world, "%s crashes", world->nodes[index].name);
    world->result.n_crashes++;
    sim_node_kill(world, index);
    int64_t at_ns = world->now_ns + sim_exponential_ns(world, 100 * (int64_t)BT_NS_PER_MS);
    sim_plan(world, at_ns, SIM_RESTART, index, 0, NULL);
}

/* A rank that is not in a group, or drains, if there is one: else that would be rare. */
static void crash_unsettled(sim_world *world) {
    for (uint32_t i = 0, from = sim_below(world, world->n_nodes); i < world->n_nodes; i++) {
        uint32_t index = (from + i) % world->n_nodes;
        const sim_node *node = &world->nodes[index];
        if (node->incarnation == 0 || !sim_is_rank(node)) continue;
        if (wrk_group_is_formed(&node->rank.group) && !node->worker->is_draining) continue;
        crash(world, index);
        return;
    }
}

static void cut(sim_world *world, sim_link *link) {
    if (link->state != SIM_LINK_OPEN && link->state != SIM_LINK_OPENING) return;
    sim_trace(world, "cut %s %s", world->nodes[link->node[0]].name, world->nodes[link->node[1]].name);
    world->result.n_cuts++;
    sim_link_break(world, link);
}

static void drain(sim_world *world, uint32_t index) {
    sim_node *node = &world->nodes[index];
    if (node->incarnation == 0 || node->role == WIRE_ROLE_GATEWAY || node->is_draining) return;
    uint32_t grace_ms = sim_below(world, 2) ? 0 : 1 + sim_below(world, 60);
    sim_trace(world, "%s drains, grace %u ms", node->name, grace_ms);
    world->result.n_drains++;
    node->is_draining = true;
    wrk_sched_drain(node->worker, grace_ms, world->now_ns);
    sim_node_after(world, index);
}

static void fault_event(sim_world *world) {
    uint32_t what = sim_below(world, has_groups(&world->config) ? 16 : 10), node = sim_below(world, world->n_nodes);
    if (what < 5) {
        cut(world, &world->links[sim_below(world, world->n_links)]);
    } else if (what < 8) {
        crash(world, node);
    } else if (what < 10) {
        drain(world, node);
    } else if (what < 12) {
        sim_registry_stall(world, world->now_ns + sim_exponential_ns(world, 200 * (int64_t)BT_NS_PER_MS));
    } else if (what < 13) {
        if (sim_is_rank(&world->nodes[node])) sim_registry_lose(world, node);
    } else {
        crash_unsettled(world);
    }
    if (world->n_clients < world->config.n_requests)
        sim_plan(world, world->now_ns + sim_exponential_ns(world, world->config.fault_ns), SIM_FAULT, 0, 0, NULL);
}

/* ---- the loop --------------------------------------------------------------------------------------------------- */

static void tick(sim_world *world, uint32_t index) {
    sim_node *node = &world->nodes[index];
    if (world->now_ns < node->tick_ns) return; /* an earlier one was planned since, and has come */
    node->tick_ns = INT64_MAX;
    if (node->gateway != NULL) gw_core_tick(node->gateway, world->now_ns);
    if (node->worker != NULL) wrk_sched_tick(node->worker, world->now_ns);
    sim_node_after(world, index);
}

static void handle(sim_world *world, const sim_event *event) {
    if (event->incarnation != 0 && event->incarnation != world->nodes[event->node].incarnation) return; /* it died */
    switch (event->kind) {
    case SIM_ARRIVAL:
        sim_client_arrive(world);
        if (world->n_clients < world->config.n_requests)
            sim_plan(world, world->now_ns + sim_exponential_ns(world, world->config.arrival_ns), SIM_ARRIVAL, 0, 0,
                     NULL);
        break;
    case SIM_LEAVE:
        sim_client_leave(world, event->node, event->a);
        break;
    case SIM_TICK:
        tick(world, event->node);
        break;
    case SIM_MESSAGE:
        sim_message_event(world, event);
        break;
    case SIM_LINK_UP:
    case SIM_LINK_GONE:
        sim_link_event(world, event);
        break;
    case SIM_LAYER:
    case SIM_STEP_DONE:
        if (sim_is_rank(&world->nodes[event->node]))
            sim_rank_event(world, event);
        else
            sim_node_step_event(world, event);
        break;
    case SIM_ANNOUNCE:
    case SIM_FORGET:
    case SIM_READ:
        sim_registry_event(world, event);
        break;
    case SIM_DIAL:
    case SIM_RANK_MESSAGE:
    case SIM_RANK_LATE:
    case SIM_CALM:
        sim_rank_event(world, event);
        break;
    case SIM_FAULT:
        fault_event(world);
        break;
    case SIM_RESTART:
        if (world->nodes[event->node].incarnation == 0) sim_node_start(world, event->node);
        break;
    default:
        sim_kv_event(world, event);
    }
}

static void release_payload(const sim_event *event) {
    if (event->kind == SIM_KV_READ || event->kind == SIM_KV_ARRIVE || event->kind == SIM_KV_LAND) {
        sim_transfer_release(event->payload);
    } else {
        free(event->payload);
    }
}

static void add_nodes(sim_world *world, wire_role role, uint32_t n, const char *name) {
    for (uint32_t i = 0; i < n; i++) {
        sim_node *node = &world->nodes[world->n_nodes++];
        node->role = role;
        node->index = i;
        snprintf(node->name, sizeof(node->name), "%s-%u", name, i);
    }
}

static void add_links(sim_world *world) {
    for (uint32_t a = 0; a < world->n_nodes; a++) {
        for (uint32_t b = a + 1; b < world->n_nodes; b++) {
            uint32_t first_of_a, first_of_b;
            sim_ranks_of(world, a, &first_of_a);
            sim_ranks_of(world, b, &first_of_b);
            wire_role from = world->nodes[a].role, to = world->nodes[b].role;
            sim_link_kind kind = from == WIRE_ROLE_GATEWAY ? SIM_CONTROL : SIM_KV;
            if (from == to && first_of_a != first_of_b) continue;
            if (from == to) kind = SIM_RANKS;
            world->links[world->n_links++] = (sim_link){.kind = kind, .node = {a, b}};
        }
    }
}

/* What a gateway was told of a worker's prefix cache is what the worker holds. */
static void check_blocks(const sim_world *world, const sim_node *gateway) {
    for (uint32_t i = 0; i < world->n_nodes; i++) {
        const sim_node *node = &world->nodes[i];
        if (node->worker == NULL) continue;
        const gw_router *router = gw_core_router(gateway->gateway);
        const gw_worker *known = gw_router_worker(router, node->incarnation);
        if (known == NULL) continue; /* the link is down */
        wire_block_name *names = bt_calloc(kv_pool_n_blocks(node->pool), sizeof(wire_block_name));
        uint32_t n = kv_prefix_told(node->worker->prefix, names);
        BT_ASSERT(!kv_prefix_has_changes(node->worker->prefix) && gw_router_n_blocks(router, known) == n);
        for (uint32_t k = 0; k < n; k++) BT_ASSERT(gw_router_has_block(router, known, &names[k]));
        free(names);
    }
}

/* Everything has ended, so nothing is held anywhere, and no honest core found another one strange. */
static void check_end(sim_world *world) {
    BT_ASSERT(world->n_alive == 0 && world->n_clients == world->config.n_requests);
    for (uint32_t i = 0; i < world->n_nodes; i++) {
        const sim_node *node = &world->nodes[i];
        wire_load load = {0};
        BT_ASSERT(node->incarnation != 0 && !node->is_stepping && node->n_leases == 0);
        BT_ASSERT(!node->rank.is_in_step);
        sim_check_group(world, i);
        if (node->gateway != NULL) {
            BT_ASSERT(gw_core_n_alive(node->gateway) == 0);
            check_blocks(world, node);
        }
        if (node->worker != NULL) node->worker->load(node->worker, &load);
        BT_ASSERT(load.running == 0 && load.waiting == 0 && load.waiting_tokens == 0 && load.kv_blocks_used == 0);
    }
    for (uint32_t i = 0; i < world->n_nodes; i++) sim_node_kill(world, i);
    const sim_result *r = &world->result;
    BT_ASSERT(r->gateway.n_strange == 0 && r->prefill.n_strange == 0 && r->decode.n_strange == 0);
    BT_ASSERT(r->n_finished + r->n_failed + r->n_canceled + r->n_shed + r->n_died == world->config.n_requests);
    const sim_config *c = &world->config;
    if (c->fault_ns > 0 || c->stall_ppm > 0 || c->damage_ppm > 0 || c->loss_ppm > 0) return;
    if (c->dial_ppm > 0 || c->read_ppm > 0)
        return; /* who is formed first may have taken requests, and lose its group */
    BT_ASSERT(r->n_group_lost == 0);
    BT_ASSERT(r->gateway.n_replays_lost == 0 && r->gateway.n_replays_failed == 0 && r->gateway.n_replays_late == 0);
    BT_ASSERT(r->prefill.n_timeouts == 0 && r->decode.n_lease_expired == 0);
}

/* The only state outside a world: what a failed assertion's SIGABRT says on its way out. */
static char replay_line[128];

static void say_how_to_replay(int signal_number) {
    ssize_t ignored = write(STDERR_FILENO, replay_line, strlen(replay_line));
    (void)ignored, (void)signal_number;
}

void sim_run(const sim_config *config, sim_result *out) {
    snprintf(replay_line, sizeof(replay_line), "replay: build/bin/sim --seed %llu --requests %u --shrink\n",
             (unsigned long long)config->seed, config->n_requests);
    signal(SIGABRT, say_how_to_replay);
    sim_world *world = bt_calloc(1, sizeof(*world));
    world->config = *config;
    world->random = sim_mix(config->seed);
    world->result.history_hash = 0xcbf29ce484222325u;
    world->clients = bt_calloc(config->n_requests, sizeof(sim_client));
    add_nodes(world, WIRE_ROLE_GATEWAY, config->n_gateways, "gateway");
    add_nodes(world, WIRE_ROLE_PREFILL, config->n_prefills, "prefill");
    add_nodes(world, WIRE_ROLE_DECODE, config->n_decodes, "decode");
    add_links(world);
    for (uint32_t i = 0; i < world->n_nodes; i++) sim_node_start(world, i);
    if (config->fault_ns > 0) sim_plan(world, 50 * (int64_t)BT_NS_PER_MS, SIM_FAULT, 0, 0, NULL);
    sim_plan(world, (has_groups(config) ? 40 : 10) * (int64_t)BT_NS_PER_MS, SIM_ARRIVAL, 0, 0, NULL);
    sim_event event;
    while (sim_pop(world, &event)) {
        world->now_ns = event.at_ns;
        world->result.n_events++;
        uint64_t mark = (uint64_t)event.at_ns ^ (uint64_t)event.kind << 56 ^ (uint64_t)event.node << 48;
        world->result.history_hash = sim_mix(world->result.history_hash ^ mark);
        handle(world, &event);
        release_payload(&event);
    }
    check_end(world);
    world->result.end_ns = world->now_ns;
    *out = world->result;
    bt_map_fini(&world->by_serial);
    bt_buf_fini(&world->scratch);
    free(world->clients);
    free(world->heap);
    free(world);
}
