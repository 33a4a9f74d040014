/* libFuzzer: a request body, as every endpoint reads it. The first byte picks the rules. */
#include <stdlib.h>
#include <string.h>

#include "common/text/json.h"
#include "gateway/api/api_request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

typedef bt_status (*parse_function)(const gw_api_rules *rules, char *body, size_t n_bytes, gw_request *out,
                                    gw_error *error);

static void tokenize(const gw_api_rules *rules, const uint8_t *data, size_t n_bytes, parse_function parse) {
    char *body = malloc(n_bytes);
    if (n_bytes > 0) memcpy(body, data, n_bytes);
    gw_request request;
    gw_error error;
    if (parse(rules, body, n_bytes, &request, &error) == BT_OK) gw_request_fini(&request);
    free(body);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    if (n_bytes == 0) return 0;
    gw_api_rules rules = {.vocab_size = 2048,
                          .default_temperature = 1,
                          .default_top_p = 1,
                          .max_logprobs = 20,
                          .has_developer_role = data[0] & 1,
                          .wants_argument_object = data[0] & 2,
                          .reads_tool_calls = data[0] & 4};
    for (int endpoint = GW_CHAT; endpoint <= GW_COMPLETION; endpoint++) {
        char *body = malloc(n_bytes); /* exactly as long: reading past it is found */
        memcpy(body, data + 1, n_bytes - 1);
        gw_request request;
        gw_error error;
        bt_buf text = {0};
        if (gw_api_parse(endpoint, &rules, body, n_bytes - 1, &request, &error) == BT_OK) {
            gw_request_fini(&request);
        } else {
            gw_error_write(&error, &text); /* whatever was quoted, the answer is JSON */
            cJSON *tree;
            BT_ASSERT(txt_json_parse((char *)text.bytes, text.n_bytes, &tree, NULL) == BT_OK);
            cJSON_Delete(tree);
        }
        bt_buf_fini(&text);
        free(body);
    }
    tokenize(&rules, data + 1, n_bytes - 1, gw_api_parse_tokenize);
    tokenize(&rules, data + 1, n_bytes - 1, gw_api_parse_detokenize);
    return 0;
}
