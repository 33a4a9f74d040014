/* One layer's routed experts when they live on several ranks: which pairs go where, all pairs that arrive in one call
 * of the backend, results back to where the rows came from. Stands between forward.c and an exchange. The model's
 * thread owns it; nothing is allocated after open. */
#ifndef BATON_KERNELS_EP_H
#define BATON_KERNELS_EP_H

#include "kernels/backend.h"
#include "kernels/exchange.h"
#include "kernels/placement.h"

typedef struct krn_ep krn_ep;

/* `placement` is borrowed and outlives it. limits: of the group's messages, krn_ep_limits(). */
krn_ep *krn_ep_open(const ep_limits *limits, const krn_placement *placement, uint32_t rank);
void krn_ep_close(krn_ep *ep);

/* What a group's messages hold, with steps of max_rows rows. */
ep_limits krn_ep_limits(const mdl_config *config, const krn_placement *placement, uint32_t max_rows,
                        size_t activation_bytes);

/* Sends the rows of x (act [n_rows][hidden_size]) to the ranks that compute their pairs; pairs as krn_route_pairs()
 * orders them. x and pairs stay untouched until krn_ep_finish(). BT_PEER_LOST. */
bt_status krn_ep_post(krn_ep *ep, ep_exchange *exchange, uint32_t layer, const void *x, uint32_t n_rows,
                      const krn_pair *pairs, uint32_t n_pairs);

/* Computes the pairs that stayed and those that peers sent, answers, and collects: results[i] points to the row of pair
 * i, until the next krn_ep_post(). BT_PEER_LOST: also when a peer's message makes no sense. */
bt_status krn_ep_finish(krn_ep *ep, ep_exchange *exchange, uint32_t layer, krn_backend *backend, const krn_mlp *experts,
                        const float **results);

#endif
