/* For tests: files in a temporary folder, made-up safetensors files. */
#ifndef BATON_COMMON_MODEL_TEST_FILES_H
#define BATON_COMMON_MODEL_TEST_FILES_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "common/core/buf.h"
#include "common/core/status.h"
#include "common/core/test_dir.h"

enum { TEST_PATH_BYTES = 512 };

static inline void test_file_write(const char *dir, const char *name, const void *bytes, size_t n_bytes) {
    char path[2 * TEST_PATH_BYTES];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    BT_ASSERT(file != NULL && fwrite(bytes, 1, n_bytes, file) == n_bytes && fclose(file) == 0);
}

static inline void test_text_write(const char *dir, const char *name, const char *text) {
    test_file_write(dir, name, text, strlen(text));
}

/* The image of a safetensors file: length, header, data. */
static inline void test_safetensors_put(bt_buf *out, const char *header, const void *data, size_t n_data_bytes) {
    uint64_t n = strlen(header);
    for (int i = 0; i < 8; i++) {
        uint8_t byte = (uint8_t)(n >> (8 * i));
        bt_buf_put(out, &byte, 1);
    }
    bt_buf_puts(out, header);
    bt_buf_put(out, data, n_data_bytes);
}

static inline void test_safetensors_write(const char *dir, const char *name, const char *header, const void *data,
                                          size_t n_data_bytes) {
    bt_buf image = {0};
    test_safetensors_put(&image, header, data, n_data_bytes);
    test_file_write(dir, name, image.bytes, image.n_bytes);
    bt_buf_fini(&image);
}

#endif
