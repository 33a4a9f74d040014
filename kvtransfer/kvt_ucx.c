/* UCX as we need it: settings, context, worker, listener, and what it chose. Knows nothing of peers and leases.
 *
 * The settings are measured: pushes of 73,728 bytes, ucx_perftest's am_bw, Xeon with AMX, 2 shared cores
 * (bench/kv_push.sh).
 *
 * - UCX_POSIX_ERROR_HANDLING: off by default, which silently demotes two processes of one host to TCP.
 * - UCX_POSIX_SEG_SIZE: as few fragments per push as can be: 10.4 GB/s instead of 8 with the default 8 KiB. Never above
 *   65,535: UCX 1.13 keeps a length in 16 bits and cuts the rest off without a word.
 * - UCX_TCP_?X_SEG_SIZE: one fragment over TCP: 4 to 7 GB/s instead of 2.4.
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

#include "common/core/log.h"
#include "kvtransfer/kvt_impl.h"

enum { MAX_SHM_SEG_BYTES = 64000, N_CRASH_SIGNALS = 4 };
static const int crash_signals[N_CRASH_SIGNALS] = {SIGILL, SIGSEGV, SIGBUS, SIGFPE};

static bt_status check(ucs_status_t status, const char *call, bt_error *err) {
    if (status == UCS_OK) return BT_OK;
    return bt_fail(err, BT_INTERNAL, "%s: %s", call, ucs_status_string(status));
}

/* The environment is UCX's own way to be configured; what the operator set there stays. */
static void set_defaults(const kvt_fabric *fabric) {
    char seg_bytes[32], shm_seg_bytes[32];
    size_t push_bytes = kvt_block_bytes(fabric) + 1024;
    snprintf(seg_bytes, sizeof(seg_bytes), "%zu", push_bytes);
    snprintf(shm_seg_bytes, sizeof(shm_seg_bytes), "%zu",
             push_bytes < MAX_SHM_SEG_BYTES ? push_bytes : MAX_SHM_SEG_BYTES);
    setenv("UCX_POSIX_ERROR_HANDLING", "y", 0);
    setenv("UCX_POSIX_SEG_SIZE", shm_seg_bytes, 0);
    setenv("UCX_POSIX_RX_BUFS_GROW", "64", 0);
    setenv("UCX_TCP_TX_SEG_SIZE", seg_bytes, 0);
    setenv("UCX_TCP_RX_SEG_SIZE", seg_bytes, 0);
    setenv("UCX_RNDV_SCHEME", "get_zcopy", 0);
    setenv("UCX_KEEPALIVE_INTERVAL", "1s", 0);
    setenv("UCX_LOG_LEVEL", "fatal", 0); /* lost peers are a normal day; what matters comes back as a status */
    setenv("UCX_WARN_UNUSED_ENV_VARS", "n", 0);
    const char *transports = fabric->config.transports;
    if (transports != NULL && transports[0] != 0) setenv("UCX_TLS", transports, 1);
    /* Read before main(), so once more by hand. */
    ucs_global_opts_set_value("LOG_LEVEL", getenv("UCX_LOG_LEVEL"));
    ucs_global_opts_set_value("WARN_UNUSED_ENV_VARS", getenv("UCX_WARN_UNUSED_ENV_VARS"));
    for (int i = 0; i < N_CRASH_SIGNALS; i++) ucs_debug_disable_signal(crash_signals[i]); /* ours to report */
}

bt_status kvt_ucx_open(kvt_fabric *fabric, bt_error *err) {
    set_defaults(fabric);
    ucp_config_t *config = NULL;
    bt_status status = check(ucp_config_read(NULL, NULL, &config), "ucp_config_read", err);
    if (status != BT_OK) return status;
    ucp_params_t params = {
        .field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME,
        .features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP,
        .name = "baton",
    };
    ucs_status_t init = ucp_init(&params, config, &fabric->context);
    ucp_config_release(config);
    if (init == UCS_ERR_NO_DEVICE)
        return bt_fail(err, BT_BAD_REQUEST,
                       "this machine has none of the KV transports asked for (--kv-transports, UCX_TLS)");
    status = check(init, "ucp_init", err);
    if (status != BT_OK) return status;

    /* SERIALIZED: opened and closed here, used by the fabric's thread in between. */
    ucp_worker_params_t worker = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                  .thread_mode = UCS_THREAD_MODE_SERIALIZED};
    status = check(ucp_worker_create(fabric->context, &worker, &fabric->worker), "ucp_worker_create", err);
    if (status != BT_OK) return status;
    status = check(ucp_worker_get_efd(fabric->worker, &fabric->worker_fd), "ucp_worker_get_efd", err);
    if (status != BT_OK) return status;

    ucp_mem_map_params_t memory = {
        .field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH,
        .address = fabric->config.kv_base,
        .length = kv_pool_bytes(&fabric->config.layout),
    };
    return check(ucp_mem_map(fabric->context, &memory, &fabric->memory), "ucp_mem_map of the KV memory", err);
}

void kvt_ucx_close(kvt_fabric *fabric) {
    if (fabric->listener != NULL) ucp_listener_destroy(fabric->listener);
    if (fabric->memory != NULL) ucp_mem_unmap(fabric->context, fabric->memory);
    if (fabric->worker != NULL) ucp_worker_destroy(fabric->worker);
    if (fabric->context != NULL) ucp_cleanup(fabric->context);
}

/* UCX may call this from any of its threads: hand over, nothing else. */
static void on_connection(ucp_conn_request_h request, void *context) {
    kvt_fabric *fabric = context;
    kvt_command *command = bt_calloc(1, sizeof(*command));
    command->kind = KVT_CMD_ACCEPT;
    command->request = request;
    bt_queue_push(fabric->commands, &command->node);
}

bt_status kvt_ucx_listen(kvt_fabric *fabric, bt_error *err) {
    const char *host = fabric->config.host;
    if (host == NULL || host[0] == 0) return BT_OK;
    char port[8];
    snprintf(port, sizeof(port), "%u", fabric->config.port & 0xffff);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *found = NULL;
    int failed = getaddrinfo(host, port, &hints, &found);
    if (failed || fabric->config.port > 65535)
        return bt_fail(err, BT_BAD_REQUEST, "cannot listen for KV on %s:%u: %s", host, fabric->config.port,
                       failed ? gai_strerror(failed) : "no such port");
    ucp_listener_params_t params = {
        .field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER,
        .sockaddr = {found->ai_addr, found->ai_addrlen},
        .conn_handler = {on_connection, fabric},
    };
    ucs_status_t status = ucp_listener_create(fabric->worker, &params, &fabric->listener);
    freeaddrinfo(found);
    if (status != UCS_OK)
        return bt_fail(err, BT_INTERNAL, "cannot listen for KV on %s:%s: %s", host, port, ucs_status_string(status));
    ucp_listener_attr_t attr = {.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR};
    bt_status got = check(ucp_listener_query(fabric->listener, &attr), "ucp_listener_query", err);
    if (got != BT_OK) return got;
    char number[NI_MAXSERV];
    failed = getnameinfo((struct sockaddr *)&attr.sockaddr, sizeof(attr.sockaddr), NULL, 0, number, sizeof(number),
                         NI_NUMERICSERV);
    if (failed) return bt_fail(err, BT_INTERNAL, "the KV listener's port: %s", gai_strerror(failed));
    fabric->listen_port = (uint32_t)strtoul(number, NULL, 10);
    return BT_OK;
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

bool kvt_ucx_has_rdma_device(void) {
    DIR *folder = opendir("/sys/class/infiniband"); /* RoCE and iWARP devices are listed there too */
    if (folder == NULL) return false;
    bool is_found = false;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) is_found |= entry->d_name[0] != '.';
    closedir(folder);
    return is_found;
}
