/* What the two halves of the parser share: the position in the tokens, and how nodes are made. Internal to
 * tpl_parse.c (statements) and tpl_parse_expression.c.
 *
 * An error sticks: it moves the parser to the end of the tokens and every function hands back a node that nobody will
 * run. */
#ifndef BATON_COMMON_TEXT_TPL_PARSER_H
#define BATON_COMMON_TEXT_TPL_PARSER_H

#include "common/text/tpl_ast.h"

typedef struct {
    const lex_token *token; /* the next one */
    const lex_token *last;  /* LEX_EOF */
    bt_arena *arena;
    bt_error *err;
    bt_status status;
    uint32_t depth, n_loops, n_macros;
    node_macro *macro; /* being read; NULL: outside */
} prs_parser;

void prs_fail(prs_parser *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool prs_enter(prs_parser *p); /* one more level of recursion (p->depth); false: too many */

/* Nodes and strings in the arena. */
void *prs_alloc(prs_parser *p, size_t n, size_t elem_bytes);
tpl_node *prs_new_node(prs_parser *p, node_kind kind);
void prs_grow_depth(prs_parser *p, tpl_node *node, const tpl_node *child); /* notes that child is below node */
tpl_node *prs_with_children(prs_parser *p, tpl_node *node, tpl_node *a, tpl_node *b, tpl_node *c);
void prs_add_item(prs_parser *p, tpl_node *node, tpl_node *item);
tpl_str *prs_make_str(prs_parser *p, const char *bytes, size_t n_bytes);
tpl_value prs_str_value(prs_parser *p, const char *bytes, size_t n_bytes);

/* The next token: what it is, and going past it. */
bool prs_is_op(const prs_parser *p, int op);
bool prs_is_word(const prs_parser *p, const char *word);
void prs_next(prs_parser *p);
bool prs_skip_op(prs_parser *p, int op);
bool prs_skip_word(prs_parser *p, const char *word);
void prs_expect_op(prs_parser *p, char op);
const tpl_str *prs_expect_name(prs_parser *p);
void prs_expect_end(prs_parser *p); /* of a block tag */

/* Expressions. */
tpl_node *prs_expression(prs_parser *p, bool with_condition);
tpl_node *prs_tuple(prs_parser *p, bool with_condition);  /* also a, b without parentheses */
tpl_node *prs_filter(prs_parser *p, tpl_node *object);    /* behind a |; object NULL: a filter block's first */
tpl_node *prs_attribute(prs_parser *p, tpl_node *object); /* .name or .0 */

#endif
