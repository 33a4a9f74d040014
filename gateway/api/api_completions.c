/* /v1/completions: `prompt` is a string, a list of strings, a list of token ids (one prompt) or a list of such lists.
 */
#include <string.h>

#include "gateway/api/api_params.h"
#include "gateway/api/api_parse.h"

static bt_status fail_prompt(gw_error *error) {
    return gw_fail(error, 400, "prompt",
                   "prompt must be a string, a list of strings, a list of token ids or a list of such lists.");
}

static bt_status fail_empty(gw_error *error) {
    return gw_fail(error, 400, "prompt", "prompt must be given and not be empty.");
}

static bt_status read_text(const cJSON *value, gw_prompt *out, gw_error *error) {
    out->text = value->valuestring;
    out->n_bytes = strlen(value->valuestring);
    return out->n_bytes > 0 ? BT_OK : fail_empty(error);
}

static bt_status read_ids(const gw_api_rules *rules, const cJSON *list, gw_request *request, gw_prompt *out,
                          gw_error *error) {
    uint32_t n_ids = 0;
    for (const cJSON *item = list->child; item != NULL; item = item->next) n_ids++;
    if (n_ids == 0) return fail_empty(error);
    uint32_t *ids = bt_arena_alloc(&request->arena, n_ids * sizeof *ids);
    uint32_t i = 0;
    for (const cJSON *item = list->child; item != NULL; item = item->next, i++) {
        int64_t id = 0;
        if (!cJSON_IsNumber(item) || !gw_value_i64(item, &id)) return fail_prompt(error);
        if (id < 0 || id >= rules->vocab_size)
            return gw_fail(error, 400, "prompt", "A token id of prompt is %lld, the vocabulary has %u.", (long long)id,
                           rules->vocab_size);
        ids[i] = (uint32_t)id;
    }
    out->ids = ids;
    out->n_ids = n_ids;
    return BT_OK;
}

static bt_status read_list(const gw_api_rules *rules, const cJSON *list, gw_request *request, gw_error *error) {
    uint32_t n_prompts = 0;
    for (const cJSON *item = list->child; item != NULL; item = item->next) n_prompts++;
    if (n_prompts > GW_MAX_PROMPTS)
        return gw_fail(error, 400, "prompt", "prompt is limited to %d prompts, got %u.", GW_MAX_PROMPTS, n_prompts);
    request->prompts = bt_arena_alloc(&request->arena, n_prompts * sizeof *request->prompts);
    bool is_text = cJSON_IsString(list->child);
    bt_status status = BT_OK;
    for (const cJSON *item = list->child; item != NULL && status == BT_OK; item = item->next) {
        gw_prompt *prompt = &request->prompts[request->n_prompts++];
        if (is_text ? !cJSON_IsString(item) : !cJSON_IsArray(item)) return fail_prompt(error);
        status = is_text ? read_text(item, prompt, error) : read_ids(rules, item, request, prompt, error);
    }
    return status;
}

bt_status gw_api_parse_completion(const gw_api_rules *rules, gw_request *request, gw_error *error) {
    const cJSON *prompt = gw_param_find(request->root, "prompt");
    if (prompt == NULL) return fail_empty(error);
    if (cJSON_IsArray(prompt) && prompt->child == NULL) return fail_empty(error);
    if (cJSON_IsArray(prompt) && !cJSON_IsNumber(prompt->child)) return read_list(rules, prompt, request, error);
    request->prompts = bt_arena_alloc(&request->arena, sizeof *request->prompts);
    request->n_prompts = 1;
    if (cJSON_IsArray(prompt)) return read_ids(rules, prompt, request, request->prompts, error);
    if (cJSON_IsString(prompt)) return read_text(prompt, request->prompts, error);
    return fail_prompt(error);
}
