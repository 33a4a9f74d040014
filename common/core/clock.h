/* One clock for everything that measures or waits: monotonic, in nanoseconds. Never sent to another process. */
#ifndef BATON_COMMON_CORE_CLOCK_H
#define BATON_COMMON_CORE_CLOCK_H

#include <stdint.h>
#include <time.h>

enum { BT_NS_PER_US = 1000, BT_NS_PER_MS = 1000000, BT_NS_PER_S = 1000000000 };

static inline int64_t bt_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * BT_NS_PER_S + now.tv_nsec;
}

#endif
