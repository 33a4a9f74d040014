/* Owns at most three bytes: the start of a character that a later token may finish. Which bytes a token has is the
 * tokenizer's business. */
#include "common/text/detokenizer.h"

#include <string.h>

#include "common/text/utf8.h"

void det_init(det_stream *det, const tok_tokenizer *tokenizer, bool skip_special) {
    *det = (det_stream){.tokenizer = tokenizer, .skips_special = skip_special};
}

/* Appends what is decided of `bytes` and keeps the rest. */
static void put_bytes(det_stream *det, const uint8_t *bytes, size_t n_bytes, bt_buf *out) {
    size_t at = n_bytes; /* where an unfinished last character begins */
    for (size_t back = 1; back <= 3 && back <= n_bytes; back++) {
        if ((bytes[n_bytes - back] & 0xc0) == 0x80) continue;
        if (utf8_look(bytes + n_bytes - back, back).kind == UTF8_PARTIAL) at = n_bytes - back;
        break;
    }
    if (at < n_bytes && utf8_look(bytes + at, n_bytes - at).n_bytes < n_bytes - at) at = n_bytes; /* broken within */
    utf8_put_lossy(out, bytes, at);
    det->n_pending = (uint8_t)(n_bytes - at);
    memcpy(det->pending, bytes + at, det->n_pending);
}

void det_put(det_stream *det, uint32_t id, bt_buf *out) {
    const uint8_t *bytes;
    size_t n_bytes;
    tok_token_bytes(det->tokenizer, id, &bytes, &n_bytes);
    if (n_bytes == 0 || (det->skips_special && tok_is_special(det->tokenizer, id))) return;
    if (det->n_pending == 0) {
        put_bytes(det, bytes, n_bytes, out);
        return;
    }
    bt_buf joined = {0};
    bt_buf_put(&joined, det->pending, det->n_pending);
    bt_buf_put(&joined, bytes, n_bytes);
    put_bytes(det, joined.bytes, joined.n_bytes, out);
    bt_buf_fini(&joined);
}

void det_finish(det_stream *det, bt_buf *out) {
    utf8_put_lossy(out, det->pending, det->n_pending);
    det->n_pending = 0;
}
