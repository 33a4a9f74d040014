/* Owns the second walk over a JSON text: cJSON has parsed it, so it is known to be well formed, and its strings and
 * numbers come in the order of the tree. Lengths of strings with NUL go into valueint (which cJSON leaves 0 for
 * strings), the text of a number into valuestring (which cJSON leaves NULL for numbers, frees and duplicates). */
#include "common/text/json.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/text/utf8.h"

/* Nesting, whether U+0000 or a number worth keeping occurs at all (most texts need no second walk), and whether a
 * control character stands outside of strings, which cJSON takes for white space and the second walk does not. */
static size_t scan(const char *text, size_t n_bytes, bool *needs_notes, bool *has_control) {
    size_t depth = 0, max_depth = 0;
    bool is_in_string = false;
    for (size_t i = 0; i < n_bytes; i++) {
        char c = text[i];
        if (is_in_string) {
            if (c == '"') is_in_string = false;
            if (c == '\\' && i + 5 < n_bytes && memcmp(text + i, "\\u0000", 6) == 0) *needs_notes = true;
            if (c == '\\') i++;
            continue;
        }
        is_in_string = c == '"';
        if ((uint8_t)c < 0x20 && c != '\t' && c != '\n' && c != '\r') *has_control = true;
        if (c == '.' || c == 'e' || c == 'E') *needs_notes = true;
        if (c == '{' || c == '[') max_depth = ++depth > max_depth ? depth : max_depth;
        if ((c == '}' || c == ']') && depth > 0) depth--;
    }
    return max_depth;
}

/* The decoded length of the string literal at p (behind its quote); *end is behind its closing quote. */
static size_t string_bytes(const char *p, const char **end, bool *has_nul) {
    size_t n_bytes = 0;
    *has_nul = false;
    for (; *p != '"'; p++, n_bytes++) {
        if (*p != '\\') continue;
        if (*++p != 'u') continue;
        char hex[5] = {p[1], p[2], p[3], p[4], 0};
        unsigned long code = strtoul(hex, NULL, 16);
        p += 4;
        *has_nul |= code == 0;
        if (code >= 0xd800 && code < 0xdc00) { /* a pair; cJSON has refused lone ones */
            p += 6;
            n_bytes += 3;
        } else {
            n_bytes += code >= 0x800 ? 2 : code >= 0x80 ? 1 : 0;
        }
    }
    *end = p + 1;
    return n_bytes;
}

static const char *skip_to_value(const char *p) { return p + strspn(p, " \t\r\n,:"); }

/* Notes what the value at p holds and returns what is behind it; depth is bounded by the caller. */
static const char *note(cJSON *item, const char *p) {
    bool has_nul;
    p = skip_to_value(p);
    if (*p == '"') {
        size_t n_bytes = string_bytes(p + 1, &p, &has_nul);
        if (has_nul) item->valueint = (int)n_bytes;
        return p;
    }
    if (*p == '{' || *p == '[') {
        p++;
        for (cJSON *child = item->child; child != NULL; child = child->next) {
            p = skip_to_value(p);
            if (cJSON_IsObject(item)) string_bytes(p + 1, &p, &has_nul);
            p = note(child, p);
        }
        p += strspn(p, " \t\r\n");
        return p + 1;
    }
    size_t n_bytes = strcspn(p, " \t\r\n,]}");
    if (cJSON_IsNumber(item) && n_bytes > 0 && strcspn(p, ".eE") < n_bytes) item->valuestring = strndup(p, n_bytes);
    return p + n_bytes;
}

bt_status txt_json_parse(const char *text, size_t n_bytes, cJSON **out, bt_error *err) {
    if (n_bytes > INT32_MAX) return bt_fail(err, BT_BAD_REQUEST, "the JSON text is over 2 GiB");
    if (!utf8_is_valid((const uint8_t *)text, n_bytes))
        return bt_fail(err, BT_BAD_REQUEST, "the JSON text is not UTF-8");
    bool needs_notes = false, has_control = false;
    size_t depth = scan(text, n_bytes, &needs_notes, &has_control);
    if (depth > TXT_JSON_MAX_DEPTH) {
        return bt_fail(err, BT_BAD_REQUEST, "the JSON text nests %zu levels, limit %d", depth, (int)TXT_JSON_MAX_DEPTH);
    }
    if (has_control) return bt_fail(err, BT_BAD_REQUEST, "the JSON text has a control character between its values");
    bt_buf copy = {0}; /* with a NUL behind it, which strict ends need */
    bt_buf_put(&copy, text, n_bytes);
    const char *end = NULL;
    cJSON *item = cJSON_ParseWithLengthOpts(bt_buf_text(&copy), n_bytes + 1, &end, 1);
    bt_status status = BT_OK;
    if (item == NULL || (size_t)(end - (const char *)copy.bytes) < n_bytes) {
        size_t at = end != NULL ? (size_t)(end - (const char *)copy.bytes) : 0;
        status = bt_fail(err, BT_BAD_REQUEST, "the text is not valid JSON (at byte %zu)", at);
        cJSON_Delete(item);
    } else {
        bool has_mark = n_bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0; /* a byte order mark: cJSON skips it */
        if (needs_notes) note(item, bt_buf_text(&copy) + (has_mark ? 3 : 0));
        *out = item;
    }
    bt_buf_fini(&copy);
    return status;
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
