/* /v1/chat/completions: messages, brought into the one form that chat templates expect, in place in the
 * parsed tree: `content` is a string (or null for an assistant), roles are those of the template, arguments of old
 * tool calls have the type it wants. Renders nothing. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/core/buf.h"
#include "gateway/api/api_params.h"
#include "gateway/api/api_parse.h"

/* ---- messages -------------------------------------------------------------------------------------------------- */

/* Replaces (or adds) a member; takes `value`. Repeated keys collapse into one. */
static void set_member(cJSON *object, const char *name, cJSON *value) {
    cJSON *next;
    for (cJSON *child = object->child; child != NULL; child = next) {
        next = child->next;
        if (child->string != NULL && strcmp(child->string, name) == 0)
            cJSON_Delete(cJSON_DetachItemViaPointer(object, child));
    }
    cJSON_AddItemToObject(object, name, value);
}

/* The template's word for a role, NULL: no such role. */
static const char *template_role(const gw_api_rules *rules, const char *role) {
    static const char *const known[][2] = {{"system", "system"},       {"user", "user"}, {"assistant", "assistant"},
                                           {"developer", "developer"}, {"tool", "tool"}, {"function", "tool"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcasecmp(role, known[i][0]) != 0) continue;
        if (strcmp(known[i][1], "developer") == 0 && !rules->has_developer_role) return "system";
        return known[i][1];
    }
    return NULL;
}

/* The text of one part; *out NULL: the part is there but null. */
static bt_status part_text(const cJSON *part, uint32_t index, const char **out, gw_error *error) {
    *out = NULL;
    if (cJSON_IsString(part)) {
        *out = part->valuestring;
        return BT_OK;
    }
    const cJSON *type = cJSON_IsObject(part) ? gw_param_find(part, "type") : NULL;
    if (!cJSON_IsString(type))
        return gw_fail(error, 400, "messages", "A content part of messages[%u] is not an object with a type.", index);
    static const char *const texts[][2] = {{"text", "text"},
                                           {"input_text", "text"},
                                           {"output_text", "text"},
                                           {"refusal", "refusal"},
                                           {"thinking", "thinking"}};
    static const char *const media[] = {"image_url", "input_image",  "image_embeds",  "input_audio",
                                        "audio_url", "audio_embeds", "video_url",     "prompt_embeds",
                                        "file",      "input_file",   "tool_reference"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (strcmp(type->valuestring, texts[i][0]) != 0) continue;
        const cJSON *text = gw_param_find(part, texts[i][1]);
        if (text != NULL && !cJSON_IsString(text))
            return gw_fail(error, 400, "messages", "The %s of a content part of messages[%u] is not a string.",
                           texts[i][1], index);
        *out = text == NULL ? NULL : text->valuestring;
        return BT_OK;
    }
    for (size_t i = 0; i < sizeof media / sizeof *media; i++)
        if (strcmp(type->valuestring, media[i]) == 0)
            return gw_fail(error, 400, "messages", "This model takes text only: messages[%u] holds a part of type %s.",
                           index, media[i]);
    return gw_fail(error, 400, "type", "Unsupported chat content part type: %.64s.", type->valuestring);
}

static bt_status join_parts(const cJSON *parts, uint32_t index, bt_buf *out, gw_error *error) {
    bool is_first = true;
    for (const cJSON *part = parts->child; part != NULL; part = part->next) {
        const char *text;
        bt_status status = part_text(part, index, &text, error);
        if (status != BT_OK) return status;
        if (text == NULL) continue;
        if (!is_first) bt_buf_put(out, "\n", 1);
        bt_buf_puts(out, text);
        is_first = false;
    }
    return BT_OK;
}

static bt_status normalise_content(cJSON *message, const char *role, uint32_t index, gw_error *error) {
    const cJSON *content = gw_param_find(message, "content");
    if (content == NULL) {
        set_member(message, "content", strcmp(role, "assistant") == 0 ? cJSON_CreateNull() : cJSON_CreateString(""));
        return BT_OK;
    }
    if (cJSON_IsString(content)) return BT_OK;
    if (!cJSON_IsArray(content))
        return gw_fail(error, 400, "messages", "The content of messages[%u] must be a string or a list of parts.",
                       index);
    bt_buf text = {0};
    bt_status status = join_parts(content, index, &text, error);
    if (status == BT_OK) set_member(message, "content", cJSON_CreateString(bt_buf_text(&text)));
    bt_buf_fini(&text);
    return status;
}

/* The arguments of one earlier call: the client's string as it is where the template joins strings, else an object. */
static bt_status normalise_arguments(const gw_api_rules *rules, cJSON *function, uint32_t index, gw_error *error) {
    const cJSON *arguments = gw_param_find(function, "arguments");
    bool is_empty = arguments == NULL || (cJSON_IsString(arguments) && arguments->valuestring[0] == 0);
    if (is_empty) {
        set_member(function, "arguments",
                   rules->wants_argument_object ? cJSON_CreateObject() : cJSON_CreateString("{}"));
        return BT_OK;
    }
    if (cJSON_IsString(arguments) && rules->wants_argument_object) {
        cJSON *object = cJSON_Parse(arguments->valuestring);
        if (!cJSON_IsObject(object)) {
            cJSON_Delete(object);
            return gw_fail(error, 400, "messages",
                           "The arguments of a tool call of messages[%u] are not a JSON object.", index);
        }
        set_member(function, "arguments", object);
    } else if (cJSON_IsObject(arguments) && !rules->wants_argument_object) {
        char *text = cJSON_PrintUnformatted(arguments);
        set_member(function, "arguments", cJSON_CreateString(text));
        cJSON_free(text);
    } else if (!cJSON_IsString(arguments) && !cJSON_IsObject(arguments)) {
        return gw_fail(error, 400, "messages", "The arguments of a tool call of messages[%u] must be a string.", index);
    }
    return BT_OK;
}

static bt_status normalise_tool_calls(const gw_api_rules *rules, cJSON *message, uint32_t index, gw_error *error) {
    cJSON *calls = gw_param_find_mutable(message, "tool_calls");
    if (calls == NULL) return BT_OK;
    if (!cJSON_IsArray(calls))
        return gw_fail(error, 400, "messages", "The tool_calls of messages[%u] must be a list.", index);
    if (calls->child == NULL) { /* templates would print the frame of calls around none */
        cJSON_Delete(cJSON_DetachItemViaPointer(message, calls));
        return BT_OK;
    }
    for (cJSON *call = calls->child; call != NULL; call = call->next) {
        cJSON *function = cJSON_IsObject(call) ? gw_param_find_mutable(call, "function") : NULL;
        if (!cJSON_IsObject(function) || !cJSON_IsString(gw_param_find(function, "name")))
            return gw_fail(error, 400, "messages", "A tool call of messages[%u] has no function with a name.", index);
        if (gw_param_find(call, "type") == NULL) set_member(call, "type", cJSON_CreateString("function"));
        bt_status status = normalise_arguments(rules, function, index, error);
        if (status != BT_OK) return status;
    }
    return BT_OK;
}

/* Templates know `reasoning` (vLLM's newer name) or `reasoning_content`: an assistant's earlier thought gets both. */
static void mirror_reasoning(cJSON *message) {
    static const char *const names[] = {"reasoning", "reasoning_content"};
    for (int i = 0; i < 2; i++) {
        const cJSON *given = gw_param_find(message, names[i]);
        if (cJSON_IsString(given) && gw_param_find(message, names[1 - i]) == NULL)
            set_member(message, names[1 - i], cJSON_CreateString(given->valuestring));
    }
}

static bt_status normalise_message(const gw_api_rules *rules, cJSON *message, uint32_t index, gw_error *error) {
    const cJSON *role = cJSON_IsObject(message) ? gw_param_find(message, "role") : NULL;
    if (!cJSON_IsString(role))
        return gw_fail(error, 400, "messages", "messages[%u] must be an object with a role.", index);
    const char *name = template_role(rules, role->valuestring);
    if (name == NULL) {
        char param[48];
        snprintf(param, sizeof param, "messages[%u].role", index);
        return gw_fail(error, 400, param,
                       "The role of messages[%u] must be system, developer, user, assistant or tool.", index);
    }
    if (strcmp(name, role->valuestring) != 0) set_member(message, "role", cJSON_CreateString(name));
    bt_status status = normalise_content(message, name, index, error);
    if (status == BT_OK) status = normalise_tool_calls(rules, message, index, error);
    if (status == BT_OK && strcmp(name, "assistant") == 0) mirror_reasoning(message);
    return status;
}

static bt_status parse_messages(const gw_api_rules *rules, gw_request *request, gw_error *error) {
    cJSON *messages = gw_param_find_mutable(request->root, "messages");
    if (messages == NULL) return gw_fail(error, 400, "messages", "messages: field required.");
    if (!cJSON_IsArray(messages)) return gw_fail(error, 400, "messages", "messages must be a list.");
    if (messages->child == NULL) return gw_fail(error, 400, "messages", "messages must not be empty.");
    uint32_t index = 0;
    cJSON *last = NULL;
    for (cJSON *message = messages->child; message != NULL; message = message->next, index++) {
        if (index == GW_MAX_MESSAGES)
            return gw_fail(error, 400, "messages", "messages is limited to %d entries.", GW_MAX_MESSAGES);
        bt_status status = normalise_message(rules, message, index, error);
        if (status != BT_OK) return status;
        last = message;
    }
    const cJSON *content = gw_param_find(last, "content");
    request->last_text = "";
    if (cJSON_IsString(content) && strcmp(gw_param_find(last, "role")->valuestring, "assistant") == 0)
        request->last_text = content->valuestring;
    cJSON_AddItemToObject(request->variables, "messages", cJSON_DetachItemViaPointer(request->root, messages));
    return BT_OK;
}

/* ---- what else the template gets ------------------------------------------------------------------------------- */

/* The client's kwargs, all but the names that the request itself owns. */
static bt_status parse_kwargs(gw_request *request, gw_error *error) {
    cJSON *kwargs = gw_param_find_mutable(request->root, "chat_template_kwargs");
    if (kwargs == NULL) return BT_OK;
    if (!cJSON_IsObject(kwargs))
        return gw_fail(error, 400, "chat_template_kwargs", "chat_template_kwargs must be an object.");
    if (cJSON_GetArraySize(kwargs) > GW_MAX_TEMPLATE_KWARGS)
        return gw_fail(error, 400, "chat_template_kwargs", "chat_template_kwargs is limited to %d entries.",
                       GW_MAX_TEMPLATE_KWARGS);
    static const char *const owned[] = {"messages",  "tools",    "documents", "add_generation_prompt",
                                        "bos_token", "eos_token"};
    while (kwargs->child != NULL) {
        cJSON *item = cJSON_DetachItemViaPointer(kwargs, kwargs->child);
        bool is_owned = false;
        for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) is_owned |= strcmp(item->string, owned[i]) == 0;
        if (is_owned) {
            cJSON_Delete(item);
            continue;
        }
        set_member(request->variables, item->string, item);
    }
    return BT_OK;
}

/* `thinking` (DeepSeek) and `enable_thinking` (Qwen, vLLM) are one switch; reasoning_effort sets it if nobody else did.
 */
static bt_status parse_thinking(gw_request *request, gw_error *error) {
    static const char *const efforts[] = {"none", "minimal", "low", "medium", "high", "xhigh", "max"};
    const char *effort = NULL;
    bt_status status = gw_param_string(request->root, "reasoning_effort", &effort, error);
    if (status != BT_OK) return status;
    if (effort != NULL) {
        bool is_known = false;
        for (size_t i = 0; i < sizeof efforts / sizeof *efforts; i++) is_known |= strcmp(effort, efforts[i]) == 0;
        if (!is_known)
            return gw_fail(error, 400, "reasoning_effort",
                           "reasoning_effort must be none, minimal, low, medium, high, xhigh or max.");
        set_member(request->variables, "reasoning_effort", cJSON_CreateString(effort));
    }
    const cJSON *thinking = gw_param_find(request->variables, "thinking");
    const cJSON *enable = gw_param_find(request->variables, "enable_thinking");
    if (thinking == NULL && enable == NULL && effort == NULL) return BT_OK;
    const cJSON *given = thinking != NULL ? thinking : enable;
    bool is_on = given != NULL ? !cJSON_IsFalse(given) : strcmp(effort, "none") != 0;
    if (thinking == NULL) set_member(request->variables, "thinking", cJSON_CreateBool(is_on));
    if (enable == NULL) set_member(request->variables, "enable_thinking", cJSON_CreateBool(is_on));
    return BT_OK;
}

static bt_status parse_generation_flags(gw_request *request, gw_error *error) {
    request->add_generation_prompt = true;
    const cJSON *root = request->root;
    bt_status status = gw_param_bool(root, "continue_final_message", &request->continue_final_message, error);
    if (status == BT_OK) status = gw_param_bool(root, "add_generation_prompt", &request->add_generation_prompt, error);
    if (status != BT_OK) return status;
    if (request->continue_final_message && request->add_generation_prompt)
        return gw_fail(error, 400, "continue_final_message",
                       "Cannot set both `continue_final_message` and `add_generation_prompt` to True: "
                       "continue_final_message needs add_generation_prompt false in the same request.");
    if (request->continue_final_message && request->last_text[0] == 0)
        return gw_fail(error, 400, "continue_final_message",
                       "continue_final_message needs a last message of the assistant with content.");
    set_member(request->variables, "add_generation_prompt", cJSON_CreateBool(request->add_generation_prompt));
    return BT_OK;
}

static bt_status parse_documents(gw_request *request, gw_error *error) {
    cJSON *documents = gw_param_find_mutable(request->root, "documents");
    if (documents != NULL && !cJSON_IsArray(documents))
        return gw_fail(error, 400, "documents", "documents must be a list of objects.");
    for (const cJSON *item = documents == NULL ? NULL : documents->child; item != NULL; item = item->next)
        if (!cJSON_IsObject(item)) return gw_fail(error, 400, "documents", "documents must be a list of objects.");
    cJSON_AddItemToObject(request->variables, "documents",
                          documents == NULL ? cJSON_CreateNull()
                                            : cJSON_DetachItemViaPointer(request->root, documents));
    return BT_OK;
}

bt_status gw_api_parse_chat(const gw_api_rules *rules, gw_request *request, gw_error *error) {
    request->variables = cJSON_CreateObject();
    bt_status status = parse_messages(rules, request, error);
    if (status == BT_OK) status = gw_api_parse_tools(rules, request, error);
    if (status == BT_OK) status = parse_documents(request, error);
    if (status == BT_OK) status = parse_kwargs(request, error);
    if (status == BT_OK) status = parse_thinking(request, error);
    if (status == BT_OK) status = parse_generation_flags(request, error);
    return status;
}
