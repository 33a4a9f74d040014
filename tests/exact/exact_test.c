/* The same bits always: tokens and logprobs of a set of requests are equal, byte for byte, whatever the batch, the
 * chunk, the caches, the number of expert-parallel ranks, who computes the prompt, and however often decode had to give
 * blocks up. Greedy and drawn, on all backends, on the bundled model and on fixture checkpoints (BATON_SHARED). A part
 * of the matrix on each; `exact_test all`: the whole, which takes many minutes. */
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/test.h"
#include "tests/exact/pair.h"

enum { MAX_PROMPT = 700, N_REQUESTS = 12, SHARED = 130 };

typedef struct {
    uint32_t prompts[N_REQUESTS][MAX_PROMPT];
    pair_request requests[N_REQUESTS];
    uint32_t banned[N_REQUESTS][3];
    wire_word words[N_REQUESTS][2]; /* of banned */
    pair_stream expected[N_REQUESTS];
    uint32_t n;
} texts;

static uint32_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

/* Short and long prompts; every third one begins like the first; every second request draws, every third has penalties.
 */
static void make_texts(texts *t, const mdl_config *c, uint32_t n, bool is_short) {
    static const uint32_t lengths[] = {190, 1, 67, 320, 64, 63, 260, 65, 20, 610, 128, 33};
    uint64_t state = 7;
    t->n = n;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t n_prompt = lengths[i];
        if (is_short && n_prompt > 200) n_prompt = 200;
        for (uint32_t k = 0; k < n_prompt; k++)
            t->prompts[i][k] =
                i % 3 == 0 && k < SHARED && i > 0 ? t->prompts[0][k] : next_random(&state) % c->vocab_size;
        t->requests[i] = (pair_request){.prompt = t->prompts[i],
                                        .n_prompt = n_prompt,
                                        .max_tokens = 4 + i % 4 * 6,
                                        .sampling = {.temperature = i % 2 == 0 ? 0 : 0.8f,
                                                     .top_p = 1,
                                                     .seed = 1000 + i,
                                                     .ignore_eos = 1,
                                                     .repetition_penalty = i % 3 == 1 ? 1.1f : 1,
                                                     .frequency_penalty = i % 3 == 1 ? 0.5f : 0,
                                                     .n_logprobs = PAIR_N_LOGPROBS}};
    }
}

/* What each request gives alone; for every fourth of them once some of that is forbidden to it: the second and third
 * token in a row, and the fourth anywhere. */
static void make_expected(texts *t, pair_engine *engine) {
    pair *alone = pair_open(engine, &(pair_options){1, 512, 200, 200, false, 0});
    for (uint32_t i = 0; i < t->n; i++) {
        pair_request *request = &t->requests[i];
        pair_run(alone, request, 1, &t->expected[i]);
        if (i % 4 != 2) continue;
        uint32_t *banned = t->banned[i];
        for (uint32_t k = 0; k < 3; k++) banned[k] = t->expected[i].outputs[1 + k].token;
        t->words[i][0] = (wire_word){banned, 2};
        t->words[i][1] = (wire_word){banned + 2, 1};
        request->constraint = (wire_constraint){.bad_words = t->words[i], .n_bad_words = 2};
        pair_run(alone, request, 1, &t->expected[i]);
        for (uint32_t k = 0, last = UINT32_MAX; k < t->expected[i].n; k++) {
            uint32_t token = t->expected[i].outputs[k].token;
            CHECK(token != banned[2] && !(last == banned[0] && token == banned[1]), "request %u says a bad word", i);
            last = token;
        }
    }
    pair_close(alone);
}

static void compare(const texts *t, const pair_stream *streams, const char *name) {
    for (uint32_t i = 0; i < t->n; i++) {
        uint32_t at = 0;
        while (at < streams[i].n &&
               memcmp(&streams[i].outputs[at], &t->expected[i].outputs[at], sizeof(streams[i].outputs[at])) == 0)
            at++;
        CHECK(streams[i].n == t->expected[i].n && at == streams[i].n, "%s: request %u differs at output %u of %u", name,
              i, at, t->expected[i].n);
    }
}

/* Returns how often somebody was preempted. */
static uint64_t run(const texts *t, pair_engine *engine, const pair_options *options, const char *name) {
    static pair_stream streams[N_REQUESTS];
    pair *p = pair_open(engine, options);
    for (uint32_t round = 0; round < (options->has_prefix_cache ? 2u : 1u); round++) { /* cold, then warm */
        pair_run(p, t->requests, t->n, streams);
        compare(t, streams, name);
    }
    pair_counts counts = pair_counted(p);
    CHECK(!options->has_prefix_cache || counts.n_prefix_hits > 0, "%s: the caches were not used", name);
    CHECK((counts.n_local > 0) == (options->local_tokens > 0), "%s: decode computed %llu prompts", name,
          (unsigned long long)counts.n_local);
    pair_close(p);
    return counts.n_preempted;
}

/* Batches, chunks, caches and small pools of one engine: all, or one in `stride`, other ones for each n_ranks. Returns
 * preemptions. */
static uint64_t run_matrix(const texts *t, pair_engine *engine, const char *what, uint32_t n_ranks, uint32_t stride) {
    static const uint32_t batches[] = {1, 8, 32}, chunks[] = {64, 512};
    uint64_t n_preempted = 0;
    char name[400];
    for (uint32_t m = n_ranks % stride; m < 3 * 2 * 2 * 2 * 2; m += stride) {
        bool is_small = m % 2 != 0, has_cache = m / 2 % 2 != 0;
        uint32_t chunk = chunks[m / 4 % 2], batch = batches[m / 16];
        bool has_local = m / 8 % 2 != 0;
        pair_options options = {.max_num_seqs = batch,
                                .chunk = chunk,
                                .prefill_blocks = 200,
                                .decode_blocks = is_small ? 14 : 200,
                                .has_prefix_cache = has_cache,
                                .local_tokens = has_local ? 100 : 0};
        snprintf(name, sizeof(name), "%s, %u ranks, batch %u, chunk %u, %s cache, %s pool%s", what, n_ranks, batch,
                 chunk, has_cache ? "warm" : "no", is_small ? "small" : "large", has_local ? ", local" : "");
        n_preempted += run(t, engine, &options, name);
    }
    return n_preempted;
}

static void test_model_dir(const char *dir, const char *backend, uint32_t stride) {
    static texts t;
    char what[256];
    bt_error err = {0};
    const char *base = strrchr(dir, '/');
    bool is_slow = strcmp(backend, "ref") == 0;
    uint32_t max_ranks = strcmp(backend, "sim") == 0 ? 1 : 4; /* it has no experts to share */
    uint64_t n_preempted = 0;
    snprintf(what, sizeof(what), "%s on %s", base != NULL ? base + 1 : dir, backend);
    for (uint32_t n_ranks = 1; n_ranks <= max_ranks; n_ranks++) {
        pair_engine *engine = NULL;
        if (pair_engine_open(dir, backend, n_ranks, &engine, &err) != BT_OK) {
            CHECK(false, "%s: %s", what, err.text);
            return;
        }
        if (n_ranks == 1) {
            make_texts(&t, pair_engine_config(engine), is_slow ? 6 : N_REQUESTS, is_slow);
            make_expected(&t, engine);
        }
        n_preempted += run_matrix(&t, engine, what, n_ranks, stride);
        pair_engine_close(engine);
    }
    CHECK(is_slow || n_preempted > 0, "%s: nobody was preempted", what);
    fprintf(stderr, "%s: equal so far in %d checks, %llu preemptions\n", what, test_n_checks - test_n_failed,
            (unsigned long long)n_preempted);
}

static bool is_wanted(const char *model, int argc, char **argv) {
    bool is_wanted = argc <= 2;
    for (int i = 2; i < argc; i++) is_wanted |= strcmp(argv[i], model) == 0;
    return is_wanted;
}

/* exact_test [all [MODEL...]]: the whole matrix, of these models. */
int main(int argc, char **argv) {
    static const char *const fixtures[] = {"v3", "v2-lite", "v3-fp8"};
    bool is_all = argc > 1 && strcmp(argv[1], "all") == 0;
    const char *shared = test_shared();
    if (is_wanted("nano-r1", argc, argv)) {
        test_model_dir("deploy/models/nano-r1", "cpu", is_all ? 1 : 17);
        test_model_dir("deploy/models/nano-r1", "ref", is_all ? 1 : 97);
        test_model_dir("deploy/models/nano-r1", "sim", 1);
    }
    for (size_t i = 0; shared != NULL && i < sizeof(fixtures) / sizeof(fixtures[0]); i++) {
        if (!is_wanted(fixtures[i], argc, argv)) continue;
        char dir[512];
        snprintf(dir, sizeof(dir), "%s/fixtures/models/%s", shared, fixtures[i]);
        test_model_dir(dir, "cpu", is_all ? 1 : i == 0 ? 5 : 13);
        test_model_dir(dir, "ref", is_all ? 1 : 23);
    }
    if (shared == NULL) fprintf(stderr, "SKIPPED: the fixture checkpoints, for want of BATON_SHARED\n");
    TEST_END();
}
