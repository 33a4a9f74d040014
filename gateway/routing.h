/* What a client says about routing, and what it is told: AIBrix's headers, beside ours.
 *
 *   routing-strategy       a strategy or a mix (gw_strategy.h); none: --routing-strategy
 *   external-filter        a selector: only workers with such labels, of both roles (common/core/labels.h)
 *   x-vllm-priority        as `priority` in the body, which counts first
 *   x-session-id           session-affinity: which worker, as an earlier answer's x-session-id said
 *   x-aibrix-session-key,  session-affinity without such an id: any text that names the session, at most 256 bytes; the
 *   body: session_id       header counts first
 *
 * What routers tell each other (target-pod, x-prefiller-host-port, kv_transfer_params, ...) is not read from clients.
 */
#ifndef BATON_GATEWAY_ROUTING_H
#define BATON_GATEWAY_ROUTING_H

#include "gateway/api/api_request.h"
#include "gateway/core/gw_core.h"
#include "gateway/reply.h"

typedef struct {
    gw_strategy strategy;
    bool has_filter;
    bt_selector filter;
    uint64_t session_key, session_name; /* gw_submit */
    int64_t priority;                   /* likewise */
} gw_routing;

bt_status gw_routing_read(const gw_call *call, const gw_request *request, gw_routing *out, gw_error *error);

/* Before the status goes out. `info` may be NULL: nothing was chosen. */
void gw_routing_add_headers(gw_http_exchange *exchange, const gw_strategy *strategy, const gw_info *info);

/* A session id, as AIBrix makes them of a pod's address: base64 of the worker's name. out[GW_CAP_SESSION_ID]. And back,
 * into the hash of the name: 0 if it is no such id. */
enum { GW_CAP_SESSION_ID = (WIRE_MAX_NAME + 2) / 3 * 4 + 1, GW_MAX_SESSION_KEY = 256 };
void gw_session_id_write(const char *worker_name, char *out);
uint64_t gw_session_id_read(const char *bytes, size_t n_bytes);

#endif
