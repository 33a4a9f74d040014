/* Which worker holds which block: one map from a block's name to the set of workers that keep it in their prefix cache,
 * as they told with BLOCKS. Exact: it forgets what a worker evicts, and everything of a worker that is gone.
 *
 * A worker is a column, given at gw_index_join(): a link that was lost and came back is another column, so nothing that
 * was told over the old one is believed any more. One walk over a prompt's names finds how much of it each worker
 * holds.
 *
 * No operation's cost depends on how many blocks are known: the map grows by one bucket at a time, in memory that does
 * not move, and what a worker that left has told is forgotten piece by piece, with gw_index_sweep(); meanwhile nobody
 * sees it. No I/O, no clock. One thread. 72 bytes per block that somebody holds. */
#ifndef BATON_GATEWAY_CORE_GW_INDEX_H
#define BATON_GATEWAY_CORE_GW_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#include "common/wire/wire.h"

typedef struct gw_index gw_index;

enum { GW_INDEX_MAX_WORKERS = 256 };
#define GW_INDEX_NONE UINT32_MAX

/* Of different blocks max_blocks are known at most; what is told then is left out until others go. Memory is taken as
 * it is needed, 2 MiB at a time, address space at once. `seed` keeps names that a worker made up from falling into one
 * bucket. */
gw_index *gw_index_open(uint32_t max_blocks, uint64_t seed);
void gw_index_close(gw_index *index); /* NULL is accepted */

/* A column for a worker that is new; GW_INDEX_NONE: all are taken. */
uint32_t gw_index_join(gw_index *index);
void gw_index_leave(gw_index *index, uint32_t column);

bool gw_index_put(gw_index *index, uint32_t column, const wire_block_name *name);    /* false: it was there, or full */
bool gw_index_remove(gw_index *index, uint32_t column, const wire_block_name *name); /* false: it was not there */
bool gw_index_has(const gw_index *index, uint32_t column, const wire_block_name *name);
uint32_t gw_index_n_blocks(const gw_index *index, uint32_t column); /* that the worker holds */

/* names[n_names] are asked for, put or removed one after the other from 0 on, now names[at]: their memory comes
 * meanwhile. For speed only. */
void gw_index_ahead(const gw_index *index, const wire_block_name *names, uint32_t n_names, uint32_t at);

/* lengths[GW_INDEX_MAX_WORKERS]: by column, how many of names[n_names] it holds, from the first on without a gap. */
void gw_index_match(const gw_index *index, const wire_block_name *names, uint32_t n_names, uint32_t *lengths);

/* Forgets a bounded piece of what workers told that left. To be called now and then: with each of their messages. */
void gw_index_sweep(gw_index *index);

/* For tests: asserts that the map is in order; returns how many blocks it has, those to be swept included. */
uint32_t gw_index_check(const gw_index *index);

#endif
