/* What dec_sched.c, dec_lease.c, dec_request.c and dec_step.c share: the table of slots, and the helpers that keep its
 * books. Included by nobody else. */
#ifndef BATON_DECODE_DEC_INTERNAL_H
#define BATON_DECODE_DEC_INTERNAL_H

#include "common/core/alloc.h"
#include "common/core/clock.h"
#include "common/wire/sampling.h"
#include "decode/dec_sched.h"

typedef enum {
    DEC_FREE,
    DEC_LEASED,     /* pushes land */
    DEC_SETTLING,   /* COMMIT is there, its last pushes may not be */
    DEC_QUARANTINE, /* given up; waits for the transfer layer's word that nothing lands any more */
    DEC_WAITING,    /* ours; joins the batch when there is a place in it, and room if it has no blocks any more */
    DEC_RUNNING,    /* in the batch */
    DEC_DEAD,       /* ended while the step that computes it runs; freed when the step is done */
} dec_state;

/* A lease, then a sequence: one slot from RESERVE to the end. */
typedef struct {
    dec_state state;
    wire_request request;
    uint64_t prefill, lease;
    uint32_t gateway; /* index in dec_sched.gateways; from COMMIT on */

    uint32_t *blocks; /* [cap_blocks] owned; the first n_blocks are held in the pool */
    uint32_t n_blocks, cap_blocks;
    uint32_t n_leased_tokens; /* positions that prefill fills */
    uint32_t n_shared;        /* the first blocks, that others may hold too: from the cache, or offered to it */
    wire_block_name *prefix;  /* [n_prefix] owned: the prompt's full blocks */
    uint32_t n_prefix;

    uint32_t n_cached;    /* ours: positions in blocks; a step computes from here on */
    uint32_t n_lost;      /* positions that were there once, before a preemption */
    uint32_t n_step_rows; /* of the step that runs; 0: not in it */

    /* Of a prompt that is computed here; its lease is 0. */
    bool owes_first;  /* the next token is the first of this attempt: FIRST_TOKEN */
    uint32_t n_found; /* positions that the cache had */
    int64_t submit_ns, first_step_ns;

    uint32_t n_pushes; /* what COMMIT promised */
    uint64_t checksum;

    wire_sampling sampling;
    wire_constraint constraint; /* lists in arena */
    bt_arena arena;
    wire_end_rule end; /* ids owned */
    uint32_t *tokens;  /* [n_prompt + end.max_output] owned: prompt, then output */
    uint32_t n_tokens, n_prompt;
    uint32_t n_tokens_seen; /* when pauses were looked for last */
} dec_slot;

typedef struct {
    uint64_t incarnation; /* 0: the place is free */
    uint32_t n_tokens;    /* scratch of step_done: tokens for it */
} dec_gateway;

typedef struct {
    wrk_sched base;            /* first: what the caller holds; by_gateway -> gateways */
    dec_sched_options options; /* defaults filled in */
    kv_pool *pool;             /* borrowed */
    uint32_t max_positions;    /* min(max_model_len, the pool) */
    dec_counters counters;

    dec_slot *slots;   /* [n_slots] */
    bt_map by_lease;   /* -> slot */
    uint32_t n_leases; /* LEASED + SETTLING */
    uint32_t n_quarantined;
    uint64_t last_lease;

    uint32_t *order; /* RUNNING and WAITING slots, the oldest first */
    uint32_t n_running, n_waiting;
    uint32_t n_step_rows, n_step_samples;

    dec_gateway *gateways; /* [cap_gateways] */
    uint32_t cap_gateways;

    wire_token *step_tokens; /* [max_num_seqs] of the step, grouped by gateway */
    char why[64];            /* text of a COMMIT_FAILED, until the actions are walked */
} dec_sched;

static inline dec_sched *dec_of(wrk_sched *base) { return (dec_sched *)base; }

void dec_send_gateway(dec_sched *sched, uint64_t gateway, const wire_message *message);
void dec_send_prefill(dec_sched *sched, uint64_t prefill, const wire_message *message);
void dec_fail(dec_sched *sched, const dec_slot *slot, bt_status status, const char *text); /* FAILED to its gateway */

static inline uint32_t dec_slot_index(const dec_sched *sched, const dec_slot *slot) {
    return (uint32_t)(slot - sched->slots);
}

dec_slot *dec_slot_find(dec_sched *sched, const wire_request *request); /* NULL: not known, or given up */

void dec_slot_release(dec_sched *sched, dec_slot *slot); /* in no book any more: its memory and blocks are free */

/* The slot's request ends here, in any state: books are cleared, blocks freed or quarantined (rule 3). Tells nobody. */
void dec_slot_end(dec_sched *sched, dec_slot *slot, int64_t now_ns);

/* dec_step.c, dec_check.c, dec_lease.c: events of wrk_sched.h */
bool dec_step_begin(wrk_sched *base, int64_t now_ns, wrk_step *out);
void dec_step_done(wrk_sched *base, const uint32_t *tokens, const wire_ranked *logprobs, int64_t now_ns);
void dec_step_lost(wrk_sched *base, int64_t now_ns);
bool dec_is_owner(const wrk_sched *base, const wire_request *request);
void dec_check(const wrk_sched *base);
void dec_lease_closed(wrk_sched *base, uint64_t lease, uint32_t n_pushes, uint64_t checksum, int64_t now_ns);

/* dec_lease.c */
void dec_lease_close(dec_sched *sched, const dec_slot *slot, uint32_t n_pushes); /* the action */
void dec_lease_reserve(dec_sched *sched, uint64_t prefill, const wire_reserve *reserve, int64_t now_ns);
void dec_lease_commit(dec_sched *sched, uint64_t prefill, const wire_commit *commit, int64_t now_ns);
void dec_lease_abort(dec_sched *sched, uint64_t prefill, const wire_abort *abort, int64_t now_ns);
void dec_lease_renew(dec_sched *sched, uint64_t prefill, const wire_renew *renew, int64_t now_ns);
void dec_lease_late(dec_sched *sched, dec_slot *slot, int64_t now_ns); /* the slot's timer */
void dec_lease_refuse_commit(dec_sched *sched, const dec_slot *slot, bt_status status, const char *text);

/* Writes n_blocks block numbers into blocks[]: what the cache has of the named ones, then new ones; *n_held: how many
 * are from the cache. All, or none (rule 5). A watermark stays free, and a block for each sequence of the batch to grow
 * into; where nobody holds anything, everything may be taken. */
bool dec_blocks_take(dec_sched *sched, const wire_block_name *names, uint32_t n_names, uint32_t n_blocks,
                     uint32_t *blocks, uint32_t *n_held);

const char *dec_why_full(const dec_sched *sched); /* NULL: there is room for one more, if it finds blocks */

/* The prompt's full blocks that are complete are for others too, and read-only from now on (rule 2). */
void dec_blocks_offer(dec_sched *sched, dec_slot *slot, int64_t now_ns);

/* dec_request.c */
const char *dec_request_why_senseless(const dec_sched *sched, const wire_commit *asked); /* NULL: it makes sense */
void dec_request_take(dec_sched *sched, dec_slot *slot, const wire_commit *asked);       /* copies what it asks for */
void dec_request_submit(dec_sched *sched, uint64_t gateway, const wire_submit *submit, int64_t now_ns);
void dec_request_send_first(dec_sched *sched, dec_slot *slot, uint32_t token, const wire_ranked *logprobs,
                            int64_t now_ns); /* instead of in TOKENS */

/* dec_step.c */
void dec_batch_add(dec_sched *sched, dec_slot *slot, int64_t now_ns);
void dec_batch_remove(dec_sched *sched, dec_slot *slot);
void dec_batch_late(dec_sched *sched, int64_t now_ns); /* the role's timer, which runs while there are sequences */
bool dec_batch_is_short(const dec_sched *sched);       /* a sequence waits for blocks: nobody else gets any */

#endif
