/* Answers as JSON and as server-sent events, written straight into a buffer: no tree on the hot path.
 *
 * Rules of the contract that this file keeps: one event is `data: {...}\n\n`; id, object, created, model are the same
 * in every chunk; `logprobs` and `finish_reason` are there even when null; the role comes once; a choice's last content
 * and its finish_reason are separate chat chunks; `usage` has its own last chunk with no choices. */
#ifndef BATON_GATEWAY_API_API_FORMAT_H
#define BATON_GATEWAY_API_API_FORMAT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/core/buf.h"
#include "gateway/api/api_error.h"

/* What all chunks (or the one body) of an answer have in common, written once. */
typedef struct {
    bool is_chat;
    bool has_reasoning; /* usage tells reasoning tokens */
    bt_buf head;        /* owned: `{"id":...,"choices":[` */
} gw_format;

void gw_format_init(gw_format *format, bool is_chat, bool is_stream, bool has_reasoning, const char *id,
                    const char *model, int64_t created_s, const char *fingerprint);
void gw_format_fini(gw_format *format);

typedef struct {
    uint64_t n_prompt, n_output, n_cached, n_reasoning;
} gw_usage;

typedef enum { GW_STOP_NONE, GW_STOP_TOKEN, GW_STOP_STRING } gw_stop_kind;

typedef struct {
    const char *reason; /* "stop", "length"; NULL: not yet */
    gw_stop_kind kind;  /* stop_reason: null, an id, a string */
    uint32_t token;
    const char *string;
} gw_finish;

/* A piece of text with its length; {NULL, 0}: absent. */
typedef struct {
    const char *bytes;
    size_t n_bytes;
} gw_text;

/* A tool call, or in an event a piece of one. */
typedef struct {
    const char *id, *name; /* events: NULL, they were told before */
    gw_text arguments;
    uint32_t index;
} gw_format_call;

/* A choice, or in an event a piece of one. */
typedef struct {
    gw_text content, reasoning;        /* chat: content absent is null; completions: reasoning is not shown */
    gw_text logprobs, prompt_logprobs; /* JSON; absent: null */
    gw_finish finish;
    const uint32_t *ids, *prompt_ids; /* NULL: not asked for */
    size_t n_ids, n_prompt_ids;
    const gw_format_call *calls; /* [n_calls]; chat only */
    size_t n_calls;
} gw_format_choice;

/* ---- events; `usage` NULL unless the client asked for it in every chunk --------------------------------------------
 */

/* The first event of a choice of a chat. Of `first` only the prompt's ids are shown. */
void gw_format_role(const gw_format *format, uint32_t index, const gw_format_choice *first, const gw_usage *usage,
                    bt_buf *out);
void gw_format_delta(const gw_format *format, uint32_t index, const gw_format_choice *piece, const gw_usage *usage,
                     bt_buf *out);
void gw_format_finish(const gw_format *format, uint32_t index, const gw_finish *finish, const gw_usage *usage,
                      bt_buf *out);
void gw_format_usage(const gw_format *format, const gw_usage *usage, bt_buf *out);
void gw_format_error_event(const gw_error *error, bt_buf *out);
void gw_format_done(bt_buf *out);

/* ---- the whole body -------------------------------------------------------------------------------------------------
 */

void gw_format_body_begin(const gw_format *format, bt_buf *out);
void gw_format_body_choice(const gw_format *format, uint32_t index, const gw_format_choice *choice, bt_buf *out);
void gw_format_body_end(const gw_format *format, const gw_usage *usage, const gw_format_choice *first, bt_buf *out);

/* A list of token ids; `ids` NULL: null. */
void gw_format_ids(const uint32_t *ids, size_t n_ids, bt_buf *out);

#endif
