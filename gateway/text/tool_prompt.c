/* The texts are templates themselves: they need tojson as Python prints it. Kimi's chat templates have always shown
 * tools. */
#include "gateway/text/tool_prompt.h"

#include <string.h>

#include "gateway/api/api_params.h"

#define BEGIN "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
#define SEP   "<｜tool▁sep｜>"
#define END   "<｜tool▁call▁end｜>"
#define DONE  "<｜tool▁calls▁end｜>"

/* A line feed behind a tag or at the end would be dropped: those are in expressions. */
static const char deepseek_v3[] =
    "You can call tools. To call one, answer with\n" BEGIN "function" SEP
    "NAME\n```json\n{\"argument\": \"value\"}\n```" END DONE "\n"
    "and nothing else. The arguments are one JSON object.\n"
    "\n"
    "## Tools\n"
    "{% for tool in tools %}{{ '\\n```json\\n' ~ (tool | tojson) ~ '\\n```\\n' }}{% endfor %}";

static const char deepseek_v31[] =
    "## Tools\n"
    "You have access to the following tools:\n"
    "{% for tool in tools %}"
    "{{ '\\n### ' ~ tool.function.name ~ '\\nDescription: ' ~ (tool.function.description or '') ~ '\\n' }}"
    "{{ '\\nParameters: ' ~ ((tool.function.parameters or {}) | tojson) ~ '\\n' }}"
    "{% endfor %}"
    "{{ '\\n' }}IMPORTANT: ALWAYS adhere to this exact format for tool use:\n" BEGIN "tool_call_name" SEP
    "tool_call_arguments" END "{additional_tool_calls}" DONE "\n"
    "\n"
    "Where:\n"
    "\n"
    "- `tool_call_name` must be an exact match to one of the available tools\n"
    "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
    "- For multiple tool calls, chain them directly without separators or spaces{{ '\\n' }}";

bt_status gw_tool_prompt_open(tcl_format format, const char *chat_template, tpl_template **out, bt_error *err) {
    *out = NULL;
    const char *source = format == TCL_DEEPSEEK_V3 ? deepseek_v3 : format == TCL_DEEPSEEK_V31 ? deepseek_v31 : NULL;
    if (source == NULL || chat_template == NULL || strstr(chat_template, "tools") != NULL) return BT_OK;
    return tpl_open(source, strlen(source), out, err);
}

static void append_to_system(cJSON *messages, const char *text) {
    for (cJSON *message = messages->child; message != NULL; message = message->next) {
        if (strcmp(gw_param_find(message, "role")->valuestring, "system") != 0) continue;
        cJSON *content = gw_param_find_mutable(message, "content");
        bt_buf joined = {0};
        bt_buf_printf(&joined, "%s%s%s", content->valuestring, content->valuestring[0] == 0 ? "" : "\n\n", text);
        cJSON_SetValuestring(content, bt_buf_text(&joined));
        bt_buf_fini(&joined);
        return;
    }
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "role", "system");
    cJSON_AddStringToObject(message, "content", text);
    cJSON_InsertItemInArray(messages, 0, message);
}

bt_status gw_tool_prompt_add(const tpl_template *tool_prompt, cJSON *variables, gw_error *error) {
    if (tool_prompt == NULL || gw_param_find(variables, "tools") == NULL) return BT_OK;
    bt_buf text = {0};
    bt_error err = {0};
    bt_status status = tpl_render(tool_prompt, variables, &text, &err);
    if (status == BT_OK) {
        append_to_system(gw_param_find_mutable(variables, "messages"), bt_buf_text(&text));
        cJSON_ReplaceItemInObjectCaseSensitive(variables, "tools", cJSON_CreateNull());
    } else {
        gw_fail(error, 400, "tools", "The tools cannot be shown to the model: %s.", err.text);
    }
    bt_buf_fini(&text);
    return status;
}
