/* Linear probing in a table that is at most half full; removal moves later cells back, so there are no tombstones and a
 * lookup ends at the first empty cell. */
#include "common/core/map.h"

#include <stdlib.h>

#include "common/core/alloc.h"
#include "common/core/status.h"

struct bt_map_cell {
    bt_key key;
    uint32_t value; /* BT_MAP_NONE: empty */
};

static bool key_equal(bt_key x, bt_key y) { return x.a == y.a && x.b == y.b && x.c == y.c; }

/* Every key bit reaches the low bits: Murmur3's 64-bit finalizer. */
static uint32_t key_hash(bt_key key) {
    uint64_t h = key.a * 0x9e3779b97f4a7c15u + key.b * 0xc2b2ae3d27d4eb4fu + key.c;
    h = (h ^ h >> 33) * 0xff51afd7ed558ccdu;
    h = (h ^ h >> 33) * 0xc4ceb9fe1a85ec53u;
    return (uint32_t)(h ^ h >> 33);
}

/* The key's cell, or the empty one where it belongs. The table is never full. */
static uint32_t find_cell(const bt_map *map, bt_key key) {
    uint32_t mask = map->n_cells - 1, at = key_hash(key) & mask;
    while (map->cells[at].value != BT_MAP_NONE && !key_equal(map->cells[at].key, key)) at = (at + 1) & mask;
    return at;
}

uint32_t bt_map_get(const bt_map *map, bt_key key) {
    return map->n_cells == 0 ? BT_MAP_NONE : map->cells[find_cell(map, key)].value;
}

static void grow(bt_map *map) {
    bt_map old = *map;
    map->n_cells = old.n_cells == 0 ? 16 : old.n_cells * 2;
    map->cells = bt_calloc(map->n_cells, sizeof(*map->cells));
    for (uint32_t i = 0; i < map->n_cells; i++) map->cells[i].value = BT_MAP_NONE;
    for (uint32_t i = 0; i < old.n_cells; i++)
        if (old.cells[i].value != BT_MAP_NONE) map->cells[find_cell(map, old.cells[i].key)] = old.cells[i];
    free(old.cells);
}

void bt_map_put(bt_map *map, bt_key key, uint32_t value) {
    BT_ASSERT(value != BT_MAP_NONE);
    if ((map->n_used + 1) * 2 > map->n_cells) grow(map);
    struct bt_map_cell *cell = &map->cells[find_cell(map, key)];
    if (cell->value == BT_MAP_NONE) map->n_used++;
    *cell = (struct bt_map_cell){key, value};
}

bool bt_map_remove(bt_map *map, bt_key key) {
    if (map->n_cells == 0) return false;
    uint32_t mask = map->n_cells - 1, hole = find_cell(map, key);
    if (map->cells[hole].value == BT_MAP_NONE) return false;
    for (uint32_t at = (hole + 1) & mask; map->cells[at].value != BT_MAP_NONE; at = (at + 1) & mask) {
        uint32_t home = key_hash(map->cells[at].key) & mask;
        if (((at - home) & mask) < ((at - hole) & mask)) continue; /* its home lies behind the hole: it may stay */
        map->cells[hole] = map->cells[at];
        hole = at;
    }
    map->cells[hole].value = BT_MAP_NONE;
    map->n_used--;
    return true;
}

void bt_map_fini(bt_map *map) {
    free(map->cells);
    *map = (bt_map){0};
}
