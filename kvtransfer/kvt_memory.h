/* KV memory that other processes of this machine may read: a memfd, mapped on huge pages where the system gives
 * them, and sealed: it cannot shrink under a reader, and nobody but its owner can write. Who may open /proc/PID/fd/FD
 * of the owner (same user, or root) may map it; the random token in its last bytes proves to a reader that it found the
 * memory that was meant. */
#ifndef BATON_KVTRANSFER_KVT_MEMORY_H
#define BATON_KVTRANSFER_KVT_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "common/core/status.h"

/* Zeroed is closed. */
typedef struct {
    uint8_t *base;  /* aligned to 2 MiB */
    size_t n_bytes; /* all that is mapped, the token included */
    int fd;         /* owned; of no meaning in a reader's mapping */
    uint64_t token;
} kvt_memory;

/* At least n_bytes, zeroed and all there. BT_INTERNAL: the system refused. */
bt_status kvt_memory_open(size_t n_bytes, kvt_memory *out, bt_error *err);

/* Another process's, to read. BT_BAD_REQUEST: there is no such memory, or we may not map it. Reading it never fails,
 * whatever its owner does. */
bt_status kvt_memory_map(uint32_t pid, uint32_t fd, uint64_t token, kvt_memory *out, bt_error *err);

void kvt_memory_close(kvt_memory *memory);

#endif
