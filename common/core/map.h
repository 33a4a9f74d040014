/* A hash map from a 20-byte key to a number: peers, requests and leases -> slots of a table. Grows, never shrinks; one
 * thread owns it. Starts empty: {0}. */
#ifndef BATON_COMMON_CORE_MAP_H
#define BATON_COMMON_CORE_MAP_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    uint64_t a, b;
    uint32_t c;
} bt_key;

typedef struct {
    struct bt_map_cell *cells; /* owned; n_cells is 0 or a power of two, at most half of them are used */
    uint32_t n_cells, n_used;
} bt_map;

enum { BT_MAP_NONE = UINT32_MAX };

uint32_t bt_map_get(const bt_map *map, bt_key key);       /* BT_MAP_NONE: not there */
void bt_map_put(bt_map *map, bt_key key, uint32_t value); /* adds or replaces; value is not BT_MAP_NONE */
bool bt_map_remove(bt_map *map, bt_key key);              /* false: was not there */
void bt_map_fini(bt_map *map);                            /* frees the memory; empty again */

#endif
