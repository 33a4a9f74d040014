/* libFuzzer: any bytes as JSON. Of what our reader takes, cJSON's makes the same tree, but for escapes that it refuses
 * or cuts strings at; what our writer makes of any bytes is JSON again; the reader of checkpoints takes or refuses. */
#include <stdlib.h>
#include <string.h>

#include "common/model/json.h"
#include "common/text/json.h"
#include "gateway/api/api_json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void compare(const cJSON *tree, const char *text, size_t n_bytes) {
    cJSON *theirs = memmem(text, n_bytes, "u0000", 5) == NULL ? cJSON_ParseWithLength(text, n_bytes) : NULL;
    if (theirs == NULL) return;
    char *ours_text = cJSON_PrintUnformatted(tree), *their_text = cJSON_PrintUnformatted(theirs);
    BT_ASSERT(strcmp(ours_text, their_text) == 0);
    cJSON_free(ours_text);
    cJSON_free(their_text);
    cJSON_Delete(theirs);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    char *text = malloc(n_bytes + 1); /* a sanitizer sees a byte too far */
    memcpy(text, data, n_bytes);
    static const txt_json_rules rules = {.max_depth = 64, .max_values = 10000, .repairs = true};
    cJSON *tree = NULL;
    bt_error err;
    if (txt_json_read(text, n_bytes, &rules, &tree, &err) == BT_OK) {
        compare(tree, (const char *)data, n_bytes);
        cJSON_Delete(tree);
    }
    bt_buf quoted = {0};
    gw_json_put_string(&quoted, (const char *)data, n_bytes);
    BT_ASSERT(txt_json_parse((char *)quoted.bytes, quoted.n_bytes, &tree, &err) == BT_OK);
    cJSON_Delete(tree);
    bt_buf_fini(&quoted);
    if (mdl_json_parse("fuzz", data, n_bytes, &tree, &err) == BT_OK) cJSON_Delete(tree);
    free(text);
    return 0;
}
