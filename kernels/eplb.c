/* Three greedy steps: groups of experts onto nodes, replicas of the hottest experts inside a node, replicas onto ranks.
 * Where the groups do not divide over the nodes, all is one node with one group. Sizes are small,
 * so choosing is a scan. Loads are doubles where eplb.py has float32: near ties may fall otherwise. */
#include "kernels/eplb.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"

typedef struct {
    double weight;
    uint32_t item;
} weighed;

/* Descending; the earlier of equals first, as a stable sort has it. */
static int compare_weights(const void *a, const void *b) {
    const weighed *x = a, *y = b;
    if (x->weight != y->weight) return x->weight < y->weight ? 1 : -1;
    return (x->item > y->item) - (x->item < y->item);
}

/* Packs n items into n_packs packs of equal number: the heaviest first, each to the lightest pack with room.
 * pack [n], rank_in_pack [n]: in the order of arrival. */
static void pack_balanced(const double *weights, uint32_t n, uint32_t n_packs, uint32_t *pack, uint32_t *rank_in_pack) {
    uint32_t per_pack = n / n_packs, *n_in = bt_calloc(n_packs, sizeof(uint32_t));
    double *sums = bt_calloc(n_packs, sizeof(double));
    weighed *sorted = bt_calloc(n, sizeof(weighed));
    for (uint32_t i = 0; i < n; i++) sorted[i] = (weighed){weights[i], i};
    if (per_pack > 1) qsort(sorted, n, sizeof(weighed), compare_weights);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t best = UINT32_MAX, item = sorted[i].item;
        for (uint32_t p = 0; p < n_packs; p++) {
            if (n_in[p] < per_pack && (best == UINT32_MAX || sums[p] < sums[best])) best = p;
        }
        if (per_pack == 1) best = i; /* nothing to balance: as they come */
        pack[item] = best;
        rank_in_pack[item] = n_in[best]++;
        sums[best] += sorted[i].weight;
    }
    free(sorted);
    free(sums);
    free(n_in);
}

/* Slots [n_slots] of a node: each of its n experts once, then again whichever has the most load per replica. */
static void replicate(const double *load, uint32_t n, uint32_t n_slots, uint32_t *slots, uint32_t *n_replicas) {
    for (uint32_t e = 0; e < n; e++) {
        slots[e] = e;
        n_replicas[e] = 1;
    }
    for (uint32_t s = n; s < n_slots; s++) {
        uint32_t hottest = 0;
        for (uint32_t e = 1; e < n; e++) {
            if (load[e] / n_replicas[e] > load[hottest] / n_replicas[hottest]) hottest = e;
        }
        slots[s] = hottest;
        n_replicas[hottest]++;
    }
}

/* The slots of one node with n experts, whose numbers in the model are `experts` [n]. */
static void place_node(const uint64_t *load, const uint32_t *experts, uint32_t n, uint32_t n_slots, uint32_t n_ranks,
                       uint32_t *phy2log) {
    uint32_t *slots = bt_calloc(n_slots, sizeof(uint32_t)), *n_replicas = bt_calloc(n, sizeof(uint32_t));
    uint32_t *pack = bt_calloc(n_slots, sizeof(uint32_t)), *rank_in_pack = bt_calloc(n_slots, sizeof(uint32_t));
    double *weights = bt_calloc(n > n_slots ? n : n_slots, sizeof(double));
    for (uint32_t i = 0; i < n; i++) weights[i] = (double)load[experts[i]];
    replicate(weights, n, n_slots, slots, n_replicas);
    for (uint32_t s = 0; s < n_slots; s++) weights[s] = (double)load[experts[slots[s]]] / n_replicas[slots[s]];
    pack_balanced(weights, n_slots, n_ranks, pack, rank_in_pack);
    for (uint32_t s = 0; s < n_slots; s++) {
        phy2log[pack[s] * (n_slots / n_ranks) + rank_in_pack[s]] = experts[slots[s]];
    }
    free(slots);
    free(n_replicas);
    free(pack);
    free(rank_in_pack);
    free(weights);
}

static bt_status check_shape(const eplb_shape *s, bt_error *err) {
    if (s->n_experts == 0 || s->n_ranks == 0 || s->n_nodes == 0 || s->n_groups == 0 || s->n_slots < s->n_experts ||
        s->n_slots % s->n_ranks != 0 || s->n_ranks % s->n_nodes != 0 || s->n_experts % s->n_groups != 0) {
        return bt_fail(
            err, BT_BAD_REQUEST,
            "%u slots for %u experts in %u groups on %u ranks of %u nodes: expected slots to be a multiple of "
            "ranks and no fewer than experts, ranks a multiple of nodes, experts a multiple of groups",
            s->n_slots, s->n_experts, s->n_groups, s->n_ranks, s->n_nodes);
    }
    return BT_OK;
}

bt_status eplb_place(const eplb_shape *shape, const uint64_t *load, uint32_t *phy2log, bt_error *err) {
    bt_status status = check_shape(shape, err);
    if (status != BT_OK) return status;
    bool is_one = shape->n_groups % shape->n_nodes != 0;
    uint32_t n_groups = is_one ? 1 : shape->n_groups, n_nodes = is_one ? 1 : shape->n_nodes;
    uint32_t group_experts = shape->n_experts / n_groups, node_experts = shape->n_experts / n_nodes;
    uint32_t *node = bt_calloc(n_groups, sizeof(uint32_t)), *place = bt_calloc(n_groups, sizeof(uint32_t));
    uint32_t *experts = bt_calloc(shape->n_experts, sizeof(uint32_t)); /* by node */
    double *weights = bt_calloc(n_groups, sizeof(double));
    for (uint32_t e = 0; e < shape->n_experts; e++) weights[e / group_experts] += (double)load[e];
    pack_balanced(weights, n_groups, n_nodes, node, place);
    for (uint32_t e = 0; e < shape->n_experts; e++) {
        uint32_t g = e / group_experts;
        experts[node[g] * node_experts + place[g] * group_experts + e % group_experts] = e;
    }
    uint32_t node_slots = shape->n_slots / n_nodes;
    for (uint32_t n = 0; n < n_nodes; n++) {
        place_node(load, experts + (size_t)n * node_experts, node_experts, node_slots, shape->n_ranks / n_nodes,
                   phy2log + (size_t)n * node_slots);
    }
    free(node);
    free(place);
    free(experts);
    free(weights);
    return BT_OK;
}
