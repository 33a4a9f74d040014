/* Who may come in to one loop, and how: keys, certificate, origins. Keys and certificate are read anew when their files
 * change; what cannot be read is said in the log, and the old ones stay. On the loop's thread. */
#ifndef BATON_GATEWAY_HTTP_ACCESS_H
#define BATON_GATEWAY_HTTP_ACCESS_H

#include "gateway/config.h"
#include "gateway/http/http.h"
#include "gateway/http/keys.h"
#include "gateway/http/tls.h"

typedef struct {
    const gw_config *flags; /* borrowed */
    bool is_first;          /* of the process' loops: it speaks for all in the log */
    gw_keys *keys;          /* owned */
    gw_tls *tls;            /* owned; NULL: HTTP in plain text */
    uint32_t n_reloads;     /* asked for so far */
} gw_access;

/* BT_BAD_REQUEST: a file is not as it must be; the sentence names it. */
bt_status gw_access_open(const gw_config *flags, bool is_first, gw_access **out, bt_error *err);
void gw_access_close(gw_access *access); /* NULL is accepted */

/* Once a second. n_reloads grows when somebody asks to read the files whether they changed or not (SIGHUP). */
void gw_access_tick(gw_access *access, uint32_t n_reloads);

/* May a page of that origin read our answers? Then `out` is what Access-Control-Allow-Origin says: "*" or the origin.
 * Without an origin (n_bytes 0): may any? */
bool gw_access_origin(const gw_access *access, const char *origin, size_t n_bytes, char out[GW_HTTP_CAP_ORIGIN]);

#endif
