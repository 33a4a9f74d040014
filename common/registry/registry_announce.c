/* A worker's side: one thread that keeps its announcement in Redis. Owns the poll loop, the connection and a copy of
 * what is announced; others change that copy under a lock and wake the thread.
 *
 * Both writes are scripts, so that a name has one holder: a process takes the name over once, when it announces itself
 * for the first time; after that it renews only what is its own, and stops when a newer process took the name. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/core/log.h"
#include "common/registry/redis_conn.h"
#include "common/registry/redis_keys.h"
#include "common/registry/registry_internal.h"

enum { TICK_MS = 100, LEAVE_MS = 500, DEFAULT_LEASE_MS = 3000 };

/* KEYS: worker, workers. ARGV: json, lease ms, how our json names us, "1" to take over, name, channel.
 * Returns what was there before, or nothing. */
static const char announce_script[] =
    "local old = redis.call('GET', KEYS[1]) "
    "local is_ours = old and string.find(old, ARGV[3], 1, true) "
    "if old and not is_ours and ARGV[4] == '0' then return old end "
    "redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) "
    "redis.call('SADD', KEYS[2], ARGV[5]) "
    "if old ~= ARGV[1] then redis.call('PUBLISH', ARGV[6], 'changed ' .. ARGV[5]) end "
    "return old";

/* KEYS: worker, workers. ARGV: how our json names us, name, channel, incarnation. */
static const char leave_script[] = "local old = redis.call('GET', KEYS[1]) "
                                   "if old and not string.find(old, ARGV[1], 1, true) then return 0 end "
                                   "redis.call('DEL', KEYS[1]) redis.call('SREM', KEYS[2], ARGV[2]) "
                                   "redis.call('PUBLISH', ARGV[3], 'left ' .. ARGV[2] .. ' ' .. ARGV[4]) "
                                   "return 1";

struct reg_announcer {
    reg_announcer_config config;
    pthread_t thread;
    reg_poll *poll;
    redis_conn *conn;
    reg_watcher *watcher;                                   /* NULL: nobody asks */
    char key[REG_CAP_NAME + 32], incarnation[17], mark[40]; /* mark: "incarnation":"..." as in the json */
    char name[REG_CAP_NAME];

    pthread_mutex_t lock; /* the next three */
    reg_worker worker;
    bool is_changed, must_stop;

    /* The thread's: */
    bool has_name;    /* took it over, or found it free */
    bool is_replaced; /* another process took it */
    bool is_waiting, has_left;
    int64_t next_ns; /* of the renewal */
};

static void on_announced(void *context, const redis_value *reply) {
    reg_announcer *self = context;
    self->is_waiting = false;
    if (reply == NULL) return;
    if (reply->kind == REDIS_VALUE_ERROR) {
        bt_log(BT_LOG_WARN, "registry", "announcement refused", "worker=%s reason=\"%.200s\"", self->name, reply->text);
        return;
    }
    bool was_other = reply->kind == REDIS_VALUE_TEXT && strstr(reply->text, self->mark) == NULL;
    if (!self->has_name) {
        self->has_name = true;
        bt_log(was_other ? BT_LOG_WARN : BT_LOG_INFO, "registry",
               was_other ? "announced, replacing another process of that name" : "announced",
               "worker=%s incarnation=%s", self->name, self->incarnation);
    } else if (was_other && !self->is_replaced) {
        self->is_replaced = true;
        bt_log(BT_LOG_ERROR, "registry", "replaced by a newer process of that name", "worker=%s incarnation=%s",
               self->name, self->incarnation);
        if (self->config.on_replaced != NULL) self->config.on_replaced(self->config.context);
    }
}

static void announce(reg_announcer *self) {
    bt_buf json = {0};
    char lease_ms[16];
    pthread_mutex_lock(&self->lock);
    reg_worker_write(&self->worker, &json);
    self->is_changed = false;
    pthread_mutex_unlock(&self->lock);
    snprintf(lease_ms, sizeof(lease_ms), "%u", self->config.lease_ms);
    const char *args[] = {"EVAL",
                          announce_script,
                          "2",
                          self->key,
                          redis_key_patterns[REDIS_WORKERS],
                          bt_buf_text(&json),
                          lease_ms,
                          self->mark,
                          self->has_name ? "0" : "1",
                          self->name,
                          redis_key_patterns[REDIS_EVENTS]};
    self->is_waiting =
        redis_conn_command(self->conn, on_announced, self, sizeof(args) / sizeof(args[0]), args) == BT_OK;
    self->next_ns = bt_now_ns() + (int64_t)self->config.lease_ms * BT_NS_PER_MS / 3;
    bt_buf_fini(&json);
}

static void on_left(void *context, const redis_value *reply) {
    (void)reply;
    ((reg_announcer *)context)->has_left = true;
}

/* Takes the announcement back, if Redis answers soon. */
static void leave(reg_announcer *self) {
    const char *args[] = {"EVAL",
                          leave_script,
                          "2",
                          self->key,
                          redis_key_patterns[REDIS_WORKERS],
                          self->mark,
                          self->name,
                          redis_key_patterns[REDIS_EVENTS],
                          self->incarnation};
    if (!self->has_name || self->is_replaced) return;
    if (redis_conn_command(self->conn, on_left, self, sizeof(args) / sizeof(args[0]), args) != BT_OK) return;
    int64_t until_ns = bt_now_ns() + (int64_t)LEAVE_MS * BT_NS_PER_MS;
    while (!self->has_left && bt_now_ns() < until_ns) reg_poll_run_once(self->poll, TICK_MS);
    bt_log(BT_LOG_INFO, "registry", "left", "worker=%s incarnation=%s", self->name, self->incarnation);
}

static void on_up(void *context) {
    reg_announcer *self = context;
    self->next_ns = 0;
    self->is_waiting = false;
    if (self->config.on_redis != NULL) self->config.on_redis(self->config.context, true);
}

static void on_down(void *context) {
    reg_announcer *self = context;
    if (self->config.on_redis != NULL) self->config.on_redis(self->config.context, false);
}

static void *announcer_run(void *arg) {
    reg_announcer *self = arg;
    sigset_t all; /* signals are the program's business, and hiredis writes without MSG_NOSIGNAL */
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    for (;;) {
        redis_conn_tick(self->conn);
        if (self->watcher != NULL) reg_watcher_tick(self->watcher);
        pthread_mutex_lock(&self->lock);
        bool is_changed = self->is_changed, must_stop = self->must_stop;
        pthread_mutex_unlock(&self->lock);
        if (must_stop) break;
        bool is_due = is_changed || bt_now_ns() >= self->next_ns;
        if (is_due && !self->is_waiting && !self->is_replaced && redis_conn_is_up(self->conn)) announce(self);
        reg_poll_run_once(self->poll, TICK_MS);
    }
    leave(self);
    reg_watcher_close(self->watcher);
    redis_conn_close(self->conn);
    self->watcher = NULL;
    self->conn = NULL;
    return NULL;
}

static void announcer_free(reg_announcer *self) {
    reg_watcher_close(self->watcher);
    redis_conn_close(self->conn);
    reg_poll_close(self->poll);
    pthread_mutex_destroy(&self->lock);
    free(self);
}

bt_status reg_announcer_open(const reg_announcer_config *config, const reg_worker *worker, reg_announcer **out,
                             bt_error *err) {
    bt_status status = reg_worker_check(worker, err);
    if (status != BT_OK) return status;
    reg_announcer *self = bt_calloc(1, sizeof(*self));
    self->config = *config;
    if (self->config.lease_ms == 0) self->config.lease_ms = DEFAULT_LEASE_MS;
    self->worker = *worker;
    memcpy(self->name, worker->name, sizeof(self->name));
    snprintf(self->key, sizeof(self->key), redis_key_patterns[REDIS_WORKER], worker->name);
    snprintf(self->incarnation, sizeof(self->incarnation), "%016llx", (unsigned long long)worker->incarnation);
    snprintf(self->mark, sizeof(self->mark), "\"incarnation\":\"%s\"", self->incarnation);
    pthread_mutex_init(&self->lock, NULL);
    status = reg_poll_open(&self->poll, err);
    if (status != BT_OK) goto fail;
    reg_loop loop = reg_poll_loop(self->poll);
    const redis_conn_config conn_config = {
        .address = config->redis, .on_up = on_up, .on_down = on_down, .context = self};
    status = redis_conn_open(&conn_config, &loop, &self->conn, err);
    const reg_watcher_config watcher = {
        .redis = config->redis, .on_worker = config->on_worker, .context = config->context};
    if (status == BT_OK && config->on_worker != NULL) status = reg_watcher_open(&watcher, &loop, &self->watcher, err);
    if (status != BT_OK) goto fail;
    int error = pthread_create(&self->thread, NULL, announcer_run, self);
    if (error != 0) {
        status = bt_fail(err, BT_INTERNAL, "cannot start the registry's thread: %s", strerror(error));
        goto fail;
    }
    *out = self;
    return BT_OK;
fail:
    announcer_free(self);
    return status;
}

bt_status reg_announcer_update(reg_announcer *self, const reg_worker *worker, bt_error *err) {
    bt_status status = reg_worker_check(worker, err);
    if (status != BT_OK) return status;
    pthread_mutex_lock(&self->lock);
    bool is_same = strcmp(worker->name, self->worker.name) == 0 && worker->role == self->worker.role &&
                   worker->incarnation == self->worker.incarnation;
    if (is_same) {
        self->worker = *worker;
        self->is_changed = true;
    }
    pthread_mutex_unlock(&self->lock);
    if (!is_same) return bt_fail(err, BT_BAD_REQUEST, "a worker's name, role and incarnation do not change");
    reg_poll_wake(self->poll);
    return BT_OK;
}

void reg_announcer_close(reg_announcer *self) {
    if (self == NULL) return;
    pthread_mutex_lock(&self->lock);
    self->must_stop = true;
    pthread_mutex_unlock(&self->lock);
    reg_poll_wake(self->poll);
    pthread_join(self->thread, NULL);
    announcer_free(self);
}
