/* The pre-tokenizer of DeepSeek-V3, R1 and V3.1 as one pass over the text. It stands for three Split stages, each
 * isolating its matches in the pieces of the one before:
 *   1  \p{N}{1,3}
 *   2  [\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+
 *   3  P1 [!-/:-@\[-`{-~][A-Za-z]+  |  P2 [^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+  |  P3  ?[\p{P}\p{S}]+[\r\n]*
 *      P4 \s*[\r\n]+  |  P5 \s+(?!\S)  |  P6 \s+
 * Stages 1 and 2 cut the text into segments of numbers, of CJK and of everything else; stage 3 then scans each
 * segment as if it were a whole text. No number matches stage 3, so a run of numbers is cut by threes and done.
 * pretok_test.c compares all of this with the regular expressions on random text. */
#include <stdbool.h>
#include <string.h>

#include "common/text/pretok.h"
#include "common/text/unicode.h"
#include "common/text/utf8.h"

enum { WORD = UNI_LETTER | UNI_MARK, SEGMENT = UNI_NUMBER | UNI_CJK };

typedef struct {
    const uint8_t *classes;
    const uint8_t *p, *end; /* end of the whole text */
    uint8_t segment;        /* the SEGMENT bits of the segment being scanned */
} v3_scan;

/* The class bits at p and the character's length; length 0: the segment ends here. */
static inline uint8_t class_at(const v3_scan *scan, const uint8_t *p, size_t *n_bytes) {
    *n_bytes = 0;
    if (p == scan->end) return 0;
    uint32_t c;
    size_t length = utf8_next(p, &c);
    uint8_t class = scan->classes[c];
    if ((class & SEGMENT) != scan->segment) return 0;
    *n_bytes = length;
    return class;
}

/* Past the run of characters that have one of the bits. */
static inline const uint8_t *skip_run(const v3_scan *scan, const uint8_t *p, uint8_t bits) {
    size_t n_bytes;
    while (class_at(scan, p, &n_bytes) & bits) p += n_bytes;
    return p;
}

static inline bool is_ascii_letter(uint8_t c) { return (uint8_t)((c | 0x20) - 'a') < 26; }

/* Past the run of ASCII letters, eight bytes at a time: a loop by bytes is mispredicted at the end of each word, and
 * the scanner took twice the time on English. Reads up to UTF8_SLACK_BYTES behind the end. */
static inline const uint8_t *skip_ascii_letters(const uint8_t *p, const uint8_t *end) {
    const uint64_t ones = 0x0101010101010101u, tops = 0x80 * ones;
    while (p < end) {
        uint64_t word;
        memcpy(&word, p, sizeof(word));
        uint64_t lower = (word | 0x20 * ones) & ~tops;
        uint64_t is_letter = (lower + (0x80 - 'a') * ones) & ~(lower + (0x7f - 'z') * ones) & ~word & tops;
        if (is_letter != tops) {
            p += (unsigned)__builtin_ctzll(is_letter ^ tops) / 8;
            break;
        }
        p += sizeof(word);
    }
    return p < end ? p : end;
}

/* P1 and P2 where they begin with ASCII: a word with the character in front of it. scan->p: no such word. */
static inline const uint8_t *match_ascii_word(const v3_scan *scan) {
    const uint8_t *p = scan->p;
    bool is_behind = !is_ascii_letter(*p); /* the word is behind this character */
    if (is_behind && (p + 1 == scan->end || !is_ascii_letter(p[1]) || *p == '\r' || *p == '\n')) return p;
    const uint8_t *end = skip_ascii_letters(p + 1, scan->end);
    bool is_p1 = is_behind && scan->classes[*p] & UNI_PUNCT;
    return is_p1 || end == scan->end || *end < 0x80 ? end : skip_run(scan, end, WORD);
}

/* P4, P5, P6 on the run of white space at p. A space that P2 or P3 would take was asked about before. */
static const uint8_t *match_space(const v3_scan *scan, const uint8_t *p) {
    const uint8_t *last = p, *after_newline = NULL;
    size_t n_bytes;
    while (1) {
        uint8_t class = class_at(scan, p, &n_bytes);
        if (!(class & UNI_SPACE)) break;
        if (class & UNI_NEWLINE) after_newline = p + n_bytes;
        last = p;
        p += n_bytes;
    }
    if (after_newline != NULL) return after_newline;
    /* n_bytes is 0 at the end of the segment, where (?!\S) lets the whole run go. */
    const uint8_t *begin = scan->p;
    return n_bytes == 0 || last == begin ? p : last;
}

/* The end of the match of stage 3 at scan->p, or scan->p when nothing matches. */
static const uint8_t *match_stage3(const v3_scan *scan, uint8_t class, size_t n_bytes) {
    const uint8_t *p = scan->p;
    if (*p < 0x80 && scan->segment == 0) { /* P1, and most of P2 */
        const uint8_t *end = match_ascii_word(scan);
        if (end != p) return end;
    }
    if (!(class & (UNI_NEWLINE | UNI_LETTER | UNI_PUNCT))) { /* P2 with its optional first character */
        const uint8_t *end = skip_run(scan, p + n_bytes, WORD);
        if (end != p + n_bytes) return end;
    }
    if (class & WORD) return skip_run(scan, p + n_bytes, WORD); /* P2 */
    const uint8_t *punct = *p == ' ' ? p + 1 : p;               /* P3 */
    const uint8_t *end = skip_run(scan, punct, UNI_PUNCT);
    if (end != punct) return skip_run(scan, end, UNI_NEWLINE);
    return class & UNI_SPACE ? match_space(scan, p) : p;
}

static void scan_numbers(v3_scan *scan, ptk_batch *batch) {
    size_t n_bytes;
    for (class_at(scan, scan->p, &n_bytes); n_bytes > 0; class_at(scan, scan->p, &n_bytes)) {
        const uint8_t *begin = scan->p;
        for (int i = 0; i < 3 && n_bytes > 0; i++) {
            scan->p += n_bytes;
            class_at(scan, scan->p, &n_bytes);
        }
        ptk_batch_put(batch, begin, (size_t)(scan->p - begin));
    }
}

static void scan_segment(v3_scan *scan, ptk_batch *batch) {
    const uint8_t *gap = scan->p; /* what no alternative matches gathers into one piece */
    size_t n_bytes;
    for (;;) {
        uint8_t class = class_at(scan, scan->p, &n_bytes);
        if (n_bytes == 0) break;
        const uint8_t *end = match_stage3(scan, class, n_bytes);
        if (end == scan->p) {
            scan->p += n_bytes;
            continue;
        }
        if (gap != scan->p) ptk_batch_put(batch, gap, (size_t)(scan->p - gap));
        ptk_batch_put(batch, scan->p, (size_t)(end - scan->p));
        gap = scan->p = end;
    }
    if (gap != scan->p) ptk_batch_put(batch, gap, (size_t)(scan->p - gap));
}

void ptk_v3_split(const uint8_t *text, size_t n_bytes, ptk_batch *batch) {
    v3_scan scan = {.classes = unicode_classes(), .p = text, .end = text + n_bytes};
    while (scan.p < scan.end) {
        uint32_t c;
        utf8_next(scan.p, &c);
        scan.segment = scan.classes[c] & SEGMENT;
        if (scan.segment & UNI_NUMBER) {
            scan_numbers(&scan, batch);
        } else {
            scan_segment(&scan, batch);
        }
    }
}

/* ---- chunks ------------------------------------------------------------------------------------------------------ */

enum { CHUNK_MIN = 768, CHUNK_MAX = 4096, CHUNK_MEAN_BITS = 6 };

/* Between a letter and a space with a letter behind it one piece ends and the next begins, whatever is around: no
 * alternative goes on from a letter to a space, none begins with more than one space and a word, and all three
 * characters are of one segment. */
bool ptk_v3_is_seam(const uint8_t *space) {
    return *space == ' ' && is_ascii_letter(space[-1]) && is_ascii_letter(space[1]);
}

/* One of many places, by the bytes before it. */
static bool is_chosen(const uint8_t *at) {
    uint64_t word;
    memcpy(&word, at - sizeof(word), sizeof(word));
    return word * 0x9e3779b97f4a7c15u >> (64 - CHUNK_MEAN_BITS) == 0;
}

/* Eight bytes at a time: spaces are every sixth byte of English. What is rarely true is asked first. */
size_t ptk_v3_chunk(const uint8_t *text, size_t n_bytes) {
    const uint64_t ones = 0x0101010101010101u, tops = 0x80 * ones;
    for (size_t first = CHUNK_MIN; first + 1 < n_bytes; first += sizeof(uint64_t)) {
        uint64_t word;
        memcpy(&word, text + first, sizeof(word));
        word ^= ' ' * ones; /* a space is zero; a byte behind one may be taken for one */
        for (uint64_t spaces = (word - ones) & ~word & tops; spaces != 0; spaces &= spaces - 1) {
            size_t at = first + (unsigned)__builtin_ctzll(spaces) / 8;
            if (at + 1 >= n_bytes) return n_bytes;
            if ((at >= CHUNK_MAX || is_chosen(text + at)) && ptk_v3_is_seam(text + at)) return at;
        }
    }
    return n_bytes;
}
