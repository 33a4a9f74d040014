/* The expanded form: keys and values of a head are rebuilt from the cached latents, block by block, then it is plain
 * attention with heads of nope + rope. Cheaper than the absorbed form when many rows share the rebuilt block. */
#include <math.h>

#include "kernels/ref/ref.h"

/* ref->keys and ref->values of n positions from `start` on. */
static void expand_block(ref_backend *ref, const krn_attention_args *args, const krn_sequence *sequence, uint32_t start,
                         uint32_t n) {
    uint32_t nope = ref->config->qk_nope_head_dim, v = ref->config->v_head_dim, latent = ref->config->kv_lora_rank;
    for (uint32_t t = 0; t < n; t++) {
        const float *cached = ref_kv_row(args, sequence, start + t);
        for (uint32_t i = 0; i < nope; i++) {
            ref->keys[t * nope + i] = ref_dot(ref->head + (size_t)i * latent, cached, latent);
        }
        for (uint32_t i = 0; i < v; i++) {
            ref->values[t * v + i] = ref_dot(ref->head + (size_t)(nope + i) * latent, cached, latent);
        }
    }
}

void ref_attend_expanded(ref_backend *ref, const krn_attention_args *args, const krn_sequence *sequence,
                         uint32_t first_row, uint32_t head) {
    uint32_t nope = ref->config->qk_nope_head_dim, rope = ref->config->qk_rope_head_dim, v = ref->config->v_head_dim;
    uint32_t heads = ref->config->num_attention_heads, latent = ref->config->kv_lora_rank;
    uint32_t n_positions = sequence->position + sequence->n_rows;
    for (uint32_t t = 0; t < sequence->n_rows; t++) {
        ref->row_max[t] = -INFINITY;
        ref->row_sum[t] = 0;
        for (uint32_t i = 0; i < v; i++) ref->accumulator[(size_t)t * v + i] = 0;
    }
    for (uint32_t start = 0; start < n_positions; start += KV_BLOCK_TOKENS) {
        uint32_t n = n_positions - start < KV_BLOCK_TOKENS ? n_positions - start : KV_BLOCK_TOKENS;
        expand_block(ref, args, sequence, start, n);
        for (uint32_t t = 0; t < sequence->n_rows; t++) {
            uint32_t position = sequence->position + t;
            if (position < start) continue;
            uint32_t n_seen = position - start + 1 < n ? position - start + 1 : n;
            size_t place = (size_t)(first_row + t) * heads + head;
            const float *q_nope = args->q + place * (nope + rope), *q_rope = ref->q_rope + place * rope;
            float scores[KV_BLOCK_TOKENS], *accumulator = ref->accumulator + (size_t)t * v;
            for (uint32_t u = 0; u < n_seen; u++) {
                const float *k_rope = ref_kv_row(args, sequence, start + u) + latent;
                float score = ref_dot(q_nope, ref->keys + u * nope, nope) + ref_dot(q_rope, k_rope, rope);
                scores[u] = score * ref->softmax_scale;
            }
            ref_softmax_step(ref, t, scores, n_seen, accumulator, v);
            for (uint32_t u = 0; u < n_seen; u++) ref_add_scaled(accumulator, scores[u], ref->values + u * v, v);
        }
    }
    for (uint32_t t = 0; t < sequence->n_rows; t++) {
        float *out = (float *)args->out + ((size_t)(first_row + t) * heads + head) * v;
        for (uint32_t i = 0; i < v; i++) out[i] = ref->accumulator[(size_t)t * v + i] / ref->row_sum[t];
    }
}
