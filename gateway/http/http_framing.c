#include "gateway/http/http_framing.h"

#include <string.h>
#include <strings.h>

typedef struct {
    const char *bytes;
    size_t n_bytes;
} text;

typedef struct {
    bool has_line, is_http10, has_length, has_coding, has_host;
} seen;

static bool is_blank(char c) { return c == ' ' || c == '\t'; }

static text trim(text value) {
    while (value.n_bytes > 0 && is_blank(value.bytes[0])) value = (text){value.bytes + 1, value.n_bytes - 1};
    while (value.n_bytes > 0 && is_blank(value.bytes[value.n_bytes - 1])) value.n_bytes--;
    return value;
}

static bool is_text(text value, const char *want) {
    return value.n_bytes == strlen(want) && strncasecmp(value.bytes, want, value.n_bytes) == 0;
}

static bool is_number(text value) {
    for (size_t i = 0; i < value.n_bytes; i++)
        if (value.bytes[i] < '0' || value.bytes[i] > '9') return false;
    return value.n_bytes > 0;
}

static const char *look_at_header(seen *s, text line) {
    if (is_blank(line.bytes[0])) return "a header is folded over two lines";
    const char *colon = memchr(line.bytes, ':', line.n_bytes);
    if (colon == NULL || colon == line.bytes) return "a header has no name";
    text name = {line.bytes, (size_t)(colon - line.bytes)};
    text value = trim((text){colon + 1, line.n_bytes - name.n_bytes - 1});
    if (is_blank(colon[-1])) return "a header's name ends in a blank";
    if (is_text(name, "content-length")) {
        if (s->has_length) return "two Content-Length headers";
        if (!is_number(value)) return "Content-Length is no number";
        s->has_length = true;
    } else if (is_text(name, "transfer-encoding")) {
        if (s->has_coding) return "two Transfer-Encoding headers";
        if (!is_text(value, "chunked") || s->is_http10) return "this Transfer-Encoding is not understood";
        s->has_coding = true;
    } else if (is_text(name, "host")) {
        if (s->has_host) return "two Host headers";
        s->has_host = true;
    }
    return NULL;
}

static const char *look_at_line(seen *s, text line) {
    if (memchr(line.bytes, '\r', line.n_bytes) != NULL || memchr(line.bytes, 0, line.n_bytes) != NULL)
        return "a CR or NUL within a line";
    if (s->has_line) return look_at_header(s, line);
    s->has_line = true;
    s->is_http10 = line.n_bytes > 9 && is_text((text){line.bytes + line.n_bytes - 9, 9}, " HTTP/1.0");
    return NULL;
}

const char *gw_http_framing_fault(const char *head, size_t n_bytes, bool *is_chunked) {
    seen s = {0};
    *is_chunked = false;
    for (const char *at = head, *end = head + n_bytes, *feed; at < end; at = feed + 1) {
        feed = memchr(at, '\n', (size_t)(end - at));
        if (feed == NULL) break;
        if (feed == at || feed[-1] != '\r') return "a line does not end in CR LF";
        text line = {at, (size_t)(feed - 1 - at)};
        if (line.n_bytes == 0 && !s.has_line) continue; /* empty lines in front of a request are allowed */
        if (line.n_bytes == 0) {
            if (s.has_length && s.has_coding) return "both Content-Length and Transfer-Encoding";
            *is_chunked = s.has_coding;
            return NULL;
        }
        const char *fault = look_at_line(&s, line);
        if (fault != NULL) return fault;
    }
    return "the headers have no end";
}
