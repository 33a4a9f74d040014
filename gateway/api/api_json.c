/* Runs of what needs no escape are copied whole. */
#include "gateway/api/api_json.h"

#include "common/text/utf8.h"

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
        utf8_char c = utf8_look(bytes + at, n_bytes - at);
        size_t length = c.kind == UTF8_VALID ? c.n_bytes : 0;
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
