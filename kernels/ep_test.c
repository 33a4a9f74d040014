/* Experts on several ranks, bit for bit: `ep_test ref|cpu`. Whatever the number of ranks and the placement, every
 * rank's logits are those of a model alone: whole prompts, chunks, batches, ranks without rows. A rank that leaves,
 * keeps silent or sends nonsense ends the step of all with BT_PEER_LOST, and they go on in a new group. */
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>

#include "common/core/test.h"
#include "kernels/exchange_local.h"
#include "kernels/test_engine.h"
#include "kernels/test_model.h"

enum {
    MAX_RANKS = 7,
    N_PROMPT = 24,
    N_GENERATED = 3,
    N_TOKENS = N_PROMPT + N_GENERATED,
    MAX_ROWS = 2 * N_PROMPT,
    N_BLOCKS = 2,
    TIMEOUT_MS = 60000
};

static const char *backend = "ref";

/* Each rank has two texts, in a block each; it feeds both in one step. */
typedef struct {
    uint32_t ids[2][N_TOKENS], chunk;
    float *expected; /* [2][N_TOKENS][vocab] */
} script;

typedef struct {
    test_engine engine;
    ep_exchange *exchange;
    const script *script; /* NULL: no rows, helps until the group fails */
    uint32_t n_idle;      /* steps without rows after the script */
    uint32_t leave_after; /* steps; UINT32_MAX: never */
    bt_status status;     /* of the last step */
    bool is_equal;
    uint32_t n_steps;
} rank_thread;

static const uint32_t first_block = 0, second_block = 1;

static krn_sequence part(const script *s, uint32_t text, uint32_t first, uint32_t n, krn_form form) {
    return (krn_sequence){s->ids[text] + first, text == 0 ? &first_block : &second_block, n, first, form, n};
}

static uint32_t steps_of(const script *s) { return (N_PROMPT + s->chunk - 1) / s->chunk + N_GENERATED; }

/* Step `step` of the script: a chunk of both prompts, then a token of both texts. */
static bt_status run_step(test_engine *engine, const script *s, uint32_t step, krn_sequence sequences[2]) {
    uint32_t n_chunks = (N_PROMPT + s->chunk - 1) / s->chunk, first = step * s->chunk, n = s->chunk;
    krn_form form = KRN_EXPANDED;
    if (step >= n_chunks) {
        first = N_PROMPT + step - n_chunks;
        n = 1;
        form = KRN_ABSORBED;
    } else if (first + n > N_PROMPT) {
        n = N_PROMPT - first;
    }
    for (uint32_t i = 0; i < 2; i++) sequences[i] = part(s, i, first, n, form);
    return krn_forward(engine->model, engine->kv, sequences, 2, engine->logits, NULL, NULL);
}

/* Compares a step's logits with the expected ones, or keeps them as such. */
static bool keep_or_compare(test_engine *engine, const script *s, const krn_sequence sequences[2], bool is_kept) {
    const float *logits = engine->logits;
    bool is_equal = true;
    for (uint32_t i = 0; i < 2; i++) {
        size_t n = (size_t)sequences[i].n_logits * engine->vocab;
        float *place = s->expected + ((size_t)i * N_TOKENS + sequences[i].position) * engine->vocab;
        if (n > 0 && is_kept) memcpy(place, logits, n * sizeof(float));
        if (n > 0) is_equal = is_equal && memcmp(place, logits, n * sizeof(float)) == 0;
        logits += n;
    }
    return is_equal;
}

static void *rank_run(void *context) {
    rank_thread *t = context;
    krn_sequence sequences[2];
    t->is_equal = true;
    t->status = BT_OK;
    uint32_t n_steps = t->script != NULL ? steps_of(t->script) : UINT32_MAX;
    for (t->n_steps = 0; t->status == BT_OK && t->n_steps < t->leave_after; t->n_steps++) {
        if (t->n_steps < n_steps && t->script != NULL) {
            t->status = run_step(&t->engine, t->script, t->n_steps, sequences);
            if (t->status == BT_OK)
                t->is_equal = t->is_equal && keep_or_compare(&t->engine, t->script, sequences, false);
            continue;
        }
        if (t->script != NULL && t->n_steps >= n_steps + t->n_idle) return NULL;
        struct pollfd fd = {.fd = t->exchange->wait_fd(t->exchange), .events = POLLIN};
        while (!t->exchange->is_called(t->exchange)) {
            if (poll(&fd, 1, TIMEOUT_MS) <= 0) return NULL;
        }
        t->status = krn_forward(t->engine.model, t->engine.kv, NULL, 0, t->engine.logits, NULL, NULL);
    }
    if (t->leave_after != UINT32_MAX) {
        krn_model_set_exchange(t->engine.model, NULL);
        ep_exchange_close(t->exchange);
        t->exchange = NULL;
    }
    return NULL;
}

static void group_open(rank_thread *threads, uint32_t n_ranks, uint64_t epoch, uint32_t timeout_ms) {
    ep_exchange *exchanges[MAX_RANKS];
    const ep_limits limits = krn_model_ep_limits(threads[0].engine.model);
    bt_error err = {0};
    CHECK(ep_local_open(&limits, n_ranks, epoch, timeout_ms, exchanges, &err) == BT_OK, "%s", err.text);
    for (uint32_t r = 0; r < n_ranks; r++) {
        threads[r].exchange = exchanges[r];
        threads[r].leave_after = UINT32_MAX;
        krn_model_set_exchange(threads[r].engine.model, exchanges[r]);
    }
}

static void group_run(rank_thread *threads, uint32_t n_ranks) {
    pthread_t ids[MAX_RANKS];
    for (uint32_t r = 0; r < n_ranks; r++) pthread_create(&ids[r], NULL, rank_run, &threads[r]);
    for (uint32_t r = 0; r < n_ranks; r++) pthread_join(ids[r], NULL);
}

static void group_close(rank_thread *threads, uint32_t n_ranks) {
    for (uint32_t r = 0; r < n_ranks; r++) {
        krn_model_set_exchange(threads[r].engine.model, NULL);
        ep_exchange_close(threads[r].exchange);
    }
}

/* All ranks run their scripts; a rank whose script is shorter goes on without rows. */
static void run_scripts(rank_thread *threads, uint32_t n_ranks, const script *scripts, uint64_t epoch, const char *name,
                        const char *why) {
    uint32_t most = 0;
    group_open(threads, n_ranks, epoch, TIMEOUT_MS);
    for (uint32_t r = 0; r < n_ranks; r++) {
        uint32_t n = steps_of(&scripts[r % 4]);
        most = n > most ? n : most;
    }
    for (uint32_t r = 0; r < n_ranks; r++) {
        threads[r].script = &scripts[r % 4];
        threads[r].n_idle = most - steps_of(&scripts[r % 4]);
    }
    group_run(threads, n_ranks);
    for (uint32_t r = 0; r < n_ranks; r++) {
        CHECK(threads[r].status == BT_OK && threads[r].is_equal && threads[r].n_steps == most,
              "%s, %s: rank %u of %u: status %s, %u of %u steps, bits %s", name, why, r, n_ranks,
              bt_status_name(threads[r].status), threads[r].n_steps, most, threads[r].is_equal ? "equal" : "differ");
    }
    group_close(threads, n_ranks);
}

/* Only rank 0 has rows; the others sleep until they are called, and learn from the group's end that it is over. */
static void run_helpers(rank_thread *threads, uint32_t n_ranks, const script *scripts, const char *name) {
    pthread_t ids[MAX_RANKS];
    group_open(threads, n_ranks, 9, TIMEOUT_MS);
    for (uint32_t r = 0; r < n_ranks; r++) threads[r].script = NULL;
    threads[0].script = &scripts[1];
    threads[0].leave_after = steps_of(&scripts[1]);
    for (uint32_t r = 0; r < n_ranks; r++) pthread_create(&ids[r], NULL, rank_run, &threads[r]);
    for (uint32_t r = 0; r < n_ranks; r++) pthread_join(ids[r], NULL);
    CHECK(threads[0].status == BT_OK && threads[0].is_equal, "%s: idle ranks help: %s", name,
          bt_status_name(threads[0].status));
    for (uint32_t r = 1; r < n_ranks; r++) {
        CHECK(threads[r].status == BT_PEER_LOST, "%s: rank %u learns that rank 0 left: %s", name, r,
              bt_status_name(threads[r].status));
    }
    group_close(threads, n_ranks);
}

static void run_lost(rank_thread *threads, const script *scripts, const char *name) {
    enum { N = 3 };
    group_open(threads, N, 20, TIMEOUT_MS);
    for (uint32_t r = 0; r < N; r++) threads[r].script = &scripts[1];
    threads[2].leave_after = 2;
    group_run(threads, N);
    for (uint32_t r = 0; r < 2; r++) {
        CHECK(threads[r].status == BT_PEER_LOST && threads[r].is_equal, "%s: rank %u after the loss of rank 2: %s",
              name, r, bt_status_name(threads[r].status));
    }
    CHECK(threads[2].status == BT_OK, "%s: the rank that left was well", name);
    group_close(threads, N);
    group_open(threads, N, 21, 100);
    threads[0].script = threads[1].script = &scripts[1];
    threads[2].leave_after = 0;
    threads[2].exchange->fail(threads[2].exchange);
    group_run(threads, N);
    CHECK(threads[0].status == BT_PEER_LOST && threads[1].status == BT_PEER_LOST, "%s: a group that was given up",
          name);
    group_close(threads, N);
    group_open(threads, N, 22, 50); /* rank 2 does nothing at all */
    group_run(threads, 2);
    CHECK(threads[0].status == BT_PEER_LOST && threads[1].status == BT_PEER_LOST, "%s: a rank that keeps silent", name);
    group_close(threads, N);
    krn_sequence sequences[2];
    CHECK(run_step(&threads[0].engine, &scripts[1], 0, sequences) == BT_PEER_LOST, "%s: a rank without a group", name);
    run_scripts(threads, N, scripts, 23, name, "after a loss");
}

/* Rank 1 is played by hand, and sends what no rank of ours would. */
static void run_hostile(rank_thread *threads, const script *scripts, uint32_t n_experts, uint32_t layer,
                        const char *name) {
    const struct {
        const char *why;
        ep_pair pairs[2];
        uint32_t n_pairs;
    } rows[] = {
        {"a row that it did not send", {{1, 0, 1}}, 1},
        {"an expert that does not exist", {{0, n_experts, 1}}, 1},
        {"an expert of another rank", {{0, n_experts - 1, 1}}, 1},
        {"experts that descend", {{0, 1, 1}, {0, 0, 1}}, 2},
        {"the same pair twice", {{0, 0, 1}, {0, 0, 1}}, 2},
    };
    const uint32_t row = 0;
    uint8_t *x = bt_calloc(1, krn_model_ep_limits(threads[0].engine.model).row_bytes);
    krn_sequence sequences[2];
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        group_open(threads, 2, 30 + i, TIMEOUT_MS);
        ep_exchange *peer = threads[1].exchange;
        const ep_rows_out out[2] = {{&row, rows[i].pairs, 1, rows[i].n_pairs}, {0}};
        CHECK(peer->begin(peer) == BT_OK && peer->post_rows(peer, layer, x, out) == BT_OK, "rank 1 speaks");
        bt_status status = run_step(&threads[0].engine, &scripts[1], 0, sequences);
        CHECK(status == BT_PEER_LOST, "%s: %s: %s", name, rows[i].why, bt_status_name(status));
        group_close(threads, 2);
    }
    group_open(threads, 2, 40, TIMEOUT_MS);
    ep_exchange *peer = threads[1].exchange;
    const ep_rows_out out[2] = {{0}, {0}};
    CHECK(peer->begin(peer) == BT_OK && peer->post_rows(peer, layer + 1, x, out) == BT_OK, "rank 1 is a layer ahead");
    CHECK(run_step(&threads[0].engine, &scripts[1], 0, sequences) == BT_PEER_LOST, "%s: another layer", name);
    group_close(threads, 2);
    free(x);
}

/* Rank r holds expert e when (e + r) % 3 != 0 or e % n_ranks == r: replicas, uneven, some slots twice. */
static void write_placement(const char *path, const mdl_config *c, uint32_t n_ranks) {
    bt_buf text = {0};
    bt_buf_printf(&text, "{\"n_ranks\": %u, \"phy2log\": [", n_ranks);
    bool is_first = true;
    for (uint32_t layer = 0; layer < c->num_hidden_layers; layer++) {
        if (!mdl_layer_is_moe(c, layer)) continue;
        bt_buf_printf(&text, is_first ? "[" : ", [");
        is_first = false;
        for (uint32_t slot = 0; slot < n_ranks * c->n_routed_experts; slot++) {
            uint32_t e = slot % c->n_routed_experts, r = slot / c->n_routed_experts;
            bool is_held = (e + r + layer) % 3 == 1 || (e + layer) % n_ranks == r;
            uint32_t own = (r + n_ranks * c->n_routed_experts - layer) % n_ranks; /* held for certain */
            bt_buf_printf(&text, "%s%u", slot > 0 ? ", " : "", is_held ? e : own);
        }
        bt_buf_printf(&text, "]");
    }
    bt_buf_printf(&text, "]}");
    FILE *file = fopen(path, "w");
    CHECK(file != NULL && fwrite(text.bytes, 1, text.n_bytes, file) == text.n_bytes && fclose(file) == 0, "%s", path);
    bt_buf_fini(&text);
}

/* Sum of the ranks' weight bytes. */
static uint64_t ranks_open(rank_thread *threads, const char *dir, uint32_t n_ranks, const char *placement) {
    uint64_t n_bytes = 0;
    bt_error err = {0};
    memset(threads, 0, n_ranks * sizeof(*threads));
    for (uint32_t r = 0; r < n_ranks; r++) {
        bt_status status =
            test_engine_open_rank(dir, backend, MAX_ROWS, N_BLOCKS, r, n_ranks, placement, &threads[r].engine, &err);
        if (status != BT_OK) {
            fprintf(stderr, "%s: %s\n", dir, err.text);
            exit(1);
        }
        n_bytes += krn_model_weight_bytes(threads[r].engine.model);
    }
    return n_bytes;
}

static void ranks_close(rank_thread *threads, uint32_t n_ranks) {
    for (uint32_t r = 0; r < n_ranks; r++) test_engine_close(&threads[r].engine);
}

static void make_scripts(test_engine *alone, script scripts[4]) {
    static const uint32_t chunks[4] = {N_PROMPT, 7, 16, 10};
    for (uint32_t i = 0; i < 4; i++) {
        script *s = &scripts[i];
        uint64_t state = 7 + i;
        s->chunk = chunks[i];
        s->expected = bt_calloc((size_t)2 * N_TOKENS * alone->vocab, sizeof(float));
        for (uint32_t j = 0; j < 2 * N_TOKENS; j++) {
            s->ids[j / N_TOKENS][j % N_TOKENS] =
                (uint32_t)((test_random(&state) + 1) / 2 * 0.999f * (float)alone->vocab);
        }
        krn_sequence sequences[2];
        for (uint32_t step = 0; step < steps_of(s); step++) {
            CHECK(run_step(alone, s, step, sequences) == BT_OK, "alone");
            keep_or_compare(alone, s, sequences, true);
        }
    }
}

static void test_model_dir(const char *dir, const char *name, const char *scratch_dir) {
    static rank_thread threads[MAX_RANKS];
    script scripts[4] = {0};
    test_engine alone = {0};
    bt_error err = {0};
    bt_status status = test_engine_open(dir, backend, MAX_ROWS, N_BLOCKS, &alone, &err);
    CHECK(status == BT_OK, "%s: %s", name, err.text);
    if (status != BT_OK) return;
    const mdl_config *c = krn_model_config(alone.model);
    make_scripts(&alone, scripts);
    uint64_t alone_bytes = krn_model_weight_bytes(alone.model), shared_bytes = 0;
    uint32_t first_moe = 0;
    while (!mdl_layer_is_moe(c, first_moe)) first_moe++;
    for (uint32_t n = 1; n <= 5; n++) {
        uint64_t n_bytes = ranks_open(threads, dir, n, NULL);
        if (n == 2) shared_bytes = n_bytes - alone_bytes;
        CHECK(n_bytes == alone_bytes + (n - 1) * shared_bytes, "%s: each expert is on one of %u ranks", name, n);
        run_scripts(threads, n, scripts, n, name, "runs");
        if (n == 2) run_hostile(threads, scripts, c->n_routed_experts, first_moe, name);
        if (n == 3) run_lost(threads, scripts, name);
        if (n == 4) run_helpers(threads, n, scripts, name);
        ranks_close(threads, n);
    }
    CHECK(shared_bytes > 0 && shared_bytes < alone_bytes, "%s: ranks hold a part", name);
    char path[TEST_PATH_BYTES + 32];
    snprintf(path, sizeof(path), "%s/placement.json", scratch_dir);
    write_placement(path, c, 3);
    ranks_open(threads, dir, 3, path);
    run_scripts(threads, 3, scripts, 50, name, "replicas");
    ranks_close(threads, 3);
    for (uint32_t i = 0; i < 4; i++) free(scripts[i].expected);
    test_engine_close(&alone);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        test_model model;
    } models[] = {
        {"v3-bf16", {TEST_CONFIG_V3 "}", "BF16", "", "F32", NULL, NULL, NULL, false, false}},
        {"v3-fp8", {TEST_CONFIG_V3 TEST_FP8(16, 32) "}", "F8_E4M3", "F32", "F32", NULL, NULL, NULL, false, false}},
        {"v2-f32",
         {TEST_CONFIG_V2 ",\"tie_word_embeddings\":true,\"n_shared_experts\":2}", "F32", "", "", NULL, NULL, NULL,
          false, false}},
    };
    static const char *const fixtures[] = {"v3", "moonlight", "v2-lite"};
    char dir[TEST_PATH_BYTES], path[TEST_PATH_BYTES];
    if (argc > 1) backend = argv[1];
    test_dir_make(dir);
    for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++) {
        test_model_write(dir, &models[i].model);
        test_model_dir(dir, models[i].name, dir);
    }
    bool is_slow = strcmp(backend, "ref") == 0; /* nano-r1 in plain C takes minutes */
    if (!is_slow) test_model_dir("deploy/models/nano-r1", "nano-r1", dir);
    for (size_t i = 0; test_shared() != NULL && i < sizeof(fixtures) / sizeof(fixtures[0]); i++) {
        snprintf(path, sizeof(path), "%s/fixtures/models/%s", test_shared(), fixtures[i]);
        test_model_dir(path, fixtures[i], dir);
    }
    test_dir_remove(dir);
    TEST_END();
}
