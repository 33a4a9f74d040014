/* Opens tokenizer, template and config, and derives what the API's rules need from them. */
#include "gateway/text/model.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "common/core/alloc.h"
#include "common/core/log.h"
#include "common/text/reasoning.h"

enum { MAX_TOKENIZER_CONFIG_BYTES = 16 << 20 };

/* Some templates print old tool calls' arguments through tojson and so need an object; others join strings. One that
 * asks "is string" takes both: then the client's own string stays as it is. */
static bool wants_argument_object(const char *source) {
    for (const char *at = strstr(source, "arguments"); at != NULL; at = strstr(at + 1, "arguments")) {
        const char *next = at + strlen("arguments");
        next += strspn(next, "'\"]) ");
        if (strncmp(next, "is string", 9) == 0 || strncmp(next, "is not string", 13) == 0) return false;
    }
    for (const char *at = strstr(source, "arguments"); at != NULL; at = strstr(at + 1, "arguments")) {
        const char *next = at + strlen("arguments");
        next += strspn(next, "'\"]) ");
        if (*next != '|') continue;
        next += 1 + strspn(next + 1, " ");
        if (strncmp(next, "tojson", 6) == 0) return true;
    }
    return false;
}

static bt_status read_file(const char *path, size_t limit_bytes, bt_buf *out, bt_error *err) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) return bt_fail(err, BT_BAD_REQUEST, "cannot open %s", path);
    char chunk[4096];
    size_t n;
    while ((n = fread(chunk, 1, sizeof chunk, file)) > 0 && out->n_bytes <= limit_bytes) bt_buf_put(out, chunk, n);
    fclose(file);
    return BT_OK;
}

static bt_status choose_call_format(const gw_model_options *options, const char *chat_template, gw_model *model,
                                    bt_error *err) {
    const char *parser = options->tool_call_parser;
    if (strcmp(parser, "auto") == 0) {
        model->call_format = tcl_format_of(model->tokenizer, chat_template);
    } else if (!tcl_format_find(parser, &model->call_format)) {
        return bt_fail(err, BT_BAD_REQUEST,
                       "--tool-call-parser is %s, known: auto, deepseek_v3, deepseek_v31, kimi_k2, none", parser);
    }
    model->rules.reads_tool_calls = model->call_format != TCL_NONE;
    return BT_OK;
}

/* A token of tokenizer_config.json may be an object with more about it: clients want the text. */
static void flatten_token(cJSON *info, const char *name) {
    const cJSON *token = cJSON_GetObjectItemCaseSensitive(info, name);
    const char *content = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(token, "content"));
    if (token == NULL) cJSON_AddNullToObject(info, name);
    if (content != NULL) cJSON_ReplaceItemInObjectCaseSensitive(info, name, cJSON_CreateString(content));
}

/* `chat_template` NULL: none. Without the file only the keys that clients look for are there. */
static void write_tokenizer_info(const char *model_dir, const char *chat_template, gw_model *model) {
    bt_buf path = {0}, text = {0};
    bt_buf_printf(&path, "%s/tokenizer_config.json", model_dir);
    cJSON *info = NULL;
    if (read_file(bt_buf_text(&path), MAX_TOKENIZER_CONFIG_BYTES, &text, NULL) == BT_OK)
        info = cJSON_Parse(bt_buf_text(&text));
    if (!cJSON_IsObject(info)) {
        cJSON_Delete(info);
        info = cJSON_CreateObject();
    }
    static const char *const wanted[] = {"bos_token", "eos_token", "pad_token", "unk_token", "tokenizer_class"};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) flatten_token(info, wanted[i]);
    cJSON_DeleteItemFromObjectCaseSensitive(info, "chat_template");
    cJSON_AddItemToObject(info, "chat_template",
                          chat_template == NULL ? cJSON_CreateNull() : cJSON_CreateString(chat_template));
    model->tokenizer_info = cJSON_PrintUnformatted(info);
    cJSON_Delete(info);
    bt_buf_fini(&path);
    bt_buf_fini(&text);
}

static bt_status open_template(const gw_model_options *options, gw_model *model, bt_error *err) {
    bt_buf file = {0};
    const char *source = tok_chat_template(model->tokenizer);
    bt_status status = BT_OK;
    if (options->chat_template[0] != 0) {
        status = read_file(options->chat_template, TPL_MAX_SOURCE_BYTES, &file, err);
        source = bt_buf_text(&file);
    }
    if (status == BT_OK && source == NULL)
        bt_log(BT_LOG_WARN, "gateway", "no chat template: chat is refused", "model=%s", options->model_dir);
    if (status == BT_OK) status = choose_call_format(options, source, model, err);
    if (status == BT_OK) status = gw_tool_prompt_open(model->call_format, source, &model->tool_prompt, err);
    if (status == BT_OK) write_tokenizer_info(options->model_dir, source, model);
    if (status == BT_OK && source != NULL) {
        status = tpl_open(source, strlen(source), &model->chat_template, err);
        model->rules.has_developer_role = strstr(source, "developer") != NULL;
        model->rules.wants_argument_object = wants_argument_object(source);
    }
    bt_buf_fini(&file);
    return status;
}

static bt_status read_names(const gw_model_options *options, gw_model *model, bt_error *err) {
    char *names = bt_strdup(options->served_names), *rest = names, *name;
    bt_status status = BT_OK;
    while (status == BT_OK && (name = strsep(&rest, ",")) != NULL) {
        if (name[0] == 0) continue;
        if (model->n_served_names == GW_MAX_SERVED_NAMES)
            status = bt_fail(err, BT_BAD_REQUEST, "--served-model-name lists more than %d names", GW_MAX_SERVED_NAMES);
        else
            model->served_names[model->n_served_names++] = bt_strdup(name);
    }
    free(names);
    if (status != BT_OK || model->n_served_names > 0) return status;
    size_t n = strlen(options->model_dir);
    while (n > 1 && options->model_dir[n - 1] == '/') n--;
    size_t start = n;
    while (start > 0 && options->model_dir[start - 1] != '/') start--;
    char *base = bt_strdup(options->model_dir + start);
    base[n - start] = 0;
    model->served_names[model->n_served_names++] = base;
    return BT_OK;
}

static bt_status choose_reasoning(const gw_model_options *options, gw_model *model, bt_error *err) {
    uint32_t id;
    if (strcmp(options->reasoning_parser, "auto") == 0) {
        model->has_reasoning = tok_find(model->tokenizer, RSN_OPEN, &id) && tok_find(model->tokenizer, RSN_CLOSE, &id);
    } else if (strcmp(options->reasoning_parser, "deepseek_r1") == 0) {
        model->has_reasoning = true;
    } else if (strcmp(options->reasoning_parser, "none") != 0) {
        return bt_fail(err, BT_BAD_REQUEST, "--reasoning-parser is %s, known: auto, deepseek_r1, none",
                       options->reasoning_parser);
    }
    return BT_OK;
}

/* FNV-1a over what shapes the output; eight hexadecimal digits tell two models or builds apart. */
static void write_fingerprint(gw_model *model) {
    const mdl_config *c = &model->config;
    char text[256];
    snprintf(text, sizeof text, "%s/%s/%u/%u/%u/%u/%u", BATON_VERSION, model->served_names[0], c->vocab_size,
             c->hidden_size, c->num_hidden_layers, c->n_routed_experts, model->max_model_len);
    uint32_t hash = 2166136261U;
    for (const char *at = text; *at != 0; at++) hash = (hash ^ (unsigned char)*at) * 16777619U;
    snprintf(model->fingerprint, sizeof model->fingerprint, "baton-%s-%08x", BATON_VERSION, hash);
}

/* When the checkpoint was written: all gateways that serve it say the same, whenever they started. */
static int64_t find_created(const char *model_dir) {
    char path[PATH_MAX];
    struct stat found;
    snprintf(path, sizeof path, "%s/config.json", model_dir);
    return stat(path, &found) == 0 ? (int64_t)found.st_mtime : (int64_t)time(NULL);
}

static uint32_t find_longest_token(const tok_tokenizer *tokenizer) {
    size_t longest = 1;
    for (uint32_t id = 0; id < tok_vocab_size(tokenizer); id++) {
        const uint8_t *bytes;
        size_t n_bytes;
        if (tok_token_bytes(tokenizer, id, &bytes, &n_bytes) == BT_OK && n_bytes > longest) longest = n_bytes;
    }
    return (uint32_t)longest;
}

bt_status gw_model_open(const gw_model_options *options, gw_model **out, bt_error *err) {
    gw_model *model = bt_calloc(1, sizeof *model);
    bt_status status = mdl_config_load(options->model_dir, &model->config, err);
    if (status == BT_OK) status = tok_open(options->model_dir, &model->tokenizer, err);
    if (status == BT_OK) status = open_template(options, model, err);
    if (status == BT_OK) status = read_names(options, model, err);
    if (status == BT_OK) status = choose_reasoning(options, model, err);
    if (status == BT_OK && options->max_model_len > model->config.max_position_embeddings)
        status = bt_fail(err, BT_BAD_REQUEST, "--max-model-len is %u, the model has %u positions",
                         options->max_model_len, model->config.max_position_embeddings);
    if (status != BT_OK) {
        gw_model_close(model);
        return status;
    }
    model->max_model_len = options->max_model_len > 0 ? options->max_model_len : model->config.max_position_embeddings;
    model->rules.vocab_size = model->config.vocab_size;
    model->rules.default_temperature = model->config.default_temperature;
    model->rules.default_top_p = model->config.default_top_p;
    model->rules.default_top_k = model->config.default_top_k;
    model->longest_token_bytes = find_longest_token(model->tokenizer);
    model->created_s = find_created(options->model_dir);
    write_fingerprint(model);
    *out = model;
    return BT_OK;
}

void gw_model_close(gw_model *model) {
    if (model == NULL) return;
    tpl_close(model->chat_template);
    tpl_close(model->tool_prompt);
    tok_close(model->tokenizer);
    cJSON_free(model->tokenizer_info);
    for (uint32_t i = 0; i < model->n_served_names; i++) free(model->served_names[i]);
    free(model);
}

const char *gw_model_find(const gw_model *model, const char *name) {
    if (name == NULL || name[0] == 0) return model->served_names[0];
    for (uint32_t i = 0; i < model->n_served_names; i++)
        if (strcmp(model->served_names[i], name) == 0) return model->served_names[i];
    return NULL;
}
