/* The writer of answers. Decides nothing about what is sent or when. */
#include "gateway/api/api_format.h"

#include <string.h>

#include "gateway/api/api_json.h"

#define PUT(out, literal) bt_buf_put((out), (literal), sizeof(literal) - 1)

static void put_u64(bt_buf *out, uint64_t value) {
    char digits[20];
    size_t at = sizeof digits;
    do {
        digits[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value > 0);
    bt_buf_put(out, digits + at, sizeof digits - at);
}

static void put_text(bt_buf *out, const char *text) { gw_json_put_string(out, text, strlen(text)); }

void gw_format_ids(const uint32_t *ids, size_t n_ids, bt_buf *out) {
    if (ids == NULL) {
        PUT(out, "null");
        return;
    }
    PUT(out, "[");
    for (size_t i = 0; i < n_ids; i++) {
        if (i > 0) PUT(out, ",");
        put_u64(out, ids[i]);
    }
    PUT(out, "]");
}

void gw_format_init(gw_format *format, bool is_chat, bool is_stream, bool has_reasoning, const char *id,
                    const char *model, int64_t created_s, const char *fingerprint) {
    *format = (gw_format){.is_chat = is_chat, .has_reasoning = has_reasoning};
    bt_buf *head = &format->head;
    PUT(head, "{\"id\":");
    put_text(head, id);
    const char *object = !is_chat ? "text_completion" : is_stream ? "chat.completion.chunk" : "chat.completion";
    bt_buf_printf(head, ",\"object\":\"%s\",\"created\":%lld,\"model\":", object, (long long)created_s);
    put_text(head, model);
    PUT(head, ",\"system_fingerprint\":");
    put_text(head, fingerprint);
    PUT(head, ",\"choices\":[");
}

void gw_format_fini(gw_format *format) { bt_buf_fini(&format->head); }

static void put_usage(const gw_format *format, const gw_usage *usage, bt_buf *out) {
    PUT(out, "{\"prompt_tokens\":");
    put_u64(out, usage->n_prompt);
    PUT(out, ",\"total_tokens\":");
    put_u64(out, usage->n_prompt + usage->n_output);
    PUT(out, ",\"completion_tokens\":");
    put_u64(out, usage->n_output);
    PUT(out, ",\"prompt_tokens_details\":{\"cached_tokens\":");
    put_u64(out, usage->n_cached);
    PUT(out, "}");
    if (format->has_reasoning) {
        PUT(out, ",\"completion_tokens_details\":{\"reasoning_tokens\":");
        put_u64(out, usage->n_reasoning);
        PUT(out, "}");
    }
    PUT(out, "}");
}

static void put_finish(const gw_finish *finish, bt_buf *out) {
    PUT(out, "\"finish_reason\":");
    if (finish == NULL || finish->reason == NULL) {
        PUT(out, "null");
        return;
    }
    put_text(out, finish->reason);
    PUT(out, ",\"stop_reason\":");
    if (finish->kind == GW_STOP_TOKEN) {
        put_u64(out, finish->token);
    } else if (finish->kind == GW_STOP_STRING) {
        put_text(out, finish->string);
    } else {
        PUT(out, "null");
    }
}

static void put_json_or_null(gw_text json, bt_buf *out) {
    if (json.bytes == NULL) {
        PUT(out, "null");
    } else {
        bt_buf_put(out, json.bytes, json.n_bytes);
    }
}

static void put_logprobs(gw_text logprobs, bt_buf *out) {
    PUT(out, ",\"logprobs\":");
    put_json_or_null(logprobs, out);
    PUT(out, ",");
}

static void put_of_prompt(const gw_format_choice *choice, bt_buf *out) {
    PUT(out, ",\"prompt_logprobs\":");
    put_json_or_null(choice->prompt_logprobs, out);
    PUT(out, ",\"prompt_token_ids\":");
    gw_format_ids(choice->prompt_ids, choice->n_prompt_ids, out);
}

/* ---- events -------------------------------------------------------------------------------------------------------
 */

static void begin_chunk(const gw_format *format, uint32_t index, bt_buf *out) {
    PUT(out, "data: ");
    bt_buf_put(out, format->head.bytes, format->head.n_bytes);
    PUT(out, "{\"index\":");
    put_u64(out, index);
}

/* From behind the delta or text on. The prompt's ids stand beside the choices of a chat, in those of a completion. */
static void end_chunk(const gw_format *format, const gw_format_choice *piece, const gw_finish *finish,
                      const gw_usage *usage, bt_buf *out) {
    put_logprobs(piece->logprobs, out);
    put_finish(finish, out);
    if (format->is_chat) PUT(out, "}]");
    if (piece->prompt_ids != NULL) {
        PUT(out, ",\"prompt_token_ids\":");
        gw_format_ids(piece->prompt_ids, piece->n_prompt_ids, out);
    }
    if (!format->is_chat) PUT(out, "}]");
    if (usage != NULL) {
        PUT(out, ",\"usage\":");
        put_usage(format, usage, out);
    }
    PUT(out, "}\n\n");
}

void gw_format_role(const gw_format *format, uint32_t index, const gw_format_choice *first, const gw_usage *usage,
                    bt_buf *out) {
    begin_chunk(format, index, out);
    PUT(out, ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"}");
    end_chunk(format, first, NULL, usage, out);
}

/* Nothing without any. Only events have an index. */
static void put_calls(const gw_format_choice *choice, bool is_event, bt_buf *out) {
    if (choice->n_calls == 0) return;
    PUT(out, "\"tool_calls\":[");
    for (size_t i = 0; i < choice->n_calls; i++) {
        const gw_format_call *call = &choice->calls[i];
        if (i > 0) PUT(out, ",");
        PUT(out, "{");
        if (is_event) {
            PUT(out, "\"index\":");
            put_u64(out, call->index);
            PUT(out, ",");
        }
        if (call->id != NULL) {
            PUT(out, "\"id\":");
            put_text(out, call->id);
            PUT(out, ",\"type\":\"function\",\"function\":{\"name\":");
            put_text(out, call->name);
            PUT(out, ",");
        } else {
            PUT(out, "\"function\":{");
        }
        PUT(out, "\"arguments\":");
        gw_json_put_string(out, call->arguments.bytes, call->arguments.n_bytes);
        PUT(out, "}}");
    }
    PUT(out, "]");
}

static void put_delta(const gw_format_choice *piece, bt_buf *out) {
    gw_text reasoning = piece->reasoning, content = piece->content;
    PUT(out, ",\"delta\":{");
    if (reasoning.n_bytes > 0) { /* under both names: clients know one or the other */
        PUT(out, "\"reasoning\":");
        size_t start = out->n_bytes;
        gw_json_put_string(out, reasoning.bytes, reasoning.n_bytes);
        size_t n_bytes = out->n_bytes - start;
        PUT(out, ",\"reasoning_content\":");
        bt_buf_reserve(out, n_bytes);
        bt_buf_put(out, out->bytes + start, n_bytes);
        if (content.n_bytes > 0) PUT(out, ",");
    }
    if (content.n_bytes > 0) {
        PUT(out, "\"content\":");
        gw_json_put_string(out, content.bytes, content.n_bytes);
    }
    put_calls(piece, true, out);
    PUT(out, "}");
}

void gw_format_delta(const gw_format *format, uint32_t index, const gw_format_choice *piece, const gw_usage *usage,
                     bt_buf *out) {
    begin_chunk(format, index, out);
    if (format->is_chat) {
        put_delta(piece, out);
    } else {
        PUT(out, ",\"text\":");
        gw_json_put_string(out, piece->content.bytes, piece->content.n_bytes);
    }
    if (piece->ids != NULL) {
        PUT(out, ",\"token_ids\":");
        gw_format_ids(piece->ids, piece->n_ids, out);
    }
    end_chunk(format, piece, NULL, usage, out);
}

void gw_format_finish(const gw_format *format, uint32_t index, const gw_finish *finish, const gw_usage *usage,
                      bt_buf *out) {
    begin_chunk(format, index, out);
    if (format->is_chat) {
        PUT(out, ",\"delta\":{}");
    } else {
        PUT(out, ",\"text\":\"\"");
    }
    end_chunk(format, &(gw_format_choice){0}, finish, usage, out);
}

void gw_format_usage(const gw_format *format, const gw_usage *usage, bt_buf *out) {
    PUT(out, "data: ");
    bt_buf_put(out, format->head.bytes, format->head.n_bytes);
    PUT(out, "],\"usage\":");
    put_usage(format, usage, out);
    PUT(out, "}\n\n");
}

void gw_format_error_event(const gw_error *error, bt_buf *out) {
    PUT(out, "data: ");
    gw_error_write(error, out);
    PUT(out, "\n\n");
}

void gw_format_done(bt_buf *out) { PUT(out, "data: [DONE]\n\n"); }

/* ---- the whole body -----------------------------------------------------------------------------------------------
 */

void gw_format_body_begin(const gw_format *format, bt_buf *out) {
    bt_buf_put(out, format->head.bytes, format->head.n_bytes);
}

static void put_text_or_null(gw_text text, bt_buf *out) {
    if (text.bytes == NULL) {
        PUT(out, "null");
    } else {
        gw_json_put_string(out, text.bytes, text.n_bytes);
    }
}

void gw_format_body_choice(const gw_format *format, uint32_t index, const gw_format_choice *choice, bt_buf *out) {
    if (index > 0) PUT(out, ",");
    PUT(out, "{\"index\":");
    put_u64(out, index);
    if (format->is_chat) {
        PUT(out, ",\"message\":{\"role\":\"assistant\",\"content\":");
        put_text_or_null(choice->content, out);
        PUT(out, ",\"refusal\":null,\"annotations\":null,\"audio\":null,\"function_call\":null,\"reasoning\":");
        put_text_or_null(choice->reasoning, out);
        PUT(out, ",\"reasoning_content\":");
        put_text_or_null(choice->reasoning, out);
        if (choice->n_calls > 0) PUT(out, ",");
        put_calls(choice, false, out);
        PUT(out, "}");
    } else {
        PUT(out, ",\"text\":");
        gw_json_put_string(out, choice->content.bytes, choice->content.n_bytes);
    }
    put_logprobs(choice->logprobs, out);
    put_finish(&choice->finish, out);
    PUT(out, ",\"token_ids\":");
    gw_format_ids(choice->ids, choice->n_ids, out);
    if (!format->is_chat) put_of_prompt(choice, out);
    PUT(out, "}");
}

void gw_format_body_end(const gw_format *format, const gw_usage *usage, const gw_format_choice *first, bt_buf *out) {
    PUT(out, "],\"service_tier\":null,\"usage\":");
    put_usage(format, usage, out);
    if (format->is_chat) put_of_prompt(first, out);
    PUT(out, ",\"kv_transfer_params\":null}");
}
