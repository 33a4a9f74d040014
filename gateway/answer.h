/* An answer in the making: choices, their text, and what the client has got so far. serve.c makes it, answer.c feeds
 * it. The exchange, the core's requests and the answer end in any order; these rules keep them apart:
 *   1. `exchange` is NULL from the moment the last byte was handed over or the client left.
 *   2. A choice with `serial` != 0 is alive in the core; it is cancelled before the answer ends for another reason.
 *   3. An ended answer is on loop->ended until the core's list of actions is empty: late actions find is_open false. */
#ifndef BATON_GATEWAY_ANSWER_H
#define BATON_GATEWAY_ANSWER_H

#include "gateway/api/api_format.h"
#include "gateway/reply.h"
#include "gateway/text/logprobs.h"
#include "gateway/text/prompt.h"
#include "gateway/text/stream.h"

typedef struct {
    gw_answer *answer;
    uint32_t index; /* of the prompt times n_per_prompt, plus which of its choices */
    bool is_open;   /* not finished */
    bool is_empty;  /* max_tokens 0: if the prompt is scored, the token that comes with it is not shown */
    uint64_t serial;
    gw_ticket ticket;     /* in loop->admission */
    gw_stream stream;     /* owned; not streaming: its buffers gather the whole text */
    gw_tokens prompt;     /* owned; ids kept only if they are shown */
    tok_ids ids;          /* owned; of the output: all of them, streaming: those not sent yet; only if they are shown */
    gw_logprobs logprobs; /* owned; as with ids: only if they are shown */
    gw_logprobs prompt_logprobs; /* owned; those of the prompt's first choice are all its choices' */
    bt_buf echo;                 /* owned; text in front of the output */
    gw_finish finish;
    const char *refusal; /* GW_ENDED_REFUSED: why; static */
    uint32_t n_prompt, n_output, n_cached;
    uint32_t n_told;              /* stream: n_output when text was sent last */
    uint32_t n_calls_told;        /* stream: tool calls whose name was sent */
    size_t n_argument_bytes_told; /* of the last of them */
    int64_t first_token_ns, last_token_ns;
} gw_choice;

struct gw_answer {
    gw_answer *next, *previous;
    gw_loop *loop;
    gw_http_exchange *exchange; /* borrowed, see rule 1 */
    gw_call call;
    gw_format format; /* owned */
    bt_arena arena;   /* owned: the stop strings */
    const char **stop;
    uint32_t n_stop;
    bool is_chat, is_stream, include_usage, continuous_usage, return_token_ids, include_reasoning;
    bool has_logprobs, has_prompt_logprobs;
    bool echoes_logprobs; /* has_logprobs, and the prompt's come first */
    bool is_started;      /* stream: the status line is out */
    bool has_opened;      /* stream: every choice has its first event */
    bool is_ended;        /* on loop->ended */
    bool is_named_call;   /* tool_choice named the tool */
    bool is_filtered;     /* only some workers may have it: gw_routing.has_filter */
    gw_strategy strategy;
    gw_slo slo;
    gw_payers payers;   /* whom its tokens are charged to; names in arena, or static */
    gw_choice *choices; /* owned, [n_choices] */
    uint32_t n_choices, n_open;
    uint32_t n_per_prompt; /* choices */
    uint32_t stream_interval;
    int64_t arrival_ns, last_write_ns;
    bt_buf out;                                 /* owned: scratch for events */
    bt_buf logprobs_json, prompt_logprobs_json; /* owned: scratch */
};

/* gw_http's on_gone. */
void gw_answer_on_gone(void *answer);

/* max_tokens 0: the choice ends before it began, with reason length. */
void gw_choice_finish_empty(gw_choice *choice);

/* Ends the answer with an error: as a status line if none is out, else as an event. */
void gw_answer_fail(gw_answer *answer, const gw_error *error);

/* Cancels what is alive and moves the answer to loop->ended. */
void gw_answer_end(gw_answer *answer);
void gw_answer_free(gw_answer *answer);

#endif
