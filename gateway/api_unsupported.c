/* Parameters that Baton knows and does not support (yet): wrong values are refused as wrong, values that would change
 * the output are refused by name, values that change nothing pass. What is not named here or read elsewhere is
 * ignored, as in vLLM (metadata, store, user, service_tier, prediction, kv_transfer_params of outside clients, ...). */
#include <stdlib.h>
#include <string.h>

#include "gateway/api_params.h"
#include "gateway/api_parse.h"

static bt_status fail_unsupported(gw_error *error, const char *name) {
    return gw_fail(error, 400, name, "%s is not supported.", name);
}

/* A number within [min, max] that must be `neutral`. */
static bt_status refuse_number(const cJSON *root, const char *name, double min, double max, double neutral,
                               gw_error *error) {
    double value = neutral;
    bt_status status = gw_param_f64(root, name, min, max, &value, error);
    if (status != BT_OK) return status;
    return value == neutral ? BT_OK : fail_unsupported(error, name);
}

static bt_status refuse_n(const gw_request *request, gw_error *error) {
    int64_t n = 1;
    bt_status status = gw_param_i64(request->root, "n", 1, 16384, &n, error);
    if (status != BT_OK) return status;
    if (n > 1) return gw_fail(error, 400, "n", "Only n=1 is supported, got %lld.", (long long)n);
    return BT_OK;
}

static bt_status refuse_chat_logprobs(const cJSON *root, gw_error *error) {
    bool has_logprobs = false;
    bt_status status = gw_param_bool(root, "logprobs", &has_logprobs, error);
    const cJSON *top = gw_param_find(root, "top_logprobs");
    int64_t n_top = 0;
    if (status == BT_OK && top != NULL && !gw_value_i64(top, &n_top))
        status = gw_fail(error, 400, "top_logprobs", "`top_logprobs` must be an integer.");
    if (status != BT_OK) return status;
    if (n_top < -1 || n_top > 20)
        return gw_fail(error, 400, "top_logprobs", "top_logprobs must be between 0 and 20, got %lld.",
                       (long long)n_top);
    if (n_top != 0 && !has_logprobs)
        return gw_fail(error, 400, "top_logprobs", "when using `top_logprobs`, `logprobs` must be set to true.");
    return has_logprobs ? fail_unsupported(error, "logprobs") : BT_OK;
}

static bt_status refuse_logprobs(const gw_request *request, gw_error *error) {
    const cJSON *root = request->root, *logprobs = gw_param_find(root, "logprobs");
    if (request->endpoint == GW_CHAT) {
        bt_status status = refuse_chat_logprobs(root, error);
        if (status != BT_OK) return status;
    } else if (logprobs != NULL) {
        int64_t n = 0;
        if (cJSON_IsBool(logprobs) || !gw_value_i64(logprobs, &n) || n < -1)
            return gw_fail(error, 400, "logprobs", "logprobs must be an integer of at least 0.");
        return fail_unsupported(error, "logprobs");
    }
    const cJSON *prompt_logprobs = gw_param_find(root, "prompt_logprobs");
    int64_t n = 0;
    if (prompt_logprobs == NULL) return BT_OK;
    if (!gw_value_i64(prompt_logprobs, &n) || n < -1)
        return gw_fail(error, 400, "prompt_logprobs", "prompt_logprobs must be an integer of at least 0.");
    if (request->stream && n != 0)
        return gw_fail(error, 400, "prompt_logprobs", "`prompt_logprobs` are not available when `stream=True`.");
    return fail_unsupported(error, "prompt_logprobs");
}

static bt_status refuse_logit_bias(const gw_api_rules *rules, const cJSON *root, gw_error *error) {
    const cJSON *bias = gw_param_find(root, "logit_bias");
    if (bias == NULL) return BT_OK;
    if (!cJSON_IsObject(bias)) return gw_fail(error, 400, "logit_bias", "logit_bias must be an object.");
    for (const cJSON *item = bias->child; item != NULL; item = item->next) {
        char *end = NULL;
        long long id = strtoll(item->string, &end, 10);
        double value = 0;
        if (end == item->string || *end != 0)
            return gw_fail(error, 400, "logit_bias", "A key of logit_bias is not a token id.");
        if (id < 0 || id >= rules->vocab_size)
            return gw_fail(error, 400, "logit_bias", "A token id of logit_bias is %lld, the vocabulary has %u.", id,
                           rules->vocab_size);
        if (!gw_value_f64(item, &value)) return gw_fail(error, 400, "logit_bias", "logit_bias must hold numbers.");
    }
    return bias->child == NULL ? BT_OK : fail_unsupported(error, "logit_bias");
}

static bt_status refuse_lists(const gw_api_rules *rules, const cJSON *root, gw_error *error) {
    const cJSON *allowed = gw_param_find(root, "allowed_token_ids");
    if (allowed != NULL) {
        if (!cJSON_IsArray(allowed) || allowed->child == NULL)
            return gw_fail(error, 400, "allowed_token_ids", "allowed_token_ids must be a list that is not empty.");
        for (const cJSON *item = allowed->child; item != NULL; item = item->next) {
            int64_t id = -1;
            if (!gw_value_i64(item, &id) || id < 0 || id >= rules->vocab_size)
                return gw_fail(error, 400, "allowed_token_ids", "allowed_token_ids must be ids of the vocabulary.");
        }
        return fail_unsupported(error, "allowed_token_ids");
    }
    const cJSON *bad_words = gw_param_find(root, "bad_words");
    if (bad_words == NULL) return BT_OK;
    if (!cJSON_IsArray(bad_words)) return gw_fail(error, 400, "bad_words", "bad_words must be a list of strings.");
    return bad_words->child == NULL ? BT_OK : fail_unsupported(error, "bad_words");
}

static bt_status refuse_formats(const cJSON *root, gw_error *error) {
    const cJSON *format = gw_param_find(root, "response_format");
    if (format != NULL) {
        const cJSON *type = cJSON_IsObject(format) ? gw_param_find(format, "type") : NULL;
        static const char *const known[] = {"json_object", "json_schema", "structural_tag"};
        if (!cJSON_IsString(type))
            return gw_fail(error, 400, "response_format", "response_format must be an object with a type.");
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            if (strcmp(type->valuestring, known[i]) == 0)
                return gw_fail(error, 400, "response_format", "response_format of type %s is not supported.", known[i]);
        if (strcmp(type->valuestring, "text") != 0)
            return gw_fail(error, 400, "response_format",
                           "response_format's type must be text, json_object or json_schema.");
    }
    static const char *const constrained[] = {"structured_outputs", "guided_json", "guided_regex", "guided_choice",
                                              "guided_grammar"};
    for (size_t i = 0; i < sizeof constrained / sizeof *constrained; i++)
        if (gw_param_find(root, constrained[i]) != NULL) return fail_unsupported(error, constrained[i]);
    return BT_OK;
}

static bt_status refuse_presence(const gw_request *request, gw_error *error) {
    static const char *const when_given[] = {"thinking_token_budget", "logprob_token_ids", "repetition_detection",
                                             "chat_template", "prompt_embeds"};
    for (size_t i = 0; i < sizeof when_given / sizeof *when_given; i++)
        if (gw_param_find(request->root, when_given[i]) != NULL) return fail_unsupported(error, when_given[i]);
    static const char *const when_true[] = {"use_beam_search", "return_prompt_text", "return_tokens_as_token_ids"};
    for (size_t i = 0; i < sizeof when_true / sizeof *when_true; i++) {
        bool is_on = false;
        bt_status status = gw_param_bool(request->root, when_true[i], &is_on, error);
        if (status != BT_OK) return status;
        if (is_on) return fail_unsupported(error, when_true[i]);
    }
    return BT_OK;
}

static bt_status refuse_completion_only(const gw_request *request, gw_error *error) {
    if (request->endpoint != GW_COMPLETION) return BT_OK;
    const char *suffix = "";
    bt_status status = gw_param_string(request->root, "suffix", &suffix, error);
    if (status != BT_OK) return status;
    if (suffix[0] != 0) return gw_fail(error, 400, "suffix", "suffix is not currently supported.");
    int64_t best_of = 1;
    status = gw_param_i64(request->root, "best_of", 0, 20, &best_of, error);
    if (status != BT_OK) return status;
    return best_of > 1 ? fail_unsupported(error, "best_of") : BT_OK;
}

bt_status gw_api_refuse_unsupported(const gw_api_rules *rules, const gw_request *request, gw_error *error) {
    const cJSON *root = request->root;
    bt_status status = refuse_n(request, error);
    if (status == BT_OK) status = refuse_number(root, "presence_penalty", -2, 2, 0, error);
    if (status == BT_OK) status = refuse_number(root, "frequency_penalty", -2, 2, 0, error);
    if (status == BT_OK) status = refuse_number(root, "repetition_penalty", 1e-6, 1e6, 1, error);
    if (status == BT_OK) status = refuse_number(root, "priority", -0x1p63, 0x1p63, 0, error);
    if (status == BT_OK) status = refuse_logprobs(request, error);
    if (status == BT_OK) status = refuse_logit_bias(rules, root, error);
    if (status == BT_OK) status = refuse_lists(rules, root, error);
    if (status == BT_OK) status = refuse_formats(root, error);
    if (status == BT_OK) status = refuse_presence(request, error);
    if (status == BT_OK) status = refuse_completion_only(request, error);
    return status;
}
