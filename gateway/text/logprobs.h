/* Logprobs of one choice, or of its prompt: gathered as they come, written as JSON when the text they belong to is out.
 */
#ifndef BATON_GATEWAY_TEXT_LOGPROBS_H
#define BATON_GATEWAY_TEXT_LOGPROBS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/text/detokenizer.h"
#include "common/wire/wire.h"

typedef enum {
    GW_LOGPROBS_CHAT,       /* "logprobs" of a chat: an object per token */
    GW_LOGPROBS_COMPLETION, /* of a completion: four arrays */
    GW_LOGPROBS_PROMPT,     /* "prompt_logprobs": an object per token, its entries named by ids */
} gw_logprobs_shape;

typedef struct {
    uint32_t token;
    float logprob;
    uint32_t rank;
    uint32_t n_text_bytes; /* that it adds to the text; 0: it is not shown */
} gw_scored;

typedef struct {
    const tok_tokenizer *tokenizer; /* borrowed */
    gw_logprobs_shape shape;
    bool skips_special;
    bool shows_ids;    /* of the output: a token is named "token_id:7" instead of by its text; set after init */
    uint32_t n_top;    /* beside each token */
    gw_scored *scored; /* owned [cap], the first n wait to be written */
    wire_logprob *top; /* owned [cap][n_top] */
    uint32_t n, cap;
    det_stream det; /* completions: where in the text a token begins */
    uint64_t n_chars;
    bt_buf scratch; /* owned */
} gw_logprobs;

void gw_logprobs_init(gw_logprobs *logprobs, const tok_tokenizer *tokenizer, gw_logprobs_shape shape,
                      bool skips_special, uint32_t n_top);
void gw_logprobs_fini(gw_logprobs *logprobs); /* of a zeroed one: nothing */

/* The next token; ranked->n_top is n_top or more. `is_shown` false: it ended the request and is not part of the text;
 * chat does not list it, so that the tokens' bytes are the text. */
void gw_logprobs_put(gw_logprobs *logprobs, uint32_t token, bool is_shown, const wire_ranked *ranked);

/* The first token of a prompt: nothing was said of it, so its values are null. */
void gw_logprobs_put_first(gw_logprobs *logprobs, uint32_t token);

/* How many of the waiting tokens have all their text out, if the last n_held_bytes are held back. */
uint32_t gw_logprobs_n_ready(const gw_logprobs *logprobs, size_t n_held_bytes);

/* The oldest n (<= logprobs->n) in their shape; they are dropped. A number that JSON does not have becomes
 * -9999.0, as in vLLM; equal floats are printed equally. */
void gw_logprobs_write(gw_logprobs *logprobs, uint32_t n, bt_buf *out);

#endif
