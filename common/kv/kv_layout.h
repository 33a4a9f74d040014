/* Where a token's latent lies: [layer][block][KV_BLOCK_TOKENS][width], the same bytes in prefill and decode and on
 * every backend, so that moving a block is a plain copy. `width` is kv_lora_rank + qk_rope_head_dim: first the
 * normalised latent, then the rotated key, pairs interleaved as in the checkpoint. */
#ifndef BATON_COMMON_KV_LAYOUT_H
#define BATON_COMMON_KV_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

enum { KV_BLOCK_TOKENS = 64 };

typedef enum { KV_BFLOAT16, KV_FLOAT32 } kv_dtype;

typedef struct {
    kv_dtype dtype;
    uint32_t n_layers, n_blocks;
    uint32_t width; /* elements per token and layer */
} kv_layout;

static inline size_t kv_elem_bytes(kv_dtype dtype) { return dtype == KV_BFLOAT16 ? 2 : 4; }

static inline size_t kv_token_bytes(const kv_layout *layout) { return layout->width * kv_elem_bytes(layout->dtype); }

/* One block of one layer. */
static inline size_t kv_block_bytes(const kv_layout *layout) { return KV_BLOCK_TOKENS * kv_token_bytes(layout); }

static inline size_t kv_pool_bytes(const kv_layout *layout) {
    return (size_t)layout->n_layers * layout->n_blocks * kv_block_bytes(layout);
}

static inline size_t kv_offset_bytes(const kv_layout *layout, uint32_t layer, uint32_t block, uint32_t row) {
    return ((size_t)layer * layout->n_blocks + block) * kv_block_bytes(layout) + row * kv_token_bytes(layout);
}

static inline uint32_t kv_blocks_for(uint64_t n_tokens) {
    return (uint32_t)((n_tokens + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS);
}

#endif
