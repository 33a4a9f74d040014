/* Owns a parsed template and starts its renderings: variables become values, the tree runs, the output is handed over
 * whole or not at all. The language is in tpl_lex.c (tokens), tpl_parse.c (tree), tpl_exec.c (statements), tpl_eval.c
 * and tpl_ops.c (expressions), tpl_value.c and tpl_print.c (values), and the tables of filters, tests and methods. */
#include "common/text/chat_template.h"

#include <stdlib.h>
#include <string.h>

#include "common/text/tpl_exec.h"
#include "common/text/utf8.h"

struct tpl_template {
    bt_arena arena;
    tpl_node *root;
};

bt_status tpl_open(const char *source, size_t n_bytes, tpl_template **out, bt_error *err) {
    if (n_bytes > TPL_MAX_SOURCE_BYTES) {
        return bt_fail(err, BT_BAD_REQUEST, "the chat template has %zu bytes, limit %d", n_bytes,
                       (int)TPL_MAX_SOURCE_BYTES);
    }
    if (!utf8_is_valid((const uint8_t *)source, n_bytes)) {
        return bt_fail(err, BT_BAD_REQUEST, "the chat template is not UTF-8");
    }
    tpl_template *tpl = bt_calloc(1, sizeof(*tpl));
    lex_tokens tokens = {0};
    bt_status status = lex_run(source, n_bytes, &tpl->arena, &tokens, err);
    if (status == BT_OK) status = tpl_parse(&tokens, &tpl->arena, &tpl->root, err);
    free(tokens.tokens);
    if (status != BT_OK) {
        tpl_close(tpl);
        return status;
    }
    *out = tpl;
    return BT_OK;
}

void tpl_close(tpl_template *tpl) {
    if (tpl == NULL) return;
    bt_arena_fini(&tpl->arena);
    free(tpl);
}

bt_status tpl_render(const tpl_template *tpl, const cJSON *variables, bt_buf *out, bt_error *err) {
    size_t n_before = out->n_bytes;
    tpl_run run = {.out = out, .err = err, .line = 1};
    tpl_scope *scope = tpl_scope_new(&run, NULL);
    const cJSON *item;
    cJSON_ArrayForEach(item, variables) {
        if (item->string == NULL || !tpl_step(&run, 1 + scope->n / 8)) break; /* the scope is searched in line */
        tpl_value name = tpl_string(&run, item->string, strlen(item->string));
        tpl_scope_set(&run, scope, name.u.str, tpl_from_json(&run, item));
    }
    if (!run.failed) tpl_exec(&run, scope, tpl->root);
    if (run.failed) out->n_bytes = n_before;
    bt_arena_fini(&run.arena);
    return run.failed ? BT_BAD_REQUEST : BT_OK;
}
