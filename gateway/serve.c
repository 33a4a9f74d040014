/* Admission: everything that can be wrong is found here, before a status line. Order of the checks: shutting down, too
 * many, content type, body, model, strategy, workers, limits, prompt, wait, core. */
#include "gateway/serve.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "gateway/answer.h"
#include "gateway/routing.h"

enum { RETRY_SATURATED_S = 1, RETRY_MAX_S = 60 };

/* ---- checks ---------------------------------------------------------------------------------------------------------
 */

static bt_status fail_busy(gw_error *error, const char *reason, const char *text) {
    gw_fail(error, 503, "", "%s", text);
    error->retry_after_s = RETRY_SATURATED_S;
    error->reason = reason;
    return BT_BAD_REQUEST;
}

static bt_status check_load(const gw_loop *loop, gw_error *error) {
    const gw_server *server = loop->server;
    if (server->is_draining) {
        return fail_busy(error, "draining", "This gateway is shutting down. Please try again on a different instance.");
    }
    if (gw_telemetry_n_running(server->telemetry) >= server->config.max_concurrent_requests) {
        return fail_busy(error, "saturated",
                         "The gateway is currently busy and cannot accept new requests. Please try again later or on a "
                         "different instance.");
    }
    return BT_OK;
}

/* application/json, application/...+json, or nothing; parameters are ignored. */
static bt_status check_content_type(const gw_http_exchange *exchange, gw_error *error) {
    gw_http_text type = gw_http_header(exchange, "content-type"), coding = gw_http_header(exchange, "content-encoding");
    if (coding.n_bytes > 0 && !gw_http_is(coding, "identity"))
        return gw_fail(error, 415, "", "A Content-Encoding of the request body is not supported.");
    if (type.n_bytes == 0) return BT_OK;
    size_t n = 0;
    while (n < type.n_bytes && type.bytes[n] != ';' && type.bytes[n] != ' ') n++;
    bool is_application = n > 12 && strncasecmp(type.bytes, "application/", 12) == 0;
    if (is_application && n == 16 && strncasecmp(type.bytes + 12, "json", 4) == 0) return BT_OK;
    if (is_application && n > 17 && strncasecmp(type.bytes + n - 5, "+json", 5) == 0) return BT_OK;
    return gw_fail(error, 400, "", "Unsupported Media Type: Only 'application/json' is allowed.");
}

bt_status gw_serve_check_body(const gw_call *call, gw_error *error) {
    uint64_t limit = call->loop->server->config.http_body_limit;
    if (gw_http_body(call->exchange).n_bytes > limit)
        return gw_fail(error, 413, "", "The request body is over the limit of %llu bytes.", (unsigned long long)limit);
    return check_content_type(call->exchange, error);
}

bt_status gw_serve_find_model(const gw_model *model, const gw_request *request, const char **out, gw_error *error) {
    *out = gw_model_find(model, request->model);
    if (*out != NULL) return BT_OK;
    gw_fail(error, 404, "model", "The model `%s` does not exist.", request->model);
    gw_error_set_header(error, "x-error-no-model-backends", request->model);
    return BT_BAD_REQUEST;
}

/* The header `user` is whoever it says, as AIBrix has it; who must not choose has a key, and limits for that. */
static bt_status check_limits(const gw_call *call, const char *model_name, gw_answer *answer, gw_error *error) {
    gw_http_text user = gw_http_header(call->exchange, "user");
    answer->payers.names[GW_BY_MODEL] = model_name;
    answer->payers.names[GW_BY_KEY] = answer->call.user;
    if (user.n_bytes > 0) answer->payers.names[GW_BY_USER] = bt_arena_strndup(&answer->arena, user.bytes, user.n_bytes);
    return gw_limiter_check(call->loop->limiter, &answer->payers, error);
}

/* ---- making the answer ----------------------------------------------------------------------------------------------
 */

static void copy_stop(const gw_request *request, gw_answer *answer) {
    answer->n_stop = request->n_stop;
    answer->stop = bt_arena_alloc(&answer->arena, (request->n_stop + 1) * sizeof *answer->stop);
    for (uint32_t i = 0; i < request->n_stop; i++)
        answer->stop[i] = bt_arena_strndup(&answer->arena, request->stop[i], strlen(request->stop[i]));
}

/* With the call's number behind it, 32 hexadecimal digits. */
static void write_call_ids(gw_loop *loop, char out[TCL_MAX_ID_PREFIX]) {
    uint64_t high = gw_loop_random(loop);
    uint32_t low = (uint32_t)(gw_loop_random(loop) >> 32);
    snprintf(out, TCL_MAX_ID_PREFIX, "chatcmpl-tool-%016llx%08x", (unsigned long long)high, low);
}

static bt_status open_stream(const gw_model *model, const gw_request *request, gw_choice *choice, gw_error *error) {
    uint32_t end_ids[GW_MAX_END_IDS], n = 0;
    for (uint32_t i = 0; i < model->config.n_eos_token_ids && !request->sampling.ignore_eos; i++)
        end_ids[n++] = model->config.eos_token_ids[i];
    for (uint32_t i = 0; i < request->n_stop_token_ids; i++) end_ids[n++] = request->stop_token_ids[i];
    char call_ids[TCL_MAX_ID_PREFIX];
    write_call_ids(choice->answer->loop, call_ids);
    gw_stream_options options = {.tokenizer = model->tokenizer,
                                 .stop = choice->answer->stop,
                                 .n_stop = choice->answer->n_stop,
                                 .include_stop_str = request->include_stop_str,
                                 .skip_special_tokens = request->skip_special_tokens,
                                 .has_reasoning = choice->answer->format.has_reasoning,
                                 .opens_think = choice->prompt.opens_think,
                                 .min_tokens = request->sampling.min_tokens,
                                 .end_ids = end_ids,
                                 .n_end_ids = n,
                                 .call_format = request->tool_choice == GW_TOOLS_NONE ? TCL_NONE : model->call_format,
                                 .call_ids = call_ids,
                                 .max_calls = request->parallel_tool_calls ? UINT32_MAX : 1,
                                 .call_opening = request->call_opening};
    bt_error err = {0};
    if (gw_stream_init(&choice->stream, &options, &err) == BT_OK) return BT_OK;
    return gw_fail(error, 400, "stop", "%s.", err.text);
}

static void fill_echo(const gw_model *model, const gw_request *request, gw_choice *choice) {
    if (!request->echo) return;
    if (request->endpoint == GW_CHAT) {
        bt_buf_puts(&choice->echo, request->last_text);
        return;
    }
    const gw_prompt *prompt = &request->prompts[choice->index / request->n_choices];
    if (prompt->text != NULL) {
        bt_buf_put(&choice->echo, prompt->text, prompt->n_bytes);
        return;
    }
    det_stream det;
    det_init(&det, model->tokenizer, request->skip_special_tokens);
    for (size_t i = 0; i < choice->prompt.ids.n_ids; i++) det_put(&det, choice->prompt.ids.ids[i], &choice->echo);
    det_finish(&det, &choice->echo);
}

/* wire_sampling's n_prompt_logprobs: what "logprobs" echoes, and for the prompt's first choice "prompt_logprobs". */
static uint32_t prompt_logprobs_of(const gw_request *request, const gw_choice *choice) {
    uint32_t n_echoed = request->echoes_logprobs ? request->sampling.n_logprobs : 0;
    bool is_first = choice->index % request->n_choices == 0;
    return is_first && request->n_prompt_logprobs > n_echoed ? request->n_prompt_logprobs : n_echoed;
}

static void open_logprobs(const gw_model *model, const gw_request *request, gw_choice *choice) {
    bool skips_special = request->skip_special_tokens;
    gw_logprobs_shape shape = choice->answer->is_chat ? GW_LOGPROBS_CHAT : GW_LOGPROBS_COMPLETION;
    uint32_t first_token = choice->prompt.ids.ids[0];
    if (request->sampling.n_logprobs > 0)
        gw_logprobs_init(&choice->logprobs, model->tokenizer, shape, skips_special, request->sampling.n_logprobs - 1);
    choice->logprobs.shows_ids = request->names_tokens_by_id;
    if (request->echoes_logprobs) gw_logprobs_put_first(&choice->logprobs, first_token);
    if (request->n_prompt_logprobs == 0 || choice->index % request->n_choices > 0) return;
    gw_logprobs_init(&choice->prompt_logprobs, model->tokenizer, GW_LOGPROBS_PROMPT, skips_special,
                     request->n_prompt_logprobs - 1);
    gw_logprobs_put_first(&choice->prompt_logprobs, first_token);
}

static bt_status prepare_choice(gw_loop *loop, const gw_request *request, gw_choice *choice, gw_error *error) {
    const gw_model *model = loop->server->model;
    uint32_t n = request->n_choices, prompt = choice->index / n;
    bt_status status = BT_OK;
    if (choice->index % n == 0) {
        status = gw_prompt_build(model, loop->tok_cache, request, prompt, gw_loop_max_model_len(loop), &choice->prompt,
                                 error);
    } else {
        choice->prompt = gw_tokens_copy(&choice->answer->choices[prompt * n].prompt);
    }
    if (status == BT_OK) status = open_stream(model, request, choice, error);
    if (status != BT_OK) return status;
    choice->n_prompt = (uint32_t)choice->prompt.ids.n_ids;
    fill_echo(model, request, choice);
    open_logprobs(model, request, choice);
    return BT_OK;
}

static gw_slo read_slo(const gw_call *call) {
    gw_slo slo = call->loop->server->slo;
    gw_http_text ttft = gw_http_header(call->exchange, "x-llm-d-slo-ttft-ms");
    gw_http_text tpot = gw_http_header(call->exchange, "x-llm-d-slo-tpot-ms");
    gw_slo_read(ttft.bytes, ttft.n_bytes, &slo.ttft_ns);
    gw_slo_read(tpot.bytes, tpot.n_bytes, &slo.tpot_ns);
    return slo;
}

static gw_answer *make_answer(const gw_call *call, const gw_request *request, const char *model_name) {
    gw_loop *loop = call->loop;
    const gw_model *model = loop->server->model;
    gw_answer *answer = bt_calloc(1, sizeof *answer);
    answer->loop = loop;
    answer->call = *call;
    answer->exchange = call->exchange;
    answer->is_chat = request->endpoint == GW_CHAT;
    answer->is_stream = request->stream;
    answer->include_usage = request->include_usage;
    answer->continuous_usage = request->continuous_usage;
    answer->return_token_ids = request->return_token_ids;
    answer->has_logprobs = request->sampling.n_logprobs > 0;
    answer->has_prompt_logprobs = request->n_prompt_logprobs > 0;
    answer->echoes_logprobs = request->echoes_logprobs;
    answer->include_reasoning = request->include_reasoning;
    answer->is_named_call = request->tool_choice == GW_TOOLS_NAMED;
    answer->arrival_ns = gw_http_arrival_ns(call->exchange);
    answer->slo = read_slo(call);
    copy_stop(request, answer);
    char id[16 + GW_CAP_REQUEST_ID];
    bool is_body_id = !call->has_own_id && gw_request_id_is_sane(request->request_id, strlen(request->request_id));
    snprintf(id, sizeof id, "%s%s", answer->is_chat ? "chatcmpl-" : "cmpl-",
             is_body_id ? request->request_id : call->request_id);
    bool has_reasoning = model->has_reasoning && answer->is_chat;
    gw_format_init(&answer->format, answer->is_chat, answer->is_stream, has_reasoning, id, model_name, time(NULL),
                   model->fingerprint);
    answer->n_per_prompt = request->n_choices;
    answer->stream_interval = request->stream_interval;
    answer->n_choices = (answer->is_chat ? 1 : request->n_prompts) * request->n_choices;
    answer->choices = bt_calloc(answer->n_choices, sizeof *answer->choices);
    for (uint32_t i = 0; i < answer->n_choices; i++) answer->choices[i] = (gw_choice){.answer = answer, .index = i};
    return answer;
}

static void link_answer(gw_loop *loop, gw_answer *answer) {
    answer->next = loop->answers;
    if (loop->answers != NULL) loop->answers->previous = answer;
    loop->answers = answer;
    loop->n_answers++;
}

/* ---- submit ---------------------------------------------------------------------------------------------------------
 */

/* The operator's limit for the first token, or the client's if that is less; 0: none. */
static int64_t ttft_limit_ns(const gw_call *call) {
    int64_t limit_ns = (int64_t)call->loop->server->config.max_ttft_ms * BT_NS_PER_MS, own_ns = 0;
    gw_http_text header = gw_http_header(call->exchange, "x-baton-ttft-ms");
    gw_slo_read(header.bytes, header.n_bytes, &own_ns);
    return own_ns > 0 && (limit_ns == 0 || own_ns < limit_ns) ? own_ns : limit_ns;
}

/* Who waits here until the first token must come has waited in vain. */
static uint32_t queue_limit_ms(const gw_answer *answer) {
    int64_t left_ns = (int64_t)answer->loop->server->config.queue_timeout_ms * BT_NS_PER_MS;
    int64_t limit_ns = ttft_limit_ns(&answer->call), since_ns = bt_now_ns() - answer->arrival_ns;
    if (limit_ns > 0 && limit_ns - since_ns < left_ns) left_ns = limit_ns - since_ns;
    return left_ns > 0 ? (uint32_t)(left_ns / BT_NS_PER_MS) : 0;
}

/* Up to a day, gw_slo_read() says. */
static uint32_t target_ms(const gw_slo *slo) { return (uint32_t)((slo->ttft_ns + BT_NS_PER_MS - 1) / BT_NS_PER_MS); }

/* The nth of n that are submitted. */
static bt_status submit_choice(gw_loop *loop, const gw_request *request, const gw_routing *routing, gw_choice *choice,
                               uint32_t nth, uint32_t n, gw_error *error) {
    wire_sampling sampling = request->sampling;
    sampling.seed =
        request->has_seed ? request->sampling.seed + choice->index % request->n_choices : gw_loop_random(loop);
    sampling.n_prompt_logprobs = prompt_logprobs_of(request, choice);
    if (sampling.min_tokens > choice->prompt.max_tokens) sampling.min_tokens = choice->prompt.max_tokens;
    gw_submit submit = {.tokens = choice->prompt.ids.ids,
                        .n_tokens = choice->n_prompt,
                        .max_tokens = choice->is_empty ? 1 : choice->prompt.max_tokens,
                        .sampling = sampling,
                        .constraint = request->constraint,
                        .stop_token_ids = request->stop_token_ids,
                        .n_stop_token_ids = request->n_stop_token_ids,
                        .cache_salt = request->cache_salt,
                        .strategy = &routing->strategy,
                        .filter = routing->has_filter ? &routing->filter : NULL,
                        .slo_ttft_ms = target_ms(&choice->answer->slo),
                        .priority = routing->priority,
                        .queue_ms = queue_limit_ms(choice->answer),
                        .choice = nth,
                        .n_choices = n,
                        .session_key = routing->session_key,
                        .session_name = routing->session_name,
                        .user = choice};
    bt_error err = {0};
    bt_status status = gw_core_submit(loop->core, &submit, bt_now_ns(), &choice->serial, &err);
    if (status == BT_NO_CAPACITY) return gw_fail_no_worker(error, err.text, routing->has_filter);
    if (status == BT_AGAIN) return fail_busy(error, "queue_full", err.text);
    if (status != BT_OK) return gw_fail(error, 400, "", "%s", err.text);
    gw_telemetry_admitted(loop->server->telemetry, choice->n_prompt);
    gw_admission_enter(&loop->admission, &choice->ticket, routing->priority, choice->n_prompt, bt_now_ns());
    return BT_OK;
}

/* One request, whatever `n`, as in AIBrix; a prompt's choices share it, as in usage. Who was refused has cost nothing,
 * or an overloaded cluster would use up its clients' minutes. */
static void charge(gw_loop *loop, const gw_answer *answer) {
    uint32_t n_tokens = 0;
    for (uint32_t i = 0; i < answer->n_choices; i += answer->n_per_prompt)
        if (answer->choices[i].serial != 0) n_tokens += answer->choices[i].n_prompt;
    gw_limiter_count(loop->limiter, &answer->payers);
    gw_limiter_spend(loop->limiter, &answer->payers, n_tokens);
}

/* Tokens or logprobs of it are asked for. */
static bool is_computed(const gw_request *request, const gw_choice *choice) {
    return choice->prompt.max_tokens > 0 || prompt_logprobs_of(request, choice) > 0;
}

static bt_status submit_all(gw_loop *loop, const gw_request *request, const gw_routing *routing, gw_answer *answer,
                            gw_error *error) {
    uint32_t n = 0, nth = 0;
    for (uint32_t i = 0; i < answer->n_choices; i++) n += is_computed(request, &answer->choices[i]);
    for (uint32_t i = 0; i < answer->n_choices; i++) {
        gw_choice *choice = &answer->choices[i];
        choice->is_open = true;
        answer->n_open++;
        choice->is_empty = choice->prompt.max_tokens == 0;
        if (!is_computed(request, choice)) continue;
        bt_status status = submit_choice(loop, request, routing, choice, nth++, n, error);
        if (status != BT_OK) return status;
        bool is_scored = prompt_logprobs_of(request, choice) > 0;
        if (!answer->return_token_ids && !is_scored) tok_ids_fini(&choice->prompt.ids); /* the core has its own copy */
    }
    return BT_OK;
}

/* Better a 503 now than a token too late: nobody waits in vain, and those who wait are in time. */
static bt_status check_wait(const gw_answer *answer, int64_t priority, gw_error *error) {
    int64_t limit_ns = ttft_limit_ns(&answer->call);
    if (limit_ns == 0) return BT_OK;
    uint64_t n_tokens = 0;
    for (uint32_t i = 0; i < answer->n_choices; i++) n_tokens += answer->choices[i].n_prompt;
    int64_t wait_ns = gw_admission_predict_ns(&answer->loop->admission, priority, n_tokens);
    if (wait_ns == 0) return BT_OK;
    wait_ns += bt_now_ns() - answer->arrival_ns;
    if (wait_ns <= limit_ns) return BT_OK;
    gw_fail(error, 503, "", "The first token is expected after %.1f s, and may take %.1f s. Please try again later.",
            (double)wait_ns / BT_NS_PER_S, (double)limit_ns / BT_NS_PER_S);
    int64_t excess_s = (wait_ns - limit_ns) / BT_NS_PER_S;
    error->retry_after_s = excess_s < RETRY_MAX_S ? (uint32_t)excess_s + 1 : RETRY_MAX_S;
    error->reason = "predicted_ttft";
    return BT_BAD_REQUEST;
}

/* The request is in order: answer or error. */
static bt_status admit(const gw_call *call, const gw_request *request, gw_error *error) {
    gw_loop *loop = call->loop;
    const char *model_name;
    gw_routing routing;
    bt_status status = gw_serve_find_model(loop->server->model, request, &model_name, error);
    if (status == BT_OK) status = gw_routing_read(call, request, &routing, error);
    if (status != BT_OK) return status;
    uint32_t n_requests = (request->endpoint == GW_CHAT ? 1 : request->n_prompts) * request->n_choices;
    if (n_requests > loop->server->config.max_concurrent_requests)
        return gw_fail(error, 400, request->n_choices > 1 ? "n" : "prompt",
                       "%u choices are asked for, this gateway runs %u requests at once.", n_requests,
                       loop->server->config.max_concurrent_requests);
    if (!gw_loop_is_ready(loop))
        return gw_fail_no_worker(error, "No worker can take the request now. Please try again.", false);
    gw_answer *answer = make_answer(call, request, model_name);
    answer->strategy = routing.strategy;
    answer->is_filtered = routing.has_filter;
    status = check_limits(call, model_name, answer, error);
    for (uint32_t i = 0; i < answer->n_choices && status == BT_OK; i++)
        status = prepare_choice(loop, request, &answer->choices[i], error);
    if (status == BT_OK) status = check_wait(answer, routing.priority, error);
    if (status != BT_OK) {
        gw_answer_free(answer);
        return status;
    }
    link_answer(loop, answer);
    status = submit_all(loop, request, &routing, answer, error);
    if (status != BT_OK) {
        gw_answer_end(answer);
        return status;
    }
    charge(loop, answer);
    gw_http_set_user(call->exchange, answer, gw_answer_on_gone);
    for (uint32_t i = 0; i < answer->n_choices; i++)
        if (answer->choices[i].serial == 0) gw_choice_finish_empty(&answer->choices[i]);
    return BT_OK;
}

void gw_serve(const gw_call *call, gw_endpoint endpoint) {
    gw_error error = {0};
    gw_request request = {0};
    gw_http_text body = gw_http_body(call->exchange);
    bt_status status = check_load(call->loop, &error);
    if (status == BT_OK) status = gw_serve_check_body(call, &error);
    if (status == BT_OK)
        status = gw_api_parse(endpoint, &call->loop->server->model->rules, (char *)(uintptr_t)body.bytes, body.n_bytes,
                              &request, &error);
    if (status == BT_OK) status = gw_prompt_ban_words(call->loop->server->model, &request, &error);
    if (status == BT_OK) status = gw_prompt_open_call(call->loop->server->model, &request, &error);
    if (status == BT_OK) status = admit(call, &request, &error);
    if (status != BT_OK) {
        gw_telemetry_refused(call->loop->server->telemetry, error.reason);
        gw_reply_error(call, &error);
    }
    gw_request_fini(&request);
}
