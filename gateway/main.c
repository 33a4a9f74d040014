/* baton-gateway: flags, then one loop per thread until SIGTERM, then the drain. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "common/core/clock.h"
#include "common/core/log.h"
#include "gateway/loop.h"

#define CFG(type, name, default_text, help) CFG_ENTRY(gw_config, type, name, default_text, help)
static const cfg_flag flags[] = {
#include "gateway/config.def"
};
#undef CFG

static void *run_loop(void *context) {
    gw_loop *loop = context;
    gw_loop_run(loop);
    loop->server->n_running_loops--;
    return NULL;
}

/* Each connection is a descriptor: as many as the system allows. */
static void raise_descriptor_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

/* SIGHUP reads keys and certificates anew. The first other signal drains; a second one, while loops still run, hurries
 * them. */
static void wait_for_signals(gw_server *server, const sigset_t *signals) {
    int signal_number = 0;
    while (sigwait(signals, &signal_number) != 0 || signal_number == SIGHUP) server->n_reloads++;
    bt_log(BT_LOG_INFO, "gateway", "signal", "signal=%d", signal_number);
    server->is_draining = true;
    const struct timespec look = {.tv_nsec = 50 * BT_NS_PER_MS};
    while (server->n_running_loops > 0)
        if ((signal_number = sigtimedwait(signals, NULL, &look)) > 0 && signal_number != SIGHUP)
            server->is_hurried = true;
}

typedef struct {
    gw_loop *loops[GW_MAX_THREADS];
    pthread_t threads[GW_MAX_THREADS];
    uint32_t n_loops, n_threads;
} fleet;

static bt_status open_loops(gw_server *server, fleet *all, bt_error *err) {
    uint32_t port = server->config.port;
    for (uint32_t i = 0; i < server->config.threads; i++) {
        bt_status status = gw_loop_open(server, i, port, &all->loops[i], err);
        if (status != BT_OK) return status;
        all->n_loops++;
        port = gw_http_port(all->loops[0]->http); /* 0: the system chose */
    }
    bt_log(BT_LOG_INFO, "gateway", "listening", "host=%s port=%u tls=%s threads=%u model=%s max_model_len=%u",
           server->config.host, port, server->config.ssl_certfile[0] == 0 ? "no" : "yes", server->config.threads,
           server->model->served_names[0], server->model->max_model_len);
    return BT_OK;
}

static bt_status run_loops(gw_server *server, fleet *all, const sigset_t *signals, bt_error *err) {
    bt_status status = BT_OK;
    for (uint32_t i = 0; i < all->n_loops && status == BT_OK; i++) {
        server->n_running_loops++;
        if (pthread_create(&all->threads[i], NULL, run_loop, all->loops[i]) == 0) {
            all->n_threads++;
        } else {
            server->n_running_loops--;
            status = bt_fail(err, BT_INTERNAL, "cannot start thread %u", i);
        }
    }
    if (status == BT_OK) wait_for_signals(server, signals);
    server->is_draining = true;
    server->is_hurried = status != BT_OK;
    for (uint32_t i = 0; i < all->n_threads; i++) pthread_join(all->threads[i], NULL);
    return status;
}

int main(int argc, char **argv) {
    gw_config config;
    bt_error err = {0};
    bt_status status = cfg_parse("baton-gateway",
                                 "HTTP front door of a Baton cluster: the OpenAI API over prefill and decode workers.",
                                 flags, sizeof flags / sizeof *flags, argc, argv, &config, &err);
    if (status == BT_CANCELED) return 0;
    bt_log_level level = BT_LOG_INFO;
    if (status == BT_OK) status = bt_log_parse_level(config.log_level, &level, &err);
    if (status != BT_OK) {
        bt_log_error("gateway", "cannot start", &err);
        return 2;
    }
    bt_log_set_level(level);
    signal(SIGPIPE, SIG_IGN);
    sigset_t signals; /* blocked in every thread, taken by main alone */
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    raise_descriptor_limit();

    gw_server *server = NULL; /* model, flags, metrics: shared by the loops, read-only */
    fleet all = {0};          /* the loops and their threads */
    status = gw_server_open(&config, &server, &err);
    if (status == BT_OK) status = open_loops(server, &all, &err);
    if (status == BT_OK) status = run_loops(server, &all, &signals, &err);
    if (status != BT_OK) bt_log_error("gateway", "cannot run", &err);

    for (uint32_t i = 0; i < all.n_loops; i++) gw_loop_close(all.loops[i]);
    gw_server_close(server);
    if (status == BT_OK) bt_log(BT_LOG_INFO, "gateway", "stopped", "threads=%u", all.n_loops);
    return status == BT_OK ? 0 : 1;
}
