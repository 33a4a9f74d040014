#include "tools/ctl_http.h"

#include <curl/curl.h>
#include <stdbool.h>
#include <stdio.h>

#include "common/core/address.h"

typedef struct {
    bt_buf *body;
    size_t max_bytes;
    bool is_too_long;
} sink;

static size_t take(char *bytes, size_t one, size_t n_bytes, void *context) {
    (void)one; /* 1 */
    sink *s = context;
    s->is_too_long = n_bytes > s->max_bytes - s->body->n_bytes;
    if (s->is_too_long) return 0;
    bt_buf_put(s->body, bytes, n_bytes);
    return n_bytes;
}

static bt_status judge(CURLcode code, long http_status, const sink *s, const char *address, bt_error *err) {
    if (s->is_too_long) {
        return bt_fail(err, BT_BAD_REQUEST, "%s answers with more than %zu bytes", address, s->max_bytes);
    }
    switch (code) {
    case CURLE_OK:
        if (http_status == 200) return BT_OK;
        return bt_fail(err, BT_BAD_REQUEST, "%s answers with HTTP status %ld", address, http_status);
    case CURLE_OPERATION_TIMEDOUT:
        return bt_fail(err, BT_TIMEOUT, "%s does not answer in time", address);
    case CURLE_COULDNT_CONNECT:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_PARTIAL_FILE:
        return bt_fail(err, BT_PEER_LOST, "%s does not answer: %s", address, curl_easy_strerror(code));
    default:
        return bt_fail(err, BT_BAD_REQUEST, "%s: %s", address, curl_easy_strerror(code));
    }
}

bt_status ctl_http_get(const char *address, const char *path, uint32_t timeout_ms, size_t max_bytes, bt_buf *body,
                       bt_error *err) {
    char host[256], url[1024];
    uint32_t port = 0;
    bt_status status = bt_address_split(address, host, sizeof(host), &port, err);
    if (status != BT_OK) return status;
    snprintf(url, sizeof(url), "http://%s%s", address, path);
    CURL *curl = curl_easy_init();
    if (curl == NULL) return bt_fail(err, BT_INTERNAL, "no HTTP client");
    sink s = {.body = body, .max_bytes = max_bytes};
    bt_buf_clear(body);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http");
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)timeout_ms);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &s);
    CURLcode code = curl_easy_perform(curl);
    long http_status = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &http_status);
    curl_easy_cleanup(curl);
    return judge(code, http_status, &s, address, err);
}
