/* Tokens to text to the client, and every way an answer ends. Does no I/O but through the exchange. */
#include "gateway/answer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/core/log.h"
#include "gateway/routing.h"
#include "gateway/serve.h"

#define EVENT_STREAM "text/event-stream; charset=utf-8"

/* ---- headers and events ---------------------------------------------------------------------------------------------
 */

static void add_route_headers(gw_answer *answer, const gw_info *info) {
    gw_http_exchange *x = answer->exchange;
    gw_call_add_headers(&answer->call);
    gw_routing_add_headers(x, &answer->strategy, info);
    if (info == NULL) return;
    char cached[16];
    snprintf(cached, sizeof cached, "%u", info->cached_tokens);
    gw_http_add_header(x, "x-baton-cached-tokens", cached);
    if (!info->is_local) return;
    char computed[16];
    snprintf(computed, sizeof computed, "%u", info->n_prompt - info->cached_tokens);
    gw_http_add_header(x, "x-baton-local-prefill", computed);
}

static gw_usage sum_usage(const gw_answer *answer) {
    gw_usage usage = {0};
    for (uint32_t i = 0; i < answer->n_choices; i++) {
        const gw_choice *choice = &answer->choices[i];
        if (i % answer->n_per_prompt == 0) usage.n_prompt += choice->n_prompt; /* its choices share it */
        usage.n_output += choice->n_output;
        if (i % answer->n_per_prompt == 0) usage.n_cached += choice->n_cached;
        usage.n_reasoning += gw_stream_n_reasoning(&choice->stream);
    }
    return usage;
}

static void send_events(gw_answer *answer) {
    if (answer->out.n_bytes > 0 && answer->exchange != NULL) {
        answer->last_write_ns = bt_now_ns();
        gw_http_stream_write(answer->exchange, answer->out.bytes, answer->out.n_bytes);
    }
    bt_buf_clear(&answer->out);
}

static void start_stream(gw_answer *answer, const gw_info *info) {
    if (answer->is_started) return;
    answer->is_started = true;
    add_route_headers(answer, info);
    gw_http_add_header(answer->exchange, "cache-control", "no-cache");
    gw_http_add_header(answer->exchange, "x-accel-buffering", "no");
    gw_http_stream_begin(answer->exchange, 200, EVENT_STREAM);
}

/* `usage` of every chunk, if the client wants that. */
static const gw_usage *chunk_usage(const gw_answer *answer, gw_usage *usage) {
    if (!answer->continuous_usage) return NULL;
    *usage = sum_usage(answer);
    return usage;
}

/* The oldest n waiting logprobs as JSON, valid while *json is. */
static gw_text write_logprobs(gw_logprobs *logprobs, uint32_t n, bt_buf *json) {
    bt_buf_clear(json);
    gw_logprobs_write(logprobs, n, json);
    return (gw_text){(const char *)json->bytes, json->n_bytes};
}

/* One event; it takes what waits of ids and logprobs with it. */
static void put_delta(gw_choice *choice, gw_format_choice piece) {
    gw_answer *answer = choice->answer;
    gw_usage usage;
    if (choice->ids.n_ids > 0) {
        piece.ids = choice->ids.ids;
        piece.n_ids = choice->ids.n_ids;
    }
    uint32_t n_ready = gw_logprobs_n_ready(&choice->logprobs, gw_stream_n_held(&choice->stream));
    if (n_ready > 0) piece.logprobs = write_logprobs(&choice->logprobs, n_ready, &answer->logprobs_json);
    gw_format_delta(&answer->format, choice->index, &piece, chunk_usage(answer, &usage), &answer->out);
    choice->ids.n_ids = 0;
}

/* The choices' first events, in their order as clients expect it: role, and what is echoed. */
static void put_openings(gw_answer *answer) {
    if (answer->has_opened) return;
    answer->has_opened = true;
    gw_usage usage;
    const gw_usage *shown = chunk_usage(answer, &usage);
    for (uint32_t i = 0; i < answer->n_choices; i++) {
        gw_choice *choice = &answer->choices[i];
        gw_format_choice first = {.content = {(const char *)choice->echo.bytes, choice->echo.n_bytes}};
        if (answer->return_token_ids) {
            first.prompt_ids = choice->prompt.ids.ids;
            first.n_prompt_ids = choice->prompt.ids.n_ids;
        }
        if (answer->is_chat) {
            gw_format_role(&answer->format, i, &first, shown, &answer->out);
            first.prompt_ids = NULL;
        }
        if (first.content.n_bytes > 0 || first.prompt_ids != NULL) put_delta(choice, first);
    }
}

static gw_format_call call_from(const tcl_call *call, uint32_t index, size_t n_told) {
    gw_text arguments = {"", call->arguments.n_bytes - n_told};
    if (arguments.n_bytes > 0) arguments.bytes = (const char *)call->arguments.bytes + n_told;
    return (gw_format_call){call->id, call->name, arguments, index};
}

/* What is new of the tool calls: only the last one that was told of can have grown. */
static void put_call_deltas(gw_choice *choice) {
    const tcl_parser *tools = &choice->stream.tools;
    for (uint32_t i = choice->n_calls_told > 0 ? choice->n_calls_told - 1 : 0; i < tools->n_calls; i++) {
        bool is_new = i == choice->n_calls_told;
        gw_format_call call = call_from(&tools->calls[i], i, is_new ? 0 : choice->n_argument_bytes_told);
        choice->n_argument_bytes_told = tools->calls[i].arguments.n_bytes;
        choice->n_calls_told = i + 1;
        if (!is_new) call.id = call.name = NULL;
        if (is_new || call.arguments.n_bytes > 0) put_delta(choice, (gw_format_choice){.calls = &call, .n_calls = 1});
    }
}

/* What the stream has given out since the last call. Thought, answer and tool calls are separate events. */
static void put_deltas(gw_choice *choice) {
    gw_stream *stream = &choice->stream;
    choice->n_told = choice->n_output;
    if (!choice->answer->include_reasoning) bt_buf_clear(&stream->reasoning);
    gw_text reasoning = {(const char *)stream->reasoning.bytes, stream->reasoning.n_bytes};
    gw_text content = {(const char *)stream->content.bytes, stream->content.n_bytes};
    if (reasoning.n_bytes > 0) put_delta(choice, (gw_format_choice){.reasoning = reasoning});
    if (content.n_bytes > 0) put_delta(choice, (gw_format_choice){.content = content});
    put_call_deltas(choice);
    bool has_rest = choice->ids.n_ids > 0 || (stream->is_ended && choice->logprobs.n > 0);
    if (has_rest) put_delta(choice, (gw_format_choice){0});
    bt_buf_clear(&stream->reasoning);
    bt_buf_clear(&stream->content);
}

/* ---- the end --------------------------------------------------------------------------------------------------------
 */

static void log_end(const gw_choice *choice, gw_outcome outcome, const gw_info *info, int64_t now_ns) {
    const gw_answer *answer = choice->answer;
    double ttft_ms = choice->first_token_ns == 0 ? 0 : (double)(choice->first_token_ns - answer->arrival_ns) / 1e6;
    double tpot_ms = choice->n_output < 2
                         ? 0
                         : (double)(choice->last_token_ns - choice->first_token_ns) / 1e6 / (choice->n_output - 1);
    bt_log(BT_LOG_INFO, "gateway", "request ended",
           "req=%08x-%llu id=%s user=%s outcome=%s prefill=%s decode=%s prompt_tokens=%u cached_tokens=%u "
           "output_tokens=%u "
           "ttft_ms=%.1f tpot_ms=%.2f e2e_ms=%.1f attempts=%u",
           (unsigned)(answer->loop->incarnation >> 32), (unsigned long long)choice->serial, answer->call.request_id,
           answer->call.user, gw_outcome_name(outcome), info == NULL ? "" : info->prefill,
           info == NULL ? "" : info->decode, choice->n_prompt, choice->n_cached, choice->n_output, ttft_ms, tpot_ms,
           (double)(now_ns - answer->arrival_ns) / 1e6, info == NULL ? 0 : info->attempt + 1);
}

/* Tells metrics and log, and the core if it still works on it. */
static void close_choice(gw_choice *choice, gw_outcome outcome, bool is_alive_in_core) {
    if (!choice->is_open) return;
    choice->is_open = false;
    gw_answer *answer = choice->answer;
    answer->n_open--;
    if (choice->serial == 0) return; /* never admitted */
    int64_t now_ns = bt_now_ns();
    gw_admission_leave(&answer->loop->admission, &choice->ticket, now_ns);
    const gw_info *info = gw_core_info(answer->loop->core, choice->serial);
    gw_ended ended = {.outcome = outcome,
                      .reason = choice->refusal,
                      .info = info,
                      .slo = answer->slo,
                      .arrival_ns = answer->arrival_ns,
                      .first_token_ns = choice->first_token_ns,
                      .last_token_ns = choice->last_token_ns,
                      .now_ns = now_ns,
                      .n_output = choice->n_output,
                      .max_tokens = choice->prompt.max_tokens,
                      .n_choices = answer->n_per_prompt};
    gw_telemetry_ended(answer->loop->server->telemetry, &ended);
    log_end(choice, outcome, info, now_ns);
    if (is_alive_in_core) gw_core_cancel(answer->loop->core, choice->serial, now_ns);
}

void gw_answer_end(gw_answer *answer) {
    if (answer->is_ended) return; /* the client left inside a write of ours */
    answer->is_ended = true;
    for (uint32_t i = 0; i < answer->n_choices; i++) close_choice(&answer->choices[i], GW_ENDED_ABORT, true);
    gw_loop *loop = answer->loop;
    answer->exchange = NULL;
    if (answer->previous != NULL) answer->previous->next = answer->next;
    if (answer->previous == NULL) loop->answers = answer->next;
    if (answer->next != NULL) answer->next->previous = answer->previous;
    loop->n_answers--;
    answer->next = loop->ended;
    loop->ended = answer;
}

void gw_answer_free(gw_answer *answer) {
    for (uint32_t i = 0; i < answer->n_choices; i++) {
        gw_choice *choice = &answer->choices[i];
        gw_stream_fini(&choice->stream);
        gw_tokens_fini(&choice->prompt);
        tok_ids_fini(&choice->ids);
        gw_logprobs_fini(&choice->logprobs);
        gw_logprobs_fini(&choice->prompt_logprobs);
        bt_buf_fini(&choice->echo);
    }
    free(answer->choices);
    gw_format_fini(&answer->format);
    bt_arena_fini(&answer->arena);
    bt_buf_fini(&answer->out);
    bt_buf_fini(&answer->logprobs_json);
    bt_buf_fini(&answer->prompt_logprobs_json);
    free(answer);
}

void gw_answer_on_gone(void *context) {
    gw_answer *answer = context;
    answer->exchange = NULL;
    gw_answer_end(answer);
}

void gw_answer_fail(gw_answer *answer, const gw_error *error) {
    for (uint32_t i = 0; i < answer->n_choices; i++) close_choice(&answer->choices[i], GW_ENDED_ERROR, true);
    gw_http_exchange *exchange = answer->exchange;
    if (exchange != NULL && answer->is_started) {
        gw_format_error_event(error, &answer->out);
        gw_format_done(&answer->out);
        send_events(answer);
        gw_http_stream_end(exchange);
    } else if (exchange != NULL) {
        gw_reply_error(&answer->call, error);
    }
    gw_answer_end(answer);
}

static const gw_format_call *whole_calls(const gw_choice *choice) {
    const tcl_parser *tools = &choice->stream.tools;
    if (tools->n_calls == 0) return NULL;
    gw_format_call *calls = bt_arena_alloc(&choice->answer->arena, tools->n_calls * sizeof *calls);
    for (uint32_t i = 0; i < tools->n_calls; i++) calls[i] = call_from(&tools->calls[i], i, 0);
    return calls;
}

static void put_body(gw_answer *answer, bt_buf *out) {
    gw_usage usage = sum_usage(answer);
    gw_format_choice first = {0};
    gw_text prompt_logprobs = {NULL, 0};
    gw_format_body_begin(&answer->format, out);
    for (uint32_t i = 0; i < answer->n_choices; i++) {
        gw_choice *choice = &answer->choices[i];
        gw_stream *stream = &choice->stream;
        bool has_reasoning = answer->include_reasoning && stream->reasoning.n_bytes > 0;
        bool was_thinking = stream->reasoning.n_bytes > 0;
        if (choice->echo.n_bytes > 0) bt_buf_put(&choice->echo, stream->content.bytes, stream->content.n_bytes);
        const bt_buf *text = choice->echo.n_bytes > 0 ? &choice->echo : &stream->content;
        gw_format_choice shown = {.finish = choice->finish};
        shown.calls = whole_calls(choice);
        shown.n_calls = stream->tools.n_calls;
        /* a thought or a call without an answer leaves the content null; no output at all is an empty answer */
        if (text->n_bytes > 0 || (!was_thinking && shown.n_calls == 0))
            shown.content = (gw_text){text->n_bytes > 0 ? (const char *)text->bytes : "", text->n_bytes};
        if (has_reasoning)
            shown.reasoning = (gw_text){(const char *)stream->reasoning.bytes, stream->reasoning.n_bytes};
        if (answer->return_token_ids) {
            static const uint32_t no_ids[1];
            shown.ids = choice->ids.n_ids > 0 ? choice->ids.ids : no_ids;
            shown.n_ids = choice->ids.n_ids;
            shown.prompt_ids = choice->prompt.ids.ids;
            shown.n_prompt_ids = choice->prompt.ids.n_ids;
        }
        if (answer->has_logprobs)
            shown.logprobs = write_logprobs(&choice->logprobs, choice->logprobs.n, &answer->logprobs_json);
        if (answer->has_prompt_logprobs && i % answer->n_per_prompt == 0)
            prompt_logprobs =
                write_logprobs(&choice->prompt_logprobs, choice->prompt_logprobs.n, &answer->prompt_logprobs_json);
        shown.prompt_logprobs = prompt_logprobs;
        if (i == 0) first = shown;
        gw_format_body_choice(&answer->format, i, &shown, out);
    }
    gw_format_body_end(&answer->format, &usage, &first, out);
}

/* All choices are complete. */
static void complete(gw_answer *answer, const gw_info *info) {
    gw_http_exchange *exchange = answer->exchange;
    if (exchange != NULL && answer->is_stream) {
        if (answer->include_usage) {
            gw_usage usage = sum_usage(answer);
            gw_format_usage(&answer->format, &usage, &answer->out);
        }
        gw_format_done(&answer->out);
        send_events(answer);
        gw_http_stream_end(exchange);
    } else if (exchange != NULL) {
        bt_buf body = {0};
        put_body(answer, &body);
        add_route_headers(answer, info);
        gw_http_reply(exchange, 200, "application/json", body.bytes, body.n_bytes);
        bt_buf_fini(&body);
    }
    gw_answer_end(answer);
}

/* The choice's text is complete; choice->finish says why. */
static void finish_choice(gw_choice *choice, gw_outcome outcome, bool is_alive_in_core) {
    gw_answer *answer = choice->answer;
    gw_info info = {0};
    const gw_info *known = choice->serial == 0 ? NULL : gw_core_info(answer->loop->core, choice->serial);
    if (known != NULL) info = *known;
    if (answer->is_stream) {
        if (choice->n_output == 0) {
            start_stream(answer, known == NULL ? NULL : &info);
        }
        put_openings(answer);
        put_deltas(choice);
        send_events(answer); /* the last text leaves by itself, before finish, usage and [DONE] */
        gw_usage usage;
        gw_format_finish(&answer->format, choice->index, &choice->finish, chunk_usage(answer, &usage), &answer->out);
    }
    close_choice(choice, outcome, is_alive_in_core);
    if (answer->n_open == 0) {
        complete(answer, known == NULL ? NULL : &info);
    } else if (answer->is_stream) {
        send_events(answer);
    }
}

void gw_choice_finish_empty(gw_choice *choice) {
    choice->finish = (gw_finish){.reason = "length"};
    finish_choice(choice, GW_ENDED_LENGTH, false);
}

/* ---- actions of the core --------------------------------------------------------------------------------------------
 */

/* Of an end that the model chose. A call that was asked for by name is what "stop" stands for, as in OpenAI's API. */
static const char *reason_of_stop(const gw_choice *choice) {
    return choice->stream.tools.n_calls > 0 && !choice->answer->is_named_call ? "tool_calls" : "stop";
}

static void finish_by_string(gw_choice *choice, bool is_alive_in_core) {
    choice->finish = (gw_finish){.reason = reason_of_stop(choice),
                                 .kind = GW_STOP_STRING,
                                 .string = choice->answer->stop[choice->stream.stop.matched]};
    finish_choice(choice, GW_ENDED_STOP, is_alive_in_core);
}

/* Whether enough tokens came since text was sent last. */
static bool is_due(const gw_choice *choice) {
    uint32_t n_new = choice->n_output - choice->n_told;
    return choice->answer->is_stream && (choice->n_told == 0 || n_new >= choice->answer->stream_interval);
}

static void on_first_token(gw_choice *choice, int64_t now_ns) {
    gw_answer *answer = choice->answer;
    gw_loop *loop = answer->loop;
    const gw_info *info = gw_core_info(loop->core, choice->serial);
    choice->first_token_ns = now_ns;
    gw_admission_first_token(&loop->admission, &choice->ticket, now_ns);
    gw_telemetry_first_token(loop->server->telemetry, now_ns - answer->arrival_ns);
    if (info != NULL) choice->n_cached = info->cached_tokens;
    if (!answer->is_stream) return;
    start_stream(answer, info);
    put_openings(answer);
}

static void on_tokens(gw_choice *choice, const gw_action *action) {
    gw_answer *answer = choice->answer;
    int64_t now_ns = bt_now_ns();
    gw_limiter_spend(answer->loop->limiter, &answer->payers, action->n_tokens);
    uint32_t n_before = choice->n_output;
    int64_t gap_ns = n_before == 0 ? 0 : now_ns - choice->last_token_ns;
    if (n_before == 0) on_first_token(choice, now_ns);
    choice->last_token_ns = now_ns;
    if (choice->is_empty) {
        choice->finish = (gw_finish){.reason = "length"};
        finish_choice(choice, GW_ENDED_LENGTH, true);
        return;
    }
    bool is_stopped = false;
    for (uint32_t i = 0; i < action->n_tokens && !is_stopped; i++) {
        choice->n_output++;
        if (answer->return_token_ids) tok_ids_put(&choice->ids, action->tokens[i]);
        is_stopped = gw_stream_put(&choice->stream, action->tokens[i]);
        if (!answer->has_logprobs) continue;
        gw_logprobs_put(&choice->logprobs, action->tokens[i], choice->stream.is_shown, &action->logprobs[i]);
        if (!is_stopped && is_due(choice)) put_deltas(choice); /* each text with its own tokens */
    }
    /* What is behind a stop string does not count. */
    gw_telemetry_tokens(answer->loop->server->telemetry, choice->n_output - n_before, gap_ns);
    if (is_stopped) {
        finish_by_string(choice, true);
        return;
    }
    if (is_due(choice)) put_deltas(choice);
    send_events(answer);
}

static void on_prompt(gw_choice *choice, const gw_action *action) {
    const gw_answer *answer = choice->answer;
    bool is_first = choice->index % answer->n_per_prompt == 0;
    for (uint32_t i = 0; i < action->n_tokens; i++) {
        uint32_t token = choice->prompt.ids.ids[action->index + i];
        const wire_ranked *ranked = &action->logprobs[i];
        if (answer->echoes_logprobs) gw_logprobs_put(&choice->logprobs, token, true, ranked);
        if (answer->has_prompt_logprobs && is_first) gw_logprobs_put(&choice->prompt_logprobs, token, true, ranked);
    }
}

static void on_finished(gw_choice *choice, const gw_action *action) {
    if (gw_stream_finish(&choice->stream)) {
        finish_by_string(choice, false);
        return;
    }
    bool is_length = action->reason == WIRE_FINISH_LENGTH;
    choice->finish = (gw_finish){.reason = is_length ? "length" : reason_of_stop(choice)};
    if (action->reason == WIRE_FINISH_STOP_TOKEN) {
        choice->finish.kind = GW_STOP_TOKEN;
        choice->finish.token = action->stop_token;
    }
    finish_choice(choice, is_length ? GW_ENDED_LENGTH : GW_ENDED_STOP, false);
}

static void on_failed(gw_choice *choice, const gw_action *action) {
    gw_error error;
    int status = action->status == BT_BAD_REQUEST ? 400
                 : action->status == BT_INTERNAL  ? 500
                                                  : 503; /* lost workers, no capacity, too late: try again */
    gw_fail(&error, status, "", "%s", action->text);
    if (status == 503) error.retry_after_s = 1;
    error.reason = choice->refusal = action->why;
    if (action->why != NULL && strcmp(action->why, "no_worker") == 0)
        gw_fail_no_worker(&error, action->text, choice->answer->is_filtered);
    close_choice(choice, action->status == BT_AGAIN ? GW_ENDED_REFUSED : GW_ENDED_ERROR, false);
    gw_answer_fail(choice->answer, &error);
}

void gw_serve_on_action(gw_loop *loop, const gw_action *action) {
    (void)loop;
    gw_choice *choice = action->user;
    if (!choice->is_open) return;
    switch (action->kind) {
    case GW_PROMPT:
        on_prompt(choice, action);
        break;
    case GW_TOKENS:
        on_tokens(choice, action);
        break;
    case GW_FINISHED:
        on_finished(choice, action);
        break;
    case GW_FAILED:
        on_failed(choice, action);
        break;
    case GW_SEND:
        break;
    }
}

void gw_serve_reap(gw_loop *loop) {
    while (loop->ended != NULL) {
        gw_answer *answer = loop->ended;
        loop->ended = answer->next;
        gw_answer_free(answer);
    }
}

/* ---- time -----------------------------------------------------------------------------------------------------------
 */

void gw_serve_tick(gw_loop *loop, int64_t now_ns) {
    int64_t limit_ns = (int64_t)loop->server->config.sse_keep_alive_ms * BT_NS_PER_MS;
    if (limit_ns == 0) return;
    for (gw_answer *answer = loop->answers, *next; answer != NULL; answer = next) {
        next = answer->next;
        if (!answer->is_stream || answer->exchange == NULL) continue;
        int64_t since_ns = answer->last_write_ns > 0 ? answer->last_write_ns : answer->arrival_ns;
        if (now_ns - since_ns < limit_ns) continue;
        /* commits the stream to status 200; proxies would cut it otherwise */
        start_stream(answer, gw_core_info(loop->core, answer->choices[0].serial));
        bt_buf_puts(&answer->out, ": keep-alive\n\n");
        send_events(answer);
    }
}

void gw_serve_fail_all(gw_loop *loop) {
    gw_error error;
    gw_fail(&error, 503, "", "This gateway is shutting down and the request did not finish in time.");
    while (loop->answers != NULL) gw_answer_fail(loop->answers, &error);
    gw_serve_reap(loop);
}
