/* Labels that tell workers apart, "zone=a,gpu=h100", and selectors over them, both as Kubernetes writes them
 * (apimachinery, pkg/labels; without its `>` and `<`). Each is parsed once, into hashes, so that a match only compares
 * numbers; texts with equal 64-bit hashes count as equal.
 *
 * A selector is a list of requirements with commas between, all of which must hold; none: everything matches.
 *
 *     key=value   key==value   key in (v1,v2)    the label is there, with that value or one of those
 *     key!=value               key notin (v1,v2) it is not there, or it has another value
 *     key                      !key              it is there; it is not
 *
 * A key is a name of 1 to 63 characters A-Z a-z 0-9 . _ - that begins and ends with a letter or digit, and may have a
 * prefix: example.com/gpu. A value is such a name, or empty. Blanks are allowed around all of them. */
#ifndef BATON_COMMON_CORE_LABELS_H
#define BATON_COMMON_CORE_LABELS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/core/status.h"

enum {
    BT_MAX_LABELS = 16,
    BT_CAP_LABELS = 512,        /* bytes of their text, the NUL included */
    BT_MAX_SELECTOR = 1024,     /* bytes of its text */
    BT_MAX_REQUIREMENTS = 16,   /* of a selector */
    BT_MAX_SELECTOR_VALUES = 64 /* of all its requirements together */
};

typedef struct {
    uint32_t n;
    struct {
        uint64_t key, label; /* hashes of the key, and of key and value */
    } at[BT_MAX_LABELS];
} bt_labels;

typedef struct {
    uint32_t n, n_labels;
    struct {
        uint64_t key;
        uint32_t first, n; /* labels[first..first + n): one of them must be there; n is 0: any with that key */
        bool is_negated;
    } at[BT_MAX_REQUIREMENTS];
    uint64_t labels[BT_MAX_SELECTOR_VALUES];
} bt_selector;

/* BT_BAD_REQUEST: not labels, a key twice, or too many; the sentence names the place. "" is none. */
bt_status bt_labels_parse(const char *text, bt_labels *out, bt_error *err);

/* BT_BAD_REQUEST: not a selector, or too much of one; the sentence names the place. */
bt_status bt_selector_parse(const char *text, bt_selector *out, bt_error *err);

bool bt_selector_matches(const bt_selector *selector, const bt_labels *labels);

#endif
