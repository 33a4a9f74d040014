/* A mutex around a list and an eventfd beside it. Producers hold the lock for two pointer writes, and write the
 * eventfd only when the list was empty, so a burst costs one system call. */
#include "common/core/queue.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/core/alloc.h"

struct bt_queue {
    pthread_mutex_t lock;
    bt_queue_node *head, **tail; /* tail points at the last `next`, or at head */
    int fd;
};

bt_status bt_queue_open(bt_queue **out, bt_error *err) {
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0) return bt_fail(err, BT_INTERNAL, "eventfd: %s", strerror(errno));
    bt_queue *queue = bt_calloc(1, sizeof(*queue));
    pthread_mutex_init(&queue->lock, NULL);
    queue->tail = &queue->head;
    queue->fd = fd;
    *out = queue;
    return BT_OK;
}

void bt_queue_close(bt_queue *queue) {
    if (queue == NULL) return;
    BT_ASSERT(queue->head == NULL);
    close(queue->fd);
    pthread_mutex_destroy(&queue->lock);
    free(queue);
}

void bt_queue_wake(bt_queue *queue) {
    uint64_t one = 1;
    ssize_t written = write(queue->fd, &one, sizeof(one));
    (void)written; /* EAGAIN: the counter is full, so the owner is awake already */
}

static bool append(bt_queue *queue, bt_queue_node *node) {
    node->next = NULL;
    pthread_mutex_lock(&queue->lock);
    bool was_empty = queue->head == NULL;
    *queue->tail = node;
    queue->tail = &node->next;
    pthread_mutex_unlock(&queue->lock);
    return was_empty;
}

void bt_queue_push(bt_queue *queue, bt_queue_node *node) {
    if (append(queue, node)) bt_queue_wake(queue);
}

void bt_queue_add(bt_queue *queue, bt_queue_node *node) { append(queue, node); }

bt_queue_node *bt_queue_take(bt_queue *queue) {
    uint64_t count;
    ssize_t n = read(queue->fd, &count, sizeof(count)); /* before the list: a later push wakes again */
    (void)n;
    pthread_mutex_lock(&queue->lock);
    bt_queue_node *nodes = queue->head;
    queue->head = NULL;
    queue->tail = &queue->head;
    pthread_mutex_unlock(&queue->lock);
    return nodes;
}

void bt_queue_wait(bt_queue *queue, int timeout_ms) {
    struct pollfd fd = {.fd = queue->fd, .events = POLLIN};
    poll(&fd, 1, timeout_ms); /* EINTR is an early return, which callers expect */
}

int bt_queue_fd(const bt_queue *queue) { return queue->fd; }
