/* Checkpoints: what a well-formed one gives, and that each way of being malformed is refused with a sentence that names
 * it. All files are written here. */
#include "common/model/checkpoint.h"

#include <sys/stat.h>

#include "common/core/test.h"
#include "common/model/json.h"
#include "common/model/safetensors.h"
#include "common/model/test_files.h"

static char dir[TEST_PATH_BYTES];

static void test_headers(void) {
    static const struct {
        const char *why, *header;
        size_t n_data_bytes;
        const char *sentence; /* a part of it; NULL: accepted */
    } rows[] = {
        {"one tensor", "{\"a\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,12]}}", 12, NULL},
        {"spaces behind the JSON", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}   ", 1, NULL},
        {"a scalar", "{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, NULL},
        {"an empty tensor", "{\"a\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[0,0]}}", 0, NULL},
        {"metadata only", "{\"__metadata__\":{\"format\":\"pt\"}}", 0, NULL},
        {"no tensor at all", "{}", 0, NULL},
        {"shape and bytes differ", "{\"a\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,10]}}", 10,
         "tensor a has 10 bytes, expected 12"},
        {"beyond the file", "{\"a\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[0,9]}}", 8, "truncated"},
        {"offsets reversed", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,0]}}", 1,
         "lies at bytes 1 to 0"},
        {"negative offset", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[-1,0]}}", 1, "data_offsets"},
        {"fraction", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1.5],\"data_offsets\":[0,1]}}", 1, "not a whole number"},
        {"huge offset", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1e300]}}", 1, "data_offsets"},
        {"three offsets", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,1]}}", 1, "data_offsets"},
        {"no offsets", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "data_offsets"},
        {"shape overflows", "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
         "overflows"},
        {"rank 9", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1, "dimensions"},
        {"unknown dtype", "{\"a\":{\"dtype\":\"Q4_K\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "unknown dtype Q4_K"},
        {"dtype is a number", "{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "no dtype"},
        {"entry is a list", "{\"a\":[1]}", 0, "not an object"},
        {"half a byte", "{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, "tensor a has 1 bytes"},
        {"overlap",
         "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[3,7]}}",
         7, "tensor b overlaps"},
        {"the same bytes twice",
         "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
         4, "overlaps"},
        {"hole",
         "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[5,8]}}",
         8, "leaves a hole"},
        {"bytes behind the last", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 5,
         "belong to no tensor"},
        {"not JSON", "{\"a\":", 0, "not valid JSON"},
        {"a list", "[]", 0, "not an object"},
        {"two values", "{}{}", 0, "behind the JSON"},
        {"empty header", "", 0, "not valid JSON"},
        {"same name twice",
         "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
         2, "tensor a is there twice"},
    };
    static const uint8_t data[16];
    test_text_write(dir, "config.json", "{}");
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        mdl_checkpoint *checkpoint = NULL;
        bt_error err = {0};
        test_safetensors_write(dir, "model.safetensors", rows[i].header, data, rows[i].n_data_bytes);
        bt_status status = mdl_checkpoint_open(dir, &checkpoint, &err);
        if (rows[i].sentence == NULL) {
            CHECK(status == BT_OK, "%s: %s", rows[i].why, err.text);
        } else {
            CHECK(status == BT_BAD_REQUEST && strstr(err.text, rows[i].sentence) != NULL &&
                      strstr(err.text, "model.safetensors") != NULL,
                  "%s: got \"%s\"", rows[i].why, err.text);
        }
        mdl_checkpoint_close(checkpoint);
    }
}

static void test_raw_files(void) {
    static const struct {
        const char *why;
        uint8_t bytes[12];
        size_t n_bytes;
        const char *sentence;
    } rows[] = {
        {"no length", {1, 0, 0}, 3, "at least 8"},
        {"a header longer than the file", {100, 0, 0, 0, 0, 0, 0, 0, '{', '}'}, 10, "announces a header of 100 bytes"},
        {"a header of 2^63 bytes", {0, 0, 0, 0, 0, 0, 0, 0x80}, 8, "announces a header of 9223372036854775808"},
        {"a header of 2^64 - 1", {255, 255, 255, 255, 255, 255, 255, 255, '{', '}'}, 10, "announces"},
        {"an empty file", {0}, 0, "empty"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        mdl_checkpoint *checkpoint = NULL;
        bt_error err = {0};
        test_file_write(dir, "model.safetensors", rows[i].bytes, rows[i].n_bytes);
        bt_status status = mdl_checkpoint_open(dir, &checkpoint, &err);
        CHECK(status == BT_BAD_REQUEST && strstr(err.text, rows[i].sentence) != NULL, "%s: \"%s\"", rows[i].why,
              err.text);
        mdl_checkpoint_close(checkpoint);
    }
}

static void test_deep_json(void) {
    enum { DEPTH = 200000 };
    char *deep = malloc(2 * DEPTH + 1);
    for (int i = 0; i < DEPTH; i++) deep[i] = '[', deep[DEPTH + i] = ']';
    deep[2 * DEPTH] = 0;
    cJSON *root = NULL;
    bt_error err = {0};
    CHECK(mdl_json_parse("deep", deep, 2 * DEPTH, &root, &err) == BT_BAD_REQUEST && strstr(err.text, "nested"),
          "deep nesting is refused before the parser recurses: %s", err.text);
    free(deep);
    const char *tricky = "{\"a\":\"[[[[\\\"[[[\",\"b\":\"\\\\\"}";
    CHECK(mdl_json_parse("tricky", tricky, strlen(tricky), &root, &err) == BT_OK, "brackets in strings: %s", err.text);
    cJSON_Delete(root);
}

static void write_shards(const char *weight_map) {
    test_dir_clear(dir);
    test_text_write(dir, "config.json", "{}");
    test_safetensors_write(dir, "one.safetensors", "{\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
                           "xy", 2);
    test_safetensors_write(dir, "two.safetensors", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
                           "zw", 2);
    bt_buf index = {0};
    bt_buf_printf(&index, "{\"metadata\":{\"total_size\":4},\"weight_map\":%s}", weight_map);
    test_text_write(dir, "model.safetensors.index.json", bt_buf_text(&index));
    bt_buf_fini(&index);
}

static void test_shards(void) {
    static const struct {
        const char *why, *weight_map, *sentence;
    } rows[] = {
        {"a path upwards", "{\"a\":\"../one.safetensors\"}", "not a file name"},
        {"an absolute path", "{\"a\":\"/etc/passwd\"}", "not a file name"},
        {"a hidden file", "{\"a\":\"..\"}", "not a file name"},
        {"no name", "{\"a\":\"\"}", "not a file name"},
        {"a number", "{\"a\":3}", "not a file name"},
        {"a file that is not there", "{\"a\":\"three.safetensors\"}", "cannot be opened"},
        {"a tensor in the wrong file", "{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}", "is missing"},
        {"a tensor that is nowhere", "{\"c\":\"one.safetensors\"}", "one.safetensors: tensor c is missing"},
        {"no files", "{}", "names 0 files"},
        {"a list", "[]", "weight_map"},
    };
    mdl_checkpoint *checkpoint = NULL;
    bt_error err = {0};
    write_shards("{\"a\":\"two.safetensors\",\"b\":\"one.safetensors\"}");
    bt_status status = mdl_checkpoint_open(dir, &checkpoint, &err);
    CHECK(status == BT_OK, "%s", err.text);
    if (status == BT_OK) {
        const mdl_tensor *a = mdl_checkpoint_find(checkpoint, "a");
        CHECK(a != NULL && memcmp(a->data, "zw", 2) == 0 && strcmp(a->file, "two.safetensors") == 0, "tensor a");
        CHECK(mdl_checkpoint_find(checkpoint, "c") == NULL, "there is no c");
        CHECK(mdl_checkpoint_bytes(checkpoint) == 4, "bytes");
        const mdl_tensor *tensors[] = {mdl_checkpoint_find(checkpoint, "b"), a};
        mdl_tensors_read(tensors, 2);
        CHECK((uintptr_t)tensors[0]->data < (uintptr_t)tensors[1]->data,
              "tensors are read in the order of their places");
    }
    mdl_checkpoint_close(checkpoint);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        checkpoint = NULL;
        err = (bt_error){0};
        write_shards(rows[i].weight_map);
        status = mdl_checkpoint_open(dir, &checkpoint, &err);
        CHECK(status == BT_BAD_REQUEST && strstr(err.text, rows[i].sentence) != NULL, "%s: \"%s\"", rows[i].why,
              err.text);
        mdl_checkpoint_close(checkpoint);
    }
    test_dir_clear(dir);
    test_text_write(dir, "config.json", "{}");
    checkpoint = NULL;
    CHECK(mdl_checkpoint_open(dir, &checkpoint, &err) == BT_BAD_REQUEST && strstr(err.text, "neither"), "%s", err.text);
    char fifo[2 * TEST_PATH_BYTES];
    snprintf(fifo, sizeof(fifo), "%s/model.safetensors", dir);
    CHECK(mkfifo(fifo, 0600) == 0, "mkfifo");
    CHECK(mdl_checkpoint_open(dir, &checkpoint, &err) == BT_BAD_REQUEST && strstr(err.text, "regular"), "%s", err.text);
}

static uint64_t hash_of(const char *config, const char *name, const char *file, const void *data, size_t n_bytes) {
    bt_buf header = {0};
    mdl_checkpoint *checkpoint = NULL;
    bt_error err = {0};
    test_dir_clear(dir);
    test_text_write(dir, "config.json", config);
    bt_buf_printf(&header, "{\"%s\":{\"dtype\":\"U8\",\"shape\":[%zu],\"data_offsets\":[0,%zu]}}", name, n_bytes,
                  n_bytes);
    test_safetensors_write(dir, file, bt_buf_text(&header), data, n_bytes);
    if (strcmp(file, "model.safetensors") != 0) {
        bt_buf_clear(&header);
        bt_buf_printf(&header, "{\"weight_map\":{\"%s\":\"%s\"}}", name, file);
        test_text_write(dir, "model.safetensors.index.json", bt_buf_text(&header));
    }
    bt_status status = mdl_checkpoint_open(dir, &checkpoint, &err);
    CHECK(status == BT_OK, "%s", err.text);
    uint64_t hash = status == BT_OK ? mdl_checkpoint_hash(checkpoint) : 0;
    mdl_checkpoint_close(checkpoint);
    bt_buf_fini(&header);
    return hash;
}

static void test_hash(void) {
    enum { N_BYTES = 100000 };
    uint8_t *data = calloc(1, N_BYTES);
    uint64_t hash = hash_of("{}", "a", "model.safetensors", data, N_BYTES);
    CHECK(hash_of("{}", "a", "model.safetensors", data, N_BYTES) == hash, "the same again");
    CHECK(hash_of("{}", "a", "shard-1.safetensors", data, N_BYTES) == hash, "the split over files does not count");
    CHECK(hash_of("{ }", "a", "model.safetensors", data, N_BYTES) != hash, "config.json counts");
    CHECK(hash_of("{}", "b", "model.safetensors", data, N_BYTES) != hash, "names count");
    data[N_BYTES - 1] = 1;
    CHECK(hash_of("{}", "a", "model.safetensors", data, N_BYTES) != hash, "content counts");
    free(data);
}

int main(void) {
    test_dir_make(dir);
    test_headers();
    test_raw_files();
    test_deep_json();
    test_shards();
    test_hash();
    test_dir_remove(dir);
    TEST_END();
}
