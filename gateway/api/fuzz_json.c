/* libFuzzer: any bytes as JSON. What our check lets through, cJSON must read; what our writer makes of any bytes is
 * JSON again; the readers of checkpoints and templates take or refuse. */
#include <stdlib.h>
#include <string.h>

#include "common/model/json.h"
#include "common/text/json.h"
#include "gateway/api/api_json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    char *text = malloc(n_bytes + 1); /* a sanitizer sees a byte too far */
    memcpy(text, data, n_bytes);
    gw_json_notes notes;
    cJSON *tree = NULL;
    bt_error err;
    if (gw_json_check(text, n_bytes, &notes, &err) == BT_OK) {
        tree = cJSON_ParseWithLength(text, n_bytes);
        BT_ASSERT(tree != NULL && notes.seed_offset + notes.seed_bytes <= n_bytes);
        cJSON_Delete(tree);
    }
    bt_buf quoted = {0};
    gw_json_put_string(&quoted, (const char *)data, n_bytes);
    BT_ASSERT(gw_json_check((char *)quoted.bytes, quoted.n_bytes, &notes, &err) == BT_OK);
    bt_buf_fini(&quoted);
    if (mdl_json_parse("fuzz", data, n_bytes, &tree, &err) == BT_OK) cJSON_Delete(tree);
    memcpy(text, data, n_bytes);
    if (txt_json_parse(text, n_bytes, &tree, &err) == BT_OK) cJSON_Delete(tree);
    free(text);
    return 0;
}
