/* kernels/exchange.h over UCX: the ranks of an expert-parallel group in as many processes, on one machine or several.
 *
 *     ep_net              one per process, for its life; owns the UCX worker and the listener
 *     └── ep_exchange     one at a time: a group, formed under an epoch; a connection to every other rank
 *
 * Everything is an active message; the higher rank of two connects. Messages land in buffers taken when the group is
 * formed: small ones are copied, large ones UCX receives there itself. Nothing is allocated in a step.
 *
 *   rule 1: a message counts only if it came over a connection of this group from the rank that said EP_HELLO on it.
 *   rule 2: an epoch is used once and epochs ascend: who connects under an older one is refused, who connects under a
 * newer one waits until this process forms that group too. rule 3: a rank is lost when its connection breaks (a killed
 * process: well within a second), when it breaks exchange.h's rules, or when a call has waited step_timeout_ms for it.
 *
 * Threads: the engine's thread makes all calls and drives UCX itself while it waits: no message changes threads. A wait
 * looks for some microseconds, then sleeps on UCX's descriptor. */
#ifndef BATON_KVTRANSFER_EP_UCX_H
#define BATON_KVTRANSFER_EP_UCX_H

#include "common/wire/wire.h"
#include "kernels/exchange.h"

typedef struct ep_net ep_net;

typedef struct {
    wire_compat compat;     /* must be equal on all ranks */
    const char *host;       /* listen here. Borrowed for the call, as transports */
    uint32_t port;          /* 0: the system chooses */
    const char *transports; /* UCX_TLS; NULL or "": all that the machine has */
    bool is_rendezvous;     /* rows always by rendezvous, whatever suits the transport: to measure and to test it */
} ep_net_config;

/* Starts UCX and listens. Call early in main(), see kvt_ucx_open(). BT_BAD_REQUEST, BT_INTERNAL. */
bt_status ep_net_open(const ep_net_config *config, ep_net **out, bt_error *err);

/* After its groups. NULL is accepted. */
void ep_net_close(ep_net *net);

uint32_t ep_net_port(const ep_net *net);

/* What wakes a sleeper while there is no group: one calls ep_net_look(), then sleeps on the descriptor with poll(). It
 * is the same as the exchange's, which looks by itself (is_called). Owned by the net. */
int ep_net_wait_fd(const ep_net *net);
void ep_net_look(ep_net *net);

typedef struct {
    uint64_t epoch; /* above all that this process has used */
    uint32_t rank, n_ranks;
    const char *const *addresses; /* [n_ranks] "host:port"; of lower ranks than this one, others are not read. Copied */
    ep_limits limits;
    uint32_t form_timeout_ms; /* until all ranks are connected; 0: 5000 */
    uint32_t step_timeout_ms; /* for one message of a peer; 0: 10000 */
} ep_group_config;

/* Begins to form a group: connects to the other ranks, who call this too, in any order. Returns at once. At most one
 * group at a time, until it is closed. BT_BAD_REQUEST: not a group. */
bt_status ep_group_open(ep_net *net, const ep_group_config *config, ep_exchange **out, bt_error *err);

/* Goes on with it; nothing but close may be called before it has said BT_OK. BT_AGAIN: not all are there; call again
 * when the exchange's wait_fd() is readable, and every EP_FORM_LOOK_MS. BT_BAD_REQUEST: a rank refused us; BT_TIMEOUT:
 * not all came; BT_PEER_LOST: one came and went. */
enum { EP_FORM_LOOK_MS = 20 };
bt_status ep_group_form(ep_exchange *exchange, bt_error *err);

/* The same for a caller that has nothing else to do: never BT_AGAIN. */
bt_status ep_group_await(ep_exchange *exchange, bt_error *err);

#endif
