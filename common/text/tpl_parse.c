/* Owns the reading of statements: jinja2/parser.py 3.1, tag by tag. Expressions are tpl_parse_expression.c. */
#include <string.h>

#include "common/text/chat_template.h"
#include "common/text/tpl_parser.h"

static tpl_node *parse_body(prs_parser *p, const char *end1, const char *end2, const char *end3);

static tpl_node *parse_target(prs_parser *p, bool with_namespace);

static tpl_node *parse_single_target(prs_parser *p, bool with_namespace) {
    if (prs_is_op(p, '(')) {
        prs_next(p);
        tpl_node *target = prs_enter(p) ? parse_target(p, false) : prs_new_node(p, EX_TUPLE);
        p->depth--;
        prs_expect_op(p, ')');
        return target;
    }
    tpl_node *node = prs_new_node(p, EX_NAME);
    node->value = (tpl_value){.kind = TPL_STR, .u.str = prs_expect_name(p)};
    static const char *const reserved[] = {"true", "false", "none", "True", "False", "None"};
    for (size_t i = 0; i < 6; i++) {
        if (tpl_is(node->value.u.str, reserved[i])) prs_fail(p, "cannot assign to %s", reserved[i]);
    }
    return with_namespace && prs_is_op(p, '.') ? prs_attribute(p, node) : node;
}

/* name, ns.name or a tuple of names */
static tpl_node *parse_target(prs_parser *p, bool with_namespace) {
    tpl_node *first = parse_single_target(p, with_namespace);
    if (!prs_is_op(p, ',')) return first;
    tpl_node *tuple = prs_new_node(p, EX_TUPLE);
    prs_add_item(p, tuple, first);
    while (prs_skip_op(p, ',') && p->token->kind == LEX_NAME && !prs_is_word(p, "in")) {
        prs_add_item(p, tuple, parse_single_target(p, with_namespace));
    }
    return tuple;
}

static tpl_node *parse_if(prs_parser *p) {
    tpl_node *node = prs_new_node(p, ST_IF), *first = node;
    for (;;) { /* elif nests, but the loop in tpl_exec.c does not recurse into it */
        tpl_node *condition = prs_tuple(p, true);
        prs_expect_end(p);
        tpl_node *body = parse_body(p, "elif", "else", "endif");
        node = prs_with_children(p, node, condition, body, NULL);
        if (p->status != BT_OK || !prs_skip_word(p, "elif")) break;
        node->c = prs_new_node(p, ST_IF);
        node = node->c;
    }
    if (prs_skip_word(p, "else")) {
        prs_expect_end(p);
        node->c = parse_body(p, "endif", NULL, NULL);
        prs_grow_depth(p, first, node->c);
    }
    for (tpl_node *arm = first; arm != NULL && arm->kind == ST_IF; arm = arm->c) {
        prs_grow_depth(p, first, arm->a);
        prs_grow_depth(p, first, arm->b);
    }
    prs_next(p); /* endif */
    prs_expect_end(p);
    return first;
}

static tpl_node *parse_for(prs_parser *p) {
    tpl_node *node = prs_new_node(p, ST_FOR);
    node->a = parse_target(p, false);
    if (!prs_skip_word(p, "in")) prs_fail(p, "expected 'in'");
    tpl_node *items = prs_tuple(p, false);
    if (prs_skip_word(p, "if")) node->d = prs_expression(p, true);
    if (prs_is_word(p, "recursive")) prs_fail(p, "recursive loops are not supported");
    prs_expect_end(p);
    p->n_loops++;
    uint32_t n_macros = p->n_macros;
    tpl_node *body = parse_body(p, "else", "endfor", NULL);
    p->n_loops--;
    node->has_macros = p->n_macros != n_macros;
    if (prs_skip_word(p, "else")) {
        prs_expect_end(p);
        node->e = parse_body(p, "endfor", NULL, NULL);
    }
    prs_next(p);
    prs_expect_end(p);
    prs_grow_depth(p, node, node->d);
    prs_grow_depth(p, node, node->e);
    return prs_with_children(p, node, node->a, items, body);
}

static tpl_node *parse_set(prs_parser *p) {
    tpl_node *node = prs_new_node(p, ST_SET), *target = parse_target(p, true);
    if (prs_skip_op(p, '=')) {
        tpl_node *value = prs_tuple(p, true);
        prs_expect_end(p);
        return prs_with_children(p, node, target, value, NULL);
    }
    node->kind = ST_SET_BLOCK;
    tpl_node *filters = NULL;
    while (prs_skip_op(p, '|')) filters = prs_filter(p, filters);
    prs_expect_end(p);
    tpl_node *body = parse_body(p, "endset", NULL, NULL);
    prs_next(p);
    prs_expect_end(p);
    return prs_with_children(p, node, target, body, filters);
}

/* (a, b=1) of a macro or a call block, its body, and the end tag. */
static void parse_macro_rest(prs_parser *p, tpl_node *node, const char *end_word) {
    node_macro *macro = node->macro, *outer = p->macro;
    p->n_macros++;
    const tpl_str *params[32];
    tpl_node *defaults[32];
    if (prs_is_op(p, '(')) {
        prs_next(p);
        while (p->status == BT_OK && !prs_is_op(p, ')')) {
            if (macro->n_params == 32) prs_fail(p, "a macro has more than 32 parameters");
            uint32_t i = macro->n_params++ % 32;
            params[i] = prs_expect_name(p);
            defaults[i] = prs_skip_op(p, '=') ? prs_expression(p, true) : NULL;
            if (defaults[i] == NULL && i > 0 && defaults[i - 1] != NULL)
                prs_fail(p, "a parameter without default behind one with");
            if (!prs_skip_op(p, ',')) break;
        }
        prs_expect_op(p, ')');
    }
    if (p->status != BT_OK) macro->n_params = 0;
    macro->params = prs_alloc(p, macro->n_params, sizeof(*params));
    macro->defaults = prs_alloc(p, macro->n_params, sizeof(*defaults));
    for (uint32_t i = 0; i < macro->n_params; i++) {
        macro->params[i] = params[i];
        macro->defaults[i] = defaults[i];
        prs_grow_depth(p, node, defaults[i]);
    }
    if (node->kind == ST_CALL) {
        node->b = prs_expression(p, true);
        if (node->b->kind != EX_CALL) prs_fail(p, "expected a call");
        prs_grow_depth(p, node, node->b);
    }
    prs_expect_end(p);
    uint32_t n_loops = p->n_loops;
    p->n_loops = 0;
    p->macro = macro;
    macro->body = parse_body(p, end_word, NULL, NULL);
    p->macro = outer;
    p->n_loops = n_loops;
    if (outer != NULL) { /* a call block inside a macro may pass the macro's caller on */
        outer->uses_caller |= macro->uses_caller;
        outer->uses_varargs |= macro->uses_varargs;
        outer->uses_kwargs |= macro->uses_kwargs;
    }
    prs_grow_depth(p, node, macro->body);
    prs_next(p);
    prs_expect_end(p);
}

static tpl_node *parse_macro(prs_parser *p) {
    tpl_node *node = prs_new_node(p, ST_MACRO);
    node->macro = prs_alloc(p, 1, sizeof(*node->macro));
    node->macro->name = prs_expect_name(p);
    parse_macro_rest(p, node, "endmacro");
    return node;
}

static tpl_node *parse_call_block(prs_parser *p) {
    tpl_node *node = prs_new_node(p, ST_CALL);
    node->macro = prs_alloc(p, 1, sizeof(*node->macro));
    parse_macro_rest(p, node, "endcall");
    return node;
}

static tpl_node *parse_filter_block(prs_parser *p) {
    tpl_node *node = prs_new_node(p, ST_FILTER), *filters = prs_filter(p, NULL);
    while (prs_skip_op(p, '|')) filters = prs_filter(p, filters);
    prs_expect_end(p);
    tpl_node *body = parse_body(p, "endfilter", NULL, NULL);
    prs_next(p);
    prs_expect_end(p);
    return prs_with_children(p, node, filters, body, NULL);
}

static tpl_node *parse_with(prs_parser *p) {
    tpl_node *node = prs_new_node(p, ST_WITH);
    while (p->status == BT_OK && p->token->kind != LEX_BLOCK_END) {
        if (node->n_items > 0) prs_expect_op(p, ',');
        prs_add_item(p, node, parse_target(p, false));
        prs_expect_op(p, '=');
        prs_add_item(p, node, prs_expression(p, true));
    }
    prs_expect_end(p);
    tpl_node *body = parse_body(p, "endwith", NULL, NULL);
    prs_next(p);
    prs_expect_end(p);
    return prs_with_children(p, node, NULL, body, NULL);
}

/* {% generation %}: transformers' mark around what the model is trained on; it prints its body. */
static tpl_node *parse_generation(prs_parser *p) {
    prs_expect_end(p);
    tpl_node *body = parse_body(p, "endgeneration", NULL, NULL);
    prs_next(p);
    prs_expect_end(p);
    return body;
}

static tpl_node *parse_jump(prs_parser *p, node_kind kind) {
    tpl_node *node = prs_new_node(p, kind);
    if (p->n_loops == 0) prs_fail(p, "%s outside of a loop", kind == ST_BREAK ? "break" : "continue");
    prs_expect_end(p);
    return node;
}

static tpl_node *parse_statement(prs_parser *p) {
    static const struct {
        const char *word;
        tpl_node *(*parse)(prs_parser *p);
    } rows[] = {{"if", parse_if},           {"for", parse_for},
                {"set", parse_set},         {"macro", parse_macro},
                {"call", parse_call_block}, {"filter", parse_filter_block},
                {"with", parse_with},       {"generation", parse_generation}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        if (prs_skip_word(p, rows[i].word)) return rows[i].parse(p);
    }
    if (prs_skip_word(p, "break")) return parse_jump(p, ST_BREAK);
    if (prs_skip_word(p, "continue")) return parse_jump(p, ST_CONTINUE);
    if (p->token->kind == LEX_NAME) {
        prs_fail(p, "the tag '%.*s' is unknown or out of place", (int)p->token->n_bytes, p->token->bytes);
    } else {
        prs_fail(p, "expected the name of a tag");
    }
    return prs_new_node(p, ST_BLOCK);
}

/* Statements up to a block tag that begins with one of the words, which is then next; without words up to the end. */
static tpl_node *parse_body(prs_parser *p, const char *end1, const char *end2, const char *end3) {
    tpl_node *block = prs_new_node(p, ST_BLOCK);
    const char *const ends[3] = {end1, end2, end3};
    if (!prs_enter(p)) p->token = p->last;
    while (p->token->kind != LEX_EOF) {
        if (p->token->kind == LEX_DATA) {
            tpl_node *text = prs_new_node(p, ST_TEXT);
            text->value = prs_str_value(p, p->token->bytes, p->token->n_bytes);
            prs_next(p);
            prs_add_item(p, block, text);
        } else if (p->token->kind == LEX_VAR_BEGIN) {
            tpl_node *output = prs_new_node(p, ST_OUTPUT);
            prs_next(p);
            prs_with_children(p, output, prs_tuple(p, true), NULL, NULL);
            if (p->token->kind != LEX_VAR_END) prs_fail(p, "expected '}}'");
            prs_next(p);
            prs_add_item(p, block, output);
        } else {
            prs_next(p); /* LEX_BLOCK_BEGIN */
            for (size_t i = 0; i < 3; i++) {
                if (ends[i] == NULL || !prs_is_word(p, ends[i])) continue;
                p->depth--;
                return block;
            }
            prs_add_item(p, block, parse_statement(p));
        }
    }
    if (end1 != NULL)
        prs_fail(p, "the template ends before '%s'", end2 != NULL && end3 == NULL ? end2 : end3 != NULL ? end3 : end1);
    p->depth--;
    return block;
}

bt_status tpl_parse(const lex_tokens *tokens, bt_arena *arena, tpl_node **out, bt_error *err) {
    prs_parser p = {.token = tokens->tokens, .last = &tokens->tokens[tokens->n - 1], .arena = arena, .err = err};
    tpl_node *root = parse_body(&p, NULL, NULL, NULL);
    if (p.status == BT_OK) *out = root;
    return p.status;
}
