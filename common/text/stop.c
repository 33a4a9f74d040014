/* Owns one Knuth-Morris-Pratt automaton per stop string, so a byte costs a few steps however the strings repeat
 * themselves. What is held back is as long as the longest prefix that any automaton is in. */
#include "common/text/stop.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"

struct stop_string {
    char *text;      /* owned */
    uint32_t *fails; /* owned; fails[i]: length of the longest proper border of text[0..i] */
    size_t n_bytes;
    size_t n_matched; /* of text, at the end of what was put */
};

static void build(stop_string *string, const char *text) {
    string->n_bytes = strlen(text);
    string->text = bt_strdup(text);
    string->fails = bt_calloc(string->n_bytes, sizeof(*string->fails));
    for (size_t i = 1, n = 0; i < string->n_bytes; i++) {
        while (n > 0 && text[i] != text[n]) n = string->fails[n - 1];
        n += text[i] == text[n];
        string->fails[i] = (uint32_t)n;
    }
}

bt_status stop_init(stop_matcher *stop, const char *const *strings, size_t n_strings, bool include_stop_str,
                    bt_error *err) {
    if (n_strings > STOP_MAX_STRINGS) {
        return bt_fail(err, BT_BAD_REQUEST, "stop has %zu strings, limit %d", n_strings, (int)STOP_MAX_STRINGS);
    }
    size_t n_bytes = 0;
    for (size_t i = 0; i < n_strings; i++) {
        if (strings[i][0] == 0) return bt_fail(err, BT_BAD_REQUEST, "stop cannot contain an empty string");
        n_bytes += strlen(strings[i]);
    }
    if (n_bytes > STOP_MAX_BYTES) {
        return bt_fail(err, BT_BAD_REQUEST, "stop has %zu bytes, limit %d", n_bytes, (int)STOP_MAX_BYTES);
    }
    *stop = (stop_matcher){.n_strings = n_strings, .includes_stop = include_stop_str, .matched = -1};
    stop->strings = bt_calloc(n_strings, sizeof(*stop->strings));
    for (size_t i = 0; i < n_strings; i++) build(&stop->strings[i], strings[i]);
    return BT_OK;
}

void stop_fini(stop_matcher *stop) {
    for (size_t i = 0; i < stop->n_strings; i++) {
        free(stop->strings[i].text);
        free(stop->strings[i].fails);
    }
    free(stop->strings);
    bt_buf_fini(&stop->held);
    *stop = (stop_matcher){.matched = -1};
}

/* Moves one automaton by a byte; true: the string is complete. */
static bool advance(stop_string *string, char c) {
    while (string->n_matched > 0 && string->text[string->n_matched] != c) {
        string->n_matched = string->fails[string->n_matched - 1];
    }
    string->n_matched += string->text[string->n_matched] == c;
    return string->n_matched == string->n_bytes;
}

bool stop_put(stop_matcher *stop, const char *text, size_t n_bytes, bt_buf *out) {
    if (stop->matched >= 0) return true;
    bt_buf *held = &stop->held;
    size_t n_held = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        n_held = 0;
        for (size_t s = 0; s < stop->n_strings; s++) {
            stop_string *string = &stop->strings[s];
            bool is_longer = stop->matched < 0 || string->n_bytes > stop->strings[stop->matched].n_bytes;
            if (advance(string, text[i]) && is_longer) stop->matched = (int)s;
            if (string->n_matched > n_held) n_held = string->n_matched;
        }
        if (stop->matched < 0) continue;
        bt_buf_put(held, text, i + 1);
        if (!stop->includes_stop) held->n_bytes -= stop->strings[stop->matched].n_bytes;
        bt_buf_put(out, held->bytes, held->n_bytes);
        bt_buf_clear(held);
        return true;
    }
    if (n_bytes == 0) return false;
    bt_buf_put(held, text, n_bytes);
    bt_buf_put(out, held->bytes, held->n_bytes - n_held);
    bt_buf_consume(held, held->n_bytes - n_held);
    return false;
}

void stop_finish(stop_matcher *stop, bt_buf *out) {
    bt_buf_put(out, stop->held.bytes, stop->held.n_bytes);
    bt_buf_clear(&stop->held);
}
