/* The quick part of reading a JSON string: plain text, and escapes of one character where the processor can. */
#ifndef BATON_COMMON_TEXT_JSON_UNESCAPE_H
#define BATON_COMMON_TEXT_JSON_UNESCAPE_H

#include <stddef.h>
#include <stdint.h>

/* Moves what stands at `from` down to *to, which is not above it, and *to behind that; returns how many of the n_bytes
 * that were. Stops at what needs a closer look: a quote, a control character, a byte beyond ASCII, an escape, though
 * simple ones may be resolved on the way; or a few bytes before the end. What is behind stays as it was. */
size_t json_unescape(uint8_t **to, const uint8_t *from, size_t n_bytes);

/* As on a processor without vectors: up to an escape, and fewer than eight bytes before the end. */
size_t json_unescape_words(uint8_t **to, const uint8_t *from, size_t n_bytes);

#endif
