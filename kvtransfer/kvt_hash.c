/* XXH3-64, alone and in a copy. With AVX-512 it is written out here: a stripe of 64 bytes is loaded once, hashed in
 * registers, and in a copy stored past the caches: pools are far larger than they, and a store that does not read its
 * line first is the faster one even where they are not. Elsewhere it is the library's, behind a memcpy. The names of
 * steps and constants are those of xxhash's XXH3 for inputs above 240 bytes.
 *
 * One core, GB/s, in the second cache and in none: 37 and 9.3 where the library hashes 29 and 7.7; a copy 11 and 6.6
 * where memcpy and the library's hash do 6.3 and 4.2, and memcpy alone 9 and 5.2. Without the prefetch 5.4, not 6.6. */
#include "kvtransfer/kvt_hash.h"

#include <stdbool.h>
#include <string.h>

#include "common/core/status.h"

#define XXH_STATIC_LINKING_ONLY /* the seed's secret */
#include <xxhash.h>
#if defined(__x86_64__)
#include <immintrin.h>
#include <xxh_x86dispatch.h> /* the same hash by the widest vectors there are: twice as fast with AVX-512 */
#endif

static uint64_t seed_of(uint32_t layer, uint32_t block) { return (uint64_t)layer << 32 | block; }

#if defined(__x86_64__)
enum {
    STRIPE_BYTES = 64,
    BLOCK_STRIPES = 16, /* as many as a secret of 192 bytes has places, 8 bytes apart */
    BLOCK_BYTES = BLOCK_STRIPES * STRIPE_BYTES,
    SECRET_BYTES = 192,
    MIN_LONG_BYTES = 241,
    SECRET_OF_SCRAMBLE = SECRET_BYTES - STRIPE_BYTES,
    SECRET_OF_LAST_STRIPE = SECRET_OF_SCRAMBLE - 7,
    SECRET_OF_MERGE = 11,
    PREFETCH_BYTES = 2048,
};
static const uint32_t PRIME32_1 = 0x9E3779B1, PRIME32_2 = 0x85EBCA77, PRIME32_3 = 0xC2B2AE3D;
static const uint64_t PRIME64_1 = 0x9E3779B185EBCA87, PRIME64_2 = 0xC2B2AE3D27D4EB4F, PRIME64_3 = 0x165667B19E3779F9,
                      PRIME64_4 = 0x85EBCA77C2B2AE63, PRIME64_5 = 0x27D4EB2F165667C5;

static uint64_t read64(const uint8_t *from) {
    uint64_t value;
    memcpy(&value, from, sizeof(value));
    return value;
}

static uint64_t merge(const uint64_t lanes[8], const uint8_t *secret, uint64_t n_bytes) {
    uint64_t hash = n_bytes * PRIME64_1;
    for (int i = 0; i < 8; i += 2) {
        const uint8_t *key = secret + SECRET_OF_MERGE + 8 * i;
        __uint128_t product = (__uint128_t)(lanes[i] ^ read64(key)) * (lanes[i + 1] ^ read64(key + 8));
        hash += (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    hash ^= hash >> 37;
    hash *= 0x165667919E3779F9;
    return hash ^ hash >> 32;
}

#define AVX512 __attribute__((target("avx512f"), always_inline)) static inline

AVX512 __m512i accumulate(__m512i lanes, __m512i stripe, __m512i secret) {
    __m512i key = _mm512_xor_si512(stripe, secret);
    __m512i product = _mm512_mul_epu32(key, _mm512_srli_epi64(key, 32));
    __m512i swapped = _mm512_shuffle_epi32(stripe, _MM_PERM_BADC);
    return _mm512_add_epi64(product, _mm512_add_epi64(lanes, swapped));
}

AVX512 __m512i scramble(__m512i lanes, __m512i secret) {
    __m512i prime = _mm512_set1_epi64(PRIME32_1);
    __m512i mixed = _mm512_xor_si512(_mm512_xor_si512(lanes, _mm512_srli_epi64(lanes, 47)), secret);
    __m512i high = _mm512_slli_epi64(_mm512_mul_epu32(_mm512_srli_epi64(mixed, 32), prime), 32);
    return _mm512_add_epi64(_mm512_mul_epu32(mixed, prime), high);
}

/* n stripes; to NULL: does not copy. */
AVX512 __m512i take_stripes(__m512i lanes, const uint8_t *secret, uint8_t *to, const uint8_t *from, size_t n) {
    for (size_t i = 0; i < n; i++) {
        size_t at = i * STRIPE_BYTES;
        __m512i stripe = _mm512_loadu_si512(from + at);
        if (to != NULL) _mm512_stream_si512((void *)(to + at), stripe);
        _mm_prefetch(from + at + PREFETCH_BYTES, _MM_HINT_T0); /* may be behind the end: it has no other effect */
        lanes = accumulate(lanes, stripe, _mm512_loadu_si512(secret + 8 * i));
    }
    return lanes;
}

AVX512 uint64_t xxh3(uint8_t *to, const uint8_t *from, size_t n_bytes, uint64_t seed) {
    _Alignas(64) uint8_t secret[SECRET_BYTES];
    XXH3_generateSecret_fromSeed(secret, seed);
    __m512i lanes = _mm512_set_epi64(PRIME32_1, (int64_t)PRIME64_5, PRIME32_2, (int64_t)PRIME64_4, (int64_t)PRIME64_3,
                                     (int64_t)PRIME64_2, (int64_t)PRIME64_1, PRIME32_3);
    __m512i scramble_secret = _mm512_loadu_si512(secret + SECRET_OF_SCRAMBLE);
    size_t n_blocks = (n_bytes - 1) / BLOCK_BYTES, n_rest = (n_bytes - 1) % BLOCK_BYTES / STRIPE_BYTES, at = 0;
    for (; at < n_blocks * BLOCK_BYTES; at += BLOCK_BYTES) {
        lanes = take_stripes(lanes, secret, to != NULL ? to + at : NULL, from + at, BLOCK_STRIPES);
        lanes = scramble(lanes, scramble_secret);
    }
    lanes = take_stripes(lanes, secret, to != NULL ? to + at : NULL, from + at, n_rest);
    /* What is left, a stripe or less, as the last 64 bytes. */
    __m512i last = _mm512_loadu_si512(from + n_bytes - STRIPE_BYTES);
    lanes = accumulate(lanes, last, _mm512_loadu_si512(secret + SECRET_OF_LAST_STRIPE));
    if (to != NULL) {
        _mm512_storeu_si512(to + n_bytes - STRIPE_BYTES, last);
        _mm_sfence(); /* streaming stores are ordered by nothing else */
    }
    uint64_t out[8];
    _mm512_storeu_si512(out, lanes);
    return merge(out, secret, n_bytes);
}

__attribute__((target("avx512f"))) static uint64_t hash_avx512(const uint8_t *from, size_t n_bytes, uint64_t seed) {
    return xxh3(NULL, from, n_bytes, seed);
}

__attribute__((target("avx512f"))) static uint64_t copy_avx512(uint8_t *to, const uint8_t *from, size_t n_bytes,
                                                               uint64_t seed) {
    return xxh3(to, from, n_bytes, seed);
}

static bool is_for_avx512(size_t n_bytes) { return n_bytes >= MIN_LONG_BYTES && __builtin_cpu_supports("avx512f"); }
#endif

uint64_t kvt_push_hash(uint32_t layer, uint32_t block, const void *bytes, size_t n_bytes) {
#if defined(__x86_64__)
    if (is_for_avx512(n_bytes)) return hash_avx512(bytes, n_bytes, seed_of(layer, block));
#endif
    return XXH3_64bits_withSeed(bytes, n_bytes, seed_of(layer, block));
}

uint64_t kvt_push_copy(uint32_t layer, uint32_t block, void *to, const void *from, size_t n_bytes) {
    BT_ASSERT((uintptr_t)to % 64 == 0);
#if defined(__x86_64__)
    if (is_for_avx512(n_bytes)) return copy_avx512(to, from, n_bytes, seed_of(layer, block));
#endif
    memcpy(to, from, n_bytes);
    return kvt_push_hash(layer, block, to, n_bytes);
}
