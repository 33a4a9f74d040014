/* Owns the methods of strings: Python's of the same name, by code point. */
#include <limits.h>
#include <string.h>

#include "common/text/tpl_builtin.h"
#include "common/text/unicode.h"
#include "common/text/utf8.h"

static tpl_value m_strip(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    return tpl_strip(run, self.u.str, a[0], 3);
}

static tpl_value m_lstrip(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    return tpl_strip(run, self.u.str, a[0], 1);
}

static tpl_value m_rstrip(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    return tpl_strip(run, self.u.str, a[0], 2);
}

/* One field of a split; from the right, fields come last first and are turned around in the end. */
static void push_field(tpl_run *run, tpl_value list, const tpl_str *str, size_t begin, size_t end) {
    tpl_value field = begin < end ? tpl_substring(run, str, begin, end) : tpl_string_at(run, "", 0);
    tpl_list_push(run, list, field);
}

static void reverse_items(tpl_list *list) {
    for (size_t i = 0, k = list->n; i + 1 < k; i++) {
        k--;
        tpl_value item = list->items[i];
        list->items[i] = list->items[k];
        list->items[k] = item;
    }
}

static size_t skip_while(const tpl_str *str, size_t at, bool is_space) {
    while (at < str->n_bytes) {
        uint32_t c;
        size_t n_bytes = utf8_next((const uint8_t *)str->bytes + at, &c);
        if (tpl_is_space(c) != is_space) break;
        at += n_bytes;
    }
    return at;
}

static size_t back_while(const tpl_str *str, size_t at, bool is_space) {
    while (at > 0) {
        size_t last = at - 1;
        while (((uint8_t)str->bytes[last] & 0xc0) == 0x80) last--;
        uint32_t c;
        utf8_next((const uint8_t *)str->bytes + last, &c);
        if (tpl_is_space(c) != is_space) break;
        at = last;
    }
    return at;
}

static void split_words(tpl_run *run, tpl_value list, const tpl_str *str, int64_t max, bool from_right) {
    size_t at = from_right ? back_while(str, str->n_bytes, true) : skip_while(str, 0, true);
    while ((from_right ? at > 0 : at < str->n_bytes) && tpl_step(run, 1)) {
        bool is_rest = max >= 0 && (int64_t)list.u.list->n == max;
        if (from_right) {
            size_t begin = is_rest ? 0 : back_while(str, at, false);
            push_field(run, list, str, begin, at);
            at = is_rest ? 0 : back_while(str, begin, true);
        } else {
            size_t end = is_rest ? str->n_bytes : skip_while(str, at, false);
            push_field(run, list, str, at, end);
            at = is_rest ? end : skip_while(str, end, true);
        }
    }
}

static const char *find_last(const char *begin, size_t n_bytes, const tpl_str *what) {
    for (size_t at = n_bytes + 1; at-- > 0;) {
        if (n_bytes - at >= what->n_bytes && memcmp(begin + at, what->bytes, what->n_bytes) == 0) return begin + at;
    }
    return NULL;
}

static void split_at(tpl_run *run, tpl_value list, const tpl_str *str, const tpl_str *by, int64_t max,
                     bool from_right) {
    size_t begin = 0, end = str->n_bytes;
    while ((max < 0 || (int64_t)list.u.list->n < max) && tpl_step(run, 1)) {
        const char *hit = from_right ? find_last(str->bytes, end, by)
                                     : memmem(str->bytes + begin, end - begin, by->bytes, by->n_bytes);
        if (hit == NULL) break;
        size_t at = (size_t)(hit - str->bytes);
        push_field(run, list, str, from_right ? at + by->n_bytes : begin, from_right ? end : at);
        if (from_right) end = at;
        if (!from_right) begin = at + by->n_bytes;
    }
    push_field(run, list, str, begin, end);
}

static tpl_value split(tpl_run *run, const tpl_str *str, const tpl_value *a, bool from_right) {
    tpl_value list = tpl_list_new(run, TPL_LIST, 0);
    int64_t max = tpl_arg_int(run, a[1], -1);
    tpl_step(run, str->n_bytes / 16);
    if (a[0].kind == TPL_MISSING || a[0].kind == TPL_NONE) {
        split_words(run, list, str, max, from_right);
    } else {
        const tpl_str *by = tpl_arg_str(run, a[0]);
        if (run->failed || by->n_bytes == 0) return tpl_fail(run, "empty separator");
        split_at(run, list, str, by, max, from_right);
    }
    if (from_right) reverse_items(list.u.list);
    return list;
}

static tpl_value m_split(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    return split(run, self.u.str, a, false);
}

static tpl_value m_rsplit(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    return split(run, self.u.str, a, true);
}

static bool is_line_break(uint32_t c) {
    return (c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

static tpl_value m_splitlines(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    const tpl_str *str = self.u.str;
    tpl_value list = tpl_list_new(run, TPL_LIST, 0);
    size_t begin = 0, at = 0;
    while (at < str->n_bytes) {
        uint32_t c;
        size_t end = at;
        at += utf8_next((const uint8_t *)str->bytes + at, &c);
        if (!is_line_break(c)) continue;
        if (c == '\r' && at < str->n_bytes && str->bytes[at] == '\n') at++;
        if (!tpl_step(run, 1)) break;
        push_field(run, list, str, begin, tpl_truth(a[0]) ? at : end);
        begin = at;
    }
    if (begin < str->n_bytes) push_field(run, list, str, begin, str->n_bytes);
    return list;
}

/* The part [start, end) in characters that find(), count() and startswith() look at, as byte offsets. */
static bool part_of(tpl_run *run, const tpl_str *str, const tpl_value *range, size_t *begin, size_t *end) {
    int64_t n = (int64_t)str->n_chars, from = tpl_arg_int(run, range[0], 0), to = tpl_arg_int(run, range[1], n);
    from = from < 0 ? from + n : from;
    to = to < 0 ? to + n : to;
    from = from < 0 ? 0 : from;
    to = to < 0 ? 0 : to > n ? n : to;
    if (from > to) return false;
    const uint8_t *p = (const uint8_t *)str->bytes;
    uint32_t c;
    size_t at = 0;
    if (str->n_chars == str->n_bytes) {
        *begin = (size_t)from;
        *end = (size_t)to;
        return true;
    }
    for (int64_t i = 0; i < from; i++) at += utf8_next(p + at, &c);
    *begin = at;
    for (int64_t i = from; i < to; i++) at += utf8_next(p + at, &c);
    *end = at;
    return true;
}

static bool has_affix(tpl_run *run, const tpl_str *str, tpl_value affix, size_t begin, size_t end, bool at_end) {
    const tpl_str *part = tpl_arg_str(run, affix);
    if (part->n_bytes > end - begin) return false;
    return memcmp(str->bytes + (at_end ? end - part->n_bytes : begin), part->bytes, part->n_bytes) == 0;
}

static tpl_value affix(tpl_run *run, const tpl_str *str, const tpl_value *a, bool at_end) {
    size_t begin, end;
    if (!part_of(run, str, a + 1, &begin, &end)) return tpl_bool(false);
    if (a[0].kind != TPL_TUPLE) return tpl_bool(has_affix(run, str, a[0], begin, end, at_end));
    for (size_t i = 0; i < a[0].u.list->n; i++) {
        if (has_affix(run, str, a[0].u.list->items[i], begin, end, at_end)) return tpl_bool(true);
    }
    return tpl_bool(false);
}

static tpl_value m_startswith(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    return affix(run, self.u.str, a, false);
}

static tpl_value m_endswith(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    return affix(run, self.u.str, a, true);
}

static tpl_value m_replace(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    const tpl_str *old = tpl_arg_str(run, a[0]), *new = tpl_arg_str(run, a[1]);
    return run->failed ? self : tpl_replace(run, self.u.str, old, new, tpl_arg_int(run, a[2], -1));
}

/* The character index of a part, or -1. */
static int64_t find(tpl_run *run, const tpl_str *str, const tpl_value *a, bool is_last) {
    const tpl_str *what = tpl_arg_str(run, a[0]);
    size_t begin, end;
    tpl_step(run, str->n_bytes / 16);
    if (run->failed || !part_of(run, str, a + 1, &begin, &end)) return -1;
    const char *hit = is_last ? find_last(str->bytes + begin, end - begin, what)
                              : memmem(str->bytes + begin, end - begin, what->bytes, what->n_bytes);
    return hit == NULL ? -1 : (int64_t)utf8_count((const uint8_t *)str->bytes, (size_t)(hit - str->bytes));
}

static tpl_value m_find(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    return tpl_int(find(run, self.u.str, a, false));
}

static tpl_value m_rfind(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    return tpl_int(find(run, self.u.str, a, true));
}

static tpl_value m_index(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    int64_t at = find(run, self.u.str, a, false);
    return at < 0 ? tpl_fail(run, "substring not found") : tpl_int(at);
}

static tpl_value m_count(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    const tpl_str *str = self.u.str, *what = tpl_arg_str(run, a[0]);
    size_t begin, end;
    if (run->failed || !part_of(run, str, a + 1, &begin, &end)) return tpl_int(0);
    tpl_step(run, (end - begin) / 16);
    if (what->n_bytes == 0) return tpl_int((int64_t)utf8_count((const uint8_t *)str->bytes + begin, end - begin) + 1);
    int64_t n = 0;
    for (const char *hit; (hit = memmem(str->bytes + begin, end - begin, what->bytes, what->n_bytes)) != NULL; n++) {
        begin = (size_t)(hit - str->bytes) + what->n_bytes;
    }
    return tpl_int(n);
}

static tpl_value m_upper(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)a, (void)args;
    return tpl_change_case(run, self.u.str, TPL_UPPER);
}

static tpl_value m_lower(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)a, (void)args;
    return tpl_change_case(run, self.u.str, TPL_LOWER);
}

static tpl_value m_capitalize(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)a, (void)args;
    return tpl_change_case(run, self.u.str, TPL_CAPITALIZE);
}

static tpl_value m_title(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)a, (void)args;
    return tpl_change_case(run, self.u.str, TPL_TITLE);
}

static tpl_value m_swapcase(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)a, (void)args;
    return tpl_change_case(run, self.u.str, TPL_SWAPCASE);
}

static tpl_value m_join(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    tpl_value items = tpl_items(run, a[0]);
    bt_buf out = {0};
    for (size_t i = 0; i < items.u.list->n && tpl_step(run, 1); i++) {
        if (i > 0) tpl_put_str(run, self, &out);
        if (items.u.list->items[i].kind != TPL_STR) {
            tpl_fail(run, "sequence item %zu: expected str instance, %s found", i,
                     tpl_type_name(items.u.list->items[i]));
        }
        tpl_put_str(run, items.u.list->items[i], &out);
    }
    return tpl_string_take(run, &out);
}

static tpl_value m_format(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)a;
    return tpl_format_braces(run, self.u.str, args);
}

static tpl_value m_removeprefix(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    const tpl_str *str = self.u.str;
    bool has = has_affix(run, str, a[0], 0, str->n_bytes, false);
    return has && !run->failed ? tpl_substring(run, str, a[0].u.str->n_bytes, str->n_bytes) : self;
}

static tpl_value m_removesuffix(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    const tpl_str *str = self.u.str;
    bool has = has_affix(run, str, a[0], 0, str->n_bytes, true);
    return has && !run->failed ? tpl_substring(run, str, 0, str->n_bytes - a[0].u.str->n_bytes) : self;
}

static tpl_value partition(tpl_run *run, tpl_value self, const tpl_value *a, bool is_last) {
    const tpl_str *str = self.u.str, *by = tpl_arg_str(run, a[0]);
    if (run->failed || by->n_bytes == 0) return tpl_fail(run, "empty separator");
    tpl_value parts = tpl_list_new(run, TPL_TUPLE, 3), empty = tpl_string_at(run, "", 0);
    const char *hit =
        is_last ? find_last(str->bytes, str->n_bytes, by) : memmem(str->bytes, str->n_bytes, by->bytes, by->n_bytes);
    if (hit == NULL) {
        tpl_list_push(run, parts, is_last ? empty : self);
        tpl_list_push(run, parts, empty);
        tpl_list_push(run, parts, is_last ? self : empty);
        return parts;
    }
    size_t at = (size_t)(hit - str->bytes);
    push_field(run, parts, str, 0, at);
    tpl_list_push(run, parts, a[0]);
    push_field(run, parts, str, at + by->n_bytes, str->n_bytes);
    return parts;
}

static tpl_value m_partition(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    return partition(run, self, a, false);
}

static tpl_value m_rpartition(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    return partition(run, self, a, true);
}

static tpl_value pad(tpl_run *run, const tpl_str *str, const tpl_value *a, int ends) {
    int64_t width = tpl_arg_int(run, a[0], 0), n = width - (int64_t)str->n_chars;
    static const tpl_str space = {.bytes = " ", .n_bytes = 1, .n_chars = 1};
    const tpl_str *fill = a[1].kind == TPL_MISSING ? &space : tpl_arg_str(run, a[1]);
    if (n <= 0 || run->failed) return (tpl_value){.kind = TPL_STR, .u.str = str};
    if (n > 1 << 20 || fill->n_chars != 1) return tpl_fail(run, "a padding of that kind or width is not supported");
    int64_t n_left = ends == 1 ? n : ends == 2 ? 0 : n / 2 + (n & width & 1);
    bt_buf out = {0};
    for (int64_t i = 0; i < n_left; i++) bt_buf_put(&out, fill->bytes, fill->n_bytes);
    bt_buf_put(&out, str->bytes, str->n_bytes);
    for (int64_t i = n_left; i < n; i++) bt_buf_put(&out, fill->bytes, fill->n_bytes);
    return tpl_string_take(run, &out);
}

static tpl_value m_ljust(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    return pad(run, self.u.str, a, 2);
}

static tpl_value m_rjust(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    return pad(run, self.u.str, a, 1);
}

static tpl_value m_center(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    return pad(run, self.u.str, a, 3);
}

static tpl_value m_zfill(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    const tpl_str *str = self.u.str;
    bool has_sign = str->n_bytes > 0 && (str->bytes[0] == '-' || str->bytes[0] == '+');
    tpl_value rest = tpl_substring(run, str, has_sign, str->n_bytes);
    tpl_value pads[2] = {tpl_int(tpl_arg_int(run, a[0], 0) - has_sign), tpl_string_at(run, "0", 1)};
    tpl_value padded = pad(run, rest.u.str, pads, 1);
    return has_sign && !run->failed ? tpl_add(run, tpl_substring(run, str, 0, 1), padded) : padded;
}

/* Whether all characters (of at least one) are of a kind. */
static tpl_value all_of(tpl_run *run, tpl_value self, unsigned bits) {
    const tpl_str *str = self.u.str;
    const uint8_t *p = (const uint8_t *)str->bytes, *end = p + str->n_bytes, *classes = unicode_classes();
    bool is_all = p < end;
    tpl_step(run, str->n_bytes / 16);
    while (p < end && is_all) {
        uint32_t c;
        p += utf8_next(p, &c);
        is_all = bits == UNI_SPACE ? tpl_is_space(c) : (classes[c] & bits) != 0;
    }
    return tpl_bool(is_all);
}

static tpl_value m_isspace(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)a, (void)args;
    return all_of(run, self, UNI_SPACE);
}

static tpl_value m_isalpha(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)a, (void)args;
    return all_of(run, self, UNI_LETTER);
}

static tpl_value m_isalnum(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)a, (void)args;
    return all_of(run, self, UNI_LETTER | UNI_NUMBER);
}

static tpl_value m_isdigit(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)a, (void)args;
    return all_of(run, self, UNI_NUMBER);
}

static bool is_cased(uint32_t c) { return unicode_to_lower(c) != c || unicode_to_upper(c) != c; }

static tpl_value is_case(tpl_run *run, tpl_value self, bool is_upper) {
    const uint8_t *p = (const uint8_t *)self.u.str->bytes, *end = p + self.u.str->n_bytes;
    bool has_cased = false;
    tpl_step(run, self.u.str->n_bytes / 16);
    while (p < end) {
        uint32_t c;
        p += utf8_next(p, &c);
        if ((is_upper ? unicode_to_upper(c) : unicode_to_lower(c)) != c) return tpl_bool(false);
        has_cased |= is_cased(c);
    }
    return tpl_bool(has_cased);
}

static tpl_value m_isupper(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)a, (void)args;
    return is_case(run, self, true);
}

static tpl_value m_islower(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)a, (void)args;
    return is_case(run, self, false);
}

const tpl_builtin tpl_string_methods[] = {
    {"strip", "chars", 0, m_strip},
    {"lstrip", "chars", 0, m_lstrip},
    {"rstrip", "chars", 0, m_rstrip},
    {"split", "sep,maxsplit", 0, m_split},
    {"rsplit", "sep,maxsplit", 0, m_rsplit},
    {"splitlines", "keepends", 0, m_splitlines},
    {"startswith", "prefix,start,end", 1, m_startswith},
    {"endswith", "suffix,start,end", 1, m_endswith},
    {"replace", "old,new,count", 2, m_replace},
    {"find", "sub,start,end", 1, m_find},
    {"rfind", "sub,start,end", 1, m_rfind},
    {"index", "sub,start,end", 1, m_index},
    {"count", "sub,start,end", 1, m_count},
    {"upper", "", 0, m_upper},
    {"lower", "", 0, m_lower},
    {"casefold", "", 0, m_lower},
    {"capitalize", "", 0, m_capitalize},
    {"title", "", 0, m_title},
    {"swapcase", "", 0, m_swapcase},
    {"join", "iterable", 1, m_join},
    {"format", "*", 0, m_format},
    {"removeprefix", "prefix", 1, m_removeprefix},
    {"removesuffix", "suffix", 1, m_removesuffix},
    {"partition", "sep", 1, m_partition},
    {"rpartition", "sep", 1, m_rpartition},
    {"ljust", "width,fillchar", 1, m_ljust},
    {"rjust", "width,fillchar", 1, m_rjust},
    {"center", "width,fillchar", 1, m_center},
    {"zfill", "width", 1, m_zfill},
    {"isspace", "", 0, m_isspace},
    {"isalpha", "", 0, m_isalpha},
    {"isalnum", "", 0, m_isalnum},
    {"isdigit", "", 0, m_isdigit},
    {"isdecimal", "", 0, m_isdigit},
    {"isnumeric", "", 0, m_isdigit},
    {"isupper", "", 0, m_isupper},
    {"islower", "", 0, m_islower},
    {NULL, NULL, 0, NULL},
};
