#include "gateway/core/gw_admission.h"

#include <stdlib.h>
#include <string.h>

#include "common/core/alloc.h"
#include "common/core/clock.h"

#define FORGET (1.0 / 32) /* with each sample */
#define LATE   (1.0 / 64) /* of what comes, about, is later than was predicted */
#define STEP   (1.0 / 16) /* of the margin */
#define MAX_S  86400.0

void gw_admission_fini(gw_admission *admission) {
    free(admission->waiting);
    *admission = (gw_admission){0};
}

/* How many priorities are before it. */
static uint32_t place_of(const gw_admission *admission, int64_t priority) {
    uint32_t at = 0; /* they are few, and never more than the requests that are alive */
    while (at < admission->n_waiting && admission->waiting[at].priority < priority) at++;
    return at;
}

static gw_waiting *add_priority(gw_admission *admission, int64_t priority) {
    uint32_t at = place_of(admission, priority);
    if (at < admission->n_waiting && admission->waiting[at].priority == priority) return &admission->waiting[at];
    if (admission->n_waiting == admission->cap_waiting) {
        admission->cap_waiting = admission->cap_waiting * 2 + 4;
        admission->waiting = bt_realloc(admission->waiting, admission->cap_waiting, sizeof(gw_waiting));
    }
    gw_waiting *waiting = &admission->waiting[at];
    memmove(waiting + 1, waiting, (admission->n_waiting++ - at) * sizeof *waiting);
    *waiting = (gw_waiting){.priority = priority};
    return waiting;
}

static uint64_t count_ahead(const gw_admission *admission, int64_t priority) {
    uint64_t n_tokens = 0;
    for (uint32_t i = 0; i < admission->n_waiting && admission->waiting[i].priority <= priority; i++)
        n_tokens += admission->waiting[i].n_tokens;
    return n_tokens;
}

static int pace_index(int64_t priority) {
    enum { HALF = GW_N_PACES / 2 };
    return priority < -HALF ? 0 : priority >= HALF ? GW_N_PACES - 1 : (int)priority + HALF;
}

/* Of a priority of which nothing is known yet: the nearest one's. */
static const gw_pace *pace_of(const gw_admission *admission, int64_t priority) {
    int own = pace_index(priority);
    for (int away = 0; away < GW_N_PACES; away++) {
        if (own - away >= 0 && admission->paces[own - away].tokens > 0) return &admission->paces[own - away];
        if (own + away < GW_N_PACES && admission->paces[own + away].tokens > 0) return &admission->paces[own + away];
    }
    return &admission->paces[own];
}

static double model_s(const gw_admission *admission, int64_t priority, uint64_t n_ahead) {
    const gw_pace *pace = pace_of(admission, priority);
    if (pace->tokens == 0) return 0;
    double wait_s = admission->floor_s + (double)n_ahead * pace->seconds / pace->tokens;
    return wait_s < MAX_S ? wait_s : MAX_S;
}

static double with_margin(const gw_pace *pace, double wait_s) {
    return wait_s + (pace->margin_s < wait_s ? pace->margin_s : wait_s);
}

int64_t gw_admission_predict_ns(const gw_admission *admission, int64_t priority, uint64_t n_tokens) {
    uint64_t n_ahead = count_ahead(admission, priority);
    if (n_ahead == 0) return 0;
    return (int64_t)(with_margin(pace_of(admission, priority), model_s(admission, priority, n_ahead + n_tokens)) *
                     BT_NS_PER_S);
}

void gw_admission_enter(gw_admission *admission, gw_ticket *ticket, int64_t priority, uint32_t n_tokens,
                        int64_t now_ns) {
    bool is_alone = admission->n_waiting == 0;
    gw_waiting *waiting = add_priority(admission, priority);
    waiting->n_prompts++;
    waiting->n_tokens += n_tokens;
    uint64_t n_ahead = count_ahead(admission, priority);
    *ticket = (gw_ticket){true, is_alone, n_tokens, priority, n_ahead, now_ns, model_s(admission, priority, n_ahead)};
}

/* false: it did not wait. */
static bool leave(gw_admission *admission, gw_ticket *ticket) {
    if (!ticket->is_waiting) return false;
    ticket->is_waiting = false;
    gw_waiting *waiting = &admission->waiting[place_of(admission, ticket->priority)];
    waiting->n_tokens -= ticket->n_tokens;
    if (--waiting->n_prompts > 0) return true;
    const gw_waiting *end = &admission->waiting[admission->n_waiting--];
    memmove(waiting, waiting + 1, (size_t)(end - waiting - 1) * sizeof *waiting);
    return true;
}

static double time_s(const gw_ticket *ticket, int64_t now_ns) { return (double)(now_ns - ticket->at_ns) / BT_NS_PER_S; }

static bool is_late(const gw_admission *admission, const gw_ticket *ticket, int64_t now_ns) {
    return time_s(ticket, now_ns) > with_margin(pace_of(admission, ticket->priority), ticket->model_s);
}

static void learn(gw_admission *admission, const gw_ticket *ticket, int64_t now_ns) {
    gw_pace *pace = &admission->paces[pace_index(ticket->priority)];
    if (!is_late(admission, ticket, now_ns)) {
        pace->margin_s -= ticket->model_s * STEP * LATE;
        if (pace->margin_s < 0) pace->margin_s = 0;
    } else if (pace->margin_s < ticket->model_s) {
        pace->margin_s += ticket->model_s * STEP;
    }
    pace->tokens += (double)ticket->n_ahead - pace->tokens * FORGET;
    pace->seconds += (time_s(ticket, now_ns) - admission->floor_s) - pace->seconds * FORGET;
}

void gw_admission_first_token(gw_admission *admission, gw_ticket *ticket, int64_t now_ns) {
    if (!leave(admission, ticket)) return;
    double took_s = time_s(ticket, now_ns);
    if (admission->floor_s == 0 || took_s < admission->floor_s)
        admission->floor_s = took_s;
    else if (ticket->is_alone)
        admission->floor_s += (took_s - admission->floor_s) * FORGET;
    learn(admission, ticket, now_ns);
}

void gw_admission_leave(gw_admission *admission, gw_ticket *ticket, int64_t now_ns) {
    if (leave(admission, ticket) && admission->floor_s > 0 && is_late(admission, ticket, now_ns))
        learn(admission, ticket, now_ns);
}
