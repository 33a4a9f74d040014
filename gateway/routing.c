/* Headers into a route's query, a route into headers. Decides nothing about workers: that is gw_choose.c's business. */
#include "gateway/routing.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- session ids ------------------------------------------------------------------------------------------------ */

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

void gw_session_id_write(const char *worker_name, char *out) {
    size_t n = strlen(worker_name);
    for (size_t at = 0; at < n; at += 3, out += 4) {
        uint32_t word = 0;
        for (size_t i = 0; i < 3; i++) word = word << 8 | (at + i < n ? (uint8_t)worker_name[at + i] : 0);
        for (size_t i = 0; i < 4; i++) out[i] = at + i <= n ? digits[word >> (18 - 6 * i) & 63] : '=';
    }
    *out = 0;
}

uint64_t gw_session_id_read(const char *bytes, size_t n_bytes) {
    char name[WIRE_MAX_NAME + 3] = "";
    if (n_bytes == 0 || n_bytes % 4 != 0 || n_bytes >= GW_CAP_SESSION_ID) return 0;
    while (n_bytes > 0 && bytes[n_bytes - 1] == '=') n_bytes--;
    uint32_t word = 0, n_bits = 0;
    size_t n_name = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        const char *digit = bytes[i] != 0 ? strchr(digits, bytes[i]) : NULL;
        if (digit == NULL) return 0;
        word = word << 6 | (uint32_t)(digit - digits);
        n_bits += 6;
        if (n_bits < 8) continue;
        n_bits -= 8;
        name[n_name++] = (char)(word >> n_bits & 0xff);
    }
    return n_name > 0 && strlen(name) == n_name ? gw_strategy_hash(name) : 0;
}

/* ---- what the client says --------------------------------------------------------------------------------------- */

static bt_status read_strategy(const gw_call *call, gw_strategy *out, gw_error *error) {
    gw_http_text header = gw_http_header(call->exchange, "routing-strategy");
    *out = call->loop->server->strategy;
    if (header.n_bytes == 0) return BT_OK;
    char text[GW_CAP_STRATEGY + 1];
    size_t n = header.n_bytes < sizeof text ? header.n_bytes : sizeof text - 1; /* too long still is */
    memcpy(text, header.bytes, n);
    text[n] = 0;
    bt_error err;
    if (gw_strategy_parse(text, out, &err) == BT_OK) return BT_OK;
    gw_fail(error, 400, "", "%s", err.text);
    gw_error_set_header(error, "x-error-invalid-routing-strategy", text);
    return BT_BAD_REQUEST;
}

static bt_status read_filter(const gw_call *call, gw_routing *out, gw_error *error) {
    gw_http_text header = gw_http_header(call->exchange, "external-filter");
    out->has_filter = header.n_bytes > 0;
    if (!out->has_filter) return BT_OK;
    char text[BT_MAX_SELECTOR + 2];
    snprintf(text, sizeof text, "%.*s", (int)header.n_bytes, header.bytes); /* too long still is */
    bt_error err;
    if (bt_selector_parse(text, &out->filter, &err) == BT_OK) return BT_OK;
    gw_fail(error, 400, "external-filter", "external-filter: %s.", err.text);
    gw_error_set_header(error, "x-error-routing", "true");
    return BT_BAD_REQUEST;
}

static bt_status read_priority(const gw_call *call, const gw_request *request, gw_routing *out, gw_error *error) {
    gw_http_text header = gw_http_header(call->exchange, "x-vllm-priority");
    out->priority = request->priority;
    if (request->priority != 0 || header.n_bytes == 0) return BT_OK;
    char text[24], *end = text;
    snprintf(text, sizeof text, "%.*s", (int)header.n_bytes, header.bytes);
    errno = 0;
    out->priority = strtoll(text, &end, 10);
    bool is_number = end != text && *end == 0 && errno == 0 && text[0] != ' ' && header.n_bytes < sizeof text;
    return is_number ? BT_OK : gw_fail(error, 400, "priority", "x-vllm-priority is not an integer.");
}

static bt_status read_session(const gw_call *call, const gw_request *request, gw_routing *out, gw_error *error) {
    gw_http_text id = gw_http_header(call->exchange, "x-session-id");
    gw_http_text key = gw_http_header(call->exchange, "x-aibrix-session-key");
    if (id.n_bytes > 0) out->session_name = gw_session_id_read(id.bytes, id.n_bytes);
    if (key.n_bytes == 0) key = (gw_http_text){request->session_id, strlen(request->session_id)};
    if (key.n_bytes > GW_MAX_SESSION_KEY)
        return gw_fail(error, 400, "session_id", "The session's key is longer than %d bytes.", GW_MAX_SESSION_KEY);
    char text[GW_MAX_SESSION_KEY + 1];
    snprintf(text, sizeof text, "%.*s", (int)key.n_bytes, key.bytes);
    if (text[0] != 0) out->session_key = gw_strategy_hash(text);
    return BT_OK;
}

bt_status gw_routing_read(const gw_call *call, const gw_request *request, gw_routing *out, gw_error *error) {
    *out = (gw_routing){0};
    bt_status status = read_strategy(call, &out->strategy, error);
    if (status == BT_OK) status = read_filter(call, out, error);
    if (status == BT_OK) status = read_priority(call, request, out, error);
    if (status == BT_OK) status = read_session(call, request, out, error);
    return status;
}

/* ---- what it is told -------------------------------------------------------------------------------------------- */

static void add_if_any(gw_http_exchange *exchange, const char *name, const char *value) {
    if (value[0] != 0) gw_http_add_header(exchange, name, value);
}

/* host of "host:port" or "[host]:port". */
static void add_host(gw_http_exchange *exchange, const char *name, const char *address) {
    char host[WIRE_MAX_NAME + 1];
    bool has_brackets = address[0] == '[';
    snprintf(host, sizeof host, "%s", address + has_brackets);
    char *end = has_brackets ? strchr(host, ']') : strrchr(host, ':');
    if (end != NULL) *end = 0;
    add_if_any(exchange, name, host);
}

void gw_routing_add_headers(gw_http_exchange *exchange, const gw_strategy *strategy, const gw_info *info) {
    gw_http_add_header(exchange, "x-baton-strategy", strategy->name);
    gw_http_add_header(exchange, "routing-strategy", strategy->name);
    if (info == NULL) return;
    add_if_any(exchange, "x-baton-prefill", info->prefill);
    add_if_any(exchange, "x-baton-decode", info->decode);
    add_if_any(exchange, "prefill-target-pod", info->prefill);
    add_host(exchange, "prefill-target-pod-ip", info->prefill_address);
    add_if_any(exchange, "target-pod", info->decode);
    add_if_any(exchange, "target-pod-ip", info->decode_address);
    if (info->prefill[0] == 0 || !gw_strategy_has_session(strategy)) return;
    char id[GW_CAP_SESSION_ID];
    gw_session_id_write(info->prefill, id);
    gw_http_add_header(exchange, "x-session-id", id);
}
