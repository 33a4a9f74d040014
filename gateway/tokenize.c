/* Answers at once, on the loop. Parsing is api_tokenize.c's, encoding prompt.c's. */
#include "gateway/tokenize.h"

#include <string.h>

#include "common/text/detokenizer.h"
#include "gateway/api/api_format.h"
#include "gateway/api/api_json.h"
#include "gateway/serve.h"
#include "gateway/text/prompt.h"

typedef bt_status (*parse_function)(const gw_api_rules *rules, char *body, size_t n_bytes, gw_request *out,
                                    gw_error *error);

/* A body that is in order, and names a model of ours. */
static bt_status read_request(const gw_call *call, parse_function parse, gw_request *out, gw_error *error) {
    const gw_model *model = call->loop->server->model;
    gw_http_text body = gw_http_body(call->exchange);
    const char *name;
    bt_status status = gw_serve_check_body(call, error);
    if (status == BT_OK) status = parse(&model->rules, (char *)(uintptr_t)body.bytes, body.n_bytes, out, error);
    if (status == BT_OK) status = gw_serve_find_model(model, out, &name, error);
    return status;
}

static void put_entries(const tok_tokenizer *tokenizer, const tok_ids *ids, bt_buf *out) {
    bt_buf entry = {0};
    bt_buf_puts(out, "[");
    for (size_t i = 0; i < ids->n_ids; i++) {
        if (i > 0) bt_buf_puts(out, ",");
        bt_buf_clear(&entry);
        tok_put_entry(tokenizer, ids->ids[i], &entry);
        gw_json_put_string(out, bt_buf_text(&entry), entry.n_bytes);
    }
    bt_buf_puts(out, "]");
    bt_buf_fini(&entry);
}

/* The answer, or the error if there is one. */
static void reply(const gw_call *call, bt_status status, const gw_error *error, const bt_buf *out) {
    if (status == BT_OK) {
        gw_reply(call, 200, "application/json", out->bytes, out->n_bytes);
    } else {
        gw_reply_error(call, error);
    }
}

void gw_tokenize(const gw_call *call, const char *rest) {
    (void)rest;
    const gw_model *model = call->loop->server->model;
    uint32_t max_model_len = gw_loop_max_model_len(call->loop);
    gw_request request = {0};
    gw_error error = {0};
    tok_ids ids = {0};
    bt_buf out = {0};
    bt_status status = read_request(call, gw_api_parse_tokenize, &request, &error);
    if (status == BT_OK) status = gw_prompt_encode(model, &request, max_model_len, &ids, &error);
    if (status == BT_OK) {
        bt_buf_printf(&out, "{\"count\":%zu,\"max_model_len\":%u,\"tokens\":", ids.n_ids, max_model_len);
        gw_format_ids(ids.n_ids == 0 ? &(uint32_t){0} : ids.ids, ids.n_ids, &out);
        bt_buf_puts(&out, ",\"token_strs\":");
        if (request.returns_token_strs) put_entries(model->tokenizer, &ids, &out);
        bt_buf_puts(&out, request.returns_token_strs ? "}" : "null}");
    }
    reply(call, status, &error, &out);
    bt_buf_fini(&out);
    tok_ids_fini(&ids);
    gw_request_fini(&request);
}

void gw_detokenize(const gw_call *call, const char *rest) {
    (void)rest;
    gw_request request = {0};
    gw_error error = {0};
    bt_buf text = {0}, out = {0};
    bt_status status = read_request(call, gw_api_parse_detokenize, &request, &error);
    if (status == BT_OK) {
        det_stream det;
        det_init(&det, call->loop->server->model->tokenizer, false);
        for (uint32_t i = 0; i < request.prompts[0].n_ids; i++) det_put(&det, request.prompts[0].ids[i], &text);
        det_finish(&det, &text);
        bt_buf_puts(&out, "{\"prompt\":");
        gw_json_put_string(&out, bt_buf_text(&text), text.n_bytes);
        bt_buf_puts(&out, "}");
    }
    reply(call, status, &error, &out);
    bt_buf_fini(&text);
    bt_buf_fini(&out);
    gw_request_fini(&request);
}

void gw_tokenizer_info(const gw_call *call, const char *rest) {
    (void)rest;
    if (call->loop->server->config.enable_tokenizer_info_endpoint) {
        const char *info = call->loop->server->model->tokenizer_info;
        gw_reply(call, 200, "application/json", info, strlen(info));
        return;
    }
    gw_error error;
    gw_fail(&error, 404, "", "Not Found: --enable-tokenizer-info-endpoint is off.");
    gw_reply_error(call, &error);
}
