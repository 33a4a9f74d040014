/* baton-run's table of contents: flags, then either line by line over text, or one generation. */
#include "tools/baton_run.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/core/log.h"
#include "common/text/detokenizer.h"
#include "common/text/json.h"

#define CFG(type, name, default_text, help) CFG_ENTRY(run_config, type, name, default_text, help)
static const cfg_flag flags[] = {
#include "tools/baton_run.def"
};
#undef CFG

static bt_status check_config(const run_config *config, bt_error *err) {
    int n_modes = (config->prompt[0] != 0) + (config->chat[0] != 0) + (config->ids_file[0] != 0) + config->encode +
                  config->decode + config->render;
    if (config->model[0] == 0) return bt_fail(err, BT_BAD_REQUEST, "--model is missing");
    if (n_modes != 1) {
        return bt_fail(err, BT_BAD_REQUEST,
                       "expected one of --prompt, --chat, --ids-file, --encode, --decode, --render; got %d", n_modes);
    }
    if (!(config->temperature >= 0) || !(config->top_p > 0 && config->top_p <= 1) ||
        !(config->min_p >= 0 && config->min_p <= 1)) {
        return bt_fail(err, BT_BAD_REQUEST, "--temperature is below 0, or --top-p or --min-p is outside 0 to 1");
    }
    if (config->ep == 0 && (config->placement[0] != 0 || config->placement_out[0] != 0)) {
        return bt_fail(err, BT_BAD_REQUEST, "--placement and --placement-out need --ep");
    }
    bt_log_level level;
    bt_status status = bt_log_parse_level(config->log_level, &level, err);
    if (status == BT_OK) bt_log_set_level(level);
    return status;
}

static void print_result(const tok_tokenizer *tokenizer, const tok_ids *prompt, const run_result *result) {
    bt_buf line = {0}, text = {0};
    if (tokenizer != NULL) {
        det_stream det;
        det_init(&det, tokenizer, true);
        for (size_t i = 0; i < result->ids.n_ids; i++) det_put(&det, result->ids.ids[i], &text);
        det_finish(&det, &text);
    }
    bt_buf_puts(&line, "{\"prompt_ids\": ");
    run_put_ids(&line, prompt);
    bt_buf_puts(&line, ", \"ids\": ");
    run_put_ids(&line, &result->ids);
    bt_buf_puts(&line, ", \"text\": ");
    txt_json_put_string(&line, (const char *)text.bytes, text.n_bytes);
    bt_buf_printf(&line, ", \"prefill_ms\": %.3f, \"decode_ms\": %.3f}", result->prefill_ms, result->decode_ms);
    puts(bt_buf_text(&line));
    bt_buf_fini(&line);
    bt_buf_fini(&text);
}

int main(int argc, char **argv) {
    run_config config;
    bt_error err = {0};
    tok_tokenizer *tokenizer = NULL;
    tok_ids prompt = {0};
    run_result result = {0};

    bt_status status = cfg_parse("baton-run", "runs a model in one process, without a network", flags,
                                 sizeof(flags) / sizeof(flags[0]), argc, argv, &config, &err);
    if (status == BT_CANCELED) return 0;
    if (status == BT_OK) status = check_config(&config, &err);
    if (status != BT_OK) {
        fprintf(stderr, "baton-run: %s\n", err.text);
        return 2;
    }
    status = tok_open(config.model, &tokenizer, &err);
    if (status != BT_OK && config.ids_file[0] != 0) { /* ids need no tokenizer: the text stays empty */
        bt_log(BT_LOG_WARN, "run", "no tokenizer", "text=\"%s\"", err.text);
        status = BT_OK;
    }
    if (config.encode || config.decode || config.render) {
        if (status == BT_OK) status = run_lines(&config, tokenizer, &err);
    } else {
        if (status == BT_OK) status = run_prompt(&config, tokenizer, &prompt, &err);
        if (status == BT_OK) status = run_generate(&config, &prompt, &result, &err);
        if (status == BT_OK) print_result(tokenizer, &prompt, &result);
    }
    if (status != BT_OK) fprintf(stderr, "baton-run: %s\n", err.text);
    run_result_fini(&result);
    tok_ids_fini(&prompt);
    tok_close(tokenizer);
    return status == BT_OK && fflush(stdout) == 0 ? 0 : 1;
}
