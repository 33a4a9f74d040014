/* How tokens are chosen and what is told about the choice: sampling parameters, penalties, lists of tokens, logprobs,
 * number of choices. */
#include <stdlib.h>
#include <string.h>

#include "gateway/api/api_params.h"
#include "gateway/api/api_parse.h"

#define MIN_TEMPERATURE 0.01 /* vLLM: a smaller one that is not 0 would overflow the softmax in half precision */

static bt_status parse_cuts(const gw_api_rules *rules, gw_request *request, gw_error *error) {
    const cJSON *root = request->root;
    wire_sampling *sampling = &request->sampling;
    double temperature = rules->default_temperature, top_p = rules->default_top_p, min_p = 0;
    int64_t top_k = rules->default_top_k, min_tokens = 0;
    bool ignore_eos = false;
    bt_status status = gw_param_f64(root, "temperature", 0, 2, &temperature, error);
    if (status == BT_OK) status = gw_param_f64(root, "top_p", 0, 1, &top_p, error);
    if (status == BT_OK) status = gw_param_f64(root, "min_p", 0, 1, &min_p, error);
    if (status == BT_OK) status = gw_param_i64(root, "top_k", -1, INT32_MAX, &top_k, error);
    if (status == BT_OK) status = gw_param_i64(root, "min_tokens", 0, INT32_MAX, &min_tokens, error);
    if (status == BT_OK) status = gw_param_bool(root, "ignore_eos", &ignore_eos, error);
    if (status != BT_OK) return status;
    if (min_tokens > request->max_tokens) /* completions: also the default's, as in vLLM */
        return gw_fail(error, 400, "min_tokens", "min_tokens must be at most max_tokens (%u), got %lld.",
                       request->max_tokens, (long long)min_tokens);
    if (temperature > 0 && temperature < MIN_TEMPERATURE) temperature = MIN_TEMPERATURE;
    if (top_p == 0) { /* OpenAI's way to say greedy */
        temperature = 0;
        top_p = 1;
    }
    sampling->temperature = (float)temperature;
    sampling->top_p = (float)top_p;
    sampling->min_p = (float)min_p;
    sampling->top_k = top_k > 0 ? (uint32_t)top_k : 0;
    sampling->min_tokens = (uint32_t)min_tokens;
    sampling->ignore_eos = ignore_eos;
    if (sampling->top_p <= 0) sampling->top_p = 1e-30F; /* a double too small for a float */
    return BT_OK;
}

static bt_status parse_penalties(gw_request *request, gw_error *error) {
    const cJSON *root = request->root;
    double presence = 0, frequency = 0, repetition = 1;
    bt_status status = gw_param_f64(root, "presence_penalty", -2, 2, &presence, error);
    if (status == BT_OK) status = gw_param_f64(root, "frequency_penalty", -2, 2, &frequency, error);
    if (status == BT_OK) status = gw_param_f64(root, "repetition_penalty", 1e-6, 1e6, &repetition, error);
    if (status != BT_OK) return status;
    request->sampling.presence_penalty = (float)presence;
    request->sampling.frequency_penalty = (float)frequency;
    request->sampling.repetition_penalty = (float)repetition;
    return BT_OK;
}

static uint32_t count_items(const cJSON *list) {
    uint32_t n = 0;
    for (const cJSON *item = list->child; item != NULL; item = item->next) n++;
    return n;
}

static bt_status parse_logit_bias(const gw_api_rules *rules, gw_request *request, gw_error *error) {
    const cJSON *list = gw_param_find(request->root, "logit_bias");
    if (list == NULL) return BT_OK;
    if (!cJSON_IsObject(list)) return gw_fail(error, 400, "logit_bias", "logit_bias must be an object.");
    uint32_t n = count_items(list);
    if (n > WIRE_MAX_BIASES)
        return gw_fail(error, 400, "logit_bias", "logit_bias is limited to %d tokens, got %u.", WIRE_MAX_BIASES, n);
    wire_bias *biases = bt_arena_alloc(&request->arena, n * sizeof *biases);
    for (const cJSON *item = list->child; item != NULL; item = item->next) {
        char *end = NULL;
        long long id = strtoll(item->string, &end, 10);
        double value = 0;
        if (end == item->string || *end != 0)
            return gw_fail(error, 400, "logit_bias", "A key of logit_bias is not a token id.");
        if (id < 0 || id >= rules->vocab_size)
            return gw_fail(error, 400, "logit_bias", "A token id of logit_bias is %lld, the vocabulary has %u.", id,
                           rules->vocab_size);
        if (!gw_value_f64(item, &value)) return gw_fail(error, 400, "logit_bias", "logit_bias must hold numbers.");
        double clamped = value > 100 ? 100 : value < -100 ? -100 : value; /* not refused: as vLLM */
        biases[request->constraint.n_logit_bias++] = (wire_bias){(uint32_t)id, (float)clamped};
    }
    request->constraint.logit_bias = biases;
    return BT_OK;
}

static bt_status parse_allowed(const gw_api_rules *rules, gw_request *request, gw_error *error) {
    const cJSON *list = gw_param_find(request->root, "allowed_token_ids");
    if (list == NULL) return BT_OK;
    if (!cJSON_IsArray(list) || list->child == NULL)
        return gw_fail(error, 400, "allowed_token_ids", "allowed_token_ids must be a list that is not empty.");
    uint32_t n = count_items(list);
    if (n > WIRE_MAX_ALLOWED_IDS)
        return gw_fail(error, 400, "allowed_token_ids", "allowed_token_ids is limited to %d ids, got %u.",
                       WIRE_MAX_ALLOWED_IDS, n);
    uint32_t *ids = bt_arena_alloc(&request->arena, n * sizeof *ids);
    for (const cJSON *item = list->child; item != NULL; item = item->next) {
        int64_t id = -1;
        if (!gw_value_i64(item, &id) || id < 0 || id >= rules->vocab_size)
            return gw_fail(error, 400, "allowed_token_ids", "allowed_token_ids must be ids of the vocabulary.");
        ids[request->constraint.n_allowed_token_ids++] = (uint32_t)id;
    }
    request->constraint.allowed_token_ids = ids;
    return BT_OK;
}

static bt_status parse_bad_words(gw_request *request, gw_error *error) {
    const cJSON *list = gw_param_find(request->root, "bad_words");
    if (list == NULL) return BT_OK;
    if (!cJSON_IsArray(list)) return gw_fail(error, 400, "bad_words", "bad_words must be a list of strings.");
    uint32_t n = count_items(list);
    if (n > GW_MAX_BAD_WORDS)
        return gw_fail(error, 400, "bad_words", "bad_words is limited to %d words, got %u.", GW_MAX_BAD_WORDS, n);
    request->bad_words = bt_arena_alloc(&request->arena, n * sizeof *request->bad_words);
    for (const cJSON *item = list->child; item != NULL; item = item->next) {
        if (!cJSON_IsString(item)) return gw_fail(error, 400, "bad_words", "bad_words must be a list of strings.");
        if (item->valuestring[0] == 0)
            return gw_fail(error, 400, "bad_words", "bad_words cannot contain an empty string.");
        if (strlen(item->valuestring) > GW_MAX_BAD_WORD_BYTES)
            return gw_fail(error, 400, "bad_words", "A word of bad_words is limited to %d bytes.",
                           GW_MAX_BAD_WORD_BYTES);
        request->bad_words[request->n_bad_words++] = item->valuestring;
    }
    return BT_OK;
}

/* How many logprobs parameter `name` asks for beside each token, -1 being the whole vocabulary: *n_logprobs is that
 * plus one. */
static bt_status read_n_logprobs(const gw_api_rules *rules, const char *name, int64_t n_top, uint32_t *n_logprobs,
                                 gw_error *error) {
    if (n_top < -1)
        return gw_fail(error, 400, name, "`%s` must be at least 0, or -1 for the whole vocabulary, got %lld.", name,
                       (long long)n_top);
    if (n_top == -1) n_top = rules->vocab_size;
    if (n_top > rules->max_logprobs)
        return gw_fail(error, 400, name,
                       "Requested %s of %lld, which is greater than max allowed: %u (--max-logprobs).", name,
                       (long long)n_top, rules->max_logprobs);
    if (n_top > rules->vocab_size) n_top = rules->vocab_size;
    *n_logprobs = 1 + (uint32_t)n_top;
    return BT_OK;
}

static bt_status parse_chat_logprobs(const gw_api_rules *rules, gw_request *request, gw_error *error) {
    bool has_logprobs = false;
    bt_status status = gw_param_bool(request->root, "logprobs", &has_logprobs, error);
    const cJSON *top = gw_param_find(request->root, "top_logprobs");
    int64_t n_top = 0;
    if (status == BT_OK && top != NULL && !gw_value_i64(top, &n_top))
        status = gw_fail(error, 400, "top_logprobs", "`top_logprobs` must be an integer.");
    if (status != BT_OK) return status;
    if (n_top != 0 && !has_logprobs)
        return gw_fail(error, 400, "top_logprobs", "when using `top_logprobs`, `logprobs` must be set to true.");
    if (!has_logprobs) return BT_OK;
    return read_n_logprobs(rules, "top_logprobs", n_top, &request->sampling.n_logprobs, error);
}

static bt_status parse_completion_logprobs(const gw_api_rules *rules, gw_request *request, gw_error *error) {
    const cJSON *logprobs = gw_param_find(request->root, "logprobs");
    int64_t n_top = 0;
    if (logprobs == NULL) return BT_OK;
    if (cJSON_IsBool(logprobs) || !gw_value_i64(logprobs, &n_top))
        return gw_fail(error, 400, "logprobs", "`logprobs` must be an integer.");
    request->echoes_logprobs = request->echo;
    return read_n_logprobs(rules, "logprobs", n_top, &request->sampling.n_logprobs, error);
}

/* Streams have no place for them; 0 is let through there, as in vLLM. */
static bt_status parse_prompt_logprobs(const gw_api_rules *rules, gw_request *request, gw_error *error) {
    const cJSON *prompt_logprobs = gw_param_find(request->root, "prompt_logprobs");
    int64_t n_top = 0;
    if (prompt_logprobs == NULL) return BT_OK;
    if (cJSON_IsBool(prompt_logprobs) || !gw_value_i64(prompt_logprobs, &n_top))
        return gw_fail(error, 400, "prompt_logprobs", "`prompt_logprobs` must be an integer.");
    if (request->stream && n_top == 0) return BT_OK;
    if (request->stream)
        return gw_fail(error, 400, "prompt_logprobs", "`prompt_logprobs` are not available when `stream=True`.");
    return read_n_logprobs(rules, "prompt_logprobs", n_top, &request->n_prompt_logprobs, error);
}

static bt_status parse_n(gw_request *request, gw_error *error) {
    int64_t n = 1, best_of = 0;
    bt_status status = gw_param_i64(request->root, "n", 1, GW_MAX_CHOICES, &n, error);
    if (status == BT_OK && request->endpoint == GW_COMPLETION)
        status = gw_param_i64(request->root, "best_of", 0, 20, &best_of, error);
    if (status != BT_OK) return status;
    if (best_of > n) return gw_fail(error, 400, "best_of", "best_of is not supported.");
    if (n > 1 && request->sampling.temperature == 0)
        return gw_fail(error, 400, "n", "n must be 1 when using greedy sampling, got %lld.", (long long)n);
    request->n_choices = (uint32_t)n;
    return BT_OK;
}

bt_status gw_api_parse_sampling(const gw_api_rules *rules, gw_request *request, gw_error *error) {
    bt_status status = parse_cuts(rules, request, error);
    if (status == BT_OK) status = parse_penalties(request, error);
    if (status == BT_OK) status = parse_logit_bias(rules, request, error);
    if (status == BT_OK) status = parse_allowed(rules, request, error);
    if (status == BT_OK) status = parse_bad_words(request, error);
    if (status == BT_OK && request->endpoint == GW_CHAT) status = parse_chat_logprobs(rules, request, error);
    if (status == BT_OK && request->endpoint == GW_COMPLETION)
        status = parse_completion_logprobs(rules, request, error);
    if (status == BT_OK) status = parse_prompt_logprobs(rules, request, error);
    if (status == BT_OK) status = parse_n(request, error);
    return status;
}
