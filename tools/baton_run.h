/* baton-run: the engine in one process, without a network. */
#ifndef BATON_TOOLS_BATON_RUN_H
#define BATON_TOOLS_BATON_RUN_H

#include "common/core/buf.h"
#include "common/core/config.h"
#include "common/text/tokenizer.h"

#define CFG(type, name, default_text, help) cfg_##type name;
typedef struct {
#include "tools/baton_run.def"
} run_config;
#undef CFG

/* What generation gives; start with {0}, free with run_result_fini(). */
typedef struct {
    tok_ids ids; /* generated, an end-of-sequence token included */
    double prefill_ms, decode_ms;
} run_result;
void run_result_fini(run_result *result);

/* Opens the model and generates after `prompt`; writes config->logits_out. BT_BAD_REQUEST: an empty prompt, ids outside
 * the vocabulary, longer than the model's context, or what opening the model says. */
bt_status run_generate(const run_config *config, const tok_ids *prompt, run_result *out, bt_error *err);

/* The prompt's ids from --prompt, --chat or --ids-file. `tokenizer` may be NULL with --ids-file. */
bt_status run_prompt(const run_config *config, const tok_tokenizer *tokenizer, tok_ids *out, bt_error *err);

/* --encode, --decode or --render: one line of JSON out for each line in. A line that cannot be done gives
 * {"error": ...}; the status then is BT_BAD_REQUEST at the end. */
bt_status run_lines(const run_config *config, const tok_tokenizer *tokenizer, bt_error *err);

/* Appends "[1, 2]". */
void run_put_ids(bt_buf *out, const tok_ids *ids);

#endif
