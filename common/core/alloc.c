#include "common/core/alloc.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/core/status.h"

void *bt_calloc(size_t n, size_t elem_bytes) {
    void *memory = calloc(n == 0 ? 1 : n, elem_bytes == 0 ? 1 : elem_bytes);
    BT_ASSERT(memory != NULL);
    return memory;
}

void *bt_realloc(void *memory, size_t n, size_t elem_bytes) {
    void *grown = reallocarray(memory, n == 0 ? 1 : n, elem_bytes);
    BT_ASSERT(grown != NULL);
    return grown;
}

char *bt_strdup(const char *text) {
    char *copy = strdup(text);
    BT_ASSERT(copy != NULL);
    return copy;
}

void *bt_calloc_aligned(size_t bytes, size_t align_bytes) {
    enum { HUGE_PAGE_BYTES = 2 << 20 };
    if (bytes >= HUGE_PAGE_BYTES && align_bytes < HUGE_PAGE_BYTES) align_bytes = HUGE_PAGE_BYTES;
    size_t rounded = (bytes + align_bytes - 1) / align_bytes * align_bytes;
    void *memory = aligned_alloc(align_bytes, rounded == 0 ? align_bytes : rounded);
    BT_ASSERT(memory != NULL);
    if (bytes >= HUGE_PAGE_BYTES) madvise(memory, rounded, MADV_HUGEPAGE); /* advice: failure costs only speed */
    memset(memory, 0, rounded);
    return memory;
}

struct bt_arena_block {
    bt_arena_block *next;
    size_t cap_bytes, used_bytes;
    _Alignas(16) unsigned char bytes[];
};

enum { ARENA_BLOCK_BYTES = 4096 };

void *bt_arena_alloc(bt_arena *arena, size_t bytes) {
    BT_ASSERT(bytes < SIZE_MAX / 2);
    size_t rounded = (bytes + 15) / 16 * 16;
    bt_arena_block *block = arena->blocks;
    if (block == NULL || block->cap_bytes - block->used_bytes < rounded) {
        size_t cap_bytes = rounded > ARENA_BLOCK_BYTES ? rounded : ARENA_BLOCK_BYTES;
        block = bt_calloc(1, sizeof(*block) + cap_bytes);
        block->cap_bytes = cap_bytes;
        block->next = arena->blocks;
        arena->blocks = block;
    }
    void *memory = block->bytes + block->used_bytes;
    block->used_bytes += rounded;
    arena->used_bytes += rounded;
    return memory;
}

char *bt_arena_strndup(bt_arena *arena, const char *text, size_t n_bytes) {
    char *copy = bt_arena_alloc(arena, n_bytes + 1);
    memcpy(copy, text, n_bytes);
    return copy;
}

void bt_arena_fini(bt_arena *arena) {
    while (arena->blocks != NULL) {
        bt_arena_block *block = arena->blocks;
        arena->blocks = block->next;
        free(block);
    }
    arena->used_bytes = 0;
}
