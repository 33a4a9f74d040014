/* Binding tensors: every kind of checkpoint that is accepted, and what each refusal says. Number formats and routing,
 * the other small deciding parts, have their known answers here too. */
#include "kernels/weights.h"

#include "common/core/test.h"
#include "kernels/route.h"
#include "kernels/test_model.h"

static char dir[TEST_PATH_BYTES];

static bt_status open_weights(const test_model *model, mdl_config *config, mdl_checkpoint **checkpoint,
                              krn_weights **weights, bt_error *err) {
    *err = (bt_error){0};
    *checkpoint = NULL;
    *weights = NULL;
    test_model_write(dir, model);
    bt_status status = mdl_config_load(dir, config, err);
    if (status == BT_OK) status = mdl_checkpoint_open(dir, checkpoint, err);
    if (status == BT_OK) status = krn_weights_open(*checkpoint, config, NULL, 0, weights, err);
    return status;
}

static void test_accepted(void) {
    static const test_model models[] = {
        {TEST_CONFIG_V3 "}", "BF16", "", "F32", NULL, NULL, NULL, true, false},
        {TEST_CONFIG_V3 "}", "F16", "", "BF16", NULL, NULL, NULL, false, true},
        {TEST_CONFIG_V3 TEST_FP8(32, 16) "}", "F8_E4M3", "F32", "F32", NULL, NULL, NULL, true, true},
        {TEST_CONFIG_V3 TEST_FP8(7, 128) "}", "F8_E4M3", "F8_E8M0", "F32", NULL, NULL, NULL, false, false},
        {TEST_CONFIG_V3 TEST_FP8(16, 16) "}", "BF16", "", "F32", NULL, NULL, NULL, false, false}, /* not quantised */
        {TEST_CONFIG_V2 ",\"tie_word_embeddings\":true}", "F32", "", "", NULL, NULL, NULL, false, false},
    };
    for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++) {
        mdl_config c;
        mdl_checkpoint *checkpoint;
        krn_weights *w;
        bt_error err;
        bt_status status = open_weights(&models[i], &c, &checkpoint, &w, &err);
        CHECK(status == BT_OK, "model %zu: %s", i, err.text);
        if (status == BT_OK) {
            CHECK(w->active_bytes > 0 && w->active_bytes < mdl_checkpoint_bytes(checkpoint), "model %zu: active", i);
            CHECK((w->lm_head.data == w->embed.data) == c.tie_word_embeddings, "model %zu: tied", i);
            CHECK(w->layers[1].is_moe &&
                      w->layers[1].experts[c.n_routed_experts - 1].down.n_in == c.moe_intermediate_size,
                  "model %zu: experts", i);
            CHECK((w->layers[1].router_bias != NULL) == (c.topk_method == MDL_TOPK_NOAUX), "model %zu: bias", i);
        }
        krn_weights_close(w);
        mdl_checkpoint_close(checkpoint);
    }
}

static void test_refused(void) {
#define UP "model.layers.2.mlp.experts.11.up_proj.weight"
    static const struct {
        test_model model;
        const char *sentence;
    } rows[] = {
        {{.config = TEST_CONFIG_V3 "}", .matrix_dtype = "BF16", .bias_dtype = "F32", .omit = UP},
         "no tensor " UP ", expected [26, 72]"},
        {{.config = TEST_CONFIG_V3 "}", .matrix_dtype = "BF16", .bias_dtype = "F32", .lengthen = UP},
         "model.safetensors: tensor " UP " has shape [27, 72], expected [26, 72]"},
        {{.config = TEST_CONFIG_V3 "}", .matrix_dtype = "BF16", .bias_dtype = "F32", .retype = UP},
         "is another type, expected BF16, F16, F32 or F8_E4M3"},
        {{.config = TEST_CONFIG_V3 "}", .matrix_dtype = "BF16", .bias_dtype = "F32", .retype = "model.norm.weight"},
         "model.norm.weight is another type, expected BF16, F16 or F32"},
        {{.config = TEST_CONFIG_V3 "}", .matrix_dtype = "BF16", .bias_dtype = "F32", .lengthen = "model.norm.weight"},
         "has shape [73], expected [72]"},
        {{.config = TEST_CONFIG_V3 "}", .matrix_dtype = "BF16", .bias_dtype = "F8_E4M3"},
         "e_score_correction_bias is F8_E4M3"},
        {{.config = TEST_CONFIG_V3 TEST_FP8(16, 16) "}",
          .matrix_dtype = "F8_E4M3",
          .scale_dtype = "F32",
          .bias_dtype = "F32",
          .omit = UP "_scale_inv"},
         "no tensor " UP "_scale_inv, expected [2, 5]"},
        {{.config = TEST_CONFIG_V3 TEST_FP8(16, 16) "}",
          .matrix_dtype = "F8_E4M3",
          .scale_dtype = "F32",
          .bias_dtype = "F32",
          .lengthen = UP "_scale_inv"},
         "has shape [3, 5], expected [2, 5]"},
        {{.config = TEST_CONFIG_V3 TEST_FP8(16, 16) "}",
          .matrix_dtype = "F8_E4M3",
          .scale_dtype = "F32",
          .bias_dtype = "F32",
          .retype = UP "_scale_inv"},
         "is another type, expected F32, BF16, F16 or F8_E8M0"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        mdl_config c;
        mdl_checkpoint *checkpoint;
        krn_weights *w;
        bt_error err;
        bt_status status = open_weights(&rows[i].model, &c, &checkpoint, &w, &err);
        CHECK(status == BT_BAD_REQUEST && strstr(err.text, rows[i].sentence) != NULL, "row %zu: \"%s\"", i, err.text);
        krn_weights_close(w);
        mdl_checkpoint_close(checkpoint);
    }
    /* FP8 tensors that config.json does not speak of */
    test_model model = {.config = TEST_CONFIG_V3 TEST_FP8(16, 16) "}",
                        .matrix_dtype = "F8_E4M3",
                        .scale_dtype = "F32",
                        .bias_dtype = "F32"};
    mdl_config c;
    mdl_checkpoint *checkpoint = NULL;
    krn_weights *w = NULL;
    bt_error err = {0};
    test_model_write(dir, &model);
    test_text_write(dir, "config.json", TEST_CONFIG_V3 "}");
    CHECK(mdl_config_load(dir, &c, &err) == BT_OK && mdl_checkpoint_open(dir, &checkpoint, &err) == BT_OK &&
              krn_weights_open(checkpoint, &c, NULL, 0, &w, &err) == BT_BAD_REQUEST &&
              strstr(err.text, "no quantization_config"),
          "%s", err.text);
    mdl_checkpoint_close(checkpoint);
}

static void test_number_formats(void) {
    static const struct {
        uint8_t bits;
        float value;
    } e4m3[] = {{0x00, 0}, {0x01, 0x1p-9f}, {0x07, .013671875f}, {0x08, .015625f},
                {0x38, 1}, {0x7e, 448},     {0xfe, -448}};
    for (size_t i = 0; i < sizeof(e4m3) / sizeof(e4m3[0]); i++) {
        CHECK(krn_float_from_e4m3(e4m3[i].bits) == e4m3[i].value, "e4m3 %02x", e4m3[i].bits);
    }
    CHECK(isnan(krn_float_from_e4m3(0x7f)) && isnan(krn_float_from_e4m3(0xff)), "e4m3 has NaN");
    CHECK(signbit(krn_float_from_e4m3(0x80)), "e4m3 has -0");
    for (unsigned bits = 0; bits < 256; bits++) { /* against the formula */
        int exponent = bits >> 3 & 15, fraction = bits & 7;
        double value = exponent == 0 ? ldexp(fraction, -9) : ldexp(1 + fraction / 8.0, exponent - 7);
        if ((bits & 0x7f) == 0x7f) continue;
        CHECK(krn_float_from_e4m3((uint8_t)bits) == (float)(bits & 0x80 ? -value : value), "e4m3 %02x", bits);
    }
    CHECK(krn_float_from_e8m0(127) == 1 && krn_float_from_e8m0(119) == 0x1p-8f && krn_float_from_e8m0(0) == 0x1p-127f,
          "e8m0");
    CHECK(isnan(krn_float_from_e8m0(255)), "e8m0 has NaN");
    CHECK(krn_float_from_f16(0x3c00) == 1 && krn_float_from_f16(0xc000) == -2 && krn_float_from_f16(1) == 0x1p-24f &&
              krn_float_from_f16(0x7bff) == 65504 && isinf(krn_float_from_f16(0x7c00)) &&
              isnan(krn_float_from_f16(0x7e00)),
          "f16");
    CHECK(krn_bf16_from_float(1.00390625f) == 0x3f80 && krn_bf16_from_float(1.01171875f) == 0x3f82, "ties go to even");
    CHECK(isnan(krn_float_from_bf16(krn_bf16_from_float(krn_float_from_bits(0x7f800001)))), "NaN stays NaN in bf16");
}

static void test_routing(void) {
    static const float logits[16] = {.2f, -1, 1.5f, .3f, 2, -.5f, .1f, .9f, -2, .4f, 1.2f, 1.1f, 0, .7f, -.3f, .6f};
    static const float bias[16] = {0, .1f, -.6f, 0, -.5f, .05f, .2f, 0, .3f, 0, -.1f, 0, .25f, -.2f, 0, .1f};
    static const uint32_t grouped[4] = {12, 15, 6, 7}, free_choice[4] = {11, 12, 15, 6};
    static const float weights[4] = {0.524861f, 0.677759f, 0.551082f, 0.746299f};
    mdl_config c = {.n_routed_experts = 16,
                    .num_experts_per_tok = 4,
                    .n_group = 4,
                    .topk_group = 2,
                    .scoring_func = MDL_SIGMOID,
                    .topk_method = MDL_TOPK_NOAUX,
                    .norm_topk_prob = true,
                    .routed_scaling_factor = 2.5f};
    uint32_t experts[4];
    float found[4];
    krn_route(&c, logits, bias, experts, found);
    for (int k = 0; k < 4; k++) {
        CHECK(experts[k] == grouped[k] && fabsf(found[k] - weights[k]) < 2e-6f, "pick %d: %u, %f", k, experts[k],
              found[k]);
    }
    c.n_group = c.topk_group = 1;
    krn_route(&c, logits, bias, experts, found);
    for (int k = 0; k < 4; k++) CHECK(experts[k] == free_choice[k], "without groups, pick %d: %u", k, experts[k]);

    static const float equal[16], negative_bias[16] = {-9, -9, -9, -9, -9, -9, -9, -9, -9, -9, -9, -9, -9, -9, -9, -9};
    krn_route(&c, equal, NULL, experts, found);
    for (uint32_t k = 0; k < 4; k++) CHECK(experts[k] == k, "ties go to the lower number: %u", experts[k]);
    c.n_group = 4, c.topk_group = 1;
    krn_route(&c, logits, negative_bias, experts, found); /* a mask of 0 would prefer the dropped groups */
    for (int k = 0; k < 4; k++) CHECK(experts[k] / 4 == experts[0] / 4, "one group is kept: %u", experts[k]);
    float broken[16];
    for (int e = 0; e < 16; e++) broken[e] = NAN;
    krn_route(&c, broken, bias, experts, found);
    for (int k = 0; k < 4; k++) {
        for (int j = 0; j < k; j++)
            CHECK(experts[k] < 16 && experts[k] != experts[j], "NaN still gives distinct experts");
    }
    c.scoring_func = MDL_SOFTMAX, c.topk_method = MDL_TOPK_GREEDY, c.norm_topk_prob = false,
    c.routed_scaling_factor = 1;
    c.n_group = 1;
    krn_route(&c, logits, NULL, experts, found);
    double sum = 0;
    for (int e = 0; e < 16; e++) sum += exp(logits[e]);
    CHECK(experts[0] == 4 && fabs(found[0] - exp(2) / sum) < 1e-6, "softmax: %u %f", experts[0], found[0]);
    c.topk_method = MDL_TOPK_GROUP_MAX, c.n_group = 4, c.topk_group = 1;
    krn_route(&c, logits, NULL, experts, found);
    CHECK(experts[0] == 4 && experts[1] == 7 && experts[2] == 6 && experts[3] == 5, "the group of the largest score");
}

static void test_pairs(void) {
    mdl_config c = {.n_routed_experts = 5, .num_experts_per_tok = 2};
    static const uint32_t experts[8] = {4, 1, 0, 4, 1, 0, 4, 3};
    static const float weights[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    static const krn_pair expected[8] = {{1, 0, 3}, {2, 0, 6}, {0, 1, 2}, {2, 1, 5},
                                         {3, 3, 8}, {0, 4, 1}, {1, 4, 4}, {3, 4, 7}};
    uint32_t scratch[5];
    krn_pair pairs[8];
    krn_route_pairs(&c, experts, weights, 4, scratch, pairs);
    for (int i = 0; i < 8; i++) {
        CHECK(pairs[i].row == expected[i].row && pairs[i].expert == expected[i].expert &&
                  pairs[i].weight == expected[i].weight,
              "pair %d: row %u expert %u", i, pairs[i].row, pairs[i].expert);
    }
}

int main(void) {
    test_dir_make(dir);
    test_accepted();
    test_refused();
    test_dir_remove(dir);
    test_number_formats();
    test_routing();
    test_pairs();
    TEST_END();
}
