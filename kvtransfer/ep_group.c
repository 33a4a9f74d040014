/* A group: formed, stepped through, failed, closed. The functions of kernels/exchange.h are here: each puts together or
 * takes apart one message per peer and waits for what it needs, with a deadline. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/clock.h"
#include "common/core/log.h"
#include "kvtransfer/ep_impl.h"

_Static_assert(sizeof(ep_pair) == 12 && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "pairs lie on the wire as in memory");

enum { DEFAULT_FORM_MS = 5000, DEFAULT_STEP_MS = 10000, FLUSH_MS = 100 };

static ep_group *group_of(ep_exchange *exchange) { return (ep_group *)(void *)exchange; }

/* The next of the other ranks, beginning after this one, so that not all turn to the same one first. */
static uint32_t peer_at(const ep_group *group, uint32_t i) {
    return (group->exchange.rank + 1 + i) % group->exchange.n_ranks;
}
static uint32_t n_peers(const ep_group *group) { return group->exchange.n_ranks - 1; }

void ep_group_fail(ep_group *group, const char *format, ...) {
    if (group->has_failed) return;
    group->has_failed = true;
    group->why.status = BT_PEER_LOST;
    va_list args;
    va_start(args, format);
    vsnprintf(group->why.text, sizeof(group->why.text), format, args);
    va_end(args);
    bt_log(BT_LOG_WARN, "ep", "group failed", "rank=%u epoch=%llu step=%llu text=\"%s\"", group->exchange.rank,
           (unsigned long long)group->exchange.epoch, (unsigned long long)group->step, group->why.text);
    ep_net_call(group->net, true);
}

void ep_group_tell(ep_group *group) {
    if (!group->has_failed || group->why.status != BT_PEER_LOST || group->has_told) return;
    group->has_told = true;
    char text[WIRE_MAX_TEXT];
    snprintf(text, sizeof(text), "%.*s", WIRE_MAX_TEXT - 1, group->why.text);
    wire_message leave = {.type = WIRE_EP_LEAVE,
                          .ep_leave = {group->exchange.epoch, .has_failed = 1, .text = wire_str_from(text)}};
    for (uint32_t i = 0; i < n_peers(group); i++) {
        ep_conn *peer = group->peers[peer_at(group, i)];
        if (peer != NULL && !peer->has_left && peer->state == EP_IS_UP)
            ep_link_send(peer, EP_OP_LEAVE, &leave, NULL, 0);
    }
}

static bt_status lost(ep_group *group) {
    ep_net_progress(group->net); /* lets the others know */
    return BT_PEER_LOST;
}

/* No peer has left: then a message to each makes sense. */
static bool is_whole(ep_group *group) {
    for (uint32_t i = 0; i < n_peers(group) && !group->has_failed; i++) {
        ep_conn *peer = group->peers[peer_at(group, i)];
        if (peer->has_left) ep_group_fail(group, "rank %u has left", peer->rank);
    }
    return !group->has_failed;
}

/* Until UCX has let go of the message before: the peer has long taken it. */
static bool op_wait(ep_group *group, ep_conn *peer, ep_op_kind kind) {
    int64_t deadline_ns = bt_now_ns() + group->step_timeout_ns;
    while (!group->has_failed && peer->ops[kind].is_busy) {
        if (bt_now_ns() >= deadline_ns) ep_group_fail(group, "rank %u takes nothing", peer->rank);
        ep_net_progress(group->net);
        if (!group->has_failed && peer->ops[kind].is_busy) ep_net_wait(group->net, deadline_ns);
    }
    return !group->has_failed;
}

/* ---- the four calls ---- */

static bt_status exchange_begin(ep_exchange *exchange) {
    ep_group *group = group_of(exchange);
    if (!group->has_failed) ep_net_progress(group->net);
    if (group->has_failed || !is_whole(group)) return lost(group);
    group->step++;
    ep_net_call(group->net, true);
    wire_message begin = {.type = WIRE_EP_BEGIN, .ep_begin = {exchange->epoch, group->step}};
    for (uint32_t i = 0; i < n_peers(group); i++) {
        ep_conn *peer = group->peers[peer_at(group, i)];
        if (!op_wait(group, peer, EP_OP_BEGIN)) return lost(group);
        if (peer->results.state == EP_TAKEN) peer->results.state = EP_EMPTY;
        ep_link_send(peer, EP_OP_BEGIN, &begin, NULL, 0);
    }
    return group->has_failed ? lost(group) : BT_OK;
}

static bt_status exchange_post_rows(ep_exchange *exchange, uint32_t layer, const void *x, const ep_rows_out *out) {
    ep_group *group = group_of(exchange);
    const ep_limits *limits = &group->limits;
    if (group->has_failed || !is_whole(group)) return lost(group);
    for (uint32_t i = 0; i < n_peers(group); i++) {
        uint32_t rank = peer_at(group, i);
        const ep_rows_out *rows = &out[rank];
        ep_conn *peer = group->peers[rank];
        BT_ASSERT(rows->n_rows <= limits->max_rows && rows->n_pairs <= limits->max_pairs);
        if (!op_wait(group, peer, EP_OP_ROWS)) return lost(group);
        if (peer->results.state == EP_TAKEN) peer->results.state = EP_EMPTY;
        peer->n_pairs_sent = rows->n_pairs;
        for (uint32_t r = 0; r < rows->n_rows; r++)
            memcpy(peer->rows_out + (size_t)r * limits->row_bytes,
                   (const uint8_t *)x + (size_t)rows->rows[r] * limits->row_bytes, limits->row_bytes);
        if (rows->n_pairs > 0)
            memcpy(peer->rows_out + ep_pairs_offset(limits, rows->n_rows), rows->pairs,
                   rows->n_pairs * sizeof(ep_pair));
        wire_message message = {.type = WIRE_EP_ROWS,
                                .ep_rows = {exchange->epoch, group->step, layer, rows->n_rows, rows->n_pairs}};
        ep_link_send(peer, EP_OP_ROWS, &message, peer->rows_out, ep_rows_bytes(limits, rows->n_rows, rows->n_pairs));
    }
    return group->has_failed ? lost(group) : BT_OK;
}

static bt_status exchange_post_results(ep_exchange *exchange, uint32_t layer, const float *y,
                                       const ep_results_out *out) {
    ep_group *group = group_of(exchange);
    const ep_limits *limits = &group->limits;
    size_t width = limits->result_elements;
    if (group->has_failed || !is_whole(group)) return lost(group);
    for (uint32_t i = 0; i < n_peers(group); i++) {
        uint32_t rank = peer_at(group, i);
        ep_conn *peer = group->peers[rank];
        BT_ASSERT(peer->rows.state == EP_TAKEN && out[rank].n_rows == peer->rows.n_pairs);
        if (!op_wait(group, peer, EP_OP_RESULTS)) return lost(group);
        peer->rows.state = EP_EMPTY; /* before the peer can send the next ones */
        float *row = (float *)(void *)peer->results_out;
        for (uint32_t r = 0; r < out[rank].n_rows; r++, row += width)
            memcpy(row, y + out[rank].rows[r] * width, width * sizeof(float));
        wire_message message = {.type = WIRE_EP_RESULTS,
                                .ep_results = {exchange->epoch, group->step, layer, out[rank].n_rows}};
        ep_link_send(peer, EP_OP_RESULTS, &message, peer->results_out, ep_results_bytes(limits, out[rank].n_rows));
    }
    return group->has_failed ? lost(group) : BT_OK;
}

static ep_slot *slot_at(ep_group *group, uint32_t rank, bool is_rows) {
    ep_conn *peer = group->peers[rank];
    return is_rows ? &peer->rows : &peer->results;
}

/* Waits until that slot of every peer is full with what belongs to this step and layer. */
static bool slots_wait(ep_group *group, uint32_t layer, bool is_rows) {
    int64_t deadline_ns = bt_now_ns() + group->step_timeout_ns;
    for (uint32_t i = 0; i < n_peers(group) && !group->has_failed;) {
        ep_conn *peer = group->peers[peer_at(group, i)];
        ep_slot *slot = slot_at(group, peer->rank, is_rows);
        if (slot->state == EP_FULL) {
            if (slot->step != group->step || slot->layer != layer)
                ep_group_fail(group, "rank %u is in step %llu, layer %u, not %llu, %u", peer->rank,
                              (unsigned long long)slot->step, slot->layer, (unsigned long long)group->step, layer);
            i++;
            continue;
        }
        if (peer->has_left && slot->state == EP_EMPTY) ep_group_fail(group, "rank %u has left", peer->rank);
        if (bt_now_ns() >= deadline_ns) ep_group_fail(group, "rank %u hangs", peer->rank);
        ep_net_progress(group->net);
        if (!group->has_failed && slot->state != EP_FULL && !peer->has_left) ep_net_wait(group->net, deadline_ns);
    }
    return !group->has_failed;
}

static bt_status exchange_take_rows(ep_exchange *exchange, uint32_t layer, ep_rows_in *in) {
    ep_group *group = group_of(exchange);
    if (group->has_failed || !slots_wait(group, layer, true)) return lost(group);
    for (uint32_t i = 0; i < n_peers(group); i++) {
        uint32_t rank = peer_at(group, i);
        ep_slot *slot = slot_at(group, rank, true);
        slot->state = EP_TAKEN;
        in[rank] = (ep_rows_in){
            .x = slot->bytes,
            .pairs = (const ep_pair *)(const void *)(slot->bytes + ep_pairs_offset(&group->limits, slot->n_rows)),
            .n_rows = slot->n_rows,
            .n_pairs = slot->n_pairs,
        };
    }
    return BT_OK;
}

static bt_status exchange_take_results(ep_exchange *exchange, uint32_t layer, const float **in) {
    ep_group *group = group_of(exchange);
    if (group->has_failed || !slots_wait(group, layer, false)) return lost(group);
    for (uint32_t i = 0; i < n_peers(group); i++) {
        uint32_t rank = peer_at(group, i);
        ep_slot *slot = slot_at(group, rank, false);
        if (slot->n_pairs != group->peers[rank]->n_pairs_sent) {
            ep_group_fail(group, "rank %u answers %u pairs with %u rows", rank, group->peers[rank]->n_pairs_sent,
                          slot->n_pairs);
            return lost(group);
        }
        slot->state = EP_TAKEN;
        in[rank] = (const float *)(const void *)slot->bytes;
    }
    return BT_OK;
}

/* ---- between steps ---- */

static bool has_call(const ep_group *group) {
    if (group->has_failed) return true;
    for (uint32_t i = 0; i < n_peers(group); i++) {
        const ep_conn *peer = group->peers[peer_at(group, i)];
        if (peer->has_left || peer->step_begun > group->step) return true;
    }
    return false;
}

static bool exchange_is_called(ep_exchange *exchange) {
    ep_group *group = group_of(exchange);
    ep_net_look(group->net);
    bool is_called = has_call(group);
    if (is_called) ep_net_call(group->net, true);
    return is_called;
}

static int exchange_wait_fd(ep_exchange *exchange) { return group_of(exchange)->net->wait_fd; }

static void exchange_fail(ep_exchange *exchange) {
    ep_group *group = group_of(exchange);
    ep_group_fail(group, "it cannot go on");
    ep_net_progress(group->net);
}

/* ---- close ---- */

static bool is_peer(const ep_group *group, const ep_conn *conn) {
    return conn->state == EP_IS_UP && conn->epoch == group->exchange.epoch && !conn->is_lost;
}

/* Whether a peer may still need something that is on its way: it has not said that it leaves too. */
static bool is_needed(const ep_group *group) {
    for (const ep_conn *conn = group->net->conns; conn != NULL; conn = conn->next) {
        if (is_peer(group, conn) && !conn->has_left) return true;
    }
    return false;
}

static bool is_flushing(const ep_group *group) {
    for (const ep_conn *conn = group->net->conns; conn != NULL; conn = conn->next) {
        if (is_peer(group, conn) && conn->is_flushing) return true;
    }
    return false;
}

static bool is_there(const ep_group *group) {
    for (const ep_conn *conn = group->net->conns; conn != NULL; conn = conn->next) {
        if (conn->epoch == group->exchange.epoch) return true;
    }
    return false;
}

static void wait_while(ep_group *group, bool (*condition)(const ep_group *), int ms) {
    int64_t deadline_ns = bt_now_ns() + (int64_t)ms * BT_NS_PER_MS;
    for (ep_net_progress(group->net); condition(group) && bt_now_ns() < deadline_ns; ep_net_progress(group->net))
        ep_net_wait(group->net, deadline_ns);
}

/* A closed connection is known at once and could overtake the last results: so a rank says that it leaves, behind them,
 * and gives the others EP_LINGER_MS to leave too. A group that failed needs no such care. */
static void exchange_close(ep_exchange *exchange) {
    ep_group *group = group_of(exchange);
    ep_net *net = group->net;
    ep_net_progress(net); /* lets the others know why, if it failed just now */
    if (!group->has_failed) {
        group->has_failed = true;
        wire_message leave = {.type = WIRE_EP_LEAVE, .ep_leave = {.epoch = exchange->epoch}};
        for (ep_conn *conn = net->conns; conn != NULL; conn = conn->next) {
            if (is_peer(group, conn)) ep_link_send(conn, EP_OP_LEAVE, &leave, NULL, 0);
        }
        wait_while(group, is_needed, EP_LINGER_MS);
    }
    for (ep_conn *conn = net->conns; conn != NULL; conn = conn->next) {
        if (is_peer(group, conn)) ep_conn_flush(conn);
    }
    wait_while(group, is_flushing, FLUSH_MS);
    for (ep_conn *conn = net->conns; conn != NULL; conn = conn->next) {
        if (conn->epoch == exchange->epoch) ep_conn_close(conn);
    }
    wait_while(group, is_there, 2 * EP_ABANDON_MS);
    ep_net_call(net, false);
    net->group = NULL;
    free(group->addresses);
    free(group);
}

/* ---- forming ---- */

void ep_group_hello(const ep_group *group, wire_ep_hello *out) {
    const ep_limits *limits = &group->limits;
    *out = (wire_ep_hello){
        .compat = group->net->compat,
        .epoch = group->exchange.epoch,
        .rank = group->exchange.rank,
        .n_ranks = group->exchange.n_ranks,
        .max_rows = limits->max_rows,
        .max_pairs = limits->max_pairs,
        .row_bytes = limits->row_bytes,
        .result_elements = limits->result_elements,
        .n_layers = limits->n_layers,
        .n_experts = limits->n_experts,
        .placement = limits->placement,
    };
}

/* "" when a rank that says this belongs to the group. */
static void check_hello(const ep_group *group, const wire_ep_hello *theirs, char *out, size_t cap_bytes) {
    wire_ep_hello ours;
    ep_group_hello(group, &ours);
    out[0] = 0;
    if (theirs->n_ranks != ours.n_ranks)
        snprintf(out, cap_bytes, "another group: %u ranks there, %u here", theirs->n_ranks, ours.n_ranks);
    else if (theirs->rank <= ours.rank || theirs->rank >= ours.n_ranks)
        snprintf(out, cap_bytes, "rank %u does not connect to rank %u of %u", theirs->rank, ours.rank, ours.n_ranks);
    else if (group->peers[theirs->rank] != NULL)
        snprintf(out, cap_bytes, "rank %u is here already", theirs->rank);
    else if (theirs->max_rows != ours.max_rows || theirs->max_pairs != ours.max_pairs)
        snprintf(out, cap_bytes, "other limits: %u rows, %u pairs there, %u, %u here", theirs->max_rows,
                 theirs->max_pairs, ours.max_rows, ours.max_pairs);
    else if (theirs->row_bytes != ours.row_bytes || theirs->result_elements != ours.result_elements)
        snprintf(out, cap_bytes, "other rows: %u bytes for %u elements there, %u for %u here", theirs->row_bytes,
                 theirs->result_elements, ours.row_bytes, ours.result_elements);
    else if (theirs->n_layers != ours.n_layers || theirs->n_experts != ours.n_experts)
        snprintf(out, cap_bytes, "another model: %u layers, %u experts there, %u, %u here", theirs->n_layers,
                 theirs->n_experts, ours.n_layers, ours.n_experts);
    else if (theirs->placement != ours.placement)
        snprintf(out, cap_bytes, "another --placement");
}

/* Those who connected to us, for this epoch or one that is over. */
static void take_waiting(ep_group *group) {
    char refusal[WIRE_MAX_TEXT];
    for (ep_conn *conn = group->net->conns; conn != NULL; conn = conn->next) {
        if (conn->state != EP_WAITING || conn->is_lost || conn->epoch > group->exchange.epoch) continue;
        if (conn->epoch == group->exchange.epoch)
            check_hello(group, &conn->hello, refusal, sizeof(refusal));
        else
            snprintf(refusal, sizeof(refusal), "epoch %llu is over", (unsigned long long)conn->epoch);
        if (refusal[0] == 0) {
            ep_link_buffers(conn, &group->limits);
            group->peers[conn->rank] = conn;
        }
        ep_conn_welcome(conn, refusal);
    }
}

/* Those that we connect to and are not connecting to. */
static void dial_missing(ep_group *group) {
    bool is_there[EP_MAX_RANKS] = {false};
    if (bt_now_ns() < group->dial_ns) return;
    for (ep_conn *conn = group->net->conns; conn != NULL; conn = conn->next) {
        bool is_alive = conn->state == EP_DIALING || conn->state == EP_IS_UP;
        if (conn->epoch == group->exchange.epoch && is_alive) is_there[conn->rank] = true;
    }
    for (uint32_t rank = 0; rank < group->exchange.rank && !group->has_failed; rank++) {
        if (!is_there[rank]) ep_conn_dial(group, group->addresses[rank], rank);
    }
    /* From now, not from before: where a dial takes longer than that the next look would dial again, and UCX have news
     * for ever. */
    group->dial_ns = bt_now_ns() + (int64_t)EP_FORM_LOOK_MS * BT_NS_PER_MS;
}

static uint32_t n_missing(const ep_group *group) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_peers(group); i++) n += group->peers[peer_at(group, i)] == NULL;
    return n;
}

bt_status ep_group_form(ep_exchange *exchange, bt_error *err) {
    ep_group *group = group_of(exchange);
    for (int i = 0; i < EP_MAX_LOOKS; i++) {
        ep_net_progress(group->net);
        if (!group->has_failed) take_waiting(group);
        if (!group->has_failed) dial_missing(group);
        if (group->has_failed) return bt_fail(err, group->why.status, "%s", group->why.text);
        if (n_missing(group) == 0) {
            ep_net_call(group->net, true); /* somebody may have begun already */
            bt_log(BT_LOG_INFO, "ep", "group formed", "rank=%u ranks=%u epoch=%llu", exchange->rank, exchange->n_ranks,
                   (unsigned long long)exchange->epoch);
            return BT_OK;
        }
        if (ep_net_arm(group->net)) break; /* else something came meanwhile */
    }
    if (bt_now_ns() < group->form_deadline_ns) return BT_AGAIN;
    ep_group_fail(group, "%u of %u ranks did not come within %u ms", n_missing(group), exchange->n_ranks,
                  group->form_timeout_ms);
    return bt_fail(err, BT_TIMEOUT, "%s", group->why.text);
}

bt_status ep_group_await(ep_exchange *exchange, bt_error *err) {
    bt_status status;
    while ((status = ep_group_form(exchange, err)) == BT_AGAIN)
        ep_net_wait(group_of(exchange)->net, bt_now_ns() + (int64_t)EP_FORM_LOOK_MS * BT_NS_PER_MS);
    return status;
}

static bt_status check_config(const ep_net *net, const ep_group_config *config, bt_error *err) {
    const ep_limits *limits = &config->limits;
    if (config->n_ranks == 0 || config->n_ranks > EP_MAX_RANKS || config->rank >= config->n_ranks)
        return bt_fail(err, BT_BAD_REQUEST, "rank %u of %u: at most %d ranks, numbered from 0", config->rank,
                       config->n_ranks, EP_MAX_RANKS);
    if (config->epoch <= net->last_epoch)
        return bt_fail(err, BT_BAD_REQUEST, "epoch %llu is not above %llu", (unsigned long long)config->epoch,
                       (unsigned long long)net->last_epoch);
    if (limits->max_rows == 0 || limits->max_pairs < limits->max_rows || limits->row_bytes == 0 ||
        limits->result_elements == 0)
        return bt_fail(err, BT_BAD_REQUEST, "an exchange of at most %u rows of %u bytes and %u pairs makes no sense",
                       limits->max_rows, limits->row_bytes, limits->max_pairs);
    return BT_OK;
}

bt_status ep_group_open(ep_net *net, const ep_group_config *config, ep_exchange **out, bt_error *err) {
    BT_ASSERT(net->group == NULL);
    bt_status status = check_config(net, config, err);
    if (status != BT_OK) return status;
    ep_group *group = bt_calloc(1, sizeof(*group));
    uint32_t step_ms = config->step_timeout_ms != 0 ? config->step_timeout_ms : DEFAULT_STEP_MS;
    group->form_timeout_ms = config->form_timeout_ms != 0 ? config->form_timeout_ms : DEFAULT_FORM_MS;
    group->form_deadline_ns = bt_now_ns() + (int64_t)group->form_timeout_ms * BT_NS_PER_MS;
    group->addresses = bt_calloc(config->rank, sizeof(*group->addresses));
    for (uint32_t i = 0; i < config->rank; i++)
        snprintf(group->addresses[i], sizeof(group->addresses[i]), "%s", config->addresses[i]);
    group->exchange = (ep_exchange){
        .rank = config->rank,
        .n_ranks = config->n_ranks,
        .epoch = config->epoch,
        .begin = exchange_begin,
        .post_rows = exchange_post_rows,
        .take_rows = exchange_take_rows,
        .post_results = exchange_post_results,
        .take_results = exchange_take_results,
        .is_called = exchange_is_called,
        .wait_fd = exchange_wait_fd,
        .fail = exchange_fail,
        .close = exchange_close,
    };
    group->net = net;
    group->limits = config->limits;
    group->step_timeout_ns = (int64_t)step_ms * BT_NS_PER_MS;
    net->group = group;
    net->last_epoch = config->epoch;
    *out = &group->exchange;
    return BT_OK;
}
