/* An exchange between threads of one process: R models, one per rank, each on its own thread. For tests, and for
 * baton-run --ep. Bytes are copied through mailboxes under one lock; nobody is scheduled. */
#ifndef BATON_KERNELS_EXCHANGE_LOCAL_H
#define BATON_KERNELS_EXCHANGE_LOCAL_H

#include "kernels/exchange.h"

/* Opens a group: out[n_ranks] receives one exchange per rank, to be used and closed by that rank's thread, in any
 * order. A call that waits longer than timeout_ms fails the group. BT_INTERNAL: no descriptors left. */
bt_status ep_local_open(const ep_limits *limits, uint32_t n_ranks, uint64_t epoch, uint32_t timeout_ms,
                        ep_exchange **out, bt_error *err);

#endif
