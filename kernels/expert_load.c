/* Counters to a page and back. Owns the numbers of a load; decides nothing about them. */
#include "kernels/expert_load.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/model/json.h"

void krn_expert_load_fini(krn_expert_load *load) {
    free(load->rows);
    *load = (krn_expert_load){0};
}

void krn_expert_load_take(const krn_model *model, krn_expert_load *out) {
    const mdl_config *c = krn_model_config(model);
    const _Atomic uint64_t *counted = krn_model_expert_load(model);
    *out = (krn_expert_load){.model_hash = krn_model_hash(model), .n_ranks = 1};
    if (counted == NULL) return;
    out->n_experts = c->n_routed_experts;
    out->rows = bt_calloc((size_t)c->num_hidden_layers * c->n_routed_experts, sizeof(uint64_t));
    for (uint32_t layer = 0; layer < c->num_hidden_layers; layer++, counted += c->n_routed_experts) {
        if (!mdl_layer_is_moe(c, layer)) continue;
        uint64_t *rows = out->rows + (size_t)out->n_layers++ * out->n_experts;
        for (uint32_t e = 0; e < out->n_experts; e++) rows[e] = atomic_load_explicit(&counted[e], memory_order_relaxed);
    }
}

void krn_expert_load_write(const krn_expert_load *load, bt_buf *page) {
    bt_buf_printf(page, "{\"model_hash\": \"%016" PRIx64 "\", \"group\": \"%s\", \"rank\": %u, \"n_ranks\": %u, ",
                  load->model_hash, load->group, load->rank, load->n_ranks);
    bt_buf_puts(page, "\"rows\": [");
    for (uint32_t layer = 0; layer < load->n_layers; layer++) {
        bt_buf_puts(page, layer > 0 ? ",\n[" : "[");
        for (uint32_t e = 0; e < load->n_experts; e++) {
            bt_buf_printf(page, e > 0 ? ", %" PRIu64 : "%" PRIu64, load->rows[(size_t)layer * load->n_experts + e]);
        }
        bt_buf_puts(page, "]");
    }
    bt_buf_puts(page, "]}\n");
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static bt_status parse_hash(const char *what, const cJSON *root, uint64_t *out, bt_error *err) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, "model_hash");
    const char *text = cJSON_IsString(item) ? item->valuestring : "";
    if (strlen(text) != 16 || strspn(text, "0123456789abcdef") != 16)
        return bt_fail(err, BT_BAD_REQUEST, "%s: model_hash is not 16 hexadecimal digits", what);
    *out = strtoull(text, NULL, 16);
    return BT_OK;
}

static bt_status parse_place(const char *what, const cJSON *root, krn_expert_load *out, bt_error *err) {
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    const cJSON *group = cJSON_GetObjectItemCaseSensitive(root, "group");
    const cJSON *rank = cJSON_GetObjectItemCaseSensitive(root, "rank");
    const cJSON *n_ranks = cJSON_GetObjectItemCaseSensitive(root, "n_ranks");
    size_t n_bytes = cJSON_IsString(group) ? strlen(group->valuestring) : KRN_LOAD_CAP_GROUP;
    if (n_bytes >= KRN_LOAD_CAP_GROUP || strspn(group->valuestring, allowed) != n_bytes)
        return bt_fail(err, BT_BAD_REQUEST, "%s: group is no name of a group", what);
    if (!mdl_json_is_uint(rank, EP_MAX_RANKS) || !mdl_json_is_uint(n_ranks, EP_MAX_RANKS) ||
        rank->valuedouble >= n_ranks->valuedouble)
        return bt_fail(err, BT_BAD_REQUEST, "%s: rank is not one of n_ranks, at most %d", what, EP_MAX_RANKS);
    memcpy(out->group, group->valuestring, n_bytes + 1);
    out->rank = (uint32_t)rank->valuedouble;
    out->n_ranks = (uint32_t)n_ranks->valuedouble;
    return BT_OK;
}

static bt_status parse_rows(const char *what, const cJSON *root, krn_expert_load *out, bt_error *err) {
    const uint64_t max_rows = (uint64_t)1 << 53; /* JSON's numbers are doubles */
    const cJSON *lists = cJSON_GetObjectItemCaseSensitive(root, "rows"), *list, *item;
    if (!cJSON_IsArray(lists)) return bt_fail(err, BT_BAD_REQUEST, "%s: there is no list \"rows\"", what);
    if (lists->child == NULL) return BT_OK;
    int n_layers = cJSON_GetArraySize(lists), n_experts = cJSON_GetArraySize(lists->child);
    if (n_experts < 1 || n_experts > MDL_MAX_EXPERTS)
        return bt_fail(err, BT_BAD_REQUEST, "%s: rows of %d experts, expected 1 to %d", what, n_experts,
                       MDL_MAX_EXPERTS);
    cJSON_ArrayForEach(list, lists) { /* all of them before memory is taken for all */
        if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != n_experts)
            return bt_fail(err, BT_BAD_REQUEST, "%s: a list of \"rows\" has not %d numbers", what, n_experts);
    }
    out->n_layers = (uint32_t)n_layers;
    out->n_experts = (uint32_t)n_experts;
    out->rows = bt_calloc((size_t)n_layers * (size_t)n_experts, sizeof(uint64_t));
    uint64_t *at = out->rows;
    cJSON_ArrayForEach(list, lists) {
        cJSON_ArrayForEach(item, list) {
            if (!mdl_json_is_uint(item, max_rows))
                return bt_fail(err, BT_BAD_REQUEST, "%s: \"rows\" holds what is no count", what);
            *at++ = (uint64_t)item->valuedouble;
        }
    }
    return BT_OK;
}

bt_status krn_expert_load_parse(const char *what, const void *page, size_t n_bytes, krn_expert_load *out,
                                bt_error *err) {
    if (n_bytes > KRN_LOAD_MAX_PAGE_BYTES)
        return bt_fail(err, BT_BAD_REQUEST, "%s: %zu bytes, limit %d", what, n_bytes, KRN_LOAD_MAX_PAGE_BYTES);
    cJSON *root = NULL;
    krn_expert_load load = {0};
    bt_status status = mdl_json_parse(what, page, n_bytes, &root, err);
    if (status == BT_OK) status = parse_hash(what, root, &load.model_hash, err);
    if (status == BT_OK) status = parse_place(what, root, &load, err);
    if (status == BT_OK) status = parse_rows(what, root, &load, err);
    cJSON_Delete(root);
    if (status == BT_OK)
        *out = load;
    else
        krn_expert_load_fini(&load);
    return status;
}

/* ---- sums -------------------------------------------------------------------------------------------------------- */

bt_status krn_expert_load_add(krn_expert_load *sum, const krn_expert_load *load, bt_error *err) {
    size_t n = (size_t)load->n_layers * load->n_experts;
    if (sum->rows == NULL) {
        *sum = *load;
        sum->rows = bt_calloc(n + 1, sizeof(uint64_t));
    } else if (load->model_hash != sum->model_hash || load->n_layers != sum->n_layers ||
               load->n_experts != sum->n_experts) {
        return bt_fail(err, BT_BAD_REQUEST,
                       "rank %u has model %016" PRIx64 " with %u experts in %u layers, rank %u model %016" PRIx64
                       " with %u in %u",
                       load->rank, load->model_hash, load->n_experts, load->n_layers, sum->rank, sum->model_hash,
                       sum->n_experts, sum->n_layers);
    }
    for (size_t i = 0; i < n; i++) sum->rows[i] += load->rows[i];
    return BT_OK;
}

uint64_t krn_expert_load_total(const krn_expert_load *load) {
    uint64_t total = 0;
    for (size_t i = 0; i < (size_t)load->n_layers * load->n_experts; i++) total += load->rows[i];
    return total;
}
