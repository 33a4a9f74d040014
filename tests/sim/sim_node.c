/* A process: its core, the carrying out of its actions, its steps, and the model that they run. */
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

enum { ROWS = 64 };

/* ---- the model -------------------------------------------------------------------------------------------------- */

uint64_t sim_cell(uint64_t before, uint32_t token, krn_form form) {
    return sim_mix(before ^ ((uint64_t)token + 1) * 0x9e3779b97f4a7c15u ^ (form == KRN_EXPANDED ? 0 : 0x5bd1e995));
}

uint32_t sim_draw(uint64_t cell, const wire_sampling *sampling, uint32_t position, const uint32_t *banned,
                  uint32_t n_banned) {
    for (uint64_t i = 0;; i++) {
        uint32_t token = (uint32_t)(sim_mix(cell ^ sampling->seed ^ (uint64_t)position << 40 ^ i << 20) % SIM_VOCAB);
        bool is_banned = false;
        for (uint32_t b = 0; b < n_banned; b++) is_banned |= banned[b] == token;
        if (!is_banned) return token;
    }
}

static uint64_t *cell_at(const sim_node *node, const krn_sequence *sequence, uint32_t layer, uint32_t position) {
    uint32_t block = sequence->blocks[position / ROWS], n_blocks = kv_pool_n_blocks(node->pool);
    BT_ASSERT(block < n_blocks && kv_pool_n_holders(node->pool, block) > 0); /* rule 3 */
    return &node->cells[((size_t)layer * n_blocks + block) * ROWS + position % ROWS];
}

static void write_cell(sim_node *node, const krn_sequence *sequence, uint32_t layer, uint32_t position, uint64_t cell) {
    uint32_t block = sequence->blocks[position / ROWS];
    BT_ASSERT(kv_pool_n_holders(node->pool, block) == 1 && !kv_pool_is_cached(node->pool, block)); /* rule 2 */
    *cell_at(node, sequence, layer, position) = cell;
}

/* One layer of a sequence's rows: each reads what the cache holds before it. */
static void compute(sim_node *node, const krn_sequence *sequence, uint32_t layer) {
    for (uint32_t i = 0; i < sequence->n_rows; i++) {
        uint32_t position = sequence->position + i;
        uint64_t before = position == 0 ? 0 : *cell_at(node, sequence, layer, position - 1);
        BT_ASSERT(sequence->token_ids[i] < SIM_VOCAB);
        write_cell(node, sequence, layer, position, sim_cell(before, sequence->token_ids[i], sequence->form));
    }
}

/* Attention reads everything: is the chain of cells whole, in every layer, up to n_positions? Computed, transferred and
 * reused blocks alike. A position may have either form here; the last cell tells them apart, and the oracle knows it.
 */
static void check_cells(const sim_node *node, const krn_sequence *sequence, uint32_t n_positions) {
    const uint32_t *tokens = sequence->token_ids - sequence->position; /* the core's array starts at position 0 */
    for (uint32_t layer = 0; layer < SIM_LAYERS; layer++) {
        uint64_t before = 0;
        for (uint32_t position = 0; position < n_positions; position++) {
            uint64_t cell = *cell_at(node, sequence, layer, position);
            BT_ASSERT(cell == sim_cell(before, tokens[position], KRN_EXPANDED) ||
                      cell == sim_cell(before, tokens[position], KRN_ABSORBED));
            before = cell;
        }
    }
}

static uint32_t draw_after(const sim_node *node, const krn_sequence *sequence, const krn_draw_args *draw) {
    uint32_t last = sequence->position + sequence->n_rows - 1;
    BT_ASSERT(draw->n_tokens == last + 1);
    uint64_t cell = *cell_at(node, sequence, 0, last);
    for (uint32_t layer = 1; layer < SIM_LAYERS; layer++) BT_ASSERT(*cell_at(node, sequence, layer, last) == cell);
    return sim_draw(cell, draw->sampling, draw->n_tokens, draw->banned, draw->n_banned);
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

static void check_step(const sim_world *world, const sim_node *node) {
    const sim_config *c = &world->config;
    const wrk_step *step = &node->step;
    bool is_prefill = node->role == WIRE_ROLE_PREFILL;
    uint32_t n_rows = 0;
    for (uint32_t i = 0; i < step->n_sequences; i++) n_rows += step->sequences[i].n_rows;
    BT_ASSERT(n_rows == step->n_rows &&
              n_rows <= (is_prefill ? c->max_batched_tokens : c->max_num_seqs + c->spare_rows));
    BT_ASSERT(step->n_sequences > 0 && step->n_sequences <= (is_prefill ? c->max_batched_seqs : c->max_num_seqs));
    for (uint32_t i = 0; i < step->n_sequences && is_prefill; i++)
        check_cells(node, &step->sequences[i], step->sequences[i].position);
}

/* Decode's rows are computed at the end, whatever has been written of them before; prefill's were with each layer. */
static void compute_decode(sim_node *node, const krn_sequence *sequence) {
    for (uint32_t b = 0; b <= (sequence->position + sequence->n_rows - 1) / ROWS; b++)
        BT_ASSERT(node->kv_owner[sequence->blocks[b]] == 0); /* rule 3: nothing lands there any more */
    for (uint32_t layer = 0; layer < SIM_LAYERS; layer++) compute(node, sequence, layer);
    check_cells(node, sequence, sequence->position + sequence->n_rows);
}

void sim_node_finish_step(sim_world *world, uint32_t index) {
    sim_node *node = &world->nodes[index];
    const wrk_step *step = &node->step;
    uint32_t tokens[64], n = 0;
    BT_ASSERT(step->n_samples <= 64);
    for (uint32_t i = 0; i < step->n_sequences; i++) {
        const krn_sequence *sequence = &step->sequences[i];
        if (node->role == WIRE_ROLE_DECODE) compute_decode(node, sequence);
        if (sequence->n_logits == 0) continue;
        tokens[n] = draw_after(node, sequence, &step->samples[n].draw);
        node->logprobs[n].rank = tokens[n];
        n++;
    }
    BT_ASSERT(n == step->n_samples);
    node->is_stepping = false;
    node->worker->step_done(node->worker, tokens, node->logprobs, world->now_ns);
}

int64_t sim_node_layer_ns(sim_world *world, uint32_t index) {
    const sim_node *node = &world->nodes[index];
    int64_t n_rows = node->step.n_rows;
    if (node->role == WIRE_ROLE_PREFILL) return 200000 + n_rows * 2000 + sim_below(world, 100000);
    return (500000 + n_rows * 20000 + sim_below(world, 200000)) / SIM_LAYERS;
}

void sim_node_compute(sim_world *world, uint32_t index, uint32_t layer) {
    sim_node *node = &world->nodes[index];
    for (uint32_t i = 0; i < node->step.n_sequences; i++) compute(node, &node->step.sequences[i], layer);
}

bool sim_node_begin_step(sim_world *world, uint32_t index) {
    sim_node *node = &world->nodes[index];
    node->step = (wrk_step){0};
    node->is_stepping = node->worker->step_begin(node->worker, world->now_ns, &node->step);
    sim_node_walk(world, index);
    if (node->is_stepping) check_step(world, node);
    return node->is_stepping;
}

/* Without a group its end is known beforehand. */
static void step_alone(sim_world *world, uint32_t index) {
    if (!sim_node_begin_step(world, index)) return;
    bool has_layers = world->nodes[index].worker->layer_done != NULL;
    int64_t layer_ns = sim_node_layer_ns(world, index), draw_ns = has_layers ? 50000 : 0;
    for (uint32_t layer = 0; layer < SIM_LAYERS && has_layers; layer++)
        sim_plan(world, world->now_ns + layer_ns * (layer + 1), SIM_LAYER, index, layer, NULL);
    sim_plan(world, world->now_ns + layer_ns * SIM_LAYERS + draw_ns, SIM_STEP_DONE, index, 0, NULL);
}

void sim_node_step_event(sim_world *world, const sim_event *event) {
    wrk_sched *worker = world->nodes[event->node].worker;
    if (event->kind == SIM_LAYER) {
        sim_node_compute(world, event->node, (uint32_t)event->a);
        worker->layer_done(worker, (uint32_t)event->a, world->now_ns);
    } else {
        sim_node_finish_step(world, event->node);
    }
    sim_node_after(world, event->node);
}

/* ---- carrying out ----------------------------------------------------------------------------------------------- */

static void broadcast(sim_world *world, uint32_t from, const wire_message *message) {
    for (uint32_t i = 0; i < world->n_nodes; i++)
        if (world->nodes[i].role == WIRE_ROLE_GATEWAY) sim_send(world, from, world->nodes[i].incarnation, message);
}

static void walk_gateway(sim_world *world, uint32_t index) {
    gw_action action;
    while (gw_core_next(world->nodes[index].gateway, &action)) {
        if (action.kind == GW_SEND) {
            world->result.n_attempts += action.message.type == WIRE_SUBMIT;
            sim_send(world, index, action.peer, &action.message);
        } else {
            sim_client_hear(world, index, &action);
        }
    }
}

/* Only a whole group takes what is new, and only one that is formed has anything. Decode's ACCEPTED may be about a
 * request that it has and that pauses. */
static void check_taken(const sim_node *node, const wire_message *message) {
    bool is_accepted = message->type == WIRE_ACCEPTED;
    bool is_new = message->type == WIRE_RESERVED || (is_accepted && node->role == WIRE_ROLE_PREFILL);
    bool is_old = message->type == WIRE_COMMITTED || message->type == WIRE_TOKENS || is_accepted;
    if (!sim_is_rank(node) || (!is_new && !is_old)) return;
    BT_ASSERT(wrk_group_is_formed(&node->rank.group));
    for (uint32_t i = 0; i < node->rank.group.own.ep.size; i++) BT_ASSERT(!is_new || !node->rank.is_leaving[i]);
}

void sim_node_walk(sim_world *world, uint32_t index) {
    sim_node *node = &world->nodes[index];
    wrk_action action;
    while (wrk_sched_next(node->worker, &action)) {
        switch (action.kind) {
        case WRK_SEND_GATEWAY:
            check_taken(node, &action.message);
            sim_send(world, index, action.peer, &action.message);
            break;
        case WRK_BROADCAST:
            broadcast(world, index, &action.message);
            break;
        case WRK_SEND_PEER:
            check_taken(node, &action.message);
            if (node->role == WIRE_ROLE_PREFILL)
                sim_kv_send(world, index, action.peer, &action.message);
            else
                sim_send(world, index, action.peer, &action.message);
            break;
        case WRK_CONNECT:
            sim_kv_connect(world, index, action.peer);
            break;
        case WRK_PUSH:
            sim_kv_push(world, index, action.peer, &action.push, action.push_id);
            break;
        case WRK_LEASE_OPEN:
            sim_lease_open(world, index, action.peer, &action.lease_open);
            break;
        case WRK_LEASE_CLOSE:
            sim_lease_close(world, index, action.lease_close.lease, action.lease_close.n_pushes);
            break;
        case WRK_DRAINED:
            node->is_drained = true;
            if (sim_is_rank(node)) wrk_group_leave(&node->rank.group, world->now_ns);
        }
    }
}

static void plan_tick(sim_world *world, uint32_t index, int64_t deadline_ns) {
    sim_node *node = &world->nodes[index];
    if (deadline_ns >= node->tick_ns || deadline_ns == INT64_MAX) return;
    node->tick_ns = deadline_ns > world->now_ns ? deadline_ns : world->now_ns;
    sim_plan(world, node->tick_ns, SIM_TICK, index, 0, NULL);
}

/* A drained worker has nothing of anybody: then it goes, and comes back some time later. */
static void exit_drained(sim_world *world, uint32_t index) {
    sim_node *node = &world->nodes[index];
    BT_ASSERT(kv_pool_n_free(node->pool) == kv_pool_n_blocks(node->pool) && node->n_leases == 0 && !node->is_stepping);
    sim_trace(world, "%s drained", node->name);
    if (sim_is_rank(node)) sim_registry_forget(world, index, BT_NS_PER_MS); /* it says so itself */
    sim_node_kill(world, index);
    sim_plan(world, world->now_ns + 50 * (int64_t)BT_NS_PER_MS, SIM_RESTART, index, 0, NULL);
}

void sim_node_after(sim_world *world, uint32_t index) {
    sim_node *node = &world->nodes[index];
    if (node->role == WIRE_ROLE_GATEWAY) {
        walk_gateway(world, index);
        gw_core_check(node->gateway);
        plan_tick(world, index, gw_core_deadline_ns(node->gateway));
        return;
    }
    const wrk_sched *worker = node->worker;
    sim_node_walk(world, index);
    worker->check(worker);
    if (sim_is_rank(node))
        sim_rank_turn(world, index);
    else if (!node->is_drained && !node->is_stepping)
        step_alone(world, index);
    plan_tick(world, index, wrk_sched_deadline_ns(worker));
    if (sim_is_rank(node) && !node->rank.is_in_step) plan_tick(world, index, wrk_group_deadline_ns(&node->rank.group));
    if (node->is_drained && (!sim_is_rank(node) || sim_rank_is_over(world, index))) exit_drained(world, index);
}

/* ---- birth and death -------------------------------------------------------------------------------------------- */

static void start_gateway(sim_world *world, sim_node *node) {
    static const uint32_t eos_ids[] = {SIM_EOS};
    const sim_config *c = &world->config;
    gw_core_options options = {.incarnation = node->incarnation,
                               .seed = sim_random(world),
                               .max_worker_queue_ms = c->worker_queue_ms,
                               .max_queued = c->max_queued,
                               .max_requests = c->gateway_requests,
                               .vocab_size = SIM_VOCAB,
                               .max_model_len = SIM_MAX_MODEL_LEN,
                               .migration_limit = c->migration_limit,
                               .eos_ids = eos_ids,
                               .n_eos_ids = 1,
                               .accept_ms = 300,
                               .first_token_ms = 5000,
                               .hand_off_ms = 3000,
                               .token_ms = 1500,
                               .no_worker_ms = 5000};
    bt_error err;
    BT_ASSERT(gw_core_open(&options, &node->gateway, &err) == BT_OK);
}

static void start_worker(sim_world *world, sim_node *node) {
    static const uint32_t eos_ids[] = {SIM_EOS};
    const sim_config *c = &world->config;
    bool is_prefill = node->role == WIRE_ROLE_PREFILL;
    uint32_t n_blocks = is_prefill ? c->prefill_blocks : c->decode_blocks;
    node->pool = kv_pool_open(n_blocks);
    node->cells = bt_calloc((size_t)SIM_LAYERS * n_blocks * ROWS, sizeof(uint64_t));
    node->kv_owner = bt_calloc(n_blocks, sizeof(uint64_t));
    const wrk_sched_options shared = {.pool = node->pool,
                                      .vocab_size = SIM_VOCAB,
                                      .max_model_len = SIM_MAX_MODEL_LEN,
                                      .n_layers = SIM_LAYERS,
                                      .eos_ids = eos_ids,
                                      .n_eos_ids = 1,
                                      .has_prefix_cache = c->has_prefix_cache};
    const pre_sched_options prefill = {.max_requests = c->max_requests,
                                       .max_batched_tokens = c->max_batched_tokens,
                                       .max_batched_seqs = c->max_batched_seqs,
                                       .connect_ms = 200,
                                       .reserve_ms = 150,
                                       .retry_ms = 5,
                                       .no_decode_ms = 2000,
                                       .commit_ms = 80,
                                       .renew_ms = 40};
    const dec_sched_options decode = {.max_num_seqs = c->max_num_seqs,
                                      .max_batched_tokens = c->max_num_seqs + c->spare_rows,
                                      .max_leases = c->max_leases,
                                      .local_prefill_tokens = c->local_tokens,
                                      .lease_ms = 200,
                                      .settle_ms = 40,
                                      .pause_ms = 300};
    bt_status status = is_prefill ? pre_sched_open(&shared, &prefill, &node->worker, NULL)
                                  : dec_sched_open(&shared, &decode, &node->worker, NULL);
    BT_ASSERT(status == BT_OK);
}

void sim_node_start(sim_world *world, uint32_t index) {
    sim_node *node = &world->nodes[index];
    node->incarnation = (uint64_t)++world->n_incarnations << 8 | index;
    node->n_lives++;
    node->is_draining = false;
    node->tick_ns = INT64_MAX;
    if (node->role == WIRE_ROLE_GATEWAY) {
        start_gateway(world, node);
    } else {
        start_worker(world, node);
        sim_rank_start(world, index);
    }
    sim_trace(world, "%s starts", node->name);
    for (uint32_t i = 0; i < world->n_links; i++) {
        sim_link *link = &world->links[i];
        if (link->kind != SIM_CONTROL || (link->node[0] != index && link->node[1] != index)) continue;
        uint32_t other = link->node[0] == index ? link->node[1] : link->node[0];
        if (link->state == SIM_LINK_DOWN && world->nodes[other].incarnation != 0) sim_link_open(world, link);
    }
}

#define ADD(sum, more)                                                                                                 \
    do {                                                                                                               \
        for (size_t k = 0; k < sizeof(sum) / sizeof(uint64_t); k++)                                                    \
            ((uint64_t *)&(sum))[k] += ((const uint64_t *)(more))[k];                                                  \
    } while (0)

void sim_node_kill(sim_world *world, uint32_t index) {
    sim_node *node = &world->nodes[index];
    if (node->role == WIRE_ROLE_GATEWAY) {
        sim_clients_die(world, index);
        ADD(world->result.gateway, gw_core_counters(node->gateway));
        gw_core_close(node->gateway);
    } else {
        if (node->role == WIRE_ROLE_PREFILL)
            ADD(world->result.prefill, pre_sched_counters(node->worker));
        else
            ADD(world->result.decode, dec_sched_counters(node->worker));
        node->worker->close(node->worker);
        sim_rank_stop(world, index);
    }
    kv_pool_close(node->pool);
    sim_node_forget_kv(world, node);
    sim_node fresh = {.role = node->role, .index = node->index, .n_lives = node->n_lives, .tick_ns = INT64_MAX};
    memcpy(fresh.name, node->name, sizeof(fresh.name));
    *node = fresh;
    for (uint32_t i = 0; i < world->n_links; i++)
        if (world->links[i].node[0] == index || world->links[i].node[1] == index)
            sim_link_break(world, &world->links[i]);
}

/* ---- the baton rule --------------------------------------------------------------------------------------------- */

void sim_check_baton(sim_world *world, const wire_request *request) {
    uint32_t n_owners = 0;
    for (uint32_t i = 0; i < world->n_nodes; i++) {
        const sim_node *node = &world->nodes[i];
        if (node->worker != NULL) n_owners += node->worker->is_owner(node->worker, request);
    }
    BT_ASSERT(n_owners <= 1);
}
