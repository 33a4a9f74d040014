/* "host:port" and "[v6]:port": the one way in which flags, Redis and messages name a TCP end. */
#ifndef BATON_COMMON_CORE_ADDRESS_H
#define BATON_COMMON_CORE_ADDRESS_H

#include <stddef.h>
#include <stdint.h>

#include "common/core/status.h"

/* Host without brackets (copied, NUL-terminated) and port. Only the shape is checked: no name is resolved.
 * BT_BAD_REQUEST: no colon, an empty or too long host, characters no host has, a port outside 1..65535. */
bt_status bt_address_split(const char *address, char *host, size_t cap_host, uint32_t *port, bt_error *err);

#endif
