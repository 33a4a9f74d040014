/* UCX as kvtransfer uses it: one context, one worker, one listener, endpoints. Knows nothing of peers, leases and
 * ranks. UCX handles are its opaque structs, so that UCX headers stay in the .c files; those of its
 * callbacks that carry its types are passed as void (*)(void) for the same reason.
 *
 * One thread at a time uses the worker. */
#ifndef BATON_KVTRANSFER_KVT_UCX_H
#define BATON_KVTRANSFER_KVT_UCX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/core/status.h"

struct ucp_context;
struct ucp_worker;
struct ucp_listener;
struct ucp_ep;
struct ucp_mem;
struct ucp_conn_request;
struct sockaddr;

/* Zeroed is closed. */
typedef struct {
    struct ucp_context *context;
    struct ucp_worker *worker;
    struct ucp_listener *listener; /* NULL: none */
    struct ucp_mem *memory;        /* NULL: none */
    uint32_t listen_port;
    int worker_fd; /* the worker's, to sleep on after ucp_worker_arm() */
} kvt_ucx;

/* transports: UCX_TLS, NULL or "": all that there are. message_bytes: the message that must go in as few fragments as
 * can be. Both set UCX_* defaults in the environment: of several in one process the first one's sizes hold.
 * BT_BAD_REQUEST: the machine has none of the transports. BT_INTERNAL: UCX refused; the sentence says what. */
bt_status kvt_ucx_open(kvt_ucx *ucx, const char *transports, size_t message_bytes, bt_error *err);
void kvt_ucx_close(kvt_ucx *ucx);

/* Registers memory that much is sent from or received into, once. */
bt_status kvt_ucx_register(kvt_ucx *ucx, void *base, size_t n_bytes, bt_error *err);

/* on_connection may come from any of UCX's threads. port 0: the system chooses. */
typedef void kvt_ucx_on_connection(struct ucp_conn_request *request, void *context);
bt_status kvt_ucx_listen(kvt_ucx *ucx, const char *host, uint32_t port, kvt_ucx_on_connection *on_connection,
                         void *context, bt_error *err);

/* handler: a ucp_am_recv_callback_t; gets whole messages of this id, and context. */
bt_status kvt_ucx_handle(kvt_ucx *ucx, unsigned id, void (*handler)(void), void *context, bt_error *err);

/* An endpoint to who listens at `address` ("host:port", hosts may be names), or to who asked to connect.
 * on_error: a ucp_err_handler_cb_t; hears once, with `context`, that the connection broke, and never after its close.
 * BT_BAD_REQUEST: not an address. BT_PEER_LOST: UCX refused. */
bt_status kvt_ucx_connect(kvt_ucx *ucx, const char *address, void (*on_error)(void), void *context, struct ucp_ep **out,
                          bt_error *err);
bt_status kvt_ucx_accept(kvt_ucx *ucx, struct ucp_conn_request *request, void (*on_error)(void), void *context,
                         struct ucp_ep **out, bt_error *err);

/* Who asks to connect, as "host:port". */
void kvt_ucx_client(struct ucp_conn_request *request, char *out, size_t cap_bytes);

/* flush: until what was sent is there, or never will be. close: at once; what is in flight completes with an error, so
 * an orderly end is flushed before. true: on_done will be called, from the worker's progress; false: it is over already
 * and on_done is not called. */
typedef void kvt_ucx_on_done(void *context);
bool kvt_ucx_flush(struct ucp_ep *ep, kvt_ucx_on_done *on_done, void *context);
bool kvt_ucx_close_ep(struct ucp_ep *ep, kvt_ucx_on_done *on_done, void *context);

/* "posix/memory", "tcp/eth0": what carries active messages of this endpoint. */
void kvt_ucx_transport(struct ucp_ep *ep, char *out, size_t cap_bytes);

/* Whether this transport moves a block faster in eager fragments than by a rendezvous that waits for the receiver:
 * shared memory and TCP do; everything else (RDMA) chooses for itself. */
bool kvt_ucx_is_eager(const char *transport);

bool kvt_ucx_has_rdma_device(void);

#endif
