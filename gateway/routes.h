/* Which path and method goes where; who may; what else stands in front of a request for text. */
#ifndef BATON_GATEWAY_ROUTES_H
#define BATON_GATEWAY_ROUTES_H

#include "gateway/loop.h"

/* gw_http_config.on_request with the loop as context. */
void gw_routes_on_request(void *loop, gw_http_exchange *exchange);

#endif
