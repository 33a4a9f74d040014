/* Any text as what a model says: whole and in pieces it gives the same content and calls, and no more than was said.
 * The first byte picks format and limit, the second the pieces. */
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/text/tool_calls.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void run(tcl_parser *parser, tcl_format format, uint32_t max_calls, const uint8_t *text, size_t n_bytes,
                size_t n_piece, bt_buf *content) {
    tcl_init(parser, format, "id", max_calls);
    for (size_t at = 0; at < n_bytes; at += n_piece) {
        size_t n = n_bytes - at < n_piece ? n_bytes - at : n_piece;
        char *copy = malloc(n); /* exactly as long: reading past it is found */
        memcpy(copy, text + at, n);
        tcl_put(parser, copy, n, content);
        free(copy);
    }
    tcl_finish(parser, content);
}

static bool is_equal(const bt_buf *a, const bt_buf *b) {
    return a->n_bytes == b->n_bytes && (a->n_bytes == 0 || memcmp(a->bytes, b->bytes, a->n_bytes) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    if (n_bytes < 3) return 0;
    tcl_format format = (tcl_format)(TCL_DEEPSEEK_V3 + data[0] % 3);
    uint32_t max_calls = data[0] & 0x80 ? 1 : UINT32_MAX;
    size_t n_text = n_bytes - 2, n_said = 0;
    tcl_parser whole, pieces;
    bt_buf content = {0}, content_of_pieces = {0};
    run(&whole, format, max_calls, data + 2, n_text, n_text, &content);
    run(&pieces, format, max_calls, data + 2, n_text, 1 + data[1] % 32, &content_of_pieces);
    BT_ASSERT(is_equal(&content, &content_of_pieces) && whole.n_calls == pieces.n_calls && whole.n_calls <= max_calls);
    for (uint32_t i = 0; i < whole.n_calls; i++) {
        const tcl_call *call = &whole.calls[i], *same = &pieces.calls[i];
        BT_ASSERT(strcmp(call->name, same->name) == 0 && strcmp(call->id, same->id) == 0 && call->name[0] != 0);
        BT_ASSERT(is_equal(&call->arguments, &same->arguments));
        n_said += strlen(call->name) + call->arguments.n_bytes;
    }
    BT_ASSERT(content.n_bytes + n_said <= n_text);
    tcl_fini(&whole);
    tcl_fini(&pieces);
    bt_buf_fini(&content);
    bt_buf_fini(&content_of_pieces);
    return 0;
}
