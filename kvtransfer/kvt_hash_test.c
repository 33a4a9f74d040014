/* The copy copies, and its hash is the library's. Every test is a sentence. */
#include <string.h>

#include "common/core/test.h"
#include "kvtransfer/kvt_hash.h"

enum { BLOCK_BYTES = 73728, ROOM_BYTES = BLOCK_BYTES + 256 };
static uint8_t from[ROOM_BYTES];
_Alignas(64) static uint8_t to[ROOM_BYTES];

static void the_copy_is_equal_and_has_the_same_hash(void) {
    static const size_t sizes[] = {0,    1,    8,    17,   64,   128,   129,  240,   241,
                                   255,  256,  257,  1023, 1024, 1025,  1087, 1088,  1089,
                                   1152, 4095, 4096, 4097, 8192, 10000, 9216, 73727, BLOCK_BYTES};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        size_t n = sizes[i], at = i % 67, there = 64 * (i % 3);
        uint32_t layer = (uint32_t)i * 5, block = (uint32_t)i * 7;
        memset(to, 0xEE, sizeof(to));
        uint64_t hash = kvt_push_copy(layer, block, to + there, from + at, n);
        CHECK(memcmp(to + there, from + at, n) == 0, "%zu bytes", n);
        CHECK(hash == kvt_push_hash(layer, block, from + at, n), "%zu bytes", n);
        CHECK((there == 0 || to[there - 1] == 0xEE) && to[there + n] == 0xEE, "%zu bytes: one beside", n);
    }
}

/* One bit of one byte, another place, another seed. */
static void what_differs_has_another_hash(void) {
    uint64_t hash = kvt_push_copy(2, 5, to, from, BLOCK_BYTES);
    CHECK(kvt_push_copy(2, 6, to, from, BLOCK_BYTES) != hash, "another block");
    CHECK(kvt_push_copy(3, 5, to, from, BLOCK_BYTES) != hash, "another layer");
    CHECK(kvt_push_copy(2, 5, to, from, BLOCK_BYTES - 64) != hash, "shorter");
    for (size_t at = 0; at < BLOCK_BYTES; at += 577) {
        from[at] ^= (uint8_t)(1 << at % 8);
        CHECK(kvt_push_copy(2, 5, to, from, BLOCK_BYTES) != hash, "byte %zu", at);
        from[at] ^= (uint8_t)(1 << at % 8);
    }
}

int main(void) {
    uint64_t state = 1;
    for (size_t i = 0; i < sizeof(from); i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        from[i] = (uint8_t)(state >> 56);
    }
    the_copy_is_equal_and_has_the_same_hash();
    what_differs_has_another_hash();
    TEST_END();
}
