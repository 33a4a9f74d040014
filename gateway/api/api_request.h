/* A validated request for text: what POST /v1/chat/completions and /v1/completions turn into before anything is
 * rendered, tokenised or sent. gw_api_parse() is the only producer: whoever holds a gw_request need not check again.
 *
 * Contract: OpenAI's API with vLLM's extensions. Unknown fields are ignored, null is absent, coercible numbers and
 * booleans are accepted, a known parameter that is not supported yet is refused by name. */
#ifndef BATON_GATEWAY_API_API_REQUEST_H
#define BATON_GATEWAY_API_API_REQUEST_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/core/alloc.h"
#include "common/wire/wire.h"
#include "gateway/api/api_error.h"

enum {
    GW_MAX_STOP_STRINGS = 16, /* lm-eval sends more than OpenAI's 4 */
    GW_MAX_STOP_BYTES = 4096, /* of one stop string */
    GW_MAX_PROMPTS = 1024,
    GW_MAX_BAD_WORDS = WIRE_MAX_BAD_WORDS / 2, /* each may need two sequences of tokens */
    GW_MAX_BAD_WORD_BYTES = 4096,
    GW_MAX_CHOICES = 128, /* per prompt */
    GW_MAX_MESSAGES = 65536,
    GW_MAX_TOP_LEVEL_KEYS = 1024,
    GW_MAX_TEMPLATE_KWARGS = 256,
    GW_MAX_JSON_DEPTH = 64,
    GW_MAX_JSON_VALUES = 2 << 20, /* 1024 prompts share this many tokens */
};

typedef enum { GW_CHAT, GW_COMPLETION } gw_endpoint;

/* What the client wants of its tools. */
typedef enum {
    GW_TOOLS_NONE,     /* no tools, or no calls: what the model writes is content */
    GW_TOOLS_AUTO,     /* the model decides */
    GW_TOOLS_REQUIRED, /* the turn begins with a call */
    GW_TOOLS_NAMED,    /* with a call of this tool */
} gw_tool_choice;

/* One prompt of /v1/completions: text, or ids already checked against the vocabulary. */
typedef struct {
    const char *text; /* NULL: ids */
    size_t n_bytes;
    const uint32_t *ids;
    uint32_t n_ids;
} gw_prompt;

typedef struct {
    gw_endpoint endpoint;
    const char *model;      /* as the client wrote it; "": the served model */
    const char *request_id; /* body field, "" when absent; not yet checked for use in a header */
    const char *cache_salt; /* "" when absent */
    const char *session_id; /* likewise */
    int64_t priority;       /* lower goes first */

    bool stream, include_usage, continuous_usage;
    bool returns_token_strs; /* /tokenize */
    bool include_stop_str, skip_special_tokens, add_special_tokens, echo, include_reasoning, return_token_ids;
    bool names_tokens_by_id; /* in logprobs */

    wire_sampling sampling; /* every default filled in, but the seed if !has_seed, and n_prompt_logprobs */
    bool has_seed;
    wire_constraint constraint; /* lists in arena; bad_words only after gw_prompt_ban_words() */
    const char **bad_words;     /* [n_bad_words] in arena */
    uint32_t n_bad_words;
    bool echoes_logprobs;       /* completions: "logprobs" begins with the prompt's tokens */
    uint32_t n_prompt_logprobs; /* "prompt_logprobs": 0: none; 1 + k: k beside each token */
    uint32_t n_choices;         /* per prompt */
    uint32_t max_tokens; /* at most; UINT32_MAX: whatever room is left. 0 only in completions: nothing is generated */
    bool has_max_tokens; /* the client said so: more than the context holds is an error, not a cut */
    int64_t truncate_prompt_tokens; /* keep so many; -1: none given, 0 is not a value */
    bool keeps_first_tokens;        /* truncation_side right: the first ones, else the last */
    uint32_t stream_interval;       /* tokens per event, at least 1 */

    const char *stop[GW_MAX_STOP_STRINGS]; /* not empty */
    uint32_t n_stop;
    uint32_t stop_token_ids[WIRE_MAX_STOP_IDS];
    uint32_t n_stop_token_ids;

    /* GW_COMPLETION */
    gw_prompt *prompts; /* [n_prompts], >= 1 */
    uint32_t n_prompts;

    /* GW_CHAT */
    cJSON *variables; /* for the template: messages (normalised), tools, documents, the client's kwargs */
    bool add_generation_prompt, continue_final_message;
    const char *last_text; /* content of the last message if it is the assistant's, else "" */
    gw_tool_choice tool_choice;
    const char *tool_name; /* GW_TOOLS_NAMED: one of the tools; GW_TOOLS_REQUIRED: the only one, if it is */
    bool parallel_tool_calls;
    const char *call_opening; /* in arena; what the turn begins with, "" or NULL: nothing. gw_prompt_open_call() */

    cJSON *root;    /* owned; what the pointers above point into */
    bt_arena arena; /* owned */
} gw_request;

/* What a parser must know of the model and the operator's choices. */
typedef struct {
    uint32_t vocab_size;
    float default_temperature, default_top_p;
    uint32_t default_top_k;
    uint32_t max_logprobs;      /* beside a token, <= WIRE_MAX_TOP_LOGPROBS */
    bool has_developer_role;    /* the template knows it; else it is rendered as system */
    bool wants_argument_object; /* the template calls tojson on tool call arguments; else it joins strings */
    bool reads_tool_calls;      /* there is a parser for how the model writes them */
} gw_api_rules;

/* *out points into `body`, which is changed (see txt_json_read). On success the caller ends *out with
 * gw_request_fini() before the body goes; on failure there is nothing to free and *error says what the client is told.
 */
bt_status gw_api_parse(gw_endpoint endpoint, const gw_api_rules *rules, char *body, size_t n_bytes, gw_request *out,
                       gw_error *error);

/* POST /tokenize and /detokenize, likewise. What is filled in: endpoint, model, and
 *   of a chat (`messages`): what it takes to render it;
 *   of text (`prompt`, which may be empty): prompts[0].text, add_special_tokens;
 *   of /detokenize: prompts[0].ids. */
bt_status gw_api_parse_tokenize(const gw_api_rules *rules, char *body, size_t n_bytes, gw_request *out,
                                gw_error *error);
bt_status gw_api_parse_detokenize(const gw_api_rules *rules, char *body, size_t n_bytes, gw_request *out,
                                  gw_error *error);

void gw_request_fini(gw_request *request); /* of a zeroed one, or twice: nothing */

#endif
