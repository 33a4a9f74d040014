/* baton-bench engine: one process, one model, no network; how fast prefill and decode are, and of what is possible.
 *
 * Timed: krn_forward() alone, from token ids to the logits of the last row of each sequence. Not timed: opening the
 * model, reading the weights once, filling the cache to `depth`, tokenising, sampling. One untimed repetition warms up.
 *   prefill,n,0,1        one prompt of n tokens in one step; tokens/s of the prompt
 *   decode,steps,d,b     b sequences, one token each per step, d tokens before the first; tokens/s of all sequences
 * gb_s: the bytes that the steps read, of weights, a routed expert once per step that visits it, and of the cache
 * (counted in the repetition that warms up). gflop_s: 2 FLOP per weight of the layers' linears and per product in
 * attention's scores and sums, causal; the head once per sequence. The machine's limits (bench/machine.h) are measured
 * before and after every repetition: a shared machine changes by the second. of_read and of_bf16 are taken of each
 * repetition by itself; medians are reported. */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/batch.h"
#include "bench/bench.h"
#include "bench/machine.h"
#include "common/core/clock.h"

#define FLAGS(F)                                                                                                       \
    F(str, model, "", "folder of the checkpoint")                                                                      \
    F(str, backend, "cpu", "cpu or ref")                                                                               \
    F(u32, threads, "0", "compute threads; 0: all processors")                                                         \
    F(str, prompt, "32,512,2048", "prompt lengths in tokens, for prefill")                                             \
    F(str, depth, "0,1024,4096", "tokens in the cache before decoding starts")                                         \
    F(str, batch, "1,8,32", "sequences that decode together")                                                          \
    F(u32, steps, "16", "decode steps in one repetition")                                                              \
    F(u32, repeat, "5", "repetitions; the median counts")
CFG_OWN(FLAGS)

enum { MAX_REPEAT = 1000, MAX_BATCH = 1024, MAX_TOKENS = 1 << 20 };

typedef struct {
    cfg_own config;
    bench_list prompts, depths, batches;
    bench_batch batch;
    bench_machine *machine;
    char processor[128];
} engine;

static bt_status check(engine *e, bt_error *err) {
    const cfg_own *c = &e->config;
    bt_status status = bench_list_parse("prompt", c->prompt, MAX_TOKENS, &e->prompts, err);
    if (status == BT_OK) status = bench_list_parse("depth", c->depth, MAX_TOKENS, &e->depths, err);
    if (status == BT_OK) status = bench_list_parse("batch", c->batch, MAX_BATCH, &e->batches, err);
    if (status != BT_OK) return status;
    if (c->model[0] == 0)
        return bt_fail(err, BT_BAD_REQUEST, "--model is missing, expected the folder of a checkpoint");
    if (c->repeat == 0 || c->repeat > MAX_REPEAT || c->steps == 0 || c->steps > MAX_TOKENS) {
        return bt_fail(err, BT_BAD_REQUEST, "--repeat is %u and --steps is %u, expected 1 to %d and 1 to %d", c->repeat,
                       c->steps, MAX_REPEAT, MAX_TOKENS);
    }
    return BT_OK;
}

static void read_processor_name(char *out, size_t n) {
    snprintf(out, n, "unknown");
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[256];
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || colon == NULL) continue;
        snprintf(out, n, "%s", colon + 2);
        out[strcspn(out, "\n")] = 0;
        for (char *comma = out; (comma = strchr(comma, ',')) != NULL;) *comma = ' ';
        break;
    }
    if (file != NULL) fclose(file);
}

static bt_status open_engine(engine *e, bt_error *err) {
    enum { STEP_ROWS = 2048 };
    uint32_t longest = e->prompts.max, decoded = e->depths.max + e->config.steps, most = e->prompts.max;
    if (decoded > longest) longest = decoded;
    if (e->depths.max > most) most = e->depths.max;
    if (most > STEP_ROWS) most = STEP_ROWS;
    cpu_set_t set;
    if (e->config.threads == 0 && sched_getaffinity(0, sizeof(set), &set) == 0)
        e->config.threads = (uint32_t)CPU_COUNT(&set);
    krn_model_options options = {.dir = e->config.model, .backend = e->config.backend, .n_threads = e->config.threads};
    options.max_rows = most > e->batches.max ? most : e->batches.max;
    options.max_positions = longest;
    options.max_logits = e->batches.max > 0 ? e->batches.max : 1;
    if (options.max_rows == 0) return bt_fail(err, BT_BAD_REQUEST, "nothing to measure: all lists are zero");
    bt_status status = bench_batch_open(&options, &e->batch, err);
    if (status == BT_OK) e->machine = bench_machine_open(e->config.threads, krn_model_backend(e->batch.model)->isa);
    return status;
}

static void close_engine(engine *e) {
    bench_batch_close(&e->batch);
    bench_machine_close(e->machine);
}

/* Weights that a token multiplies, without embedding and head. */
static double layer_weights(const mdl_config *c) {
    double hidden = c->hidden_size, heads = c->num_attention_heads, sum = 0;
    double q_width = heads * (c->qk_nope_head_dim + c->qk_rope_head_dim);
    double attention = c->q_lora_rank > 0 ? c->q_lora_rank * (hidden + q_width) : hidden * q_width;
    attention += hidden * mdl_kv_width(c) + c->kv_lora_rank * heads * (c->qk_nope_head_dim + c->v_head_dim);
    attention += heads * c->v_head_dim * hidden;
    for (uint32_t i = 0; i < c->num_hidden_layers; i++) {
        double width = c->intermediate_size;
        if (mdl_layer_is_moe(c, i))
            width = (c->num_experts_per_tok + c->n_shared_experts) * (double)c->moe_intermediate_size;
        sum += attention + 3 * hidden * width + (mdl_layer_is_moe(c, i) ? hidden * c->n_routed_experts : 0);
    }
    return sum;
}

/* Multiply-adds of one query with one cached position, all heads and layers. */
static double pair_products(const mdl_config *c, krn_form form) {
    double expanded = c->qk_nope_head_dim + c->qk_rope_head_dim + c->v_head_dim;
    double absorbed = mdl_kv_width(c) + c->kv_lora_rank;
    return (form == KRN_EXPANDED ? expanded : absorbed) * c->num_attention_heads * c->num_hidden_layers;
}

typedef struct {
    const char *test;
    uint32_t n, depth, batch;
    double tokens, steps, flop; /* of one repetition */
} row;

static double repetition_seconds(engine *e, const row *r) {
    int64_t start_ns = bt_now_ns();
    bt_status status = strcmp(r->test, "prefill") == 0
                           ? bench_batch_prefill(&e->batch, r->n)
                           : bench_batch_decode(&e->batch, r->depth, r->batch, e->config.steps);
    BT_ASSERT(status == BT_OK); /* a model alone */
    return (double)(bt_now_ns() - start_ns) / BT_NS_PER_S;
}

static void measure(engine *e, const row *r) {
    static double seconds[MAX_REPEAT], of_read[MAX_REPEAT], of_bf16[MAX_REPEAT], read[MAX_REPEAT], bf16[MAX_REPEAT];
    uint32_t n = e->config.repeat;
    double gflop = r->flop * 1e-9;
    bench_batch_count(&e->batch, true);
    repetition_seconds(e, r); /* warms up */
    double gb = bench_batch_count(&e->batch, false) * 1e-9;
    bench_limits before = bench_machine_measure(e->machine);
    for (uint32_t i = 0; i < n; i++) {
        seconds[i] = repetition_seconds(e, r);
        bench_limits after = bench_machine_measure(e->machine);
        read[i] = (before.read_gb_s + after.read_gb_s) / 2;
        bf16[i] = (before.bf16_gflop_s + after.bf16_gflop_s) / 2;
        of_read[i] = gb / seconds[i] / read[i];
        of_bf16[i] = gflop / seconds[i] / bf16[i];
        before = after;
    }
    double middle = bench_median(seconds, n);
    const krn_backend *backend = krn_model_backend(e->batch.model);
    printf("%s,%s,%s,%u,%s,%u,%u,%u,%u,", BATON_COMMIT, e->processor, backend->isa, e->config.threads, r->test, r->n,
           r->depth, r->batch, n);
    printf("%.1f,%.1f,%.1f,%.2f,", r->tokens / middle, r->tokens / seconds[n - 1], r->tokens / seconds[0],
           middle / r->steps * 1e3);
    printf("%.1f,%.2f,%.0f,%.2f,%.1f,%s,%.0f\n", gb / middle, bench_median(of_read, n), gflop / middle,
           bench_median(of_bf16, n), bench_median(read, n), bench_machine_unit(e->machine), bench_median(bf16, n));
    fflush(stdout);
}

static void measure_all(engine *e) {
    const mdl_config *c = krn_model_config(e->batch.model);
    double weights = layer_weights(c), head = (double)c->hidden_size * c->vocab_size;
    for (uint32_t i = 0; i < e->prompts.n; i++) {
        double n = e->prompts.values[i], pairs = n * (n + 1) / 2;
        row r = {.test = "prefill", .n = e->prompts.values[i], .batch = 1, .tokens = n, .steps = 1};
        r.flop = 2 * (weights * n + head + pairs * pair_products(c, KRN_EXPANDED));
        if (r.n > 0) measure(e, &r);
    }
    for (uint32_t d = 0; d < e->depths.n; d++) {
        BT_ASSERT(bench_batch_prefill(&e->batch, e->depths.values[d]) == BT_OK);
        bench_batch_copy(&e->batch);
        for (uint32_t b = 0; b < e->batches.n; b++) {
            double batch = e->batches.values[b], steps = e->config.steps, depth = e->depths.values[d] + steps / 2;
            row r = {
                .test = "decode", .n = e->config.steps, .depth = e->depths.values[d], .batch = e->batches.values[b]};
            r.tokens = batch * steps;
            r.steps = steps;
            r.flop = 2 * r.tokens * (weights + head + depth * pair_products(c, KRN_ABSORBED));
            if (r.batch > 0) measure(e, &r);
        }
    }
}

static bt_status run(const void *own, bt_error *err) {
    engine e = {.config = *(const cfg_own *)own};
    bt_status status = check(&e, err);
    if (status == BT_OK) status = open_engine(&e, err);
    if (status == BT_OK) {
        read_processor_name(e.processor, sizeof(e.processor));
        printf("commit,cpu,isa,threads,test,n,depth,batch,repetitions,tokens_s,tokens_s_min,tokens_s_max,step_ms,"
               "gb_s,of_read,gflop_s,of_bf16,read_gb_s,bf16_unit,bf16_gflop_s\n");
        measure_all(&e);
    }
    close_engine(&e);
    return status;
}

BENCH_VERB(engine, "Measures prefill and decode of one model and prints CSV.", run);
