/* Attention: puts the new latents into the cache, then hands each sequence to its form: expanded (cpu_expanded.c) for
 * prompt positions, absorbed (cpu_absorbed.c) for generated ones. Owns the memory that both need. */
#include "kernels/cpu/cpu_attention.h"

#include <math.h>
#include <stdlib.h>

#include "common/core/alloc.h"

static cpu_attention_dims dims_of(const mdl_config *c) {
    cpu_attention_dims d = {.heads = c->num_attention_heads, .nope = c->qk_nope_head_dim, .rope = c->qk_rope_head_dim};
    d.rank = c->kv_lora_rank;
    d.v = c->v_head_dim;
    d.width = mdl_kv_width(c);
    d.key_width = cpu_round_up(cpu_round_up(d.nope, 2) + d.rope, CPU_K_STEP);
    d.nope_width = cpu_round_up(d.nope, CPU_K_STEP);
    d.v_width = cpu_round_up(d.v, CPU_GROUP);
    d.rank_width = cpu_round_up(d.rank, CPU_GROUP);
    d.scale = mdl_softmax_scale(c) * (float)M_LOG2E;
    return d;
}

cpu_attention_memory *cpu_attention_open(const krn_backend_limits *limits) {
    cpu_attention_memory *m = bt_calloc(1, sizeof(*m));
    const cpu_attention_dims *d = &m->dims;
    m->dims = dims_of(limits->config);
    m->max_rows = limits->max_rows;
    m->n_layers = limits->config->num_hidden_layers;
    m->w_uk = bt_calloc(m->n_layers, sizeof(*m->w_uk));
    m->runs = bt_calloc(limits->max_rows, sizeof(*m->runs));
    size_t n_blocks = kv_blocks_for(limits->max_positions);
    m->latents = bt_calloc_aligned(n_blocks * cpu_packed_elems(KV_BLOCK_TOKENS, d->rank) * sizeof(uint16_t), 64);
    m->rope_keys = bt_calloc_aligned(n_blocks * KV_BLOCK_TOKENS * d->rope / 2 * sizeof(uint32_t), 64);
    m->queries = bt_calloc_aligned((size_t)CPU_ROUND_ROWS * d->heads * d->width * sizeof(uint16_t), 64);
    /* room for the longest sequence, and for a full round of shorter ones */
    uint32_t longest = (uint32_t)((n_blocks + CPU_CHUNK_BLOCKS - 1) / CPU_CHUNK_BLOCKS);
    uint32_t round = cpu_min(CPU_ROUND_ROWS, limits->max_rows) * cpu_min(longest, 2);
    m->cap_slots = cpu_max(longest, round);
    m->partial = bt_calloc_aligned((size_t)m->cap_slots * d->heads * d->rank_width * sizeof(float), 64);
    m->states = bt_calloc((size_t)m->cap_slots * d->heads, sizeof(*m->states));
    return m;
}

void cpu_attention_close(cpu_attention_memory *m) {
    if (m == NULL) return;
    for (uint32_t i = 0; i < m->n_layers; i++) free(m->w_uk[i]);
    free(m->w_uk);
    free(m->runs);
    free(m->latents);
    free(m->rope_keys);
    free(m->queries);
    free(m->partial);
    free(m->states);
    free(m);
}

size_t cpu_attention_work_bytes(const cpu_attention_memory *memory) {
    size_t expanded = cpu_expanded_work_bytes(memory), absorbed = cpu_absorbed_work_bytes(memory);
    return expanded > absorbed ? expanded : absorbed;
}

enum { STORE_ROWS = 32 }; /* of a task */

typedef struct {
    cpu_backend *backend;
    const krn_attention_args *args;
} store_job;

static void store_row(const store_job *job, const krn_sequence *s, uint32_t position, uint32_t row) {
    const krn_attention_args *args = job->args;
    const mdl_config *c = job->backend->limits.config;
    uint32_t rank = c->kv_lora_rank, rope = c->qk_rope_head_dim;
    const float *kv_a = args->kv_a + (size_t)row * (rank + rope);
    uint16_t *out = (uint16_t *)cpu_cached(args, s, position);
    job->backend->isa->vector->rmsnorm(kv_a, rank, args->layer->kv_a_norm, c->rms_norm_eps, out, NULL);
    job->backend->isa->vector->rotate(kv_a + rank, args->cos_sin + (size_t)row * rope, rope, out + rank);
}

static void store_task(void *context, uint32_t task, uint32_t thread) {
    const store_job *job = context;
    const krn_attention_args *args = job->args;
    (void)thread;
    uint32_t begin = task * STORE_ROWS, end = cpu_min(begin + STORE_ROWS, args->n_rows), first = 0;
    for (uint32_t i = 0; i < args->n_sequences && first < end; i++) {
        const krn_sequence *s = &args->sequences[i];
        for (uint32_t row = cpu_max(first, begin); row < cpu_min(first + s->n_rows, end); row++) {
            store_row(job, s, s->position + row - first, row);
        }
        first += s->n_rows;
    }
}

void cpu_attention(krn_backend *api, const krn_attention_args *args) {
    cpu_backend *backend = (cpu_backend *)api;
    cpu_attention_memory *memory = backend->attention;
    store_job job = {.backend = backend, .args = args};
    cpu_pool_run(backend->pool, (args->n_rows + STORE_ROWS - 1) / STORE_ROWS, store_task, &job);
    uint32_t row = 0, n_absorbed = 0;
    for (uint32_t i = 0; i < args->n_sequences; i++) {
        const krn_sequence *s = &args->sequences[i];
        cpu_run run = {.sequence = s, .row = row, .position = s->position, .n_rows = s->n_rows};
        row += s->n_rows;
        if (s->n_rows == 0) continue;
        if (s->form == KRN_EXPANDED)
            cpu_expanded(backend, args, &run);
        else
            memory->runs[n_absorbed++] = run;
    }
    if (n_absorbed > 0) cpu_absorbed(backend, args, memory->runs, n_absorbed);
}
