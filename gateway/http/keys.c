/* Reads keys into a table of digests, sorted; the new table replaces the old one when it is whole. */
#include "gateway/http/keys.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/core/alloc.h"
#include "common/model/json.h"
#include "gateway/http/watch.h"

enum { SALT_BYTES = 16, MAX_FILE_BYTES = 16 << 20 };

typedef struct {
    uint8_t digest[SHA256_DIGEST_LENGTH]; /* of salt and key; first: the order goes by it */
    char name[GW_CAP_KEY_NAME];
} entry;

typedef struct {
    entry *entries; /* by digest */
    uint32_t n_entries, cap_entries;
} table;

struct gw_keys {
    uint8_t salt[SALT_BYTES]; /* random: digests mean nothing outside */
    const char *list, *path;
    gw_watch watch;
    table table;
};

static void digest(const gw_keys *keys, const char *key, size_t n_bytes, uint8_t out[SHA256_DIGEST_LENGTH]) {
    uint8_t salted[SALT_BYTES + GW_CAP_KEY];
    memcpy(salted, keys->salt, SALT_BYTES);
    memcpy(salted + SALT_BYTES, key, n_bytes);
    SHA256(salted, SALT_BYTES + n_bytes, out);
    OPENSSL_cleanse(salted, sizeof salted);
}

static int compare(const void *a, const void *b) { return memcmp(a, b, SHA256_DIGEST_LENGTH); }

/* ---- reading --------------------------------------------------------------------------------------------------------
 */

static bool is_key(const char *key, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++)
        if (key[i] <= ' ' || key[i] > '~') return false;
    return n_bytes > 0 && n_bytes < GW_CAP_KEY;
}

static bool is_name(const char *name, size_t n_bytes) {
    static const char other[] = "._@:-";
    for (size_t i = 0; i < n_bytes; i++) {
        char c = name[i];
        bool is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!is_plain && (c == 0 || strchr(other, c) == NULL)) return false;
    }
    return n_bytes > 0 && n_bytes < GW_CAP_KEY_NAME;
}

/* `name` may have no bytes: then `kind` and `line` make one. `where` is for the error's sentence. */
static bt_status add(const gw_keys *keys, table *into, const char *where, const char *kind, uint32_t line,
                     const char *key, size_t n_key, const char *name, size_t n_name, bt_error *err) {
    if (!is_key(key, n_key))
        return bt_fail(err, BT_BAD_REQUEST,
                       "%s, %s %u: a key must be 1 to %d printable ASCII characters without blanks", where, kind, line,
                       GW_CAP_KEY - 1);
    if (n_name > 0 && !is_name(name, n_name))
        return bt_fail(err, BT_BAD_REQUEST, "%s, %s %u: a name must be 1 to %d of letters, digits and ._@:-", where,
                       kind, line, GW_CAP_KEY_NAME - 1);
    if (into->n_entries == GW_MAX_KEYS)
        return bt_fail(err, BT_BAD_REQUEST, "%s: more than %d keys", where, GW_MAX_KEYS);
    if (into->n_entries == into->cap_entries) {
        into->cap_entries = into->cap_entries * 2 + 16;
        into->entries = bt_realloc(into->entries, into->cap_entries, sizeof *into->entries);
    }
    entry *e = &into->entries[into->n_entries++];
    digest(keys, key, n_key, e->digest);
    if (n_name > 0) {
        snprintf(e->name, sizeof e->name, "%.*s", (int)n_name, name);
    } else {
        snprintf(e->name, sizeof e->name, "%s-%u", kind, line);
    }
    return BT_OK;
}

static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

/* The next word of [at, end): its beginning; *n_bytes is 0 when there is none. */
static const char *next_word(const char *at, const char *end, size_t *n_bytes) {
    while (at < end && is_blank(*at)) at++;
    const char *begin = at;
    while (at < end && !is_blank(*at)) at++;
    *n_bytes = (size_t)(at - begin);
    return begin;
}

static bt_status read_line(const gw_keys *keys, table *into, uint32_t number, const char *line, const char *end,
                           bt_error *err) {
    size_t n_key, n_name, n_more;
    const char *key = next_word(line, end, &n_key);
    if (n_key == 0 || key[0] == '#') return BT_OK;
    const char *name = next_word(key + n_key, end, &n_name);
    next_word(name + n_name, end, &n_more);
    if (n_more > 0) return bt_fail(err, BT_BAD_REQUEST, "%s, line %u: more than a key and a name", keys->path, number);
    return add(keys, into, keys->path, "line", number, key, n_key, name, n_name, err);
}

static bt_status read_file(const gw_keys *keys, table *into, bt_error *err) {
    bt_buf text = {0};
    bt_status status = mdl_file_read(keys->path, MAX_FILE_BYTES, &text, err);
    const char *at = bt_buf_text(&text), *end = at + text.n_bytes;
    uint32_t n_before = into->n_entries;
    for (uint32_t number = 1; status == BT_OK && at < end; number++) {
        const char *line_end = memchr(at, '\n', (size_t)(end - at));
        if (line_end == NULL) line_end = end;
        status = read_line(keys, into, number, at, line_end, err);
        at = line_end + 1;
    }
    if (status == BT_OK && into->n_entries == n_before)
        status = bt_fail(err, BT_BAD_REQUEST, "%s has no key", keys->path);
    OPENSSL_cleanse(text.bytes, text.cap_bytes);
    bt_buf_fini(&text);
    return status;
}

static bt_status read_list(const gw_keys *keys, table *into, bt_error *err) {
    bt_status status = BT_OK;
    uint32_t number = 1;
    for (const char *at = keys->list; status == BT_OK && *at != 0;) {
        size_t n_bytes = strcspn(at, ",");
        if (n_bytes > 0) status = add(keys, into, "--api-key", "flag", number++, at, n_bytes, "", 0, err);
        at += n_bytes + (at[n_bytes] == ',');
    }
    return status;
}

static bt_status find_twice(const table *sorted, bt_error *err) {
    for (uint32_t i = 1; i < sorted->n_entries; i++)
        if (compare(&sorted->entries[i - 1], &sorted->entries[i]) == 0)
            return bt_fail(err, BT_BAD_REQUEST, "%s and %s are the same key", sorted->entries[i - 1].name,
                           sorted->entries[i].name);
    return BT_OK;
}

bt_status gw_keys_reload(gw_keys *keys, bt_error *err) {
    table fresh = {0};
    gw_watch_mark(&keys->watch);
    bt_status status = read_list(keys, &fresh, err);
    if (status == BT_OK && keys->path[0] != 0) status = read_file(keys, &fresh, err);
    if (fresh.n_entries > 0) qsort(fresh.entries, fresh.n_entries, sizeof *fresh.entries, compare);
    if (status == BT_OK) status = find_twice(&fresh, err);
    if (status != BT_OK) {
        free(fresh.entries);
        return status;
    }
    free(keys->table.entries);
    keys->table = fresh;
    return BT_OK;
}

/* ---- open, find, close ----------------------------------------------------------------------------------------------
 */

bt_status gw_keys_open(const char *list, const char *path, gw_keys **out, bt_error *err) {
    gw_keys *keys = bt_calloc(1, sizeof *keys);
    keys->list = list;
    keys->path = path;
    if (path[0] != 0) gw_watch_add(&keys->watch, path);
    bt_status status = BT_OK;
    if (getrandom(keys->salt, sizeof keys->salt, 0) != sizeof keys->salt)
        status = bt_fail(err, BT_INTERNAL, "the system gives no random numbers");
    if (status == BT_OK) status = gw_keys_reload(keys, err);
    if (status != BT_OK) {
        gw_keys_close(keys);
        return status;
    }
    *out = keys;
    return BT_OK;
}

void gw_keys_close(gw_keys *keys) {
    if (keys == NULL) return;
    free(keys->table.entries);
    free(keys);
}

bool gw_keys_are_asked_for(const gw_keys *keys) { return keys->table.n_entries > 0; }

const char *gw_keys_find(const gw_keys *keys, const char *key, size_t n_bytes) {
    if (n_bytes == 0 || n_bytes >= GW_CAP_KEY || keys->table.n_entries == 0) return NULL;
    uint8_t wanted[SHA256_DIGEST_LENGTH];
    digest(keys, key, n_bytes, wanted);
    const entry *found =
        bsearch(wanted, keys->table.entries, keys->table.n_entries, sizeof *keys->table.entries, compare);
    return found == NULL ? NULL : found->name;
}

bool gw_keys_is_due(gw_keys *keys) { return gw_watch_is_due(&keys->watch); }
