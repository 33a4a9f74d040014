/* Owns the tests ("x is mapping") and the functions every template has (range, namespace, raise_exception, ...). */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/text/tpl_ast.h"
#include "common/text/tpl_builtin.h"

/* One test as a function of its value. */
#define TEST(name, condition)                                                                                          \
    static tpl_value t_##name(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {                \
        (void)run, (void)self, (void)a, (void)args;                                                                    \
        return tpl_bool(condition);                                                                                    \
    }

TEST(defined, self.kind != TPL_UNDEFINED)
TEST(undefined, self.kind == TPL_UNDEFINED)
TEST(none, self.kind == TPL_NONE)
TEST(true, self.kind == TPL_BOOL && self.u.b)
TEST(false, self.kind == TPL_BOOL && !self.u.b)
TEST(boolean, self.kind == TPL_BOOL)
TEST(integer, self.kind == TPL_INT)
TEST(float, self.kind == TPL_FLOAT)
TEST(number, tpl_is_number(self))
TEST(string, self.kind == TPL_STR)
TEST(mapping, self.kind == TPL_DICT)
TEST(sequence, self.kind == TPL_STR || tpl_is_sequence(self) || self.kind == TPL_DICT || self.kind == TPL_UNDEFINED)
TEST(iterable, self.kind == TPL_STR || self.kind == TPL_GENERATOR || tpl_is_sequence(self) || self.kind == TPL_DICT ||
                   self.kind == TPL_UNDEFINED)
TEST(callable,
     self.kind == TPL_MACRO || self.kind == TPL_FUNCTION || self.kind == TPL_METHOD || self.kind == TPL_UNDEFINED)
TEST(escaped, self.kind == TPL_STR && self.u.str->is_markup)
TEST(eq, tpl_compare(run, LEX_EQ, self, a[0]))
TEST(ne, tpl_compare(run, LEX_NE, self, a[0]))
TEST(lt, tpl_compare(run, '<', self, a[0]))
TEST(le, tpl_compare(run, LEX_LE, self, a[0]))
TEST(gt, tpl_compare(run, '>', self, a[0]))
TEST(ge, tpl_compare(run, LEX_GE, self, a[0]))
TEST(in, tpl_contains(run, a[0], self))
TEST(filter, self.kind == TPL_STR && tpl_find_filter(self.u.str) != NULL)
TEST(test, self.kind == TPL_STR && tpl_find_test(self.u.str) != NULL)

/* The remainder by a whole number; -1 with an error for what has none. */
static int64_t remainder_of(tpl_run *run, tpl_value value, int64_t by) {
    tpl_value rest = tpl_binary(run, '%', value, tpl_int(by));
    return !run->failed && tpl_is_number(rest) ? (int64_t)tpl_to_float(rest) : -1;
}

TEST(odd, remainder_of(run, self, 2) == 1)
TEST(even, remainder_of(run, self, 2) == 0)
TEST(divisibleby, remainder_of(run, self, tpl_arg_int(run, a[0], 0)) == 0)

static bool is_same(tpl_value a, tpl_value b) {
    if (a.kind != b.kind) return false;
    if (a.kind == TPL_BOOL) return a.u.b == b.u.b;
    if (a.kind == TPL_STR)
        return a.u.str->n_bytes == b.u.str->n_bytes && memcmp(a.u.str->bytes, b.u.str->bytes, a.u.str->n_bytes) == 0;
    return a.kind == TPL_NONE || a.u.i == b.u.i; /* small integers and constants are one object in Python too */
}

TEST(sameas, is_same(self, a[0]))

static tpl_value is_case(tpl_run *run, tpl_value self, const char *method) {
    tpl_value str = tpl_to_str(run, self);
    tpl_str name = {.bytes = method, .n_bytes = strlen(method)};
    return tpl_call_builtin(run, tpl_find_method(TPL_STR, &name), str, &(tpl_args){0});
}

TEST(lower, tpl_truth(is_case(run, self, "islower")))
TEST(upper, tpl_truth(is_case(run, self, "isupper")))

const tpl_builtin tpl_tests[] = {
    {"defined", "", 0, t_defined},
    {"undefined", "", 0, t_undefined},
    {"none", "", 0, t_none},
    {"true", "", 0, t_true},
    {"false", "", 0, t_false},
    {"boolean", "", 0, t_boolean},
    {"integer", "", 0, t_integer},
    {"float", "", 0, t_float},
    {"number", "", 0, t_number},
    {"string", "", 0, t_string},
    {"mapping", "", 0, t_mapping},
    {"sequence", "", 0, t_sequence},
    {"iterable", "", 0, t_iterable},
    {"callable", "", 0, t_callable},
    {"escaped", "", 0, t_escaped},
    {"eq", "other", 1, t_eq},
    {"equalto", "other", 1, t_eq},
    {"==", "other", 1, t_eq},
    {"ne", "other", 1, t_ne},
    {"!=", "other", 1, t_ne},
    {"lt", "other", 1, t_lt},
    {"lessthan", "other", 1, t_lt},
    {"<", "other", 1, t_lt},
    {"le", "other", 1, t_le},
    {"<=", "other", 1, t_le},
    {"gt", "other", 1, t_gt},
    {"greaterthan", "other", 1, t_gt},
    {">", "other", 1, t_gt},
    {"ge", "other", 1, t_ge},
    {">=", "other", 1, t_ge},
    {"in", "seq", 1, t_in},
    {"odd", "", 0, t_odd},
    {"even", "", 0, t_even},
    {"divisibleby", "num", 1, t_divisibleby},
    {"sameas", "other", 1, t_sameas},
    {"lower", "", 0, t_lower},
    {"upper", "", 0, t_upper},
    {"filter", "", 0, t_filter},
    {"test", "", 0, t_test},
    {NULL, NULL, 0, NULL},
};

/* Functions. */

static tpl_value g_range(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)self, (void)args;
    enum { MAX_RANGE = 100000 }; /* jinja2.sandbox */
    bool has_stop = a[1].kind != TPL_MISSING;
    int64_t start = has_stop ? tpl_arg_int(run, a[0], 0) : 0, stop = tpl_arg_int(run, has_stop ? a[1] : a[0], 0);
    int64_t step = tpl_arg_int(run, a[2], 1);
    if (step == 0) return tpl_fail(run, "range() arg 3 must not be zero");
    tpl_value list = tpl_list_new(run, TPL_LIST, 0);
    for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
        if (list.u.list->n == MAX_RANGE) return tpl_fail(run, "a range is longer than %d", (int)MAX_RANGE);
        if (!tpl_step(run, 1)) break;
        tpl_list_push(run, list, tpl_int(i));
        if (__builtin_add_overflow(i, step, &i)) break;
    }
    return list;
}

/* A dict of a dict or pairs, and the named arguments. */
static tpl_value make_dict(tpl_run *run, tpl_kind kind, const tpl_args *args) {
    tpl_value dict = tpl_dict_new(run, kind);
    if (args->n > 1) return tpl_fail(run, "expected at most 1 argument, got %zu", args->n);
    if (args->n == 1 && args->items[0].kind == TPL_DICT) {
        const tpl_dict *from = args->items[0].u.dict;
        for (size_t i = 0; i < from->n && tpl_step(run, 1); i++) {
            tpl_dict_set(run, dict, from->entries[i].key, from->entries[i].value);
        }
    } else if (args->n == 1) {
        tpl_value pairs = tpl_items(run, args->items[0]);
        for (size_t i = 0; i < pairs.u.list->n && tpl_step(run, 1); i++) {
            tpl_value pair = tpl_items(run, pairs.u.list->items[i]);
            if (run->failed || pair.u.list->n != 2) return tpl_fail(run, "a dict is made of pairs");
            tpl_dict_set(run, dict, pair.u.list->items[0], pair.u.list->items[1]);
        }
    }
    for (size_t i = 0; i < args->n_named; i++) {
        tpl_dict_set(run, dict, (tpl_value){.kind = TPL_STR, .u.str = args->names[i]}, args->named[i]);
    }
    return dict;
}

static tpl_value g_dict(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)self, (void)a;
    return make_dict(run, TPL_DICT, args);
}

static tpl_value g_namespace(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)self, (void)a;
    return make_dict(run, TPL_NAMESPACE, args);
}

/* The message alone: it is meant for whoever sent the messages. */
static tpl_value g_raise_exception(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)self, (void)args;
    if (run->failed) return tpl_none();
    const tpl_str *message = tpl_to_str(run, a[0]).u.str;
    char text[400];
    size_t n_bytes = message->n_bytes < sizeof(text) - 1 ? message->n_bytes : sizeof(text) - 1;
    while (n_bytes < message->n_bytes && n_bytes > 0 && ((uint8_t)message->bytes[n_bytes] & 0xc0) == 0x80) n_bytes--;
    for (size_t i = 0; i < n_bytes; i++) text[i] = (uint8_t)message->bytes[i] < 0x20 ? ' ' : message->bytes[i];
    text[n_bytes] = 0;
    if (!run->failed) bt_fail(run->err, BT_BAD_REQUEST, "%s", text);
    run->failed = true;
    return tpl_none();
}

static tpl_value g_strftime_now(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)self, (void)args;
    const tpl_str *format = tpl_arg_str(run, a[0]);
    char pattern[128], text[256];
    if (run->failed || format->n_bytes >= sizeof(pattern)) return tpl_fail(run, "a date format is too long");
    memcpy(pattern, format->bytes, format->n_bytes);
    pattern[format->n_bytes] = 0;
    time_t now = time(NULL);
    struct tm local;
    localtime_r(&now, &local);
    return tpl_string(run, text, strftime(text, sizeof(text), pattern, &local));
}

const tpl_builtin tpl_globals[] = {
    {"range", "start,stop,step", 1, g_range},
    {"dict", "*", 0, g_dict},
    {"namespace", "*", 0, g_namespace},
    {"raise_exception", "message", 1, g_raise_exception},
    {"strftime_now", "format", 1, g_strftime_now},
    {NULL, NULL, 0, NULL},
};
