/* What a prefill and a decode worker are both made of: model, KV memory, KV fabric, control links, announcement,
 * metrics. Opens them in order and closes them in reverse; decides nothing. The engine thread (main) owns a node.
 *
 * Everything that happens arrives in one queue, wrk_node.queue, as nodes of three kinds that begin alike (wrk_event).
 */
#ifndef BATON_WORKER_WRK_NODE_H
#define BATON_WORKER_WRK_NODE_H

#include "common/control/link.h"
#include "common/core/config.h"
#include "common/core/metrics.h"
#include "common/registry/registry.h"
#include "kernels/draw.h"
#include "kernels/expert_load.h"
#include "kernels/logprobs.h"
#include "kvtransfer/kvt.h"
#include "worker/wrk_ep.h"
#include "worker/wrk_http.h"
#include "worker/wrk_peers.h"
#include "worker/wrk_vllm.h"

#define CFG(type, name, default_text, help) cfg_##type name;
typedef struct {
#include "worker/config.def"
} wrk_config;
#undef CFG

/* Where a queue node comes from: link_event, kvt_event and wrk_event begin with the node and this number. */
enum { WRK_FROM_LINKS = 1, WRK_FROM_KV = 2, WRK_FROM_NODE = 3 };

/* WRK_FROM_NODE: what the registry has to say. Freed with free(). */
typedef struct {
    bt_queue_node node;
    uint32_t source;
    bool is_replaced; /* another process took our name: drain; else: */
    reg_change change;
    reg_worker worker;
} wrk_event;

typedef struct {
    const wrk_config *config; /* borrowed */
    const char *name;
    wire_role role;
    uint32_t max_rows, max_logits; /* of a step */
    uint32_t capacity;             /* sequences it works on at once, for the announcement */
    bool takes_kv;                 /* listens for KV */
    uint32_t kv_port;
} wrk_node_options;

typedef struct {
    wrk_node_options options;
    uint64_t incarnation;
    bt_queue *queue;
    bt_metrics *metrics;
    krn_model *model;
    krn_drawer *drawer;
    kvt_memory kv_memory;
    krn_kv kv;              /* in it */
    uint32_t max_model_len; /* by flag, model and KV memory */
    float *logits;          /* [max_logits][vocab_size]; of a simulated model one row, made when it is needed */
    wire_ranked *logprobs;  /* [max_logits] of the step's tokens, where asked for */
    wire_logprob *top;      /* [max_logits][WIRE_MAX_TOP_LOGPROBS] */
    kvt_fabric *fabric;
    link_hub *links;
    uint32_t control_port;
    wrk_http *http;
    reg_announcer *announcer;
    reg_worker announcement;
    wrk_ep *ep; /* NULL: this worker is alone */
    bt_series *redis_up, *running, *waiting, *kv_total, *kv_used, *kv_cached;
    wrk_vllm vllm;
    wrk_peers peers;
    bool has_drained; /* the announcement says so */
} wrk_node;

/* Up to and including the listeners: everything but the announcement, so that the caller can open what serves requests
 * before anybody comes. The sentence in *err names the flag or file. On failure wrk_node_close() still has to be
 * called. */
bt_status wrk_node_open(wrk_node *node, const wrk_node_options *options, bt_error *err);

/* Last: from here on gateways find this worker. */
bt_status wrk_node_announce(wrk_node *node, bt_error *err);

/* Others shall send nothing new. Cheap to repeat. */
void wrk_node_announce_drain(wrk_node *node);

/* What is queued on links and fabric still leaves (bounded). The queue is emptied. NULL-safe in all parts. */
void wrk_node_close(wrk_node *node);

void wrk_event_free(bt_queue_node *event); /* any of the three kinds */

/* SIGTERM and SIGINT: the first asks for a drain and wakes `queue`, the second exits at once. Call before any thread
 * starts. */
void wrk_signals_open(bt_queue *queue);
bool wrk_signals_is_asked(void);

/* Draws the token of row `row` of logits, and fills logprobs[row] if it is asked for. The row is changed. */
uint32_t wrk_node_draw(wrk_node *node, uint32_t row, const krn_draw_args *args);

/* Fills logprobs[row] for `token`, which stands in the sequence already, with n_top (<= WIRE_MAX_TOP_LOGPROBS) beside
 * it. */
void wrk_node_score(wrk_node *node, uint32_t row, uint32_t token, uint32_t n_top);

/* Gauges that both roles have: running, waiting, KV blocks; and /health. */
void wrk_node_export(wrk_node *node, const wire_load *load, uint32_t n_cached_blocks);

#endif
