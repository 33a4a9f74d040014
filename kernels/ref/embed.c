/* Token ids to rows of the embedding table. */
#include "kernels/ref/ref.h"

void ref_embed(krn_backend *backend, const krn_matrix *table, const uint32_t *ids, uint32_t n_rows, float *out) {
    (void)backend;
    for (uint32_t row = 0; row < n_rows; row++) ref_matrix_row(table, ids[row], out + (size_t)row * table->n_in);
}
