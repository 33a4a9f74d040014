/* Backend `sim`: a model without weights, for tests of routing and scale on any machine. Steps take the time that they
 * are told to take, without computing; tokens follow from what the KV cache holds.
 *
 * It is honest about the rest. Each row reads the cache, at the position before it and at one that its own content
 * chooses, mixes what it finds with its token, its position and its form, and stores the result: so a token depends on
 * all tokens before it, on nothing else, and a block that was lost, mixed up or computed in the other form gives other
 * text. The one-order rule holds as for any backend: batch, chunks, caches, route and replay change no token.
 *
 * A cell of the cache is 8 bytes in each of KRN_SIM_LAYERS layers, whatever the model: transfers, checksums and caches
 * do their real work on few bytes. */
#ifndef BATON_KERNELS_SIM_H
#define BATON_KERNELS_SIM_H

#include "kernels/backend.h"
#include "kernels/draw.h"

/* A step's time is split evenly over the layers; between them the worker answers its peers. */
enum { KRN_SIM_LAYERS = 4, KRN_SIM_WIDTH = 4 }; /* width in elements of bfloat16 */

/* A step takes step_us + prefill_us_per_token for each row of a prompt + row_us for each other row. */
typedef struct {
    uint32_t step_us, prefill_us_per_token, row_us;
    uint32_t output_tokens; /* until end-of-sequence: n on average, 1 to 2n - 1 by the prompt; 0: it never comes */
} krn_sim_options;

typedef struct krn_sim krn_sim; /* one thread */

/* Reads the tokenizer of `dir` alone. `config` is borrowed; a step has at most max_logits rows of logits.
 * BT_BAD_REQUEST: no tokenizer, none of its tokens is printable, or an option is out of range. */
bt_status krn_sim_open(const char *dir, const mdl_config *config, const krn_sim_options *options, uint32_t max_logits,
                       krn_sim **out, bt_error *err);
void krn_sim_close(krn_sim *sim);

/* Name, isa and type of KV; it has no operations. */
const krn_backend *krn_sim_backend(const krn_sim *sim);

/* Of all that tokens depend on: workers with the same value say the same. */
uint64_t krn_sim_hash(const krn_sim *sim);

/* A step: the rows go into the cache, their logits are kept for the two calls below. Sleeps for what is left of the
 * step's time, a part before each on_layer (NULL: none). The caller has checked the sequences. */
void krn_sim_forward(krn_sim *sim, krn_kv kv, const krn_sequence *sequences, uint32_t n_sequences,
                     krn_layer_done on_layer, void *context);

/* Row `row` of the last step's logits [vocab_size]. A few printable tokens have all of the mass; where the output is to
 * end, end-of-sequence is above them, and behind a <think> of the prompt's sooner or later </think>. */
void krn_sim_logits(const krn_sim *sim, uint32_t row, float *logits);

/* krn_draw() from these few, which spares the vocabulary. false: all of the row is needed, for a constraint, a
 * penalty or logprobs, or because all of the few are banned. */
bool krn_sim_draw(const krn_sim *sim, uint32_t row, const krn_draw_args *args, uint32_t *token);

#endif
