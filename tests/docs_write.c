/* Prints one generated page of docs/: `docs_write wire|metrics|redis`. The lists are the ones that the programs use. */
#include <stdio.h>
#include <string.h>

#include "common/core/metrics.h"
#include "common/registry/redis_keys.h"
#include "common/registry/registry.h"
#include "common/wire/wire.h"

typedef struct {
    const char *name, *help;
    bt_metric_kind kind;
    unsigned roles;
} metric_row;

static void write_metric(const metric_row *row) {
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    printf("| `%s` | %s |%s%s%s%s | %s |\n", row->name, kinds[row->kind],
           row->roles & BT_ROLE_GATEWAY ? " gateway" : "", row->roles & BT_ROLE_PREFILL ? " prefill" : "",
           row->roles & BT_ROLE_DECODE ? " decode" : "", row->roles & BT_LEGACY ? " (legacy)" : "", row->help);
}

static void write_metrics(void) {
    static const metric_row metrics[] = {
#define METRIC(id, kind, roles, buckets, name, help) {name, help, BT_METRIC_##kind, roles},
#include "common/core/metrics.def"
#undef METRIC
    };
    static const struct {
        bt_metric_id of;
        unsigned roles;
        const char *name, *help;
    } aliases[] = {
#define METRIC(id, kind, roles, buckets, name, help)
#define ALIAS(of, roles, name, help) {BT_METRIC_##of, roles, name, help},
#include "common/core/metrics.def"
#undef METRIC
    };
    puts("# Metrics\n\nServed as Prometheus text by a gateway on its port, by a worker on `--metrics-port`, at "
         "`/metrics`. Every series carries `model_name`,\nthose with vLLM's names `engine=\"0\"` too. Legacy names are "
         "there while a process' `--metrics-legacy-aliases` says so, which is the default.\n\n| metric | kind | from | "
         "meaning |\n|---|---|---|---|");
    for (size_t i = 0; i < sizeof(metrics) / sizeof(metrics[0]); i++) write_metric(&metrics[i]);
    for (size_t i = 0; i < sizeof(aliases) / sizeof(aliases[0]); i++)
        write_metric(&(metric_row){aliases[i].name, aliases[i].help, metrics[aliases[i].of].kind, aliases[i].roles});
}

static void write_redis(void) {
    static const struct {
        const char *pattern, *type, *life, *who, *meaning;
    } keys[] = {
#define REDIS_KEY(id, pattern, type, life, who, meaning) {pattern, type, life, who, meaning},
        REDIS_KEYS(REDIS_KEY)
#undef REDIS_KEY
    };
    puts(
        "# Redis\n\nEvery key and channel; %s is a worker's name, or a minute. Redis holds nothing that is not written "
        "again within a lease:\nit may be restarted empty at any time.\n\n| key or channel | type | life | who | "
        "meaning "
        "|\n|---|---|---|---|---|");
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        printf("| `%s` | %s | %s | %s | %s |\n", keys[i].pattern, keys[i].type, keys[i].life, keys[i].who,
               keys[i].meaning);
    reg_worker worker = {
        .name = "decode-0",
        .role = WIRE_ROLE_DECODE,
        .incarnation = 0x2f1cadc54ff10b8d,
        .control_address = "10.0.0.7:7001",
        .kv_address = "10.0.0.7:7002",
        .http_address = "10.0.0.7:9100",
        .model_hash = 0x25d2dc6a278dc2dd,
        .served_model = "nano-r1",
        .labels = "zone=a,gpu=h100",
        .max_model_len = 163840,
        .capacity = 32,
        .ep = {
            .group = "decode", .rank = 0, .size = 2, .address = "10.0.0.7:7003", .epoch = 3, .state = REG_RANK_FORMED}};
    bt_buf json = {0};
    reg_worker_write(&worker, &json);
    printf("\nAn announcement (`reg_worker` in `common/registry/registry.h` says what each field may be):\n\n"
           "```json\n%s\n```\n",
           bt_buf_text(&json));
    bt_buf_fini(&json);
}

static void write_wire(void) {
    bt_buf text = {0};
    wire_write_markdown(&text);
    printf("# Wire\n\nEvery message between processes. What they mean: `common/wire/messages.def`.\n\n%s",
           bt_buf_text(&text));
    bt_buf_fini(&text);
}

int main(int argc, char **argv) {
    const char *page = argc == 2 ? argv[1] : "";
    if (strcmp(page, "metrics") == 0)
        write_metrics();
    else if (strcmp(page, "redis") == 0)
        write_redis();
    else if (strcmp(page, "wire") == 0)
        write_wire();
    else
        return fprintf(stderr, "usage: docs_write wire|metrics|redis\n"), 2;
    return 0;
}
