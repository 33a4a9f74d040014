/* Renders, encodes, truncates, measures; encodes bad words; opens calls. Keeps nothing. */
#include "gateway/text/prompt.h"

#include <string.h>

#include "common/text/reasoning.h"
#include "common/text/utf8.h"
#include "gateway/api/api_params.h"

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

/* What building a prompt carries through. All borrowed. */
typedef struct {
    const gw_model *model;
    tok_cache *cache; /* may be NULL */
    const gw_request *request;
    uint32_t max_model_len;
    size_t max_ids; /* of text: encoding stops when there are more; TOK_ANY_IDS: never */
    gw_tokens *out;
    gw_error *error;
} prompt_build;

static bt_status fail_too_long(const prompt_build *build, size_t n_least) {
    return gw_fail(
        build->error, 400, "input_tokens",
        "This model's maximum context length is %u tokens. However, you requested at least %zu tokens in the "
        "messages. Please reduce the length of the messages or completion.",
        build->max_model_len, n_least);
}

/* Megabytes that cannot fit are refused before they keep the loop busy: at once, or when enough has been seen. */
static bt_status encode(const prompt_build *build, const char *text, size_t n_bytes, unsigned flags) {
    const gw_request *request = build->request;
    size_t n_least = n_bytes / build->model->longest_token_bytes;
    if (request->truncate_prompt_tokens < 0 && n_least > build->max_model_len) return fail_too_long(build, n_least);
    bt_error err = {0};
    if (request->add_special_tokens) flags |= TOK_ADD_BOS;
    bt_status status = tok_encode_cached(build->model->tokenizer, build->cache, text, n_bytes, flags, build->max_ids,
                                         &build->out->ids, &err);
    if (status == BT_NO_CAPACITY) return fail_too_long(build, build->max_ids + 1);
    if (status == BT_OK) return BT_OK;
    return gw_fail(build->error, 400, request->endpoint == GW_CHAT ? "messages" : "prompt",
                   "The prompt could not be tokenised: %s.", err.text);
}

static bool ends_with(const bt_buf *text, size_t n_bytes, const char *end) {
    size_t n = strlen(end);
    return n_bytes >= n && memcmp(text->bytes + n_bytes - n, end, n) == 0;
}

/* A thought that the template opened has no room in front of a call: it is closed as templates do it themselves. */
static void put_opening(const gw_request *request, bt_buf *text) {
    if (request->call_opening == NULL) return;
    size_t n = text->n_bytes;
    while (n > 0 && is_space((char)text->bytes[n - 1])) n--;
    if (ends_with(text, n, RSN_OPEN)) bt_buf_puts(text, n == text->n_bytes ? RSN_CLOSE : "\n" RSN_CLOSE "\n\n");
    bt_buf_puts(text, request->call_opening);
}

static bt_status build_chat(const prompt_build *build) {
    const gw_model *model = build->model;
    const gw_request *request = build->request;
    gw_error *error = build->error;
    if (model->chat_template == NULL)
        return gw_fail(error, 400, "messages", "This model has no chat template: use /v1/completions.");
    add_token_texts(model, request->variables);
    bt_buf text = {0};
    bt_error err = {0};
    bt_status status = gw_tool_prompt_add(model->tool_prompt, request->variables, error);
    if (status != BT_OK) return status;
    status = tpl_render(model->chat_template, request->variables, &text, &err);
    if (status != BT_OK) {
        gw_fail(error, 400, "messages", "The chat template refused the messages: %s.", err.text);
    } else {
        if (request->continue_final_message) status = cut_after_last_message(request, &text, error);
        put_opening(request, &text);
        utf8_put_slack(&text);
        if (status == BT_OK) status = encode(build, (const char *)text.bytes, text.n_bytes, TOK_CHECKED);
    }
    bt_buf_fini(&text);
    return status;
}

static bt_status build_completion(const prompt_build *build, uint32_t index) {
    const gw_prompt *prompt = &build->request->prompts[index];
    if (prompt->text != NULL) return encode(build, prompt->text, prompt->n_bytes, 0);
    tok_ids *ids = &build->out->ids;
    ids->ids = bt_realloc(NULL, prompt->n_ids, sizeof *ids->ids);
    memcpy(ids->ids, prompt->ids, prompt->n_ids * sizeof *ids->ids);
    ids->n_ids = ids->cap_ids = prompt->n_ids;
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

static void truncate_prompt(const gw_request *request, gw_tokens *out) {
    int64_t keep = request->truncate_prompt_tokens;
    if (keep < 0 || (uint64_t)keep >= out->ids.n_ids) return;
    if (!request->keeps_first_tokens)
        memmove(out->ids.ids, out->ids.ids + (out->ids.n_ids - (size_t)keep), (size_t)keep * sizeof *out->ids.ids);
    out->ids.n_ids = (size_t)keep;
}

static bt_status build_prompt(const prompt_build *build, uint32_t index) {
    return build->request->endpoint == GW_CHAT ? build_chat(build) : build_completion(build, index);
}

bt_status gw_prompt_encode(const gw_model *model, const gw_request *request, uint32_t max_model_len, tok_ids *out,
                           gw_error *error) {
    gw_tokens tokens = {0};
    prompt_build build = {model, NULL, request, max_model_len, TOK_ANY_IDS, &tokens, error};
    bt_status status = build_prompt(&build, 0);
    if (status == BT_OK) *out = tokens.ids;
    if (status != BT_OK) gw_tokens_fini(&tokens);
    return status;
}

bt_status gw_prompt_build(const gw_model *model, tok_cache *cache, const gw_request *request, uint32_t index,
                          uint32_t max_model_len, gw_tokens *out, gw_error *error) {
    gw_tokens tokens = {0};
    bool is_cut = request->truncate_prompt_tokens >= 0; /* whose last tokens are wanted needs all */
    prompt_build build = {model, cache, request, max_model_len, is_cut ? TOK_ANY_IDS : max_model_len, &tokens, error};
    bt_status status = build_prompt(&build, index);
    if (status == BT_OK) truncate_prompt(request, &tokens);
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

/* `text`, a word, in tokens. BT_OK without tokens: there are none. */
static bt_status encode_word(const gw_model *model, const char *text, size_t n_bytes, bt_arena *arena, wire_word *out,
                             gw_error *error) {
    tok_ids ids = {0};
    bt_error err = {0};
    bt_status status = tok_encode(model->tokenizer, text, n_bytes, 0, &ids, &err);
    if (status != BT_OK) {
        gw_fail(error, 400, "bad_words", "A word of bad_words could not be tokenised: %s.", err.text);
    } else if (ids.n_ids > WIRE_MAX_BAD_WORD_TOKENS) {
        status = gw_fail(error, 400, "bad_words", "A word of bad_words has %zu tokens, the limit is %d.", ids.n_ids,
                         WIRE_MAX_BAD_WORD_TOKENS);
    } else if (ids.n_ids > 0) {
        size_t n = ids.n_ids * sizeof *ids.ids;
        *out = (wire_word){memcpy(bt_arena_alloc(arena, n), ids.ids, n), (uint32_t)ids.n_ids};
    }
    tok_ids_fini(&ids);
    return status;
}

bt_status gw_prompt_ban_words(const gw_model *model, gw_request *request, gw_error *error) {
    if (request->n_bad_words == 0) return BT_OK;
    wire_word *words = bt_arena_alloc(&request->arena, 2 * request->n_bad_words * sizeof *words);
    uint32_t n = 0;
    for (uint32_t i = 0; i < request->n_bad_words; i++) {
        const char *word = request->bad_words[i];
        while (is_space(*word)) word++;
        size_t n_bytes = strlen(word);
        char *spaced = bt_arena_alloc(&request->arena, 1 + n_bytes);
        spaced[0] = ' ';
        memcpy(spaced + 1, word, n_bytes);
        wire_word bare = {0}, behind_space = {0};
        bt_status status = encode_word(model, word, n_bytes, &request->arena, &bare, error);
        if (status == BT_OK && bare.n_tokens == 0)
            status = gw_fail(error, 400, "bad_words", "A word of bad_words is nothing but white space.");
        if (status == BT_OK) status = encode_word(model, spaced, 1 + n_bytes, &request->arena, &behind_space, error);
        if (status != BT_OK) return status;
        words[n++] = bare;
        if (behind_space.n_tokens == bare.n_tokens && behind_space.tokens[0] != bare.tokens[0])
            words[n++] = behind_space;
    }
    request->constraint.bad_words = words;
    request->constraint.n_bad_words = n;
    return BT_OK;
}

/* ---- calls --------------------------------------------------------------------------------------------------------
 */

static uint32_t count_earlier_calls(const gw_request *request) {
    uint32_t n = 0;
    for (const cJSON *message = gw_param_find(request->variables, "messages")->child; message != NULL;
         message = message->next)
        n += (uint32_t)cJSON_GetArraySize(gw_param_find(message, "tool_calls"));
    return n;
}

static bool can_spell(tcl_format format, const char *name, const bt_buf *opening) {
    tcl_parser parser;
    tcl_init(&parser, format, "", 1);
    tcl_put_opening(&parser, (const char *)opening->bytes, opening->n_bytes);
    bool is_read = parser.n_calls == 1 && strcmp(parser.calls[0].name, name) == 0 && parser.state != TCL_DONE;
    tcl_fini(&parser);
    return is_read;
}

bt_status gw_prompt_open_call(const gw_model *model, gw_request *request, gw_error *error) {
    if (request->tool_choice != GW_TOOLS_REQUIRED && request->tool_choice != GW_TOOLS_NAMED) return BT_OK;
    bt_buf opening = {0};
    bt_status status = BT_OK;
    tcl_write_opening(model->call_format, request->tool_name, count_earlier_calls(request), &opening);
    if (request->tool_name != NULL && !can_spell(model->call_format, request->tool_name, &opening))
        status = gw_fail(error, 400, "tool_choice", "The tool's name cannot be written in a call of this model.");
    request->call_opening = bt_arena_strndup(&request->arena, (const char *)opening.bytes, opening.n_bytes);
    bt_buf_fini(&opening);
    return status;
}

gw_tokens gw_tokens_copy(const gw_tokens *tokens) {
    gw_tokens copy = *tokens;
    copy.ids = (tok_ids){0};
    for (size_t i = 0; i < tokens->ids.n_ids; i++) tok_ids_put(&copy.ids, tokens->ids.ids[i]);
    return copy;
}

void gw_tokens_fini(gw_tokens *tokens) { tok_ids_fini(&tokens->ids); }
