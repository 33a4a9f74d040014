/* The transfer layer: a sender per connection that works in order, pushes whose bytes are read late and land later, and
 * decode's table of leases that says what may land. Real cells are copied, so what the cores do wrong shows in tokens.
 */
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

enum { ROWS = 64, PUSH_NS_PER_BLOCK = 20000, LAND_NS = 100000 };

static uint64_t *cells_of(const sim_node *node, uint32_t layer, uint32_t block) {
    return node->cells + ((size_t)layer * kv_pool_n_blocks(node->pool) + block) * ROWS;
}

static uint64_t push_hash(const uint64_t *cells, uint32_t n_rows, uint32_t layer, uint32_t block) {
    uint64_t hash = sim_mix((uint64_t)layer << 32 | block);
    for (uint32_t i = 0; i < n_rows; i++) hash = sim_mix(hash ^ cells[i]);
    return hash;
}

void sim_transfer_release(sim_transfer *transfer) {
    if (--transfer->n_refs > 0) return;
    free(transfer->blocks);
    free(transfer->cells);
    free(transfer);
}

/* ---- prefill's side --------------------------------------------------------------------------------------------- */

static bt_key sum_key(uint64_t peer, uint64_t lease) { return (bt_key){peer, lease, 0}; }

static uint64_t *sum_of(sim_node *node, uint64_t peer, uint64_t lease) {
    uint32_t index = bt_map_get(&node->sent_sums, sum_key(peer, lease));
    if (index == BT_MAP_NONE) {
        if (node->n_sums == node->cap_sums) {
            node->cap_sums = node->cap_sums * 2 + 256;
            node->sums = bt_realloc(node->sums, node->cap_sums, sizeof(uint64_t));
        }
        index = node->n_sums++;
        node->sums[index] = 0;
        bt_map_put(&node->sent_sums, sum_key(peer, lease), index);
    }
    return &node->sums[index];
}

/* When the sender has done all that was asked of it before, and this. */
static int64_t send_slot_ns(sim_world *world, sim_link *link, uint32_t n_blocks) {
    if (link->busy_ns < world->now_ns) link->busy_ns = world->now_ns;
    return link->busy_ns += 1000 + (int64_t)n_blocks * PUSH_NS_PER_BLOCK;
}

void sim_kv_push(sim_world *world, uint32_t node, uint64_t peer, const kvt_push_args *push, uint64_t push_id) {
    sim_transfer *transfer = bt_calloc(1, sizeof(*transfer));
    *transfer = (sim_transfer){.link = UINT32_MAX,
                               .from = node,
                               .push_id = push_id,
                               .lease = push->lease,
                               .layer = push->layer,
                               .first_block = push->first_block,
                               .n_blocks = push->n_blocks,
                               .n_rows_last = push->n_rows_last,
                               .blocks = bt_calloc(push->n_blocks, sizeof(uint32_t)),
                               .n_refs = 1};
    memcpy(transfer->blocks, push->blocks, push->n_blocks * sizeof(uint32_t));
    uint32_t to = sim_node_of(world, peer);
    sim_link *link = to == UINT32_MAX ? NULL : sim_link_between(world, node, to);
    int64_t at_ns = world->now_ns + 1000;
    if (link != NULL && link->state == SIM_LINK_OPEN) {
        transfer->link = (uint32_t)(link - world->links);
        transfer->epoch = link->epoch;
        at_ns = send_slot_ns(world, link, push->n_blocks);
    }
    sim_plan(world, at_ns, SIM_KV_READ, node, peer, transfer);
}

/* The bytes leave: until now they had to be there, and whoever freed them early sends something else. */
static void read_event(sim_world *world, const sim_event *event) {
    sim_transfer *transfer = event->payload;
    sim_node *node = &world->nodes[event->node];
    sim_link *link = transfer->link == UINT32_MAX ? NULL : &world->links[transfer->link];
    uint64_t n_bytes = 0;
    if (link != NULL && link->epoch == transfer->epoch) {
        transfer->cells = bt_calloc((size_t)transfer->n_blocks * ROWS, sizeof(uint64_t));
        for (uint32_t i = 0; i < transfer->n_blocks; i++) {
            uint32_t n_rows = i + 1 == transfer->n_blocks ? transfer->n_rows_last : ROWS;
            uint64_t *cells = &transfer->cells[(size_t)i * ROWS];
            BT_ASSERT(kv_pool_n_holders(node->pool, transfer->blocks[i]) > 0); /* rule 3 */
            memcpy(cells, cells_of(node, transfer->layer, transfer->blocks[i]), n_rows * sizeof(uint64_t));
            *sum_of(node, event->a, transfer->lease) +=
                push_hash(cells, n_rows, transfer->layer, transfer->first_block + i);
            n_bytes += n_rows * sizeof(uint64_t);
            if (sim_chance(world, world->config.damage_ppm)) {
                cells[sim_below(world, n_rows)] ^= 1;
                world->result.n_damaged++;
            }
            if (sim_chance(world, world->config.loss_ppm)) {
                transfer->lost |= 1u << i;
                world->result.n_lost++;
                continue;
            }
            /* A push may be late for itself: COMMIT can overtake it, as a rendezvous is overtaken. */
            int64_t at_ns = sim_arrival_ns(world, link, 1);
            if (sim_below(world, 4) == 0) at_ns += sim_exponential_ns(world, LAND_NS);
            transfer->n_refs++;
            sim_plan(world, at_ns, SIM_KV_ARRIVE, link->node[1], i, transfer);
        }
    }
    node->worker->push_done(node->worker, transfer->push_id, n_bytes, world->now_ns);
    sim_node_after(world, event->node);
}

void sim_kv_send(sim_world *world, uint32_t node, uint64_t peer, const wire_message *message) {
    uint32_t to = sim_node_of(world, peer);
    sim_link *link = to == UINT32_MAX ? NULL : sim_link_between(world, node, to);
    if (link == NULL || link->state != SIM_LINK_OPEN) return; /* lost */
    bt_buf_clear(&world->scratch);
    wire_encode(message, &world->scratch);
    sim_frame *frame = bt_calloc(1, sizeof(*frame) + world->scratch.n_bytes);
    *frame = (sim_frame){(uint32_t)(link - world->links), link->epoch, node, world->scratch.n_bytes};
    memcpy(frame->bytes, world->scratch.bytes, frame->n_bytes);
    sim_plan(world, send_slot_ns(world, link, 0), SIM_KV_SEND, node, peer, frame);
}

static void send_event(sim_world *world, const sim_event *event) {
    const sim_frame *frame = event->payload;
    if (world->links[frame->link].epoch != frame->epoch) return;
    bt_arena arena = {0};
    wire_message message;
    BT_ASSERT(wire_decode(frame->bytes, frame->n_bytes, &arena, &message, NULL) == BT_OK);
    if (message.type == WIRE_COMMIT)
        message.commit.checksum = *sum_of(&world->nodes[event->node], event->a, message.commit.lease);
    sim_send(world, event->node, event->a, &message);
    bt_arena_fini(&arena);
}

void sim_kv_connect(sim_world *world, uint32_t node, uint64_t incarnation) {
    sim_plan(world, world->now_ns + 200000 + sim_exponential_ns(world, 300000), SIM_KV_CONNECT, node, incarnation,
             NULL);
}

static void connect_event(sim_world *world, const sim_event *event) {
    uint32_t to = sim_node_of(world, event->a);
    sim_link *link = to == UINT32_MAX ? NULL : sim_link_between(world, event->node, to);
    wrk_sched *prefill = world->nodes[event->node].worker;
    if (link == NULL) {
        prefill->peer_gone(prefill, event->a, world->now_ns);
    } else if (link->state == SIM_LINK_DOWN) {
        sim_link_join(world, link);
        prefill->peer_up(prefill, event->a, world->now_ns);
    } else { /* a side has not noticed yet that the last one broke */
        sim_plan(world, world->now_ns + 5000000, SIM_KV_CONNECT, event->node, event->a, NULL);
        return;
    }
    sim_node_after(world, event->node);
}

/* ---- decode's side ---------------------------------------------------------------------------------------------- */

static sim_lease *find_lease(const sim_node *node, uint64_t lease) {
    for (uint32_t i = 0; i < node->n_leases; i++)
        if (node->leases[i]->lease == lease) return node->leases[i];
    return NULL;
}

void sim_lease_open(sim_world *world, uint32_t index, uint64_t peer, const kvt_lease_args *open) {
    (void)world;
    sim_node *node = &world->nodes[index];
    sim_lease *lease = bt_calloc(1, sizeof(*lease));
    lease->lease = open->lease;
    lease->peer = peer;
    lease->first_block = open->first_block;
    lease->n_blocks = open->n_blocks;
    lease->n_tokens = open->n_tokens;
    for (uint32_t i = open->first_block; i < open->n_blocks; i++) {
        uint32_t block = lease->blocks[i] = open->blocks[i];
        BT_ASSERT(node->kv_owner[block] == 0);            /* rule 3: nothing may land there for anybody else */
        BT_ASSERT(!kv_pool_is_cached(node->pool, block)); /* rule 2 */
        node->kv_owner[block] = open->lease;
    }
    if (node->n_leases == node->cap_leases) {
        node->cap_leases = node->cap_leases * 2 + 16;
        node->leases = bt_realloc(node->leases, node->cap_leases, sizeof(sim_lease *));
    }
    node->leases[node->n_leases++] = lease;
}

static void close_if_done(sim_world *world, uint32_t index, sim_lease *lease) {
    if (!lease->is_closing || lease->has_stopped) return;
    if (lease->n_in_flight > 0 || lease->n_landed < lease->n_wanted) return;
    lease->has_stopped = true;
    sim_plan(world, world->now_ns + 1000 + sim_below(world, 50000), SIM_LEASE_CLOSED, index, lease->lease, NULL);
}

void sim_lease_close(sim_world *world, uint32_t index, uint64_t id, uint32_t n_pushes) {
    sim_lease *lease = find_lease(&world->nodes[index], id);
    BT_ASSERT(lease != NULL);
    lease->is_closing = true;
    lease->n_wanted = n_pushes;
    close_if_done(world, index, lease);
}

static void closed_event(sim_world *world, const sim_event *event) {
    sim_node *node = &world->nodes[event->node];
    uint32_t at = 0;
    while (node->leases[at]->lease != event->a) at++;
    sim_lease *lease = node->leases[at];
    node->leases[at] = node->leases[--node->n_leases];
    for (uint32_t i = lease->first_block; i < lease->n_blocks; i++) {
        BT_ASSERT(node->kv_owner[lease->blocks[i]] == lease->lease);
        node->kv_owner[lease->blocks[i]] = 0;
    }
    node->worker->lease_closed(node->worker, lease->lease, lease->n_landed, lease->checksum, world->now_ns);
    free(lease);
    sim_node_after(world, event->node);
}

static uint32_t n_rows_of(const sim_transfer *transfer, uint32_t i) {
    return i + 1 == transfer->n_blocks ? transfer->n_rows_last : ROWS;
}

/* A push has come: refused, or it begins to land. The check is the one that WRK_LEASE_OPEN asks for. */
static void arrive_event(sim_world *world, const sim_event *event) {
    sim_transfer *transfer = event->payload;
    uint32_t i = (uint32_t)event->a, block = transfer->first_block + i;
    if (world->links[transfer->link].epoch != transfer->epoch) return;
    sim_lease *lease = find_lease(&world->nodes[event->node], transfer->lease);
    if (lease == NULL || lease->has_stopped || (lease->is_closing && lease->n_wanted == 0)) return;
    if (lease->peer != world->nodes[transfer->from].incarnation) return;
    uint32_t n_left = lease->n_tokens - block * ROWS;
    BT_ASSERT(transfer->layer < SIM_LAYERS && block >= lease->first_block && block < lease->n_blocks);
    BT_ASSERT(n_rows_of(transfer, i) == (n_left < ROWS ? n_left : ROWS) && !lease->seen[transfer->layer][block]);
    lease->seen[transfer->layer][block] = 1;
    lease->n_in_flight++;
    transfer->n_refs++;
    sim_plan(world, world->now_ns + sim_exponential_ns(world, LAND_NS), SIM_KV_LAND, event->node, event->a, transfer);
}

static void land_event(sim_world *world, const sim_event *event) {
    const sim_transfer *transfer = event->payload;
    sim_node *node = &world->nodes[event->node];
    uint32_t i = (uint32_t)event->a, block = transfer->first_block + i, n_rows = n_rows_of(transfer, i);
    sim_lease *lease = find_lease(node, transfer->lease);
    BT_ASSERT(lease != NULL && lease->n_in_flight > 0);
    uint32_t to = lease->blocks[block];
    BT_ASSERT(node->kv_owner[to] == lease->lease && kv_pool_n_holders(node->pool, to) > 0); /* rule 3 */
    uint64_t *cells = cells_of(node, transfer->layer, to);
    memcpy(cells, &transfer->cells[(size_t)i * ROWS], n_rows * sizeof(uint64_t));
    lease->checksum += push_hash(cells, n_rows, transfer->layer, block);
    lease->n_landed++;
    lease->n_in_flight--;
    close_if_done(world, event->node, lease);
}

void sim_kv_event(sim_world *world, const sim_event *event) {
    switch (event->kind) {
    case SIM_KV_SEND:
        send_event(world, event);
        break;
    case SIM_KV_READ:
        read_event(world, event);
        break;
    case SIM_KV_ARRIVE:
        arrive_event(world, event);
        break;
    case SIM_KV_LAND:
        land_event(world, event);
        break;
    case SIM_KV_CONNECT:
        connect_event(world, event);
        break;
    default:
        closed_event(world, event);
    }
}

void sim_node_forget_kv(sim_world *world, sim_node *node) {
    (void)world;
    for (uint32_t i = 0; i < node->n_leases; i++) free(node->leases[i]);
    free(node->leases);
    free(node->kv_owner);
    free(node->cells);
    free(node->sums);
    bt_map_fini(&node->sent_sums);
}
