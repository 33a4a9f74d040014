/* UTF-8 as text arrives: characters of checked text, checks, and the one rule for broken bytes: every maximal subpart
 * of an ill-formed sequence becomes one U+FFFD (Unicode 15, section 3.9, table 3-8; what Rust's and Python's lossy
 * decoders do). */
#ifndef BATON_COMMON_TEXT_UTF8_H
#define BATON_COMMON_TEXT_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/core/buf.h"

enum {
    UTF8_MAX_BYTES = 4,
    UTF8_SLACK_BYTES = 16, /* readable behind a text where a header asks for it: scanners look ahead in words */
};

/* Bytes of a text that belong together; borrowed. */
typedef struct {
    const uint8_t *bytes;
    size_t n_bytes;
} utf8_piece;

typedef enum {
    UTF8_VALID,   /* one whole character */
    UTF8_INVALID, /* a maximal subpart: n_bytes bytes that stand for one U+FFFD */
    UTF8_PARTIAL, /* the text ends inside a character that is valid so far */
} utf8_kind;

typedef struct {
    utf8_kind kind;
    uint32_t code_point; /* of a UTF8_VALID one */
    size_t n_bytes;      /* 1..4 */
} utf8_char;

/* Looks at the first character of any bytes; n_bytes > 0. */
utf8_char utf8_look(const uint8_t *bytes, size_t n_bytes);

bool utf8_is_valid(const uint8_t *bytes, size_t n_bytes);
bool utf8_measure(const uint8_t *bytes, size_t n_bytes, size_t *n_chars); /* valid? then also how many characters */
void utf8_put_lossy(bt_buf *out, const uint8_t *bytes, size_t n_bytes);   /* appends, broken parts as U+FFFD */
void utf8_put_slack(bt_buf *out);                                         /* UTF8_SLACK_BYTES zeros that do not count */
void utf8_put_char(bt_buf *out, uint32_t code_point);                /* appends one character; surrogates: U+FFFD */
size_t utf8_write(uint8_t out[UTF8_MAX_BYTES], uint32_t code_point); /* the same; returns its length */
size_t utf8_count(const uint8_t *bytes, size_t n_bytes);             /* characters of valid text */

/* The first character of valid text, for inner loops; *code_point is written, the length returned. */
static inline size_t utf8_next(const uint8_t *p, uint32_t *code_point) {
    if (p[0] < 0x80) {
        *code_point = p[0];
        return 1;
    }
    if (p[0] < 0xe0) {
        *code_point = (uint32_t)(p[0] & 0x1f) << 6 | (p[1] & 0x3f);
        return 2;
    }
    if (p[0] < 0xf0) {
        *code_point = (uint32_t)(p[0] & 0x0f) << 12 | (uint32_t)(p[1] & 0x3f) << 6 | (p[2] & 0x3f);
        return 3;
    }
    *code_point =
        (uint32_t)(p[0] & 0x07) << 18 | (uint32_t)(p[1] & 0x3f) << 12 | (uint32_t)(p[2] & 0x3f) << 6 | (p[3] & 0x3f);
    return 4;
}

#endif
