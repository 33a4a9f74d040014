/* The page with its headers, and the figures of gw_telemetry in one JSON object. */
#include "gateway/dashboard.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/api/api_json.h"

extern const unsigned char gw_dashboard_html[]; /* made from dashboard.html by embed.cmake */
extern const size_t gw_dashboard_html_bytes;

/* ---- the page -------------------------------------------------------------------------------------------------------
 */

/* ` 'sha256-...'` of what the page has between `open` and `close`; nothing if it has none. */
static void put_hash(const char *open, const char *close, bt_buf *out) {
    const char *page = (const char *)gw_dashboard_html;
    const char *begin = memmem(page, gw_dashboard_html_bytes, open, strlen(open));
    if (begin == NULL) return;
    begin += strlen(open);
    const char *end = memmem(begin, gw_dashboard_html_bytes - (size_t)(begin - page), close, strlen(close));
    unsigned char digest[EVP_MAX_MD_SIZE], text[EVP_MAX_MD_SIZE * 2];
    unsigned n_digest = 0;
    if (end == NULL || EVP_Digest(begin, (size_t)(end - begin), digest, &n_digest, EVP_sha256(), NULL) != 1) return;
    EVP_EncodeBlock(text, digest, (int)n_digest);
    bt_buf_printf(out, " 'sha256-%s'", (const char *)text);
}

void gw_dashboard_page(const gw_call *call, const char *rest) {
    (void)rest;
    bt_buf policy = {0};
    bt_buf_puts(&policy, "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
                         "frame-ancestors 'none'; script-src");
    put_hash("<script>", "</script>", &policy);
    bt_buf_puts(&policy, "; style-src");
    put_hash("<style>", "</style>", &policy);
    gw_http_add_header(call->exchange, "content-security-policy", bt_buf_text(&policy));
    gw_http_add_header(call->exchange, "x-content-type-options", "nosniff");
    gw_http_add_header(call->exchange, "referrer-policy", "no-referrer");
    gw_http_add_header(call->exchange, "cache-control", "no-cache");
    gw_reply(call, 200, "text/html; charset=utf-8", gw_dashboard_html, gw_dashboard_html_bytes);
    bt_buf_fini(&policy);
}

/* ---- the data -------------------------------------------------------------------------------------------------------
 */

static void put_text(bt_buf *out, const char *name, const char *value) {
    bt_buf_printf(out, "\"%s\":", name);
    gw_json_put_string(out, value, strlen(value));
    bt_buf_puts(out, ",");
}

void gw_dashboard_data(const gw_call *call, const char *rest) {
    const gw_server *server = call->loop->server;
    uint64_t after = strspn(rest, "0123456789") == strlen(rest) ? strtoull(rest, NULL, 10) : 0;
    bt_buf body = {0};
    bt_buf_puts(&body, "{");
    put_text(&body, "version", BATON_VERSION);
    put_text(&body, "model", server->model->served_names[0]);
    bt_buf_printf(&body, "\"instance\":\"%016llx\",\"started\":%lld,\"ready\":%s,\"slo\":{\"ttft\":%u,\"tpot\":%u},",
                  (unsigned long long)server->instance, (long long)server->started_s,
                  gw_loop_is_ready(call->loop) && !server->is_draining ? "true" : "false", server->config.slo_ttft_ms,
                  server->config.slo_tpot_ms);
    gw_telemetry_write_live(server->telemetry, after, &body);
    bt_buf_puts(&body, "}");
    gw_http_add_header(call->exchange, "cache-control", "no-store");
    gw_http_add_header(call->exchange, "x-content-type-options", "nosniff");
    gw_reply(call, 200, "application/json", body.bytes, body.n_bytes);
    bt_buf_fini(&body);
}
