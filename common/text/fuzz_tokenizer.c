/* Any bytes as text: encoding never fails and decodes to the text with its broken parts replaced; the stream and the
 * scanner agree with themselves. Runs from the repository root (nano-r1's tokenizer). */
#include <stdint.h>
#include <string.h>

#include "common/core/buf.h"
#include "common/core/status.h"
#include "common/text/detokenizer.h"
#include "common/text/json.h"
#include "common/text/reasoning.h"
#include "common/text/stop.h"
#include "common/text/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static const tok_tokenizer *tokenizer(void) {
    static tok_tokenizer *opened;
    if (opened == NULL) BT_ASSERT(tok_open("deploy/models/nano-r1", &opened, NULL) == BT_OK);
    return opened;
}

static void fuzz_streams(const char *text, size_t n_bytes) {
    static const char *const stops[] = {"ab", "aba", "</think>"};
    stop_matcher stop = {0};
    rsn_parser rsn;
    bt_buf out = {0}, reasoning = {0}, content = {0};
    BT_ASSERT(stop_init(&stop, stops, 2, false, NULL) == BT_OK);
    rsn_init(&rsn, NULL, n_bytes % 2 == 0);
    for (size_t at = 0; at < n_bytes; at += 3) {
        size_t n = n_bytes - at < 3 ? n_bytes - at : 3;
        stop_put(&stop, text + at, n, &out);
        rsn_put_text(&rsn, text + at, n, &reasoning, &content);
    }
    stop_finish(&stop, &out);
    rsn_finish(&rsn, &reasoning, &content);
    BT_ASSERT(reasoning.n_bytes + content.n_bytes <= n_bytes);
    BT_ASSERT(stop.matched >= 0 || (out.n_bytes == n_bytes && (n_bytes == 0 || memcmp(out.bytes, text, n_bytes) == 0)));
    stop_fini(&stop);
    bt_buf_fini(&out);
    bt_buf_fini(&reasoning);
    bt_buf_fini(&content);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    tok_ids ids = {0};
    bt_buf out = {0}, want = {0};
    det_stream det;
    cJSON *item = NULL;
    BT_ASSERT(tok_encode(tokenizer(), (const char *)data, n_bytes, TOK_PLAIN, &ids, NULL) == BT_OK);
    det_init(&det, tokenizer(), false);
    for (size_t i = 0; i < ids.n_ids; i++) det_put(&det, ids.ids[i], &out);
    det_finish(&det, &out);
    utf8_put_lossy(&want, data, n_bytes);
    BT_ASSERT(out.n_bytes == want.n_bytes && (out.n_bytes == 0 || memcmp(out.bytes, want.bytes, out.n_bytes) == 0));
    BT_ASSERT(tok_encode(tokenizer(), (const char *)data, n_bytes, 0, &ids, NULL) == BT_OK);
    if (txt_json_parse((const char *)data, n_bytes, &item, NULL) == BT_OK) cJSON_Delete(item);
    fuzz_streams((const char *)data, n_bytes);
    tok_ids_fini(&ids);
    bt_buf_fini(&out);
    bt_buf_fini(&want);
    return 0;
}
