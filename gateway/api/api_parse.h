/* The parts of gw_api_parse(), one file each: api_parse.c (fields that both endpoints have), api_chat.c (messages),
 * api_tools.c (which it calls), api_completions.c (prompts), api_sampling.c (how tokens are chosen), api_unsupported.c
 * (what is known and refused). Called in that order by gw_api_parse(), and as far as needed by api_tokenize.c; each
 * reads request->root and fills its own fields. */
#ifndef BATON_GATEWAY_API_API_PARSE_H
#define BATON_GATEWAY_API_API_PARSE_H

#include "gateway/api/api_request.h"

/* request->root: an object within the limits. */
bt_status gw_api_parse_root(char *body, size_t n_bytes, gw_request *request, gw_error *error);

bt_status gw_api_parse_chat(const gw_api_rules *rules, gw_request *request, gw_error *error);
bt_status gw_api_parse_tools(const gw_api_rules *rules, gw_request *request, gw_error *error);
bt_status gw_api_parse_completion(const gw_api_rules *rules, gw_request *request, gw_error *error);
bt_status gw_api_parse_sampling(const gw_api_rules *rules, gw_request *request, gw_error *error);
bt_status gw_api_refuse_unsupported(const gw_request *request, gw_error *error);

#endif
