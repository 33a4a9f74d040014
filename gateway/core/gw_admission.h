/* Will a request get its first token in time? One answer per gateway loop, from what the loop has seen itself: how many
 * prompt tokens it has sent that got no first token yet, and how fast those before them were served. What other
 * gateways send, caches, hand-offs and slow workers are in that speed, so no worker has to tell anything. No I/O, no
 * clock. One thread.
 *
 * The model: a request that enters when `ahead` prompt tokens wait, its own included, has its first token after
 *
 *     floor + ahead / speed
 *
 * Those of a higher number of priority go behind it, in the gateway's queue as in a worker's, and are not ahead. Those
 * that will come and overtake it are not counted, but they are in the time of those whom they overtook: speed and
 * margin, below, are each priority's own, so a request is promised what others of its priority had.
 *
 * floor is what an idle cluster needs: the shortest such time; those of requests that found nothing waiting may raise
 * it. Each first token teaches: its time above the floor and the tokens that were ahead of it go into sums that forget
 * (a sample is worth 1/32 of them), and their ratio is the speed. While nothing waits times are near the floor and the
 * speed counts as unlimited, so a first crowd is let in, and its first answers say how fast it goes.
 *
 * That is the mean; a promise needs more. The prediction adds a margin, which grows by 1/16 of the model's time with
 * each first token that came later than was predicted, and shrinks by 1/64 of that with each other one: where it rests,
 * 1 of 65 is late. It at most doubles the model's time. Who has left without a first token, later than predicted,
 * teaches as if it had come then: a priority that starves has no others.
 *
 * A wrong model does not shut the door: when nothing is ahead, everything is admitted, whatever was predicted, and what
 * is admitted teaches. */
#ifndef BATON_GATEWAY_CORE_GW_ADMISSION_H
#define BATON_GATEWAY_CORE_GW_ADMISSION_H

#include <stdbool.h>
#include <stdint.h>

/* Prompts of one priority that entered and have no first token. */
typedef struct {
    int64_t priority;
    uint64_t n_tokens;
    uint32_t n_prompts; /* > 0 */
} gw_waiting;

/* What first tokens of one priority have taught. */
typedef struct {
    double tokens, seconds; /* the sums: tokens ahead, time above the floor; tokens 0: nothing yet */
    double margin_s;
} gw_pace;

enum { GW_N_PACES = 8 }; /* of priorities -4 to 3; those beyond share the outermost */

/* Starts empty: {0}. */
typedef struct {
    gw_waiting *waiting; /* [n_waiting] owned, by priority */
    uint32_t n_waiting, cap_waiting;
    double floor_s; /* of all priorities; 0: nothing was measured yet */
    gw_pace paces[GW_N_PACES];
} gw_admission;

/* A prompt on its way, kept by its owner from enter to first_token or leave. Starts empty: {0}. */
typedef struct {
    bool is_waiting, is_alone; /* alone: nothing waited when it entered */
    uint32_t n_tokens;
    int64_t priority; /* lower goes first */
    uint64_t n_ahead;
    int64_t at_ns;
    double model_s; /* without the margin */
} gw_ticket;

void gw_admission_fini(gw_admission *admission);

/* How long a prompt of so many tokens would wait for its first token; 0: not known, or nothing is ahead of it. */
int64_t gw_admission_predict_ns(const gw_admission *admission, int64_t priority, uint64_t n_tokens);

void gw_admission_enter(gw_admission *admission, gw_ticket *ticket, int64_t priority, uint32_t n_tokens,
                        int64_t now_ns);
void gw_admission_first_token(gw_admission *admission, gw_ticket *ticket, int64_t now_ns);
void gw_admission_leave(gw_admission *admission, gw_ticket *ticket, int64_t now_ns); /* it ended, however */

#endif
