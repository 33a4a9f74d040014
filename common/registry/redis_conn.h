/* One connection to Redis that comes back by itself. The only module that knows hiredis; no hiredis type leaves
 * redis_conn.c. One thread: the loop's.
 *
 * Connects, connects again with backoff, notices a server that hangs (an answer overdue, or nothing heard of a PING),
 * and bounds what waits for answers. Pub/sub needs a connection of its own: one with `channel` set only listens. */
#ifndef BATON_COMMON_REGISTRY_REDIS_CONN_H
#define BATON_COMMON_REGISTRY_REDIS_CONN_H

#include "common/registry/registry.h"

typedef enum { REDIS_VALUE_NIL, REDIS_VALUE_TEXT, REDIS_VALUE_INTEGER, REDIS_VALUE_LIST, REDIS_VALUE_ERROR } redis_kind;

/* A reply; valid during the callback. */
typedef struct redis_value {
    redis_kind kind;
    const char *text; /* TEXT, ERROR: n_bytes bytes and a NUL behind them */
    size_t n_bytes;
    int64_t integer;
    const struct redis_value *items; /* LIST */
    size_t n_items;
} redis_value;

/* Exactly once per command; `reply` is NULL when the connection was lost before the answer came. */
typedef void (*redis_on_reply)(void *context, const redis_value *reply);

typedef struct redis_conn redis_conn;

typedef struct {
    const char *address; /* "host:port" or "unix:/path"; copied */
    const char *channel; /* NULL, or subscribe to this and nothing else; copied */
    void (*on_up)(void *context);
    void (*on_down)(void *context);                                      /* after on_up only */
    void (*on_message)(void *context, const char *text, size_t n_bytes); /* with `channel`; NUL behind the text */
    void *context;
} redis_conn_config;

/* Returns at once; on_up comes when Redis answers. A host name is resolved by blocking calls: give addresses where
 * that matters. BT_BAD_REQUEST: `address` is neither form. */
bt_status redis_conn_open(const redis_conn_config *config, const reg_loop *loop, redis_conn **out, bt_error *err);

/* Every 50 to 250 ms: connects, pings, gives up. */
void redis_conn_tick(redis_conn *conn);

bool redis_conn_is_up(const redis_conn *conn);

/* BT_PEER_LOST: not connected; BT_NO_CAPACITY: too many commands wait for answers. on_reply is not called then. */
bt_status redis_conn_command(redis_conn *conn, redis_on_reply on_reply, void *context, size_t n_args,
                             const char *const *args);

/* Pending commands get their NULL; no on_down. Not inside a callback. NULL is accepted. */
void redis_conn_close(redis_conn *conn);

#endif
