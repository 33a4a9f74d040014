/* batonctl status: what Redis says of every worker, one line each. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/core/config.h"
#include "common/core/log.h"
#include "common/registry/registry.h"
#include "tools/batonctl.h"

#define CFG(type, name, default_text, help) cfg_##type name;
typedef struct {
#include "tools/ctl_status.def"
} status_config;
#undef CFG
#define CFG(type, name, default_text, help) CFG_ENTRY(status_config, type, name, default_text, help)
static const cfg_flag flags[] = {
#include "tools/ctl_status.def"
};
#undef CFG

static void print_worker(const reg_worker *worker) {
    printf("worker=%s role=%s state=%s model=\"%s\" control=%s kv=%s http=%s", worker->name,
           worker->role == WIRE_ROLE_PREFILL ? "prefill" : "decode", worker->is_draining ? "draining" : "serving",
           worker->served_model, worker->control_address, worker->kv_address, worker->http_address);
    if (worker->labels[0] != 0) printf(" labels=\"%s\"", worker->labels);
    if (worker->ep.size > 0)
        printf(" group=%s rank=%u ranks=%u epoch=%" PRIu64 " group_state=%s", worker->ep.group, worker->ep.rank,
               worker->ep.size, worker->ep.epoch, reg_rank_state_name(worker->ep.state));
    printf("\n");
}

int ctl_status(int argc, char **argv) {
    status_config config;
    bt_error err = {0};
    bt_log_level level;
    bt_status status = cfg_parse("batonctl status", "prints one line for every worker that is announced in Redis",
                                 flags, sizeof(flags) / sizeof(flags[0]), argc, argv, &config, &err);
    if (status == BT_CANCELED) return 0;
    if (status == BT_OK) status = bt_log_parse_level(config.log_level, &level, &err);
    if (status != BT_OK) {
        fprintf(stderr, "batonctl: %s\n", err.text);
        return 2;
    }
    bt_log_set_level(level);
    reg_worker *workers = NULL;
    size_t n_workers = 0;
    status = reg_workers_read(config.redis, config.timeout_ms, &workers, &n_workers, &err);
    if (status != BT_OK) fprintf(stderr, "batonctl: %s\n", err.text);
    for (size_t i = 0; i < n_workers; i++) print_worker(&workers[i]);
    free(workers);
    return status == BT_OK && fflush(stdout) == 0 ? 0 : 1;
}
