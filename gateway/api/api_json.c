/* A strict, non-recursive JSON reader and the string writer of the hot path. The tree is cJSON's, the reader is not:
 * one walk checks what cJSON would let through (raw control characters, bad UTF-8, "01", trailing bytes), bounds what
 * is made, and leaves strings where they are, of which cJSON's own parser makes copies byte by byte. */
#include "gateway/api/api_json.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

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

/* ---- read ------------------------------------------------------------------------------------------------------- */

enum { MAX_NUMBER_BYTES = 63 };

typedef struct {
    unsigned char *text;
    size_t at, n;
    cJSON *levels[GW_JSON_MAX_DEPTH]; /* [depth] objects and arrays that are open, the root first */
    uint32_t depth, n_values;
    bt_error *err;
} reader;

static bt_status refuse(reader *r, const char *what) {
    return bt_fail(r->err, BT_BAD_REQUEST, "%s at byte %zu", what, r->at);
}

static void skip_space(reader *r) {
    while (r->at < r->n &&
           (r->text[r->at] == ' ' || r->text[r->at] == '\n' || r->text[r->at] == '\r' || r->text[r->at] == '\t'))
        r->at++;
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

static size_t put_utf8(unsigned char *out, uint32_t c) {
    if (c < 0x80) {
        out[0] = (unsigned char)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, c >>= 6) out[i] = (unsigned char)(0x80 | (c & 0x3F));
    out[0] = (unsigned char)(0xF00 >> n | c); /* n bits set */
    return n;
}

/* At the 'u' of an escape; leaves behind it. */
static bt_status read_unicode_escape(reader *r, uint32_t *out) {
    int unit = r->n - r->at >= 5 ? hex4(r->text + r->at + 1) : -1;
    if (unit < 0) return refuse(r, "a \\u escape without four hexadecimal digits");
    r->at += 5;
    bool is_high = unit >= 0xD800 && unit <= 0xDBFF, is_low = unit >= 0xDC00 && unit <= 0xDFFF;
    *out = is_high || is_low || unit == 0 ? 0xFFFD : (uint32_t)unit;
    if (!is_high || r->n - r->at < 6 || r->text[r->at] != '\\' || r->text[r->at + 1] != 'u') return BT_OK;
    int second = hex4(r->text + r->at + 2);
    if (second < 0xDC00 || second > 0xDFFF) return BT_OK;
    *out = 0x10000 + ((uint32_t)(unit - 0xD800) << 10) + (uint32_t)(second - 0xDC00);
    r->at += 6;
    return BT_OK;
}

/* At the backslash; leaves behind the escape. */
static bt_status read_escape(reader *r, uint32_t *out) {
    static const unsigned char meant[256] = {
        ['"'] = '"', ['\\'] = '\\', ['/'] = '/', ['b'] = '\b', ['f'] = '\f', ['n'] = '\n', ['r'] = '\r', ['t'] = '\t'};
    if (++r->at == r->n) return refuse(r, "a string without its end");
    if (r->text[r->at] == 'u') return read_unicode_escape(r, out);
    *out = meant[r->text[r->at]];
    if (*out == 0) return refuse(r, "an unknown escape");
    r->at++;
    return BT_OK;
}

/* Moves printable ASCII but for quotes and backslashes down to `to`, eight bytes at a time; returns what is behind it.
 * A byte may borrow only from one behind it, so the first that is marked is right; those from there on stay. */
static unsigned char *move_plain(reader *r, unsigned char *to) {
    const uint64_t ones = 0x0101010101010101u, tops = 0x80 * ones;
    unsigned char *from = r->text + r->at, *end = r->text + r->n;
    size_t n_plain = sizeof(uint64_t);
    for (uint64_t word, there; n_plain == sizeof(word) && (size_t)(end - from) >= sizeof(word);) {
        memcpy(&word, from, sizeof(word));
        uint64_t quote = word ^ '"' * ones, backslash = word ^ '\\' * ones;
        uint64_t is_special = (word | (word - 0x20 * ones) | (quote - ones) | (backslash - ones)) & tops;
        if (is_special != 0) {
            n_plain = (unsigned)__builtin_ctzll(is_special) / 8;
            uint64_t plain = ((uint64_t)1 << 8 * n_plain) - 1;
            memcpy(&there, to, sizeof(there));
            word = (word & plain) | (there & ~plain);
        }
        memcpy(to, &word, sizeof(word));
        from += n_plain;
        to += n_plain;
    }
    r->at = (size_t)(from - r->text);
    return to;
}

/* At the opening quote; leaves behind the closing one. What escapes mean is shorter than they are, so the string moves
 * down where it stands, and a NUL behind it is at the latest where the quote was. */
static bt_status read_string(reader *r, char **out) {
    unsigned char *to = r->text + ++r->at;
    *out = (char *)to;
    for (;;) {
        to = move_plain(r, to);
        if (r->at == r->n) return refuse(r, "a string without its end");
        unsigned char byte = r->text[r->at];
        if (byte == '"') break;
        if (byte < 0x20) return refuse(r, "a control character in a string");
        if (byte == '\\') {
            uint32_t c = 0;
            bt_status status = read_escape(r, &c);
            if (status != BT_OK) return status;
            to += put_utf8(to, c);
            continue;
        }
        size_t length = utf8_length(r->text + r->at, r->n - r->at);
        if (length == 0) return refuse(r, "bytes that are not UTF-8");
        for (size_t i = 0; i < length; i++) *to++ = r->text[r->at++];
    }
    r->at++;
    *to = 0;
    return BT_OK;
}

static bool skip_digits(reader *r) {
    size_t start = r->at;
    while (r->at < r->n && r->text[r->at] >= '0' && r->text[r->at] <= '9') r->at++;
    return r->at > start;
}

static bt_status skip_number(reader *r) {
    size_t start = r->at;
    if (r->text[r->at] == '-') r->at++;
    bool is_zero = r->at < r->n && r->text[r->at] == '0';
    if (!skip_digits(r)) return refuse(r, "a number without digits");
    if (is_zero && r->at - start - (r->text[start] == '-') > 1) return refuse(r, "a number with a leading zero");
    if (r->at < r->n && r->text[r->at] == '.') {
        r->at++;
        if (!skip_digits(r)) return refuse(r, "a number without digits after its point");
    }
    if (r->at < r->n && (r->text[r->at] == 'e' || r->text[r->at] == 'E')) {
        r->at++;
        if (r->at < r->n && (r->text[r->at] == '+' || r->text[r->at] == '-')) r->at++;
        if (!skip_digits(r)) return refuse(r, "a number without digits in its exponent");
    }
    if (r->at - start > MAX_NUMBER_BYTES) return refuse(r, "a number of more than 63 characters");
    return BT_OK;
}

static bt_status read_number(reader *r, cJSON **out) {
    char digits[MAX_NUMBER_BYTES + 1];
    size_t start = r->at;
    bt_status status = skip_number(r);
    if (status != BT_OK) return status;
    memcpy(digits, r->text + start, r->at - start);
    digits[r->at - start] = 0;
    *out = cJSON_CreateNumber(strtod(digits, NULL));
    return BT_OK;
}

static bt_status read_word(reader *r, cJSON **out) {
    static const char *const words[] = {"true", "false", "null"};
    static cJSON *(*const create[])(void) = {cJSON_CreateTrue, cJSON_CreateFalse, cJSON_CreateNull};
    for (int i = 0; i < 3; i++) {
        size_t length = strlen(words[i]);
        if (r->n - r->at >= length && memcmp(r->text + r->at, words[i], length) == 0) {
            r->at += length;
            *out = create[i]();
            return BT_OK;
        }
    }
    return refuse(r,
                  r->text[r->at] == 'N' || r->text[r->at] == 'I' ? "NaN and Infinity are not JSON" : "no JSON value");
}

static bool in_object(const reader *r) { return r->depth > 0 && cJSON_IsObject(r->levels[r->depth - 1]); }

/* In an object, before a value: `"key" :`. */
static bt_status read_key(reader *r, char **out) {
    if (r->at == r->n || r->text[r->at] != '"') return refuse(r, "an object's key is missing");
    bt_status status = read_string(r, out);
    if (status != BT_OK) return status;
    skip_space(r);
    if (r->at == r->n || r->text[r->at] != ':') return refuse(r, "a colon is missing");
    r->at++;
    skip_space(r);
    return BT_OK;
}

/* After a value: closes levels that end here; BT_AGAIN: another value (or key) follows. */
static bt_status read_after_value(reader *r) {
    for (;;) {
        skip_space(r);
        if (r->depth == 0) return r->at == r->n ? BT_OK : refuse(r, "bytes behind the end of the JSON value");
        if (r->at == r->n) return refuse(r, "the JSON text ends too early");
        if (r->text[r->at] == ',') {
            r->at++;
            skip_space(r);
            return BT_AGAIN;
        }
        if (r->text[r->at] != (in_object(r) ? '}' : ']')) return refuse(r, "a comma or a closing bracket is missing");
        r->at++;
        r->depth--;
    }
}

/* One value's begin: a scalar whole, or an opening bracket. */
static bt_status read_value(reader *r, cJSON **out) {
    if (r->at == r->n) return refuse(r, "the JSON text ends too early");
    if (++r->n_values > GW_JSON_MAX_VALUES) return refuse(r, "more than 2097152 JSON values");
    unsigned char byte = r->text[r->at];
    if (byte == '"') {
        char *text;
        bt_status status = read_string(r, &text);
        if (status == BT_OK) *out = cJSON_CreateStringReference(text);
        return status;
    }
    if (byte == '-' || (byte >= '0' && byte <= '9')) return read_number(r, out);
    if (byte != '{' && byte != '[') return read_word(r, out);
    if (r->depth == GW_JSON_MAX_DEPTH) return refuse(r, "more than 64 levels of nesting");
    *out = byte == '{' ? cJSON_CreateObject() : cJSON_CreateArray();
    r->at++;
    skip_space(r);
    return BT_OK;
}

/* Puts a value into the level that is open. *is_open: it is a level itself, and not empty. */
static void place(reader *r, const char *key, cJSON *value, bool *is_open) {
    BT_ASSERT(value != NULL); /* no memory */
    if (in_object(r)) {
        cJSON_AddItemToObjectCS(r->levels[r->depth - 1], key, value);
    } else if (r->depth > 0) {
        cJSON_AddItemToArray(r->levels[r->depth - 1], value);
    }
    *is_open = cJSON_IsObject(value) || cJSON_IsArray(value);
    if (!*is_open) return;
    if (r->at < r->n && r->text[r->at] == (cJSON_IsObject(value) ? '}' : ']')) {
        r->at++;
        *is_open = false;
    } else {
        r->levels[r->depth++] = value;
    }
}

static bt_status read_tree(reader *r, gw_json_notes *notes, cJSON **root) {
    for (;;) {
        char *key = NULL;
        cJSON *value = NULL;
        bool is_open;
        bt_status status = in_object(r) ? read_key(r, &key) : BT_OK;
        size_t start = r->at;
        if (status == BT_OK) status = read_value(r, &value);
        if (status != BT_OK) return status;
        if (*root == NULL) *root = value;
        if (r->depth == 1 && key != NULL && strcmp(key, "seed") == 0) *notes = (gw_json_notes){start, r->at - start};
        place(r, key, value, &is_open);
        if (is_open) continue;
        status = read_after_value(r);
        if (status != BT_AGAIN) return status;
    }
}

bt_status gw_json_parse(char *text, size_t n_bytes, gw_json_notes *notes, cJSON **out, bt_error *err) {
    reader r = {.text = (unsigned char *)text, .n = n_bytes, .err = err};
    *notes = (gw_json_notes){0};
    if (n_bytes >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) r.at = 3;
    skip_space(&r);
    if (r.at == r.n) return bt_fail(err, BT_BAD_REQUEST, "the body is empty");
    cJSON *root = NULL;
    bt_status status = read_tree(&r, notes, &root);
    if (status == BT_OK) {
        *out = root;
    } else {
        cJSON_Delete(root);
    }
    return status;
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
