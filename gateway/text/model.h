/* What the gateway knows of the model: tokenizer, chat template, config; never weights. Opened once, then read-only:
 * every loop shares it. */
#ifndef BATON_GATEWAY_TEXT_MODEL_H
#define BATON_GATEWAY_TEXT_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/model/config.h"
#include "common/text/chat_template.h"
#include "common/text/tokenizer.h"
#include "common/text/tool_calls.h"
#include "gateway/api/api_request.h"
#include "gateway/text/tool_prompt.h"

enum { GW_MAX_SERVED_NAMES = 16 };

typedef struct {
    mdl_config config;
    tok_tokenizer *tokenizer;    /* owned */
    tpl_template *chat_template; /* owned; NULL: this model has none, chat is refused */
    tpl_template *tool_prompt;   /* owned; NULL: the chat template shows tools itself */
    gw_api_rules rules;
    char *served_names[GW_MAX_SERVED_NAMES]; /* owned; the first is the model's name where the client gave none */
    uint32_t n_served_names;
    uint32_t max_model_len;       /* tokens of prompt and output */
    uint32_t longest_token_bytes; /* so many bytes of text are at least one token */
    bool has_reasoning;           /* deepseek_r1 splits thought from answer */
    char *tokenizer_info;         /* owned; JSON: tokenizer_config.json with the chat template in use */
    tcl_format call_format;       /* how the model writes tool calls; TCL_NONE: they are content */
    int64_t created_s;            /* Unix time: when the checkpoint was written */
    char fingerprint[32];         /* changes with version and model */
} gw_model;

typedef struct {
    const char *model_dir;
    const char *served_names;     /* comma-separated; "": the folder's name */
    const char *chat_template;    /* a file; "": the model's own */
    const char *reasoning_parser; /* auto, deepseek_r1, none */
    const char *tool_call_parser; /* auto, deepseek_v3, deepseek_v31, kimi_k2, none */
    uint32_t max_model_len;       /* 0: the model's */
} gw_model_options;

/* BT_BAD_REQUEST: a file that is missing or wrong, an unknown parser, ...; the sentence says which. */
bt_status gw_model_open(const gw_model_options *options, gw_model **out, bt_error *err);
void gw_model_close(gw_model *model); /* NULL is accepted */

/* The served name that the client meant ("" or NULL: the first), NULL: none of ours. */
const char *gw_model_find(const gw_model *model, const char *name);

#endif
