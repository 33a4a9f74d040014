/* Keys, certificates and origins: what is taken, what is refused, and what a reload may change. */
#include "gateway/http/access.h"

#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <string.h>
#include <unistd.h>

#include "common/core/test.h"
#include "common/core/test_dir.h"
#include "gateway/http/watch.h"

static char folder[TEST_DIR_BYTES], keys_path[96], certificate_path[96], key_path[96];

static void write_bytes(const char *path, const void *bytes, size_t n_bytes) {
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL && fwrite(bytes, 1, n_bytes, file) == n_bytes, "%s", path);
    if (file != NULL) fclose(file);
}

static void write_text(const char *path, const char *text) { write_bytes(path, text, strlen(text)); }

/* ---- keys -----------------------------------------------------------------------------------------------------------
 */

static bool is_name_of(const gw_keys *keys, const char *key, const char *want) {
    const char *name = gw_keys_find(keys, key, strlen(key));
    return want == NULL ? name == NULL : name != NULL && strcmp(name, want) == 0;
}

static void test_keys_of_the_flag(void) {
    gw_keys *keys = NULL;
    bt_error err = {0};
    CHECK(gw_keys_open("", "", &keys, &err) == BT_OK && !gw_keys_are_asked_for(keys), "none is asked for");
    CHECK(is_name_of(keys, "x", NULL), "and none is known");
    gw_keys_close(keys);
    CHECK(gw_keys_open("sesame,,second", "", &keys, &err) == BT_OK && gw_keys_are_asked_for(keys), "%s", err.text);
    CHECK(is_name_of(keys, "sesame", "flag-1") && is_name_of(keys, "second", "flag-2"), "both");
    CHECK(is_name_of(keys, "sesam", NULL) && is_name_of(keys, "sesamee", NULL) && is_name_of(keys, "", NULL), "nearly");
    CHECK(gw_keys_find(keys, "sesame\0", 7) == NULL, "a NUL is a byte");
    gw_keys_close(keys);
    CHECK(gw_keys_open("a,b,a", "", &keys, &err) == BT_BAD_REQUEST, "one key with two names");
}

static void test_keys_of_a_file(void) {
    gw_keys *keys = NULL;
    bt_error err = {0};
    write_text(keys_path, "# people\n\nk1 alice\n  k2\tbob  \r\nk3\nk4 alice");
    CHECK(gw_keys_open("k0", keys_path, &keys, &err) == BT_OK, "%s", err.text);
    CHECK(is_name_of(keys, "k0", "flag-1") && is_name_of(keys, "k1", "alice") && is_name_of(keys, "k2", "bob"),
          "names");
    CHECK(is_name_of(keys, "k3", "line-5") && is_name_of(keys, "k4", "alice"), "no name; the same name, no line end");
    CHECK(is_name_of(keys, "alice", NULL) && is_name_of(keys, "#", NULL), "neither names nor comments are keys");

    write_text(keys_path, "k5 carol\n");
    CHECK(gw_keys_reload(keys, &err) == BT_OK, "%s", err.text);
    CHECK(is_name_of(keys, "k5", "carol") && is_name_of(keys, "k1", NULL) && is_name_of(keys, "k0", "flag-1"),
          "a new file replaces the old one and not the flag");
    gw_keys_close(keys);
}

static void test_broken_files_leave_the_old_keys(void) {
    static const struct {
        const char *text;
        size_t n_bytes;
        const char *said;
    } rows[] = {
#define ROW(text, said) {text, sizeof text - 1, said}
        ROW("", "no key"),
        ROW("# k1\n", "no key"),
        ROW("k1 a b\n", "line 1"),
        ROW("ok\nsecret\x01 a\n", "line 2"),
        ROW("ok\n\xc3\xa9 a\n", "line 2"),
        ROW("ok\nk\0 a\n", "line 2"),
        ROW("k1 a/b\n", "line 1"),
        ROW("k1 a\nk1 b\n", "same key"),
        ROW("k1\nflagged\n", "same key"),
        ROW("k1 0123456789012345678901234567890123456789012345678901234567890123\n", "line 1"),
#undef ROW
    };
    gw_keys *keys = NULL;
    bt_error err = {0};
    write_text(keys_path, "old alice\n");
    CHECK(gw_keys_open("flagged", keys_path, &keys, &err) == BT_OK, "%s", err.text);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        write_bytes(keys_path, rows[i].text, rows[i].n_bytes);
        CHECK(gw_keys_reload(keys, &err) == BT_BAD_REQUEST && strstr(err.text, rows[i].said) != NULL, "%zu: %s", i,
              err.text);
        CHECK(strstr(err.text, "secret") == NULL, "no key in an error");
        CHECK(is_name_of(keys, "old", "alice") && is_name_of(keys, "ok", NULL), "row %zu", i);
    }
    unlink(keys_path);
    CHECK(gw_keys_reload(keys, &err) == BT_BAD_REQUEST && is_name_of(keys, "old", "alice"), "the file is gone");
    gw_keys_close(keys);
    CHECK(gw_keys_open("", keys_path, &keys, &err) == BT_BAD_REQUEST && strstr(err.text, keys_path) != NULL, "%s",
          err.text);
}

static void test_a_file_is_due_when_it_rests(void) {
    gw_watch watch = {0};
    write_text(keys_path, "one");
    gw_watch_add(&watch, keys_path);
    gw_watch_mark(&watch);
    CHECK(!gw_watch_is_due(&watch), "nothing happened");
    write_text(keys_path, "three");
    CHECK(!gw_watch_is_due(&watch), "it may still be written");
    write_text(keys_path, "fifteen");
    CHECK(!gw_watch_is_due(&watch), "it was");
    CHECK(gw_watch_is_due(&watch) && !gw_watch_is_due(&watch), "now, and once");
    unlink(keys_path);
    CHECK(!gw_watch_is_due(&watch) && gw_watch_is_due(&watch) && !gw_watch_is_due(&watch), "gone is a change");
}

/* ---- certificates ---------------------------------------------------------------------------------------------------
 */

/* A fresh key and its own certificate, into the two files. */
static void make_certificate(const char *to_certificate, const char *to_key) {
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *certificate = X509_new();
    X509_NAME *name = X509_get_subject_name(certificate);
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"localhost", -1, -1, 0);
    X509_set_issuer_name(certificate, name);
    X509_gmtime_adj(X509_getm_notBefore(certificate), 0);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
    X509_set_pubkey(certificate, key);
    CHECK(X509_sign(certificate, key, EVP_sha256()) > 0, "signed");
    FILE *file = fopen(to_certificate, "w");
    PEM_write_X509(file, certificate);
    fclose(file);
    file = fopen(to_key, "w");
    PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL);
    fclose(file);
    X509_free(certificate);
    EVP_PKEY_free(key);
}

/* Both sides in memory: the protocol that was agreed on, "": no handshake. */
static const char *shake_hands(const gw_tls *tls, int max_version, const char *alpn, char agreed[16]) {
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_max_proto_version(context, max_version);
    SSL *client = SSL_new(context), *server = SSL_new(gw_tls_context(tls));
    SSL_set_security_level(client, 0);
    SSL_set_alpn_protos(client, (const unsigned char *)alpn, (unsigned)strlen(alpn));
    BIO *a, *b;
    BIO_new_bio_pair(&a, 0, &b, 0);
    SSL_set_bio(client, a, a);
    SSL_set_bio(server, b, b);
    int code = 0;
    for (int turn = 0; turn < 10 && code != 1; turn++) {
        code = SSL_connect(client);
        if (SSL_accept(server) != 1) code = 0;
    }
    const unsigned char *name = NULL;
    unsigned n_name = 0;
    if (code == 1) SSL_get0_alpn_selected(client, &name, &n_name);
    snprintf(agreed, 16, "%.*s", (int)n_name, name == NULL ? (const unsigned char *)"" : name);
    CHECK(code != 1 || !SSL_session_reused(client), "nothing is resumed");
    SSL_free(client);
    SSL_free(server);
    SSL_CTX_free(context);
    return agreed;
}

static void test_certificates(void) {
    gw_tls *tls = NULL;
    bt_error err = {0};
    char agreed[16];
    make_certificate(certificate_path, key_path);
    CHECK(gw_tls_open(certificate_path, key_path, false, &tls, &err) == BT_OK, "%s", err.text);
    CHECK(strcmp(shake_hands(tls, TLS1_3_VERSION, "\x02h2\x08http/1.1", agreed), "http/1.1") == 0, "HTTP/2 is off");
    CHECK(strcmp(shake_hands(tls, TLS1_2_VERSION, "\x08http/1.1", agreed), "http/1.1") == 0, "TLS 1.2");
    CHECK(strcmp(shake_hands(tls, TLS1_1_VERSION, "\x08http/1.1", agreed), "") == 0, "TLS 1.1 is too old");
    CHECK(strcmp(shake_hands(tls, TLS1_3_VERSION, "\x02h2", agreed), "") == 0, "no common protocol");

    struct ssl_ctx_st *before = gw_tls_context(tls);
    char other_certificate[80];
    snprintf(other_certificate, sizeof other_certificate, "%s/other.pem", folder);
    make_certificate(other_certificate, key_path); /* the key is another one's now */
    CHECK(gw_tls_reload(tls, &err) == BT_BAD_REQUEST && strstr(err.text, key_path) != NULL, "%s", err.text);
    write_text(key_path, "not a key");
    CHECK(gw_tls_reload(tls, &err) == BT_BAD_REQUEST && gw_tls_context(tls) == before, "the old one stays");
    CHECK(strcmp(shake_hands(tls, TLS1_3_VERSION, "\x08http/1.1", agreed), "http/1.1") == 0, "and serves");
    make_certificate(certificate_path, key_path);
    CHECK(gw_tls_reload(tls, &err) == BT_OK && gw_tls_context(tls) != before, "%s", err.text);
    gw_tls_close(tls);

    CHECK(gw_tls_open(certificate_path, key_path, true, &tls, &err) == BT_OK, "%s", err.text);
    CHECK(strcmp(shake_hands(tls, TLS1_3_VERSION, "\x08http/1.1\x02h2", agreed), "h2") == 0, "HTTP/2 is on");
    gw_tls_close(tls);
    unlink(certificate_path);
    CHECK(gw_tls_open(certificate_path, key_path, false, &tls, &err) == BT_BAD_REQUEST &&
              strstr(err.text, certificate_path) != NULL && strstr(err.text, "No such file") != NULL,
          "%s", err.text);
    unlink(other_certificate);
    unlink(key_path);
}

/* ---- origins, and all together --------------------------------------------------------------------------------------
 */

static void check_origin(const char *flag, const char *origin, const char *want) {
    gw_config flags = {.allowed_origins = flag};
    gw_access access = {.flags = &flags};
    char allowed[GW_HTTP_CAP_ORIGIN] = "";
    size_t n_bytes = origin == NULL ? 0 : strlen(origin);
    CHECK(gw_access_origin(&access, origin, n_bytes, allowed) == (want != NULL), "%s: %s", flag, origin);
    CHECK(strcmp(allowed, want == NULL ? "" : want) == 0, "%s: %s: %s", flag, origin, allowed);
}

static void test_origins(void) {
    check_origin("*", "http://a", "*");
    check_origin("*", NULL, "*");
    check_origin("", "http://a", NULL);
    check_origin("", NULL, NULL);
    check_origin("http://a,https://b:8443", "https://b:8443", "https://b:8443");
    check_origin("http://a,https://b:8443", "https://b", NULL);
    check_origin("http://a", "http://a.evil", NULL);
    check_origin("http://a", NULL, NULL);
    check_origin("[\"http://a\", \"http://b\"]", "http://b", "http://b");
    check_origin("[\"*\"]", "null", "*");
}

static void test_access_reads_anew(void) {
    write_text(keys_path, "k1 alice\n");
    gw_config flags = {.api_key = "", .api_key_file = keys_path, .ssl_certfile = "", .allowed_origins = "*"};
    gw_access *access = NULL;
    bt_error err = {0};
    CHECK(gw_access_open(&flags, true, &access, &err) == BT_OK, "%s", err.text);
    write_text(keys_path, "k22 bob\n");
    gw_access_tick(access, 0);
    CHECK(is_name_of(access->keys, "k1", "alice"), "not yet");
    gw_access_tick(access, 0);
    CHECK(is_name_of(access->keys, "k22", "bob") && is_name_of(access->keys, "k1", NULL), "by itself");
    write_text(keys_path, "k333 carol\n");
    gw_access_tick(access, 1);
    CHECK(is_name_of(access->keys, "k333", "carol"), "when asked, at once");
    write_text(keys_path, "");
    gw_access_tick(access, 2);
    CHECK(is_name_of(access->keys, "k333", "carol"), "an empty file lets nobody in and nobody out");
    gw_access_close(access);
    unlink(keys_path);
}

int main(void) {
    test_dir_make(folder);
    snprintf(keys_path, sizeof keys_path, "%s/keys", folder);
    snprintf(certificate_path, sizeof certificate_path, "%s/certificate.pem", folder);
    snprintf(key_path, sizeof key_path, "%s/key.pem", folder);
    test_keys_of_the_flag();
    test_keys_of_a_file();
    test_broken_files_leave_the_old_keys();
    test_a_file_is_due_when_it_rests();
    test_certificates();
    test_origins();
    test_access_reads_anew();
    test_dir_remove(folder);
    TEST_END();
}
