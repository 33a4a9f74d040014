#include "gateway/http/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "gateway/http/watch.h"

struct gw_tls {
    const char *certificate_path, *key_path;
    bool has_http2;
    gw_watch watch;
    SSL_CTX *context;
};

/* The first thing that OpenSSL complained of: later ones only say where it surfaced. */
static const char *complaint(void) {
    unsigned long code = ERR_peek_error();
    const char *text = ERR_SYSTEM_ERROR(code) ? strerror(ERR_GET_REASON(code)) : ERR_reason_error_string(code);
    ERR_clear_error();
    return text == NULL ? "not readable" : text;
}

/* A key with a passphrase is refused instead of asked for. */
static int no_passphrase(char *buf, int cap, int is_writing, void *context) {
    (void)buf;
    (void)cap;
    (void)is_writing;
    (void)context;
    return -1;
}

static int choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *n_out, const unsigned char *offered,
                           unsigned n_offered, void *context) {
    (void)ssl;
    static const unsigned char both[] = "\x02h2\x08http/1.1";
    unsigned skipped = ((const gw_tls *)context)->has_http2 ? 0 : 3;
    int found = SSL_select_next_proto((unsigned char **)(uintptr_t)out, n_out, both + skipped,
                                      (unsigned)sizeof both - 1 - skipped, offered, n_offered);
    return found == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_ALERT_FATAL;
}

static bt_status set_up(gw_tls *tls, SSL_CTX *context, bt_error *err) {
    SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_NO_TICKET |
                                     SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA);
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS); /* an idle stream has none: 34 KiB less */
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_default_passwd_cb(context, no_passphrase);
    SSL_CTX_set_alpn_select_cb(context, choose_protocol, tls);
    if (SSL_CTX_set_num_tickets(context, 0) != 1 || SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) != 1 ||
        SSL_CTX_set_cipher_list(context, "ECDHE+AESGCM:ECDHE+CHACHA20") != 1)
        return bt_fail(err, BT_INTERNAL, "cannot set up TLS: %s", complaint());
    return BT_OK;
}

static bt_status read_files(const gw_tls *tls, SSL_CTX *context, bt_error *err) {
    const char *key_path = tls->key_path[0] == 0 ? tls->certificate_path : tls->key_path;
    ERR_clear_error();
    if (SSL_CTX_use_certificate_chain_file(context, tls->certificate_path) != 1)
        return bt_fail(err, BT_BAD_REQUEST, "certificate %s: %s", tls->certificate_path, complaint());
    if (SSL_CTX_use_PrivateKey_file(context, key_path, SSL_FILETYPE_PEM) != 1)
        return bt_fail(err, BT_BAD_REQUEST, "%s is no PEM key of certificate %s without a passphrase: %s", key_path,
                       tls->certificate_path, complaint());
    return BT_OK;
}

bt_status gw_tls_reload(gw_tls *tls, bt_error *err) {
    gw_watch_mark(&tls->watch);
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    if (context == NULL) return bt_fail(err, BT_INTERNAL, "cannot set up TLS: %s", complaint());
    bt_status status = set_up(tls, context, err);
    if (status == BT_OK) status = read_files(tls, context, err);
    if (status != BT_OK) {
        SSL_CTX_free(context);
        return status;
    }
    SSL_CTX_free(tls->context); /* connections hold it as long as they need it */
    tls->context = context;
    return BT_OK;
}

bt_status gw_tls_open(const char *certificate_path, const char *key_path, bool has_http2, gw_tls **out, bt_error *err) {
    gw_tls *tls = bt_calloc(1, sizeof *tls);
    tls->certificate_path = certificate_path;
    tls->key_path = key_path;
    tls->has_http2 = has_http2;
    gw_watch_add(&tls->watch, certificate_path);
    if (key_path[0] != 0) gw_watch_add(&tls->watch, key_path);
    bt_status status = gw_tls_reload(tls, err);
    if (status != BT_OK) {
        gw_tls_close(tls);
        return status;
    }
    *out = tls;
    return BT_OK;
}

void gw_tls_close(gw_tls *tls) {
    if (tls == NULL) return;
    SSL_CTX_free(tls->context);
    free(tls);
}

struct ssl_ctx_st *gw_tls_context(const gw_tls *tls) {
    return tls->context;
}

bool gw_tls_is_due(gw_tls *tls) { return gw_watch_is_due(&tls->watch); }
