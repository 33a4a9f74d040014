/* A strict, non-recursive JSON checker (a bit per level says object or array) and the string writer of the hot path.
 * Builds no tree: cJSON does, after the check has bounded what it will see and refused what it would let through
 * (raw control characters, bad UTF-8, "01", trailing bytes). */
#include "gateway/api/api_json.h"

#include <stdbool.h>
#include <string.h>

#define KEEP_NUMBER_BYTES 63 /* cJSON copies a number into 64 bytes */

/* Length of the well-formed UTF-8 character at `at` (RFC 3629), 0: there is none. */
static size_t utf8_length(const unsigned char *at, size_t n) {
    if (at[0] < 0x80) return 1;
    size_t want = at[0] >= 0xF0 ? 4 : at[0] >= 0xE0 ? 3 : 2;
    if (at[0] < 0xC2 || at[0] > 0xF4 || n < want) return 0;
    unsigned char low = at[0] == 0xE0 ? 0xA0 : at[0] == 0xF0 ? 0x90 : 0x80;
    unsigned char high = at[0] == 0xED ? 0x9F : at[0] == 0xF4 ? 0x8F : 0xBF;
    if (at[1] < low || at[1] > high) return 0;
    for (size_t i = 2; i < want; i++)
        if ((at[i] & 0xC0) != 0x80) return 0;
    return want;
}

/* ---- check ---------------------------------------------------------------------------------------------------- */

typedef struct {
    unsigned char *text;
    size_t at, n;
    uint64_t is_object[GW_JSON_MAX_DEPTH / 64]; /* one bit per open level */
    uint32_t depth, n_values;
    bt_error *err;
} checker;

static bt_status refuse(checker *c, const char *what) {
    return bt_fail(c->err, BT_BAD_REQUEST, "%s at byte %zu", what, c->at);
}

static void skip_space(checker *c) {
    while (c->at < c->n &&
           (c->text[c->at] == ' ' || c->text[c->at] == '\n' || c->text[c->at] == '\r' || c->text[c->at] == '\t'))
        c->at++;
}

static int hex4(const unsigned char *at) {
    int value = 0;
    for (int i = 0; i < 4; i++) {
        int digit = at[i] >= '0' && at[i] <= '9'   ? at[i] - '0'
                    : at[i] >= 'a' && at[i] <= 'f' ? at[i] - 'a' + 10
                    : at[i] >= 'A' && at[i] <= 'F' ? at[i] - 'A' + 10
                                                   : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* At the 'u' of an escape. Replaces what UTF-8 C strings cannot hold. */
static bt_status check_unicode_escape(checker *c) {
    int unit = c->n - c->at >= 5 ? hex4(c->text + c->at + 1) : -1;
    if (unit < 0) return refuse(c, "a \\u escape without four hexadecimal digits");
    bool is_high = unit >= 0xD800 && unit <= 0xDBFF, is_low = unit >= 0xDC00 && unit <= 0xDFFF;
    if (is_high && c->n - c->at >= 11 && c->text[c->at + 5] == '\\' && c->text[c->at + 6] == 'u') {
        int second = hex4(c->text + c->at + 7);
        if (second >= 0xDC00 && second <= 0xDFFF) {
            c->at += 11;
            return BT_OK;
        }
    }
    if (is_high || is_low || unit == 0) memcpy(c->text + c->at + 1, "fffd", 4);
    c->at += 5;
    return BT_OK;
}

/* Past printable ASCII but for quotes and backslashes, eight bytes at a time: a long prompt is checked in a fifth of
 * the time. A byte may borrow only from one behind it, so the first that is marked is right. */
static void skip_plain(checker *c) {
    const uint64_t ones = 0x0101010101010101u, tops = 0x80 * ones;
    for (uint64_t word; c->n - c->at >= sizeof(word); c->at += sizeof(word)) {
        memcpy(&word, c->text + c->at, sizeof(word));
        uint64_t quote = word ^ '"' * ones, backslash = word ^ '\\' * ones;
        uint64_t is_special = (word | (word - 0x20 * ones) | (quote - ones) | (backslash - ones)) & tops;
        if (is_special != 0) {
            c->at += (unsigned)__builtin_ctzll(is_special) / 8;
            return;
        }
    }
}

/* At the opening quote; leaves behind the closing one. */
static bt_status check_string(checker *c) {
    c->at++;
    while (c->at < c->n) {
        unsigned char byte = c->text[c->at];
        if (byte == '"') {
            c->at++;
            return BT_OK;
        }
        if (byte < 0x20) return refuse(c, "a control character in a string");
        if (byte == '\\') {
            c->at++;
            if (c->at == c->n) break;
            if (c->text[c->at] == 'u') {
                bt_status status = check_unicode_escape(c);
                if (status != BT_OK) return status;
            } else {
                if (c->text[c->at] == 0 || strchr("\"\\/bfnrt", c->text[c->at]) == NULL)
                    return refuse(c, "an unknown escape");
                c->at++;
            }
            continue;
        }
        size_t length = utf8_length(c->text + c->at, c->n - c->at);
        if (length == 0) return refuse(c, "bytes that are not UTF-8");
        c->at += length;
        if (length == 1) skip_plain(c);
    }
    return refuse(c, "a string without its end");
}

static bool skip_digits(checker *c) {
    size_t start = c->at;
    while (c->at < c->n && c->text[c->at] >= '0' && c->text[c->at] <= '9') c->at++;
    return c->at > start;
}

static bt_status check_number(checker *c) {
    size_t start = c->at;
    if (c->text[c->at] == '-') c->at++;
    bool is_zero = c->at < c->n && c->text[c->at] == '0';
    if (!skip_digits(c)) return refuse(c, "a number without digits");
    if (is_zero && c->at - start - (c->text[start] == '-') > 1) return refuse(c, "a number with a leading zero");
    if (c->at < c->n && c->text[c->at] == '.') {
        c->at++;
        if (!skip_digits(c)) return refuse(c, "a number without digits after its point");
    }
    if (c->at < c->n && (c->text[c->at] == 'e' || c->text[c->at] == 'E')) {
        c->at++;
        if (c->at < c->n && (c->text[c->at] == '+' || c->text[c->at] == '-')) c->at++;
        if (!skip_digits(c)) return refuse(c, "a number without digits in its exponent");
    }
    if (c->at - start > KEEP_NUMBER_BYTES) return refuse(c, "a number of more than 63 characters");
    return BT_OK;
}

static bt_status check_word(checker *c) {
    static const char *const words[] = {"true", "false", "null"};
    for (int i = 0; i < 3; i++) {
        size_t length = strlen(words[i]);
        if (c->n - c->at >= length && memcmp(c->text + c->at, words[i], length) == 0) {
            c->at += length;
            return BT_OK;
        }
    }
    return refuse(c,
                  c->text[c->at] == 'N' || c->text[c->at] == 'I' ? "NaN and Infinity are not JSON" : "no JSON value");
}

static bool in_object(const checker *c) {
    return c->depth > 0 && (c->is_object[(c->depth - 1) / 64] >> ((c->depth - 1) % 64) & 1) != 0;
}

static bt_status open_level(checker *c, bool is_object) {
    if (c->depth == GW_JSON_MAX_DEPTH) return refuse(c, "more than 64 levels of nesting");
    uint64_t bit = (uint64_t)1 << (c->depth % 64);
    if (is_object) {
        c->is_object[c->depth / 64] |= bit;
    } else {
        c->is_object[c->depth / 64] &= ~bit;
    }
    c->depth++;
    c->at++;
    skip_space(c);
    return BT_OK;
}

/* In an object, before a value: `"key" :`. */
static bt_status check_key(checker *c, bool *is_seed) {
    if (c->at == c->n || c->text[c->at] != '"') return refuse(c, "an object's key is missing");
    size_t start = c->at;
    bt_status status = check_string(c);
    if (status != BT_OK) return status;
    *is_seed = c->depth == 1 && c->at - start == 6 && memcmp(c->text + start, "\"seed\"", 6) == 0;
    skip_space(c);
    if (c->at == c->n || c->text[c->at] != ':') return refuse(c, "a colon is missing");
    c->at++;
    skip_space(c);
    return BT_OK;
}

/* After a value: closes levels that end here; BT_AGAIN: another value (or key) follows. */
static bt_status check_after_value(checker *c) {
    for (;;) {
        skip_space(c);
        if (c->depth == 0) return c->at == c->n ? BT_OK : refuse(c, "bytes behind the end of the JSON value");
        if (c->at == c->n) return refuse(c, "the JSON text ends too early");
        if (c->text[c->at] == ',') {
            c->at++;
            skip_space(c);
            return BT_AGAIN;
        }
        if (c->text[c->at] != (in_object(c) ? '}' : ']')) return refuse(c, "a comma or a closing bracket is missing");
        c->at++;
        c->depth--;
    }
}

/* One value's begin: a scalar whole, or an opening bracket. *is_open: a level was opened and is not empty. */
static bt_status check_value(checker *c, bool *is_open) {
    *is_open = false;
    if (c->at == c->n) return refuse(c, "the JSON text ends too early");
    if (++c->n_values > GW_JSON_MAX_VALUES) return refuse(c, "more than 2097152 JSON values");
    unsigned char byte = c->text[c->at];
    if (byte == '"') return check_string(c);
    if (byte == '-' || (byte >= '0' && byte <= '9')) return check_number(c);
    if (byte != '{' && byte != '[') return check_word(c);
    bt_status status = open_level(c, byte == '{');
    if (status != BT_OK) return status;
    if (c->at < c->n && c->text[c->at] == (byte == '{' ? '}' : ']')) {
        c->at++;
        c->depth--;
        return BT_OK;
    }
    *is_open = true;
    return BT_OK;
}

bt_status gw_json_check(char *text, size_t n_bytes, gw_json_notes *notes, bt_error *err) {
    checker c = {.text = (unsigned char *)text, .n = n_bytes, .err = err};
    *notes = (gw_json_notes){0};
    if (n_bytes >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) memset(text, ' ', 3);
    skip_space(&c);
    if (c.at == c.n) return bt_fail(err, BT_BAD_REQUEST, "the body is empty");
    for (;;) {
        bool is_seed = false, is_open = false;
        bt_status status = BT_OK;
        if (in_object(&c)) status = check_key(&c, &is_seed);
        size_t start = c.at;
        if (status == BT_OK) status = check_value(&c, &is_open);
        if (status != BT_OK) return status;
        if (is_seed) *notes = (gw_json_notes){start, c.at - start};
        if (is_open) continue;
        status = check_after_value(&c);
        if (status != BT_AGAIN) return status;
    }
}

/* ---- write ---------------------------------------------------------------------------------------------------- */

static void put_escape(bt_buf *out, unsigned char byte) {
    static const char short_names[] = "\bb\tt\nn\ff\rr\"\"\\\\";
    for (const char *pair = short_names; *pair != 0; pair += 2) {
        if ((unsigned char)pair[0] == byte) {
            bt_buf_put(out, (char[]){'\\', pair[1]}, 2);
            return;
        }
    }
    bt_buf_printf(out, "\\u%04x", byte);
}

/* Non-zero: this well-formed character must not go out raw. */
static uint32_t line_separator(const unsigned char *at, size_t length) {
    if (length == 2 && at[0] == 0xC2 && at[1] == 0x85) return 0x85;
    if (length == 3 && at[0] == 0xE2 && at[1] == 0x80 && (at[2] == 0xA8 || at[2] == 0xA9))
        return 0x2000 + (at[2] & 0x3F);
    return 0;
}

void gw_json_put_string(bt_buf *out, const char *text, size_t n_bytes) {
    const unsigned char *bytes = (const unsigned char *)text;
    bt_buf_reserve(out, n_bytes + 2);
    bt_buf_put(out, "\"", 1);
    size_t start = 0, at = 0;
    while (at < n_bytes) {
        unsigned char byte = bytes[at];
        if (byte >= 0x20 && byte < 0x7F && byte != '"' && byte != '\\') {
            at++;
            continue;
        }
        size_t length = utf8_length(bytes + at, n_bytes - at);
        uint32_t separator = length > 0 ? line_separator(bytes + at, length) : 0;
        if (length > 1 && separator == 0) {
            at += length;
            continue;
        }
        bt_buf_put(out, bytes + start, at - start);
        if (length == 0) {
            bt_buf_puts(out, "\\ufffd");
        } else if (separator != 0) {
            bt_buf_printf(out, "\\u%04x", separator);
        } else {
            put_escape(out, byte);
        }
        at += length == 0 ? 1 : length;
        start = at;
    }
    bt_buf_put(out, bytes + start, at - start);
    bt_buf_put(out, "\"", 1);
}
