/* Rule 1 and the end of a lease, case by case. */
#include "common/core/test.h"
#include "kvtransfer/kvt_lease.h"

enum { ROW_BYTES = 10, PEER = 7, N_LAYERS = 3 };
static const uint32_t blocks[] = {40, 41, 42, 43};
/* 200 tokens: blocks 0..2 full, 8 rows in block 3; the peer holds block 0 already */
static const kvt_lease_args args = {.lease = 5, .blocks = blocks, .first_block = 1, .n_blocks = 4, .n_tokens = 200};

static bt_status begin(kvt_lease *lease, kvt_peer peer, uint32_t layer, uint32_t block, uint32_t n_rows,
                       uint64_t n_bytes, uint32_t *where) {
    wire_push push = {.lease = 5, .layer = layer, .block = block, .n_rows = n_rows};
    return kvt_lease_land_begin(lease, peer, &push, n_bytes, ROW_BYTES, where);
}

static void only_what_was_agreed_may_land(void) {
    static const struct {
        const char *why;
        kvt_peer peer;
        uint32_t layer, block, n_rows;
        uint64_t n_bytes;
        bool is_agreed;
    } rows[] = {
        {"a full block", PEER, 0, 1, 64, 640, true},           {"the last block", PEER, 2, 3, 8, 80, true},
        {"another peer", PEER + 1, 0, 1, 64, 640, false},      {"no such layer", PEER, N_LAYERS, 1, 64, 640, false},
        {"a block that is held", PEER, 0, 0, 64, 640, false},  {"a block behind the table", PEER, 0, 4, 64, 640, false},
        {"a huge block", PEER, 0, UINT32_MAX, 64, 640, false}, {"too few rows", PEER, 0, 1, 63, 630, false},
        {"too many rows", PEER, 2, 3, 9, 90, false},           {"no rows", PEER, 0, 1, 0, 0, false},
        {"fewer bytes than rows", PEER, 0, 1, 64, 639, false}, {"more bytes than rows", PEER, 0, 1, 64, 641, false},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        kvt_lease_table table;
        kvt_lease_table_init(&table);
        kvt_lease *lease = kvt_lease_table_add(&table, PEER, &args, N_LAYERS);
        uint32_t where = 0;
        bt_status status =
            begin(lease, rows[i].peer, rows[i].layer, rows[i].block, rows[i].n_rows, rows[i].n_bytes, &where);
        CHECK((status == BT_OK) == rows[i].is_agreed, "%s", rows[i].why);
        if (status == BT_OK) {
            CHECK(where == blocks[rows[i].block], "%s lands in %u", rows[i].why, where);
            CHECK(begin(lease, PEER, rows[i].layer, rows[i].block, rows[i].n_rows, rows[i].n_bytes, &where) != BT_OK,
                  "%s, twice", rows[i].why);
        }
        CHECK(lease->has_refused == (rows[i].peer == PEER), "%s", rows[i].why); /* strangers cannot spoil a lease */
        kvt_lease_table_fini(&table);
    }
}

static void a_lease_closes_when_nothing_can_land_any_more(void) {
    kvt_lease_table table;
    kvt_lease_table_init(&table);
    kvt_lease *lease = kvt_lease_table_add(&table, PEER, &args, N_LAYERS);
    uint32_t where;
    CHECK(begin(lease, PEER, 0, 1, 64, 640, &where) == BT_OK, "first");
    CHECK(!kvt_lease_is_closed(lease), "open");
    kvt_lease_close_begin(lease, 2);
    kvt_lease_land_end(lease, 640, 100, true);
    CHECK(!kvt_lease_is_closed(lease), "one more is expected");
    CHECK(begin(lease, PEER, 1, 1, 64, 640, &where) == BT_OK, "second");
    CHECK(!kvt_lease_is_closed(lease), "the second is landing");
    CHECK(begin(lease, PEER, 2, 1, 64, 640, &where) != BT_OK, "a third was not announced");
    kvt_lease_land_end(lease, 640, 11, true);
    CHECK(kvt_lease_is_closed(lease), "both landed");
    CHECK(lease->landed.n_pushes == 2 && lease->landed.checksum == 111 && lease->landed.n_bytes == 1280, "counts");
    kvt_lease_table_remove(&table, lease);

    lease = kvt_lease_table_add(&table, PEER, &args, N_LAYERS);
    CHECK(begin(lease, PEER, 0, 2, 64, 640, &where) == BT_OK, "landing");
    kvt_lease_close_begin(lease, 0);
    CHECK(begin(lease, PEER, 1, 2, 64, 640, &where) != BT_OK, "after close");
    CHECK(!kvt_lease_is_closed(lease), "quarantine: one is landing");
    kvt_lease_land_end(lease, 640, 0, false);
    CHECK(kvt_lease_is_closed(lease) && lease->landed.n_pushes == 0, "it broke off");
    kvt_lease_table_fini(&table);
}

static void many_leases_are_found_again(void) {
    kvt_lease_table table;
    kvt_lease_table_init(&table);
    enum { N = 1000 };
    for (uint64_t id = 1; id <= N; id++) {
        kvt_lease_args one = {.lease = id << 32, .blocks = blocks, .n_blocks = 1, .n_tokens = 1};
        CHECK(kvt_lease_table_add(&table, id, &one, 1) != NULL, "new");
        CHECK(kvt_lease_table_add(&table, id, &one, 1) == NULL, "the same id again");
    }
    for (uint64_t id = 1; id <= N; id += 2) kvt_lease_table_remove(&table, kvt_lease_table_find(&table, id << 32));
    for (uint64_t id = 1; id <= N; id++) {
        kvt_lease *lease = kvt_lease_table_find(&table, id << 32);
        CHECK((lease != NULL) == (id % 2 == 0) && (lease == NULL || lease->peer == id), "id %llu",
              (unsigned long long)id);
    }
    CHECK(table.n_leases == N / 2, "%u", table.n_leases);
    kvt_lease_table_fini(&table);
}

int main(void) {
    only_what_was_agreed_may_land();
    a_lease_closes_when_nothing_can_land_any_more();
    many_leases_are_found_again();
    TEST_END();
}
