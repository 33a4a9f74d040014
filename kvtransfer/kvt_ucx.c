/* UCX as we need it: settings, context, worker, listener, endpoints, and what it chose.
 *
 * The settings are measured: pushes of 73,728 bytes, ucx_perftest's am_bw, Xeon with AMX, 2 shared cores
 * (bench/kv_push.sh).
 *
 * - UCX_POSIX_ERROR_HANDLING: off by default, which silently demotes two processes of one host to TCP.
 * - UCX_POSIX_SEG_SIZE: as few fragments per push as can be: 10.4 GB/s instead of 8 with the default 8 KiB. Never above
 *   65,535: UCX 1.13 keeps a length in 16 bits and cuts the rest off without a word.
 * - UCX_TCP_?X_SEG_SIZE: one fragment over TCP, for as many blocks as go in one message: 4 to 7 GB/s instead of 2.4.
 * - UCX_POSIX_RX_BUFS_GROW: segments of shared memory taken at a time, 512 by default: /dev/shm is small in containers.
 * - UCX_RNDV_SCHEME: the receiver fetches, so that nobody writes into our memory from outside.
 * - UCX_KEEPALIVE_INTERVAL: a peer that vanished without a word is noticed in a second, not in twenty. */
#include <dirent.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucp/api/ucp.h>
#include <ucs/config/global_opts.h>
#include <ucs/debug/debug.h>

#include "common/core/address.h"
#include "common/core/alloc.h"
#include "kvtransfer/kvt_ucx.h"

enum { MAX_SHM_SEG_BYTES = 64000, N_CRASH_SIGNALS = 4, CAP_ADDRESS = 280 };
static const int crash_signals[N_CRASH_SIGNALS] = {SIGILL, SIGSEGV, SIGBUS, SIGFPE};

static bt_status check(ucs_status_t status, const char *call, bt_error *err) {
    if (status == UCS_OK) return BT_OK;
    return bt_fail(err, BT_INTERNAL, "%s: %s", call, ucs_status_string(status));
}

/* The environment is UCX's own way to be configured; what the operator set there stays. */
static void set_defaults(const char *transports, size_t message_bytes) {
    char seg_bytes[32], shm_seg_bytes[32];
    message_bytes += 1024; /* headers */
    snprintf(seg_bytes, sizeof(seg_bytes), "%zu", message_bytes);
    snprintf(shm_seg_bytes, sizeof(shm_seg_bytes), "%zu",
             message_bytes < MAX_SHM_SEG_BYTES ? message_bytes : MAX_SHM_SEG_BYTES);
    setenv("UCX_POSIX_ERROR_HANDLING", "y", 0);
    setenv("UCX_POSIX_SEG_SIZE", shm_seg_bytes, 0);
    setenv("UCX_POSIX_RX_BUFS_GROW", "64", 0);
    setenv("UCX_TCP_TX_SEG_SIZE", seg_bytes, 0);
    setenv("UCX_TCP_RX_SEG_SIZE", seg_bytes, 0);
    setenv("UCX_RNDV_SCHEME", "get_zcopy", 0);
    setenv("UCX_KEEPALIVE_INTERVAL", "1s", 0);
    setenv("UCX_LOG_LEVEL", "fatal", 0); /* lost peers are a normal day; what matters comes back as a status */
    setenv("UCX_WARN_UNUSED_ENV_VARS", "n", 0);
    if (transports != NULL && transports[0] != 0) setenv("UCX_TLS", transports, 1);
    /* Read before main(), so once more by hand. */
    ucs_global_opts_set_value("LOG_LEVEL", getenv("UCX_LOG_LEVEL"));
    ucs_global_opts_set_value("WARN_UNUSED_ENV_VARS", getenv("UCX_WARN_UNUSED_ENV_VARS"));
    for (int i = 0; i < N_CRASH_SIGNALS; i++) ucs_debug_disable_signal(crash_signals[i]); /* ours to report */
}

bt_status kvt_ucx_open(kvt_ucx *ucx, const char *transports, size_t message_bytes, bt_error *err) {
    set_defaults(transports, message_bytes);
    ucp_config_t *config = NULL;
    bt_status status = check(ucp_config_read(NULL, NULL, &config), "ucp_config_read", err);
    if (status != BT_OK) return status;
    ucp_params_t params = {
        .field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME,
        .features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP,
        .name = "baton",
    };
    ucs_status_t init = ucp_init(&params, config, &ucx->context);
    ucp_config_release(config);
    if (init == UCS_ERR_NO_DEVICE)
        return bt_fail(err, BT_BAD_REQUEST,
                       "this machine has none of the KV transports asked for (--kv-transports, UCX_TLS)");
    status = check(init, "ucp_init", err);
    if (status != BT_OK) return status;

    /* SERIALIZED: opened and closed here, used by the fabric's thread in between. */
    ucp_worker_params_t worker = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                  .thread_mode = UCS_THREAD_MODE_SERIALIZED};
    status = check(ucp_worker_create(ucx->context, &worker, &ucx->worker), "ucp_worker_create", err);
    if (status != BT_OK) return status;
    return check(ucp_worker_get_efd(ucx->worker, &ucx->worker_fd), "ucp_worker_get_efd", err);
}

bt_status kvt_ucx_register(kvt_ucx *ucx, void *base, size_t n_bytes, bt_error *err) {
    ucp_mem_map_params_t params = {
        .field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH,
        .address = base,
        .length = n_bytes,
    };
    return check(ucp_mem_map(ucx->context, &params, &ucx->memory), "ucp_mem_map of the KV memory", err);
}

void kvt_ucx_close(kvt_ucx *ucx) {
    if (ucx->listener != NULL) ucp_listener_destroy(ucx->listener);
    if (ucx->memory != NULL) ucp_mem_unmap(ucx->context, ucx->memory);
    if (ucx->worker != NULL) ucp_worker_destroy(ucx->worker);
    if (ucx->context != NULL) ucp_cleanup(ucx->context);
}

bt_status kvt_ucx_listen(kvt_ucx *ucx, const char *host, uint32_t port, kvt_ucx_on_connection *on_connection,
                         void *context, bt_error *err) {
    char service[8];
    snprintf(service, sizeof(service), "%u", port & 0xffff);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *found = NULL;
    int failed = getaddrinfo(host, service, &hints, &found);
    if (failed || port > 65535)
        return bt_fail(err, BT_BAD_REQUEST, "cannot listen for KV on %s:%u: %s", host, port,
                       failed ? gai_strerror(failed) : "no such port");
    ucp_listener_params_t params = {
        .field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER,
        .sockaddr = {found->ai_addr, found->ai_addrlen},
        .conn_handler = {on_connection, context},
    };
    ucs_status_t status = ucp_listener_create(ucx->worker, &params, &ucx->listener);
    freeaddrinfo(found);
    if (status != UCS_OK)
        return bt_fail(err, BT_INTERNAL, "cannot listen for KV on %s:%u: %s", host, port, ucs_status_string(status));
    ucp_listener_attr_t attr = {.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR};
    bt_status got = check(ucp_listener_query(ucx->listener, &attr), "ucp_listener_query", err);
    if (got != BT_OK) return got;
    char number[NI_MAXSERV];
    failed = getnameinfo((struct sockaddr *)&attr.sockaddr, sizeof(attr.sockaddr), NULL, 0, number, sizeof(number),
                         NI_NUMERICSERV);
    if (failed) return bt_fail(err, BT_INTERNAL, "the KV listener's port: %s", gai_strerror(failed));
    ucx->listen_port = (uint32_t)strtoul(number, NULL, 10);
    return BT_OK;
}

bt_status kvt_ucx_handle(kvt_ucx *ucx, unsigned id, void (*handler)(void), void *context, bt_error *err) {
    ucp_am_handler_param_t param = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS | UCP_AM_HANDLER_PARAM_FIELD_CB |
                      UCP_AM_HANDLER_PARAM_FIELD_ARG,
        .id = id,
        .flags = UCP_AM_FLAG_WHOLE_MSG,
        .cb = (ucp_am_recv_callback_t)handler,
        .arg = context,
    };
    return check(ucp_worker_set_am_recv_handler(ucx->worker, &param), "ucp_worker_set_am_recv_handler", err);
}

/* ---- endpoints ---- */

/* Free with freeaddrinfo(). */
static bt_status resolve(const char *address, struct addrinfo **out, bt_error *err) {
    char host[NI_MAXHOST], number[8];
    uint32_t port;
    bt_status status = bt_address_split(address, host, sizeof(host), &port, err);
    if (status != BT_OK) return status;
    snprintf(number, sizeof(number), "%u", port & 0xffff);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    int failed = getaddrinfo(host, number, &hints, out); /* workers advertise numbers: no look-up */
    if (failed) return bt_fail(err, BT_BAD_REQUEST, "%s: %s", address, gai_strerror(failed));
    return BT_OK;
}

static bt_status endpoint_create(kvt_ucx *ucx, ucp_ep_params_t *params, void (*on_error)(void), void *context,
                                 const char *address, struct ucp_ep **out, bt_error *err) {
    params->field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLER | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
    params->err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params->err_handler = (ucp_err_handler_t){(ucp_err_handler_cb_t)on_error, context};
    struct ucp_ep *ep = NULL;
    ucs_status_t status = ucp_ep_create(ucx->worker, params, &ep);
    if (status != UCS_OK)
        return bt_fail(err, BT_PEER_LOST, "no connection to %s: %s", address, ucs_status_string(status));
    *out = ep;
    return BT_OK;
}

bt_status kvt_ucx_connect(kvt_ucx *ucx, const char *address, void (*on_error)(void), void *context, struct ucp_ep **out,
                          bt_error *err) {
    struct addrinfo *found = NULL;
    bt_status status = resolve(address, &found, err);
    if (status != BT_OK) return status;
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_SOCK_ADDR | UCP_EP_PARAM_FIELD_FLAGS,
        .flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER,
        .sockaddr = {found->ai_addr, found->ai_addrlen},
    };
    status = endpoint_create(ucx, &params, on_error, context, address, out, err);
    freeaddrinfo(found);
    return status;
}

bt_status kvt_ucx_accept(kvt_ucx *ucx, struct ucp_conn_request *request, void (*on_error)(void), void *context,
                         struct ucp_ep **out, bt_error *err) {
    char address[CAP_ADDRESS];
    kvt_ucx_client(request, address, sizeof(address));
    ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST, .conn_request = request};
    return endpoint_create(ucx, &params, on_error, context, address, out, err);
}

/* Who waits for a flush or a close. */
typedef struct {
    kvt_ucx_on_done *on_done;
    void *context;
} waiter;

static void on_request_done(void *request, ucs_status_t status, void *context) {
    (void)status;
    waiter done = *(waiter *)context;
    free(context);
    ucp_request_free(request);
    done.on_done(done.context);
}

static ucp_request_param_t request_param(kvt_ucx_on_done *on_done, void *context) {
    waiter *wait = bt_calloc(1, sizeof(*wait));
    *wait = (waiter){on_done, context};
    return (ucp_request_param_t){
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS,
        .cb.send = on_request_done,
        .user_data = wait,
    };
}

/* It failed at once: it is over too. */
static bool is_pending(void *request, const ucp_request_param_t *param) {
    if (!UCS_PTR_IS_PTR(request)) free(param->user_data);
    return UCS_PTR_IS_PTR(request);
}

bool kvt_ucx_flush(struct ucp_ep *ep, kvt_ucx_on_done *on_done, void *context) {
    ucp_request_param_t param = request_param(on_done, context);
    return is_pending(ucp_ep_flush_nbx(ep, &param), &param);
}

bool kvt_ucx_close_ep(struct ucp_ep *ep, kvt_ucx_on_done *on_done, void *context) {
    ucp_request_param_t param = request_param(on_done, context);
    param.flags = UCP_EP_CLOSE_FLAG_FORCE;
    return is_pending(ucp_ep_close_nbx(ep, &param), &param);
}

void kvt_ucx_client(struct ucp_conn_request *request, char *out, size_t cap_bytes) {
    char host[NI_MAXHOST] = "?", port[NI_MAXSERV] = "?";
    ucp_conn_request_attr_t attr = {.field_mask = UCP_CONN_REQUEST_ATTR_FIELD_CLIENT_ADDR};
    if (ucp_conn_request_query(request, &attr) == UCS_OK)
        getnameinfo((struct sockaddr *)&attr.client_address, sizeof(attr.client_address), host, sizeof(host), port,
                    sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(out, cap_bytes, "%.200s:%s", host, port);
}

/* UCX 1.13 tells an endpoint's transports only as text: lines like
 *   #                 lane[0]:  2:posix/memory.0 md[3] -> md[3]/posix/sysdev[255] am am_bw#0 */
void kvt_ucx_transport(struct ucp_ep *ep, char *out, size_t cap_bytes) {
    snprintf(out, cap_bytes, "unknown");
    char *text = NULL;
    size_t n_bytes = 0;
    FILE *stream = open_memstream(&text, &n_bytes);
    if (stream == NULL) return;
    ucp_ep_print_info(ep, stream);
    fclose(stream);
    char *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line != NULL; line = strtok_r(NULL, "\n", &save)) {
        char transport[48], device[48];
        char *lane = strstr(line, "lane[");
        bool has_am = strstr(line, " am ") != NULL || strstr(line, " am_bw") != NULL ||
                      (strlen(line) >= 3 && strcmp(line + strlen(line) - 3, " am") == 0);
        if (lane == NULL || !has_am) continue;
        if (sscanf(lane, "lane[%*u]: %*u:%47[^/ ]/%47[^. ]", transport, device) != 2) continue;
        snprintf(out, cap_bytes, "%s/%s", transport, device);
        break;
    }
    free(text);
}

bool kvt_ucx_is_eager(const char *transport) {
    static const char *const eager[] = {"tcp/", "posix/", "sysv/", "self/"};
    for (size_t i = 0; i < sizeof(eager) / sizeof(eager[0]); i++) {
        if (strncmp(transport, eager[i], strlen(eager[i])) == 0) return true;
    }
    return false;
}

bool kvt_ucx_has_rdma_device(void) {
    DIR *folder = opendir("/sys/class/infiniband"); /* RoCE and iWARP devices are listed there too */
    if (folder == NULL) return false;
    bool is_found = false;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) is_found |= entry->d_name[0] != '.';
    closedir(folder);
    return is_found;
}
