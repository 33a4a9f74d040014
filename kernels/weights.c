/* Binds tensors of the checkpoint to their place in the computation, by Hugging Face's names.
 *
 * Owns the layer and expert tables, the list of tensors, the small vectors and the FP8 scales, all in one arena;
 * matrices stay where they are mapped. A binder carries the first error, so that a layer reads as a list of its
 * tensors. What is not asked for is not looked at: layers behind num_hidden_layers (multi-token prediction), rotary
 * buffers, a head that is tied. */
#include "kernels/weights.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/core/alloc.h"
#include "kernels/dtype.h"

typedef struct {
    krn_weights weights; /* first: what the caller holds */
    bt_arena arena;
} owned_weights;

typedef struct {
    const mdl_checkpoint *checkpoint;
    const mdl_config *config;
    const krn_placement *placement; /* NULL: all experts */
    uint32_t rank;
    bt_arena *arena;
    const mdl_tensor **tensors; /* bound so far; grown by doubling */
    size_t n_tensors, cap_tensors;
    uint64_t n_bytes; /* of these */
    bt_status status;
    bt_error *err;
} binder;

enum { MAX_NAME = 256 };

/* "[24576, 1536]" */
static const char *shape_text(uint32_t rank, const uint64_t *shape, char text[MAX_NAME]) {
    int used = snprintf(text, MAX_NAME, "[");
    for (uint32_t i = 0; i < rank; i++) {
        used += snprintf(text + used, MAX_NAME - (size_t)used, "%s%" PRIu64, i == 0 ? "" : ", ", shape[i]);
    }
    snprintf(text + used, MAX_NAME - (size_t)used, "]");
    return text;
}

/* The tensor, of this shape; NULL after an error. n_cols 0: a vector. */
static const mdl_tensor *bind(binder *b, const char *name, uint32_t n_rows, uint32_t n_cols) {
    if (b->status != BT_OK) return NULL;
    const uint64_t expected[2] = {n_rows, n_cols};
    uint32_t rank = n_cols == 0 ? 1 : 2;
    const mdl_tensor *tensor = mdl_checkpoint_find(b->checkpoint, name);
    char found_text[MAX_NAME], expected_text[MAX_NAME];
    shape_text(rank, expected, expected_text);
    if (tensor == NULL) {
        b->status =
            bt_fail(b->err, BT_BAD_REQUEST, "the checkpoint has no tensor %s, expected %s", name, expected_text);
        return NULL;
    }
    bool fits = tensor->rank == rank && tensor->shape[0] == n_rows && (rank == 1 || tensor->shape[1] == n_cols);
    if (!fits) {
        b->status = bt_fail(b->err, BT_BAD_REQUEST, "%s: tensor %s has shape %s, expected %s by config.json",
                            tensor->file, name, shape_text(tensor->rank, tensor->shape, found_text), expected_text);
        return NULL;
    }
    if (b->n_tensors == b->cap_tensors) {
        b->cap_tensors = b->cap_tensors > 0 ? 2 * b->cap_tensors : 256;
        b->tensors = bt_realloc(b->tensors, b->cap_tensors, sizeof(*b->tensors));
    }
    b->tensors[b->n_tensors++] = tensor;
    b->n_bytes += tensor->n_bytes;
    return tensor;
}

static bool is_plain(mdl_dtype dtype) { return dtype == MDL_BF16 || dtype == MDL_F16 || dtype == MDL_F32; }

static void fail_dtype(binder *b, const mdl_tensor *tensor, const char *expected) {
    b->status = bt_fail(b->err, BT_BAD_REQUEST, "%s: tensor %s is %s, expected %s", tensor->file, tensor->name,
                        mdl_dtype_name(tensor->dtype), expected);
}

/* A vector as float32. */
static const float *bind_vector(binder *b, uint32_t n, const char *name) {
    const mdl_tensor *tensor = bind(b, name, n, 0);
    if (tensor == NULL) return NULL;
    if (!is_plain(tensor->dtype)) {
        fail_dtype(b, tensor, "BF16, F16 or F32");
        return NULL;
    }
    float *values = bt_arena_alloc(b->arena, n * sizeof(float));
    krn_decode(tensor->data, tensor->dtype, 0, n, values);
    return values;
}

static void bind_scale(binder *b, const char *name, krn_matrix *out) {
    out->block_rows = b->config->fp8_block_rows;
    out->block_cols = b->config->fp8_block_cols;
    out->n_scale_cols = (out->n_in + out->block_cols - 1) / out->block_cols;
    uint32_t n_scale_rows = (out->n_out + out->block_rows - 1) / out->block_rows;
    const mdl_tensor *tensor = bind(b, name, n_scale_rows, out->n_scale_cols);
    if (tensor == NULL) return;
    if (!is_plain(tensor->dtype) && tensor->dtype != MDL_F8_E8M0) {
        fail_dtype(b, tensor, "F32, BF16, F16 or F8_E8M0");
        return;
    }
    size_t n = (size_t)n_scale_rows * out->n_scale_cols;
    float *scale = bt_arena_alloc(b->arena, n * sizeof(float));
    krn_decode(tensor->data, tensor->dtype, 0, n, scale);
    for (size_t i = 0; i < n; i++) {
        if (isfinite(scale[i])) continue;
        b->status =
            bt_fail(b->err, BT_BAD_REQUEST, "%s: tensor %s holds a scale that is not a number", tensor->file, name);
        return;
    }
    out->scale = scale;
}

static krn_matrix bind_matrix(binder *b, uint32_t n_out, uint32_t n_in, const char *name) {
    krn_matrix matrix = {.n_out = n_out, .n_in = n_in};
    const mdl_tensor *tensor = bind(b, name, n_out, n_in);
    if (tensor == NULL) return matrix;
    matrix.data = tensor->data;
    matrix.dtype = tensor->dtype;
    if (is_plain(tensor->dtype)) return matrix;
    if (tensor->dtype != MDL_F8_E4M3) {
        fail_dtype(b, tensor, "BF16, F16, F32 or F8_E4M3");
    } else if (b->config->fp8_block_rows == 0) {
        fail_dtype(b, tensor, "BF16, F16 or F32 since config.json has no quantization_config");
    } else {
        char scale_name[MAX_NAME + sizeof("_scale_inv")];
        snprintf(scale_name, sizeof(scale_name), "%s_scale_inv", name);
        bind_scale(b, scale_name, &matrix);
    }
    return matrix;
}

/* "model.layers.3." and the rest of a name. */
static const char *layer_name(char name[MAX_NAME], uint32_t layer, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static const char *layer_name(char name[MAX_NAME], uint32_t layer, const char *format, ...) {
    int used = snprintf(name, MAX_NAME, "model.layers.%u.", layer);
    va_list args;
    va_start(args, format);
    vsnprintf(name + used, MAX_NAME - (size_t)used, format, args);
    va_end(args);
    return name;
}

static krn_mlp bind_mlp(binder *b, uint32_t layer, const char *place, uint32_t width) {
    char name[MAX_NAME];
    uint32_t hidden = b->config->hidden_size;
    krn_mlp mlp;
    mlp.gate = bind_matrix(b, width, hidden, layer_name(name, layer, "%s.gate_proj.weight", place));
    mlp.up = bind_matrix(b, width, hidden, layer_name(name, layer, "%s.up_proj.weight", place));
    mlp.down = bind_matrix(b, hidden, width, layer_name(name, layer, "%s.down_proj.weight", place));
    return mlp;
}

static void bind_attention(binder *b, uint32_t i, krn_layer *out) {
    const mdl_config *c = b->config;
    char name[MAX_NAME];
    uint32_t heads = c->num_attention_heads, hidden = c->hidden_size;
    uint32_t q_width = heads * (c->qk_nope_head_dim + c->qk_rope_head_dim);
    if (c->q_lora_rank > 0) {
        out->q_a = bind_matrix(b, c->q_lora_rank, hidden, layer_name(name, i, "self_attn.q_a_proj.weight"));
        out->q_a_norm = bind_vector(b, c->q_lora_rank, layer_name(name, i, "self_attn.q_a_layernorm.weight"));
        out->q_b = bind_matrix(b, q_width, c->q_lora_rank, layer_name(name, i, "self_attn.q_b_proj.weight"));
    } else {
        out->q = bind_matrix(b, q_width, hidden, layer_name(name, i, "self_attn.q_proj.weight"));
    }
    out->kv_a = bind_matrix(b, mdl_kv_width(c), hidden, layer_name(name, i, "self_attn.kv_a_proj_with_mqa.weight"));
    out->kv_a_norm = bind_vector(b, c->kv_lora_rank, layer_name(name, i, "self_attn.kv_a_layernorm.weight"));
    out->kv_b = bind_matrix(b, heads * (c->qk_nope_head_dim + c->v_head_dim), c->kv_lora_rank,
                            layer_name(name, i, "self_attn.kv_b_proj.weight"));
    out->o = bind_matrix(b, hidden, heads * c->v_head_dim, layer_name(name, i, "self_attn.o_proj.weight"));
}

/* Adds up the routed experts that are here, and their bytes. */
static void bind_moe(binder *b, uint32_t i, krn_layer *out, uint64_t *n_experts, uint64_t *n_bytes) {
    const mdl_config *c = b->config;
    char name[MAX_NAME], place[64];
    out->router = bind_matrix(b, c->n_routed_experts, c->hidden_size, layer_name(name, i, "mlp.gate.weight"));
    if (c->topk_method == MDL_TOPK_NOAUX) {
        out->router_bias = bind_vector(b, c->n_routed_experts, layer_name(name, i, "mlp.gate.e_score_correction_bias"));
    }
    if (c->n_shared_experts > 0) {
        out->shared = bind_mlp(b, i, "mlp.shared_experts", c->n_shared_experts * c->moe_intermediate_size);
    }
    uint64_t bytes_before = b->n_bytes;
    out->experts = bt_arena_alloc(b->arena, c->n_routed_experts * sizeof(krn_mlp));
    for (uint32_t e = 0; e < c->n_routed_experts; e++) {
        if (b->placement != NULL && !krn_placement_holds(b->placement, b->rank, i, e)) continue;
        snprintf(place, sizeof(place), "mlp.experts.%u", e);
        out->experts[e] = bind_mlp(b, i, place, c->moe_intermediate_size);
        ++*n_experts;
    }
    *n_bytes += b->n_bytes - bytes_before;
}

static void bind_all(binder *b, krn_weights *out) {
    const mdl_config *c = b->config;
    char name[MAX_NAME];
    out->embed = bind_matrix(b, c->vocab_size, c->hidden_size, "model.embed_tokens.weight");
    uint64_t embed_bytes = b->n_bytes, idle_bytes = embed_bytes - embed_bytes / c->vocab_size; /* one row is read */
    uint64_t n_experts = 0, expert_bytes = 0;
    out->final_norm = bind_vector(b, c->hidden_size, "model.norm.weight");
    out->lm_head =
        c->tie_word_embeddings ? out->embed : bind_matrix(b, c->vocab_size, c->hidden_size, "lm_head.weight");
    if (c->tie_word_embeddings) idle_bytes = 0;
    out->layers = bt_arena_alloc(b->arena, c->num_hidden_layers * sizeof(krn_layer));
    for (uint32_t i = 0; i < c->num_hidden_layers; i++) {
        krn_layer *layer = &out->layers[i];
        layer->input_norm = bind_vector(b, c->hidden_size, layer_name(name, i, "input_layernorm.weight"));
        layer->post_attention_norm =
            bind_vector(b, c->hidden_size, layer_name(name, i, "post_attention_layernorm.weight"));
        bind_attention(b, i, layer);
        layer->is_moe = mdl_layer_is_moe(c, i);
        if (layer->is_moe) {
            bind_moe(b, i, layer, &n_experts, &expert_bytes);
        } else {
            layer->dense = bind_mlp(b, i, "mlp", c->intermediate_size);
        }
        if (b->status != BT_OK) return;
    }
    out->n_tensors = b->n_tensors;
    out->n_bytes = b->n_bytes;
    if (n_experts > 0) {
        idle_bytes += expert_bytes - expert_bytes / c->n_routed_experts * c->num_experts_per_tok;
        out->expert_bytes = expert_bytes / n_experts;
    }
    out->active_bytes = b->n_bytes - idle_bytes;
}

bt_status krn_weights_open(const mdl_checkpoint *checkpoint, const mdl_config *config, const krn_placement *placement,
                           uint32_t rank, krn_weights **out, bt_error *err) {
    owned_weights *owned = bt_calloc(1, sizeof(*owned));
    binder b = {.checkpoint = checkpoint, .config = config, .arena = &owned->arena, .status = BT_OK, .err = err};
    b.placement = placement;
    b.rank = rank;
    bind_all(&b, &owned->weights);
    owned->weights.tensors = b.tensors;
    if (b.status != BT_OK)
        krn_weights_close(&owned->weights);
    else
        *out = &owned->weights;
    return b.status;
}

void krn_weights_close(krn_weights *weights) {
    if (weights == NULL) return;
    owned_weights *owned = (owned_weights *)weights; /* its first member */
    bt_arena_fini(&owned->arena);
    free(weights->tensors);
    free(owned);
}
