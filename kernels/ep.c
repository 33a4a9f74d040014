/* Sorts a layer's pairs by the rank that computes them, and the pairs of all ranks by expert.
 *
 * Sources are numbered as ranks are; this rank's own rows are one of them. Rows of all sources lie one after another in
 * `x`, own rows first, so that an expert sees the rows of everybody in one call and its weights are read once. What a
 * row's sum is made of does not depend on any of this: pairs keep their bits wherever they are computed, and forward.c
 * adds them up in ascending expert number. */
#include "kernels/ep.h"

#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/log.h"

enum { NOT_SENT = UINT32_MAX };

typedef struct {
    uint32_t *rows; /* [max_rows]: rows sent there */
    ep_pair *pairs; /* [max_pairs]: pairs computed there, with the message's row numbers */
    uint32_t n_rows, n_pairs;
    uint32_t *place_of_row; /* [max_rows]: a row's number in the message, or NOT_SENT */
    uint32_t *y_rows;       /* [max_pairs]: where in y the results of the pairs from there are */
} peer;

struct krn_ep {
    ep_limits limits;
    const krn_placement *placement; /* borrowed */
    uint32_t rank, n_ranks;
    peer *peers;              /* [n_ranks], this rank's entry: the pairs that stay */
    uint16_t *rank_of_pair;   /* [max_rows * experts per token] */
    uint32_t n_rows, n_pairs; /* of the layer in flight */
    const void *own_x;        /* its rows; borrowed between post and finish */
    void *x;                  /* act [n_ranks * max_rows][hidden_size] */
    krn_pair *pairs;          /* [n_ranks * max_pairs]: of all sources, by expert */
    float *y;                 /* [n_ranks * max_pairs][hidden_size] */
    uint32_t *first_pair;     /* [n_experts] */
    ep_rows_out *rows_out;    /* [n_ranks] each, from here */
    ep_rows_in *rows_in;
    ep_results_out *results_out;
    const float **results_in;
    uint32_t *n_taken;
};

ep_limits krn_ep_limits(const mdl_config *config, const krn_placement *placement, uint32_t max_rows,
                        size_t activation_bytes) {
    uint32_t max_held = krn_placement_max_held(placement), per_row = config->num_experts_per_tok;
    return (ep_limits){
        .max_rows = max_rows,
        .max_pairs = max_rows * (per_row < max_held ? per_row : max_held),
        .row_bytes = (uint32_t)(config->hidden_size * activation_bytes),
        .result_elements = config->hidden_size,
        .n_layers = config->num_hidden_layers,
        .n_experts = config->n_routed_experts,
        .placement = krn_placement_hash(placement),
    };
}

krn_ep *krn_ep_open(const ep_limits *limits, const krn_placement *placement, uint32_t rank) {
    enum { ALIGN_BYTES = 64 };
    krn_ep *ep = bt_calloc(1, sizeof(*ep));
    uint32_t n = krn_placement_n_ranks(placement);
    size_t all_rows = (size_t)n * limits->max_rows, all_pairs = (size_t)n * limits->max_pairs;
    ep->limits = *limits;
    ep->placement = placement;
    ep->rank = rank;
    ep->n_ranks = n;
    ep->peers = bt_calloc(n, sizeof(*ep->peers));
    for (uint32_t r = 0; r < n; r++) {
        ep->peers[r].rows = bt_calloc(limits->max_rows, sizeof(uint32_t));
        ep->peers[r].pairs = bt_calloc(limits->max_pairs, sizeof(ep_pair));
        ep->peers[r].place_of_row = bt_calloc(limits->max_rows, sizeof(uint32_t));
        ep->peers[r].y_rows = bt_calloc(limits->max_pairs, sizeof(uint32_t));
    }
    ep->rank_of_pair = bt_calloc(all_pairs, sizeof(uint16_t)); /* n ranks of max_pairs hold every pair of every row */
    ep->x = bt_calloc_aligned(all_rows * limits->row_bytes, ALIGN_BYTES);
    ep->pairs = bt_calloc(all_pairs, sizeof(krn_pair));
    ep->y = bt_calloc_aligned(all_pairs * limits->result_elements * sizeof(float), ALIGN_BYTES);
    ep->first_pair = bt_calloc(limits->n_experts, sizeof(uint32_t));
    ep->rows_out = bt_calloc(n, sizeof(*ep->rows_out));
    ep->rows_in = bt_calloc(n, sizeof(*ep->rows_in));
    ep->results_out = bt_calloc(n, sizeof(*ep->results_out));
    ep->results_in = bt_calloc(n, sizeof(*ep->results_in));
    ep->n_taken = bt_calloc(n, sizeof(*ep->n_taken));
    return ep;
}

void krn_ep_close(krn_ep *ep) {
    if (ep == NULL) return;
    for (uint32_t r = 0; r < ep->n_ranks; r++) {
        free(ep->peers[r].rows);
        free(ep->peers[r].pairs);
        free(ep->peers[r].place_of_row);
        free(ep->peers[r].y_rows);
    }
    free(ep->peers);
    free(ep->rank_of_pair);
    free(ep->x);
    free(ep->pairs);
    free(ep->y);
    free(ep->first_pair);
    free(ep->rows_out);
    free(ep->rows_in);
    free(ep->results_out);
    free(ep->results_in);
    free(ep->n_taken);
    free(ep);
}

bt_status krn_ep_post(krn_ep *ep, ep_exchange *exchange, uint32_t layer, const void *x, uint32_t n_rows,
                      const krn_pair *pairs, uint32_t n_pairs) {
    ep->own_x = x;
    ep->n_rows = n_rows;
    ep->n_pairs = n_pairs;
    for (uint32_t r = 0; r < ep->n_ranks; r++) {
        ep->peers[r].n_rows = ep->peers[r].n_pairs = 0;
        for (uint32_t row = 0; row < n_rows; row++) ep->peers[r].place_of_row[row] = NOT_SENT;
    }
    for (uint32_t i = 0; i < n_pairs; i++) {
        uint32_t r = krn_placement_choose(ep->placement, ep->rank, layer, pairs[i].expert, pairs[i].row);
        ep->rank_of_pair[i] = (uint16_t)r;
        ep->peers[r].place_of_row[pairs[i].row] = 0; /* wanted; numbered below, in ascending order */
    }
    for (uint32_t r = 0; r < ep->n_ranks; r++) {
        peer *p = &ep->peers[r];
        for (uint32_t row = 0; row < n_rows; row++) {
            if (r == ep->rank) { /* own rows are all there */
                p->place_of_row[row] = row;
            } else if (p->place_of_row[row] != NOT_SENT) {
                p->place_of_row[row] = p->n_rows;
                p->rows[p->n_rows++] = row;
            }
        }
    }
    for (uint32_t i = 0; i < n_pairs; i++) {
        peer *p = &ep->peers[ep->rank_of_pair[i]];
        p->pairs[p->n_pairs++] = (ep_pair){p->place_of_row[pairs[i].row], pairs[i].expert, pairs[i].weight};
    }
    for (uint32_t r = 0; r < ep->n_ranks; r++) {
        const peer *p = &ep->peers[r];
        ep->rows_out[r] = (ep_rows_out){p->rows, p->pairs, p->n_rows, p->n_pairs};
    }
    return exchange->post_rows(exchange, layer, x, ep->rows_out);
}

/* What a peer asks for: experts that are here, rows that it sent, in order and none twice. */
static bool is_sound(const krn_ep *ep, uint32_t layer, const ep_rows_in *in) {
    if (in->n_rows > ep->limits.max_rows || in->n_pairs > ep->limits.max_pairs) return false;
    for (uint32_t i = 0; i < in->n_pairs; i++) {
        const ep_pair *pair = &in->pairs[i], *last = i > 0 ? pair - 1 : NULL;
        if (pair->row >= in->n_rows || pair->expert >= ep->limits.n_experts) return false;
        if (!krn_placement_holds(ep->placement, ep->rank, layer, pair->expert)) return false;
        if (last == NULL || pair->expert > last->expert) continue;
        if (pair->expert < last->expert || pair->row <= last->row) return false;
    }
    return true;
}

/* Own pairs and the peers' by expert, own before the peers' and those by rank; rows of all behind each other in x. */
static uint32_t merge(krn_ep *ep) {
    uint32_t n_rows = 0, n_pairs = 0;
    memset(ep->first_pair, 0, ep->limits.n_experts * sizeof(uint32_t));
    for (uint32_t r = 0; r < ep->n_ranks; r++) {
        for (uint32_t i = 0; i < ep->rows_in[r].n_pairs; i++) ep->first_pair[ep->rows_in[r].pairs[i].expert]++;
    }
    for (uint32_t e = 0; e < ep->limits.n_experts; e++) {
        uint32_t n = ep->first_pair[e];
        ep->first_pair[e] = n_pairs;
        n_pairs += n;
    }
    for (uint32_t i = 0; i < ep->n_ranks; i++) {
        uint32_t r = (ep->rank + i) % ep->n_ranks;
        const ep_rows_in *in = &ep->rows_in[r];
        if (in->n_rows > 0) {
            memcpy((uint8_t *)ep->x + (size_t)n_rows * ep->limits.row_bytes, in->x,
                   (size_t)in->n_rows * ep->limits.row_bytes);
        }
        for (uint32_t p = 0; p < in->n_pairs; p++) {
            uint32_t at = ep->first_pair[in->pairs[p].expert]++;
            ep->pairs[at] = (krn_pair){n_rows + in->pairs[p].row, in->pairs[p].expert, in->pairs[p].weight};
            ep->peers[r].y_rows[p] = at;
        }
        n_rows += in->n_rows;
    }
    return n_pairs;
}

/* Waits for the peers' rows; on return rows_in holds this rank's own as well. */
static bt_status take_rows(krn_ep *ep, ep_exchange *exchange, uint32_t layer) {
    bt_status status = exchange->take_rows(exchange, layer, ep->rows_in);
    if (status != BT_OK) return status;
    for (uint32_t r = 0; r < ep->n_ranks; r++) {
        if (r == ep->rank || is_sound(ep, layer, &ep->rows_in[r])) continue;
        bt_log(BT_LOG_ERROR, "ep", "senseless rows", "rank=%u from=%u layer=%u", ep->rank, r, layer);
        exchange->fail(exchange);
        return BT_PEER_LOST;
    }
    const peer *own = &ep->peers[ep->rank];
    ep->rows_in[ep->rank] = (ep_rows_in){ep->own_x, own->pairs, ep->n_rows, own->n_pairs};
    return BT_OK;
}

bt_status krn_ep_finish(krn_ep *ep, ep_exchange *exchange, uint32_t layer, krn_backend *backend, const krn_mlp *experts,
                        const float **results) {
    bt_status status = take_rows(ep, exchange, layer);
    if (status != BT_OK) return status;
    const krn_experts_args args = {
        .experts = experts,
        .pairs = ep->pairs,
        .n_pairs = merge(ep),
        .x = ep->x,
        .y = ep->y,
    };
    if (args.n_pairs > 0) backend->experts(backend, &args);
    for (uint32_t r = 0; r < ep->n_ranks; r++) {
        ep->results_out[r] = (ep_results_out){ep->peers[r].y_rows, ep->rows_in[r].n_pairs};
    }
    status = exchange->post_results(exchange, layer, ep->y, ep->results_out);
    if (status == BT_OK) status = exchange->take_results(exchange, layer, ep->results_in);
    if (status != BT_OK) return status;
    memset(ep->n_taken, 0, ep->n_ranks * sizeof(uint32_t));
    size_t hidden = ep->limits.result_elements;
    for (uint32_t i = 0; i < ep->n_pairs; i++) {
        uint32_t r = ep->rank_of_pair[i], k = ep->n_taken[r]++;
        results[i] = r == ep->rank ? ep->y + ep->peers[r].y_rows[k] * hidden : ep->results_in[r] + k * hidden;
    }
    return BT_OK;
}
