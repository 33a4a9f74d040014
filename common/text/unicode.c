/* Class bits of all code points, taken from PCRE2 at start instead of from a table in the source: the hand-written
 * scanners and the regular expressions then agree by construction, and the Unicode version has one home. Case mapping
 * comes from the C library's C.UTF-8 locale. Knows nothing about byte sequences; that is utf8.c. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "common/text/unicode.h"

#include <locale.h>
#include <pcre2.h>
#include <pthread.h>
#include <stdlib.h>
#include <wctype.h>

#include "common/core/status.h"
#include "common/text/utf8.h"

static const struct {
    const char *pattern; /* runs of the class */
    uint8_t bit;
} classes[] = {
    {"\\p{L}+", UNI_LETTER},
    {"\\p{M}+", UNI_MARK},
    {"\\p{N}+", UNI_NUMBER},
    {"[\\p{P}\\p{S}]+", UNI_PUNCT},
    {"[\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}]+", UNI_SPACE},
    {"[\\r\\n]+", UNI_NEWLINE},
    {"[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{30ff}]+", UNI_CJK},
    {"(?:(?! )[\\p{C}\\p{Z}])+", UNI_UNPRINTABLE},
};

static uint8_t table[UNI_N_CODE_POINTS];
static locale_t case_locale;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void mark_class(const bt_buf *all, const char *pattern, uint8_t bit) {
    int error;
    PCRE2_SIZE error_at;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                     PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK, &error, &error_at, NULL);
    BT_ASSERT(code != NULL);
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* without it the same result, later */
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(code, NULL);
    for (size_t at = 0; pcre2_match(code, all->bytes, all->n_bytes, at, PCRE2_NO_UTF_CHECK, match, NULL) > 0;) {
        const PCRE2_SIZE *span = pcre2_get_ovector_pointer(match);
        for (at = span[0]; at < span[1];) {
            uint32_t code_point;
            at += utf8_next(all->bytes + at, &code_point);
            table[code_point] |= bit;
        }
    }
    pcre2_match_data_free(match);
    pcre2_code_free(code);
}

static void build(void) {
    bt_buf all = {0};
    bt_buf_reserve(&all, (size_t)UNI_N_CODE_POINTS * UTF8_MAX_BYTES);
    for (uint32_t c = 0; c < UNI_N_CODE_POINTS; c++) {
        if (c < 0xd800 || c > 0xdfff) utf8_put_char(&all, c);
    }
    for (size_t i = 0; i < sizeof(classes) / sizeof(classes[0]); i++) {
        mark_class(&all, classes[i].pattern, classes[i].bit);
    }
    bt_buf_fini(&all);
    case_locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0); /* none: only ASCII changes its case */
}

const uint8_t *unicode_classes(void) {
    pthread_once(&once, build);
    return table;
}

uint32_t unicode_to_upper(uint32_t code_point) {
    if (code_point < 0x80) return code_point >= 'a' && code_point <= 'z' ? code_point - 32 : code_point;
    pthread_once(&once, build);
    return case_locale == (locale_t)0 ? code_point : (uint32_t)towupper_l((wint_t)code_point, case_locale);
}

uint32_t unicode_to_lower(uint32_t code_point) {
    if (code_point < 0x80) return code_point >= 'A' && code_point <= 'Z' ? code_point + 32 : code_point;
    pthread_once(&once, build);
    return case_locale == (locale_t)0 ? code_point : (uint32_t)towlower_l((wint_t)code_point, case_locale);
}
