/* Heads that two readers could read differently, one rule each. */
#include <string.h>

#include "common/core/test.h"
#include "gateway/http/http_framing.h"

#define LINE "POST /v1/completions HTTP/1.1\r\n"

typedef struct {
    const char *head;
    size_t n_bytes;
    const char *fault; /* a part of what is said; NULL: none */
    bool is_chunked;
    const char *why;
} row;

#define ROW(head, fault, is_chunked, why)                                                                              \
    { head, sizeof head - 1, fault, is_chunked, why }

static const row rows[] = {
    ROW(LINE "Host: x\r\nContent-Length: 5\r\n\r\nhello", NULL, false, "a length"),
    ROW(LINE "host: x\r\ntransfer-encoding:\tChunked \r\n\r\n5\r\n", NULL, true, "chunks"),
    ROW("\r\nGET / HTTP/1.0\r\n\r\n", NULL, false, "an empty line in front, no header at all"),
    ROW(LINE "X: a:b\r\nY:\r\n\r\n", NULL, false, "a colon in a value, an empty value"),
    ROW(LINE "X: \x80\xff\tz\r\n\r\n", NULL, false, "bytes beyond ASCII and tabs are a value's own business"),
    ROW(LINE "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "both", false, "the classic"),
    ROW(LINE "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", "both", false, "the other way round"),
    ROW(LINE "Content-Length: 5\r\nContent-Length: 6\r\n\r\n", "two Content-Length", false, "which one?"),
    ROW(LINE "Content-Length: 5\r\ncontent-length: 5\r\n\r\n", "two Content-Length", false, "even when they agree"),
    ROW(LINE "Content-Length: 5, 5\r\n\r\n", "no number", false, "a list"),
    ROW(LINE "Content-Length: +5\r\n\r\n", "no number", false, "a sign"),
    ROW(LINE "Content-Length: 0x5\r\n\r\n", "no number", false, "hexadecimal"),
    ROW(LINE "Content-Length:\r\n\r\n", "no number", false, "nothing"),
    ROW(LINE "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n", "two Transfer", false, "the last?"),
    ROW(LINE "Transfer-Encoding: gzip, chunked\r\n\r\n", "not understood", false, "a list of codings"),
    ROW(LINE "Transfer-Encoding: xchunked\r\n\r\n", "not understood", false, "nearly"),
    ROW(LINE "Transfer-Encoding: chunked\x0b\r\n\r\n", "not understood", false, "a vertical tab is no blank"),
    ROW("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "not understood", false, "1.0 knows no chunks"),
    ROW(LINE "Transfer-Encoding : chunked\r\n\r\n", "ends in a blank", false, "a blank before the colon"),
    ROW(LINE "Host: x\r\nHost: y\r\n\r\n", "two Host", false, "whose request is it?"),
    ROW(LINE "X: a\r\n Content-Length: 5\r\n\r\n", "folded", false, "a header in a header's second line"),
    ROW(LINE "Transfer-Encoding:\r\n\tchunked\r\n\r\n", "not understood", false, "a value in the second line"),
    ROW(LINE " X: a\r\n\r\n", "folded", false, "nothing to fold"),
    ROW(LINE "X\r\n\r\n", "no name", false, "no colon"),
    ROW(LINE ": x\r\n\r\n", "no name", false, "nothing before it"),
    ROW(LINE "X: a\nContent-Length: 5\r\n\r\n", "CR LF", false, "LF alone"),
    ROW(LINE "X: a\r\n\n", "CR LF", false, "LF alone at the end"),
    ROW("\nGET / HTTP/1.1\r\n\r\n", "CR LF", false, "LF alone in front"),
    ROW(LINE "X: a\rContent-Length: 5\r\n\r\n", "CR or NUL", false, "CR alone"),
    ROW(LINE "X: a\r\r\n\r\n", "CR or NUL", false, "two CR"),
    ROW(LINE "X: a\0b\r\n\r\n", "CR or NUL", false, "NUL"),
    ROW("GET /\0 HTTP/1.1\r\n\r\n", "CR or NUL", false, "NUL in the first line"),
    ROW(LINE "X: a\r\n", "no end", false, "cut off"),
    ROW("", "no end", false, "nothing"),
};

int main(void) {
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const row *r = &rows[i];
        char *exact = malloc(r->n_bytes + 1); /* a sanitizer sees a byte too far */
        memcpy(exact, r->head, r->n_bytes);
        bool is_chunked = !r->is_chunked;
        const char *fault = gw_http_framing_fault(exact, r->n_bytes, &is_chunked);
        if (r->fault == NULL) {
            CHECK(fault == NULL, "%s: %s", r->why, fault);
        } else {
            CHECK(fault != NULL && strstr(fault, r->fault) != NULL, "%s: %s", r->why, fault == NULL ? "taken" : fault);
        }
        CHECK(is_chunked == r->is_chunked, "%s", r->why);
        free(exact);
    }
    TEST_END();
}
