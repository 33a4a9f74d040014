/* How a step's rows are shared among requests that have use for many: prompts, and what is computed again.
 *
 * Half of them go to those that have least left, so a short prompt is in the next step however long the others are. All
 * that remains goes to those that came first, so a long one moves at half the speed at least, however many short ones
 * come. What one half leaves the other uses: steps are full. */
#ifndef BATON_WORKER_WRK_ROWS_H
#define BATON_WORKER_WRK_ROWS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    uint32_t slot;   /* whose it is: the caller's */
    uint32_t n_left; /* rows that it has use for, > 0 */
    bool is_scored;  /* each of its rows takes a place; otherwise all together take one */
    uint32_t n_rows; /* that it gets; 0 before */
} wrk_claim;

/* Fills n_rows of claims[n_claims], which stand in order of age, the oldest first: at most n_rows together, which take
 * at most n_places. Of equal claims the older one is the shorter. */
void wrk_rows_share(wrk_claim *claims, uint32_t n_claims, uint32_t n_rows, uint32_t n_places);

/* Of either: what the shorter ones get first. 0 of one: steps are too small to be shared. */
static inline uint32_t wrk_rows_half(uint32_t n) { return n / 2; }

#endif
