/* The placement as two tables: who holds an expert, in ascending order of ranks (for the choice of a replica), and
 * whether a rank does (for binding weights and checking peers). Decides nothing about loads: eplb.c does. */
#include "kernels/placement.h"

#include <inttypes.h>
#include <stdlib.h>
#include <xxhash.h>

#include "common/core/alloc.h"
#include "common/model/json.h"
#include "kernels/exchange.h"

struct krn_placement {
    uint32_t n_ranks, n_layers, n_experts, max_held;
    uint32_t *first_holder; /* [n_layers * n_experts + 1] into holders */
    uint16_t *holders;      /* ranks, ascending for each expert */
    uint8_t *is_held;       /* [n_layers][n_experts][n_ranks] */
};

static uint8_t *held(const krn_placement *p, uint32_t layer, uint32_t expert) {
    return p->is_held + ((size_t)layer * p->n_experts + expert) * p->n_ranks;
}

static void place_runs(krn_placement *p, uint32_t layer) {
    for (uint32_t rank = 0; rank < p->n_ranks; rank++) {
        uint32_t begin = rank * p->n_experts / p->n_ranks, end = (rank + 1) * p->n_experts / p->n_ranks;
        for (uint32_t e = begin; e < end; e++) held(p, layer, e)[rank] = 1;
    }
}

/* One list of the file. */
static bt_status place_slots(krn_placement *p, uint32_t layer, const cJSON *slots, const char *path, bt_error *err) {
    uint32_t n_slots = (uint32_t)cJSON_GetArraySize(slots), slot = 0;
    if (!cJSON_IsArray(slots) || n_slots == 0 || n_slots % p->n_ranks != 0) {
        return bt_fail(err, BT_BAD_REQUEST, "%s: phy2log of layer %u has %u slots, expected a multiple of %u", path,
                       layer, n_slots, p->n_ranks);
    }
    const cJSON *item;
    cJSON_ArrayForEach(item, slots) {
        if (!mdl_json_is_uint(item, p->n_experts - 1)) {
            return bt_fail(err, BT_BAD_REQUEST, "%s: slot %u of layer %u is not an expert below %u", path, slot, layer,
                           p->n_experts);
        }
        held(p, layer, (uint32_t)item->valuedouble)[slot++ / (n_slots / p->n_ranks)] = 1;
    }
    for (uint32_t e = 0; e < p->n_experts; e++) {
        bool is_placed = false;
        for (uint32_t rank = 0; rank < p->n_ranks; rank++) is_placed = is_placed || held(p, layer, e)[rank];
        if (!is_placed) return bt_fail(err, BT_BAD_REQUEST, "%s: expert %u of layer %u is on no rank", path, e, layer);
    }
    return BT_OK;
}

static bt_status place_file(krn_placement *p, const mdl_config *config, const char *path, bt_error *err) {
    enum { MAX_FILE_BYTES = 64 << 20 };
    bt_buf text = {0};
    cJSON *root = NULL;
    bt_status status = mdl_file_read(path, MAX_FILE_BYTES, &text, err);
    if (status == BT_OK) status = mdl_json_parse(path, text.bytes, text.n_bytes, &root, err);
    if (status != BT_OK) goto done;
    const cJSON *n_ranks = cJSON_GetObjectItemCaseSensitive(root, "n_ranks");
    const cJSON *lists = cJSON_GetObjectItemCaseSensitive(root, "phy2log");
    if (!mdl_json_is_uint(n_ranks, EP_MAX_RANKS) || (uint32_t)n_ranks->valuedouble != p->n_ranks ||
        !cJSON_IsArray(lists)) {
        status = bt_fail(err, BT_BAD_REQUEST, "%s: expected \"n_ranks\": %u and a list \"phy2log\"", path, p->n_ranks);
        goto done;
    }
    const cJSON *slots = lists->child;
    for (uint32_t layer = 0; layer < p->n_layers; layer++) {
        if (!mdl_layer_is_moe(config, layer)) continue;
        if (slots == NULL) {
            status = bt_fail(err, BT_BAD_REQUEST, "%s: phy2log has no list for layer %u", path, layer);
            goto done;
        }
        status = place_slots(p, layer, slots, path, err);
        if (status != BT_OK) goto done;
        slots = slots->next;
    }
    if (slots != NULL)
        status = bt_fail(err, BT_BAD_REQUEST, "%s: phy2log has more lists than the model has layers of experts", path);
done:
    cJSON_Delete(root);
    bt_buf_fini(&text);
    return status;
}

static void index_holders(krn_placement *p) {
    size_t n_cells = (size_t)p->n_layers * p->n_experts, n = 0;
    for (size_t i = 0; i < n_cells * p->n_ranks; i++) n += p->is_held[i];
    p->first_holder = bt_calloc(n_cells + 1, sizeof(uint32_t));
    p->holders = bt_calloc(n, sizeof(uint16_t));
    n = 0;
    for (size_t cell = 0; cell < n_cells; cell++) {
        for (uint32_t rank = 0; rank < p->n_ranks; rank++) {
            if (p->is_held[cell * p->n_ranks + rank]) p->holders[n++] = (uint16_t)rank;
        }
        p->first_holder[cell + 1] = (uint32_t)n;
    }
    for (uint32_t layer = 0; layer < p->n_layers; layer++) {
        for (uint32_t rank = 0; rank < p->n_ranks; rank++) {
            uint32_t n_held = 0;
            for (uint32_t e = 0; e < p->n_experts; e++) n_held += held(p, layer, e)[rank];
            if (n_held > p->max_held) p->max_held = n_held;
        }
    }
}

bt_status krn_placement_open(const mdl_config *config, uint32_t n_ranks, const char *path, krn_placement **out,
                             bt_error *err) {
    if (n_ranks == 0 || n_ranks > EP_MAX_RANKS || n_ranks > config->n_routed_experts) {
        return bt_fail(err, BT_BAD_REQUEST, "%u ranks for %u routed experts, expected 1 to that many and at most %d",
                       n_ranks, config->n_routed_experts, EP_MAX_RANKS);
    }
    krn_placement *p = bt_calloc(1, sizeof(*p));
    p->n_ranks = n_ranks;
    p->n_layers = config->num_hidden_layers;
    p->n_experts = config->n_routed_experts;
    p->is_held = bt_calloc((size_t)p->n_layers * p->n_experts, n_ranks);
    bt_status status = BT_OK;
    if (path != NULL && path[0] != 0) {
        status = place_file(p, config, path, err);
    } else {
        for (uint32_t layer = 0; layer < p->n_layers; layer++) place_runs(p, layer);
    }
    if (status != BT_OK) {
        krn_placement_close(p);
        return status;
    }
    index_holders(p);
    *out = p;
    return BT_OK;
}

void krn_placement_close(krn_placement *placement) {
    if (placement == NULL) return;
    free(placement->first_holder);
    free(placement->holders);
    free(placement->is_held);
    free(placement);
}

uint64_t krn_placement_hash(const krn_placement *placement) {
    size_t n_cells = (size_t)placement->n_layers * placement->n_experts;
    return XXH3_64bits_withSeed(placement->is_held, n_cells * placement->n_ranks, placement->n_ranks);
}

uint32_t krn_placement_n_ranks(const krn_placement *placement) { return placement->n_ranks; }
uint32_t krn_placement_max_held(const krn_placement *placement) { return placement->max_held; }

bool krn_placement_holds(const krn_placement *placement, uint32_t rank, uint32_t layer, uint32_t expert) {
    return held(placement, layer, expert)[rank];
}

uint32_t krn_placement_choose(const krn_placement *placement, uint32_t rank, uint32_t layer, uint32_t expert,
                              uint32_t row) {
    if (held(placement, layer, expert)[rank]) return rank;
    const uint32_t *first = &placement->first_holder[(size_t)layer * placement->n_experts + expert];
    return placement->holders[first[0] + (rank + row) % (first[1] - first[0])];
}
