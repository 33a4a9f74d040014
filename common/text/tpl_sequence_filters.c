/* Owns the filters on lists, dicts and whatever can be iterated: jinja2/filters.py. Where Jinja2 makes a generator the
 * items are computed at once, but the value is a generator all the same: always true, walked once, without length. */
#include <stdlib.h>
#include <string.h>

#include "common/text/tpl_builtin.h"

#define FILTER(name) static tpl_value f_##name(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args)
#define UNUSED       (void)run, (void)self, (void)a, (void)args

static const tpl_value missing = {.kind = TPL_MISSING};

/* "a.b.0" applied to a value, as map(attribute=...) reads it: each part is an item if a number, else a[part]. */
static tpl_value get_path(tpl_run *run, tpl_value value, tpl_value path, tpl_value fallback) {
    if (path.kind == TPL_MISSING || path.kind == TPL_NONE) return value;
    if (path.kind != TPL_STR) return tpl_item(run, value, path);
    const char *p = path.u.str->bytes, *end = p + path.u.str->n_bytes;
    while (p <= end && !run->failed) {
        const char *dot = memchr(p, '.', (size_t)(end - p));
        size_t n_bytes = (size_t)((dot != NULL ? dot : end) - p);
        bool is_index = n_bytes > 0 && n_bytes < 10;
        for (size_t i = 0; i < n_bytes; i++) is_index &= p[i] >= '0' && p[i] <= '9';
        value = tpl_item(run, value, is_index ? tpl_int(strtol(p, NULL, 10)) : tpl_string(run, p, n_bytes));
        if (value.kind == TPL_UNDEFINED && fallback.kind != TPL_MISSING) value = fallback;
        p += n_bytes + 1;
    }
    return value;
}

/* Strings are compared without case unless that is asked for. */
static tpl_value sort_key(tpl_run *run, tpl_value value, bool is_cased) {
    return value.kind == TPL_STR && !is_cased ? tpl_change_case(run, value.u.str, TPL_LOWER) : value;
}

static void merge_sort(tpl_run *run, tpl_value *keys, tpl_value *items, tpl_value *spare, size_t n, bool is_reverse) {
    if (n < 2 || !tpl_step(run, n)) return;
    size_t half = n / 2;
    merge_sort(run, keys, items, spare, half, is_reverse);
    merge_sort(run, keys + half, items + half, spare, n - half, is_reverse);
    size_t i = 0, k = half, at = 0;
    while (i < half || k < n) {
        bool takes_left = k == n;
        if (i < half && k < n) {
            int order = tpl_order(run, keys[k], keys[i]); /* asks what Python asks: is the right one less? */
            takes_left = is_reverse ? order <= 0 : order >= 0;
        }
        size_t from = takes_left ? i++ : k++;
        spare[2 * at] = keys[from];
        spare[2 * at + 1] = items[from];
        at++;
    }
    for (size_t m = 0; m < n; m++) {
        keys[m] = spare[2 * m];
        items[m] = spare[2 * m + 1];
    }
}

void tpl_sort(tpl_run *run, tpl_value *keys, tpl_value *items, size_t n, bool is_reverse) {
    tpl_value *spare = tpl_alloc(run, 2 * n * sizeof(*spare));
    if (spare != NULL && !run->failed) merge_sort(run, keys, items, spare, n, is_reverse);
}

static tpl_value copy_items(tpl_run *run, tpl_value value) {
    tpl_value items = tpl_items(run, value), copy = tpl_list_new(run, TPL_LIST, 0);
    for (size_t i = 0; i < items.u.list->n && tpl_step(run, 1); i++) tpl_list_push(run, copy, items.u.list->items[i]);
    return copy;
}

/* The items sorted by a path of theirs. */
static tpl_value sorted(tpl_run *run, tpl_value self, tpl_value path, bool is_cased, bool is_reverse) {
    tpl_value items = copy_items(run, self), keys = tpl_list_new(run, TPL_LIST, 0);
    for (size_t i = 0; i < items.u.list->n && tpl_step(run, 1); i++) {
        tpl_list_push(run, keys, sort_key(run, get_path(run, items.u.list->items[i], path, missing), is_cased));
    }
    if (!run->failed) tpl_sort(run, keys.u.list->items, items.u.list->items, items.u.list->n, is_reverse);
    return items;
}

/* The result list of a filter that is a generator in Jinja2. */
static tpl_value as_generator(tpl_value list) {
    list.kind = TPL_GENERATOR;
    return list;
}

/* map, select and their like take what is not true for empty, None too. */
static tpl_value items_if_true(tpl_run *run, tpl_value value) {
    return tpl_truth(value) ? tpl_items(run, value) : tpl_list_new(run, TPL_LIST, 0);
}

FILTER(length) {
    UNUSED;
    switch (self.kind) {
    case TPL_STR:
        return tpl_int((int64_t)self.u.str->n_chars);
    case TPL_LIST:
    case TPL_TUPLE:
        return tpl_int((int64_t)self.u.list->n);
    case TPL_DICT:
        return tpl_int((int64_t)self.u.dict->n);
    case TPL_UNDEFINED:
        return tpl_int(0);
    default:
        return tpl_fail(run, "object of type '%s' has no len()", tpl_type_name(self));
    }
}

FILTER(default) {
    UNUSED;
    bool is_replaced = self.kind == TPL_UNDEFINED || (tpl_truth(a[1]) && !tpl_truth(self));
    if (!is_replaced) return self;
    return a[0].kind == TPL_MISSING ? tpl_string_at(run, "", 0) : a[0];
}

FILTER(first) {
    UNUSED;
    if (self.kind == TPL_GENERATOR && self.u.list->n > 0) { /* takes only that one out */
        tpl_value first = *self.u.list->items++;
        self.u.list->n--;
        self.u.list->cap--;
        return first;
    }
    tpl_value items = tpl_items(run, self);
    return items.u.list->n > 0 ? items.u.list->items[0] : (tpl_value){.kind = TPL_UNDEFINED};
}

FILTER(last) {
    UNUSED;
    if (self.kind == TPL_GENERATOR) return tpl_fail(run, "'generator' object is not reversible");
    tpl_value items = tpl_items(run, self);
    return items.u.list->n > 0 ? items.u.list->items[items.u.list->n - 1] : (tpl_value){.kind = TPL_UNDEFINED};
}

FILTER(list) {
    UNUSED;
    return copy_items(run, self);
}

FILTER(reverse) {
    UNUSED;
    tpl_value items = tpl_items(run, self), turned = tpl_list_new(run, TPL_LIST, 0);
    for (size_t i = items.u.list->n; i-- > 0 && tpl_step(run, 1);) tpl_list_push(run, turned, items.u.list->items[i]);
    if (self.kind != TPL_STR) return as_generator(turned);
    bt_buf text = {0};
    for (size_t i = 0; i < turned.u.list->n; i++) tpl_put_str(run, turned.u.list->items[i], &text);
    return tpl_string_take(run, &text);
}

FILTER(join) {
    UNUSED;
    tpl_value items = tpl_items(run, self);
    bt_buf out = {0};
    for (size_t i = 0; i < items.u.list->n && tpl_step(run, 1); i++) {
        if (i > 0 && a[0].kind != TPL_MISSING) tpl_put_str(run, a[0], &out);
        tpl_put_str(run, get_path(run, items.u.list->items[i], a[1], missing), &out);
    }
    return tpl_string_take(run, &out);
}

FILTER(items) {
    UNUSED;
    if (self.kind == TPL_UNDEFINED) return as_generator(tpl_list_new(run, TPL_LIST, 0));
    if (self.kind != TPL_DICT) return tpl_fail(run, "can only get item pairs from a mapping");
    return as_generator(tpl_dict_items(run, self));
}

FILTER(dictsort) {
    UNUSED;
    if (self.kind != TPL_DICT) return tpl_fail(run, "dictsort needs a mapping, not a %s", tpl_type_name(self));
    bool by_value = a[1].kind == TPL_STR && tpl_is(a[1].u.str, "value");
    return sorted(run, tpl_dict_items(run, self), tpl_int(by_value), tpl_truth(a[0]), tpl_truth(a[2]));
}

/* By several attributes, "a,b", the last one first: the sort is stable. */
FILTER(sort) {
    UNUSED;
    bool is_reverse = tpl_truth(a[0]), is_cased = tpl_truth(a[1]);
    if (a[2].kind != TPL_STR || memchr(a[2].u.str->bytes, ',', a[2].u.str->n_bytes) == NULL) {
        return sorted(run, self, a[2], is_cased, is_reverse);
    }
    const tpl_str *paths = a[2].u.str;
    tpl_value result = self;
    for (size_t end = paths->n_bytes; !run->failed;) {
        const char *comma = memrchr(paths->bytes, ',', end);
        size_t begin = comma != NULL ? (size_t)(comma - paths->bytes) + 1 : 0;
        tpl_value path = tpl_strip(run, tpl_string(run, paths->bytes + begin, end - begin).u.str, missing, 3);
        result = sorted(run, result, path, is_cased, is_reverse);
        if (comma == NULL) break;
        end = begin - 1;
    }
    return result;
}

FILTER(unique) {
    UNUSED;
    tpl_value items = tpl_items(run, self), seen = tpl_dict_new(run, TPL_DICT), result = tpl_list_new(run, TPL_LIST, 0);
    for (size_t i = 0; i < items.u.list->n && tpl_step(run, 1); i++) {
        tpl_value key = sort_key(run, get_path(run, items.u.list->items[i], a[1], missing), tpl_truth(a[0])), ignored;
        if (tpl_dict_get(run, seen.u.dict, key, &ignored)) continue;
        tpl_dict_set(run, seen, key, tpl_none());
        tpl_list_push(run, result, items.u.list->items[i]);
    }
    return as_generator(result);
}

static tpl_value extreme(tpl_run *run, tpl_value self, const tpl_value *a, int sign) {
    tpl_value items = tpl_items(run, self), best = {.kind = TPL_UNDEFINED}, best_key = best;
    for (size_t i = 0; i < items.u.list->n && tpl_step(run, 1); i++) {
        tpl_value key = sort_key(run, get_path(run, items.u.list->items[i], a[1], missing), tpl_truth(a[0]));
        if (i > 0 && tpl_order(run, key, best_key) * sign <= 0) continue;
        best = items.u.list->items[i];
        best_key = key;
    }
    return best;
}

FILTER(min) {
    UNUSED;
    return extreme(run, self, a, -1);
}

FILTER(max) {
    UNUSED;
    return extreme(run, self, a, 1);
}

FILTER(sum) {
    UNUSED;
    tpl_value items = tpl_items(run, self), total = a[1].kind == TPL_MISSING ? tpl_int(0) : a[1];
    for (size_t i = 0; i < items.u.list->n && tpl_step(run, 1); i++) {
        total = tpl_add(run, total, get_path(run, items.u.list->items[i], a[0], missing));
    }
    return total;
}

FILTER(batch) {
    UNUSED;
    tpl_value items = tpl_items(run, self), result = tpl_list_new(run, TPL_LIST, 0), row = missing;
    int64_t n = tpl_arg_int(run, a[0], 0);
    if (n < 1 || run->failed) return tpl_fail(run, "batch() needs a positive size");
    for (size_t i = 0; i < items.u.list->n && tpl_step(run, 1); i++) {
        if (row.kind == TPL_MISSING || (int64_t)row.u.list->n == n) {
            row = tpl_list_new(run, TPL_LIST, 0);
            tpl_list_push(run, result, row);
        }
        tpl_list_push(run, row, items.u.list->items[i]);
    }
    bool is_filled = a[1].kind != TPL_MISSING && a[1].kind != TPL_NONE && row.kind != TPL_MISSING;
    while (is_filled && (int64_t)row.u.list->n < n && tpl_step(run, 1)) tpl_list_push(run, row, a[1]);
    return as_generator(result);
}

FILTER(slice) {
    UNUSED;
    tpl_value items = tpl_items(run, self), result = tpl_list_new(run, TPL_LIST, 0);
    int64_t n = tpl_arg_int(run, a[0], 0), length = (int64_t)items.u.list->n;
    if (n < 1 || n > 100000 || run->failed) return tpl_fail(run, "slice() needs a positive number of slices");
    for (int64_t i = 0, at = 0; i < n && tpl_step(run, 1); i++) {
        tpl_value row = tpl_list_new(run, TPL_LIST, 0);
        int64_t n_row = length / n + (i < length % n);
        for (int64_t k = 0; k < n_row && tpl_step(run, 1); k++) tpl_list_push(run, row, items.u.list->items[at++]);
        if (a[1].kind != TPL_MISSING && a[1].kind != TPL_NONE && i >= length % n) tpl_list_push(run, row, a[1]);
        tpl_list_push(run, result, row);
    }
    return as_generator(result);
}

FILTER(groupby) {
    UNUSED;
    tpl_value items = sorted(run, self, a[0], tpl_truth(a[2]), false), result = tpl_list_new(run, TPL_LIST, 0);
    tpl_value group = missing, last = missing;
    for (size_t i = 0; i < items.u.list->n && tpl_step(run, 1); i++) {
        tpl_value value = get_path(run, items.u.list->items[i], a[0], a[1]);
        tpl_value key = sort_key(run, value, tpl_truth(a[2]));
        if (group.kind == TPL_MISSING || !tpl_equal(run, key, last)) {
            tpl_value pair = tpl_list_new(run, TPL_TUPLE, 2);
            group = tpl_list_new(run, TPL_LIST, 0);
            tpl_list_push(run, pair, value);
            tpl_list_push(run, pair, group);
            tpl_list_push(run, result, pair);
            last = key;
        }
        tpl_list_push(run, group, items.u.list->items[i]);
    }
    return result;
}

FILTER(attr) {
    UNUSED;
    return tpl_attribute(run, self, tpl_arg_str(run, a[0]));
}

static const tpl_value *find_named(const tpl_args *args, const char *name) {
    for (size_t i = 0; i < args->n_named; i++) {
        if (tpl_is(args->names[i], name)) return &args->named[i];
    }
    return NULL;
}

/* map('filter', args...) or map(attribute='a.b', default=x). */
FILTER(map) {
    UNUSED;
    const tpl_value *path = find_named(args, "attribute"), *fallback = find_named(args, "default");
    const tpl_builtin *filter = NULL;
    tpl_args rest = *args;
    if (path == NULL) {
        if (args->n == 0) return tpl_fail(run, "map requires a filter argument");
        const tpl_str *name = tpl_arg_str(run, args->items[0]);
        filter = tpl_find_filter(name);
        if (filter == NULL) return tpl_fail(run, "there is no filter named '%.*s'", (int)name->n_bytes, name->bytes);
        rest.items++;
        rest.n--;
    }
    tpl_value items = items_if_true(run, self), result = tpl_list_new(run, TPL_LIST, 0);
    for (size_t i = 0; i < items.u.list->n && tpl_step(run, 1); i++) {
        tpl_value item = items.u.list->items[i];
        if (filter != NULL && tpl_enter(run)) item = tpl_call_builtin(run, filter, item, &rest);
        if (filter != NULL) tpl_leave(run);
        if (path != NULL) item = get_path(run, item, *path, fallback != NULL ? *fallback : missing);
        tpl_list_push(run, result, item);
    }
    return as_generator(result);
}

/* select, reject (the item) and selectattr, rejectattr (a path of it): by a test, or by truth without one. */
static tpl_value choose(tpl_run *run, tpl_value self, const tpl_args *args, bool by_path, bool keeps) {
    tpl_args rest = *args;
    tpl_value path = missing;
    if (by_path) {
        if (rest.n == 0) return tpl_fail(run, "selectattr and rejectattr require an attribute");
        path = *rest.items++;
        rest.n--;
    }
    const tpl_builtin *test = NULL;
    if (rest.n > 0) {
        const tpl_str *name = tpl_arg_str(run, rest.items[0]);
        test = tpl_find_test(name);
        if (test == NULL) return tpl_fail(run, "there is no test named '%.*s'", (int)name->n_bytes, name->bytes);
        rest.items++;
        rest.n--;
    }
    tpl_value items = items_if_true(run, self), result = tpl_list_new(run, TPL_LIST, 0);
    for (size_t i = 0; i < items.u.list->n && tpl_step(run, 1); i++) {
        tpl_value value = get_path(run, items.u.list->items[i], path, missing);
        if (test != NULL && !run->failed) value = tpl_call_builtin(run, test, value, &rest);
        if (tpl_truth(value) == keeps) tpl_list_push(run, result, items.u.list->items[i]);
    }
    return as_generator(result);
}

FILTER(select) {
    UNUSED;
    return choose(run, self, args, false, true);
}

FILTER(reject) {
    UNUSED;
    return choose(run, self, args, false, false);
}

FILTER(selectattr) {
    UNUSED;
    return choose(run, self, args, true, true);
}

FILTER(rejectattr) {
    UNUSED;
    return choose(run, self, args, true, false);
}

const tpl_builtin tpl_sequence_filters[] = {
    {"length", "", 0, f_length},
    {"count", "", 0, f_length},
    {"default", "default_value,boolean", 0, f_default},
    {"d", "default_value,boolean", 0, f_default},
    {"first", "", 0, f_first},
    {"last", "", 0, f_last},
    {"list", "", 0, f_list},
    {"reverse", "", 0, f_reverse},
    {"join", "d,attribute", 0, f_join},
    {"items", "", 0, f_items},
    {"dictsort", "case_sensitive,by,reverse", 0, f_dictsort},
    {"sort", "reverse,case_sensitive,attribute", 0, f_sort},
    {"unique", "case_sensitive,attribute", 0, f_unique},
    {"min", "case_sensitive,attribute", 0, f_min},
    {"max", "case_sensitive,attribute", 0, f_max},
    {"sum", "attribute,start", 0, f_sum},
    {"batch", "linecount,fill_with", 1, f_batch},
    {"slice", "slices,fill_with", 1, f_slice},
    {"groupby", "attribute,default,case_sensitive", 1, f_groupby},
    {"attr", "name", 1, f_attr},
    {"map", "*", 0, f_map},
    {"select", "*", 0, f_select},
    {"reject", "*", 0, f_reject},
    {"selectattr", "*", 0, f_selectattr},
    {"rejectattr", "*", 0, f_rejectattr},
    {NULL, NULL, 0, NULL},
};
