/* Which experts a row visits, and with what weight: plain C shared by all backends, so that a choice depends on the
 * router's float32 logits alone. DeepSeek-V3 technical report (arXiv 2412.19437) §2.1.2; V2: arXiv 2405.04434 §2.2.2.
 */
#ifndef BATON_KERNELS_ROUTE_H
#define BATON_KERNELS_ROUTE_H

#include "common/model/config.h"
#include "kernels/backend.h"

/* One row. logits [n_routed_experts]; bias [n_routed_experts], added to the scores for the choice only, or NULL.
 * experts, weights [num_experts_per_tok], best first; experts are distinct and below n_routed_experts whatever the
 * logits hold: ties go to the lower number, NaN comes last. Experts of groups that are not kept count as -infinity. */
void krn_route(const mdl_config *config, const float *logits, const float *bias, uint32_t *experts, float *weights);

/* Groups n_rows rows of krn_route() results into pairs: experts ascending, rows ascending within an expert.
 * first_pair [n_routed_experts] is scratch; pairs [n_rows * num_experts_per_tok]. */
void krn_route_pairs(const mdl_config *config, const uint32_t *experts, const float *weights, uint32_t n_rows,
                     uint32_t *first_pair, krn_pair *pairs);

#endif
