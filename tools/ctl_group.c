#include "tools/ctl_group.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char *role_name(wire_role role) { return role == WIRE_ROLE_PREFILL ? "prefill" : "decode"; }

/* The name of the only group. */
static bt_status only_group(const reg_worker *workers, size_t n_workers, wire_role role, const char **out,
                            bt_error *err) {
    const char *name = NULL;
    for (size_t i = 0; i < n_workers; i++) {
        if (workers[i].role != role || workers[i].ep.size == 0) continue;
        if (name != NULL && strcmp(name, workers[i].ep.group) != 0)
            return bt_fail(err, BT_BAD_REQUEST,
                           "there are several %s groups, %s and %s among them: name one with --group", role_name(role),
                           name, workers[i].ep.group);
        name = workers[i].ep.group;
    }
    if (name == NULL) return bt_fail(err, BT_BAD_REQUEST, "Redis knows no %s group", role_name(role));
    *out = name;
    return BT_OK;
}

static bt_status group_add(ctl_group *group, const reg_worker *worker, bt_error *err) {
    if (group->n_ranks != 0 && group->n_ranks != worker->ep.size)
        return bt_fail(err, BT_BAD_REQUEST, "group %s has ranks of %u and, with %s, of %u", worker->ep.group,
                       group->n_ranks, worker->name, worker->ep.size);
    const reg_worker **member = &group->members[worker->ep.rank];
    if (*member != NULL)
        return bt_fail(err, BT_BAD_REQUEST, "%s and %s both are rank %u of group %s", (*member)->name, worker->name,
                       worker->ep.rank, worker->ep.group);
    if (worker->http_address[0] == 0)
        return bt_fail(err, BT_BAD_REQUEST, "%s serves no HTTP: it needs --metrics-port", worker->name);
    *member = worker;
    group->n_ranks = worker->ep.size;
    return BT_OK;
}

bt_status ctl_group_find(const reg_worker *workers, size_t n_workers, wire_role role, const char *name, ctl_group *out,
                         bt_error *err) {
    ctl_group group = {0};
    bt_status status = name[0] == 0 ? only_group(workers, n_workers, role, &name, err) : BT_OK;
    for (size_t i = 0; i < n_workers && status == BT_OK; i++) {
        bool is_in = workers[i].role == role && workers[i].ep.size > 0 && strcmp(workers[i].ep.group, name) == 0;
        if (is_in) status = group_add(&group, &workers[i], err);
    }
    if (status != BT_OK) return status;
    if (group.n_ranks == 0) return bt_fail(err, BT_BAD_REQUEST, "Redis knows no %s group %.64s", role_name(role), name);
    const reg_worker *first = group.members[0];
    for (uint32_t i = 0; i < group.n_ranks; i++) {
        const reg_worker *member = group.members[i];
        if (member == NULL)
            return bt_fail(err, BT_BAD_REQUEST, "rank %u of %u of group %s is not there", i, group.n_ranks, name);
        if (member->model_hash != first->model_hash)
            return bt_fail(err, BT_BAD_REQUEST, "%s has another model than %s", member->name, first->name);
    }
    *out = group;
    return BT_OK;
}

bt_status ctl_group_add_page(const reg_worker *member, const void *page, size_t n_bytes, krn_expert_load *sum,
                             bt_error *err) {
    char what[REG_CAP_NAME + 16];
    snprintf(what, sizeof(what), "%s's /experts", member->name);
    krn_expert_load load = {0};
    bt_status status = krn_expert_load_parse(what, page, n_bytes, &load, err);
    if (status != BT_OK) return status;
    if (load.model_hash != member->model_hash || load.rank != member->ep.rank || load.n_ranks != member->ep.size ||
        strcmp(load.group, member->ep.group) != 0)
        status = bt_fail(err, BT_BAD_REQUEST,
                         "%s is of rank %u of %u of group %s and model %016" PRIx64
                         ", announced are rank %u of %u of group %s and model %016" PRIx64,
                         what, load.rank, load.n_ranks, load.group, load.model_hash, member->ep.rank, member->ep.size,
                         member->ep.group, member->model_hash);
    if (status == BT_OK) status = krn_expert_load_add(sum, &load, err);
    krn_expert_load_fini(&load);
    return status;
}
