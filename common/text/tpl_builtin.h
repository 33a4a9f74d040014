/* Filters, tests, functions and methods of the template language, and how they are called. Internal to the chat
 * template. Each follows jinja2/filters.py, tests.py, or Python's method of that name. */
#ifndef BATON_COMMON_TEXT_TPL_BUILTIN_H
#define BATON_COMMON_TEXT_TPL_BUILTIN_H

#include "common/text/tpl_value.h"

enum { TPL_MAX_PARAMS = 6 };

/* The arguments of a call, evaluated. */
typedef struct {
    const tpl_value *items; /* positional */
    size_t n;
    const tpl_str *const *names; /* of the keyword arguments */
    const tpl_value *named;
    size_t n_named;
} tpl_args;

/* `self`: what stands before the | or the dot (missing for functions). `a`: the arguments by parameter, TPL_MISSING
 * where not given. `args`: as they came, for those that take any. */
typedef tpl_value (*tpl_function)(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args);

struct tpl_builtin {
    const char *name;
    const char *params;  /* "old,new,count": at most TPL_MAX_PARAMS; "*": any arguments, only in args */
    unsigned n_required; /* of the parameters */
    tpl_function call;
};

/* NULL: there is none of that name. */
const tpl_builtin *tpl_find_filter(const tpl_str *name);
const tpl_builtin *tpl_find_test(const tpl_str *name);
const tpl_builtin *tpl_find_global(const tpl_str *name);
const tpl_builtin *tpl_find_method(tpl_kind kind, const tpl_str *name);

/* The tables behind them, one per file; each ends with a NULL name. */
extern const tpl_builtin tpl_sequence_filters[], tpl_text_filters[], tpl_tests[], tpl_globals[];
extern const tpl_builtin tpl_string_methods[], tpl_list_methods[], tpl_dict_methods[];

/* Calls one of them: puts the arguments in order and checks their number and names. */
tpl_value tpl_call_builtin(tpl_run *run, const tpl_builtin *builtin, tpl_value self, const tpl_args *args);

/* Calls what a template may call: functions, methods, macros, loop.cycle. */
tpl_value tpl_call(tpl_run *run, tpl_value callee, const tpl_args *args);
tpl_value tpl_call_macro(tpl_run *run, const tpl_macro *macro, const tpl_args *args, tpl_value caller);
tpl_value tpl_loop_attribute(tpl_run *run, tpl_loop *loop, const tpl_str *name);
tpl_value tpl_loop_call(tpl_run *run, tpl_loop *loop, const tpl_str *method, const tpl_args *args);

/* obj.name and obj[key], and the operators. */
tpl_value tpl_attribute(tpl_run *run, tpl_value object, const tpl_str *name);
tpl_value tpl_item(tpl_run *run, tpl_value object, tpl_value key);
bool tpl_contains(tpl_run *run, tpl_value container, tpl_value needle);
tpl_value tpl_add(tpl_run *run, tpl_value a, tpl_value b);
tpl_value tpl_binary(tpl_run *run, int op, tpl_value a, tpl_value b);
bool tpl_compare(tpl_run *run, int op, tpl_value a, tpl_value b);

/* "%s and %d" % values, and "{} and {name}".format(args) (tpl_format.c). */
tpl_value tpl_format_percent(tpl_run *run, const tpl_str *format, tpl_value values);
tpl_value tpl_format_braces(tpl_run *run, const tpl_str *format, const tpl_args *args);

/* Arguments as C values; the fallback if missing, an error if of another type. */
int64_t tpl_arg_int(tpl_run *run, tpl_value arg, int64_t fallback);
const tpl_str *tpl_arg_str(tpl_run *run, tpl_value arg);

/* Stable sort in place by tpl_order() of the keys, with the items beside them. */
void tpl_sort(tpl_run *run, tpl_value *keys, tpl_value *items, size_t n, bool is_reverse);

/* The string with every character changed; words: the rest of a word is lowered. */
typedef enum { TPL_UPPER, TPL_LOWER, TPL_CAPITALIZE, TPL_TITLE, TPL_SWAPCASE } tpl_case;
tpl_value tpl_change_case(tpl_run *run, const tpl_str *str, tpl_case to);

/* The part of a string: byte offsets at characters' borders. */
tpl_value tpl_substring(tpl_run *run, const tpl_str *str, size_t begin, size_t end);

/* Without white space, or characters of `chars`, at the ends: bit 0 left, bit 1 right. */
tpl_value tpl_strip(tpl_run *run, const tpl_str *str, tpl_value chars, unsigned ends);

/* dict.items(): a list of pairs. */
tpl_value tpl_dict_items(tpl_run *run, tpl_value dict);

/* str.replace(); count < 0: all. */
tpl_value tpl_replace(tpl_run *run, const tpl_str *str, const tpl_str *old, const tpl_str *new, int64_t count);

#endif
