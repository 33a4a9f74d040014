/* Owns the filters whose result is a text or a number: jinja2/filters.py, and tojson as transformers defines it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/text/tpl_builtin.h"
#include "common/text/unicode.h"
#include "common/text/utf8.h"

#define FILTER(name) static tpl_value f_##name(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args)
#define UNUSED       (void)run, (void)self, (void)a, (void)args

FILTER(string) {
    UNUSED;
    return tpl_to_str(run, self);
}

FILTER(trim) {
    UNUSED;
    return tpl_strip(run, tpl_to_str(run, self).u.str, a[0], 3);
}

FILTER(upper) {
    UNUSED;
    return tpl_change_case(run, tpl_to_str(run, self).u.str, TPL_UPPER);
}

FILTER(lower) {
    UNUSED;
    return tpl_change_case(run, tpl_to_str(run, self).u.str, TPL_LOWER);
}

FILTER(capitalize) {
    UNUSED;
    return tpl_change_case(run, tpl_to_str(run, self).u.str, TPL_CAPITALIZE);
}

/* Unlike str.title(), words begin only behind white space and - ( { [ <. */
FILTER(title) {
    UNUSED;
    const tpl_str *str = tpl_to_str(run, self).u.str;
    const uint8_t *p = (const uint8_t *)str->bytes, *end = p + str->n_bytes;
    bt_buf out = {0};
    bool is_first = true;
    tpl_step(run, str->n_bytes / 8);
    while (p < end) {
        uint32_t c;
        p += utf8_next(p, &c);
        utf8_put_char(&out, is_first ? unicode_to_upper(c) : unicode_to_lower(c));
        is_first = tpl_is_space(c) || (c < 0x80 && strchr("-({[<", (int)c) != NULL && c != 0);
    }
    return tpl_string_take(run, &out);
}

FILTER(replace) {
    UNUSED;
    const tpl_str *str = tpl_to_str(run, self).u.str;
    const tpl_str *old = tpl_to_str(run, a[0]).u.str, *new = tpl_to_str(run, a[1]).u.str;
    return tpl_replace(run, str, old, new, tpl_arg_int(run, a[2], -1));
}

FILTER(escape) {
    UNUSED;
    return tpl_markup(run, tpl_to_str(run, self).u.str, true);
}

FILTER(forceescape) {
    UNUSED;
    tpl_str plain = *tpl_to_str(run, self).u.str;
    plain.is_markup = false;
    return tpl_markup(run, &plain, true);
}

FILTER(safe) {
    UNUSED;
    return tpl_markup(run, tpl_to_str(run, self).u.str, false);
}

FILTER(urlencode) {
    UNUSED;
    const tpl_str *str = tpl_to_str(run, self).u.str;
    bt_buf out = {0};
    if (self.kind == TPL_DICT || tpl_is_sequence(self)) return tpl_fail(run, "urlencode is supported for strings only");
    tpl_step(run, str->n_bytes / 8);
    for (size_t i = 0; i < str->n_bytes; i++) {
        uint8_t c = (uint8_t)str->bytes[i];
        bool is_safe =
            (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') || (c != 0 && strchr("_.-~/", c));
        bt_buf_printf(&out, is_safe ? "%c" : "%%%02X", c);
    }
    return tpl_string_take(run, &out);
}

FILTER(center) {
    UNUSED;
    tpl_str name = {.bytes = "center", .n_bytes = 6};
    tpl_value width = a[0].kind == TPL_MISSING ? tpl_int(80) : a[0];
    return tpl_call_builtin(run, tpl_find_method(TPL_STR, &name), tpl_to_str(run, self),
                            &(tpl_args){.items = &width, .n = 1});
}

/* Every line but the first (or that too) behind an indentation; empty lines only with blank=true. */
FILTER(indent) {
    UNUSED;
    const tpl_str *str = tpl_arg_str(run, self);
    bool with_first = tpl_truth(a[1]), with_blank = tpl_truth(a[2]);
    bt_buf out = {0}, margin = {0};
    if (a[0].kind == TPL_STR) {
        bt_buf_put(&margin, a[0].u.str->bytes, a[0].u.str->n_bytes);
    } else {
        int64_t width = tpl_arg_int(run, a[0], 4);
        if (width > 10000) tpl_fail(run, "an indentation is too wide");
        for (int64_t i = 0; i < width && !run->failed; i++) bt_buf_puts(&margin, " ");
    }
    for (size_t at = 0, n = 0; at <= str->n_bytes && tpl_step(run, 1 + margin.n_bytes / 64); n++) {
        const char *newline = memchr(str->bytes + at, '\n', str->n_bytes - at);
        size_t end = newline != NULL ? (size_t)(newline - str->bytes) : str->n_bytes;
        if (n > 0) bt_buf_puts(&out, "\n");
        if (n == 0 ? with_first : with_blank || end > at) bt_buf_put(&out, margin.bytes, margin.n_bytes);
        bt_buf_put(&out, str->bytes + at, end - at);
        at = end + 1;
        if (!tpl_check_output(run, &out)) break;
    }
    bt_buf_fini(&margin);
    return tpl_string_take(run, &out);
}

static size_t offset_of_char(const tpl_str *str, size_t n_chars) {
    size_t at = 0;
    uint32_t c;
    while (n_chars-- > 0 && at < str->n_bytes) at += utf8_next((const uint8_t *)str->bytes + at, &c);
    return at;
}

FILTER(truncate) {
    UNUSED;
    const tpl_str *str = tpl_arg_str(run, self);
    int64_t length = tpl_arg_int(run, a[0], 255), leeway = tpl_arg_int(run, a[3], 5);
    tpl_value end = a[2].kind == TPL_MISSING ? tpl_string_at(run, "...", 3) : tpl_to_str(run, a[2]);
    if (run->failed || (int64_t)str->n_chars <= length + leeway) return self;
    int64_t n_kept = length - (int64_t)end.u.str->n_chars;
    if (n_kept < 0 || leeway < 0) return tpl_fail(run, "truncate() got a length that is too short");
    size_t n_bytes = offset_of_char(str, (size_t)n_kept);
    if (!tpl_truth(a[1])) { /* not within a word */
        const char *space = memrchr(str->bytes, ' ', n_bytes);
        if (space != NULL) n_bytes = (size_t)(space - str->bytes);
    }
    return tpl_concat(run, tpl_substring(run, str, 0, n_bytes).u.str, end.u.str);
}

FILTER(wordcount) {
    UNUSED;
    const tpl_str *str = tpl_to_str(run, self).u.str;
    const uint8_t *p = (const uint8_t *)str->bytes, *end = p + str->n_bytes, *classes = unicode_classes();
    int64_t n = 0;
    bool was_word = false;
    tpl_step(run, str->n_bytes / 16);
    while (p < end) {
        uint32_t c;
        p += utf8_next(p, &c);
        bool is_word = c == '_' || (classes[c] & (UNI_LETTER | UNI_NUMBER)) != 0;
        n += is_word && !was_word;
        was_word = is_word;
    }
    return tpl_int(n);
}

FILTER(format) {
    UNUSED;
    const tpl_str *format = tpl_arg_str(run, self);
    tpl_value values = tpl_list_new(run, TPL_TUPLE, args->n);
    for (size_t i = 0; i < args->n; i++) tpl_list_push(run, values, args->items[i]);
    if (args->n_named > 0) {
        values = tpl_dict_new(run, TPL_DICT);
        for (size_t i = 0; i < args->n_named; i++) {
            tpl_dict_set(run, values, (tpl_value){.kind = TPL_STR, .u.str = args->names[i]}, args->named[i]);
        }
    }
    return run->failed ? self : tpl_format_percent(run, format, values);
}

FILTER(tojson) {
    UNUSED;
    tpl_json_style style = {.indent = -1, .is_ascii = tpl_truth(a[0]), .sorts_keys = tpl_truth(a[3])};
    if (a[1].kind != TPL_MISSING && a[1].kind != TPL_NONE) {
        int64_t indent = tpl_arg_int(run, a[1], 0);
        if (indent > 100) return tpl_fail(run, "tojson() got an indentation that is too wide");
        style.indent = indent < 0 ? 0 : (int)indent;
    }
    if (tpl_is_sequence(a[2]) && a[2].u.list->n == 2) {
        style.item_separator = tpl_arg_str(run, a[2].u.list->items[0]);
        style.key_separator = tpl_arg_str(run, a[2].u.list->items[1]);
    } else if (a[2].kind != TPL_MISSING && a[2].kind != TPL_NONE) {
        return tpl_fail(run, "tojson() got separators that are not a pair");
    }
    bt_buf out = {0};
    tpl_put_json(run, self, &style, &out);
    return tpl_string_take(run, &out);
}

/* A whole text as a number: white space around it is allowed, underscores between digits too. */
static bool parse_number(const tpl_str *str, int64_t base, bool wants_int, int64_t *integer, double *number) {
    char text[128];
    const char *p = str->bytes, *end = p + str->n_bytes;
    while (p < end && (uint8_t)*p < 0x80 && tpl_is_space((uint8_t)*p)) p++;
    while (end > p && (uint8_t)end[-1] < 0x80 && tpl_is_space((uint8_t)end[-1])) end--;
    size_t n = 0;
    if (end == p || (size_t)(end - p) >= sizeof(text)) return false;
    for (; p < end; p++) {
        bool is_joint = *p == '_' && n > 0 && p + 1 < end;
        if (!is_joint) text[n++] = *p;
    }
    text[n] = 0;
    if (strpbrk(text, " \t\n\r\v\f") != NULL) return false;
    char *rest;
    if (wants_int) {
        *integer = strtoll(text, &rest, (int)base);
        return *rest == 0 && n > 0 && strlen(text) == n;
    }
    *number = strtod(text, &rest);
    return *rest == 0 && strlen(text) == n && strpbrk(text, "xXpP(") == NULL;
}

FILTER(int) {
    UNUSED;
    tpl_value fallback = a[0].kind == TPL_MISSING ? tpl_int(0) : a[0];
    int64_t base = tpl_arg_int(run, a[1], 10), integer;
    double number;
    if (tpl_is_integral(self)) return tpl_int(tpl_to_int(self));
    if (self.kind == TPL_FLOAT) return fabs(self.u.f) < 9.2e18 ? tpl_int((int64_t)self.u.f) : fallback;
    if (self.kind != TPL_STR || base < 2 || base > 36) return fallback;
    if (parse_number(self.u.str, base, true, &integer, &number)) return tpl_int(integer);
    if (parse_number(self.u.str, base, false, &integer, &number) && fabs(number) < 9.2e18)
        return tpl_int((int64_t)number);
    return fallback;
}

FILTER(float) {
    UNUSED;
    int64_t integer;
    double number;
    if (tpl_is_number(self)) return tpl_float(tpl_to_float(self));
    if (self.kind == TPL_STR && parse_number(self.u.str, 10, false, &integer, &number)) return tpl_float(number);
    return a[0].kind == TPL_MISSING ? tpl_float(0) : a[0];
}

FILTER(abs) {
    UNUSED;
    if (self.kind == TPL_FLOAT) return tpl_float(fabs(self.u.f));
    if (tpl_is_integral(self))
        return tpl_to_int(self) < 0 ? tpl_binary(run, '-', tpl_int(0), self) : tpl_int(tpl_to_int(self));
    return tpl_fail(run, "bad operand type for abs(): '%s'", tpl_type_name(self));
}

FILTER(round) {
    UNUSED;
    int64_t precision = tpl_arg_int(run, a[0], 0);
    const tpl_str *method = a[1].kind == TPL_MISSING ? NULL : tpl_arg_str(run, a[1]);
    if (!tpl_is_number(self)) return tpl_fail(run, "type %s cannot be rounded", tpl_type_name(self));
    if (precision > 300 || precision < -300) return tpl_fail(run, "round() got a precision out of range");
    double value = tpl_to_float(self), scale = pow(10, (double)precision);
    if (method != NULL && tpl_is(method, "ceil")) return tpl_float(ceil(value * scale) / scale);
    if (method != NULL && tpl_is(method, "floor")) return tpl_float(floor(value * scale) / scale);
    if (method != NULL && !tpl_is(method, "common")) return tpl_fail(run, "method must be common, ceil or floor");
    if (precision <= 0) { /* of an int, Python's round gives an int */
        double rounded = precision == 0 ? rint(value) : rint(value * scale) / scale;
        return tpl_is_integral(self) ? tpl_int((int64_t)rounded) : tpl_float(rounded);
    }
    if (tpl_is_integral(self)) return tpl_int(tpl_to_int(self));
    char text[700]; /* correctly rounded from the exact decimal value, as Python does it */
    snprintf(text, sizeof(text), "%.*f", (int)precision, value);
    return tpl_float(strtod(text, NULL));
}

const tpl_builtin tpl_text_filters[] = {
    {"string", "", 0, f_string},
    {"safe", "", 0, f_safe},
    {"trim", "chars", 0, f_trim},
    {"upper", "", 0, f_upper},
    {"lower", "", 0, f_lower},
    {"capitalize", "", 0, f_capitalize},
    {"title", "", 0, f_title},
    {"replace", "old,new,count", 2, f_replace},
    {"escape", "", 0, f_escape},
    {"e", "", 0, f_escape},
    {"forceescape", "", 0, f_forceescape},
    {"urlencode", "", 0, f_urlencode},
    {"center", "width", 0, f_center},
    {"indent", "width,first,blank", 0, f_indent},
    {"truncate", "length,killwords,end,leeway", 0, f_truncate},
    {"wordcount", "", 0, f_wordcount},
    {"format", "*", 0, f_format},
    {"tojson", "ensure_ascii,indent,separators,sort_keys", 0, f_tojson},
    {"int", "default,base", 0, f_int},
    {"float", "default", 0, f_float},
    {"abs", "", 0, f_abs},
    {"round", "precision,method", 0, f_round},
    {NULL, NULL, 0, NULL},
};
