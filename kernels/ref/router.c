/* Router logits, in float32 like everything here, and what they choose. */
#include "kernels/ref/ref.h"
#include "kernels/route.h"

void ref_router(krn_backend *backend, const krn_router_args *args) {
    const mdl_config *config = ((ref_backend *)backend)->config;
    size_t n_experts = config->n_routed_experts, n_chosen = config->num_experts_per_tok;
    ref_linear(backend, args->w, args->x, args->n_rows, args->logits, false);
    for (uint32_t row = 0; row < args->n_rows; row++) {
        krn_route(config, args->logits + row * n_experts, args->bias, args->experts + row * n_chosen,
                  args->weights + row * n_chosen);
    }
}
