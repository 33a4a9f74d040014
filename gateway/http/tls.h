/* TLS of one loop: a certificate and its key, from files that may be replaced while we run. Knows OpenSSL and no h2o.
 *
 * TLS 1.2 and 1.3 with forward secrecy only; no renegotiation, no compression, no resumption: clients of this API keep
 * their connections, and a resumption's keys would have to be shared by loops and gateways, and changed. ALPN:
 * http/1.1, and h2 before it where HTTP/2 is on. */
#ifndef BATON_GATEWAY_HTTP_TLS_H
#define BATON_GATEWAY_HTTP_TLS_H

#include <stdbool.h>

#include "common/core/status.h"

typedef struct gw_tls gw_tls;

/* PEM files: the certificate with its chain, and the key without a passphrase; key_path "": it is in the first file.
 * Borrows both. BT_BAD_REQUEST: one cannot be read, or they do not belong together; the sentence names the file. */
bt_status gw_tls_open(const char *certificate_path, const char *key_path, bool has_http2, gw_tls **out, bt_error *err);
void gw_tls_close(gw_tls *tls); /* NULL is accepted */

/* What the next connection is opened with; a connection keeps its own through a reload. */
struct ssl_ctx_st *gw_tls_context(const gw_tls *tls);

bool gw_tls_is_due(gw_tls *tls); /* once a second: a file has changed */

/* Reads both files anew. On failure (as of open) the old certificate stays. */
bt_status gw_tls_reload(gw_tls *tls, bt_error *err);

#endif
