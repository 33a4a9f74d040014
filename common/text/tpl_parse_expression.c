/* Owns the reading of expressions: jinja2/parser.py 3.1, level by level of its precedence, and the helpers that make
 * nodes. Recursion and the depth of the tree are bounded, so that walking the tree needs a bounded stack. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/text/chat_template.h"
#include "common/text/tpl_parser.h"
#include "common/text/utf8.h"

enum { MAX_TREE_DEPTH = 400 };

static tpl_node *parse_unary(prs_parser *p, bool with_filters);

void prs_fail(prs_parser *p, const char *format, ...) {
    if (p->status != BT_OK) return;
    char text[300];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    p->status = bt_fail(p->err, BT_BAD_REQUEST, "chat template, line %u: %s", p->token->line, text);
    p->token = p->last;
}

void *prs_alloc(prs_parser *p, size_t n, size_t elem_bytes) { return bt_arena_alloc(p->arena, n * elem_bytes); }

tpl_node *prs_new_node(prs_parser *p, node_kind kind) {
    tpl_node *node = prs_alloc(p, 1, sizeof(*node));
    node->kind = kind;
    node->line = p->token->line;
    node->depth = 1;
    return node;
}

/* Notes that `node` has `child` below it. */
void prs_grow_depth(prs_parser *p, tpl_node *node, const tpl_node *child) {
    if (child == NULL || child->depth < node->depth) return;
    node->depth = (uint16_t)(child->depth + 1);
    if (node->depth > MAX_TREE_DEPTH) prs_fail(p, "an expression has more than %d levels", (int)MAX_TREE_DEPTH);
    if (node->depth > MAX_TREE_DEPTH) node->depth = 1;
}

tpl_node *prs_with_children(prs_parser *p, tpl_node *node, tpl_node *a, tpl_node *b, tpl_node *c) {
    node->a = a;
    node->b = b;
    node->c = c;
    prs_grow_depth(p, node, a);
    prs_grow_depth(p, node, b);
    prs_grow_depth(p, node, c);
    return node;
}

void prs_add_item(prs_parser *p, tpl_node *node, tpl_node *item) {
    if (node->n_items == node->cap_items) {
        node->cap_items = node->n_items < 4 ? 4 : 2 * node->n_items;
        tpl_node **items = prs_alloc(p, node->cap_items, sizeof(*items));
        if (node->n_items > 0) memcpy(items, node->items, node->n_items * sizeof(*items));
        node->items = items;
    }
    node->items[node->n_items++] = item;
    prs_grow_depth(p, node, item);
}

tpl_str *prs_make_str(prs_parser *p, const char *bytes, size_t n_bytes) {
    tpl_str *str = prs_alloc(p, 1, sizeof(*str));
    *str = (tpl_str){.bytes = bytes, .n_bytes = n_bytes, .n_chars = utf8_count((const uint8_t *)bytes, n_bytes)};
    return str;
}

tpl_value prs_str_value(prs_parser *p, const char *bytes, size_t n_bytes) {
    return (tpl_value){.kind = TPL_STR, .u.str = prs_make_str(p, bytes, n_bytes)};
}

bool prs_is_op(const prs_parser *p, int op) { return p->token->kind == LEX_OP && p->token->op == op; }

bool prs_is_word(const prs_parser *p, const char *word) {
    const lex_token *token = p->token;
    return token->kind == LEX_NAME && token->n_bytes == strlen(word) && memcmp(token->bytes, word, token->n_bytes) == 0;
}

void prs_next(prs_parser *p) {
    if (p->token != p->last) p->token++;
}

bool prs_skip_op(prs_parser *p, int op) {
    if (!prs_is_op(p, op)) return false;
    prs_next(p);
    return true;
}

bool prs_skip_word(prs_parser *p, const char *word) {
    if (!prs_is_word(p, word)) return false;
    prs_next(p);
    return true;
}

void prs_expect_op(prs_parser *p, char op) {
    if (!prs_skip_op(p, op)) prs_fail(p, "expected '%c'", op);
}

const tpl_str *prs_expect_name(prs_parser *p) {
    const lex_token *token = p->token;
    if (token->kind != LEX_NAME) {
        prs_fail(p, "expected a name");
        return prs_make_str(p, "", 0);
    }
    prs_next(p);
    return prs_make_str(p, token->bytes, token->n_bytes);
}

void prs_expect_end(prs_parser *p) {
    if (p->token->kind != LEX_BLOCK_END) prs_fail(p, "expected the end of the tag");
    prs_next(p);
}

bool prs_enter(prs_parser *p) {
    if (++p->depth > TPL_MAX_DEPTH) prs_fail(p, "nested more than %d levels", (int)TPL_MAX_DEPTH);
    return p->status == BT_OK;
}

/* Expressions. */

/* Arguments in parentheses; the opening one is next. */
static void parse_arguments(prs_parser *p, tpl_node *node) {
    const tpl_str *names[32];
    uint32_t n_names = 0;
    prs_expect_op(p, '(');
    while (p->status == BT_OK && !prs_is_op(p, ')')) {
        if (prs_is_op(p, '*') || prs_is_op(p, LEX_POW)) prs_fail(p, "* and ** in calls are not supported");
        const lex_token *ahead = p->token + (p->token != p->last);
        if (p->token->kind == LEX_NAME && ahead->kind == LEX_OP && ahead->op == '=') {
            if (n_names == 32) prs_fail(p, "a call has more than 32 keyword arguments");
            names[n_names % 32] = prs_expect_name(p);
            n_names++;
            prs_next(p);
        } else if (n_names > 0) {
            prs_fail(p, "a positional argument behind a keyword argument");
        }
        prs_add_item(p, node, prs_expression(p, true));
        if (!prs_skip_op(p, ',')) break;
    }
    prs_expect_op(p, ')');
    if (p->status != BT_OK) n_names = 0;
    node->keywords.n_names = n_names;
    node->keywords.names = prs_alloc(p, n_names, sizeof(*names));
    if (n_names > 0) memcpy(node->keywords.names, names, n_names * sizeof(*names));
}

static tpl_node *parse_items(prs_parser *p, tpl_node *node, char close) {
    prs_next(p);
    while (p->status == BT_OK && !prs_is_op(p, close)) {
        prs_add_item(p, node, prs_expression(p, true));
        if (node->kind == EX_DICT) {
            prs_expect_op(p, ':');
            prs_add_item(p, node, prs_expression(p, true));
        }
        if (!prs_skip_op(p, ',')) break;
    }
    prs_expect_op(p, close);
    return node;
}

/* ( ... ): an expression, or with a comma or nothing inside a tuple. */
static tpl_node *parse_parentheses(prs_parser *p) {
    tpl_node *tuple = prs_new_node(p, EX_TUPLE);
    prs_next(p);
    if (prs_skip_op(p, ')')) return tuple;
    tpl_node *first = prs_expression(p, true);
    if (!prs_is_op(p, ',')) {
        prs_expect_op(p, ')');
        return first;
    }
    prs_add_item(p, tuple, first);
    while (prs_skip_op(p, ',') && !prs_is_op(p, ')')) prs_add_item(p, tuple, prs_expression(p, true));
    prs_expect_op(p, ')');
    return tuple;
}

static tpl_node *parse_strings(prs_parser *p) {
    tpl_node *node = prs_new_node(p, EX_CONST);
    bt_buf text = {0};
    for (; p->token->kind == LEX_STRING; prs_next(p)) bt_buf_put(&text, p->token->bytes, p->token->n_bytes);
    node->value = prs_str_value(p, bt_arena_strndup(p->arena, bt_buf_text(&text), text.n_bytes), text.n_bytes);
    bt_buf_fini(&text);
    return node;
}

static tpl_node *parse_name(prs_parser *p) {
    static const struct {
        const char *word;
        tpl_kind kind;
        bool is_true;
    } words[] = {{"true", TPL_BOOL, true},   {"True", TPL_BOOL, true},  {"false", TPL_BOOL, false},
                 {"False", TPL_BOOL, false}, {"none", TPL_NONE, false}, {"None", TPL_NONE, false}};
    tpl_node *node = prs_new_node(p, EX_CONST);
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (!prs_skip_word(p, words[i].word)) continue;
        node->value = words[i].kind == TPL_BOOL ? tpl_bool(words[i].is_true) : tpl_none();
        return node;
    }
    node->kind = EX_NAME;
    node->value = (tpl_value){.kind = TPL_STR, .u.str = prs_expect_name(p)};
    if (p->macro != NULL) {
        p->macro->uses_caller |= tpl_is(node->value.u.str, "caller");
        p->macro->uses_varargs |= tpl_is(node->value.u.str, "varargs");
        p->macro->uses_kwargs |= tpl_is(node->value.u.str, "kwargs");
    }
    return node;
}

static tpl_node *parse_primary(prs_parser *p) {
    const lex_token *token = p->token;
    tpl_node *node;
    switch (token->kind) {
    case LEX_NAME:
        return parse_name(p);
    case LEX_STRING:
        return parse_strings(p);
    case LEX_INT:
    case LEX_FLOAT:
        node = prs_new_node(p, EX_CONST);
        node->value = token->kind == LEX_INT ? tpl_int(token->integer) : tpl_float(token->number);
        prs_next(p);
        return node;
    default:
        if (prs_is_op(p, '(')) return parse_parentheses(p);
        if (prs_is_op(p, '[')) return parse_items(p, prs_new_node(p, EX_LIST), ']');
        if (prs_is_op(p, '{')) return parse_items(p, prs_new_node(p, EX_DICT), '}');
        prs_fail(p, token->kind == LEX_EOF ? "the template ends inside a tag" : "expected an expression");
        return prs_new_node(p, EX_CONST);
    }
}

static tpl_node *parse_subscript(prs_parser *p, tpl_node *object) {
    tpl_node *node = prs_new_node(p, EX_ITEM), *parts[3] = {NULL, NULL, NULL};
    prs_next(p);
    int n_colons = 0;
    while (p->status == BT_OK && !prs_is_op(p, ']') && n_colons < 3) {
        if (!prs_is_op(p, ':')) parts[n_colons] = prs_expression(p, true);
        if (!prs_skip_op(p, ':')) break;
        n_colons++;
    }
    if (n_colons == 0 && parts[0] == NULL) prs_fail(p, "expected an expression in [ ]");
    prs_expect_op(p, ']');
    node->kind = n_colons > 0 ? EX_SLICE : EX_ITEM;
    node->d = parts[2];
    prs_grow_depth(p, node, parts[2]);
    return prs_with_children(p, node, object, parts[0], parts[1]);
}

tpl_node *prs_attribute(prs_parser *p, tpl_node *object) {
    tpl_node *node = prs_new_node(p, EX_ATTR);
    prs_next(p);
    if (p->token->kind == LEX_INT) { /* a.0 is a[0] */
        node->kind = EX_ITEM;
        return prs_with_children(p, node, object, parse_primary(p), NULL);
    }
    node->value = (tpl_value){.kind = TPL_STR, .u.str = prs_expect_name(p)};
    return prs_with_children(p, node, object, NULL, NULL);
}

static tpl_node *parse_call(prs_parser *p, tpl_node *callee) {
    tpl_node *node = prs_new_node(p, EX_CALL);
    parse_arguments(p, node);
    return prs_with_children(p, node, callee, NULL, NULL);
}

static tpl_node *parse_postfix(prs_parser *p, tpl_node *node) {
    while (p->status == BT_OK) {
        if (prs_is_op(p, '.')) {
            node = prs_attribute(p, node);
        } else if (prs_is_op(p, '[')) {
            node = parse_subscript(p, node);
        } else if (prs_is_op(p, '(')) {
            node = parse_call(p, node);
        } else {
            break;
        }
    }
    return node;
}

/* name or name.name, as filters and tests are called */
static tpl_value parse_dotted_name(prs_parser *p) {
    const tpl_str *name = prs_expect_name(p);
    while (prs_skip_op(p, '.')) {
        const tpl_str *more = prs_expect_name(p);
        bt_buf text = {0};
        bt_buf_printf(&text, "%.*s.%.*s", (int)name->n_bytes, name->bytes, (int)more->n_bytes, more->bytes);
        name = prs_make_str(p, bt_arena_strndup(p->arena, bt_buf_text(&text), text.n_bytes), text.n_bytes);
        bt_buf_fini(&text);
    }
    return (tpl_value){.kind = TPL_STR, .u.str = name};
}

/* The filter behind a |; `object` is NULL at the start of a filter block. */
tpl_node *prs_filter(prs_parser *p, tpl_node *object) {
    tpl_node *node = prs_new_node(p, EX_FILTER);
    node->value = parse_dotted_name(p);
    if (prs_is_op(p, '(')) parse_arguments(p, node);
    return prs_with_children(p, node, object, NULL, NULL);
}

static bool starts_test_argument(const prs_parser *p) {
    switch (p->token->kind) {
    case LEX_NAME:
        return !prs_is_word(p, "else") && !prs_is_word(p, "or") && !prs_is_word(p, "and");
    case LEX_STRING:
    case LEX_INT:
    case LEX_FLOAT:
        return true;
    default:
        return prs_is_op(p, '[') || prs_is_op(p, '{');
    }
}

static tpl_node *parse_test(prs_parser *p, tpl_node *object) {
    tpl_node *node = prs_new_node(p, EX_TEST);
    prs_next(p);
    bool is_negated = prs_skip_word(p, "not");
    node->value = parse_dotted_name(p);
    if (prs_is_op(p, '(')) {
        parse_arguments(p, node);
    } else if (starts_test_argument(p)) {
        if (prs_is_word(p, "is")) prs_fail(p, "tests with 'is' cannot be chained");
        prs_add_item(p, node, parse_postfix(p, parse_primary(p)));
    }
    node = prs_with_children(p, node, object, NULL, NULL);
    return is_negated ? prs_with_children(p, prs_new_node(p, EX_NOT), node, NULL, NULL) : node;
}

static tpl_node *parse_filters(prs_parser *p, tpl_node *node) {
    while (p->status == BT_OK) {
        if (prs_skip_op(p, '|')) {
            node = prs_filter(p, node);
        } else if (prs_is_word(p, "is")) {
            node = parse_test(p, node);
        } else if (prs_is_op(p, '(')) {
            node = parse_call(p, node);
        } else {
            break;
        }
    }
    return node;
}

static tpl_node *parse_unary(prs_parser *p, bool with_filters) {
    tpl_node *node;
    if (!prs_enter(p)) {
        node = prs_new_node(p, EX_CONST);
    } else if (prs_is_op(p, '-') || prs_is_op(p, '+')) {
        node = prs_new_node(p, prs_is_op(p, '-') ? EX_NEG : EX_POS);
        prs_next(p);
        node = prs_with_children(p, node, parse_unary(p, false), NULL, NULL);
    } else {
        node = parse_primary(p);
    }
    node = parse_postfix(p, node);
    if (with_filters) node = parse_filters(p, node);
    p->depth--;
    return node;
}

/* The levels of binary operators, loosest first: + -, ~, * / // %, **. */
static tpl_node *parse_binary(prs_parser *p, int level) {
    static const int ops[4][4] = {{'+', '-', 0, 0}, {'~', 0, 0, 0}, {'*', '/', LEX_FLOOR_DIV, '%'}, {LEX_POW, 0, 0, 0}};
    if (level == 4) return parse_unary(p, true);
    tpl_node *left = parse_binary(p, level + 1);
    while (p->token->kind == LEX_OP) {
        int op = p->token->op, i = 0;
        while (i < 4 && ops[level][i] != op) i++;
        if (i == 4) break;
        tpl_node *node = prs_new_node(p, EX_BINARY);
        node->op = op;
        prs_next(p);
        left = prs_with_children(p, node, left, parse_binary(p, level + 1), NULL);
    }
    return left;
}

/* The comparison operator that is next, skipped; 0: none. */
static int skip_comparison(prs_parser *p) {
    static const int ops[] = {LEX_EQ, LEX_NE, '<', LEX_LE, '>', LEX_GE};
    for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
        if (prs_skip_op(p, ops[i])) return ops[i];
    }
    if (prs_skip_word(p, "in")) return OP_IN;
    if (!prs_is_word(p, "not") || p->token == p->last) return 0;
    const lex_token *not_token = p->token;
    prs_next(p);
    if (prs_skip_word(p, "in")) return OP_NOT_IN;
    p->token = not_token;
    return 0;
}

static tpl_node *parse_compare(prs_parser *p) {
    tpl_node *left = parse_binary(p, 0), *node = NULL;
    int ops[16];
    for (int op; (op = skip_comparison(p)) != 0;) {
        if (node == NULL) {
            node = prs_new_node(p, EX_COMPARE);
            prs_with_children(p, node, left, NULL, NULL);
        }
        if (node->n_items == 16) prs_fail(p, "a comparison has more than 16 parts");
        ops[node->n_items % 16] = op;
        prs_add_item(p, node, parse_binary(p, 0));
    }
    if (node == NULL) return left;
    node->ops = prs_alloc(p, node->n_items, sizeof(int));
    memcpy(node->ops, ops, (node->n_items < 16 ? node->n_items : 16) * sizeof(int));
    return node;
}

static tpl_node *parse_not(prs_parser *p) {
    if (!prs_is_word(p, "not")) return parse_compare(p);
    tpl_node *node = prs_new_node(p, EX_NOT);
    prs_next(p);
    tpl_node *inner = prs_enter(p) ? parse_not(p) : node;
    p->depth--;
    return p->status == BT_OK ? prs_with_children(p, node, inner, NULL, NULL) : node;
}

static tpl_node *parse_and(prs_parser *p) {
    tpl_node *left = parse_not(p);
    while (prs_is_word(p, "and")) {
        tpl_node *node = prs_new_node(p, EX_AND);
        prs_next(p);
        left = prs_with_children(p, node, left, parse_not(p), NULL);
    }
    return left;
}

static tpl_node *parse_or(prs_parser *p) {
    tpl_node *left = parse_and(p);
    while (prs_is_word(p, "or")) {
        tpl_node *node = prs_new_node(p, EX_OR);
        prs_next(p);
        left = prs_with_children(p, node, left, parse_and(p), NULL);
    }
    return left;
}

tpl_node *prs_expression(prs_parser *p, bool with_condition) {
    if (!prs_enter(p)) {
        p->depth--;
        return prs_new_node(p, EX_CONST);
    }
    tpl_node *value = parse_or(p);
    while (with_condition && prs_is_word(p, "if")) {
        tpl_node *node = prs_new_node(p, EX_COND);
        prs_next(p);
        tpl_node *condition = parse_or(p);
        tpl_node *otherwise = prs_skip_word(p, "else") ? prs_expression(p, true) : NULL;
        value = prs_with_children(p, node, value, condition, otherwise);
    }
    p->depth--;
    return value;
}

/* An expression, or several with commas between them: a tuple without parentheses. */
tpl_node *prs_tuple(prs_parser *p, bool with_condition) {
    tpl_node *first = prs_expression(p, with_condition);
    if (!prs_is_op(p, ',')) return first;
    tpl_node *tuple = prs_new_node(p, EX_TUPLE);
    prs_add_item(p, tuple, first);
    while (prs_skip_op(p, ',')) {
        if (p->token->kind == LEX_BLOCK_END || p->token->kind == LEX_VAR_END || prs_is_op(p, '=')) break;
        prs_add_item(p, tuple, prs_expression(p, with_condition));
    }
    return tuple;
}
