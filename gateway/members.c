/* Registry and links -> gw_core. A member lives in a slot; the slot and its use count are the link's tag, so events of
 * an earlier use are recognised and ignored.
 *
 *     registry UP -> dialing -> link up (known to gw_core) -> link down -> dialing ...
 *     registry LEFT or EXPIRED: the slot is freed as soon as no link is up */
#include "gateway/members.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/core/log.h"
#include "common/core/map.h"

typedef struct {
    bool is_used;
    uint32_t use; /* counts the uses of this slot */
    reg_worker info;
    link_dialer *dialer; /* owned; NULL: nobody dials any more */
    link_conn *link;     /* borrowed from its events; not NULL: gw_core knows the worker */
    bool is_leaving;     /* deregistered, replaced or expired */
} member;

struct gw_members {
    gw_members_config config;
    member *slots; /* owned, [n_slots] */
    uint32_t n_slots;
    bt_map by_incarnation;
};

static bt_key key_of(uint64_t incarnation) { return (bt_key){.a = incarnation}; }

gw_members *gw_members_open(const gw_members_config *config) {
    gw_members *members = bt_calloc(1, sizeof *members);
    members->config = *config;
    return members;
}

void gw_members_close(gw_members *members) {
    if (members == NULL) return;
    for (uint32_t i = 0; i < members->n_slots; i++) link_dialer_close(members->slots[i].dialer);
    bt_map_fini(&members->by_incarnation);
    free(members->slots);
    free(members);
}

static member *find_name(gw_members *members, const char *name) {
    for (uint32_t i = 0; i < members->n_slots; i++) {
        member *m = &members->slots[i];
        if (m->is_used && !m->is_leaving && strcmp(m->info.name, name) == 0) return m;
    }
    return NULL;
}

static member *find_incarnation(gw_members *members, uint64_t incarnation) {
    uint32_t slot = bt_map_get(&members->by_incarnation, key_of(incarnation));
    return slot == BT_MAP_NONE ? NULL : &members->slots[slot];
}

static member *take_slot(gw_members *members) {
    for (uint32_t i = 0; i < members->n_slots; i++)
        if (!members->slots[i].is_used) return &members->slots[i];
    uint32_t n = members->n_slots == 0 ? 16 : members->n_slots * 2;
    members->slots = bt_realloc(members->slots, n, sizeof *members->slots);
    memset(members->slots + members->n_slots, 0, (n - members->n_slots) * sizeof *members->slots);
    member *m = &members->slots[members->n_slots];
    members->n_slots = n;
    return m;
}

static void tell_core(gw_members *members, const member *m) {
    gw_worker known = {.role = m->info.role,
                       .incarnation = m->info.incarnation,
                       .model_hash = m->info.model_hash,
                       .is_draining = m->info.is_draining || m->is_leaving,
                       .is_incomplete = m->info.ep.size > 0 && m->info.ep.state != REG_RANK_FORMED};
    bt_status status = bt_labels_parse(m->info.labels, &known.labels, NULL);
    BT_ASSERT(status == BT_OK); /* the registry has checked them */
    snprintf(known.name, sizeof known.name, "%s", m->info.name);
    snprintf(known.address, sizeof known.address, "%s", m->info.control_address);
    snprintf(known.kv_address, sizeof known.kv_address, "%s", m->info.kv_address);
    members->config.settle(members->config.context);
    gw_core_worker_up(members->config.core, &known, bt_now_ns());
}

static void add(gw_members *members, const reg_worker *worker) {
    member *m = take_slot(members);
    uint32_t slot = (uint32_t)(m - members->slots), use = m->use + 1;
    *m = (member){.is_used = true, .use = use, .info = *worker};
    bt_error err = {0};
    uint64_t tag = (uint64_t)use << 32 | slot;
    if (link_hub_dial(members->config.hub, worker->control_address, tag, &m->dialer, &err) != BT_OK) {
        bt_log(BT_LOG_ERROR, "gateway", "cannot dial a worker", "worker=%s text=\"%s\"", worker->name, err.text);
        m->is_used = false;
        return;
    }
    bt_map_put(&members->by_incarnation, key_of(worker->incarnation), slot);
    bt_log(BT_LOG_INFO, "gateway", "worker announced", "worker=%s role=%s address=%s max_model_len=%u", worker->name,
           worker->role == WIRE_ROLE_PREFILL ? "prefill" : "decode", worker->control_address, worker->max_model_len);
}

/* Frees the slot of a leaving member without a link. */
static void free_if_idle(gw_members *members, member *m) {
    if (!m->is_leaving || m->link != NULL) return;
    link_dialer_close(m->dialer);
    bt_map_remove(&members->by_incarnation, key_of(m->info.incarnation));
    bt_log(BT_LOG_INFO, "gateway", "worker forgotten", "worker=%s", m->info.name);
    *m = (member){.use = m->use};
}

static void leave(gw_members *members, member *m) {
    m->is_leaving = true;
    if (m->link != NULL) tell_core(members, m);
    free_if_idle(members, m);
}

void gw_members_on_registry(void *context, reg_change change, const reg_worker *worker) {
    gw_members *members = context;
    if (worker->role != WIRE_ROLE_PREFILL && worker->role != WIRE_ROLE_DECODE) return;
    if (!members->config.serves(members->config.context, worker->served_model)) {
        bt_log(BT_LOG_DEBUG, "gateway", "worker of another model ignored", "worker=%s", worker->name);
        return;
    }
    member *m = find_incarnation(members, worker->incarnation);
    if (change == REG_WORKER_UP || change == REG_WORKER_CHANGED) {
        member *named = find_name(members, worker->name);
        if (named != NULL && named != m) leave(members, named); /* replaced by a restarted one */
        if (m == NULL) {
            add(members, worker);
            return;
        }
        m->info = *worker;
        m->is_leaving = false;
        if (m->link != NULL) tell_core(members, m);
        return;
    }
    if (m == NULL) return;
    if (change == REG_WORKER_EXPIRED && m->link != NULL) {
        bt_log(BT_LOG_WARN, "gateway", "a worker's lease ran out, its link lives", "worker=%s", m->info.name);
        m->is_leaving = true; /* when the link ends; until then it gets work as before */
        return;
    }
    leave(members, m);
}

static member *find_tag(gw_members *members, uint64_t tag) {
    uint32_t slot = (uint32_t)tag, use = (uint32_t)(tag >> 32);
    if (slot >= members->n_slots) return NULL;
    member *m = &members->slots[slot];
    return m->is_used && m->use == use ? m : NULL;
}

static void on_up(gw_members *members, member *m, const link_event *event) {
    const wire_hello *hello = &event->message.hello;
    if (hello->incarnation != m->info.incarnation || hello->role != m->info.role) {
        bt_log(BT_LOG_WARN, "gateway", "another process answers at a worker's address", "worker=%s address=%s",
               m->info.name, m->info.control_address);
        link_close(event->link); /* dialed again; by then the registry may know who it is */
        return;
    }
    m->link = event->link;
    bt_log(BT_LOG_INFO, "gateway", "worker up", "worker=%s incarnation=%016llx", m->info.name,
           (unsigned long long)m->info.incarnation);
    tell_core(members, m);
}

void gw_members_on_link(gw_members *members, const link_event *event, int64_t now_ns) {
    member *m = find_tag(members, event->tag);
    if (m == NULL) return;
    if (event->kind == LINK_UP) {
        on_up(members, m, event);
        return;
    }
    if (event->link != m->link) return; /* one that was refused in on_up() */
    members->config.settle(members->config.context);
    if (event->kind == LINK_MESSAGE) {
        gw_core_message(members->config.core, m->info.incarnation, &event->message, now_ns);
        return;
    }
    m->link = NULL;
    bt_log(BT_LOG_WARN, "gateway", "worker lost", "worker=%s text=\"%s\"", m->info.name, event->reason);
    gw_core_worker_gone(members->config.core, m->info.incarnation, now_ns);
    free_if_idle(members, m);
}

void gw_members_send(gw_members *members, uint64_t peer, const wire_message *message) {
    member *m = find_incarnation(members, peer);
    if (m != NULL && m->link != NULL) (void)link_send(m->link, message); /* a failure is followed by LINK_DOWN */
}

uint32_t gw_members_max_model_len(const gw_members *members) {
    uint32_t least = UINT32_MAX;
    for (uint32_t i = 0; i < members->n_slots; i++) {
        const member *m = &members->slots[i];
        if (m->is_used && m->link != NULL && m->info.max_model_len < least) least = m->info.max_model_len;
    }
    return least;
}
