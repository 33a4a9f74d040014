/* Memory with three lifetimes (process, request, step). Host memory that runs out aborts: there is nothing sensible
 * left to do, and every pool that a client can fill is bounded and answers BT_NO_CAPACITY long before. */
#ifndef BATON_COMMON_CORE_ALLOC_H
#define BATON_COMMON_CORE_ALLOC_H

#include <stddef.h>
#include <stdint.h>

void *bt_calloc(size_t n, size_t elem_bytes);                /* zeroed; caller frees with free() */
void *bt_realloc(void *memory, size_t n, size_t elem_bytes); /* as realloc(), overflow checked */
char *bt_strdup(const char *text);

/* Zeroed, aligned to `align_bytes` (a power of two); large ones ask for huge pages. Free with free(). */
void *bt_calloc_aligned(size_t bytes, size_t align_bytes);

/* A request's memory: allocations are dropped all at once. One thread owns an arena. Starts empty: {0}. */
typedef struct bt_arena_block bt_arena_block;
typedef struct {
    bt_arena_block *blocks; /* owned, newest first */
    size_t used_bytes;      /* handed out so far, for limits */
} bt_arena;

void *bt_arena_alloc(bt_arena *arena, size_t bytes); /* zeroed, 16-byte aligned, valid until bt_arena_fini */
char *bt_arena_strndup(bt_arena *arena, const char *text, size_t n_bytes);
void bt_arena_fini(bt_arena *arena); /* frees everything; the arena is empty again */

#endif
