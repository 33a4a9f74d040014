/* Opens what the loops share, in the order in which it is needed, with every flag checked. */
#include "gateway/server.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/control/link.h"
#include "common/core/alloc.h"
#include "common/core/clock.h"

static bt_status check_flags(const gw_config *config, bt_error *err) {
    if (config->model[0] == 0) return bt_fail(err, BT_BAD_REQUEST, "--model is missing");
    if (config->port > 65535) return bt_fail(err, BT_BAD_REQUEST, "--port is %u", config->port);
    if (config->threads == 0 || config->threads > GW_MAX_THREADS)
        return bt_fail(err, BT_BAD_REQUEST, "--threads must be 1 to %d", GW_MAX_THREADS);
    if (config->max_concurrent_requests == 0 || config->max_concurrent_requests > 1 << 20)
        return bt_fail(err, BT_BAD_REQUEST, "--max-concurrent-requests must be 1 to 1048576");
    if (config->max_logprobs > WIRE_MAX_TOP_LOGPROBS)
        return bt_fail(err, BT_BAD_REQUEST, "--max-logprobs must be 0 to %d: messages between processes carry no more",
                       WIRE_MAX_TOP_LOGPROBS);
    if (config->http_body_limit == 0 || config->http_body_limit > (uint64_t)1 << 30)
        return bt_fail(err, BT_BAD_REQUEST, "--http-body-limit must be 1 to 1G");
    if (config->prefix_saturation_ms == 0) return bt_fail(err, BT_BAD_REQUEST, "--prefix-saturation-ms must not be 0");
    if (config->queue_timeout_ms == 0) return bt_fail(err, BT_BAD_REQUEST, "--queue-timeout-ms must not be 0");
    if (config->http_header_limit < 1024) return bt_fail(err, BT_BAD_REQUEST, "--http-header-limit is below 1K");
    if (config->http_idle_ms == 0 || config->http_read_ms == 0 || config->http_write_ms == 0)
        return bt_fail(err, BT_BAD_REQUEST, "--http-idle-ms, --http-read-ms and --http-write-ms must not be 0");
    if (config->ssl_certfile[0] == 0 && config->ssl_keyfile[0] != 0)
        return bt_fail(err, BT_BAD_REQUEST, "--ssl-keyfile needs --ssl-certfile");
    return BT_OK;
}

bt_status gw_server_open(const gw_config *config, gw_server **out, bt_error *err) {
    gw_server *server = bt_calloc(1, sizeof *server);
    server->config = *config;
    gw_model_options options = {.model_dir = config->model,
                                .served_names = config->served_model_name,
                                .chat_template = config->chat_template,
                                .reasoning_parser = config->reasoning_parser,
                                .tool_call_parser = config->tool_call_parser,
                                .max_model_len = config->max_model_len};
    bt_status status = check_flags(config, err);
    if (status == BT_OK) status = gw_strategy_parse(config->routing_strategy, &server->strategy, err);
    if (status == BT_OK) status = gw_model_open(&options, &server->model, err);
    if (status != BT_OK) {
        gw_server_close(server);
        return status;
    }
    server->model->rules.max_logprobs = config->max_logprobs;
    server->cluster_key = link_cluster_key(config->cluster_secret);
    server->telemetry = gw_telemetry_open(server->model->served_names[0], config->metrics_legacy_aliases);
    server->slo = (gw_slo){(int64_t)config->slo_ttft_ms * BT_NS_PER_MS, (int64_t)config->slo_tpot_ms * BT_NS_PER_MS};
    server->started_s = time(NULL);
    server->instance = link_random_u64();
    *out = server;
    return BT_OK;
}

void gw_server_close(gw_server *server) {
    if (server == NULL) return;
    gw_telemetry_close(server->telemetry);
    gw_model_close(server->model);
    free(server);
}
