/* The header of one safetensors file: u64 little-endian N, N bytes of JSON, then the tensors' bytes.
 * Format: https://github.com/huggingface/safetensors, README "Format"; as strict as its reference reader. */
#ifndef BATON_COMMON_MODEL_SAFETENSORS_H
#define BATON_COMMON_MODEL_SAFETENSORS_H

#include "common/core/alloc.h"
#include "common/model/checkpoint.h"

typedef struct {
    mdl_tensor *tensors; /* owned: free(); in the order of the data */
    size_t n_tensors;
} mdl_safetensors;

/* Parses the file image `bytes` [n_bytes]. Tensors point into it; their names lie in `arena`, `file` is borrowed.
 * BT_BAD_REQUEST: anything that the format does not allow: a header beyond the file or 100 MB, an unknown dtype, a
 * shape that overflows or does not match its bytes, tensors that overlap, leave holes or end beyond the file. */
bt_status mdl_safetensors_parse(const char *file, const uint8_t *bytes, uint64_t n_bytes, bt_arena *arena,
                                mdl_safetensors *out, bt_error *err);

#endif
