/* Renders, encodes, truncates, measures. Keeps nothing. */
#include "gateway/prompt.h"

#include <string.h>

#include "common/text/reasoning.h"

static void add_token_texts(const gw_model *model, cJSON *variables) {
    const char *bos = tok_bos_text(model->tokenizer), *eos = tok_eos_text(model->tokenizer);
    cJSON_DeleteItemFromObjectCaseSensitive(variables, "bos_token");
    cJSON_DeleteItemFromObjectCaseSensitive(variables, "eos_token");
    cJSON_AddStringToObject(variables, "bos_token", bos == NULL ? "" : bos);
    cJSON_AddStringToObject(variables, "eos_token", eos == NULL ? "" : eos);
}

static const void *find_last(const bt_buf *text, const char *needle, size_t n_needle) {
    for (size_t at = text->n_bytes < n_needle ? 0 : text->n_bytes - n_needle + 1; at > 0; at--)
        if (memcmp(text->bytes + at - 1, needle, n_needle) == 0) return text->bytes + at - 1;
    return NULL;
}

static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* The prompt ends with the last message's own text, as transformers cuts it: where the template kept the white space
 * behind that text it stays, else it goes. */
static bt_status cut_after_last_message(const gw_request *request, bt_buf *text, gw_error *error) {
    const char *left = request->last_text;
    while (is_space(*left)) left++;
    size_t n_left = strlen(left), n_strip = n_left;
    while (n_strip > 0 && is_space(left[n_strip - 1])) n_strip--;
    const uint8_t *found = n_strip == 0 ? NULL : find_last(text, left, n_strip);
    if (found == NULL)
        return gw_fail(error, 400, "continue_final_message",
                       "continue_final_message: the chat template does not show the last message's text.");
    size_t at = (size_t)(found - text->bytes);
    bool keeps_space = text->n_bytes - at >= n_left && memcmp(found, left, n_left) == 0;
    text->n_bytes = at + (keeps_space ? n_left : n_strip);
    return BT_OK;
}

/* Megabytes that cannot fit are refused before they keep the loop busy. */
static bt_status check_bytes(const gw_model *model, const gw_request *request, size_t n_bytes, uint32_t max_model_len,
                             gw_error *error) {
    size_t n_least = n_bytes / model->longest_token_bytes;
    if (request->truncate_prompt_tokens >= 0 || n_least <= max_model_len) return BT_OK;
    return gw_fail(
        error, 400, "input_tokens",
        "This model's maximum context length is %u tokens. However, you requested at least %zu tokens in the "
        "messages. Please reduce the length of the messages or completion.",
        max_model_len, n_least);
}

static bt_status encode(const gw_model *model, const gw_request *request, const char *text, size_t n_bytes,
                        uint32_t max_model_len, gw_tokens *out, gw_error *error) {
    bt_status status = check_bytes(model, request, n_bytes, max_model_len, error);
    if (status != BT_OK) return status;
    bt_error err = {0};
    unsigned flags = request->add_special_tokens ? TOK_ADD_BOS : 0;
    const char *param = request->endpoint == GW_CHAT ? "messages" : "prompt";
    if (tok_encode(model->tokenizer, text, n_bytes, flags, &out->ids, &err) != BT_OK)
        return gw_fail(error, 400, param, "The prompt could not be tokenised: %s.", err.text);
    return BT_OK;
}

static bt_status build_chat(const gw_model *model, const gw_request *request, uint32_t max_model_len, gw_tokens *out,
                            gw_error *error) {
    if (model->chat_template == NULL)
        return gw_fail(error, 400, "messages", "This model has no chat template: use /v1/completions.");
    add_token_texts(model, request->variables);
    bt_buf text = {0};
    bt_error err = {0};
    bt_status status = tpl_render(model->chat_template, request->variables, &text, &err);
    if (status != BT_OK) {
        gw_fail(error, 400, "messages", "The chat template refused the messages: %s.", err.text);
    } else {
        if (request->continue_final_message) status = cut_after_last_message(request, &text, error);
        if (status == BT_OK)
            status = encode(model, request, (const char *)text.bytes, text.n_bytes, max_model_len, out, error);
    }
    bt_buf_fini(&text);
    return status;
}

static bt_status build_completion(const gw_model *model, const gw_request *request, uint32_t index,
                                  uint32_t max_model_len, gw_tokens *out, gw_error *error) {
    const gw_prompt *prompt = &request->prompts[index];
    if (prompt->text != NULL) return encode(model, request, prompt->text, prompt->n_bytes, max_model_len, out, error);
    out->ids.ids = bt_realloc(NULL, prompt->n_ids, sizeof *out->ids.ids);
    memcpy(out->ids.ids, prompt->ids, prompt->n_ids * sizeof *out->ids.ids);
    out->ids.n_ids = out->ids.cap_ids = prompt->n_ids;
    return BT_OK;
}

static bt_status check_length(const gw_request *request, uint32_t max_model_len, gw_tokens *out, gw_error *error) {
    uint64_t n_prompt = out->ids.n_ids;
    if (n_prompt == 0) return gw_fail(error, 400, "prompt", "The prompt has no tokens.");
    uint64_t wanted = request->has_max_tokens ? request->max_tokens : 0;
    uint64_t least = request->max_tokens == 0 ? 0 : 1;
    if (n_prompt + least > max_model_len || n_prompt + wanted > max_model_len) {
        uint64_t asked = wanted > least ? wanted : least;
        return gw_fail(error, 400, "input_tokens",
                       "This model's maximum context length is %u tokens. However, you requested %llu tokens (%llu in "
                       "the messages, %llu in the completion). Please reduce the length of the messages or completion.",
                       max_model_len, (unsigned long long)(n_prompt + asked), (unsigned long long)n_prompt,
                       (unsigned long long)asked);
    }
    uint64_t room = max_model_len - n_prompt;
    out->max_tokens = room < request->max_tokens ? (uint32_t)room : request->max_tokens;
    return BT_OK;
}

static void truncate_left(const gw_request *request, gw_tokens *out) {
    int64_t keep = request->truncate_prompt_tokens;
    if (keep < 0 || (uint64_t)keep >= out->ids.n_ids) return;
    memmove(out->ids.ids, out->ids.ids + (out->ids.n_ids - (size_t)keep), (size_t)keep * sizeof *out->ids.ids);
    out->ids.n_ids = (size_t)keep;
}

bt_status gw_prompt_build(const gw_model *model, const gw_request *request, uint32_t index, uint32_t max_model_len,
                          gw_tokens *out, gw_error *error) {
    gw_tokens tokens = {0};
    bt_status status = request->endpoint == GW_CHAT
                           ? build_chat(model, request, max_model_len, &tokens, error)
                           : build_completion(model, request, index, max_model_len, &tokens, error);
    if (status == BT_OK) truncate_left(request, &tokens);
    if (status == BT_OK) status = check_length(request, max_model_len, &tokens, error);
    if (status != BT_OK) {
        gw_tokens_fini(&tokens);
        return status;
    }
    if (model->has_reasoning && request->endpoint == GW_CHAT)
        tokens.opens_think = rsn_prompt_opens_think(model->tokenizer, tokens.ids.ids, tokens.ids.n_ids);
    *out = tokens;
    return BT_OK;
}

gw_tokens gw_tokens_copy(const gw_tokens *tokens) {
    gw_tokens copy = *tokens;
    copy.ids = (tok_ids){0};
    for (size_t i = 0; i < tokens->ids.n_ids; i++) tok_ids_put(&copy.ids, tokens->ids.ids[i]);
    return copy;
}

void gw_tokens_fini(gw_tokens *tokens) { tok_ids_fini(&tokens->ids); }
