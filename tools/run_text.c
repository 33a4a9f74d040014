/* Text in and out of baton-run: prompts to ids, and the line modes that show what tokenizer and template do. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/text/chat_template.h"
#include "common/text/detokenizer.h"
#include "common/text/json.h"
#include "tools/baton_run.h"

void run_put_ids(bt_buf *out, const tok_ids *ids) {
    bt_buf_puts(out, "[");
    for (size_t i = 0; i < ids->n_ids; i++) bt_buf_printf(out, "%s%u", i == 0 ? "" : ", ", ids->ids[i]);
    bt_buf_puts(out, "]");
}

static bt_status read_ids_file(const char *path, tok_ids *out, bt_error *err) {
    FILE *file = fopen(path, "r");
    if (file == NULL) return bt_fail(err, BT_BAD_REQUEST, "%s: cannot be opened: %s", path, strerror(errno));
    bt_status status = BT_OK;
    unsigned long long id;
    int n_read;
    while ((n_read = fscanf(file, "%llu", &id)) == 1) {
        if (id > UINT32_MAX) break;
        tok_ids_put(out, (uint32_t)id);
    }
    if (n_read != EOF) {
        status = bt_fail(err, BT_BAD_REQUEST, "%s: what follows token %zu is not a token id", path, out->n_ids);
    }
    fclose(file);
    return status;
}

static bt_status template_open(const tok_tokenizer *tokenizer, tpl_template **out, bt_error *err) {
    const char *source = tok_chat_template(tokenizer);
    if (source == NULL) return bt_fail(err, BT_BAD_REQUEST, "the model has no chat template");
    return tpl_open(source, strlen(source), out, err);
}

/* What transformers' apply_chat_template() passes besides the messages, where the line does not say it itself. */
static void add_default_variables(cJSON *variables, const tok_tokenizer *tokenizer) {
    const char *bos = tok_bos_text(tokenizer), *eos = tok_eos_text(tokenizer);
    if (!cJSON_HasObjectItem(variables, "add_generation_prompt"))
        cJSON_AddTrueToObject(variables, "add_generation_prompt");
    if (!cJSON_HasObjectItem(variables, "tools")) cJSON_AddNullToObject(variables, "tools");
    if (!cJSON_HasObjectItem(variables, "documents")) cJSON_AddNullToObject(variables, "documents");
    if (bos != NULL && !cJSON_HasObjectItem(variables, "bos_token"))
        cJSON_AddStringToObject(variables, "bos_token", bos);
    if (eos != NULL && !cJSON_HasObjectItem(variables, "eos_token"))
        cJSON_AddStringToObject(variables, "eos_token", eos);
    static const char *const places[] = {"chat_template_kwargs", "kwargs"}; /* vLLM's name and transformers' */
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        cJSON *extra = cJSON_DetachItemFromObjectCaseSensitive(variables, places[i]), *item;
        while (cJSON_IsObject(extra) && (item = cJSON_DetachItemFromArray(extra, 0)) != NULL) {
            cJSON_DeleteItemFromObjectCaseSensitive(variables, item->string);
            cJSON_AddItemToObject(variables, item->string, item);
        }
        cJSON_Delete(extra);
    }
}

static bt_status encode_chat(const char *message, const tok_tokenizer *tokenizer, tok_ids *out, bt_error *err) {
    tpl_template *template = NULL;
    bt_buf text = {0};
    cJSON *variables = cJSON_CreateObject(), *turn = cJSON_CreateObject();
    cJSON_AddStringToObject(turn, "role", "user");
    cJSON_AddStringToObject(turn, "content", message);
    cJSON_AddItemToArray(cJSON_AddArrayToObject(variables, "messages"), turn);
    add_default_variables(variables, tokenizer);
    bt_status status = template_open(tokenizer, &template, err);
    if (status == BT_OK) status = tpl_render(template, variables, &text, err);
    if (status == BT_OK) status = tok_encode(tokenizer, bt_buf_text(&text), text.n_bytes, 0, out, err);
    tpl_close(template);
    cJSON_Delete(variables);
    bt_buf_fini(&text);
    return status;
}

bt_status run_prompt(const run_config *config, const tok_tokenizer *tokenizer, tok_ids *out, bt_error *err) {
    if (config->ids_file[0] != 0) return read_ids_file(config->ids_file, out, err);
    if (config->chat[0] != 0) return encode_chat(config->chat, tokenizer, out, err);
    return tok_encode(tokenizer, config->prompt, strlen(config->prompt), TOK_ADD_BOS, out, err);
}

/* {"text": ...} -> {"ids": [...]}; no BOS is added, so that ids and text correspond. */
static bt_status encode_line(const cJSON *line, const tok_tokenizer *tokenizer, bt_buf *out, bt_error *err) {
    size_t n_bytes = 0;
    const char *text = txt_json_string(cJSON_GetObjectItemCaseSensitive(line, "text"), &n_bytes);
    if (text == NULL) return bt_fail(err, BT_BAD_REQUEST, "the line has no \"text\"");
    tok_ids ids = {0};
    bt_status status = tok_encode(tokenizer, text, n_bytes, 0, &ids, err);
    if (status == BT_OK) {
        bt_buf_puts(out, "{\"ids\": ");
        run_put_ids(out, &ids);
        bt_buf_puts(out, "}");
    }
    tok_ids_fini(&ids);
    return status;
}

/* {"ids": [...]} -> {"text": ...}; special tokens are text too. */
static bt_status decode_line(const cJSON *line, const tok_tokenizer *tokenizer, bt_buf *out, bt_error *err) {
    const cJSON *ids = cJSON_GetObjectItemCaseSensitive(line, "ids"), *id;
    if (!cJSON_IsArray(ids)) return bt_fail(err, BT_BAD_REQUEST, "the line has no list \"ids\"");
    bt_buf text = {0};
    det_stream det;
    bt_status status = BT_OK;
    det_init(&det, tokenizer, false);
    cJSON_ArrayForEach(id, ids) {
        double value = cJSON_IsNumber(id) ? id->valuedouble : -1;
        if (!(value >= 0 && value <= UINT32_MAX)) {
            status = bt_fail(err, BT_BAD_REQUEST, "\"ids\" holds something that is not a token id");
            break;
        }
        det_put(&det, (uint32_t)value, &text);
    }
    if (status == BT_OK) {
        det_finish(&det, &text);
        bt_buf_puts(out, "{\"text\": ");
        txt_json_put_string(out, (const char *)text.bytes, text.n_bytes);
        bt_buf_puts(out, "}");
    }
    bt_buf_fini(&text);
    return status;
}

static bt_status render_line(cJSON *line, const tok_tokenizer *tokenizer, const tpl_template *template, bt_buf *out,
                             bt_error *err) {
    bt_buf text = {0};
    add_default_variables(line, tokenizer);
    bt_status status = tpl_render(template, line, &text, err);
    if (status == BT_OK) {
        bt_buf_puts(out, "{\"text\": ");
        txt_json_put_string(out, (const char *)text.bytes, text.n_bytes);
        bt_buf_puts(out, "}");
    }
    bt_buf_fini(&text);
    return status;
}

bt_status run_lines(const run_config *config, const tok_tokenizer *tokenizer, bt_error *err) {
    tpl_template *template = NULL;
    if (config->render) {
        bt_status status = template_open(tokenizer, &template, err);
        if (status != BT_OK) return status;
    }
    bt_buf out = {0};
    char *line = NULL;
    size_t cap_bytes = 0, n_lines = 0, n_failed = 0;
    for (ssize_t n_bytes; (n_bytes = getline(&line, &cap_bytes, stdin)) >= 0; n_lines++) {
        cJSON *object = NULL;
        bt_error problem = {0};
        bt_status status = txt_json_parse(line, (size_t)n_bytes, &object, &problem);
        if (status == BT_OK && !cJSON_IsObject(object)) {
            status = bt_fail(&problem, BT_BAD_REQUEST, "the line is not an object");
        }
        bt_buf_clear(&out);
        if (status == BT_OK && config->encode) status = encode_line(object, tokenizer, &out, &problem);
        if (status == BT_OK && config->decode) status = decode_line(object, tokenizer, &out, &problem);
        if (status == BT_OK && config->render) status = render_line(object, tokenizer, template, &out, &problem);
        cJSON_Delete(object);
        if (status != BT_OK) {
            n_failed++;
            bt_buf_clear(&out);
            bt_buf_puts(&out, "{\"error\": ");
            txt_json_put_string(&out, problem.text, strlen(problem.text));
            bt_buf_puts(&out, "}");
        }
        bt_buf_puts(&out, "\n");
        fwrite(out.bytes, 1, out.n_bytes, stdout);
    }
    free(line);
    bt_buf_fini(&out);
    tpl_close(template);
    if (n_failed == 0) return BT_OK;
    return bt_fail(err, BT_BAD_REQUEST, "%zu of %zu lines failed", n_failed, n_lines);
}
