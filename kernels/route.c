/* The router behind its logits. Decides; computes nothing else. Sizes are small (at most 4096 experts), so choosing is
 * a scan per pick and everything lives on the stack. */
#include "kernels/route.h"

#include <math.h>
#include <string.h>

/* The index of the largest value that is not taken; the lower one of equals. */
static uint32_t pick_best(const float *values, const bool *is_taken, uint32_t n) {
    uint32_t best = UINT32_MAX;
    for (uint32_t i = 0; i < n; i++) {
        if (!is_taken[i] && (best == UINT32_MAX || values[i] > values[best])) best = i;
    }
    return best;
}

static void score(const mdl_config *config, const float *logits, float *scores) {
    uint32_t n = config->n_routed_experts;
    if (config->scoring_func == MDL_SIGMOID) {
        for (uint32_t i = 0; i < n; i++) scores[i] = 1 / (1 + expf(-logits[i]));
        return;
    }
    float max = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < n; i++) max = fmaxf(max, logits[i]);
    for (uint32_t i = 0; i < n; i++) sum += scores[i] = expf(logits[i] - max);
    for (uint32_t i = 0; i < n; i++) scores[i] /= sum;
}

static float group_score(mdl_topk method, const float *choice, uint32_t n) {
    float best = -INFINITY, second = -INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        if (choice[i] > best) {
            second = best;
            best = choice[i];
        } else if (choice[i] > second) {
            second = choice[i];
        }
    }
    return method == MDL_TOPK_NOAUX ? best + second : best;
}

/* -infinity into the choice scores of all groups but the best topk_group. */
static void mask_groups(const mdl_config *config, float *choice) {
    uint32_t n_group = config->n_group, group_size = config->n_routed_experts / n_group;
    float group_scores[MDL_MAX_EXPERTS];
    bool is_kept[MDL_MAX_EXPERTS] = {false};
    for (uint32_t g = 0; g < n_group; g++) {
        group_scores[g] = group_score(config->topk_method, choice + (size_t)g * group_size, group_size);
    }
    for (uint32_t i = 0; i < config->topk_group; i++) is_kept[pick_best(group_scores, is_kept, n_group)] = true;
    for (uint32_t e = 0; e < config->n_routed_experts; e++) {
        if (!is_kept[e / group_size]) choice[e] = -INFINITY;
    }
}

void krn_route(const mdl_config *config, const float *logits, const float *bias, uint32_t *experts, float *weights) {
    float scores[MDL_MAX_EXPERTS], choice[MDL_MAX_EXPERTS];
    bool is_taken[MDL_MAX_EXPERTS];
    uint32_t n = config->n_routed_experts, n_chosen = config->num_experts_per_tok;
    score(config, logits, scores);
    for (uint32_t e = 0; e < n; e++) {
        choice[e] = bias != NULL ? scores[e] + bias[e] : scores[e];
        if (isnan(choice[e])) choice[e] = -INFINITY;
    }
    if (config->topk_method != MDL_TOPK_GREEDY && config->n_group > 1) mask_groups(config, choice);

    memset(is_taken, 0, n * sizeof(*is_taken));
    float sum = 0;
    for (uint32_t k = 0; k < n_chosen; k++) {
        experts[k] = pick_best(choice, is_taken, n);
        is_taken[experts[k]] = true;
        weights[k] = scores[experts[k]]; /* without the bias */
        sum += weights[k];
    }
    float factor = config->routed_scaling_factor;
    for (uint32_t k = 0; k < n_chosen; k++) {
        weights[k] = (config->norm_topk_prob ? weights[k] / (sum + 1e-20f) : weights[k]) * factor;
    }
}

void krn_route_pairs(const mdl_config *config, const uint32_t *experts, const float *weights, uint32_t n_rows,
                     uint32_t *first_pair, krn_pair *pairs) {
    uint32_t per_row = config->num_experts_per_tok, n_pairs = n_rows * per_row, sum = 0;
    memset(first_pair, 0, config->n_routed_experts * sizeof(*first_pair));
    for (uint32_t i = 0; i < n_pairs; i++) first_pair[experts[i]]++;
    for (uint32_t e = 0; e < config->n_routed_experts; e++) {
        uint32_t n = first_pair[e];
        first_pair[e] = sum;
        sum += n;
    }
    for (uint32_t i = 0; i < n_pairs; i++) {
        pairs[first_pair[experts[i]]++] = (krn_pair){.row = i / per_row, .expert = experts[i], .weight = weights[i]};
    }
}
