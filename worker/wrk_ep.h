/* This worker as a rank of an expert-parallel group: carries out what wrk_group.h decides. Connects the ranks, gives
 * the model its exchange, announces this rank. Owns the UCX side of it (kvtransfer/ep_ucx.h). The engine thread owns
 * it. */
#ifndef BATON_WORKER_WRK_EP_H
#define BATON_WORKER_WRK_EP_H

#include "common/core/metrics.h"
#include "kernels/forward.h"
#include "kvtransfer/ep_ucx.h"
#include "worker/wrk_group.h"

typedef struct wrk_ep wrk_ep;

typedef struct {
    ep_net_config net;
    krn_model *model;    /* borrowed; opened as this rank of the group */
    bt_metrics *metrics; /* borrowed */
    uint32_t step_timeout_ms;
    void (*announce)(void *context, const reg_rank *rank); /* it has changed */
    void *context;
} wrk_ep_config;

/* Listens. BT_BAD_REQUEST, BT_INTERNAL as ep_net_open(). */
bt_status wrk_ep_open(const wrk_ep_config *config, wrk_ep **out, bt_error *err);
void wrk_ep_close(wrk_ep *ep); /* NULL is accepted */

uint32_t wrk_ep_port(const wrk_ep *ep);

/* When the rest of the announcement is known; before what follows. */
void wrk_ep_join(wrk_ep *ep, const reg_worker *own);

/* What decides: the loop asks it, and tells it what the registry says, that steps end, that this rank drains. Borrowed.
 */
wrk_group *wrk_ep_group(wrk_ep *ep);

/* Goes on with forming, as far as that goes without waiting. To be called after every sleep. */
void wrk_ep_look(wrk_ep *ep);

/* Another rank needs ours in a step; also when the group has failed, which the step will tell. Only when formed; last
 * before sleeping. */
bool wrk_ep_is_called(wrk_ep *ep);

/* krn_forward() said BT_PEER_LOST. */
void wrk_ep_lose(wrk_ep *ep);

/* What to sleep on, and until when: INT64_MAX: no limit. */
int wrk_ep_wait_fd(const wrk_ep *ep);
int64_t wrk_ep_deadline_ns(const wrk_ep *ep);

#endif
