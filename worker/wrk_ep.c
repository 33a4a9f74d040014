/* Carries out what wrk_group.c decides. Decides when to try again after a group that did not come about. */
#include "worker/wrk_ep.h"

#include <stdlib.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/core/log.h"

enum { FORM_MS = 5000, RETRY_MS = 500 };

struct wrk_ep {
    wrk_ep_config config;
    ep_net *net;
    ep_exchange *exchange; /* NULL: WAITING */
    wrk_group group;
    int64_t retry_ns; /* not before */
    bt_series *formed, *epoch, *losses;
};

bt_status wrk_ep_open(const wrk_ep_config *config, wrk_ep **out, bt_error *err) {
    wrk_ep *ep = bt_calloc(1, sizeof(*ep));
    ep->config = *config;
    bt_status status = ep_net_open(&config->net, &ep->net, err);
    if (status != BT_OK) {
        wrk_ep_close(ep);
        return status;
    }
    ep->formed = bt_metrics_series(config->metrics, BT_METRIC_EP_FORMED, "");
    ep->epoch = bt_metrics_series(config->metrics, BT_METRIC_EP_EPOCH, "");
    ep->losses = bt_metrics_series(config->metrics, BT_METRIC_EP_LOSSES, "");
    *out = ep;
    return BT_OK;
}

void wrk_ep_close(wrk_ep *ep) {
    if (ep == NULL) return;
    krn_model_set_exchange(ep->config.model, NULL);
    ep_exchange_close(ep->exchange);
    ep_net_close(ep->net);
    wrk_group_fini(&ep->group);
    free(ep);
}

uint32_t wrk_ep_port(const wrk_ep *ep) { return ep_net_port(ep->net); }

void wrk_ep_join(wrk_ep *ep, const reg_worker *own) { wrk_group_init(&ep->group, own); }

void wrk_ep_on_worker(wrk_ep *ep, reg_change change, const reg_worker *worker) {
    wrk_group_on_worker(&ep->group, change, worker);
}

/* ---- forming ---- */

static void announce(const wrk_ep *ep) { ep->config.announce(ep->config.context, &ep->group.own.ep); }

static void give_up(wrk_ep *ep) {
    krn_model_set_exchange(ep->config.model, NULL);
    ep_exchange_close(ep->exchange);
    ep->exchange = NULL;
    ep->retry_ns = bt_now_ns() + (int64_t)RETRY_MS * BT_NS_PER_MS;
    wrk_group_lost(&ep->group);
    bt_series_set(ep->formed, 0);
    announce(ep);
}

/* The others are told the epoch first, then waited for. */
static bt_status begin(wrk_ep *ep, bt_error *err) {
    const reg_rank *own = &ep->group.own.ep;
    const char *addresses[EP_MAX_RANKS];
    for (uint32_t i = 0; i < own->size; i++) addresses[i] = ep->group.members[i].ep.address;
    bt_log(BT_LOG_INFO, "worker", "forming a group", "group=%s rank=%u ranks=%u epoch=%llu", own->group, own->rank,
           own->size, (unsigned long long)own->epoch);
    announce(ep);
    const ep_group_config config = {
        .epoch = own->epoch,
        .rank = own->rank,
        .n_ranks = own->size,
        .addresses = addresses,
        .limits = krn_model_ep_limits(ep->config.model),
        .form_timeout_ms = FORM_MS,
        .step_timeout_ms = ep->config.step_timeout_ms,
    };
    return ep_group_open(ep->net, &config, &ep->exchange, err);
}

void wrk_ep_look(wrk_ep *ep) {
    bt_error err = {0};
    bt_status status = BT_OK;
    if (wrk_ep_is_formed(ep)) return;
    if (ep->exchange == NULL) {
        ep_net_look(ep->net);
        if (bt_now_ns() < ep->retry_ns || !wrk_group_begin(&ep->group)) return;
        status = begin(ep, &err);
    }
    if (status == BT_OK) status = ep_group_form(ep->exchange, &err);
    if (status == BT_AGAIN) return;
    if (status != BT_OK) {
        bt_log(BT_LOG_WARN, "worker", "the group was not formed", "group=%s epoch=%llu text=\"%s\"",
               ep->group.own.ep.group, (unsigned long long)ep->group.own.ep.epoch, err.text);
        give_up(ep);
        return;
    }
    krn_model_set_exchange(ep->config.model, ep->exchange);
    wrk_group_formed(&ep->group);
    bt_series_set(ep->formed, 1);
    bt_series_set(ep->epoch, (double)ep->exchange->epoch);
    announce(ep);
}

/* ---- being in it ---- */

bool wrk_ep_is_formed(const wrk_ep *ep) { return ep->group.own.ep.state == REG_RANK_FORMED; }

bool wrk_ep_is_complete(const wrk_ep *ep) { return wrk_ep_is_formed(ep) && !wrk_group_is_leaving(&ep->group); }

bool wrk_ep_is_called(wrk_ep *ep) { return ep->exchange->is_called(ep->exchange); }

void wrk_ep_lose(wrk_ep *ep) {
    bt_series_add(ep->losses, 1);
    give_up(ep);
    ep->retry_ns = 0; /* it did come about */
}

int wrk_ep_wait_fd(const wrk_ep *ep) { return ep_net_wait_fd(ep->net); }

int64_t wrk_ep_deadline_ns(const wrk_ep *ep) {
    if (wrk_ep_is_formed(ep)) return INT64_MAX;
    int64_t now_ns = bt_now_ns();
    if (ep->exchange != NULL) return now_ns + (int64_t)EP_FORM_LOOK_MS * BT_NS_PER_MS;
    return ep->retry_ns > now_ns ? ep->retry_ns : INT64_MAX;
}
