/* A checkpoint's files: finds them, maps them, keeps all tensors in one table sorted by name.
 *
 * Owns the mappings, the names and the table. What a header may say is safetensors.c's business; which tensors a model
 * needs is kernels/weights.c's. A file that shrinks while it is mapped kills the process (SIGBUS): checkpoints are
 * replaced by renaming, never rewritten in place. */
#include "common/model/checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "common/core/clock.h"
#include "common/core/log.h"
#include "common/model/json.h"
#include "common/model/safetensors.h"

enum {
    MAX_CONFIG_BYTES = 16 << 20,
    MAX_INDEX_BYTES = 256 << 20, /* R1's has 9 MB */
    MAX_FILES = 4096,
};

typedef struct {
    char *name; /* base name; owned */
    uint8_t *bytes;
    size_t n_bytes;
} mapped_file;

struct mdl_checkpoint {
    mapped_file *files;
    size_t n_files;
    mdl_tensor *tensors; /* sorted by name */
    size_t n_tensors;
    bt_arena names;
    uint64_t config_hash; /* of config.json's bytes */
};

static char *path_join(const char *dir, const char *file) {
    bt_buf path = {0};
    bt_buf_printf(&path, "%s/%s", dir, file);
    bt_buf_text(&path);
    return (char *)path.bytes;
}

/* Maps one file read-only and parses its header into the table, not sorted yet. */
static bt_status add_file(mdl_checkpoint *checkpoint, const char *dir, const char *name, bt_error *err) {
    mapped_file *file = &checkpoint->files[checkpoint->n_files++];
    file->name = bt_strdup(name);
    char *path = path_join(dir, name);
    mdl_safetensors found = {0};
    bt_status status = BT_OK;
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        status = bt_fail(err, BT_BAD_REQUEST, "%s: cannot be opened: %s", path, strerror(errno));
        goto done;
    }
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size == 0) {
        status = bt_fail(err, BT_BAD_REQUEST, "%s: is not a regular file, or is empty", path);
        goto done;
    }
    void *bytes = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (bytes == MAP_FAILED) {
        status = bt_fail(err, BT_INTERNAL, "%s: cannot be mapped: %s", path, strerror(errno));
        goto done;
    }
    file->bytes = bytes;
    file->n_bytes = (size_t)info.st_size;
    status = mdl_safetensors_parse(file->name, file->bytes, file->n_bytes, &checkpoint->names, &found, err);
    if (status != BT_OK) goto done;
    checkpoint->tensors = bt_realloc(checkpoint->tensors, checkpoint->n_tensors + found.n_tensors, sizeof(mdl_tensor));
    if (found.n_tensors > 0) {
        memcpy(checkpoint->tensors + checkpoint->n_tensors, found.tensors, found.n_tensors * sizeof(mdl_tensor));
    }
    checkpoint->n_tensors += found.n_tensors;
done:
    if (fd >= 0) close(fd);
    free(found.tensors);
    free(path);
    return status;
}

static int compare_text(const void *left, const void *right) {
    return strcmp(*(char *const *)left, *(char *const *)right);
}

/* Opens every shard that the index names, once. Names are base names: an index cannot lead outside its folder. */
static bt_status add_shards(mdl_checkpoint *checkpoint, const char *dir, const cJSON *weight_map, bt_error *err) {
    size_t n_names = (size_t)cJSON_GetArraySize(weight_map);
    char **names = bt_calloc(n_names, sizeof(*names));
    bt_status status = BT_OK;
    size_t n_checked = 0;
    const cJSON *entry;
    cJSON_ArrayForEach(entry, weight_map) {
        const char *name = cJSON_IsString(entry) ? entry->valuestring : "";
        if (name[0] == 0 || name[0] == '.' || strchr(name, '/') != NULL) {
            status = bt_fail(err, BT_BAD_REQUEST,
                             "model.safetensors.index.json: tensor %.200s lies in \"%.100s\", which is not a file name",
                             entry->string, name);
            goto done;
        }
        names[n_checked++] = entry->valuestring;
    }
    qsort(names, n_names, sizeof(*names), compare_text);
    size_t n_files = 0;
    for (size_t i = 0; i < n_names; i++) {
        if (n_files == 0 || strcmp(names[n_files - 1], names[i]) != 0) names[n_files++] = names[i];
    }
    if (n_files == 0 || n_files > MAX_FILES) {
        status = bt_fail(err, BT_BAD_REQUEST, "model.safetensors.index.json: names %zu files, expected 1 to %d",
                         n_files, MAX_FILES);
        goto done;
    }
    checkpoint->files = bt_calloc(n_files, sizeof(*checkpoint->files));
    for (size_t i = 0; i < n_files && status == BT_OK; i++) status = add_file(checkpoint, dir, names[i], err);
done:
    free(names);
    return status;
}

static int compare_name(const void *left, const void *right) {
    return strcmp(((const mdl_tensor *)left)->name, ((const mdl_tensor *)right)->name);
}

static bt_status sort_tensors(mdl_checkpoint *checkpoint, bt_error *err) {
    mdl_tensor *tensors = checkpoint->tensors;
    if (checkpoint->n_tensors > 1) qsort(tensors, checkpoint->n_tensors, sizeof(*tensors), compare_name);
    for (size_t i = 1; i < checkpoint->n_tensors; i++) {
        if (strcmp(tensors[i - 1].name, tensors[i].name) != 0) continue;
        return bt_fail(err, BT_BAD_REQUEST, "%s: tensor %.200s is there twice, the other one is in %s", tensors[i].file,
                       tensors[i].name, tensors[i - 1].file);
    }
    return BT_OK;
}

/* Each tensor of the index must be in the file that the index says. */
static bt_status check_index(const mdl_checkpoint *checkpoint, const cJSON *weight_map, bt_error *err) {
    const cJSON *entry;
    cJSON_ArrayForEach(entry, weight_map) {
        const mdl_tensor *tensor = mdl_checkpoint_find(checkpoint, entry->string);
        if (tensor != NULL && strcmp(tensor->file, entry->valuestring) == 0) continue;
        return bt_fail(err, BT_BAD_REQUEST,
                       "%s: tensor %.200s is missing, model.safetensors.index.json says it is here", entry->valuestring,
                       entry->string);
    }
    return BT_OK;
}

static bt_status open_sharded(mdl_checkpoint *checkpoint, const char *dir, const char *index_path, bt_error *err) {
    bt_buf text = {0};
    cJSON *index = NULL;
    bt_status status = mdl_file_read(index_path, MAX_INDEX_BYTES, &text, err);
    if (status == BT_OK) status = mdl_json_parse(index_path, text.bytes, text.n_bytes, &index, err);
    const cJSON *weight_map = cJSON_GetObjectItemCaseSensitive(index, "weight_map");
    if (status == BT_OK && !cJSON_IsObject(weight_map)) {
        status = bt_fail(err, BT_BAD_REQUEST, "%s: has no object weight_map", index_path);
    }
    if (status == BT_OK) status = add_shards(checkpoint, dir, weight_map, err);
    if (status == BT_OK) status = sort_tensors(checkpoint, err);
    if (status == BT_OK) status = check_index(checkpoint, weight_map, err);
    cJSON_Delete(index);
    bt_buf_fini(&text);
    return status;
}

static bt_status hash_config(mdl_checkpoint *checkpoint, const char *dir, bt_error *err) {
    bt_buf text = {0};
    char *path = path_join(dir, "config.json");
    bt_status status = mdl_file_read(path, MAX_CONFIG_BYTES, &text, err);
    if (status == BT_OK) checkpoint->config_hash = XXH3_64bits(text.bytes, text.n_bytes);
    free(path);
    bt_buf_fini(&text);
    return status;
}

bt_status mdl_checkpoint_open(const char *dir, mdl_checkpoint **out, bt_error *err) {
    mdl_checkpoint *checkpoint = bt_calloc(1, sizeof(*checkpoint));
    char *single = path_join(dir, "model.safetensors"), *index = path_join(dir, "model.safetensors.index.json");
    bt_status status = hash_config(checkpoint, dir, err);
    if (status != BT_OK) goto done;
    if (access(single, F_OK) == 0) { /* as transformers: one file wins over an index */
        checkpoint->files = bt_calloc(1, sizeof(*checkpoint->files));
        status = add_file(checkpoint, dir, "model.safetensors", err);
        if (status == BT_OK) status = sort_tensors(checkpoint, err);
    } else if (access(index, F_OK) == 0) {
        status = open_sharded(checkpoint, dir, index, err);
    } else {
        status =
            bt_fail(err, BT_BAD_REQUEST, "%s: holds neither model.safetensors nor model.safetensors.index.json", dir);
    }
done:
    free(single);
    free(index);
    if (status != BT_OK)
        mdl_checkpoint_close(checkpoint);
    else
        *out = checkpoint;
    return status;
}

void mdl_checkpoint_close(mdl_checkpoint *checkpoint) {
    if (checkpoint == NULL) return;
    for (size_t i = 0; i < checkpoint->n_files; i++) {
        if (checkpoint->files[i].bytes != NULL) munmap(checkpoint->files[i].bytes, checkpoint->files[i].n_bytes);
        free(checkpoint->files[i].name);
    }
    bt_arena_fini(&checkpoint->names);
    free(checkpoint->files);
    free(checkpoint->tensors);
    free(checkpoint);
}

const mdl_tensor *mdl_checkpoint_find(const mdl_checkpoint *checkpoint, const char *name) {
    if (checkpoint->n_tensors == 0) return NULL;
    const mdl_tensor key = {.name = name};
    return bsearch(&key, checkpoint->tensors, checkpoint->n_tensors, sizeof(key), compare_name);
}

uint64_t mdl_checkpoint_bytes(const mdl_checkpoint *checkpoint) {
    uint64_t n_bytes = 0;
    for (size_t i = 0; i < checkpoint->n_tensors; i++) n_bytes += checkpoint->tensors[i].n_bytes;
    return n_bytes;
}

uint64_t mdl_checkpoint_hash(const mdl_checkpoint *checkpoint) {
    enum { SAMPLE_BYTES = 4096 };
    XXH3_state_t *state = XXH3_createState();
    BT_ASSERT(state != NULL);
    XXH3_64bits_reset(state);
    XXH3_64bits_update(state, &checkpoint->config_hash, sizeof(checkpoint->config_hash));
    for (size_t i = 0; i < checkpoint->n_tensors; i++) { /* by name: how tensors are spread over files does not count */
        const mdl_tensor *tensor = &checkpoint->tensors[i];
        uint64_t type[2 + MDL_MAX_RANK] = {tensor->dtype, tensor->rank};
        memcpy(type + 2, tensor->shape, sizeof(tensor->shape));
        XXH3_64bits_update(state, tensor->name, strlen(tensor->name) + 1);
        XXH3_64bits_update(state, type, sizeof(type));
        const uint8_t *data = tensor->data;
        size_t n_bytes = tensor->n_bytes;
        if (n_bytes <= 3 * SAMPLE_BYTES) {
            XXH3_64bits_update(state, data, n_bytes);
            continue;
        }
        XXH3_64bits_update(state, data, SAMPLE_BYTES);
        XXH3_64bits_update(state, data + n_bytes / 2, SAMPLE_BYTES);
        XXH3_64bits_update(state, data + n_bytes - SAMPLE_BYTES, SAMPLE_BYTES);
    }
    uint64_t hash = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return hash;
}

static int compare_places(const void *a, const void *b) {
    const mdl_tensor *x = *(const mdl_tensor *const *)a, *y = *(const mdl_tensor *const *)b;
    return ((uintptr_t)x->data > (uintptr_t)y->data) - ((uintptr_t)x->data < (uintptr_t)y->data);
}

void mdl_tensors_read(const mdl_tensor **tensors, size_t n_tensors) {
    enum { PAGE_BYTES = 4096, CLOCK_PAGES = 1024 };
    uint64_t n_total = 0, n_done = 0, n_pages = 0;
    qsort(tensors, n_tensors, sizeof(*tensors), compare_places);
    for (size_t i = 0; i < n_tensors; i++) n_total += tensors[i]->n_bytes;
    int64_t next_line_ns = bt_now_ns() + BT_NS_PER_S;
    for (size_t i = 0; i < n_tensors; i++) {
        const mdl_tensor *tensor = tensors[i];
        uint8_t *page = (uint8_t *)((uintptr_t)tensor->data / PAGE_BYTES * PAGE_BYTES);
        size_t n_bytes = tensor->n_bytes + (size_t)((const uint8_t *)tensor->data - page);
        madvise(page, n_bytes, MADV_WILLNEED); /* advice: failure costs only speed */
        for (size_t at = 0; at < n_bytes; at += PAGE_BYTES) {
            (void)*(volatile const uint8_t *)(page + at);
            if (n_pages++ % CLOCK_PAGES != 0 || bt_now_ns() < next_line_ns) continue;
            next_line_ns += BT_NS_PER_S;
            bt_log(BT_LOG_INFO, "model", "reading weights", "file=%s done_mb=%" PRIu64 " total_mb=%" PRIu64,
                   tensor->file, (n_done + at) >> 20, n_total >> 20);
        }
        n_done += tensor->n_bytes;
    }
}
