/* What pre_sched.c, pre_pick.c, pre_step.c and pre_handoff.c share: the table of slots, and the helpers that keep its
 * books. Included by nobody else. */
#ifndef BATON_PREFILL_PRE_INTERNAL_H
#define BATON_PREFILL_PRE_INTERNAL_H

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/core/map.h"
#include "common/core/timers.h"
#include "common/kv/kv_prefix.h"
#include "common/wire/end_rule.h"
#include "common/wire/sampling.h"
#include "prefill/pre_sched.h"

typedef enum {
    PRE_FREE,
    PRE_QUEUED,    /* ACCEPTED; holds no block */
    PRE_COMPUTING, /* holds blocks for all its tokens; some rows are missing */
    PRE_COMPUTED,  /* first token known; only the hand-off is missing */
    PRE_CLOSING,   /* the request is gone; a step or a push still reads its blocks (rule 3) */
} pre_phase;

/* How far the hand-off is. */
typedef enum {
    PRE_UNBOUND,    /* no candidate at the moment: not started, or all refused and the timer runs */
    PRE_CONNECTING, /* waits for candidates[candidate]'s connection */
    PRE_RESERVING,  /* RESERVE sent */
    PRE_LEASED,     /* pushes go to `lease` */
    PRE_COMMITTING, /* COMMIT sent: the baton is in the air */
} pre_bond;

typedef struct {
    pre_phase phase;
    pre_bond bond;
    wire_request request;
    wire_sampling sampling;
    wire_constraint constraint; /* lists in arena */
    wire_end_rule end;          /* ids owned */
    uint32_t n_stop_ids;        /* the last of end.ids: what COMMIT hands on */
    uint32_t max_tokens;
    uint32_t *tokens;  /* [n_tokens + 1] owned: prompt, output of earlier attempts, the first token */
    uint32_t n_tokens; /* to be computed here */
    uint32_t n_prompt;
    uint32_t *blocks;        /* [kv_blocks_for(n_tokens)] owned; held from COMPUTING on */
    uint32_t n_blocks;       /* held */
    wire_block_name *prefix; /* [n_prefix] owned: the prompt's full blocks */
    uint32_t n_prefix;
    uint32_t n_cached_blocks; /* of these, the first ones are in the cache: from there, or offered */
    uint32_t n_cached_tokens; /* found in it at the beginning */
    bt_arena arena;           /* the candidates' strings, the constraint's lists */

    uint32_t n_computed;  /* positions in the cache, of all layers */
    uint32_t n_step_rows; /* of the step that runs; 0: not in it */

    wire_candidate candidates[WIRE_MAX_CANDIDATES];
    uint32_t n_candidates, candidate;
    uint32_t tried;                       /* bit mask: not again in this round */
    uint32_t hopeless;                    /* bit mask: never again */
    bool has_lost_candidate;              /* one of the hopeless is gone or draining, not unfit */
    uint8_t n_stale[WIRE_MAX_CANDIDATES]; /* answers to RESERVEs that were given up, still to come */
    int64_t give_up_ns;                   /* 0: nobody refused yet */
    uint64_t lease;
    uint32_t n_held_blocks; /* decode has them */
    uint32_t *n_pushed;     /* [n_layers] blocks pushed so far, those held included */
    uint32_t n_pushing;     /* pushes in flight, of all leases */
    uint32_t n_commits;
    bool is_renewed; /* scratch of the RENEW timer */

    int64_t submit_ns, first_step_ns, first_push_ns, computed_ns;
    uint64_t n_push_bytes;
} pre_slot;

enum { PRE_PEER_CONNECTING, PRE_PEER_UP }; /* values of by_decode */

struct pre_sched {
    pre_sched_options options; /* defaults filled in; eos_ids owned */
    kv_pool *pool;
    kv_prefix *prefix; /* on top of it, owned */
    pre_counters counters;

    pre_slot *slots; /* [max_requests] */
    uint32_t n_slots;
    uint32_t *free_slots, n_free_slots;
    bt_map by_request; /* -> slot, living ones only */
    bt_map by_gateway; /* gateways that are up */
    bt_map by_decode;  /* -> PRE_PEER_* */
    uint32_t *pushed;  /* [n_slots][n_layers], the slots' n_pushed */

    uint32_t *order; /* slots, first come first: n_computing COMPUTING and n_queued QUEUED ones, mixed */
    uint32_t n_computing, n_queued, n_computed;
    uint64_t n_tokens_left; /* positions not computed, of QUEUED and COMPUTING */

    /* The step. */
    bool is_stepping;
    uint32_t n_layers_done, n_step, n_step_samples, n_step_logits, n_step_rows;
    uint32_t *step_slots;    /* [max_batched_seqs]; filled by pre_pick.c */
    krn_sequence *sequences; /* [max_batched_seqs] */
    pre_sample *samples;     /* [max_batched_seqs] */

    uint64_t *leases; /* [n_slots] scratch of RENEW */
    uint32_t renew_ms;

    bt_timers timers; /* ids: slots, then PRE_TIMER_* */
    int64_t next_status_ns;
    bool is_draining, is_drained;

    pre_action *actions; /* [cap_actions]; walked up to next_action */
    uint32_t n_actions, cap_actions, next_action;
    char handed_off_to[WIRE_MAX_NAME]; /* the name in a HANDED_OFF: its slot is gone when the action is carried out */
};

enum { PRE_TIMER_STATUS, PRE_TIMER_RENEW, PRE_TIMER_GRACE, PRE_N_TIMERS };

pre_action *pre_act(pre_sched *sched, pre_action_kind kind, uint64_t peer);
void pre_send_gateway(pre_sched *sched, const pre_slot *slot, const wire_message *message);
void pre_send_decode(pre_sched *sched, const pre_slot *slot, const wire_message *message); /* its candidate */
void pre_status_changed(pre_sched *sched, int64_t now_ns);

static inline bt_key pre_request_key(const wire_request *r) { return (bt_key){r->gateway, r->serial, r->attempt}; }
static inline bt_key pre_u64_key(uint64_t v) { return (bt_key){v, 0, 0}; }
static inline uint32_t pre_slot_index(const pre_sched *sched, const pre_slot *slot) {
    return (uint32_t)(slot - sched->slots);
}
static inline int64_t pre_after_ms(int64_t now_ns, uint32_t ms) { return now_ns + (int64_t)ms * BT_NS_PER_MS; }
static inline bool pre_is_living(const pre_slot *slot) { return slot->phase != PRE_FREE && slot->phase != PRE_CLOSING; }

/* The prompt's logprobs are wanted: every row of it has logits. Not in a replay: the gateway has them. */
static inline bool pre_is_scored(const pre_slot *slot) {
    return slot->sampling.wants_prompt_logprobs && slot->sampling.n_logprobs > 0 && slot->n_tokens == slot->n_prompt;
}

pre_slot *pre_slot_find(pre_sched *sched, const wire_request *request); /* NULL: not known, or gone */

/* The slot's request ends here, in any phase: its lease is aborted, its books are cleared, its blocks freed as soon as
 * nothing reads them (rule 3). Tells the gateway nothing. */
void pre_slot_end(pre_sched *sched, pre_slot *slot, int64_t now_ns);
void pre_slot_fail(pre_sched *sched, pre_slot *slot, bt_status status, const char *text,
                   int64_t now_ns);                                               /* FAILED too */
void pre_slot_release_if_quiet(pre_sched *sched, pre_slot *slot, int64_t now_ns); /* CLOSING: frees what it can */

/* Positions that no step has begun. */
static inline uint32_t pre_n_left(const pre_slot *slot) {
    return slot->n_tokens - slot->n_computed - slot->n_step_rows;
}

/* pre_pick.c */
void pre_queue_admit(pre_sched *sched, int64_t now_ns);        /* lets queued requests take blocks, as far as they go */
void pre_queue_remove(pre_sched *sched, const pre_slot *slot); /* from order[] */
void pre_pick_rows(pre_sched *sched);                          /* fills step_slots[n_step], n_step_rows of each */

/* pre_handoff.c */
void pre_handoff_start(pre_sched *sched, pre_slot *slot, int64_t now_ns);                /* to the first candidate */
void pre_handoff_push(pre_sched *sched, pre_slot *slot, uint32_t layer, int64_t now_ns); /* what is new in a layer */
void pre_handoff_commit_if_ready(pre_sched *sched, pre_slot *slot, int64_t now_ns);
void pre_handoff_abort(pre_sched *sched, pre_slot *slot);                /* decode forgets it; the slot is unbound */
void pre_handoff_late(pre_sched *sched, pre_slot *slot, int64_t now_ns); /* the slot's timer */
uint32_t pre_handoff_renew(pre_sched *sched);                            /* how many leases there are */

#endif
