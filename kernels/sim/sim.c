/* Cells instead of latents, hashes instead of sums, sleep instead of work.
 *
 * A layer's row reads its own cell of the layer below (the lowest: token, position and form) and two cells of its own
 * layer at earlier positions, and stores what they mix to. So the cache is the only state: nothing else outlives a
 * step, and logits come from the last layer's cell alone.
 *
 * Of a row's logits only a few differ from all others, so most draws need not see the vocabulary: with 129,280 tokens
 * that is the difference between one microsecond and hundreds. Requests that need all of a row get it, for draw.c.
 */
#include "kernels/sim/sim.h"

#include <errno.h>
#include <malloc.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <xxhash.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/text/tokenizer.h"
#include "kernels/sampler.h"

/* What the cache holds of a token in a layer. */
typedef struct {
    uint32_t state;
    uint32_t end : 31;        /* position at which the output is to end, NOWHERE: it is not */
    uint32_t is_thinking : 1; /* behind <think>, before </think> */
} cell;
enum { NOWHERE = INT32_MAX };
_Static_assert(sizeof(cell) == KRN_SIM_WIDTH * 2, "a cell is a row of the cache");

enum { N_PRINTED = 8, N_FEW = N_PRINTED + 2 }; /* and end-of-sequence, and </think> */

/* The tokens of a row that can be drawn, ids ascending. */
typedef struct {
    uint32_t n, ids[N_FEW];
    float logits[N_FEW];
} few;

struct krn_sim {
    krn_backend backend; /* without operations */
    krn_sim_options options;
    const mdl_config *config; /* borrowed */
    uint32_t *printable;      /* [n_printable] ids */
    uint32_t n_printable;
    uint32_t think, think_end; /* ids of <think> and </think>; UINT32_MAX: there are none */
    few *rows;                 /* [max_logits], of the last step */
    uint32_t max_logits;
    krn_sampler *sampler; /* of N_FEW tokens */
    bool has_sharp_timer;
};

/* ---- open ---- */

static bool is_printable(const tok_tokenizer *tokenizer, uint32_t id) {
    const uint8_t *bytes;
    size_t n_bytes;
    if (tok_is_added(tokenizer, id) || tok_token_bytes(tokenizer, id, &bytes, &n_bytes) != BT_OK) return false;
    for (size_t i = 0; i < n_bytes; i++)
        if (bytes[i] < ' ' || bytes[i] > '~') return false;
    return n_bytes > 0;
}

static bt_status tokens_find(krn_sim *sim, const char *dir, bt_error *err) {
    tok_tokenizer *tokenizer = NULL;
    bt_status status = tok_open(dir, &tokenizer, err);
    if (status != BT_OK) return status;
    uint32_t n = tok_vocab_size(tokenizer);
    if (n > sim->config->vocab_size) n = sim->config->vocab_size;
    sim->printable = bt_calloc(n, sizeof(uint32_t));
    for (uint32_t id = 0; id < n; id++)
        if (is_printable(tokenizer, id)) sim->printable[sim->n_printable++] = id;
    bool has_think = tok_find(tokenizer, "<think>", &sim->think) && sim->think < n &&
                     tok_find(tokenizer, "</think>", &sim->think_end) && sim->think_end < n;
    if (!has_think) sim->think = sim->think_end = UINT32_MAX;
    tok_close(tokenizer);
    malloc_trim(0); /* a tokenizer of 129,280 tokens leaves 50 MB behind */
    if (sim->n_printable > 0) return BT_OK;
    return bt_fail(err, BT_BAD_REQUEST, "%s/tokenizer.json: no token is printable", dir);
}

bt_status krn_sim_open(const char *dir, const mdl_config *config, const krn_sim_options *options, uint32_t max_logits,
                       krn_sim **out, bt_error *err) {
    enum { MAX_US = 10000000, MAX_OUTPUT = 1 << 24 };
    if (options->step_us > MAX_US || options->prefill_us_per_token > MAX_US || options->row_us > MAX_US)
        return bt_fail(err, BT_BAD_REQUEST, "a simulated time is above %d microseconds", MAX_US);
    if (options->output_tokens > MAX_OUTPUT)
        return bt_fail(err, BT_BAD_REQUEST, "the simulated output is %u tokens, expected at most %d",
                       options->output_tokens, MAX_OUTPUT);
    krn_sim *sim = bt_calloc(1, sizeof(*sim));
    sim->backend = (krn_backend){.name = "sim", .isa = "none", .kv = KV_BFLOAT16};
    sim->options = *options;
    sim->config = config;
    sim->max_logits = max_logits;
    sim->rows = bt_calloc(max_logits, sizeof(few));
    sim->sampler = krn_sampler_open(N_FEW);
    bt_status status = tokens_find(sim, dir, err);
    if (status != BT_OK) {
        krn_sim_close(sim);
        return status;
    }
    *out = sim;
    return BT_OK;
}

void krn_sim_close(krn_sim *sim) {
    if (sim == NULL) return;
    free(sim->printable);
    free(sim->rows);
    krn_sampler_close(sim->sampler);
    free(sim);
}

const krn_backend *krn_sim_backend(const krn_sim *sim) { return &sim->backend; }

uint64_t krn_sim_hash(const krn_sim *sim) {
    const mdl_config *c = sim->config;
    const uint32_t about[] = {c->vocab_size, sim->options.output_tokens, sim->think, sim->think_end, KRN_SIM_LAYERS,
                              KRN_SIM_WIDTH};
    uint64_t seed = XXH3_64bits_withSeed(c->eos_token_ids, c->n_eos_token_ids * sizeof(uint32_t), 0);
    seed = XXH3_64bits_withSeed(about, sizeof(about), seed);
    return XXH3_64bits_withSeed(sim->printable, sim->n_printable * sizeof(uint32_t), seed);
}

/* ---- rows ---- */

static uint64_t mix(uint64_t a, uint64_t b) {
    a = (a ^ b) * 0x9e3779b97f4a7c15;
    a = (a ^ (a >> 32)) * 0xd6e8feb86659fd93;
    return a ^ (a >> 32);
}

static cell *cell_at(krn_kv kv, const krn_sequence *sequence, uint32_t layer, uint32_t position) {
    size_t offset =
        kv_offset_bytes(&kv.layout, layer, sequence->blocks[position / KV_BLOCK_TOKENS], position % KV_BLOCK_TOKENS);
    return (cell *)(void *)((uint8_t *)kv.base + offset);
}

/* A prompt's last row says where the output ends; the rows behind it hand that on, and beyond an end that was ignored
 * there is another one. */
static uint32_t end_of(const krn_sim *sim, const krn_sequence *sequence, uint32_t position, uint32_t before,
                       uint64_t hash) {
    uint64_t mean = sim->options.output_tokens;
    if (mean == 0) return NOWHERE;
    bool is_ahead = position > 0 && before > position;
    if (sequence->form == KRN_ABSORBED && is_ahead) return before;
    return position + 1 + (uint32_t)(mix(hash, mean) % (2 * mean - 1));
}

static void store_row(const krn_sim *sim, krn_kv kv, const krn_sequence *sequence, uint32_t layer, uint32_t row) {
    static const cell nothing = {0};
    uint32_t position = sequence->position + row;
    uint64_t hash = mix(mix(layer + 1, position), (uint64_t)sequence->form);
    hash = mix(hash, layer == 0 ? sequence->token_ids[row] : cell_at(kv, sequence, layer - 1, position)->state);
    const cell *before = position > 0 ? cell_at(kv, sequence, layer, position - 1) : &nothing;
    const cell *far = position > 0 ? cell_at(kv, sequence, layer, (uint32_t)(hash % position)) : &nothing;
    hash = mix(mix(hash, before->state), far->state);
    uint32_t token = sequence->token_ids[row], end = end_of(sim, sequence, position, before->end, hash);
    *cell_at(kv, sequence, layer, position) = (cell){
        .state = (uint32_t)hash,
        .end = end & NOWHERE,
        .is_thinking = token == sim->think || (before->is_thinking && token != sim->think_end),
    };
}

/* ---- logits ---- */

/* In the order of ids; of two equal ones the first stays. */
static void few_add(few *f, uint32_t id, float logit) {
    uint32_t at = f->n;
    for (uint32_t i = 0; i < f->n; i++)
        if (f->ids[i] == id) return;
    for (; at > 0 && f->ids[at - 1] > id; at--) {
        f->ids[at] = f->ids[at - 1];
        f->logits[at] = f->logits[at - 1];
    }
    f->ids[at] = id;
    f->logits[at] = logit;
    f->n++;
}

/* Steps of half a unit, so that a temperature spreads the choice. Who thinks stops after four tokens on average. */
static void few_make(const krn_sim *sim, const cell *last, uint32_t position, few *out) {
    const mdl_config *c = sim->config;
    out->n = 0;
    if (last->end == position + 1 && c->n_eos_token_ids > 0) few_add(out, c->eos_token_ids[0], 20);
    if (last->is_thinking && mix(last->state, N_PRINTED) % 4 == 0) few_add(out, sim->think_end, 10);
    for (uint32_t i = 0; i < N_PRINTED; i++)
        few_add(out, sim->printable[mix(last->state, i) % sim->n_printable], -0.5f * (float)i);
}

void krn_sim_logits(const krn_sim *sim, uint32_t row, float *logits) {
    const float never = -60; /* nobody draws it, yet a logit_bias of 100 makes it the likeliest */
    const few *f = &sim->rows[row];
    for (uint32_t i = 0; i < sim->config->vocab_size; i++) logits[i] = never;
    for (uint32_t i = 0; i < f->n; i++) logits[f->ids[i]] = f->logits[i];
}

static bool is_plain(const krn_draw_args *args) {
    const wire_sampling *s = args->sampling;
    const wire_constraint *c = args->constraint;
    bool is_repetitive = s->repetition_penalty == 0 || s->repetition_penalty == 1;
    return c->n_allowed_token_ids == 0 && c->n_bad_words == 0 && c->n_logit_bias == 0 && s->n_logprobs == 0 &&
           is_repetitive && s->presence_penalty == 0 && s->frequency_penalty == 0;
}

static bool is_banned(const krn_draw_args *args, uint32_t id) {
    for (uint32_t i = 0; i < args->n_banned; i++)
        if (args->banned[i] == id) return true;
    return false;
}

bool krn_sim_draw(const krn_sim *sim, uint32_t row, const krn_draw_args *args, uint32_t *token) {
    if (!is_plain(args)) return false;
    const few *f = &sim->rows[row];
    float logits[N_FEW];
    bool has_any = false;
    for (uint32_t i = 0; i < N_FEW; i++) {
        logits[i] = i < f->n && !is_banned(args, f->ids[i]) ? f->logits[i] : -INFINITY;
        has_any |= logits[i] > -INFINITY;
    }
    if (!has_any) return false;
    *token = f->ids[krn_sample(sim->sampler, logits, args->sampling, args->n_tokens)];
    return true;
}

/* ---- time ---- */

static void sleep_until(krn_sim *sim, int64_t until_ns) {
    if (!sim->has_sharp_timer) { /* else the kernel may be 50 us late; not at open: threads inherit it */
        prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0);
        sim->has_sharp_timer = true;
    }
    const struct timespec until = {until_ns / BT_NS_PER_S, until_ns % BT_NS_PER_S};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) continue;
}

static int64_t step_ns(const krn_sim *sim, const krn_sequence *sequences, uint32_t n_sequences) {
    const krn_sim_options *o = &sim->options;
    int64_t us = o->step_us;
    for (uint32_t s = 0; s < n_sequences; s++) {
        uint32_t row_us = sequences[s].form == KRN_EXPANDED ? o->prefill_us_per_token : o->row_us;
        us += (int64_t)row_us * sequences[s].n_rows;
    }
    return us * BT_NS_PER_US;
}

void krn_sim_forward(krn_sim *sim, krn_kv kv, const krn_sequence *sequences, uint32_t n_sequences,
                     krn_layer_done on_layer, void *context) {
    int64_t begin_ns = bt_now_ns(), duration_ns = step_ns(sim, sequences, n_sequences);
    for (uint32_t layer = 0; layer < KRN_SIM_LAYERS; layer++) {
        for (uint32_t s = 0; s < n_sequences; s++)
            for (uint32_t row = 0; row < sequences[s].n_rows; row++) store_row(sim, kv, &sequences[s], layer, row);
        if (duration_ns > 0) sleep_until(sim, begin_ns + duration_ns * (layer + 1) / KRN_SIM_LAYERS);
        if (on_layer != NULL) on_layer(context, layer);
    }
    uint32_t n = 0;
    for (uint32_t s = 0; s < n_sequences; s++) {
        const krn_sequence *sequence = &sequences[s];
        BT_ASSERT(sequence->n_logits <= sim->max_logits - n);
        for (uint32_t i = sequence->n_rows - sequence->n_logits; i < sequence->n_rows; i++) {
            uint32_t position = sequence->position + i;
            few_make(sim, cell_at(kv, sequence, KRN_SIM_LAYERS - 1, position), position, &sim->rows[n++]);
        }
    }
}
