/* A worker as a rank of an expert-parallel group. What decides is the real wrk_group; here are, simulated, the turns of
 * worker/wrk_loop.c around it, and the exchange of kvtransfer/ep_ucx.h: ranks that connect, and steps in lock step.
 *
 * A step is its layers. A rank computes a layer's rows, if it has some, and posts; the layer is done when every peer
 * has posted it too. So each layer takes as long as its slowest rank, and nobody is more than one ahead. */
#include <string.h>

#include "tests/sim/sim.h"

enum { FORM_MS = 250, LOOK_MS = 20, STEP_MS = 500, RETRY_MS = 25, QUIET_MS = 60 };

static int64_t in_ms(const sim_world *world, int64_t ms) { return world->now_ns + ms * BT_NS_PER_MS; }

/* ---- groups ----------------------------------------------------------------------------------------------------- */

uint32_t sim_ranks_of(const sim_world *world, uint32_t index, uint32_t *first) {
    const sim_config *c = &world->config;
    const sim_node *node = &world->nodes[index];
    bool is_prefill = node->role == WIRE_ROLE_PREFILL;
    uint32_t n_ranks = is_prefill ? c->prefill_ranks : c->decode_ranks, n = is_prefill ? c->n_prefills : c->n_decodes;
    *first = index;
    if (node->role == WIRE_ROLE_GATEWAY || n_ranks < 2 || node->index >= n - n % n_ranks) return 1;
    *first = index - node->index % n_ranks;
    return n_ranks;
}

/* Its nodes follow each other. */
static uint32_t node_of(const sim_world *world, uint32_t index, uint32_t rank) {
    return index - world->nodes[index].rank.group.own.ep.rank + rank;
}

static uint32_t n_ranks(const sim_rank *rank) { return rank->group.own.ep.size; }

void sim_disturb(sim_world *world, uint32_t index, int64_t until_ns) {
    uint32_t first;
    if (sim_ranks_of(world, index, &first) < 2) return;
    sim_group *group = &world->groups[first];
    if (until_ns > group->calm_ns) group->calm_ns = until_ns;
    if (group->is_watched) return;
    group->is_watched = true;
    sim_plan(world, group->calm_ns + SIM_CALM_MS * (int64_t)BT_NS_PER_MS, SIM_CALM, first, 0, NULL);
}

void sim_check_group(const sim_world *world, uint32_t index) {
    uint32_t first, n = sim_ranks_of(world, index, &first);
    uint64_t epoch = world->nodes[first].rank.group.own.ep.epoch;
    if (n < 2) return;
    for (uint32_t i = 0; i < n; i++) { /* one that is away or leaves will be back */
        const sim_node *node = &world->nodes[first + i];
        if (node->incarnation == 0 || node->worker->is_draining) return;
    }
    for (uint32_t i = 0; i < n; i++) {
        const wrk_group *group = &world->nodes[first + i].rank.group;
        BT_ASSERT(wrk_group_is_complete(group) && group->own.ep.epoch == epoch);
    }
}

static void calm_event(sim_world *world, uint32_t first) {
    sim_group *group = &world->groups[first];
    group->is_watched = false;
    if (world->now_ns < group->calm_ns + SIM_CALM_MS * (int64_t)BT_NS_PER_MS)
        sim_disturb(world, first, group->calm_ns);
    else
        sim_check_group(world, first);
}

/* ---- messages --------------------------------------------------------------------------------------------------- */

static void post(sim_world *world, uint32_t index, sim_rank_verb verb, uint64_t n) {
    const sim_rank *rank = &world->nodes[index].rank;
    const reg_rank *own = &rank->group.own.ep;
    for (uint32_t i = 0; i < own->size; i++) {
        uint32_t to = node_of(world, index, i);
        if (!rank->peers[i].is_up) continue;
        sim_link *link = sim_link_between(world, index, to);
        if (link->state != SIM_LINK_OPEN) continue; /* lost */
        sim_rank_message *message = bt_calloc(1, sizeof(*message));
        *message = (sim_rank_message){
            (uint32_t)(link - world->links), link->epoch, own->rank, verb, own->epoch, n,
        };
        sim_plan(world, sim_arrival_ns(world, link, index < to), SIM_RANK_MESSAGE, to, 0, message);
    }
}

/* The exchange failed: the others are told, and the engine when it comes to it. */
static void fail(sim_world *world, uint32_t index, const char *why) {
    sim_rank *rank = &world->nodes[index].rank;
    if (!rank->is_open || rank->has_failed) return;
    sim_trace(world, "%s group fails in epoch %llu: %s", world->nodes[index].name,
              (unsigned long long)rank->group.own.ep.epoch, why);
    rank->has_failed = true;
    post(world, index, SIM_RANK_LEAVE, 0);
}

/* What exchange.h says about order. */
static void take(const sim_rank *rank, sim_peer *peer, const sim_rank_message *message) {
    if (message->verb == SIM_RANK_BEGIN) {
        BT_ASSERT(message->n == peer->step + 1 && message->n <= rank->step + 1);
        peer->step = message->n;
    } else {
        BT_ASSERT(message->n == peer->n_posted + 1 && message->n <= peer->step * SIM_LAYERS);
        BT_ASSERT(message->n <= rank->n_posted + 1);
        peer->n_posted = message->n;
    }
}

static void message_event(sim_world *world, uint32_t index, const sim_rank_message *message) {
    sim_link *link = &world->links[message->link];
    sim_rank *rank = &world->nodes[index].rank;
    sim_peer *peer = &rank->peers[message->from];
    if (message->link_epoch != link->epoch) return; /* lost with its connection */
    if (message->verb == SIM_RANK_LEAVE) sim_link_part(link);
    if (!rank->is_open || !peer->is_up || rank->has_failed) return; /* we have left as well */
    BT_ASSERT(message->group_epoch == rank->group.own.ep.epoch);
    if (message->verb == SIM_RANK_LEAVE) {
        peer->is_up = false;
        fail(world, index, "a rank gave up");
    } else {
        take(rank, peer, message);
    }
    sim_node_after(world, index);
}

void sim_rank_gone(sim_world *world, uint32_t index, uint64_t incarnation) {
    sim_rank *rank = &world->nodes[index].rank;
    sim_disturb(world, index, world->now_ns);
    for (uint32_t i = 0; i < n_ranks(rank); i++) {
        if (!rank->peers[i].is_up || rank->peers[i].incarnation != incarnation) continue;
        rank->peers[i].is_up = false;
        fail(world, index, "a connection broke");
    }
}

/* ---- time ------------------------------------------------------------------------------------------------------- */

static void wait_until(sim_world *world, uint32_t index, int64_t late_ns) {
    sim_rank *rank = &world->nodes[index].rank;
    rank->late_ns = late_ns;
    if (late_ns >= rank->watch_ns) return;
    rank->watch_ns = late_ns;
    sim_plan(world, late_ns, SIM_RANK_LATE, index, 0, NULL);
}

static void late_event(sim_world *world, uint32_t index) {
    sim_rank *rank = &world->nodes[index].rank;
    if (world->now_ns < rank->watch_ns) return; /* an earlier one was planned since, and has come */
    rank->watch_ns = INT64_MAX;
    if (world->now_ns < rank->late_ns) {
        wait_until(world, index, rank->late_ns);
        return;
    }
    world->result.n_rank_timeouts++;
    fail(world, index, "the time is up");
    sim_node_after(world, index);
}

/* ---- forming ---------------------------------------------------------------------------------------------------- */

static void put_address(const sim_world *world, const sim_node *node, char out[REG_CAP_ADDRESS]) {
    uint64_t port = world->config.has_fixed_ports ? 1 : node->incarnation;
    snprintf(out, REG_CAP_ADDRESS, "%s:%llu", node->name, (unsigned long long)port);
}

/* Some connections take long, but less than FORM_MS. */
static void plan_dial(sim_world *world, uint32_t index, int64_t wait_ns, uint32_t rank) {
    uint32_t most_ms = sim_below(world, 8) == 0 ? 150 : 3;
    int64_t at_ns = world->now_ns + wait_ns + sim_below(world, most_ms * BT_NS_PER_MS);
    sim_plan(world, at_ns, SIM_DIAL, index, world->nodes[index].rank.group.own.ep.epoch << 8 | rank, NULL);
}

static void open_exchange(sim_world *world, uint32_t index) {
    sim_rank *rank = &world->nodes[index].rank;
    sim_trace(world, "%s forms epoch %llu", world->nodes[index].name, (unsigned long long)rank->group.own.ep.epoch);
    sim_announce(world, index);
    BT_ASSERT(rank->group.own.ep.epoch > rank->last_epoch); /* rule 2 of ep_ucx.h */
    rank->last_epoch = rank->group.own.ep.epoch;
    rank->is_open = true;
    rank->has_failed = rank->is_in_step = false;
    rank->step = rank->n_posted = 0;
    memset(rank->peers, 0, sizeof(rank->peers));
    wait_until(world, index, in_ms(world, FORM_MS));
    for (uint32_t i = 0; i < rank->group.own.ep.rank; i++) plan_dial(world, index, 0, i);
}

static void close_exchange(sim_world *world, uint32_t index) {
    sim_rank *rank = &world->nodes[index].rank;
    rank->is_open = false;
    memset(rank->peers, 0, sizeof(rank->peers));
    wait_until(world, index, INT64_MAX);
}

/* Both ends belong to the same epoch from now on, and to nobody else. */
static void connect(sim_world *world, uint32_t a, uint32_t b) {
    const uint32_t ends[2] = {a, b};
    sim_link_join(world, sim_link_between(world, a, b));
    for (int side = 0; side < 2; side++) {
        const sim_node *peer = &world->nodes[ends[1 - side]];
        sim_rank *rank = &world->nodes[ends[side]].rank;
        BT_ASSERT(rank->group.own.ep.state == REG_RANK_FORMING && !rank->has_failed);
        BT_ASSERT(rank->group.own.ep.epoch == peer->rank.group.own.ep.epoch);
        rank->peers[peer->rank.group.own.ep.rank] = (sim_peer){.is_up = true, .incarnation = peer->incarnation};
    }
    sim_node_after(world, a);
    sim_node_after(world, b);
}

/* As ep_conn.c has it: who is behind waits or tries again, who comes under an epoch that is over is refused. */
static void dial_event(sim_world *world, uint32_t index, uint64_t epoch, uint32_t to_rank) {
    const sim_node *node = &world->nodes[index], *to = &world->nodes[node_of(world, index, to_rank)];
    const sim_rank *rank = &node->rank, *theirs = &to->rank;
    if (!rank->is_open || rank->has_failed || rank->group.own.ep.epoch != epoch) return;
    char address[REG_CAP_ADDRESS];
    put_address(world, to, address);
    bool is_there = to->incarnation != 0 && strcmp(address, rank->group.members[to_rank].ep.address) == 0 &&
                    sim_link_between(world, index, node_of(world, index, to_rank))->state == SIM_LINK_DOWN;
    uint64_t their_epoch = is_there ? theirs->group.own.ep.epoch : 0;
    if (is_there && sim_chance(world, world->config.dial_ppm)) {
        world->result.n_dials_failed++;
        sim_disturb(world, index, world->now_ns);
    } else if (their_epoch > epoch || (their_epoch == epoch && (!theirs->is_open || theirs->has_failed))) {
        world->result.n_dials_refused++;
        fail(world, index, "refused, the epoch is over");
        sim_node_after(world, index);
        return;
    } else if (their_epoch == epoch && theirs->group.own.ep.state == REG_RANK_FORMING) {
        connect(world, node_of(world, index, to_rank), index);
        return;
    }
    plan_dial(world, index, LOOK_MS * BT_NS_PER_MS, to_rank);
}

/* ---- turns, as wrk_loop.c and wrk_ep.c have them ---------------------------------------------------------------- */

static bool has_all_peers(const sim_rank *rank) {
    for (uint32_t i = 0; i < n_ranks(rank); i++)
        if (i != rank->group.own.ep.rank && !rank->peers[i].is_up) return false;
    return true;
}

static void look(sim_world *world, uint32_t index) {
    sim_node *node = &world->nodes[index];
    sim_rank *rank = &node->rank;
    wrk_group *group = &rank->group;
    if (node->worker->is_draining && !group->own.is_draining) {
        wrk_group_drain(group);
        sim_announce(world, index);
    }
    if (!rank->is_open && wrk_group_begin(group, world->now_ns)) open_exchange(world, index);
    if (group->own.ep.state == REG_RANK_FORMING && rank->has_failed) {
        world->result.n_not_formed++;
        close_exchange(world, index);
        wrk_group_failed(group, world->now_ns);
        sim_announce(world, index);
    } else if (group->own.ep.state == REG_RANK_FORMING && has_all_peers(rank)) {
        world->result.n_formed++;
        sim_trace(world, "%s is in epoch %llu", node->name, (unsigned long long)group->own.ep.epoch);
        wait_until(world, index, INT64_MAX);
        wrk_group_formed(group);
        sim_announce(world, index);
    }
    wrk_sched_set_complete(node->worker, wrk_group_is_complete(group), world->now_ns);
    sim_node_walk(world, index);
}

static uint32_t n_cached(const kv_pool *pool) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < kv_pool_n_blocks(pool); i++) n += kv_pool_is_cached(pool, i);
    return n;
}

static void lose(sim_world *world, uint32_t index) {
    sim_node *node = &world->nodes[index];
    world->result.n_group_lost++;
    sim_trace(world, "%s loses its group%s", node->name, node->rank.is_in_step ? " in a step" : "");
    uint32_t n_known = n_cached(node->pool);
    wrk_sched_lose_group(node->worker, world->now_ns);
    BT_ASSERT(n_cached(node->pool) == n_known); /* what is known stays, what the step half wrote is for nobody */
    sim_node_walk(world, index);
    node->is_stepping = node->rank.is_in_step = false;
    close_exchange(world, index);
    wrk_group_lost(&node->rank.group);
    sim_announce(world, index);
}

static void begin_layer(sim_world *world, uint32_t index) {
    world->nodes[index].rank.is_computing = true;
    wait_until(world, index, INT64_MAX);
    sim_plan(world, world->now_ns + sim_node_layer_ns(world, index), SIM_LAYER, index, 0, NULL);
}

static bool is_called(const sim_rank *rank) {
    for (uint32_t i = 0; i < n_ranks(rank); i++)
        if (rank->peers[i].step > rank->step) return true;
    return false;
}

/* A group without work sleeps: whoever comes to a step without rows, somebody came to it with some. */
static void note_step(sim_world *world, uint32_t index) {
    const sim_rank *rank = &world->nodes[index].rank;
    sim_group *group = &world->groups[node_of(world, index, 0)];
    if (world->nodes[index].is_stepping) {
        group->busy_epoch = rank->group.own.ep.epoch;
        group->busy_step = rank->step;
    } else {
        world->result.n_helped++;
        BT_ASSERT(group->busy_epoch == rank->group.own.ep.epoch && group->busy_step == rank->step);
    }
}

/* true: the group was lost. */
static bool step(sim_world *world, uint32_t index) {
    sim_rank *rank = &world->nodes[index].rank;
    if (!wrk_group_is_formed(&rank->group) || rank->is_computing || (rank->is_in_step && !rank->has_failed))
        return false;
    if (!rank->is_in_step) {
        bool has_rows = sim_node_begin_step(world, index);
        if (!has_rows && !is_called(rank) && !rank->has_failed) return false;
    }
    if (rank->has_failed) {
        lose(world, index);
        return true;
    }
    rank->is_in_step = true;
    rank->step++;
    note_step(world, index);
    post(world, index, SIM_RANK_BEGIN, rank->step);
    begin_layer(world, index);
    return false;
}

/* Waiting for the others' part of a layer: it may have come. */
static void advance(sim_world *world, uint32_t index) {
    sim_node *node = &world->nodes[index];
    sim_rank *rank = &node->rank;
    if (!rank->is_in_step || rank->is_computing || rank->has_failed) return;
    for (uint32_t i = 0; i < n_ranks(rank); i++)
        if (rank->peers[i].is_up && rank->peers[i].n_posted < rank->n_posted) return;
    uint32_t layer = (uint32_t)((rank->n_posted - 1) % SIM_LAYERS);
    if (node->is_stepping && node->worker->layer_done != NULL) {
        node->worker->layer_done(node->worker, layer, world->now_ns);
        sim_node_walk(world, index);
    }
    if (layer + 1 < SIM_LAYERS) {
        begin_layer(world, index);
        return;
    }
    rank->is_in_step = false;
    wait_until(world, index, INT64_MAX);
    wrk_group_stepped(&rank->group, world->now_ns);
    if (node->is_stepping) sim_node_finish_step(world, index);
    sim_node_walk(world, index);
}

static void layer_event(sim_world *world, uint32_t index) {
    sim_rank *rank = &world->nodes[index].rank;
    rank->is_computing = false;
    if (!rank->has_failed) {
        uint32_t layer = (uint32_t)(rank->n_posted % SIM_LAYERS);
        sim_node_compute(world, index, layer);
        post(world, index, SIM_RANK_ROWS, ++rank->n_posted);
        wait_until(world, index, in_ms(world, STEP_MS));
    }
    sim_node_after(world, index);
}

/* Who counts on whom: the living, or somebody of whose end it will hear. */
static void check_peers(sim_world *world, uint32_t index) {
    const sim_rank *rank = &world->nodes[index].rank;
    if (!wrk_group_is_formed(&rank->group) || rank->has_failed) return;
    for (uint32_t i = 0; i < n_ranks(rank); i++) {
        uint32_t node = node_of(world, index, i);
        if (node == index) continue;
        const sim_link *link = sim_link_between(world, index, node);
        BT_ASSERT(rank->peers[i].is_up && (link->state == SIM_LINK_OPEN || link->state == SIM_LINK_BROKEN));
        BT_ASSERT(link->state == SIM_LINK_BROKEN || world->nodes[node].incarnation == rank->peers[i].incarnation);
    }
}

void sim_rank_turn(sim_world *world, uint32_t index) {
    advance(world, index);
    do look(world, index);
    while (step(world, index));
    check_peers(world, index);
}

/* Drained, and not in a step. The peers, too, should not be in one, if nothing was wrong of late. */
bool sim_rank_is_over(const sim_world *world, uint32_t index) {
    const sim_rank *rank = &world->nodes[index].rank;
    if (rank->is_in_step || wrk_group_is_needed(&rank->group, world->now_ns)) return false;
    bool is_calm = world->now_ns > world->groups[node_of(world, index, 0)].calm_ns + STEP_MS * (int64_t)BT_NS_PER_MS;
    for (uint32_t i = 0; i < n_ranks(rank) && is_calm; i++)
        BT_ASSERT(!rank->peers[i].is_up || !world->nodes[node_of(world, index, i)].rank.is_in_step);
    return true;
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

void sim_rank_start(sim_world *world, uint32_t index) {
    sim_node *node = &world->nodes[index];
    sim_rank *rank = &node->rank;
    uint32_t first, n = sim_ranks_of(world, index, &first);
    const wrk_group_options options = {.retry_ms = RETRY_MS, .quiet_ms = QUIET_MS};
    if (n < 2) return;
    reg_worker own = {.role = node->role, .incarnation = node->incarnation};
    snprintf(own.name, sizeof(own.name), "%s", node->name);
    snprintf(own.ep.group, sizeof(own.ep.group), "%s", world->nodes[first].name);
    own.ep.rank = index - first;
    own.ep.size = n;
    put_address(world, node, own.ep.address);
    wrk_group_init(&rank->group, &own, &options);
    rank->late_ns = rank->watch_ns = INT64_MAX;
    wrk_sched_set_complete(node->worker, false, world->now_ns);
    sim_disturb(world, index, world->now_ns);
    sim_announce(world, index);
    sim_registry_read(world, index);
}

void sim_rank_stop(sim_world *world, uint32_t index) {
    enum { LEAST_LEASE_MS = 100, MORE_LEASE_MS = 200 };
    sim_node *node = &world->nodes[index];
    if (!sim_is_rank(node)) return;
    int64_t lease_ns = LEAST_LEASE_MS * (int64_t)BT_NS_PER_MS + sim_below(world, MORE_LEASE_MS * BT_NS_PER_MS);
    sim_registry_forget(world, index, lease_ns);
    wrk_group_fini(&node->rank.group);
}

void sim_rank_event(sim_world *world, const sim_event *event) {
    switch (event->kind) {
    case SIM_DIAL:
        dial_event(world, event->node, event->a >> 8, (uint32_t)(event->a & UINT8_MAX));
        break;
    case SIM_RANK_MESSAGE:
        message_event(world, event->node, event->payload);
        break;
    case SIM_RANK_LATE:
        late_event(world, event->node);
        break;
    case SIM_CALM:
        calm_event(world, event->node);
        break;
    default:
        layer_event(world, event->node);
    }
}
