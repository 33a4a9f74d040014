/* The absorbed form: the query moves into latent space (through W_UK), attends to the cached latents themselves, and
 * the weighted latent comes back through W_UV. Nothing is rebuilt per position: the form for one row at a time. */
#include <math.h>
#include <string.h>

#include "kernels/ref/ref.h"

static void attend_row(ref_backend *ref, const krn_attention_args *args, const krn_sequence *sequence, uint32_t t,
                       const float *q_nope, const float *q_rope, float *out) {
    uint32_t nope = ref->config->qk_nope_head_dim, rope = ref->config->qk_rope_head_dim, v = ref->config->v_head_dim;
    uint32_t latent = ref->config->kv_lora_rank, n_positions = sequence->position + t + 1;
    float *q_latent = ref->q_latent, *accumulator = ref->accumulator;
    memset(q_latent, 0, latent * sizeof(float));
    for (uint32_t i = 0; i < nope; i++) ref_add_scaled(q_latent, q_nope[i], ref->head + (size_t)i * latent, latent);

    ref->row_max[0] = -INFINITY;
    ref->row_sum[0] = 0;
    memset(accumulator, 0, latent * sizeof(float));
    for (uint32_t start = 0; start < n_positions; start += KV_BLOCK_TOKENS) {
        uint32_t n = n_positions - start < KV_BLOCK_TOKENS ? n_positions - start : KV_BLOCK_TOKENS;
        float scores[KV_BLOCK_TOKENS];
        for (uint32_t u = 0; u < n; u++) {
            const float *cached = ref_kv_row(args, sequence, start + u);
            float score = ref_dot(q_latent, cached, latent) + ref_dot(q_rope, cached + latent, rope);
            scores[u] = score * ref->softmax_scale;
        }
        ref_softmax_step(ref, 0, scores, n, accumulator, latent);
        for (uint32_t u = 0; u < n; u++) {
            ref_add_scaled(accumulator, scores[u], ref_kv_row(args, sequence, start + u), latent);
        }
    }
    for (uint32_t i = 0; i < latent; i++) accumulator[i] /= ref->row_sum[0];
    for (uint32_t i = 0; i < v; i++) out[i] = ref_dot(ref->head + (size_t)(nope + i) * latent, accumulator, latent);
}

void ref_attend_absorbed(ref_backend *ref, const krn_attention_args *args, const krn_sequence *sequence,
                         uint32_t first_row, uint32_t head) {
    uint32_t heads = ref->config->num_attention_heads, rope = ref->config->qk_rope_head_dim;
    uint32_t nope = ref->config->qk_nope_head_dim, v = ref->config->v_head_dim;
    for (uint32_t t = 0; t < sequence->n_rows; t++) {
        size_t place = (size_t)(first_row + t) * heads + head;
        attend_row(ref, args, sequence, t, args->q + place * (nope + rope), ref->q_rope + place * rope,
                   (float *)args->out + place * v);
    }
}
