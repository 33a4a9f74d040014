/* Parses and checks one safetensors header. Knows bytes, not files: checkpoint.c maps them, the fuzzer makes them up.
 *
 * The reference reader demands that the tensors cover the data exactly, without overlap and without holes. So do we:
 * a file that says anything else was truncated, or was made to be read differently by different programs. */
#include "common/model/safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/json.h"

enum { LENGTH_BYTES = 8, MAX_HEADER_BYTES = 100000000 /* the reference reader's limit */ };
static const uint64_t MAX_EXACT = (uint64_t)1 << 53; /* JSON numbers are doubles here */

static const struct {
    const char *name;
    mdl_dtype dtype;
    uint8_t n_bits;
} dtypes[] = {
    {"BF16", MDL_BF16, 16},      {"F16", MDL_F16, 16},      {"F32", MDL_F32, 32},      {"F8_E4M3", MDL_F8_E4M3, 8},
    {"F8_E8M0", MDL_F8_E8M0, 8}, {"F8_E5M2", MDL_OTHER, 8}, {"F64", MDL_OTHER, 64},    {"I64", MDL_OTHER, 64},
    {"U64", MDL_OTHER, 64},      {"I32", MDL_OTHER, 32},    {"U32", MDL_OTHER, 32},    {"I16", MDL_OTHER, 16},
    {"U16", MDL_OTHER, 16},      {"I8", MDL_OTHER, 8},      {"U8", MDL_OTHER, 8},      {"BOOL", MDL_OTHER, 8},
    {"C64", MDL_OTHER, 64},      {"F4", MDL_OTHER, 4},      {"F6_E2M3", MDL_OTHER, 6}, {"F6_E3M2", MDL_OTHER, 6},
};

const char *mdl_dtype_name(mdl_dtype dtype) {
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (dtypes[i].dtype == dtype && dtype != MDL_OTHER) return dtypes[i].name;
    }
    return "another type";
}

/* dtype and shape; *out_bits is the tensor's size. */
static bt_status parse_type(const char *file, const cJSON *entry, mdl_tensor *tensor, uint64_t *out_bits,
                            bt_error *err) {
    const cJSON *dtype = cJSON_GetObjectItemCaseSensitive(entry, "dtype");
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(entry, "shape");
    if (!cJSON_IsString(dtype) || !cJSON_IsArray(shape)) {
        return bt_fail(err, BT_BAD_REQUEST, "%s: tensor %.200s has no dtype or no shape", file, tensor->name);
    }
    size_t kind = 0, n_kinds = sizeof(dtypes) / sizeof(dtypes[0]);
    while (kind < n_kinds && strcmp(dtypes[kind].name, dtype->valuestring) != 0) kind++;
    if (kind == n_kinds) {
        return bt_fail(err, BT_BAD_REQUEST, "%s: tensor %.200s has the unknown dtype %.32s", file, tensor->name,
                       dtype->valuestring);
    }
    tensor->dtype = dtypes[kind].dtype;
    uint64_t n_bits = dtypes[kind].n_bits;
    const cJSON *extent;
    cJSON_ArrayForEach(extent, shape) {
        if (tensor->rank == MDL_MAX_RANK) {
            return bt_fail(err, BT_BAD_REQUEST, "%s: tensor %.200s has more than %d dimensions", file, tensor->name,
                           MDL_MAX_RANK);
        }
        if (!mdl_json_is_uint(extent, MAX_EXACT)) {
            return bt_fail(err, BT_BAD_REQUEST, "%s: tensor %.200s has a dimension that is not a whole number", file,
                           tensor->name);
        }
        uint64_t n = (uint64_t)extent->valuedouble;
        tensor->shape[tensor->rank++] = n;
        if (__builtin_mul_overflow(n_bits, n, &n_bits)) {
            return bt_fail(err, BT_BAD_REQUEST, "%s: tensor %.200s has a shape that overflows 64 bits", file,
                           tensor->name);
        }
    }
    *out_bits = n_bits;
    return BT_OK;
}

static bt_status parse_tensor(const char *file, const cJSON *entry, const uint8_t *data, uint64_t data_bytes,
                              mdl_tensor *tensor, bt_error *err) {
    if (!cJSON_IsObject(entry)) {
        return bt_fail(err, BT_BAD_REQUEST, "%s: the entry of tensor %.200s is not an object", file, tensor->name);
    }
    uint64_t n_bits = 0;
    bt_status status = parse_type(file, entry, tensor, &n_bits, err);
    if (status != BT_OK) return status;

    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(entry, "data_offsets");
    const cJSON *begin = cJSON_IsArray(offsets) ? offsets->child : NULL, *end = begin != NULL ? begin->next : NULL;
    if (end == NULL || end->next != NULL || !mdl_json_is_uint(begin, MAX_EXACT) || !mdl_json_is_uint(end, MAX_EXACT)) {
        return bt_fail(err, BT_BAD_REQUEST, "%s: tensor %.200s has no data_offsets of two whole numbers", file,
                       tensor->name);
    }
    uint64_t first = (uint64_t)begin->valuedouble, last = (uint64_t)end->valuedouble;
    if (first > last || last > data_bytes) {
        return bt_fail(err, BT_BAD_REQUEST,
                       "%s: tensor %.200s lies at bytes %" PRIu64 " to %" PRIu64 " of the data, which has %" PRIu64
                       ": the file is truncated or damaged",
                       file, tensor->name, first, last, data_bytes);
    }
    if (n_bits % 8 != 0 || n_bits / 8 != last - first) {
        return bt_fail(err, BT_BAD_REQUEST,
                       "%s: tensor %.200s has %" PRIu64 " bytes, expected %" PRIu64 " for its dtype and shape", file,
                       tensor->name, last - first, n_bits / 8);
    }
    tensor->data = data + first;
    tensor->n_bytes = last - first;
    return BT_OK;
}

static int compare_place(const void *left, const void *right) {
    const mdl_tensor *a = left, *b = right;
    if (a->data != b->data) return a->data < b->data ? -1 : 1;
    return (a->n_bytes > b->n_bytes) - (a->n_bytes < b->n_bytes); /* empty ones first */
}

/* After sorting by place, each tensor must start where the one before it ended. */
static bt_status check_cover(const char *file, const mdl_safetensors *found, const uint8_t *data, uint64_t data_bytes,
                             bt_error *err) {
    const uint8_t *expected = data;
    for (size_t i = 0; i < found->n_tensors; i++) {
        const mdl_tensor *tensor = &found->tensors[i];
        const uint8_t *start = tensor->data;
        if (start != expected) {
            return bt_fail(err, BT_BAD_REQUEST, "%s: tensor %.200s %s the tensor before it, at byte %zu of the data",
                           file, tensor->name, start < expected ? "overlaps" : "leaves a hole behind",
                           (size_t)(start - data));
        }
        expected = start + tensor->n_bytes;
    }
    if (expected != data + data_bytes) {
        return bt_fail(err, BT_BAD_REQUEST, "%s: %zu bytes at the end belong to no tensor", file,
                       (size_t)(data + data_bytes - expected));
    }
    return BT_OK;
}

bt_status mdl_safetensors_parse(const char *file, const uint8_t *bytes, uint64_t n_bytes, bt_arena *arena,
                                mdl_safetensors *out, bt_error *err) {
    if (n_bytes < LENGTH_BYTES) {
        return bt_fail(err, BT_BAD_REQUEST, "%s: has %" PRIu64 " bytes, a safetensors file has at least 8", file,
                       n_bytes);
    }
    uint64_t header_bytes = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--) header_bytes = header_bytes << 8 | bytes[i];
    if (header_bytes > MAX_HEADER_BYTES || header_bytes > n_bytes - LENGTH_BYTES) {
        return bt_fail(err, BT_BAD_REQUEST, "%s: announces a header of %" PRIu64 " bytes, the file has %" PRIu64, file,
                       header_bytes, n_bytes);
    }
    cJSON *root = NULL;
    mdl_safetensors found = {0};
    bt_status status = mdl_json_parse(file, bytes + LENGTH_BYTES, header_bytes, &root, err);
    if (status != BT_OK) return status;

    const uint8_t *data = bytes + LENGTH_BYTES + header_bytes;
    uint64_t data_bytes = n_bytes - LENGTH_BYTES - header_bytes;
    found.tensors = bt_calloc((size_t)cJSON_GetArraySize(root), sizeof(mdl_tensor));
    const cJSON *entry;
    cJSON_ArrayForEach(entry, root) {
        if (strcmp(entry->string, "__metadata__") == 0) continue;
        mdl_tensor *tensor = &found.tensors[found.n_tensors++];
        tensor->name = bt_arena_strndup(arena, entry->string, strlen(entry->string));
        tensor->file = file;
        status = parse_tensor(file, entry, data, data_bytes, tensor, err);
        if (status != BT_OK) goto done;
    }
    qsort(found.tensors, found.n_tensors, sizeof(mdl_tensor), compare_place);
    status = check_cover(file, &found, data, data_bytes, err);
done:
    cJSON_Delete(root);
    if (status != BT_OK)
        free(found.tensors);
    else
        *out = found;
    return status;
}
