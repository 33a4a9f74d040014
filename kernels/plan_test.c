/* From counted rows to a placement: what a model counts, pages that are right and pages that are not, sums, and plans
 * that spread a crooked load better than even runs do. */
#include "kernels/plan.h"

#include "common/core/test.h"
#include "kernels/placement.h"
#include "kernels/test_engine.h"
#include "kernels/test_model.h"

static char dir[TEST_PATH_BYTES];

static void test_a_model_counts_what_its_rows_choose(void) {
    enum { N_ROWS = 5, N_STEPS = 2 };
    static const test_model model = {.config = TEST_CONFIG_V3 "}", .matrix_dtype = "BF16", .bias_dtype = "F32"};
    test_engine engine = {0};
    bt_error err = {0};
    test_model_write(dir, &model);
    bt_status status = test_engine_open(dir, "ref", N_ROWS, 1, &engine, &err);
    CHECK(status == BT_OK, "%s", err.text);
    if (status != BT_OK) return;
    const mdl_config *c = krn_model_config(engine.model);
    const uint32_t ids[N_ROWS] = {1, 2, 3, 4, 5}, block = 0;
    for (uint32_t step = 0; step < N_STEPS; step++) {
        /* With fewer logits the last layer has fewer rows. */
        const krn_sequence rows = {ids, &block, N_ROWS, step * N_ROWS, KRN_EXPANDED, N_ROWS};
        test_engine_step(&engine, &rows, 1);
    }
    krn_expert_load load = {0}, read = {0};
    krn_expert_load_take(engine.model, &load);
    uint32_t n_layers = 0;
    for (uint32_t i = 0; i < c->num_hidden_layers; i++) n_layers += mdl_layer_is_moe(c, i);
    CHECK(n_layers > 0 && load.n_layers == n_layers && load.n_experts == c->n_routed_experts, "%u", load.n_layers);
    for (uint32_t layer = 0; layer < n_layers; layer++) {
        uint64_t n = 0;
        for (uint32_t e = 0; e < load.n_experts; e++) n += load.rows[layer * load.n_experts + e];
        CHECK(n == N_ROWS * N_STEPS * c->num_experts_per_tok, "layer %u: %d", layer, (int)n);
    }
    CHECK(load.model_hash == krn_model_hash(engine.model) && load.rank == 0 && load.n_ranks == 1, "who");
    bt_buf page = {0};
    krn_expert_load_write(&load, &page);
    CHECK(krn_expert_load_parse("page", page.bytes, page.n_bytes, &read, &err) == BT_OK, "%s", err.text);
    CHECK(read.model_hash == load.model_hash && read.n_layers == n_layers && read.group[0] == 0, "who, again");
    CHECK(memcmp(read.rows, load.rows, (size_t)n_layers * load.n_experts * sizeof(uint64_t)) == 0, "rows");
    bt_buf_fini(&page);
    krn_expert_load_fini(&load);
    krn_expert_load_fini(&read);
    test_engine_close(&engine);
}

#define WHO(hash, group, rank, n_ranks)                                                                                \
    "{\"model_hash\":" hash ",\"group\":" group ",\"rank\":" rank ",\"n_ranks\":" n_ranks ",\"rows\":"
#define RANK_1 WHO("\"0123456789abcdef\"", "\"g\"", "1", "2")

static void test_pages_are_checked(void) {
    static const struct {
        const char *text, *sentence; /* NULL: accepted */
    } rows[] = {
        {RANK_1 "[[1,2,3],[4,5,9007199254740992]]}", NULL},
        {RANK_1 "[]}", NULL},
        {"", "not valid JSON"},
        {"<html>", "not valid JSON"},
        {RANK_1 "[[1,2,3],[4,5,6]]} and more", "other bytes"},
        {"[]", "not an object"},
        {"{}", "model_hash"},
        {WHO("7", "\"g\"", "1", "2") "[]}", "model_hash"},
        {WHO("\"0123456789abcdeg\"", "\"g\"", "1", "2") "[]}", "model_hash"},
        {WHO("\"0123456789abcdef0\"", "\"g\"", "1", "2") "[]}", "model_hash"},
        {WHO("\"0123456789abcdef\"", "7", "1", "2") "[]}", "no name of a group"},
        {WHO("\"0123456789abcdef\"", "\"a b\"", "1", "2") "[]}", "no name of a group"},
        {WHO("\"0123456789abcdef\"", "\"0123456789012345678901234567890123456789012345678901234567890123\"", "1",
             "2") "[]}",
         "no name of a group"},
        {WHO("\"0123456789abcdef\"", "\"g\"", "2", "2") "[]}", "not one of n_ranks"},
        {WHO("\"0123456789abcdef\"", "\"g\"", "-1", "2") "[]}", "not one of n_ranks"},
        {WHO("\"0123456789abcdef\"", "\"g\"", "0", "257") "[]}", "not one of n_ranks"},
        {WHO("\"0123456789abcdef\"", "\"g\"", "\"0\"", "2") "[]}", "not one of n_ranks"},
        {RANK_1 "7}", "no list \"rows\""},
        {RANK_1 "[7]}", "0 experts"},
        {RANK_1 "[[]]}", "0 experts"},
        {RANK_1 "[[1,2,3],[4,5]]}", "has not 3 numbers"},
        {RANK_1 "[[1,2,3],[4,5,6,7]]}", "has not 3 numbers"},
        {RANK_1 "[[1,2,3],7]}", "has not 3 numbers"},
        {RANK_1 "[[1,2,-3]]}", "no count"},
        {RANK_1 "[[1,2,3.5]]}", "no count"},
        {RANK_1 "[[1,2,9007199254740994]]}", "no count"},
        {RANK_1 "[[1,2,1e300]]}", "no count"},
        {RANK_1 "[[1,2,null]]}", "no count"},
        {RANK_1 "[[1,2,\"3\"]]}", "no count"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        krn_expert_load load = {0};
        bt_error err = {0};
        bt_status status = krn_expert_load_parse("page", rows[i].text, strlen(rows[i].text), &load, &err);
        bool is_right = rows[i].sentence == NULL
                            ? status == BT_OK && load.rank == 1 && load.n_ranks == 2 && strcmp(load.group, "g") == 0
                            : status == BT_BAD_REQUEST && strstr(err.text, rows[i].sentence) != NULL;
        CHECK(is_right, "row %zu: \"%s\"", i, err.text);
        krn_expert_load_fini(&load);
    }
}

static void check_refused(const bt_buf *page, const char *sentence) {
    krn_expert_load load = {0};
    bt_error err = {0};
    CHECK(krn_expert_load_parse("page", page->bytes, page->n_bytes, &load, &err) == BT_BAD_REQUEST &&
              strstr(err.text, sentence) != NULL,
          "%s: \"%s\"", sentence, err.text);
    krn_expert_load_fini(&load);
}

static void test_pages_made_to_hurt_are_refused(void) {
    enum { MANY = 1000000 };
    bt_buf page = {0};
    bt_buf_puts(&page, RANK_1);
    for (int i = 0; i < MANY; i++) bt_buf_puts(&page, "[");
    check_refused(&page, "nested deeper");
    bt_buf_clear(&page);
    bt_buf_puts(&page, RANK_1 "[[0");
    for (int i = 1; i < MDL_MAX_EXPERTS; i++) bt_buf_puts(&page, ",0");
    bt_buf_puts(&page, "]");
    size_t n_bytes = page.n_bytes;
    for (int i = 0; i < MANY; i++) bt_buf_puts(&page, ",[]"); /* memory for a million full lists is not taken */
    bt_buf_puts(&page, "]}");
    check_refused(&page, "has not 4096 numbers");
    page.n_bytes = n_bytes - 1;
    bt_buf_puts(&page, ",0]]}");
    check_refused(&page, "4097 experts");
    while (page.n_bytes <= KRN_LOAD_MAX_PAGE_BYTES) bt_buf_puts(&page, "                                ");
    check_refused(&page, "limit 16777216");
    bt_buf_fini(&page);
}

/* Layers of 4 experts. */
static krn_expert_load load_of(uint32_t n_layers, const uint64_t *rows) {
    krn_expert_load load = {.model_hash = 7, .n_ranks = 2, .n_layers = n_layers, .n_experts = 4};
    load.rows = bt_calloc(4 * (size_t)n_layers, sizeof(uint64_t));
    for (uint32_t i = 0; rows != NULL && i < 4 * n_layers; i++) load.rows[i] = rows[i];
    return load;
}

static void test_loads_add_up_if_they_are_of_one_model(void) {
    krn_expert_load sum = {0}, one = load_of(2, (const uint64_t[]){1, 2, 3, 4, 5, 6, 7, 8});
    bt_error err = {0};
    for (int i = 0; i < 3; i++) CHECK(krn_expert_load_add(&sum, &one, &err) == BT_OK, "%s", err.text);
    for (uint32_t i = 0; i < 8; i++) CHECK(sum.rows[i] == 3 * (i + 1), "expert %u", i);
    CHECK(krn_expert_load_total(&sum) == 108 && krn_expert_load_total(&one) == 36, "totals");
    krn_expert_load other = load_of(1, one.rows);
    CHECK(krn_expert_load_add(&sum, &other, &err) == BT_BAD_REQUEST, "fewer layers");
    one.model_hash++;
    CHECK(krn_expert_load_add(&sum, &one, &err) == BT_BAD_REQUEST, "another model");
    CHECK(krn_expert_load_total(&sum) == 108, "unchanged");
    krn_expert_load_fini(&sum);
    krn_expert_load_fini(&one);
    krn_expert_load_fini(&other);
}

static void test_a_plan_is_more_even_than_runs(void) {
    krn_expert_load load = load_of(2, (const uint64_t[]){90, 80, 10, 20, 0, 0, 0, 100});
    char path[TEST_PATH_BYTES + 16];
    snprintf(path, sizeof(path), "%s/plan.json", dir);
    double slowest = 0;
    bt_error err = {0};
    CHECK(krn_plan_weigh(NULL, &load, 2, &slowest, &err) == BT_OK, "%s", err.text);
    CHECK(slowest > 1.799 && slowest < 1.801, "170 of 200 and 100 of 100 rows, of 150 in the mean: %f", slowest);
    CHECK(krn_plan_write(path, &load, 2, 0, &err) == BT_OK, "%s", err.text);
    CHECK(krn_plan_weigh(path, &load, 2, &slowest, &err) == BT_OK, "%s", err.text);
    CHECK(slowest > 1.333 && slowest < 1.334, "100 of 200 and 100 of 100: %f", slowest);
    CHECK(krn_plan_write(path, &load, 2, 5, &err) == BT_OK, "%s", err.text);
    CHECK(krn_plan_weigh(path, &load, 2, &slowest, &err) == BT_OK, "%s", err.text);
    CHECK(slowest < 1.334, "6 slots, not 5: %f", slowest);
    CHECK(krn_plan_write(path, &load, 2, 8, &err) == BT_OK, "%s", err.text);
    CHECK(krn_plan_weigh(path, &load, 3, &slowest, &err) == BT_BAD_REQUEST, "for another number of ranks");

    static const struct {
        uint32_t n_ranks, n_slots;
        const char *sentence;
    } rows[] = {{0, 0, "0 ranks"}, {5, 0, "5 ranks"}, {257, 0, "257 ranks"},
                {2, 3, "3 slots"}, {2, 9, "9 slots"}, {2, UINT32_MAX, "4294967295 slots"}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        CHECK(krn_plan_write(path, &load, rows[i].n_ranks, rows[i].n_slots, &err) == BT_BAD_REQUEST &&
                  strstr(err.text, rows[i].sentence) != NULL,
              "row %zu: \"%s\"", i, err.text);
    }
    CHECK(krn_plan_write("/nowhere/plan.json", &load, 2, 0, &err) == BT_INTERNAL, "%s", err.text);
    krn_expert_load idle = load_of(2, NULL), none = {.n_ranks = 1};
    CHECK(krn_plan_write(path, &idle, 2, 0, &err) == BT_BAD_REQUEST && strstr(err.text, "no row") != NULL, "idle");
    CHECK(krn_plan_write(path, &none, 2, 0, &err) == BT_BAD_REQUEST, "a model without experts");
    krn_expert_load_fini(&load);
    krn_expert_load_fini(&idle);
}

int main(void) {
    test_dir_make(dir);
    test_a_model_counts_what_its_rows_choose();
    test_pages_are_checked();
    test_pages_made_to_hurt_are_refused();
    test_loads_add_up_if_they_are_of_one_model();
    test_a_plan_is_more_even_than_runs();
    test_dir_remove(dir);
    TEST_END();
}
