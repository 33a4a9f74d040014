/* Links over nng_stream. Owns every connection, the bytes that wait to be sent on it and the frame that arrives on it.
 * Does not know what a message means, except HELLO, PING and PONG, and keeps nothing for a peer that is gone.
 *
 * Three kinds of threads come here. NNG's call back when bytes arrived or left, or a connection was made. The owner
 * sends and frees events. The hub's own thread (hub_run) does what may take time: it dials, looks for silent peers and
 * releases what has ended, because an NNG object may not be released in its own callback.
 *
 *     HELLO ──peer's HELLO──▶ UP ──link_close──▶ CLOSING
 *       └──────── link_fail ───┴────────────────────┴──▶ DOWN ──nothing in flight──▶ released by the hub's thread
 *
 * CLOSING sends a last PING: its PONG proves that all before it was read, for nng_stream_close() has no linger.
 *
 * Locks: a hub's is never taken while a link's is held. A receive or send begins under the link's lock while it is not
 * DOWN, and the stream is closed after it is: NNG never completes what begins on a closed stream. (Its callbacks run
 * on its own threads, so nothing calls back under the lock.) Only the hub's thread takes links and dialers out of the
 * hub's lists, so it alone walks them without the lock. */
#include "common/control/link.h"

#include <nng/nng.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

#include "common/core/address.h"
#include "common/core/clock.h"
#include "common/core/log.h"

enum {
    READ_BYTES = 64 << 10,  /* asked for at once */
    KEEP_BYTES = 1 << 20,   /* an empty buffer larger than this goes back to the heap */
    CAP_HELLO_BYTES = 1024, /* a stranger's first frame */
    STEADY_MS = 1000,       /* a link that lived this long resets its dialer's backoff */
    CLOSE_NONCE = 1,        /* PING of link_close(); the watchdog's carry 0 */
};

typedef enum { STATE_HELLO, STATE_UP, STATE_CLOSING, STATE_DOWN } link_state;

struct link_conn {
    link_hub *hub;      /* a reference */
    nng_stream *stream; /* owned, with the aios, until the hub's thread releases them */
    nng_aio *recv_aio, *send_aio;
    uint64_t tag;
    bool is_accepted;
    bt_buf in;         /* of the receive callback */
    bt_buf sending;    /* of the send in flight */
    size_t sent_bytes; /* of `sending` */
    atomic_int n_refs; /* the hub's list, each event, whoever looks at it */

    pthread_mutex_t lock; /* the rest, but for the last two */
    link_state state;
    int n_in_flight; /* a receive, a send, calls of nng_stream_close(): the stream stays until they are over */
    bool is_receiving, is_sending, is_paused, was_up, is_down_posted;
    bt_buf waiting;
    uint64_t unhandled_bytes;
    int64_t opened_ns, heard_ns, pinged_ns, close_by_ns;
    char peer_name[WIRE_MAX_NAME + 1];
    uint64_t peer_incarnation;
    char reason[sizeof((link_event *)0)->reason];

    link_dialer *dialer; /* hub->lock; NULL: accepted, or its dialer was closed */
    link_conn *next;     /* hub->lock */
};

struct link_dialer {
    link_hub *hub; /* borrowed: the hub outlives its dialers */
    nng_stream_dialer *dialer;
    nng_aio *aio;
    uint64_t tag;
    char address[WIRE_MAX_NAME + 1];
    /* hub->lock: */
    link_conn *link; /* borrowed from the hub's list */
    bool is_dialing, is_closed, is_failure_logged;
    uint32_t backoff_ms;
    int64_t next_ns;
    link_dialer *next;
};

struct link_hub {
    link_config config; /* name is owned */
    pthread_t thread;
    atomic_int n_refs; /* the owner, each link */
    nng_stream_listener *listener;
    nng_aio *accept_aio;

    pthread_mutex_t lock; /* the rest */
    pthread_cond_t kicked;
    link_conn *links;     /* owned: a reference each */
    link_dialer *dialers; /* owned */
    uint32_t n_accepted;
    bool is_kicked, is_accepting;
    atomic_bool is_closing; /* set once, after close_by_ns */
    int64_t close_by_ns;
};

static int64_t ms_to_ns(uint32_t ms) { return (int64_t)ms * BT_NS_PER_MS; }

static void hub_kick(link_hub *hub) {
    pthread_mutex_lock(&hub->lock);
    hub->is_kicked = true;
    pthread_cond_signal(&hub->kicked);
    pthread_mutex_unlock(&hub->lock);
}

static void hub_unref(link_hub *hub) {
    if (atomic_fetch_sub(&hub->n_refs, 1) > 1) return;
    pthread_cond_destroy(&hub->kicked);
    pthread_mutex_destroy(&hub->lock);
    free((char *)hub->config.name);
    free(hub);
}

static void link_unref(link_conn *link) {
    if (atomic_fetch_sub(&link->n_refs, 1) > 1) return;
    bt_buf_fini(&link->in);
    bt_buf_fini(&link->sending);
    bt_buf_fini(&link->waiting);
    pthread_mutex_destroy(&link->lock);
    hub_unref(link->hub);
    free(link);
}

static nng_aio *aio_new(void (*callback)(void *), void *arg) {
    nng_aio *aio = NULL;
    BT_ASSERT(nng_aio_alloc(&aio, callback, arg) == 0); /* fails for lack of memory only */
    return aio;
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
    if (is_over) hub_kick(link->hub);
}

/* The caller holds a reference, or runs in a callback of the link. Only the first reason counts. */
static void link_fail(link_conn *link, const char *reason) {
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

/* Lock held, not DOWN. */
static void link_write(link_conn *link) {
    nng_iov iov = {link->sending.bytes + link->sent_bytes, link->sending.n_bytes - link->sent_bytes};
    nng_aio_set_iov(link->send_aio, 1, &iov);
    nng_stream_send(link->stream, link->send_aio);
}

/* Lock held, not DOWN. What waits becomes what is sent: all of it in one write. */
static void link_write_waiting(link_conn *link) {
    bt_buf empty = link->sending;
    link->sending = link->waiting;
    link->waiting = empty;
    link->sent_bytes = 0;
    link_write(link);
}

/* Lock held, not DOWN. */
static void link_queue(link_conn *link, const wire_message *message) {
    wire_encode(message, &link->waiting);
    if (link->is_sending) return;
    link->is_sending = true;
    link->n_in_flight++;
    link_write_waiting(link);
}

static void on_sent(void *arg) {
    link_conn *link = arg;
    int result = nng_aio_result(link->send_aio);
    if (result != 0) link_fail(link, nng_strerror(result));
    pthread_mutex_lock(&link->lock);
    bool is_up = link->state != STATE_DOWN;
    if (is_up) link->sent_bytes += nng_aio_count(link->send_aio);
    if (is_up && link->sent_bytes < link->sending.n_bytes) {
        link_write(link);
    } else {
        bt_buf_clear(&link->sending);
        buf_trim(&link->sending);
        link->is_sending = is_up && link->waiting.n_bytes > 0;
        if (link->is_sending) link_write_waiting(link);
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
        link_queue(link, message);
        is_full = link->waiting.n_bytes > link->hub->config.cap_queue_bytes;
    }
    pthread_mutex_unlock(&link->lock);
    if (is_full) link_fail(link, "the peer does not read what it is sent");
    return is_up && !is_full ? BT_OK : BT_PEER_LOST;
}

/* HELLO, PING, PONG: as long as there is a stream. */
static void link_send_own(link_conn *link, const wire_message *message) {
    pthread_mutex_lock(&link->lock);
    if (link->state != STATE_DOWN) link_queue(link, message);
    pthread_mutex_unlock(&link->lock);
}

void link_close(link_conn *link) {
    const wire_message ping = {.type = WIRE_PING, .ping = {.nonce = CLOSE_NONCE}};
    pthread_mutex_lock(&link->lock);
    bool is_stranger = link->state == STATE_HELLO;
    if (link->state == STATE_UP) {
        link->state = STATE_CLOSING;
        link->close_by_ns = bt_now_ns() + ms_to_ns(link->hub->config.dead_ms);
        link_queue(link, &ping);
    }
    pthread_mutex_unlock(&link->lock);
    if (is_stranger) link_fail(link, "closed before the peer's HELLO");
}

/* ---- receiving -------------------------------------------------------------------------------------------------- */

/* Lock held, not DOWN. */
static void link_read(link_conn *link) {
    size_t frame_bytes = 0;
    wire_frame_size(link->in.bytes, link->in.n_bytes, &frame_bytes, NULL);
    size_t want_bytes = frame_bytes > link->in.n_bytes ? frame_bytes - link->in.n_bytes : 0;
    if (want_bytes < READ_BYTES) want_bytes = READ_BYTES;
    bt_buf_reserve(&link->in, want_bytes);
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
    bt_queue_push(link->hub->config.queue, &event->node);
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
        if (is_delivered) link_fail(link, "closed");
        return BT_CANCELED;
    }
    if (message->type == WIRE_HELLO || message->type >= WIRE_KV_HELLO)
        return bt_fail(err, BT_BAD_REQUEST, "%s does not belong here", wire_type_name(message->type));
    pthread_mutex_lock(&link->lock);
    link->unhandled_bytes += event->n_bytes;
    pthread_mutex_unlock(&link->lock);
    bt_queue_push(link->hub->config.queue, &event->node);
    return BT_OK;
}

static bt_status link_take_frame(link_conn *link, const uint8_t *frame, size_t frame_bytes, bt_error *err) {
    pthread_mutex_lock(&link->lock);
    link_state state = link->state;
    pthread_mutex_unlock(&link->lock);
    if (state == STATE_DOWN) return BT_CANCELED;
    link_event *event = event_new(link, LINK_MESSAGE, frame_bytes);
    memcpy(event->frame, frame, frame_bytes);
    bt_status status = wire_decode(event->frame, frame_bytes, &event->arena, &event->message, err);
    if (status == BT_OK) status = link_take_message(link, event, state == STATE_HELLO, err);
    if (status == BT_OK) return BT_OK;
    event->kind = LINK_UP; /* was never counted as unhandled */
    link_event_free(event);
    return status == BT_CANCELED ? BT_OK : status;
}

static bt_status link_take_bytes(link_conn *link, size_t n_bytes, bt_error *err) {
    link->in.n_bytes += n_bytes;
    pthread_mutex_lock(&link->lock);
    link->heard_ns = bt_now_ns();
    bool is_stranger = link->state == STATE_HELLO;
    pthread_mutex_unlock(&link->lock);
    size_t at = 0, frame_bytes = 0;
    bt_status status;
    while ((status = wire_frame_size(link->in.bytes + at, link->in.n_bytes - at, &frame_bytes, err)) == BT_OK) {
        status = link_take_frame(link, link->in.bytes + at, frame_bytes, err);
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

static void on_received(void *arg) {
    link_conn *link = arg;
    int result = nng_aio_result(link->recv_aio);
    bt_error err = {0};
    if (result == NNG_ECONNSHUT || result == NNG_ECLOSED)
        link_fail(link, "the peer closed the connection");
    else if (result != 0)
        link_fail(link, nng_strerror(result));
    else if (link_take_bytes(link, nng_aio_count(link->recv_aio), &err) != BT_OK)
        link_fail(link, err.text);
    pthread_mutex_lock(&link->lock);
    link->is_paused = link->unhandled_bytes > link->hub->config.cap_unhandled_bytes;
    link->is_receiving = link->state != STATE_DOWN && !link->is_paused;
    bool is_over = !link->is_receiving;
    if (!is_over) link_read(link);
    pthread_mutex_unlock(&link->lock);
    if (is_over) link_op_end(link);
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
    link_unref(link);
}

/* ---- beginning -------------------------------------------------------------------------------------------------- */

/* A new connection: HELLO goes out, the peer's is awaited. */
static void link_start(link_hub *hub, nng_stream *stream, link_dialer *dialer) {
    link_conn *link = bt_calloc(1, sizeof(*link));
    link->hub = hub;
    atomic_fetch_add(&hub->n_refs, 1);
    link->stream = stream;
    link->recv_aio = aio_new(on_received, link);
    link->send_aio = aio_new(on_sent, link);
    pthread_mutex_init(&link->lock, NULL);
    link->is_accepted = dialer == NULL;
    link->tag = dialer == NULL ? 0 : dialer->tag;
    link->opened_ns = link->heard_ns = link->pinged_ns = bt_now_ns();
    atomic_store(&link->n_refs, 2); /* the hub's and, until we are through, ours */

    pthread_mutex_lock(&hub->lock);
    bool is_welcome =
        !hub->is_closing && (dialer == NULL ? hub->n_accepted < hub->config.cap_links : !dialer->is_closed);
    link->next = hub->links;
    hub->links = link;
    hub->n_accepted += link->is_accepted;
    if (dialer != NULL && !dialer->is_closed) { /* a closed one may be gone before the link is */
        link->dialer = dialer;
        dialer->link = link;
        dialer->is_dialing = dialer->is_failure_logged = false;
    }
    pthread_mutex_unlock(&hub->lock);

    const wire_message hello = {.type = WIRE_HELLO,
                                .hello = {.name = wire_str_from(hub->config.name),
                                          .incarnation = hub->config.incarnation,
                                          .role = (uint8_t)hub->config.role,
                                          .cluster_key = hub->config.cluster_key}};
    if (!is_welcome) link_fail(link, "no further connections are taken");
    pthread_mutex_lock(&link->lock);
    if (link->state != STATE_DOWN) {
        link_queue(link, &hello);
        link->is_receiving = true;
        link->n_in_flight++;
        link_read(link);
    }
    pthread_mutex_unlock(&link->lock);
    link_unref(link);
}

static void on_accepted(void *arg) {
    link_hub *hub = arg;
    int result = nng_aio_result(hub->accept_aio);
    if (result == 0) link_start(hub, nng_aio_get_output(hub->accept_aio, 0), NULL);
    pthread_mutex_lock(&hub->lock);
    /* After an error (no file descriptor left) the hub's thread tries again at its next turn. */
    hub->is_accepting = result == 0 && !hub->is_closing;
    if (hub->is_accepting) nng_stream_listener_accept(hub->listener, hub->accept_aio);
    pthread_mutex_unlock(&hub->lock);
    hub_kick(hub);
}

/* hub->lock held. */
static void dialer_back_off(link_dialer *dialer) {
    dialer->next_ns = bt_now_ns() + ms_to_ns(dialer->backoff_ms);
    dialer->backoff_ms *= 2;
    if (dialer->backoff_ms > dialer->hub->config.retry_max_ms) dialer->backoff_ms = dialer->hub->config.retry_max_ms;
}

static void on_dialed(void *arg) {
    link_dialer *dialer = arg;
    link_hub *hub = dialer->hub;
    int result = nng_aio_result(dialer->aio);
    if (result == 0) {
        link_start(hub, nng_aio_get_output(dialer->aio, 0), dialer);
    } else {
        pthread_mutex_lock(&hub->lock);
        dialer->is_dialing = false;
        dialer_back_off(dialer);
        if (!dialer->is_failure_logged && !dialer->is_closed)
            bt_log(BT_LOG_WARN, "link", "cannot connect, trying on", "self=%s address=%s reason=\"%s\"",
                   hub->config.name, dialer->address, nng_strerror(result));
        dialer->is_failure_logged = true;
        pthread_mutex_unlock(&hub->lock);
    }
    hub_kick(hub);
}

/* ---- the hub's thread ------------------------------------------------------------------------------------------- */

static void link_watch(link_conn *link, bool was_asleep, int64_t now_ns) {
    const link_config *config = &link->hub->config;
    int64_t dead_ns = ms_to_ns(config->dead_ms);
    const char *reason = NULL;
    pthread_mutex_lock(&link->lock);
    if (was_asleep || link->is_paused) link->heard_ns = now_ns; /* the silence was ours */
    bool must_ping = link->state == STATE_UP && now_ns - link->pinged_ns >= ms_to_ns(config->ping_ms);
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
    if (reason != NULL) link_fail(link, reason);
}

static bool link_is_over(link_conn *link) {
    pthread_mutex_lock(&link->lock);
    bool is_over = link->state == STATE_DOWN && link->n_in_flight == 0;
    pthread_mutex_unlock(&link->lock);
    return is_over;
}

/* Out of the list already. */
static void link_release(link_hub *hub, link_conn *link) {
    pthread_mutex_lock(&hub->lock);
    hub->n_accepted -= link->is_accepted;
    if (link->dialer != NULL) {
        link->dialer->link = NULL;
        if (bt_now_ns() - link->opened_ns > ms_to_ns(STEADY_MS)) link->dialer->backoff_ms = hub->config.retry_min_ms;
        dialer_back_off(link->dialer);
    }
    pthread_mutex_unlock(&hub->lock);
    nng_aio_free(link->recv_aio); /* waits until its callback has returned */
    nng_aio_free(link->send_aio);
    nng_stream_free(link->stream);
    link_unref(link);
}

static void hub_watch_links(link_hub *hub, link_conn *links, bool was_asleep, int64_t now_ns) {
    bool is_late = hub->is_closing && now_ns > hub->close_by_ns;
    for (link_conn *link = links; link != NULL; link = link->next) {
        if (hub->is_closing) link_close(link);
        if (is_late) link_fail(link, "closed before the peer had read everything");
        link_watch(link, was_asleep, now_ns);
    }
    link_conn *over = NULL;
    pthread_mutex_lock(&hub->lock);
    for (link_conn **at = &hub->links; *at != NULL;) {
        link_conn *link = *at;
        if (!link_is_over(link)) {
            at = &link->next;
            continue;
        }
        *at = link->next;
        link->next = over;
        over = link;
    }
    pthread_mutex_unlock(&hub->lock);
    for (link_conn *link = over, *next; link != NULL; link = next) {
        next = link->next;
        link_release(hub, link);
    }
}

/* Dials what is due and releases what was closed. Returns when the next attempt is due, or INT64_MAX. */
static int64_t hub_watch_dialers(link_hub *hub, int64_t now_ns) {
    int64_t due_ns = INT64_MAX;
    link_dialer *over = NULL, *to_dial = NULL;
    pthread_mutex_lock(&hub->lock);
    for (link_dialer **at = &hub->dialers; *at != NULL;) {
        link_dialer *dialer = *at;
        dialer->is_closed |= hub->is_closing;
        if (dialer->is_closed && dialer->link == NULL) {
            *at = dialer->next;
            dialer->next = over;
            over = dialer;
            continue;
        }
        bool is_idle = !dialer->is_dialing && dialer->link == NULL;
        if (is_idle && dialer->next_ns <= now_ns && to_dial == NULL) {
            dialer->is_dialing = true;
            to_dial = dialer;
        } else if (is_idle && dialer->next_ns < due_ns) {
            due_ns = dialer->next_ns;
        }
        at = &dialer->next;
    }
    pthread_mutex_unlock(&hub->lock);
    if (to_dial != NULL) nng_stream_dialer_dial(to_dial->dialer, to_dial->aio);
    for (link_dialer *dialer = over, *next; dialer != NULL; dialer = next) {
        next = dialer->next;
        nng_aio_free(dialer->aio); /* ends an attempt and waits for its callback */
        nng_stream_dialer_free(dialer->dialer);
        free(dialer);
    }
    return due_ns;
}

static void hub_accept_again(link_hub *hub) {
    pthread_mutex_lock(&hub->lock);
    if (hub->listener != NULL && !hub->is_accepting && !hub->is_closing) {
        hub->is_accepting = true;
        nng_stream_listener_accept(hub->listener, hub->accept_aio);
    }
    pthread_mutex_unlock(&hub->lock);
}

/* Sleeps until kicked or due; returns whether there is anything left to do. */
static bool hub_sleep(link_hub *hub, int64_t until_ns, link_conn **links) {
    struct timespec until = {until_ns / BT_NS_PER_S, until_ns % BT_NS_PER_S};
    pthread_mutex_lock(&hub->lock);
    while (!hub->is_kicked && pthread_cond_timedwait(&hub->kicked, &hub->lock, &until) == 0) {
    }
    hub->is_kicked = false;
    *links = hub->links;
    bool is_done = hub->is_closing && hub->links == NULL && hub->dialers == NULL && !hub->is_accepting;
    pthread_mutex_unlock(&hub->lock);
    return !is_done;
}

static void *hub_run(void *arg) {
    link_hub *hub = arg;
    uint32_t shorter_ms = hub->config.ping_ms < hub->config.dead_ms ? hub->config.ping_ms : hub->config.dead_ms;
    int64_t turn_ns = ms_to_ns(shorter_ms / 4 + 1), last_ns = bt_now_ns(), due_ns = last_ns;
    link_conn *links;
    while (hub_sleep(hub, due_ns, &links)) {
        int64_t now_ns = bt_now_ns();
        bool was_asleep = now_ns - last_ns > ms_to_ns(hub->config.dead_ms) / 2; /* stopped, or starved */
        last_ns = now_ns;
        hub_watch_links(hub, links, was_asleep, now_ns);
        due_ns = hub_watch_dialers(hub, now_ns);
        if (due_ns > now_ns + turn_ns) due_ns = now_ns + turn_ns;
        hub_accept_again(hub);
    }
    return NULL;
}

/* ---- the owner's calls ------------------------------------------------------------------------------------------ */

static void config_fill(link_config *config) {
    if (config->ping_ms == 0) config->ping_ms = 1000;
    if (config->dead_ms == 0) config->dead_ms = 3000;
    if (config->retry_min_ms == 0) config->retry_min_ms = 50;
    if (config->retry_max_ms == 0) config->retry_max_ms = 1000;
    if (config->cap_links == 0) config->cap_links = 1024;
    if (config->cap_queue_bytes == 0) config->cap_queue_bytes = 64 << 20;
    if (config->cap_unhandled_bytes == 0) config->cap_unhandled_bytes = 64 << 20;
}

bt_status link_hub_open(const link_config *config, link_hub **out, bt_error *err) {
    link_hub *hub = bt_calloc(1, sizeof(*hub));
    hub->config = *config;
    config_fill(&hub->config);
    hub->config.name = bt_strdup(config->name);
    atomic_store(&hub->n_refs, 1);
    pthread_mutex_init(&hub->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&hub->kicked, &attr);
    pthread_condattr_destroy(&attr);
    int error = pthread_create(&hub->thread, NULL, hub_run, hub);
    if (error != 0) {
        hub_unref(hub);
        return bt_fail(err, BT_INTERNAL, "cannot start the links' thread: %s", strerror(error));
    }
    *out = hub;
    return BT_OK;
}

bt_status link_hub_listen(link_hub *hub, const char *host, uint32_t port, uint32_t *out_port, bt_error *err) {
    char url[WIRE_MAX_NAME + 32];
    if (port > 65535 || hub->listener != NULL) return bt_fail(err, BT_BAD_REQUEST, "cannot listen on port %u", port);
    snprintf(url, sizeof(url), strchr(host, ':') != NULL ? "tcp://[%s]:%u" : "tcp://%s:%u", host, port);
    nng_stream_listener *listener = NULL;
    int result = nng_stream_listener_alloc(&listener, url);
    /* NNG leaves Nagle on: a token behind another unacknowledged frame would wait for the peer's delayed ACK, 40 ms */
    if (result == 0) result = nng_stream_listener_set_bool(listener, NNG_OPT_TCP_NODELAY, true);
    if (result == 0) result = nng_stream_listener_listen(listener);
    int bound_port = 0;
    if (result == 0) result = nng_stream_listener_get_int(listener, NNG_OPT_TCP_BOUND_PORT, &bound_port);
    if (result != 0) {
        nng_stream_listener_free(listener);
        return bt_fail(err, result == NNG_EADDRINVAL ? BT_BAD_REQUEST : BT_INTERNAL, "cannot listen on %s: %s", url,
                       nng_strerror(result));
    }
    hub->accept_aio = aio_new(on_accepted, hub);
    pthread_mutex_lock(&hub->lock);
    hub->listener = listener;
    pthread_mutex_unlock(&hub->lock);
    hub_kick(hub);
    *out_port = (uint32_t)bound_port;
    return BT_OK;
}

bt_status link_hub_dial(link_hub *hub, const char *address, uint64_t tag, link_dialer **out, bt_error *err) {
    char host[WIRE_MAX_NAME], url[WIRE_MAX_NAME + 32];
    uint32_t port = 0;
    bt_status status = bt_address_split(address, host, sizeof(host), &port, err);
    if (status != BT_OK) return status;
    snprintf(url, sizeof(url), "tcp://%s", address);
    nng_stream_dialer *stream_dialer = NULL;
    int result = nng_stream_dialer_alloc(&stream_dialer, url);
    if (result == 0) result = nng_stream_dialer_set_bool(stream_dialer, NNG_OPT_TCP_NODELAY, true);
    if (result != 0) return bt_fail(err, BT_BAD_REQUEST, "cannot dial %s: %s", url, nng_strerror(result));
    link_dialer *dialer = bt_calloc(1, sizeof(*dialer));
    dialer->hub = hub;
    dialer->dialer = stream_dialer;
    dialer->aio = aio_new(on_dialed, dialer);
    nng_aio_set_timeout(dialer->aio, (nng_duration)hub->config.dead_ms);
    dialer->tag = tag;
    snprintf(dialer->address, sizeof(dialer->address), "%s", address);
    dialer->backoff_ms = hub->config.retry_min_ms;
    pthread_mutex_lock(&hub->lock);
    dialer->next = hub->dialers;
    hub->dialers = dialer;
    pthread_mutex_unlock(&hub->lock);
    hub_kick(hub);
    *out = dialer;
    return BT_OK;
}

void link_dialer_close(link_dialer *dialer) {
    if (dialer == NULL) return;
    link_hub *hub = dialer->hub;
    pthread_mutex_lock(&hub->lock);
    dialer->is_closed = true;
    link_conn *link = dialer->link;
    if (link != NULL) {
        atomic_fetch_add(&link->n_refs, 1);
        link->dialer = NULL;
        dialer->link = NULL;
    }
    pthread_mutex_unlock(&hub->lock);
    if (link != NULL) {
        link_close(link);
        link_unref(link);
    }
    hub_kick(hub);
}

const char *link_peer_name(const link_conn *link) { return link->peer_name; }
uint64_t link_peer_incarnation(const link_conn *link) { return link->peer_incarnation; }

void link_hub_close(link_hub *hub, uint32_t linger_ms) {
    if (hub == NULL) return;
    pthread_mutex_lock(&hub->lock);
    hub->close_by_ns = bt_now_ns() + ms_to_ns(linger_ms);
    hub->is_closing = true;
    pthread_mutex_unlock(&hub->lock);
    if (hub->listener != NULL) nng_stream_listener_close(hub->listener);
    hub_kick(hub);
    pthread_join(hub->thread, NULL);
    nng_aio_free(hub->accept_aio);
    nng_stream_listener_free(hub->listener);
    hub_unref(hub);
}

uint64_t link_cluster_key(const char *secret) { return secret[0] == 0 ? 0 : XXH3_64bits(secret, strlen(secret)); }

uint64_t link_random_u64(void) {
    uint64_t value = 0;
    while (value == 0) BT_ASSERT(getrandom(&value, sizeof(value), 0) == (ssize_t)sizeof(value));
    return value;
}
