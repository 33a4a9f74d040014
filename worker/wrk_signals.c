/* SIGTERM and SIGINT. The handler does what a handler may: counts, and writes to the queue's event fd. */
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

#include "worker/wrk_node.h"

static _Atomic int n_asked;
static bt_queue *to_wake; /* set before the handlers are; of the process's only node */

static void on_signal(int signal) {
    if (atomic_fetch_add(&n_asked, 1) > 0) _exit(128 + signal); /* asked twice: at once */
    bt_queue_wake(to_wake);
}

void wrk_signals_open(bt_queue *queue) {
    to_wake = queue;
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

bool wrk_signals_is_asked(void) { return atomic_load(&n_asked) > 0; }
