/* Opens the reference backend: its table of operations and its scratch. The arithmetic is in the files beside. */
#include "kernels/ref/ref.h"

#include <math.h>
#include <stdlib.h>

#include "common/core/alloc.h"

static void ref_close(krn_backend *backend) {
    ref_backend *ref = (ref_backend *)backend;
    if (ref == NULL) return;
    float *scratch[] = {ref->weight_row,  ref->head,    ref->q_rope,  ref->keys,     ref->values, ref->q_latent,
                        ref->accumulator, ref->row_max, ref->row_sum, ref->expert_x, ref->gate,   ref->up};
    for (size_t i = 0; i < sizeof(scratch) / sizeof(scratch[0]); i++) free(scratch[i]);
    free(ref);
}

static void ref_prepare(krn_backend *backend, krn_weights *weights) {
    (void)backend; /* nothing is packed: rows are decoded when they are used */
    (void)weights;
}

static uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

static float *floats(size_t n_rows, size_t width) { return bt_calloc(n_rows * width, sizeof(float)); }

bt_status krn_ref_open(const krn_backend_limits *limits, krn_backend **out, bt_error *err) {
    (void)err;
    const mdl_config *config = limits->config;
    uint32_t heads = config->num_attention_heads, nope = config->qk_nope_head_dim, v = config->v_head_dim;
    uint32_t latent = config->kv_lora_rank, rows = limits->max_rows;
    uint32_t mlp =
        larger(config->intermediate_size, larger(1, config->n_shared_experts) * config->moe_intermediate_size);
    uint32_t widest = larger(larger(config->hidden_size, mlp), larger(config->q_lora_rank, larger(latent, heads * v)));

    ref_backend *ref = bt_calloc(1, sizeof(*ref));
    ref->backend = (krn_backend){
        .name = "ref",
        .isa = "c",
        .activation_bytes = sizeof(float),
        .kv = KV_FLOAT32,
        .close = ref_close,
        .prepare = ref_prepare,
        .embed = ref_embed,
        .rmsnorm = ref_rmsnorm,
        .linear = ref_linear,
        .mlp = ref_mlp,
        .attention = ref_attention,
        .router = ref_router,
        .experts = ref_experts,
        .combine = ref_combine,
    };
    ref->config = config;
    ref->softmax_scale = mdl_softmax_scale(config);
    ref->max_rows = rows;
    ref->weight_row = floats(1, widest);
    ref->head = floats(nope + v, latent);
    ref->q_rope = floats(rows, (size_t)heads * config->qk_rope_head_dim);
    ref->keys = floats(KV_BLOCK_TOKENS, nope);
    ref->values = floats(KV_BLOCK_TOKENS, v);
    ref->q_latent = floats(1, latent);
    ref->accumulator = floats(rows, larger(v, latent));
    ref->row_max = floats(rows, 1);
    ref->row_sum = floats(rows, 1);
    ref->expert_x = floats(rows, config->hidden_size);
    ref->gate = floats(rows, mlp);
    ref->up = floats(rows, mlp);
    *out = &ref->backend;
    return BT_OK;
}
