/* eplb.h decides, layer by layer; here its slots become a file, and a placement one number. */
#include "kernels/plan.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "kernels/eplb.h"
#include "kernels/placement.h"

static bt_status file_write(const char *path, const bt_buf *text, bt_error *err) {
    FILE *file = fopen(path, "w");
    bool is_written = file != NULL && fwrite(text->bytes, 1, text->n_bytes, file) == text->n_bytes;
    bool is_closed = file != NULL && fclose(file) == 0;
    if (is_written && is_closed) return BT_OK;
    return bt_fail(err, BT_INTERNAL, "%s: cannot be written: %s", path, strerror(errno));
}

static bt_status check(const krn_expert_load *load, uint32_t n_ranks, uint32_t n_slots, bt_error *err) {
    if (krn_expert_load_total(load) == 0)
        return bt_fail(err, BT_BAD_REQUEST, "no row has chosen an expert yet: there is no load to plan for");
    if (n_ranks == 0 || n_ranks > EP_MAX_RANKS || n_ranks > load->n_experts)
        return bt_fail(err, BT_BAD_REQUEST, "%u ranks for %u experts, expected 1 to that many and at most %d", n_ranks,
                       load->n_experts, EP_MAX_RANKS);
    if (n_slots < load->n_experts || n_slots > n_ranks * load->n_experts)
        return bt_fail(err, BT_BAD_REQUEST,
                       "%u slots for %u experts on %u ranks, expected a slot each, at most one on every rank", n_slots,
                       load->n_experts, n_ranks);
    return BT_OK;
}

bt_status krn_plan_write(const char *path, const krn_expert_load *load, uint32_t n_ranks, uint32_t n_slots,
                         bt_error *err) {
    if (n_slots == 0) n_slots = load->n_experts;
    bt_status status = check(load, n_ranks, n_slots, err);
    if (status != BT_OK) return status;
    n_slots = (n_slots + n_ranks - 1) / n_ranks * n_ranks;
    const eplb_shape shape = {
        .n_experts = load->n_experts, .n_slots = n_slots, .n_groups = 1, .n_nodes = 1, .n_ranks = n_ranks};
    uint32_t *phy2log = bt_calloc(n_slots, sizeof(uint32_t));
    bt_buf text = {0};
    bt_buf_printf(&text, "{\"n_ranks\": %u, \"phy2log\": [", n_ranks);
    for (uint32_t layer = 0; layer < load->n_layers && status == BT_OK; layer++) {
        status = eplb_place(&shape, load->rows + (size_t)layer * load->n_experts, phy2log, err);
        bt_buf_puts(&text, layer > 0 ? ",\n[" : "[");
        for (uint32_t s = 0; s < n_slots; s++) bt_buf_printf(&text, s > 0 ? ", %" PRIu32 : "%" PRIu32, phy2log[s]);
        bt_buf_puts(&text, "]");
    }
    bt_buf_puts(&text, "]}\n");
    if (status == BT_OK) status = file_write(path, &text, err);
    bt_buf_fini(&text);
    free(phy2log);
    return status;
}

/* The rows of one layer's busiest rank. */
static double busiest_rows(const krn_placement *placement, uint32_t layer, const uint64_t *rows, uint32_t n_experts) {
    uint32_t n_ranks = krn_placement_n_ranks(placement);
    double of_rank[EP_MAX_RANKS] = {0}, most = 0;
    for (uint32_t e = 0; e < n_experts; e++) {
        uint32_t n_holders = 0;
        for (uint32_t r = 0; r < n_ranks; r++) n_holders += krn_placement_holds(placement, r, layer, e);
        for (uint32_t r = 0; r < n_ranks; r++) {
            if (krn_placement_holds(placement, r, layer, e)) of_rank[r] += (double)rows[e] / n_holders;
        }
    }
    for (uint32_t r = 0; r < n_ranks; r++) {
        if (of_rank[r] > most) most = of_rank[r];
    }
    return most;
}

bt_status krn_plan_weigh(const char *path, const krn_expert_load *load, uint32_t n_ranks, double *slowest,
                         bt_error *err) {
    /* All that a placement knows of a model. */
    const mdl_config model = {
        .num_hidden_layers = load->n_layers, .moe_layer_freq = 1, .n_routed_experts = load->n_experts};
    krn_placement *placement = NULL;
    bt_status status = krn_placement_open(&model, n_ranks, path, &placement, err);
    if (status != BT_OK) return status;
    double sum = 0;
    for (uint32_t layer = 0; layer < load->n_layers; layer++) {
        sum += busiest_rows(placement, layer, load->rows + (size_t)layer * load->n_experts, load->n_experts);
    }
    uint64_t total = krn_expert_load_total(load);
    *slowest = total > 0 ? sum * n_ranks / (double)total : 1;
    krn_placement_close(placement);
    return BT_OK;
}
