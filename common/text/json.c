/* A strict, non-recursive reader into cJSON's tree. One walk checks what cJSON's own parser lets through (raw control
 * characters, bad UTF-8, "01", escapes without digits, trailing bytes), bounds what is made, and leaves strings where
 * they are, of which cJSON makes copies byte by byte. The length of a string that holds NUL goes into its valueint
 * (which cJSON leaves 0 for strings), the text of a number into its valuestring (which cJSON leaves NULL for numbers,
 * frees and duplicates). */
#include "common/text/json.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/text/json_unescape.h"
#include "common/text/utf8.h"

enum { MAX_NUMBER_BYTES = 63 };
#define MAX_EXACT 9007199254740992.0 /* 2^53: a double has every integer up to it */

typedef struct {
    uint8_t *text;
    size_t at, n;
    const txt_json_rules *rules;
    bool copies;                       /* strings and keys into the tree */
    cJSON *levels[TXT_JSON_MAX_DEPTH]; /* [depth] objects and arrays that are open, the root first */
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

static int hex4(const uint8_t *at) {
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

/* At the 'u' of an escape; leaves behind it. */
static bt_status read_unicode_escape(reader *r, uint32_t *out) {
    int unit = r->n - r->at >= 5 ? hex4(r->text + r->at + 1) : -1;
    if (unit < 0) return refuse(r, "a \\u escape without four hexadecimal digits");
    r->at += 5;
    bool is_high = unit >= 0xD800 && unit <= 0xDBFF, is_low = unit >= 0xDC00 && unit <= 0xDFFF;
    bool has_next = is_high && r->n - r->at >= 6 && r->text[r->at] == '\\' && r->text[r->at + 1] == 'u';
    int next = has_next ? hex4(r->text + r->at + 2) : 0;
    if (next >= 0xDC00 && next <= 0xDFFF) {
        *out = 0x10000 + ((uint32_t)(unit - 0xD800) << 10) + (uint32_t)(next - 0xDC00);
        r->at += 6;
        return BT_OK;
    }
    if ((is_high || is_low) && !r->rules->repairs) return refuse(r, "half of a surrogate pair");
    *out = is_high || is_low || (unit == 0 && r->rules->repairs) ? 0xFFFD : (uint32_t)unit;
    return BT_OK;
}

/* At the backslash; leaves behind the escape. */
static bt_status read_escape(reader *r, uint32_t *out) {
    static const uint8_t meant[256] = {
        ['"'] = '"', ['\\'] = '\\', ['/'] = '/', ['b'] = '\b', ['f'] = '\f', ['n'] = '\n', ['r'] = '\r', ['t'] = '\t'};
    if (++r->at == r->n) return refuse(r, "a string without its end");
    if (r->text[r->at] == 'u') return read_unicode_escape(r, out);
    *out = meant[r->text[r->at]];
    if (*out == 0) return refuse(r, "an unknown escape");
    r->at++;
    return BT_OK;
}

/* At the opening quote; leaves behind the closing one. What escapes mean is shorter than they are, so the string moves
 * down where it stands, and a NUL behind it is at the latest where the quote was. */
static bt_status read_string(reader *r, utf8_piece *out) {
    uint8_t *to = r->text + ++r->at;
    out->bytes = to;
    for (;;) {
        r->at += json_unescape(&to, r->text + r->at, r->n - r->at);
        if (r->at == r->n) return refuse(r, "a string without its end");
        uint8_t byte = r->text[r->at];
        if (byte == '"') break;
        if (byte < 0x20) return refuse(r, "a control character in a string");
        if (byte == '\\') {
            uint32_t c = 0;
            bt_status status = read_escape(r, &c);
            if (status != BT_OK) return status;
            to += utf8_write(to, c);
            continue;
        }
        do { /* other scripts than Latin come in runs */
            utf8_char c = utf8_look(r->text + r->at, r->n - r->at);
            if (c.kind != UTF8_VALID) return refuse(r, "bytes that are not UTF-8");
            for (size_t i = 0; i < c.n_bytes; i++) *to++ = r->text[r->at++];
        } while (r->at < r->n && r->text[r->at] >= 0x80);
    }
    r->at++;
    *to = 0;
    out->n_bytes = (size_t)(to - out->bytes);
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
    double number = strtod(digits, NULL);
    *out = cJSON_CreateNumber(number);
    bool is_written_long = strpbrk(digits, ".eE") != NULL && number == floor(number);
    if (*out != NULL && (is_written_long || fabs(number) >= MAX_EXACT)) (*out)->valuestring = bt_strdup(digits);
    return BT_OK;
}

/* A copy, or where it stands. */
static cJSON *make_string(const reader *r, utf8_piece text) {
    cJSON *item = r->copies ? cJSON_CreateString("") : cJSON_CreateStringReference((const char *)text.bytes);
    if (item == NULL) return NULL;
    if (r->copies) {
        free(item->valuestring);
        item->valuestring = memcpy(bt_calloc(text.n_bytes + 1, 1), text.bytes, text.n_bytes);
    }
    if (!r->rules->repairs && memchr(text.bytes, 0, text.n_bytes) != NULL) item->valueint = (int)text.n_bytes;
    return item;
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
static bt_status read_key(reader *r, utf8_piece *out) {
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
        if (r->depth == 0) return r->at == r->n ? BT_OK : refuse(r, "other bytes behind the JSON");
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
    if (++r->n_values > r->rules->max_values)
        return bt_fail(r->err, BT_BAD_REQUEST, "more than %u JSON values at byte %zu", r->rules->max_values, r->at);
    uint8_t byte = r->text[r->at];
    if (byte == '"') {
        utf8_piece text;
        bt_status status = read_string(r, &text);
        if (status == BT_OK) *out = make_string(r, text);
        return status;
    }
    if (byte == '-' || (byte >= '0' && byte <= '9')) return read_number(r, out);
    if (byte != '{' && byte != '[') return read_word(r, out);
    if (r->depth == r->rules->max_depth)
        return bt_fail(r->err, BT_BAD_REQUEST, "nested deeper than %u levels at byte %zu", r->rules->max_depth, r->at);
    *out = byte == '{' ? cJSON_CreateObject() : cJSON_CreateArray();
    r->at++;
    skip_space(r);
    return BT_OK;
}

/* Puts a value into the level that is open. *is_open: it is a level itself, and not empty. */
static void place(reader *r, const char *key, cJSON *value, bool *is_open) {
    BT_ASSERT(value != NULL); /* no memory */
    if (in_object(r) && r->copies) {
        cJSON_AddItemToObject(r->levels[r->depth - 1], key, value);
    } else if (in_object(r)) {
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

static bt_status read_tree(reader *r, cJSON **root) {
    for (;;) {
        utf8_piece key = {0};
        cJSON *value = NULL;
        bool is_open;
        bt_status status = in_object(r) ? read_key(r, &key) : BT_OK;
        if (status == BT_OK) status = read_value(r, &value);
        if (status != BT_OK) return status;
        if (*root == NULL) *root = value;
        place(r, (const char *)key.bytes, value, &is_open);
        if (is_open) continue;
        status = read_after_value(r);
        if (status != BT_AGAIN) return status;
    }
}

static bt_status read_text(reader *r, cJSON **out) {
    BT_ASSERT(r->rules->max_depth <= TXT_JSON_MAX_DEPTH);
    if (r->n > INT32_MAX) return bt_fail(r->err, BT_BAD_REQUEST, "the JSON text is over 2 GiB");
    if (r->n >= 3 && memcmp(r->text, "\xef\xbb\xbf", 3) == 0) r->at = 3;
    skip_space(r);
    if (r->at == r->n) return bt_fail(r->err, BT_BAD_REQUEST, "the text is empty");
    cJSON *root = NULL;
    bt_status status = read_tree(r, &root);
    if (status == BT_OK) {
        *out = root;
    } else {
        cJSON_Delete(root);
    }
    return status;
}

bt_status txt_json_read(char *text, size_t n_bytes, const txt_json_rules *rules, cJSON **out, bt_error *err) {
    reader r = {.text = (uint8_t *)text, .n = n_bytes, .rules = rules, .err = err};
    return read_text(&r, out);
}

bt_status txt_json_copy(const char *text, size_t n_bytes, const txt_json_rules *rules, cJSON **out, bt_error *err) {
    bt_buf copy = {0};
    bt_buf_put(&copy, text, n_bytes);
    reader r = {.text = copy.bytes, .n = n_bytes, .rules = rules, .copies = true, .err = err};
    bt_status status = read_text(&r, out);
    bt_buf_fini(&copy);
    return status;
}

bt_status txt_json_parse(const char *text, size_t n_bytes, cJSON **out, bt_error *err) {
    static const txt_json_rules rules = {.max_depth = TXT_JSON_MAX_DEPTH, .max_values = UINT32_MAX};
    return txt_json_copy(text, n_bytes, &rules, out, err);
}

const char *txt_json_string(const cJSON *item, size_t *n_bytes) {
    const char *text = cJSON_GetStringValue(item);
    *n_bytes = text == NULL ? 0 : item->valueint > 0 ? (size_t)item->valueint : strlen(text);
    return text;
}

const char *txt_json_number_text(const cJSON *item) { return cJSON_IsNumber(item) ? item->valuestring : NULL; }

void txt_json_put_string(bt_buf *out, const char *bytes, size_t n_bytes) {
    const uint8_t *p = (const uint8_t *)bytes;
    bt_buf_puts(out, "\"");
    size_t begin = 0;
    for (size_t i = 0; i <= n_bytes; i++) {
        if (i < n_bytes && p[i] >= 0x20 && p[i] != '"' && p[i] != '\\') continue;
        utf8_put_lossy(out, p + begin, i - begin);
        begin = i + 1;
        if (i == n_bytes) break;
        static const char shorts[] = "\"\\\b\f\n\r\t", names[] = "\"\\bfnrt";
        const char *found = p[i] != 0 ? strchr(shorts, p[i]) : NULL;
        if (found != NULL) {
            bt_buf_printf(out, "\\%c", names[found - shorts]);
        } else {
            bt_buf_printf(out, "\\u%04x", p[i]);
        }
    }
    bt_buf_puts(out, "\"");
}
