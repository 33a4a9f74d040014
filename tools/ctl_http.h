/* One page of a worker's HTTP (worker/wrk_http.h), which answers one request per connection and closes it. */
#ifndef BATON_TOOLS_CTL_HTTP_H
#define BATON_TOOLS_CTL_HTTP_H

#include <stddef.h>
#include <stdint.h>

#include "common/core/buf.h"
#include "common/core/status.h"

/* GET `path` from `address` (host:port); the answer's body replaces what `body` holds. None of the answer's bytes gets
 * into the error. BT_BAD_REQUEST: not an address or an unknown host; the answer is no HTTP, not status 200, or longer
 * than max_bytes. BT_PEER_LOST: nobody is there, or the connection broke. BT_TIMEOUT: all of it took longer than
 * timeout_ms. */
bt_status ctl_http_get(const char *address, const char *path, uint32_t timeout_ms, size_t max_bytes, bt_buf *body,
                       bt_error *err);

#endif
