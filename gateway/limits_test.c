/* Two loops' limits over a real redis-server that is killed and comes back empty, and a file that changes. */
#include "gateway/limits.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/core/clock.h"
#include "common/core/log.h"
#include "common/core/test.h"
#include "common/core/test_dir.h"
#include "common/registry/redis_keys.h"
#include "common/registry/registry_internal.h"

enum { N = 2, PATIENCE_MS = 20000, NOON = 43200 };

static char folder[TEST_DIR_BYTES], address[128], socket_path[96], rules_path[96];
static pid_t redis_pid;
static reg_poll *poll_loop;
static gw_limiter *limiters[N];

static void redis_start(void) {
    unlink(socket_path);
    redis_pid = fork();
    if (redis_pid != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* whatever happens to the test */
    execlp("redis-server", "redis-server", "--port", "0", "--unixsocket", socket_path, "--save", "", "--appendonly",
           "no", "--dir", folder, "--logfile", "redis.log", (char *)NULL);
    _exit(127);
}

static void redis_kill(void) {
    kill(redis_pid, SIGKILL);
    waitpid(redis_pid, NULL, 0);
}

/* Runs COMMAND, a line of redis-cli; the number that it prints, -1: none. */
static long long redis_ask(const char *format, ...) {
    char command[512], words[256];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    snprintf(command, sizeof command, "redis-cli -s %s %s 2>/dev/null", socket_path, words);
    FILE *pipe = popen(command, "r");
    long long value = -1;
    if (pipe == NULL || fscanf(pipe, "%lld", &value) != 1) value = -1;
    if (pipe != NULL) pclose(pipe);
    return value;
}

static int64_t now_s = NOON;

static int64_t wall_s(void) { return now_s; }

static void run_once(void) {
    reg_poll_run_once(poll_loop, 10);
    for (int i = 0; i < N; i++) gw_limiter_tick(limiters[i]);
}

static long long used(const char *user) {
    char key[64], minute[24];
    snprintf(minute, sizeof minute, "%lld", (long long)wall_s() / GW_LIMIT_WINDOW_S);
    snprintf(key, sizeof key, redis_key_patterns[REDIS_USAGE], minute);
    return redis_ask("hget %s 'requests user %s'", key, user);
}

/* Until Redis says that `user` has used `want`. */
static bool await_used(const char *user, long long want) {
    int64_t until_ns = bt_now_ns() + (int64_t)PATIENCE_MS * BT_NS_PER_MS;
    while (bt_now_ns() < until_ns) {
        for (int i = 0; i < 5; i++) run_once();
        if (used(user) == want) return true;
    }
    return false;
}

static bool ask(int limiter, const char *user, gw_error *error) {
    const gw_payers payers = {{[GW_BY_USER] = user}};
    if (gw_limiter_check(limiters[limiter], &payers, error) != BT_OK) return false;
    gw_limiter_count(limiters[limiter], &payers);
    return true;
}

/* Until the limiter refuses; how many it let in before. */
static int n_admitted(int limiter, const char *user, int at_most) {
    gw_error error;
    int n = 0;
    while (n < at_most && ask(limiter, user, &error)) {
        n++;
        for (int i = 0; i < 3; i++) run_once();
    }
    return n;
}

static void write_rules(const char *text) {
    char next[112];
    snprintf(next, sizeof next, "%s.new", rules_path);
    FILE *file = fopen(next, "w");
    BT_ASSERT(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0);
    BT_ASSERT(rename(next, rules_path) == 0);
}

static void limiter_open(int i) {
    gw_limiter_config config = {
        .path = rules_path, .redis = address, .is_first = i == 0, .seed = (uint64_t)i, .wall_s = wall_s};
    reg_loop loop = reg_poll_loop(poll_loop);
    bt_error err = {0};
    CHECK(gw_limiter_open(&config, &loop, &limiters[i], &err) == BT_OK, "%s", err.text);
}

static void test_two_count_together_and_one_that_starts_reads(void) {
    gw_error error;
    CHECK(n_admitted(0, "alice", 11) == 10, "the first counts to ten");
    CHECK(await_used("alice", 10), "Redis has %lld", used("alice"));
    CHECK(n_admitted(1, "alice", 11) < 10, "the second has heard of them");
    CHECK(!ask(0, "alice", &error) && error.http_status == 429 && error.retry_after_s >= 1, "%s", error.message);
    gw_limiter_close(limiters[1]);
    limiter_open(1);
    for (int i = 0; i < 20; i++) run_once();
    CHECK(n_admitted(1, "alice", 11) < 10, "one that starts reads");
}

static void test_a_redis_that_comes_back_empty_is_filled_again(void) {
    gw_error error;
    for (int i = 0; i < 4; i++) CHECK(ask(0, "bob", &error), "%s", error.message);
    CHECK(await_used("bob", 4), "Redis has %lld", used("bob"));
    redis_kill();
    for (int i = 0; i < 20; i++) run_once();
    for (int i = 0; i < 2; i++) CHECK(ask(0, "bob", &error), "without Redis: %s", error.message);
    redis_start();
    CHECK(await_used("bob", 6), "four that it forgot and two that it never knew: %lld", used("bob"));
}

static void test_strange_bytes_in_redis_harm_nobody(void) {
    gw_error error;
    char key[64], minute[24];
    snprintf(minute, sizeof minute, "%lld", (long long)wall_s() / GW_LIMIT_WINDOW_S);
    snprintf(key, sizeof key, redis_key_patterns[REDIS_USAGE], minute);
    static const char *const texts[] = {"nothing", "''", "'1 2'", "'99999999999999999999999999 1 requests user carol'"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) redis_ask("publish baton:1:totals %s", texts[i]);
    redis_ask("publish baton:1:totals '%s -5 requests user carol'", minute);
    redis_ask("publish baton:1:totals '%s 18446744073709551615 requests user carol'", minute);
    redis_ask("hset %s 'requests user carol' many", key); /* HINCRBY is an error from now on */
    for (int i = 0; i < 20; i++) run_once();
    CHECK(ask(0, "carol", &error), "%s", error.message);
    for (int i = 0; i < 20; i++) run_once();
    CHECK(n_admitted(0, "carol", 11) == 9, "it counts alone");
}

static void test_a_minute_is_counted_to_its_end_and_then_forgotten(void) {
    gw_error error;
    long long minute = NOON / GW_LIMIT_WINDOW_S;
    for (int i = 0; i < 3; i++) CHECK(ask(0, "erin", &error), "%s", error.message); /* one is sent, two wait for it */
    now_s += GW_LIMIT_WINDOW_S;
    CHECK(ask(0, "erin", &error) && await_used("erin", 1), "Redis has %lld", used("erin"));
    CHECK(redis_ask("hget baton:1:usage:%lld 'requests user erin'", minute) == 3, "of the minute before");
    for (int i = 0; i < 2; i++) CHECK(redis_ask("ttl baton:1:usage:%lld", minute + i) > 0, "minute %d is kept", i);
}

static void test_a_file_is_read_again_when_it_changes(void) {
    gw_error error;
    CHECK(ask(0, "dave", &error) && ask(0, "dave", &error), "%s", error.message);
    write_rules("user dave 2 -\n");
    for (int i = 0; i < 3; i++) gw_limiter_reload(limiters[0]); /* once it has come to rest */
    CHECK(!ask(0, "dave", &error), "two, it says now");
    write_rules("user dave two -\n");
    for (int i = 0; i < 3; i++) gw_limiter_reload(limiters[0]);
    CHECK(!ask(0, "dave", &error), "a wrong file changes nothing");
    CHECK(unlink(rules_path) == 0, "-");
    for (int i = 0; i < 3; i++) gw_limiter_reload(limiters[0]);
    CHECK(!ask(0, "dave", &error), "nor does one that is away");
    write_rules("user * 10 -\n");
    for (int i = 0; i < 3; i++) gw_limiter_reload(limiters[0]);
    CHECK(ask(0, "dave", &error), "%s", error.message);
}

int main(void) {
    if (system("redis-server --version >/dev/null 2>&1 && redis-cli --version >/dev/null 2>&1") != 0)
        TEST_SKIP("there is no redis-server or no redis-cli");
    signal(SIGPIPE, SIG_IGN);
    bt_log_set_level(BT_LOG_ERROR);
    test_dir_make(folder);
    snprintf(socket_path, sizeof socket_path, "%s/redis.sock", folder);
    snprintf(address, sizeof address, "unix:%s", socket_path);
    snprintf(rules_path, sizeof rules_path, "%s/limits", folder);
    write_rules("user * 10 -\n");
    redis_start();
    BT_ASSERT(reg_poll_open(&poll_loop, NULL) == BT_OK);
    for (int i = 0; i < N; i++) limiter_open(i);
    test_two_count_together_and_one_that_starts_reads();
    test_a_redis_that_comes_back_empty_is_filled_again();
    test_strange_bytes_in_redis_harm_nobody();
    test_a_minute_is_counted_to_its_end_and_then_forgotten();
    test_a_file_is_read_again_when_it_changes();
    for (int i = 0; i < N; i++) gw_limiter_close(limiters[i]);
    reg_poll_close(poll_loop);
    redis_kill();
    test_dir_remove(folder);
    TEST_END();
}
