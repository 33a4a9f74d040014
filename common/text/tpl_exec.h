/* Scopes, and the running of statements. Internal to the chat template. */
#ifndef BATON_COMMON_TEXT_TPL_EXEC_H
#define BATON_COMMON_TEXT_TPL_EXEC_H

#include "common/text/tpl_ast.h"

typedef struct {
    const tpl_str *name;
    tpl_value value;
} tpl_variable;

enum { SCOPE_INLINE = 4 };

/* The variables of the template, of a loop's iteration, of a macro's call, ... */
struct tpl_scope {
    tpl_scope *parent; /* NULL: the template's variables */
    tpl_variable *variables;
    size_t n, cap;
    tpl_variable first[SCOPE_INLINE];
};

tpl_scope *tpl_scope_new(tpl_run *run, tpl_scope *parent);
bool tpl_scope_get(const tpl_scope *scope, const tpl_str *name, tpl_value *value); /* here and in the parents */
void tpl_scope_set(tpl_run *run, tpl_scope *scope, const tpl_str *name, tpl_value value);

tpl_value tpl_eval(tpl_run *run, tpl_scope *scope, const tpl_node *node); /* tpl_eval.c */

/* The filters of a node chain on a value that stands where the chain's first filter has no operand. */
tpl_value tpl_eval_filters(tpl_run *run, tpl_scope *scope, const tpl_node *filters, tpl_value value);

/* Runs a tree in a scope; output goes to run->out. */
void tpl_exec(tpl_run *run, tpl_scope *scope, const tpl_node *root);

#endif
