/* Ids of text that was encoded before. Prompts repeat themselves: a conversation is sent again with every turn, a
 * system prompt or a document with every request. Text is kept in chunks of about a thousand bytes that begin and end
 * where the text itself says (ptk_chunk), so that a known passage is found wherever it stands.
 *
 * Exact: a chunk's bytes are compared, not only their hash. What was not used for the longest time goes first. One
 * tokenizer, one thread. */
#ifndef BATON_COMMON_TEXT_TOK_CACHE_H
#define BATON_COMMON_TEXT_TOK_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/text/bpe.h" /* tok_ids */

typedef struct tok_cache tok_cache;

/* max_bytes: of memory, all in all. `seed` is secret: nobody can make up chunks that share a place. */
tok_cache *tok_cache_open(size_t max_bytes, uint64_t seed);
void tok_cache_close(tok_cache *cache); /* NULL is accepted */

/* Appends a chunk's ids, as they were put. false: they are not known. */
bool tok_cache_get(tok_cache *cache, const uint8_t *text, size_t n_bytes, tok_ids *out);

/* Text goes on as it did: how many bytes the chunk has that came the last time behind the one that was got or put last.
 * 0: that is not known. */
size_t tok_cache_expected(const tok_cache *cache);

/* tok_cache_get() of that chunk, if `text`, which has so many bytes at least, begins with it: nothing is hashed. */
bool tok_cache_get_expected(tok_cache *cache, const uint8_t *text, tok_ids *out);

/* Copies both; not if there is no room for it, nor if it is there already. */
void tok_cache_put(tok_cache *cache, const uint8_t *text, size_t n_bytes, const uint32_t *ids, size_t n_ids);

size_t tok_cache_n_bytes(const tok_cache *cache); /* in use */

#endif
