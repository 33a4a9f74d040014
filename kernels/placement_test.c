/* Who holds what: consecutive runs for any number of ranks, files that are right and files that are not, the choice
 * among replicas; and EPLB against DeepSeek's published example. */
#include "kernels/placement.h"

#include <string.h>

#include "common/core/test.h"
#include "common/model/test_files.h"
#include "kernels/eplb.h"

static const mdl_config config = {
    .num_hidden_layers = 3, .first_k_dense_replace = 1, .moe_layer_freq = 1, .n_routed_experts = 5};

static void test_runs(void) {
    bt_error err = {0};
    krn_placement *p = NULL;
    for (uint32_t n = 1; n <= 5; n++) {
        CHECK(krn_placement_open(&config, n, NULL, &p, &err) == BT_OK, "%s", err.text);
        uint32_t last = 0, n_held[5] = {0};
        for (uint32_t e = 0; e < 5; e++) {
            uint32_t holder = UINT32_MAX, n_holders = 0;
            for (uint32_t r = 0; r < n; r++) {
                if (!krn_placement_holds(p, r, 1, e)) continue;
                holder = r;
                n_holders++;
                n_held[r]++;
            }
            CHECK(n_holders == 1 && holder >= last, "%u ranks: expert %u is on one rank, ascending", n, e);
            CHECK(krn_placement_choose(p, 0, 2, e, e) == holder, "%u ranks: the only holder of %u is chosen", n, e);
            last = holder;
        }
        for (uint32_t r = 0; r < n; r++) {
            CHECK(n_held[r] == 5 / n || n_held[r] == (5 + n - 1) / n, "%u ranks: rank %u holds %u", n, r, n_held[r]);
        }
        CHECK(krn_placement_max_held(p) == (5 + n - 1) / n, "%u ranks: most held", n);
        krn_placement_close(p);
    }
    CHECK(krn_placement_open(&config, 6, NULL, &p, &err) == BT_BAD_REQUEST, "more ranks than experts");
    CHECK(krn_placement_open(&config, 0, NULL, &p, &err) == BT_BAD_REQUEST, "no ranks");
}

static void test_files(const char *dir) {
    static const struct {
        const char *text, *sentence;
    } rows[] = {
        {"{\"n_ranks\":2,\"phy2log\":[[0,1,2,3,4,0],[4,3,2,1,0,1,2,3]]}", NULL},
        {"[]", "JSON"},
        {"{\"n_ranks\":3,\"phy2log\":[]}", "\"n_ranks\": 2"},
        {"{\"n_ranks\":2}", "a list \"phy2log\""},
        {"{\"n_ranks\":2,\"phy2log\":[[0,1,2,3,4,0]]}", "no list for layer 2"},
        {"{\"n_ranks\":2,\"phy2log\":[[0,1,2,3,4,0],[0,1,2,3,4,0],[0,1,2,3,4,0]]}", "more lists"},
        {"{\"n_ranks\":2,\"phy2log\":[[0,1,2,3,4],[0,1,2,3,4,0]]}", "has 5 slots"},
        {"{\"n_ranks\":2,\"phy2log\":[[],[]]}", "has 0 slots"},
        {"{\"n_ranks\":2,\"phy2log\":[7,[]]}", "has 0 slots"},
        {"{\"n_ranks\":2,\"phy2log\":[[0,1,2,3,5,0],[0,1,2,3,4,0]]}", "slot 4 of layer 1"},
        {"{\"n_ranks\":2,\"phy2log\":[[0,1,2,3,-1,0],[0,1,2,3,4,0]]}", "slot 4 of layer 1"},
        {"{\"n_ranks\":2,\"phy2log\":[[0,1,2,3,\"4\",0],[0,1,2,3,4,0]]}", "slot 4 of layer 1"},
        {"{\"n_ranks\":2,\"phy2log\":[[0,1,2,3,3,0],[0,1,2,3,4,0]]}", "expert 4 of layer 1 is on no rank"},
    };
    char path[TEST_PATH_BYTES + 16];
    snprintf(path, sizeof(path), "%s/p.json", dir);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        krn_placement *p = NULL;
        bt_error err = {0};
        test_text_write(dir, "p.json", rows[i].text);
        bt_status status = krn_placement_open(&config, 2, path, &p, &err);
        bool is_right = rows[i].sentence == NULL
                            ? status == BT_OK
                            : status == BT_BAD_REQUEST && strstr(err.text, rows[i].sentence) != NULL;
        CHECK(is_right, "row %zu: \"%s\"", i, err.text);
        if (status == BT_OK) {
            CHECK(krn_placement_holds(p, 0, 1, 0) && krn_placement_holds(p, 1, 1, 0) &&
                      !krn_placement_holds(p, 0, 1, 3),
                  "layer 1");
            CHECK(krn_placement_choose(p, 1, 1, 0, 6) == 1 && krn_placement_choose(p, 0, 1, 0, 7) == 0,
                  "a rank that holds an expert computes it itself");
            CHECK(krn_placement_max_held(p) == 4, "most held");
        }
        krn_placement_close(p);
    }
    krn_placement *p = NULL;
    bt_error err = {0};
    test_text_write(dir, "p.json", "{\"n_ranks\":3,\"phy2log\":[[0,1,2,3,4,0],[0,1,2,3,4,0]]}");
    CHECK(krn_placement_open(&config, 3, path, &p, &err) == BT_OK, "%s", err.text);
    CHECK(krn_placement_choose(p, 1, 1, 0, 0) != krn_placement_choose(p, 1, 1, 0, 1), "replicas take turns");
    CHECK(krn_placement_choose(p, 1, 1, 0, 4) == krn_placement_choose(p, 1, 1, 0, 4), "a choice is a function");
    krn_placement *same = NULL, *other = NULL;
    test_text_write(dir, "p.json", "{\"n_ranks\":3,\"phy2log\":[[1,0,2,3,0,4],[0,1,3,2,4,0]]}");
    CHECK(krn_placement_open(&config, 3, path, &same, &err) == BT_OK, "%s", err.text);
    test_text_write(dir, "p.json", "{\"n_ranks\":3,\"phy2log\":[[1,0,2,3,0,4],[0,1,3,2,4,4]]}");
    CHECK(krn_placement_open(&config, 3, path, &other, &err) == BT_OK, "%s", err.text);
    CHECK(krn_placement_hash(same) == krn_placement_hash(p), "slots of a rank in another order");
    CHECK(krn_placement_hash(other) != krn_placement_hash(p), "another replica");
    krn_placement_close(same);
    krn_placement_close(other);
    krn_placement_close(p);
    CHECK(krn_placement_open(&config, 2, "/nowhere/p.json", &p, &err) == BT_BAD_REQUEST, "no such file");
}

static void test_eplb(void) {
    static const struct {
        uint64_t load[12];
        uint32_t phy2log[16];
    } layers[] = {
        {{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86}, {5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1}},
        {{20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}, {7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}},
    };
    const eplb_shape shape = {.n_experts = 12, .n_slots = 16, .n_groups = 4, .n_nodes = 2, .n_ranks = 8};
    bt_error err = {0};
    uint32_t found[16];
    for (size_t i = 0; i < sizeof(layers) / sizeof(layers[0]); i++) {
        CHECK(eplb_place(&shape, layers[i].load, found, &err) == BT_OK, "%s", err.text);
        CHECK(memcmp(found, layers[i].phy2log, sizeof(found)) == 0, "layer %zu of the published example", i);
    }
    const eplb_shape odd = {.n_experts = 12, .n_slots = 15, .n_groups = 4, .n_nodes = 3, .n_ranks = 3};
    const uint64_t idle[12] = {0};
    CHECK(eplb_place(&odd, idle, found, &err) == BT_OK, "%s", err.text);
    uint32_t n_found[12] = {0};
    for (uint32_t s = 0; s < 15; s++) n_found[found[s]]++;
    for (uint32_t e = 0; e < 12; e++) CHECK(n_found[e] > 0, "expert %u without load has a slot", e);
    static const eplb_shape wrong[] = {{12, 11, 4, 1, 1}, {12, 16, 4, 2, 3}, {12, 16, 5, 2, 8}, {12, 17, 4, 2, 8},
                                       {0, 16, 4, 2, 8},  {12, 16, 0, 2, 8}, {12, 16, 4, 0, 8}, {12, 16, 4, 2, 0}};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        CHECK(eplb_place(&wrong[i], idle, found, &err) == BT_BAD_REQUEST, "shape %zu", i);
    }
}

int main(void) {
    char dir[TEST_PATH_BYTES];
    test_dir_make(dir);
    test_runs();
    test_files(dir);
    test_eplb();
    test_dir_remove(dir);
    TEST_END();
}
