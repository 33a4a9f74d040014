/* Composes a backend's operations into the model: embedding, layers of attention and feed-forward, head.
 *
 * Owns the step's scratch, sized at open for max_rows; a step allocates nothing. Residuals and router inputs are
 * float32, what linears read is the backend's activation type. Rows never meet outside attention, and there only
 * through the cache: that, and the backends' one-order rule, makes a row's bits independent of its neighbours. Which
 * tokens run together, and where their blocks are, is the schedulers' business. */
#include "kernels/forward.h"

#include <inttypes.h>
#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/core/log.h"
#include "kernels/ep.h"
#include "kernels/route.h"

struct krn_model {
    mdl_config config;
    mdl_checkpoint *checkpoint;
    krn_weights *weights;
    krn_backend *backend;
    krn_sim *sim;             /* backend "sim": of all the others there are config, hash and limits alone */
    krn_placement *placement; /* with n_ranks; NULL: alone */
    krn_ep *ep;               /* n_ranks > 1 */
    ep_exchange *exchange;    /* borrowed; NULL: none */
    uint32_t rank;
    uint64_t hash;
    _Atomic uint64_t *expert_load; /* [layers][n_routed_experts]; the model's thread writes */
    uint32_t max_rows, max_positions, max_logits;
    /* constants */
    float *inv_freq; /* [rope / 2] */
    float rope_multiplier;
    /* scratch: [max_rows][...], of the rows in flight */
    uint32_t *ids;
    float *cos_sin;                /* [rope / 2][2] */
    float *x;                      /* [hidden]: the residual stream */
    void *normed_act;              /* act [hidden] */
    float *normed;                 /* [hidden]: the same, for the router */
    float *q_a, *q, *kv_a;         /* [q_lora_rank], [heads * (nope + rope)], [kv_lora_rank + rope] */
    void *q_a_act, *attended_act;  /* act [q_lora_rank], [heads * v] */
    float *router_logits;          /* [n_routed_experts] */
    uint32_t *chosen, *first_pair; /* [num_experts_per_tok]; first_pair: one [n_routed_experts] */
    float *chosen_weights;         /* [num_experts_per_tok] */
    krn_pair *pairs;               /* [num_experts_per_tok] */
    float *expert_rows;            /* [num_experts_per_tok][hidden]: of experts computed alone */
    const float **results;         /* [num_experts_per_tok]: each pair's expert row, here or from a peer */
    const float **row_results;     /* [num_experts_per_tok]: the same by row, experts ascending */
    uint32_t *n_row_results;       /* collected so far */
};

static void scratch_open(krn_model *model) {
    enum { ALIGN_BYTES = 64 };
    const mdl_config *c = &model->config;
    size_t rows = model->max_rows, act = model->backend->activation_bytes;
    size_t heads = c->num_attention_heads, per_row = c->num_experts_per_tok, hidden = c->hidden_size;
    struct {
        void *place; /* of the pointer to be set */
        size_t row_bytes;
    } const buffers[] = {
        {&model->ids, sizeof(uint32_t)},
        {&model->cos_sin, c->qk_rope_head_dim * sizeof(float)},
        {&model->x, hidden * sizeof(float)},
        {&model->normed_act, hidden * act},
        {&model->normed, hidden * sizeof(float)},
        {&model->q_a, c->q_lora_rank * sizeof(float)},
        {&model->q_a_act, c->q_lora_rank * act},
        {&model->q, heads * (c->qk_nope_head_dim + c->qk_rope_head_dim) * sizeof(float)},
        {&model->kv_a, mdl_kv_width(c) * sizeof(float)},
        {&model->attended_act, heads * c->v_head_dim * act},
        {&model->router_logits, c->n_routed_experts * sizeof(float)},
        {&model->chosen, per_row * sizeof(uint32_t)},
        {&model->chosen_weights, per_row * sizeof(float)},
        {&model->pairs, per_row * sizeof(krn_pair)},
        {&model->expert_rows, model->ep == NULL ? per_row * hidden * sizeof(float) : 0},
        {&model->results, per_row * sizeof(float *)},
        {&model->row_results, per_row * sizeof(float *)},
        {&model->n_row_results, sizeof(uint32_t)},
    };
    for (size_t i = 0; i < sizeof(buffers) / sizeof(buffers[0]); i++) {
        void *memory = bt_calloc_aligned(rows * buffers[i].row_bytes, ALIGN_BYTES);
        memcpy(buffers[i].place, &memory, sizeof(memory));
    }
    model->first_pair = bt_calloc(c->n_routed_experts, sizeof(uint32_t));
    if (c->n_routed_experts > 0)
        model->expert_load = bt_calloc((size_t)c->num_hidden_layers * c->n_routed_experts, sizeof(uint64_t));
    model->inv_freq = bt_calloc(c->qk_rope_head_dim / 2, sizeof(float));
    mdl_rope_frequencies(c, model->inv_freq);
    model->rope_multiplier = mdl_rope_multiplier(c);
}

static void scratch_close(krn_model *model) {
    void *const buffers[] = {model->ids,
                             model->cos_sin,
                             model->x,
                             model->normed_act,
                             model->normed,
                             model->q_a,
                             model->q_a_act,
                             model->q,
                             model->kv_a,
                             model->attended_act,
                             model->router_logits,
                             model->chosen,
                             model->chosen_weights,
                             model->pairs,
                             model->expert_rows,
                             model->row_results,
                             model->n_row_results,
                             model->first_pair,
                             model->inv_freq,
                             model->results,
                             model->expert_load};
    for (size_t i = 0; i < sizeof(buffers) / sizeof(buffers[0]); i++) free(buffers[i]);
}

static bt_status check_options(const krn_model_options *options, const mdl_config *config, bt_error *err) {
    enum { MAX_ROWS = 1 << 16 };
    if (options->max_rows == 0 || options->max_rows > MAX_ROWS) {
        return bt_fail(err, BT_BAD_REQUEST, "rows per step is %u, expected 1 to %d", options->max_rows, MAX_ROWS);
    }
    if (options->max_positions == 0 || options->max_positions > config->max_position_embeddings) {
        return bt_fail(err, BT_BAD_REQUEST,
                       "the longest sequence is %u tokens, the model's max_position_embeddings is %u",
                       options->max_positions, config->max_position_embeddings);
    }
    if (options->max_logits == 0)
        return bt_fail(err, BT_BAD_REQUEST, "rows of logits per step is 0, expected at least 1");
    if (options->n_ranks > 0 && options->rank >= options->n_ranks)
        return bt_fail(err, BT_BAD_REQUEST, "rank is %u of %u", options->rank, options->n_ranks);
    return BT_OK;
}

static uint32_t processor_count(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof(set), &set) == 0 ? (uint32_t)CPU_COUNT(&set) : 1;
}

/* Checkpoint, weights and the backend that computes with them. */
static bt_status weights_open(krn_model *model, const krn_model_options *options, bt_error *err) {
    int64_t start_ns = bt_now_ns();
    bt_status status = mdl_checkpoint_open(options->dir, &model->checkpoint, err);
    if (status == BT_OK && options->n_ranks > 0) {
        status = krn_placement_open(&model->config, options->n_ranks, options->placement, &model->placement, err);
    }
    if (status == BT_OK) {
        status =
            krn_weights_open(model->checkpoint, &model->config, model->placement, options->rank, &model->weights, err);
    }
    if (status != BT_OK) return status;
    const krn_backend_limits limits = {
        .n_threads = options->n_threads > 0 ? options->n_threads : processor_count(),
        .max_rows = options->max_rows > options->max_logits ? options->max_rows : options->max_logits,
        .n_ranks = options->n_ranks,
        .max_positions = options->max_positions,
        .config = &model->config,
    };
    status = krn_backend_open(options->backend, &limits, &model->backend, err);
    if (status != BT_OK) return status;
    mdl_tensors_read(model->weights->tensors, model->weights->n_tensors);
    model->hash = mdl_checkpoint_hash(model->checkpoint);
    model->backend->prepare(model->backend, model->weights);
    if (options->n_ranks > 1) {
        const ep_limits ep = krn_model_ep_limits(model);
        model->ep = krn_ep_open(&ep, model->placement, model->rank);
    }
    scratch_open(model);
    bt_log(BT_LOG_INFO, "model", "open",
           "dir=\"%s\" backend=%s isa=%s threads=%u layers=%u rank=%u/%u checkpoint_mb=%" PRIu64 " weights_mb=%" PRIu64
           " active_mb=%" PRIu64 " hash=%016" PRIx64 " ms=%" PRId64,
           options->dir, model->backend->name, model->backend->isa, limits.n_threads, model->config.num_hidden_layers,
           options->rank, options->n_ranks > 0 ? options->n_ranks : 1, mdl_checkpoint_bytes(model->checkpoint) >> 20,
           model->weights->n_bytes >> 20, model->weights->active_bytes >> 20, model->hash,
           (bt_now_ns() - start_ns) / BT_NS_PER_MS);
    return BT_OK;
}

static bt_status sim_open(krn_model *model, const krn_model_options *options, bt_error *err) {
    if (options->n_ranks > 0)
        return bt_fail(err, BT_BAD_REQUEST, "backend sim has no experts to share: it cannot be one of %u ranks",
                       options->n_ranks);
    bt_status status = krn_sim_open(options->dir, &model->config, &options->sim, options->max_logits, &model->sim, err);
    if (status != BT_OK) return status;
    model->hash = krn_sim_hash(model->sim);
    bt_log(BT_LOG_INFO, "model", "simulated",
           "dir=\"%s\" step_us=%u prefill_us_per_token=%u row_us=%u output_tokens=%u hash=%016" PRIx64, options->dir,
           options->sim.step_us, options->sim.prefill_us_per_token, options->sim.row_us, options->sim.output_tokens,
           model->hash);
    return BT_OK;
}

bt_status krn_model_open(const krn_model_options *options, krn_model **out, bt_error *err) {
    krn_model *model = bt_calloc(1, sizeof(*model));
    bt_status status = mdl_config_load(options->dir, &model->config, err);
    if (status == BT_OK) status = check_options(options, &model->config, err);
    model->rank = options->rank;
    model->max_rows = options->max_rows;
    model->max_positions = options->max_positions;
    model->max_logits = options->max_logits;
    bool is_sim = strcmp(options->backend, "sim") == 0;
    if (status == BT_OK) status = is_sim ? sim_open(model, options, err) : weights_open(model, options, err);
    if (status != BT_OK) {
        krn_model_close(model);
        return status;
    }
    *out = model;
    return BT_OK;
}

void krn_model_close(krn_model *model) {
    if (model == NULL) return;
    scratch_close(model);
    if (model->backend != NULL) model->backend->close(model->backend);
    krn_ep_close(model->ep);
    krn_weights_close(model->weights);
    krn_placement_close(model->placement);
    mdl_checkpoint_close(model->checkpoint);
    krn_sim_close(model->sim);
    free(model);
}

const mdl_config *krn_model_config(const krn_model *model) { return &model->config; }
uint64_t krn_model_hash(const krn_model *model) { return model->hash; }
const krn_sim *krn_model_sim(const krn_model *model) { return model->sim; }

const krn_backend *krn_model_backend(const krn_model *model) {
    return model->sim != NULL ? krn_sim_backend(model->sim) : model->backend;
}

uint64_t krn_model_weight_bytes(const krn_model *model) { return model->sim != NULL ? 0 : model->weights->n_bytes; }
uint64_t krn_model_active_bytes(const krn_model *model) {
    return model->sim != NULL ? 0 : model->weights->active_bytes;
}
uint64_t krn_model_expert_bytes(const krn_model *model) {
    return model->sim != NULL ? 0 : model->weights->expert_bytes;
}

kv_layout krn_model_kv_layout(const krn_model *model, uint32_t n_blocks) {
    kv_layout layout = {krn_model_backend(model)->kv, model->config.num_hidden_layers, n_blocks,
                        mdl_kv_width(&model->config)};
    if (model->sim != NULL) {
        layout.n_layers = KRN_SIM_LAYERS;
        layout.width = KRN_SIM_WIDTH;
    }
    return layout;
}

uint64_t krn_model_kv_blocks(const krn_model *model, uint64_t n_bytes) {
    const mdl_config *c = &model->config;
    const kv_layout real = {krn_model_backend(model)->kv, c->num_hidden_layers, 1, mdl_kv_width(c)};
    return n_bytes / kv_pool_bytes(&real);
}

const _Atomic uint64_t *krn_model_expert_load(const krn_model *model) { return model->expert_load; }

ep_limits krn_model_ep_limits(const krn_model *model) {
    return krn_ep_limits(&model->config, model->placement, model->max_rows, model->backend->activation_bytes);
}

void krn_model_set_exchange(krn_model *model, ep_exchange *exchange) {
    BT_ASSERT(exchange == NULL || (model->placement != NULL && exchange->rank == model->rank &&
                                   exchange->n_ranks == krn_placement_n_ranks(model->placement)));
    model->exchange = exchange;
}

/* Asserts that the step is within the limits. Returns its number of rows. */
static uint32_t check_rows(const krn_model *model, const krn_sequence *sequences, uint32_t n_sequences) {
    uint32_t n_rows = 0;
    for (uint32_t s = 0; s < n_sequences; s++) {
        const krn_sequence *sequence = &sequences[s];
        BT_ASSERT(sequence->n_rows <= model->max_rows - n_rows && sequence->n_logits <= sequence->n_rows);
        BT_ASSERT(sequence->position <= model->max_positions &&
                  sequence->n_rows <= model->max_positions - sequence->position);
        for (uint32_t t = 0; t < sequence->n_rows; t++) BT_ASSERT(sequence->token_ids[t] < model->config.vocab_size);
        n_rows += sequence->n_rows;
    }
    return n_rows;
}

/* Ids and rotations of the step's rows, one sequence after another. */
static void gather_rows(krn_model *model, const krn_sequence *sequences, uint32_t n_sequences) {
    uint32_t rope = model->config.qk_rope_head_dim, row = 0;
    for (uint32_t s = 0; s < n_sequences; s++) {
        const krn_sequence *sequence = &sequences[s];
        for (uint32_t t = 0; t < sequence->n_rows; t++, row++) {
            model->ids[row] = sequence->token_ids[t];
            for (uint32_t i = 0; i < rope / 2; i++) {
                /* The product in float32, as every implementation has it: at far positions its rounding is visible. */
                float angle = (float)(sequence->position + t) * model->inv_freq[i];
                model->cos_sin[(size_t)row * rope + 2 * i] = (float)cos(angle) * model->rope_multiplier;
                model->cos_sin[(size_t)row * rope + 2 * i + 1] = (float)sin(angle) * model->rope_multiplier;
            }
        }
    }
}

/* x += Attention(RMSNorm(x)) */
static void attention(krn_model *model, uint32_t layer_index, krn_kv kv, const krn_sequence *sequences,
                      uint32_t n_sequences, uint32_t n_rows) {
    const mdl_config *c = &model->config;
    const krn_layer *layer = &model->weights->layers[layer_index];
    krn_backend *b = model->backend;
    b->rmsnorm(b, model->x, n_rows, c->hidden_size, layer->input_norm, c->rms_norm_eps, model->normed_act, NULL);
    if (c->q_lora_rank > 0) {
        b->linear(b, &layer->q_a, model->normed_act, n_rows, model->q_a, false);
        b->rmsnorm(b, model->q_a, n_rows, c->q_lora_rank, layer->q_a_norm, c->rms_norm_eps, model->q_a_act, NULL);
        b->linear(b, &layer->q_b, model->q_a_act, n_rows, model->q, false);
    } else {
        b->linear(b, &layer->q, model->normed_act, n_rows, model->q, false);
    }
    b->linear(b, &layer->kv_a, model->normed_act, n_rows, model->kv_a, false);
    const krn_attention_args args = {
        .layer = layer,
        .layer_index = layer_index,
        .sequences = sequences,
        .n_sequences = n_sequences,
        .n_rows = n_rows,
        .cos_sin = model->cos_sin,
        .q = model->q,
        .kv_a = model->kv_a,
        .out = model->attended_act,
        .kv = kv,
    };
    b->attention(b, &args);
    b->linear(b, &layer->o, model->attended_act, n_rows, model->x, true);
}

/* x += MLP(normed): the dense layers, and the experts that every row visits. */
static void mlp(krn_model *model, const krn_mlp *weights, uint32_t n_rows) {
    model->backend->mlp(model->backend, weights, model->normed_act, n_rows, model->x);
}

/* Chooses the rows' experts, counts them and groups them into pairs. Returns the number of pairs. */
static uint32_t route(krn_model *model, uint32_t layer_index, uint32_t n_rows) {
    const mdl_config *c = &model->config;
    const krn_layer *layer = &model->weights->layers[layer_index];
    size_t per_row = c->num_experts_per_tok;
    _Atomic uint64_t *load = model->expert_load + (size_t)layer_index * c->n_routed_experts;
    if (n_rows == 0) return 0;
    const krn_router_args args = {
        .w = &layer->router,
        .bias = layer->router_bias,
        .x = model->normed,
        .n_rows = n_rows,
        .logits = model->router_logits,
        .experts = model->chosen,
        .weights = model->chosen_weights,
    };
    model->backend->router(model->backend, &args);
    for (size_t i = 0; i < n_rows * per_row; i++) { /* one writer: nothing has to be locked */
        _Atomic uint64_t *n = &load[model->chosen[i]];
        atomic_store_explicit(n, atomic_load_explicit(n, memory_order_relaxed) + 1, memory_order_relaxed);
    }
    krn_route_pairs(c, model->chosen, model->chosen_weights, n_rows, model->first_pair, model->pairs);
    return n_rows * c->num_experts_per_tok;
}

/* x += the sum of each row's expert rows. Pairs come by expert, so every row sums in ascending expert number, from
 * zero, wherever its experts were computed. */
static void combine(krn_model *model, uint32_t n_pairs, uint32_t n_rows) {
    const mdl_config *c = &model->config;
    size_t per_row = c->num_experts_per_tok;
    memset(model->n_row_results, 0, n_rows * sizeof(*model->n_row_results));
    for (uint32_t p = 0; p < n_pairs; p++) {
        uint32_t row = model->pairs[p].row;
        model->row_results[row * per_row + model->n_row_results[row]++] = model->results[p];
    }
    model->backend->combine(model->backend, model->row_results, c->num_experts_per_tok, n_rows, c->hidden_size,
                            model->x);
}

/* All experts are here. */
static void experts_alone(krn_model *model, const krn_layer *layer, uint32_t n_pairs) {
    const krn_experts_args args = {
        .experts = layer->experts,
        .pairs = model->pairs,
        .n_pairs = n_pairs,
        .x = model->normed_act,
        .y = model->expert_rows,
    };
    model->backend->experts(model->backend, &args);
    for (uint32_t p = 0; p < n_pairs; p++) {
        model->results[p] = model->expert_rows + (size_t)p * model->config.hidden_size;
    }
}

/* x += shared experts, then x += routed experts: while rows travel to other ranks the shared ones are computed. */
static bt_status moe(krn_model *model, uint32_t layer_index, uint32_t n_rows) {
    const krn_layer *layer = &model->weights->layers[layer_index];
    bt_status status = BT_OK;
    uint32_t n_pairs = route(model, layer_index, n_rows);
    if (model->ep != NULL) {
        status = krn_ep_post(model->ep, model->exchange, layer_index, model->normed_act, n_rows, model->pairs, n_pairs);
        if (status != BT_OK) return status;
    }
    if (n_rows > 0 && model->config.n_shared_experts > 0) mlp(model, &layer->shared, n_rows);
    if (model->ep == NULL) {
        experts_alone(model, layer, n_pairs);
    } else {
        status = krn_ep_finish(model->ep, model->exchange, layer_index, model->backend, layer->experts, model->results);
        if (status != BT_OK) return status;
    }
    combine(model, n_pairs, n_rows);
    return BT_OK;
}

/* x += FFN(RMSNorm(x)); without rows only what other ranks need. */
static bt_status feed_forward(krn_model *model, uint32_t layer_index, uint32_t n_rows) {
    const mdl_config *c = &model->config;
    const krn_layer *layer = &model->weights->layers[layer_index];
    krn_backend *b = model->backend;
    if (n_rows > 0) {
        b->rmsnorm(b, model->x, n_rows, c->hidden_size, layer->post_attention_norm, c->rms_norm_eps, model->normed_act,
                   layer->is_moe ? model->normed : NULL);
    }
    if (layer->is_moe) return n_rows > 0 || model->ep != NULL ? moe(model, layer_index, n_rows) : BT_OK;
    if (n_rows > 0) mlp(model, &layer->dense, n_rows);
    return BT_OK;
}

/* Moves the rows whose logits are wanted to the front of x. Returns their number. */
static uint32_t keep_logit_rows(krn_model *model, const krn_sequence *sequences, uint32_t n_sequences) {
    size_t hidden = model->config.hidden_size;
    uint32_t n_kept = 0, end = 0;
    for (uint32_t s = 0; s < n_sequences; s++) {
        end += sequences[s].n_rows;
        for (uint32_t row = end - sequences[s].n_logits; row < end; row++, n_kept++) {
            memmove(model->x + n_kept * hidden, model->x + row * hidden, hidden * sizeof(float));
        }
    }
    BT_ASSERT(n_kept <= model->max_logits);
    return n_kept;
}

bt_status krn_forward(krn_model *model, krn_kv kv, const krn_sequence *sequences, uint32_t n_sequences, float *logits,
                      krn_layer_done on_layer, void *context) {
    const mdl_config *c = &model->config;
    const krn_weights *w = model->weights;
    krn_backend *b = model->backend;
    const kv_layout layout = krn_model_kv_layout(model, kv.layout.n_blocks);
    BT_ASSERT(kv.layout.dtype == layout.dtype && kv.layout.width == layout.width &&
              kv.layout.n_layers == layout.n_layers);
    bt_status status = BT_OK;
    uint32_t n_rows = check_rows(model, sequences, n_sequences);
    if (model->ep == NULL && n_rows == 0) return BT_OK;
    if (model->sim != NULL) {
        krn_sim_forward(model->sim, kv, sequences, n_sequences, on_layer, context);
        for (uint32_t s = 0, row = 0; s < n_sequences && logits != NULL; s++)
            for (uint32_t i = 0; i < sequences[s].n_logits; i++, row++)
                krn_sim_logits(model->sim, row, logits + (size_t)row * c->vocab_size);
        return BT_OK;
    }
    gather_rows(model, sequences, n_sequences);
    if (model->ep != NULL) {
        status = model->exchange != NULL ? model->exchange->begin(model->exchange) : BT_PEER_LOST;
        if (status != BT_OK) return status;
    }
    bool has_rows = n_rows > 0;
    if (has_rows) b->embed(b, &w->embed, model->ids, n_rows, model->x);
    for (uint32_t i = 0; i < c->num_hidden_layers; i++) {
        if (has_rows) attention(model, i, kv, sequences, n_sequences, n_rows);
        if (has_rows && on_layer != NULL) on_layer(context, i);
        if (i + 1 == c->num_hidden_layers) n_rows = keep_logit_rows(model, sequences, n_sequences);
        status = feed_forward(model, i, n_rows);
        if (status != BT_OK) return status;
    }
    if (n_rows == 0) return BT_OK;
    b->rmsnorm(b, model->x, n_rows, c->hidden_size, w->final_norm, c->rms_norm_eps, model->normed_act, NULL);
    b->linear(b, &w->lm_head, model->normed_act, n_rows, logits, false);
    return BT_OK;
}
