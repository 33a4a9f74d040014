/* The weights as they lie on disk: safetensors files, mapped read-only, never copied.
 *
 * A checkpoint is model.safetensors, or the shards that model.safetensors.index.json names. Headers are checked in
 * full at open: JSON, dtype, shape, offsets inside the file, sizes that agree, no overlap. Immutable after open; any
 * thread. */
#ifndef BATON_COMMON_MODEL_CHECKPOINT_H
#define BATON_COMMON_MODEL_CHECKPOINT_H

#include <stddef.h>
#include <stdint.h>

#include "common/core/status.h"

typedef enum { MDL_BF16, MDL_F16, MDL_F32, MDL_F8_E4M3, MDL_F8_E8M0, MDL_OTHER } mdl_dtype;

enum { MDL_MAX_RANK = 8 };

typedef struct {
    const char *name; /* borrowed from the checkpoint */
    const char *file; /* base name of the file it lies in; borrowed */
    const void *data; /* [n_bytes] mapped; no alignment promised beyond what the file gives */
    size_t n_bytes;
    mdl_dtype dtype;
    uint32_t rank;
    uint64_t shape[MDL_MAX_RANK];
} mdl_tensor;

typedef struct mdl_checkpoint mdl_checkpoint;

/* BT_BAD_REQUEST: a missing, truncated or hostile file; one sentence names the file, the tensor, what was found and
 * what was expected. */
bt_status mdl_checkpoint_open(const char *dir, mdl_checkpoint **out, bt_error *err);
void mdl_checkpoint_close(mdl_checkpoint *checkpoint);

/* NULL: there is no such tensor. */
const mdl_tensor *mdl_checkpoint_find(const mdl_checkpoint *checkpoint, const char *name);

uint64_t mdl_checkpoint_bytes(const mdl_checkpoint *checkpoint); /* of all tensors */

/* A fingerprint of config.json and of every tensor's name, dtype, shape and sampled content: two workers with the
 * same value serve the same model. Cheap (reads a few pages of each tensor). */
uint64_t mdl_checkpoint_hash(const mdl_checkpoint *checkpoint);

/* Reads every page of these tensors once, in the order in which they lie in their files (the list is sorted), so that
 * the first request does not wait for the disk; a progress line in the log each second. */
void mdl_tensors_read(const mdl_tensor **tensors, size_t n_tensors);

const char *mdl_dtype_name(mdl_dtype dtype); /* as safetensors spells it */

#endif
