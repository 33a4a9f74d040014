/* config.json of the DeepSeek-V3 family: V2-Lite, V3, R1, V3.1, Moonlight, Kimi-K2.
 *
 * Every number that shapes memory or arithmetic is read once, checked for range and for consistency with the others,
 * and never looked up again. Missing fields take the family's meaning (a deepseek_v3 without scoring_func is sigmoid
 * with noaux_tc). Field names are Hugging Face's; formulas: the YaRN paper (arXiv 2309.00071) as in DeepSeek's
 * inference/model.py. */
#ifndef BATON_COMMON_MODEL_CONFIG_H
#define BATON_COMMON_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "common/core/status.h"

enum { MDL_MAX_EXPERTS = 4096, MDL_MAX_EXPERTS_PER_TOKEN = 64 }; /* mdl_config_load() refuses more */

typedef enum { MDL_SOFTMAX, MDL_SIGMOID } mdl_scoring;
typedef enum {
    MDL_TOPK_GREEDY,
    MDL_TOPK_GROUP_MAX,
    MDL_TOPK_NOAUX
} mdl_topk; /* group score: none, max, sum of best two */

typedef struct {
    bool is_enabled; /* rope_scaling present and of type yarn */
    double factor, beta_fast, beta_slow, mscale, mscale_all_dim;
    bool has_mscale; /* either of the two was given; absent they are 1 and 0, as in vLLM and DeepSeek's own code */
    double attention_factor; /* overrides the multiplier of cos and sin; 0: not given */
    uint32_t original_max_position_embeddings;
} mdl_yarn;

typedef struct {
    uint32_t vocab_size, hidden_size, intermediate_size, moe_intermediate_size;
    uint32_t num_hidden_layers, first_k_dense_replace, moe_layer_freq;
    uint32_t num_attention_heads, q_lora_rank /* 0: one q_proj */, kv_lora_rank;
    uint32_t qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
    uint32_t n_routed_experts, n_shared_experts, num_experts_per_tok, n_group, topk_group; /* 0 experts: dense model */
    uint32_t num_nextn_predict_layers, max_position_embeddings;
    mdl_scoring scoring_func;
    mdl_topk topk_method;
    bool norm_topk_prob, tie_word_embeddings;
    float routed_scaling_factor, rms_norm_eps;
    double rope_theta;
    mdl_yarn yarn;
    uint32_t fp8_block_rows,
        fp8_block_cols;    /* of quantization_config.weight_block_size; 0: no FP8 in this checkpoint */
    uint32_t bos_token_id; /* UINT32_MAX: none */
    uint32_t eos_token_ids[8], n_eos_token_ids; /* generation_config.json's list wins over config.json's */
    /* generation_config.json: what a request that says nothing gets (1, 1, 0 when absent) */
    float default_temperature, default_top_p;
    uint32_t default_top_k;
} mdl_config;

/* Reads `dir`/config.json and, if there, `dir`/generation_config.json.
 * BT_BAD_REQUEST: no such file, not JSON, another architecture, a field missing, out of range or contradicting
 * another; the sentence names the file and the field. */
bt_status mdl_config_load(const char *dir, mdl_config *out, bt_error *err);

static inline bool mdl_layer_is_moe(const mdl_config *config, uint32_t layer) {
    return config->n_routed_experts > 0 && layer >= config->first_k_dense_replace &&
           layer % config->moe_layer_freq == 0;
}

/* Elements per token and layer in the KV cache: the latent and the rotated key that all heads share. */
static inline uint32_t mdl_kv_width(const mdl_config *config) {
    return config->kv_lora_rank + config->qk_rope_head_dim;
}

/* Rotation of one pair: angle = position * inv_freq[i]; inv_freq has qk_rope_head_dim / 2 entries. */
void mdl_rope_frequencies(const mdl_config *config, float *inv_freq);
float mdl_rope_multiplier(const mdl_config *config); /* of cos and sin; 1 for every published checkpoint */
float mdl_softmax_scale(const mdl_config *config);   /* (nope + rope)^-1/2, times YaRN's mscale squared */

#endif
