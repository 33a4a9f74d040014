/* Owns statements: loops, branches, assignments, macros, and the scopes they run in. As in Jinja2, a for loop's
 * iteration, a macro, a with and the block statements have a scope of their own and an if has not; what a loop's body
 * sets is gone with the iteration (templates carry things out in a namespace). */
#include "common/text/tpl_exec.h"

#include <string.h>

#include "common/text/tpl_builtin.h"

struct tpl_macro {
    const node_macro *node;
    tpl_scope *scope; /* where it was made */
};

struct tpl_loop {
    const tpl_list *items;
    size_t index0;
    uint32_t depth0;
    tpl_value last_changed; /* loop.changed()'s memory; missing at first */
};

typedef enum { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE } flow;

static flow exec_node(tpl_run *run, tpl_scope *scope, const tpl_node *node);

tpl_scope *tpl_scope_new(tpl_run *run, tpl_scope *parent) {
    tpl_scope *scope = tpl_alloc(run, sizeof(*scope));
    scope->parent = parent;
    scope->variables = scope->first;
    scope->cap = SCOPE_INLINE;
    return scope;
}

static bool same_name(const tpl_str *a, const tpl_str *b) {
    return a == b || (a->n_bytes == b->n_bytes && memcmp(a->bytes, b->bytes, a->n_bytes) == 0);
}

static tpl_variable *find_here(const tpl_scope *scope, const tpl_str *name) {
    for (size_t i = 0; i < scope->n; i++) {
        if (same_name(scope->variables[i].name, name)) return &scope->variables[i];
    }
    return NULL;
}

bool tpl_scope_get(const tpl_scope *scope, const tpl_str *name, tpl_value *value) {
    for (; scope != NULL; scope = scope->parent) {
        const tpl_variable *variable = find_here(scope, name);
        if (variable == NULL) continue;
        *value = variable->value;
        return true;
    }
    return false;
}

void tpl_scope_set(tpl_run *run, tpl_scope *scope, const tpl_str *name, tpl_value value) {
    tpl_variable *variable = find_here(scope, name);
    if (variable != NULL) {
        variable->value = value;
        return;
    }
    if (scope->n == scope->cap) {
        tpl_variable *grown = tpl_alloc(run, 2 * scope->cap * sizeof(*grown));
        if (grown == NULL) return;
        memcpy(grown, scope->variables, scope->n * sizeof(*grown));
        scope->variables = grown;
        scope->cap *= 2;
    }
    scope->variables[scope->n++] = (tpl_variable){.name = name, .value = value};
}

static tpl_str *static_name(tpl_run *run, const char *text) {
    tpl_str *str = tpl_alloc(run, sizeof(*str));
    *str = (tpl_str){.bytes = text, .n_bytes = strlen(text), .n_chars = strlen(text)};
    return str;
}

static void assign(tpl_run *run, tpl_scope *scope, const tpl_node *target, tpl_value value) {
    if (run->failed) return;
    if (target->kind == EX_NAME) {
        tpl_scope_set(run, scope, target->value.u.str, value);
    } else if (target->kind == EX_ATTR) {
        tpl_value space = tpl_eval(run, scope, target->a);
        if (space.kind != TPL_NAMESPACE) {
            tpl_fail(run, "cannot assign an attribute of a %s, only of a namespace", tpl_type_name(space));
            return;
        }
        tpl_dict_set(run, space, target->value, value);
    } else {
        tpl_value items = tpl_items(run, value);
        if (run->failed) return;
        if (items.u.list->n != target->n_items) {
            tpl_fail(run, "cannot unpack %zu values into %u names", items.u.list->n, target->n_items);
            return;
        }
        for (uint32_t i = 0; i < target->n_items; i++) assign(run, scope, target->items[i], items.u.list->items[i]);
    }
}

/* Runs a body with its output captured. */
static tpl_value capture(tpl_run *run, tpl_scope *scope, const tpl_node *body) {
    bt_buf text = {0}, *outer = run->out;
    run->out = &text;
    exec_node(run, scope, body);
    run->out = outer;
    return tpl_string_take(run, &text);
}

/* Loops. */

static tpl_value filter_items(tpl_run *run, tpl_scope *scope, const tpl_node *node, tpl_value items) {
    tpl_value kept = tpl_list_new(run, TPL_LIST, 0);
    tpl_scope *inner = tpl_scope_new(run, scope);
    for (size_t i = 0; i < items.u.list->n && tpl_step(run, 1); i++) {
        inner->n = 0;
        assign(run, inner, node->a, items.u.list->items[i]);
        if (tpl_truth(tpl_eval(run, inner, node->d))) tpl_list_push(run, kept, items.u.list->items[i]);
    }
    return kept;
}

static void exec_for(tpl_run *run, tpl_scope *scope, const tpl_node *node) {
    tpl_value items = tpl_items(run, tpl_eval(run, scope, node->b));
    if (node->d != NULL && !run->failed) items = filter_items(run, scope, node, items);
    if (run->failed) return;
    if (items.u.list->n == 0) {
        if (node->e != NULL) exec_node(run, tpl_scope_new(run, scope), node->e);
        return;
    }
    tpl_loop *loop = tpl_alloc(run, sizeof(*loop));
    *loop = (tpl_loop){.items = items.u.list};
    const tpl_str *loop_name = static_name(run, "loop");
    tpl_scope *inner = NULL;
    for (; loop->index0 < loop->items->n && tpl_step(run, 1); loop->index0++) {
        if (inner == NULL || node->has_macros) inner = tpl_scope_new(run, scope);
        inner->n = 0;
        tpl_scope_set(run, inner, loop_name, (tpl_value){.kind = TPL_LOOP, .u.loop = loop});
        assign(run, inner, node->a, loop->items->items[loop->index0]);
        if (exec_node(run, inner, node->c) == FLOW_BREAK) break;
    }
}

tpl_value tpl_loop_attribute(tpl_run *run, tpl_loop *loop, const tpl_str *name) {
    int64_t index0 = (int64_t)loop->index0, n = (int64_t)loop->items->n;
    if (tpl_is(name, "index0")) return tpl_int(index0);
    if (tpl_is(name, "index")) return tpl_int(index0 + 1);
    if (tpl_is(name, "first")) return tpl_bool(index0 == 0);
    if (tpl_is(name, "last")) return tpl_bool(index0 == n - 1);
    if (tpl_is(name, "length")) return tpl_int(n);
    if (tpl_is(name, "revindex")) return tpl_int(n - index0);
    if (tpl_is(name, "revindex0")) return tpl_int(n - index0 - 1);
    if (tpl_is(name, "depth")) return tpl_int(loop->depth0 + 1);
    if (tpl_is(name, "depth0")) return tpl_int(loop->depth0);
    if (tpl_is(name, "previtem")) {
        if (index0 == 0) return tpl_undefined_name(run, name, TPL_LOOP);
        return loop->items->items[index0 - 1];
    }
    if (tpl_is(name, "nextitem")) {
        if (index0 + 1 >= n) return tpl_undefined_name(run, name, TPL_LOOP);
        return loop->items->items[index0 + 1];
    }
    return (tpl_value){.kind = TPL_MISSING};
}

tpl_value tpl_loop_call(tpl_run *run, tpl_loop *loop, const tpl_str *method, const tpl_args *args) {
    if (tpl_is(method, "cycle")) {
        if (args->n == 0) return tpl_fail(run, "no items for cycling given");
        return args->items[loop->index0 % args->n];
    }
    tpl_value now = tpl_list_new(run, TPL_TUPLE, args->n); /* changed */
    for (size_t i = 0; i < args->n; i++) tpl_list_push(run, now, args->items[i]);
    bool is_changed = loop->last_changed.kind == TPL_MISSING || !tpl_equal(run, now, loop->last_changed);
    loop->last_changed = now;
    return tpl_bool(is_changed);
}

/* Macros. */

static const tpl_value *find_named(const tpl_args *args, const tpl_str *name) {
    for (size_t i = 0; i < args->n_named; i++) {
        if (same_name(args->names[i], name)) return &args->named[i];
    }
    return NULL;
}

static bool is_param(const node_macro *node, const tpl_str *name) {
    for (uint32_t i = 0; i < node->n_params; i++) {
        if (same_name(node->params[i], name)) return true;
    }
    return false;
}

/* Named arguments that are no parameters: kwargs, or the caller, or an error. */
static tpl_value extra_named(tpl_run *run, const node_macro *node, const tpl_args *args, tpl_value *caller) {
    tpl_value extra = tpl_dict_new(run, TPL_DICT);
    for (size_t i = 0; i < args->n_named; i++) {
        if (is_param(node, args->names[i])) continue;
        if (tpl_is(args->names[i], "caller")) {
            *caller = args->named[i];
        } else if (node->uses_kwargs) {
            tpl_dict_set(run, extra, (tpl_value){.kind = TPL_STR, .u.str = args->names[i]}, args->named[i]);
        } else {
            tpl_fail(run, "a macro takes no keyword argument '%.*s'", (int)args->names[i]->n_bytes,
                     args->names[i]->bytes);
        }
    }
    return extra;
}

tpl_value tpl_call_macro(tpl_run *run, const tpl_macro *macro, const tpl_args *args, tpl_value caller) {
    const node_macro *node = macro->node;
    tpl_scope *scope = tpl_scope_new(run, macro->scope);
    if (args->n > node->n_params && !node->uses_varargs) {
        return tpl_fail(run, "a macro takes not more than %u arguments", node->n_params);
    }
    tpl_value extra = extra_named(run, node, args, &caller);
    for (uint32_t i = 0; i < node->n_params && !run->failed; i++) {
        const tpl_value *named = find_named(args, node->params[i]);
        tpl_value value;
        if (i < args->n) {
            if (named != NULL) tpl_fail(run, "a macro got two values for one parameter");
            value = args->items[i];
        } else if (named != NULL) {
            value = *named;
        } else if (node->defaults[i] != NULL) {
            value = tpl_eval(run, scope, node->defaults[i]);
        } else {
            value = tpl_undefined_name(run, node->params[i], TPL_MISSING);
        }
        tpl_scope_set(run, scope, node->params[i], value);
    }
    if (node->uses_varargs) {
        tpl_value rest = tpl_list_new(run, TPL_TUPLE, 0);
        for (size_t i = node->n_params; i < args->n; i++) tpl_list_push(run, rest, args->items[i]);
        tpl_scope_set(run, scope, static_name(run, "varargs"), rest);
    }
    if (node->uses_kwargs) tpl_scope_set(run, scope, static_name(run, "kwargs"), extra);
    /* A call block's own body sees the caller of the macro around it. */
    if (node->name != NULL || caller.kind != TPL_MISSING) {
        const tpl_str *name = static_name(run, "caller");
        if (caller.kind == TPL_MISSING) caller = tpl_undefined_name(run, name, TPL_MISSING);
        tpl_scope_set(run, scope, name, caller);
    }
    return run->failed ? tpl_none() : capture(run, scope, node->body);
}

static tpl_value make_macro(tpl_run *run, tpl_scope *scope, const node_macro *node) {
    tpl_macro *macro = tpl_alloc(run, sizeof(*macro));
    *macro = (tpl_macro){.node = node, .scope = scope};
    return (tpl_value){.kind = TPL_MACRO, .u.macro = macro};
}

/* {% call(x) f(a) %}: f is called with the block as its caller. */
static void exec_call(tpl_run *run, tpl_scope *scope, const tpl_node *node) {
    const tpl_node *call = node->b;
    tpl_value callee = tpl_eval(run, scope, call->a);
    if (run->failed) return;
    if (callee.kind != TPL_MACRO) {
        tpl_fail(run, "a call block needs a macro, not a %s", tpl_type_name(callee));
        return;
    }
    size_t n_named = call->keywords.n_names, n = call->n_items - n_named;
    tpl_value *values = bt_arena_alloc(&run->arena, (call->n_items + 1) * sizeof(*values)); /* bounded by the source */
    for (uint32_t i = 0; i < call->n_items && !run->failed; i++) values[i] = tpl_eval(run, scope, call->items[i]);
    if (run->failed) return;
    tpl_args args = {.items = values, .n = n, .names = call->keywords.names, .named = values + n, .n_named = n_named};
    tpl_value text = {.kind = TPL_UNDEFINED};
    if (tpl_enter(run)) text = tpl_call_macro(run, callee.u.macro, &args, make_macro(run, scope, node->macro));
    tpl_leave(run);
    if (!run->failed) tpl_put_str(run, text, run->out);
}

/* Statements. */

static void exec_with(tpl_run *run, tpl_scope *scope, const tpl_node *node, flow *out) {
    tpl_scope *inner = tpl_scope_new(run, scope);
    for (uint32_t i = 0; i + 1 < node->n_items && !run->failed; i += 2) {
        assign(run, inner, node->items[i], tpl_eval(run, scope, node->items[i + 1])); /* values see the outer scope */
    }
    if (!run->failed) *out = exec_node(run, inner, node->b);
}

static flow exec_if(tpl_run *run, tpl_scope *scope, const tpl_node *node) {
    while (node != NULL && node->kind == ST_IF) {
        bool is_true = tpl_truth(tpl_eval(run, scope, node->a));
        if (run->failed) return FLOW_ON;
        if (is_true) return exec_node(run, scope, node->b);
        node = node->c;
    }
    return node != NULL ? exec_node(run, scope, node) : FLOW_ON;
}

static flow exec_statement(tpl_run *run, tpl_scope *scope, const tpl_node *node) {
    flow result = FLOW_ON;
    tpl_value value;
    switch (node->kind) {
    case ST_TEXT:
        bt_buf_put(run->out, node->value.u.str->bytes, node->value.u.str->n_bytes);
        tpl_check_output(run, run->out);
        break;
    case ST_OUTPUT:
        value = tpl_eval(run, scope, node->a);
        if (!run->failed) tpl_put_str(run, value, run->out);
        break;
    case ST_BLOCK:
        for (uint32_t i = 0; i < node->n_items && result == FLOW_ON && !run->failed; i++) {
            result = exec_node(run, scope, node->items[i]);
        }
        break;
    case ST_IF:
        return exec_if(run, scope, node);
    case ST_FOR:
        exec_for(run, scope, node);
        break;
    case ST_SET:
        assign(run, scope, node->a, tpl_eval(run, scope, node->b));
        break;
    case ST_SET_BLOCK:
        value = capture(run, tpl_scope_new(run, scope), node->b);
        if (!run->failed) assign(run, scope, node->a, tpl_eval_filters(run, scope, node->c, value));
        break;
    case ST_MACRO:
        tpl_scope_set(run, scope, node->macro->name, make_macro(run, scope, node->macro));
        break;
    case ST_CALL:
        exec_call(run, scope, node);
        break;
    case ST_FILTER:
        value = capture(run, tpl_scope_new(run, scope), node->b);
        if (!run->failed) value = tpl_eval_filters(run, scope, node->a, value);
        if (!run->failed) tpl_put_str(run, value, run->out);
        break;
    case ST_WITH:
        exec_with(run, scope, node, &result);
        break;
    case ST_BREAK:
        return FLOW_BREAK;
    case ST_CONTINUE:
        return FLOW_CONTINUE;
    default:
        bt_assert_failed("an expression is no statement", __FILE__, __LINE__);
    }
    return result;
}

static flow exec_node(tpl_run *run, tpl_scope *scope, const tpl_node *node) {
    flow result = FLOW_ON;
    run->line = node->line;
    if (tpl_enter(run) && tpl_step(run, 1)) result = exec_statement(run, scope, node);
    tpl_leave(run);
    return result;
}

void tpl_exec(tpl_run *run, tpl_scope *scope, const tpl_node *root) { exec_node(run, scope, root); }
