/* The reasoning parser `deepseek_r1`: splits what a model says into its thought and its answer.
 *
 * If <think> and </think> are tokens of the model (they are in R1's family), the ids decide and the same characters
 * spelled by other tokens are text; otherwise the text decides, and a suffix that may become a marker is held back.
 * The marker itself belongs to neither part.
 *
 *     OUTSIDE --<think>--> INSIDE --</think>--> DONE
 *
 * OUTSIDE (the prompt does not end inside a thought): text is answer; white space before a <think> is dropped. INSIDE:
 * text is thought, a second <think> is dropped. DONE: everything is answer, markers included. A thought that never ends
 * is all thought. Rules: vLLM's deepseek_r1 parser; nothing is trimmed. */
#ifndef BATON_COMMON_TEXT_REASONING_H
#define BATON_COMMON_TEXT_REASONING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/core/buf.h"
#include "common/text/tokenizer.h"

#define RSN_OPEN  "<think>"
#define RSN_CLOSE "</think>"

/* One stream; nothing to free. One thread. */
typedef struct {
    enum { RSN_OUTSIDE, RSN_INSIDE, RSN_DONE } state;
    bool has_ids; /* the markers are tokens */
    uint32_t open_id, close_id;
    char held[64]; /* text mode: the start of a marker; OUTSIDE: white space and then the start of <think> */
    size_t n_held;
    bool has_content;            /* some answer was written */
    uint64_t n_reasoning_tokens; /* tokens put before the end marker, markers included */
} rsn_parser;

/* `tokenizer` may be NULL: markers are then found in the text. `prompt_opened_think`: generation starts inside. */
void rsn_init(rsn_parser *rsn, const tok_tokenizer *tokenizer, bool prompt_opened_think);

/* Whether a prompt ends inside a thought: its last marker token is the opening one. */
bool rsn_prompt_opens_think(const tok_tokenizer *tokenizer, const uint32_t *ids, size_t n_ids);

/* One generated token and the text that the detokenizer (and the stop matcher) gave out for it, which may be empty or
 * belong to earlier tokens in part. Appends to the two buffers. */
void rsn_put(rsn_parser *rsn, uint32_t id, const char *text, size_t n_bytes, bt_buf *reasoning, bt_buf *content);

/* Text without an id: what a detokenizer's finish or a stop matcher's finish gives out. */
void rsn_put_text(rsn_parser *rsn, const char *text, size_t n_bytes, bt_buf *reasoning, bt_buf *content);

/* The end: appends what was held back. */
void rsn_finish(rsn_parser *rsn, bt_buf *reasoning, bt_buf *content);

#endif
