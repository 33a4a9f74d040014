/* The net: UCX's worker and listener, driven by the engine's thread. Decides when to look and when to sleep; what
 * arrives is ep_link.c's, who is connected ep_conn.c's. */
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <ucp/api/ucp.h>
#include <unistd.h>

#include "common/core/clock.h"
#include "kvtransfer/ep_impl.h"

enum {
    SPIN_NS = 30 * BT_NS_PER_US, /* arming and waking costs more than most messages take */
    MAX_PROGRESS = 64,           /* calls in a row: a flood must not keep deadlines waiting */
    MESSAGE_BYTES = 64 * 1024,   /* as few fragments as can be up to here */
};

typedef struct {
    bt_queue_node node; /* first */
    struct ucp_conn_request *request;
} accept_job;

/* UCX may call this from any of its threads: hand over, nothing else. */
static void on_connection(struct ucp_conn_request *request, void *context) {
    ep_net *net = context;
    accept_job *job = bt_calloc(1, sizeof(*job));
    job->request = request;
    bt_queue_push(net->accepts, &job->node);
}

static void accepts_run(ep_net *net, bool is_closing) {
    for (bt_queue_node *node = bt_queue_take(net->accepts), *next; node != NULL; node = next) {
        next = node->next;
        accept_job *job = BT_QUEUE_ENTRY(node, accept_job, node);
        if (is_closing || net->n_conns >= EP_CAP_CONNS)
            ucp_listener_reject(net->ucx.listener, job->request);
        else
            ep_conn_accept(net, job->request);
        free(job);
    }
}

void ep_net_progress(ep_net *net) {
    accepts_run(net, false);
    for (int i = 0; i < MAX_PROGRESS && ucp_worker_progress(net->ucx.worker) != 0; i++) {
    }
    ep_conn_look(net, bt_now_ns());
    if (net->group != NULL) ep_group_tell(net->group);
}

bool ep_net_arm(ep_net *net) { return ucp_worker_arm(net->ucx.worker) == UCS_OK; }

void ep_net_wait(ep_net *net, int64_t deadline_ns) {
    int64_t begin_ns = bt_now_ns(), now_ns = begin_ns;
    while (now_ns - begin_ns < SPIN_NS && now_ns < deadline_ns) {
        if (ucp_worker_progress(net->ucx.worker) != 0) return;
        now_ns = bt_now_ns();
    }
    if (now_ns >= deadline_ns || !ep_net_arm(net)) return; /* not armed: something happened meanwhile */
    struct pollfd fds[] = {{.fd = net->ucx.worker_fd, .events = POLLIN},
                           {.fd = bt_queue_fd(net->accepts), .events = POLLIN}};
    poll(fds, 2, (int)((deadline_ns - now_ns) / BT_NS_PER_MS + 1)); /* EINTR: an early look does no harm */
}

void ep_net_call(ep_net *net, bool is_called) {
    eventfd_t value;
    if (is_called)
        eventfd_write(net->called_fd, 1);
    else
        eventfd_read(net->called_fd, &value); /* EAGAIN: it was not set */
}

int ep_net_wait_fd(const ep_net *net) { return net->wait_fd; }

void ep_net_look(ep_net *net) {
    ep_net_call(net, false);
    for (int i = 0; i < EP_MAX_LOOKS; i++) {
        ep_net_progress(net);
        if (ep_net_arm(net)) return;
    }
    ep_net_call(net, true); /* the caller has other work and deadlines; its sleep will be short */
}

uint32_t ep_net_port(const ep_net *net) { return net->ucx.listen_port; }

static bt_status wait_fd_open(ep_net *net, bt_error *err) {
    net->called_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    net->wait_fd = epoll_create1(EPOLL_CLOEXEC);
    int fds[] = {net->called_fd, net->ucx.worker_fd, bt_queue_fd(net->accepts)};
    for (int i = 0; i < 3; i++) {
        struct epoll_event event = {.events = EPOLLIN};
        if (net->wait_fd < 0 || epoll_ctl(net->wait_fd, EPOLL_CTL_ADD, fds[i], &event) != 0)
            return bt_fail(err, BT_INTERNAL, "cannot watch the expert-parallel group's descriptors: %m");
    }
    return BT_OK;
}

bt_status ep_net_open(const ep_net_config *config, ep_net **out, bt_error *err) {
    ep_net *net = bt_calloc(1, sizeof(*net));
    net->compat = config->compat;
    net->is_rendezvous = config->is_rendezvous;
    net->wait_fd = net->called_fd = -1;
    bt_status status = bt_queue_open(&net->accepts, err);
    if (status == BT_OK) status = kvt_ucx_open(&net->ucx, config->transports, MESSAGE_BYTES, err);
    if (status == BT_OK) status = ep_link_open(net, err);
    if (status == BT_OK) status = wait_fd_open(net, err);
    if (status == BT_OK) status = kvt_ucx_listen(&net->ucx, config->host, config->port, on_connection, net, err);
    if (status != BT_OK) goto fail;
    *out = net;
    return BT_OK;
fail:
    ep_net_close(net);
    return status;
}

void ep_net_close(ep_net *net) {
    if (net == NULL) return;
    BT_ASSERT(net->group == NULL);
    if (net->ucx.listener != NULL) accepts_run(net, true);
    for (ep_conn *conn = net->conns; conn != NULL; conn = conn->next) ep_conn_close(conn);
    while (net->conns != NULL) {
        ep_conn_look(net, bt_now_ns());
        if (net->conns != NULL) ep_net_wait(net, bt_now_ns() + BT_NS_PER_MS);
    }
    kvt_ucx_close(&net->ucx);
    for (ep_conn *conn = net->abandoned, *next; conn != NULL; conn = next) {
        next = conn->next;
        ep_conn_free(conn);
    }
    if (net->wait_fd >= 0) close(net->wait_fd);
    if (net->called_fd >= 0) close(net->called_fd);
    bt_queue_close(net->accepts);
    bt_buf_fini(&net->scratch);
    free(net);
}
