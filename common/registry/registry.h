/* Who is in the cluster, kept in Redis: workers announce themselves under a lease, gateways watch.
 *
 * Keys and channels are in redis_keys.h, the only place that names them. Redis is a help, not a master: when it is
 * down, hung or restarted empty, workers keep serving and announce again when it is back, gateways keep their mirror,
 * and both log it once. Every byte that comes from Redis is checked (reg_worker_parse).
 *
 * The registry has no thread of its own choosing: it runs on an event loop that the caller describes by reg_loop. A
 * worker uses reg_announcer_open(), which brings a small poll(2) loop in its own thread; a gateway passes its HTTP
 * loop to reg_watcher_open(), and everything then happens on that loop's thread. */
#ifndef BATON_COMMON_REGISTRY_REGISTRY_H
#define BATON_COMMON_REGISTRY_REGISTRY_H

#include <stdbool.h>
#include <stdint.h>

#include "common/core/labels.h"
#include "common/core/status.h"
#include "common/wire/wire.h"

enum { REG_CAP_NAME = 64, REG_CAP_ADDRESS = 128, REG_CAP_MODEL = 128, REG_CAP_WORKERS = 16384, REG_CAP_RANKS = 256 };

/* A rank of an expert-parallel group: how its ranks find each other and agree on an epoch (worker/wrk_group.h). */
typedef enum {
    REG_RANK_WAITING, /* not in a group; `epoch` is the last one that it used, 0: none */
    REG_RANK_FORMING, /* tries to form `epoch` */
    REG_RANK_FORMED,  /* in the group of that epoch */
} reg_rank_state;

typedef struct {
    char group[REG_CAP_NAME];      /* as a worker's name; ranks of one role, group and size belong together */
    uint32_t rank, size;           /* rank < size <= REG_CAP_RANKS; size 0: it works alone, nothing else counts */
    char address[REG_CAP_ADDRESS]; /* host:port where higher ranks connect */
    uint64_t epoch;
    reg_rank_state state;
} reg_rank;

/* What a worker says about itself. Strings are NUL-terminated. */
typedef struct {
    char name[REG_CAP_NAME];               /* [A-Za-z0-9._-]+, unique in the cluster: decode-0 */
    wire_role role;                        /* WIRE_ROLE_PREFILL or WIRE_ROLE_DECODE */
    uint64_t incarnation;                  /* as in its HELLO; never 0 */
    char control_address[REG_CAP_ADDRESS]; /* host:port of its control link listener */
    char kv_address[REG_CAP_ADDRESS];      /* host:port of its KV listener; may be empty for prefill */
    char http_address[REG_CAP_ADDRESS];    /* host:port of /metrics, /health and /experts; empty: it serves none */
    uint64_t model_hash;                   /* equal for workers that may exchange KV */
    char served_model[REG_CAP_MODEL];      /* --served-model-name; printable, no control characters */
    uint32_t max_model_len;                /* tokens, >= 1 */
    uint32_t capacity;                     /* sequences it works on at once, >= 1 */
    char labels[BT_CAP_LABELS];            /* what selectors choose by: common/core/labels.h */
    bool is_draining;                      /* finishes what it has, takes nothing new */
    reg_rank ep;
} reg_worker;

/* JSON <-> reg_worker. BT_BAD_REQUEST: not JSON, a field missing, of the wrong type or out of range. */
bt_status reg_worker_parse(const char *json, size_t n_bytes, reg_worker *out, bt_error *err);
void reg_worker_write(const reg_worker *worker, bt_buf *out); /* the worker must be valid: reg_worker_check() */
bt_status reg_worker_check(const reg_worker *worker, bt_error *err);
const char *reg_rank_state_name(reg_rank_state state); /* "waiting", "forming", "formed" */

/* ---- the event loop, as the registry needs it ------------------------------------------------------------------- */

/* What a loop calls when a watched descriptor is ready. `arg` is watch()'s. Either may end in unwatch(). */
typedef struct {
    void (*on_readable)(void *arg);
    void (*on_writable)(void *arg);
} reg_ready;

/* All four are called on the loop's thread; `context` is given to watch() as it is. Implementations: registry_poll.c
 * (workers), gateway/ (h2o: dup(fd), a DONT_READ socket, notify_write is one-shot and cannot be cancelled). */
typedef struct {
    void *context;
    /* Starts to look after `fd` with neither interest set. Returns a handle, NULL: no room. Borrows `fd` and `ready`:
     * both stay valid until unwatch(). */
    void *(*watch)(void *context, int fd, const reg_ready *ready, void *arg);
    void (*want_read)(void *handle, bool on);  /* level-triggered: on_readable until it is switched off */
    void (*want_write)(void *handle, bool on); /* likewise; the registry switches it off when it has nothing left */
    void (*unwatch)(void *handle); /* no callback any more; may be called inside a callback of the same handle */
} reg_loop;

/* ---- gateway: watch --------------------------------------------------------------------------------------------- */

typedef struct reg_watcher reg_watcher;

typedef enum {
    REG_WORKER_UP,      /* a name that was not there, or a new incarnation of one that was (no GONE is sent for the
                         * old one: up replaces) */
    REG_WORKER_CHANGED, /* same incarnation, other fields: draining, mostly */
    REG_WORKER_LEFT,    /* it deregistered: it will not come back under this incarnation */
    REG_WORKER_EXPIRED, /* its lease ran out while Redis was there all the time: dead, hung or cut off from Redis.
                         * A gateway whose control link to it still lives may go on using it. */
} reg_change;

typedef struct {
    const char *redis;  /* "host:port" or "unix:/path"; copied */
    uint32_t list_ms;   /* how often the list is read anew, besides pub/sub; 0: 1000 */
    uint32_t expire_ms; /* a worker missing from two lists is EXPIRED, but not before this long after the first list
                         * of a connection: a Redis that restarted empty fills again meanwhile; 0: 3000 */
    /* Called on the loop's thread, inside reg_watcher_tick() or a ready callback; `worker` is valid during the call.
     * Must not close the watcher. */
    void (*on_worker)(void *context, reg_change change, const reg_worker *worker);
    void (*on_redis)(void *context, bool is_up); /* may be NULL; for the baton_redis_up gauge */
    void (*on_list)(void *context); /* may be NULL; a list is complete: on_worker has said what is in Redis */
    void *context;
} reg_watcher_config;

/* Starts to connect and returns at once; Redis need not be there. BT_BAD_REQUEST: `redis` is not an address. */
bt_status reg_watcher_open(const reg_watcher_config *config, const reg_loop *loop, reg_watcher **out, bt_error *err);

/* To be called every 50 to 250 ms on the loop's thread: reconnects, pings, lists, expiries. */
void reg_watcher_tick(reg_watcher *watcher);

bool reg_watcher_is_up(const reg_watcher *watcher); /* Redis answers */

void reg_watcher_close(reg_watcher *watcher); /* on the loop's thread, outside callbacks; NULL is accepted */

/* ---- a tool: look once ------------------------------------------------------------------------------------------ */

/* Everybody who is announced now, by name (decode-2 before decode-10). Waits for Redis, in this thread. *out is the
 * caller's (free). BT_BAD_REQUEST: not an address. BT_TIMEOUT: no answer for timeout_ms. */
bt_status reg_workers_read(const char *redis, uint32_t timeout_ms, reg_worker **out, size_t *n_out, bt_error *err);

/* ---- worker: announce ------------------------------------------------------------------------------------------- */

typedef struct reg_announcer reg_announcer;

typedef struct {
    const char *redis; /* as above; copied */
    uint32_t lease_ms; /* the lease's life, renewed at a third; 0: 3000 */
    /* All may be NULL and are called on the announcer's thread: post to your queue, do nothing else. */
    void (*on_redis)(void *context, bool is_up);
    void (*on_replaced)(void *context); /* another process took the name: this one is not announced any more and
                                         * should drain. Logged already. */
    /* Not NULL: watch the others as well, as reg_watcher_config.on_worker does; this worker is among them. */
    void (*on_worker)(void *context, reg_change change, const reg_worker *worker);
    void *context;
} reg_announcer_config;

/* Announces `worker` (copied) from a thread of its own until closed; a process that holds the name already is
 * replaced (the newer wins). Returns at once, Redis need not be there.
 * BT_BAD_REQUEST: a field of `worker` or the address is invalid. BT_INTERNAL: no thread. */
bt_status reg_announcer_open(const reg_announcer_config *config, const reg_worker *worker, reg_announcer **out,
                             bt_error *err);

/* Any thread. Says what changed (draining, ep) to everybody at once. Name, role and incarnation must stay. */
bt_status reg_announcer_update(reg_announcer *announcer, const reg_worker *worker, bt_error *err);

/* Deregisters (bounded: 500 ms) and ends the thread. NULL is accepted. */
void reg_announcer_close(reg_announcer *announcer);

#endif
