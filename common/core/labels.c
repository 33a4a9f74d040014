/* Two small parsers over the same words, and the match. */
#include "common/core/labels.h"

#include <string.h>

enum { MAX_NAME = 63, MAX_PREFIX = 253 };

/* ---- words ------------------------------------------------------------------------------------------------------ */

static bool is_alnum(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'); }
static bool is_word(char c) { return is_alnum(c) || c == '.' || c == '_' || c == '-'; }

static void skip_blanks(const char **at) {
    while (**at == ' ' || **at == '\t') (*at)++;
}

static bool take(const char **at, char c) {
    skip_blanks(at);
    if (**at != c) return false;
    (*at)++;
    return true;
}

/* A name of up to n_most characters, at *at. */
static size_t name_length(const char *at, size_t n_most) {
    size_t n = 0;
    while (is_word(at[n])) n++;
    return n > 0 && n <= n_most && is_alnum(at[0]) && is_alnum(at[n - 1]) ? n : 0;
}

static uint64_t hash_on(uint64_t hash, const char *bytes, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++) hash = (hash ^ (uint8_t)bytes[i]) * 0x100000001b3u; /* FNV-1a */
    return hash;
}

static bool take_key(const char **at, uint64_t *out) {
    skip_blanks(at);
    const char *begin = *at;
    size_t n = name_length(begin, MAX_PREFIX), n_name = 0;
    if (n == 0) return false;
    bool has_prefix = begin[n] == '/';
    if (has_prefix) n_name = name_length(begin + n + 1, MAX_NAME);
    if (has_prefix ? n_name == 0 : n > MAX_NAME) return false;
    *at += n + has_prefix + n_name;
    *out = hash_on(0xcbf29ce484222325u, begin, n + has_prefix + n_name);
    return true;
}

/* What follows the `=`, or stands in a list; *out is the hash of key and value. */
static bool take_value(const char **at, uint64_t key, uint64_t *out) {
    skip_blanks(at);
    size_t n = name_length(*at, MAX_NAME);
    if (n == 0 && is_word(**at)) return false;
    *out = hash_on(hash_on(key, "=", 1), *at, n);
    *at += n;
    return true;
}

static bool is_end(const char **at) {
    skip_blanks(at);
    return **at == 0;
}

static bt_status fail_at(bt_error *err, const char *what, const char *text, const char *at) {
    return bt_fail(err, BT_BAD_REQUEST, "%s \"%.128s\" is wrong at byte %zu", what, text, (size_t)(at - text));
}

/* ---- labels ----------------------------------------------------------------------------------------------------- */

static bool has_key(const bt_labels *labels, uint64_t key) {
    for (uint32_t i = 0; i < labels->n; i++)
        if (labels->at[i].key == key) return true;
    return false;
}

static bool has_label(const bt_labels *labels, uint64_t label) {
    for (uint32_t i = 0; i < labels->n; i++)
        if (labels->at[i].label == label) return true;
    return false;
}

bt_status bt_labels_parse(const char *text, bt_labels *out, bt_error *err) {
    bt_labels labels = {0};
    const char *at = text;
    if (strnlen(text, BT_CAP_LABELS) == BT_CAP_LABELS)
        return bt_fail(err, BT_BAD_REQUEST, "labels are longer than %d bytes", BT_CAP_LABELS - 1);
    for (bool is_first = true; !is_first || !is_end(&at); is_first = false) {
        uint64_t key, label;
        if (!take_key(&at, &key) || !take(&at, '=') || !take_value(&at, key, &label) || has_key(&labels, key))
            return fail_at(err, "the list of labels", text, at);
        if (labels.n == BT_MAX_LABELS)
            return bt_fail(err, BT_BAD_REQUEST, "there are more than %d labels", BT_MAX_LABELS);
        labels.at[labels.n].key = key;
        labels.at[labels.n++].label = label;
        if (is_end(&at)) break;
        if (!take(&at, ',')) return fail_at(err, "the list of labels", text, at);
    }
    *out = labels;
    return BT_OK;
}

/* ---- selectors -------------------------------------------------------------------------------------------------- */

static bool put_value(const char **at, bt_selector *out) {
    uint64_t label;
    if (out->n_labels == BT_MAX_SELECTOR_VALUES || !take_value(at, out->at[out->n].key, &label)) return false;
    out->labels[out->n_labels++] = label;
    out->at[out->n].n++;
    return true;
}

/* "(v1,v2)" */
static bool take_values(const char **at, bt_selector *out) {
    if (!take(at, '(')) return false;
    do {
        if (!put_value(at, out)) return false;
    } while (take(at, ','));
    return take(at, ')');
}

static bool take_word(const char **at, const char *word) {
    size_t n = strlen(word);
    if (strncmp(*at, word, n) != 0 || is_word((*at)[n])) return false;
    *at += n;
    return true;
}

static bool take_requirement(const char **at, bt_selector *out) {
    if (out->n == BT_MAX_REQUIREMENTS) return false;
    bool is_absence = take(at, '!'), is_sane = true;
    uint64_t key;
    if (!take_key(at, &key)) return false;
    out->at[out->n].key = key;
    out->at[out->n].first = out->n_labels;
    out->at[out->n].is_negated = is_absence;
    skip_blanks(at);
    if (is_absence || **at == ',' || **at == 0) {
        /* the key alone */
    } else if (take_word(at, "in")) {
        is_sane = take_values(at, out);
    } else if (take_word(at, "notin")) {
        out->at[out->n].is_negated = true;
        is_sane = take_values(at, out);
    } else {
        bool is_unequal = out->at[out->n].is_negated = take(at, '!');
        is_sane = take(at, '=');
        if (is_sane && !is_unequal && **at == '=') (*at)++;
        is_sane = is_sane && put_value(at, out);
    }
    out->n++;
    return is_sane;
}

bt_status bt_selector_parse(const char *text, bt_selector *out, bt_error *err) {
    bt_selector selector = {0};
    const char *at = text;
    if (strnlen(text, BT_MAX_SELECTOR + 1) > BT_MAX_SELECTOR)
        return bt_fail(err, BT_BAD_REQUEST, "the selector is longer than %d bytes", BT_MAX_SELECTOR);
    for (bool is_first = true; !is_first || !is_end(&at); is_first = false) {
        if (!take_requirement(&at, &selector)) return fail_at(err, "the selector", text, at);
        if (is_end(&at)) break;
        if (!take(&at, ',')) return fail_at(err, "the selector", text, at);
    }
    *out = selector;
    return BT_OK;
}

bool bt_selector_matches(const bt_selector *selector, const bt_labels *labels) {
    for (uint32_t i = 0; i < selector->n; i++) {
        bool is_there = selector->at[i].n == 0 && has_key(labels, selector->at[i].key);
        for (uint32_t v = 0; v < selector->at[i].n && !is_there; v++)
            is_there = has_label(labels, selector->labels[selector->at[i].first + v]);
        if (is_there == selector->at[i].is_negated) return false;
    }
    return true;
}
