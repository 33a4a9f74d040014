/* Owns the operations on strings that both methods and filters need: strip, replace, case, substrings. */
#include <string.h>

#include "common/text/tpl_builtin.h"
#include "common/text/unicode.h"
#include "common/text/utf8.h"

int64_t tpl_arg_int(tpl_run *run, tpl_value arg, int64_t fallback) {
    if (arg.kind == TPL_MISSING || arg.kind == TPL_NONE) return fallback;
    if (tpl_is_integral(arg)) return tpl_to_int(arg);
    tpl_fail(run, "'%s' object cannot be interpreted as an integer", tpl_type_name(arg));
    return fallback;
}

const tpl_str *tpl_arg_str(tpl_run *run, tpl_value arg) {
    static const tpl_str empty = {.bytes = ""};
    if (arg.kind == TPL_STR) return arg.u.str;
    if (arg.kind == TPL_UNDEFINED) tpl_fail_undefined(run, arg);
    tpl_fail(run, "expected str, not %s", tpl_type_name(arg));
    return &empty;
}

tpl_value tpl_substring(tpl_run *run, const tpl_str *str, size_t begin, size_t end) {
    if (end <= begin) return tpl_string_at(run, "", 0);
    if (begin == 0 && end == str->n_bytes) return (tpl_value){.kind = TPL_STR, .u.str = str};
    return tpl_string_at(run, str->bytes + begin, end - begin);
}

static bool is_in_set(const tpl_str *set, const uint8_t *p, size_t n_bytes) {
    return memmem(set->bytes, set->n_bytes, p, n_bytes) != NULL; /* whole characters: no false hits in UTF-8 */
}

static bool is_stripped(const uint8_t *p, const tpl_str *set, size_t *n_bytes) {
    uint32_t c;
    *n_bytes = utf8_next(p, &c);
    return set == NULL ? tpl_is_space(c) : is_in_set(set, p, *n_bytes);
}

tpl_value tpl_strip(tpl_run *run, const tpl_str *str, tpl_value chars, unsigned ends) {
    const tpl_str *set = chars.kind == TPL_MISSING || chars.kind == TPL_NONE ? NULL : tpl_arg_str(run, chars);
    const uint8_t *p = (const uint8_t *)str->bytes;
    size_t begin = 0, end = str->n_bytes, n_bytes;
    while ((ends & 1) && begin < end && is_stripped(p + begin, set, &n_bytes)) begin += n_bytes;
    while ((ends & 2) && end > begin) {
        size_t last = end - 1;
        while ((p[last] & 0xc0) == 0x80) last--;
        if (!is_stripped(p + last, set, &n_bytes)) break;
        end = last;
    }
    tpl_step(run, str->n_bytes / 16);
    return tpl_substring(run, str, begin, end);
}

static bool is_cased(uint32_t c) { return unicode_to_lower(c) != c || unicode_to_upper(c) != c; }

tpl_value tpl_change_case(tpl_run *run, const tpl_str *str, tpl_case to) {
    bt_buf out = {0};
    const uint8_t *p = (const uint8_t *)str->bytes, *end = p + str->n_bytes;
    bool is_first = true;
    tpl_step(run, str->n_bytes / 8);
    while (p < end) {
        uint32_t c;
        p += utf8_next(p, &c);
        bool ups = to == TPL_UPPER || ((to == TPL_CAPITALIZE || to == TPL_TITLE) && is_first) ||
                   (to == TPL_SWAPCASE && unicode_to_lower(c) != c ? false : to == TPL_SWAPCASE);
        if (ups && c == 0xdf) {
            bt_buf_puts(&out, to == TPL_UPPER || to == TPL_SWAPCASE ? "SS" : "Ss");
        } else {
            utf8_put_char(&out, ups ? unicode_to_upper(c) : unicode_to_lower(c));
        }
        is_first = to == TPL_TITLE && !is_cased(c);
    }
    return tpl_string_take(run, &out);
}

tpl_value tpl_replace(tpl_run *run, const tpl_str *str, const tpl_str *old, const tpl_str *new, int64_t count) {
    bt_buf out = {0};
    const char *p = str->bytes, *end = p + str->n_bytes;
    tpl_step(run, str->n_bytes / 64);
    for (int64_t n = 0; (count < 0 || n < count) && tpl_step(run, 1 + new->n_bytes / 64); n++) {
        const char *hit = p;
        if (old->n_bytes > 0) {
            hit = memmem(p, (size_t)(end - p), old->bytes, old->n_bytes);
            if (hit == NULL) break;
        } else if (n > 0) { /* an empty string is found before every character and at the end */
            if (p == end) break;
            uint32_t c;
            hit = p + utf8_next((const uint8_t *)p, &c);
        }
        bt_buf_put(&out, p, (size_t)(hit - p));
        bt_buf_put(&out, new->bytes, new->n_bytes);
        p = hit + old->n_bytes;
        if (!tpl_check_output(run, &out)) break;
    }
    bt_buf_put(&out, p, (size_t)(end - p));
    return tpl_string_take(run, &out);
}
