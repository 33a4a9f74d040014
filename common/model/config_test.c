/* config.json of the published checkpoints, the traps in reading it, and the rotary vectors that follow from it.
 * Numbers: DeepSeek's inference/model.py evaluated for the published configurations. */
#include "common/model/config.h"

#include <math.h>

#include "common/core/test.h"
#include "common/model/test_files.h"

static char dir[TEST_PATH_BYTES];

#define SHAPE                                                                                                          \
    "\"vocab_size\":129280,\"hidden_size\":7168,\"intermediate_size\":18432,\"moe_intermediate_size\":2048,"           \
    "\"num_hidden_layers\":61,\"num_attention_heads\":128,\"kv_lora_rank\":512,\"qk_nope_head_dim\":128,"              \
    "\"qk_rope_head_dim\":64,\"v_head_dim\":128,\"max_position_embeddings\":163840"
#define MOE ",\"n_routed_experts\":256,\"num_experts_per_tok\":8,\"n_shared_experts\":1,\"n_group\":8,\"topk_group\":4"
#define V3  "{\"architectures\":[\"DeepseekV3ForCausalLM\"],\"model_type\":\"deepseek_v3\"," SHAPE MOE
#define V2  "{\"architectures\":[\"DeepseekV2ForCausalLM\"],\"model_type\":\"deepseek_v2\"," SHAPE
#define YARN(rest)                                                                                                     \
    ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":40,\"original_max_position_embeddings\":4096" rest "}"

static bt_status load(const char *json, const char *generation, mdl_config *out, bt_error *err) {
    *err = (bt_error){0};
    test_dir_clear(dir);
    test_text_write(dir, "config.json", json);
    if (generation != NULL) test_text_write(dir, "generation_config.json", generation);
    return mdl_config_load(dir, out, err);
}

static void test_v3(void) {
    mdl_config c;
    bt_error err;
    bt_status status =
        load(V3 ",\"q_lora_rank\":1536,\"first_k_dense_replace\":3,\"rope_theta\":10000,"
                "\"quantization_config\":{\"activation_scheme\":\"dynamic\",\"fmt\":\"e4m3\",\"quant_method\":"
                "\"fp8\",\"weight_block_size\":[128,128],\"scale_fmt\":\"ue8m0\"},\"bos_token_id\":0,"
                "\"eos_token_id\":1,\"ep_size\":1,\"head_dim\":64" YARN(",\"mscale\":1.0,\"mscale_all_dim\":1.0") "}",
             "{\"eos_token_id\":[1,5],\"temperature\":0.6,\"top_p\":0.95,\"do_sample\":true}", &c, &err);
    CHECK(status == BT_OK, "%s", err.text);
    if (status != BT_OK) return;
    CHECK(c.scoring_func == MDL_SIGMOID && c.topk_method == MDL_TOPK_NOAUX && c.norm_topk_prob, "the family's meaning");
    CHECK(c.routed_scaling_factor == 2.5f && c.n_group == 8 && c.topk_group == 4, "routing");
    CHECK(c.fp8_block_rows == 128 && c.fp8_block_cols == 128, "blocks");
    CHECK(mdl_kv_width(&c) == 576, "width");
    CHECK(!mdl_layer_is_moe(&c, 2) && mdl_layer_is_moe(&c, 3), "dense layers");
    CHECK(c.n_eos_token_ids == 2 && c.eos_token_ids[1] == 5, "generation_config.json's list wins");
    CHECK(c.default_temperature == 0.6f && c.default_top_p == 0.95f && c.default_top_k == 0, "sampling defaults");
    CHECK(fabsf(mdl_softmax_scale(&c) - 0.13523378f) < 1e-7f, "scale %.8f", mdl_softmax_scale(&c));
    CHECK(mdl_rope_multiplier(&c) == 1, "multiplier");
}

static void test_families(void) {
    mdl_config c;
    bt_error err;
    CHECK(load(V2 ",\"q_lora_rank\":null,\"n_routed_experts\":64,\"num_experts_per_tok\":6,\"n_group\":null}", NULL, &c,
               &err) == BT_OK,
          "%s", err.text);
    CHECK(c.scoring_func == MDL_SOFTMAX && c.topk_method == MDL_TOPK_GREEDY && !c.norm_topk_prob && c.n_group == 1 &&
              c.q_lora_rank == 0 && c.routed_scaling_factor == 1 && c.n_shared_experts == 0 && !c.yarn.is_enabled &&
              c.bos_token_id == UINT32_MAX && c.n_eos_token_ids == 0 && c.default_temperature == 1,
          "V2-Lite's absent fields");
    CHECK(load(V2 ",\"n_routed_experts\":160,\"num_experts_per_tok\":6,\"n_group\":8,\"topk_group\":3,"
                  "\"topk_method\":\"group_limited_greedy\",\"routed_scaling_factor\":16}",
               NULL, &c, &err) == BT_OK &&
              c.topk_method == MDL_TOPK_GROUP_MAX && c.routed_scaling_factor == 16,
          "V2: %s", err.text);
    CHECK(
        load(V2
             ",\"n_routed_experts\":64,\"num_experts_per_tok\":6,\"norm_topk_prob\":true,\"routed_scaling_factor\":9}",
             NULL, &c, &err) == BT_OK &&
            c.routed_scaling_factor == 1,
        "V2 normalises or scales, not both: %s", err.text);
    CHECK(load(V2 "}", NULL, &c, &err) == BT_OK && c.n_routed_experts == 0 && !mdl_layer_is_moe(&c, 60),
          "a dense model: %s", err.text);
    CHECK(load("{\"architectures\":[\"DeepseekV3ForCausalLM\"],\"model_type\":\"kimi_k2\"," SHAPE
               ",\"n_routed_experts\":384,\"num_experts_per_tok\":8,\"eos_token_id\":[7]}",
               NULL, &c, &err) == BT_OK &&
              c.scoring_func == MDL_SIGMOID && c.n_group == 1 && c.eos_token_ids[0] == 7,
          "kimi_k2: %s", err.text);
    CHECK(load(V3 ",\"rope_parameters\":{\"rope_theta\":50000,\"rope_type\":\"yarn\",\"factor\":32,\"beta_fast\":1.0,"
                  "\"beta_slow\":1,\"original_max_position_embeddings\":4096,\"mscale\":1,\"mscale_all_dim\":1}}",
               NULL, &c, &err) == BT_OK &&
              c.rope_theta == 50000 && c.yarn.is_enabled && c.yarn.factor == 32,
          "transformers 5's spelling: %s", err.text);
    CHECK(load(V3 ",\"rope_scaling\":{\"rope_type\":\"default\"}}", NULL, &c, &err) == BT_OK && !c.yarn.is_enabled,
          "no scaling, spelled out: %s", err.text);
}

static void test_refusals(void) {
    static const struct {
        const char *json, *sentence;
    } rows[] = {
        {"{\"model_type\":\"llama\"}", "model_type is \"llama\""},
        {"{\"architectures\":[\"DeepseekV32ForCausalLM\"],\"model_type\":\"deepseek_v3\"," SHAPE "}",
         "DeepseekV32ForCausalLM"},
        {"{" SHAPE "}", "neither model_type nor architectures"},
        {"{\"model_type\":\"deepseek_v3\"}", "vocab_size is missing"},
        {V3 ",\"hidden_size\":7}x", "behind the JSON"},
        {V3 ",\"q_lora_rank\":-1}", "q_lora_rank is not a whole number"},
        {V3 ",\"q_lora_rank\":\"1536\"}", "q_lora_rank"},
        {V3 ",\"q_lora_rank\":1e30}", "q_lora_rank"},
        {V3 ",\"rms_norm_eps\":0}", "rms_norm_eps"},
        {V3 ",\"hidden_act\":\"gelu\"}", "hidden_act is \"gelu\""},
        {V3 ",\"attention_bias\":true}", "attention_bias"},
        {V3 ",\"rope_interleave\":false}", "rope_interleave"},
        {V3 ",\"num_key_value_heads\":8}", "num_key_value_heads is 8"},
        {V3 ",\"scoring_func\":\"tanh\"}", "scoring_func is \"tanh\""},
        {V3 ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}", "is \"linear\", which is not supported"},
        {V3 ",\"rope_scaling\":{\"type\":\"yarn\"}}", "has no factor"},
        {V3 ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":0.5}}", "factor is not a number"},
        {V3 ",\"rope_scaling\":7}", "rope_scaling is not an object"},
        {V3 ",\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4}}", "\"awq\", only \"fp8\""},
        {V3 ",\"quantization_config\":{\"quant_method\":\"fp8\"}}", "weight_block_size"},
        {V3 ",\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,0]}}", "weight_block_size"},
        {V3 ",\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e5m2\",\"weight_block_size\":[1,1]}}",
         "e5m2"},
        {V3 ",\"eos_token_id\":129280}", "eos_token_id"},
        {V3 ",\"eos_token_id\":[1,2,3,4,5,6,7,8,9]}", "eos_token_id lists 9 ids"},
        {V2 ",\"n_routed_experts\":4,\"num_experts_per_tok\":5}", "num_experts_per_tok exceeds"},
        {"{\"model_type\":\"deepseek_v3\"," SHAPE ",\"n_routed_experts\":10,\"num_experts_per_tok\":2,\"n_group\":4}",
         "does not divide"},
        {"{\"model_type\":\"deepseek_v3\"," SHAPE
         ",\"n_routed_experts\":16,\"num_experts_per_tok\":5,\"n_group\":4,\"topk_group\":1}",
         "fewer than num_experts_per_tok"},
        {"{\"model_type\":\"deepseek_v3\"," SHAPE
         ",\"n_routed_experts\":16,\"num_experts_per_tok\":1,\"n_group\":4,\"topk_group\":5}",
         "topk_group exceeds"},
        {"[1]", "not an object"},
        {"", "not valid JSON"},
    };
    mdl_config c = {.vocab_size = 77};
    bt_error err;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        bt_status status = load(rows[i].json, NULL, &c, &err);
        CHECK(status == BT_BAD_REQUEST && strstr(err.text, rows[i].sentence) != NULL &&
                  strstr(err.text, "config.json") != NULL,
              "row %zu, %s: \"%s\"", i, rows[i].sentence, err.text);
    }
    CHECK(load(V3 "}", "{\"top_p\":0}", &c, &err) == BT_BAD_REQUEST &&
              strstr(err.text, "generation_config.json: top_p"),
          "%s", err.text);
    CHECK(c.vocab_size == 77, "written on success only");
    test_dir_clear(dir);
    CHECK(mdl_config_load(dir, &c, &err) == BT_BAD_REQUEST && strstr(err.text, "no config.json"), "%s", err.text);
}

static void check_frequencies(const char *name, const mdl_config *config, const double *expected) {
    float found[32];
    mdl_rope_frequencies(config, found);
    for (int i = 0; i < 32; i++) {
        CHECK(fabs(found[i] - expected[i]) <= 2e-7 * expected[i] + 1e-14, "%s: f_%d is %.9g, expected %.9g", name, i,
              found[i], expected[i]);
    }
}

static void test_rope(void) {
    static const double r1[32] = {
        1,      .74989421,    .56234133,    .4216965,     .31622777,    .23713737,    .17782794,    .13335214,
        .1,     .074989421,   .056234133,   .039006927,   .02687936,    .018378146,   .012447956,   .008334509,
        .0055,  .0035619975,  .0022493653,  .0013705136,  7.9056942e-4, 4.149904e-4,  1.7782794e-4, 3.3338036e-5,
        2.5e-5, 1.8747355e-5, 1.4058533e-5, 1.0542413e-5, 7.9056942e-6, 5.9284343e-6, 4.4456985e-6, 3.3338036e-6};
    static const double k2[32] = {1,
                                  .71311108,
                                  .50852742,
                                  .36263654,
                                  .25860014,
                                  .18441062,
                                  .13150526,
                                  .093777859,
                                  .06687403,
                                  .047688612,
                                  .034007278,
                                  .024250967,
                                  .017293633,
                                  .012332282,
                                  .0087942868,
                                  .0062713034,
                                  .004472136,
                                  .0031891297,
                                  .0022742038,
                                  .0016217599,
                                  3.6140468e-5,
                                  2.5772168e-5,
                                  1.8378419e-5,
                                  1.3105854e-5,
                                  9.3459299e-6,
                                  6.6646862e-6,
                                  4.7526616e-6,
                                  3.3891757e-6,
                                  2.4168587e-6,
                                  1.7234888e-6,
                                  1.2290389e-6,
                                  8.7644129e-7};
    mdl_config c = {.qk_rope_head_dim = 64, .qk_nope_head_dim = 128, .rope_theta = 10000};
    c.yarn = (mdl_yarn){.is_enabled = true,
                        .factor = 40,
                        .beta_fast = 32,
                        .beta_slow = 1,
                        .mscale = 1,
                        .mscale_all_dim = 1,
                        .original_max_position_embeddings = 4096};
    check_frequencies("R1", &c, r1);
    c.yarn.mscale = c.yarn.mscale_all_dim = 0.707;
    CHECK(fabsf(mdl_softmax_scale(&c) - 0.11472139f) < 1e-7f, "V2-Lite: %.8f", mdl_softmax_scale(&c));
    c.yarn.mscale = 1, c.yarn.mscale_all_dim = 0; /* what absent fields become */
    CHECK(fabs(mdl_rope_multiplier(&c) - 1.3688879) < 1e-6, "multiplier %.8f", mdl_rope_multiplier(&c));
    CHECK(fabsf(mdl_softmax_scale(&c) - 0.07216878f) < 1e-7f, "without mscale_all_dim: %.8f", mdl_softmax_scale(&c));
    c.yarn.mscale_all_dim = 1, c.yarn.factor = 32, c.yarn.beta_fast = 1, c.rope_theta = 50000;
    check_frequencies("Kimi-K2", &c, k2);
    CHECK(fabsf(mdl_softmax_scale(&c) - 0.13086080f) < 1e-7f, "Kimi-K2: %.8f", mdl_softmax_scale(&c));
    c.yarn.factor = 64;
    CHECK(fabsf(mdl_softmax_scale(&c) - 0.14468f) < 1e-5f, "Kimi-K2-0905: %.8f", mdl_softmax_scale(&c));
    c.yarn.is_enabled = false;
    CHECK(fabsf(mdl_softmax_scale(&c) - 0.07216878f) < 1e-7f, "Moonlight: %.8f", mdl_softmax_scale(&c));
    CHECK(mdl_rope_multiplier(&c) == 1, "no scaling, no multiplier");
}

int main(void) {
    test_dir_make(dir);
    test_v3();
    test_families();
    test_refusals();
    test_rope();
    test_dir_remove(dir);
    TEST_END();
}
