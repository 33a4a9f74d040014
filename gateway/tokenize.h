/* The tokenizer over HTTP, as vLLM serves it: POST /tokenize and /detokenize, GET /tokenizer_info. No worker has a part
 * in it. */
#ifndef BATON_GATEWAY_TOKENIZE_H
#define BATON_GATEWAY_TOKENIZE_H

#include "gateway/reply.h"

/* `rest` is not used. Text as long as a prompt may be, no more: the loop's other clients wait meanwhile. */
void gw_tokenize(const gw_call *call, const char *rest);
void gw_detokenize(const gw_call *call, const char *rest);

/* 404 unless --enable-tokenizer-info-endpoint. */
void gw_tokenizer_info(const gw_call *call, const char *rest);

#endif
