/* What pre_sched.c, pre_pick.c, pre_step.c and pre_handoff.c share: the table of slots, and the helpers that keep its
 * books. Included by nobody else. */
#ifndef BATON_PREFILL_PRE_INTERNAL_H
#define BATON_PREFILL_PRE_INTERNAL_H

#include "common/core/alloc.h"
#include "common/core/clock.h"
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
    uint64_t priority;          /* wire_submit's */
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
    uint32_t n_hoped_tokens;  /* QUEUED: were in it when the request came */
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

typedef struct {
    wrk_sched base;            /* first: what the caller holds */
    pre_sched_options options; /* defaults filled in */
    kv_pool *pool;             /* borrowed */
    pre_counters counters;

    pre_slot *slots;  /* [max_requests] */
    bt_map by_decode; /* -> PRE_PEER_* */
    uint32_t *pushed; /* [n_slots][n_layers], the slots' n_pushed */

    uint32_t *order; /* slots, first come first: n_computing COMPUTING and n_queued QUEUED ones, mixed */
    uint32_t n_computing, n_queued, n_computed;
    uint64_t n_tokens_left; /* positions not computed, of QUEUED (as hoped) and COMPUTING */

    uint32_t n_layers_done, n_step_samples, n_step_rows; /* of the step */

    uint64_t *leases; /* [n_slots] scratch of RENEW */
    uint32_t renew_ms;

    char handed_off_to[WIRE_MAX_NAME]; /* the name in a HANDED_OFF: its slot is gone when the action is carried out */
} pre_sched;

static inline pre_sched *pre_of(wrk_sched *base) { return (pre_sched *)base; }

void pre_send_gateway(pre_sched *sched, const pre_slot *slot, const wire_message *message);
void pre_send_decode(pre_sched *sched, const pre_slot *slot, const wire_message *message); /* its candidate */

static inline uint32_t pre_slot_index(const pre_sched *sched, const pre_slot *slot) {
    return (uint32_t)(slot - sched->slots);
}
static inline bool pre_is_living(const pre_slot *slot) { return slot->phase != PRE_FREE && slot->phase != PRE_CLOSING; }

/* The prompt's logprobs are wanted: every row of it has logits. Not in a replay: the gateway has them. */
static inline bool pre_is_scored(const pre_slot *slot) {
    return slot->sampling.n_prompt_logprobs > 0 && slot->n_tokens == slot->n_prompt;
}

pre_slot *pre_slot_find(pre_sched *sched, const wire_request *request); /* NULL: not known, or gone */

/* The slot's request ends here, in any phase: its lease is aborted, its books are cleared, its blocks freed as soon as
 * nothing reads them (rule 3). Tells the gateway nothing. */
void pre_slot_end(pre_sched *sched, pre_slot *slot, int64_t now_ns);
void pre_slot_fail(pre_sched *sched, pre_slot *slot, bt_status status, const char *text,
                   int64_t now_ns);                                               /* FAILED too */
void pre_slot_release_if_quiet(pre_sched *sched, pre_slot *slot, int64_t now_ns); /* CLOSING: frees what it can */

/* Positions that no step has begun; of QUEUED those that it may have to compute. */
static inline uint32_t pre_n_left(const pre_slot *slot) {
    return slot->n_tokens - slot->n_computed - slot->n_step_rows - slot->n_hoped_tokens;
}

/* pre_pick.c */

void pre_queue_put(pre_sched *sched, const pre_slot *slot); /* QUEUED, behind those that go before it */

/* The first of its blocks may come from the cache: so many. */
uint32_t pre_n_cacheable(const pre_slot *slot);
void pre_queue_admit(pre_sched *sched, int64_t now_ns);        /* lets queued requests take blocks, as far as they go */
void pre_queue_remove(pre_sched *sched, const pre_slot *slot); /* from order[] */
void pre_pick_rows(pre_sched *sched);                          /* fills step_slots[n_step], n_step_rows of each */

/* pre_step.c, pre_check.c, pre_handoff.c: events of wrk_sched.h */
bool pre_step_begin(wrk_sched *base, int64_t now_ns, wrk_step *out);
void pre_layer_done(wrk_sched *base, uint32_t layer, int64_t now_ns);
void pre_step_done(wrk_sched *base, const uint32_t *tokens, const wire_ranked *logprobs, int64_t now_ns);
void pre_step_lost(wrk_sched *base, int64_t now_ns);
bool pre_is_owner(const wrk_sched *base, const wire_request *request);
void pre_check(const wrk_sched *base);
void pre_decode_up(wrk_sched *base, uint64_t decode, int64_t now_ns);
void pre_decode_gone(wrk_sched *base, uint64_t decode, int64_t now_ns);
void pre_decode_message(wrk_sched *base, uint64_t decode, const wire_message *message, int64_t now_ns);
void pre_push_done(wrk_sched *base, uint64_t push_id, uint64_t n_bytes, int64_t now_ns);

/* pre_handoff.c */
void pre_handoff_start(pre_sched *sched, pre_slot *slot, int64_t now_ns);                /* to the first candidate */
void pre_handoff_push(pre_sched *sched, pre_slot *slot, uint32_t layer, int64_t now_ns); /* what is new in a layer */
void pre_handoff_commit_if_ready(pre_sched *sched, pre_slot *slot, int64_t now_ns);
void pre_handoff_abort(pre_sched *sched, pre_slot *slot);                /* decode forgets it; the slot is unbound */
void pre_handoff_late(pre_sched *sched, pre_slot *slot, int64_t now_ns); /* the slot's timer */
uint32_t pre_handoff_renew(pre_sched *sched);                            /* how many leases there are */

#endif
