/* For tests: a random checkpoint of any small shape, written to a folder. Its list of tensors is kept apart from
 * weights.c on purpose: two lists that agree. */
#ifndef BATON_KERNELS_TEST_MODEL_H
#define BATON_KERNELS_TEST_MODEL_H

#include <math.h>

#include "common/model/config.h"
#include "common/model/test_files.h"
#include "kernels/dtype.h"

typedef struct {
    const char *config;       /* config.json */
    const char *matrix_dtype; /* "BF16", "F16", "F32" or "F8_E4M3" (projections only; the others then BF16) */
    const char *scale_dtype;  /* of F8_E4M3: "F32", "BF16" or "F8_E8M0" */
    const char *bias_dtype;   /* of e_score_correction_bias */
    const char *omit;         /* no such tensor is written */
    const char *lengthen;     /* this one gets a row too many */
    const char *retype;       /* this one becomes I32 */
    bool has_extra;           /* tensors that nobody asked for, as a multi-token prediction layer */
    bool is_sharded;          /* scales in one file, everything else in another */
} test_model;

typedef struct {
    const test_model *model;
    bt_buf header[2], data[2], map;
    uint64_t random;
} test_model_writer;

static inline float test_random(uint64_t *state) { /* -1..1 */
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(*state >> 32) * 0x1p-31f;
}

static inline uint16_t test_f16_from_float(float value) { /* truncates; normal numbers only */
    uint32_t bits = krn_float_bits(value);
    if (fabsf(value) < 0x1p-14f) return (uint16_t)(bits >> 16 & 0x8000);
    return (uint16_t)((bits >> 16 & 0x8000) | (((bits >> 23 & 255) - 112) << 10) | (bits >> 13 & 0x3ff));
}

static inline void test_model_put_value(bt_buf *out, const char *dtype, float value) {
    if (strcmp(dtype, "F32") == 0 || strcmp(dtype, "I32") == 0) {
        bt_buf_put(out, &value, 4);
    } else if (strcmp(dtype, "F8_E4M3") == 0) { /* a random code near the value's magnitude; never NaN */
        uint32_t bits = krn_float_bits(value);
        uint8_t code = (uint8_t)((bits >> 24 & 0x80) | (0x28 + (bits >> 10 & 15)));
        bt_buf_put(out, &code, 1);
    } else if (strcmp(dtype, "F8_E8M0") == 0) {
        uint8_t code = value > 0 ? 124 : 123;
        bt_buf_put(out, &code, 1);
    } else {
        uint16_t bits = strcmp(dtype, "F16") == 0 ? test_f16_from_float(value) : krn_bf16_from_float(value);
        bt_buf_put(out, &bits, 2);
    }
}

/* n_cols 0: a vector. Values are center + spread * random. */
static inline void test_model_put(test_model_writer *w, const char *name, const char *dtype, uint32_t n_rows,
                                  uint32_t n_cols, float center, float spread) {
    const test_model *model = w->model;
    if (model->omit != NULL && strcmp(model->omit, name) == 0) return;
    if (model->lengthen != NULL && strcmp(model->lengthen, name) == 0) n_rows++;
    if (model->retype != NULL && strcmp(model->retype, name) == 0) dtype = "I32";
    size_t shard = model->is_sharded && strstr(name, "scale_inv") != NULL, begin = w->data[shard].n_bytes;
    size_t n = (size_t)n_rows * (n_cols > 0 ? n_cols : 1);
    for (size_t i = 0; i < n; i++) {
        test_model_put_value(&w->data[shard], dtype, center + spread * test_random(&w->random));
    }
    bt_buf_printf(&w->header[shard], "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%u", begin > 0 ? "," : "{", name, dtype,
                  n_rows);
    if (n_cols > 0) bt_buf_printf(&w->header[shard], ",%u", n_cols);
    bt_buf_printf(&w->header[shard], "],\"data_offsets\":[%zu,%zu]}", begin, w->data[shard].n_bytes);
    bt_buf_printf(&w->map, "%s\"%s\":\"%zu.safetensors\"", w->map.n_bytes > 0 ? "," : "", name, shard);
}

static inline void test_model_put_projection(test_model_writer *w, const mdl_config *c, const char *name,
                                             uint32_t n_out, uint32_t n_in) {
    const test_model *model = w->model;
    float spread = 2 / sqrtf((float)n_in);
    test_model_put(w, name, model->matrix_dtype, n_out, n_in, 0, spread);
    if (strcmp(model->matrix_dtype, "F8_E4M3") != 0) return;
    char scale_name[300];
    snprintf(scale_name, sizeof(scale_name), "%s_scale_inv", name);
    uint32_t rows = (n_out + c->fp8_block_rows - 1) / c->fp8_block_rows;
    uint32_t cols = (n_in + c->fp8_block_cols - 1) / c->fp8_block_cols;
    test_model_put(w, scale_name, model->scale_dtype, rows, cols, spread * 2, spread);
}

static inline void test_model_put_mlp(test_model_writer *w, const mdl_config *c, uint32_t layer, const char *place,
                                      uint32_t width) {
    char name[256];
    snprintf(name, sizeof(name), "model.layers.%u.%s.gate_proj.weight", layer, place);
    test_model_put_projection(w, c, name, width, c->hidden_size);
    snprintf(name, sizeof(name), "model.layers.%u.%s.up_proj.weight", layer, place);
    test_model_put_projection(w, c, name, width, c->hidden_size);
    snprintf(name, sizeof(name), "model.layers.%u.%s.down_proj.weight", layer, place);
    test_model_put_projection(w, c, name, c->hidden_size, width);
}

static inline void test_model_put_layer(test_model_writer *w, const mdl_config *c, uint32_t i, const char *plain) {
    char name[256];
    uint32_t heads = c->num_attention_heads, q_width = heads * (c->qk_nope_head_dim + c->qk_rope_head_dim);
#define NAME(rest) (snprintf(name, sizeof(name), "model.layers.%u." rest, i), name)
    test_model_put(w, NAME("input_layernorm.weight"), plain, c->hidden_size, 0, 1, 0.2f);
    test_model_put(w, NAME("post_attention_layernorm.weight"), plain, c->hidden_size, 0, 1, 0.2f);
    if (c->q_lora_rank > 0) {
        test_model_put_projection(w, c, NAME("self_attn.q_a_proj.weight"), c->q_lora_rank, c->hidden_size);
        test_model_put(w, NAME("self_attn.q_a_layernorm.weight"), plain, c->q_lora_rank, 0, 1, 0.2f);
        test_model_put_projection(w, c, NAME("self_attn.q_b_proj.weight"), q_width, c->q_lora_rank);
    } else {
        test_model_put_projection(w, c, NAME("self_attn.q_proj.weight"), q_width, c->hidden_size);
    }
    test_model_put_projection(w, c, NAME("self_attn.kv_a_proj_with_mqa.weight"), mdl_kv_width(c), c->hidden_size);
    test_model_put(w, NAME("self_attn.kv_a_layernorm.weight"), plain, c->kv_lora_rank, 0, 1, 0.2f);
    test_model_put_projection(w, c, NAME("self_attn.kv_b_proj.weight"), heads * (c->qk_nope_head_dim + c->v_head_dim),
                              c->kv_lora_rank);
    test_model_put_projection(w, c, NAME("self_attn.o_proj.weight"), c->hidden_size, heads * c->v_head_dim);
    if (!mdl_layer_is_moe(c, i)) {
        test_model_put_mlp(w, c, i, "mlp", c->intermediate_size);
        return;
    }
    test_model_put(w, NAME("mlp.gate.weight"), plain, c->n_routed_experts, c->hidden_size, 0,
                   2 / sqrtf((float)c->hidden_size));
    if (c->topk_method == MDL_TOPK_NOAUX) {
        test_model_put(w, NAME("mlp.gate.e_score_correction_bias"), w->model->bias_dtype, c->n_routed_experts, 0, 0,
                       0.2f);
    }
    for (uint32_t e = 0; e < c->n_routed_experts; e++) {
        char place[64];
        snprintf(place, sizeof(place), "mlp.experts.%u", e);
        test_model_put_mlp(w, c, i, place, c->moe_intermediate_size);
    }
    if (c->n_shared_experts > 0) {
        test_model_put_mlp(w, c, i, "mlp.shared_experts", c->n_shared_experts * c->moe_intermediate_size);
    }
#undef NAME
}

/* Writes config.json and the tensors that it asks for. */
static inline void test_model_write(const char *dir, const test_model *model) {
    mdl_config c;
    bt_error err = {0};
    test_dir_clear(dir);
    test_text_write(dir, "config.json", model->config);
    if (mdl_config_load(dir, &c, &err) != BT_OK) fprintf(stderr, "%s\n", err.text);
    BT_ASSERT(err.status == BT_OK);
    const char *plain = strcmp(model->matrix_dtype, "F8_E4M3") == 0 ? "BF16" : model->matrix_dtype;
    test_model_writer w = {.model = model, .random = 1};
    test_model_put(&w, "model.embed_tokens.weight", plain, c.vocab_size, c.hidden_size, 0, 1);
    test_model_put(&w, "model.norm.weight", plain, c.hidden_size, 0, 1, 0.2f);
    if (!c.tie_word_embeddings) {
        test_model_put(&w, "lm_head.weight", plain, c.vocab_size, c.hidden_size, 0, 2 / sqrtf((float)c.hidden_size));
    }
    for (uint32_t i = 0; i < c.num_hidden_layers; i++) test_model_put_layer(&w, &c, i, plain);
    if (model->has_extra) {
        char name[64];
        snprintf(name, sizeof(name), "model.layers.%u.eh_proj.weight", c.num_hidden_layers);
        test_model_put(&w, name, "I32", 2, 3, 0, 1);
        test_model_put(&w, "model.layers.0.self_attn.rotary_emb.inv_freq", "F32", 4, 0, 0, 1);
    }
    for (size_t shard = 0; shard < 2; shard++) {
        char name[64];
        snprintf(name, sizeof(name), model->is_sharded ? "%zu.safetensors" : "model.safetensors", shard);
        if (w.header[shard].n_bytes > 0) {
            bt_buf_puts(&w.header[shard], "}");
            test_safetensors_write(dir, name, bt_buf_text(&w.header[shard]), w.data[shard].bytes,
                                   w.data[shard].n_bytes);
        }
        bt_buf_fini(&w.header[shard]);
        bt_buf_fini(&w.data[shard]);
    }
    if (model->is_sharded) {
        bt_buf index = {0};
        bt_buf_printf(&index, "{\"weight_map\":{%s}}", bt_buf_text(&w.map));
        test_text_write(dir, "model.safetensors.index.json", bt_buf_text(&index));
        bt_buf_fini(&index);
    }
    bt_buf_fini(&w.map);
}

/* Two small shapes in which no dimension is a multiple of another. */
#define TEST_CONFIG_V3                                                                                                 \
    "{\"model_type\":\"deepseek_v3\",\"vocab_size\":101,\"hidden_size\":72,\"intermediate_size\":90,"                  \
    "\"moe_intermediate_size\":26,\"num_hidden_layers\":3,\"first_k_dense_replace\":1,\"num_attention_heads\":3,"      \
    "\"q_lora_rank\":38,\"kv_lora_rank\":44,\"qk_nope_head_dim\":18,\"qk_rope_head_dim\":10,\"v_head_dim\":22,"        \
    "\"max_position_embeddings\":4096,\"n_routed_experts\":12,\"num_experts_per_tok\":3,\"n_shared_experts\":1,"       \
    "\"n_group\":3,\"topk_group\":2,\"eos_token_id\":1,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":40,"             \
    "\"original_max_position_embeddings\":64,\"mscale\":1.0,\"mscale_all_dim\":1.0}"
#define TEST_CONFIG_V2                                                                                                 \
    "{\"model_type\":\"deepseek_v2\",\"vocab_size\":67,\"hidden_size\":50,\"intermediate_size\":34,"                   \
    "\"moe_intermediate_size\":30,\"num_hidden_layers\":2,\"first_k_dense_replace\":0,\"num_attention_heads\":5,"      \
    "\"kv_lora_rank\":20,\"qk_nope_head_dim\":6,\"qk_rope_head_dim\":4,\"v_head_dim\":14,"                             \
    "\"max_position_embeddings\":1024,\"n_routed_experts\":7,\"num_experts_per_tok\":2"
#define TEST_FP8(rows, cols)                                                                                           \
    ",\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[" #rows "," #cols "]}"

#endif
