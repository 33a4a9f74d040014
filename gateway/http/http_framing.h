/* Where a request ends, if there is no doubt. A request that two readers could cut differently (a proxy in front of us,
 * and us) would smuggle another one through: it is refused, whatever h2o makes of it. Knows no h2o. */
#ifndef BATON_GATEWAY_HTTP_HTTP_FRAMING_H
#define BATON_GATEWAY_HTTP_HTTP_FRAMING_H

#include <stdbool.h>
#include <stddef.h>

/* `head` is a request line and its headers as they came, with the empty line at their end; what follows is not looked
 * at. Returns what is wrong with it, NULL: nothing. Wrong are lines that do not end in CR LF, CR and NUL within a line,
 * folded headers, blanks before a colon, two Content-Length, Transfer-Encoding or Host headers, both of the first two,
 * a length that is no number, a coding other than chunked or in HTTP/1.0. *is_chunked: nothing is wrong, and the body
 * comes in chunks. */
const char *gw_http_framing_fault(const char *head, size_t n_bytes, bool *is_chunked);

#endif
