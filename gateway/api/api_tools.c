/* Tools of a chat and what the client wants of them. How a model writes a call is not known here. */
#include <string.h>

#include "gateway/api/api_params.h"
#include "gateway/api/api_parse.h"

static bt_status check_tool(const cJSON *tool, gw_error *error) {
    const cJSON *type = cJSON_IsObject(tool) ? gw_param_find(tool, "type") : NULL;
    if (type != NULL && (!cJSON_IsString(type) || strcmp(type->valuestring, "function") != 0))
        return gw_fail(error, 400, "tools", "Only tools of type function are supported.");
    const cJSON *function = cJSON_IsObject(tool) ? gw_param_find(tool, "function") : NULL;
    const cJSON *name = cJSON_IsObject(function) ? gw_param_find(function, "name") : NULL;
    if (!cJSON_IsString(name) || name->valuestring[0] == 0)
        return gw_fail(error, 400, "tools", "Each tool must have a function with a name.");
    const cJSON *parameters = gw_param_find(function, "parameters");
    if (parameters != NULL && !cJSON_IsObject(parameters))
        return gw_fail(error, 400, "tools", "The parameters of a tool's function must be an object.");
    return BT_OK;
}

/* Of a checked tool. */
static const char *name_of(const cJSON *tool) {
    return gw_param_find(gw_param_find(tool, "function"), "name")->valuestring;
}

static bool has_tool(const cJSON *tools, const char *name) {
    for (const cJSON *tool = tools->child; tool != NULL; tool = tool->next)
        if (strcmp(name_of(tool), name) == 0) return true;
    return false;
}

static bt_status parse_named_choice(const cJSON *choice, const cJSON *tools, gw_request *request, gw_error *error) {
    const cJSON *type = gw_param_find(choice, "type");
    const cJSON *function = gw_param_find(choice, "function");
    const cJSON *name = cJSON_IsObject(function) ? gw_param_find(function, "name") : NULL;
    if (!cJSON_IsString(name) ||
        (type != NULL && (!cJSON_IsString(type) || strcmp(type->valuestring, "function") != 0)))
        return gw_fail(error, 400, "tool_choice", "A tool_choice object must be of type function and name one.");
    if (!has_tool(tools, name->valuestring))
        return gw_fail(error, 400, "tool_choice", "tool_choice names %.64s, which is not among the tools.",
                       name->valuestring);
    request->tool_choice = GW_TOOLS_NAMED;
    request->tool_name = name->valuestring;
    return BT_OK;
}

/* `tools` NULL: there are none; then "none" and "auto" are let through, as clients send them. */
static bt_status parse_choice(const gw_api_rules *rules, const cJSON *tools, gw_request *request, gw_error *error) {
    const cJSON *choice = gw_param_find(request->root, "tool_choice");
    const char *word = choice == NULL ? "auto" : cJSON_IsString(choice) ? choice->valuestring : "";
    if (strcmp(word, "none") == 0) return BT_OK;
    if (strcmp(word, "auto") == 0) {
        if (tools != NULL && rules->reads_tool_calls) request->tool_choice = GW_TOOLS_AUTO;
        return BT_OK;
    }
    bool is_required = strcmp(word, "required") == 0;
    if (!is_required && !cJSON_IsObject(choice))
        return gw_fail(error, 400, "tool_choice",
                       "Invalid value for `tool_choice`: only named tools, \"none\", \"auto\" or \"required\" are "
                       "supported.");
    if (tools == NULL) return gw_fail(error, 400, "tool_choice", "When using `tool_choice`, `tools` must be set.");
    if (!rules->reads_tool_calls)
        return gw_fail(error, 400, "tool_choice",
                       "A tool_choice that forces a call is not supported: this gateway runs without a tool call "
                       "parser.");
    if (!is_required) return parse_named_choice(choice, tools, request, error);
    request->tool_choice = GW_TOOLS_REQUIRED;
    if (tools->child->next == NULL) request->tool_name = name_of(tools->child); /* there is no other */
    return BT_OK;
}

bt_status gw_api_parse_tools(const gw_api_rules *rules, gw_request *request, gw_error *error) {
    cJSON *tools = gw_param_find_mutable(request->root, "tools");
    if (tools != NULL && !cJSON_IsArray(tools)) return gw_fail(error, 400, "tools", "tools must be a list.");
    if (tools != NULL && tools->child == NULL) tools = NULL; /* agents send [] and mean none */
    bt_status status = BT_OK;
    for (const cJSON *tool = tools == NULL ? NULL : tools->child; tool != NULL && status == BT_OK; tool = tool->next)
        status = check_tool(tool, error);
    request->parallel_tool_calls = true;
    if (status == BT_OK)
        status = gw_param_bool(request->root, "parallel_tool_calls", &request->parallel_tool_calls, error);
    if (status == BT_OK) status = parse_choice(rules, tools, request, error);
    if (status != BT_OK) return status;
    cJSON_AddItemToObject(request->variables, "tools",
                          tools == NULL ? cJSON_CreateNull() : cJSON_DetachItemViaPointer(request->root, tools));
    return BT_OK;
}
