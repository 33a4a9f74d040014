/* Owns expressions: how a tree becomes a value. Operators are tpl_ops.c, what can be called is in the tables of
 * tpl_builtin.h. */
#include <stdlib.h>
#include <string.h>

#include "common/text/tpl_builtin.h"
#include "common/text/tpl_exec.h"
#include "common/text/utf8.h"

struct tpl_method {
    tpl_value self;
    const tpl_builtin *builtin; /* NULL: loop.cycle, loop.changed */
    const tpl_str *name;
};

static tpl_args eval_args(tpl_run *run, tpl_scope *scope, const tpl_node *node) {
    size_t n_named = node->keywords.n_names, n = node->n_items - n_named;
    tpl_args args = {.n = n, .names = node->keywords.names, .n_named = n_named};
    if (node->n_items == 0) return args;
    tpl_value *values = bt_arena_alloc(&run->arena, node->n_items * sizeof(*values)); /* bounded by the source */
    for (uint32_t i = 0; i < node->n_items && !run->failed; i++) values[i] = tpl_eval(run, scope, node->items[i]);
    args.items = values;
    args.named = values + n;
    return args;
}

/* The parameter of that name, or -1. */
static int find_param(const char *params, const tpl_str *name) {
    int index = 0;
    for (const char *p = params; *p != 0; index++) {
        size_t n_bytes = strcspn(p, ",");
        if (n_bytes == name->n_bytes && memcmp(p, name->bytes, n_bytes) == 0) return index;
        p += n_bytes + (p[n_bytes] == ',');
    }
    return -1;
}

static size_t count_params(const char *params) {
    size_t n = *params != 0;
    for (; *params != 0; params++) n += *params == ',';
    return n;
}

tpl_value tpl_call_builtin(tpl_run *run, const tpl_builtin *builtin, tpl_value self, const tpl_args *args) {
    tpl_value bound[TPL_MAX_PARAMS] = {{.kind = TPL_MISSING}};
    if (builtin->params[0] == '*') return builtin->call(run, self, bound, args);
    size_t n_params = count_params(builtin->params);
    if (args->n > n_params) {
        return tpl_fail(run, "%s() takes at most %zu arguments, %zu given", builtin->name, n_params, args->n);
    }
    for (size_t i = 0; i < args->n; i++) bound[i] = args->items[i];
    for (size_t i = 0; i < args->n_named; i++) {
        int at = find_param(builtin->params, args->names[i]);
        if (at < 0 || (size_t)at < args->n) {
            return tpl_fail(run, "%s() got an unexpected argument '%.*s'", builtin->name, (int)args->names[i]->n_bytes,
                            args->names[i]->bytes);
        }
        bound[at] = args->named[i];
    }
    for (size_t i = 0; i < builtin->n_required; i++) {
        if (bound[i].kind == TPL_MISSING) return tpl_fail(run, "%s() lacks an argument", builtin->name);
    }
    return run->failed ? tpl_none() : builtin->call(run, self, bound, args);
}

static const tpl_builtin *find_in(const tpl_builtin *table, const tpl_str *name) {
    for (; table->name != NULL; table++) {
        if (tpl_is(name, table->name)) return table;
    }
    return NULL;
}

const tpl_builtin *tpl_find_filter(const tpl_str *name) {
    const tpl_builtin *found = find_in(tpl_text_filters, name);
    return found != NULL ? found : find_in(tpl_sequence_filters, name);
}

const tpl_builtin *tpl_find_test(const tpl_str *name) { return find_in(tpl_tests, name); }
const tpl_builtin *tpl_find_global(const tpl_str *name) { return find_in(tpl_globals, name); }

const tpl_builtin *tpl_find_method(tpl_kind kind, const tpl_str *name) {
    switch (kind) {
    case TPL_STR:
        return find_in(tpl_string_methods, name);
    case TPL_LIST:
    case TPL_TUPLE:
        return find_in(tpl_list_methods, name);
    case TPL_DICT:
        return find_in(tpl_dict_methods, name);
    default:
        return NULL;
    }
}

static tpl_value make_method(tpl_run *run, tpl_value self, const tpl_builtin *builtin, const tpl_str *name) {
    tpl_method *method = tpl_alloc(run, sizeof(*method));
    *method = (tpl_method){.self = self, .builtin = builtin, .name = name};
    return (tpl_value){.kind = TPL_METHOD, .u.method = method};
}

tpl_value tpl_call(tpl_run *run, tpl_value callee, const tpl_args *args) {
    tpl_value missing = {.kind = TPL_MISSING}, result = missing;
    switch (callee.kind) {
    case TPL_FUNCTION:
        return tpl_call_builtin(run, callee.u.function, missing, args);
    case TPL_METHOD:
        if (callee.u.method->builtin != NULL) {
            return tpl_call_builtin(run, callee.u.method->builtin, callee.u.method->self, args);
        }
        return tpl_loop_call(run, callee.u.method->self.u.loop, callee.u.method->name, args);
    case TPL_MACRO:
        if (tpl_enter(run)) result = tpl_call_macro(run, callee.u.macro, args, missing);
        tpl_leave(run);
        return result;
    case TPL_UNDEFINED:
        tpl_fail_undefined(run, callee);
        return callee;
    default:
        return tpl_fail(run, "'%s' object is not callable", tpl_type_name(callee));
    }
}

/* getattr(): methods and the attributes of objects; missing if there is none. */
static tpl_value own_attribute(tpl_run *run, tpl_value object, const tpl_str *name) {
    tpl_value value = {.kind = TPL_MISSING};
    const tpl_builtin *method = tpl_find_method(object.kind, name);
    if (method != NULL) return make_method(run, object, method, name);
    if (object.kind == TPL_LOOP) {
        if (tpl_is(name, "cycle") || tpl_is(name, "changed")) return make_method(run, object, NULL, name);
        return tpl_loop_attribute(run, object.u.loop, name);
    }
    if (object.kind == TPL_NAMESPACE) {
        tpl_dict_get(run, object.u.dict, (tpl_value){.kind = TPL_STR, .u.str = name}, &value);
    }
    return value;
}

tpl_value tpl_attribute(tpl_run *run, tpl_value object, const tpl_str *name) {
    if (object.kind == TPL_UNDEFINED) {
        tpl_fail_undefined(run, object);
        return object;
    }
    tpl_value value = own_attribute(run, object, name);
    if (value.kind != TPL_MISSING) return value;
    tpl_value key = {.kind = TPL_STR, .u.str = name};
    if (object.kind == TPL_DICT && tpl_dict_get(run, object.u.dict, key, &value)) return value;
    return tpl_undefined_name(run, name, object.kind);
}

static bool index_of(tpl_value key, size_t n, size_t *index) {
    if (!tpl_is_integral(key)) return false;
    int64_t i = tpl_to_int(key);
    if (i < 0) i += (int64_t)n;
    *index = (size_t)i;
    return i >= 0 && i < (int64_t)n;
}

/* The byte offset of a character; a step per 64 bytes walked. */
static size_t offset_of(tpl_run *run, const tpl_str *str, size_t n_chars) {
    if (str->n_chars == str->n_bytes) return n_chars;
    const uint8_t *begin = (const uint8_t *)str->bytes, *p = begin;
    for (uint32_t c; n_chars > 0; n_chars--) p += utf8_next(p, &c);
    tpl_step(run, (uint64_t)(p - begin) / 64);
    return (size_t)(p - begin);
}

tpl_value tpl_item(tpl_run *run, tpl_value object, tpl_value key) {
    size_t index;
    tpl_value value = {.kind = TPL_MISSING};
    switch (object.kind) {
    case TPL_UNDEFINED:
        tpl_fail_undefined(run, object);
        return object;
    case TPL_DICT:
        if (key.kind != TPL_LIST && key.kind != TPL_DICT && tpl_dict_get(run, object.u.dict, key, &value)) return value;
        break;
    case TPL_LIST:
    case TPL_TUPLE:
        if (index_of(key, object.u.list->n, &index)) return object.u.list->items[index];
        break;
    case TPL_STR:
        if (index_of(key, object.u.str->n_chars, &index)) {
            size_t begin = offset_of(run, object.u.str, index);
            uint32_t c;
            size_t n_bytes = utf8_next((const uint8_t *)object.u.str->bytes + begin, &c);
            return tpl_substring(run, object.u.str, begin, begin + n_bytes);
        }
        break;
    default:
        break;
    }
    if (key.kind == TPL_STR) {
        value = own_attribute(run, object, key.u.str);
        if (value.kind != TPL_MISSING) return value;
    }
    return tpl_undefined_name(run, tpl_to_str(run, key).u.str, object.kind);
}

/* A slice's bounds as Python's slice.indices() gives them. */
static bool slice_bounds(tpl_run *run, tpl_value begin, tpl_value end, tpl_value step, int64_t n, int64_t *out) {
    const tpl_value parts[3] = {begin, end, step};
    for (int i = 0; i < 3; i++) {
        if (parts[i].kind == TPL_NONE || parts[i].kind == TPL_MISSING || tpl_is_integral(parts[i])) continue;
        tpl_fail(run, "slice indices must be integers or None");
        return false;
    }
    out[2] = tpl_is_integral(step) ? tpl_to_int(step) : 1;
    if (out[2] == 0) {
        tpl_fail(run, "slice step cannot be zero");
        return false;
    }
    int64_t low = out[2] < 0 ? -1 : 0, high = out[2] < 0 ? n - 1 : n;
    for (int i = 0; i < 2; i++) {
        bool wants_low = (i == 0) == (out[2] > 0);
        int64_t at = wants_low ? low : high;
        if (tpl_is_integral(parts[i])) {
            at = tpl_to_int(parts[i]);
            if (at < 0) at = at < -n ? low : at + n;
            at = at < low ? low : at > high ? high : at;
        }
        out[i] = at;
    }
    return true;
}

static tpl_value slice(tpl_run *run, tpl_value object, tpl_value begin, tpl_value end, tpl_value step) {
    int64_t bounds[3];
    if (object.kind == TPL_UNDEFINED) {
        tpl_fail_undefined(run, object);
        return object;
    }
    if (object.kind != TPL_STR && !tpl_is_sequence(object)) {
        return tpl_fail(run, "'%s' object cannot be sliced", tpl_type_name(object));
    }
    size_t n = object.kind == TPL_STR ? object.u.str->n_chars : object.u.list->n;
    if (!slice_bounds(run, begin, end, step, (int64_t)n, bounds)) return tpl_none();
    if (object.kind == TPL_STR && bounds[2] == 1) {
        if (bounds[0] >= bounds[1]) return tpl_string_at(run, "", 0);
        return tpl_substring(run, object.u.str, offset_of(run, object.u.str, (size_t)bounds[0]),
                             offset_of(run, object.u.str, (size_t)bounds[1]));
    }
    tpl_value items = tpl_items(run, object), result = tpl_list_new(run, items.kind, 0);
    for (int64_t i = bounds[0]; bounds[2] > 0 ? i < bounds[1] : i > bounds[1];) {
        if (!tpl_step(run, 1)) break;
        tpl_list_push(run, result, items.u.list->items[i]);
        if (__builtin_add_overflow(i, bounds[2], &i)) break;
    }
    if (object.kind != TPL_STR) return result;
    bt_buf text = {0};
    for (size_t i = 0; i < result.u.list->n; i++) tpl_put_str(run, result.u.list->items[i], &text);
    return tpl_string_take(run, &text);
}

static tpl_value eval_slice(tpl_run *run, tpl_scope *scope, const tpl_node *node) {
    tpl_value missing = {.kind = TPL_MISSING};
    tpl_value object = tpl_eval(run, scope, node->a);
    tpl_value begin = node->b != NULL ? tpl_eval(run, scope, node->b) : missing;
    tpl_value end = node->c != NULL ? tpl_eval(run, scope, node->c) : missing;
    tpl_value step = node->d != NULL ? tpl_eval(run, scope, node->d) : missing;
    return run->failed ? missing : slice(run, object, begin, end, step);
}

static tpl_value eval_name(tpl_run *run, tpl_scope *scope, const tpl_str *name) {
    tpl_value value;
    if (tpl_scope_get(scope, name, &value)) return value;
    const tpl_builtin *global = tpl_find_global(name);
    if (global != NULL) return (tpl_value){.kind = TPL_FUNCTION, .u.function = global};
    return tpl_undefined_name(run, name, TPL_MISSING);
}

static tpl_value eval_items(tpl_run *run, tpl_scope *scope, const tpl_node *node) {
    tpl_value list = tpl_list_new(run, node->kind == EX_TUPLE ? TPL_TUPLE : TPL_LIST, node->n_items);
    for (uint32_t i = 0; i < node->n_items && !run->failed; i++) {
        tpl_list_push(run, list, tpl_eval(run, scope, node->items[i]));
    }
    return list;
}

static tpl_value eval_dict(tpl_run *run, tpl_scope *scope, const tpl_node *node) {
    tpl_value dict = tpl_dict_new(run, TPL_DICT);
    for (uint32_t i = 0; i + 1 < node->n_items && !run->failed; i += 2) {
        tpl_value key = tpl_eval(run, scope, node->items[i]);
        tpl_dict_set(run, dict, key, tpl_eval(run, scope, node->items[i + 1]));
    }
    return dict;
}

static tpl_value eval_compare(tpl_run *run, tpl_scope *scope, const tpl_node *node) {
    tpl_value left = tpl_eval(run, scope, node->a);
    for (uint32_t i = 0; i < node->n_items && !run->failed; i++) {
        tpl_value right = tpl_eval(run, scope, node->items[i]);
        if (run->failed || !tpl_compare(run, node->ops[i], left, right)) return tpl_bool(false);
        left = right;
    }
    return tpl_bool(true);
}

static tpl_value eval_call(tpl_run *run, tpl_scope *scope, const tpl_node *node) {
    const tpl_node *callee = node->a;
    if (callee->kind == EX_ATTR) { /* a method: no need to make a value of it */
        tpl_value self = tpl_eval(run, scope, callee->a);
        const tpl_builtin *method = tpl_find_method(self.kind, callee->value.u.str);
        tpl_value function = method == NULL && !run->failed ? tpl_attribute(run, self, callee->value.u.str) : self;
        tpl_args args = eval_args(run, scope, node);
        run->line = node->line;
        if (run->failed) return tpl_none();
        return method != NULL ? tpl_call_builtin(run, method, self, &args) : tpl_call(run, function, &args);
    }
    tpl_value function = tpl_eval(run, scope, callee);
    tpl_args args = eval_args(run, scope, node);
    run->line = node->line;
    return run->failed ? tpl_none() : tpl_call(run, function, &args);
}

static tpl_value apply_filter(tpl_run *run, tpl_scope *scope, const tpl_node *node, tpl_value self) {
    const tpl_str *name = node->value.u.str;
    const tpl_builtin *filter = tpl_find_filter(name);
    tpl_args args = eval_args(run, scope, node);
    run->line = node->line;
    if (run->failed) return tpl_none();
    if (filter == NULL) return tpl_fail(run, "there is no filter named '%.*s'", (int)name->n_bytes, name->bytes);
    return tpl_call_builtin(run, filter, self, &args);
}

tpl_value tpl_eval_filters(tpl_run *run, tpl_scope *scope, const tpl_node *filters, tpl_value value) {
    if (filters == NULL) return value;
    if (tpl_enter(run) && filters->a != NULL) value = tpl_eval_filters(run, scope, filters->a, value);
    tpl_leave(run);
    return run->failed ? value : apply_filter(run, scope, filters, value);
}

static tpl_value eval_test(tpl_run *run, tpl_scope *scope, const tpl_node *node) {
    const tpl_str *name = node->value.u.str;
    const tpl_builtin *test = tpl_find_test(name);
    tpl_value self = tpl_eval(run, scope, node->a);
    tpl_args args = eval_args(run, scope, node);
    run->line = node->line;
    if (run->failed) return tpl_none();
    if (test == NULL) return tpl_fail(run, "there is no test named '%.*s'", (int)name->n_bytes, name->bytes);
    return tpl_call_builtin(run, test, self, &args);
}

static tpl_value eval_sign(tpl_run *run, tpl_value value, bool is_negative) {
    if (value.kind == TPL_FLOAT) return tpl_float(is_negative ? -value.u.f : value.u.f);
    if (tpl_is_integral(value)) return tpl_binary(run, is_negative ? '-' : '+', tpl_int(0), value);
    if (value.kind == TPL_UNDEFINED) tpl_fail_undefined(run, value);
    return tpl_fail(run, "bad operand type for unary %c: '%s'", is_negative ? '-' : '+', tpl_type_name(value));
}

static tpl_value eval_node(tpl_run *run, tpl_scope *scope, const tpl_node *node) {
    tpl_value a, b;
    switch (node->kind) {
    case EX_CONST:
        return node->value;
    case EX_NAME:
        return eval_name(run, scope, node->value.u.str);
    case EX_LIST:
    case EX_TUPLE:
        return eval_items(run, scope, node);
    case EX_DICT:
        return eval_dict(run, scope, node);
    case EX_NEG:
    case EX_POS:
        return eval_sign(run, tpl_eval(run, scope, node->a), node->kind == EX_NEG);
    case EX_NOT:
        return tpl_bool(!tpl_truth(tpl_eval(run, scope, node->a)));
    case EX_AND:
        a = tpl_eval(run, scope, node->a);
        return tpl_truth(a) ? tpl_eval(run, scope, node->b) : a;
    case EX_OR:
        a = tpl_eval(run, scope, node->a);
        return tpl_truth(a) || run->failed ? a : tpl_eval(run, scope, node->b);
    case EX_BINARY:
        a = tpl_eval(run, scope, node->a);
        b = run->failed ? a : tpl_eval(run, scope, node->b);
        run->line = node->line;
        return run->failed ? a : tpl_binary(run, node->op, a, b);
    case EX_COMPARE:
        return eval_compare(run, scope, node);
    case EX_COND:
        if (tpl_truth(tpl_eval(run, scope, node->b))) return tpl_eval(run, scope, node->a);
        return node->c != NULL && !run->failed ? tpl_eval(run, scope, node->c) : (tpl_value){.kind = TPL_UNDEFINED};
    case EX_ATTR:
        a = tpl_eval(run, scope, node->a);
        run->line = node->line;
        return run->failed ? a : tpl_attribute(run, a, node->value.u.str);
    case EX_ITEM:
        a = tpl_eval(run, scope, node->a);
        b = run->failed ? a : tpl_eval(run, scope, node->b);
        run->line = node->line;
        return run->failed ? a : tpl_item(run, a, b);
    case EX_SLICE:
        return eval_slice(run, scope, node);
    case EX_CALL:
        return eval_call(run, scope, node);
    case EX_FILTER:
        a = tpl_eval(run, scope, node->a);
        return run->failed ? a : apply_filter(run, scope, node, a);
    case EX_TEST:
        return eval_test(run, scope, node);
    default:
        bt_assert_failed("a statement is no expression", __FILE__, __LINE__);
    }
}

tpl_value tpl_eval(tpl_run *run, tpl_scope *scope, const tpl_node *node) {
    tpl_value value = {.kind = TPL_UNDEFINED};
    if (tpl_enter(run) && tpl_step(run, 1)) value = eval_node(run, scope, node);
    tpl_leave(run);
    return value;
}
