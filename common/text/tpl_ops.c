/* Owns the operators with Python's meaning: arithmetic, joining, order, membership. Integers are 64 bits; what leaves
 * them is an error, as Python's would be exact. */
#include <math.h>
#include <string.h>

#include "common/text/tpl_ast.h"
#include "common/text/tpl_builtin.h"

static tpl_value bad_operands(tpl_run *run, const char *op, tpl_value a, tpl_value b) {
    if (a.kind == TPL_UNDEFINED || b.kind == TPL_UNDEFINED) {
        tpl_fail_undefined(run, a.kind == TPL_UNDEFINED ? a : b);
        return a;
    }
    return tpl_fail(run, "unsupported operand types for %s: '%s' and '%s'", op, tpl_type_name(a), tpl_type_name(b));
}

static tpl_value join_lists(tpl_run *run, tpl_value a, tpl_value b) {
    const tpl_list *left = a.u.list, *right = b.u.list;
    tpl_value joined = tpl_list_new(run, a.kind, left->n + right->n);
    if (run->failed) return joined;
    tpl_step(run, left->n + right->n);
    if (left->n > 0) memcpy(joined.u.list->items, left->items, left->n * sizeof(tpl_value));
    if (right->n > 0) memcpy(joined.u.list->items + left->n, right->items, right->n * sizeof(tpl_value));
    joined.u.list->n = left->n + right->n;
    return joined;
}

/* Plain text that joins markup is escaped, and the sum is markup. */
static tpl_value add_strings(tpl_run *run, const tpl_str *a, const tpl_str *b) {
    if (!a->is_markup && !b->is_markup) return tpl_concat(run, a, b);
    tpl_value left = tpl_markup(run, a, true), right = tpl_markup(run, b, true);
    return tpl_markup(run, tpl_concat(run, left.u.str, right.u.str).u.str, false);
}

static tpl_value repeat(tpl_run *run, tpl_value what, int64_t n) {
    tpl_value result = what.kind == TPL_STR ? tpl_string_at(run, "", 0) : tpl_list_new(run, what.kind, 0);
    for (int64_t i = 0; i < n && tpl_step(run, 1); i++) {
        if (!tpl_truth(what)) break;
        if (what.kind == TPL_STR) {
            result = tpl_concat(run, result.u.str, what.u.str);
            if (result.u.str->n_bytes > 64 * 1024 * 1024) tpl_fail(run, "a string grows over 64 MiB");
        } else {
            for (size_t k = 0; k < what.u.list->n && tpl_step(run, 1); k++) {
                tpl_list_push(run, result, what.u.list->items[k]);
            }
        }
    }
    return result;
}

static int64_t floor_div(int64_t a, int64_t b) { return a / b - ((a % b != 0) && ((a < 0) != (b < 0))); }

static bool int_power(int64_t base, int64_t exponent, int64_t *out) {
    *out = 1;
    for (; exponent > 0; exponent >>= 1) {
        if ((exponent & 1) && __builtin_mul_overflow(*out, base, out)) return false;
        if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) return false;
    }
    return true;
}

static tpl_value int_binary(tpl_run *run, int op, int64_t a, int64_t b) {
    int64_t result = 0;
    bool is_ok = true;
    if (b == 0 && (op == '/' || op == '%' || op == LEX_FLOOR_DIV)) return tpl_fail(run, "division by zero");
    if (b == -1 && op == '%') return tpl_int(0);
    switch (op) {
    case '+':
        is_ok = !__builtin_add_overflow(a, b, &result);
        break;
    case '-':
        is_ok = !__builtin_sub_overflow(a, b, &result);
        break;
    case '*':
        is_ok = !__builtin_mul_overflow(a, b, &result);
        break;
    case '/':
        return tpl_float((double)a / (double)b);
    case '%':
        result = a - b * floor_div(a, b);
        break;
    case LEX_FLOOR_DIV:
        is_ok = !(a == INT64_MIN && b == -1);
        if (is_ok) result = floor_div(a, b);
        break;
    default: /* LEX_POW */
        if (b < 0) return a == 0 ? tpl_fail(run, "zero to a negative power") : tpl_float(pow((double)a, (double)b));
        is_ok = int_power(a, b, &result);
    }
    return is_ok ? tpl_int(result) : tpl_fail(run, "an integer is beyond 64 bits");
}

static tpl_value float_binary(tpl_run *run, int op, double a, double b) {
    if (b == 0 && (op == '/' || op == '%' || op == LEX_FLOOR_DIV)) return tpl_fail(run, "float division by zero");
    switch (op) {
    case '+':
        return tpl_float(a + b);
    case '-':
        return tpl_float(a - b);
    case '*':
        return tpl_float(a * b);
    case '/':
        return tpl_float(a / b);
    case '%': {
        double rest = fmod(a, b);
        return tpl_float(rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest);
    }
    case LEX_FLOOR_DIV:
        return tpl_float(floor(a / b));
    default:
        return tpl_float(pow(a, b));
    }
}

static const char *op_name(int op) {
    switch (op) {
    case '+':
        return "+";
    case '-':
        return "-";
    case '*':
        return "*";
    case '/':
        return "/";
    case '%':
        return "%";
    case LEX_FLOOR_DIV:
        return "//";
    default:
        return "**";
    }
}

tpl_value tpl_binary(tpl_run *run, int op, tpl_value a, tpl_value b) {
    if (op == '~') return tpl_concat(run, tpl_to_str(run, a).u.str, tpl_to_str(run, b).u.str);
    if (op == '%' && a.kind == TPL_STR) return tpl_format_percent(run, a.u.str, b);
    if (tpl_is_integral(a) && tpl_is_integral(b)) return int_binary(run, op, tpl_to_int(a), tpl_to_int(b));
    if (tpl_is_number(a) && tpl_is_number(b)) return float_binary(run, op, tpl_to_float(a), tpl_to_float(b));
    if (op == '+') {
        if (a.kind == TPL_STR && b.kind == TPL_STR) return add_strings(run, a.u.str, b.u.str);
        if (a.kind == b.kind && tpl_is_sequence(a)) return join_lists(run, a, b);
        if (a.kind == TPL_STR && b.kind != TPL_UNDEFINED) {
            return tpl_fail(run, "can only concatenate str (not \"%s\") to str", tpl_type_name(b));
        }
    }
    if (op == '*') {
        if (tpl_is_integral(b) && (a.kind == TPL_STR || tpl_is_sequence(a))) return repeat(run, a, tpl_to_int(b));
        if (tpl_is_integral(a) && (b.kind == TPL_STR || tpl_is_sequence(b))) return repeat(run, b, tpl_to_int(a));
    }
    return bad_operands(run, op_name(op), a, b);
}

tpl_value tpl_add(tpl_run *run, tpl_value a, tpl_value b) { return tpl_binary(run, '+', a, b); }

bool tpl_contains(tpl_run *run, tpl_value container, tpl_value needle) {
    tpl_value ignored;
    switch (container.kind) {
    case TPL_STR:
        if (needle.kind == TPL_STR) {
            tpl_step(run, container.u.str->n_bytes / 64);
            return memmem(container.u.str->bytes, container.u.str->n_bytes, needle.u.str->bytes,
                          needle.u.str->n_bytes) != NULL;
        }
        if (needle.kind == TPL_UNDEFINED) tpl_fail_undefined(run, needle);
        tpl_fail(run, "'in <string>' requires string as left operand, not %s", tpl_type_name(needle));
        return false;
    case TPL_GENERATOR:
        container = tpl_items(run, container);
        /* fall through */
    case TPL_LIST:
    case TPL_TUPLE:
        for (size_t i = 0; i < container.u.list->n && tpl_step(run, 1); i++) {
            if (tpl_equal(run, container.u.list->items[i], needle)) return true;
        }
        return false;
    case TPL_DICT:
        return tpl_dict_get(run, container.u.dict, needle, &ignored);
    case TPL_UNDEFINED:
        return false;
    default:
        tpl_fail(run, "argument of type '%s' is not iterable", tpl_type_name(container));
        return false;
    }
}

bool tpl_compare(tpl_run *run, int op, tpl_value a, tpl_value b) {
    switch (op) {
    case LEX_EQ:
        return tpl_equal(run, a, b);
    case LEX_NE:
        return !tpl_equal(run, a, b);
    case '<':
        return tpl_order(run, a, b) < 0;
    case LEX_LE:
        return tpl_order(run, a, b) <= 0;
    case '>':
        return tpl_order(run, a, b) > 0;
    case LEX_GE:
        return tpl_order(run, a, b) >= 0;
    case OP_IN:
        return tpl_contains(run, b, a);
    default: /* OP_NOT_IN */
        return !tpl_contains(run, b, a);
    }
}
