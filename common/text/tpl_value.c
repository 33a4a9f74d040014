/* Owns how values are made, compared and looked up: strings that grow in place, lists, insertion-ordered dicts, and
 * the limits on memory, steps and depth. Printing is tpl_print.c, operators are tpl_eval.c. */
#include "common/text/tpl_value.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "common/text/chat_template.h"
#include "common/text/json.h"
#include "common/text/unicode.h"
#include "common/text/utf8.h"

enum { SMALL_BYTES = 4096, SMALL_DICT = 8, MAX_RUN_DEPTH = 1000 };

tpl_value tpl_fail(tpl_run *run, const char *format, ...) {
    if (!run->failed) {
        char text[400];
        va_list args;
        va_start(args, format);
        vsnprintf(text, sizeof(text), format, args);
        va_end(args);
        bt_fail(run->err, BT_BAD_REQUEST, "chat template, line %u: %s", run->line, text);
        run->failed = true;
    }
    return (tpl_value){.kind = TPL_UNDEFINED};
}

void tpl_fail_undefined(tpl_run *run, tpl_value value) {
    const tpl_undefined *undefined = value.u.undefined;
    if (undefined == NULL || undefined->name == NULL) {
        tpl_fail(run, "a value is undefined");
    } else if (undefined->owner == TPL_MISSING) {
        tpl_fail(run, "'%.*s' is undefined", (int)undefined->name->n_bytes, undefined->name->bytes);
    } else {
        tpl_value owner = {.kind = undefined->owner};
        tpl_fail(run, "'%s object' has no attribute '%.*s'", tpl_type_name(owner), (int)undefined->name->n_bytes,
                 undefined->name->bytes);
    }
}

bool tpl_step(tpl_run *run, uint64_t n_steps) {
    run->steps += n_steps;
    if (run->steps > TPL_MAX_STEPS) tpl_fail(run, "more than %d steps of work", (int)TPL_MAX_STEPS);
    return !run->failed;
}

void *tpl_alloc(tpl_run *run, size_t n_bytes) {
    if (n_bytes > TPL_MAX_MEMORY_BYTES || run->arena.used_bytes + n_bytes > TPL_MAX_MEMORY_BYTES) {
        tpl_fail(run, "more than %d bytes of memory", (int)TPL_MAX_MEMORY_BYTES);
        if (n_bytes > SMALL_BYTES) return NULL;
    }
    return bt_arena_alloc(&run->arena, n_bytes);
}

bool tpl_enter(tpl_run *run) {
    if (++run->depth > MAX_RUN_DEPTH) tpl_fail(run, "calls and expressions nest too deeply");
    return !run->failed;
}

void tpl_leave(tpl_run *run) { run->depth--; }

tpl_value tpl_undefined_name(tpl_run *run, const tpl_str *name, tpl_kind owner) {
    tpl_undefined *undefined = tpl_alloc(run, sizeof(*undefined));
    undefined->name = name;
    undefined->owner = owner;
    return (tpl_value){.kind = TPL_UNDEFINED, .u.undefined = undefined};
}

static tpl_value string_of(tpl_run *run, const char *bytes, size_t n_bytes, size_t n_chars) {
    tpl_str *str = tpl_alloc(run, sizeof(*str));
    *str = (tpl_str){.bytes = bytes, .n_bytes = n_bytes, .n_chars = n_chars};
    return (tpl_value){.kind = TPL_STR, .u.str = str};
}

tpl_value tpl_string_at(tpl_run *run, const char *bytes, size_t n_bytes) {
    tpl_step(run, n_bytes / 64);
    return string_of(run, bytes, n_bytes, utf8_count((const uint8_t *)bytes, n_bytes));
}

tpl_value tpl_string(tpl_run *run, const char *bytes, size_t n_bytes) {
    char *copy = tpl_alloc(run, n_bytes);
    if (copy == NULL) return tpl_string_at(run, "", 0);
    if (n_bytes > 0) memcpy(copy, bytes, n_bytes);
    return tpl_string_at(run, copy, n_bytes);
}

tpl_value tpl_string_take(tpl_run *run, bt_buf *buf) {
    tpl_value value = tpl_string(run, (const char *)buf->bytes, buf->n_bytes);
    bt_buf_fini(buf);
    return value;
}

tpl_value tpl_concat(tpl_run *run, const tpl_str *left, const tpl_str *right) {
    size_t n_bytes = left->n_bytes + right->n_bytes, n_chars = left->n_chars + right->n_chars;
    if (right->n_bytes == 0) return (tpl_value){.kind = TPL_STR, .u.str = left};
    if (left->n_bytes == 0 && !right->is_markup) return (tpl_value){.kind = TPL_STR, .u.str = right};
    tpl_step(run, right->n_bytes / 64);
    tpl_strbuf *buf = left->buf;
    bool is_last = buf != NULL && left->bytes + left->n_bytes == buf->bytes + buf->n_bytes;
    if (!is_last || buf->cap_bytes - buf->n_bytes < right->n_bytes) {
        size_t cap_bytes = left->n_bytes < 256 ? n_bytes : 2 * n_bytes;
        tpl_step(run, left->n_bytes / 64);
        buf = tpl_alloc(run, sizeof(*buf) + cap_bytes);
        if (buf == NULL) return (tpl_value){.kind = TPL_STR, .u.str = left};
        buf->cap_bytes = cap_bytes;
        buf->n_bytes = left->n_bytes;
        memcpy(buf->bytes, left->bytes, left->n_bytes);
        left = NULL;
    }
    const char *begin = left != NULL ? left->bytes : buf->bytes;
    memcpy(buf->bytes + buf->n_bytes, right->bytes, right->n_bytes);
    buf->n_bytes += right->n_bytes;
    tpl_str *joined = tpl_alloc(run, sizeof(*joined));
    *joined = (tpl_str){.bytes = begin, .n_bytes = n_bytes, .n_chars = n_chars, .buf = buf};
    return (tpl_value){.kind = TPL_STR, .u.str = joined};
}

tpl_value tpl_markup(tpl_run *run, const tpl_str *str, bool escapes) {
    bt_buf out = {0};
    tpl_step(run, str->n_bytes / 8);
    for (size_t i = 0; i < str->n_bytes; i++) {
        static const char marks[] = "&<>'\"";
        static const char *const names[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
        const char *found = escapes && !str->is_markup ? memchr(marks, str->bytes[i], 5) : NULL;
        if (found != NULL) {
            bt_buf_puts(&out, names[found - marks]);
        } else {
            bt_buf_put(&out, &str->bytes[i], 1);
        }
    }
    tpl_str *markup = tpl_alloc(run, sizeof(*markup));
    *markup = *tpl_string_take(run, &out).u.str;
    markup->is_markup = true;
    return (tpl_value){.kind = TPL_STR, .u.str = markup};
}

tpl_value tpl_list_new(tpl_run *run, tpl_kind kind, size_t cap) {
    tpl_list *list = tpl_alloc(run, sizeof(*list));
    list->items = cap > 0 && cap < SIZE_MAX / sizeof(tpl_value) ? tpl_alloc(run, cap * sizeof(tpl_value)) : NULL;
    list->cap = list->items != NULL ? cap : 0;
    return (tpl_value){.kind = kind, .u.list = list};
}

void tpl_list_push(tpl_run *run, tpl_value value, tpl_value item) {
    tpl_list *list = value.u.list;
    if (list->n == list->cap) {
        size_t cap = list->cap < 4 ? 4 : 2 * list->cap;
        tpl_value *items = tpl_alloc(run, cap * sizeof(*items));
        if (items == NULL) return;
        if (list->n > 0) memcpy(items, list->items, list->n * sizeof(*items));
        list->items = items;
        list->cap = cap;
    }
    list->items[list->n++] = item;
}

tpl_value tpl_dict_new(tpl_run *run, tpl_kind kind) {
    return (tpl_value){.kind = kind, .u.dict = tpl_alloc(run, sizeof(tpl_dict))};
}

/* Equal keys have equal hashes: 1, 1.0 and True are one key. */
static uint64_t hash_key(tpl_run *run, tpl_value key) {
    switch (key.kind) {
    case TPL_STR:
        return XXH3_64bits(key.u.str->bytes, key.u.str->n_bytes);
    case TPL_BOOL:
    case TPL_INT:
    case TPL_FLOAT: {
        double number = tpl_to_float(key) + 0.0;
        return XXH3_64bits(&number, sizeof(number));
    }
    case TPL_NONE:
        return 1;
    case TPL_TUPLE: {
        uint64_t hash = 2;
        if (tpl_enter(run)) {
            for (size_t i = 0; i < key.u.list->n; i++) hash = hash * 31 + hash_key(run, key.u.list->items[i]);
        }
        tpl_leave(run);
        return hash;
    }
    case TPL_LIST:
    case TPL_DICT:
        tpl_fail(run, "unhashable type: '%s'", tpl_type_name(key));
        return 0;
    default:
        return 3;
    }
}

static uint32_t *index_slot(tpl_run *run, const tpl_dict *dict, tpl_value key) {
    size_t at = (size_t)hash_key(run, key) & dict->index_mask;
    while (dict->index[at] != 0 && !tpl_equal(run, dict->entries[dict->index[at] - 1].key, key)) {
        if (!tpl_step(run, 1)) break;
        at = (at + 1) & dict->index_mask;
    }
    return &dict->index[at];
}

/* The entry of a key, or NULL. */
static tpl_entry *find_entry(tpl_run *run, const tpl_dict *dict, tpl_value key) {
    if (key.kind == TPL_LIST || key.kind == TPL_DICT) {
        tpl_fail(run, "unhashable type: '%s'", tpl_type_name(key));
        return NULL;
    }
    if (dict->index != NULL) {
        uint32_t entry = *index_slot(run, dict, key);
        return entry != 0 ? &dict->entries[entry - 1] : NULL;
    }
    for (size_t i = 0; i < dict->n; i++) {
        if (tpl_equal(run, dict->entries[i].key, key)) return &dict->entries[i];
    }
    return NULL;
}

static bool grow_dict(tpl_run *run, tpl_dict *dict) {
    size_t cap = dict->cap == 0 ? SMALL_DICT : 2 * dict->cap;
    tpl_entry *entries = tpl_alloc(run, cap * sizeof(*entries));
    uint32_t *index = cap > SMALL_DICT ? tpl_alloc(run, 2 * cap * sizeof(*index)) : NULL;
    if (entries == NULL || (cap > SMALL_DICT && index == NULL)) return false;
    if (dict->n > 0) memcpy(entries, dict->entries, dict->n * sizeof(*entries));
    dict->entries = entries;
    dict->cap = cap;
    dict->index = index;
    dict->index_mask = 2 * cap - 1;
    if (index == NULL) return true;
    for (size_t i = 0; i < dict->n; i++) *index_slot(run, dict, entries[i].key) = (uint32_t)i + 1;
    return true;
}

void tpl_dict_set(tpl_run *run, tpl_value value, tpl_value key, tpl_value item) {
    tpl_dict *dict = value.u.dict;
    tpl_entry *entry = find_entry(run, dict, key);
    if (entry != NULL) {
        entry->value = item;
        return;
    }
    if (run->failed || (dict->n == dict->cap && !grow_dict(run, dict))) return;
    dict->entries[dict->n++] = (tpl_entry){.key = key, .value = item};
    if (dict->index != NULL) *index_slot(run, dict, key) = (uint32_t)dict->n;
}

bool tpl_dict_get(tpl_run *run, const tpl_dict *dict, tpl_value key, tpl_value *value) {
    const tpl_entry *entry = find_entry(run, dict, key);
    if (entry != NULL) *value = entry->value;
    return entry != NULL;
}

static tpl_value number_from_json(const cJSON *item) {
    double number = item->valuedouble;
    const char *text = txt_json_number_text(item);
    bool is_integer = number == floor(number) && fabs(number) < 9.2e18;
    if (text == NULL) return is_integer ? tpl_int((int64_t)number) : tpl_float(number);
    return is_integer && strpbrk(text, ".eE") == NULL ? tpl_int(strtoll(text, NULL, 10)) : tpl_float(number);
}

static tpl_value string_from_json(tpl_run *run, const char *bytes, size_t n_bytes) {
    size_t n_chars;
    tpl_step(run, n_bytes / 64);
    if (utf8_measure((const uint8_t *)bytes, n_bytes, &n_chars)) return string_of(run, bytes, n_bytes, n_chars);
    bt_buf repaired = {0};
    utf8_put_lossy(&repaired, (const uint8_t *)bytes, n_bytes);
    return tpl_string_take(run, &repaired);
}

tpl_value tpl_from_json(tpl_run *run, const cJSON *item) {
    size_t n_bytes;
    const char *bytes = txt_json_string(item, &n_bytes);
    if (bytes != NULL) return string_from_json(run, bytes, n_bytes);
    if (cJSON_IsNumber(item)) return number_from_json(item);
    if (cJSON_IsBool(item)) return tpl_bool(cJSON_IsTrue(item) != 0);
    if (!cJSON_IsArray(item) && !cJSON_IsObject(item)) return tpl_none();
    bool is_object = cJSON_IsObject(item) != 0;
    tpl_value value = is_object ? tpl_dict_new(run, TPL_DICT) : tpl_list_new(run, TPL_LIST, 0);
    if (tpl_enter(run)) {
        const cJSON *child;
        cJSON_ArrayForEach(child, item) {
            if (!tpl_step(run, 1)) break;
            tpl_value inner = tpl_from_json(run, child);
            if (is_object) {
                tpl_dict_set(run, value, string_from_json(run, child->string, strlen(child->string)), inner);
            } else {
                tpl_list_push(run, value, inner);
            }
        }
    }
    tpl_leave(run);
    return value;
}

bool tpl_truth(tpl_value value) {
    switch (value.kind) {
    case TPL_MISSING:
    case TPL_UNDEFINED:
    case TPL_NONE:
        return false;
    case TPL_BOOL:
        return value.u.b;
    case TPL_INT:
        return value.u.i != 0;
    case TPL_FLOAT:
        return value.u.f != 0;
    case TPL_STR:
        return value.u.str->n_bytes > 0;
    case TPL_LIST:
    case TPL_TUPLE:
        return value.u.list->n > 0;
    case TPL_DICT:
        return value.u.dict->n > 0;
    default:
        return true;
    }
}

static bool dicts_equal(tpl_run *run, const tpl_dict *a, const tpl_dict *b) {
    if (a->n != b->n) return false;
    for (size_t i = 0; i < a->n && !run->failed; i++) {
        tpl_value other;
        if (!tpl_dict_get(run, b, a->entries[i].key, &other)) return false;
        if (!tpl_equal(run, a->entries[i].value, other)) return false;
    }
    return true;
}

static bool lists_equal(tpl_run *run, const tpl_list *a, const tpl_list *b) {
    if (a->n != b->n) return false;
    for (size_t i = 0; i < a->n && tpl_step(run, 1); i++) {
        if (!tpl_equal(run, a->items[i], b->items[i])) return false;
    }
    return true;
}

bool tpl_equal(tpl_run *run, tpl_value a, tpl_value b) {
    if (tpl_is_integral(a) && tpl_is_integral(b)) return tpl_to_int(a) == tpl_to_int(b);
    if (tpl_is_number(a) && tpl_is_number(b)) return tpl_to_float(a) == tpl_to_float(b);
    if (a.kind != b.kind) return false;
    bool is_equal = false;
    switch (a.kind) {
    case TPL_MISSING:
    case TPL_UNDEFINED:
    case TPL_NONE:
        return true;
    case TPL_STR:
        return a.u.str->n_bytes == b.u.str->n_bytes && memcmp(a.u.str->bytes, b.u.str->bytes, a.u.str->n_bytes) == 0;
    case TPL_LIST:
    case TPL_TUPLE:
        if (tpl_enter(run)) is_equal = lists_equal(run, a.u.list, b.u.list);
        tpl_leave(run);
        return is_equal;
    case TPL_DICT:
        if (tpl_enter(run)) is_equal = dicts_equal(run, a.u.dict, b.u.dict);
        tpl_leave(run);
        return is_equal;
    default:
        return a.u.dict == b.u.dict; /* identity, whichever pointer it is */
    }
}

static int sign_of(bool is_less, bool is_more) { return is_more - is_less; }

int tpl_order(tpl_run *run, tpl_value a, tpl_value b) {
    if (tpl_is_integral(a) && tpl_is_integral(b)) {
        return sign_of(tpl_to_int(a) < tpl_to_int(b), tpl_to_int(a) > tpl_to_int(b));
    }
    if (tpl_is_number(a) && tpl_is_number(b)) {
        return sign_of(tpl_to_float(a) < tpl_to_float(b), tpl_to_float(a) > tpl_to_float(b));
    }
    if (a.kind == TPL_STR && b.kind == TPL_STR) { /* the order of UTF-8 is the order of code points */
        size_t n_a = a.u.str->n_bytes, n_b = b.u.str->n_bytes;
        int order = memcmp(a.u.str->bytes, b.u.str->bytes, n_a < n_b ? n_a : n_b);
        return order != 0 ? sign_of(order<0, order> 0) : sign_of(n_a<n_b, n_a> n_b);
    }
    if (a.kind == b.kind && tpl_is_sequence(a)) {
        size_t n_a = a.u.list->n, n_b = b.u.list->n;
        int order = 0;
        if (tpl_enter(run)) {
            for (size_t i = 0; i < n_a && i < n_b && order == 0 && tpl_step(run, 1); i++) {
                if (tpl_equal(run, a.u.list->items[i], b.u.list->items[i])) continue;
                order = tpl_order(run, a.u.list->items[i], b.u.list->items[i]);
            }
        }
        tpl_leave(run);
        return order != 0 ? order : sign_of(n_a<n_b, n_a> n_b);
    }
    if (a.kind == TPL_UNDEFINED || b.kind == TPL_UNDEFINED) {
        tpl_fail_undefined(run, a.kind == TPL_UNDEFINED ? a : b);
    } else {
        tpl_fail(run, "'<' not supported between instances of '%s' and '%s'", tpl_type_name(a), tpl_type_name(b));
    }
    return 0;
}

const char *tpl_type_name(tpl_value value) {
    static const char *const names[] = {
        [TPL_MISSING] = "nothing",
        [TPL_UNDEFINED] = "Undefined",
        [TPL_NONE] = "NoneType",
        [TPL_BOOL] = "bool",
        [TPL_INT] = "int",
        [TPL_FLOAT] = "float",
        [TPL_STR] = "str",
        [TPL_LIST] = "list",
        [TPL_TUPLE] = "tuple",
        [TPL_DICT] = "dict",
        [TPL_GENERATOR] = "generator",
        [TPL_NAMESPACE] = "Namespace",
        [TPL_LOOP] = "LoopContext",
        [TPL_MACRO] = "Macro",
        [TPL_FUNCTION] = "function",
        [TPL_METHOD] = "method",
    };
    return names[value.kind];
}

bool tpl_is(const tpl_str *str, const char *text) {
    return str->n_bytes == strlen(text) && memcmp(str->bytes, text, str->n_bytes) == 0;
}

static tpl_value chars_of(tpl_run *run, const tpl_str *str) {
    tpl_value list = tpl_list_new(run, TPL_LIST, str->n_chars);
    const char *p = str->bytes, *end = p + str->n_bytes;
    while (p < end && tpl_step(run, 1)) {
        uint32_t code_point;
        size_t n_bytes = utf8_next((const uint8_t *)p, &code_point);
        tpl_list_push(run, list, string_of(run, p, n_bytes, 1));
        p += n_bytes;
    }
    return list;
}

tpl_value tpl_items(tpl_run *run, tpl_value value) {
    switch (value.kind) {
    case TPL_LIST:
    case TPL_TUPLE:
        return value;
    case TPL_UNDEFINED:
        return tpl_list_new(run, TPL_LIST, 0);
    case TPL_GENERATOR: {
        tpl_value rest = tpl_list_new(run, TPL_LIST, 0);
        *rest.u.list = *value.u.list;
        *value.u.list = (tpl_list){0};
        return rest;
    }
    case TPL_STR:
        return chars_of(run, value.u.str);
    case TPL_DICT: {
        tpl_value list = tpl_list_new(run, TPL_LIST, value.u.dict->n);
        for (size_t i = 0; i < value.u.dict->n && tpl_step(run, 1); i++) {
            tpl_list_push(run, list, value.u.dict->entries[i].key);
        }
        return list;
    }
    default:
        tpl_fail(run, "'%s' object is not iterable", tpl_type_name(value));
        return tpl_list_new(run, TPL_LIST, 0);
    }
}

bool tpl_is_space(uint32_t code_point) {
    return (code_point >= 0x1c && code_point <= 0x1f) || (unicode_classes()[code_point] & UNI_SPACE) != 0;
}
