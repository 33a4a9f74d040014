/* libFuzzer: any bytes as a request's head. What is taken has one reading: every line up to the empty one ends in CR
 * LF, and a body's length is said at most once. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/core/status.h"
#include "gateway/http/http_framing.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static bool begins(const char *line, size_t n_bytes, const char *name) {
    return n_bytes >= strlen(name) && strncasecmp(line, name, strlen(name)) == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    char *head = malloc(n_bytes + 1); /* a sanitizer sees a byte too far */
    memcpy(head, data, n_bytes);
    bool is_chunked;
    const char *fault = gw_http_framing_fault(head, n_bytes, &is_chunked);
    int n_lengths = 0;
    bool has_line = false;
    for (const char *at = head; fault == NULL;) {
        const char *feed = memchr(at, '\n', (size_t)(head + n_bytes - at));
        BT_ASSERT(feed != NULL && feed > at && feed[-1] == '\r');
        size_t n_line = (size_t)(feed - 1 - at);
        if (n_line == 0 && has_line) break;
        if (has_line) n_lengths += begins(at, n_line, "content-length:") + begins(at, n_line, "transfer-encoding:");
        has_line |= n_line > 0;
        at = feed + 1;
    }
    BT_ASSERT(n_lengths <= 1 && (!is_chunked || n_lengths == 1));
    free(head);
    return 0;
}
