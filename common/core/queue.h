/* The one way a thread tells another thread something: an unbounded queue of nodes that many push and one pops.
 *
 * Nodes are embedded in the caller's message struct (first member, or BT_QUEUE_ENTRY) and owned by the queue while
 * they are in it. Callbacks of UCX, NNG, hiredis do one thing: push to the owner's queue. The owner sleeps in
 * bt_queue_wait(), or polls bt_queue_fd() together with other descriptors. */
#ifndef BATON_COMMON_CORE_QUEUE_H
#define BATON_COMMON_CORE_QUEUE_H

#include <stddef.h>
#include <stdint.h>

#include "common/core/status.h"

typedef struct bt_queue_node {
    struct bt_queue_node *next;
} bt_queue_node;

#define BT_QUEUE_ENTRY(node, type, member) ((type *)(void *)((char *)(node)-offsetof(type, member)))

typedef struct bt_queue bt_queue;

bt_status bt_queue_open(bt_queue **out, bt_error *err); /* BT_INTERNAL: no file descriptor left */
void bt_queue_close(bt_queue *queue);                   /* must be empty: its nodes have owners */

void bt_queue_push(bt_queue *queue, bt_queue_node *node); /* any thread; wakes the owner if the queue was empty */
void bt_queue_add(bt_queue *queue, bt_queue_node *node);  /* the same without waking: a wake must follow */
void bt_queue_wake(bt_queue *queue);                      /* any thread; makes one bt_queue_wait() return early */

/* Owner thread. All nodes so far in the order in which they were pushed, as a list by `next`; NULL: none. */
bt_queue_node *bt_queue_take(bt_queue *queue);

/* Owner thread. Sleeps until something was pushed, a wake, or `timeout_ms` passed (-1: no limit; 0: just look). */
void bt_queue_wait(bt_queue *queue, int timeout_ms);

/* Readable while something was pushed since the last bt_queue_take(). Owned by the queue. */
int bt_queue_fd(const bt_queue *queue);

#endif
