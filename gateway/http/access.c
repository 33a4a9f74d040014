#include "gateway/http/access.h"

#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/log.h"

bt_status gw_access_open(const gw_config *flags, bool is_first, gw_access **out, bt_error *err) {
    gw_access *access = bt_calloc(1, sizeof *access);
    access->flags = flags;
    access->is_first = is_first;
    bt_status status = gw_keys_open(flags->api_key, flags->api_key_file, &access->keys, err);
    if (status == BT_OK && flags->ssl_certfile[0] != 0)
        status = gw_tls_open(flags->ssl_certfile, flags->ssl_keyfile, flags->http2, &access->tls, err);
    if (status != BT_OK) {
        gw_access_close(access);
        return status;
    }
    *out = access;
    return BT_OK;
}

void gw_access_close(gw_access *access) {
    if (access == NULL) return;
    gw_tls_close(access->tls);
    gw_keys_close(access->keys);
    free(access);
}

static void tell(const gw_access *access, const char *what, bt_status status, const bt_error *err) {
    if (!access->is_first) return;
    if (status == BT_OK) {
        bt_log(BT_LOG_INFO, "gateway", "read anew", "what=%s", what);
    } else {
        bt_log(BT_LOG_WARN, "gateway", "cannot be read anew, the old ones stay", "what=%s text=\"%s\"", what,
               err->text);
    }
}

void gw_access_tick(gw_access *access, uint32_t n_reloads) {
    bool is_asked = access->n_reloads != n_reloads;
    access->n_reloads = n_reloads;
    bt_error err = {0};
    if (gw_keys_is_due(access->keys) || (is_asked && access->flags->api_key_file[0] != 0))
        tell(access, "keys", gw_keys_reload(access->keys, &err), &err);
    if (access->tls != NULL && (gw_tls_is_due(access->tls) || is_asked))
        tell(access, "certificate", gw_tls_reload(access->tls, &err), &err);
}

/* The flag's origins are separated by commas, or are a JSON list of strings as vLLM has it: no origin holds any of
 * these characters. */
bool gw_access_origin(const gw_access *access, const char *origin, size_t n_bytes, char out[GW_HTTP_CAP_ORIGIN]) {
    static const char between[] = ", []\"'";
    const char *at = access->flags->allowed_origins;
    while (*(at += strspn(at, between)) != 0) {
        size_t n = strcspn(at, between);
        bool is_any = n == 1 && *at == '*',
             is_this = n == n_bytes && n < GW_HTTP_CAP_ORIGIN && memcmp(at, origin, n) == 0;
        if (is_any || is_this) {
            memcpy(out, at, n);
            out[n] = 0;
            return true;
        }
        at += n;
    }
    return false;
}
