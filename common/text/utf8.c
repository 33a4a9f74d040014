/* UTF-8: the table of well-formed sequences (Unicode 15, table 3-7) as code. Knows nothing about what the characters
 * mean; that is unicode.c. */
#include "common/text/utf8.h"

#include <string.h>

static utf8_char make(utf8_kind kind, uint32_t code_point, size_t n_bytes) {
    return (utf8_char){.kind = kind, .code_point = code_point, .n_bytes = n_bytes};
}

utf8_char utf8_look(const uint8_t *bytes, size_t n_bytes) {
    uint8_t lead = bytes[0];
    if (lead < 0x80) return make(UTF8_VALID, lead, 1);
    size_t need = lead >= 0xc2 && lead <= 0xdf ? 2 : lead >= 0xe0 && lead <= 0xef ? 3 : 4;
    if (lead < 0xc2 || lead > 0xf4) return make(UTF8_INVALID, 0, 1);
    /* The second byte's range rules out overlong forms, surrogates and what lies above U+10FFFF. */
    uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    for (size_t i = 1; i < need; i++) {
        if (i == n_bytes) return make(UTF8_PARTIAL, 0, i);
        if (bytes[i] < low || bytes[i] > high) return make(UTF8_INVALID, 0, i);
        low = 0x80;
        high = 0xbf;
    }
    uint32_t code_point;
    return make(UTF8_VALID, (utf8_next(bytes, &code_point), code_point), need);
}

/* The length of the ASCII run at the start: by blocks, of which the compiler makes vectors, then by words. */
static size_t ascii_run(const uint8_t *bytes, size_t n_bytes) {
    enum { BLOCK_WORDS = 16 };
    const uint64_t tops = 0x8080808080808080u;
    size_t at = 0;
    for (uint64_t words[BLOCK_WORDS], any; at + sizeof(words) <= n_bytes; at += sizeof(words)) {
        memcpy(words, bytes + at, sizeof(words));
        any = 0;
        for (int i = 0; i < BLOCK_WORDS; i++) any |= words[i];
        if (any & tops) break;
    }
    for (uint64_t word; at + sizeof(word) <= n_bytes; at += sizeof(word)) {
        memcpy(&word, bytes + at, sizeof(word));
        if (word & tops) return at + (unsigned)__builtin_ctzll(word & tops) / 8;
    }
    while (at < n_bytes && bytes[at] < 0x80) at++;
    return at;
}

bool utf8_measure(const uint8_t *bytes, size_t n_bytes, size_t *n_chars) {
    *n_chars = 0;
    for (size_t at = 0; at < n_bytes; (*n_chars)++) {
        size_t n_ascii = ascii_run(bytes + at, n_bytes - at);
        *n_chars += n_ascii;
        at += n_ascii;
        if (at == n_bytes) break;
        utf8_char c = utf8_look(bytes + at, n_bytes - at);
        if (c.kind != UTF8_VALID) return false;
        at += c.n_bytes;
    }
    return true;
}

bool utf8_is_valid(const uint8_t *bytes, size_t n_bytes) {
    size_t n_chars;
    return utf8_measure(bytes, n_bytes, &n_chars);
}

void utf8_put_lossy(bt_buf *out, const uint8_t *bytes, size_t n_bytes) {
    size_t begin = 0; /* of the valid run not yet appended */
    for (size_t at = 0; at < n_bytes;) {
        at += ascii_run(bytes + at, n_bytes - at);
        if (at == n_bytes) break;
        utf8_char c = utf8_look(bytes + at, n_bytes - at);
        if (c.kind != UTF8_VALID) {
            bt_buf_put(out, bytes + begin, at - begin);
            bt_buf_put(out, "\xef\xbf\xbd", 3);
            begin = at + c.n_bytes;
        }
        at += c.n_bytes;
    }
    bt_buf_put(out, bytes + begin, n_bytes - begin);
}

void utf8_put_slack(bt_buf *out) {
    bt_buf_reserve(out, UTF8_SLACK_BYTES);
    memset(out->bytes + out->n_bytes, 0, UTF8_SLACK_BYTES);
}

size_t utf8_write(uint8_t out[UTF8_MAX_BYTES], uint32_t code_point) {
    if (code_point > 0x10ffff || (code_point >= 0xd800 && code_point < 0xe000)) code_point = 0xfffd;
    if (code_point < 0x80) {
        out[0] = (uint8_t)code_point;
        return 1;
    }
    size_t n_bytes = code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
    for (size_t i = n_bytes - 1; i > 0; i--, code_point >>= 6) out[i] = (uint8_t)(0x80 | (code_point & 0x3f));
    out[0] = (uint8_t)(0xf00 >> n_bytes | code_point); /* as many ones in front as bytes */
    return n_bytes;
}

void utf8_put_char(bt_buf *out, uint32_t code_point) {
    uint8_t bytes[UTF8_MAX_BYTES];
    bt_buf_put(out, bytes, utf8_write(bytes, code_point));
}

size_t utf8_count(const uint8_t *bytes, size_t n_bytes) {
    size_t n_chars = 0;
    for (size_t i = 0; i < n_bytes; i++) n_chars += (bytes[i] & 0xc0) != 0x80;
    return n_chars;
}
