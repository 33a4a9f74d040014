/* Reading JSON files of a checkpoint. Owns no state. cJSON itself checks the grammar; what it would do without bounds
 * (recursion, one allocation of 64 bytes per value, silence about what follows the value) is checked here. */
#include "common/model/json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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

static bool is_space(uint8_t byte) { return byte == ' ' || byte == '\t' || byte == '\n' || byte == '\r'; }

/* Depth and number of values, without understanding more of JSON than strings and brackets. */
static bt_status check_bounds(const char *what, const uint8_t *text, size_t n_bytes, bt_error *err) {
    size_t depth = 0, n_values = 1;
    bool in_string = false;
    for (size_t i = 0; i < n_bytes; i++) {
        uint8_t byte = text[i];
        if (in_string) {
            if (byte == '\\')
                i++;
            else if (byte == '"')
                in_string = false;
            continue;
        }
        if (byte == '"') in_string = true;
        if (byte == ']' || byte == '}') depth -= depth > 0;
        if (byte == '[' || byte == '{') depth++;
        if (byte == ',' || byte == '[' || byte == '{') n_values++;
        if (depth > MDL_JSON_MAX_DEPTH) {
            return bt_fail(err, BT_BAD_REQUEST, "%s: JSON is nested deeper than %d levels", what, MDL_JSON_MAX_DEPTH);
        }
        if (n_values > MDL_JSON_MAX_VALUES) {
            return bt_fail(err, BT_BAD_REQUEST, "%s: JSON holds more than %d values", what, MDL_JSON_MAX_VALUES);
        }
    }
    return BT_OK;
}

bt_status mdl_json_parse(const char *what, const void *text, size_t n_bytes, cJSON **out, bt_error *err) {
    bt_status status = check_bounds(what, text, n_bytes, err);
    if (status != BT_OK) return status;
    const char *start = text, *end = NULL;
    cJSON *root = n_bytes == 0 ? NULL : cJSON_ParseWithLengthOpts(start, n_bytes, &end, 0);
    if (root == NULL) {
        size_t offset = end == NULL ? 0 : (size_t)(end - start);
        return bt_fail(err, BT_BAD_REQUEST, "%s: is not valid JSON at byte %zu of %zu", what, offset, n_bytes);
    }
    size_t offset = (size_t)(end - start);
    while (offset < n_bytes && is_space((uint8_t)start[offset])) offset++;
    if (offset < n_bytes) {
        status = bt_fail(err, BT_BAD_REQUEST, "%s: has other bytes behind the JSON, at byte %zu", what, offset);
    } else if (!cJSON_IsObject(root)) {
        status = bt_fail(err, BT_BAD_REQUEST, "%s: is JSON but not an object", what);
    }
    if (status != BT_OK) {
        cJSON_Delete(root);
        return status;
    }
    *out = root;
    return BT_OK;
}

int mdl_json_is_uint(const cJSON *item, uint64_t max) {
    if (!cJSON_IsNumber(item)) return 0;
    double value = item->valuedouble;
    return value >= 0 && value <= (double)max && value == (double)(uint64_t)value;
}
