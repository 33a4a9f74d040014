/* The hash that both sides take of a push; COMMIT carries the sum over all pushes of a lease.
 *
 * It is XXH3-64 as xxhash 0.8 defines it (https://github.com/Cyan4973/xxHash), seeded with where the bytes belong. What
 * it guarantees: bytes that are wrong by accident (lost, torn, stale, of another block or layer) go unnoticed with a
 * probability of about 2^-64. What it does not: whoever may push can choose bytes that have a wanted hash; but he may
 * push any bytes anyway. */
#ifndef BATON_KVTRANSFER_KVT_HASH_H
#define BATON_KVTRANSFER_KVT_HASH_H

#include <stddef.h>
#include <stdint.h>

/* block: index in the request's block table. */
uint64_t kvt_push_hash(uint32_t layer, uint32_t block, const void *bytes, size_t n_bytes);

/* Copies, too, and returns the hash of what it wrote, also when `from` changes meanwhile. They must not overlap; `to`
 * is aligned to 64 bytes. A core that copies waits for memory most of the time and hashes meanwhile for nothing:
 * bench/kv_push.sh, land and copy. */
uint64_t kvt_push_copy(uint32_t layer, uint32_t block, void *to, const void *from, size_t n_bytes);

#endif
