/* Opens the cpu backend: chooses the instruction set, starts the threads, takes every byte of scratch that the largest
 * step needs. Holds the operations that are one loop over rows; linears, experts and attention have their own files.
 *
 * AVX-512 counts only with BF16 and VBMI (Zen 4, Sapphire Rapids and later); older AVX-512 processors take avx2. */
#include <cpuid.h>
#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/core/alloc.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/krn_cpu.h"
#include "kernels/dtype.h"

uint8_t cpu_e4m3_bytes[2][128];

__attribute__((constructor)) static void fill_e4m3_bytes(void) {
    for (unsigned magnitude = 0; magnitude < 128; magnitude++) {
        uint16_t bits = krn_bf16_from_float(krn_float_from_e4m3((uint8_t)magnitude));
        cpu_e4m3_bytes[0][magnitude] = (uint8_t)(bits >> 8);
        cpu_e4m3_bytes[1][magnitude] = (uint8_t)bits;
    }
}

/* Linux hands out the tile registers (XTILEDATA) only to processes that ask. */
static bool may_use_tiles(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* __builtin_cpu_supports knows whether the system saves the wide registers; GCC 12 knows no AMX: CPUID 7.0 EDX. */
static bool has_amx_bf16(void) {
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    return (edx & AMX_BF16) != 0 && (edx & AMX_TILE) != 0 && may_use_tiles();
}

static bool has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16");
}

static bool has_avx2(void) {
    enum { F16C = 1 << 29 };
    unsigned eax, ebx, ecx, edx;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &eax, &ebx, &ecx, &edx) &&
           (ecx & F16C) != 0;
}

static uint32_t isas_here(const cpu_isa *isas[KRN_CPU_MAX_ISAS]) {
    uint32_t n = 0;
    bool avx2 = has_avx2(), avx512 = avx2 && has_avx512();
    if (avx512 && has_amx_bf16()) isas[n++] = &cpu_isa_amx;
    if (avx512) isas[n++] = &cpu_isa_avx512;
    if (avx2) isas[n++] = &cpu_isa_avx2;
    return n;
}

uint32_t krn_cpu_isas(const char *names[KRN_CPU_MAX_ISAS]) {
    const cpu_isa *isas[KRN_CPU_MAX_ISAS];
    uint32_t n = isas_here(isas);
    for (uint32_t i = 0; i < n; i++) names[i] = isas[i]->name;
    return n;
}

typedef struct {
    cpu_backend *backend;
    const krn_matrix *table;
    const uint32_t *ids;
    const float *x, *gain;
    const float *const *terms;
    uint32_t n_terms;
    float eps;
    uint32_t n_rows, width, rows_each;
    uint16_t *out_act;
    float *out_float;
} rows_job;

enum { TASK_ELEMS = 32 << 10 }; /* what is worth handing to another thread: some 10 us */

static uint32_t tasks_for(rows_job *job) {
    job->rows_each = cpu_max(TASK_ELEMS / cpu_max(job->width, 1), 1);
    return (job->n_rows + job->rows_each - 1) / job->rows_each;
}

/* A table row is a weight row times its scales, if it has any. */
static void embed_task(void *context, uint32_t task, uint32_t thread) {
    const rows_job *job = context;
    (void)thread;
    const krn_matrix *t = job->table;
    uint32_t end = cpu_min((task + 1) * job->rows_each, job->n_rows);
    for (uint32_t r = task * job->rows_each; r < end; r++) {
        float *out = job->out_float + (size_t)r * job->width;
        krn_decode(t->data, t->dtype, (size_t)job->ids[r] * t->n_in, t->n_in, out);
        if (t->dtype != MDL_F8_E4M3) continue;
        const float *scales = t->scale + (size_t)(job->ids[r] / t->block_rows) * t->n_scale_cols;
        for (uint32_t i = 0; i < t->n_in; i++) out[i] *= scales[i / t->block_cols];
    }
}

static void embed(krn_backend *api, const krn_matrix *table, const uint32_t *ids, uint32_t n_rows, float *out) {
    cpu_backend *backend = (cpu_backend *)api;
    rows_job job = {
        .backend = backend, .table = table, .ids = ids, .n_rows = n_rows, .width = table->n_in, .out_float = out};
    cpu_pool_run(backend->pool, tasks_for(&job), embed_task, &job);
}

static void rmsnorm_task(void *context, uint32_t task, uint32_t thread) {
    const rows_job *job = context;
    (void)thread;
    uint32_t end = cpu_min((task + 1) * job->rows_each, job->n_rows);
    for (uint32_t r = task * job->rows_each; r < end; r++) {
        size_t at = (size_t)r * job->width;
        job->backend->isa->vector->rmsnorm(job->x + at, job->width, job->gain, job->eps,
                                           job->out_act != NULL ? job->out_act + at : NULL,
                                           job->out_float != NULL ? job->out_float + at : NULL);
    }
}

static void rmsnorm(krn_backend *api, const float *x, uint32_t n_rows, uint32_t width, const float *gain, float eps,
                    void *out_act, float *out_float) {
    cpu_backend *backend = (cpu_backend *)api;
    rows_job job = {.backend = backend, .x = x, .n_rows = n_rows, .width = width, .gain = gain, .eps = eps};
    job.out_act = out_act;
    job.out_float = out_float;
    cpu_pool_run(backend->pool, tasks_for(&job), rmsnorm_task, &job);
}

static void combine_task(void *context, uint32_t task, uint32_t thread) {
    const rows_job *job = context;
    (void)thread;
    uint32_t end = cpu_min((task + 1) * job->rows_each, job->n_rows);
    for (uint32_t r = task * job->rows_each; r < end; r++) {
        job->backend->isa->vector->add_sum(job->out_float + (size_t)r * job->width,
                                           job->terms + (size_t)r * job->n_terms, job->n_terms, job->width);
    }
}

static void combine(krn_backend *api, const float *const *terms, uint32_t n_terms, uint32_t n_rows, uint32_t width,
                    float *x) {
    cpu_backend *backend = (cpu_backend *)api;
    rows_job job = {.backend = backend, .terms = terms, .n_terms = n_terms, .n_rows = n_rows, .width = width};
    job.out_float = x;
    cpu_pool_run(backend->pool, tasks_for(&job), combine_task, &job);
}

static void prepare(krn_backend *api, krn_weights *weights) {
    cpu_backend *backend = (cpu_backend *)api;
    cpu_attention_prepare(backend, weights);
}

static void cpu_close(krn_backend *api) {
    cpu_backend *backend = (cpu_backend *)api;
    if (backend == NULL) return;
    cpu_pool_close(backend->pool);
    for (uint32_t i = 0; backend->scratch != NULL && i < backend->limits.n_threads; i++) {
        free(backend->scratch[i].dots);
        free(backend->scratch[i].row);
        free(backend->scratch[i].packed);
        free(backend->scratch[i].work);
    }
    free(backend->scratch);
    free(backend->packed);
    free(backend->expert_x);
    free(backend->h);
    free(backend->h_packed);
    cpu_attention_close(backend->attention);
    free(backend);
}

/* The width of the widest MLP that all rows visit. */
static uint32_t mlp_width(const mdl_config *c) {
    return cpu_max(c->intermediate_size, c->moe_intermediate_size * cpu_max(c->n_shared_experts, 1));
}

/* The longest row that any linear of this model reads. */
static uint32_t longest_row(const mdl_config *c) {
    uint32_t longest = cpu_max(c->hidden_size, mlp_width(c));
    longest = cpu_max(longest, c->num_attention_heads * c->v_head_dim);
    longest = cpu_max(longest, mdl_kv_width(c));
    longest = cpu_max(longest, c->num_attention_heads * (c->qk_nope_head_dim + c->qk_rope_head_dim));
    return cpu_max(longest, c->q_lora_rank);
}

static void take_memory(cpu_backend *backend) {
    enum { CAP_PAIRS = 8192 }; /* more pairs than that are worked off in batches: large enough to amortise weights */
    const krn_backend_limits *limits = &backend->limits;
    const mdl_config *c = limits->config;
    uint32_t longest = longest_row(c);
    backend->packed = bt_calloc_aligned(cpu_packed_elems(CPU_FEW_ROWS, longest) * sizeof(uint16_t), 64);
    backend->h_elems = cpu_packed_elems(limits->max_rows, mlp_width(c));
    if (c->n_routed_experts > 0) {
        uint64_t n_pairs =
            (uint64_t)limits->max_rows * cpu_max(limits->n_ranks, 1) * cpu_max(c->num_experts_per_tok, 1);
        backend->cap_pairs = n_pairs < CAP_PAIRS ? (uint32_t)n_pairs : CAP_PAIRS;
        size_t of_pairs = cpu_packed_elems(backend->cap_pairs, c->moe_intermediate_size);
        if (of_pairs > backend->h_elems) backend->h_elems = of_pairs;
        backend->expert_x =
            bt_calloc_aligned(cpu_packed_elems(backend->cap_pairs, c->hidden_size) * sizeof(uint16_t), 64);
    }
    backend->h = bt_calloc_aligned(backend->h_elems * sizeof(uint16_t), 64);
    backend->h_packed = bt_calloc_aligned(backend->h_elems * sizeof(uint16_t), 64);
    backend->attention = cpu_attention_open(limits);
    size_t mlp_bytes = cpu_mlp_work_bytes(), attention_bytes = cpu_attention_work_bytes(backend->attention);
    size_t packed_bytes = cpu_packed_elems(cpu_rows_most(longest), longest) * sizeof(uint16_t);
    if (packed_bytes < CPU_L2_BYTES) packed_bytes = CPU_L2_BYTES; /* of shorter rows there are more */
    backend->scratch = bt_calloc(limits->n_threads, sizeof(*backend->scratch));
    for (uint32_t i = 0; i < limits->n_threads; i++) {
        backend->scratch[i].dots = bt_calloc_aligned(CPU_DOTS_SCRATCH_BYTES, 64);
        backend->scratch[i].row = bt_calloc_aligned(CPU_WIDE_PANEL * (longest + CPU_GROUP) * sizeof(float), 64);
        backend->scratch[i].packed = bt_calloc_aligned(packed_bytes, 64);
        backend->scratch[i].work = bt_calloc_aligned(mlp_bytes > attention_bytes ? mlp_bytes : attention_bytes, 64);
    }
}

bt_status krn_cpu_open_isa(const krn_backend_limits *limits, const char *name, krn_backend **out, bt_error *err) {
    const cpu_isa *isas[KRN_CPU_MAX_ISAS], *isa = NULL;
    uint32_t n_isas = isas_here(isas);
    for (uint32_t i = n_isas; i > 0; i--) {
        if (name == NULL || strcmp(name, isas[i - 1]->name) == 0) isa = isas[i - 1];
    }
    if (n_isas == 0) {
        return bt_fail(err, BT_BAD_REQUEST, "this processor lacks AVX2, FMA or F16C, which backend cpu needs; use ref");
    }
    if (isa == NULL) return bt_fail(err, BT_BAD_REQUEST, "this processor has no instruction set \"%s\"", name);
    cpu_backend *backend = bt_calloc(1, sizeof(*backend));
    backend->isa = isa;
    backend->limits = *limits;
    bt_status status = cpu_pool_open(limits->n_threads, &backend->pool, err);
    if (status != BT_OK) {
        free(backend);
        return status;
    }
    take_memory(backend);
    backend->api = (krn_backend){
        .name = "cpu",
        .isa = isa->name,
        .activation_bytes = 2,
        .kv = KV_BFLOAT16,
        .close = cpu_close,
        .prepare = prepare,
        .embed = embed,
        .rmsnorm = rmsnorm,
        .linear = cpu_linear,
        .mlp = cpu_mlp,
        .attention = cpu_attention,
        .router = cpu_router,
        .experts = cpu_experts,
        .combine = combine,
    };
    *out = &backend->api;
    return BT_OK;
}

bt_status krn_cpu_open(const krn_backend_limits *limits, krn_backend **out, bt_error *err) {
    return krn_cpu_open_isa(limits, NULL, out, err);
}
