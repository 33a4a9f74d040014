/* Owns the reading position. The outer loop looks for the next tag and decides what white space before and behind it
 * stays; the inner loop reads one tag's words. Does not know which words make sense. */
#include "common/text/tpl_lex.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/text/utf8.h"

typedef struct {
    const char *p, *end;
    uint32_t line;
    bool is_line_start; /* what was read last ended with a newline */
    bt_arena *arena;
    lex_tokens *out;
    bt_error *err;
} lexer;

static bt_status lex_fail(const lexer *lex, const char *what) {
    return bt_fail(lex->err, BT_BAD_REQUEST, "chat template, line %u: %s", lex->line, what);
}

static lex_token *push(lexer *lex, lex_kind kind) {
    lex_tokens *out = lex->out;
    if (out->n == out->cap) {
        out->cap = 2 * out->cap + 64;
        out->tokens = bt_realloc(out->tokens, out->cap, sizeof(*out->tokens));
    }
    lex_token *token = &out->tokens[out->n++];
    *token = (lex_token){.kind = kind, .line = lex->line};
    return token;
}

static void advance_to(lexer *lex, const char *p) {
    for (; lex->p < p; lex->p++) lex->line += *lex->p == '\n';
}

static bool starts_with(const lexer *lex, const char *p, const char *text) {
    size_t n_bytes = strlen(text);
    return (size_t)(lex->end - p) >= n_bytes && memcmp(p, text, n_bytes) == 0;
}

static const char *skip_space(const lexer *lex, const char *p) {
    while (p < lex->end) {
        uint32_t c;
        size_t n_bytes = utf8_next((const uint8_t *)p, &c);
        if (!tpl_is_space(c)) break;
        p += n_bytes;
    }
    return p;
}

static const char *strip_right(const char *begin, const char *end) {
    while (end > begin) {
        const char *p = end - 1;
        while (p > begin && ((uint8_t)*p & 0xc0) == 0x80) p--;
        uint32_t c;
        utf8_next((const uint8_t *)p, &c);
        if (!tpl_is_space(c)) break;
        end = p;
    }
    return end;
}

/* The text before a tag. `sign`: what follows the tag's opening, '-' strips all, '+' nothing. A block or comment that
 * is the first thing on its line takes the line's indentation with it (lstrip_blocks). */
static void push_data(lexer *lex, const char *begin, const char *end, char sign, bool is_variable) {
    const char *stop = end;
    if (sign == '-') {
        stop = strip_right(begin, end);
    } else if (sign != '+' && !is_variable) {
        const char *line_begin = end;
        while (line_begin > begin && line_begin[-1] != '\n') line_begin--;
        bool is_at_line = line_begin > begin || lex->is_line_start;
        if (is_at_line && strip_right(line_begin, end) == line_begin) stop = line_begin;
    }
    if (stop > begin) {
        lex_token *token = push(lex, LEX_DATA);
        token->bytes = bt_arena_strndup(lex->arena, begin, (size_t)(stop - begin));
        token->n_bytes = (size_t)(stop - begin);
    }
    advance_to(lex, end);
}

/* Behind a tag's end at p ("%}", "}}" or "#}"): the sign before it strips, or trim_blocks takes one newline. */
static void finish_tag(lexer *lex, const char *p, char sign, bool trims) {
    const char *stop = p;
    if (sign == '-') {
        stop = skip_space(lex, p);
    } else if (sign != '+' && trims && p < lex->end && *p == '\n') {
        stop = p + 1;
    }
    lex->is_line_start = stop[-1] == '\n';
    advance_to(lex, stop);
}

static bool is_name_byte(char c) {
    return (uint8_t)c >= 0x80 || c == '_' || (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static int hex_value(char c) {
    if (is_digit(c)) return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* \xHH, \uHHHH, \UHHHHHHHH behind the letter; moves *p past the digits. */
static bool read_hex(const char **p, const char *end, int n_digits, uint32_t *code_point) {
    *code_point = 0;
    for (int i = 0; i < n_digits; i++, (*p)++) {
        if (*p == end || hex_value(**p) < 0) return false;
        *code_point = *code_point << 4 | (uint32_t)hex_value(**p);
    }
    return true;
}

/* One escape of Python's unicode-escape; p is behind the backslash, before `end`. Returns what is behind, or NULL. */
static const char *put_escape(const char *p, const char *end, bt_buf *out) {
    static const char names[] = "\\'\"abfnrtv", values[] = "\\'\"\a\b\f\n\r\t\v";
    const char *found = memchr(names, *p, sizeof(names) - 1);
    char letter = *p++;
    if (found != NULL) {
        bt_buf_put(out, &values[found - names], 1);
    } else if (letter == 'x' || letter == 'u' || letter == 'U') {
        uint32_t code_point;
        if (!read_hex(&p, end, letter == 'x' ? 2 : letter == 'u' ? 4 : 8, &code_point)) return NULL;
        utf8_put_char(out, code_point);
    } else if (letter >= '0' && letter <= '7') {
        uint32_t code_point = (uint32_t)(letter - '0');
        for (int i = 0; i < 2 && p < end && *p >= '0' && *p <= '7'; i++)
            code_point = code_point * 8 + (uint32_t)(*p++ - '0');
        utf8_put_char(out, code_point);
    } else if (letter == 'N') {
        return NULL;
    } else if (letter != '\n') { /* unknown ones stay as they are, an escaped newline goes */
        bt_buf_puts(out, "\\");
        bt_buf_put(out, &letter, 1);
    }
    return p;
}

static bt_status lex_string(lexer *lex) {
    char quote = *lex->p;
    const char *p = lex->p + 1;
    bt_buf text = {0};
    while (p < lex->end && *p != quote) {
        const char *begin = p;
        while (p < lex->end && *p != quote && *p != '\\') p++;
        bt_buf_put(&text, begin, (size_t)(p - begin));
        if (p == lex->end || *p == quote) break;
        if (p + 1 == lex->end) { /* a backslash that ends the source */
            p++;
            break;
        }
        p = put_escape(p + 1, lex->end, &text);
        if (p == NULL) break;
    }
    bool is_closed = p != NULL && p < lex->end && *p == quote;
    if (is_closed) {
        lex_token *token = push(lex, LEX_STRING);
        token->bytes = bt_arena_strndup(lex->arena, bt_buf_text(&text), text.n_bytes);
        token->n_bytes = text.n_bytes;
        advance_to(lex, p + 1);
    }
    bt_buf_fini(&text);
    return is_closed ? BT_OK : lex_fail(lex, p == NULL ? "a string has an unknown escape" : "a string is not closed");
}

/* Digits with single underscores between them; returns what is behind. */
static const char *skip_digits(const lexer *lex, const char *p) {
    while (p < lex->end && (is_digit(*p) || (*p == '_' && p + 1 < lex->end && is_digit(p[1])))) p++;
    return p;
}

static bt_status lex_number(lexer *lex, bool is_after_dot) {
    const char *begin = lex->p, *p = skip_digits(lex, begin);
    bool is_float = false;
    if (!is_after_dot && p + 1 < lex->end && *p == '.' && is_digit(p[1])) {
        is_float = true;
        p = skip_digits(lex, p + 1);
    }
    if (!is_after_dot && p < lex->end && (*p | 0x20) == 'e') {
        const char *exponent = p + 1;
        if (exponent < lex->end && (*exponent == '+' || *exponent == '-')) exponent++;
        if (exponent < lex->end && is_digit(*exponent)) {
            is_float = true;
            p = skip_digits(lex, exponent);
        }
    }
    int base = 10;
    if (p == begin + 1 && *begin == '0' && p < lex->end && strchr("xXoObB", *p) != NULL && *p != 0) {
        base = (*p | 0x20) == 'x' ? 16 : (*p | 0x20) == 'o' ? 8 : 2;
        begin = ++p;
        while (p < lex->end && is_name_byte(*p)) p++;
    }
    char digits[64];
    size_t n = 0;
    for (const char *q = begin; q < p && n + 1 < sizeof(digits); q++) {
        if (*q != '_') digits[n++] = *q;
    }
    digits[n] = 0;
    lex_token *token = push(lex, is_float ? LEX_FLOAT : LEX_INT);
    char *rest;
    errno = 0;
    if (is_float) {
        token->number = strtod(digits, &rest);
    } else {
        token->integer = strtoll(digits, &rest, base);
    }
    if (n == 0 || *rest != 0 || (size_t)(p - begin) >= sizeof(digits) || (!is_float && errno != 0)) {
        return lex_fail(lex, "a number is not understood");
    }
    advance_to(lex, p);
    return BT_OK;
}

static bt_status lex_operator(lexer *lex) {
    static const struct {
        const char *text;
        int op;
    } pairs[] = {{"**", LEX_POW}, {"//", LEX_FLOOR_DIV}, {"==", LEX_EQ},
                 {"!=", LEX_NE},  {"<=", LEX_LE},        {">=", LEX_GE}};
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        if (!starts_with(lex, lex->p, pairs[i].text)) continue;
        push(lex, LEX_OP)->op = pairs[i].op;
        lex->p += 2;
        return BT_OK;
    }
    if (*lex->p == 0 || strchr("+-*/%~[](){}<>=.:|,;", *lex->p) == NULL) {
        return lex_fail(lex, "an unexpected character in a tag");
    }
    push(lex, LEX_OP)->op = *lex->p++;
    return BT_OK;
}

/* The words of a tag up to and with its end, "}}" or "%}", which inside of brackets is none. */
static bt_status lex_tag(lexer *lex, bool is_variable) {
    const char *close = is_variable ? "}}" : "%}";
    size_t n_open = 0;
    for (;;) {
        advance_to(lex, skip_space(lex, lex->p));
        if (lex->p == lex->end) return lex_fail(lex, "a tag is not closed");
        char sign = *lex->p == '-' || (*lex->p == '+' && !is_variable) ? *lex->p : 0;
        if (n_open == 0 && starts_with(lex, lex->p + (sign != 0), close)) {
            push(lex, is_variable ? LEX_VAR_END : LEX_BLOCK_END);
            finish_tag(lex, lex->p + (sign != 0) + 2, sign, !is_variable);
            return BT_OK;
        }
        bt_status status = BT_OK;
        char c = *lex->p;
        if (is_digit(c)) {
            status = lex_number(lex, lex->p[-1] == '.');
        } else if (is_name_byte(c)) {
            const char *p = lex->p;
            while (p < lex->end && is_name_byte(*p)) p++;
            lex_token *token = push(lex, LEX_NAME);
            token->bytes = bt_arena_strndup(lex->arena, lex->p, (size_t)(p - lex->p));
            token->n_bytes = (size_t)(p - lex->p);
            lex->p = p;
        } else if (c == '"' || c == '\'') {
            status = lex_string(lex);
        } else {
            if (strchr("([{", c) != NULL) n_open++;
            if (strchr(")]}", c) != NULL && n_open-- == 0) return lex_fail(lex, "a closing bracket too many");
            status = lex_operator(lex);
        }
        if (status != BT_OK) return status;
    }
}

/* "{% raw %}" at p, with its signs; *behind is behind it. */
static bool is_named_tag(const lexer *lex, const char *p, const char *name, const char **close, char *sign) {
    p += 2;
    if (p < lex->end && (*p == '-' || *p == '+')) p++;
    p = skip_space(lex, p);
    if (!starts_with(lex, p, name)) return false;
    p = skip_space(lex, p + strlen(name));
    *sign = p < lex->end && (*p == '-' || *p == '+') ? *p : 0;
    p += *sign != 0;
    *close = p + 2;
    return starts_with(lex, p, "%}");
}

static char sign_at(const lexer *lex, const char *p) { return p < lex->end && (*p == '-' || *p == '+') ? *p : 0; }

static bt_status lex_raw(lexer *lex, const char *close, char sign) {
    finish_tag(lex, close, sign, false);
    for (const char *p = lex->p; p < lex->end; p++) {
        if (!starts_with(lex, p, "{%") || !is_named_tag(lex, p, "endraw", &close, &sign)) continue;
        push_data(lex, lex->p, p, sign_at(lex, p + 2), false);
        finish_tag(lex, close, sign, true);
        return BT_OK;
    }
    return lex_fail(lex, "raw is not closed by endraw");
}

static bt_status lex_comment(lexer *lex) {
    const char *close = lex->end - lex->p > 2 ? memmem(lex->p + 2, (size_t)(lex->end - lex->p - 2), "#}", 2) : NULL;
    if (close == NULL) return lex_fail(lex, "a comment is not closed");
    char sign = close > lex->p + 2 && (close[-1] == '-' || close[-1] == '+') ? close[-1] : 0;
    finish_tag(lex, close + 2, sign, true);
    return BT_OK;
}

static bt_status lex_all(lexer *lex) {
    while (lex->p < lex->end) {
        const char *tag = lex->p;
        while (tag < lex->end && !(*tag == '{' && tag + 1 < lex->end && strchr("{%#", tag[1]) != NULL && tag[1] != 0))
            tag++;
        if (tag == lex->end) {
            push_data(lex, lex->p, tag, '+', true);
            break;
        }
        char kind = tag[1], sign = sign_at(lex, tag + 2), raw_sign;
        const char *raw_close;
        push_data(lex, lex->p, tag, sign, kind == '{');
        bt_status status;
        if (kind == '#') {
            status = lex_comment(lex);
        } else if (kind == '%' && is_named_tag(lex, tag, "raw", &raw_close, &raw_sign)) {
            status = lex_raw(lex, raw_close, raw_sign);
        } else {
            push(lex, kind == '{' ? LEX_VAR_BEGIN : LEX_BLOCK_BEGIN);
            lex->p += sign != 0 ? 3 : 2;
            status = lex_tag(lex, kind == '{');
        }
        if (status != BT_OK) return status;
    }
    push(lex, LEX_EOF);
    return BT_OK;
}

bt_status lex_run(const char *source, size_t n_bytes, bt_arena *arena, lex_tokens *out, bt_error *err) {
    char *copy = bt_arena_alloc(arena, n_bytes + 1);
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        if (source[i] == '\r' && i + 1 < n_bytes && source[i + 1] == '\n') continue;
        copy[n++] = source[i] == '\r' ? '\n' : source[i];
    }
    if (n > 0 && copy[n - 1] == '\n') n--;
    lexer lex = {.p = copy, .end = copy + n, .line = 1, .is_line_start = true, .arena = arena, .out = out, .err = err};
    return lex_all(&lex);
}
