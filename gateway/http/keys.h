/* Who may ask: API keys, from --api-key and from a file that may change while we run. One thread owns the keys.
 *
 * Only salted digests are kept. A key is found by its digest, so the time that takes says nothing about any key. Keys
 * appear in no log, metric or error; their names do.
 *
 * The file has one key per line, and after it a name if its holder has one: `KEY NAME`. Empty lines and lines that
 * begin with '#' are ignored. Several keys may have one name: that is how keys are exchanged. A key is 1 to 512
 * printable ASCII characters without blanks, a name 1 to 63 of [A-Za-z0-9._@:-]. A key without a name is called
 * line-N, and the N-th one of --api-key flag-N. */
#ifndef BATON_GATEWAY_HTTP_KEYS_H
#define BATON_GATEWAY_HTTP_KEYS_H

#include <stdbool.h>
#include <stddef.h>

#include "common/core/status.h"

enum { GW_MAX_KEYS = 65536, GW_CAP_KEY = 513, GW_CAP_KEY_NAME = 64 };

typedef struct gw_keys gw_keys;

/* Both may be "": then no key is asked for. Borrows both. BT_BAD_REQUEST: the file cannot be read, has no key, or has
 * a line that is wrong or a key twice; the sentence names file and line. */
bt_status gw_keys_open(const char *list, const char *path, gw_keys **out, bt_error *err);
void gw_keys_close(gw_keys *keys); /* NULL is accepted */

bool gw_keys_are_asked_for(const gw_keys *keys);

/* The name of the key's holder, NULL: nobody's. Valid until the next reload. */
const char *gw_keys_find(const gw_keys *keys, const char *key, size_t n_bytes);

bool gw_keys_is_due(gw_keys *keys); /* once a second: the file has changed */

/* Reads the file anew. On failure (as of open) the old keys stay. */
bt_status gw_keys_reload(gw_keys *keys, bt_error *err);

#endif
