/* Serves claims twice: the shortest first, out of half of everything; then all in order of age, out of the rest. */
#include "worker/wrk_rows.h"

#include <stddef.h>

typedef struct {
    uint32_t n_rows, n_places; /* still to be had */
} room;

static void serve(wrk_claim *claim, room *of) {
    bool is_new = claim->n_rows == 0;
    uint32_t n = claim->n_left - claim->n_rows;
    if (n > of->n_rows) n = of->n_rows;
    if (claim->is_scored && n > of->n_places) n = of->n_places;
    if (n == 0 || (is_new && of->n_places == 0)) return;
    claim->n_rows += n;
    of->n_rows -= n;
    of->n_places -= claim->is_scored ? n : is_new;
}

/* Of those without a row yet; NULL: there is none. */
static wrk_claim *find_shortest(wrk_claim *claims, uint32_t n_claims) {
    wrk_claim *best = NULL;
    for (uint32_t i = 0; i < n_claims; i++)
        if (claims[i].n_rows == 0 && (best == NULL || claims[i].n_left < best->n_left)) best = &claims[i];
    return best;
}

void wrk_rows_share(wrk_claim *claims, uint32_t n_claims, uint32_t n_rows, uint32_t n_places) {
    const room half = {wrk_rows_half(n_rows), wrk_rows_half(n_places)};
    room left = half;
    for (wrk_claim *claim; left.n_rows > 0 && left.n_places > 0; serve(claim, &left))
        if ((claim = find_shortest(claims, n_claims)) == NULL) break;
    left.n_rows += n_rows - half.n_rows;
    left.n_places += n_places - half.n_places;
    for (uint32_t i = 0; i < n_claims && left.n_rows > 0; i++) serve(&claims[i], &left);
}
