/* Reads config.json and generation_config.json into mdl_config: every field with its range, then what the fields must
 * say about each other. Nothing else of the files is kept.
 *
 * A reader carries the first error, so that the fields below read as a list; after it every further read does nothing.
 * Defaults of absent fields are those of transformers' DeepseekV2Config and DeepseekV3Config. */
#include "common/model/config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/model/json.h"

enum { MAX_CONFIG_BYTES = 16 << 20, ABSENT = -1, REQUIRED = -2 };

typedef struct {
    const char *file; /* named in errors */
    const cJSON *object;
    bt_status status;
    bt_error *err;
} field_reader;

static const cJSON *find(const field_reader *reader, const char *name) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(reader->object, name);
    return cJSON_IsNull(item) ? NULL : item; /* null means: not given */
}

static double read_number(field_reader *reader, const char *name, double min, double max, double fallback) {
    const cJSON *item = find(reader, name);
    if (reader->status != BT_OK || item == NULL) return fallback;
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= min && item->valuedouble <= max)) {
        reader->status =
            bt_fail(reader->err, BT_BAD_REQUEST, "%s: %s is not a number from %g to %g", reader->file, name, min, max);
        return fallback;
    }
    return item->valuedouble;
}

/* `fallback`: the value of an absent field, or REQUIRED. */
static uint32_t read_uint(field_reader *reader, const char *name, uint32_t min, uint32_t max, int64_t fallback) {
    const cJSON *item = find(reader, name);
    if (reader->status != BT_OK) return min;
    if (item == NULL && fallback != REQUIRED) return (uint32_t)fallback;
    if (item == NULL) {
        reader->status = bt_fail(reader->err, BT_BAD_REQUEST, "%s: %s is missing", reader->file, name);
        return min;
    }
    if (!mdl_json_is_uint(item, max) || item->valuedouble < min) {
        reader->status = bt_fail(reader->err, BT_BAD_REQUEST, "%s: %s is not a whole number from %u to %u",
                                 reader->file, name, min, max);
        return min;
    }
    return (uint32_t)item->valuedouble;
}

static bool read_bool(field_reader *reader, const char *name, bool fallback) {
    const cJSON *item = find(reader, name);
    if (reader->status != BT_OK || item == NULL) return fallback;
    if (!cJSON_IsBool(item)) {
        reader->status = bt_fail(reader->err, BT_BAD_REQUEST, "%s: %s is neither true nor false", reader->file, name);
    }
    return cJSON_IsTrue(item);
}

/* The index of the field's text in `names` (NULL-terminated). */
static int read_choice(field_reader *reader, const char *name, const char *const *names, int fallback) {
    const cJSON *item = find(reader, name);
    if (reader->status != BT_OK || item == NULL) return fallback;
    for (int i = 0; cJSON_IsString(item) && names[i] != NULL; i++) {
        if (strcmp(item->valuestring, names[i]) == 0) return i;
    }
    reader->status = bt_fail(reader->err, BT_BAD_REQUEST, "%s: %s is \"%.60s\", which is not supported", reader->file,
                             name, cJSON_IsString(item) ? item->valuestring : "not a text");
    return fallback;
}

/* True for DeepSeek-V2's meaning of absent fields, false for V3's. */
static bool read_family(field_reader *reader) {
    static const char *const types[] = {"deepseek_v2", "deepseek_v3", "kimi_k2", NULL};
    static const char *const classes[] = {"DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", NULL};
    int class = ABSENT;
    const cJSON *list = find(reader, "architectures");
    if (list != NULL) {
        cJSON *name = cJSON_GetArrayItem(list, 0);
        for (int i = 0; cJSON_IsString(name) && classes[i] != NULL; i++) {
            if (strcmp(name->valuestring, classes[i]) == 0) class = i;
        }
        if (class == ABSENT) {
            reader->status =
                bt_fail(reader->err, BT_BAD_REQUEST, "%s: architectures is \"%.60s\", expected %s or %s", reader->file,
                        cJSON_IsString(name) ? name->valuestring : "not a list of texts", classes[0], classes[1]);
        }
    }
    int type = read_choice(reader, "model_type", types, ABSENT);
    if (reader->status == BT_OK && type == ABSENT && class == ABSENT) {
        reader->status =
            bt_fail(reader->err, BT_BAD_REQUEST, "%s: says neither model_type nor architectures", reader->file);
    }
    return type == ABSENT ? class == 0 : type == 0;
}

static void read_shape(field_reader *reader, bool is_v2, mdl_config *out) {
    enum { MAX_WIDTH = 1 << 20, MAX_HEAD_DIM = 4096, MAX_POSITIONS = 1 << 24 /* exact in float32 */ };
    out->vocab_size = read_uint(reader, "vocab_size", 1, 1 << 24, REQUIRED);
    out->hidden_size = read_uint(reader, "hidden_size", 1, MAX_WIDTH, REQUIRED);
    out->intermediate_size = read_uint(reader, "intermediate_size", 1, MAX_WIDTH, REQUIRED);
    out->num_hidden_layers = read_uint(reader, "num_hidden_layers", 1, 1024, REQUIRED);
    out->num_attention_heads = read_uint(reader, "num_attention_heads", 1, 1024, REQUIRED);
    out->q_lora_rank = read_uint(reader, "q_lora_rank", 0, MAX_WIDTH, 0);
    out->kv_lora_rank = read_uint(reader, "kv_lora_rank", 1, 1 << 16, REQUIRED);
    out->qk_nope_head_dim = read_uint(reader, "qk_nope_head_dim", 1, MAX_HEAD_DIM, REQUIRED);
    out->qk_rope_head_dim = read_uint(reader, "qk_rope_head_dim", 2, MAX_HEAD_DIM, REQUIRED);
    out->v_head_dim = read_uint(reader, "v_head_dim", 1, MAX_HEAD_DIM, REQUIRED);
    out->max_position_embeddings = read_uint(reader, "max_position_embeddings", 1, MAX_POSITIONS, REQUIRED);
    out->num_nextn_predict_layers = read_uint(reader, "num_nextn_predict_layers", 0, 64, 0);
    out->first_k_dense_replace = read_uint(reader, "first_k_dense_replace", 0, 1024, is_v2 ? 0 : 3);
    out->moe_layer_freq = read_uint(reader, "moe_layer_freq", 1, 1024, 1);
    out->rms_norm_eps = (float)read_number(reader, "rms_norm_eps", 1e-12, 1e-1, 1e-6);
    out->rope_theta = read_number(reader, "rope_theta", 1.001, 1e12, 10000);
    out->tie_word_embeddings = read_bool(reader, "tie_word_embeddings", false);
    uint32_t kv_heads = read_uint(reader, "num_key_value_heads", 1, 1024, out->num_attention_heads);
    if (reader->status != BT_OK) return;
    if (out->qk_rope_head_dim % 2 != 0) {
        reader->status = bt_fail(reader->err, BT_BAD_REQUEST, "%s: qk_rope_head_dim is %u, expected an even number",
                                 reader->file, out->qk_rope_head_dim);
    } else if (kv_heads != out->num_attention_heads) {
        reader->status =
            bt_fail(reader->err, BT_BAD_REQUEST,
                    "%s: num_key_value_heads is %u, expected num_attention_heads, %u: latent attention has "
                    "no head groups",
                    reader->file, kv_heads, out->num_attention_heads);
    }
}

/* What the arithmetic is not written for, and would get silently wrong. */
static void refuse_unsupported(field_reader *reader) {
    static const char *const silu[] = {"silu", NULL};
    read_choice(reader, "hidden_act", silu, 0);
    if (read_bool(reader, "attention_bias", false) && reader->status == BT_OK) {
        reader->status =
            bt_fail(reader->err, BT_BAD_REQUEST, "%s: attention_bias is true, which is not supported", reader->file);
    }
    if (!read_bool(reader, "rope_interleave", true) && reader->status == BT_OK) {
        reader->status =
            bt_fail(reader->err, BT_BAD_REQUEST, "%s: rope_interleave is false, which is not supported", reader->file);
    }
}

static void check_moe(field_reader *reader, const mdl_config *config) {
    uint32_t experts = config->n_routed_experts, groups = config->n_group;
    const char *problem = NULL;
    if (config->num_experts_per_tok > experts) problem = "num_experts_per_tok exceeds n_routed_experts";
    if (config->topk_method != MDL_TOPK_GREEDY) {
        if (experts % groups != 0)
            problem = "n_group does not divide n_routed_experts";
        else if (config->topk_group > groups)
            problem = "topk_group exceeds n_group";
        else if (config->num_experts_per_tok > config->topk_group * (experts / groups)) {
            problem = "topk_group groups hold fewer than num_experts_per_tok experts";
        } else if (config->topk_method == MDL_TOPK_NOAUX && groups > 1 && experts / groups < 2) {
            problem = "groups of one expert cannot be scored by their best two";
        }
    }
    if (problem == NULL) return;
    reader->status = bt_fail(reader->err, BT_BAD_REQUEST,
                             "%s: %s (n_routed_experts %u, n_group %u, topk_group %u, num_experts_per_tok %u)",
                             reader->file, problem, experts, groups, config->topk_group, config->num_experts_per_tok);
}

static void read_moe(field_reader *reader, bool is_v2, mdl_config *out) {
    static const char *const scorings[] = {"softmax", "sigmoid", NULL};
    static const char *const methods[] = {"greedy", "group_limited_greedy", "noaux_tc", NULL};
    out->n_routed_experts = read_uint(reader, "n_routed_experts", 0, MDL_MAX_EXPERTS, 0);
    if (out->n_routed_experts == 0) return;
    out->moe_intermediate_size = read_uint(reader, "moe_intermediate_size", 1, 1 << 20, REQUIRED);
    out->num_experts_per_tok = read_uint(reader, "num_experts_per_tok", 1, MDL_MAX_EXPERTS_PER_TOKEN, REQUIRED);
    out->n_shared_experts = read_uint(reader, "n_shared_experts", 0, 64, 0);
    out->n_group = read_uint(reader, "n_group", 1, MDL_MAX_EXPERTS, 1);
    out->topk_group = read_uint(reader, "topk_group", 1, MDL_MAX_EXPERTS, 1);
    out->scoring_func = (mdl_scoring)read_choice(reader, "scoring_func", scorings, is_v2 ? MDL_SOFTMAX : MDL_SIGMOID);
    out->topk_method = (mdl_topk)read_choice(reader, "topk_method", methods, is_v2 ? MDL_TOPK_GREEDY : MDL_TOPK_NOAUX);
    out->norm_topk_prob = read_bool(reader, "norm_topk_prob", !is_v2);
    out->routed_scaling_factor = (float)read_number(reader, "routed_scaling_factor", 1e-6, 1e6, is_v2 ? 1.0 : 2.5);
    if (is_v2) { /* V2's own code does either: weights of more than one expert are normalised, or all are scaled */
        if (out->num_experts_per_tok == 1) out->norm_topk_prob = false;
        if (out->norm_topk_prob) out->routed_scaling_factor = 1;
    }
    if (reader->status == BT_OK) check_moe(reader, out);
    if (reader->status == BT_OK && (uint64_t)out->n_shared_experts * out->moe_intermediate_size > 1 << 20) {
        reader->status = bt_fail(reader->err, BT_BAD_REQUEST,
                                 "%s: n_shared_experts times moe_intermediate_size exceeds %d", reader->file, 1 << 20);
    }
}

/* Three spellings: rope_scaling with "type" or "rope_type", and transformers 5's rope_parameters that holds all of it.
 */
static void read_rope(field_reader *reader, mdl_config *out) {
    static const char *const types[] = {"yarn", "default", "none", NULL};
    const char *place = find(reader, "rope_parameters") != NULL ? "rope_parameters" : "rope_scaling";
    const cJSON *object = find(reader, place);
    if (reader->status != BT_OK || object == NULL) return;
    if (!cJSON_IsObject(object)) {
        reader->status = bt_fail(reader->err, BT_BAD_REQUEST, "%s: %s is not an object", reader->file, place);
        return;
    }
    field_reader scaling = {reader->file, object, BT_OK, reader->err};
    out->rope_theta = read_number(&scaling, "rope_theta", 1.001, 1e12, out->rope_theta);
    int type = read_choice(&scaling, "rope_type", types, read_choice(&scaling, "type", types, 1));
    if (type == 0) {
        mdl_yarn *yarn = &out->yarn;
        yarn->is_enabled = true;
        yarn->factor = read_number(&scaling, "factor", 1, 1e6, 0);
        yarn->beta_fast = read_number(&scaling, "beta_fast", 1e-3, 1e6, 32);
        yarn->beta_slow = read_number(&scaling, "beta_slow", 1e-3, 1e6, 1);
        yarn->has_mscale = find(&scaling, "mscale") != NULL || find(&scaling, "mscale_all_dim") != NULL;
        yarn->mscale = read_number(&scaling, "mscale", 0, 100, 1);
        yarn->mscale_all_dim = read_number(&scaling, "mscale_all_dim", 0, 100, 0);
        yarn->attention_factor = read_number(&scaling, "attention_factor", 1e-3, 1e3, 0);
        yarn->original_max_position_embeddings =
            read_uint(&scaling, "original_max_position_embeddings", 1, 1 << 24, out->max_position_embeddings);
        if (scaling.status == BT_OK && yarn->factor == 0) {
            scaling.status = bt_fail(reader->err, BT_BAD_REQUEST, "%s: %s has no factor", reader->file, place);
        }
    }
    reader->status = scaling.status;
}

static void read_quantization(field_reader *reader, mdl_config *out) {
    const cJSON *object = find(reader, "quantization_config");
    if (reader->status != BT_OK || object == NULL) return;
    const cJSON *method = cJSON_GetObjectItemCaseSensitive(object, "quant_method");
    const cJSON *format = cJSON_GetObjectItemCaseSensitive(object, "fmt");
    const cJSON *block = cJSON_GetObjectItemCaseSensitive(object, "weight_block_size");
    const cJSON *rows = cJSON_GetArrayItem(block, 0), *cols = cJSON_GetArrayItem(block, 1);
    if (!cJSON_IsString(method) || strcmp(method->valuestring, "fp8") != 0) {
        reader->status = bt_fail(reader->err, BT_BAD_REQUEST,
                                 "%s: quantization_config.quant_method is \"%.60s\", only \"fp8\" is supported",
                                 reader->file, cJSON_IsString(method) ? method->valuestring : "not given");
    } else if (format != NULL && (!cJSON_IsString(format) || strcmp(format->valuestring, "e4m3") != 0)) {
        reader->status =
            bt_fail(reader->err, BT_BAD_REQUEST, "%s: quantization_config.fmt is \"%.60s\", expected \"e4m3\"",
                    reader->file, cJSON_IsString(format) ? format->valuestring : "not a text");
    } else if (cJSON_GetArraySize(block) != 2 || !mdl_json_is_uint(rows, 1 << 16) || !mdl_json_is_uint(cols, 1 << 16) ||
               rows->valuedouble < 1 || cols->valuedouble < 1) {
        reader->status = bt_fail(
            reader->err, BT_BAD_REQUEST,
            "%s: quantization_config.weight_block_size is not a list of two sizes, such as [128, 128]", reader->file);
    } else {
        out->fp8_block_rows = (uint32_t)rows->valuedouble;
        out->fp8_block_cols = (uint32_t)cols->valuedouble;
    }
}

/* One id or a list of them. Absent: what was read before stays. */
static void read_eos(field_reader *reader, mdl_config *out) {
    enum { CAP = sizeof(out->eos_token_ids) / sizeof(out->eos_token_ids[0]) };
    const cJSON *item = find(reader, "eos_token_id");
    if (reader->status != BT_OK || item == NULL) return;
    int n_ids = cJSON_IsArray(item) ? cJSON_GetArraySize(item) : 1;
    if (n_ids > CAP) {
        reader->status =
            bt_fail(reader->err, BT_BAD_REQUEST, "%s: eos_token_id lists %d ids, limit %d", reader->file, n_ids, CAP);
        return;
    }
    const cJSON *id = cJSON_IsArray(item) ? item->child : item;
    for (int i = 0; i < n_ids; i++, id = id->next) {
        if (!mdl_json_is_uint(id, out->vocab_size - 1)) {
            reader->status =
                bt_fail(reader->err, BT_BAD_REQUEST, "%s: eos_token_id is not a token id below vocab_size, %u",
                        reader->file, out->vocab_size);
            return;
        }
        out->eos_token_ids[i] = (uint32_t)id->valuedouble;
    }
    out->n_eos_token_ids = (uint32_t)n_ids;
}

static void read_tokens(field_reader *reader, mdl_config *out) {
    out->bos_token_id = read_uint(reader, "bos_token_id", 0, out->vocab_size - 1, out->bos_token_id);
    read_eos(reader, out);
}

static void read_generation(field_reader *reader, mdl_config *out) {
    read_tokens(reader, out);
    out->default_temperature = (float)read_number(reader, "temperature", 0, 100, 1);
    out->default_top_p = (float)read_number(reader, "top_p", 1e-9, 1, 1);
    const cJSON *top_k = find(reader, "top_k");
    bool is_off = cJSON_IsNumber(top_k) && top_k->valuedouble == -1; /* vLLM's other spelling of 0 */
    if (!is_off) out->default_top_k = read_uint(reader, "top_k", 0, INT32_MAX, 0);
}

/* *is_there is false and the status BT_OK if there is no such file. */
static bt_status read_object(const char *dir, const char *name, bool *is_there, cJSON **out, bt_error *err) {
    bt_buf path = {0}, text = {0};
    bt_buf_printf(&path, "%s/%s", dir, name);
    bt_status status = BT_OK;
    *is_there = access(bt_buf_text(&path), F_OK) == 0;
    if (*is_there) status = mdl_file_read(bt_buf_text(&path), MAX_CONFIG_BYTES, &text, err);
    if (*is_there && status == BT_OK) status = mdl_json_parse(bt_buf_text(&path), text.bytes, text.n_bytes, out, err);
    bt_buf_fini(&path);
    bt_buf_fini(&text);
    return status;
}

bt_status mdl_config_load(const char *dir, mdl_config *out, bt_error *err) {
    mdl_config config = {.bos_token_id = UINT32_MAX, .default_temperature = 1, .default_top_p = 1};
    cJSON *model = NULL, *generation = NULL;
    bool is_there = false;
    bt_status status = read_object(dir, "config.json", &is_there, &model, err);
    if (status == BT_OK && !is_there) status = bt_fail(err, BT_BAD_REQUEST, "%s: there is no config.json", dir);
    if (status != BT_OK) goto done;

    field_reader reader = {"config.json", model, BT_OK, err};
    bool is_v2 = read_family(&reader);
    read_shape(&reader, is_v2, &config);
    refuse_unsupported(&reader);
    read_moe(&reader, is_v2, &config);
    read_rope(&reader, &config);
    read_quantization(&reader, &config);
    read_tokens(&reader, &config);
    status = reader.status;
    if (status != BT_OK) goto done;

    status = read_object(dir, "generation_config.json", &is_there, &generation, err);
    if (status != BT_OK || !is_there) goto done;
    field_reader second = {"generation_config.json", generation, BT_OK, err};
    read_generation(&second, &config);
    status = second.status;
done:
    cJSON_Delete(model);
    cJSON_Delete(generation);
    if (status == BT_OK) *out = config;
    return status;
}
