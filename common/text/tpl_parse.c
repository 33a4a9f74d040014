/* Owns the reading of tokens into a tree: jinja2/parser.py 3.1, expression by expression, statement by statement. An
 * error sticks: it moves the parser to the end of the tokens and every function hands back a node that nobody will
 * run. Recursion and the depth of the tree are bounded, so that walking the tree needs a bounded stack. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/text/chat_template.h"
#include "common/text/tpl_ast.h"
#include "common/text/utf8.h"

enum { MAX_TREE_DEPTH = 400 };

typedef struct {
    const lex_token *token; /* the next one */
    const lex_token *last;  /* LEX_EOF */
    bt_arena *arena;
    bt_error *err;
    bt_status status;
    uint32_t depth, n_loops, n_macros;
    node_macro *macro; /* being read; NULL: outside */
} parser;

static tpl_node *parse_expression(parser *p, bool with_condition);
static tpl_node *parse_unary(parser *p, bool with_filters);
static tpl_node *parse_body(parser *p, const char *end1, const char *end2, const char *end3);

static void fail(parser *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void fail(parser *p, const char *format, ...) {
    if (p->status != BT_OK) return;
    char text[300];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    p->status = bt_fail(p->err, BT_BAD_REQUEST, "chat template, line %u: %s", p->token->line, text);
    p->token = p->last;
}

static void *alloc(parser *p, size_t n, size_t elem_bytes) { return bt_arena_alloc(p->arena, n * elem_bytes); }

static tpl_node *new_node(parser *p, node_kind kind) {
    tpl_node *node = alloc(p, 1, sizeof(*node));
    node->kind = kind;
    node->line = p->token->line;
    node->depth = 1;
    return node;
}

/* Notes that `node` has `child` below it. */
static void grow_depth(parser *p, tpl_node *node, const tpl_node *child) {
    if (child == NULL || child->depth < node->depth) return;
    node->depth = (uint16_t)(child->depth + 1);
    if (node->depth > MAX_TREE_DEPTH) fail(p, "an expression has more than %d levels", (int)MAX_TREE_DEPTH);
    if (node->depth > MAX_TREE_DEPTH) node->depth = 1;
}

static tpl_node *with_children(parser *p, tpl_node *node, tpl_node *a, tpl_node *b, tpl_node *c) {
    node->a = a;
    node->b = b;
    node->c = c;
    grow_depth(p, node, a);
    grow_depth(p, node, b);
    grow_depth(p, node, c);
    return node;
}

static void add_item(parser *p, tpl_node *node, tpl_node *item) {
    if (node->n_items == node->cap_items) {
        node->cap_items = node->n_items < 4 ? 4 : 2 * node->n_items;
        tpl_node **items = alloc(p, node->cap_items, sizeof(*items));
        if (node->n_items > 0) memcpy(items, node->items, node->n_items * sizeof(*items));
        node->items = items;
    }
    node->items[node->n_items++] = item;
    grow_depth(p, node, item);
}

static tpl_str *make_str(parser *p, const char *bytes, size_t n_bytes) {
    tpl_str *str = alloc(p, 1, sizeof(*str));
    *str = (tpl_str){.bytes = bytes, .n_bytes = n_bytes, .n_chars = utf8_count((const uint8_t *)bytes, n_bytes)};
    return str;
}

static tpl_value str_value(parser *p, const char *bytes, size_t n_bytes) {
    return (tpl_value){.kind = TPL_STR, .u.str = make_str(p, bytes, n_bytes)};
}

static bool is_op(const parser *p, int op) { return p->token->kind == LEX_OP && p->token->op == op; }

static bool is_word(const parser *p, const char *word) {
    const lex_token *token = p->token;
    return token->kind == LEX_NAME && token->n_bytes == strlen(word) && memcmp(token->bytes, word, token->n_bytes) == 0;
}

static void next(parser *p) {
    if (p->token != p->last) p->token++;
}

static bool skip_op(parser *p, int op) {
    if (!is_op(p, op)) return false;
    next(p);
    return true;
}

static bool skip_word(parser *p, const char *word) {
    if (!is_word(p, word)) return false;
    next(p);
    return true;
}

static void expect_op(parser *p, char op) {
    if (!skip_op(p, op)) fail(p, "expected '%c'", op);
}

static const tpl_str *expect_name(parser *p) {
    const lex_token *token = p->token;
    if (token->kind != LEX_NAME) {
        fail(p, "expected a name");
        return make_str(p, "", 0);
    }
    next(p);
    return make_str(p, token->bytes, token->n_bytes);
}

static void expect_end(parser *p) {
    if (p->token->kind != LEX_BLOCK_END) fail(p, "expected the end of the tag");
    next(p);
}

static bool enter(parser *p) {
    if (++p->depth > TPL_MAX_DEPTH) fail(p, "nested more than %d levels", (int)TPL_MAX_DEPTH);
    return p->status == BT_OK;
}

/* Expressions. */

/* Arguments in parentheses; the opening one is next. */
static void parse_arguments(parser *p, tpl_node *node) {
    const tpl_str *names[32];
    uint32_t n_names = 0;
    expect_op(p, '(');
    while (p->status == BT_OK && !is_op(p, ')')) {
        if (is_op(p, '*') || is_op(p, LEX_POW)) fail(p, "* and ** in calls are not supported");
        const lex_token *ahead = p->token + (p->token != p->last);
        if (p->token->kind == LEX_NAME && ahead->kind == LEX_OP && ahead->op == '=') {
            if (n_names == 32) fail(p, "a call has more than 32 keyword arguments");
            names[n_names % 32] = expect_name(p);
            n_names++;
            next(p);
        } else if (n_names > 0) {
            fail(p, "a positional argument behind a keyword argument");
        }
        add_item(p, node, parse_expression(p, true));
        if (!skip_op(p, ',')) break;
    }
    expect_op(p, ')');
    if (p->status != BT_OK) n_names = 0;
    node->keywords.n_names = n_names;
    node->keywords.names = alloc(p, n_names, sizeof(*names));
    if (n_names > 0) memcpy(node->keywords.names, names, n_names * sizeof(*names));
}

static tpl_node *parse_items(parser *p, tpl_node *node, char close) {
    next(p);
    while (p->status == BT_OK && !is_op(p, close)) {
        add_item(p, node, parse_expression(p, true));
        if (node->kind == EX_DICT) {
            expect_op(p, ':');
            add_item(p, node, parse_expression(p, true));
        }
        if (!skip_op(p, ',')) break;
    }
    expect_op(p, close);
    return node;
}

/* ( ... ): an expression, or with a comma or nothing inside a tuple. */
static tpl_node *parse_parentheses(parser *p) {
    tpl_node *tuple = new_node(p, EX_TUPLE);
    next(p);
    if (skip_op(p, ')')) return tuple;
    tpl_node *first = parse_expression(p, true);
    if (!is_op(p, ',')) {
        expect_op(p, ')');
        return first;
    }
    add_item(p, tuple, first);
    while (skip_op(p, ',') && !is_op(p, ')')) add_item(p, tuple, parse_expression(p, true));
    expect_op(p, ')');
    return tuple;
}

static tpl_node *parse_strings(parser *p) {
    tpl_node *node = new_node(p, EX_CONST);
    bt_buf text = {0};
    for (; p->token->kind == LEX_STRING; next(p)) bt_buf_put(&text, p->token->bytes, p->token->n_bytes);
    node->value = str_value(p, bt_arena_strndup(p->arena, bt_buf_text(&text), text.n_bytes), text.n_bytes);
    bt_buf_fini(&text);
    return node;
}

static tpl_node *parse_name(parser *p) {
    static const struct {
        const char *word;
        tpl_kind kind;
        bool is_true;
    } words[] = {{"true", TPL_BOOL, true},   {"True", TPL_BOOL, true},  {"false", TPL_BOOL, false},
                 {"False", TPL_BOOL, false}, {"none", TPL_NONE, false}, {"None", TPL_NONE, false}};
    tpl_node *node = new_node(p, EX_CONST);
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (!skip_word(p, words[i].word)) continue;
        node->value = words[i].kind == TPL_BOOL ? tpl_bool(words[i].is_true) : tpl_none();
        return node;
    }
    node->kind = EX_NAME;
    node->value = (tpl_value){.kind = TPL_STR, .u.str = expect_name(p)};
    if (p->macro != NULL) {
        p->macro->uses_caller |= tpl_is(node->value.u.str, "caller");
        p->macro->uses_varargs |= tpl_is(node->value.u.str, "varargs");
        p->macro->uses_kwargs |= tpl_is(node->value.u.str, "kwargs");
    }
    return node;
}

static tpl_node *parse_primary(parser *p) {
    const lex_token *token = p->token;
    tpl_node *node;
    switch (token->kind) {
    case LEX_NAME:
        return parse_name(p);
    case LEX_STRING:
        return parse_strings(p);
    case LEX_INT:
    case LEX_FLOAT:
        node = new_node(p, EX_CONST);
        node->value = token->kind == LEX_INT ? tpl_int(token->integer) : tpl_float(token->number);
        next(p);
        return node;
    default:
        if (is_op(p, '(')) return parse_parentheses(p);
        if (is_op(p, '[')) return parse_items(p, new_node(p, EX_LIST), ']');
        if (is_op(p, '{')) return parse_items(p, new_node(p, EX_DICT), '}');
        fail(p, token->kind == LEX_EOF ? "the template ends inside a tag" : "expected an expression");
        return new_node(p, EX_CONST);
    }
}

static tpl_node *parse_subscript(parser *p, tpl_node *object) {
    tpl_node *node = new_node(p, EX_ITEM), *parts[3] = {NULL, NULL, NULL};
    next(p);
    int n_colons = 0;
    while (p->status == BT_OK && !is_op(p, ']') && n_colons < 3) {
        if (!is_op(p, ':')) parts[n_colons] = parse_expression(p, true);
        if (!skip_op(p, ':')) break;
        n_colons++;
    }
    if (n_colons == 0 && parts[0] == NULL) fail(p, "expected an expression in [ ]");
    expect_op(p, ']');
    node->kind = n_colons > 0 ? EX_SLICE : EX_ITEM;
    node->d = parts[2];
    grow_depth(p, node, parts[2]);
    return with_children(p, node, object, parts[0], parts[1]);
}

static tpl_node *parse_attribute(parser *p, tpl_node *object) {
    tpl_node *node = new_node(p, EX_ATTR);
    next(p);
    if (p->token->kind == LEX_INT) { /* a.0 is a[0] */
        node->kind = EX_ITEM;
        return with_children(p, node, object, parse_primary(p), NULL);
    }
    node->value = (tpl_value){.kind = TPL_STR, .u.str = expect_name(p)};
    return with_children(p, node, object, NULL, NULL);
}

static tpl_node *parse_call(parser *p, tpl_node *callee) {
    tpl_node *node = new_node(p, EX_CALL);
    parse_arguments(p, node);
    return with_children(p, node, callee, NULL, NULL);
}

static tpl_node *parse_postfix(parser *p, tpl_node *node) {
    while (p->status == BT_OK) {
        if (is_op(p, '.')) {
            node = parse_attribute(p, node);
        } else if (is_op(p, '[')) {
            node = parse_subscript(p, node);
        } else if (is_op(p, '(')) {
            node = parse_call(p, node);
        } else {
            break;
        }
    }
    return node;
}

/* name or name.name, as filters and tests are called */
static tpl_value parse_dotted_name(parser *p) {
    const tpl_str *name = expect_name(p);
    while (skip_op(p, '.')) {
        const tpl_str *more = expect_name(p);
        bt_buf text = {0};
        bt_buf_printf(&text, "%.*s.%.*s", (int)name->n_bytes, name->bytes, (int)more->n_bytes, more->bytes);
        name = make_str(p, bt_arena_strndup(p->arena, bt_buf_text(&text), text.n_bytes), text.n_bytes);
        bt_buf_fini(&text);
    }
    return (tpl_value){.kind = TPL_STR, .u.str = name};
}

/* The filter behind a |; `object` is NULL at the start of a filter block. */
static tpl_node *parse_filter(parser *p, tpl_node *object) {
    tpl_node *node = new_node(p, EX_FILTER);
    node->value = parse_dotted_name(p);
    if (is_op(p, '(')) parse_arguments(p, node);
    return with_children(p, node, object, NULL, NULL);
}

static bool starts_test_argument(const parser *p) {
    switch (p->token->kind) {
    case LEX_NAME:
        return !is_word(p, "else") && !is_word(p, "or") && !is_word(p, "and");
    case LEX_STRING:
    case LEX_INT:
    case LEX_FLOAT:
        return true;
    default:
        return is_op(p, '[') || is_op(p, '{');
    }
}

static tpl_node *parse_test(parser *p, tpl_node *object) {
    tpl_node *node = new_node(p, EX_TEST);
    next(p);
    bool is_negated = skip_word(p, "not");
    node->value = parse_dotted_name(p);
    if (is_op(p, '(')) {
        parse_arguments(p, node);
    } else if (starts_test_argument(p)) {
        if (is_word(p, "is")) fail(p, "tests with 'is' cannot be chained");
        add_item(p, node, parse_postfix(p, parse_primary(p)));
    }
    node = with_children(p, node, object, NULL, NULL);
    return is_negated ? with_children(p, new_node(p, EX_NOT), node, NULL, NULL) : node;
}

static tpl_node *parse_filters(parser *p, tpl_node *node) {
    while (p->status == BT_OK) {
        if (skip_op(p, '|')) {
            node = parse_filter(p, node);
        } else if (is_word(p, "is")) {
            node = parse_test(p, node);
        } else if (is_op(p, '(')) {
            node = parse_call(p, node);
        } else {
            break;
        }
    }
    return node;
}

static tpl_node *parse_unary(parser *p, bool with_filters) {
    tpl_node *node;
    if (!enter(p)) {
        node = new_node(p, EX_CONST);
    } else if (is_op(p, '-') || is_op(p, '+')) {
        node = new_node(p, is_op(p, '-') ? EX_NEG : EX_POS);
        next(p);
        node = with_children(p, node, parse_unary(p, false), NULL, NULL);
    } else {
        node = parse_primary(p);
    }
    node = parse_postfix(p, node);
    if (with_filters) node = parse_filters(p, node);
    p->depth--;
    return node;
}

/* The levels of binary operators, loosest first: + -, ~, * / // %, **. */
static tpl_node *parse_binary(parser *p, int level) {
    static const int ops[4][4] = {{'+', '-', 0, 0}, {'~', 0, 0, 0}, {'*', '/', LEX_FLOOR_DIV, '%'}, {LEX_POW, 0, 0, 0}};
    if (level == 4) return parse_unary(p, true);
    tpl_node *left = parse_binary(p, level + 1);
    while (p->token->kind == LEX_OP) {
        int op = p->token->op, i = 0;
        while (i < 4 && ops[level][i] != op) i++;
        if (i == 4) break;
        tpl_node *node = new_node(p, EX_BINARY);
        node->op = op;
        next(p);
        left = with_children(p, node, left, parse_binary(p, level + 1), NULL);
    }
    return left;
}

/* The comparison operator that is next, skipped; 0: none. */
static int skip_comparison(parser *p) {
    static const int ops[] = {LEX_EQ, LEX_NE, '<', LEX_LE, '>', LEX_GE};
    for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
        if (skip_op(p, ops[i])) return ops[i];
    }
    if (skip_word(p, "in")) return OP_IN;
    if (!is_word(p, "not") || p->token == p->last) return 0;
    const lex_token *not_token = p->token;
    next(p);
    if (skip_word(p, "in")) return OP_NOT_IN;
    p->token = not_token;
    return 0;
}

static tpl_node *parse_compare(parser *p) {
    tpl_node *left = parse_binary(p, 0), *node = NULL;
    int ops[16];
    for (int op; (op = skip_comparison(p)) != 0;) {
        if (node == NULL) {
            node = new_node(p, EX_COMPARE);
            with_children(p, node, left, NULL, NULL);
        }
        if (node->n_items == 16) fail(p, "a comparison has more than 16 parts");
        ops[node->n_items % 16] = op;
        add_item(p, node, parse_binary(p, 0));
    }
    if (node == NULL) return left;
    node->ops = alloc(p, node->n_items, sizeof(int));
    memcpy(node->ops, ops, (node->n_items < 16 ? node->n_items : 16) * sizeof(int));
    return node;
}

static tpl_node *parse_not(parser *p) {
    if (!is_word(p, "not")) return parse_compare(p);
    tpl_node *node = new_node(p, EX_NOT);
    next(p);
    tpl_node *inner = enter(p) ? parse_not(p) : node;
    p->depth--;
    return p->status == BT_OK ? with_children(p, node, inner, NULL, NULL) : node;
}

static tpl_node *parse_and(parser *p) {
    tpl_node *left = parse_not(p);
    while (is_word(p, "and")) {
        tpl_node *node = new_node(p, EX_AND);
        next(p);
        left = with_children(p, node, left, parse_not(p), NULL);
    }
    return left;
}

static tpl_node *parse_or(parser *p) {
    tpl_node *left = parse_and(p);
    while (is_word(p, "or")) {
        tpl_node *node = new_node(p, EX_OR);
        next(p);
        left = with_children(p, node, left, parse_and(p), NULL);
    }
    return left;
}

static tpl_node *parse_expression(parser *p, bool with_condition) {
    if (!enter(p)) {
        p->depth--;
        return new_node(p, EX_CONST);
    }
    tpl_node *value = parse_or(p);
    while (with_condition && is_word(p, "if")) {
        tpl_node *node = new_node(p, EX_COND);
        next(p);
        tpl_node *condition = parse_or(p);
        tpl_node *otherwise = skip_word(p, "else") ? parse_expression(p, true) : NULL;
        value = with_children(p, node, value, condition, otherwise);
    }
    p->depth--;
    return value;
}

/* An expression, or several with commas between them: a tuple without parentheses. */
static tpl_node *parse_tuple(parser *p, bool with_condition) {
    tpl_node *first = parse_expression(p, with_condition);
    if (!is_op(p, ',')) return first;
    tpl_node *tuple = new_node(p, EX_TUPLE);
    add_item(p, tuple, first);
    while (skip_op(p, ',')) {
        if (p->token->kind == LEX_BLOCK_END || p->token->kind == LEX_VAR_END || is_op(p, '=')) break;
        add_item(p, tuple, parse_expression(p, with_condition));
    }
    return tuple;
}

/* Statements. */

static tpl_node *parse_target(parser *p, bool with_namespace);

static tpl_node *parse_single_target(parser *p, bool with_namespace) {
    if (is_op(p, '(')) {
        next(p);
        tpl_node *target = enter(p) ? parse_target(p, false) : new_node(p, EX_TUPLE);
        p->depth--;
        expect_op(p, ')');
        return target;
    }
    tpl_node *node = new_node(p, EX_NAME);
    node->value = (tpl_value){.kind = TPL_STR, .u.str = expect_name(p)};
    static const char *const reserved[] = {"true", "false", "none", "True", "False", "None"};
    for (size_t i = 0; i < 6; i++) {
        if (tpl_is(node->value.u.str, reserved[i])) fail(p, "cannot assign to %s", reserved[i]);
    }
    return with_namespace && is_op(p, '.') ? parse_attribute(p, node) : node;
}

/* name, ns.name or a tuple of names */
static tpl_node *parse_target(parser *p, bool with_namespace) {
    tpl_node *first = parse_single_target(p, with_namespace);
    if (!is_op(p, ',')) return first;
    tpl_node *tuple = new_node(p, EX_TUPLE);
    add_item(p, tuple, first);
    while (skip_op(p, ',') && p->token->kind == LEX_NAME && !is_word(p, "in")) {
        add_item(p, tuple, parse_single_target(p, with_namespace));
    }
    return tuple;
}

static tpl_node *parse_if(parser *p) {
    tpl_node *node = new_node(p, ST_IF), *first = node;
    for (;;) { /* elif nests, but the loop in tpl_exec.c does not recurse into it */
        tpl_node *condition = parse_tuple(p, true);
        expect_end(p);
        tpl_node *body = parse_body(p, "elif", "else", "endif");
        node = with_children(p, node, condition, body, NULL);
        if (p->status != BT_OK || !skip_word(p, "elif")) break;
        node->c = new_node(p, ST_IF);
        node = node->c;
    }
    if (skip_word(p, "else")) {
        expect_end(p);
        node->c = parse_body(p, "endif", NULL, NULL);
        grow_depth(p, first, node->c);
    }
    for (tpl_node *arm = first; arm != NULL && arm->kind == ST_IF; arm = arm->c) {
        grow_depth(p, first, arm->a);
        grow_depth(p, first, arm->b);
    }
    next(p); /* endif */
    expect_end(p);
    return first;
}

static tpl_node *parse_for(parser *p) {
    tpl_node *node = new_node(p, ST_FOR);
    node->a = parse_target(p, false);
    if (!skip_word(p, "in")) fail(p, "expected 'in'");
    tpl_node *items = parse_tuple(p, false);
    if (skip_word(p, "if")) node->d = parse_expression(p, true);
    if (is_word(p, "recursive")) fail(p, "recursive loops are not supported");
    expect_end(p);
    p->n_loops++;
    uint32_t n_macros = p->n_macros;
    tpl_node *body = parse_body(p, "else", "endfor", NULL);
    p->n_loops--;
    node->has_macros = p->n_macros != n_macros;
    if (skip_word(p, "else")) {
        expect_end(p);
        node->e = parse_body(p, "endfor", NULL, NULL);
    }
    next(p);
    expect_end(p);
    grow_depth(p, node, node->d);
    grow_depth(p, node, node->e);
    return with_children(p, node, node->a, items, body);
}

static tpl_node *parse_set(parser *p) {
    tpl_node *node = new_node(p, ST_SET), *target = parse_target(p, true);
    if (skip_op(p, '=')) {
        tpl_node *value = parse_tuple(p, true);
        expect_end(p);
        return with_children(p, node, target, value, NULL);
    }
    node->kind = ST_SET_BLOCK;
    tpl_node *filters = NULL;
    while (skip_op(p, '|')) filters = parse_filter(p, filters);
    expect_end(p);
    tpl_node *body = parse_body(p, "endset", NULL, NULL);
    next(p);
    expect_end(p);
    return with_children(p, node, target, body, filters);
}

/* (a, b=1) of a macro or a call block, its body, and the end tag. */
static void parse_macro_rest(parser *p, tpl_node *node, const char *end_word) {
    node_macro *macro = node->macro, *outer = p->macro;
    p->n_macros++;
    const tpl_str *params[32];
    tpl_node *defaults[32];
    if (is_op(p, '(')) {
        next(p);
        while (p->status == BT_OK && !is_op(p, ')')) {
            if (macro->n_params == 32) fail(p, "a macro has more than 32 parameters");
            uint32_t i = macro->n_params++ % 32;
            params[i] = expect_name(p);
            defaults[i] = skip_op(p, '=') ? parse_expression(p, true) : NULL;
            if (defaults[i] == NULL && i > 0 && defaults[i - 1] != NULL)
                fail(p, "a parameter without default behind one with");
            if (!skip_op(p, ',')) break;
        }
        expect_op(p, ')');
    }
    if (p->status != BT_OK) macro->n_params = 0;
    macro->params = alloc(p, macro->n_params, sizeof(*params));
    macro->defaults = alloc(p, macro->n_params, sizeof(*defaults));
    for (uint32_t i = 0; i < macro->n_params; i++) {
        macro->params[i] = params[i];
        macro->defaults[i] = defaults[i];
        grow_depth(p, node, defaults[i]);
    }
    if (node->kind == ST_CALL) {
        node->b = parse_expression(p, true);
        if (node->b->kind != EX_CALL) fail(p, "expected a call");
        grow_depth(p, node, node->b);
    }
    expect_end(p);
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
    grow_depth(p, node, macro->body);
    next(p);
    expect_end(p);
}

static tpl_node *parse_macro(parser *p) {
    tpl_node *node = new_node(p, ST_MACRO);
    node->macro = alloc(p, 1, sizeof(*node->macro));
    node->macro->name = expect_name(p);
    parse_macro_rest(p, node, "endmacro");
    return node;
}

static tpl_node *parse_call_block(parser *p) {
    tpl_node *node = new_node(p, ST_CALL);
    node->macro = alloc(p, 1, sizeof(*node->macro));
    parse_macro_rest(p, node, "endcall");
    return node;
}

static tpl_node *parse_filter_block(parser *p) {
    tpl_node *node = new_node(p, ST_FILTER), *filters = parse_filter(p, NULL);
    while (skip_op(p, '|')) filters = parse_filter(p, filters);
    expect_end(p);
    tpl_node *body = parse_body(p, "endfilter", NULL, NULL);
    next(p);
    expect_end(p);
    return with_children(p, node, filters, body, NULL);
}

static tpl_node *parse_with(parser *p) {
    tpl_node *node = new_node(p, ST_WITH);
    while (p->status == BT_OK && p->token->kind != LEX_BLOCK_END) {
        if (node->n_items > 0) expect_op(p, ',');
        add_item(p, node, parse_target(p, false));
        expect_op(p, '=');
        add_item(p, node, parse_expression(p, true));
    }
    expect_end(p);
    tpl_node *body = parse_body(p, "endwith", NULL, NULL);
    next(p);
    expect_end(p);
    return with_children(p, node, NULL, body, NULL);
}

/* {% generation %}: transformers' mark around what the model is trained on; it prints its body. */
static tpl_node *parse_generation(parser *p) {
    expect_end(p);
    tpl_node *body = parse_body(p, "endgeneration", NULL, NULL);
    next(p);
    expect_end(p);
    return body;
}

static tpl_node *parse_jump(parser *p, node_kind kind) {
    tpl_node *node = new_node(p, kind);
    if (p->n_loops == 0) fail(p, "%s outside of a loop", kind == ST_BREAK ? "break" : "continue");
    expect_end(p);
    return node;
}

static tpl_node *parse_statement(parser *p) {
    static const struct {
        const char *word;
        tpl_node *(*parse)(parser *p);
    } rows[] = {{"if", parse_if},           {"for", parse_for},
                {"set", parse_set},         {"macro", parse_macro},
                {"call", parse_call_block}, {"filter", parse_filter_block},
                {"with", parse_with},       {"generation", parse_generation}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        if (skip_word(p, rows[i].word)) return rows[i].parse(p);
    }
    if (skip_word(p, "break")) return parse_jump(p, ST_BREAK);
    if (skip_word(p, "continue")) return parse_jump(p, ST_CONTINUE);
    if (p->token->kind == LEX_NAME) {
        fail(p, "the tag '%.*s' is unknown or out of place", (int)p->token->n_bytes, p->token->bytes);
    } else {
        fail(p, "expected the name of a tag");
    }
    return new_node(p, ST_BLOCK);
}

/* Statements up to a block tag that begins with one of the words, which is then next; without words up to the end. */
static tpl_node *parse_body(parser *p, const char *end1, const char *end2, const char *end3) {
    tpl_node *block = new_node(p, ST_BLOCK);
    const char *const ends[3] = {end1, end2, end3};
    if (!enter(p)) p->token = p->last;
    while (p->token->kind != LEX_EOF) {
        if (p->token->kind == LEX_DATA) {
            tpl_node *text = new_node(p, ST_TEXT);
            text->value = str_value(p, p->token->bytes, p->token->n_bytes);
            next(p);
            add_item(p, block, text);
        } else if (p->token->kind == LEX_VAR_BEGIN) {
            tpl_node *output = new_node(p, ST_OUTPUT);
            next(p);
            with_children(p, output, parse_tuple(p, true), NULL, NULL);
            if (p->token->kind != LEX_VAR_END) fail(p, "expected '}}'");
            next(p);
            add_item(p, block, output);
        } else {
            next(p); /* LEX_BLOCK_BEGIN */
            for (size_t i = 0; i < 3; i++) {
                if (ends[i] == NULL || !is_word(p, ends[i])) continue;
                p->depth--;
                return block;
            }
            add_item(p, block, parse_statement(p));
        }
    }
    if (end1 != NULL)
        fail(p, "the template ends before '%s'", end2 != NULL && end3 == NULL ? end2 : end3 != NULL ? end3 : end1);
    p->depth--;
    return block;
}

bt_status tpl_parse(const lex_tokens *tokens, bt_arena *arena, tpl_node **out, bt_error *err) {
    parser p = {.token = tokens->tokens, .last = &tokens->tokens[tokens->n - 1], .arena = arena, .err = err};
    tpl_node *root = parse_body(&p, NULL, NULL, NULL);
    if (p.status == BT_OK) *out = root;
    return p.status;
}
