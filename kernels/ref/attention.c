/* Multi-head latent attention (arXiv 2405.04434 §2.1): what both forms share. Stores the step's rows in the cache,
 * rotates queries, then hands each head of each sequence to its form.
 *
 * Every row of the step is stored before any row attends; a row reads positions up to its own only, block by block, so
 * its result is the same whether its neighbours came in this step or in an earlier one. */
#include <math.h>
#include <string.h>

#include "kernels/ref/ref.h"

/* Interleaved pairs (x[2i], x[2i+1]), as in the checkpoint; cos_sin [rope / 2][2]. */
static void rotate(const float *x, const float *cos_sin, uint32_t rope, float *out) {
    for (uint32_t i = 0; i < rope; i += 2) {
        float even = x[i], odd = x[i + 1], c = cos_sin[i], s = cos_sin[i + 1];
        out[i] = even * c - odd * s;
        out[i + 1] = even * s + odd * c;
    }
}

float *ref_kv_row(const krn_attention_args *args, const krn_sequence *sequence, uint32_t position) {
    uint32_t block = sequence->blocks[position / KV_BLOCK_TOKENS];
    size_t offset = kv_offset_bytes(&args->kv.layout, args->layer_index, block, position % KV_BLOCK_TOKENS);
    return (float *)(void *)((char *)args->kv.base + offset);
}

void ref_softmax_step(ref_backend *ref, uint32_t row, float *scores, uint32_t n, float *accumulator, uint32_t width) {
    float max = ref->row_max[row], sum = 0;
    for (uint32_t i = 0; i < n; i++) max = fmaxf(max, scores[i]);
    float shrink = expf(ref->row_max[row] - max); /* 0 in the first block, where row_max is -inf */
    for (uint32_t i = 0; i < n; i++) {
        scores[i] = expf(scores[i] - max);
        sum += scores[i];
    }
    for (uint32_t i = 0; i < width; i++) accumulator[i] *= shrink;
    ref->row_sum[row] = ref->row_sum[row] * shrink + sum;
    ref->row_max[row] = max;
}

/* Normalised latent and rotated key of every row into the cache; rotated queries into scratch. */
static void store_and_rotate(ref_backend *ref, const krn_attention_args *args) {
    const mdl_config *config = ref->config;
    uint32_t latent = config->kv_lora_rank, rope = config->qk_rope_head_dim, nope = config->qk_nope_head_dim;
    uint32_t heads = config->num_attention_heads, row = 0;
    for (uint32_t s = 0; s < args->n_sequences; s++) {
        const krn_sequence *sequence = &args->sequences[s];
        for (uint32_t t = 0; t < sequence->n_rows; t++, row++) {
            const float *cos_sin = args->cos_sin + (size_t)row * rope;
            const float *kv_a = args->kv_a + (size_t)row * (latent + rope);
            float *cached = ref_kv_row(args, sequence, sequence->position + t);
            ref_rmsnorm(&ref->backend, kv_a, 1, latent, args->layer->kv_a_norm, config->rms_norm_eps, cached, NULL);
            rotate(kv_a + latent, cos_sin, rope, cached + latent);
            for (uint32_t head = 0; head < heads; head++) {
                size_t place = (size_t)row * heads + head;
                rotate(args->q + place * (nope + rope) + nope, cos_sin, rope, ref->q_rope + place * rope);
            }
        }
    }
}

void ref_attention(krn_backend *backend, const krn_attention_args *args) {
    ref_backend *ref = (ref_backend *)backend;
    uint32_t rows_per_head = ref->config->qk_nope_head_dim + ref->config->v_head_dim;
    store_and_rotate(ref, args);
    for (uint32_t head = 0; head < ref->config->num_attention_heads; head++) {
        for (uint32_t i = 0; i < rows_per_head; i++) {
            ref_matrix_row(&args->layer->kv_b, head * rows_per_head + i,
                           ref->head + (size_t)i * ref->config->kv_lora_rank);
        }
        uint32_t first_row = 0;
        for (uint32_t s = 0; s < args->n_sequences; s++) {
            const krn_sequence *sequence = &args->sequences[s];
            if (sequence->form == KRN_EXPANDED)
                ref_attend_expanded(ref, args, sequence, first_row, head);
            else
                ref_attend_absorbed(ref, args, sequence, first_row, head);
            first_row += sequence->n_rows;
        }
    }
}
