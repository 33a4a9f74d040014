/* One choice's way from token ids to text: detokenizer, stop strings, reasoning, tool calls. What comes out is the same
 * whatever the batches in which the tokens arrived. */
#ifndef BATON_GATEWAY_TEXT_STREAM_H
#define BATON_GATEWAY_TEXT_STREAM_H

#include <stdbool.h>
#include <stdint.h>

#include "common/text/detokenizer.h"
#include "common/text/reasoning.h"
#include "common/text/stop.h"
#include "common/text/tool_calls.h"
#include "gateway/api/api_request.h"

typedef struct {
    const tok_tokenizer *tokenizer; /* NULL: markers of reasoning are text */
    const char *const *stop;        /* [n_stop]; copied */
    uint32_t n_stop;
    bool include_stop_str, skip_special_tokens;
    bool has_reasoning, opens_think;
    uint32_t min_tokens;     /* stop strings count only behind so many tokens */
    const uint32_t *end_ids; /* [n_end_ids] tokens that end the request: shown only with include_stop_str; copied */
    uint32_t n_end_ids;
    tcl_format call_format; /* TCL_NONE: tool calls are content */
    const char *call_ids;   /* what generated ids of calls begin with */
    uint32_t max_calls;
    const char *call_opening; /* NULL or "": none; the prompt ends with it */
} gw_stream_options;

enum { GW_MAX_END_IDS = WIRE_MAX_STOP_IDS + 8 };

typedef struct {
    det_stream det;
    stop_matcher stop; /* owned */
    rsn_parser rsn;
    tcl_parser tools; /* owned */
    bool has_reasoning, has_tools, include_stop_str, is_ended;
    bool is_shown; /* the last token is part of the text: it did not end the request, or stop strings are shown */
    uint32_t min_tokens, n_tokens;
    uint32_t end_ids[GW_MAX_END_IDS], n_end_ids;
    bt_buf piece, clean, said; /* owned: scratch */
    bt_buf reasoning, content; /* owned: what came out; the caller clears what it has sent */
} gw_stream;

/* BT_BAD_REQUEST: the stop strings (stop_init()). */
bt_status gw_stream_init(gw_stream *stream, const gw_stream_options *options, bt_error *err);
void gw_stream_fini(gw_stream *stream); /* of a zeroed one: nothing */

/* The next token. true: a stop string is complete, the text has ended with it: stop->strings' index is
 * stream->stop.matched. Further tokens are ignored and give true. */
bool gw_stream_put(gw_stream *stream, uint32_t id);

/* The end by token or length: what was held back comes out. true: it completed a stop string after all. */
bool gw_stream_finish(gw_stream *stream);

/* Bytes of the last tokens that are held back: half a character, or what may become a stop string, a marker or a call.
 */
size_t gw_stream_n_held(const gw_stream *stream);

uint64_t gw_stream_n_reasoning(const gw_stream *stream);

#endif
