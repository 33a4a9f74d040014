/* The memory that pulls read (kvt_memory.h). Both sides map it aligned to huge pages: a reader's translation costs as
 * much as the owner's. Shared memory gets huge pages by itself only where the system is set up so
 * (/sys/kernel/mm/transparent_hugepage/shmem_enabled); MADV_COLLAPSE (Linux 6.1) makes them in any case. Without either
 * it is slower and nothing else. */
#include "kvtransfer/kvt_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

enum {
    HUGE_PAGE_BYTES = 2 << 20,
    SEALS = F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE, /* what a reader insists on */
};

static uint64_t *token_of(const kvt_memory *memory) {
    return (uint64_t *)(void *)(memory->base + memory->n_bytes - sizeof(uint64_t));
}

/* NULL, and errno. */
static void *map_aligned(int fd, size_t n_bytes, int protection) {
    size_t room_bytes = n_bytes + HUGE_PAGE_BYTES;
    uint8_t *room = mmap(NULL, room_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) return NULL;
    uint8_t *base = room + (HUGE_PAGE_BYTES - (uintptr_t)room % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
    void *mapped = mmap(base, n_bytes, protection, MAP_SHARED | MAP_FIXED, fd, 0);
    int failed = mapped == MAP_FAILED ? errno : 0;
    if (failed != 0) munmap(room, room_bytes);
    if (failed == 0 && base > room) munmap(room, (size_t)(base - room));
    if (failed == 0) munmap(base + n_bytes, (size_t)(room + room_bytes - base) - n_bytes);
    errno = failed;
    return failed == 0 ? base : NULL;
}

bt_status kvt_memory_open(size_t n_bytes, kvt_memory *out, bt_error *err) {
    n_bytes += sizeof(uint64_t);
    n_bytes += (HUGE_PAGE_BYTES - n_bytes % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
    kvt_memory memory = {.n_bytes = n_bytes, .fd = memfd_create("baton-kv", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
    if (memory.fd < 0) return bt_fail(err, BT_INTERNAL, "memfd_create for the KV memory: %s", strerror(errno));
    if (ftruncate(memory.fd, (off_t)n_bytes) == 0 &&
        getrandom(&memory.token, sizeof(memory.token), 0) == sizeof(memory.token))
        memory.base = map_aligned(memory.fd, n_bytes, PROT_READ | PROT_WRITE);
    if (memory.base == NULL || fcntl(memory.fd, F_ADD_SEALS, SEALS | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        bt_fail(err, BT_INTERNAL, "KV memory of %zu bytes: %s", n_bytes, strerror(errno));
        if (memory.base == NULL) close(memory.fd);
        kvt_memory_close(&memory);
        return BT_INTERNAL;
    }
    madvise(memory.base, n_bytes, MADV_HUGEPAGE); /* advice: failure costs only speed */
    for (size_t at = 0; at < n_bytes; at += HUGE_PAGE_BYTES) {
        memory.base[at] = 0; /* what is not there at all cannot be collapsed */
        if (madvise(memory.base + at, HUGE_PAGE_BYTES, MADV_COLLAPSE) != 0)
            memset(memory.base + at, 0, HUGE_PAGE_BYTES);
    }
    *token_of(&memory) = memory.token;
    *out = memory;
    return BT_OK;
}

/* A regular file, as a memfd is: opening anything else could have an effect or wait. -1, and errno. */
static int file_open(uint32_t pid, uint32_t fd, size_t *n_bytes) {
    char path[64];
    snprintf(path, sizeof(path), "/proc/%u/fd/%u", pid, fd);
    struct stat info;
    if (stat(path, &info) != 0) return -1;
    errno = EBADF;
    if (!S_ISREG(info.st_mode)) return -1;
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (file < 0) return -1;
    int seals = fcntl(file, F_GET_SEALS); /* -1: not a memfd */
    bool is_ours = seals >= 0 && (seals & SEALS) == SEALS && fstat(file, &info) == 0 &&
                   info.st_size >= HUGE_PAGE_BYTES && info.st_size % HUGE_PAGE_BYTES == 0;
    *n_bytes = (size_t)info.st_size;
    if (is_ours) return file;
    close(file);
    errno = EBADF;
    return -1;
}

bt_status kvt_memory_map(uint32_t pid, uint32_t fd, uint64_t token, kvt_memory *out, bt_error *err) {
    kvt_memory memory = {.token = token, .fd = -1};
    int file = file_open(pid, fd, &memory.n_bytes);
    if (file >= 0) {
        memory.base = map_aligned(file, memory.n_bytes, PROT_READ);
        int failed = errno;
        close(file); /* the mapping stays */
        errno = failed;
    }
    if (memory.base == NULL) return bt_fail(err, BT_BAD_REQUEST, "/proc/%u/fd/%u: %s", pid, fd, strerror(errno));
    if (*token_of(&memory) != token) {
        kvt_memory_close(&memory);
        return bt_fail(err, BT_BAD_REQUEST, "/proc/%u/fd/%u is another process's memory", pid, fd);
    }
    *out = memory;
    return BT_OK;
}

void kvt_memory_close(kvt_memory *memory) {
    if (memory->base == NULL) return;
    munmap(memory->base, memory->n_bytes);
    if (memory->fd >= 0) close(memory->fd);
    *memory = (kvt_memory){0};
}
