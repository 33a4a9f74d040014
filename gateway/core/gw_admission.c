#include "gateway/core/gw_admission.h"

#include "common/core/clock.h"

#define FORGET (1.0 / 32) /* with each sample */
#define LATE   (1.0 / 64) /* of what comes, about, is later than was predicted */
#define STEP   (1.0 / 16) /* of the margin */
#define MAX_S  86400.0

static double model_s(const gw_admission *admission, uint64_t n_ahead) {
    if (admission->tokens == 0) return 0;
    double wait_s = admission->floor_s + (double)n_ahead * admission->seconds / admission->tokens;
    return wait_s < MAX_S ? wait_s : MAX_S;
}

static double with_margin(const gw_admission *admission, double wait_s) {
    return wait_s + (admission->margin_s < wait_s ? admission->margin_s : wait_s);
}

int64_t gw_admission_predict_ns(const gw_admission *admission, uint64_t n_tokens) {
    if (admission->n_waiting == 0) return 0;
    double wait_s = model_s(admission, admission->n_waiting_tokens + n_tokens);
    return (int64_t)(with_margin(admission, wait_s) * BT_NS_PER_S);
}

void gw_admission_enter(gw_admission *admission, gw_ticket *ticket, uint32_t n_tokens, int64_t now_ns) {
    admission->n_waiting++;
    admission->n_waiting_tokens += n_tokens;
    uint64_t n_ahead = admission->n_waiting_tokens;
    *ticket = (gw_ticket){true, n_tokens, n_ahead, now_ns, model_s(admission, n_ahead)};
}

void gw_admission_first_token(gw_admission *admission, gw_ticket *ticket, int64_t now_ns) {
    if (!ticket->is_waiting) return;
    gw_admission_leave(admission, ticket);
    double time_s = (double)(now_ns - ticket->at_ns) / BT_NS_PER_S;
    bool is_late = time_s > with_margin(admission, ticket->model_s);
    admission->margin_s += ticket->model_s * (is_late ? STEP : -STEP * LATE);
    if (admission->margin_s < 0) admission->margin_s = 0;
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
