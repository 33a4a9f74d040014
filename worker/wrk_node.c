/* Opening and closing what both kinds of worker need, in the one order that is right: what can fail for a wrong flag or
 * file first, the announcement last. What becomes of requests is the scheduler's business. */
#include "worker/wrk_node.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/log.h"

/* ---- model and memory ---- */

static bt_status check_flags(const wrk_node *node, bt_error *err) {
    enum { MAX_ROWS = 1 << 17 }; /* more would be a typing error: their scratch alone is gigabytes */
    const wrk_config *config = node->options.config;
    if (config->model[0] == 0) return bt_fail(err, BT_BAD_REQUEST, "--model is missing: the checkpoint's folder");
    if (config->block_size != KV_BLOCK_TOKENS)
        return bt_fail(err, BT_BAD_REQUEST, "--block-size is %u, only %u is supported", config->block_size,
                       KV_BLOCK_TOKENS);
    bool is_any = strcmp(config->host, "0.0.0.0") == 0 || strcmp(config->host, "::") == 0;
    if (is_any && config->advertise_host[0] == 0)
        return bt_fail(err, BT_BAD_REQUEST, "--host is %s, so --advertise-host must say how others reach this worker",
                       config->host);
    if (node->options.max_rows < 1 || node->options.max_rows > MAX_ROWS || node->options.max_logits < 1 ||
        node->options.max_logits > WIRE_MAX_STEP_TOKENS)
        return bt_fail(err, BT_BAD_REQUEST,
                       "a step has %u rows of %u sequences, expected 1 to %u rows of 1 to %u: see %s",
                       node->options.max_rows, node->options.max_logits, MAX_ROWS, WIRE_MAX_STEP_TOKENS,
                       "--max-num-batched-tokens and --max-num-seqs");
    if (config->port > 65535 || config->metrics_port > 65535 || config->ep_port > 65535)
        return bt_fail(err, BT_BAD_REQUEST, "a port is above 65535");
    if (config->ep_size > EP_MAX_RANKS || config->ep_rank >= (config->ep_size > 0 ? config->ep_size : 1))
        return bt_fail(err, BT_BAD_REQUEST, "--ep-rank is %u of --ep-size %u, expected 0 to size - 1, size up to %d",
                       config->ep_rank, config->ep_size, EP_MAX_RANKS);
    if (config->ep_size < 2 && config->placement[0] != 0)
        return bt_fail(err, BT_BAD_REQUEST, "--placement needs --ep-size of at least 2");
    return BT_OK;
}

/* How many positions one request may have: the flag, or all that fit. */
static bt_status max_model_len_find(wrk_node *node, uint32_t model_len, bt_error *err) {
    uint32_t asked = node->options.config->max_model_len;
    uint64_t pool_len = (uint64_t)node->kv.layout.n_blocks * KV_BLOCK_TOKENS;
    if (asked > pool_len)
        return bt_fail(err, BT_BAD_REQUEST,
                       "--max-model-len is %u, but --kv-cache-memory-bytes holds only %llu positions", asked,
                       (unsigned long long)pool_len);
    node->max_model_len = asked > 0 ? asked : model_len;
    if (node->max_model_len > pool_len) node->max_model_len = (uint32_t)pool_len;
    return BT_OK;
}

static bt_status memory_open(wrk_node *node, bt_error *err) {
    const wrk_config *config = node->options.config;
    const mdl_config *model = krn_model_config(node->model);
    const krn_backend *backend = krn_model_backend(node->model);
    const char *dtype = backend->kv == KV_BFLOAT16 ? "bfloat16" : "float32";
    if (strcmp(config->kv_cache_dtype, "auto") != 0 && strcmp(config->kv_cache_dtype, dtype) != 0)
        return bt_fail(err, BT_BAD_REQUEST, "--kv-cache-dtype is \"%.20s\", but backend %s keeps %s",
                       config->kv_cache_dtype, backend->name, dtype);
    uint64_t n_blocks = krn_model_kv_blocks(node->model, config->kv_cache_memory_bytes);
    if (n_blocks < 2 || n_blocks > UINT32_MAX / KV_BLOCK_TOKENS)
        return bt_fail(err, BT_BAD_REQUEST, "--kv-cache-memory-bytes makes %llu KV blocks, expected 2 to %u",
                       (unsigned long long)n_blocks, UINT32_MAX / KV_BLOCK_TOKENS);
    const kv_layout layout = krn_model_kv_layout(node->model, (uint32_t)n_blocks);
    bt_status status = kvt_memory_open(kv_pool_bytes(&layout), &node->kv_memory, err);
    if (status != BT_OK) return status;
    node->kv = (krn_kv){node->kv_memory.base, layout};
    status = max_model_len_find(node, model->max_position_embeddings, err);
    if (status != BT_OK) return status;
    uint32_t n_logits = krn_model_sim(node->model) == NULL ? node->options.max_logits : 1;
    size_t logits_bytes = (size_t)n_logits * model->vocab_size * sizeof(float);
    node->logits = bt_calloc_aligned(logits_bytes, 64);
    node->drawer = krn_drawer_open(model->vocab_size);
    node->logprobs = bt_calloc(node->options.max_logits, sizeof(wire_ranked));
    node->top = bt_calloc((size_t)node->options.max_logits * WIRE_MAX_TOP_LOGPROBS, sizeof(wire_logprob));
    bt_series_set(bt_metrics_series(node->metrics, BT_METRIC_WEIGHT_BYTES, ""),
                  (double)krn_model_weight_bytes(node->model));
    bt_log(BT_LOG_INFO, "worker", "memory", "kv_bytes=%zu kv_blocks=%u kv_dtype=%s max_model_len=%u logits_bytes=%zu",
           kv_pool_bytes(&layout), layout.n_blocks, dtype, node->max_model_len, logits_bytes);
    return BT_OK;
}

static bt_status model_open(wrk_node *node, bt_error *err) {
    const wrk_config *config = node->options.config;
    mdl_config model;
    bt_status status = mdl_config_load(config->model, &model, err);
    if (status != BT_OK) return status;
    if (config->max_model_len > model.max_position_embeddings)
        return bt_fail(err, BT_BAD_REQUEST, "--max-model-len is %u, but the model knows %u positions",
                       config->max_model_len, model.max_position_embeddings);
    krn_model_options options = {
        .dir = config->model,
        .backend = config->backend,
        .n_threads = config->threads,
        .max_rows = node->options.max_rows,
        .max_positions = config->max_model_len > 0 ? config->max_model_len : model.max_position_embeddings,
        .max_logits = node->options.max_logits,
        .rank = config->ep_rank,
        .n_ranks = config->ep_size > 1 ? config->ep_size : 0,
        .placement = config->placement,
        .sim = {.step_us = config->sim_step_us,
                .prefill_us_per_token = config->sim_prefill_us_per_token,
                .row_us = config->sim_row_us,
                .output_tokens = config->sim_output_tokens},
    };
    return krn_model_open(&options, &node->model, err);
}

/* ---- network ---- */

static bt_status fabric_open(wrk_node *node, bt_error *err) {
    const wrk_config *config = node->options.config;
    kvt_config fabric = {
        .name = node->options.name,
        .incarnation = node->incarnation,
        .model_hash = krn_model_hash(node->model),
        .cluster_key = link_cluster_key(config->cluster_secret),
        .memory = node->kv_memory,
        .layout = node->kv.layout,
        .host = node->options.takes_kv ? config->host : NULL,
        .port = node->options.kv_port,
        .transports = config->kv_transports,
        .queue = node->queue,
        .source = WRK_FROM_KV,
    };
    return kvt_fabric_open(&fabric, &node->fabric, err);
}

static void announce_rank(void *context, const reg_rank *rank) {
    wrk_node *node = context;
    bt_error err = {0};
    node->announcement.ep = *rank;
    if (reg_announcer_update(node->announcer, &node->announcement, &err) != BT_OK)
        bt_log_error("worker", "the rank's state was not announced", &err);
}

static bt_status ep_open(wrk_node *node, bt_error *err) {
    const wrk_config *config = node->options.config;
    if (config->ep_size < 2) return BT_OK;
    const wrk_ep_config ep = {
        .net = {.compat = {.model_hash = krn_model_hash(node->model),
                           .cluster_key = link_cluster_key(config->cluster_secret)},
                .host = config->host,
                .port = config->ep_port,
                .transports = config->kv_transports},
        .model = node->model,
        .metrics = node->metrics,
        .step_timeout_ms = config->ep_timeout_ms,
        .announce = announce_rank,
        .context = node,
    };
    return wrk_ep_open(&ep, &node->ep, err);
}

static bt_status links_open(wrk_node *node, bt_error *err) {
    const wrk_config *config = node->options.config;
    link_config links = {
        .name = node->options.name,
        .incarnation = node->incarnation,
        .role = node->options.role,
        .cluster_key = link_cluster_key(config->cluster_secret),
        .queue = node->queue,
        .source = WRK_FROM_LINKS,
    };
    bt_status status = link_hub_open(&links, &node->links, err);
    if (status != BT_OK) return status;
    return link_hub_listen(node->links, config->host, config->port, &node->control_port, err);
}

static const char *group_name(const wrk_node *node) {
    const char *role = node->options.role == WIRE_ROLE_PREFILL ? "prefill" : "decode";
    const char *given = node->options.config->ep_group;
    return given[0] != 0 ? given : role;
}

/* On the HTTP thread: of the node only what does not change. */
static void write_experts(void *context, bt_buf *page) {
    const wrk_node *node = context;
    const wrk_config *config = node->options.config;
    krn_expert_load load = {0};
    krn_expert_load_take(node->model, &load);
    if (node->ep != NULL) {
        snprintf(load.group, sizeof(load.group), "%s", group_name(node));
        load.rank = config->ep_rank;
        load.n_ranks = config->ep_size;
    }
    krn_expert_load_write(&load, page);
    krn_expert_load_fini(&load);
}

static bt_status http_open(wrk_node *node, bt_error *err) {
    const wrk_config *config = node->options.config;
    const wrk_http_config http = {config->host, config->metrics_port, node->metrics, write_experts, node};
    return wrk_http_open(&http, &node->http, err);
}

static const char *served_name(const wrk_config *config, char *out, size_t cap_bytes) {
    if (config->served_model_name[0] != 0) return config->served_model_name;
    size_t end = strlen(config->model);
    while (end > 1 && config->model[end - 1] == '/') end--;
    size_t begin = end;
    while (begin > 0 && config->model[begin - 1] != '/') begin--;
    snprintf(out, cap_bytes, "%.*s", (int)(end - begin), config->model + begin);
    return out;
}

static void metrics_open(wrk_node *node) {
    char name[REG_CAP_MODEL], labels[REG_CAP_MODEL + 32];
    snprintf(labels, sizeof(labels), "model_name=\"%.*s", REG_CAP_MODEL - 1,
             served_name(node->options.config, name, sizeof(name)));
    for (char *at = labels + strlen("model_name=\""); *at != 0; at++) {
        if (*at == '"' || *at == '\\' || *at < ' ') *at = '_';
    }
    strcat(labels, "\"");
    unsigned role = node->options.role == WIRE_ROLE_PREFILL ? BT_ROLE_PREFILL : BT_ROLE_DECODE;
    if (node->options.config->metrics_legacy_aliases) role |= BT_LEGACY;
    node->metrics = bt_metrics_open(role, labels);
    wrk_vllm_open(&node->vllm, node->metrics);
    node->redis_up = bt_metrics_series(node->metrics, BT_METRIC_REDIS_UP, "");
    node->running = bt_metrics_series(node->metrics, BT_METRIC_RUNNING, "");
    node->waiting = bt_metrics_series(node->metrics, BT_METRIC_WAITING, "");
    node->kv_total = bt_metrics_series(node->metrics, BT_METRIC_KV_BLOCKS, "state=\"total\"");
    node->kv_used = bt_metrics_series(node->metrics, BT_METRIC_KV_BLOCKS, "state=\"used\"");
    node->kv_cached = bt_metrics_series(node->metrics, BT_METRIC_KV_BLOCKS, "state=\"cached\"");
}

bt_status wrk_node_open(wrk_node *node, const wrk_node_options *options, bt_error *err) {
    const wrk_config *config = options->config;
    *node = (wrk_node){.options = *options, .incarnation = link_random_u64()};
    bt_status status = bt_queue_open(&node->queue, err);
    if (status != BT_OK) return status;
    wrk_signals_open(node->queue);
    metrics_open(node);
    status = check_flags(node, err);
    if (status == BT_OK) status = model_open(node, err);
    if (status == BT_OK) status = memory_open(node, err);
    if (status == BT_OK) status = fabric_open(node, err);
    if (status == BT_OK) status = ep_open(node, err);
    if (status == BT_OK) status = links_open(node, err);
    if (status == BT_OK && config->metrics_port > 0) status = http_open(node, err);
    return status;
}

/* ---- announcement ---- */

static void on_redis(void *context, bool is_up) {
    wrk_node *node = context;
    bt_series_set(node->redis_up, is_up);
}

static void on_replaced(void *context) {
    wrk_node *node = context;
    wrk_event *event = bt_calloc(1, sizeof(*event));
    event->source = WRK_FROM_NODE;
    event->is_replaced = true;
    bt_queue_push(node->queue, &event->node);
}

static void on_worker(void *context, reg_change change, const reg_worker *worker) {
    wrk_node *node = context;
    wrk_event *event = bt_calloc(1, sizeof(*event));
    event->source = WRK_FROM_NODE;
    event->change = change;
    event->worker = *worker;
    bt_queue_push(node->queue, &event->node);
}

/* "host:port" as others reach us. false: too long. */
static bool put_address(const wrk_node *node, uint32_t port, char out[REG_CAP_ADDRESS]) {
    const wrk_config *config = node->options.config;
    const char *host = config->advertise_host[0] != 0 ? config->advertise_host : config->host;
    bool is_v6 = strchr(host, ':') != NULL;
    return snprintf(out, REG_CAP_ADDRESS, is_v6 ? "[%s]:%u" : "%s:%u", host, port) < REG_CAP_ADDRESS;
}

/* What we say about our place in a group; false: too long. */
static bool put_rank(const wrk_node *node, reg_rank *out) {
    const wrk_config *config = node->options.config;
    *out = (reg_rank){.rank = config->ep_rank, .size = config->ep_size};
    bool fits = snprintf(out->group, sizeof(out->group), "%s", group_name(node)) < REG_CAP_NAME;
    return put_address(node, wrk_ep_port(node->ep), out->address) && fits;
}

bt_status wrk_node_announce(wrk_node *node, bt_error *err) {
    const wrk_config *config = node->options.config;
    reg_worker *worker = &node->announcement;
    *worker = (reg_worker){
        .role = node->options.role,
        .incarnation = node->incarnation,
        .model_hash = krn_model_hash(node->model),
        .max_model_len = node->max_model_len,
        .capacity = node->options.capacity,
    };
    char served[REG_CAP_MODEL];
    bool fits = snprintf(worker->name, sizeof(worker->name), "%s", node->options.name) < REG_CAP_NAME;
    fits &= snprintf(worker->served_model, sizeof(worker->served_model), "%s",
                     served_name(config, served, sizeof(served))) < REG_CAP_MODEL;
    fits &= put_address(node, node->control_port, worker->control_address);
    if (node->options.takes_kv) fits &= put_address(node, kvt_fabric_port(node->fabric), worker->kv_address);
    if (node->http != NULL) fits &= put_address(node, config->metrics_port, worker->http_address);
    if (node->ep != NULL) fits &= put_rank(node, &worker->ep);
    fits &= snprintf(worker->labels, sizeof(worker->labels), "%s", config->labels) < BT_CAP_LABELS;
    if (!fits)
        return bt_fail(err, BT_BAD_REQUEST,
                       "--name, --served-model-name, --labels, --advertise-host or --ep-group is too long");
    if (node->ep != NULL) wrk_ep_join(node->ep, worker);
    reg_announcer_config announcer = {
        .redis = config->redis,
        .lease_ms = config->lease_ms,
        .on_redis = on_redis,
        .on_replaced = on_replaced,
        .on_worker = node->ep != NULL ? on_worker : NULL,
        .context = node,
    };
    bt_status status = reg_announcer_open(&announcer, worker, &node->announcer, err);
    if (status != BT_OK) return status;
    bt_log(BT_LOG_INFO, "worker", "ready", "worker=%s incarnation=%016llx control=%s kv=%s model=%s backend=%s isa=%s",
           worker->name, (unsigned long long)node->incarnation, worker->control_address, worker->kv_address,
           worker->served_model, krn_model_backend(node->model)->name, krn_model_backend(node->model)->isa);
    return BT_OK;
}

void wrk_node_announce_drain(wrk_node *node) {
    if (node->has_drained) return;
    node->has_drained = true;
    bt_log(BT_LOG_INFO, "worker", "draining", "worker=%s", node->options.name);
    node->announcement.is_draining = true;
    bt_error err = {0};
    if (node->announcer != NULL && reg_announcer_update(node->announcer, &node->announcement, &err) != BT_OK)
        bt_log_error("worker", "draining was not announced", &err);
}

/* ---- the rest ---- */

void wrk_event_free(bt_queue_node *event) {
    switch (((wrk_event *)(void *)event)->source) {
    case WRK_FROM_LINKS:
        link_event_free((link_event *)(void *)event);
        break;
    case WRK_FROM_KV:
        kvt_event_free((kvt_event *)(void *)event);
        break;
    default:
        free(event);
    }
}

void wrk_node_close(wrk_node *node) {
    enum { LINGER_MS = 1000 };
    if (node->queue == NULL) return;
    reg_announcer_close(node->announcer); /* first: nobody shall come any more */
    wrk_http_close(node->http);
    link_hub_close(node->links, LINGER_MS);
    kvt_fabric_close(node->fabric);
    wrk_ep_close(node->ep);
    for (bt_queue_node *event = bt_queue_take(node->queue), *next; event != NULL; event = next) {
        next = event->next;
        wrk_event_free(event);
    }
    wrk_peers_fini(&node->peers);
    krn_drawer_close(node->drawer);
    free(node->logprobs);
    free(node->top);
    krn_model_close(node->model);
    free(node->logits);
    kvt_memory_close(&node->kv_memory);
    bt_metrics_close(node->metrics);
    /* The queue stays: a signal handler may still wake it. The process ends here. */
}

/* Row `row` of the step's logits, until the next call. */
static float *logits_of(wrk_node *node, uint32_t row) {
    const krn_sim *sim = krn_model_sim(node->model);
    if (sim == NULL) return node->logits + (size_t)row * krn_model_config(node->model)->vocab_size;
    krn_sim_logits(sim, row, node->logits);
    return node->logits;
}

uint32_t wrk_node_draw(wrk_node *node, uint32_t row, const krn_draw_args *args) {
    const krn_sim *sim = krn_model_sim(node->model);
    uint32_t token;
    if (sim != NULL && krn_sim_draw(sim, row, args, &token)) return token;
    return krn_draw(node->drawer, logits_of(node, row), args, node->top + (size_t)row * WIRE_MAX_TOP_LOGPROBS,
                    &node->logprobs[row]);
}

void wrk_node_score(wrk_node *node, uint32_t row, uint32_t token, uint32_t n_top) {
    uint32_t vocab_size = krn_model_config(node->model)->vocab_size;
    krn_logprobs(logits_of(node, row), vocab_size, token, n_top, node->top + (size_t)row * WIRE_MAX_TOP_LOGPROBS,
                 &node->logprobs[row]);
}

void wrk_node_export(wrk_node *node, const wire_load *load, uint32_t n_cached_blocks) {
    bt_series_set(node->running, load->running);
    bt_series_set(node->waiting, load->waiting);
    bt_series_set(node->kv_total, load->kv_blocks_total);
    bt_series_set(node->kv_used, load->kv_blocks_used);
    bt_series_set(node->kv_cached, n_cached_blocks);
    wrk_vllm_load(&node->vllm, load);
    const char *trouble = load->is_incomplete ? "the expert-parallel group is incomplete" : NULL;
    if (node->http != NULL) wrk_http_set_trouble(node->http, load->is_draining ? "draining" : trouble);
}
