/* hiredis on somebody else's loop. Its async API connects and writes; what it reads is taken from its parser here, for
 * the async API aborts the process when an answer comes that nobody asked for. Owns the context between
 * redisAsyncConnect() and its end, of which there are three kinds: a failed connect (hiredis frees, says on_connect), a
 * failed write (hiredis frees, says on_disconnect) and conn_drop() by us. All three end in conn_lost(). */
#include "common/registry/redis_conn.h"

#include <hiredis/async.h>
#include <hiredis/hiredis.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/address.h"
#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/core/log.h"

enum {
    PING_MS = 1000,    /* hiredis 0.14 has no timeouts of its own */
    OVERDUE_MS = 3000, /* an answer, or the connection itself */
    RETRY_MIN_MS = 50,
    RETRY_MAX_MS = 1600,
    CAP_PENDING = 4096,         /* commands without an answer */
    CAP_REPLY_BYTES = 64 << 20, /* 16384 workers' announcements are 8 MB */
    CAP_REPLY_DEPTH = 4,
    CAP_INNER_ITEMS = 16, /* of a list in a list: nobody asks for one. The outer one has REG_CAP_WORKERS at most */
};

typedef struct pending pending;

struct redis_conn {
    char *address, *channel; /* owned */
    redis_conn_config config;
    reg_loop loop;
    redisAsyncContext *ac; /* NULL: not even connecting */
    void *watch;           /* the loop's handle, as long as ac lives */
    bool is_up, is_closing, is_failure_logged;
    redisReplyObjectFunctions bounded, *unbounded; /* what builds replies */
    pending *oldest, **newest;                     /* commands without an answer, in order */
    uint32_t n_pending, backoff_ms;
    int64_t next_ns;  /* when to connect, without ac */
    int64_t began_ns; /* connecting since; when up: the last answer, or the first command after all were answered */
    int64_t pinged_ns, ticked_ns;
};

struct pending {
    pending *next;
    redis_on_reply on_reply;
    void *context;
};

/* ---- replies ----------------------------------------------------------------------------------------------------- */

static void value_from(const redisReply *reply, int depth, bt_arena *arena, redis_value *out) {
    *out = (redis_value){.kind = REDIS_VALUE_NIL};
    switch (reply->type) {
    case REDIS_REPLY_STRING:
    case REDIS_REPLY_STATUS:
    case REDIS_REPLY_ERROR:
        out->kind = reply->type == REDIS_REPLY_ERROR ? REDIS_VALUE_ERROR : REDIS_VALUE_TEXT;
        out->text = reply->str;
        out->n_bytes = reply->len;
        break;
    case REDIS_REPLY_INTEGER:
        out->kind = REDIS_VALUE_INTEGER;
        out->integer = reply->integer;
        break;
    case REDIS_REPLY_ARRAY: {
        if (depth >= CAP_REPLY_DEPTH) break;
        redis_value *items = bt_arena_alloc(arena, (reply->elements + 1) * sizeof(*items));
        for (size_t i = 0; i < reply->elements; i++) value_from(reply->element[i], depth + 1, arena, &items[i]);
        out->kind = REDIS_VALUE_LIST;
        out->items = items;
        out->n_items = reply->elements;
        break;
    }
    default:
        break;
    }
}

/* Ends the oldest command. reply NULL: it will have no answer. */
static void answer_oldest(redis_conn *conn, const redisReply *reply) {
    pending *command = conn->oldest;
    conn->oldest = command->next;
    if (conn->oldest == NULL) conn->newest = &conn->oldest;
    conn->n_pending--;
    bt_arena arena = {0};
    redis_value value;
    if (reply != NULL) value_from(reply, 0, &arena, &value);
    if (command->on_reply != NULL) command->on_reply(command->context, reply != NULL ? &value : NULL);
    free(command);
    bt_arena_fini(&arena);
}

/* hiredis' own, but for what a few bytes may ask memory for. NULL ends the connection. */
static void *create_array(const redisReadTask *task, int n_items) {
    const redis_conn *conn = task->privdata;
    int cap = task->parent == NULL ? REG_CAP_WORKERS : CAP_INNER_ITEMS;
    return n_items > cap ? NULL : conn->unbounded->createArray(task, n_items);
}

static void bound_arrays(redis_conn *conn, redisReader *reader) {
    conn->unbounded = reader->fn;
    conn->bounded = *reader->fn;
    conn->bounded.createArray = create_array;
    reader->fn = &conn->bounded;
    reader->privdata = conn;
}

static void conn_came_up(redis_conn *conn) {
    conn->is_up = true;
    conn->is_failure_logged = false;
    conn->backoff_ms = RETRY_MIN_MS; /* not before: a hung server accepts connections too */
    if (conn->channel == NULL) bt_log(BT_LOG_INFO, "redis", "connected", "address=%s", conn->address);
    if (conn->config.on_up != NULL) conn->config.on_up(conn->config.context);
}

/* ["message", channel, text] or ["subscribe", channel, 1]. */
static void on_published(redis_conn *conn, const redisReply *message) {
    if (message->type != REDIS_REPLY_ARRAY || message->elements != 3) return;
    if (!conn->is_up) conn_came_up(conn);
    const redisReply *kind = message->element[0], *text = message->element[2];
    if (kind->type != REDIS_REPLY_STRING || strcmp(kind->str, "message") != 0 || text->type != REDIS_REPLY_STRING)
        return;
    conn->config.on_message(conn->config.context, text->str, text->len);
}

/* ---- the connection's life --------------------------------------------------------------------------------------- */

static void conn_lost(redis_conn *conn, const char *reason) {
    bool was_up = conn->is_up;
    conn->ac = NULL;
    conn->is_up = false;
    while (conn->oldest != NULL) answer_oldest(conn, NULL);
    if (conn->is_closing) return;
    conn->next_ns = bt_now_ns() + (int64_t)conn->backoff_ms * BT_NS_PER_MS;
    conn->backoff_ms = conn->backoff_ms * 2 < RETRY_MAX_MS ? conn->backoff_ms * 2 : RETRY_MAX_MS;
    if (!conn->is_failure_logged && conn->channel == NULL)
        bt_log(BT_LOG_WARN, "redis", was_up ? "lost, trying on" : "cannot connect, trying on",
               "address=%s reason=\"%s\"", conn->address,
               reason != NULL && reason[0] != 0 ? reason : "connection closed");
    conn->is_failure_logged = true;
    if (was_up && conn->config.on_down != NULL) conn->config.on_down(conn->config.context);
}

/* Ends the connection from our side. */
static void conn_drop(redis_conn *conn, const char *reason) {
    redisAsyncContext *ac = conn->ac;
    conn_lost(conn, reason);
    ac->onDisconnect = NULL; /* said already */
    redisAsyncFree(ac);
}

static bt_status command_send(redis_conn *conn, redis_on_reply on_done, void *context, size_t n_args,
                              const char *const *args) {
    if (redisAppendCommandArgv(&conn->ac->c, (int)n_args, (const char **)args, NULL) != REDIS_OK) return BT_PEER_LOST;
    conn->loop.want_write(conn->watch, true);
    pending *command = bt_calloc(1, sizeof(*command));
    *command = (pending){NULL, on_done, context};
    *conn->newest = command;
    conn->newest = &command->next;
    if (conn->n_pending++ == 0) conn->began_ns = bt_now_ns();
    return BT_OK;
}

/* Connected is not up: the first answer is. An error (loading, a password is asked for) is tried again later. */
static void on_first_pong(void *context, const redis_value *reply) {
    redis_conn *conn = context;
    if (reply == NULL) return;
    if (reply->kind == REDIS_VALUE_ERROR) {
        conn_drop(conn, reply->text);
    } else {
        conn_came_up(conn);
    }
}

static void on_connect(const redisAsyncContext *ac, int status) {
    redis_conn *conn = ac->data;
    if (status != REDIS_OK) { /* hiredis frees the context itself and says nothing more */
        conn_lost(conn, ac->errstr);
        return;
    }
    /* On a UNIX socket it fails and ends the connection. */
    if (ac->c.connection_type == REDIS_CONN_TCP) redisEnableKeepAlive(&conn->ac->c);
    conn->began_ns = conn->pinged_ns = bt_now_ns();
    if (conn->channel != NULL) {
        redisAppendCommand(&conn->ac->c, "SUBSCRIBE %s", conn->channel);
        conn->loop.want_write(conn->watch, true);
    } else {
        command_send(conn, on_first_pong, conn, 1, (const char *const[]){"PING"});
    }
}

static void on_disconnect(const redisAsyncContext *ac, int status) {
    (void)status;
    conn_lost(ac->data, ac->errstr);
}

static void conn_take(redis_conn *conn, const redisReply *reply) {
    conn->began_ns = bt_now_ns();
    if (conn->channel != NULL) {
        on_published(conn, reply);
    } else if (conn->oldest != NULL) {
        answer_oldest(conn, reply);
    } else {
        conn_drop(conn, "an answer came that nobody asked for");
    }
}

static void on_readable(void *arg) {
    redis_conn *conn = arg;
    redisAsyncContext *ac = conn->ac;
    redisReader *reader = ac->c.reader;
    if (redisBufferRead(&ac->c) != REDIS_OK) {
        conn_drop(conn, ac->c.errstr);
        return;
    }
    while (conn->ac == ac) { /* what is told of a reply may end the connection */
        void *reply = NULL;
        if (redisReaderGetReply(reader, &reply) != REDIS_OK) {
            conn_drop(conn, reader->errstr);
            return;
        }
        if (reply == NULL) break;
        conn_take(conn, reply);
        freeReplyObject(reply);
    }
    if (conn->ac == ac && reader->len > CAP_REPLY_BYTES) conn_drop(conn, "an answer is too long");
}

static void on_writable(void *arg) { redisAsyncHandleWrite(((redis_conn *)arg)->ac); }

static void hook_add_read(void *arg) { ((redis_conn *)arg)->loop.want_read(((redis_conn *)arg)->watch, true); }
static void hook_del_read(void *arg) { ((redis_conn *)arg)->loop.want_read(((redis_conn *)arg)->watch, false); }
static void hook_add_write(void *arg) { ((redis_conn *)arg)->loop.want_write(((redis_conn *)arg)->watch, true); }
static void hook_del_write(void *arg) { ((redis_conn *)arg)->loop.want_write(((redis_conn *)arg)->watch, false); }

static void hook_cleanup(void *arg) {
    redis_conn *conn = arg;
    if (conn->watch != NULL) conn->loop.unwatch(conn->watch);
    conn->watch = NULL;
}

static redisAsyncContext *address_connect(const char *address) {
    if (strncmp(address, "unix:", 5) == 0) return redisAsyncConnectUnix(address + 5);
    char host[REG_CAP_ADDRESS];
    uint32_t port = 0;
    if (bt_address_split(address, host, sizeof(host), &port, NULL) != BT_OK) return NULL; /* not after open */
    return redisAsyncConnect(host, (int)port);
}

static void conn_connect(redis_conn *conn) {
    static const reg_ready ready = {on_readable, on_writable};
    redisAsyncContext *ac = address_connect(conn->address);
    if (ac == NULL || ac->err != 0) {
        conn_lost(conn, ac == NULL ? "out of memory" : ac->errstr);
        if (ac != NULL) redisAsyncFree(ac);
        return;
    }
    conn->ac = ac;
    conn->began_ns = bt_now_ns();
    conn->watch = conn->loop.watch(conn->loop.context, ac->c.fd, &ready, conn);
    if (conn->watch == NULL) {
        conn_lost(conn, "the event loop is full");
        redisAsyncFree(ac);
        return;
    }
    ac->data = conn;
    ac->ev.data = conn;
    ac->ev.addRead = hook_add_read;
    ac->ev.delRead = hook_del_read;
    ac->ev.addWrite = hook_add_write;
    ac->ev.delWrite = hook_del_write;
    ac->ev.cleanup = hook_cleanup;
    bound_arrays(conn, ac->c.reader);
    redisAsyncSetDisconnectCallback(ac, on_disconnect);
    redisAsyncSetConnectCallback(ac, on_connect); /* asks for the first write event */
}

void redis_conn_tick(redis_conn *conn) {
    int64_t now_ns = bt_now_ns(), overdue_ns = (int64_t)OVERDUE_MS * BT_NS_PER_MS;
    if (now_ns - conn->ticked_ns > overdue_ns / 2) conn->began_ns = now_ns; /* we slept, not Redis */
    conn->ticked_ns = now_ns;
    if (conn->ac == NULL) {
        if (now_ns >= conn->next_ns) conn_connect(conn);
        return;
    }
    bool is_owed = !conn->is_up || conn->n_pending > 0;
    if (is_owed && now_ns - conn->began_ns > overdue_ns) {
        conn_drop(conn, conn->is_up ? "no answer in time" : "no connection in time");
        return;
    }
    if (conn->is_up && conn->channel == NULL && now_ns - conn->pinged_ns > (int64_t)PING_MS * BT_NS_PER_MS) {
        conn->pinged_ns = now_ns;
        redis_conn_command(conn, NULL, NULL, 1, (const char *const[]){"PING"});
    }
}

bool redis_conn_is_up(const redis_conn *conn) { return conn->is_up; }

bt_status redis_conn_command(redis_conn *conn, redis_on_reply on_done, void *context, size_t n_args,
                             const char *const *args) {
    if (!conn->is_up) return BT_PEER_LOST;
    if (conn->n_pending >= CAP_PENDING) return BT_NO_CAPACITY;
    return command_send(conn, on_done, context, n_args, args);
}

bt_status redis_conn_open(const redis_conn_config *config, const reg_loop *loop, redis_conn **out, bt_error *err) {
    char host[REG_CAP_ADDRESS];
    uint32_t port = 0;
    if (strncmp(config->address, "unix:", 5) == 0) {
        size_t n_bytes = strlen(config->address + 5);
        if (n_bytes == 0 || n_bytes > 107) /* sun_path */
            return bt_fail(err, BT_BAD_REQUEST, "the path in \"%.160s\" has %zu bytes, not 1 to 107", config->address,
                           n_bytes);
    } else if (bt_address_split(config->address, host, sizeof(host), &port, err) != BT_OK) {
        return BT_BAD_REQUEST;
    }
    redis_conn *conn = bt_calloc(1, sizeof(*conn));
    conn->config = *config;
    conn->address = bt_strdup(config->address);
    if (config->channel != NULL) conn->channel = bt_strdup(config->channel);
    conn->loop = *loop;
    conn->newest = &conn->oldest;
    conn->backoff_ms = RETRY_MIN_MS;
    conn->ticked_ns = bt_now_ns();
    *out = conn;
    return BT_OK;
}

void redis_conn_close(redis_conn *conn) {
    if (conn == NULL) return;
    conn->is_closing = true;
    if (conn->ac != NULL) conn_drop(conn, "closing");
    free(conn->channel);
    free(conn->address);
    free(conn);
}
