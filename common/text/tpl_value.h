/* Values of the template language and the state of one rendering. Internal to the chat template (tpl_*.c).
 *
 * Everything lives in the run's arena and is dropped with it; strings of the template and of the variables are
 * borrowed. Values are immutable but for namespaces and generators, so they are shared freely.
 *
 * Errors stick: the first tpl_fail() sets run->failed, and from then on every function may return anything harmless.
 * Loops that do work look at run->failed. */
#ifndef BATON_COMMON_TEXT_TPL_VALUE_H
#define BATON_COMMON_TEXT_TPL_VALUE_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/core/alloc.h"
#include "common/core/buf.h"
#include "common/core/status.h"

typedef enum {
    TPL_MISSING, /* an argument that was not given; never a value of the language */
    TPL_UNDEFINED,
    TPL_NONE,
    TPL_BOOL,
    TPL_INT,
    TPL_FLOAT,
    TPL_STR,
    TPL_LIST,
    TPL_TUPLE,
    TPL_DICT,
    TPL_GENERATOR, /* what map, select, ... give: can be walked once, has no length, is always true */
    TPL_NAMESPACE,
    TPL_LOOP,
    TPL_MACRO,
    TPL_FUNCTION,
    TPL_METHOD,
} tpl_kind;

typedef struct tpl_str tpl_str;
typedef struct tpl_list tpl_list;
typedef struct tpl_dict tpl_dict;
typedef struct tpl_undefined tpl_undefined;
typedef struct tpl_loop tpl_loop;       /* tpl_exec.c */
typedef struct tpl_macro tpl_macro;     /* tpl_exec.c */
typedef struct tpl_method tpl_method;   /* tpl_eval.c */
typedef struct tpl_builtin tpl_builtin; /* tpl_builtin.h */
typedef struct tpl_scope tpl_scope;     /* tpl_exec.c */

typedef struct {
    tpl_kind kind;
    union {
        bool b;
        int64_t i;
        double f;
        const tpl_str *str;
        tpl_list *list;                 /* TPL_LIST, TPL_TUPLE, TPL_GENERATOR: what is left of it */
        tpl_dict *dict;                 /* TPL_DICT, TPL_NAMESPACE */
        const tpl_undefined *undefined; /* may be NULL */
        tpl_loop *loop;
        const tpl_macro *macro;
        const tpl_builtin *function;
        const tpl_method *method;
    } u;
} tpl_value;

/* Room that a string shares with the strings it grew from: x = x + y costs y. */
typedef struct {
    size_t n_bytes, cap_bytes;
    char bytes[];
} tpl_strbuf;

struct tpl_str {
    const char *bytes; /* valid UTF-8, may hold NUL, not terminated */
    size_t n_bytes, n_chars;
    bool is_markup;  /* went through safe or escape: what is joined to it is escaped */
    tpl_strbuf *buf; /* NULL: the bytes are somebody else's */
};

struct tpl_list {
    tpl_value *items;
    size_t n, cap;
};

typedef struct {
    tpl_value key, value;
} tpl_entry;

struct tpl_dict {
    tpl_entry *entries; /* in insertion order */
    size_t n, cap;
    uint32_t *index; /* [index_mask + 1] entry + 1 by hash; NULL while small */
    size_t index_mask;
};

struct tpl_undefined {
    const tpl_str *name;
    tpl_kind owner; /* TPL_MISSING: a variable */
};

typedef struct tpl_run {
    bt_arena arena;
    bt_buf *out; /* where output goes now */
    bt_error *err;
    bool failed;
    uint32_t line; /* of the statement or expression at work */
    uint32_t depth;
    uint64_t steps;
} tpl_run;

/* Sets the run's error: the sentence, led by the line. Returns undefined. */
tpl_value tpl_fail(tpl_run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));
void tpl_fail_undefined(tpl_run *run, tpl_value value); /* "'x' is undefined" */

/* Work done; false: too much. One step is a small operation or about 64 bytes touched. */
bool tpl_step(tpl_run *run, uint64_t n_steps);

/* Zeroed memory of the run. Small requests never fail (they may set run->failed); above 4 KiB NULL: over the limit. */
void *tpl_alloc(tpl_run *run, size_t n_bytes);

/* One more level of recursion; false: too deep. Pairs with tpl_leave(), which is called either way. */
bool tpl_enter(tpl_run *run);
void tpl_leave(tpl_run *run);

/* Making values. */
static inline tpl_value tpl_none(void) { return (tpl_value){.kind = TPL_NONE}; }
static inline tpl_value tpl_bool(bool b) { return (tpl_value){.kind = TPL_BOOL, .u.b = b}; }
static inline tpl_value tpl_int(int64_t i) { return (tpl_value){.kind = TPL_INT, .u.i = i}; }
static inline tpl_value tpl_float(double f) { return (tpl_value){.kind = TPL_FLOAT, .u.f = f}; }
tpl_value tpl_undefined_name(tpl_run *run, const tpl_str *name, tpl_kind owner);
tpl_value tpl_string(tpl_run *run, const char *bytes, size_t n_bytes);    /* copies; valid UTF-8 */
tpl_value tpl_string_at(tpl_run *run, const char *bytes, size_t n_bytes); /* borrows; valid UTF-8 */
tpl_value tpl_string_take(tpl_run *run, bt_buf *buf);                     /* copies and empties a buffer */
tpl_value tpl_concat(tpl_run *run, const tpl_str *left, const tpl_str *right);
tpl_value tpl_markup(tpl_run *run, const tpl_str *str, bool escapes); /* the string as markup, escaped first or not */
tpl_value tpl_list_new(tpl_run *run, tpl_kind kind, size_t cap);
void tpl_list_push(tpl_run *run, tpl_value list, tpl_value item);
tpl_value tpl_dict_new(tpl_run *run, tpl_kind kind);
void tpl_dict_set(tpl_run *run, tpl_value dict, tpl_value key, tpl_value value);
bool tpl_dict_get(tpl_run *run, const tpl_dict *dict, tpl_value key, tpl_value *value);
tpl_value tpl_from_json(tpl_run *run, const cJSON *item);

/* Asking values. */
bool tpl_truth(tpl_value value);
bool tpl_equal(tpl_run *run, tpl_value a, tpl_value b);
int tpl_order(tpl_run *run, tpl_value a, tpl_value b); /* -1, 0, 1; fails as Python's < does */
const char *tpl_type_name(tpl_value value);            /* Python's */
bool tpl_is(const tpl_str *str, const char *text);
static inline bool tpl_is_number(tpl_value v) { return v.kind == TPL_BOOL || v.kind == TPL_INT || v.kind == TPL_FLOAT; }
static inline bool tpl_is_integral(tpl_value v) { return v.kind == TPL_BOOL || v.kind == TPL_INT; }
static inline int64_t tpl_to_int(tpl_value v) { return v.kind == TPL_BOOL ? v.u.b : v.u.i; }
static inline double tpl_to_float(tpl_value v) { return v.kind == TPL_FLOAT ? v.u.f : (double)tpl_to_int(v); }
static inline bool tpl_is_sequence(tpl_value v) { return v.kind == TPL_LIST || v.kind == TPL_TUPLE; }

/* A list of what iteration over the value gives: items, keys of a dict, characters; a generator is then empty. Fails
 * for what is not iterable. */
tpl_value tpl_items(tpl_run *run, tpl_value value);

/* Writing values (tpl_print.c). */
void tpl_put_str(tpl_run *run, tpl_value value, bt_buf *out);  /* Python's str(); undefined is nothing */
void tpl_put_repr(tpl_run *run, tpl_value value, bt_buf *out); /* Python's repr() */
void tpl_put_float(double value, bt_buf *out);                 /* Python's repr of a float */
tpl_value tpl_to_str(tpl_run *run, tpl_value value);           /* str() as a value */
bool tpl_check_output(tpl_run *run, const bt_buf *out);        /* fails if that is too long */

typedef struct {
    int indent; /* -1: one line */
    bool is_ascii, sorts_keys;
    const tpl_str *item_separator, *key_separator; /* NULL: json.dumps' defaults */
} tpl_json_style;
void tpl_put_json(tpl_run *run, tpl_value value, const tpl_json_style *style, bt_buf *out); /* json.dumps() */

/* Whether Python's str.isspace() holds for the character. */
bool tpl_is_space(uint32_t code_point);

#endif
