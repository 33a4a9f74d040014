/* The registry against a real redis-server on a socket of its own: joins, drains, leaves, deaths, name conflicts,
 * hostile bytes, and a Redis that is killed, restarted empty or stopped. */
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/core/clock.h"
#include "common/core/log.h"
#include "common/core/test.h"
#include "common/core/test_dir.h"
#include "common/registry/redis_conn.h"
#include "common/registry/redis_keys.h"
#include "common/registry/registry_internal.h"

static char folder[TEST_DIR_BYTES], address[128];
static pid_t redis_pid;

static void redis_start(void) {
    char path[96], pid_file[96];
    snprintf(path, sizeof(path), "%s/redis.sock", folder);
    snprintf(pid_file, sizeof(pid_file), "%s/redis.log", folder);
    snprintf(address, sizeof(address), "unix:%s", path);
    unlink(path);
    redis_pid = fork();
    if (redis_pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* whatever happens to the test */
        execlp("redis-server", "redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no",
               "--dir", folder, "--logfile", pid_file, (char *)NULL);
        _exit(127);
    }
}

static void redis_kill(void) {
    kill(redis_pid, SIGKILL);
    waitpid(redis_pid, NULL, 0);
}

/* ---- a gateway's view -------------------------------------------------------------------------------------------- */

typedef struct {
    reg_poll *poll;
    reg_watcher *watcher;
    int n_changes[4]; /* by reg_change */
    reg_worker last;
    bool is_up;
    int n_downs;
} view;

static void on_worker(void *context, reg_change change, const reg_worker *worker) {
    view *self = context;
    self->n_changes[change]++;
    self->last = *worker;
}

static void on_redis(void *context, bool is_up) {
    view *self = context;
    self->is_up = is_up;
    self->n_downs += !is_up;
}

static void view_open(view *self) {
    memset(self, 0, sizeof(*self));
    BT_ASSERT(reg_poll_open(&self->poll, NULL) == BT_OK);
    const reg_watcher_config config = {.redis = address,
                                       .list_ms = 100,
                                       .expire_ms = 1000,
                                       .on_worker = on_worker,
                                       .on_redis = on_redis,
                                       .context = self};
    reg_loop loop = reg_poll_loop(self->poll);
    bt_error err = {0};
    CHECK(reg_watcher_open(&config, &loop, &self->watcher, &err) == BT_OK, "%s", err.text);
}

static void view_close(view *self) {
    reg_watcher_close(self->watcher);
    reg_poll_close(self->poll);
}

/* Runs the loop until `*count` is at least `n`; false after wait_ms. */
static bool view_wait(view *self, const int *count, int n, int wait_ms) {
    int64_t until_ns = bt_now_ns() + (int64_t)wait_ms * BT_NS_PER_MS;
    while (*count < n && bt_now_ns() < until_ns) {
        reg_poll_run_once(self->poll, 20);
        reg_watcher_tick(self->watcher);
    }
    return *count >= n;
}

static void view_run(view *self, int wait_ms) {
    int never = 0;
    view_wait(self, &never, 1, wait_ms);
}

static bool view_wait_up(view *self, bool is_up, int wait_ms) {
    int64_t until_ns = bt_now_ns() + (int64_t)wait_ms * BT_NS_PER_MS;
    while (self->is_up != is_up && bt_now_ns() < until_ns) view_run(self, 20);
    return self->is_up == is_up;
}

/* ---- workers ----------------------------------------------------------------------------------------------------- */

static reg_worker some_worker(const char *name, wire_role role) {
    static uint64_t incarnation = 0x8000000000000001;
    reg_worker worker = {.role = role,
                         .incarnation = incarnation++ + (uint64_t)getpid() * 0x10000,
                         .control_address = "127.0.0.1:7001",
                         .kv_address = "127.0.0.1:7002",
                         .http_address = "127.0.0.1:7004",
                         .model_hash = 0xfedcba9876543210,
                         .served_model = "nano \"r1\" \\ é",
                         .labels = "zone=a,example.com/gpu=h100",
                         .max_model_len = 4294967295,
                         .capacity = 64};
    snprintf(worker.name, sizeof(worker.name), "%s", name);
    return worker;
}

static reg_announcer *announce(const reg_worker *worker, void (*on_replaced)(void *), void *context) {
    reg_announcer *announcer = NULL;
    const reg_announcer_config config = {
        .redis = address, .lease_ms = 600, .on_replaced = on_replaced, .context = context};
    bt_error err = {0};
    CHECK(reg_announcer_open(&config, worker, &announcer, &err) == BT_OK, "%s", err.text);
    return announcer;
}

static void test_an_announcement_survives_json_and_bad_ones_are_refused(void) {
    reg_worker worker = some_worker("decode-0", WIRE_ROLE_DECODE), read;
    bt_buf json = {0};
    bt_error err = {0};
    reg_worker_write(&worker, &json);
    CHECK(reg_worker_parse(bt_buf_text(&json), json.n_bytes, &read, &err) == BT_OK && read.ep.size == 0, "alone");
    bt_buf_clear(&json);
    worker.http_address[0] = 0;
    reg_worker_write(&worker, &json);
    CHECK(reg_worker_parse(bt_buf_text(&json), json.n_bytes, &read, &err) == BT_OK, "no HTTP listener: %s", err.text);
    bt_buf_clear(&json);
    worker = some_worker("decode-0", WIRE_ROLE_DECODE);
    worker.ep = (reg_rank){.group = "g", .rank = 1, .size = 2, .address = "[::1]:7003", .epoch = UINT64_MAX};
    worker.ep.state = REG_RANK_FORMING;
    reg_worker_write(&worker, &json);
    CHECK(reg_worker_parse(bt_buf_text(&json), json.n_bytes, &read, &err) == BT_OK, "%s", err.text);
    CHECK(reg_worker_equal(&worker, &read), "%s", bt_buf_text(&json));
    for (size_t n = 0; n < json.n_bytes; n++) /* every prefix is bad */
        CHECK(reg_worker_parse(bt_buf_text(&json), n, &read, NULL) == BT_BAD_REQUEST, "%zu bytes", n);
    static const char *const changes[][2] = {
        {"\"name\":\"decode-0\"", "\"name\":\"\""},
        {"\"name\":\"decode-0\"", "\"name\":\"a b\""},
        {"\"name\":\"decode-0\"", "\"name\":7"},
        {"\"name\":\"decode-0\"", "\"nane\":\"x\""},
        {"\"role\":\"decode\"", "\"role\":\"gateway\""},
        {"\"control_address\":\"127.0.0.1:7001\"", "\"control_address\":\"nowhere\""},
        {"\"kv_address\":\"127.0.0.1:7002\"", "\"kv_address\":\"\""},
        {"\"http_address\":\"127.0.0.1:7004\"", "\"http_address\":\"127.0.0.1:7004/x\""},
        {"\"http_address\":\"127.0.0.1:7004\"", "\"http_address\":\"a b:80\""},
        {"\"http_address\":\"127.0.0.1:7004\"", "\"http_address\":null"},
        {"\"http_address\"", "\"http\""},
        {"\"model_hash\":\"fedcba9876543210\"", "\"model_hash\":\"xyz\""},
        {"\"model_hash\":\"fedcba9876543210\"", "\"model_hash\":\"fedcba98765432100\""},
        {"\"max_model_len\":4294967295", "\"max_model_len\":4294967296"},
        {"\"max_model_len\":4294967295", "\"max_model_len\":1.5"},
        {"\"max_model_len\":4294967295", "\"max_model_len\":1e400"},
        {"\"max_model_len\":4294967295", "\"max_model_len\":-1"},
        {"\"capacity\":64", "\"capacity\":0"},
        {"\"capacity\":64", "\"capacity\":\"64\""},
        {"\"is_draining\":false", "\"is_draining\":0"},
        {"nano", "na\\u0007no"},
        {"\"zone=a,", "\"zone,"},
        {"\"zone=a,", "\"zone=a,zone=b,"},
        {"\"labels\":", "\"labels\":7,\"x\":"},
        {"\"ep\":{", "\"ep\":7,\"x\":{"},
        {"\"group\":\"g\"", "\"group\":\"\""},
        {"\"rank\":1", "\"rank\":2"},
        {"\"size\":2", "\"size\":0"},
        {"\"size\":2", "\"size\":257"},
        {"[::1]:7003", "nowhere"},
        {"ffffffffffffffff", "fffffffffffffffff"},
        {"\"forming\"", "\"formin\""},
    };
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        const char *text = bt_buf_text(&json), *at = strstr(text, changes[i][0]);
        BT_ASSERT(at != NULL);
        bt_buf bad = {0};
        bt_buf_printf(&bad, "%.*s%s%s", (int)(at - text), text, changes[i][1], at + strlen(changes[i][0]));
        CHECK(reg_worker_parse(bt_buf_text(&bad), bad.n_bytes, &read, NULL) == BT_BAD_REQUEST, "%s", changes[i][1]);
        bt_buf_fini(&bad);
    }
    bt_buf nested = {0};
    for (int i = 0; i < 4000; i++) bt_buf_puts(&nested, "[");
    CHECK(reg_worker_parse(bt_buf_text(&nested), nested.n_bytes, &read, NULL) == BT_BAD_REQUEST, "nested");
    for (int i = 0; i < 1000; i++) bt_buf_puts(&nested, "[");
    CHECK(reg_worker_parse(bt_buf_text(&nested), nested.n_bytes, &read, NULL) == BT_BAD_REQUEST, "long");
    bt_buf_fini(&nested);
    bt_buf_fini(&json);
}

static void test_a_worker_joins_drains_and_leaves(void) {
    view gateway;
    view_open(&gateway);
    reg_worker worker = some_worker("decode-0", WIRE_ROLE_DECODE);
    reg_announcer *announcer = announce(&worker, NULL, NULL);
    CHECK(view_wait(&gateway, &gateway.n_changes[REG_WORKER_UP], 1, 5000), "no join");
    CHECK(reg_worker_equal(&gateway.last, &worker), "another worker joined");
    view_run(&gateway, 1500); /* longer than the lease: it is renewed */
    worker.is_draining = true;
    CHECK(reg_announcer_update(announcer, &worker, NULL) == BT_OK, "update");
    CHECK(view_wait(&gateway, &gateway.n_changes[REG_WORKER_CHANGED], 1, 2000), "no drain");
    CHECK(gateway.last.is_draining, "changed, but not draining");
    worker.incarnation++;
    CHECK(reg_announcer_update(announcer, &worker, NULL) == BT_BAD_REQUEST, "a new incarnation by update");
    reg_announcer_close(announcer);
    CHECK(view_wait(&gateway, &gateway.n_changes[REG_WORKER_LEFT], 1, 2000), "no leave");
    view_run(&gateway, 500);
    const int *n = gateway.n_changes;
    CHECK(n[0] == 1 && n[1] == 1 && n[2] == 1 && n[3] == 0, "%d %d %d %d", n[0], n[1], n[2], n[3]);
    view_close(&gateway);
}

static void test_wrong_configurations_are_refused(void) {
    reg_announcer *announcer = NULL;
    reg_worker worker = some_worker("decode 0", WIRE_ROLE_DECODE);
    CHECK(reg_announcer_open(&(reg_announcer_config){.redis = address}, &worker, &announcer, NULL) == BT_BAD_REQUEST,
          "name");
    worker = some_worker("decode-0", WIRE_ROLE_DECODE);
    CHECK(reg_announcer_open(&(reg_announcer_config){.redis = "here"}, &worker, &announcer, NULL) == BT_BAD_REQUEST,
          "address");
    CHECK(reg_announcer_open(&(reg_announcer_config){.redis = "unix:"}, &worker, &announcer, NULL) == BT_BAD_REQUEST,
          "path");
}

/* `registry_test announce ADDRESS`: a worker that is going to be killed. */
static int announce_main(const char *redis) {
    snprintf(address, sizeof(address), "%s", redis);
    reg_worker worker = some_worker("prefill-9", WIRE_ROLE_PREFILL);
    reg_announcer *announcer = announce(&worker, NULL, NULL);
    pause();
    reg_announcer_close(announcer);
    return 0;
}

static void test_a_killed_worker_expires(void) {
    view gateway;
    view_open(&gateway);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execl("/proc/self/exe", "registry_test", "announce", address, (char *)NULL);
        _exit(127);
    }
    CHECK(view_wait(&gateway, &gateway.n_changes[REG_WORKER_UP], 1, 5000), "no join");
    view_run(&gateway, 1100); /* patience after the connect is over */
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    CHECK(view_wait(&gateway, &gateway.n_changes[REG_WORKER_EXPIRED], 1, 5000), "a dead worker stays");
    view_close(&gateway);
}

static void set_flag(void *context) { atomic_store((atomic_int *)context, 1); }

static void test_the_newer_of_two_processes_with_one_name_wins(void) {
    view gateway;
    atomic_int is_old_replaced = 0, is_new_replaced = 0;
    view_open(&gateway);
    reg_worker old_one = some_worker("decode-1", WIRE_ROLE_DECODE), new_one = some_worker("decode-1", WIRE_ROLE_DECODE);
    reg_announcer *old_announcer = announce(&old_one, set_flag, &is_old_replaced);
    CHECK(view_wait(&gateway, &gateway.n_changes[REG_WORKER_UP], 1, 5000), "no join");
    reg_announcer *new_announcer = announce(&new_one, set_flag, &is_new_replaced);
    CHECK(view_wait(&gateway, &gateway.n_changes[REG_WORKER_UP], 2, 5000), "not replaced");
    CHECK(gateway.last.incarnation == new_one.incarnation, "the older came back");
    view_run(&gateway, 1000);
    CHECK(atomic_load(&is_old_replaced) && !atomic_load(&is_new_replaced), "who was told");
    reg_announcer_close(old_announcer); /* must not take the newer one's announcement away */
    view_run(&gateway, 500);
    CHECK(gateway.n_changes[REG_WORKER_UP] == 2 && gateway.n_changes[REG_WORKER_LEFT] == 0, "they flap");
    reg_announcer_close(new_announcer);
    CHECK(view_wait(&gateway, &gateway.n_changes[REG_WORKER_LEFT], 1, 2000), "no leave");
    view_close(&gateway);
}

static void count_up(void *context, reg_change change, const reg_worker *worker) {
    atomic_int *n_up = context;
    (void)worker;
    if (change == REG_WORKER_UP) atomic_fetch_add(n_up, 1);
}

static void test_a_worker_that_asks_for_it_hears_of_the_others(void) {
    view gateway;
    view_open(&gateway);
    atomic_int n_up = 0;
    reg_worker first = some_worker("decode-5", WIRE_ROLE_DECODE), second = some_worker("decode-6", WIRE_ROLE_DECODE);
    const reg_announcer_config config = {.redis = address, .on_worker = count_up, .context = &n_up};
    reg_announcer *announcers[2] = {NULL, NULL};
    CHECK(reg_announcer_open(&config, &first, &announcers[0], NULL) == BT_OK, "open");
    announcers[1] = announce(&second, NULL, NULL);
    for (int i = 0; i < 200 && atomic_load(&n_up) < 2; i++) view_run(&gateway, 50);
    CHECK(atomic_load(&n_up) == 2, "itself and the other: %d", atomic_load(&n_up));
    for (int i = 0; i < 2; i++) reg_announcer_close(announcers[i]);
    view_close(&gateway);
}

static void test_a_tool_reads_all_workers_at_once(void) {
    static const char *const names[] = {"decode-10", "decode-9", "prefill-0"};
    view gateway; /* says when all are announced */
    view_open(&gateway);
    reg_announcer *announcers[3];
    reg_worker announced[3];
    for (int i = 0; i < 3; i++) {
        announced[i] = some_worker(names[i], i < 2 ? WIRE_ROLE_DECODE : WIRE_ROLE_PREFILL);
        announcers[i] = announce(&announced[i], NULL, NULL);
    }
    CHECK(view_wait(&gateway, &gateway.n_changes[REG_WORKER_UP], 3, 5000), "no join");
    reg_worker *workers = NULL;
    size_t n_workers = 0;
    bt_error err = {0};
    CHECK(reg_workers_read(address, 5000, &workers, &n_workers, &err) == BT_OK, "%s", err.text);
    CHECK(n_workers == 3 && reg_worker_equal(&workers[0], &announced[1]) &&
              reg_worker_equal(&workers[1], &announced[0]) && reg_worker_equal(&workers[2], &announced[2]),
          "%zu workers, numbers in order", n_workers);
    free(workers);
    for (int i = 0; i < 3; i++) reg_announcer_close(announcers[i]);
    CHECK(view_wait(&gateway, &gateway.n_changes[REG_WORKER_LEFT], 3, 2000), "no leave");
    CHECK(reg_workers_read(address, 5000, &workers, &n_workers, &err) == BT_OK, "%s", err.text);
    CHECK(n_workers == 0, "nobody is left");
    free(workers);
    CHECK(reg_workers_read("nowhere", 100, &workers, &n_workers, &err) == BT_BAD_REQUEST, "not an address");
    CHECK(reg_workers_read("unix:/nowhere/redis.sock", 100, &workers, &n_workers, &err) == BT_TIMEOUT, "no Redis");
    view_close(&gateway);
}

static void count_reply(void *context, const redis_value *reply) {
    *(int *)context += reply != NULL && reply->kind != REDIS_VALUE_ERROR ? 1 : 100;
}

static void test_hostile_bytes_in_redis_harm_nobody(void) {
    view gateway;
    view_open(&gateway);
    reg_worker worker = some_worker("decode-2", WIRE_ROLE_DECODE);
    reg_announcer *announcer = announce(&worker, NULL, NULL);
    CHECK(view_wait(&gateway, &gateway.n_changes[REG_WORKER_UP], 1, 5000), "no join");
    reg_loop loop = reg_poll_loop(gateway.poll);
    redis_conn *stranger = NULL;
    BT_ASSERT(redis_conn_open(&(redis_conn_config){.address = address}, &loop, &stranger, NULL) == BT_OK);
    while (!redis_conn_is_up(stranger)) {
        redis_conn_tick(stranger);
        reg_poll_run_once(gateway.poll, 20);
    }
    static const char *const commands[][4] = {
        {"SADD", "baton:1:workers", "no such", NULL},
        {"SADD", "baton:1:workers", "dead", NULL},
        {"SADD", "baton:1:workers", "bad", NULL},
        {"SADD", "baton:1:workers", "list", NULL},
        {"SADD", "baton:1:workers", "", NULL},
        {"SET", "baton:1:worker:bad", "{\"name\":\"bad\"}", NULL},
        {"LPUSH", "baton:1:worker:list", "x", NULL},
        {"PUBLISH", "baton:1:events", "changed bad", NULL},
        {"PUBLISH", "baton:1:events", "changed list", NULL},
        {"PUBLISH", "baton:1:events", "changed ../../etc", NULL},
        {"PUBLISH", "baton:1:events", "left decode-2 1", NULL},
        {"PUBLISH", "baton:1:events", "left decode-2", NULL},
        {"PUBLISH", "baton:1:events", "", NULL},
        {"PUBLISH", "baton:1:events",
         "changed aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", NULL},
    };
    enum { N = sizeof(commands) / sizeof(commands[0]) };
    int n_done = 0;
    for (int i = 0; i < N; i++) redis_conn_command(stranger, count_reply, &n_done, 3, commands[i]);
    CHECK(view_wait(&gateway, &n_done, N, 3000) && n_done == N, "%d", n_done);
    view_run(&gateway, 1500);
    const int *n = gateway.n_changes;
    CHECK(n[0] == 1 && n[1] == 0 && n[2] == 0 && n[3] == 0, "%d %d %d %d", n[0], n[1], n[2], n[3]);
    redis_conn_command(stranger, count_reply, &n_done, 2, (const char *const[]){"FLUSHALL", "SYNC"});
    view_wait(&gateway, &n_done, N + 1, 3000);
    redis_conn_close(stranger);
    reg_announcer_close(announcer);
    view_close(&gateway);
}

static void test_workers_stay_in_the_mirror_while_redis_is_killed_and_restarted_empty(void) {
    view gateway;
    view_open(&gateway);
    reg_worker worker = some_worker("decode-3", WIRE_ROLE_DECODE);
    reg_announcer *announcer = announce(&worker, NULL, NULL);
    CHECK(view_wait(&gateway, &gateway.n_changes[REG_WORKER_UP], 1, 5000), "no join");
    redis_kill();
    CHECK(view_wait_up(&gateway, false, 2000), "a dead Redis was not noticed");
    view_run(&gateway, 1500);
    redis_start();
    CHECK(view_wait_up(&gateway, true, 5000), "Redis was not found again");
    view_run(&gateway, 2500);
    const int *n = gateway.n_changes;
    CHECK(n[0] == 1 && n[1] == 0 && n[2] == 0 && n[3] == 0, "%d %d %d %d", n[0], n[1], n[2], n[3]);
    reg_announcer_close(announcer); /* announced anew: else there is nothing to leave */
    CHECK(view_wait(&gateway, &gateway.n_changes[REG_WORKER_LEFT], 1, 2000), "not announced again");
    view_close(&gateway);
}

static void test_a_redis_that_hangs_is_noticed_and_forgiven(void) {
    view gateway;
    view_open(&gateway);
    reg_worker worker = some_worker("decode-4", WIRE_ROLE_DECODE);
    reg_announcer *announcer = announce(&worker, NULL, NULL);
    CHECK(view_wait(&gateway, &gateway.n_changes[REG_WORKER_UP], 1, 5000), "no join");
    kill(redis_pid, SIGSTOP);
    CHECK(view_wait_up(&gateway, false, 20000), "a hanging Redis was not noticed");
    view_run(&gateway, 1000); /* its socket accepts connections, which proves nothing */
    CHECK(!gateway.is_up && gateway.n_downs == 1, "connected is not up");
    kill(redis_pid, SIGCONT);
    CHECK(view_wait_up(&gateway, true, 20000), "Redis was not found again");
    view_run(&gateway, 2500);
    const int *n = gateway.n_changes;
    CHECK(n[0] == 1 && n[2] == 0 && n[3] == 0, "%d %d %d %d", n[0], n[1], n[2], n[3]);
    kill(redis_pid, SIGSTOP); /* closing does not wait for it: if it did, this test would not end */
    reg_announcer_close(announcer);
    view_close(&gateway);
    kill(redis_pid, SIGCONT);
}

/* hiredis' async API aborts the process on some of these. */
static void test_answers_that_nobody_asked_for_cost_only_the_connection(void) {
    static const char *const answers[] = {"+PONG\r\n+OK\r\n", "+PONG\r\n*2147483647\r\n", "+PONG\r\n*0\r\n*1\r\n+x\r\n",
                                          "+PONG\r\n*1\r\n*1000000\r\n"};
    struct sockaddr_un where = {.sun_family = AF_UNIX};
    snprintf(where.sun_path, sizeof(where.sun_path), "%s/odd.sock", folder);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    BT_ASSERT(bind(listener, (struct sockaddr *)&where, sizeof(where)) == 0 && listen(listener, 8) == 0);
    char odd[128];
    snprintf(odd, sizeof(odd), "unix:%s", where.sun_path);
    for (size_t i = 0; i < sizeof(answers) / sizeof(*answers); i++) {
        view self = {0};
        BT_ASSERT(reg_poll_open(&self.poll, NULL) == BT_OK);
        reg_loop loop = reg_poll_loop(self.poll);
        reg_watcher_config config = {.redis = odd, .on_worker = on_worker, .on_redis = on_redis, .context = &self};
        BT_ASSERT(reg_watcher_open(&config, &loop, &self.watcher, NULL) == BT_OK);
        int commands = accept(listener, NULL, NULL), events = accept(listener, NULL, NULL);
        CHECK(write(commands, answers[i], strlen(answers[i])) > 0 && write(events, "*1\r\n+x\r\n", 8) > 0, "said");
        for (int turn = 0; turn < 5; turn++) reg_poll_run_once(self.poll, 10);
        CHECK(!self.is_up && self.n_downs == 1, "%zu: it was up, and is no more", i);
        close(commands);
        close(events);
        reg_watcher_close(self.watcher);
        reg_poll_close(self.poll);
    }
    close(listener);
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "announce") == 0) return announce_main(argv[2]);
    signal(SIGPIPE, SIG_IGN);
    bt_log_set_level(BT_LOG_ERROR + 1); /* what is logged here is expected */
    test_an_announcement_survives_json_and_bad_ones_are_refused();
    if (system("command -v redis-server >/dev/null") != 0) TEST_SKIP("redis-server is not installed");
    test_dir_make(folder);
    redis_start();
    test_wrong_configurations_are_refused();
    test_a_worker_joins_drains_and_leaves();
    test_a_killed_worker_expires();
    test_the_newer_of_two_processes_with_one_name_wins();
    test_a_worker_that_asks_for_it_hears_of_the_others();
    test_a_tool_reads_all_workers_at_once();
    test_hostile_bytes_in_redis_harm_nobody();
    test_answers_that_nobody_asked_for_cost_only_the_connection();
    test_workers_stay_in_the_mirror_while_redis_is_killed_and_restarted_empty();
    test_a_redis_that_hangs_is_noticed_and_forgiven();
    redis_kill();
    test_dir_remove(folder);
    TEST_END();
}
