/* Owns the state of one stream. With ids a marker is cut off the text of its own token; without, the text is scanned
 * for the one marker that matters in the present state, and at most its length is held back. */
#include "common/text/reasoning.h"

#include <string.h>

static const char SPACE[] = " \t\r\n";

void rsn_init(rsn_parser *rsn, const tok_tokenizer *tokenizer, bool prompt_opened_think) {
    *rsn = (rsn_parser){.state = prompt_opened_think ? RSN_INSIDE : RSN_OUTSIDE};
    rsn->has_ids = tokenizer != NULL && tok_find(tokenizer, RSN_OPEN, &rsn->open_id) &&
                   tok_find(tokenizer, RSN_CLOSE, &rsn->close_id);
}

bool rsn_prompt_opens_think(const tok_tokenizer *tokenizer, const uint32_t *ids, size_t n_ids) {
    uint32_t open_id, close_id;
    if (!tok_find(tokenizer, RSN_OPEN, &open_id) || !tok_find(tokenizer, RSN_CLOSE, &close_id)) return false;
    for (size_t i = n_ids; i-- > 0;) {
        if (ids[i] == open_id || ids[i] == close_id) return ids[i] == open_id;
    }
    return false;
}

/* Text of the present state. White space before any answer waits: a <think> behind it would drop it. */
static void emit(rsn_parser *rsn, const char *text, size_t n_bytes, bt_buf *reasoning, bt_buf *content) {
    if (n_bytes == 0) return;
    if (rsn->state == RSN_INSIDE) {
        bt_buf_put(reasoning, text, n_bytes);
        return;
    }
    if (rsn->state == RSN_OUTSIDE && !rsn->has_content) {
        size_t n_space = 0;
        while (n_space < n_bytes && text[n_space] != 0 && strchr(SPACE, text[n_space]) != NULL) n_space++;
        if (n_space == n_bytes && rsn->n_held + n_bytes <= sizeof(rsn->held)) {
            memcpy(rsn->held + rsn->n_held, text, n_bytes);
            rsn->n_held += n_bytes;
            return;
        }
        bt_buf_put(content, rsn->held, rsn->n_held);
        rsn->n_held = 0;
        rsn->has_content = true;
    }
    bt_buf_put(content, text, n_bytes);
}

static void pass_marker(rsn_parser *rsn, bool is_open) {
    rsn->state = is_open ? RSN_INSIDE : RSN_DONE;
    rsn->n_held = 0;
}

static bool is_marker(const rsn_parser *rsn, uint32_t id, bool *is_open) {
    *is_open = id == rsn->open_id;
    if (rsn->state == RSN_OUTSIDE) return *is_open;
    return rsn->state == RSN_INSIDE && (*is_open || id == rsn->close_id);
}

/* The length of the longest suffix of text that is a proper prefix of the marker. */
static size_t partial_marker(const char *text, size_t n_bytes, const char *marker) {
    size_t n = strlen(marker) - 1;
    if (n > n_bytes) n = n_bytes;
    while (n > 0 && memcmp(text + n_bytes - n, marker, n) != 0) n--;
    return n;
}

/* Text mode. What may be the start of a marker stays in held; OUTSIDE, white space stays in front of it. */
static void put_scanned(rsn_parser *rsn, const char *text, size_t n_bytes, bt_buf *reasoning, bt_buf *content) {
    bt_buf joined = {0};
    bt_buf_put(&joined, rsn->held, rsn->n_held);
    bt_buf_put(&joined, text, n_bytes);
    rsn->n_held = 0;
    const char *p = bt_buf_text(&joined);
    size_t n_left = joined.n_bytes;
    while (rsn->state != RSN_DONE) {
        const char *close = rsn->state == RSN_INSIDE ? memmem(p, n_left, RSN_CLOSE, strlen(RSN_CLOSE)) : NULL;
        const char *open = memmem(p, n_left, RSN_OPEN, strlen(RSN_OPEN));
        bool is_open = open != NULL && (close == NULL || open < close);
        const char *marker = is_open ? open : close;
        if (marker == NULL) break;
        emit(rsn, p, (size_t)(marker - p), reasoning, content);
        size_t n_passed = (size_t)(marker - p) + strlen(is_open ? RSN_OPEN : RSN_CLOSE);
        pass_marker(rsn, is_open);
        p += n_passed;
        n_left -= n_passed;
    }
    size_t n_keep = rsn->state == RSN_DONE ? 0 : partial_marker(p, n_left, RSN_OPEN);
    size_t n_close = rsn->state == RSN_INSIDE ? partial_marker(p, n_left, RSN_CLOSE) : 0;
    if (n_close > n_keep) n_keep = n_close;
    emit(rsn, p, n_left - n_keep, reasoning, content);
    if (rsn->n_held + n_keep > sizeof(rsn->held)) { /* much white space: no marker is expected behind so much */
        bt_buf_put(content, rsn->held, rsn->n_held);
        rsn->n_held = 0;
    }
    memcpy(rsn->held + rsn->n_held, p + n_left - n_keep, n_keep);
    rsn->n_held += n_keep;
    bt_buf_fini(&joined);
}

void rsn_put(rsn_parser *rsn, uint32_t id, const char *text, size_t n_bytes, bt_buf *reasoning, bt_buf *content) {
    bool is_open;
    if (rsn->state == RSN_INSIDE) rsn->n_reasoning_tokens++;
    if (!rsn->has_ids || !is_marker(rsn, id, &is_open)) {
        rsn_put_text(rsn, text, n_bytes, reasoning, content);
        return;
    }
    const char *marker = is_open ? RSN_OPEN : RSN_CLOSE;
    size_t n_marker = strlen(marker);
    bool ends_with_it = n_bytes >= n_marker && memcmp(text + n_bytes - n_marker, marker, n_marker) == 0;
    emit(rsn, text, ends_with_it ? n_bytes - n_marker : n_bytes, reasoning, content);
    pass_marker(rsn, is_open);
}

void rsn_put_text(rsn_parser *rsn, const char *text, size_t n_bytes, bt_buf *reasoning, bt_buf *content) {
    if (rsn->has_ids || rsn->state == RSN_DONE) {
        emit(rsn, text, n_bytes, reasoning, content);
    } else {
        put_scanned(rsn, text, n_bytes, reasoning, content);
    }
}

void rsn_finish(rsn_parser *rsn, bt_buf *reasoning, bt_buf *content) {
    bt_buf_put(rsn->state == RSN_INSIDE ? reasoning : content, rsn->held, rsn->n_held);
    rsn->n_held = 0;
}
