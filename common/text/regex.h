/* Regular expressions as Hugging Face tokenizers read them (Oniguruma, Ruby syntax, UTF-8), run by PCRE2.
 *
 * A pattern is translated first where the two differ: \s and \S (White_Space; PCRE2 adds U+180E), \h (a hex digit),
 * \w, \uHHHH, class union and intersection ([a[b]&&[^c]]), {n,m}+ (not possessive), \p{Script} (not extensions),
 * \p{Long_Name}, (?m) (dot matches newline), ^ and $ (always at lines). */
#ifndef BATON_COMMON_TEXT_REGEX_H
#define BATON_COMMON_TEXT_REGEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/core/buf.h"
#include "common/core/status.h"

typedef struct rgx_pattern rgx_pattern; /* immutable, any thread */
typedef struct rgx_scratch rgx_scratch; /* what one thread needs to match */

/* `source`: valid UTF-8. BT_BAD_REQUEST: not a pattern, or one that PCRE2 cannot express; the sentence says where. */
bt_status rgx_open(const char *source, rgx_pattern **out, bt_error *err);
void rgx_close(rgx_pattern *pattern);

rgx_scratch *rgx_scratch_open(void);
void rgx_scratch_close(rgx_scratch *scratch);

/* The first match at or after `start`. `text` is valid UTF-8 and a world of its own: its ends count as ends of text.
 * BT_OK: found, *begin and *end are written. BT_CANCELED: no match. BT_BAD_REQUEST: the pattern needs more work on
 * this text than the limits allow (possible only with patterns that backtrack exponentially). */
bt_status rgx_find(const rgx_pattern *pattern, rgx_scratch *scratch, const uint8_t *text, size_t n_bytes, size_t start,
                   size_t *begin, size_t *end);

/* The translation alone, for tests: appends the PCRE2 pattern. */
bt_status rgx_translate(const char *source, bt_buf *out, bt_error *err);

#endif
