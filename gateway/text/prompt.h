/* From a validated request to token ids: the chat template, the tokenizer, whether it fits the context, bad words, the
 * opening of a call. */
#ifndef BATON_GATEWAY_TEXT_PROMPT_H
#define BATON_GATEWAY_TEXT_PROMPT_H

#include "gateway/text/model.h"

typedef struct {
    tok_ids ids; /* owned, at least one */
    bool opens_think;
    uint32_t max_tokens; /* what the client asked for, cut to the room; 0 only for completions that asked for 0 */
} gw_tokens;

/* Prompt number `index` (0 for chat). `cache`: of the model's tokenizer; NULL: none. `max_model_len`: the model's or
 * less; text is encoded until it has more tokens. BT_BAD_REQUEST: *error says why: the template refused, or the prompt
 * does not fit (param input_tokens). */
bt_status gw_prompt_build(const gw_model *model, tok_cache *cache, const gw_request *request, uint32_t index,
                          uint32_t max_model_len, gw_tokens *out, gw_error *error);

/* Only the ids, however many: of a chat or a completion's first prompt, for /tokenize. BT_BAD_REQUEST: the template
 * refused, or the text is so long that it cannot fit in max_model_len. */
bt_status gw_prompt_encode(const gw_model *model, const gw_request *request, uint32_t max_model_len, tok_ids *out,
                           gw_error *error);

/* request->bad_words -> request->constraint.bad_words, in its arena. As vLLM tokenises them: each word without white
 * space in front, and once more behind a space if that makes as many tokens and another first one. BT_BAD_REQUEST: a
 * word has no tokens, or more than WIRE_MAX_BAD_WORD_TOKENS. */
bt_status gw_prompt_ban_words(const gw_model *model, gw_request *request, gw_error *error);

/* Where a call is forced: request->call_opening, which ends the prompt of gw_prompt_build(), behind a thought that is
 * closed at once. Its tokens count as prompt. The model can only go on with a call, but nothing makes it write JSON or
 * follow the tool's schema: its arguments are what it writes, and if it writes no call (no name where one is required)
 * that is content. BT_BAD_REQUEST: a name that this model's calls cannot spell. */
bt_status gw_prompt_open_call(const gw_model *model, gw_request *request, gw_error *error);

gw_tokens gw_tokens_copy(const gw_tokens *tokens);
void gw_tokens_fini(gw_tokens *tokens);

#endif
