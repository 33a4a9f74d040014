#include "gateway/http/watch.h"

#include <string.h>
#include <sys/stat.h>

#include "common/core/clock.h"
#include "common/core/status.h"

void gw_watch_add(gw_watch *watch, const char *path) {
    BT_ASSERT(watch->n_paths < GW_MAX_WATCHED);
    watch->paths[watch->n_paths++] = path;
}

static int64_t ns_of(struct timespec at) { return at.tv_sec * BT_NS_PER_S + at.tv_nsec; }

static void look(const gw_watch *watch, gw_stamp stamps[GW_MAX_WATCHED]) {
    memset(stamps, 0, GW_MAX_WATCHED * sizeof *stamps);
    for (uint32_t i = 0; i < watch->n_paths; i++) {
        struct stat found;
        if (stat(watch->paths[i], &found) != 0) continue;
        stamps[i] = (gw_stamp){.device = (int64_t)found.st_dev,
                               .inode = (int64_t)found.st_ino,
                               .n_bytes = found.st_size,
                               .mtime_ns = ns_of(found.st_mtim),
                               .ctime_ns = ns_of(found.st_ctim)};
    }
}

void gw_watch_mark(gw_watch *watch) {
    look(watch, watch->used);
    memcpy(watch->seen, watch->used, sizeof watch->seen);
}

bool gw_watch_is_due(gw_watch *watch) {
    gw_stamp now[GW_MAX_WATCHED];
    look(watch, now);
    bool rests = memcmp(now, watch->seen, sizeof now) == 0;
    memcpy(watch->seen, now, sizeof now);
    if (!rests || memcmp(now, watch->used, sizeof now) == 0) return false;
    memcpy(watch->used, now, sizeof now);
    return true;
}
