/* Chat templates: the part of Jinja2 that published chat templates use, in the environment that Hugging Face
 * transformers gives them (trim_blocks, lstrip_blocks, loop controls, an immutable sandbox, tojson without HTML
 * escapes, raise_exception, strftime_now). Same text as Python's Jinja2 3.1, or an error; never a guess.
 *
 * Not there, and refused when the template is opened: include, import, extends, block, do, recursive loops, autoescape,
 * *args. Filters, tests, functions and methods: common/text/README.md. */
#ifndef BATON_COMMON_TEXT_CHAT_TEMPLATE_H
#define BATON_COMMON_TEXT_CHAT_TEMPLATE_H

#include <cjson/cJSON.h>
#include <stddef.h>

#include "common/core/buf.h"
#include "common/core/status.h"

typedef struct tpl_template tpl_template; /* parsed once, immutable, any thread */

enum {
    TPL_MAX_SOURCE_BYTES = 1 << 20,
    TPL_MAX_OUTPUT_BYTES = 64 << 20,
    TPL_MAX_MEMORY_BYTES = 512 << 20, /* of one rendering, output not counted */
    TPL_MAX_STEPS = 50 * 1000 * 1000, /* about a second */
    TPL_MAX_DEPTH = 128,              /* nesting of source, of calls and of values */
};

/* `source`: UTF-8, n_bytes of it; copied. BT_BAD_REQUEST: not a template, or one that needs what is not there; the
 * sentence names the line. */
bt_status tpl_open(const char *source, size_t n_bytes, tpl_template **out, bt_error *err);
void tpl_close(tpl_template *tpl);

/* Appends the text. `variables`: an object; every member is a variable of the template: messages, tools,
 * add_generation_prompt, bos_token, eos_token, ... As in transformers, pass tools and documents as null when there are
 * none: "tools is defined" is then true and "tools is none" too. Read by common/text/json.h they keep 1.0 apart from 1.
 * BT_BAD_REQUEST: the template called raise_exception() (its message), an operation failed as it would in Jinja2, or
 * a limit above was met (its name); *out is then as it was. */
bt_status tpl_render(const tpl_template *tpl, const cJSON *variables, bt_buf *out, bt_error *err);

#endif
