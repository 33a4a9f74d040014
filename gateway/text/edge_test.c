/* From tokens to text to JSON, with the bundled model's tokenizer and template: prompts, streams, events, bodies. */
#include <math.h>
#include <string.h>

#include "common/core/test.h"
#include "gateway/api/api_format.h"
#include "gateway/text/logprobs.h"
#include "gateway/text/prompt.h"
#include "gateway/text/stream.h"

static gw_model *model;

/* ---- prompts ------------------------------------------------------------------------------------------------------
 */

static bt_status build(gw_endpoint endpoint, const char *body, uint32_t max_model_len, gw_tokens *out,
                       gw_error *error) {
    char *copy = strdup(body);
    gw_request request;
    bt_status status = gw_api_parse(endpoint, &model->rules, copy, strlen(copy), &request, error);
    if (status == BT_OK) {
        status = gw_prompt_open_call(model, &request, error);
        if (status == BT_OK) status = gw_prompt_build(model, NULL, &request, 0, max_model_len, out, error);
        gw_request_fini(&request);
    }
    free(copy);
    return status;
}

static void check_prompt(gw_endpoint endpoint, const char *body, const char *want, bool opens_think, const char *why) {
    gw_tokens tokens = {0};
    gw_error error = {0};
    bt_status status = build(endpoint, body, 4096, &tokens, &error);
    CHECK(status == BT_OK, "%s: %s", why, error.message);
    if (status != BT_OK) return;
    bt_buf text = {0};
    det_stream det;
    det_init(&det, model->tokenizer, false);
    for (size_t i = 0; i < tokens.ids.n_ids; i++) det_put(&det, tokens.ids.ids[i], &text);
    CHECK(strcmp(bt_buf_text(&text), want) == 0, "%s: got %s", why, bt_buf_text(&text));
    CHECK(tokens.opens_think == opens_think, "%s", why);
    bt_buf_fini(&text);
    gw_tokens_fini(&tokens);
}

#define BOS "<｜begin▁of▁sentence｜>"
#define U   "<｜User｜>"
#define A   "<｜Assistant｜>"
#define EOS "<｜end▁of▁sentence｜>"

static void test_prompts(void) {
    check_prompt(GW_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}", BOS U "Hi" A "<think>\n", true,
                 "the template ends in an open thought");
    check_prompt(GW_CHAT,
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"chat_template_kwargs\":{\"enable_thinking\":"
                 "false}}",
                 BOS U "Hi" A "<think>\n\n</think>\n\n", false, "no thought wanted");
    check_prompt(
        GW_CHAT,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":\"Well, \"}],"
        "\"add_generation_prompt\":false,\"continue_final_message\":true}",
        BOS U "Hi" A "Well, ", false, "goes on with the last message, without its end token");
    check_prompt(GW_COMPLETION, "{\"prompt\":\"Hi\"}", BOS "Hi", false, "text gets a BOS");
    check_prompt(GW_COMPLETION, "{\"prompt\":\"Hi\",\"add_special_tokens\":false}", "Hi", false, "unless not wanted");
    check_prompt(GW_COMPLETION, "{\"prompt\":[2036,2037]}", U A, false, "ids stay as they are");
    check_prompt(GW_COMPLETION, "{\"prompt\":[5,2036,2037],\"truncate_prompt_tokens\":2}", U A, false,
                 "the last tokens");
    check_prompt(GW_COMPLETION, "{\"prompt\":[2036,2037,5],\"truncate_prompt_tokens\":2,\"truncation_side\":\"right\"}",
                 U A, false, "or the first");
}

#define CALLS     "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
#define CALLS_END "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"

static void check_end(const char *fields, const char *want, const char *why) {
    char body[512];
    snprintf(body, sizeof body,
             "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"tools\":[{\"type\":\"function\",\"function\":{"
             "\"name\":\"f\"}},{\"type\":\"function\",\"function\":{\"name\":\"a\\nb\"}}]%s}",
             fields);
    gw_tokens tokens = {0};
    gw_error error = {0};
    bt_status status = build(GW_CHAT, body, 4096, &tokens, &error);
    if (want == NULL) {
        CHECK(status == BT_BAD_REQUEST && strcmp(error.param, "tool_choice") == 0, "%s", why);
        return;
    }
    CHECK(status == BT_OK, "%s: %s", why, error.message);
    bt_buf text = {0};
    det_stream det;
    det_init(&det, model->tokenizer, false);
    for (size_t i = 0; i < tokens.ids.n_ids; i++) det_put(&det, tokens.ids.ids[i], &text);
    size_t n = strlen(want);
    bool is_equal = text.n_bytes >= n && strcmp(bt_buf_text(&text) + text.n_bytes - n, want) == 0;
    CHECK(is_equal && tokens.opens_think == (strstr(want, "</think>") == NULL), "%s: %s", why, bt_buf_text(&text));
    bt_buf_fini(&text);
    gw_tokens_fini(&tokens);
}

static void test_forced_calls(void) {
    check_end("", A "<think>\n", "auto forces nothing");
    check_end(",\"tool_choice\":\"required\"", A "<think>\n\n</think>\n\n" CALLS,
              "required: the thought is closed, a call is open");
    check_end(",\"tool_choice\":\"required\",\"chat_template_kwargs\":{\"thinking\":false}",
              A "<think>\n\n</think>\n\n" CALLS, "as the template does it when no thought is wanted");
    check_end(",\"tool_choice\":\"required\",\"tools\":[{\"function\":{\"name\":\"g\"}}]",
              A "<think>\n\n</think>\n\n" CALLS "g\n```json\n", "required, and there is only one: as if named");
    check_end(",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"f\"}}",
              A "<think>\n\n</think>\n\n" CALLS "f\n```json\n", "named: its arguments are open");
    check_end(",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"a\\nb\"}}", NULL,
              "a name that would end early");
}

static void check_tool_prompt(tcl_format format, const char *messages, const char *want, const char *why) {
    bt_buf json = {0};
    bt_buf_printf(
        &json,
        "{\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"a\":1}}}],\"messages\":%s}",
        messages);
    cJSON *variables = cJSON_Parse(bt_buf_text(&json));
    tpl_template *tool_prompt = NULL;
    gw_error error = {0};
    bt_error err = {0};
    CHECK(gw_tool_prompt_open(format, "{{ messages }}", &tool_prompt, &err) == BT_OK, "%s", err.text);
    for (int i = 0; i < 2; i++) /* the second time nothing is added */
        CHECK(gw_tool_prompt_add(tool_prompt, variables, &error) == BT_OK, "%s", error.message);
    char *got = cJSON_PrintUnformatted(cJSON_GetObjectItem(variables, "messages"));
    CHECK(strcmp(got, want) == 0 && cJSON_IsNull(cJSON_GetObjectItem(variables, "tools")), "%s: got %s", why, got);
    cJSON_free(got);
    tpl_close(tool_prompt);
    cJSON_Delete(variables);
    bt_buf_fini(&json);
}

static void test_tools_that_the_template_does_not_show(void) {
    check_tool_prompt(
        TCL_DEEPSEEK_V3, "[{\"role\":\"user\",\"content\":\"u\"}]",
        "[{\"role\":\"system\",\"content\":\"You can call tools. To call one, answer with\\n" CALLS
        "NAME\\n```json\\n{\\\"argument\\\": \\\"value\\\"}\\n```" CALLS_END
        "\\nand nothing else. The arguments are one JSON object.\\n\\n## Tools\\n\\n```json\\n{\\\"type\\\": "
        "\\\"function\\\", \\\"function\\\": {\\\"name\\\": \\\"f\\\", \\\"parameters\\\": {\\\"a\\\": 1}}}"
        "\\n```\\n\"},{\"role\":\"user\",\"content\":\"u\"}]",
        "a system message of their own");
    check_tool_prompt(
        TCL_DEEPSEEK_V31, "[{\"role\":\"user\",\"content\":\"u\"},{\"role\":\"system\",\"content\":\"s\"}]",
        "[{\"role\":\"user\",\"content\":\"u\"},{\"role\":\"system\",\"content\":\"s\\n\\n## Tools\\nYou have "
        "access to the following tools:\\n\\n### f\\nDescription: \\n\\nParameters: {\\\"a\\\": 1}\\n\\nIMPORTANT: "
        "ALWAYS adhere to this exact format for tool use:\\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
        "tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>{additional_tool_calls}"
        "<｜tool▁calls▁end｜>\\n\\nWhere:\\n\\n- `tool_call_name` must be an exact match to one of the available "
        "tools\\n- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters "
        "Schema\\n- For multiple tool calls, chain them directly without separators or spaces\\n\"}]",
        "behind the system message that is there");
    tpl_template *none = NULL;
    CHECK(gw_tool_prompt_open(TCL_DEEPSEEK_V3, "{{ tools }}", &none, NULL) == BT_OK && none == NULL, "it shows them");
    CHECK(gw_tool_prompt_open(TCL_KIMI_K2, "", &none, NULL) == BT_OK && none == NULL, "Kimi's do");
    CHECK(model->tool_prompt == NULL, "so does the bundled model's");
}

static void check_length(const char *body, uint32_t limit, const char *param, uint32_t max_tokens, const char *why) {
    gw_tokens tokens = {0};
    gw_error error = {0};
    bt_status status = build(GW_COMPLETION, body, limit, &tokens, &error);
    if (param == NULL) {
        CHECK(status == BT_OK && tokens.max_tokens == max_tokens, "%s: %s", why, error.message);
        gw_tokens_fini(&tokens);
        return;
    }
    CHECK(status == BT_BAD_REQUEST && error.http_status == 400 && strcmp(error.param, param) == 0, "%s", why);
    CHECK(strstr(error.message, "maximum context length is") != NULL, "%s: routers look for this phrase", why);
}

static void test_hopeless_text(void) {
    size_t n = (size_t)model->longest_token_bytes * 102;
    char *body = malloc(n + 32);
    int at = sprintf(body, "{\"prompt\":\"");
    memset(body + at, 'a', n);
    strcpy(body + at + n, "\"}");
    check_length(body, 100, "input_tokens", 0, "too many bytes for any tokens that fit");
    free(body);
}

/* Encoding stops when a prompt's length is known to be too much, and not before. */
static void test_long_text(void) {
    static const char *const units[] = {"x y", "abcdefghijklmnopqrstuvwxyz", "</think>", "12 ", "\xe4\xbd\xa0"};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        bt_buf body = {0};
        gw_tokens whole = {0}, again = {0};
        gw_error error = {0};
        bt_buf_puts(&body, "{\"max_tokens\":0,\"prompt\":\"");
        for (int n = 0; n < 400; n++) bt_buf_puts(&body, units[i]);
        bt_buf_puts(&body, "\"}");
        CHECK(build(GW_COMPLETION, bt_buf_text(&body), UINT32_MAX, &whole, &error) == BT_OK, "%s", error.message);
        uint32_t n_ids = (uint32_t)whole.ids.n_ids;
        bt_status status = build(GW_COMPLETION, bt_buf_text(&body), n_ids, &again, &error);
        CHECK(status == BT_OK && again.ids.n_ids == n_ids &&
                  memcmp(again.ids.ids, whole.ids.ids, n_ids * sizeof *whole.ids.ids) == 0,
              "%s: as many as may be: %s", units[i], error.message);
        check_length(bt_buf_text(&body), n_ids - 1, "input_tokens", 0, "one more");
        char least[32];
        snprintf(least, sizeof least, "at least %u tokens", n_ids / 2 + 1);
        status = build(GW_COMPLETION, bt_buf_text(&body), n_ids / 2, &again, &error);
        CHECK(status == BT_BAD_REQUEST && strcmp(error.param, "input_tokens") == 0 &&
                  strstr(error.message, least) != NULL && strstr(error.message, "maximum context length is") != NULL,
              "%s: far more: %s", units[i], error.message);
        gw_tokens_fini(&whole);
        gw_tokens_fini(&again);
        bt_buf_fini(&body);
    }
}

static void test_lengths(void) {
    check_length("{\"prompt\":[1,2,3,4]}", 4, "input_tokens", 0, "no room for one token");
    check_length("{\"prompt\":[1,2,3,4,5]}", 4, "input_tokens", 0, "too long by itself");
    check_length("{\"prompt\":[1,2,3,4]}", 10, NULL, 6, "the default is cut to the room");
    check_length("{\"prompt\":[1,2,3,4]}", 100, NULL, 16, "or is 16");
    check_length("{\"prompt\":[1,2,3,4],\"max_tokens\":7}", 10, "input_tokens", 0, "the client's own wish is not cut");
    check_length("{\"prompt\":[1,2,3,4],\"max_tokens\":6}", 10, NULL, 6, "to the last token");
    check_length("{\"prompt\":[1,2,3,4],\"max_tokens\":0}", 4, NULL, 0, "nothing to generate needs no room");
    check_length("{\"prompt\":[1,2,3,4],\"max_tokens\":4294967295000}", 10, "input_tokens", 0, "a huge wish");
}

/* ---- streams ------------------------------------------------------------------------------------------------------
 */

typedef struct {
    const char *text; /* encoded to tokens */
    const char *stop; /* NULL: none */
    bool include_stop_str, has_reasoning, opens_think;
    uint32_t min_tokens;
    const char *reasoning, *content;
    bool is_stopped;
    const char *why;
} stream_row;

static const stream_row stream_rows[] = {
    {"one two three", NULL, false, false, false, 0, "", "one two three", false, "plain"},
    {"caf\xc3\xa9 \xf0\x9f\x98\x80 \xe4\xbd\xa0", NULL, false, false, false, 0, "",
     "caf\xc3\xa9 \xf0\x9f\x98\x80 \xe4\xbd\xa0", false, "characters of several tokens"},
    {"one two three", "wo t", false, false, false, 0, "", "one t", true, "a stop string across tokens"},
    {"one two three", "wo t", true, false, false, 0, "", "one two t", true, "shown if asked for"},
    {"one two three", "threes", false, false, false, 0, "", "one two three", false, "a prefix is held, then given out"},
    {"aXb", "X", false, false, false, 50, "", "aXb", false, "no stop below min_tokens"},
    {"why\n</think>\n\nso", NULL, false, true, true, 0, "why\n", "\n\nso", false, "thought and answer"},
    {"<think>why</think>so", NULL, false, true, false, 0, "why", "so", false, "the model opens the thought itself"},
    {"never ends", NULL, false, true, true, 0, "never ends", "", false, "a thought that never ends"},
    {"no thought", NULL, false, true, false, 0, "", "no thought", false, "an answer only"},
    {"a</think>b END c", "END", false, true, true, 0, "a", "b ", true, "a stop string in the answer"},
    {"a END b</think>c", "END", false, true, true, 0, "a ", "", true, "or in the thought"},
};

static void test_streams(void) {
    for (size_t i = 0; i < sizeof stream_rows / sizeof *stream_rows; i++) {
        const stream_row *row = &stream_rows[i];
        tok_ids ids = {0};
        tok_encode(model->tokenizer, row->text, strlen(row->text), 0, &ids, NULL);
        gw_stream_options options = {.tokenizer = model->tokenizer,
                                     .stop = &row->stop,
                                     .n_stop = row->stop != NULL,
                                     .include_stop_str = row->include_stop_str,
                                     .skip_special_tokens = true,
                                     .has_reasoning = row->has_reasoning,
                                     .opens_think = row->opens_think,
                                     .min_tokens = row->min_tokens};
        gw_stream stream;
        CHECK(gw_stream_init(&stream, &options, NULL) == BT_OK, "%s", row->why);
        bool is_stopped = false;
        for (size_t t = 0; t < ids.n_ids && !is_stopped; t++) is_stopped = gw_stream_put(&stream, ids.ids[t]);
        if (!is_stopped) is_stopped = gw_stream_finish(&stream);
        CHECK(is_stopped == row->is_stopped, "%s", row->why);
        CHECK(strcmp(bt_buf_text(&stream.reasoning), row->reasoning) == 0, "%s: got %s", row->why,
              bt_buf_text(&stream.reasoning));
        CHECK(strcmp(bt_buf_text(&stream.content), row->content) == 0, "%s: got %s", row->why,
              bt_buf_text(&stream.content));
        gw_stream_fini(&stream);
        tok_ids_fini(&ids);
    }
}

/* A stream with tools; content, then |name(arguments) of each call. */
static void check_calls(const char *text, const char *opening, uint32_t max_calls, const char *want, const char *why) {
    gw_stream_options options = {.tokenizer = model->tokenizer,
                                 .skip_special_tokens = true,
                                 .has_reasoning = true,
                                 .call_format = model->call_format,
                                 .call_ids = "t-",
                                 .max_calls = max_calls,
                                 .call_opening = opening};
    gw_stream stream;
    tok_ids ids = {0};
    tok_encode(model->tokenizer, text, strlen(text), 0, &ids, NULL);
    CHECK(gw_stream_init(&stream, &options, NULL) == BT_OK, "%s", why);
    for (size_t i = 0; i < ids.n_ids; i++) gw_stream_put(&stream, ids.ids[i]);
    gw_stream_finish(&stream);
    for (uint32_t i = 0; i < stream.tools.n_calls; i++) {
        tcl_call *call = &stream.tools.calls[i];
        bt_buf_printf(&stream.content, "|%s(%s)", call->name, bt_buf_text(&call->arguments));
    }
    CHECK(strcmp(bt_buf_text(&stream.content), want) == 0, "%s: got %s", why, bt_buf_text(&stream.content));
    gw_stream_fini(&stream);
    tok_ids_fini(&ids);
}

static void test_tool_calls(void) {
    CHECK(model->call_format == TCL_DEEPSEEK_V3, "the bundled model's");
    check_calls("I look." CALLS "f\n```json\n{\"a\": 1}\n```" CALLS_END, NULL, 9, "I look.|f({\"a\": 1})", "a call");
    check_calls("<think>" CALLS "</think>\n\n" CALLS "f\n```json\n{}\n```" CALLS_END, NULL, 9, "|f({})",
                "none within a thought");
    check_calls("f\n```json\n{}\n```" CALLS_END, CALLS, 1, "|f({})", "behind what the prompt ended with");
    check_calls("not today", CALLS, 1, "not today", "no call came: the opening is not shown");
}

static void test_end_token(void) {
    uint32_t eos = model->config.eos_token_ids[0], comma = 14;
    for (int includes = 0; includes < 2; includes++) {
        gw_stream_options options = {.tokenizer = model->tokenizer,
                                     .include_stop_str = includes,
                                     .skip_special_tokens = true,
                                     .end_ids = (uint32_t[]){eos, comma},
                                     .n_end_ids = 2};
        gw_stream stream;
        gw_stream_init(&stream, &options, NULL);
        gw_stream_put(&stream, 67);
        gw_stream_put(&stream, comma);
        gw_stream_finish(&stream);
        CHECK((stream.content.n_bytes > 1) == includes, "a stop token is text only if asked for");
        gw_stream_fini(&stream);
    }
}

static void test_cut_character(void) {
    const uint8_t *bytes;
    size_t n_bytes;
    uint32_t id = 0;
    while (tok_token_bytes(model->tokenizer, id, &bytes, &n_bytes) == BT_OK && !(n_bytes == 1 && bytes[0] == 0xE4))
        id++;
    gw_stream_options options = {.tokenizer = model->tokenizer};
    gw_stream stream;
    gw_stream_init(&stream, &options, NULL);
    gw_stream_put(&stream, id);
    CHECK(stream.content.n_bytes == 0, "half a character is held");
    gw_stream_finish(&stream);
    CHECK(strcmp(bt_buf_text(&stream.content), "\xef\xbf\xbd") == 0, "and is one U+FFFD at the end");
    gw_stream_fini(&stream);
}

/* ---- JSON ---------------------------------------------------------------------------------------------------------
 */

#define HEAD(object)                                                                                                   \
    "{\"id\":\"id\",\"object\":\"" object "\",\"created\":7,\"model\":\"m\",\"system_fingerprint\":\"f\",\"choices\":" \
    "["

static void check_out(bt_buf *out, const char *want, const char *why) {
    CHECK(strcmp(bt_buf_text(out), want) == 0, "%s: got %s", why, bt_buf_text(out));
    bt_buf_clear(out);
}

static void test_chunks(void) {
    gw_format format;
    gw_format_init(&format, true, true, false, "id", "m", 7, "f");
    bt_buf out = {0};
    gw_text text = {"a\n", 2};
    gw_usage usage = {.n_prompt = 9, .n_output = 3, .n_cached = 1};
    gw_finish finish = {.reason = "stop", .kind = GW_STOP_STRING, .string = "\"X"};
    gw_format_role(&format, 0, &(gw_format_choice){0}, NULL, &out);
    check_out(&out,
              "data: " HEAD("chat.completion.chunk") "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                                                     "\"logprobs\":null,\"finish_reason\":null}]}\n\n",
              "role");
    gw_format_role(&format, 1, &(gw_format_choice){.prompt_ids = (uint32_t[]){5, 6}, .n_prompt_ids = 2}, NULL, &out);
    check_out(&out,
              "data: " HEAD("chat.completion.chunk") "{\"index\":1,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                                                     "\"logprobs\":null,\"finish_reason\":null}],"
                                                     "\"prompt_token_ids\":[5,6]}\n\n",
              "the prompt's ids, beside the choices");
    gw_format_delta(&format, 0, &(gw_format_choice){.content = text}, NULL, &out);
    check_out(&out,
              "data: " HEAD("chat.completion.chunk") "{\"index\":0,\"delta\":{\"content\":\"a\\n\"},\"logprobs\":null,"
                                                     "\"finish_reason\":null}]}\n\n",
              "content");
    gw_format_delta(&format, 0, &(gw_format_choice){.reasoning = text, .ids = (uint32_t[]){1, 4294967295U}, .n_ids = 2},
                    NULL, &out);
    check_out(&out,
              "data: " HEAD("chat.completion.chunk") "{\"index\":0,\"delta\":{\"reasoning\":\"a\\n\","
                                                     "\"reasoning_content\":\"a\\n\"},\"token_ids\":[1,4294967295],"
                                                     "\"logprobs\":null,\"finish_reason\":null}]}\n\n",
              "reasoning under both names");
    gw_format_call call = {"c1", "f", {"", 0}, 0};
    gw_format_delta(&format, 0, &(gw_format_choice){.calls = &call, .n_calls = 1}, NULL, &out);
    check_out(
        &out,
        "data: " HEAD("chat.completion.chunk") "{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"c1\","
                                               "\"type\":\"function\",\"function\":{\"name\":\"f\","
                                               "\"arguments\":\"\"}}]},\"logprobs\":null,"
                                               "\"finish_reason\":null}]}\n\n",
        "a call's begin");
    call = (gw_format_call){NULL, NULL, {"{\"", 2}, 1};
    gw_format_delta(&format, 0, &(gw_format_choice){.calls = &call, .n_calls = 1}, NULL, &out);
    check_out(
        &out,
        "data: " HEAD("chat.completion.chunk") "{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":1,\"function\":{"
                                               "\"arguments\":\"{\\\"\"}}]},\"logprobs\":null,"
                                               "\"finish_reason\":null}]}\n\n",
        "id, type and name come once");
    gw_format_finish(&format, 0, &finish, NULL, &out);
    check_out(&out,
              "data: " HEAD("chat.completion.chunk") "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":"
                                                     "\"stop\",\"stop_reason\":\"\\\"X\"}]}\n\n",
              "finish");
    gw_format_usage(&format, &usage, &out);
    check_out(&out,
              "data: " HEAD("chat.completion.chunk") "],\"usage\":{\"prompt_tokens\":9,\"total_tokens\":12,"
                                                     "\"completion_tokens\":3,\"prompt_tokens_details\":{"
                                                     "\"cached_tokens\":1}}}\n\n",
              "usage");
    gw_format_fini(&format);
    bt_buf_fini(&out);
}

static void test_bodies(void) {
    gw_format format;
    bt_buf out = {0};
    gw_usage usage = {.n_prompt = 1, .n_output = 2, .n_reasoning = 1};
    gw_format_choice choice = {.reasoning = {"r", 1}, .finish = {.reason = "length"}};
    gw_format_init(&format, true, false, true, "id", "m", 7, "f");
    gw_format_body_begin(&format, &out);
    gw_format_body_choice(&format, 0, &choice, &out);
    gw_format_body_end(&format, &usage, &choice, &out);
    check_out(
        &out,
        HEAD("chat.completion") "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":null,\"refusal\":null,"
                                "\"annotations\":null,\"audio\":null,\"function_call\":null,\"reasoning\":\"r\","
                                "\"reasoning_content\":\"r\"},\"logprobs\":null,\"finish_reason\":\"length\","
                                "\"stop_reason\":null,\"token_ids\":null}],\"service_tier\":null,\"usage\":{"
                                "\"prompt_tokens\":1,\"total_tokens\":3,\"completion_tokens\":2,"
                                "\"prompt_tokens_details\":{\"cached_tokens\":0},\"completion_tokens_details\":{"
                                "\"reasoning_tokens\":1}},\"prompt_logprobs\":null,\"prompt_token_ids\":null,"
                                "\"kv_transfer_params\":null}",
        "a thought without an answer: content is null, and there");
    gw_format_fini(&format);
    gw_format_init(&format, false, true, false, "id", "m", 7, "f");
    gw_format_choice echo = {.content = {"a", 1}, .prompt_ids = (uint32_t[]){5}, .n_prompt_ids = 1};
    gw_format_delta(&format, 0, &echo, NULL, &out);
    check_out(&out,
              "data: " HEAD("text_completion") "{\"index\":0,\"text\":\"a\",\"logprobs\":null,\"finish_reason\":null,"
                                               "\"prompt_token_ids\":[5]}]}\n\n",
              "and in the choice of a completion");
    gw_format_fini(&format);
    gw_format_call calls[2] = {{"c1", "f", {"{}", 2}, 0}, {"c2", "g", {"x", 1}, 1}};
    gw_format_init(&format, true, false, false, "id", "m", 7, "f");
    gw_format_body_choice(&format, 0, &(gw_format_choice){.calls = calls, .n_calls = 2}, &out);
    CHECK(strstr(bt_buf_text(&out), "\"content\":null") != NULL &&
              strstr(bt_buf_text(&out),
                     ",\"tool_calls\":[{\"id\":\"c1\",\"type\":\"function\",\"function\":{\"name\":"
                     "\"f\",\"arguments\":\"{}\"}},{\"id\":\"c2\",\"type\":\"function\",\"function\":{"
                     "\"name\":\"g\",\"arguments\":\"x\"}}]}") != NULL,
          "calls whole: %s", bt_buf_text(&out));
    bt_buf_clear(&out);
    gw_format_fini(&format);
    gw_format_choice two[2] = {{.content = {"a", 1}, .finish = {.reason = "stop", .kind = GW_STOP_TOKEN, .token = 5}},
                               {.content = {"", 0}, .finish = {.reason = "stop"}}};
    gw_format_init(&format, false, false, false, "id", "m", 7, "f");
    gw_format_body_begin(&format, &out);
    for (uint32_t i = 0; i < 2; i++) gw_format_body_choice(&format, i, &two[i], &out);
    gw_format_body_end(&format, &usage, &two[0], &out);
    cJSON *parsed = cJSON_Parse(bt_buf_text(&out));
    const cJSON *choices = cJSON_GetObjectItem(parsed, "choices");
    CHECK(cJSON_GetArraySize(choices) == 2, "two choices: %s", bt_buf_text(&out));
    CHECK(cJSON_GetObjectItem(cJSON_GetArrayItem(choices, 0), "stop_reason")->valueint == 5, "a stop token's id");
    CHECK(cJSON_IsNull(cJSON_GetObjectItem(cJSON_GetArrayItem(choices, 1), "stop_reason")), "EOS is null");
    cJSON_Delete(parsed);
    gw_format_fini(&format);
    bt_buf_fini(&out);
}

/* Tokens of the bundled model: 67 is a, 130 and 105 are the two bytes of an e with acute, 300 is al. */
static void test_logprobs(void) {
    static const wire_logprob tops[][2] = {
        {{67, -0.5f}, {300, -1}}, {{130, -0.25f}, {105, -2}}, {{300, -0.0f}, {105, -INFINITY}}, {{67, -1}, {130, -2}}};
    static const uint32_t ids[] = {67, 130, 105, 300};
    static const float own[] = {-0.5f, -0.25f, -20000, -3e-5f};
    gw_logprobs logprobs;
    bt_buf out = {0};
    for (int is_chat = 0; is_chat < 2; is_chat++) {
        gw_logprobs_init(&logprobs, model->tokenizer, is_chat ? GW_LOGPROBS_CHAT : GW_LOGPROBS_COMPLETION, true, 2);
        for (int i = 0; i < 4; i++) gw_logprobs_put(&logprobs, ids[i], i < 3, &(wire_ranked){own[i], 1, tops[i], 2});
        CHECK(logprobs.n == (is_chat ? 3 : 4), "chat does not list the token that ended the request");
        CHECK(gw_logprobs_n_ready(&logprobs, 1) == 2 && gw_logprobs_n_ready(&logprobs, 2) == 1, "held bytes");
        gw_logprobs_write(&logprobs, 1, &out);
        if (!is_chat) {
            bt_buf_clear(&out);
            gw_logprobs_write(&logprobs, 3, &out);
            check_out(&out,
                      "{\"text_offset\":[1,1,2],\"token_logprobs\":[-0.25,-9999.0,-2.99999992e-05],"
                      "\"tokens\":[\"\\ufffd\",\"\\ufffd\",\"al\"],\"top_logprobs\":["
                      "{\"\\ufffd\":-0.25},{\"al\":0.0,\"\\ufffd\":-9999.0},"
                      "{\"a\":-1.0,\"\\ufffd\":-2.0,\"al\":-2.99999992e-05}]}",
                      "characters are counted, equal keys are told once, numbers are JSON's");
        } else {
            check_out(&out,
                      "{\"content\":[{\"token\":\"a\",\"logprob\":-0.5,\"bytes\":[97],\"top_logprobs\":["
                      "{\"token\":\"a\",\"logprob\":-0.5,\"bytes\":[97]},"
                      "{\"token\":\"al\",\"logprob\":-1.0,\"bytes\":[97,108]}]}],\"refusal\":null}",
                      "an object per token");
            logprobs.shows_ids = true;
            gw_logprobs_write(&logprobs, 1, &out);
            CHECK(strstr(bt_buf_text(&out), "{\"token\":\"token_id:130\",\"logprob\":-0.25,\"bytes\":[195]") != NULL,
                  "or its id: %s", bt_buf_text(&out));
            bt_buf_clear(&out);
        }
        gw_logprobs_fini(&logprobs);
    }
    bt_buf_fini(&out);
}

static void test_logprobs_of_a_prompt(void) {
    static const wire_logprob tops[] = {{67, -0.5f}, {300, -1}, {130, -2}};
    gw_logprobs logprobs;
    bt_buf out = {0};
    gw_logprobs_init(&logprobs, model->tokenizer, GW_LOGPROBS_PROMPT, true, 2);
    gw_logprobs_put_first(&logprobs, 67);
    gw_logprobs_put(&logprobs, 300, true, &(wire_ranked){-1, 2, tops, 3}); /* more than asked for: an echo has more */
    gw_logprobs_put(&logprobs, 105, true, &(wire_ranked){-INFINITY, 2000, tops, 3});
    gw_logprobs_write(&logprobs, 3, &out);
    check_out(&out,
              "[null,{\"300\":{\"logprob\":-1.0,\"rank\":2,\"decoded_token\":\"al\"},"
              "\"67\":{\"logprob\":-0.5,\"rank\":1,\"decoded_token\":\"a\"}},"
              "{\"105\":{\"logprob\":-9999.0,\"rank\":2000,\"decoded_token\":\"\\ufffd\"},"
              "\"67\":{\"logprob\":-0.5,\"rank\":1,\"decoded_token\":\"a\"},"
              "\"300\":{\"logprob\":-1.0,\"rank\":2,\"decoded_token\":\"al\"}}]",
              "the token itself, then the likeliest, each id once");
    gw_logprobs_fini(&logprobs);
    bt_buf_fini(&out);
}

static void check_ban(const char *word, const uint32_t *want, const char *why) {
    gw_request request = {.bad_words = (const char *[]){word}, .n_bad_words = 1};
    gw_error error = {0};
    CHECK(gw_prompt_ban_words(model, &request, &error) == BT_OK, "%s: %s", why, error.message);
    const wire_constraint *c = &request.constraint;
    for (uint32_t i = 0; i < c->n_bad_words; i++) {
        CHECK(c->bad_words[i].n_tokens == *want, "%s: %u tokens", why, c->bad_words[i].n_tokens);
        for (uint32_t n = *want++, t = 0; n > 0; n--, t++)
            CHECK(c->bad_words[i].tokens[t] == *want++, "%s: token %u is %u", why, t, c->bad_words[i].tokens[t]);
    }
    CHECK(*want == 0, "%s: %u words", why, c->n_bad_words);
    gw_request_fini(&request);
}

static void test_bad_words_are_tokenised_as_vllm_does(void) {
    check_ban("al", (uint32_t[]){1, 300, 1, 726, 0}, "a word, and the word behind a space");
    check_ban(" \t\nal", (uint32_t[]){1, 300, 1, 726, 0}, "white space in front goes");
    check_ban("zq", (uint32_t[]){2, 92, 83, 2, 516, 83, 0}, "two tokens");
    check_ban("<think>", (uint32_t[]){1, 2031, 0}, "an added token; behind a space it would be two");
    check_ban("\xc3\xa9", (uint32_t[]){2, 130, 105, 0}, "two bytes; with a space three tokens");
    char long_word[GW_MAX_BAD_WORD_BYTES];
    for (size_t i = 0; i < sizeof long_word; i++) long_word[i] = "zq"[i % 2];
    long_word[sizeof long_word - 1] = 0;
    for (int i = 0; i < 2; i++) {
        gw_request request = {.bad_words = (const char *[]){i == 0 ? " \n" : long_word}, .n_bad_words = 1};
        gw_error error = {0};
        CHECK(gw_prompt_ban_words(model, &request, &error) == BT_BAD_REQUEST, "no tokens, or too many");
        CHECK(strcmp(error.param, "bad_words") == 0, "%s", error.message);
        gw_request_fini(&request);
    }
}

int main(void) {
    gw_model_options options = {.model_dir = "deploy/models/nano-r1/",
                                .served_names = "",
                                .chat_template = "",
                                .reasoning_parser = "auto",
                                .tool_call_parser = "auto"};
    bt_error err = {0};
    bt_status status = gw_model_open(&options, &model, &err);
    CHECK(status == BT_OK, "%s", err.text);
    if (status != BT_OK) TEST_END();
    CHECK(strcmp(model->served_names[0], "nano-r1") == 0 && model->has_reasoning, "what the folder says");
    CHECK(gw_model_find(model, "") == model->served_names[0] && gw_model_find(model, "x") == NULL, "names");
    test_prompts();
    test_forced_calls();
    test_tools_that_the_template_does_not_show();
    test_lengths();
    test_hopeless_text();
    test_long_text();
    test_streams();
    test_tool_calls();
    test_end_token();
    test_cut_character();
    test_chunks();
    test_bodies();
    test_logprobs();
    test_logprobs_of_a_prompt();
    test_bad_words_are_tokenised_as_vllm_does();
    gw_model_close(model);
    TEST_END();
}
