/* batonctl plan: the loads of a group's ranks, added up, become a placement file. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/config.h"
#include "common/core/log.h"
#include "kernels/plan.h"
#include "tools/batonctl.h"
#include "tools/ctl_group.h"
#include "tools/ctl_http.h"

#define CFG(type, name, default_text, help) cfg_##type name;
typedef struct {
#include "tools/ctl_plan.def"
} plan_config;
#undef CFG
#define CFG(type, name, default_text, help) CFG_ENTRY(plan_config, type, name, default_text, help)
static const cfg_flag flags[] = {
#include "tools/ctl_plan.def"
};
#undef CFG

static bt_status flags_read(int argc, char **argv, plan_config *config, wire_role *role, bt_error *err) {
    bt_log_level level;
    bt_status status =
        cfg_parse("batonctl plan", "writes a placement that balances the loads which a group's ranks have measured",
                  flags, sizeof(flags) / sizeof(flags[0]), argc, argv, config, err);
    if (status == BT_OK) status = bt_log_parse_level(config->log_level, &level, err);
    if (status != BT_OK) return status;
    bt_log_set_level(level);
    bool is_prefill = strcmp(config->role, "prefill") == 0;
    if (!is_prefill && strcmp(config->role, "decode") != 0)
        return bt_fail(err, BT_BAD_REQUEST, "--role is \"%.20s\", not prefill or decode", config->role);
    if (config->output[0] == 0) return bt_fail(err, BT_BAD_REQUEST, "--output is missing: the file to write");
    *role = is_prefill ? WIRE_ROLE_PREFILL : WIRE_ROLE_DECODE;
    return BT_OK;
}

static bt_status loads_read(const ctl_group *group, uint32_t timeout_ms, krn_expert_load *sum, bt_error *err) {
    bt_buf page = {0};
    bt_status status = BT_OK;
    for (uint32_t i = 0; i < group->n_ranks && status == BT_OK; i++) {
        const reg_worker *member = group->members[i];
        status = ctl_http_get(member->http_address, "/experts", timeout_ms, KRN_LOAD_MAX_PAGE_BYTES, &page, err);
        if (status == BT_OK) status = ctl_group_add_page(member, page.bytes, page.n_bytes, sum, err);
    }
    bt_buf_fini(&page);
    return status;
}

static bt_status plan(const plan_config *config, const ctl_group *group, const krn_expert_load *load, bt_error *err) {
    uint32_t n_ranks = config->ranks > 0 ? config->ranks : group->n_ranks;
    double now = 0, planned = 0;
    bt_status status = krn_plan_weigh(config->placement, load, group->n_ranks, &now, err);
    if (status == BT_OK) status = krn_plan_write(config->output, load, n_ranks, config->slots, err);
    if (status == BT_OK) status = krn_plan_weigh(config->output, load, n_ranks, &planned, err);
    if (status != BT_OK) return status;
    printf("load: %" PRIu64 " times a row chose one of %u experts, in %u layers, on %u ranks of %s group %s\n",
           krn_expert_load_total(load), load->n_experts, load->n_layers, group->n_ranks, config->role, load->group);
    printf("rows of the busiest rank over the mean (1 is best): %.3f now (%s), %.3f planned (for %u ranks)\n", now,
           config->placement[0] != 0 ? config->placement : "even runs", planned, n_ranks);
    return BT_OK;
}

int ctl_plan(int argc, char **argv) {
    plan_config config;
    wire_role role;
    bt_error err = {0};
    bt_status status = flags_read(argc, argv, &config, &role, &err);
    if (status == BT_CANCELED) return 0;
    if (status != BT_OK) {
        fprintf(stderr, "batonctl: %s\n", err.text);
        return 2;
    }
    reg_worker *workers = NULL;
    size_t n_workers = 0;
    ctl_group group;
    krn_expert_load load = {0};
    status = reg_workers_read(config.redis, config.timeout_ms, &workers, &n_workers, &err);
    if (status == BT_OK) status = ctl_group_find(workers, n_workers, role, config.group, &group, &err);
    if (status == BT_OK) status = loads_read(&group, config.timeout_ms, &load, &err);
    if (status == BT_OK) status = plan(&config, &group, &load, &err);
    if (status != BT_OK) fprintf(stderr, "batonctl: %s\n", err.text);
    krn_expert_load_fini(&load);
    free(workers);
    return status == BT_OK && fflush(stdout) == 0 ? 0 : 1;
}
