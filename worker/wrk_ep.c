/* Carries out what wrk_group.c decides. */
#include "worker/wrk_ep.h"

#include <stdlib.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/core/log.h"

enum { FORM_MS = 5000 };

struct wrk_ep {
    wrk_ep_config config;
    ep_net *net;
    ep_exchange *exchange; /* NULL: WAITING */
    wrk_group group;
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

void wrk_ep_join(wrk_ep *ep, const reg_worker *own) { wrk_group_init(&ep->group, own, &(wrk_group_options){0}); }

wrk_group *wrk_ep_group(wrk_ep *ep) { return &ep->group; }

/* ---- forming ---- */

static void announce(const wrk_ep *ep) { ep->config.announce(ep->config.context, &ep->group.own.ep); }

static void exchange_close(wrk_ep *ep) {
    krn_model_set_exchange(ep->config.model, NULL);
    ep_exchange_close(ep->exchange);
    ep->exchange = NULL;
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
    if (wrk_group_is_formed(&ep->group)) return;
    if (ep->exchange == NULL) {
        ep_net_look(ep->net);
        if (!wrk_group_begin(&ep->group, bt_now_ns())) return;
        status = begin(ep, &err);
    }
    if (status == BT_OK) status = ep_group_form(ep->exchange, &err);
    if (status == BT_AGAIN) return;
    if (status != BT_OK) {
        bt_log(BT_LOG_WARN, "worker", "the group was not formed", "group=%s epoch=%llu text=\"%s\"",
               ep->group.own.ep.group, (unsigned long long)ep->group.own.ep.epoch, err.text);
        exchange_close(ep);
        wrk_group_failed(&ep->group, bt_now_ns());
        announce(ep);
        return;
    }
    krn_model_set_exchange(ep->config.model, ep->exchange);
    wrk_group_formed(&ep->group);
    bt_series_set(ep->formed, 1);
    bt_series_set(ep->epoch, (double)ep->exchange->epoch);
    announce(ep);
}

/* ---- being in it ---- */

bool wrk_ep_is_called(wrk_ep *ep) { return ep->exchange->is_called(ep->exchange); }

void wrk_ep_lose(wrk_ep *ep) {
    bt_series_add(ep->losses, 1);
    bt_series_set(ep->formed, 0);
    exchange_close(ep);
    wrk_group_lost(&ep->group);
    announce(ep);
}

int wrk_ep_wait_fd(const wrk_ep *ep) { return ep_net_wait_fd(ep->net); }

int64_t wrk_ep_deadline_ns(const wrk_ep *ep) {
    bool is_forming = ep->exchange != NULL && !wrk_group_is_formed(&ep->group);
    return is_forming ? bt_now_ns() + (int64_t)EP_FORM_LOOK_MS * BT_NS_PER_MS : wrk_group_deadline_ns(&ep->group);
}
