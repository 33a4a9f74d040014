/* All links of one owner: who is listened for and dialed, the hub's lists, and its thread (hub_run). */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

#include "common/control/link_impl.h"
#include "common/core/address.h"
#include "common/core/log.h"

enum { STEADY_MS = 1000 }; /* a link that lived this long resets its dialer's backoff */

void link_hub_kick(link_hub *hub) {
    pthread_mutex_lock(&hub->lock);
    hub->is_kicked = true;
    pthread_cond_signal(&hub->kicked);
    pthread_mutex_unlock(&hub->lock);
}

void link_hub_unref(link_hub *hub) {
    if (atomic_fetch_sub(&hub->n_refs, 1) > 1) return;
    pthread_cond_destroy(&hub->kicked);
    pthread_mutex_destroy(&hub->lock);
    free((char *)hub->config.name);
    free(hub);
}

/* ---- the owner's turn ------------------------------------------------------------------------------------------- */

void link_hub_heat(link_hub *hub, link_conn *link) {
    link_conn_ref(link);
    pthread_mutex_lock(&hub->lock);
    link->next_hot = hub->hot;
    hub->hot = link;
    pthread_mutex_unlock(&hub->lock);
}

static link_conn *take_hot(link_hub *hub, uint64_t n_turns) {
    pthread_mutex_lock(&hub->lock);
    link_conn *hot = hub->hot;
    hub->hot = NULL;
    hub->n_turns += n_turns;
    pthread_mutex_unlock(&hub->lock);
    return hot;
}

void link_hub_soil(link_hub *hub, link_conn *link) {
    if (link->is_dirty) return;
    link_conn_ref(link);
    link->is_dirty = true;
    link->next_dirty = hub->dirty;
    hub->dirty = link;
}

static void flush(link_hub *hub) {
    for (link_conn *link = hub->dirty, *next; link != NULL; link = next) {
        next = link->next_dirty;
        link->is_dirty = false;
        link_conn_flush(link);
        link_conn_unref(link);
    }
    hub->dirty = NULL;
}

bool link_hub_turn(link_hub *hub) {
    if (hub == NULL) return false;
    flush(hub);
    bool has_read = false;
    for (link_conn *link = take_hot(hub, 1), *next; link != NULL; link = next) {
        next = link->next_hot;
        has_read |= link_conn_read_on(link);
        link_conn_unref(link);
    }
    return has_read;
}

/* The owner had no turn lately: what it has not read it may miss, and pings want an answer. */
static void hub_cool(link_hub *hub) {
    for (link_conn *link = take_hot(hub, 0), *next; link != NULL; link = next) {
        next = link->next_hot;
        link_conn_cool(link);
        link_conn_unref(link);
    }
}

/* ---- connections come ------------------------------------------------------------------------------------------- */

/* Enters the hub's list, whether it is welcome or not: what is in the list is released. */
static void start(link_hub *hub, nng_stream *stream, link_dialer *dialer) {
    link_conn *link = link_conn_new(hub, stream, dialer == NULL ? 0 : dialer->tag, dialer == NULL);
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
    if (!is_welcome) link_conn_fail(link, "no further connections are taken");
    link_conn_begin(link);
    link_conn_unref(link);
}

static void on_accepted(void *arg) {
    link_hub *hub = arg;
    int result = nng_aio_result(hub->accept_aio);
    if (result == 0) start(hub, nng_aio_get_output(hub->accept_aio, 0), NULL);
    pthread_mutex_lock(&hub->lock);
    /* After an error (no file descriptor left) the hub's thread tries again at its next turn. */
    hub->is_accepting = result == 0 && !hub->is_closing;
    if (hub->is_accepting) nng_stream_listener_accept(hub->listener, hub->accept_aio);
    pthread_mutex_unlock(&hub->lock);
    link_hub_kick(hub);
}

/* hub->lock held. */
static void dialer_back_off(link_dialer *dialer) {
    dialer->next_ns = bt_now_ns() + link_ms_to_ns(dialer->backoff_ms);
    dialer->backoff_ms *= 2;
    if (dialer->backoff_ms > dialer->hub->config.retry_max_ms) dialer->backoff_ms = dialer->hub->config.retry_max_ms;
}

static void on_dialed(void *arg) {
    link_dialer *dialer = arg;
    link_hub *hub = dialer->hub;
    int result = nng_aio_result(dialer->aio);
    if (result == 0) {
        start(hub, nng_aio_get_output(dialer->aio, 0), dialer);
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
    link_hub_kick(hub);
}

/* ---- the hub's thread ------------------------------------------------------------------------------------------- */

/* Out of the list already. */
static void release(link_hub *hub, link_conn *link) {
    pthread_mutex_lock(&hub->lock);
    hub->n_accepted -= link->is_accepted;
    if (link->dialer != NULL) {
        link->dialer->link = NULL;
        if (bt_now_ns() - link->opened_ns > link_ms_to_ns(STEADY_MS))
            link->dialer->backoff_ms = hub->config.retry_min_ms;
        dialer_back_off(link->dialer);
    }
    pthread_mutex_unlock(&hub->lock);
    link_conn_release(link);
}

static void hub_watch_links(link_hub *hub, link_conn *links, bool was_asleep, int64_t now_ns) {
    bool is_late = hub->is_closing && now_ns > hub->close_by_ns;
    for (link_conn *link = links; link != NULL; link = link->next) {
        if (hub->is_closing) link_close(link);
        if (is_late) link_conn_fail(link, "closed before the peer had read everything");
        link_conn_watch(link, was_asleep, now_ns);
    }
    link_conn *over = NULL;
    pthread_mutex_lock(&hub->lock);
    for (link_conn **at = &hub->links; *at != NULL;) {
        link_conn *link = *at;
        if (!link_conn_is_over(link)) {
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
        release(hub, link);
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
static bool hub_sleep(link_hub *hub, int64_t until_ns, link_conn **links, uint64_t *n_turns) {
    struct timespec until = {until_ns / BT_NS_PER_S, until_ns % BT_NS_PER_S};
    pthread_mutex_lock(&hub->lock);
    while (!hub->is_kicked && pthread_cond_timedwait(&hub->kicked, &hub->lock, &until) == 0) {
    }
    hub->is_kicked = false;
    *links = hub->links;
    *n_turns = hub->n_turns;
    bool is_done = hub->is_closing && hub->links == NULL && hub->dialers == NULL && !hub->is_accepting;
    pthread_mutex_unlock(&hub->lock);
    return !is_done;
}

static void *hub_run(void *arg) {
    link_hub *hub = arg;
    uint32_t shorter_ms = hub->config.ping_ms < hub->config.dead_ms ? hub->config.ping_ms : hub->config.dead_ms;
    int64_t turn_ns = link_ms_to_ns(shorter_ms / 4 + 1), last_ns = bt_now_ns(), due_ns = last_ns;
    uint64_t n_turns, seen_turns = 0;
    int64_t seen_ns = last_ns;
    link_conn *links;
    while (hub_sleep(hub, due_ns, &links, &n_turns)) {
        int64_t now_ns = bt_now_ns();
        if (n_turns != seen_turns) seen_ns = now_ns;
        seen_turns = n_turns;
        if (hub->is_closing || now_ns - seen_ns >= turn_ns) hub_cool(hub);
        bool was_asleep = now_ns - last_ns > link_ms_to_ns(hub->config.dead_ms) / 2; /* stopped, or starved */
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
        link_hub_unref(hub);
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
    hub->accept_aio = link_aio_new(on_accepted, hub);
    pthread_mutex_lock(&hub->lock);
    hub->listener = listener;
    pthread_mutex_unlock(&hub->lock);
    link_hub_kick(hub);
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
    dialer->aio = link_aio_new(on_dialed, dialer);
    nng_aio_set_timeout(dialer->aio, (nng_duration)hub->config.dead_ms);
    dialer->tag = tag;
    snprintf(dialer->address, sizeof(dialer->address), "%s", address);
    dialer->backoff_ms = hub->config.retry_min_ms;
    pthread_mutex_lock(&hub->lock);
    dialer->next = hub->dialers;
    hub->dialers = dialer;
    pthread_mutex_unlock(&hub->lock);
    link_hub_kick(hub);
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
        link_conn_ref(link);
        link->dialer = NULL;
        dialer->link = NULL;
    }
    pthread_mutex_unlock(&hub->lock);
    if (link != NULL) {
        link_close(link);
        link_conn_unref(link);
    }
    link_hub_kick(hub);
}

void link_hub_close(link_hub *hub, uint32_t linger_ms) {
    if (hub == NULL) return;
    flush(hub);
    pthread_mutex_lock(&hub->lock);
    hub->close_by_ns = bt_now_ns() + link_ms_to_ns(linger_ms);
    hub->is_closing = true;
    pthread_mutex_unlock(&hub->lock);
    if (hub->listener != NULL) nng_stream_listener_close(hub->listener);
    link_hub_kick(hub);
    pthread_join(hub->thread, NULL);
    nng_aio_free(hub->accept_aio);
    nng_stream_listener_free(hub->listener);
    link_hub_unref(hub);
}

uint64_t link_cluster_key(const char *secret) { return secret[0] == 0 ? 0 : XXH3_64bits(secret, strlen(secret)); }

uint64_t link_random_u64(void) {
    uint64_t value = 0;
    while (value == 0) BT_ASSERT(getrandom(&value, sizeof(value), 0) == (ssize_t)sizeof(value));
    return value;
}
