/* What gw_core.c, gw_attempt.c, gw_wait.c and gw_message.c share: the table of requests. Included by nobody else. */
#ifndef BATON_GATEWAY_CORE_GW_INTERNAL_H
#define BATON_GATEWAY_CORE_GW_INTERNAL_H

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/core/map.h"
#include "common/core/timers.h"
#include "gateway/core/gw_core.h"
#include "gateway/core/gw_queue.h"

/* A worker as an attempt knew it: another link is another worker, because what it did for us ended with the link. */
typedef struct {
    uint64_t incarnation, link;
} gw_peer;

typedef struct {
    bool is_used;
    bool has_ended;   /* its end is in the action list; freed when the list is empty */
    bool is_canceled; /* its actions are not shown to the caller */
    uint64_t serial;
    void *user;
    uint32_t max_tokens;
    wire_sampling sampling;
    wire_constraint constraint; /* lists in arena */
    uint32_t stop_token_ids[WIRE_MAX_STOP_IDS], n_stop_token_ids;
    char cache_salt[WIRE_MAX_NAME + 1];
    gw_strategy strategy;
    const bt_selector *filter; /* in arena, or NULL */
    int64_t priority;
    uint64_t first_serial;  /* of the answer's choices, itself if it is alone */
    uint32_t n_choices;     /* >= 1, their serials follow one another */
    int64_t queue_until_ns; /* in the queue */
    bool is_queued;         /* WAITING for room; else for any worker at all */
    uint64_t session_key, session_name;
    uint32_t slo_ttft_ms;
    gw_info info;           /* phase, attempt, n_prompt, n_output (delivered), times */
    wire_block_name *names; /* [n_prompt / KV_BLOCK_TOKENS] owned: of the prompt's full blocks, */
    uint64_t names_model;   /* for this model; 0: not computed yet */

    uint32_t *tokens; /* [cap_tokens] owned: prompt, delivered output, then output that waits for a missing index */
    uint32_t cap_tokens;
    wire_ranked *logprobs; /* [cap_logprobs] owned: of the output, if sampling.n_logprobs; lists in arena */
    uint32_t cap_logprobs;
    uint32_t n_scored; /* prompt tokens whose logprobs went to the client; the first has none */
    bt_arena arena;

    /* This attempt. */
    uint32_t n_base;   /* output tokens that it was started with: prefill's token has this index */
    bool has_first;    /* prefill's token is here */
    uint32_t n_decode; /* index of the next token from decode; output below it is in tokens, but for n_base */
    bool has_finish;   /* FINISHED is here, some token is not */
    wire_finished finish;
    gw_peer prefill; /* who got SUBMIT: info.is_local: a decode worker, until its first token */
    gw_peer decode;  /* 0 until it has spoken or HANDED_OFF names it */
    gw_peer candidates[WIRE_MAX_CANDIDATES];
    wire_candidate wire_candidates[WIRE_MAX_CANDIDATES];             /* of SUBMIT; strings in candidate_names */
    char candidate_names[WIRE_MAX_CANDIDATES][2][WIRE_MAX_NAME + 1]; /* name, KV address */
    uint32_t n_candidates;
    gw_booking booked_prefill, booked_decode;

    /* All attempts. */
    bool shuns_local; /* a decode worker was asked to compute the prompt, and that came to nothing */
    uint64_t avoid_prefill, avoid_decode; /* of the last failure */
    uint32_t n_refusals;                  /* since the last delivered token */
    int64_t waiting_since_ns;             /* likewise: since when no worker takes it; 0: one does */
    char text[WIRE_MAX_TEXT + 1];         /* the last failure's sentence */
} gw_slot;

struct gw_core {
    gw_core_options options; /* defaults filled in */
    gw_router *router;
    gw_counters counters;
    gw_slot *slots; /* [max_requests] */
    uint32_t *free_slots, n_free_slots;
    uint32_t *ended_slots, n_ended_slots; /* to be freed when the action list is empty */
    bt_map by_serial;                     /* -> slot, ended ones included */
    uint64_t last_serial;
    bt_timers timers;       /* ids: slots */
    gw_queue queue;         /* of slots that wait for room */
    uint64_t queue_version; /* the router's, when nobody in it could go; 0: look again */

    gw_action *actions; /* [cap_actions]; walked up to next_action */
    uint32_t n_actions, cap_actions, next_action;
};

static inline bt_key gw_u64_key(uint64_t v) { return (bt_key){v, 0, 0}; }
static inline uint32_t gw_slot_index(const gw_core *core, const gw_slot *slot) {
    return (uint32_t)(slot - core->slots);
}
static inline int64_t gw_after_ms(int64_t now_ns, uint32_t ms) { return now_ns + (int64_t)ms * BT_NS_PER_MS; }

gw_action *gw_act(gw_core *core, gw_action_kind kind);
gw_slot *gw_slot_find(gw_core *core, uint64_t serial); /* NULL: unknown or ended */
void gw_slot_set_timer(gw_core *core, gw_slot *slot, int64_t now_ns, uint32_t ms);

/* Logprobs of prompt tokens from `position` on have come: what is new of them goes to the client. false: senseless. */
bool gw_slot_put_scores(gw_core *core, gw_slot *slot, uint32_t position, const wire_ranked *logprobs, uint32_t n);

/* Output token `index` has come. false: it, or what comes with it, makes no sense. */
bool gw_slot_put_token(const gw_core *core, gw_slot *slot, uint32_t index, uint32_t token, const wire_ranked *logprobs,
                       uint32_t n_logprobs);
void gw_slot_finish(gw_core *core, gw_slot *slot); /* GW_FINISHED as slot->finish says */
/* GW_FAILED; `why` as in gw_action. */
void gw_slot_fail(gw_core *core, gw_slot *slot, bt_status status, const char *why, const char *text);
void gw_send_cancel(gw_core *core, uint64_t peer, const wire_request *request); /* if it is up */

static inline wire_request gw_slot_request(const gw_core *core, const gw_slot *slot) {
    return (wire_request){core->options.incarnation, slot->serial, slot->info.attempt};
}

/* gw_attempt.c */

/* SUBMIT to a pair of workers; it leaves the queue if it was there. BT_NO_CAPACITY: there is none, BT_AGAIN: none has
 * room, and it needs that; nothing happened. */
bt_status gw_attempt_start(gw_core *core, gw_slot *slot, bool needs_room, int64_t now_ns, bt_error *err);

bool gw_attempt_has_room(gw_core *core, gw_slot *slot); /* for gw_check */

void gw_attempt_unbook(gw_core *core, gw_slot *slot); /* its shares of the workers' loads are given back */

/* This attempt is over: whoever may hold it is told, its shares of the workers' loads are given back. `teller`: the
 * worker that ended it, 0: none; it needs no telling. */
void gw_attempt_drop(gw_core *core, gw_slot *slot, uint64_t teller);

typedef enum { GW_LOST, GW_BROKEN, GW_LATE, GW_REFUSED } gw_why;

/* This attempt is over, but not the request: replay, wait, or give up. `guilty`: the worker to be avoided, 0: none. */
void gw_attempt_fail(gw_core *core, gw_slot *slot, gw_why why, uint64_t teller, uint64_t guilty, bt_status status,
                     const char *text, int64_t now_ns);

void gw_attempt_retry(gw_core *core, gw_slot *slot, int64_t now_ns); /* WAITING: is there a worker now? */
void gw_attempt_late(gw_core *core, gw_slot *slot, int64_t now_ns);  /* the slot's timer */

/* HANDED_OFF: decode is the owner, prefill's share is given back. */
void gw_attempt_hand_off(gw_core *core, gw_slot *slot, const gw_peer *decode, int64_t now_ns);
void gw_attempt_await_token(gw_core *core, gw_slot *slot,
                            int64_t now_ns); /* HANDED_OFF: decode has just spoken of it */

/* gw_wait.c */

/* A new request gets a place in the queue, maybe another's. BT_AGAIN: there is none for it. */
bt_status gw_wait_join(gw_core *core, gw_slot *slot, bt_error *err);
void gw_wait_rejoin(gw_core *core, gw_slot *slot);               /* refused by a worker: back to its place */
void gw_wait_leave(gw_core *core, gw_slot *slot);                /* nothing, if it is not in the queue */
void gw_wait_late(gw_core *core, gw_slot *slot, int64_t now_ns); /* its time is up: GW_FAILED */
void gw_wait_serve(gw_core *core, int64_t now_ns);               /* at the end of each event: whoever can go goes */

/* gw_message.c */
void gw_message_handle(gw_core *core, uint64_t peer, const wire_message *message, int64_t now_ns);

#endif
