/* Any bytes as a chat template: opening and rendering end in time, within their limits, with text or an error. */
#include <stdint.h>
#include <string.h>

#include "common/text/chat_template.h"
#include "common/text/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static const cJSON *variables(void) {
    static const char text[] = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi \\u00e9\\u65e5\"}, {\"role\": "
                               "\"assistant\", \"content\": null, "
                               "\"tool_calls\": [{\"function\": {\"name\": \"f\", \"arguments\": {\"x\": 1.0}}}]}], "
                               "\"tools\": null, \"n\": 3, \"l\": "
                               "[3, 1, 2], \"s\": \" a,b \", \"d\": {\"a\": 1, \"b\": [true]}, "
                               "\"add_generation_prompt\": true, \"bos_token\": \"<s>\"}";
    static cJSON *parsed;
    if (parsed == NULL) BT_ASSERT(txt_json_parse(text, strlen(text), &parsed, NULL) == BT_OK);
    return parsed;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    tpl_template *tpl = NULL;
    bt_error err = {0};
    bt_buf out = {0};
    bt_status status = tpl_open((const char *)data, n_bytes, &tpl, &err);
    if (status == BT_OK) status = tpl_render(tpl, variables(), &out, &err);
    BT_ASSERT(status == BT_OK || (status == BT_BAD_REQUEST && err.text[0] != 0 && out.n_bytes == 0));
    bt_buf_fini(&out);
    tpl_close(tpl);
    return 0;
}
