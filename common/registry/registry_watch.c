/* A gateway's side: a mirror of the announcements, kept fresh by reading them all every list_ms and one at once when
 * pub/sub says that it changed. Owns two connections (commands; pub/sub) and the mirror. Decides who is up and who is
 * gone; what that means for requests is the gateway's business.
 *
 * A list is two commands: SMEMBERS, then MGET of those names. All commands go over one connection, so their answers
 * come in order and the mirror only moves forward; a worker that left is remembered until a list is without it, so
 * that a list which was on its way does not raise it again. */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/core/log.h"
#include "common/registry/redis_conn.h"
#include "common/registry/redis_keys.h"
#include "common/registry/registry_internal.h"

enum { DEFAULT_LIST_MS = 1000, DEFAULT_EXPIRE_MS = 3000 };

typedef struct {
    reg_worker worker;
    uint64_t list; /* the last list it was in */
    bool has_left;
} mirror_entry;

struct reg_watcher {
    reg_watcher_config config;
    redis_conn *commands, *events;
    mirror_entry **mirror; /* owned, by name */
    size_t n_mirror, cap_mirror;
    char (*names)[REG_CAP_NAME]; /* of the list being read */
    size_t n_names;
    uint64_t list; /* counts them */
    bool is_listing;
    int64_t next_list_ns, first_list_ns; /* 0: none on this connection yet */
    uint64_t bad_hash;                   /* of the last bad announcement: said once */
};

/* ---- the mirror -------------------------------------------------------------------------------------------------- */

/* Where `name` is, or would be. */
static size_t mirror_find(const reg_watcher *self, const char *name, bool *is_there) {
    size_t low = 0, high = self->n_mirror;
    *is_there = false;
    while (low < high && !*is_there) {
        size_t middle = (low + high) / 2;
        int order = strcmp(self->mirror[middle]->worker.name, name);
        if (order == 0) *is_there = true;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return high;
}

static mirror_entry *mirror_get(const reg_watcher *self, const char *name) {
    bool is_there;
    size_t at = mirror_find(self, name, &is_there);
    return is_there ? self->mirror[at] : NULL;
}

static mirror_entry *mirror_insert(reg_watcher *self, const char *name) {
    bool is_there;
    size_t at = mirror_find(self, name, &is_there);
    if (self->n_mirror == self->cap_mirror) {
        self->cap_mirror = self->cap_mirror * 2 + 16;
        self->mirror = bt_realloc(self->mirror, self->cap_mirror, sizeof(*self->mirror));
    }
    memmove(self->mirror + at + 1, self->mirror + at, (self->n_mirror - at) * sizeof(*self->mirror));
    self->n_mirror++;
    return self->mirror[at] = bt_calloc(1, sizeof(mirror_entry));
}

static void watcher_say(reg_watcher *self, reg_change change, const reg_worker *worker) {
    static const char *const names[] = {"worker up", "worker changed", "worker left", "worker lease expired"};
    bt_log(change == REG_WORKER_EXPIRED ? BT_LOG_WARN : BT_LOG_INFO, "registry", names[change],
           "worker=%s incarnation=%016llx draining=%d control=%s", worker->name,
           (unsigned long long)worker->incarnation, worker->is_draining, worker->control_address);
    self->config.on_worker(self->config.context, change, worker);
}

/* What Redis has under that name. */
static void watcher_take(reg_watcher *self, const char *name, const redis_value *value) {
    reg_worker worker;
    bt_error err = {0};
    bt_status status = reg_worker_parse(value->text, value->n_bytes, &worker, &err);
    if (status == BT_OK && strcmp(worker.name, name) != 0)
        status = bt_fail(&err, BT_BAD_REQUEST, "it names another worker");
    if (status != BT_OK) {
        uint64_t hash = XXH3_64bits(value->text, value->n_bytes);
        if (hash != self->bad_hash)
            bt_log(BT_LOG_WARN, "registry", "bad announcement ignored", "worker=%s reason=\"%s\"", name, err.text);
        self->bad_hash = hash;
        return;
    }
    mirror_entry *entry = mirror_get(self, name);
    bool is_new = entry == NULL || entry->worker.incarnation != worker.incarnation;
    if (entry == NULL) entry = mirror_insert(self, name);
    bool is_changed = is_new || !reg_worker_equal(&entry->worker, &worker);
    entry->list = self->list;
    if (is_new) entry->has_left = false;
    entry->worker = worker;
    if (is_changed && !entry->has_left) watcher_say(self, is_new ? REG_WORKER_UP : REG_WORKER_CHANGED, &worker);
}

/* A list is complete: who is not in it and was not in the one before is gone. (Not at once: its `left` may be on the
 * other connection.) */
static void watcher_sweep(reg_watcher *self) {
    int64_t patience_ns = (int64_t)self->config.expire_ms * BT_NS_PER_MS;
    bool is_patient = bt_now_ns() - self->first_list_ns < patience_ns;
    size_t n_kept = 0;
    for (size_t i = 0; i < self->n_mirror; i++) {
        mirror_entry *entry = self->mirror[i];
        bool is_kept = entry->has_left ? entry->list == self->list : entry->list + 1 >= self->list || is_patient;
        if (is_kept) {
            self->mirror[n_kept++] = entry;
            continue;
        }
        if (!entry->has_left) watcher_say(self, REG_WORKER_EXPIRED, &entry->worker);
        free(entry);
    }
    self->n_mirror = n_kept;
}

/* ---- lists ------------------------------------------------------------------------------------------------------- */

static void list_end(reg_watcher *self) {
    self->is_listing = false;
    self->n_names = 0;
}

static void on_values(void *context, const redis_value *reply) {
    reg_watcher *self = context;
    if (reply == NULL || reply->kind != REDIS_VALUE_LIST || reply->n_items != self->n_names) {
        list_end(self);
        return;
    }
    for (size_t i = 0; i < self->n_names; i++) {
        if (reply->items[i].kind == REDIS_VALUE_TEXT) {
            watcher_take(self, self->names[i], &reply->items[i]);
        } else if (mirror_get(self, self->names[i]) == NULL) { /* long dead: a live one adds itself again */
            const char *args[] = {"SREM", redis_key_patterns[REDIS_WORKERS], self->names[i]};
            redis_conn_command(self->commands, NULL, NULL, 3, args);
        }
    }
    if (self->first_list_ns == 0) self->first_list_ns = bt_now_ns();
    watcher_sweep(self);
    list_end(self);
    if (self->config.on_list != NULL) self->config.on_list(self->config.context);
}

static void on_names(void *context, const redis_value *reply) {
    reg_watcher *self = context;
    if (reply == NULL || reply->kind != REDIS_VALUE_LIST) {
        if (reply != NULL)
            bt_log(BT_LOG_WARN, "registry", "no list of workers", "reason=\"%.200s\"", reply->text ? reply->text : "");
        list_end(self);
        return;
    }
    self->list++;
    size_t n = reply->n_items < REG_CAP_WORKERS ? reply->n_items : REG_CAP_WORKERS;
    self->names = bt_realloc(self->names, n + 1, REG_CAP_NAME);
    self->n_names = 0;
    for (size_t i = 0; i < n; i++) {
        const redis_value *name = &reply->items[i];
        if (name->kind != REDIS_VALUE_TEXT || !reg_name_is_valid(name->text, name->n_bytes)) continue;
        memcpy(self->names[self->n_names], name->text, name->n_bytes);
        self->names[self->n_names++][name->n_bytes] = 0;
    }
    if (self->n_names == 0) { /* MGET of nothing is an error */
        const redis_value none = {.kind = REDIS_VALUE_LIST};
        on_values(self, &none);
        return;
    }
    bt_arena arena = {0};
    const char **args = bt_arena_alloc(&arena, (self->n_names + 1) * sizeof(*args));
    args[0] = "MGET";
    for (size_t i = 0; i < self->n_names; i++) {
        char *key = bt_arena_alloc(&arena, REG_CAP_NAME + 32);
        snprintf(key, REG_CAP_NAME + 32, redis_key_patterns[REDIS_WORKER], self->names[i]);
        args[i + 1] = key;
    }
    if (redis_conn_command(self->commands, on_values, self, self->n_names + 1, args) != BT_OK) list_end(self);
    bt_arena_fini(&arena);
}

/* ---- single announcements ---------------------------------------------------------------------------------------- */

typedef struct {
    reg_watcher *watcher;
    char name[REG_CAP_NAME];
} one_read;

static void on_value(void *context, const redis_value *reply) {
    one_read *read = context;
    if (reply != NULL && reply->kind == REDIS_VALUE_TEXT) watcher_take(read->watcher, read->name, reply);
    free(read);
}

static void read_one(reg_watcher *self, const char *name) {
    char key[REG_CAP_NAME + 32];
    snprintf(key, sizeof(key), redis_key_patterns[REDIS_WORKER], name);
    one_read *read = bt_calloc(1, sizeof(*read));
    read->watcher = self;
    snprintf(read->name, sizeof(read->name), "%s", name);
    if (redis_conn_command(self->commands, on_value, read, 2, (const char *const[]){"GET", key}) != BT_OK) free(read);
}

/* "changed NAME" or "left NAME INCARNATION"; anything else is ignored. */
static void on_event(void *context, const char *text, size_t n_bytes) {
    reg_watcher *self = context;
    char verb[8], name[REG_CAP_NAME], hex[17];
    if (n_bytes != strlen(text)) return;
    int n = sscanf(text, "%7s %63s %16[0-9a-f]", verb, name, hex);
    if (n < 2 || !reg_name_is_valid(name, strlen(name))) return;
    if (n == 2 && strcmp(verb, "changed") == 0) read_one(self, name);
    mirror_entry *entry = mirror_get(self, name);
    bool is_it = n == 3 && strcmp(verb, "left") == 0 && entry != NULL && !entry->has_left &&
                 entry->worker.incarnation == strtoull(hex, NULL, 16);
    if (!is_it) return;
    entry->has_left = true;
    watcher_say(self, REG_WORKER_LEFT, &entry->worker);
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static void on_up(void *context) {
    reg_watcher *self = context;
    self->next_list_ns = self->first_list_ns = 0;
    if (self->config.on_redis != NULL) self->config.on_redis(self->config.context, true);
}

static void on_down(void *context) {
    reg_watcher *self = context;
    bt_log(BT_LOG_WARN, "registry", "going on with the workers known so far", "workers=%zu", self->n_mirror);
    if (self->config.on_redis != NULL) self->config.on_redis(self->config.context, false);
}

bt_status reg_watcher_open(const reg_watcher_config *config, const reg_loop *loop, reg_watcher **out, bt_error *err) {
    reg_watcher *self = bt_calloc(1, sizeof(*self));
    self->config = *config;
    if (self->config.list_ms == 0) self->config.list_ms = DEFAULT_LIST_MS;
    if (self->config.expire_ms == 0) self->config.expire_ms = DEFAULT_EXPIRE_MS;
    redis_conn_config conn = {.address = config->redis, .on_up = on_up, .on_down = on_down, .context = self};
    bt_status status = redis_conn_open(&conn, loop, &self->commands, err);
    conn = (redis_conn_config){
        .address = config->redis, .channel = redis_key_patterns[REDIS_EVENTS], .on_message = on_event, .context = self};
    if (status == BT_OK) status = redis_conn_open(&conn, loop, &self->events, err);
    if (status != BT_OK) {
        reg_watcher_close(self);
        return status;
    }
    *out = self;
    reg_watcher_tick(self);
    return BT_OK;
}

void reg_watcher_tick(reg_watcher *self) {
    redis_conn_tick(self->commands);
    redis_conn_tick(self->events);
    int64_t now_ns = bt_now_ns();
    if (self->is_listing || now_ns < self->next_list_ns || !redis_conn_is_up(self->commands)) return;
    self->next_list_ns = now_ns + (int64_t)self->config.list_ms * BT_NS_PER_MS;
    const char *args[] = {"SMEMBERS", redis_key_patterns[REDIS_WORKERS]};
    self->is_listing = redis_conn_command(self->commands, on_names, self, 2, args) == BT_OK;
}

bool reg_watcher_is_up(const reg_watcher *self) { return redis_conn_is_up(self->commands); }

void reg_watcher_close(reg_watcher *self) {
    if (self == NULL) return;
    redis_conn_close(self->commands);
    redis_conn_close(self->events);
    for (size_t i = 0; i < self->n_mirror; i++) free(self->mirror[i]);
    free(self->mirror);
    free(self->names);
    free(self);
}
