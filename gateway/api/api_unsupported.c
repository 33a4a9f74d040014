/* Parameters that Baton knows and does not support (yet): wrong values are refused as wrong, values that would change
 * the output are refused by name, values that change nothing pass. What is not named here or read elsewhere is
 * ignored, as in vLLM (metadata, store, user, service_tier, prediction, kv_transfer_params of outside clients, ...). */
#include <string.h>

#include "gateway/api/api_params.h"
#include "gateway/api/api_parse.h"

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
    static const char *const when_given[] = {"logprob_token_ids", "repetition_detection", "chat_template",
                                             "prompt_embeds"};
    for (size_t i = 0; i < sizeof when_given / sizeof *when_given; i++)
        if (gw_param_find(request->root, when_given[i]) != NULL) return fail_unsupported(error, when_given[i]);
    static const char *const when_true[] = {"use_beam_search", "return_prompt_text"};
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
    if (status == BT_OK && suffix[0] != 0) return gw_fail(error, 400, "suffix", "suffix is not currently supported.");
    return status;
}

bt_status gw_api_refuse_unsupported(const gw_request *request, gw_error *error) {
    const cJSON *root = request->root;
    bt_status status = refuse_number(root, "thinking_token_budget", -1, 0x1p63, -1, error);
    if (status == BT_OK) status = refuse_formats(root, error);
    if (status == BT_OK) status = refuse_presence(request, error);
    if (status == BT_OK) status = refuse_completion_only(request, error);
    return status;
}
