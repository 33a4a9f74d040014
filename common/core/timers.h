/* Deadlines of a fixed number of things (slots of a table): at most one each, earliest first. Log-time; equal deadlines
 * come out in an order that depends on the calls alone. One thread owns it. */
#ifndef BATON_COMMON_CORE_TIMERS_H
#define BATON_COMMON_CORE_TIMERS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    int64_t *at_ns;  /* [n_ids] */
    uint32_t *heap;  /* ids, a binary heap by at_ns */
    uint32_t *where; /* [n_ids] place in heap; UINT32_MAX: not set */
    uint32_t n_set, n_ids;
} bt_timers;

void bt_timers_init(bt_timers *timers, uint32_t n_ids);
void bt_timers_fini(bt_timers *timers);

void bt_timers_set(bt_timers *timers, uint32_t id, int64_t at_ns); /* sets or moves */
void bt_timers_clear(bt_timers *timers, uint32_t id);              /* not set: nothing happens */
bool bt_timers_is_set(const bt_timers *timers, uint32_t id);

int64_t bt_timers_next_ns(const bt_timers *timers); /* INT64_MAX: none is set */

/* Takes out the earliest that is due. false: none. */
bool bt_timers_pop(bt_timers *timers, int64_t now_ns, uint32_t *out_id);

#endif
