/* Expert parallelism as forward.c sees it: how rows reach the ranks that hold their experts, and how results come back.
 * An implementation is a struct of functions, as a backend is: exchange_local.c for threads of one process, others over
 * a network. It moves bytes; who holds which expert is placement.h's matter, arithmetic is forward.c's.
 *
 * The ranks of a group run steps in lock step: every rank goes through all layers of every step, one that has no rows
 * with empty messages. A layer of routed experts is four calls, in this order:
 *
 *     post_rows      to each other rank one message, possibly empty: rows, and the pairs they need there
 *     take_rows      waits for such a message from each other rank
 *     post_results   answers each with one float32 row per pair, in the order of its pairs
 *     take_results   waits for the answers to what post_rows sent
 *
 * So between two ranks at most one message of rows and one of results are under way in each direction: a rank posts
 * the rows of a layer after it took the results of the layer before, and its peer posted those after it took the rows.
 * One buffer per peer, direction and kind is enough. A message says (epoch, step, layer): `epoch` is the group's
 * number, new whenever its members change; `step` counts begin() from 1 within an epoch, and all ranks agree on it. A
 * message of another epoch is dropped; one that its sender cannot have sent at this point is a failure of the group.
 *
 * Failure. A call that cannot complete because a rank is gone, broke these rules, or stayed silent until the deadline
 * returns BT_PEER_LOST. From then on every call of this rank returns BT_PEER_LOST at once, and the implementation lets
 * the other ranks know, so that they fail as well and none hangs: they see it in whichever call they make next or are
 * waiting in. A group that failed is closed, and opened again under a new epoch.
 *
 * Threads: the model's thread makes all calls. What a call is given is borrowed for the call alone. No allocation in
 * a step: buffers are sized by ep_limits when the implementation is opened. */
#ifndef BATON_KERNELS_EXCHANGE_H
#define BATON_KERNELS_EXCHANGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/core/status.h"

enum { EP_MAX_RANKS = 256 };

/* What the largest message holds, and what it means; krn_model_ep_limits() fills it. Equal on all ranks of a group. */
typedef struct {
    uint32_t max_rows;        /* that one rank sends to one other in a layer */
    uint32_t max_pairs;       /* the same, pairs */
    uint32_t row_bytes;       /* hidden_size elements of the backend's activation type */
    uint32_t result_elements; /* hidden_size: a result is so many float32 */
    uint32_t n_layers;        /* layers are numbered below it; only those with routed experts exchange */
    uint32_t n_experts;
    uint64_t placement; /* names who holds which expert: krn_placement_hash() */
} ep_limits;

/* A row visits an expert of the receiver. The message's row, 0 based in the order they are sent. */
typedef struct {
    uint32_t row, expert;
    float weight; /* the expert's output is multiplied by it before it is sent back */
} ep_pair;

/* Rows to one rank: a list of places in the caller's array of rows, no row twice. */
typedef struct {
    const uint32_t *rows; /* [n_rows]: row i of the message is row rows[i] of `x` */
    const ep_pair *pairs; /* [n_pairs]: experts ascending; rows ascending within an expert */
    uint32_t n_rows, n_pairs;
} ep_rows_out;

/* Rows from one rank. Lengths are within ep_limits: the implementation checks that. Experts, rows and their order are
 * what the peer says: forward.c checks them. */
typedef struct {
    const void *x;        /* [n_rows][row_bytes], aligned to 64 bytes */
    const ep_pair *pairs; /* [n_pairs], aligned as its type */
    uint32_t n_rows, n_pairs;
} ep_rows_in;

/* Results to one rank: places in the caller's array of results. */
typedef struct {
    const uint32_t *rows; /* [n_rows]: the answer to its pair i is row rows[i] of `y` */
    uint32_t n_rows;      /* as many as the pairs it sent */
} ep_results_out;

typedef struct ep_exchange ep_exchange;

/* Arrays over ranks have n_ranks entries; the entry of this rank itself is neither read nor written. */
struct ep_exchange {
    uint32_t rank, n_ranks;
    uint64_t epoch;

    /* Enters the group's next step. BT_PEER_LOST. */
    bt_status (*begin)(ep_exchange *exchange);

    /* x: the caller's rows of row_bytes each. Does not wait for the receivers. BT_PEER_LOST. */
    bt_status (*post_rows)(ep_exchange *exchange, uint32_t layer, const void *x, const ep_rows_out *out);

    /* What `in` points to stays until this rank's post_results(). BT_PEER_LOST. */
    bt_status (*take_rows)(ep_exchange *exchange, uint32_t layer, ep_rows_in *in);

    /* y: rows of result_elements float32. Does not wait for the receivers. BT_PEER_LOST. */
    bt_status (*post_results)(ep_exchange *exchange, uint32_t layer, const float *y, const ep_results_out *out);

    /* in[rank]: [n_pairs sent to it][result_elements], aligned to 64 bytes, until this rank's next post_rows() or
     * begin(); the implementation checks the number. BT_PEER_LOST. */
    bt_status (*take_results)(ep_exchange *exchange, uint32_t layer, const float **in);

    /* Whether a peer has begun a step that this rank has not: then this rank calls krn_forward() too, with zero rows if
     * it has none. False as well when no peer has; true when the group has failed, so that the step tells. */
    bool (*is_called)(ep_exchange *exchange);

    /* A descriptor that is readable while is_called() is true or may be about to become so: one sleeps on it with
     * poll(), then asks is_called(). Owned by the exchange; never read or closed by others. */
    int (*wait_fd)(ep_exchange *exchange);

    /* Gives the group up: this rank cannot go on (a peer's message made no sense, or this rank shuts down). All ranks'
     * calls return BT_PEER_LOST from now on. */
    void (*fail)(ep_exchange *exchange);

    /* Frees it; a group still in use fails for the others. `exchange` may be NULL in ep_exchange_close(). */
    void (*close)(ep_exchange *exchange);
};

static inline void ep_exchange_close(ep_exchange *exchange) {
    if (exchange != NULL) exchange->close(exchange);
}

#endif
