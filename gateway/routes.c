/* The table of paths, authentication, CORS preflight, and the small answers: health, version, models, metrics. Requests
 * for text go on to serve.c. */
#include "gateway/routes.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "gateway/api/api_json.h"
#include "gateway/dashboard.h"
#include "gateway/reply.h"
#include "gateway/serve.h"
#include "gateway/tokenize.h"

enum { GET = 1, POST = 2, HEAD = 4 };

/* ---- answers --------------------------------------------------------------------------------------------------------
 */

static void answer_health(const gw_call *call, const char *rest) {
    (void)rest;
    bool is_ready = gw_loop_is_ready(call->loop) && !call->loop->server->is_draining;
    gw_reply(call, is_ready ? 200 : 503, "", "", 0);
}

static void answer_version(const gw_call *call, const char *rest) {
    (void)rest;
    static const char body[] = "{\"version\":\"" BATON_VERSION "\"}";
    gw_reply(call, 200, "application/json", body, sizeof body - 1);
}

static void answer_load(const gw_call *call, const char *rest) {
    (void)rest;
    char body[48];
    int n = snprintf(body, sizeof body, "{\"server_load\":%u}", gw_telemetry_n_running(call->loop->server->telemetry));
    gw_reply(call, 200, "application/json", body, (size_t)n);
}

static void answer_metrics(const gw_call *call, const char *rest) {
    (void)rest;
    bt_buf body = {0};
    gw_telemetry_write(call->loop->server->telemetry, &body);
    gw_reply(call, 200, "text/plain; version=0.0.4; charset=utf-8", body.bytes, body.n_bytes);
    bt_buf_fini(&body);
}

/* One object of /v1/models. */
static void put_model(const gw_call *call, const char *served_name, bt_buf *out) {
    const gw_model *model = call->loop->server->model;
    long long created = model->created_s;
    bt_buf_puts(out, "{\"id\":");
    gw_json_put_string(out, served_name, strlen(served_name));
    bt_buf_printf(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"baton\",\"root\":", created);
    gw_json_put_string(out, model->served_names[0], strlen(model->served_names[0]));
    bt_buf_printf(out,
                  ",\"parent\":null,\"max_model_len\":%u,\"permission\":[{\"id\":\"modelperm-%s\",\"object\":"
                  "\"model_permission\",\"created\":%lld,\"allow_create_engine\":false,\"allow_sampling\":true,"
                  "\"allow_logprobs\":true,\"allow_search_indices\":false,\"allow_view\":true,"
                  "\"allow_fine_tuning\":false,\"organization\":\"*\",\"group\":null,\"is_blocking\":false}]}",
                  gw_loop_max_model_len(call->loop), model->fingerprint, created);
}

/* An empty list where nobody could serve them. */
static void answer_models(const gw_call *call, const char *rest) {
    (void)rest;
    const gw_model *model = call->loop->server->model;
    bool is_ready = gw_loop_is_ready(call->loop);
    bt_buf body = {0};
    bt_buf_puts(&body, "{\"object\":\"list\",\"data\":[");
    for (uint32_t i = 0; is_ready && i < model->n_served_names; i++) {
        if (i > 0) bt_buf_puts(&body, ",");
        put_model(call, model->served_names[i], &body);
    }
    bt_buf_puts(&body, "]}");
    gw_reply(call, 200, "application/json", body.bytes, body.n_bytes);
    bt_buf_fini(&body);
}

static void answer_model(const gw_call *call, const char *name) {
    const gw_model *model = call->loop->server->model;
    bool is_listed = name[0] != 0 && gw_loop_is_ready(call->loop);
    const char *served = is_listed ? gw_model_find(model, name) : NULL;
    if (served == NULL) {
        gw_error error;
        gw_fail(&error, 404, "model", "The model `%s` does not exist.", name);
        gw_reply_error(call, &error);
        return;
    }
    bt_buf body = {0};
    put_model(call, served, &body);
    gw_reply(call, 200, "application/json", body.bytes, body.n_bytes);
    bt_buf_fini(&body);
}

static void answer_chat(const gw_call *call, const char *rest) {
    (void)rest;
    gw_serve(call, GW_CHAT);
}

static void answer_completion(const gw_call *call, const char *rest) {
    (void)rest;
    gw_serve(call, GW_COMPLETION);
}

/* ---- table ----------------------------------------------------------------------------------------------------------
 */

typedef struct {
    const char *path; /* ends with '/': what follows is passed as `rest` */
    unsigned methods;
    bool needs_key;
    void (*answer)(const gw_call *call, const char *rest);
} route;

static const route routes[] = {
    {"/v1/chat/completions", POST, true, answer_chat},
    {"/v1/completions", POST, true, answer_completion},
    {"/v1/models", GET | HEAD, true, answer_models},
    {"/v1/models/", GET | HEAD, true, answer_model},
    {"/health", GET | HEAD, false, answer_health},
    {"/ping", GET | POST | HEAD, false, answer_health},
    {"/version", GET | HEAD, false, answer_version},
    {"/load", GET | HEAD, false, answer_load},
    {"/metrics", GET | HEAD, false, answer_metrics},
    {"/dashboard", GET | HEAD, false, gw_dashboard_page},
    {"/dashboard/data", GET | HEAD, false, gw_dashboard_data},
    {"/dashboard/data/", GET | HEAD, false, gw_dashboard_data},
    {"/tokenize", POST, false, gw_tokenize},
    {"/detokenize", POST, false, gw_detokenize},
    {"/tokenizer_info", GET | HEAD, false, gw_tokenizer_info},
};

static const route *find_route(const char *path, const char **rest) {
    *rest = "";
    size_t n = strlen(path);
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        size_t n_route = strlen(routes[i].path);
        bool is_prefix = routes[i].path[n_route - 1] == '/';
        if (is_prefix ? n > n_route && memcmp(path, routes[i].path, n_route) == 0 : strcmp(path, routes[i].path) == 0) {
            *rest = is_prefix ? path + n_route : "";
            return &routes[i];
        }
    }
    return NULL;
}

static unsigned method_of(const gw_http_exchange *exchange) {
    gw_http_text method = gw_http_method(exchange);
    return gw_http_is(method, "GET") ? GET : gw_http_is(method, "POST") ? POST : gw_http_is(method, "HEAD") ? HEAD : 0;
}

/* ---- in front -------------------------------------------------------------------------------------------------------
 */

static void answer_preflight(const gw_call *call) {
    gw_http_text headers = gw_http_header(call->exchange, "access-control-request-headers");
    gw_http_text origin = gw_http_header(call->exchange, "origin");
    char allowed[GW_HTTP_CAP_ORIGIN];
    if (origin.bytes != NULL && !gw_access_origin(call->loop->access, origin.bytes, origin.n_bytes, allowed)) {
        gw_error error;
        gw_fail(&error, 400, "", "Pages of this origin may not use this server.");
        gw_reply_error(call, &error);
        return;
    }
    char echo[1024];
    snprintf(echo, sizeof echo, "%.*s", (int)(headers.n_bytes < sizeof echo ? headers.n_bytes : sizeof echo - 1),
             headers.bytes == NULL ? "" : headers.bytes);
    gw_http_add_header(call->exchange, "access-control-allow-methods", "GET, HEAD, OPTIONS, POST");
    gw_http_add_header(call->exchange, "access-control-allow-headers", echo[0] == 0 ? "*" : echo);
    gw_http_add_header(call->exchange, "access-control-max-age", "600");
    gw_reply(call, 200, "text/plain; charset=utf-8", "OK", 2);
}

/* Notes whose key it is. */
static bool is_authorized(gw_call *call) {
    const gw_keys *keys = call->loop->access->keys;
    if (!gw_keys_are_asked_for(keys)) return true;
    gw_http_text header = gw_http_header(call->exchange, "authorization");
    if (header.bytes == NULL || header.n_bytes < 7 || strncasecmp(header.bytes, "Bearer ", 7) != 0) return false;
    size_t start = 7;
    while (start < header.n_bytes && header.bytes[start] == ' ') start++;
    const char *user = gw_keys_find(keys, header.bytes + start, header.n_bytes - start);
    if (user == NULL) return false;
    snprintf(call->user, sizeof call->user, "%s", user);
    return true;
}

static void refuse_method(const gw_call *call, const route *found, gw_error *error) {
    char allow[32];
    snprintf(allow, sizeof allow, "%s%s%s", found->methods & GET ? "GET, HEAD" : "",
             found->methods & GET && found->methods & POST ? ", " : "", found->methods & POST ? "POST" : "");
    gw_http_add_header(call->exchange, "allow", allow);
    gw_fail(error, 405, "", "Method Not Allowed: this path takes %s.", allow);
}

void gw_routes_on_request(void *context, gw_http_exchange *exchange) {
    gw_call call;
    gw_call_init(&call, context, exchange);
    const gw_server *server = call.loop->server;
    gw_http_text raw = gw_http_path(exchange);
    char path[1024];
    bool is_short = raw.n_bytes < sizeof path && memchr(raw.bytes, 0, raw.n_bytes) == NULL;
    size_t n = is_short ? raw.n_bytes : 0;
    if (n > 1 && raw.bytes[n - 1] == '/') n--; /* with or without it, no redirect */
    snprintf(path, sizeof path, "%.*s", (int)n, raw.bytes);
    const char *rest;
    const route *found = find_route(path, &rest);
    gw_error error = {0};
    if (gw_http_fault(exchange) != NULL) {
        gw_fail(&error, 400, "", "The HTTP request could not be read: %s.", gw_http_fault(exchange));
    } else if (gw_http_header_bytes(exchange) > server->config.http_header_limit) {
        gw_fail(&error, 431, "", "The request's headers are over the limit of %llu bytes.",
                (unsigned long long)server->config.http_header_limit);
    } else if (gw_http_is(gw_http_method(exchange), "OPTIONS")) {
        answer_preflight(&call);
        return;
    } else if (strncmp(path, "/v1", 3) == 0 && !is_authorized(&call)) {
        gw_fail(&error, 401, "api_key", "Incorrect API key provided.");
    } else if (found == NULL) {
        gw_fail(&error, 404, "", "Not Found: %.200s is not served here.", path[0] != 0 ? path : "this path");
    } else if ((found->methods & method_of(exchange)) == 0) {
        refuse_method(&call, found, &error);
    } else {
        found->answer(&call, rest);
        gw_loop_pump(call.loop);
        return;
    }
    gw_reply_error(&call, &error);
}
