/* Body -> gw_request: the fields that chat and completions share, and the order of the checks. Renders nothing and
 * counts no tokens: whether the prompt fits is known only after tokenisation (prompt.c). */
#include "gateway/api/api_parse.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/text/json.h"
#include "gateway/api/api_params.h"

/* By its text where that says more than a double does. */
static bool read_seed(const cJSON *value, int64_t *out) {
    const char *text = txt_json_number_text(value);
    if (text == NULL || strspn(text, "-0123456789") != strlen(text)) return gw_value_i64(value, out);
    errno = 0;
    *out = strtoll(text, NULL, 10);
    return errno == 0;
}

static bt_status parse_seed(gw_request *request, gw_error *error) {
    const cJSON *value = gw_param_find(request->root, "seed");
    int64_t seed = -1;
    if (value == NULL) return BT_OK;
    if (!read_seed(value, &seed)) return gw_fail(error, 400, "seed", "seed must be an integer of 64 bits.");
    if (seed == -1) return BT_OK;
    request->sampling.seed = (uint64_t)seed;
    request->has_seed = true;
    return BT_OK;
}

static bt_status parse_max_tokens(gw_request *request, gw_error *error) {
    bool is_chat = request->endpoint == GW_CHAT;
    int64_t least = is_chat ? 1 : 0, max_tokens = -1, newer = -1;
    bt_status status = gw_param_i64(request->root, "max_tokens", INT64_MIN, INT64_MAX, &max_tokens, error);
    if (status == BT_OK)
        status = gw_param_i64(request->root, "max_completion_tokens", INT64_MIN, INT64_MAX, &newer, error);
    if (status != BT_OK) return status;
    bool has_newer = gw_param_find(request->root, "max_completion_tokens") != NULL;
    request->has_max_tokens = has_newer || gw_param_find(request->root, "max_tokens") != NULL;
    if (!request->has_max_tokens) {
        request->max_tokens = is_chat ? UINT32_MAX : 16; /* 16: OpenAI's default for completions */
        return BT_OK;
    }
    int64_t wanted = has_newer ? newer : max_tokens;
    if (wanted < least)
        return gw_fail(error, 400, has_newer ? "max_completion_tokens" : "max_tokens",
                       "max_tokens must be at least %lld, got %lld.", (long long)least, (long long)wanted);
    request->max_tokens = wanted > UINT32_MAX ? UINT32_MAX : (uint32_t)wanted;
    return BT_OK;
}

static bt_status add_stop(const cJSON *value, gw_request *request, gw_error *error) {
    if (!cJSON_IsString(value)) return gw_fail(error, 400, "stop", "stop must be a string or a list of strings.");
    if (value->valuestring[0] == 0) return gw_fail(error, 400, "stop", "stop cannot contain an empty string.");
    if (strlen(value->valuestring) > GW_MAX_STOP_BYTES)
        return gw_fail(error, 400, "stop", "A stop string is limited to %d bytes.", GW_MAX_STOP_BYTES);
    if (request->n_stop == GW_MAX_STOP_STRINGS)
        return gw_fail(error, 400, "stop", "stop is limited to %d strings.", GW_MAX_STOP_STRINGS);
    request->stop[request->n_stop++] = value->valuestring;
    return BT_OK;
}

static bt_status parse_stop(const gw_api_rules *rules, gw_request *request, gw_error *error) {
    const cJSON *stop = gw_param_find(request->root, "stop");
    bt_status status = BT_OK;
    if (stop != NULL && !cJSON_IsArray(stop)) status = add_stop(stop, request, error);
    if (cJSON_IsArray(stop))
        for (const cJSON *item = stop->child; item != NULL && status == BT_OK; item = item->next)
            status = add_stop(item, request, error);
    const cJSON *ids = gw_param_find(request->root, "stop_token_ids");
    if (status != BT_OK || ids == NULL) return status;
    if (!cJSON_IsArray(ids)) return gw_fail(error, 400, "stop_token_ids", "stop_token_ids must be a list of integers.");
    for (const cJSON *item = ids->child; item != NULL; item = item->next) {
        int64_t id = 0;
        if (!gw_value_i64(item, &id))
            return gw_fail(error, 400, "stop_token_ids", "stop_token_ids must be a list of integers.");
        if (id < 0 || id >= rules->vocab_size)
            return gw_fail(error, 400, "stop_token_ids", "stop_token_ids must be below the vocabulary's %u, got %lld.",
                           rules->vocab_size, (long long)id);
        if (request->n_stop_token_ids == WIRE_MAX_STOP_IDS)
            return gw_fail(error, 400, "stop_token_ids", "stop_token_ids is limited to %d ids.", WIRE_MAX_STOP_IDS);
        request->stop_token_ids[request->n_stop_token_ids++] = (uint32_t)id;
    }
    return BT_OK;
}

static bt_status parse_stream(gw_request *request, gw_error *error) {
    int64_t interval = 1;
    bt_status status = gw_param_bool(request->root, "stream", &request->stream, error);
    if (status == BT_OK) status = gw_param_i64(request->root, "stream_interval", 1, INT32_MAX, &interval, error);
    request->stream_interval = (uint32_t)interval;
    const cJSON *options = gw_param_find(request->root, "stream_options");
    if (status != BT_OK || options == NULL) return status;
    if (!cJSON_IsObject(options)) return gw_fail(error, 400, "stream_options", "stream_options must be an object.");
    if (!request->stream)
        return gw_fail(error, 400, "stream_options", "Stream options can only be defined when `stream=True`.");
    status = gw_param_bool(options, "include_usage", &request->include_usage, error);
    if (status == BT_OK) status = gw_param_bool(options, "continuous_usage_stats", &request->continuous_usage, error);
    if (status != BT_OK) return gw_fail(error, 400, "stream_options", "stream_options holds only booleans.");
    return BT_OK;
}

static bt_status parse_cache_salt(gw_request *request, gw_error *error) {
    request->cache_salt = "";
    if (gw_param_find(request->root, "cache_salt") == NULL) return BT_OK;
    bt_status status = gw_param_string(request->root, "cache_salt", &request->cache_salt, error);
    if (status != BT_OK) return status;
    size_t n = strlen(request->cache_salt);
    if (n == 0 || n > WIRE_MAX_NAME || strpbrk(request->cache_salt, "@/\\") != NULL)
        return gw_fail(error, 400, "cache_salt", "cache_salt must be 1 to %d bytes without '@', '/' and '\\'.",
                       WIRE_MAX_NAME);
    return BT_OK;
}

static bt_status parse_output(gw_request *request, gw_error *error) {
    const cJSON *root = request->root;
    request->skip_special_tokens = request->include_reasoning = true;
    request->add_special_tokens = request->endpoint == GW_COMPLETION; /* chat templates add BOS themselves */
    request->model = request->request_id = request->session_id = "";
    bt_status status = gw_param_string(root, "model", &request->model, error);
    if (status == BT_OK) status = gw_param_string(root, "request_id", &request->request_id, error);
    if (status == BT_OK) status = gw_param_string(root, "session_id", &request->session_id, error);
    if (status == BT_OK) status = gw_param_i64(root, "priority", INT64_MIN, INT64_MAX, &request->priority, error);
    if (status == BT_OK) status = gw_param_bool(root, "include_stop_str_in_output", &request->include_stop_str, error);
    if (status == BT_OK) status = gw_param_bool(root, "skip_special_tokens", &request->skip_special_tokens, error);
    if (status == BT_OK) status = gw_param_bool(root, "add_special_tokens", &request->add_special_tokens, error);
    if (status == BT_OK) status = gw_param_bool(root, "include_reasoning", &request->include_reasoning, error);
    if (status == BT_OK) status = gw_param_bool(root, "return_token_ids", &request->return_token_ids, error);
    if (status == BT_OK)
        status = gw_param_bool(root, "return_tokens_as_token_ids", &request->names_tokens_by_id, error);
    if (status == BT_OK) status = gw_param_bool(root, "echo", &request->echo, error);
    return status;
}

static bt_status parse_truncation(gw_request *request, gw_error *error) {
    const char *side = "left";
    request->truncate_prompt_tokens = -1;
    bt_status status =
        gw_param_i64(request->root, "truncate_prompt_tokens", -1, INT32_MAX, &request->truncate_prompt_tokens, error);
    if (status == BT_OK) status = gw_param_string(request->root, "truncation_side", &side, error);
    if (status != BT_OK) return status;
    if (request->truncate_prompt_tokens == 0)
        return gw_fail(error, 400, "truncate_prompt_tokens", "truncate_prompt_tokens must be -1 or at least 1.");
    request->keeps_first_tokens = strcmp(side, "right") == 0;
    if (request->keeps_first_tokens || strcmp(side, "left") == 0) return BT_OK;
    return gw_fail(error, 400, "truncation_side", "truncation_side must be left or right.");
}

bt_status gw_api_parse_root(char *body, size_t n_bytes, gw_request *request, gw_error *error) {
    static const txt_json_rules rules = {
        .max_depth = GW_MAX_JSON_DEPTH, .max_values = GW_MAX_JSON_VALUES, .repairs = true};
    bt_error err = {0};
    if (txt_json_read(body, n_bytes, &rules, &request->root, &err) != BT_OK)
        return gw_fail(error, 400, "", "The body is not valid JSON: %s.", err.text);
    if (!cJSON_IsObject(request->root)) return gw_fail(error, 400, "", "The body must be a JSON object.");
    uint32_t n_keys = 0;
    for (const cJSON *child = request->root->child; child != NULL; child = child->next) n_keys++;
    if (n_keys > GW_MAX_TOP_LEVEL_KEYS)
        return gw_fail(error, 400, "", "The body has %u fields, the limit is %d.", n_keys, GW_MAX_TOP_LEVEL_KEYS);
    return BT_OK;
}

bt_status gw_api_parse(gw_endpoint endpoint, const gw_api_rules *rules, char *body, size_t n_bytes, gw_request *out,
                       gw_error *error) {
    gw_request request = {.endpoint = endpoint};
    bt_status status = gw_api_parse_root(body, n_bytes, &request, error);
    if (status == BT_OK) status = parse_output(&request, error);
    if (status == BT_OK) status = parse_truncation(&request, error);
    if (status == BT_OK && endpoint == GW_CHAT) status = gw_api_parse_chat(rules, &request, error);
    if (status == BT_OK && endpoint == GW_COMPLETION) status = gw_api_parse_completion(rules, &request, error);
    if (status == BT_OK) status = parse_stream(&request, error);
    if (status == BT_OK) status = parse_max_tokens(&request, error);
    if (status == BT_OK) status = gw_api_parse_sampling(rules, &request, error);
    if (status == BT_OK) status = parse_seed(&request, error);
    if (status == BT_OK) status = parse_stop(rules, &request, error);
    if (status == BT_OK) status = parse_cache_salt(&request, error);
    if (status == BT_OK) status = gw_api_refuse_unsupported(&request, error);
    if (status != BT_OK) {
        gw_request_fini(&request);
        return status;
    }
    *out = request;
    return BT_OK;
}

void gw_request_fini(gw_request *request) {
    cJSON_Delete(request->variables);
    cJSON_Delete(request->root);
    bt_arena_fini(&request->arena);
    *request = (gw_request){0};
}
