/* Files that may be replaced while we run: says when they have changed and come to rest. Knows no contents. */
#ifndef BATON_GATEWAY_HTTP_WATCH_H
#define BATON_GATEWAY_HTTP_WATCH_H

#include <stdbool.h>
#include <stdint.h>

enum { GW_MAX_WATCHED = 2 };

/* What stat(2) says of a file; all 0: it is not there. Links are followed. */
typedef struct {
    int64_t device, inode, n_bytes, mtime_ns, ctime_ns;
} gw_stamp;

/* Files that are one thing, as a certificate and its key are. One thread owns it. */
typedef struct {
    const char *paths[GW_MAX_WATCHED]; /* borrowed */
    uint32_t n_paths;
    gw_stamp used[GW_MAX_WATCHED], seen[GW_MAX_WATCHED];
} gw_watch;

void gw_watch_add(gw_watch *watch, const char *path);
void gw_watch_mark(gw_watch *watch); /* the files are about to be read as they are now */

/* To be asked once a second: something differs from what was marked, and nothing changed since the last call, so that
 * no half-written file is read. Marks it. */
bool gw_watch_is_due(gw_watch *watch);

#endif
