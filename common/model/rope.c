/* Rotary frequencies with YaRN (arXiv 2309.00071 §3.2-3.4) as DeepSeek's inference/model.py computes them
 * (precompute_freqs_cis, MLA.softmax_scale), and the two factors that YaRN puts on cos/sin and on the scores. */
#include <math.h>

#include "common/model/config.h"

/* The pair (as a real number) whose wave turns `n_turns` times within the original context. */
static double correction_dim(const mdl_config *config, double n_turns) {
    double original = config->yarn.original_max_position_embeddings;
    return config->qk_rope_head_dim * log(original / (n_turns * 2 * M_PI)) / (2 * log(config->rope_theta));
}

void mdl_rope_frequencies(const mdl_config *config, float *inv_freq) {
    const mdl_yarn *yarn = &config->yarn;
    uint32_t dim = config->qk_rope_head_dim;
    double low = 0, high = 0;
    if (yarn->is_enabled) {
        low = fmax(floor(correction_dim(config, yarn->beta_fast)), 0);
        high = fmin(ceil(correction_dim(config, yarn->beta_slow)), dim - 1); /* dim, not dim / 2: as published */
        if (low == high) high += 0.001;
    }
    for (uint32_t i = 0; i < dim / 2; i++) {
        double frequency = pow(config->rope_theta, -2.0 * i / dim);
        if (yarn->is_enabled) {
            double ramp = fmin(fmax((i - low) / (high - low), 0), 1); /* 0: fast, untouched; 1: slow, stretched */
            frequency = frequency / yarn->factor * ramp + frequency * (1 - ramp);
        }
        inv_freq[i] = (float)frequency;
    }
}

static double yarn_mscale(double factor, double mscale) { return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1; }

float mdl_rope_multiplier(const mdl_config *config) {
    const mdl_yarn *yarn = &config->yarn;
    if (!yarn->is_enabled) return 1;
    if (yarn->attention_factor > 0) return (float)yarn->attention_factor;
    return (float)(yarn_mscale(yarn->factor, yarn->mscale) / yarn_mscale(yarn->factor, yarn->mscale_all_dim));
}

float mdl_softmax_scale(const mdl_config *config) {
    double scale = 1 / sqrt((double)config->qk_nope_head_dim + config->qk_rope_head_dim);
    if (config->yarn.is_enabled && config->yarn.mscale_all_dim > 0) {
        double mscale = yarn_mscale(config->yarn.factor, config->yarn.mscale_all_dim);
        scale *= mscale * mscale;
    }
    return (float)scale;
}
