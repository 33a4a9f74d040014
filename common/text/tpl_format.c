/* Owns the two ways of Python to put values into a text: "%s" % value and "{}".format(value). The common conversions;
 * others are errors. */
#include <stdio.h>
#include <string.h>

#include "common/text/tpl_builtin.h"

enum { MAX_WIDTH = 1000 };

typedef struct {
    char flags[8];        /* of "-+ 0#" */
    int width, precision; /* precision < 0: not given */
    char type;
} conversion;

static void put_text(tpl_run *run, const conversion *how, tpl_value value, bt_buf *out) {
    bt_buf text = {0};
    if (how->type == 'r') tpl_put_repr(run, value, &text);
    if (how->type == 's') tpl_put_str(run, value, &text);
    tpl_value str = tpl_string_take(run, &text);
    const tpl_str *chars = str.u.str;
    if (how->precision >= 0 && (size_t)how->precision < chars->n_chars) {
        size_t end = 0;
        for (int n = 0; end < chars->n_bytes; end++) {
            if (((uint8_t)chars->bytes[end] & 0xc0) != 0x80 && n++ == how->precision) break;
        }
        chars = tpl_substring(run, chars, 0, end).u.str;
    }
    bool is_left = strchr(how->flags, '-') != NULL;
    size_t n_pad = (size_t)how->width > chars->n_chars ? (size_t)how->width - chars->n_chars : 0;
    for (size_t i = 0; i < n_pad && !is_left; i++) bt_buf_puts(out, " ");
    bt_buf_put(out, chars->bytes, chars->n_bytes);
    for (size_t i = 0; i < n_pad && is_left; i++) bt_buf_puts(out, " ");
}

/* A number or text in the way of C's printf, which is Python's for these types. */
static void put_converted(tpl_run *run, const conversion *how, tpl_value value, bt_buf *out) {
    char format[32];
    bool is_float = strchr("eEfFgG", how->type) != NULL, is_int = strchr("dixXo", how->type) != NULL;
    if ((is_float && !tpl_is_number(value)) || (is_int && !tpl_is_number(value))) {
        if (value.kind == TPL_UNDEFINED) tpl_fail_undefined(run, value);
        tpl_fail(run, "%%%c format: a number is required, not %s", how->type, tpl_type_name(value));
        return;
    }
    int precision = how->precision < 0 ? 6 : how->precision;
    if (is_float) {
        snprintf(format, sizeof(format), "%%%s*.*%c", how->flags, how->type);
        char text[MAX_WIDTH + 400];
        int n_bytes = snprintf(text, sizeof(text), format, how->width, precision, tpl_to_float(value));
        bt_buf_put(out, text, (size_t)n_bytes < sizeof(text) ? (size_t)n_bytes : sizeof(text) - 1);
    } else if (is_int) {
        char type = how->type == 'i' ? 'd' : how->type, text[MAX_WIDTH + 40];
        snprintf(format, sizeof(format), "%%%s*ll%c", how->flags, type);
        long long integer = value.kind == TPL_FLOAT ? (long long)value.u.f : (long long)tpl_to_int(value);
        int n_bytes = snprintf(text, sizeof(text), format, how->width, integer);
        bt_buf_put(out, text, (size_t)n_bytes);
    } else {
        put_text(run, how, value, out);
    }
    tpl_check_output(run, out);
}

static const char *read_number(const char *p, const char *end, int *number) {
    *number = 0;
    for (; p < end && *p >= '0' && *p <= '9'; p++) *number = *number > MAX_WIDTH ? *number : *number * 10 + (*p - '0');
    return p;
}

tpl_value tpl_format_percent(tpl_run *run, const tpl_str *format, tpl_value values) {
    bt_buf out = {0};
    const char *p = format->bytes, *end = p + format->n_bytes;
    bool is_tuple = values.kind == TPL_TUPLE;
    size_t n_values = is_tuple ? values.u.list->n : 1, n_used = 0;
    while (p < end && !run->failed) {
        const char *percent = memchr(p, '%', (size_t)(end - p));
        if (percent == NULL) percent = end;
        bt_buf_put(&out, p, (size_t)(percent - p));
        p = percent + 1;
        if (percent == end) break;
        conversion how = {.precision = -1};
        tpl_value value = values;
        if (p < end && *p == '(') { /* %(name)s takes from a dict */
            const char *close = memchr(p, ')', (size_t)(end - p));
            if (close == NULL || values.kind != TPL_DICT) {
                tpl_fail(run, "format requires a mapping");
                break;
            }
            tpl_value key = tpl_string(run, p + 1, (size_t)(close - p - 1));
            if (!tpl_dict_get(run, values.u.dict, key, &value))
                tpl_fail(run, "a key of the format is not in the mapping");
            p = close + 1;
            n_used = 1;
        } else if (p < end && *p != '%') {
            if (n_used == n_values) tpl_fail(run, "not enough arguments for format string");
            if (is_tuple && n_used < n_values) value = values.u.list->items[n_used];
            n_used++;
        }
        for (size_t n = 0; p < end && strchr("-+ 0#", *p) != NULL && *p != 0 && n < 6; p++) how.flags[n++] = *p;
        p = read_number(p, end, &how.width);
        if (p < end && *p == '.') p = read_number(p + 1, end, &how.precision);
        how.type = p < end ? *p++ : 0;
        if (how.type == '%') {
            bt_buf_puts(&out, "%");
        } else if (how.type == 0 || strchr("srdixXofFeEgG", how.type) == NULL || how.width > MAX_WIDTH ||
                   how.precision > MAX_WIDTH) {
            tpl_fail(run, "a conversion of the format is not supported");
        } else if (!run->failed) {
            put_converted(run, &how, value, &out);
        }
    }
    if (n_used < n_values && (is_tuple || values.kind != TPL_DICT)) {
        tpl_fail(run, "not all arguments converted during string formatting");
    }
    return tpl_string_take(run, &out);
}

/* [[fill]align][sign][0][width][.precision][type] of a format field. */
static void put_field(tpl_run *run, const char *spec, const char *end, tpl_value value, bt_buf *out) {
    conversion how = {.precision = -1};
    size_t n_flags = 0;
    bool is_number = tpl_is_number(value) && value.kind != TPL_BOOL, is_left = !is_number, has_comma = false;
    if (spec < end && (*spec == '<' || *spec == '>')) is_left = *spec++ == '<';
    if (spec < end && (*spec == '+' || *spec == ' ')) how.flags[n_flags++] = *spec++;
    if (spec < end && *spec == '0') how.flags[n_flags++] = *spec++;
    spec = read_number(spec, end, &how.width);
    if (spec < end && *spec == ',') has_comma = *spec++ == ',';
    if (spec < end && *spec == '.') spec = read_number(spec + 1, end, &how.precision);
    how.type = spec < end ? *spec++ : 0;
    if (is_left) how.flags[n_flags++] = '-';
    bool is_plain = how.type == 0 && how.precision < 0;
    if (how.type == 0) how.type = value.kind == TPL_FLOAT && !is_plain ? 'g' : 's';
    if (value.kind == TPL_INT && is_plain) how.type = 'd';
    if (spec != end || has_comma || how.width > MAX_WIDTH || how.precision > MAX_WIDTH ||
        strchr("sdxXofFeEgG", how.type) == NULL) {
        tpl_fail(run, "a format specification is not supported");
        return;
    }
    if (how.type == 's' && is_number) { /* a float as it is */
        value = tpl_to_str(run, value);
    }
    put_converted(run, &how, value, out);
}

/* The value that "name", "0" or "" in front of . and [ names. */
static tpl_value field_value(tpl_run *run, const char *name, size_t n_bytes, const tpl_args *args, size_t *n_auto) {
    if (n_bytes == 0 || (name[0] >= '0' && name[0] <= '9')) {
        int index = 0;
        if (n_bytes > 0) read_number(name, name + n_bytes, &index);
        size_t at = n_bytes == 0 ? (*n_auto)++ : (size_t)index;
        if (at < args->n) return args->items[at];
        return tpl_fail(run, "replacement index %zu out of range for positional args tuple", at);
    }
    for (size_t i = 0; i < args->n_named; i++) {
        const tpl_str *named = args->names[i];
        if (named->n_bytes == n_bytes && memcmp(named->bytes, name, n_bytes) == 0) return args->named[i];
    }
    return tpl_fail(run, "format() lacks the argument '%.*s'", (int)n_bytes, name);
}

tpl_value tpl_format_braces(tpl_run *run, const tpl_str *format, const tpl_args *args) {
    bt_buf out = {0};
    const char *p = format->bytes, *end = p + format->n_bytes;
    size_t n_auto = 0;
    while (p < end && !run->failed) {
        char c = *p++;
        if ((c == '{' || c == '}') && p < end && *p == c) {
            bt_buf_put(&out, p++, 1);
        } else if (c == '}') {
            tpl_fail(run, "single '}' encountered in format string");
        } else if (c != '{') {
            bt_buf_put(&out, &c, 1);
        } else {
            const char *close = memchr(p, '}', (size_t)(end - p));
            if (close == NULL || memchr(p, '{', (size_t)(close - p)) != NULL) {
                tpl_fail(run, "a field of the format string is not closed or not supported");
                break;
            }
            const char *colon = memchr(p, ':', (size_t)(close - p)), *name_end = colon != NULL ? colon : close;
            const char *bang = memchr(p, '!', (size_t)(name_end - p));
            tpl_value value = field_value(run, p, (size_t)((bang != NULL ? bang : name_end) - p), args, &n_auto);
            if (bang != NULL && bang + 2 == name_end && bang[1] == 'r') {
                bt_buf text = {0};
                tpl_put_repr(run, value, &text);
                value = tpl_string_take(run, &text);
            } else if (bang != NULL && bang + 2 == name_end && bang[1] == 's') {
                value = tpl_to_str(run, value);
            } else if (bang != NULL) {
                tpl_fail(run, "a conversion of the format string is not supported");
            }
            if (!run->failed) put_field(run, colon != NULL ? colon + 1 : close, close, value, &out);
            p = close + 1;
        }
    }
    return tpl_string_take(run, &out);
}
