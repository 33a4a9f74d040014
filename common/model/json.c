/* Reading JSON files of a checkpoint. Owns no state. The reader is common/text/json.h's. */
#include "common/model/json.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/text/json.h"

bt_status mdl_file_read(const char *path, size_t max_bytes, bt_buf *out, bt_error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* O_NONBLOCK: a FIFO must not hang us */
    if (fd < 0) return bt_fail(err, BT_BAD_REQUEST, "%s: cannot be opened: %s", path, strerror(errno));
    struct stat info;
    bt_status status = BT_OK;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        status = bt_fail(err, BT_BAD_REQUEST, "%s: is not a regular file", path);
    } else if ((uint64_t)info.st_size > max_bytes) {
        status =
            bt_fail(err, BT_BAD_REQUEST, "%s: has %lld bytes, limit %zu", path, (long long)info.st_size, max_bytes);
    }
    size_t n_left = status == BT_OK ? (size_t)info.st_size : 0;
    bt_buf_reserve(out, n_left);
    while (n_left > 0) {
        char piece[16384];
        ssize_t n_got = read(fd, piece, n_left < sizeof(piece) ? n_left : sizeof(piece));
        if (n_got < 0 && errno == EINTR) continue;
        if (n_got <= 0) {
            status = bt_fail(err, BT_BAD_REQUEST, "%s: reading failed: %s", path,
                             n_got == 0 ? "the file became shorter" : strerror(errno));
            break;
        }
        bt_buf_put(out, piece, (size_t)n_got);
        n_left -= (size_t)n_got;
    }
    close(fd);
    return status;
}

bt_status mdl_json_parse(const char *what, const void *text, size_t n_bytes, cJSON **out, bt_error *err) {
    static const txt_json_rules rules = {.max_depth = MDL_JSON_MAX_DEPTH, .max_values = MDL_JSON_MAX_VALUES};
    bt_error why = {0};
    cJSON *root = NULL;
    if (txt_json_copy(text, n_bytes, &rules, &root, &why) != BT_OK)
        return bt_fail(err, BT_BAD_REQUEST, "%s: is not valid JSON: %s", what, why.text);
    if (!cJSON_IsObject(root)) {
        cJSON_Delete(root);
        return bt_fail(err, BT_BAD_REQUEST, "%s: is JSON but not an object", what);
    }
    *out = root;
    return BT_OK;
}

int mdl_json_is_uint(const cJSON *item, uint64_t max) {
    if (!cJSON_IsNumber(item)) return 0;
    double value = item->valuedouble;
    return value >= 0 && value <= (double)max && value == (double)(uint64_t)value;
}
