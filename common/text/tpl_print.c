/* Owns how values become text: Python's str(), repr() and json.dumps(). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/text/chat_template.h"
#include "common/text/json.h"
#include "common/text/tpl_value.h"
#include "common/text/unicode.h"
#include "common/text/utf8.h"

/* The shortest digits that read back as the same number, with an exponent below 1e-4 and from 1e16 on (float.__repr__).
 */
void tpl_put_float(double value, bt_buf *out) {
    if (isnan(value) || isinf(value)) {
        bt_buf_puts(out, isnan(value) ? "nan" : value > 0 ? "inf" : "-inf");
        return;
    }
    char text[40];
    int precision = 0;
    do snprintf(text, sizeof(text), "%.*e", precision++, value);
    while (precision < 17 && strtod(text, NULL) != value);
    int exponent = atoi(strchr(text, 'e') + 1), n_digits = precision;
    if (exponent < -4 || exponent >= 16) {
        bt_buf_put(out, text, strcspn(text, "e"));
        bt_buf_printf(out, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
        return;
    }
    int n_decimals = n_digits - 1 - exponent;
    bt_buf_printf(out, "%.*f", n_decimals > 1 ? n_decimals : 1, value);
}

/* repr() of a string: single quotes unless only those occur in it. */
static void put_quoted(const tpl_str *str, bt_buf *out) {
    const uint8_t *p = (const uint8_t *)str->bytes, *end = p + str->n_bytes;
    bool has_single = memchr(p, '\'', str->n_bytes) != NULL, has_double = memchr(p, '"', str->n_bytes) != NULL;
    uint8_t quote = has_single && !has_double ? '"' : '\'';
    bt_buf_put(out, &quote, 1);
    while (p < end) {
        uint32_t c;
        size_t n_bytes = utf8_next(p, &c);
        if (c == quote || c == '\\') {
            bt_buf_printf(out, "\\%c", (int)c);
        } else if (c == '\n' || c == '\r' || c == '\t') {
            bt_buf_puts(out, c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t");
        } else if (!(unicode_classes()[c] & UNI_UNPRINTABLE)) {
            bt_buf_put(out, p, n_bytes);
        } else {
            bt_buf_printf(out, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
        }
        p += n_bytes;
    }
    bt_buf_put(out, &quote, 1);
}

static void put_sequence(tpl_run *run, tpl_value value, bt_buf *out) {
    bool is_tuple = value.kind == TPL_TUPLE;
    bt_buf_puts(out, is_tuple ? "(" : "[");
    for (size_t i = 0; i < value.u.list->n && tpl_step(run, 1); i++) {
        if (i > 0) bt_buf_puts(out, ", ");
        tpl_put_repr(run, value.u.list->items[i], out);
    }
    if (is_tuple && value.u.list->n == 1) bt_buf_puts(out, ",");
    bt_buf_puts(out, is_tuple ? ")" : "]");
}

static void put_dict(tpl_run *run, const tpl_dict *dict, bt_buf *out) {
    bt_buf_puts(out, "{");
    for (size_t i = 0; i < dict->n && tpl_step(run, 1); i++) {
        if (i > 0) bt_buf_puts(out, ", ");
        tpl_put_repr(run, dict->entries[i].key, out);
        bt_buf_puts(out, ": ");
        tpl_put_repr(run, dict->entries[i].value, out);
    }
    bt_buf_puts(out, "}");
}

/* A value written twice doubles with every nesting, so what is written counts as work. */
static void count_work(tpl_run *run, const bt_buf *out, size_t n_before) {
    tpl_step(run, (out->n_bytes - n_before) / 64);
    tpl_check_output(run, out);
}

bool tpl_check_output(tpl_run *run, const bt_buf *out) {
    if (out->n_bytes > TPL_MAX_OUTPUT_BYTES) tpl_fail(run, "more than %d bytes of text", (int)TPL_MAX_OUTPUT_BYTES);
    return !run->failed;
}

void tpl_put_repr(tpl_run *run, tpl_value value, bt_buf *out) {
    size_t n_before = out->n_bytes;
    switch (value.kind) {
    case TPL_STR:
        if (value.u.str->is_markup) bt_buf_puts(out, "Markup(");
        put_quoted(value.u.str, out);
        if (value.u.str->is_markup) bt_buf_puts(out, ")");
        count_work(run, out, n_before);
        break;
    case TPL_LIST:
    case TPL_TUPLE:
        if (tpl_enter(run)) put_sequence(run, value, out);
        tpl_leave(run);
        break;
    case TPL_DICT:
        if (tpl_enter(run)) put_dict(run, value.u.dict, out);
        tpl_leave(run);
        break;
    case TPL_UNDEFINED:
        bt_buf_puts(out, "Undefined");
        break;
    case TPL_NONE:
        bt_buf_puts(out, "None");
        break;
    case TPL_BOOL:
        bt_buf_puts(out, value.u.b ? "True" : "False");
        break;
    case TPL_INT:
        bt_buf_printf(out, "%lld", (long long)value.u.i);
        break;
    case TPL_FLOAT:
        tpl_put_float(value.u.f, out);
        break;
    default:
        bt_buf_printf(out, "<%s>", tpl_type_name(value));
    }
}

void tpl_put_str(tpl_run *run, tpl_value value, bt_buf *out) {
    if (value.kind == TPL_STR) {
        bt_buf_put(out, value.u.str->bytes, value.u.str->n_bytes);
        count_work(run, out, out->n_bytes - value.u.str->n_bytes);
    } else if (value.kind != TPL_UNDEFINED && value.kind != TPL_MISSING) {
        tpl_put_repr(run, value, out);
    }
}

tpl_value tpl_to_str(tpl_run *run, tpl_value value) {
    if (value.kind == TPL_STR) return value;
    bt_buf text = {0};
    tpl_put_str(run, value, &text);
    return tpl_string_take(run, &text);
}

static void put_ascii_string(const tpl_str *str, bt_buf *out) {
    bt_buf text = {0};
    txt_json_put_string(&text, str->bytes, str->n_bytes);
    for (size_t i = 0; i < text.n_bytes;) {
        uint32_t c;
        i += utf8_next(text.bytes + i, &c);
        if (c == 0x7f || c < 0x80) {
            utf8_put_char(out, c);
        } else if (c < 0x10000) {
            bt_buf_printf(out, "\\u%04x", c);
        } else {
            bt_buf_printf(out, "\\u%04x\\u%04x", 0xd800 + ((c - 0x10000) >> 10), 0xdc00 + ((c - 0x10000) & 0x3ff));
        }
    }
    bt_buf_fini(&text);
}

static void put_json_string(const tpl_str *str, const tpl_json_style *style, bt_buf *out) {
    if (style->is_ascii) {
        put_ascii_string(str, out);
    } else {
        txt_json_put_string(out, str->bytes, str->n_bytes);
    }
}

static void put_break(const tpl_json_style *style, uint32_t level, bt_buf *out) {
    if (style->indent < 0) return;
    bt_buf_puts(out, "\n");
    for (uint64_t i = 0; i < (uint64_t)style->indent * level; i++) bt_buf_puts(out, " ");
}

static void put_separator(const tpl_json_style *style, bt_buf *out) {
    if (style->item_separator != NULL) {
        bt_buf_put(out, style->item_separator->bytes, style->item_separator->n_bytes);
    } else {
        bt_buf_puts(out, style->indent < 0 ? ", " : ",");
    }
}

static void put_json(tpl_run *run, tpl_value value, const tpl_json_style *style, uint32_t level, bt_buf *out);

static void put_json_key(tpl_run *run, tpl_value key, const tpl_json_style *style, bt_buf *out) {
    if (key.kind == TPL_STR) {
        put_json_string(key.u.str, style, out);
    } else if (key.kind == TPL_NONE || tpl_is_number(key)) {
        bt_buf_puts(out, "\"");
        put_json(run, key, style, 0, out);
        bt_buf_puts(out, "\"");
    } else {
        tpl_fail(run, "keys must be str, int, float, bool or None, not %s", tpl_type_name(key));
    }
    if (style->key_separator != NULL) {
        bt_buf_put(out, style->key_separator->bytes, style->key_separator->n_bytes);
    } else {
        bt_buf_puts(out, ": ");
    }
}

static int compare_entries(const void *a, const void *b, void *run) {
    return tpl_order(run, ((const tpl_entry *)a)->key, ((const tpl_entry *)b)->key);
}

static void put_json_dict(tpl_run *run, const tpl_dict *dict, const tpl_json_style *style, uint32_t level,
                          bt_buf *out) {
    tpl_entry *entries = dict->entries;
    if (style->sorts_keys && dict->n > 1) {
        entries = tpl_alloc(run, dict->n * sizeof(*entries));
        if (entries == NULL) return;
        memcpy(entries, dict->entries, dict->n * sizeof(*entries));
        qsort_r(entries, dict->n, sizeof(*entries), compare_entries, run);
    }
    bt_buf_puts(out, "{");
    for (size_t i = 0; i < dict->n && tpl_step(run, 1); i++) {
        if (i > 0) put_separator(style, out);
        put_break(style, level + 1, out);
        put_json_key(run, entries[i].key, style, out);
        put_json(run, entries[i].value, style, level + 1, out);
    }
    if (dict->n > 0) put_break(style, level, out);
    bt_buf_puts(out, "}");
}

static void put_json_list(tpl_run *run, const tpl_list *list, const tpl_json_style *style, uint32_t level,
                          bt_buf *out) {
    bt_buf_puts(out, "[");
    for (size_t i = 0; i < list->n && tpl_step(run, 1); i++) {
        if (i > 0) put_separator(style, out);
        put_break(style, level + 1, out);
        put_json(run, list->items[i], style, level + 1, out);
    }
    if (list->n > 0) put_break(style, level, out);
    bt_buf_puts(out, "]");
}

static void put_json(tpl_run *run, tpl_value value, const tpl_json_style *style, uint32_t level, bt_buf *out) {
    size_t n_before = out->n_bytes;
    switch (value.kind) {
    case TPL_NONE:
        bt_buf_puts(out, "null");
        break;
    case TPL_BOOL:
        bt_buf_puts(out, value.u.b ? "true" : "false");
        break;
    case TPL_FLOAT:
        if (isnan(value.u.f) || isinf(value.u.f)) {
            bt_buf_puts(out, isnan(value.u.f) ? "NaN" : value.u.f > 0 ? "Infinity" : "-Infinity");
            break;
        }
        tpl_put_float(value.u.f, out);
        break;
    case TPL_INT:
        bt_buf_printf(out, "%lld", (long long)value.u.i);
        break;
    case TPL_STR:
        put_json_string(value.u.str, style, out);
        count_work(run, out, n_before);
        break;
    case TPL_LIST:
    case TPL_TUPLE:
        if (tpl_enter(run)) put_json_list(run, value.u.list, style, level, out);
        tpl_leave(run);
        break;
    case TPL_DICT:
        if (tpl_enter(run)) put_json_dict(run, value.u.dict, style, level, out);
        tpl_leave(run);
        break;
    default:
        tpl_fail(run, "Object of type %s is not JSON serializable", tpl_type_name(value));
    }
}

void tpl_put_json(tpl_run *run, tpl_value value, const tpl_json_style *style, bt_buf *out) {
    put_json(run, value, style, 0, out);
}
