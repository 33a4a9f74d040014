/* Owns the state of one stream. Each state looks for the first of a few marks in the pending text; what stands in front
 * of it is content, arguments or nothing, and goes at once but for a suffix that may be the start of a mark. Reads no
 * JSON: where arguments end is said by marks alone. */
#include "common/text/tool_calls.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"

#define FENCE      "```"
#define FENCE_JSON "```json"
#define MAX_SPACE  64 /* white space in front that still may be none of the content */

static const char SPACE[] = " \t\r\n";

typedef struct {
    const char *name;
    const char *calls_begin[3]; /* as it is written, then variants that models write too; NULL at the end */
    const char *calls_end[3];
    const char *call_begin, *head_end, *call_end;
} grammar;

static const grammar grammars[] = {
    [TCL_NONE] = {.name = "none"},
    [TCL_DEEPSEEK_V3] = {"deepseek_v3",
                         {"<｜tool▁calls▁begin｜>"},
                         {"<｜tool▁calls▁end｜>"},
                         "<｜tool▁call▁begin｜>",
                         "<｜tool▁sep｜>",
                         "<｜tool▁call▁end｜>"},
    [TCL_DEEPSEEK_V31] = {"deepseek_v31",
                          {"<｜tool▁calls▁begin｜>"},
                          {"<｜tool▁calls▁end｜>"},
                          "<｜tool▁call▁begin｜>",
                          "<｜tool▁sep｜>",
                          "<｜tool▁call▁end｜>"},
    [TCL_KIMI_K2] = {"kimi_k2",
                     {"<|tool_calls_section_begin|>", "<|tool_call_section_begin|>"},
                     {"<|tool_calls_section_end|>", "<|tool_call_section_end|>"},
                     "<|tool_call_begin|>",
                     "<|tool_call_argument_begin|>",
                     "<|tool_call_end|>"},
};
enum { N_FORMATS = sizeof grammars / sizeof *grammars };

/* ---- formats --------------------------------------------------------------------------------------------------- */

bool tcl_format_find(const char *name, tcl_format *out) {
    for (int i = 0; i < N_FORMATS; i++) {
        if (strcmp(grammars[i].name, name) != 0) continue;
        *out = (tcl_format)i;
        return true;
    }
    return false;
}

tcl_format tcl_format_of(const tok_tokenizer *tokenizer, const char *chat_template) {
    uint32_t id;
    if (tok_find(tokenizer, grammars[TCL_KIMI_K2].calls_begin[0], &id)) return TCL_KIMI_K2;
    const grammar *v31 = &grammars[TCL_DEEPSEEK_V31];
    if (!tok_find(tokenizer, v31->calls_begin[0], &id)) return TCL_NONE;
    /* both families have the same tokens: a template that prints calls without a fence is V3.1's */
    bool has_calls = chat_template != NULL && strstr(chat_template, v31->head_end) != NULL;
    return has_calls && strstr(chat_template, FENCE_JSON) == NULL ? TCL_DEEPSEEK_V31 : TCL_DEEPSEEK_V3;
}

bool tcl_has_special_markers(tcl_format format, const tok_tokenizer *tokenizer) {
    uint32_t id;
    return tok_find(tokenizer, grammars[format].call_begin, &id) && tok_is_special(tokenizer, id);
}

void tcl_write_opening(tcl_format format, const char *name, uint32_t n_earlier, bt_buf *out) {
    const grammar *g = &grammars[format];
    bt_buf_puts(out, g->calls_begin[0]);
    bt_buf_puts(out, g->call_begin);
    if (format == TCL_DEEPSEEK_V3) bt_buf_printf(out, "function%s", g->head_end);
    if (name == NULL) return;
    if (format == TCL_KIMI_K2) {
        bt_buf_printf(out, "functions.%s:%u", name, n_earlier);
    } else {
        bt_buf_puts(out, name);
    }
    bt_buf_puts(out, format == TCL_DEEPSEEK_V3 ? "\n" FENCE_JSON "\n" : g->head_end);
}

/* ---- one stream ------------------------------------------------------------------------------------------------ */

void tcl_init(tcl_parser *parser, tcl_format format, const char *id_prefix, uint32_t max_calls) {
    *parser = (tcl_parser){.format = format, .max_calls = max_calls};
    snprintf(parser->id_prefix, sizeof parser->id_prefix, "%s", id_prefix);
}

void tcl_fini(tcl_parser *parser) {
    for (uint32_t i = 0; i < parser->n_calls; i++) {
        free(parser->calls[i].id);
        free(parser->calls[i].name);
        bt_buf_fini(&parser->calls[i].arguments);
    }
    free(parser->calls);
    bt_buf_fini(&parser->pending);
    bt_buf_fini(&parser->unread);
    *parser = (tcl_parser){0};
}

/* Drops the first pending bytes; before the first call is known they may turn out to be content. */
static void consume(tcl_parser *parser, size_t n_bytes) {
    if (parser->state != TCL_TEXT && parser->n_calls == 0) bt_buf_put(&parser->unread, parser->pending.bytes, n_bytes);
    bt_buf_consume(&parser->pending, n_bytes);
}

static size_t count_space(const char *text, size_t n_bytes) {
    size_t n = 0;
    while (n < n_bytes && text[n] != 0 && strchr(SPACE, text[n]) != NULL) n++;
    return n;
}

/* ---- marks ----------------------------------------------------------------------------------------------------- */

enum { MAX_MARKS = 8 };

typedef struct {
    const char *text[MAX_MARKS];
    int n;
} mark_list;

static void add_mark(mark_list *marks, const char *text) {
    BT_ASSERT(marks->n < MAX_MARKS);
    marks->text[marks->n++] = text;
}

static void add_marks(mark_list *marks, const char *const *texts) {
    for (; *texts != NULL; texts++) add_mark(marks, *texts);
}

/* The first mark in the pending text, NULL: none. *at: where it is; without one, how much belongs to none for sure. */
static const char *find_mark(const tcl_parser *parser, const mark_list *marks, size_t *at) {
    const char *text = (const char *)parser->pending.bytes, *first = NULL, *found = NULL;
    size_t n_text = parser->pending.n_bytes, n_hold = 0;
    for (int i = 0; i < marks->n; i++) {
        const char *mark = marks->text[i];
        size_t n_mark = strlen(mark), n = n_mark - 1 < n_text ? n_mark - 1 : n_text;
        const char *here = n_text < n_mark ? NULL : memmem(text, n_text, mark, n_mark);
        if (here != NULL && (first == NULL || here < first)) {
            first = here;
            found = mark;
        }
        while (n > n_hold && memcmp(text + n_text - n, mark, n) != 0) n--;
        if (n > n_hold) n_hold = n;
    }
    *at = found == NULL ? n_text - n_hold : (size_t)(first - text);
    return found;
}

static bool is_one_of(const char *mark, const char *const *texts) {
    for (; *texts != NULL; texts++)
        if (mark == *texts) return true;
    return false;
}

/* ---- calls ----------------------------------------------------------------------------------------------------- */

static char *copy_trimmed(const char *text, size_t n_bytes) {
    size_t n_left = count_space(text, n_bytes);
    while (n_bytes > n_left && strchr(SPACE, text[n_bytes - 1]) != NULL) n_bytes--;
    char *copy = bt_calloc(1, n_bytes - n_left + 1);
    memcpy(copy, text + n_left, n_bytes - n_left);
    return copy;
}

/* "functions.NAME:0" -> NAME; another prefix may be missing or have another name. */
static char *name_of_id(const char *id) {
    static const char prefix[] = "functions.";
    size_t n = strcspn(id, ":");
    if (strncmp(id, prefix, sizeof prefix - 1) == 0) return copy_trimmed(id + sizeof prefix - 1, n - sizeof prefix + 1);
    const char *dot = memrchr(id, '.', n);
    return dot == NULL ? copy_trimmed(id, n) : copy_trimmed(dot + 1, n - (size_t)(dot + 1 - id));
}

/* A call is known by its head. false: that is no name. */
static bool begin_call(tcl_parser *parser, const char *head, size_t n_head) {
    char *id = NULL, *name = copy_trimmed(head, n_head);
    if (parser->format == TCL_KIMI_K2) {
        id = name;
        name = name_of_id(id);
    }
    if (name[0] == 0) {
        free(id);
        free(name);
        return false;
    }
    if (id == NULL) {
        id = bt_calloc(1, TCL_MAX_ID_PREFIX + 8);
        snprintf(id, TCL_MAX_ID_PREFIX + 8, "%s%08x", parser->id_prefix, parser->n_calls);
    }
    if (parser->n_calls == parser->cap_calls) {
        parser->cap_calls = parser->cap_calls == 0 ? 4 : 2 * parser->cap_calls;
        parser->calls = bt_realloc(parser->calls, parser->cap_calls, sizeof *parser->calls);
    }
    parser->calls[parser->n_calls++] = (tcl_call){.id = id, .name = name};
    parser->is_fenced = false;
    bt_buf_clear(&parser->unread);
    return true;
}

/* The newest call has all its arguments. */
static void end_call(tcl_parser *parser) {
    bt_buf *arguments = &parser->calls[parser->n_calls - 1].arguments;
    if (arguments->n_bytes == 0) bt_buf_puts(arguments, "{}");
    parser->state = parser->n_calls < parser->max_calls ? TCL_BETWEEN : TCL_DONE;
}

/* Between calls: drops a mark and goes where it leads. */
static void pass_mark(tcl_parser *parser, const char *mark) {
    const grammar *g = &grammars[parser->format];
    if (mark == g->call_begin) parser->state = TCL_HEAD;
    if (is_one_of(mark, g->calls_end)) parser->state = TCL_DONE;
    consume(parser, strlen(mark));
}

/* ---- states: each does one step and says whether there may be another ------------------------------------------ */

static void put_content(tcl_parser *parser, size_t n_bytes, bt_buf *content) {
    const char *text = (const char *)parser->pending.bytes;
    size_t n_space = parser->has_content ? 0 : count_space(text, n_bytes);
    if (n_bytes > n_space || parser->unread.n_bytes + n_space > MAX_SPACE) parser->has_content = n_bytes > 0;
    if (parser->has_content) {
        bt_buf_put(content, parser->unread.bytes, parser->unread.n_bytes);
        bt_buf_clear(&parser->unread);
    }
    bt_buf_put(parser->has_content ? content : &parser->unread, text, n_bytes);
    consume(parser, n_bytes);
}

static bool step_text(tcl_parser *parser, bt_buf *content) {
    mark_list marks = {0};
    add_marks(&marks, grammars[parser->format].calls_begin);
    size_t at;
    const char *mark = find_mark(parser, &marks, &at);
    if (at > 0) put_content(parser, at, content);
    if (mark == NULL) return false;
    parser->state = TCL_BETWEEN;
    consume(parser, strlen(mark));
    return true;
}

/* The marks that end a head or arguments, complete or not. */
static void add_ends(const tcl_parser *parser, mark_list *marks) {
    const grammar *g = &grammars[parser->format];
    add_mark(marks, g->call_end);
    add_mark(marks, g->call_begin);
    add_marks(marks, g->calls_end);
}

/* Everything goes, up to the next call or the end of all. */
static bool step_between(tcl_parser *parser) {
    mark_list marks = {0};
    add_ends(parser, &marks);
    size_t at;
    const char *mark = find_mark(parser, &marks, &at);
    consume(parser, at);
    if (mark == NULL) return false;
    pass_mark(parser, mark);
    return true;
}

/* Up to the mark that ends it: deepseek_v3's "function", the others' name or id. */
static bool step_head(tcl_parser *parser) {
    const char *head_end = grammars[parser->format].head_end;
    mark_list marks = {0};
    add_mark(&marks, head_end);
    add_ends(parser, &marks);
    size_t at;
    const char *mark = find_mark(parser, &marks, &at);
    if (mark == NULL && at <= TCL_MAX_HEAD_BYTES) return false;
    if (mark != head_end || at > TCL_MAX_HEAD_BYTES) {
        parser->state = TCL_BETWEEN;
        consume(parser, at);
        return true;
    }
    if (parser->format == TCL_DEEPSEEK_V3) {
        parser->state = TCL_NAME;
    } else {
        bool has_name = begin_call(parser, (const char *)parser->pending.bytes, at);
        parser->state = has_name ? TCL_OPEN : TCL_BETWEEN;
    }
    consume(parser, at + strlen(head_end));
    return true;
}

/* deepseek_v3's name: up to the end of its line, the fence, the arguments or the call. */
static bool step_name(tcl_parser *parser) {
    mark_list marks = {.text = {"\n", "`", "{"}, .n = 3};
    add_ends(parser, &marks);
    size_t at;
    const char *mark = find_mark(parser, &marks, &at);
    if (mark == NULL && at <= TCL_MAX_HEAD_BYTES) return false;
    bool has_name = at <= TCL_MAX_HEAD_BYTES && begin_call(parser, (const char *)parser->pending.bytes, at);
    parser->state = has_name ? TCL_OPEN : TCL_BETWEEN;
    consume(parser, at);
    return true;
}

/* In front of the arguments: white space, and maybe a fence. */
static bool step_open(tcl_parser *parser) {
    consume(parser, count_space((const char *)parser->pending.bytes, parser->pending.n_bytes));
    const char *text = (const char *)parser->pending.bytes, *wanted = parser->is_fenced ? FENCE : FENCE_JSON;
    size_t n = parser->pending.n_bytes, n_wanted = strlen(wanted), n_fence = strlen(FENCE);
    if (n == 0 || (n < n_wanted && memcmp(text, wanted, n) == 0)) return false;
    if (n < n_fence || memcmp(text, FENCE, n_fence) != 0) {
        parser->state = TCL_ARGUMENTS;
    } else if (parser->is_fenced) { /* nothing in it */
        end_call(parser);
        consume(parser, n_fence);
    } else {
        parser->is_fenced = true;
        consume(parser, n >= n_wanted && memcmp(text, wanted, n_wanted) == 0 ? n_wanted : n_fence);
    }
    return true;
}

static bool step_arguments(tcl_parser *parser) {
    /* JSON has no raw line feed in a string: a fence at the start of a line is the end */
    static const char line_and_fence[] = "\n" FENCE;
    char fence_and_end[64];
    snprintf(fence_and_end, sizeof fence_and_end, FENCE "%s", grammars[parser->format].call_end);
    mark_list marks = {0};
    if (parser->is_fenced) {
        add_mark(&marks, line_and_fence);
        add_mark(&marks, fence_and_end);
    }
    add_ends(parser, &marks);
    size_t at;
    const char *mark = find_mark(parser, &marks, &at);
    bt_buf_put(&parser->calls[parser->n_calls - 1].arguments, parser->pending.bytes, at);
    consume(parser, at);
    if (mark == NULL) return false;
    end_call(parser);
    if (mark == line_and_fence || mark == fence_and_end) {
        consume(parser, mark == line_and_fence ? strlen(mark) : strlen(FENCE));
    } else if (parser->state != TCL_DONE) {
        pass_mark(parser, mark);
    }
    return true;
}

static bool step(tcl_parser *parser, bt_buf *content) {
    switch (parser->state) {
    case TCL_TEXT:
        return step_text(parser, content);
    case TCL_BETWEEN:
        return step_between(parser);
    case TCL_HEAD:
        return step_head(parser);
    case TCL_NAME:
        return step_name(parser);
    case TCL_OPEN:
        return step_open(parser);
    case TCL_ARGUMENTS:
        return step_arguments(parser);
    case TCL_DONE:
        consume(parser, parser->pending.n_bytes);
    }
    return false;
}

void tcl_put(tcl_parser *parser, const char *text, size_t n_bytes, bt_buf *content) {
    bt_buf_put(&parser->pending, text, n_bytes);
    while (parser->pending.n_bytes > 0 && step(parser, content)) {
    }
}

void tcl_put_opening(tcl_parser *parser, const char *text, size_t n_bytes) {
    bt_buf none = {0};
    tcl_put(parser, text, n_bytes, &none);
    bt_buf_clear(&parser->unread);
    bt_buf_fini(&none);
}

void tcl_finish(tcl_parser *parser, bt_buf *content) {
    const bt_buf *rest = &parser->pending;
    if (parser->n_calls == 0) {
        bt_buf_put(content, parser->unread.bytes, parser->unread.n_bytes);
        bt_buf_put(content, rest->bytes, rest->n_bytes);
    } else if (parser->state == TCL_OPEN || parser->state == TCL_ARGUMENTS) {
        bt_buf_put(&parser->calls[parser->n_calls - 1].arguments, rest->bytes, rest->n_bytes);
    }
    bt_buf_clear(&parser->pending);
    bt_buf_clear(&parser->unread);
    parser->state = TCL_DONE;
}
