/* A request for text from its body to its last byte: parse, tokenise, submit, and turn the core's tokens into JSON or
 * server-sent events. An answer has n choices per prompt; each choice is one request of gw_core.
 *
 *     parse ─▶ admitted ─first token─▶ started (headers are out, streams only) ─▶ ended
 *        └─ refused: an error object          └─ a choice failed: error event, [DONE]
 *
 * All on the loop's thread. */
#ifndef BATON_GATEWAY_SERVE_H
#define BATON_GATEWAY_SERVE_H

#include "gateway/reply.h"

void gw_serve(const gw_call *call, gw_endpoint endpoint);

/* What every POST body is checked for before it is parsed: its size, its type. */
bt_status gw_serve_check_body(const gw_call *call, gw_error *error);

/* The served name that the client meant, 404: none of ours. */
bt_status gw_serve_find_model(const gw_model *model, const gw_request *request, const char **out, gw_error *error);

/* What gw_core decided about a choice, from gw_loop_pump(); action->user is the choice. */
void gw_serve_on_action(gw_loop *loop, const gw_action *action);

/* Frees what ended, when no action can point to it any more. */
void gw_serve_reap(gw_loop *loop);

/* Once a second: comments into silent streams. */
void gw_serve_tick(gw_loop *loop, int64_t now_ns);

/* Too late to drain: every answer that is still open gets an error. */
void gw_serve_fail_all(gw_loop *loop);

#endif
