/* libFuzzer: any bytes as what Redis answers, on the connection for commands (after a first PONG, if the first byte is
 * odd) and on the one that listens. Whatever comes: no crash, and only checked workers. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/core/log.h"
#include "common/registry/registry_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void on_worker(void *context, reg_change change, const reg_worker *worker) {
    (void)context;
    (void)change;
    BT_ASSERT(reg_worker_check(worker, NULL) == BT_OK);
}

/* Where the watcher finds "Redis"; for the life of the process. */
static int listener_fd(char address[128]) {
    static struct sockaddr_un where = {.sun_family = AF_UNIX};
    static int fd = -1;
    if (fd < 0) {
        snprintf(where.sun_path, sizeof where.sun_path, "/tmp/fuzz_redis-%d", (int)getpid());
        unlink(where.sun_path);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        BT_ASSERT(bind(fd, (struct sockaddr *)&where, sizeof where) == 0 && listen(fd, 8) == 0);
        bt_log_set_level(BT_LOG_ERROR);
    }
    snprintf(address, 128, "unix:%s", where.sun_path);
    return fd;
}

static void say(int fd, reg_poll *poll, const void *bytes, size_t n_bytes) {
    if (fd >= 0 && n_bytes > 0) (void)!send(fd, bytes, n_bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    for (int turn = 0; turn < 4; turn++) reg_poll_run_once(poll, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    char address[128];
    int listener = listener_fd(address);
    reg_poll *poll = NULL;
    reg_watcher *watcher = NULL;
    BT_ASSERT(reg_poll_open(&poll, NULL) == BT_OK);
    reg_loop loop = reg_poll_loop(poll);
    reg_watcher_config config = {.redis = address, .on_worker = on_worker};
    BT_ASSERT(reg_watcher_open(&config, &loop, &watcher, NULL) == BT_OK);
    int commands = accept(listener, NULL, NULL), events = accept(listener, NULL, NULL);
    bool has_pong = n_bytes > 0 && (data[0] & 1);
    say(commands, poll, "+PONG\r\n", has_pong ? 7 : 0);
    reg_watcher_tick(watcher); /* asks for the list */
    if (n_bytes > 1) {
        bool is_event = data[0] & 2;
        say(is_event ? events : commands, poll, data + 1, n_bytes - 1);
        say(is_event ? commands : events, poll, data + 1, n_bytes - 1);
        reg_watcher_tick(watcher);
    }
    if (commands >= 0) close(commands);
    if (events >= 0) close(events);
    reg_poll_run_once(poll, 0);
    reg_watcher_close(watcher);
    reg_poll_close(poll);
    return 0;
}
