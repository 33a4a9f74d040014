/* The announcer's event loop: a handful of descriptors and an eventfd to wake it. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/core/alloc.h"
#include "common/registry/registry_internal.h"

enum { CAP_WATCHES = 8 };

typedef struct {
    int fd; /* -1: free */
    bool wants_read, wants_write;
    const reg_ready *ready;
    void *arg;
} poll_watch;

struct reg_poll {
    int wake_fd;
    poll_watch watches[CAP_WATCHES];
};

static void *poll_start(void *context, int fd, const reg_ready *ready, void *arg) {
    reg_poll *self = context;
    for (int i = 0; i < CAP_WATCHES; i++) {
        if (self->watches[i].fd >= 0) continue;
        self->watches[i] = (poll_watch){.fd = fd, .ready = ready, .arg = arg};
        return &self->watches[i];
    }
    return NULL;
}

static void poll_want_read(void *handle, bool on) { ((poll_watch *)handle)->wants_read = on; }
static void poll_want_write(void *handle, bool on) { ((poll_watch *)handle)->wants_write = on; }
static void poll_stop(void *handle) { *(poll_watch *)handle = (poll_watch){.fd = -1}; }

reg_loop reg_poll_loop(reg_poll *self) {
    return (reg_loop){self, poll_start, poll_want_read, poll_want_write, poll_stop};
}

bt_status reg_poll_open(reg_poll **out, bt_error *err) {
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0) return bt_fail(err, BT_INTERNAL, "eventfd: %s", strerror(errno));
    reg_poll *self = bt_calloc(1, sizeof(*self));
    self->wake_fd = fd;
    for (int i = 0; i < CAP_WATCHES; i++) self->watches[i].fd = -1;
    *out = self;
    return BT_OK;
}

void reg_poll_run_once(reg_poll *self, int timeout_ms) {
    struct pollfd fds[CAP_WATCHES + 1];
    for (int i = 0; i < CAP_WATCHES; i++) {
        const poll_watch *watch = &self->watches[i];
        int events = (watch->wants_read ? POLLIN : 0) | (watch->wants_write ? POLLOUT : 0);
        fds[i] = (struct pollfd){.fd = events != 0 ? watch->fd : -1, .events = (short)events};
    }
    fds[CAP_WATCHES] = (struct pollfd){.fd = self->wake_fd, .events = POLLIN};
    if (poll(fds, CAP_WATCHES + 1, timeout_ms) <= 0) return;
    uint64_t count;
    if (fds[CAP_WATCHES].revents != 0) (void)!read(self->wake_fd, &count, sizeof(count));
    for (int i = 0; i < CAP_WATCHES; i++) {
        poll_watch *watch = &self->watches[i];
        int what = fds[i].revents; /* an error or hang-up is found by whoever reads or writes */
        /* A callback may have ended this watch, or replaced it: then its wishes are new ones. */
        if ((what & (POLLIN | POLLERR | POLLHUP)) != 0 && watch->fd == fds[i].fd && watch->wants_read)
            watch->ready->on_readable(watch->arg);
        if ((what & (POLLOUT | POLLERR | POLLHUP)) != 0 && watch->fd == fds[i].fd && watch->wants_write)
            watch->ready->on_writable(watch->arg);
    }
}

void reg_poll_wake(reg_poll *self) {
    uint64_t one = 1;
    (void)!write(self->wake_fd, &one, sizeof(one));
}

void reg_poll_close(reg_poll *self) {
    if (self == NULL) return;
    close(self->wake_fd);
    free(self);
}
