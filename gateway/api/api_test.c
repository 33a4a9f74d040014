/* The contract's fields as table rows: a body, what it must answer, and why. */
#include <math.h>
#include <string.h>

#include "common/core/test.h"
#include "gateway/api/api_json.h"
#include "gateway/api/api_request.h"

static const gw_api_rules rules = {.vocab_size = 2048,
                                   .default_temperature = 0.6F,
                                   .default_top_p = 0.95F,
                                   .max_logprobs = 20,
                                   .reads_tool_calls = true};

static bt_status parse(gw_endpoint endpoint, const gw_api_rules *with, const char *body, gw_request *out,
                       gw_error *error) {
    static char copy[1 << 16]; /* *out points into it, until the next */
    size_t n_bytes = strlen(body);
    BT_ASSERT(n_bytes < sizeof copy);
    memcpy(copy, body, n_bytes + 1);
    return gw_api_parse(endpoint, with, copy, n_bytes, out, error);
}

/* ---- what is refused, and with which param ---------------------------------------------------------------------- */

typedef struct {
    const char *body, *param, *why; /* param NULL: accepted */
} row;

#define U    "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
#define M(f) "{" U "," f "}"

static const row chat_rows[] = {
    {"", "", "an empty body"},
    {"[]", "", "not an object"},
    {"\"x\"", "", "not an object"},
    {"{\"a\":", "", "cut short"},
    {"{" U "}{", "", "bytes behind the end"},
    {M("\"a\":01"), "", "a leading zero"},
    {M("\"a\":'x'"), "", "single quotes"},
    {M("\"a\":\"\xff\""), "", "not UTF-8"},
    {M("\"a\":\"\xed\xa0\x80\""), "", "an encoded surrogate is not UTF-8"},
    {M("\"temperature\":NaN"), "", "NaN is not JSON"},
    {M("\"temperature\":-Infinity"), "", "Infinity is not JSON"},
    {"\xef\xbb\xbf{" U "}", NULL, "a byte order mark is skipped"},
    {M("\"x\":{\"y\":[1,2,{\"z\":null}]}"), NULL, "unknown keys are ignored"},
    {"{}", "messages", "missing"},
    {"{\"messages\":null}", "messages", "null is missing"},
    {"{\"messages\":{}}", "messages", "not a list"},
    {"{\"messages\":[]}", "messages", "empty"},
    {"{\"messages\":[{}]}", "messages", "no role"},
    {"{\"messages\":[1]}", "messages", "not an object"},
    {"{\"messages\":[{\"role\":\"king\",\"content\":\"x\"}]}", "messages[0].role", "unknown role"},
    {"{\"messages\":[{\"role\":\"User\",\"content\":\"x\"}]}", NULL, "any case"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":5}]}", "messages", "content must be text"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}", "messages", "media"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"foo\"}]}]}", "type", "unknown part"},
    {"{\"messages\":[{\"role\":\"assistant\",\"content\":null},{\"role\":\"user\"}]}", NULL, "null content"},
    {"{\"messages\":[{\"role\":\"function\",\"content\":\"x\",\"name\":\"f\"}]}", NULL, "function is tool"},
    {M("\"model\":5"), "model", "a string"},
    {M("\"model\":null"), NULL, "null is absent"},
    {M("\"temperature\":-1"), "temperature", "below 0"},
    {M("\"temperature\":3"), "temperature", "over 2"},
    {M("\"temperature\":\"hot\""), "temperature", "not a number"},
    {M("\"temperature\":[]"), "temperature", "not a number"},
    {M("\"temperature\":1e999"), "temperature", "infinite"},
    {M("\"temperature\":\"0.7\""), NULL, "numeric strings count"},
    {M("\"temperature\":\" 1\""), "temperature", "but not with blanks"},
    {M("\"temperature\":\"0x1\""), "temperature", "nor in hexadecimal"},
    {M("\"temperature\":2"), NULL, "the bound is included"},
    {M("\"top_p\":-0.1"), "top_p", "below 0"},
    {M("\"top_p\":1.1"), "top_p", "over 1"},
    {M("\"top_k\":-2"), "top_k", "below -1"},
    {M("\"top_k\":-1"), NULL, "off"},
    {M("\"min_p\":2"), "min_p", "over 1"},
    {M("\"max_tokens\":0"), "max_tokens", "chat needs one"},
    {M("\"max_tokens\":-1"), "max_tokens", "negative"},
    {M("\"max_tokens\":5.0"), NULL, "an integral float"},
    {M("\"max_tokens\":5.5"), "max_tokens", "not integral"},
    {M("\"max_tokens\":true"), "max_tokens", "not a number"},
    {M("\"max_completion_tokens\":0"), "max_completion_tokens", "the newer name"},
    {M("\"min_tokens\":9,\"max_tokens\":8"), "min_tokens", "over max_tokens"},
    {M("\"min_tokens\":-1"), "min_tokens", "negative"},
    {M("\"min_tokens\":2000000"), NULL, "as many as there is room for"},
    {M("\"n\":0"), "n", "at least 1"},
    {M("\"n\":2"), NULL, "two choices"},
    {M("\"n\":2,\"temperature\":0"), "n", "two equal ones"},
    {M("\"n\":129"), "n", "over the limit"},
    {M("\"n\":1"), NULL, "the default"},
    {M("\"seed\":9223372036854775807"), NULL, "the largest"},
    {M("\"seed\":9223372036854775808"), "seed", "over int64"},
    {M("\"seed\":-1"), NULL, "none"},
    {M("\"seed\":1.5"), "seed", "not integral"},
    {M("\"stop\":[\"\"]"), "stop", "empty"},
    {M("\"stop\":\"\""), "stop", "empty"},
    {M("\"stop\":[1]"), "stop", "not a string"},
    {M("\"stop\":null"), NULL, "null is absent"},
    {M("\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\"]"),
     NULL, "16 strings"},
    {M("\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\","
       "\"h\"]"),
     "stop", "17 strings"},
    {M("\"stop_token_ids\":[2048]"), "stop_token_ids", "out of the vocabulary"},
    {M("\"stop_token_ids\":\"1\""), "stop_token_ids", "not a list"},
    {M("\"stream\":\"maybe\""), "stream", "not a boolean"},
    {M("\"stream\":{}"), "stream", "not a boolean"},
    {M("\"stream\":1"), NULL, "1 is true"},
    {M("\"stream_options\":{}"), "stream_options", "without stream"},
    {M("\"stream_options\":null"), NULL, "null is absent"},
    {M("\"stream\":true,\"stream_options\":{\"include_usage\":7}"), "stream_options", "not a boolean"},
    {M("\"ignore_eos\":\"x\""), "ignore_eos", "not a boolean"},
    {M("\"presence_penalty\":3"), "presence_penalty", "out of range"},
    {M("\"presence_penalty\":1"), NULL, "in range"},
    {M("\"presence_penalty\":0"), NULL, "changes nothing"},
    {M("\"frequency_penalty\":-3"), "frequency_penalty", "out of range"},
    {M("\"repetition_penalty\":0"), "repetition_penalty", "out of range"},
    {M("\"repetition_penalty\":1.0"), NULL, "vllm bench sends it"},
    {M("\"logprobs\":true"), NULL, "on"},
    {M("\"logprobs\":true,\"top_logprobs\":20"), NULL, "as many as there may be"},
    {M("\"logprobs\":true,\"top_logprobs\":-1"), "top_logprobs", "all of them: over 20"},
    {M("\"logprobs\":true,\"top_logprobs\":-2"), "top_logprobs", "below -1"},
    {M("\"logprobs\":false"), NULL, "off"},
    {M("\"top_logprobs\":2"), "top_logprobs", "without logprobs"},
    {M("\"top_logprobs\":\"x\""), "top_logprobs", "not a number"},
    {M("\"top_logprobs\":1000,\"logprobs\":true"), "top_logprobs", "over 20"},
    {M("\"top_logprobs\":0"), NULL, "off"},
    {M("\"prompt_logprobs\":1,\"stream\":true"), "prompt_logprobs", "not in a stream"},
    {M("\"prompt_logprobs\":-1,\"stream\":true"), "prompt_logprobs", "not in a stream"},
    {M("\"prompt_logprobs\":0,\"stream\":true"), NULL, "let through, and nothing comes of it"},
    {M("\"prompt_logprobs\":0"), NULL, "the tokens' own"},
    {M("\"prompt_logprobs\":20"), NULL, "as many as there may be"},
    {M("\"prompt_logprobs\":21"), "prompt_logprobs", "over 20"},
    {M("\"prompt_logprobs\":-1"), "prompt_logprobs", "all of them: over 20"},
    {M("\"prompt_logprobs\":-2"), "prompt_logprobs", "below -1"},
    {M("\"prompt_logprobs\":\"x\""), "prompt_logprobs", "not a number"},
    {M("\"prompt_logprobs\":true"), "prompt_logprobs", "not a number"},
    {M("\"logit_bias\":{\"abc\":1}"), "logit_bias", "not an id"},
    {M("\"logit_bias\":{\"2048\":1}"), "logit_bias", "out of the vocabulary"},
    {M("\"logit_bias\":{}"), NULL, "empty"},
    {M("\"logit_bias\":{\"7\":\"x\"}"), "logit_bias", "not a number"},
    {M("\"logit_bias\":{\"7\":250}"), NULL, "clamped"},
    {M("\"allowed_token_ids\":[1,2]"), NULL, "two"},
    {M("\"allowed_token_ids\":[-1]"), "allowed_token_ids", "no id"},
    {M("\"allowed_token_ids\":[]"), "allowed_token_ids", "empty"},
    {M("\"bad_words\":[\"x\",\" y z\"]"), NULL, "words"},
    {M("\"bad_words\":[]"), NULL, "none"},
    {M("\"bad_words\":\"x\""), "bad_words", "not a list"},
    {M("\"bad_words\":[5]"), "bad_words", "not a string"},
    {M("\"bad_words\":[\"\"]"), "bad_words", "empty"},
    {M("\"response_format\":{\"type\":\"xml\"}"), "response_format", "unknown"},
    {M("\"response_format\":{\"type\":\"text\"}"), NULL, "no constraint"},
    {M("\"response_format\":{\"type\":\"json_object\"}"), "response_format", "not supported yet"},
    {M("\"structured_outputs\":{\"regex\":\"a\"}"), "structured_outputs", "not supported yet"},
    {M("\"use_beam_search\":true"), "use_beam_search", "not supported"},
    {M("\"chat_template\":\"x\""), "chat_template", "not from clients"},
    {M("\"tools\":[]"), NULL, "absent"},
    {M("\"tools\":[{\"type\":\"x\"}]"), "tools", "type"},
    {M("\"tools\":[{\"type\":\"function\",\"function\":{}}]"), "tools", "no name"},
    {M("\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]"), NULL, "parameters may be absent"},
    {M("\"tool_choice\":\"required\""), "tool_choice", "without tools"},
    {M("\"tool_choice\":\"auto\""), NULL, "clients send it without tools"},
    {M("\"tool_choice\":\"foo\""), "tool_choice", "unknown"},
    {M("\"tools\":[{\"function\":{\"name\":\"f\"}}],\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":"
       "\"g\"}}"),
     "tool_choice", "not among the tools"},
    {M("\"tools\":[{\"function\":{\"name\":\"f\"}}],\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":"
       "\"f\"}}"),
     NULL, "among the tools"},
    {M("\"tools\":[{\"function\":{\"name\":\"f\"}}],\"tool_choice\":{\"type\":\"x\",\"function\":{\"name\":\"f\"}}"),
     "tool_choice", "only functions are called"},
    {M("\"tools\":[{\"function\":{\"name\":\"f\"}}],\"tool_choice\":{}"), "tool_choice", "no name"},
    {M("\"tools\":[{\"function\":{\"name\":\"f\"}}],\"parallel_tool_calls\":\"x\""), "parallel_tool_calls",
     "not a boolean"},
    {M("\"continue_final_message\":true"), "continue_final_message", "needs add_generation_prompt false"},
    {M("\"continue_final_message\":true,\"add_generation_prompt\":false"), "continue_final_message",
     "last is the user's"},
    {M("\"reasoning_effort\":\"lots\""), "reasoning_effort", "unknown"},
    {M("\"chat_template_kwargs\":[]"), "chat_template_kwargs", "not an object"},
    {M("\"cache_salt\":\"\""), "cache_salt", "empty"},
    {M("\"cache_salt\":\"a/b\""), "cache_salt", "a slash"},
    {M("\"priority\":-7"), NULL, "before others"},
    {M("\"priority\":1.5"), "priority", "not an integer"},
    {M("\"priority\":\"soon\""), "priority", "not a number"},
    {M("\"priority\":1e300"), "priority", "out of range"},
    {M("\"truncate_prompt_tokens\":0"), "truncate_prompt_tokens", "nothing is left"},
    {M("\"truncate_prompt_tokens\":-2"), "truncate_prompt_tokens", "below -1"},
    {M("\"truncate_prompt_tokens\":-1"), NULL, "as long as the context"},
    {M("\"truncation_side\":\"top\""), "truncation_side", "unknown"},
    {M("\"truncation_side\":\"right\""), NULL, "of nothing"},
    {M("\"stream_interval\":0"), "stream_interval", "below 1"},
    {M("\"stream_interval\":8"), NULL, "tokens per event"},
    {M("\"return_tokens_as_token_ids\":true"), NULL, "names of tokens in logprobs"},
    {M("\"return_token_ids\":\"x\""), "return_token_ids", "not a boolean"},
    {M("\"return_prompt_text\":true"), "return_prompt_text", "not supported"},
    {M("\"thinking_token_budget\":-1"), NULL, "no limit"},
    {M("\"thinking_token_budget\":5"), "thinking_token_budget", "not supported"},
    {M("\"logprob_token_ids\":[1]"), "logprob_token_ids", "not supported"},
    {M("\"repetition_detection\":{}"), "repetition_detection", "not supported"},
    {M("\"include_reasoning\":\"x\""), "include_reasoning", "not a boolean"},
    {M("\"documents\":[1]"), "documents", "not objects"},
    {M("\"documents\":[{}]"), NULL, "for the template"},
    {M("\"guided_json\":{}"), "guided_json", "not supported yet"},
    {M("\"guided_regex\":\"a\""), "guided_regex", "not supported yet"},
    {M("\"guided_choice\":[\"a\"]"), "guided_choice", "not supported yet"},
    {M("\"guided_grammar\":\"a\""), "guided_grammar", "not supported yet"},
    {M("\"response_format\":{\"type\":\"json_schema\"}"), "response_format", "not supported yet"},
    {M("\"guided_decoding_backend\":\"x\",\"guided_whitespace_pattern\":\"x\",\"length_penalty\":2,\"session_id\":"
       "\"s\""),
     NULL, "changes nothing"},
    {M("\"vllm_xargs\":{\"a\":1},\"mm_processor_kwargs\":{},\"media_io_kwargs\":{},\"ec_transfer_params\":{}"), NULL,
     "ignored"},
    {M("\"metadata\":{},\"store\":true,\"user\":\"u\",\"service_tier\":\"auto\",\"prediction\":null,\"modalities\":[]"),
     NULL, "OpenAI's own keys"},
    {M("\"kv_transfer_params\":{\"remote_host\":\"10.0.0.1\"}"), NULL, "stripped"},
    {M("\"temperature\":9,\"temperature\":1"), NULL, "the last of repeated keys counts"},
    {M("\"max_tokens\":null,\"top_k\":null,\"logit_bias\":null,\"n\":null,\"tools\":null,\"logprobs\":null"), NULL,
     "null is absent"},
};

#define P(f) "{\"prompt\":\"x\"," f "}"

static const row completion_rows[] = {
    {"{}", "prompt", "missing"},
    {"{\"prompt\":\"\"}", "prompt", "empty"},
    {"{\"prompt\":[]}", "prompt", "empty"},
    {"{\"prompt\":null}", "prompt", "null"},
    {"{\"prompt\":{}}", "prompt", "an object"},
    {"{\"prompt\":[1,\"a\"]}", "prompt", "mixed"},
    {"{\"prompt\":[\"a\",1]}", "prompt", "mixed"},
    {"{\"prompt\":[[1],2]}", "prompt", "mixed"},
    {"{\"prompt\":[[1],[]]}", "prompt", "an empty one"},
    {"{\"prompt\":[-1]}", "prompt", "negative"},
    {"{\"prompt\":[2048]}", "prompt", "out of the vocabulary"},
    {"{\"prompt\":[1.5]}", "prompt", "not integral"},
    {"{\"prompt\":[1,2]}", NULL, "one prompt of ids"},
    {"{\"prompt\":[[1,2],[3]]}", NULL, "two prompts"},
    {P("\"max_tokens\":0"), NULL, "just the prompt, with echo"},
    {P("\"max_tokens\":-1"), "max_tokens", "negative"},
    {P("\"min_tokens\":16"), NULL, "as many as the default"},
    {P("\"min_tokens\":17"), "min_tokens", "over the default"},
    {P("\"logprobs\":true"), "logprobs", "an integer here"},
    {P("\"logprobs\":1"), NULL, "one beside it"},
    {P("\"logprobs\":0"), NULL, "the token's own"},
    {P("\"logprobs\":21"), "logprobs", "over 20"},
    {P("\"logprobs\":-1"), "logprobs", "all of them: over 20"},
    {P("\"logprobs\":-2"), "logprobs", "below -1"},
    {P("\"prompt_logprobs\":3"), NULL, "as in chat"},
    {P("\"logprobs\":1,\"echo\":true"), NULL, "of the prompt too"},
    {P("\"suffix\":\"x\""), "suffix", "not supported"},
    {P("\"suffix\":\"\""), NULL, "empty"},
    {P("\"best_of\":null"), NULL, "absent"},
    {P("\"best_of\":3"), "best_of", "not supported"},
};

static void check_rows(gw_endpoint endpoint, const row *rows, size_t n_rows) {
    for (size_t i = 0; i < n_rows; i++) {
        gw_request request;
        gw_error error = {0};
        bt_status status = parse(endpoint, &rules, rows[i].body, &request, &error);
        if (rows[i].param == NULL) {
            CHECK(status == BT_OK, "%s: %s: %s", rows[i].body, rows[i].why, error.message);
            if (status == BT_OK) gw_request_fini(&request);
            continue;
        }
        CHECK(status == BT_BAD_REQUEST && error.http_status == 400, "%s: %s", rows[i].body, rows[i].why);
        CHECK(strcmp(error.param, rows[i].param) == 0, "%s: %s: param %s", rows[i].body, rows[i].why, error.param);
        CHECK(error.message[0] != 0, "%s: %s", rows[i].body, rows[i].why);
        if (status == BT_OK) gw_request_fini(&request);
    }
}

typedef bt_status (*tokenize_parser)(const gw_api_rules *rules, char *body, size_t n_bytes, gw_request *out,
                                     gw_error *error);

static void check_tokenize(tokenize_parser parser, const char *body, const char *param, const char *why) {
    gw_request request;
    gw_error error = {0};
    char *copy = strdup(body);
    bt_status status = parser(&rules, copy, strlen(copy), &request, &error);
    CHECK((status == BT_OK) == (param == NULL), "%s: %s: %s", body, why, error.message);
    if (status == BT_OK) gw_request_fini(&request);
    if (param != NULL) CHECK(strcmp(error.param, param) == 0, "%s: %s: param %s", body, why, error.param);
    free(copy);
}

static void test_tokenize(void) {
    check_tokenize(gw_api_parse_tokenize, "{\"prompt\":\"\"}", NULL, "nothing has tokens too");
    check_tokenize(gw_api_parse_tokenize, "{" U "}", NULL, "a chat");
    check_tokenize(gw_api_parse_tokenize, M("\"tools\":[{\"type\":\"x\"}]"), "tools", "checked as in a chat");
    check_tokenize(gw_api_parse_tokenize, "[]", "", "not an object");
    check_tokenize(gw_api_parse_tokenize, "{}", "prompt", "neither");
    check_tokenize(gw_api_parse_tokenize, "{\"prompt\":[\"x\"]}", "prompt", "one text");
    check_tokenize(gw_api_parse_tokenize, M("\"chat_template\":\"x\""), "chat_template", "not from clients");
    check_tokenize(gw_api_parse_tokenize, "{\"prompt\":\"x\",\"model\":1}", "model", "a string");
    check_tokenize(gw_api_parse_detokenize, "{\"tokens\":[]}", NULL, "none");
    check_tokenize(gw_api_parse_detokenize, "{\"tokens\":[0,2047]}", NULL, "the last one");
    check_tokenize(gw_api_parse_detokenize, "{\"tokens\":[2048]}", "tokens", "out of the vocabulary");
    check_tokenize(gw_api_parse_detokenize, "{\"tokens\":[1e30]}", "tokens", "far out");
    check_tokenize(gw_api_parse_detokenize, "{\"tokens\":[[1]]}", "tokens", "nested");
    check_tokenize(gw_api_parse_detokenize, "{\"tokens\":null}", "tokens", "missing");
}

/* ---- what the fields become ------------------------------------------------------------------------------------- */

static void test_values(void) {
    gw_request r;
    gw_error e;
    CHECK(parse(GW_CHAT, &rules, M("\"max_tokens\":5,\"max_completion_tokens\":2"), &r, &e) == BT_OK, "both");
    CHECK(r.max_tokens == 2 && r.has_max_tokens, "max_completion_tokens wins");
    CHECK(fabsf(r.sampling.temperature - 0.6F) < 1e-6F && fabsf(r.sampling.top_p - 0.95F) < 1e-6F, "model's defaults");
    CHECK(!r.has_seed && r.add_generation_prompt && r.skip_special_tokens && !r.add_special_tokens, "defaults");
    gw_request_fini(&r);

    CHECK(parse(GW_CHAT, &rules, M("\"temperature\":0.001,\"seed\":9007199254740993"), &r, &e) == BT_OK, "seed");
    CHECK(fabsf(r.sampling.temperature - 0.01F) < 1e-6F, "raised to 0.01");
    CHECK(r.has_seed && r.sampling.seed == 9007199254740993U, "seeds over 2^53 stay exact");
    CHECK(r.max_tokens == UINT32_MAX && !r.has_max_tokens, "all the room");
    gw_request_fini(&r);

    CHECK(parse(GW_CHAT, &rules, M("\"top_p\":0,\"seed\":\"7\",\"seed\":\"8\""), &r, &e) == BT_OK, "top_p");
    CHECK(r.sampling.temperature == 0 && r.sampling.top_p == 1 && r.sampling.seed == 8, "top_p 0 is greedy");
    gw_request_fini(&r);

    CHECK(parse(GW_COMPLETION, &rules, "{\"prompt\":[[5,6],[7]],\"stop\":[\"a\",\"b\"]}", &r, &e) == BT_OK, "prompts");
    CHECK(r.n_prompts == 2 && r.prompts[0].n_ids == 2 && r.prompts[1].ids[0] == 7, "ids");
    CHECK(r.max_tokens == 16 && !r.has_max_tokens && r.add_special_tokens, "completion's defaults");
    CHECK(r.n_stop == 2 && strcmp(r.stop[1], "b") == 0, "stop");
    gw_request_fini(&r);
}

static void test_logprobs_and_bad_words(void) {
    gw_request r;
    gw_error e;
    const char *echo = "{\"prompt\":\"x\",\"echo\":true,\"logprobs\":2,\"prompt_logprobs\":5}";
    CHECK(parse(GW_COMPLETION, &rules, echo, &r, &e) == BT_OK, "echo and prompt_logprobs");
    CHECK(r.sampling.n_logprobs == 3 && r.n_prompt_logprobs == 6 && r.echoes_logprobs, "each has its own number");
    gw_request_fini(&r);

    CHECK(parse(GW_CHAT, &rules, M("\"echo\":true,\"logprobs\":true"), &r, &e) == BT_OK, "chat");
    CHECK(r.sampling.n_logprobs == 1 && r.n_prompt_logprobs == 0 && !r.echoes_logprobs, "a chat's echo has none");
    gw_request_fini(&r);

    CHECK(parse(GW_CHAT, &rules, M("\"prompt_logprobs\":-1"), &r, &e) == BT_BAD_REQUEST, "2048 logprobs");
    CHECK(strstr(e.message, "2048") != NULL && strstr(e.message, "--max-logprobs") != NULL, "%s", e.message);
    gw_api_rules small = rules;
    small.vocab_size = 15;
    CHECK(parse(GW_CHAT, &small, M("\"prompt_logprobs\":-1,\"logprobs\":1,\"top_logprobs\":20"), &r, &e) == BT_OK,
          "a vocabulary below the limit");
    CHECK(r.n_prompt_logprobs == 16 && r.sampling.n_logprobs == 16, "no more than there are");
    gw_request_fini(&r);
    const char *all = "{\"prompt\":\"x\",\"logprobs\":-1}";
    CHECK(parse(GW_COMPLETION, &small, all, &r, &e) == BT_OK && r.sampling.n_logprobs == 16, "all 15 of the output");
    gw_request_fini(&r);
    CHECK(parse(GW_COMPLETION, &rules, all, &r, &e) == BT_BAD_REQUEST && strcmp(e.param, "logprobs") == 0, "all 2048");

    CHECK(parse(GW_CHAT, &rules, M("\"bad_words\":[\"a b\",\" c\"]"), &r, &e) == BT_OK, "bad_words");
    CHECK(r.n_bad_words == 2 && strcmp(r.bad_words[1], " c") == 0, "as they are");
    gw_request_fini(&r);
    for (int is_long = 0; is_long < 2; is_long++) { /* one word too many, one byte too many */
        size_t n = is_long ? GW_MAX_BAD_WORD_BYTES : GW_MAX_BAD_WORDS;
        char body[8192] = "{" U ",\"bad_words\":[\"";
        for (size_t i = 0; i < n; i++) strcat(body, is_long ? "x" : "x\",\"");
        strcat(body, "x\"]}");
        CHECK(parse(GW_CHAT, &rules, body, &r, &e) == BT_BAD_REQUEST && strcmp(e.param, "bad_words") == 0, "too much");
    }
}

static gw_tool_choice tool_choice_of(const char *choice, const gw_api_rules *with) {
    char body[256];
    snprintf(body, sizeof body, "{" U ",\"tools\":[{\"function\":{\"name\":\"f\"}}],\"tool_choice\":%s}", choice);
    gw_request r;
    gw_error e;
    CHECK(parse(GW_CHAT, with, body, &r, &e) == BT_OK, "%s: %s", choice, e.message);
    gw_tool_choice got = r.tool_choice;
    CHECK(got != GW_TOOLS_NAMED || strcmp(r.tool_name, "f") == 0, "the name");
    gw_request_fini(&r);
    return got;
}

static void test_tool_choice(void) {
    CHECK(tool_choice_of("null", &rules) == GW_TOOLS_AUTO, "the default with tools");
    CHECK(tool_choice_of("\"auto\"", &rules) == GW_TOOLS_AUTO, "auto");
    CHECK(tool_choice_of("\"none\"", &rules) == GW_TOOLS_NONE, "none");
    CHECK(tool_choice_of("\"required\"", &rules) == GW_TOOLS_REQUIRED, "required");
    CHECK(tool_choice_of("{\"function\":{\"name\":\"f\"}}", &rules) == GW_TOOLS_NAMED, "named");
    gw_api_rules blind = rules;
    blind.reads_tool_calls = false;
    CHECK(tool_choice_of("\"auto\"", &blind) == GW_TOOLS_NONE, "without a parser calls are content");
    gw_request r;
    gw_error e;
    const char *forced = M("\"tools\":[{\"function\":{\"name\":\"f\"}}],\"tool_choice\":\"required\"");
    CHECK(parse(GW_CHAT, &blind, forced, &r, &e) == BT_BAD_REQUEST && strcmp(e.param, "tool_choice") == 0,
          "and cannot be forced");
}

static void check_variables(const char *body, const gw_api_rules *with, const char *want, const char *why) {
    gw_request r;
    gw_error e = {0};
    bt_status status = parse(GW_CHAT, with, body, &r, &e);
    CHECK(status == BT_OK, "%s: %s", why, e.message);
    if (status != BT_OK) return;
    char *got = cJSON_PrintUnformatted(r.variables);
    CHECK(strcmp(got, want) == 0, "%s: got %s", why, got);
    cJSON_free(got);
    gw_request_fini(&r);
}

#define NONE ",\"tools\":null,\"documents\":null,\"add_generation_prompt\":true}"

static void test_variables(void) {
    gw_api_rules objects = rules;
    objects.wants_argument_object = objects.has_developer_role = true;
    check_variables("{\"messages\":[{\"role\":\"developer\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},\"b\"]}]}",
                    &rules, "{\"messages\":[{\"role\":\"system\",\"content\":\"a\\nb\"}]" NONE,
                    "parts are joined by a newline");
    check_variables("{\"messages\":[{\"role\":\"developer\",\"content\":\"x\"}]}", &objects,
                    "{\"messages\":[{\"role\":\"developer\",\"content\":\"x\"}]" NONE, "a template with that role");
    check_variables("{\"messages\":[{\"role\":\"user\",\"content\":\"a\\u0000b\\ud800c\\ud83d\\ude00\"}]}", &rules,
                    "{\"messages\":[{\"role\":\"user\",\"content\":\"a\xef\xbf\xbd"
                    "b\xef\xbf\xbd"
                    "c\xf0\x9f\x98\x80\"}]" NONE,
                    "what C strings and UTF-8 cannot hold is U+FFFD");
    const char *call =
        "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":"
        "\"{\\\"a\\\": 1}\"}}]}]}";
    check_variables(
        call, &rules,
        "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":"
        "\"{\\\"a\\\": 1}\"},\"type\":\"function\"}],\"content\":null}]" NONE,
        "arguments stay the string they are");
    check_variables(
        call, &objects,
        "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":"
        "{\"a\":1}},\"type\":\"function\"}],\"content\":null}]" NONE,
        "or become the object that tojson needs");
    check_variables("{\"messages\":[{\"role\":\"assistant\",\"content\":\"x\",\"tool_calls\":[]}]}", &rules,
                    "{\"messages\":[{\"role\":\"assistant\",\"content\":\"x\"}]" NONE, "no calls are none");
    check_variables(M("\"chat_template_kwargs\":{\"enable_thinking\":false,\"messages\":1,\"x\":2}"), &rules,
                    "{" U ",\"tools\":null,\"documents\":null,\"enable_thinking\":false,\"x\":2,\"thinking\":false,"
                    "\"add_generation_prompt\":true}",
                    "thinking is one switch, and kwargs cannot replace the messages");
    check_variables(M("\"reasoning_effort\":\"none\""), &rules,
                    "{" U ",\"tools\":null,\"documents\":null,\"reasoning_effort\":\"none\",\"thinking\":false,"
                    "\"enable_thinking\":false,\"add_generation_prompt\":true}",
                    "no effort is no thinking");
}

/* ---- JSON ------------------------------------------------------------------------------------------------------- */

static void check_string(const char *text, size_t n, const char *want, const char *why) {
    bt_buf out = {0};
    gw_json_put_string(&out, text, n);
    CHECK(strcmp(bt_buf_text(&out), want) == 0, "%s: got %s", why, bt_buf_text(&out));
    bt_buf_fini(&out);
}

static void test_strings(void) {
    check_string("", 0, "\"\"", "empty");
    check_string("a\"b\\c/\n\r\t\b\f\x01\x7f", 13, "\"a\\\"b\\\\c/\\n\\r\\t\\b\\f\\u0001\\u007f\"",
                 "what JSON escapes");
    check_string("a\0b", 3, "\"a\\u0000b\"", "NUL");
    check_string("\xc2\x85\xe2\x80\xa8\xe2\x80\xa9\xe2\x80\xaa", 11, "\"\\u0085\\u2028\\u2029\xe2\x80\xaa\"",
                 "line separators");
    check_string("\xe4\xbd\xa0\xf0\x9f\x98\x80", 7, "\"\xe4\xbd\xa0\xf0\x9f\x98\x80\"", "other characters stay");
    check_string("\xff\xe4\xbd", 3, "\"\\ufffd\\ufffd\\ufffd\"", "broken bytes");
}

static void test_error(void) {
    gw_error error;
    char text[1000];
    memset(text, 'x', sizeof text - 1);
    memcpy(text + 478, "\xe4\xbd\xa0", 3);
    text[sizeof text - 1] = 0;
    gw_fail(&error, 404, "model", "%s", text);
    CHECK(strlen(error.message) == 478, "cut at a character's boundary, %zu", strlen(error.message));
    gw_fail(&error, 404, "", "The model `\"x` does not exist.");
    bt_buf out = {0};
    gw_error_write(&error, &out);
    CHECK(strcmp(bt_buf_text(&out), "{\"error\":{\"message\":\"The model `\\\"x` does not exist.\",\"type\":"
                                    "\"NotFoundError\",\"param\":null,\"code\":404}}") == 0,
          "%s", bt_buf_text(&out));
    bt_buf_fini(&out);
}

int main(void) {
    check_rows(GW_CHAT, chat_rows, sizeof chat_rows / sizeof *chat_rows);
    check_rows(GW_COMPLETION, completion_rows, sizeof completion_rows / sizeof *completion_rows);
    test_tokenize();
    test_values();
    test_logprobs_and_bad_words();
    test_tool_choice();
    test_variables();
    test_strings();
    test_error();
    TEST_END();
}
