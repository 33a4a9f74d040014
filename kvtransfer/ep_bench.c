/* Measures one exchange between two ranks and prints CSV: the time that a layer of routed experts spends on the
 * network.
 *
 *   ep_bench --transports tcp,self --rows 16 --elements 7168 --layers 2000
 *
 * Inside the timed window: post_rows, take_rows, post_results and take_results on both sides, each rank sending `rows`
 * rows of bf16 with one pair each and getting as many float32 rows back; gathering, copying, waking up. Outside:
 * forming the group, a first tenth of the layers, all arithmetic. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/core/clock.h"
#include "common/core/config.h"
#include "common/core/log.h"
#include "kvtransfer/ep_ucx.h"

#define FLAGS(F)                                                                                                       \
    F(str, transports, "", "UCX_TLS of both sides; empty: all that the machine has")                                   \
    F(u32, rows, "16", "rows to the other rank in a layer")                                                            \
    F(u32, elements, "7168", "elements of a row, of 2 bytes there and 4 bytes back")                                   \
    F(u32, layers, "2000", "exchanges")
CFG_OWN(FLAGS)

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static bt_status exchange_once(ep_exchange *exchange, const void *x, const float *y, uint32_t *places, ep_pair *pairs,
                               uint32_t n_rows) {
    ep_rows_out rows[2];
    ep_rows_in in[2];
    ep_results_out results[2];
    const float *answers[2];
    rows[0] = rows[1] = (ep_rows_out){places, pairs, n_rows, n_rows};
    results[0] = results[1] = (ep_results_out){places, n_rows};
    bt_status status = exchange->post_rows(exchange, 0, x, rows);
    if (status == BT_OK) status = exchange->take_rows(exchange, 0, in);
    if (status == BT_OK) status = exchange->post_results(exchange, 0, y, results);
    return status == BT_OK ? exchange->take_results(exchange, 0, answers) : status;
}

/* Both ranks; rank 0 prints. */
static bt_status measure(const cfg_own *config, ep_exchange *exchange) {
    uint32_t n_rows = config->rows, n_warm = config->layers / 10;
    void *x = bt_calloc_aligned((size_t)n_rows * config->elements * 2, 64);
    float *y = bt_calloc_aligned((size_t)n_rows * config->elements * 4, 64);
    uint32_t *places = bt_calloc(n_rows, sizeof(*places));
    ep_pair *pairs = bt_calloc(n_rows, sizeof(*pairs));
    int64_t *took_ns = bt_calloc(config->layers, sizeof(*took_ns));
    for (uint32_t i = 0; i < n_rows; i++) places[i] = pairs[i].row = i;
    bt_status status = BT_OK;
    for (uint32_t i = 0; i < n_warm + config->layers && status == BT_OK; i++) {
        int64_t begin_ns = bt_now_ns();
        status = exchange->begin(exchange); /* one step per layer */
        if (status == BT_OK) status = exchange_once(exchange, x, y, places, pairs, n_rows);
        if (i >= n_warm) took_ns[i - n_warm] = bt_now_ns() - begin_ns;
    }
    qsort(took_ns, config->layers, sizeof(*took_ns), by_value);
    if (status == BT_OK && exchange->rank == 0)
        printf("ep_exchange,%s,%u,%u,%.1f,%.1f,%.1f\n", config->transports, n_rows, config->elements,
               (double)took_ns[config->layers / 10] / 1e3, (double)took_ns[config->layers / 2] / 1e3,
               (double)took_ns[config->layers * 99ull / 100] / 1e3);
    free(x);
    free(y);
    free(places);
    free(pairs);
    free(took_ns);
    return status;
}

static int rank_run(const cfg_own *config, uint32_t rank, int port_fd) {
    bt_error err = {0};
    ep_net *net = NULL;
    ep_exchange *exchange = NULL;
    char address[32];
    const char *addresses[2] = {address, NULL};
    ep_net_config net_config = {.host = "127.0.0.1", .transports = config->transports};
    bt_status status = ep_net_open(&net_config, &net, &err);
    uint32_t port = status == BT_OK ? ep_net_port(net) : 0;
    if (rank == 0 && write(port_fd, &port, sizeof(port)) != sizeof(port)) return 1;
    if (rank == 1 && read(port_fd, &port, sizeof(port)) != sizeof(port)) return 1;
    snprintf(address, sizeof(address), "127.0.0.1:%u", port);
    ep_group_config group = {.epoch = 1, .rank = rank, .n_ranks = 2, .addresses = addresses};
    group.limits = (ep_limits){config->rows, config->rows, config->elements * 2, config->elements, 1, 1, 0};
    if (status == BT_OK) status = ep_group_open(net, &group, &exchange, &err);
    if (status == BT_OK) status = ep_group_await(exchange, &err);
    if (status == BT_OK && measure(config, exchange) != BT_OK) status = bt_fail(&err, BT_PEER_LOST, "a rank is lost");
    if (status != BT_OK) bt_log_error("bench", "no exchange", &err);
    ep_exchange_close(exchange);
    ep_net_close(net);
    return status == BT_OK ? 0 : 1;
}

int main(int argc, char **argv) {
    cfg_own config;
    bt_error err = {0};
    bt_status status = cfg_parse("ep_bench", "rows exchanged between two ranks, as CSV", cfg_own_flags,
                                 sizeof(cfg_own_flags) / sizeof(cfg_own_flags[0]), argc, argv, &config, &err);
    if (status == BT_CANCELED) return 0;
    if (status != BT_OK) return bt_log_error("bench", "bad flags", &err), 2;
    bt_log_set_level(BT_LOG_ERROR);
    int ports[2];
    if (config.rows == 0 || config.elements == 0 || config.layers == 0 || pipe(ports) != 0) return 2;
    pid_t other = fork(); /* before UCX: it does not survive a fork */
    if (other == 0) return rank_run(&config, 1, ports[0]);
    int code = rank_run(&config, 0, ports[1]), other_status = 0;
    waitpid(other, &other_status, 0);
    return code != 0 ? code : WEXITSTATUS(other_status);
}
