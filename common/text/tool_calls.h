/* Tool calls in what a model says: the text is split into content and calls, as it comes.
 *
 *     deepseek_v3    text? TCsB ( TCB "function" SEP name "\n```json\n" arguments "\n```" TCE "\n"? )+ TCsE
 *     deepseek_v31   text? TCsB ( TCB name SEP arguments TCE )+ TCsE
 *     kimi_k2        text? section_begin ( call_begin id argument_begin arguments call_end )+ section_end
 *
 * TCsB is <｜tool▁calls▁begin｜> and so on. The markers are found in the text, whether or not they are tokens; at most
 * a suffix that may become one is held back. What comes out is the same whatever the pieces in which the text came.
 *
 *     TEXT ─TCsB─▶ BETWEEN ─TCB─▶ HEAD ─SEP─▶ (NAME) ─▶ OPEN ─▶ ARGUMENTS ─TCE─▶ BETWEEN ... ─TCsE─▶ DONE
 *                       ◀── no name ──┴─────────┘
 *
 * HEAD: deepseek_v3's "function", the others' name or id. NAME: deepseek_v3's, a line. OPEN: white space and fence.
 * Arguments are what the model wrote, unchecked, without the fence and white space in front; none are "{}". A call ends
 * with its marker, that of all calls, or the next call. What stands between calls and behind them is dropped. Calls
 * that were opened and of which none could be read (no name) are content, as written, when the text has ended. White
 * space is no content if nothing but it stands in front of calls. */
#ifndef BATON_COMMON_TEXT_TOOL_CALLS_H
#define BATON_COMMON_TEXT_TOOL_CALLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/core/buf.h"
#include "common/text/tokenizer.h"

enum { TCL_MAX_HEAD_BYTES = 512, TCL_MAX_ID_PREFIX = 48 };

typedef enum { TCL_NONE, TCL_DEEPSEEK_V3, TCL_DEEPSEEK_V31, TCL_KIMI_K2 } tcl_format;

typedef struct {
    char *id, *name;  /* owned */
    bt_buf arguments; /* owned; only grows */
} tcl_call;

/* One stream. One thread. */
typedef struct {
    tcl_format format;
    enum { TCL_TEXT, TCL_BETWEEN, TCL_HEAD, TCL_NAME, TCL_OPEN, TCL_ARGUMENTS, TCL_DONE } state;
    bool has_content; /* some was given out */
    bool is_fenced;   /* the arguments stand in a code fence */
    char id_prefix[TCL_MAX_ID_PREFIX];
    uint32_t max_calls;
    tcl_call *calls; /* owned, [n_calls]: they grow, and none goes away */
    uint32_t n_calls, cap_calls;
    bt_buf pending; /* owned: text that may be the start of a marker, or of a head */
    bt_buf unread;  /* owned: white space in front, then, before the first call is known, all since the first marker */
} tcl_parser;

/* `format` is not TCL_NONE. Kimi's calls have ids of their own; others get `id_prefix` and their number as 8
 * hexadecimal digits. Behind `max_calls` calls (>= 1) everything is dropped. */
void tcl_init(tcl_parser *parser, tcl_format format, const char *id_prefix, uint32_t max_calls);
void tcl_fini(tcl_parser *parser); /* of a zeroed one: nothing */

/* Appends the content in `text` to *content, and to parser->calls what belongs to calls. */
void tcl_put(tcl_parser *parser, const char *text, size_t n_bytes, bt_buf *content);

/* The end: what was held back comes out. A call that was cut keeps what there is of its arguments. */
void tcl_finish(tcl_parser *parser, bt_buf *content);

/* Appends what a turn begins with that can only go on with a call: of any tool (`name` NULL), or of that one.
 * `n_earlier`: calls in the conversation so far, which Kimi numbers. Nothing is promised of how the model goes on. */
void tcl_write_opening(tcl_format format, const char *name, uint32_t n_earlier, bt_buf *out);

/* Puts what tcl_write_opening() wrote: the prompt ends with it. It is no content, whatever follows. */
void tcl_put_opening(tcl_parser *parser, const char *text, size_t n_bytes);

/* By name: "deepseek_v3", "deepseek_v31", "kimi_k2", "none". */
bool tcl_format_find(const char *name, tcl_format *out);

/* The format that goes with a model: its tokenizer knows the markers, its chat template (NULL: none) prints them. */
tcl_format tcl_format_of(const tok_tokenizer *tokenizer, const char *chat_template);

/* Whether skip_special_tokens would hide the markers. */
bool tcl_has_special_markers(tcl_format format, const tok_tokenizer *tokenizer);

#endif
