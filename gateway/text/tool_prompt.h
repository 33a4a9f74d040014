/* What a model is told of its tools where its chat template does not: DeepSeek's own templates print calls, but no
 * tools. The text goes behind the system message's, in the form that the model's README asks for (V3.1), or that its
 * calls have (V3 and R1, whose READMEs ask for nothing). */
#ifndef BATON_GATEWAY_TEXT_TOOL_PROMPT_H
#define BATON_GATEWAY_TEXT_TOOL_PROMPT_H

#include <cjson/cJSON.h>

#include "common/text/chat_template.h"
#include "common/text/tool_calls.h"
#include "gateway/api/api_error.h"

/* *out, for tpl_close(); NULL: nothing needs to be said, the chat template knows tools or the model has no calls. */
bt_status gw_tool_prompt_open(tcl_format format, const char *chat_template, tpl_template **out, bt_error *err);

/* Moves `tools` of a chat's variables into its first system message, or a new one in front. Without tools, and a second
 * time: nothing. BT_BAD_REQUEST: they cannot be rendered. */
bt_status gw_tool_prompt_add(const tpl_template *tool_prompt, cJSON *variables, gw_error *error);

#endif
