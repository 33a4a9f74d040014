/* One connection over an nng_stream: the bytes that wait to be sent on it, the frame that arrives on it, how it ends.
 * Does not know what a message means, except HELLO, PING and PONG, and keeps nothing for a peer that is gone.
 *
 *     HELLO ──peer's HELLO──▶ UP ──link_close──▶ CLOSING
 *       └────── link_conn_fail ┴────────────────────┴──▶ DOWN ──nothing in flight──▶ released by the hub's thread
 *
 * CLOSING sends a last PING: its PONG proves that all before it was read, for nng_stream_close() has no linger. */
#include <stdlib.h>
#include <string.h>

#include "common/control/link_impl.h"
#include "common/core/log.h"

enum {
    READ_BYTES = 64 << 10,  /* asked for at once */
    FLUSH_BYTES = 32 << 10, /* what waits for the owner's turn, at most: the peer should not idle for it */
    KEEP_BYTES = 1 << 20,   /* an empty buffer larger than this goes back to the heap */
    CAP_HELLO_BYTES = 1024, /* a stranger's first frame */
    CLOSE_NONCE = 1,        /* PING of link_close(); the watchdog's carry 0 */
};

void link_conn_ref(link_conn *link) { atomic_fetch_add(&link->n_refs, 1); }

void link_conn_unref(link_conn *link) {
    if (atomic_fetch_sub(&link->n_refs, 1) > 1) return;
    bt_buf_fini(&link->in);
    bt_buf_fini(&link->sending);
    bt_buf_fini(&link->waiting);
    pthread_mutex_destroy(&link->lock);
    link_hub_unref(link->hub);
    free(link);
}

static void buf_trim(bt_buf *buf) {
    if (buf->n_bytes == 0 && buf->cap_bytes > KEEP_BYTES) bt_buf_fini(buf);
}

static link_event *event_new(link_conn *link, link_event_kind kind, size_t frame_bytes) {
    link_event *event = bt_calloc(1, sizeof(*event) + frame_bytes);
    event->source = link->hub->config.source;
    event->kind = kind;
    event->link = link;
    event->tag = link->tag;
    event->n_bytes = frame_bytes;
    atomic_fetch_add(&link->n_refs, 1);
    return event;
}

/* ---- ending ----------------------------------------------------------------------------------------------------- */

/* Something that was in flight is over. LINK_DOWN is posted when no message can follow it. */
static void link_op_end(link_conn *link) {
    pthread_mutex_lock(&link->lock);
    link->n_in_flight--;
    bool is_over = link->state == STATE_DOWN && link->n_in_flight == 0;
    if (link->state == STATE_DOWN && !link->is_receiving && link->was_up && !link->is_down_posted) {
        link->is_down_posted = true;
        link_event *event = event_new(link, LINK_DOWN, 0);
        memcpy(event->reason, link->reason, sizeof(event->reason));
        bt_queue_push(link->hub->config.queue, &event->node);
    }
    pthread_mutex_unlock(&link->lock);
    if (is_over) link_hub_kick(link->hub);
}

/* The caller holds a reference, or runs in a callback of the link. Only the first reason counts. */
void link_conn_fail(link_conn *link, const char *reason) {
    pthread_mutex_lock(&link->lock);
    bool is_first = link->state != STATE_DOWN;
    if (is_first) {
        bool is_wanted = link->state == STATE_CLOSING || link->hub->is_closing;
        link->state = STATE_DOWN;
        link->n_in_flight++;
        snprintf(link->reason, sizeof(link->reason), "%s", reason);
        bt_log(is_wanted ? BT_LOG_INFO : BT_LOG_WARN, "link", "down", "self=%s peer=%s reason=\"%s\"",
               link->hub->config.name, link->peer_name[0] ? link->peer_name : "unknown", reason);
    }
    pthread_mutex_unlock(&link->lock);
    if (!is_first) return;
    nng_stream_close(link->stream); /* ends what is in flight; does not wait for it */
    link_op_end(link);
}

/* ---- sending ---------------------------------------------------------------------------------------------------- */

/* Lock held, not DOWN. Sends or receives what is possible at once, in this thread; returns NNG's result, NNG_ECANCELED:
 * nothing is. */
static int link_try(link_conn *link, void (*op)(nng_stream *, nng_aio *), uint8_t *bytes, size_t n_bytes,
                    size_t *out_bytes) {
    nng_iov iov = {bytes, n_bytes};
    nng_aio_set_iov(link->try_aio, 1, &iov);
    op(link->stream, link->try_aio);
    nng_aio_cancel(link->try_aio); /* nothing, if it is complete already */
    nng_aio_wait(link->try_aio);
    int result = nng_aio_result(link->try_aio);
    *out_bytes = result == 0 ? nng_aio_count(link->try_aio) : 0;
    return result;
}

/* Lock held, not DOWN. */
static void link_write(link_conn *link) {
    nng_iov iov = {link->sending.bytes + link->sent_bytes, link->sending.n_bytes - link->sent_bytes};
    nng_aio_set_iov(link->send_aio, 1, &iov);
    nng_stream_send(link->stream, link->send_aio);
}

/* What waits becomes what is sent: all of it in one write. */
static void link_take_waiting(link_conn *link) {
    bt_buf empty = link->sending;
    link->sending = link->waiting;
    link->waiting = empty;
    link->sent_bytes = 0;
}

static void link_end_sending(link_conn *link) {
    bt_buf_clear(&link->sending);
    buf_trim(&link->sending);
}

/* Lock held, not DOWN. */
static void link_flush(link_conn *link) {
    if (link->is_sending || link->waiting.n_bytes == 0) return;
    link_take_waiting(link);
    link_try(link, nng_stream_send, link->sending.bytes, link->sending.n_bytes, &link->sent_bytes);
    if (link->sent_bytes == link->sending.n_bytes) {
        link_end_sending(link);
        return;
    }
    link->is_sending = true; /* the peer's window is full, or the connection broke, which the callback will say */
    link->n_in_flight++;
    link_write(link);
}

static void on_sent(void *arg) {
    link_conn *link = arg;
    int result = nng_aio_result(link->send_aio);
    if (result != 0) link_conn_fail(link, nng_strerror(result));
    pthread_mutex_lock(&link->lock);
    bool is_up = link->state != STATE_DOWN;
    if (is_up) link->sent_bytes += nng_aio_count(link->send_aio);
    if (is_up && link->sent_bytes < link->sending.n_bytes) {
        link_write(link);
    } else {
        link_end_sending(link);
        link->is_sending = is_up && link->waiting.n_bytes > 0;
        if (link->is_sending) {
            link_take_waiting(link);
            link_write(link);
        }
    }
    bool is_sending = link->is_sending = link->is_sending && is_up;
    pthread_mutex_unlock(&link->lock);
    if (!is_sending) link_op_end(link);
}

bt_status link_send(link_conn *link, const wire_message *message) {
    bool is_full = false;
    pthread_mutex_lock(&link->lock);
    bool is_up = link->state == STATE_UP;
    if (is_up) {
        wire_encode(message, &link->waiting);
        if (link->waiting.n_bytes > FLUSH_BYTES) link_flush(link);
        is_full = link->waiting.n_bytes > link->hub->config.cap_queue_bytes;
    }
    pthread_mutex_unlock(&link->lock);
    if (is_up) link_hub_soil(link->hub, link);
    if (is_full) link_conn_fail(link, "the peer does not read what it is sent");
    return is_up && !is_full ? BT_OK : BT_PEER_LOST;
}

void link_conn_flush(link_conn *link) {
    pthread_mutex_lock(&link->lock);
    if (link->state != STATE_DOWN) link_flush(link);
    pthread_mutex_unlock(&link->lock);
}

/* HELLO, PING, PONG: as long as there is a stream. */
static void link_send_own(link_conn *link, const wire_message *message) {
    pthread_mutex_lock(&link->lock);
    if (link->state != STATE_DOWN) {
        wire_encode(message, &link->waiting);
        link_flush(link);
    }
    pthread_mutex_unlock(&link->lock);
}

void link_close(link_conn *link) {
    const wire_message ping = {.type = WIRE_PING, .ping = {.nonce = CLOSE_NONCE}};
    pthread_mutex_lock(&link->lock);
    bool is_stranger = link->state == STATE_HELLO;
    if (link->state == STATE_UP) {
        link->state = STATE_CLOSING;
        link->close_by_ns = bt_now_ns() + link_ms_to_ns(link->hub->config.dead_ms);
        wire_encode(&ping, &link->waiting);
        link_flush(link);
    }
    pthread_mutex_unlock(&link->lock);
    if (is_stranger) link_conn_fail(link, "closed before the peer's HELLO");
}

/* ---- receiving -------------------------------------------------------------------------------------------------- */

/* Room for the rest of the frame that has begun. */
static void link_make_room(link_conn *link) {
    size_t frame_bytes = 0;
    wire_frame_size(link->in.bytes, link->in.n_bytes, &frame_bytes, NULL);
    size_t want_bytes = frame_bytes > link->in.n_bytes ? frame_bytes - link->in.n_bytes : 0;
    if (want_bytes < READ_BYTES) want_bytes = READ_BYTES;
    bt_buf_reserve(&link->in, want_bytes);
}

/* Lock held, not DOWN. */
static void link_read(link_conn *link) {
    link_make_room(link);
    nng_iov iov = {link->in.bytes + link->in.n_bytes, link->in.cap_bytes - link->in.n_bytes};
    nng_aio_set_iov(link->recv_aio, 1, &iov);
    nng_stream_recv(link->stream, link->recv_aio);
}

static bt_status hello_check(const link_hub *hub, const wire_hello *hello, bt_error *err) {
    if (hello->cluster_key != hub->config.cluster_key)
        return bt_fail(err, BT_BAD_REQUEST, "the peer has another --cluster-secret");
    if (hello->name.n_bytes == 0 || hello->incarnation == 0 || hello->role < WIRE_ROLE_GATEWAY ||
        hello->role > WIRE_ROLE_DECODE)
        return bt_fail(err, BT_BAD_REQUEST, "the peer's HELLO names nobody");
    for (uint32_t i = 0; i < hello->name.n_bytes; i++)
        if (hello->name.bytes[i] <= ' ' || hello->name.bytes[i] > '~')
            return bt_fail(err, BT_BAD_REQUEST, "the peer's name is not printable");
    return BT_OK;
}

static bt_status link_take_hello(link_conn *link, link_event *event, bt_error *err) {
    const wire_hello *hello = &event->message.hello;
    if (event->message.type != WIRE_HELLO)
        return bt_fail(err, BT_BAD_REQUEST, "the peer began with %s, not HELLO", wire_type_name(event->message.type));
    bt_status status = hello_check(link->hub, hello, err);
    if (status != BT_OK) return status;
    event->kind = LINK_UP;
    pthread_mutex_lock(&link->lock);
    memcpy(link->peer_name, hello->name.bytes, hello->name.n_bytes);
    link->peer_incarnation = hello->incarnation;
    bool is_up = link->state == STATE_HELLO;
    if (is_up) {
        link->state = STATE_UP;
        link->was_up = true;
    }
    pthread_mutex_unlock(&link->lock);
    if (!is_up) return BT_CANCELED;
    bt_log(BT_LOG_INFO, "link", "up", "self=%s peer=%s incarnation=%016llx", link->hub->config.name, link->peer_name,
           (unsigned long long)link->peer_incarnation);
    bt_queue_add(link->hub->config.queue, &event->node);
    return BT_OK;
}

/* BT_OK: `event` has gone to the owner. BT_CANCELED: it was ours, or the link is down. */
static bt_status link_take_message(link_conn *link, link_event *event, bool is_stranger, bt_error *err) {
    const wire_message *message = &event->message;
    if (is_stranger) return link_take_hello(link, event, err);
    if (message->type == WIRE_PING) {
        const wire_message pong = {.type = WIRE_PONG, .pong = {.nonce = message->ping.nonce}};
        link_send_own(link, &pong);
        return BT_CANCELED;
    }
    if (message->type == WIRE_PONG) {
        pthread_mutex_lock(&link->lock);
        bool is_delivered = link->state == STATE_CLOSING && message->pong.nonce == CLOSE_NONCE;
        pthread_mutex_unlock(&link->lock);
        if (is_delivered) link_conn_fail(link, "closed");
        return BT_CANCELED;
    }
    if (message->type == WIRE_HELLO || message->type >= WIRE_KV_HELLO)
        return bt_fail(err, BT_BAD_REQUEST, "%s does not belong here", wire_type_name(message->type));
    pthread_mutex_lock(&link->lock);
    link->unhandled_bytes += event->n_bytes;
    pthread_mutex_unlock(&link->lock);
    bt_queue_add(link->hub->config.queue, &event->node);
    return BT_OK;
}

static bt_status link_take_frame(link_conn *link, const uint8_t *frame, size_t frame_bytes, bool *has_told,
                                 bt_error *err) {
    pthread_mutex_lock(&link->lock);
    link_state state = link->state;
    pthread_mutex_unlock(&link->lock);
    if (state == STATE_DOWN) return BT_CANCELED;
    link_event *event = event_new(link, LINK_MESSAGE, frame_bytes);
    memcpy(event->frame, frame, frame_bytes);
    bt_status status = wire_decode(event->frame, frame_bytes, &event->arena, &event->message, err);
    if (status == BT_OK) status = link_take_message(link, event, state == STATE_HELLO, err);
    *has_told |= status == BT_OK;
    if (status == BT_OK) return BT_OK;
    event->kind = LINK_UP; /* was never counted as unhandled */
    link_event_free(event);
    return status == BT_CANCELED ? BT_OK : status;
}

static bt_status link_take_bytes(link_conn *link, size_t n_bytes, bool *has_told, bt_error *err) {
    link->in.n_bytes += n_bytes;
    pthread_mutex_lock(&link->lock);
    link->heard_ns = bt_now_ns();
    bool is_stranger = link->state == STATE_HELLO;
    pthread_mutex_unlock(&link->lock);
    size_t at = 0, frame_bytes = 0;
    bt_status status;
    while ((status = wire_frame_size(link->in.bytes + at, link->in.n_bytes - at, &frame_bytes, err)) == BT_OK) {
        status = link_take_frame(link, link->in.bytes + at, frame_bytes, has_told, err);
        if (status != BT_OK) return status;
        is_stranger = false;
        at += frame_bytes;
    }
    if (status != BT_AGAIN) return status;
    if (is_stranger && frame_bytes > CAP_HELLO_BYTES)
        return bt_fail(err, BT_BAD_REQUEST, "the peer began with a frame of %zu bytes, not HELLO", frame_bytes);
    bt_buf_consume(&link->in, at);
    buf_trim(&link->in);
    return BT_OK;
}

/* What a receive brought. true: the owner has something to take; it is not woken. */
static bool link_take_received(link_conn *link, int result, size_t n_bytes) {
    bool has_told = false;
    bt_error err = {0};
    if (result == NNG_ECONNSHUT || result == NNG_ECLOSED)
        link_conn_fail(link, "the peer closed the connection");
    else if (result != 0)
        link_conn_fail(link, nng_strerror(result));
    else if (link_take_bytes(link, n_bytes, &has_told, &err) != BT_OK)
        link_conn_fail(link, err.text);
    return has_told;
}

/* After that. false: receiving is over, for good or until link_event_free(). */
static bool link_may_read_on(link_conn *link) {
    pthread_mutex_lock(&link->lock);
    link->is_paused = link->unhandled_bytes > link->hub->config.cap_unhandled_bytes;
    bool is_receiving = link->is_receiving = link->state != STATE_DOWN && !link->is_paused;
    pthread_mutex_unlock(&link->lock);
    if (!is_receiving) link_op_end(link);
    return is_receiving;
}

/* A hot link, or in the receive callback. */
void link_conn_cool(link_conn *link) {
    pthread_mutex_lock(&link->lock);
    bool is_up = link->is_receiving = link->state != STATE_DOWN;
    if (is_up) link_read(link);
    pthread_mutex_unlock(&link->lock);
    if (!is_up) link_op_end(link);
}

static void on_received(void *arg) {
    link_conn *link = arg;
    bool has_told = link_take_received(link, nng_aio_result(link->recv_aio), nng_aio_count(link->recv_aio));
    if (link_may_read_on(link)) {
        if (has_told && !link->hub->is_closing) {
            link_hub_heat(link->hub, link);
        } else {
            link_conn_cool(link);
        }
    }
    if (has_told) bt_queue_wake(link->hub->config.queue); /* it finds the link hot, so it has a turn for it */
}

bool link_conn_read_on(link_conn *link) {
    size_t n_bytes = 0;
    int result = NNG_ECANCELED;
    link_make_room(link);
    pthread_mutex_lock(&link->lock);
    uint8_t *room = link->in.bytes + link->in.n_bytes;
    if (link->state != STATE_DOWN)
        result = link_try(link, nng_stream_recv, room, link->in.cap_bytes - link->in.n_bytes, &n_bytes);
    pthread_mutex_unlock(&link->lock);
    if (result == NNG_ECANCELED) {
        link_conn_cool(link);
        return false;
    }
    bool has_told = link_take_received(link, result, n_bytes);
    if (link_may_read_on(link)) link_hub_heat(link->hub, link);
    if (has_told) bt_queue_wake(link->hub->config.queue);
    return true;
}

void link_event_free(link_event *event) {
    if (event == NULL) return;
    link_conn *link = event->link;
    if (event->kind == LINK_MESSAGE) {
        pthread_mutex_lock(&link->lock);
        link->unhandled_bytes -= event->n_bytes;
        bool has_room = link->unhandled_bytes <= link->hub->config.cap_unhandled_bytes / 2;
        if (link->is_paused && has_room && link->state != STATE_DOWN) {
            link->is_paused = false;
            link->is_receiving = true;
            link->n_in_flight++;
            link->heard_ns = bt_now_ns();
            link_read(link);
        }
        pthread_mutex_unlock(&link->lock);
    }
    bt_arena_fini(&event->arena);
    free(event);
    link_conn_unref(link);
}

/* ---- beginning, and what the hub's thread does ------------------------------------------------------------------- */

link_conn *link_conn_new(link_hub *hub, nng_stream *stream, uint64_t tag, bool is_accepted) {
    link_conn *link = bt_calloc(1, sizeof(*link));
    link->hub = hub;
    atomic_fetch_add(&hub->n_refs, 1);
    link->stream = stream;
    link->recv_aio = link_aio_new(on_received, link);
    link->send_aio = link_aio_new(on_sent, link);
    link->try_aio = link_aio_new(NULL, NULL);
    pthread_mutex_init(&link->lock, NULL);
    link->is_accepted = is_accepted;
    link->tag = tag;
    link->opened_ns = link->heard_ns = link->pinged_ns = bt_now_ns();
    atomic_store(&link->n_refs, 2);
    return link;
}

void link_conn_begin(link_conn *link) {
    const link_config *config = &link->hub->config;
    const wire_message hello = {.type = WIRE_HELLO,
                                .hello = {.name = wire_str_from(config->name),
                                          .incarnation = config->incarnation,
                                          .role = (uint8_t)config->role,
                                          .cluster_key = config->cluster_key}};
    pthread_mutex_lock(&link->lock);
    if (link->state != STATE_DOWN) {
        wire_encode(&hello, &link->waiting);
        link_flush(link);
        link->is_receiving = true;
        link->n_in_flight++;
        link_read(link);
    }
    pthread_mutex_unlock(&link->lock);
}

void link_conn_watch(link_conn *link, bool was_asleep, int64_t now_ns) {
    const link_config *config = &link->hub->config;
    int64_t dead_ns = link_ms_to_ns(config->dead_ms);
    const char *reason = NULL;
    pthread_mutex_lock(&link->lock);
    if (was_asleep || link->is_paused) link->heard_ns = now_ns; /* the silence was ours */
    bool must_ping = link->state == STATE_UP && now_ns - link->pinged_ns >= link_ms_to_ns(config->ping_ms);
    if (must_ping) link->pinged_ns = now_ns;
    if (link->state == STATE_HELLO && now_ns - link->opened_ns > dead_ns)
        reason = "the peer did not say HELLO in time";
    else if (link->state == STATE_UP && now_ns - link->heard_ns > dead_ns)
        reason = "the peer is silent";
    else if (link->state == STATE_CLOSING && now_ns > link->close_by_ns)
        reason = "closed before the peer had read everything";
    pthread_mutex_unlock(&link->lock);
    const wire_message ping = {.type = WIRE_PING};
    if (must_ping) link_send_own(link, &ping);
    if (reason != NULL) link_conn_fail(link, reason);
}

bool link_conn_is_over(link_conn *link) {
    pthread_mutex_lock(&link->lock);
    bool is_over = link->state == STATE_DOWN && link->n_in_flight == 0;
    pthread_mutex_unlock(&link->lock);
    return is_over;
}

void link_conn_release(link_conn *link) {
    nng_aio_free(link->recv_aio); /* waits until its callback has returned */
    nng_aio_free(link->send_aio);
    nng_aio_free(link->try_aio);
    nng_stream_free(link->stream);
    link_conn_unref(link);
}

const char *link_peer_name(const link_conn *link) { return link->peer_name; }
uint64_t link_peer_incarnation(const link_conn *link) { return link->peer_incarnation; }
