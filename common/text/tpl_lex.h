/* A template's source as tokens. Internal to the chat template.
 *
 * Follows jinja2/lexer.py 3.1 with trim_blocks and lstrip_blocks: newlines become LF, one trailing newline is dropped,
 * white space around tags goes as the - and + signs and the two options say. */
#ifndef BATON_COMMON_TEXT_TPL_LEX_H
#define BATON_COMMON_TEXT_TPL_LEX_H

#include "common/text/tpl_value.h"

typedef enum {
    LEX_EOF,
    LEX_DATA, /* text between tags, never empty */
    LEX_VAR_BEGIN,
    LEX_VAR_END,
    LEX_BLOCK_BEGIN,
    LEX_BLOCK_END,
    LEX_NAME,
    LEX_STRING, /* unescaped */
    LEX_INT,
    LEX_FLOAT,
    LEX_OP,
} lex_kind;

/* Operators: a character, or one of these. */
enum { LEX_POW = 256, LEX_FLOOR_DIV, LEX_EQ, LEX_NE, LEX_LE, LEX_GE };

typedef struct {
    lex_kind kind;
    uint32_t line;
    int op;            /* LEX_OP */
    const char *bytes; /* LEX_DATA, LEX_NAME, LEX_STRING: in the arena */
    size_t n_bytes;
    int64_t integer;
    double number;
} lex_token;

typedef struct {
    lex_token *tokens; /* owned (free); the last one is LEX_EOF */
    size_t n, cap;
} lex_tokens;

/* `source`: valid UTF-8. Texts go into the arena. BT_BAD_REQUEST: an open tag, string or comment, a stray character;
 * *out must be freed then too. */
bt_status lex_run(const char *source, size_t n_bytes, bt_arena *arena, lex_tokens *out, bt_error *err);

#endif
