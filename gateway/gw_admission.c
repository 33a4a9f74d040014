#include "gateway/gw_admission.h"

#include "common/core/clock.h"

#define FORGET (1.0 / 32) /* with each sample */
#define MAX_S  86400.0

int64_t gw_admission_predict_ns(const gw_admission *admission, uint64_t n_tokens) {
    if (admission->n_waiting == 0 || admission->tokens == 0) return 0;
    double ahead = (double)(admission->n_waiting_tokens + n_tokens);
    double wait_s = admission->floor_s + ahead * admission->seconds / admission->tokens;
    return (int64_t)((wait_s < MAX_S ? wait_s : MAX_S) * BT_NS_PER_S);
}

void gw_admission_enter(gw_admission *admission, gw_ticket *ticket, uint32_t n_tokens, int64_t now_ns) {
    admission->n_waiting++;
    admission->n_waiting_tokens += n_tokens;
    *ticket = (gw_ticket){true, n_tokens, admission->n_waiting_tokens, now_ns};
}

void gw_admission_first_token(gw_admission *admission, gw_ticket *ticket, int64_t now_ns) {
    if (!ticket->is_waiting) return;
    gw_admission_leave(admission, ticket);
    double time_s = (double)(now_ns - ticket->at_ns) / BT_NS_PER_S;
    if (admission->floor_s == 0 || time_s < admission->floor_s)
        admission->floor_s = time_s;
    else if (ticket->n_ahead == ticket->n_tokens)
        admission->floor_s += (time_s - admission->floor_s) * FORGET;
    admission->tokens += (double)ticket->n_ahead - admission->tokens * FORGET;
    admission->seconds += (time_s - admission->floor_s) - admission->seconds * FORGET;
}

void gw_admission_leave(gw_admission *admission, gw_ticket *ticket) {
    if (!ticket->is_waiting) return;
    ticket->is_waiting = false;
    admission->n_waiting--;
    admission->n_waiting_tokens -= ticket->n_tokens;
}
