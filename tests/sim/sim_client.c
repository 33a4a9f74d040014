/* Clients: they send, check every token against the oracle, leave when they like, and expect one end. */
#include <stdlib.h>

#include "common/wire/end_rule.h"
#include "tests/sim/sim.h"

static bt_key key_of(uint64_t incarnation, uint64_t serial) { return (bt_key){incarnation, serial, 0}; }

static sim_client *find_client(sim_world *world, uint32_t node, uint64_t serial) {
    uint32_t index = bt_map_get(&world->by_serial, key_of(world->nodes[node].incarnation, serial));
    return index == BT_MAP_NONE ? NULL : &world->clients[index];
}

static void end_client(sim_world *world, sim_client *client) {
    BT_ASSERT(client->is_alive); /* once */
    client->is_alive = false;
    world->n_alive--;
    bt_map_remove(&world->by_serial, key_of(client->incarnation, client->serial));
}

/* ---- arriving --------------------------------------------------------------------------------------------------- */

static uint32_t draw_length(sim_world *world, uint32_t most) {
    uint32_t n = 1 + (uint32_t)sim_exponential_ns(world, most / 4 + 1); /* many short ones, a few long ones */
    return n < most ? n : most;
}

static void plan_client(sim_world *world, sim_client *client, uint32_t *tokens) {
    const sim_config *c = &world->config;
    client->n_prompt = draw_length(world, c->max_prompt);
    client->max_tokens = draw_length(world, c->max_output);
    if (sim_below(world, 200) == 0) client->max_tokens = SIM_MAX_MODEL_LEN; /* until something stops it */
    client->sampling = (wire_sampling){.temperature = 1, .top_p = 1, .seed = sim_random(world)};
    client->sampling.n_logprobs = client->sampling.seed % 4 == 0;
    client->sampling.ignore_eos = sim_below(world, 4) == 0;
    if (sim_below(world, 4) == 0) client->sampling.min_tokens = sim_below(world, client->max_tokens + 1);
    client->n_stop_ids = sim_below(world, 3);
    if (sim_below(world, 100) < c->long_percent) {
        client->sampling.ignore_eos = true;
        client->n_stop_ids = 0;
    }
    for (uint32_t i = 0; i < client->n_stop_ids; i++) client->stop_ids[i] = sim_below(world, SIM_VOCAB);
    if (sim_below(world, 100) < c->stop_percent) client->stop_at = 1 + sim_below(world, client->max_tokens);
    client->cell = 0;
    uint64_t chat = sim_below(world, c->n_chats);
    uint32_t n_shared = sim_below(world, 2) ? 0 : 1 + sim_below(world, SIM_MAX_MODEL_LEN / 2);
    uint32_t other_at =
        sim_below(world, 2) ? UINT32_MAX : sim_below(world, 128); /* one token makes it another prompt */
    for (uint32_t i = 0; i < client->n_prompt; i++) {
        tokens[i] = i < n_shared && i != other_at ? (uint32_t)(sim_mix(chat << 32 | i) % SIM_VOCAB)
                                                  : sim_below(world, SIM_VOCAB);
        client->cell = sim_cell(client->cell, tokens[i], KRN_EXPANDED);
    }
}

void sim_client_arrive(sim_world *world) {
    const sim_config *c = &world->config;
    if (world->n_clients == c->n_requests) return;
    uint32_t tokens[SIM_MAX_MODEL_LEN];
    sim_client *client = &world->clients[world->n_clients];
    plan_client(world, client, tokens);
    client->node = sim_below(world, c->n_gateways); /* gateways are the first nodes */
    const sim_node *node = &world->nodes[client->node];
    if (node->incarnation == 0) {
        world->result.n_shed++;
        world->n_clients++;
        return;
    }
    static const char *const names[] = {"random", "least-request", "", "slo", "power-of-two:3,least-kv-cache"};
    gw_strategy strategy;
    bt_error err;
    BT_ASSERT(gw_strategy_parse(names[sim_below(world, 5)], &strategy, &err) == BT_OK);
    gw_submit submit = {.tokens = tokens,
                        .n_tokens = client->n_prompt,
                        .max_tokens = client->max_tokens,
                        .sampling = client->sampling,
                        .stop_token_ids = client->stop_ids,
                        .n_stop_token_ids = client->n_stop_ids,
                        .cache_salt = sim_below(world, 4) == 0 ? "pepper" : "",
                        .strategy = &strategy,
                        .priority = sim_below(world, 100) < c->urgent_percent ? -1 - (int64_t)sim_below(world, 3) : 0,
                        .queue_ms = c->queue_ms,
                        .user = client};
    bt_status status = gw_core_submit(node->gateway, &submit, world->now_ns, &client->serial, &err);
    BT_ASSERT(status == BT_OK || status == BT_NO_CAPACITY || status == BT_AGAIN);
    if (status == BT_OK) {
        client->is_alive = true;
        client->arrived_ns = world->now_ns;
        client->incarnation = node->incarnation;
        bt_map_put(&world->by_serial, key_of(client->incarnation, client->serial), world->n_clients);
        world->n_alive++;
        sim_trace(world, "%s client %llu arrives, prompt %u, at most %u", node->name,
                  (unsigned long long)client->serial, client->n_prompt, client->max_tokens);
        if (sim_below(world, 100) < c->cancel_percent)
            sim_plan(world, world->now_ns + sim_exponential_ns(world, 30 * (int64_t)BT_NS_PER_MS), SIM_LEAVE,
                     client->node, client->serial, NULL);
    } else {
        world->result.n_shed++;
    }
    world->n_clients++;
    sim_node_after(world, client->node);
}

void sim_client_leave(sim_world *world, uint32_t node, uint64_t serial) {
    sim_client *client = find_client(world, node, serial);
    sim_trace(world, "%s client %llu leaves", world->nodes[node].name, (unsigned long long)serial);
    gw_core_cancel(world->nodes[node].gateway, serial, world->now_ns);
    if (client != NULL) {
        world->result.n_canceled++;
        end_client(world, client);
    }
    sim_node_after(world, node);
}

void sim_clients_die(sim_world *world, uint32_t node) {
    uint64_t incarnation = world->nodes[node].incarnation;
    for (uint32_t i = 0; i < world->n_clients; i++) {
        sim_client *client = &world->clients[i];
        if (!client->is_alive || client->incarnation != incarnation) continue;
        world->result.n_died++;
        end_client(world, client);
    }
}

/* ---- hearing ---------------------------------------------------------------------------------------------------- */

static bool is_in(const uint32_t *ids, uint32_t n, uint32_t id) {
    for (uint32_t i = 0; i < n; i++)
        if (ids[i] == id) return true;
    return false;
}

static void hear_token(sim_client *client, uint32_t token) {
    BT_ASSERT(client->end == 0); /* nothing comes behind the end */
    uint32_t banned[3] = {0}, n_banned = 0;
    if (client->n_output + 1 <= client->sampling.min_tokens) {
        if (!client->sampling.ignore_eos) banned[n_banned++] = SIM_EOS;
        for (uint32_t i = 0; i < client->n_stop_ids; i++) banned[n_banned++] = client->stop_ids[i];
    }
    uint32_t position = client->n_prompt + client->n_output;
    uint32_t expected = sim_draw(client->cell, &client->sampling, position, banned, n_banned);
    BT_ASSERT(token == expected);
    client->n_output++;
    client->last = token;
    client->cell = sim_cell(client->cell, token, KRN_ABSORBED);
    bool may_end = client->n_output > client->sampling.min_tokens;
    if (may_end && !client->sampling.ignore_eos && token == SIM_EOS) {
        client->end = WIRE_FINISH_EOS;
    } else if (may_end && is_in(client->stop_ids, client->n_stop_ids, token)) {
        client->end = WIRE_FINISH_STOP_TOKEN;
    } else if (client->n_output == client->max_tokens || position + 1 == SIM_MAX_MODEL_LEN) {
        client->end = WIRE_FINISH_LENGTH;
    }
}

static void note_wait(sim_world *world, const sim_client *client) {
    uint64_t wait_ns = (uint64_t)(world->now_ns - client->arrived_ns);
    if (client->n_prompt > SIM_SHORT_PROMPT) return;
    world->result.n_short++;
    if (wait_ns > world->result.max_short_wait_ns) world->result.max_short_wait_ns = wait_ns;
}

void sim_client_hear(sim_world *world, uint32_t node, const gw_action *action) {
    sim_client *client = find_client(world, node, action->serial);
    BT_ASSERT(client != NULL && client == action->user); /* nothing after the end */
    switch (action->kind) {
    case GW_TOKENS:
        BT_ASSERT(action->index == client->n_output && action->n_tokens > 0);
        if (client->n_output == 0) note_wait(world, client);
        for (uint32_t i = 0; i < action->n_tokens; i++) {
            hear_token(client, action->tokens[i]);
            BT_ASSERT(client->sampling.n_logprobs == 0 || action->logprobs[i].rank == action->tokens[i]); /* its own */
            world->result.n_tokens++;
            if (client->n_output != client->stop_at) continue;
            sim_trace(world, "%s client %llu has its stop string", world->nodes[node].name,
                      (unsigned long long)action->serial);
            gw_core_cancel(world->nodes[node].gateway, action->serial, world->now_ns);
            world->result.n_canceled++;
            end_client(world, client);
            return;
        }
        break;
    case GW_FINISHED:
        sim_trace(world, "%s client %llu finished, %u tokens", world->nodes[node].name,
                  (unsigned long long)action->serial, action->n_output);
        BT_ASSERT(client->end == action->reason && client->n_output == action->n_output);
        BT_ASSERT(action->stop_token == (client->end == WIRE_FINISH_STOP_TOKEN ? client->last : 0));
        world->result.n_finished++;
        end_client(world, client);
        break;
    case GW_FAILED:
        sim_trace(world, "%s client %llu failed: %s", world->nodes[node].name, (unsigned long long)action->serial,
                  action->text);
        BT_ASSERT(action->status != BT_OK && action->status != BT_BAD_REQUEST && action->text[0] != 0);
        BT_ASSERT(client->end == 0); /* one that has everything is not failed */
        world->result.n_failed++;
        end_client(world, client);
        break;
    case GW_PROMPT: /* nobody here asks for them */
    case GW_SEND:
        break;
    }
}
