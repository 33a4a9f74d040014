/* Owns the translation from Oniguruma to PCRE2 and the calls into PCRE2's JIT. The translator copies a pattern piece
 * by piece and keeps one fact: where in the output the last atom began, because {n,m}+ has to wrap it. A class that
 * uses union or intersection becomes a group of look-aheads around plain classes. Does not check patterns: what is
 * wrong stays wrong and PCRE2 says so. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "common/text/regex.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"

#define SPACE_ITEMS "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define HEX_ITEMS   "0-9A-Fa-f"
/* Oniguruma's Word: Alphabetic, M, Nd, Pc; Alphabetic beyond L, M and Nl are the circled and squared letters. */
#define WORD_ITEMS                                                                                                     \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{"    \
    "1f189}"

enum { MAX_GROUPS = 100, MAX_PATTERN_BYTES = 64 * 1024 };

typedef struct {
    const char *at; /* the rest of the source */
    bt_buf *out;
    size_t atom_begin;         /* in out: the last atom */
    size_t groups[MAX_GROUPS]; /* in out: the open groups */
    size_t n_groups, class_depth;
} translator;

/* \p{...}: general categories as they are, their long names shortened, anything else as a script. */
static void put_property(translator *t) {
    static const struct {
        const char *long_name, *short_name;
    } names[] = {{"Letter", "L"},
                 {"Uppercase_Letter", "Lu"},
                 {"Lowercase_Letter", "Ll"},
                 {"Titlecase_Letter", "Lt"},
                 {"Modifier_Letter", "Lm"},
                 {"Other_Letter", "Lo"},
                 {"Mark", "M"},
                 {"Nonspacing_Mark", "Mn"},
                 {"Number", "N"},
                 {"Decimal_Number", "Nd"},
                 {"Letter_Number", "Nl"},
                 {"Other_Number", "No"},
                 {"Punctuation", "P"},
                 {"Symbol", "S"},
                 {"Separator", "Z"},
                 {"Space_Separator", "Zs"},
                 {"Other", "C"},
                 {"Control", "Cc"},
                 {"Alpha", "Alphabetic"},
                 {"Upper", "Uppercase"},
                 {"Lower", "Lowercase"},
                 {"Any", "Any"}};
    bt_buf_put(t->out, t->at, 2); /* \p or \P */
    t->at += 2;
    const char *close = *t->at == '{' ? strchr(t->at, '}') : NULL;
    if (close == NULL) return;
    const char *name = t->at + 1;
    const char *negation = *name == '^' ? "^" : "";
    name += *name == '^';
    size_t n_bytes = (size_t)(close - name);
    t->at = close + 1;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strlen(names[i].long_name) != n_bytes || memcmp(names[i].long_name, name, n_bytes) != 0) continue;
        bt_buf_printf(t->out, "{%s%s}", negation, names[i].short_name);
        return;
    }
    bt_buf_printf(t->out, "{%s%s%.*s}", negation, n_bytes > 2 ? "sc:" : "", (int)n_bytes, name);
}

/* An escape that stands for a class: its items, for use inside [ ], and whether it is the negated form. */
static const char *class_items(char letter, bool *is_negated) {
    *is_negated = letter >= 'A' && letter <= 'Z';
    switch (letter) {
    case 's':
    case 'S':
        return SPACE_ITEMS;
    case 'h':
    case 'H':
        return HEX_ITEMS;
    case 'w':
    case 'W':
        return WORD_ITEMS;
    default:
        return NULL;
    }
}

/* Appends the escape at t->at as it reads outside of a class, or as items of one. */
static bt_status put_escape(translator *t, bool is_in_class, bt_error *err) {
    char letter = t->at[1];
    bool is_negated;
    const char *items = class_items(letter, &is_negated);
    if (letter == 0) return bt_fail(err, BT_BAD_REQUEST, "a regular expression ends with a backslash");
    if (letter == 'p' || letter == 'P') {
        put_property(t);
        return BT_OK;
    }
    if (letter == 'u' && strspn(t->at + 2, "0123456789abcdefABCDEF") >= 4) {
        bt_buf_printf(t->out, "\\x{%.4s}", t->at + 2);
        t->at += 6;
        return BT_OK;
    }
    if (items == NULL) {
        const char *close = t->at[2] == '{' && strchr("xkgo", letter) != NULL ? strchr(t->at, '}') : NULL;
        size_t n_bytes = close != NULL ? (size_t)(close + 1 - t->at) : 2;
        bt_buf_put(t->out, t->at, n_bytes);
        t->at += n_bytes;
        return BT_OK;
    }
    t->at += 2;
    if (!is_in_class) {
        bt_buf_printf(t->out, is_negated ? "[^%s]" : "[%s]", items);
    } else if (!is_negated) {
        bt_buf_puts(t->out, items);
    } else if (letter == 'S') {
        bt_buf_puts(t->out, "\\S\\x{180e}"); /* PCRE2's \S lacks just this one */
    } else {
        return bt_fail(err, BT_BAD_REQUEST, "a regular expression uses \\%c inside a class, which is not supported",
                       letter);
    }
    return BT_OK;
}

static bt_status put_class(translator *t, bt_error *err);

/* One operand of &&: plain items and nested classes, any of which may match. Stops before && or ]. */
static bt_status put_operand(translator *t, bool is_negated, bool *is_plain, bt_error *err) {
    bt_buf plain = {0}, nested = {0}, *out = t->out;
    size_t n_nested = 0;
    bt_status status = BT_OK;
    bool is_first = true;
    while (status == BT_OK && (*t->at != ']' || is_first) && strncmp(t->at, "&&", 2) != 0) {
        if (*t->at == 0) status = bt_fail(err, BT_BAD_REQUEST, "a regular expression has a class without its ]");
        t->out = &plain;
        if (status != BT_OK) break;
        if (strncmp(t->at, "[:", 2) == 0 && strstr(t->at, ":]") != NULL) {
            const char *end = strstr(t->at, ":]") + 2;
            bt_buf_put(&plain, t->at, (size_t)(end - t->at));
            t->at = end;
        } else if (*t->at == '[') {
            t->out = &nested;
            if (n_nested++ > 0) bt_buf_puts(&nested, "|");
            status = put_class(t, err);
        } else if (*t->at == '\\') {
            status = put_escape(t, true, err);
        } else {
            if (*t->at == ']') bt_buf_puts(&plain, "\\");
            bt_buf_put(&plain, t->at++, 1);
        }
        is_first = false;
    }
    t->out = out;
    *is_plain = n_nested == 0;
    if (n_nested > 0) {
        bt_buf_puts(out, "(?:");
        bt_buf_put(out, nested.bytes, nested.n_bytes);
        if (plain.n_bytes > 0) bt_buf_puts(out, "|");
    }
    if (plain.n_bytes > 0 || n_nested == 0) {
        bt_buf_puts(out, is_negated && n_nested == 0 ? "[^" : "[");
        bt_buf_put(out, plain.bytes, plain.n_bytes);
        bt_buf_puts(out, "]");
    }
    if (n_nested > 0) bt_buf_puts(out, ")");
    bt_buf_fini(&plain);
    bt_buf_fini(&nested);
    return status;
}

static bt_status put_class(translator *t, bt_error *err) {
    if (++t->class_depth > 8) return bt_fail(err, BT_BAD_REQUEST, "a regular expression nests classes too deeply");
    t->at++;
    bool is_negated = *t->at == '^', is_plain = false;
    t->at += is_negated;
    bt_buf operand = {0}, ahead = {0}, *out = t->out;
    size_t n_operands = 0;
    bt_status status = BT_OK;
    for (;;) {
        bt_buf_clear(&operand);
        t->out = &operand;
        /* A plain [^...] keeps its form; whether it is plain is known only if no && follows. */
        const char *begin = t->at;
        status = put_operand(t, false, &is_plain, err);
        n_operands++;
        if (status == BT_OK && n_operands == 1 && is_plain && is_negated && *t->at == ']') {
            bt_buf_clear(&operand);
            t->at = begin;
            status = put_operand(t, true, &is_plain, err);
            is_negated = false;
        }
        if (status != BT_OK || strncmp(t->at, "&&", 2) != 0) break;
        t->at += 2;
        bt_buf_puts(&ahead, "(?=");
        bt_buf_put(&ahead, operand.bytes, operand.n_bytes);
        bt_buf_puts(&ahead, ")");
    }
    t->out = out;
    if (status == BT_OK) {
        t->at++; /* ] */
        if (is_negated) bt_buf_puts(out, "(?:(?!");
        if (ahead.n_bytes > 0) bt_buf_puts(out, "(?:");
        bt_buf_put(out, ahead.bytes, ahead.n_bytes);
        bt_buf_put(out, operand.bytes, operand.n_bytes);
        if (ahead.n_bytes > 0) bt_buf_puts(out, ")");
        if (is_negated) bt_buf_puts(out, ")(?s:.))");
    }
    bt_buf_fini(&operand);
    bt_buf_fini(&ahead);
    t->class_depth--;
    return status;
}

/* ( with its (?...: head; the option letter m is PCRE2's s. */
static bt_status open_group(translator *t, bt_error *err) {
    if (t->n_groups == MAX_GROUPS) {
        return bt_fail(err, BT_BAD_REQUEST, "a regular expression nests more than %d groups", (int)MAX_GROUPS);
    }
    t->groups[t->n_groups++] = t->out->n_bytes;
    bt_buf_put(t->out, t->at++, 1);
    if (*t->at != '?') return BT_OK;
    bt_buf_put(t->out, t->at++, 1);
    for (; *t->at != 0 && strchr("imx-", *t->at) != NULL; t->at++) bt_buf_put(t->out, *t->at == 'm' ? "s" : t->at, 1);
    return BT_OK;
}

/* {n,m} is copied; a + behind it repeats the whole in Ruby, but would make it possessive in PCRE2. */
static void put_interval(translator *t) {
    size_t n_bytes = 1 + strspn(t->at + 1, "0123456789,");
    if (t->at[n_bytes] != '}' || n_bytes == 1) { /* a literal brace */
        t->atom_begin = t->out->n_bytes;
        bt_buf_puts(t->out, "\\{");
        t->at++;
        return;
    }
    bt_buf_puts(t->out, t->at[1] == ',' ? "{0" : "{");
    bt_buf_put(t->out, t->at + 1, n_bytes);
    t->at += n_bytes + 1;
    if (*t->at != '+') return;
    bt_buf tail = {0};
    bt_buf_put(&tail, t->out->bytes + t->atom_begin, t->out->n_bytes - t->atom_begin);
    t->out->n_bytes = t->atom_begin;
    bt_buf_puts(t->out, "(?:");
    bt_buf_put(t->out, tail.bytes, tail.n_bytes);
    bt_buf_puts(t->out, ")");
    bt_buf_fini(&tail);
}

bt_status rgx_translate(const char *source, bt_buf *out, bt_error *err) {
    if (strlen(source) > MAX_PATTERN_BYTES) return bt_fail(err, BT_BAD_REQUEST, "a regular expression is over 64 KiB");
    translator t = {.at = source, .out = out};
    bt_status status = BT_OK;
    while (*t.at != 0 && status == BT_OK) {
        size_t begin = out->n_bytes;
        switch (*t.at) {
        case '\\':
            t.atom_begin = begin;
            status = put_escape(&t, false, err);
            break;
        case '[':
            t.atom_begin = begin;
            status = put_class(&t, err);
            break;
        case '(':
            status = open_group(&t, err);
            break;
        case ')':
            t.atom_begin = t.n_groups > 0 ? t.groups[--t.n_groups] : begin;
            bt_buf_put(out, t.at++, 1);
            break;
        case '{':
            put_interval(&t);
            break;
        case '*':
        case '+':
        case '?':
            bt_buf_put(out, t.at++, 1);
            break;
        default: /* a literal; a character of several bytes is one atom */
            t.atom_begin = begin;
            do bt_buf_put(out, t.at++, 1);
            while (((uint8_t)*t.at & 0xc0) == 0x80);
        }
    }
    return status;
}

struct rgx_pattern {
    pcre2_code *code;
    bool has_jit;
};

struct rgx_scratch {
    pcre2_match_data *match; /* only the span of the whole match */
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

bt_status rgx_open(const char *source, rgx_pattern **out, bt_error *err) {
    bt_buf translated = {0};
    bt_status status = rgx_translate(source, &translated, err);
    rgx_pattern *pattern = bt_calloc(1, sizeof(*pattern));
    if (status == BT_OK) {
        int code = 0;
        PCRE2_SIZE at = 0;
        pattern->code = pcre2_compile((PCRE2_SPTR)bt_buf_text(&translated), translated.n_bytes,
                                      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &code, &at, NULL);
        if (pattern->code == NULL) {
            PCRE2_UCHAR why[128] = {0};
            pcre2_get_error_message(code, why, sizeof(why));
            status =
                bt_fail(err, BT_BAD_REQUEST, "regular expression not understood at byte %zu (of its PCRE2 form): %s",
                        (size_t)at, (const char *)why);
        } else {
            pattern->has_jit = pcre2_jit_compile(pattern->code, PCRE2_JIT_COMPLETE) == 0;
        }
    }
    bt_buf_fini(&translated);
    if (status != BT_OK) {
        rgx_close(pattern);
        return status;
    }
    *out = pattern;
    return BT_OK;
}

void rgx_close(rgx_pattern *pattern) {
    if (pattern == NULL) return;
    pcre2_code_free(pattern->code);
    free(pattern);
}

rgx_scratch *rgx_scratch_open(void) {
    enum { STACK_START_BYTES = 32 * 1024, STACK_MAX_BYTES = 16 * 1024 * 1024, MATCH_LIMIT = 1000000000 };
    rgx_scratch *scratch = bt_calloc(1, sizeof(*scratch));
    scratch->match = pcre2_match_data_create(1, NULL);
    scratch->context = pcre2_match_context_create(NULL);
    scratch->stack = pcre2_jit_stack_create(STACK_START_BYTES, STACK_MAX_BYTES, NULL);
    BT_ASSERT(scratch->match != NULL && scratch->context != NULL);
    /* The default limit (10 million) counts every step back over a megabyte of spaces; ours stops only explosions. */
    pcre2_set_match_limit(scratch->context, MATCH_LIMIT);
    if (scratch->stack != NULL) pcre2_jit_stack_assign(scratch->context, NULL, scratch->stack);
    return scratch;
}

void rgx_scratch_close(rgx_scratch *scratch) {
    if (scratch == NULL) return;
    pcre2_jit_stack_free(scratch->stack);
    pcre2_match_context_free(scratch->context);
    pcre2_match_data_free(scratch->match);
    free(scratch);
}

bt_status rgx_find(const rgx_pattern *pattern, rgx_scratch *scratch, const uint8_t *text, size_t n_bytes, size_t start,
                   size_t *begin, size_t *end) {
    int rc = PCRE2_ERROR_JIT_BADOPTION;
    if (pattern->has_jit)
        rc = pcre2_jit_match(pattern->code, text, n_bytes, start, 0, scratch->match, scratch->context);
    if (rc == PCRE2_ERROR_JIT_BADOPTION || rc == PCRE2_ERROR_JIT_STACKLIMIT) {
        rc = pcre2_match(pattern->code, text, n_bytes, start, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, scratch->match,
                         scratch->context);
    }
    if (rc == PCRE2_ERROR_NOMATCH) return BT_CANCELED;
    if (rc < 0) return BT_BAD_REQUEST;
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(scratch->match);
    *begin = span[0];
    *end = span[1];
    return BT_OK;
}
