/* A table of flags and a struct of values: everything else about configuration follows from the table. */
#include "common/core/config.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const type_names[] = {"N", "N", "X", "", "TEXT"};

/* "--max-num-seqs" from "max_num_seqs"; `prefix` is "--" or "--no-". */
static void flag_text(const cfg_flag *flag, const char *prefix, char *out, size_t cap_bytes) {
    snprintf(out, cap_bytes, "%s%s", prefix, flag->name);
    for (char *c = out + strlen(prefix); *c != 0; c++)
        if (*c == '_') *c = '-';
}

static bt_status parse_unsigned(const char *text, uint64_t max, uint64_t *out) {
    char *end = NULL;
    errno = 0;
    if (text[0] < '0' || text[0] > '9') return BT_BAD_REQUEST; /* strtoull takes "-1" and spaces */
    uint64_t value = strtoull(text, &end, 10);
    unsigned shift = *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
    if (shift != 0) end++;
    if (errno != 0 || *end != 0 || value > (max >> shift)) return BT_BAD_REQUEST;
    *out = value << shift;
    return BT_OK;
}

static bt_status parse_bool(const char *text, bool *out) {
    bool is_true = strcmp(text, "true") == 0 || strcmp(text, "1") == 0;
    if (!is_true && strcmp(text, "false") != 0 && strcmp(text, "0") != 0) return BT_BAD_REQUEST;
    *out = is_true;
    return BT_OK;
}

static bt_status parse_value(const cfg_flag *flag, const char *text, void *config, bt_error *err) {
    void *field = (char *)config + flag->offset;
    uint64_t number = 0;
    char *end = NULL;
    bt_status status = BT_OK;
    switch (flag->type) {
    case CFG_TYPE_u32:
        status = parse_unsigned(text, UINT32_MAX, &number);
        if (status == BT_OK) *(uint32_t *)field = (uint32_t)number;
        break;
    case CFG_TYPE_u64:
        status = parse_unsigned(text, UINT64_MAX, (uint64_t *)field);
        break;
    case CFG_TYPE_f64: {
        double value = strtod(text, &end);
        if (end == text || *end != 0 || !isfinite(value))
            status = BT_BAD_REQUEST;
        else
            *(double *)field = value;
        break;
    }
    case CFG_TYPE_bool:
        status = parse_bool(text, field);
        break;
    case CFG_TYPE_str:
        *(const char **)field = text;
        break;
    }
    if (status == BT_OK) return BT_OK;
    char name[96];
    flag_text(flag, "--", name, sizeof(name));
    static const char *const wanted[] = {"a whole number below 2^32", "a whole number, K, M, G allowed", "a number",
                                         "true or false", ""};
    return bt_fail(err, BT_BAD_REQUEST, "%s takes %s, got '%s'", name, wanted[flag->type], text);
}

static void print_help(const char *program, const char *purpose, const cfg_flag *flags, size_t n_flags) {
    printf("%s: %s\n\n", program, purpose);
    for (size_t i = 0; i < n_flags; i++) {
        char name[96], left[128];
        flag_text(&flags[i], flags[i].type == CFG_TYPE_bool ? "--[no-]" : "--", name, sizeof(name));
        snprintf(left, sizeof(left), "%s %s", name, type_names[flags[i].type]);
        printf("  %-36s %s [%s]\n", left, flags[i].help, flags[i].default_text);
    }
}

static void print_markdown(const char *program, const char *purpose, const cfg_flag *flags, size_t n_flags) {
    printf("## %s\n\n%s\n\n| flag | default | meaning |\n|---|---|---|\n", program, purpose);
    for (size_t i = 0; i < n_flags; i++) {
        char name[96];
        flag_text(&flags[i], flags[i].type == CFG_TYPE_bool ? "--[no-]" : "--", name, sizeof(name));
        const char *space = type_names[flags[i].type][0] == 0 ? "" : " ";
        const char *quote = flags[i].default_text[0] == 0 ? "" : "`";
        printf("| `%s%s%s` | %s%s%s | %s |\n", name, space, type_names[flags[i].type], quote, flags[i].default_text,
               quote, flags[i].help);
    }
    printf("\n");
}

/* The flag that `argument` names. *value is the text behind '=', or NULL; *is_negated says --no-. */
static const cfg_flag *find_flag(const cfg_flag *flags, size_t n_flags, const char *argument, const char **value,
                                 bool *is_negated) {
    const char *equals = strchr(argument, '=');
    size_t name_bytes = equals == NULL ? strlen(argument) : (size_t)(equals - argument);
    *value = equals == NULL ? NULL : equals + 1;
    for (size_t i = 0; i < n_flags; i++) {
        static const char *const prefixes[] = {"--", "--no-"};
        for (int negated = 0; negated <= (flags[i].type == CFG_TYPE_bool); negated++) {
            char name[96];
            flag_text(&flags[i], prefixes[negated], name, sizeof(name));
            if (strlen(name) != name_bytes || strncmp(name, argument, name_bytes) != 0) continue;
            *is_negated = negated != 0;
            return &flags[i];
        }
    }
    return NULL;
}

bt_status cfg_parse(const char *program, const char *purpose, const cfg_flag *flags, size_t n_flags, int argc,
                    char **argv, void *config, bt_error *err) {
    for (size_t i = 0; i < n_flags; i++) {
        bt_status status = parse_value(&flags[i], flags[i].default_text, config, err);
        if (status != BT_OK) return status;
    }
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            print_help(program, purpose, flags, n_flags);
            return BT_CANCELED;
        }
        if (strcmp(argv[i], "--help-markdown") == 0) {
            print_markdown(program, purpose, flags, n_flags);
            return BT_CANCELED;
        }
        const char *value = NULL;
        bool is_negated = false;
        const cfg_flag *flag = find_flag(flags, n_flags, argv[i], &value, &is_negated);
        if (flag == NULL) return bt_fail(err, BT_BAD_REQUEST, "unknown flag '%s'; --help lists them", argv[i]);
        if (flag->type == CFG_TYPE_bool) {
            if (is_negated && value != NULL) return bt_fail(err, BT_BAD_REQUEST, "'%s' takes no value", argv[i]);
            if (value == NULL) value = is_negated ? "false" : "true";
        } else if (value == NULL) {
            if (i + 1 == argc) return bt_fail(err, BT_BAD_REQUEST, "'%s' needs a value", argv[i]);
            value = argv[++i];
        }
        bt_status status = parse_value(flag, value, config, err);
        if (status != BT_OK) return status;
    }
    return BT_OK;
}
