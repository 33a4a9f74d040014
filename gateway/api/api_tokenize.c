/* /tokenize and /detokenize: bodies -> gw_request, of which only what they need is filled in. */
#include <string.h>

#include "gateway/api/api_params.h"
#include "gateway/api/api_parse.h"

static bt_status parse_text(gw_request *request, gw_error *error) {
    const cJSON *prompt = gw_param_find(request->root, "prompt");
    if (prompt == NULL) return gw_fail(error, 400, "prompt", "Either prompt or messages must be given.");
    if (!cJSON_IsString(prompt)) return gw_fail(error, 400, "prompt", "prompt must be a string.");
    request->endpoint = GW_COMPLETION;
    request->add_special_tokens = true;
    request->prompts = bt_arena_alloc(&request->arena, sizeof *request->prompts);
    request->prompts[0] = (gw_prompt){.text = prompt->valuestring, .n_bytes = strlen(prompt->valuestring)};
    request->n_prompts = 1;
    return BT_OK;
}

static bt_status parse_tokenize(const gw_api_rules *rules, gw_request *request, gw_error *error) {
    const cJSON *root = request->root;
    if (gw_param_find(root, "chat_template") != NULL)
        return gw_fail(error, 400, "chat_template", "chat_template is not supported.");
    request->endpoint = GW_CHAT;
    bool is_chat = gw_param_find(root, "messages") != NULL;
    bt_status status = is_chat ? gw_api_parse_chat(rules, request, error) : parse_text(request, error);
    if (status == BT_OK) status = gw_param_bool(root, "add_special_tokens", &request->add_special_tokens, error);
    if (status == BT_OK) status = gw_param_bool(root, "return_token_strs", &request->returns_token_strs, error);
    return status;
}

static bt_status parse_ids(const gw_api_rules *rules, gw_request *request, gw_error *error) {
    const cJSON *tokens = gw_param_find(request->root, "tokens");
    if (!cJSON_IsArray(tokens)) return gw_fail(error, 400, "tokens", "tokens must be a list of token ids.");
    uint32_t n = 0;
    for (const cJSON *item = tokens->child; item != NULL; item = item->next) n++;
    uint32_t *ids = bt_arena_alloc(&request->arena, (n + 1) * sizeof *ids);
    n = 0;
    for (const cJSON *item = tokens->child; item != NULL; item = item->next) {
        int64_t id = -1;
        if (!gw_value_i64(item, &id) || id < 0 || id >= rules->vocab_size)
            return gw_fail(error, 400, "tokens", "tokens must be ids of the vocabulary, which has %u.",
                           rules->vocab_size);
        ids[n++] = (uint32_t)id;
    }
    request->endpoint = GW_COMPLETION;
    request->prompts = bt_arena_alloc(&request->arena, sizeof *request->prompts);
    request->prompts[0] = (gw_prompt){.ids = ids, .n_ids = n};
    request->n_prompts = 1;
    return BT_OK;
}

typedef bt_status (*parse_function)(const gw_api_rules *rules, gw_request *request, gw_error *error);

static bt_status parse_with(parse_function parse, const gw_api_rules *rules, char *body, size_t n_bytes,
                            gw_request *out, gw_error *error) {
    gw_request request = {.model = "", .truncate_prompt_tokens = -1};
    bt_status status = gw_api_parse_root(body, n_bytes, &request, error);
    if (status == BT_OK) status = gw_param_string(request.root, "model", &request.model, error);
    if (status == BT_OK) status = parse(rules, &request, error);
    if (status != BT_OK) {
        gw_request_fini(&request);
        return status;
    }
    *out = request;
    return BT_OK;
}

bt_status gw_api_parse_tokenize(const gw_api_rules *rules, char *body, size_t n_bytes, gw_request *out,
                                gw_error *error) {
    return parse_with(parse_tokenize, rules, body, n_bytes, out, error);
}

bt_status gw_api_parse_detokenize(const gw_api_rules *rules, char *body, size_t n_bytes, gw_request *out,
                                  gw_error *error) {
    return parse_with(parse_ids, rules, body, n_bytes, out, error);
}
