/* Links: ordered, late, and lost without notice. A break is noticed by each side some time later; only when both have
 * noticed may the link come up again, as a new connection. */
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

enum { LATENCY_US = 150, NOTICE_MS = 20, STALL_MS = 400 };

uint32_t sim_node_of(const sim_world *world, uint64_t incarnation) {
    for (uint32_t i = 0; i < world->n_nodes; i++)
        if (incarnation != 0 && world->nodes[i].incarnation == incarnation) return i;
    return UINT32_MAX;
}

sim_link *sim_link_between(sim_world *world, uint32_t a, uint32_t b) {
    for (uint32_t i = 0; i < world->n_links; i++) {
        sim_link *link = &world->links[i];
        if ((link->node[0] == a && link->node[1] == b) || (link->node[0] == b && link->node[1] == a)) return link;
    }
    return NULL;
}

int64_t sim_arrival_ns(sim_world *world, sim_link *link, int side) {
    int64_t at_ns = world->now_ns + 20000 + sim_exponential_ns(world, LATENCY_US * BT_NS_PER_US);
    if (sim_chance(world, world->config.stall_ppm)) {
        at_ns += sim_below(world, 8) == 0 ? 5 * STALL_MS * (int64_t)BT_NS_PER_MS : STALL_MS * (int64_t)BT_NS_PER_MS;
        world->result.n_stalls++;
        if (link->kind == SIM_RANKS) sim_disturb(world, link->node[side], at_ns);
    }
    if (at_ns < link->last_ns[side]) at_ns = link->last_ns[side];
    return link->last_ns[side] = at_ns;
}

static void plan_frame(sim_world *world, sim_link *link, uint32_t from, const bt_buf *bytes) {
    int to = link->node[0] == from ? 1 : 0;
    sim_frame *frame = bt_calloc(1, sizeof(*frame) + bytes->n_bytes);
    *frame = (sim_frame){(uint32_t)(link - world->links), link->epoch, from, bytes->n_bytes};
    memcpy(frame->bytes, bytes->bytes, bytes->n_bytes);
    sim_plan(world, sim_arrival_ns(world, link, to), SIM_MESSAGE, link->node[to], 0, frame);
}

void sim_send(sim_world *world, uint32_t from, uint64_t to_incarnation, const wire_message *message) {
    uint32_t to = sim_node_of(world, to_incarnation);
    sim_link *link = to == UINT32_MAX ? NULL : sim_link_between(world, from, to);
    if (link == NULL || link->state == SIM_LINK_DOWN || link->state == SIM_LINK_BROKEN) return; /* lost */
    bt_buf_clear(&world->scratch);
    wire_encode(message, &world->scratch);
    plan_frame(world, link, from, &world->scratch);
}

/* ---- up and down ------------------------------------------------------------------------------------------------ */

void sim_link_open(sim_world *world, sim_link *link) {
    BT_ASSERT(link->state == SIM_LINK_DOWN);
    link->state = SIM_LINK_OPENING;
    link->epoch++;
    link->is_up[0] = link->is_up[1] = false;
    link->busy_ns = world->now_ns;
    for (int side = 0; side < 2; side++) { /* whatever is sent to a side comes after it */
        link->last_ns[side] = world->now_ns + 100000 + sim_below(world, 2000000);
        sim_plan(world, link->last_ns[side], SIM_LINK_UP, link->node[side],
                 (uint64_t)link->epoch << 32 | (uint64_t)(link - world->links), NULL);
    }
}

void sim_link_join(sim_world *world, sim_link *link) {
    BT_ASSERT(link->state == SIM_LINK_DOWN);
    link->state = SIM_LINK_OPEN;
    link->epoch++;
    link->busy_ns = world->now_ns;
    for (int side = 0; side < 2; side++) {
        link->is_up[side] = true;
        link->peer[side] = world->nodes[link->node[1 - side]].incarnation;
        link->last_ns[side] = world->now_ns;
    }
}

void sim_link_part(sim_link *link) {
    link->state = SIM_LINK_DOWN;
    link->epoch++;
}

static void side_has_gone(sim_world *world, sim_link *link, int side) {
    link->has_gone[side] = true;
    if (!link->has_gone[0] || !link->has_gone[1]) return;
    link->state = SIM_LINK_DOWN;
    bool both_live = world->nodes[link->node[0]].incarnation != 0 && world->nodes[link->node[1]].incarnation != 0;
    if (link->kind == SIM_CONTROL && both_live)
        sim_link_open(world, link); /* a gateway dials again, others when they need it */
}

void sim_link_break(sim_world *world, sim_link *link) {
    if (link->state == SIM_LINK_DOWN) return;
    if (link->state == SIM_LINK_BROKEN) { /* a side may have died before it noticed */
        for (int side = 0; side < 2 && link->state == SIM_LINK_BROKEN; side++)
            if (!link->has_gone[side] && world->nodes[link->node[side]].incarnation == 0)
                side_has_gone(world, link, side);
        return;
    }
    link->state = SIM_LINK_BROKEN;
    link->epoch++;
    link->has_gone[0] = link->has_gone[1] = false;
    for (int side = 0; side < 2; side++) {
        if (link->state != SIM_LINK_BROKEN) break;
        if (world->nodes[link->node[side]].incarnation == 0 || !link->is_up[side]) {
            side_has_gone(world, link, side); /* dead, or never heard of it */
        } else {
            int64_t at_ns = world->now_ns + sim_exponential_ns(world, NOTICE_MS * (int64_t)BT_NS_PER_MS);
            sim_plan(world, at_ns, SIM_LINK_GONE, link->node[side],
                     (uint64_t)link->epoch << 32 | (uint64_t)(link - world->links), NULL);
        }
    }
}

static void tell_up(sim_world *world, const sim_link *link, int side) {
    sim_node *node = &world->nodes[link->node[side]];
    const sim_node *peer = &world->nodes[link->node[1 - side]];
    sim_trace(world, "%s link up %s", node->name, peer->name);
    if (node->role == WIRE_ROLE_GATEWAY) {
        const reg_rank *ep = &world->registry[link->node[1 - side]].ep;
        gw_worker known = {.role = peer->role,
                           .incarnation = peer->incarnation,
                           .is_incomplete = sim_is_rank(peer) && ep->state != REG_RANK_FORMED};
        snprintf(known.name, sizeof(known.name), "%s", peer->name);
        snprintf(known.kv_address, sizeof(known.kv_address), "%s:1", peer->name);
        gw_core_worker_up(node->gateway, &known, world->now_ns);
    } else if (link->kind == SIM_KV) {
        node->worker->peer_up(node->worker, peer->incarnation, world->now_ns);
    } else {
        node->worker->gateway_up(node->worker, peer->incarnation, world->now_ns);
    }
}

/* a: the peer's incarnation of that connection; it may be another one by now. */
static void tell_gone(sim_world *world, const sim_link *link, int side, uint64_t peer) {
    sim_node *node = &world->nodes[link->node[side]];
    sim_trace(world, "%s link gone %s", node->name, world->nodes[link->node[1 - side]].name);
    if (node->role == WIRE_ROLE_GATEWAY) {
        gw_core_worker_gone(node->gateway, peer, world->now_ns);
    } else if (link->kind == SIM_RANKS) {
        sim_rank_gone(world, link->node[side], peer);
    } else if (link->kind == SIM_KV) {
        node->worker->peer_gone(node->worker, peer, world->now_ns);
    } else {
        node->worker->gateway_gone(node->worker, peer, world->now_ns);
    }
}

void sim_link_event(sim_world *world, const sim_event *event) {
    sim_link *link = &world->links[event->a & UINT32_MAX];
    if (event->a >> 32 != link->epoch) return;
    int side = link->node[0] == event->node ? 0 : 1;
    if (event->kind == SIM_LINK_UP) {
        link->is_up[side] = true;
        link->peer[side] = world->nodes[link->node[1 - side]].incarnation;
        if (link->is_up[0] && link->is_up[1]) link->state = SIM_LINK_OPEN;
        tell_up(world, link, side);
        sim_node_after(world, event->node);
        return;
    }
    tell_gone(world, link, side, link->peer[side]);
    sim_node_after(world, event->node);
    side_has_gone(world, link, side);
}

/* ---- messages --------------------------------------------------------------------------------------------------- */

/* The request that a message is about; NULL: none, or several. */
static const wire_request *request_of(const wire_message *message) {
    switch (message->type) {
    case WIRE_ACCEPTED:
        return &message->accepted.request;
    case WIRE_COMMITTED:
        return &message->committed.request;
    case WIRE_COMMIT_FAILED:
        return &message->commit_failed.request;
    case WIRE_COMMIT:
        return &message->commit.request;
    case WIRE_FAILED:
        return &message->failed.request;
    case WIRE_FINISHED:
        return &message->finished.request;
    case WIRE_CANCEL:
        return &message->cancel.request;
    case WIRE_RESERVED:
        return &message->reserved.request;
    case WIRE_REFUSED:
        return &message->refused.request;
    case WIRE_HANDED_OFF:
        return &message->handed_off.request;
    default:
        return NULL;
    }
}

void sim_message_event(sim_world *world, const sim_event *event) {
    const sim_frame *frame = event->payload;
    const sim_link *link = &world->links[frame->link];
    if (frame->epoch != link->epoch) return; /* lost with its connection */
    sim_node *node = &world->nodes[event->node];
    uint64_t peer = world->nodes[frame->from].incarnation;
    bt_arena arena = {0};
    wire_message message;
    bt_error err;
    BT_ASSERT(wire_decode(frame->bytes, frame->n_bytes, &arena, &message, &err) == BT_OK);
    if (world->config.is_traced) {
        const wire_request *r = request_of(&message);
        sim_trace(world, "%s <- %s %s %llu/%u", node->name, world->nodes[frame->from].name,
                  wire_type_name(message.type), r ? (unsigned long long)r->serial : 0, r ? r->attempt : 0);
    }
    for (size_t i = 0; i < frame->n_bytes; i++)
        world->result.history_hash = (world->result.history_hash ^ frame->bytes[i]) * 0x100000001b3u;
    if (node->role == WIRE_ROLE_GATEWAY) {
        gw_core_message(node->gateway, peer, &message, world->now_ns);
    } else if (link->kind == SIM_KV) {
        node->worker->peer_message(node->worker, peer, &message, world->now_ns);
    } else {
        node->worker->gateway_message(node->worker, peer, &message, world->now_ns);
    }
    sim_node_after(world, event->node);
    if (request_of(&message) != NULL) sim_check_baton(world, request_of(&message));
    bt_arena_fini(&arena);
}
