/* Owns the methods of lists, tuples and dicts. The sandbox forbids those that change one, so there are none. */
#include "common/text/tpl_builtin.h"

static tpl_value l_index(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    for (size_t i = 0; i < self.u.list->n && tpl_step(run, 1); i++) {
        if (tpl_equal(run, self.u.list->items[i], a[0])) return tpl_int((int64_t)i);
    }
    return tpl_fail(run, "the value is not in the list");
}

static tpl_value l_count(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    int64_t n = 0;
    for (size_t i = 0; i < self.u.list->n && tpl_step(run, 1); i++) n += tpl_equal(run, self.u.list->items[i], a[0]);
    return tpl_int(n);
}

static tpl_value same(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)run, (void)a, (void)args;
    return self; /* values do not change: a copy is the value */
}

const tpl_builtin tpl_list_methods[] = {
    {"index", "value", 1, l_index},
    {"count", "value", 1, l_count},
    {"copy", "", 0, same},
    {NULL, NULL, 0, NULL},
};

static tpl_value d_keys(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)a, (void)args;
    return tpl_items(run, self);
}

static tpl_value d_values(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)a, (void)args;
    tpl_value list = tpl_list_new(run, TPL_LIST, self.u.dict->n);
    for (size_t i = 0; i < self.u.dict->n && tpl_step(run, 1); i++) {
        tpl_list_push(run, list, self.u.dict->entries[i].value);
    }
    return list;
}

tpl_value tpl_dict_items(tpl_run *run, tpl_value self) {
    tpl_value list = tpl_list_new(run, TPL_LIST, self.u.dict->n);
    for (size_t i = 0; i < self.u.dict->n && tpl_step(run, 1); i++) {
        tpl_value pair = tpl_list_new(run, TPL_TUPLE, 2);
        tpl_list_push(run, pair, self.u.dict->entries[i].key);
        tpl_list_push(run, pair, self.u.dict->entries[i].value);
        tpl_list_push(run, list, pair);
    }
    return list;
}

static tpl_value d_items(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)a, (void)args;
    return tpl_dict_items(run, self);
}

static tpl_value d_get(tpl_run *run, tpl_value self, const tpl_value *a, const tpl_args *args) {
    (void)args;
    tpl_value value;
    if (tpl_dict_get(run, self.u.dict, a[0], &value)) return value;
    return a[1].kind == TPL_MISSING ? tpl_none() : a[1];
}

const tpl_builtin tpl_dict_methods[] = {
    {"items", "", 0, d_items},        {"keys", "", 0, d_keys}, {"values", "", 0, d_values},
    {"get", "key,default", 1, d_get}, {"copy", "", 0, same},   {NULL, NULL, 0, NULL},
};
