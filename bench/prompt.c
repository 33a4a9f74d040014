/* baton-bench prompt: what a chat request's body costs the gateway until its blocks are named, on one thread.
 *
 * Timed in processor time, each by itself: gw_api_parse() (of it txt_json_read()), gw_prompt_build() (of it
 * tpl_render() and tok_encode()), kv_prefix_names(). The total is the sum of the three functions. Not timed: HTTP, the
 * choice of workers, freeing the request. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/kv/kv_layout.h"
#include "common/kv/kv_prefix.h"
#include "common/text/json.h"
#include "gateway/text/prompt.h"

#define FLAGS(F)                                                                                                       \
    F(str, model, "", "folder of the checkpoint; weights are not read")                                                \
    F(str, body, "", "file with the body of a chat request")                                                           \
    F(u32, cache_mb, "0", "of text that is not encoded again, so that `build` is that of a known prompt; 0: none")     \
    F(u32, repeat, "101", "repetitions; the median counts")
CFG_OWN(FLAGS)

enum { MAX_REPEAT = 10000, MAX_BODY_BYTES = 64 << 20 };

typedef enum { JSON, PARSE, RENDER, ENCODE, BUILD, NAMES, TOTAL, N_PARTS } part;
static const char *const part_names[] = {"json of parse", "parse", "render of build", "encode of build", "build",
                                         "names",         "total"};

typedef struct {
    const gw_model *model;
    tok_cache *cache;
    bt_buf body, copy, text;
    size_t n_tokens;
    double us[N_PARTS];
} bench;

static double us_since(int64_t begin_ns) { return (double)(bench_cpu_ns() - begin_ns) / BT_NS_PER_US; }

static void copy_body(bench *b) {
    bt_buf_clear(&b->copy);
    bt_buf_put(&b->copy, b->body.bytes, b->body.n_bytes);
}

/* What gw_prompt_build() is made of, once more by itself. */
static bt_status time_build(bench *b, const gw_request *request, bt_error *err) {
    tok_ids ids = {0};
    bt_buf_clear(&b->text);
    int64_t begin_ns = bench_cpu_ns();
    bt_status status = tpl_render(b->model->chat_template, request->variables, &b->text, err);
    b->us[RENDER] = us_since(begin_ns);
    begin_ns = bench_cpu_ns();
    if (status == BT_OK)
        status = tok_encode(b->model->tokenizer, (const char *)b->text.bytes, b->text.n_bytes, 0, &ids, err);
    b->us[ENCODE] = us_since(begin_ns);
    tok_ids_fini(&ids);
    return status;
}

static void time_names(bench *b, const gw_tokens *tokens) {
    uint32_t n_blocks = (uint32_t)tokens->ids.n_ids / KV_BLOCK_TOKENS;
    wire_block_name *names = bt_calloc(n_blocks, sizeof(*names));
    int64_t begin_ns = bench_cpu_ns();
    kv_prefix_names(1, wire_str_from(""), tokens->ids.ids, n_blocks, names);
    b->us[NAMES] = us_since(begin_ns);
    free(names);
}

static bt_status run_once(bench *b, bt_error *err) {
    static const txt_json_rules rules = {
        .max_depth = GW_MAX_JSON_DEPTH, .max_values = GW_MAX_JSON_VALUES, .repairs = true};
    cJSON *tree;
    gw_request request = {0};
    gw_tokens tokens = {0};
    gw_error error = {0};
    copy_body(b);
    int64_t begin_ns = bench_cpu_ns();
    bt_status status = txt_json_read((char *)b->copy.bytes, b->copy.n_bytes, &rules, &tree, err);
    b->us[JSON] = us_since(begin_ns);
    if (status != BT_OK) return status;
    cJSON_Delete(tree);
    copy_body(b);
    begin_ns = bench_cpu_ns();
    status = gw_api_parse(GW_CHAT, &b->model->rules, (char *)b->copy.bytes, b->copy.n_bytes, &request, &error);
    b->us[PARSE] = us_since(begin_ns);
    begin_ns = bench_cpu_ns();
    if (status == BT_OK) status = gw_prompt_build(b->model, b->cache, &request, 0, UINT32_MAX, &tokens, &error);
    b->us[BUILD] = us_since(begin_ns);
    if (status != BT_OK) return bt_fail(err, BT_BAD_REQUEST, "the body is refused: %s", error.message);
    time_names(b, &tokens);
    b->us[TOTAL] = b->us[PARSE] + b->us[BUILD] + b->us[NAMES];
    b->n_tokens = tokens.ids.n_ids;
    status = time_build(b, &request, err);
    gw_tokens_fini(&tokens);
    gw_request_fini(&request);
    return status;
}

static bt_status read_body(const char *path, bt_buf *out, bt_error *err) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) return bt_fail(err, BT_BAD_REQUEST, "--body %s cannot be opened", path);
    for (size_t n = 1; n > 0 && out->n_bytes < MAX_BODY_BYTES; out->n_bytes += n) {
        bt_buf_reserve(out, 1 << 16);
        n = fread(out->bytes + out->n_bytes, 1, 1 << 16, file);
    }
    fclose(file);
    return BT_OK;
}

static bt_status run(const void *own, bt_error *err) {
    const cfg_own *config = own;
    if (config->repeat == 0 || config->repeat > MAX_REPEAT)
        return bt_fail(err, BT_BAD_REQUEST, "--repeat is 1 to %d", (int)MAX_REPEAT);
    gw_model *model = NULL;
    gw_model_options options = {.model_dir = config->model,
                                .served_names = "",
                                .chat_template = "",
                                .reasoning_parser = "auto",
                                .tool_call_parser = "auto"};
    bench b = {0};
    double *us = bt_calloc((size_t)N_PARTS * config->repeat, sizeof(*us));
    bt_status status = read_body(config->body, &b.body, err);
    if (status == BT_OK) status = gw_model_open(&options, &model, err);
    b.model = model;
    if (config->cache_mb > 0) b.cache = tok_cache_open((size_t)config->cache_mb << 20, 1);
    for (uint32_t turn = 0; turn < config->repeat && status == BT_OK; turn++) {
        status = run_once(&b, err);
        for (int i = 0; i < N_PARTS; i++) us[(size_t)i * config->repeat + turn] = b.us[i];
    }
    if (status == BT_OK) printf("commit,part,body_bytes,tokens,cache_mb,us,us_min\n");
    for (int i = 0; i < N_PARTS && status == BT_OK; i++) {
        double median = bench_median(&us[(size_t)i * config->repeat], config->repeat); /* sorts */
        printf("%s,%s,%zu,%zu,%u,%.1f,%.1f\n", BATON_COMMIT, part_names[i], b.body.n_bytes, b.n_tokens,
               config->cache_mb, median, us[(size_t)i * config->repeat]);
    }
    free(us);
    bt_buf_fini(&b.body);
    bt_buf_fini(&b.copy);
    bt_buf_fini(&b.text);
    tok_cache_close(b.cache);
    gw_model_close(model);
    return status;
}

BENCH_VERB(prompt, "measures a chat request's way from its body to its prompt's tokens and blocks.", run);
