/* What a character is, for scanners and string methods: one byte of class bits per code point, and simple case
 * mapping. */
#ifndef BATON_COMMON_TEXT_UNICODE_H
#define BATON_COMMON_TEXT_UNICODE_H

#include <stdint.h>

enum {
    UNI_LETTER = 1,        /* \p{L} */
    UNI_MARK = 2,          /* \p{M} */
    UNI_NUMBER = 4,        /* \p{N} */
    UNI_PUNCT = 8,         /* \p{P} or \p{S} */
    UNI_SPACE = 16,        /* White_Space: Oniguruma's \s */
    UNI_NEWLINE = 32,      /* CR or LF */
    UNI_CJK = 64,          /* [\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF], the second regex of DeepSeek-V3 */
    UNI_UNPRINTABLE = 128, /* \p{C} or \p{Z} but for U+0020: what Python's repr() escapes */
    UNI_N_CODE_POINTS = 0x110000,
};

/* [UNI_N_CODE_POINTS] class bits; made at the first call (some ten milliseconds), any thread, never freed. */
const uint8_t *unicode_classes(void);

uint32_t unicode_to_upper(uint32_t code_point); /* one to one; U+00DF stays */
uint32_t unicode_to_lower(uint32_t code_point);

#endif
